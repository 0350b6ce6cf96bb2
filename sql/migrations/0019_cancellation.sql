-- deploy: pre            older workers do not look at what is new: what they have is cancelled when a newer one takes it
-- lock:   ACCESS EXCLUSIVE on task, brief: a column without a default and an index of no rows
-- undo:   DROP VIEW {schema}.cancellations; DROP FUNCTION {schema}.close_children(uuid[]), {schema}.request_cancel(uuid[], text, text); end_runs as in 0014;
--         DROP TABLE {schema}.cancellation; DROP INDEX {schema}.task_cancel_idx; ALTER TABLE {schema}.task DROP COLUMN cancel_to
--
-- That a run be cancelled is asked for, and it ends by its own code. Who asks marks the run's task row and, in further statements, those of its
-- children, level by level: all in one transaction. A child that starts locks its parent's row FOR SHARE, so it sees the mark or is seen.
-- Where no code can run (it never began, or the engine has put it aside) the run is ended at once.
-- Lock order: parents before their children, else ascending by run_id (sql/README.md).

ALTER TABLE {schema}.task ADD COLUMN cancel_to int4;
COMMENT ON COLUMN {schema}.task.cancel_to IS
    'Null: nobody has asked to end it. The worker that had it when somebody did, and has not told it yet; 0: whoever has it next reads of it, or it was told';
CREATE INDEX task_cancel_idx ON {schema}.task (cancel_to) WHERE cancel_to > 0;   -- neither is changed by a claim, which stays HOT

CREATE TABLE {schema}.cancellation (
    run_id   uuid NOT NULL,
    how      int2 NOT NULL,                            -- as outcome.status: 3 cancel, 4 terminate
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor    text NOT NULL,
    reason   text,
    PRIMARY KEY (run_id, how)
) PARTITION BY RANGE (run_id);
COMMENT ON TABLE {schema}.cancellation IS 'That a run be ended: who asked, when and why; insert only';
COMMENT ON COLUMN {schema}.cancellation.run_id IS 'The run';
COMMENT ON COLUMN {schema}.cancellation.how IS '3 cancelled, by its own code; 4 terminated';
COMMENT ON COLUMN {schema}.cancellation.asked_at IS 'When';
COMMENT ON COLUMN {schema}.cancellation.actor IS 'Who: as the caller says, else the role that logged in; "run <id>" for a parent that ended';
COMMENT ON COLUMN {schema}.cancellation.reason IS 'Why, in the caller''s words';
SELECT {schema}.make_partitions_of('cancellation');

CREATE VIEW {schema}.cancellations AS
SELECT c.run_id, {schema}.outcome_name(c.how) AS how, c.asked_at, c.actor, c.reason FROM {schema}.cancellation c;
COMMENT ON VIEW {schema}.cancellations IS 'That runs be ended: who asked, when and why; ask by run_id';
COMMENT ON COLUMN {schema}.cancellations.run_id IS 'The run; a row for each of a tree that was cancelled';
COMMENT ON COLUMN {schema}.cancellations.how IS 'cancelled: its code is told and ends it; terminated: it is ended without its code';
COMMENT ON COLUMN {schema}.cancellations.asked_at IS 'When it was asked';
COMMENT ON COLUMN {schema}.cancellations.actor IS 'Who asked: as the caller says, else the role that logged in; "run <id>" for a parent that ended';
COMMENT ON COLUMN {schema}.cancellations.reason IS 'Why, in the caller''s words; null when none was given';

-- ── ending a run from outside ────────────────────────────────────────────────────────────────────────────────
-- As in 0014, but that children are treated as their policy says, and that a parent which waits for more than has ended looks for itself a moment
-- later: the count here may lack what workers commit before this transaction does, and they look at the parent without waiting for it.
CREATE OR REPLACE FUNCTION {schema}.end_runs(p_runs uuid[], p_status int2, p_error bytea) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_gone    uuid[];
    v_parents uuid[];
    v_ended   uuid[] := '{}';
    v_bereft  uuid[] := '{}';
