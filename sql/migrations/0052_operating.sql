-- deploy: pre            older workers read an edit of a step that has not failed as they read all others
-- lock:   none
-- undo:   edit_run as in 0026, terminate as in 0023, terminate_many as in 0020
--
-- A step that executes its first try is pending too: its policy may be changed before it fails. Who terminates has as many words as who cancels.

-- As in 0026, but for what has not failed yet, and that a refusal says what holds it.
CREATE OR REPLACE FUNCTION {schema}.edit_run(
    p_run uuid, p_seq int4, p_policy jsonb, p_next_in float8, p_reason text, p_actor text,
    OUT did boolean, OUT state text, OUT why text, OUT made uuid, OUT owner int4)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    one    record;
    terms  jsonb := {schema}.checked_policy(jsonb_strip_nulls(p_policy));
    v_next timestamptz;
BEGIN
    IF p_next_in IS NOT NULL AND NOT (p_next_in >= 0 AND p_next_in <= 1e9) THEN
        RAISE EXCEPTION 'the next try can''t be in % s: give seconds from now, 0 or more', p_next_in USING ERRCODE = '22023';
    ELSIF p_next_in IS NULL AND terms = '{}' THEN
        RAISE EXCEPTION 'nothing to change: give a part of the policy, or when the next try is due' USING ERRCODE = '22023';
    END IF;
    did := false;
    SELECT t.owner INTO owner FROM {schema}.task t WHERE t.run_id = p_run FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        SELECT a.state, a.why INTO state, why FROM {schema}.absent(p_run) AS a;
        RETURN;
    END IF;
    SELECT p.name, p.failed, p.next_at, p.policy, p.edits INTO one FROM {schema}.pending_steps(p_run) AS p WHERE p.seq = p_seq;
    IF NOT FOUND THEN
        SELECT s.name, 0 AS failed, NULL::timestamptz AS next_at, coalesce(e.policy, '{}') AS policy, coalesce(e.n, 0) AS edits INTO one
        FROM {schema}.skippable(p_run, p_seq) AS s (name)
        LEFT JOIN LATERAL (SELECT t.n, {schema}.as_json(t.error) -> 'policy' AS policy FROM {schema}.attempt t
                           WHERE t.run_id = p_run AND t.seq = p_seq AND t.kind = 5 ORDER BY t.n DESC LIMIT 1) AS e ON true;
        IF one.name IS NULL AND EXISTS (SELECT FROM {schema}.step s WHERE s.run_id = p_run AND s.seq = p_seq) THEN
            state := 'refused';
            why := format('step %s has its result: it is not tried again; a fork from there is', p_seq);
        ELSIF one.name IS NULL THEN
            state := 'refused';
            why := format('step %s has not begun, or less than a second ago: its policy can be changed when it has failed, or has been executing for a second', p_seq);
        ELSIF p_next_in IS NOT NULL THEN
            state := 'refused';
            why := format('step %s has not failed: no next try is due that could be put off or hurried; its policy alone can be changed', p_seq);
        END IF;
        IF state IS NOT NULL THEN
            RETURN;
        END IF;
    END IF;
    v_next := coalesce(clock_timestamp() + p_next_in * interval '1 s', one.next_at);
    PERFORM {schema}.edit_step(p_run, p_seq, one.name, one.failed, one.edits, one.policy || terms, v_next);
    PERFORM {schema}.note(p_run, 'edit_retry', p_reason, p_actor, jsonb_build_object('seq', p_seq, 'step', one.name, 'policy', terms, 'next_at', v_next));
    did := true;
    state := 'edited';
END $$;
COMMENT ON FUNCTION {schema}.edit_run(uuid, int4, jsonb, float8, text, text) IS
    'Internal: change the retry policy of one step that was called and has no result, or the next due time of one that failed, for this run alone';
COMMENT ON FUNCTION {schema}.edit_retry(uuid, int4, int4, float8, float8, float8, float8, text, text, boolean) IS
    'Change the retry policy of one step that failed, crashed, or has been executing for a second, and has no result yet, or when the next try of one that failed is due (next_in, seconds from now), for this run alone';

