-- deploy: pre            older clients and workers call the same procedures; older workers hear of a start 1 ms later, from their parent
-- lock:   none
-- undo:   outcomes_soon as in 0012, start_and_tell as in 0030; DROP FUNCTION {schema}.tell_unless_claimed(uuid, text, text)
--
-- Who waits for a quick run has its result sooner (bench latency). Of one run that has ended the row is read by a plan that is kept, where `outcomes`
-- makes one each time: 0.3 ms. Such a plan locks each partition for the moment, 40 at most, which is 25 us; they are left to who drops one. And of a start
-- hear at first only workers that wait, for parents that hear of it too take 0.4 ms of the processor that the worker wakes on; they are told where nobody has claimed it
-- when it is on the disk.

-- SECURITY DEFINER: as outcomes. Who asks about a run that is about to end would ask again and again, 0.8 ms each time; this looks 10 us apart
-- whether its task is still there, with the snapshots of single statements.
CREATE OR REPLACE FUNCTION {schema}.outcomes_soon(p_ids uuid[], p_patience interval)
RETURNS TABLE (run_id uuid, status text, result bytea, ended_at timestamptz)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off   -- whatever task held when it was planned
AS $$
DECLARE
    v_until  timestamptz := clock_timestamp() + least(p_patience, interval '2 ms');
    v_one    uuid := CASE WHEN cardinality(p_ids) = 1 THEN p_ids[1] END;
    v_status int2;
BEGIN
    LOOP
        SELECT o.run_id, o.status, o.result, o.ended_at INTO run_id, v_status, result, ended_at FROM {schema}.outcome o WHERE o.run_id = v_one;
        IF v_status <> 6 THEN
            status := {schema}.outcome_name(v_status);
            RETURN NEXT;
            RETURN;
        END IF;
        IF v_one IS NULL OR v_status IS NOT NULL THEN   -- more than one, or it went on as a new run
            RETURN QUERY SELECT * FROM {schema}.outcomes(p_ids);
            EXIT WHEN FOUND;
        END IF;
        EXIT WHEN clock_timestamp() >= v_until;
        WHILE clock_timestamp() < v_until LOOP
            EXIT WHEN (SELECT count(*) FROM {schema}.task t WHERE t.run_id = ANY (p_ids)) < cardinality(p_ids);
        END LOOP;
    END LOOP;
END $$;

-- SECURITY DEFINER: whoever may start runs may announce them, and needs no right on task for it.
-- A claim that is on its way to the disk holds the row's lock. Where this finds the row free it holds it for a moment, which a claim steps over: it is
-- announced after that.
CREATE FUNCTION {schema}.tell_unless_claimed(p_run uuid, p_channel text, p_hint text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM {schema}.task t WHERE t.run_id = p_run AND t.owner IS NULL FOR SHARE SKIP LOCKED;
    IF FOUND OR p_hint !~ '^\[\[[^[]*,1,0\.0\]\]$' THEN   -- it tells of more than one run that is due at once
        PERFORM set_config('synchronous_commit', 'off', true), pg_notify(p_channel, p_hint);
    END IF;
END $$;
COMMENT ON FUNCTION {schema}.tell_unless_claimed(uuid, text, text) IS 'Internal: announce a start to the hosts, unless a worker that heard of it has claimed it';

-- A procedure, for it commits in between, as signal_and_tell does: first the start, which others may see from there on; then its announcement to workers,
-- which get it with its commit; then all waits for the disk together, with others'; then the hosts. All names are qualified and there is no operator.
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
    COMMIT;
    PERFORM {schema}.tell_unless_claimed(p_run, p_channel, p_hint);
END $$;
COMMENT ON PROCEDURE {schema}.start_and_tell(text, uuid, bytea, text, int2, interval, text, text) IS
    'Internal: start_one, its commit, in a second transaction the announcement to workers, in a third the wait for the disk, in a fourth the announcement to hosts where nobody has claimed it';

DO $$
DECLARE one record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ({role_worker_literal}, {role_client_literal}, {role_operator_literal}) LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.tell_unless_claimed(uuid, text, text) TO %I', one.rolname);
    END LOOP;
END $$;