BEGIN
    LOOP
        IF EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = ANY (p_runs) AND t.owner IS NOT NULL) THEN
            IF EXISTS (SELECT FROM {schema}.task t JOIN {schema}.worker w ON w.id = t.owner WHERE t.run_id = ANY (p_runs)
                       AND current_setting('application_name') = 'pgsupervisor: tx ' || left(w.boot::text, 8)) THEN
                RAISE EXCEPTION 'a transactional step can''t end a run that its own worker has' USING ERRCODE = '55000',
                    HINT = 'end it in a step that is not transactional, with a client';
            END IF;
            PERFORM {schema}.take_away(p_runs);
        END IF;
        PERFORM FROM {schema}.task t WHERE t.run_id = ANY (p_runs) AND t.owner IS NULL ORDER BY t.run_id FOR UPDATE;
        -- a further statement: its snapshot sees the steps of whatever the locks waited for
        WITH gone AS (
            DELETE FROM {schema}.task t WHERE t.run_id = ANY (p_runs) AND t.owner IS NULL RETURNING t.run_id, t.parent_id, t.version, t.attributes),
        told AS (
            INSERT INTO {schema}.outcome (run_id, ended_at, steps, status, result, version, attributes)
            SELECT g.run_id, clock_timestamp(), (SELECT count(*) FROM {schema}.step s WHERE s.run_id = g.run_id), p_status, p_error, g.version, g.attributes
            FROM gone g),
        counted AS (                                   -- a parent that has ended asks for no count, and its partition may be gone
            INSERT INTO {schema}.child_done (parent_id, n, failed)
            SELECT g.parent_id, count(*), count(*) FROM gone g JOIN {schema}.task p ON p.run_id = g.parent_id GROUP BY g.parent_id RETURNING parent_id)
        SELECT (SELECT array_agg(g.run_id) FROM gone g), (SELECT array_agg(c.parent_id) FROM counted c) INTO v_gone, v_parents;
        v_ended := v_ended || v_gone;
        v_bereft := v_bereft || v_parents;
        EXIT WHEN NOT EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = ANY (p_runs));
    END LOOP;
    IF v_bereft <> '{}' THEN
        PERFORM FROM {schema}.task t WHERE t.run_id = ANY (v_bereft) ORDER BY t.run_id FOR NO KEY UPDATE;
        -- as wake_parents. Under one snapshot for the whole transaction the count may be old, so the parent looks for itself
        UPDATE {schema}.task t
        SET ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(), wait_children = NULL, wait_failed = NULL
        FROM (SELECT d.parent_id, sum(d.n) AS n, sum(d.failed) AS failed FROM {schema}.child_done d WHERE d.parent_id = ANY (v_bereft) GROUP BY d.parent_id) AS done
        WHERE t.run_id = done.parent_id AND t.owner IS NULL AND t.wait_children IS NOT NULL
          AND (done.n >= t.wait_children OR done.failed > t.wait_failed
               OR current_setting('transaction_isolation') IN ('repeatable read', 'serializable'));
        UPDATE {schema}.task t SET ready_at = least(t.ready_at, clock_timestamp() + interval '0.1 s')
        WHERE t.run_id = ANY (v_bereft) AND t.owner IS NULL AND t.wait_children IS NOT NULL;
    END IF;
    IF v_ended <> '{}' THEN
        DELETE FROM {schema}.timer t WHERE t.run_id = ANY (v_ended);
        PERFORM {schema}.close_children(v_ended);
    END IF;
    RETURN v_ended;
END $$;

-- ── asking that runs be cancelled ────────────────────────────────────────────────────────────────────────────
-- Custom plans: they prune child and cancellation. A run that was asked already is left as it is, with all that is below it.
CREATE FUNCTION {schema}.request_cancel(p_runs uuid[], p_reason text, p_actor text) RETURNS uuid[]
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
        UPDATE {schema}.task t SET cancel_to = t.owner WHERE t.run_id = ANY (v_live) AND t.owner IS NOT NULL;
        UPDATE {schema}.task t
        SET cancel_to = 0, ready_at = clock_timestamp(), wait_kind = CASE WHEN t.wait_kind BETWEEN 19 AND 23 THEN t.wait_kind ELSE 1 END, wait_detail = NULL,
            wait_since = clock_timestamp(), wait_children = NULL, wait_failed = NULL, wait_signals = NULL
        WHERE t.run_id = ANY (v_live) AND t.owner IS NULL;
        INSERT INTO {schema}.cancellation (run_id, how, actor, reason) SELECT u.id, 3, p_actor, p_reason FROM unnest(v_live) AS u (id);
        -- no code of theirs can run: they never began, or the engine has put them aside
        v_dead := v_dead || ARRAY(SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (v_live) AND t.owner IS NULL
                                  AND (t.resumed = 0 OR t.wait_kind BETWEEN 19 AND 23));
        v_all := v_all || v_live;
        -- a further statement than the marks: a child that started before is there, and one that starts later sees its parent's mark
        v_level := ARRAY(SELECT c.run_id FROM {schema}.child c JOIN {schema}.task t ON t.run_id = c.run_id
                         WHERE c.parent_id = ANY (v_live) AND t.parent_close IS DISTINCT FROM 1);
    END LOOP;
    IF v_dead <> '{}' THEN
        PERFORM {schema}.end_runs(v_dead, 3::int2, {schema}.error_json('RunCancelled', coalesce(p_reason, 'it was cancelled')));
    END IF;
    RETURN v_all;
