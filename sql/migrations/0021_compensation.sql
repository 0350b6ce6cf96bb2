-- deploy: pre            views alone; nothing older reads what is new
-- lock:   ACCESS EXCLUSIVE on the view steps, brief
-- undo:   DROP VIEW {schema}.compensations; steps as in 0020
--
-- What runs undo before they end. The plan is a row of step (kind 6) whose result names the commands that follow it; each of them is a step of its own.

-- As in 0020, with the plan of a compensation.
CREATE OR REPLACE VIEW {schema}.steps AS
SELECT s.run_id, s.seq, s.pos, s.name,
       (ARRAY['step', 'timer', 'child', 'child_start', 'signal', 'compensation', 'cancellation', 'handlers_finished', 'update'])[s.kind] AS kind,
       (ARRAY['completed', 'failed', 'cancelled'])[s.status] AS status,
       s.started_at, s.ended_at, extract(epoch FROM s.ended_at - s.started_at)::float8 * 1000 AS duration_ms, s.worker,
       CASE WHEN s.status = 1 THEN {schema}.as_json(s.result, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = s.run_id)) END AS result,
       CASE WHEN s.status <> 1 THEN {schema}.as_json(s.result, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = s.run_id)) END AS error
FROM {schema}.step s;
COMMENT ON COLUMN {schema}.steps.kind IS
    'step, timer, child (its end), child_start, signal (a wait for one), cancellation (that the run was told of one, or that its time is over), compensation (what it undoes), update (that one was accepted, with its argument as result), handlers_finished';

CREATE VIEW {schema}.compensations AS
SELECT m.run_id, (u.it ->> 'seq')::int4 AS seq, u.it ->> 'name' AS name, (u.it ->> 'of')::int4 AS of_seq,
       coalesce((ARRAY['completed', 'failed', 'cancelled'])[s.status], 'to do') AS status,
       m.ended_at AS planned_at, s.ended_at, {schema}.as_json(m.result) ->> 'because' AS because
FROM {schema}.step m
CROSS JOIN LATERAL jsonb_array_elements({schema}.as_json(m.result) -> 'undo') AS u (it)
LEFT JOIN {schema}.step s ON s.run_id = m.run_id AND s.seq = (u.it ->> 'seq')::int4
WHERE m.kind = 6;
COMMENT ON VIEW {schema}.compensations IS 'What runs undo, or have undone, before they end, in that order; ask by run_id';
COMMENT ON COLUMN {schema}.compensations.run_id IS 'The run';
COMMENT ON COLUMN {schema}.compensations.seq IS 'Position of the undo step in the run (see steps)';
COMMENT ON COLUMN {schema}.compensations.name IS 'Name of the step, or of the child workflow';
COMMENT ON COLUMN {schema}.compensations.of_seq IS 'What the run had called last when it named this: in general the step that is undone; -1 when nothing';
COMMENT ON COLUMN {schema}.compensations.status IS 'completed, failed or to do';
COMMENT ON COLUMN {schema}.compensations.planned_at IS 'When the run began to undo';
COMMENT ON COLUMN {schema}.compensations.ended_at IS 'When this was done; null while it is not';
COMMENT ON COLUMN {schema}.compensations.because IS 'What ended the run';

DO $$
DECLARE one record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ({role_worker_literal}, {role_viewer_literal}, {role_operator_literal}) LOOP
        EXECUTE format('GRANT SELECT ON {schema}.compensations TO %I', one.rolname);
    END LOOP;
END $$;
