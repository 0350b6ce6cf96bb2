-- deploy: pre            older clients call the same procedure; parents of older hosts give no worker an ear before they hear of a start: their own look finds it
-- lock:   none
-- undo:   start_one as in 0047; start_and_tell and tell_unless_claimed as in 0041; DROP FUNCTION {schema}.tells_of_one(text)
--
-- Of a single start hear only workers that listen: one of each host does from its birth on, claims what it hears of, and tells its parent where it can't. Parents
-- were told where nobody had claimed the run when it was on the disk; a quick disk is quicker than any claim, and so the parent and the worker's second look
-- took 0.4 ms each of the processors that the run needed (bench latency).

-- As in 0047, but the bounds of an id are computed here: a function of its own, called twice, took an eighth of it.
CREATE OR REPLACE FUNCTION {schema}.start_one(p_workflow text, p_run uuid, p_input bytea, p_queue text, p_priority int2, p_delay interval) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_workflow int4;
    v_queue    int4;
    v_deadline timestamptz;
    v_now      timestamptz := clock_timestamp();
    v_ms       int8 := (extract(epoch FROM v_now) * 1000)::int8;
BEGIN
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    SELECT w.id, w.queue, v_now + {schema}.checked_delay(p_delay) + w.timeout_s * interval '1 s' INTO v_workflow, v_queue, v_deadline FROM {schema}.workflow w WHERE w.name = p_workflow;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no worker has ever registered a workflow named "%"', p_workflow USING ERRCODE = 'SV001',
            HINT = 'start a worker whose app defines it, or check the name';
    END IF;
    IF p_queue IS NOT NULL THEN
        v_queue := {schema}.queue_id(p_queue);
    END IF;
    IF p_priority IS NULL OR p_priority NOT BETWEEN 0 AND 9 THEN
        RAISE EXCEPTION 'priority % is not between 0 (first) and 9 (last)', p_priority USING ERRCODE = '22023';
    END IF;
    IF p_run NOT BETWEEN (lpad(to_hex(v_ms - 60000), 12, '0') || '00000000000000000000')::uuid AND (lpad(to_hex(v_ms + 60000), 12, '0') || '00000000000000000000')::uuid THEN
        RAISE EXCEPTION 'a run id is more than 60 s off the database''s clock' USING ERRCODE = 'SV002',
            HINT = 'set the clock of the client''s machine, or let new_id() make the id';
    END IF;
    INSERT INTO {schema}.run (run_id, created_at, workflow, queue, prio, input)
    VALUES (p_run, v_now, v_workflow, v_queue, p_priority, p_input);
    INSERT INTO {schema}.task (run_id, ready_at, cancel_at, queue, workflow, prio, input)
    VALUES (p_run, v_now + p_delay, v_deadline, v_queue, v_workflow, p_priority, CASE WHEN length(p_input) <= 1024 THEN p_input END);
END $$;

CREATE FUNCTION {schema}.tells_of_one(p_hint text) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
RETURN p_hint ~ '^\[\[[^[]*,1,0\.0\]\]$';
COMMENT ON FUNCTION {schema}.tells_of_one(text) IS 'Internal: whether a hint tells of one run that is due at once';

-- Others may see the start with its first commit, which waits for no disk: so NOTIFY's lock of the whole cluster is held for no longer than in a transaction of its own.
CREATE OR REPLACE PROCEDURE {schema}.start_and_tell(
    p_workflow text, p_run uuid, p_input bytea, p_queue text, p_priority int2, p_delay interval, p_channel text, p_hint text)
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM {schema}.start_one(p_workflow, p_run, p_input, p_queue, p_priority, p_delay), pg_catalog.set_config('synchronous_commit', 'off', true),
            pg_catalog.pg_notify(pg_catalog.concat(p_channel, '_now'), p_hint);
    COMMIT;
    PERFORM {schema}.wait_for_disk();
    IF {schema}.tells_of_one(p_hint) THEN
        RETURN;
    END IF;
    COMMIT;
    PERFORM pg_catalog.set_config('synchronous_commit', 'off', true), pg_catalog.pg_notify(p_channel, p_hint);
END $$;
COMMENT ON PROCEDURE {schema}.start_and_tell(text, uuid, bytea, text, int2, interval, text, text) IS
    'Internal: start_one and its announcement to workers, in a second transaction the wait for the disk, in a third the announcement to hosts of what is more than one run';

DROP FUNCTION {schema}.tell_unless_claimed(uuid, text, text);

DO $$
DECLARE one record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ({role_worker_literal}, {role_client_literal}, {role_operator_literal}) LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.tells_of_one(text) TO %I', one.rolname);
    END LOOP;
END $$;