END $$;
COMMENT ON FUNCTION {schema}.request_cancel(uuid[], text, text) IS
    'Internal: ask that runs and all below them be cancelled, and end those at once of which no code can run; all that live and were not asked before';

-- ── what becomes of the children of runs that end ────────────────────────────────────────────────────────────
-- In the transaction in which their parents end. A child that a worker has is left to that worker, by its mark; nothing here locks a worker's row.
-- SECURITY DEFINER: workers call it, and may neither mark nor end runs that are not theirs otherwise.
CREATE FUNCTION {schema}.close_children(p_parents uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    one    record;
    v_kids uuid[];
BEGIN
    FOR one IN
        SELECT c.parent_id AS id, array_agg(c.run_id) FILTER (WHERE t.parent_close IS DISTINCT FROM 2) AS cancelled,
               array_agg(c.run_id) FILTER (WHERE t.parent_close = 2) AS terminated
        FROM {schema}.child c JOIN {schema}.task t ON t.run_id = c.run_id
        WHERE c.parent_id = ANY (p_parents) AND t.parent_close IS DISTINCT FROM 1 GROUP BY c.parent_id ORDER BY c.parent_id
    LOOP
        PERFORM {schema}.request_cancel(one.cancelled, 'its parent ended', 'run ' || one.id);
        v_kids := ARRAY(SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (one.terminated) ORDER BY t.run_id FOR UPDATE);
        IF v_kids <> '{}' THEN
            INSERT INTO {schema}.cancellation (run_id, how, actor, reason) SELECT u.id, 4, 'run ' || one.id, 'its parent ended' FROM unnest(v_kids) AS u (id)
            ON CONFLICT DO NOTHING;
            UPDATE {schema}.task t SET cancel_to = t.owner WHERE t.run_id = ANY (v_kids) AND t.owner IS NOT NULL;
            PERFORM {schema}.end_runs(ARRAY(SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (v_kids) AND t.owner IS NULL),
                                      4::int2, {schema}.error_json('RunTerminated', 'its parent ended'));
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION {schema}.close_children(uuid[]) IS
    'Internal: runs ended; ask that their live children be cancelled, or terminate them, or leave them, as each was started';

-- Level-triggered: what the engine puts aside after its cancellation was asked for.
-- SECURITY DEFINER: the leader logs in as a worker.
CREATE FUNCTION {schema}.end_wedged(p_runs uuid[]) RETURNS int4
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    one record;
    v_n int4 := 0;
BEGIN
    FOR one IN
        SELECT t.run_id, c.reason FROM {schema}.task t LEFT JOIN {schema}.cancellation c ON c.run_id = t.run_id AND c.run_id = ANY (p_runs) AND c.how = 3
        WHERE t.run_id = ANY (p_runs) AND t.owner IS NULL AND t.wait_kind BETWEEN 19 AND 23 AND t.cancel_to IS NOT NULL ORDER BY t.run_id FOR UPDATE OF t SKIP LOCKED
    LOOP
        v_n := v_n + cardinality({schema}.end_runs(ARRAY[one.run_id], 3::int2, {schema}.error_json('RunCancelled', coalesce(one.reason, 'it was cancelled'))));
    END LOOP;
    RETURN v_n;
END $$;
COMMENT ON FUNCTION {schema}.end_wedged(uuid[]) IS 'Internal: end those of the runs as cancelled that somebody has cancelled and the engine has put aside; how many';

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE
    worker   text := {role_worker_literal};
    viewer   text := {role_viewer_literal};
    operator text := {role_operator_literal};
    one      record;
BEGIN
    FOR one IN SELECT g.what, r.rolname FROM (VALUES
        ('SELECT, INSERT ON {schema}.cancellation', ARRAY[worker]),
        ('EXECUTE ON FUNCTION {schema}.close_children(uuid[]), {schema}.error_json(text, text), {schema}.end_wedged(uuid[])', ARRAY[worker]),
        ('SELECT ON {schema}.cancellations', ARRAY[worker, viewer, operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
