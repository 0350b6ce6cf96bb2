-- deploy: pre            older code neither writes nor reads what is new; an app whose steps give heartbeats can't run on an older worker
-- lock:   ACCESS EXCLUSIVE on the view attempts, brief
-- undo:   DROP VIEW {schema}.heartbeats; attempts as in 0028; REVOKE INSERT, UPDATE ON {schema}.beat; DELETE FROM {schema}.attempt WHERE kind = 8
--
-- Signs of life of steps that execute, in the table of those of who holds a token: one row per step, the last one. What was said with it stays until
-- something else is said, so that the next try finds it.
-- attempt kind 8: the first try of a step with schedule_to_close has begun (due: next_retry_at, the end of all tries together).

COMMENT ON TABLE {schema}.beat IS
    'Last signs of life of steps, and of who holds a token; the one table of a run''s that is updated, while it lives, and goes with its history';

CREATE VIEW {schema}.heartbeats AS
SELECT b.run_id, b.seq, b.n AS attempt, b.at, {schema}.as_json(b.details) AS details FROM {schema}.beat b;
COMMENT ON VIEW {schema}.heartbeats IS 'Last sign of life of each step that gives any, or of who holds its token, and what was said with it; ask by run_id';
COMMENT ON COLUMN {schema}.heartbeats.run_id IS 'The run';
COMMENT ON COLUMN {schema}.heartbeats.seq IS 'Position of the step in the run';
COMMENT ON COLUMN {schema}.heartbeats.attempt IS 'Number of the try that gave it';
COMMENT ON COLUMN {schema}.heartbeats.at IS 'When; of a step it is stored once a second at most';
COMMENT ON COLUMN {schema}.heartbeats.details IS 'What was said last, by this try or one before';

CREATE OR REPLACE VIEW {schema}.attempts AS
SELECT a.run_id, a.seq, a.n, a.name, (ARRAY['failed', 'started', 'crashed', 'forgiven', 'edited', 'skipped', 'entrusted', 'scheduled'])[a.kind] AS kind,
       a.started_at, a.ended_at, a.next_retry_at, a.worker,
       {schema}.as_json(a.error, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = a.run_id AND a.kind < 3)) AS error, a.fingerprint
FROM {schema}.attempt a;
COMMENT ON COLUMN {schema}.attempts.kind IS
    'failed, started (an at_most_once step commits its start first), crashed (it ended its worker), forgiven (retry was called), edited (edit_retry, or retry while it waited), skipped (it was given its result), entrusted (it waits for a token, see tokens), scheduled (its schedule_to_close began)';
COMMENT ON COLUMN {schema}.attempts.next_retry_at IS
    'When the next try may begin, for entrusted when its time is over, for scheduled when that of all tries is; null when there is none';

DO $$
DECLARE
    worker   text := {role_worker_literal};
    viewer   text := {role_viewer_literal};
    operator text := {role_operator_literal};
    one      record;
BEGIN
    FOR one IN SELECT g.what, r.rolname FROM (VALUES
        ('INSERT, UPDATE ON {schema}.beat', ARRAY[worker]),
        ('SELECT ON {schema}.heartbeats', ARRAY[worker, viewer, operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
