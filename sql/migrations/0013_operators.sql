-- deploy: pre            older code calls none of the new functions; what it asks of the index that goes, the new one answers
-- lock:   ACCESS EXCLUSIVE on task while the new index is made: 0.3 s per million live runs; nothing else that anybody waits for
-- undo:   DROP FUNCTION cancel_many, drop_batches; DROP VIEW live, due, later; batch_id as in 0009; DROP INDEX {schema}.task_wait_idx;
--         CREATE INDEX task_code_missing_idx ON {schema}.task (run_id) WHERE wait_kind = 20
--
-- What operators do with many runs at once: find live ones by what they wait for, end all that fit, forget batches with their runs.

-- ── live runs by what they wait for ──────────────────────────────────────────────────────────────────────────
-- In place of the index of one reason, one of all: a run is in it while it is parked for one, so neither a start nor a claim, a wake-up or an end
-- pays for it; parking costs 10 to 13 us of the server's time instead of 8.
-- wait_kind stood in an index's predicate before, so nothing that was a HOT update is none now.
DROP INDEX {schema}.task_code_missing_idx;
CREATE INDEX task_wait_idx ON {schema}.task (wait_kind, run_id) WHERE wait_kind > 1;

CREATE VIEW {schema}.live AS
SELECT t.run_id, w.name AS workflow, q.name AS queue, t.status, t.wait, t.wait_kind AS parked, t.wait_since AS since
FROM {schema}.task_now t
LEFT JOIN {schema}.workflow w ON w.id = t.workflow
LEFT JOIN {schema}.queue q ON q.id = t.queue;
COMMENT ON VIEW {schema}.live IS 'Live runs without their history: much cheaper than waits for whoever looks through many of them';
COMMENT ON COLUMN {schema}.live.run_id IS 'The run';
COMMENT ON COLUMN {schema}.live.workflow IS 'Name of its workflow';
COMMENT ON COLUMN {schema}.live.queue IS 'Name of its queue';
COMMENT ON COLUMN {schema}.live.status IS 'ready, running, waiting or paused';
COMMENT ON COLUMN {schema}.live.wait IS 'Number of the reason that holds at this moment (see wait_kind)';
COMMENT ON COLUMN {schema}.live.parked IS 'Number of the reason that its last transition recorded, by which task_wait_idx is ordered';
COMMENT ON COLUMN {schema}.live.since IS 'When that was; null where it was never claimed';

-- One range of task_ready_idx per queue and priority, whatever the planner believes of the table: LATERAL and OFFSET 0 leave it no other way.
CREATE VIEW {schema}.due AS
SELECT t.run_id, t.workflow, q.name AS queue, t.status, t.wait, t.parked, t.since
FROM {schema}.queue q CROSS JOIN generate_series(0, 9) AS level (prio) CROSS JOIN LATERAL (
    SELECT t.run_id, w.name AS workflow, t.status, t.wait, t.wait_kind AS parked, t.wait_since AS since
    FROM {schema}.task_now t LEFT JOIN {schema}.workflow w ON w.id = t.workflow
    WHERE t.queue = q.id AND t.prio = level.prio::int2 AND t.ready_at <= now() OFFSET 0) AS t;
COMMENT ON VIEW {schema}.due IS 'Of live those whose time has come, so all that are ready or running; an index has them';
COMMENT ON COLUMN {schema}.due.run_id IS 'The run';
COMMENT ON COLUMN {schema}.due.workflow IS 'As in live';
COMMENT ON COLUMN {schema}.due.queue IS 'As in live';
COMMENT ON COLUMN {schema}.due.status IS 'As in live';
COMMENT ON COLUMN {schema}.due.wait IS 'As in live';
COMMENT ON COLUMN {schema}.due.parked IS 'As in live';
COMMENT ON COLUMN {schema}.due.since IS 'As in live';

CREATE VIEW {schema}.later AS
SELECT t.run_id, t.workflow, q.name AS queue, t.status, t.wait, t.parked, t.since
FROM {schema}.queue q CROSS JOIN generate_series(0, 9) AS level (prio) CROSS JOIN LATERAL (
    SELECT t.run_id, w.name AS workflow, t.status, t.wait, t.wait_kind AS parked, t.wait_since AS since
    FROM {schema}.task_now t LEFT JOIN {schema}.workflow w ON w.id = t.workflow
    WHERE t.queue = q.id AND t.prio = level.prio::int2 AND t.ready_at > now() AND t.ready_at < 'infinity' OFFSET 0) AS t;
COMMENT ON VIEW {schema}.later IS 'Of live those whose time will come: delayed starts, sleeps, backoffs, timeouts; an index has them';
COMMENT ON COLUMN {schema}.later.run_id IS 'The run';
COMMENT ON COLUMN {schema}.later.workflow IS 'As in live';
COMMENT ON COLUMN {schema}.later.queue IS 'As in live';
COMMENT ON COLUMN {schema}.later.status IS 'As in live';
COMMENT ON COLUMN {schema}.later.wait IS 'As in live';
COMMENT ON COLUMN {schema}.later.parked IS 'As in live';
COMMENT ON COLUMN {schema}.later.since IS 'As in live';

