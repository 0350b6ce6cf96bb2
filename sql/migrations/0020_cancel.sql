-- deploy: pre            older clients call cancel and cancel_many with the arguments that they had; what they cancel ends by its own code
-- lock:   none that anybody waits for: functions alone
-- undo:   DROP FUNCTION of each new name; cancel as in 0014, cancel_many as in 0013, their grants too
--
-- cancel records that a run, and all below it, be cancelled (0019); terminate ends one at once, whoever has it, as cancel did before.

-- ── cancel ───────────────────────────────────────────────────────────────────────────────────────────────────
-- SECURITY DEFINER: a client may cancel runs and must not be able to write the tables otherwise.
CREATE FUNCTION {schema}.cancel_tree(p_runs uuid[], p_reason text DEFAULT NULL, p_actor text DEFAULT NULL)
RETURNS TABLE (run_id uuid, ended boolean, owner int4, workflow text, queue text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_asked   uuid[];
    v_unknown uuid;
BEGIN
    IF length(p_reason) > 2000 OR length(p_actor) > 200 THEN
        RAISE EXCEPTION 'a reason has at most 2,000 characters and an actor 200, not % and %', coalesce(length(p_reason), 0), coalesce(length(p_actor), 0)
            USING ERRCODE = '22023';
    END IF;
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    v_asked := {schema}.request_cancel(p_runs, p_reason, coalesce(p_actor, session_user));
    SELECT u.id INTO v_unknown FROM unnest(p_runs) AS u (id)
    WHERE u.id IS NULL OR u.id <> ALL (v_asked) AND NOT EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = u.id)
          AND NOT EXISTS (SELECT FROM {schema}.outcomes(ARRAY[u.id])) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'there is no run %', coalesce(v_unknown::text, 'null') USING ERRCODE = 'SV006', DETAIL = coalesce(v_unknown::text, 'null');
    END IF;
    RETURN QUERY
        SELECT a.id, t.run_id IS NULL, t.owner, w.name, q.name
        FROM unnest(v_asked) AS a (id) LEFT JOIN {schema}.task t ON t.run_id = a.id
        LEFT JOIN {schema}.workflow w ON w.id = t.workflow LEFT JOIN {schema}.queue q ON q.id = t.queue AND t.queue <> w.queue;
END $$;
COMMENT ON FUNCTION {schema}.cancel_tree(uuid[], text, text) IS
    'cancel for programs: a row for each run, below those given too, that lived and was not cancelled before: whether it has ended, else who is to be told';

