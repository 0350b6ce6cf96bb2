-- deploy: pre            older workers end what they have no code for as they did before, when its time is over; all else holds for their runs too
-- lock:   rows of task that are paused and have a timeout, or were cancelled
-- undo:   request_cancel, put_aside, requests_of and pause_run as in 0026, end_wedged as in 0019; DROP FUNCTION {schema}.wedged(uuid, int2, int2, text);
--         UPDATE {schema}.task SET ready_at = 'infinity' WHERE wait_kind = 7
--
-- Ends that meet what holds a run up. Only its own code knows what is to be undone, so a run whose code is missing or has changed is not ended for
-- being cancelled or late: the wish stands in its row, and it waits for code that goes on with it; terminate does not. And no pause holds up an end:
-- who is to end is not paused any more, and a paused run's timeout wakes it. What `waits` says of all that: 0034.

-- ── what the engine has put aside ────────────────────────────────────────────────────────────────────────────
-- resumed 2: its worker died with it, so a first step may have been under way, and what undoes that named before. Version null and resumed otherwise: a fork
-- has its history, and what was given back before it began has none.
CREATE FUNCTION {schema}.wedged(p_run uuid, p_wait_kind int2, p_resumed int2, p_version text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN p_wait_kind BETWEEN 21 AND 23
        OR p_wait_kind IN (19, 20) AND (p_resumed = 0 OR p_resumed <> 2 AND p_version IS NULL AND NOT {schema}.has_begun(p_run));
END $$;
COMMENT ON FUNCTION {schema}.wedged(uuid, int2, int2, text) IS
    'Internal: whether a run that is put aside ends without its code: it kills its workers, or has nothing to undo; others wait for code that goes on with them';

-- As in 0026, but that what waits for its code goes on waiting.
CREATE OR REPLACE FUNCTION {schema}.request_cancel(p_runs uuid[], p_reason text, p_actor text) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_level uuid[] := p_runs;
    v_live  uuid[];
    v_all   uuid[] := '{}';
    v_dead  uuid[] := '{}';
BEGIN
    LOOP
        v_live := ARRAY(SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (v_level) AND t.cancel_to IS NULL ORDER BY t.run_id FOR NO KEY UPDATE);
        EXIT WHEN v_live = '{}';
        -- a paused run goes on, to be told; what the engine had put aside before is that again
        WITH was AS (DELETE FROM {schema}.pause p WHERE p.run_id = ANY (v_live) RETURNING p.run_id, p.wait_kind, p.wait_detail, p.wait_since)
        UPDATE {schema}.task t SET ready_at = 'infinity', wait_kind = was.wait_kind, wait_detail = was.wait_detail, wait_since = was.wait_since
        FROM was WHERE t.run_id = was.run_id AND t.owner IS NULL AND t.wait_kind = 7 AND was.wait_kind BETWEEN 19 AND 23;
        UPDATE {schema}.task t SET cancel_to = coalesce(t.owner, 0) WHERE t.run_id = ANY (v_live) AND (t.owner IS NOT NULL OR t.wait_kind BETWEEN 19 AND 23);
        UPDATE {schema}.task t
        SET cancel_to = 0, ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(),
            wait_children = NULL, wait_failed = NULL, wait_signals = NULL
        WHERE t.run_id = ANY (v_live) AND t.cancel_to IS NULL;
        INSERT INTO {schema}.cancellation (run_id, how, actor, reason) SELECT u.id, 3, p_actor, p_reason FROM unnest(v_live) AS u (id);
        -- no code of theirs has to be told
        v_dead := v_dead || ARRAY(SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (v_live) AND t.owner IS NULL
                                  AND (t.resumed = 0 OR {schema}.wedged(t.run_id, t.wait_kind, t.resumed, t.version)));
        v_all := v_all || v_live;
        -- a further statement than the marks: a child that started before is there, and one that starts later sees its parent's mark
        v_level := ARRAY(SELECT c.run_id FROM {schema}.children_now AS c JOIN {schema}.task t ON t.run_id = c.run_id
                         WHERE c.parent_id = ANY (v_live) AND t.parent_close IS DISTINCT FROM 1);
    END LOOP;
    IF v_dead <> '{}' THEN
        PERFORM {schema}.end_runs(v_dead, 3::int2, {schema}.error_json('RunCancelled', coalesce(p_reason, 'it was cancelled')));
    END IF;
    RETURN v_all;
END $$;

-- As in 0019, but that what waits for its code is left, unless its parent's end terminates it; and that what has nothing to undo ends when its time is over, too.
-- SECURITY DEFINER: the leader logs in as a worker.
CREATE OR REPLACE FUNCTION {schema}.end_wedged(p_runs uuid[]) RETURNS int4
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    one record;
    v_n int4 := 0;
BEGIN
    FOR one IN
        SELECT t.run_id, w.name, CASE WHEN t.cancel_to IS NULL THEN 5 ELSE coalesce(c.how, 3) END AS status, c.reason
        FROM {schema}.task t
        LEFT JOIN {schema}.workflow w ON w.id = t.workflow
        LEFT JOIN LATERAL (SELECT c.how, c.reason FROM {schema}.cancellation c WHERE c.run_id = t.run_id AND c.run_id = ANY (p_runs) ORDER BY c.how DESC LIMIT 1) AS c ON true
        WHERE t.run_id = ANY (p_runs) AND t.owner IS NULL AND t.wait_kind BETWEEN 19 AND 23
          AND (t.cancel_to IS NOT NULL OR t.wait_kind = 20 AND t.cancel_at <= clock_timestamp())
          AND (c.how = 4 OR {schema}.wedged(t.run_id, t.wait_kind, t.resumed, t.version))
        ORDER BY t.run_id FOR UPDATE OF t SKIP LOCKED
    LOOP
        v_n := v_n + cardinality({schema}.end_runs(ARRAY[one.run_id], one.status::int2, CASE one.status
            WHEN 3 THEN {schema}.error_json('RunCancelled', coalesce(one.reason, 'it was cancelled'))
            WHEN 4 THEN {schema}.error_json('RunTerminated', coalesce(one.reason, 'it was terminated'))
            ELSE {schema}.error_json('RunTimedOut', format('the run did not end within the timeout of workflow %s', one.name)) END));
    END LOOP;
    RETURN v_n;
END $$;
COMMENT ON FUNCTION {schema}.end_wedged(uuid[]) IS
    'Internal: end those of the runs that the engine has put aside and that somebody has ended, or whose time is over, unless their code has to be told; how many';

-- ── pauses ───────────────────────────────────────────────────────────────────────────────────────────────────
-- As in 0026, but that its timeout wakes a paused run.
CREATE OR REPLACE FUNCTION {schema}.put_aside(p_runs uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE {schema}.pause p
    SET ready_at = CASE WHEN t.wait_kind BETWEEN 11 AND 15 THEN NULL ELSE t.ready_at END,
        wait_kind = t.wait_kind, wait_detail = t.wait_detail, wait_since = t.wait_since
    FROM {schema}.task t WHERE p.run_id = ANY (p_runs) AND t.run_id = p.run_id AND t.owner IS NULL AND t.wait_kind IS DISTINCT FROM 7;
    UPDATE {schema}.task t
    SET ready_at = coalesce(t.cancel_at, 'infinity'), wait_kind = 7, wait_detail = p.detail, wait_since = clock_timestamp(), wait_children = NULL, wait_failed = NULL,
        wait_signals = NULL
    FROM {schema}.pause p WHERE p.run_id = ANY (p_runs) AND t.run_id = p.run_id AND t.owner IS NULL AND t.wait_kind IS DISTINCT FROM 7;
END $$;

-- As in 0026, but that a pause ends with the time of its run: where this worker has it, or has given it back.
CREATE OR REPLACE FUNCTION {schema}.requests_of(p_worker int4, p_seen int8[]) RETURNS TABLE (run_id uuid, n int8)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_late uuid[];
    v_left uuid[];
BEGIN
    IF p_seen <> '{}' THEN
        DELETE FROM {schema}.changed c WHERE c.n = ANY (p_seen);
    END IF;
    IF NOT EXISTS (SELECT FROM {schema}.changed) AND NOT EXISTS (SELECT FROM {schema}.pause) THEN
        RETURN;
    END IF;
    v_late := ARRAY(
        SELECT t.run_id FROM {schema}.task t
        WHERE t.run_id IN (SELECT p.run_id FROM {schema}.pause p) AND t.cancel_at <= clock_timestamp()
          AND (t.owner = p_worker OR t.owner IS NULL AND t.wait_kind IS DISTINCT FROM 7) ORDER BY t.run_id LIMIT 500 FOR NO KEY UPDATE SKIP LOCKED);
    DELETE FROM {schema}.pause p WHERE p.run_id = ANY (v_late);
    -- released meanwhile, by a worker that had not heard of it or that died
    v_left := ARRAY(
        SELECT t.run_id FROM {schema}.task t
        WHERE t.run_id IN (SELECT p.run_id FROM {schema}.pause p UNION SELECT c.run_id FROM {schema}.changed c)
          AND t.owner IS NULL AND t.wait_kind IS DISTINCT FROM 7 ORDER BY t.run_id LIMIT 500 FOR NO KEY UPDATE SKIP LOCKED);
    IF v_left <> '{}' THEN
        PERFORM {schema}.put_aside(v_left);
        UPDATE {schema}.task t SET ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(), wait_children = NULL, wait_failed = NULL,
            wait_signals = NULL
        FROM {schema}.changed c WHERE c.run_id = ANY (v_left) AND t.run_id = c.run_id AND t.owner IS NULL AND t.wait_kind BETWEEN 9 AND 15;
        DELETE FROM {schema}.changed c WHERE c.run_id = ANY (v_left);
    END IF;
    DELETE FROM {schema}.pause p WHERE NOT EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = p.run_id);
    DELETE FROM {schema}.changed c WHERE NOT EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = c.run_id);
    RETURN QUERY
        SELECT p.run_id, NULL::int8 FROM {schema}.pause p JOIN {schema}.task t ON t.run_id = p.run_id WHERE t.owner = p_worker
        UNION ALL
        SELECT c.run_id, c.n FROM {schema}.changed c JOIN {schema}.task t ON t.run_id = c.run_id WHERE t.owner = p_worker;
