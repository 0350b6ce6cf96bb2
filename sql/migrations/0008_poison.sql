-- deploy: pre            older code neither writes nor reads what is new
-- lock:   ACCESS EXCLUSIVE on two views, brief
-- undo:   retry, attempts and errors as in 0002 and 0003; DELETE FROM {schema}.attempt WHERE kind > 2
--
-- Crashes are facts of the history, like failed tries: attempt kind 3 is the n-th worker that a step ended, kind 4 says
-- that retry() has forgiven the crashes up to n. So nothing is counted on task, and who asks reads why.

-- SECURITY DEFINER: an operator may let a parked run go on and must not be able to write task otherwise.
CREATE OR REPLACE FUNCTION {schema}.retry(p_run uuid) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE {schema}.task SET ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(), claims = 0
    WHERE run_id = p_run AND owner IS NULL AND wait_kind BETWEEN 19 AND 23;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO {schema}.attempt (run_id, seq, n, kind, started_at, worker, name)
    SELECT a.run_id, a.seq, max(a.n), 4, clock_timestamp(), 0, max(a.name) FROM {schema}.attempt a
    WHERE a.run_id = p_run AND a.kind = 3 GROUP BY a.run_id, a.seq
    ON CONFLICT DO NOTHING;
    RETURN true;
END $$;
COMMENT ON FUNCTION {schema}.retry(uuid) IS
    'Let a parked run (nondeterminism, code_missing, attempts_exhausted, crash_loop, commit_rejected) go on, its crashes forgiven; false when it is not parked';

CREATE OR REPLACE VIEW {schema}.attempts AS
SELECT a.run_id, a.seq, a.n, a.name, (ARRAY['failed', 'started', 'crashed', 'forgiven'])[a.kind] AS kind,
       a.started_at, a.ended_at, a.next_retry_at, a.worker,
       {schema}.as_json(a.error, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = a.run_id AND a.kind <> 3)) AS error, a.fingerprint
FROM {schema}.attempt a;
COMMENT ON VIEW {schema}.attempts IS
    'Tries of steps that failed, durable starts of at_most_once steps, workers that steps ended; a first try that succeeds is in steps alone';
COMMENT ON COLUMN {schema}.attempts.seq IS 'Position of the step in the run; -1 for a crash in the workflow''s own code';
COMMENT ON COLUMN {schema}.attempts.n IS 'Number of the try, from 1; for crashed the number of the crash, for forgiven of the last crash that no longer counts';
COMMENT ON COLUMN {schema}.attempts.kind IS
    'failed, started (an at_most_once step commits its start first), crashed (it ended its worker), forgiven (retry was called)';
COMMENT ON COLUMN {schema}.attempts.ended_at IS 'When it failed or crashed; null for started and forgiven';
COMMENT ON COLUMN {schema}.attempts.error IS 'What it raised: type, message, traceback; for crashed the signal or exit code and the worker''s last log lines';

CREATE OR REPLACE VIEW {schema}.errors AS
SELECT f.at, f.run_id, w.name AS workflow, f.source, f.seq, f.step, f.n,
       f.error ->> 'type' AS type, f.error ->> 'message' AS message, f.fingerprint, f.next_retry_at, f.worker, f.error
FROM (
    SELECT coalesce(a.ended_at, a.started_at) AS at, a.run_id, 'attempt' AS source, a.seq, a.name AS step, a.n, a.error, a.fingerprint,
           a.next_retry_at, a.worker
    FROM {schema}.attempts a WHERE a.kind IN ('failed', 'crashed')
    UNION ALL
    SELECT s.ended_at, s.run_id, 'step', s.seq, s.name, NULL, s.error, NULL, NULL, s.worker
    FROM {schema}.steps s
    WHERE s.status = 'failed' AND NOT EXISTS (SELECT FROM {schema}.attempt a WHERE a.run_id = s.run_id AND a.seq = s.seq AND a.kind = 1)
    UNION ALL
    SELECT o.ended_at, o.run_id, 'run', NULL, NULL, NULL,
           {schema}.as_json(o.result, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = o.run_id)), NULL, NULL, o.worker
    FROM {schema}.outcome o WHERE o.status IN (2, 5)
) AS f
LEFT JOIN {schema}.run r ON r.run_id = f.run_id
LEFT JOIN {schema}.workflow w ON w.id = r.workflow;
COMMENT ON VIEW {schema}.errors IS
    'What failed: every failed try and every crash, every failed step without a recorded try, every run that ended as failed or timed_out';
