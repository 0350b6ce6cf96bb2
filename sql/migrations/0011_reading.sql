-- deploy: pre            older code reads none of it; it inserts into the new index along with the row
-- lock:   SHARE on outcome while the index is made: batches that end runs wait as long as it takes to read the table (1 s per million)
-- undo:   DROP VIEW of each name; DROP INDEX {schema}.outcome_unsuccessful_idx
--
-- What `list`, `show` and `cancel --filter` need so that they need not read the whole history. The index holds
-- nothing of a run that completes: the success path pays for its predicate, 0.24 µs of the server's time per run that ends.

CREATE INDEX outcome_unsuccessful_idx ON {schema}.outcome (run_id) WHERE status IN (2, 3, 4, 5);

CREATE VIEW {schema}.failures AS
SELECT o.run_id, (ARRAY['completed', 'failed', 'cancelled', 'terminated', 'timed_out', 'continued'])[o.status] AS status, o.ended_at, o.steps, o.worker
FROM {schema}.outcome o WHERE o.status IN (2, 3, 4, 5);
COMMENT ON VIEW {schema}.failures IS
    'Runs that ended as failed, cancelled, terminated or timed_out; an index holds these alone, so the newest of them are found at once';
COMMENT ON COLUMN {schema}.failures.run_id IS 'The run; what became of it else is in runs';
COMMENT ON COLUMN {schema}.failures.status IS 'failed, cancelled, terminated or timed_out';
COMMENT ON COLUMN {schema}.failures.ended_at IS 'When it ended';
COMMENT ON COLUMN {schema}.failures.steps IS 'How many steps it recorded';
COMMENT ON COLUMN {schema}.failures.worker IS 'Worker that ended it (see workers); null when no worker did';

CREATE VIEW {schema}.keys AS
SELECT k.key, w.name AS workflow, k.run_id
FROM {schema}.workflow w JOIN {schema}.run_key k ON k.workflow = w.id;
COMMENT ON VIEW {schema}.keys IS 'Which run an idempotency key names at this moment; ask by key';
COMMENT ON COLUMN {schema}.keys.key IS 'The key, unique per workflow';
COMMENT ON COLUMN {schema}.keys.workflow IS 'Name of the workflow';
COMMENT ON COLUMN {schema}.keys.run_id IS 'The run that it names';

CREATE VIEW {schema}.children AS
SELECT c.parent_id, c.seq, c.run_id FROM {schema}.child c;
COMMENT ON VIEW {schema}.children IS 'Which runs a run has started; ask by parent_id';
COMMENT ON COLUMN {schema}.children.parent_id IS 'The run that started it';
COMMENT ON COLUMN {schema}.children.seq IS 'Position of that start in the parent';
COMMENT ON COLUMN {schema}.children.run_id IS 'The run that was started';

CREATE VIEW {schema}.started AS
SELECT r.run_id, w.name AS workflow, r.key, r.prio AS priority, b.name AS batch, r.parent_id, r.created_at
FROM {schema}.run r
LEFT JOIN {schema}.workflow w ON w.id = r.workflow
LEFT JOIN {schema}.batch b ON b.id = r.batch;
COMMENT ON VIEW {schema}.started IS 'Runs as they were started, without what became of them: much cheaper than runs where that is enough';
COMMENT ON COLUMN {schema}.started.run_id IS 'The run; what became of it is in runs';
COMMENT ON COLUMN {schema}.started.workflow IS 'Name of the workflow';
COMMENT ON COLUMN {schema}.started.key IS 'The idempotency key given at the start; null when none';
COMMENT ON COLUMN {schema}.started.priority IS '0 first … 9 last, as given at the start';
COMMENT ON COLUMN {schema}.started.batch IS 'Name of the batch that it was started in (see batches); null when none';
COMMENT ON COLUMN {schema}.started.parent_id IS 'Run that started it; null when a client did';
COMMENT ON COLUMN {schema}.started.created_at IS 'When it was started, by the database''s clock';

DO $$
DECLARE
    one record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ({role_worker_literal}, {role_viewer_literal}, {role_operator_literal}) LOOP
        EXECUTE format('GRANT SELECT ON {schema}.failures, {schema}.keys, {schema}.children, {schema}.started TO %I', one.rolname);
    END LOOP;
END $$;