CREATE FUNCTION {schema}.announce_cancelled(p_ended uuid[], p_owners int4[], p_workflows text[], p_queues text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM {schema}.announce_ends(p_ended);
    PERFORM pg_notify((SELECT n.nspname FROM pg_namespace n WHERE n.oid = {schema_literal}::regnamespace) || '_signal', json_agg(s.owner)::text)
    FROM (SELECT u.owner, row_number() OVER (ORDER BY u.owner) / 500 AS part FROM unnest(p_owners) AS u (owner) WHERE u.owner IS NOT NULL GROUP BY u.owner) AS s
    GROUP BY s.part;
    PERFORM {schema}.announce(u.workflow, u.queue, count(*), interval '0')
    FROM unnest(p_owners, p_workflows, p_queues) AS u (owner, workflow, queue) WHERE u.owner IS NULL AND u.workflow IS NOT NULL GROUP BY u.workflow, u.queue;
END $$;
COMMENT ON FUNCTION {schema}.announce_cancelled(uuid[], int4[], text[], text[]) IS
    'Internal: tell, at the commit, who waits for what was ended, the hosts of workers that have cancelled runs, and all that others were woken';

DROP FUNCTION {schema}.cancel(uuid, text, boolean);

-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.cancel(run uuid, reason text DEFAULT NULL, notify boolean DEFAULT false, actor text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE told record;
BEGIN
    SELECT array_agg(c.run_id) AS runs, array_agg(c.run_id) FILTER (WHERE c.ended) AS ended, array_agg(c.owner) AS owners,
           array_agg(c.workflow) AS workflows, array_agg(c.queue) AS queues
    INTO told FROM {schema}.cancel_tree(ARRAY[run], reason, actor) AS c;
    IF notify THEN
        PERFORM {schema}.announce_cancelled(told.ended, told.owners, told.workflows, told.queues);
    END IF;
    RETURN coalesce(run = ANY (told.runs), false);
END $$;
COMMENT ON FUNCTION {schema}.cancel(uuid, text, boolean, text) IS
    'Ask that a run, and all below it, be cancelled: their code is told at what it awaits, and ends them; false when the run had ended or was cancelled before';

DROP FUNCTION {schema}.cancel_many(uuid[], text);

-- What somebody else has locked is left for the next call. lock_timeout: below the runs given it waits for nobody longer.
-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.cancel_many(runs uuid[], reason text DEFAULT NULL, actor text DEFAULT NULL)
RETURNS TABLE (run_id uuid, cancelled boolean, ended boolean, owner int4, workflow text, queue text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
AS $$
#variable_conflict use_column
DECLARE v_free uuid[];
BEGIN
    IF cardinality(runs) > 500 THEN
        RAISE EXCEPTION '% runs are too many for one transaction, at most 500', cardinality(runs) USING ERRCODE = '22023', HINT = 'cancel them in slices';
    END IF;
    v_free := ARRAY(SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (runs) AND t.cancel_to IS NULL ORDER BY t.run_id FOR NO KEY UPDATE SKIP LOCKED);
    RETURN QUERY SELECT c.run_id, true, c.ended, c.owner, c.workflow, c.queue FROM {schema}.cancel_tree(v_free, reason, actor) AS c WHERE c.run_id = ANY (runs);
    RETURN QUERY SELECT t.run_id, false, false, NULL::int4, NULL::text, NULL::text FROM {schema}.task t WHERE t.run_id = ANY (runs) AND t.cancel_to IS NULL;
END $$;
COMMENT ON FUNCTION {schema}.cancel_many(uuid[], text, text) IS
    'Cancel those of at most 500 runs that live, as cancel does; a row for each, with cancelled false for those that are locked by somebody else: ask again';

-- ── terminate ────────────────────────────────────────────────────────────────────────────────────────────────
-- SECURITY DEFINER: a client may end runs and must not be able to write the tables otherwise.
CREATE FUNCTION {schema}.terminate(run uuid, reason text DEFAULT NULL, notify boolean DEFAULT false, actor text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    IF {schema}.end_runs(ARRAY[run], 4::int2, {schema}.error_json('RunTerminated', coalesce(reason, 'it was terminated'))) <> '{}' THEN
        INSERT INTO {schema}.cancellation (run_id, how, actor, reason) VALUES (run, 4, coalesce(actor, session_user), reason) ON CONFLICT DO NOTHING;
        IF notify THEN
            PERFORM {schema}.announce_ends(ARRAY[run]);
        END IF;
        RETURN true;
    END IF;
    IF NOT EXISTS (SELECT FROM {schema}.outcomes(ARRAY[run])) THEN
        RAISE EXCEPTION 'there is no run %', coalesce(run::text, 'null') USING ERRCODE = 'SV006', DETAIL = coalesce(run::text, 'null');
    END IF;
    RETURN false;
END $$;
COMMENT ON FUNCTION {schema}.terminate(uuid, text, boolean, text) IS
    'End a run at once, whoever has it and without its code; false when it had ended before. Its children are treated as their parent_close says';

-- The owners' rows first, then the tasks, as everywhere; what somebody else has locked, or claims in this moment, is left for the next call.
-- lock_timeout: the owner's row may be held for long by whoever ended a run of it in a transaction that goes on; the caller tries again.
-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.terminate_many(runs uuid[], reason text DEFAULT NULL, actor text DEFAULT NULL) RETURNS TABLE (run_id uuid, terminated boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
AS $$
#variable_conflict use_column
DECLARE
    v_owners int4[];
    v_free   uuid[];
    v_ended  uuid[];
BEGIN
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
COMMENT ON FUNCTION {schema}.terminate_many(uuid[], text, text) IS
    'End those of at most 500 runs that live, as terminate does; a row for each, with false for those that are locked by somebody else: ask again';

-- ── views ────────────────────────────────────────────────────────────────────────────────────────────────────
-- As in 0018, with the delivery of a cancellation among what a run is given.
CREATE OR REPLACE VIEW {schema}.steps AS
SELECT s.run_id, s.seq, s.pos, s.name,
       (ARRAY['step', 'timer', 'child', 'child_start', 'signal', NULL, 'cancellation', 'handlers_finished', 'update'])[s.kind] AS kind,
       (ARRAY['completed', 'failed', 'cancelled'])[s.status] AS status,
       s.started_at, s.ended_at, extract(epoch FROM s.ended_at - s.started_at)::float8 * 1000 AS duration_ms, s.worker,
       CASE WHEN s.status = 1 THEN {schema}.as_json(s.result, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = s.run_id)) END AS result,
       CASE WHEN s.status <> 1 THEN {schema}.as_json(s.result, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = s.run_id)) END AS error
FROM {schema}.step s;
COMMENT ON VIEW {schema}.steps IS 'Finished steps, timers, children, received signals and accepted updates of runs, and that they were cancelled, one row each; ask by run_id';
COMMENT ON COLUMN {schema}.steps.kind IS 'step, timer, child (its end), child_start, signal (a wait for one), cancellation (that the run was told of one), update (that one was accepted, with its argument as result), handlers_finished';

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE one record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ({role_worker_literal}, {role_client_literal}, {role_operator_literal}) LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.cancel(uuid, text, boolean, text), {schema}.cancel_tree(uuid[], text, text), '
                       '{schema}.cancel_many(uuid[], text, text), {schema}.terminate(uuid, text, boolean, text), '
                       '{schema}.terminate_many(uuid[], text, text) TO %I', one.rolname);
    END LOOP;
END $$;