-- As in 0023, but that reason and actor have a limit, as those of cancel.
-- SECURITY DEFINER: a client may end runs and must not be able to write the tables otherwise.
CREATE OR REPLACE FUNCTION {schema}.terminate(run uuid, reason text DEFAULT NULL, notify boolean DEFAULT false, actor text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE v_newest uuid;
BEGIN
    IF length(terminate.reason) > 2000 OR length(terminate.actor) > 200 THEN
        RAISE EXCEPTION 'a reason has at most 2,000 characters and an actor 200, not % and %', coalesce(length(terminate.reason), 0), coalesce(length(terminate.actor), 0)
            USING ERRCODE = '22023';
    END IF;
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    LOOP
        IF {schema}.end_runs(ARRAY[run], 4::int2, {schema}.error_json('RunTerminated', coalesce(reason, 'it was terminated'))) <> '{}' THEN
            INSERT INTO {schema}.cancellation (run_id, how, actor, reason) VALUES (run, 4, coalesce(actor, session_user), reason) ON CONFLICT DO NOTHING;
            IF notify THEN
                PERFORM {schema}.announce_ends(ARRAY[run]);
            END IF;
            RETURN true;
        END IF;
        v_newest := {schema}.newest(run);              -- it went on as another run
        EXIT WHEN v_newest IS NOT DISTINCT FROM run;
        run := v_newest;
    END LOOP;
    IF NOT EXISTS (SELECT FROM {schema}.outcomes(ARRAY[run])) THEN
        RAISE EXCEPTION 'there is no run %', coalesce(run::text, 'null') USING ERRCODE = 'SV006', DETAIL = coalesce(run::text, 'null');
    END IF;
    RETURN false;
END $$;

-- As in 0020, likewise.
-- SECURITY DEFINER: the same.
CREATE OR REPLACE FUNCTION {schema}.terminate_many(runs uuid[], reason text DEFAULT NULL, actor text DEFAULT NULL) RETURNS TABLE (run_id uuid, terminated boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
AS $$
#variable_conflict use_column
DECLARE
    v_owners int4[];
    v_free   uuid[];
    v_ended  uuid[];
BEGIN
    IF length(terminate_many.reason) > 2000 OR length(terminate_many.actor) > 200 THEN
        RAISE EXCEPTION 'a reason has at most 2,000 characters and an actor 200, not % and %', coalesce(length(terminate_many.reason), 0), coalesce(length(terminate_many.actor), 0)
            USING ERRCODE = '22023';
    END IF;
    IF cardinality(runs) > 500 THEN
        RAISE EXCEPTION '% runs are too many for one transaction, at most 500', cardinality(runs) USING ERRCODE = '22023', HINT = 'terminate them in slices';
    END IF;
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    v_owners := ARRAY(SELECT w.id FROM {schema}.worker w
                      WHERE w.id IN (SELECT t.owner FROM {schema}.task t WHERE t.run_id = ANY (runs)) ORDER BY w.id FOR UPDATE);
    -- a further statement: its snapshot sees what the batches have changed that the locks waited for
    v_free := ARRAY(SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (runs) AND (t.owner IS NULL OR t.owner = ANY (v_owners))
                    ORDER BY t.run_id FOR UPDATE SKIP LOCKED);
    v_ended := {schema}.end_runs(v_free, 4::int2, {schema}.error_json('RunTerminated', coalesce(reason, 'it was terminated')));
    INSERT INTO {schema}.cancellation (run_id, how, actor, reason) SELECT u.id, 4, coalesce(terminate_many.actor, session_user), terminate_many.reason FROM unnest(v_ended) AS u (id)
    ON CONFLICT DO NOTHING;
    RETURN QUERY SELECT u.id, true FROM unnest(v_ended) AS u (id);
    RETURN QUERY SELECT t.run_id, false FROM {schema}.task t WHERE t.run_id = ANY (runs);
END $$;
