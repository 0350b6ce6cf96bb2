-- deploy: pre            older clients call the same procedure; parents of older hosts give no worker an ear before they hear of a start: their own look finds it
-- lock:   none
-- undo:   start_and_tell and tell_unless_claimed as in 0041; DROP FUNCTION {schema}.tells_of_one(text)
--
-- Of a single start hear only workers that listen: one of each host does from its birth on, claims what it hears of, and tells its parent where it can't. Parents
-- were told where nobody had claimed the run when it was on the disk; a quick disk is quicker than any claim, and so the parent and the worker's second look
-- took 0.4 ms each of the processors that the run needed (bench latency).

CREATE FUNCTION {schema}.tells_of_one(p_hint text) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
RETURN p_hint ~ '^\[\[[^[]*,1,0\.0\]\]$';
COMMENT ON FUNCTION {schema}.tells_of_one(text) IS 'Internal: whether a hint tells of one run that is due at once';

CREATE OR REPLACE PROCEDURE {schema}.start_and_tell(
    p_workflow text, p_run uuid, p_input bytea, p_queue text, p_priority int2, p_delay interval, p_channel text, p_hint text)
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM {schema}.start_one(p_workflow, p_run, p_input, p_queue, p_priority, p_delay), pg_catalog.set_config('synchronous_commit', 'off', true);
    COMMIT;
    PERFORM pg_catalog.set_config('synchronous_commit', 'off', true), pg_catalog.pg_notify(pg_catalog.concat(p_channel, '_now'), p_hint);
    COMMIT;
    PERFORM {schema}.wait_for_disk();
    IF {schema}.tells_of_one(p_hint) THEN
        RETURN;
    END IF;
    COMMIT;
    PERFORM pg_catalog.set_config('synchronous_commit', 'off', true), pg_catalog.pg_notify(p_channel, p_hint);
END $$;
COMMENT ON PROCEDURE {schema}.start_and_tell(text, uuid, bytea, text, int2, interval, text, text) IS
    'Internal: start_one, its commit, in a second transaction the announcement to workers, in a third the wait for the disk, in a fourth the announcement to hosts of what is more than one run';

DROP FUNCTION {schema}.tell_unless_claimed(uuid, text, text);

DO $$
DECLARE one record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ({role_worker_literal}, {role_client_literal}, {role_operator_literal}) LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.tells_of_one(text) TO %I', one.rolname);
    END LOOP;
END $$;
