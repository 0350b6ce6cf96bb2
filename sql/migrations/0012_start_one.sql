-- deploy: pre            older clients call start_runs, which stays; nothing older reads what is new
-- lock:   none
-- undo:   DROP PROCEDURE {schema}.start_and_tell(text, uuid, bytea, text, int2, interval, text, text);
--         DROP FUNCTION {schema}.start_one(text, uuid, bytea, text, int2, interval); DROP FUNCTION {schema}.outcomes_soon(uuid[], interval)
--
-- One start at a time, where somebody waits for its result: of start_runs what a single run without key, batch and
-- attributes needs (1.3 -> 1.0 ms of a client's time after a pause of 9 ms, when nothing is in the caches), and the
-- announcement behind its commit without a round trip of its own (the host hears of it 0.5 ms sooner).

-- SECURITY DEFINER: as start_runs. It refuses what start_runs refuses and leaves the rows that start_runs leaves.
CREATE FUNCTION {schema}.start_one(p_workflow text, p_run uuid, p_input bytea, p_queue text, p_priority int2, p_delay interval) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_workflow int4;
    v_queue    int4;
    v_deadline timestamptz;
    v_now      timestamptz := clock_timestamp();
BEGIN
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    SELECT w.id, w.queue, v_now + p_delay + w.timeout_s * interval '1 s' INTO v_workflow, v_queue, v_deadline FROM {schema}.workflow w WHERE w.name = p_workflow;
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
    IF p_run NOT BETWEEN {schema}.id_floor(v_now - interval '60 s') AND {schema}.id_floor(v_now + interval '60 s') THEN
        RAISE EXCEPTION 'a run id is more than 60 s off the database''s clock' USING ERRCODE = 'SV002',
            HINT = 'set the clock of the client''s machine, or let new_id() make the id';
    END IF;
    INSERT INTO {schema}.run (run_id, created_at, workflow, queue, prio, input)
    VALUES (p_run, v_now, v_workflow, v_queue, p_priority, p_input);
    INSERT INTO {schema}.task (run_id, ready_at, cancel_at, queue, workflow, prio, input)
    VALUES (p_run, v_now + p_delay, v_deadline, v_queue, v_workflow, p_priority, CASE WHEN length(p_input) <= 1024 THEN p_input END);
END $$;
COMMENT ON FUNCTION {schema}.start_one(text, uuid, bytea, text, int2, interval) IS
    'Internal: start one run without key, batch and attributes; what start_runs does for one, with less work';

-- A procedure, for it commits in between: NOTIFY takes a lock of the whole cluster at the commit of its transaction, and a start's commit waits
-- for the disk. It can't have a search_path of its own then: all names are qualified and there is no operator. It has the caller's rights.
CREATE PROCEDURE {schema}.start_and_tell(
    p_workflow text, p_run uuid, p_input bytea, p_queue text, p_priority int2, p_delay interval, p_channel text, p_hint text)
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM {schema}.start_one(p_workflow, p_run, p_input, p_queue, p_priority, p_delay);
    COMMIT;
    PERFORM pg_catalog.set_config('synchronous_commit', 'off', true), pg_catalog.pg_notify(p_channel, p_hint);
END $$;
COMMENT ON PROCEDURE {schema}.start_and_tell(text, uuid, bytea, text, int2, interval, text, text) IS
    'Internal: start_one, its commit, and in a second transaction the announcement to the hosts';

-- SECURITY DEFINER: as outcomes. Who asks about a run that is about to end would ask again and again, 0.8 ms each time; this looks 10 us apart
-- whether its task is still there, with the snapshots of single statements, and answers 0.3 ms sooner on the mean (bench latency).
CREATE FUNCTION {schema}.outcomes_soon(p_ids uuid[], p_patience interval)
RETURNS TABLE (run_id uuid, status text, result bytea, ended_at timestamptz)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off   -- whatever task held when it was planned
AS $$
DECLARE v_until timestamptz := clock_timestamp() + least(p_patience, interval '2 ms');
BEGIN
    LOOP
        RETURN QUERY SELECT * FROM {schema}.outcomes(p_ids);
        EXIT WHEN FOUND OR clock_timestamp() >= v_until;
        WHILE clock_timestamp() < v_until LOOP
            EXIT WHEN (SELECT count(*) FROM {schema}.task t WHERE t.run_id = ANY (p_ids)) < cardinality(p_ids);
        END LOOP;
    END LOOP;
END $$;
COMMENT ON FUNCTION {schema}.outcomes_soon(uuid[], interval) IS
    'Internal: how those of the given runs ended that have ended; of none, waits for the first of them for up to 2 ms';

DO $$
DECLARE one record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ({role_worker_literal}, {role_client_literal}, {role_operator_literal}) LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.start_one(text, uuid, bytea, text, int2, interval) TO %I', one.rolname);
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.outcomes_soon(uuid[], interval) TO %I', one.rolname);
        EXECUTE format('GRANT EXECUTE ON PROCEDURE {schema}.start_and_tell(text, uuid, bytea, text, int2, interval, text, text) TO %I', one.rolname);
    END LOOP;
END $$;