-- ── many at once ─────────────────────────────────────────────────────────────────────────────────────────────
-- The owners' rows first, then the tasks, as everywhere; what somebody else has locked, or claims in this moment, is left for the next call.
-- lock_timeout: the owner's row may be held for long by whoever ended a run of it in a transaction that goes on; the caller tries again.
-- SECURITY DEFINER: as cancel.
CREATE FUNCTION {schema}.cancel_many(runs uuid[], reason text DEFAULT NULL) RETURNS TABLE (run_id uuid, cancelled boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
AS $$
#variable_conflict use_column
DECLARE
    v_owners int4[];
    v_free   uuid[];
BEGIN
    IF cardinality(runs) > 500 THEN
        RAISE EXCEPTION '% runs are too many for one transaction, at most 500', cardinality(runs) USING ERRCODE = '22023', HINT = 'cancel them in slices';
    END IF;
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    v_owners := ARRAY(SELECT w.id FROM {schema}.worker w
                      WHERE w.id IN (SELECT t.owner FROM {schema}.task t WHERE t.run_id = ANY (runs)) ORDER BY w.id FOR UPDATE);
    -- a further statement: its snapshot sees what the batches have changed that the locks waited for
    v_free := ARRAY(SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (runs) AND (t.owner IS NULL OR t.owner = ANY (v_owners))
                    ORDER BY t.run_id FOR UPDATE SKIP LOCKED);
    RETURN QUERY SELECT e.run_id, true
        FROM unnest({schema}.end_runs(v_free, 3::int2, {schema}.error_json('RunCancelled', coalesce(reason, 'it was cancelled')))) AS e (run_id);
    RETURN QUERY SELECT t.run_id, false FROM {schema}.task t WHERE t.run_id = ANY (runs);
END $$;
COMMENT ON FUNCTION {schema}.cancel_many(uuid[], text) IS
    'End those of at most 500 runs that live, as cancel does; a row for each, with false for those that are locked by somebody else: ask again';

-- ── batches go with their runs ───────────────────────────────────────────────────────────────────────────────
-- A start holds its batch's row, so that it can't be forgotten between being read and being named by a run. One that went
-- in that moment is made anew.
CREATE OR REPLACE FUNCTION {schema}.batch_id(p_name text) RETURNS int8
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE v_id int8;
BEGIN
    IF length(p_name) NOT BETWEEN 1 AND 200 THEN
        RAISE EXCEPTION 'the name of a batch has 1 to 200 characters, not %', length(p_name) USING ERRCODE = '22023';
    END IF;
    LOOP
        SELECT id INTO v_id FROM {schema}.batch WHERE name = p_name FOR KEY SHARE;
        IF NOT FOUND THEN
            INSERT INTO {schema}.batch (name) VALUES (p_name) ON CONFLICT (name) DO NOTHING RETURNING id INTO v_id;
        END IF;
        EXIT WHEN v_id IS NOT NULL;
    END LOOP;
    RETURN v_id;
END $$;
COMMENT ON FUNCTION {schema}.batch_id(text) IS 'Internal: the number of a batch, held until the transaction ends; makes it when it is new';

-- SECURITY INVOKER: as drop_keys. The partition is detached, so its runs count no more. A batch that a start holds at this moment is left.
CREATE FUNCTION {schema}.drop_batches(p_suffix text, p_after int8, p_max int4, OUT n int8, OUT last int8)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE v_ids int8[];
BEGIN
    n := 0;
    IF to_regclass(format('%s.%I', {schema_literal}, 'run_' || p_suffix)) IS NULL THEN
        RETURN;
    END IF;
    -- each batch of it once, by its index: one look per batch, not per run
    EXECUTE format('WITH RECURSIVE named AS ((SELECT r.batch FROM {schema}.%1$I r WHERE r.batch > $1 ORDER BY r.batch LIMIT 1) '
                   'UNION ALL SELECT (SELECT r.batch FROM {schema}.%1$I r WHERE r.batch > d.batch ORDER BY r.batch LIMIT 1) FROM named d WHERE d.batch IS NOT NULL) '
                   'SELECT array_agg(d.batch) FROM (SELECT batch FROM named WHERE batch IS NOT NULL LIMIT $2) AS d', 'run_' || p_suffix)
    INTO v_ids USING p_after, p_max;
    n := coalesce(cardinality(v_ids), 0);
    last := v_ids[n];
    v_ids := ARRAY(SELECT b.id FROM {schema}.batch b WHERE b.id = ANY (v_ids) ORDER BY b.id FOR UPDATE SKIP LOCKED);
    -- a further statement: its snapshot sees the runs of whoever held a batch before
    DELETE FROM {schema}.batch b WHERE b.id = ANY (v_ids) AND NOT EXISTS (SELECT FROM {schema}.run r WHERE r.batch = b.id);
END $$;
COMMENT ON FUNCTION {schema}.drop_batches(text, int8, int4) IS
    'Forget one slice of the batches of a detached partition, those that have no other runs; how many it looked at, and the last of them';

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE
    worker   text := {role_worker_literal};
    client   text := {role_client_literal};
    viewer   text := {role_viewer_literal};
    operator text := {role_operator_literal};
    one      record;
BEGIN
    FOR one IN SELECT g.what, r.rolname FROM (VALUES
        ('EXECUTE ON FUNCTION {schema}.cancel_many(uuid[], text)', ARRAY[worker, client, operator]),
        ('EXECUTE ON FUNCTION {schema}.drop_batches(text, int8, int4)', ARRAY[worker]),
        ('SELECT ON {schema}.live, {schema}.due, {schema}.later', ARRAY[worker, viewer, operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
