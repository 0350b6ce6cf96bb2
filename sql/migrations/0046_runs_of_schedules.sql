-- deploy: pre            older code reads the same columns of runs
-- lock:   ACCESS EXCLUSIVE on the view runs, brief; SHARE on schedule_fire while its index is made, last: the leader's fires wait, a second per million ticks
-- undo:   DROP VIEW {schema}.schedule_runs, {schema}.workflows after runs as in 0027; DROP INDEX {schema}.schedule_fire_run_idx
--
-- Which runs a schedule has started, newest first; and which workflows there are.

-- ── runs of schedules ────────────────────────────────────────────────────────────────────────────────────────
CREATE VIEW {schema}.schedule_runs AS
SELECT f.schedule, f.id AS run_id FROM {schema}.schedule_fire f WHERE f.state < 3;
COMMENT ON VIEW {schema}.schedule_runs IS 'Which runs schedules have started, by their ticks, triggers and backfills; ask by schedule or by run_id, both are indexed';
COMMENT ON COLUMN {schema}.schedule_runs.schedule IS 'Name of the schedule, also of one that was deleted';
COMMENT ON COLUMN {schema}.schedule_runs.run_id IS 'The run; what became of it is in runs';

CREATE OR REPLACE VIEW {schema}.runs AS
SELECT r.run_id, r.key, w.name AS workflow, q.name AS queue, r.prio AS priority,
       coalesce((ARRAY['completed', 'failed', 'cancelled', 'terminated', 'timed_out', 'continued'])[o.status], t.status, 'lost') AS status,
       k.code AS wait, t.step, t.seq, t.attempt,
       r.created_at, o.ended_at, extract(epoch FROM o.ended_at - r.created_at)::float8 AS duration_s, o.steps,
       coalesce(o.worker, t.owner) AS worker,
       CASE WHEN o.status IN (1, 6) THEN {schema}.as_json(o.result, r.codec) END AS result,
       CASE WHEN o.status NOT IN (1, 6) THEN {schema}.as_json(o.result, r.codec) END AS error,
       {schema}.as_json(r.input, r.codec) AS input,
       r.parent_id, r.parent_seq,
       coalesce(o.version, t.version,
                (SELECT s.version FROM {schema}.served s WHERE s.worker = coalesce(o.worker, t.owner) AND s.workflow = r.workflow),
                (SELECT s.version FROM {schema}.served s WHERE s.workflow = r.workflow AND s.worker = (
                    SELECT p.worker FROM {schema}.step p WHERE p.run_id = r.run_id AND o.run_id IS NOT NULL ORDER BY p.seq DESC LIMIT 1))) AS version,
       coalesce((SELECT {schema}.merged_attributes(r.attributes, s.value) FROM {schema}.attribute_set s WHERE s.run_id = r.run_id ORDER BY s.pos DESC LIMIT 1),
                {schema}.as_json(r.attributes)) AS attributes,
       b.name AS batch,
       (SELECT jsonb_build_object('done', p.done, 'total', p.total, 'at', p.noted_at) FROM {schema}.progress_note p
        WHERE p.run_id = r.run_id ORDER BY p.pos DESC LIMIT 1) AS progress,
       r.forked_from, r.forked_seq,
       (SELECT s.schedule FROM {schema}.schedule_runs s WHERE s.run_id = r.run_id) AS schedule
FROM {schema}.run r
LEFT JOIN {schema}.workflow w ON w.id = r.workflow
LEFT JOIN {schema}.outcome o ON o.run_id = r.run_id
LEFT JOIN {schema}.task_now t ON t.run_id = r.run_id
LEFT JOIN {schema}.queue q ON q.id = coalesce(t.queue, r.queue)
LEFT JOIN {schema}.wait_kind k ON k.id = t.wait
LEFT JOIN {schema}.batch b ON b.id = r.batch;
COMMENT ON COLUMN {schema}.runs.schedule IS 'Schedule that started it; null when none did';

-- ── workflows ────────────────────────────────────────────────────────────────────────────────────────────────
CREATE VIEW {schema}.workflows AS
SELECT w.name AS workflow, q.name AS queue, w.timeout_s, {schema}.as_json(w.parameters) AS parameters, w.registered_at, w.last_seen_at
FROM {schema}.workflow w JOIN {schema}.queue q ON q.id = w.queue;
COMMENT ON VIEW {schema}.workflows IS 'What workers have registered: no run is of any other workflow';
COMMENT ON COLUMN {schema}.workflows.workflow IS 'Name of the workflow';
COMMENT ON COLUMN {schema}.workflows.queue IS 'Queue of its runs where their start names none';
COMMENT ON COLUMN {schema}.workflows.timeout_s IS 'How long a run of it may take, in seconds; null: as long as it likes';
COMMENT ON COLUMN {schema}.workflows.parameters IS 'Its parameters in order: name, whether required, JSON schema';
COMMENT ON COLUMN {schema}.workflows.registered_at IS 'When a worker registered it first';
COMMENT ON COLUMN {schema}.workflows.last_seen_at IS 'When a worker registered it last';

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE one record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ({role_worker_literal}, {role_viewer_literal}, {role_operator_literal}) LOOP
        EXECUTE format('GRANT SELECT ON {schema}.schedule_runs, {schema}.workflows TO %I', one.rolname);
    END LOOP;
END $$;

-- Runs of one schedule in the order of lists. Its ticks, in theirs, have the primary key; those that started none are not here.
CREATE INDEX schedule_fire_run_idx ON {schema}.schedule_fire (schedule, id) WHERE state < 3;