END $$;

-- As in 0026, but that a run which is to end is not paused. Custom plan: prunes cancellation.
CREATE OR REPLACE FUNCTION {schema}.pause_run(
    p_run uuid, p_reason text, p_actor text, OUT did boolean, OUT state text, OUT why text, OUT made uuid, OUT owner int4)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE one record;
BEGIN
    did := false;
    SELECT t.owner, t.wait_kind, t.cancel_to, t.cancel_at <= clock_timestamp() AS late, k.code
    INTO one FROM {schema}.task t LEFT JOIN {schema}.wait_kind k ON k.id = t.wait_kind
    WHERE t.run_id = p_run FOR NO KEY UPDATE OF t;
    IF NOT FOUND THEN
        SELECT a.state, a.why INTO state, why FROM {schema}.absent(p_run) AS a;
        RETURN;
    ELSIF one.cancel_to IS NOT NULL THEN
        state := 'refused';
        SELECT format('it is being %s (asked for by %s): it ends by its own code, or terminate ends it', {schema}.outcome_name(c.how), c.actor)
        INTO why FROM {schema}.cancellation c WHERE c.run_id = p_run ORDER BY c.how DESC LIMIT 1;
        why := coalesce(why, 'it is being cancelled');
        RETURN;
    ELSIF one.late THEN
        state := 'refused';
        why := 'its time is over: it ends as timed_out by its own code, or terminate ends it';
        RETURN;
    END IF;
    INSERT INTO {schema}.pause (run_id, detail)
    VALUES (p_run, jsonb_strip_nulls(jsonb_build_object('by', coalesce(p_actor, session_user::text), 'reason', p_reason))::text) ON CONFLICT (run_id) DO NOTHING;
    did := FOUND;
    owner := one.owner;
    state := CASE WHEN one.owner IS NULL THEN 'paused' ELSE 'pausing' END;
    PERFORM {schema}.put_aside(ARRAY[p_run]);
    IF did THEN
        PERFORM {schema}.note(p_run, 'pause', p_reason, p_actor, jsonb_build_object('state', state, 'waited_for', CASE WHEN one.owner IS NULL THEN one.code END));
    END IF;
END $$;
COMMENT ON FUNCTION {schema}.pause_run(uuid, text, text) IS 'Internal: pause a run; one that a worker has is put aside by it, and one that is to end is refused';
COMMENT ON FUNCTION {schema}.pause(uuid, text, text, boolean) IS
    'Stop a live run until somebody resumes it: paused, or pausing while its worker finishes the steps that it executes. One that is being cancelled, or whose time is over, is refused (SV030)';

-- what was held up before
UPDATE {schema}.task t SET ready_at = t.cancel_at WHERE t.owner IS NULL AND t.wait_kind = 7 AND t.cancel_at IS NOT NULL;
WITH held AS (DELETE FROM {schema}.pause p USING {schema}.task t WHERE t.run_id = p.run_id AND t.cancel_to IS NOT NULL RETURNING p.run_id)
UPDATE {schema}.task t SET ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp()
FROM held WHERE t.run_id = held.run_id AND t.owner IS NULL AND t.wait_kind = 7;

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE one record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname = {role_worker_literal} LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.wedged(uuid, int2, int2, text) TO %I', one.rolname);
    END LOOP;
END $$;
