-- What a test environment on a database asks (supervisor.testing): it is the only one that works there. No host sends any of this.

-- name: next_due_s :one
-- In how many seconds the next run that nobody has, and whose queue is not paused, is ready; null: none waits for a time.
-- Locks:  none.     Index:  none: a scan of task, which a test keeps small
SELECT extract(epoch FROM min(t.ready_at) - clock_timestamp())::float8 FROM {schema}.task t WHERE t.owner IS NULL AND t.ready_at < 'infinity'
  AND t.queue <> ALL (ARRAY(SELECT p.queue FROM {schema}.queue_pause p));

-- name: skip_time :exec
-- Let what is due later be due so much earlier: runs, deadlines, timers, tries, and signs of life, which are that much older then. Histories stay as they are.
-- Locks:  rows of task, attempt, beat, timer; nobody else works here.     Index:  none: scans of what a test keeps small
-- $1 float8 seconds
WITH tasks AS (
    UPDATE {schema}.task t
    SET ready_at = CASE WHEN t.owner IS NULL THEN t.ready_at - make_interval(secs => $1) ELSE t.ready_at END, cancel_at = t.cancel_at - make_interval(secs => $1)
    WHERE t.ready_at > clock_timestamp() OR t.cancel_at IS NOT NULL),
tries AS (
    UPDATE {schema}.attempt a
    SET next_retry_at = a.next_retry_at - make_interval(secs => $1), ended_at = CASE WHEN a.kind = 7 THEN a.ended_at - make_interval(secs => $1) ELSE a.ended_at END
    WHERE a.next_retry_at > clock_timestamp() OR a.kind = 7),
beats AS (UPDATE {schema}.beat b SET at = b.at - make_interval(secs => $1))
UPDATE {schema}.timer t SET due_at = t.due_at - make_interval(secs => $1);

-- name: live_runs :many
-- Every live run and what it waits for.
-- Locks:  none.     Index:  none: a scan of task, which a test keeps small
-- Returns run, workflow, key, whether a worker has it, wait_kind, detail, seconds until it is ready (null: for ever), its queue, who has paused that, and why
SELECT t.run_id, w.name, t.key, t.owner IS NOT NULL, t.wait_kind, t.wait_detail,
       CASE WHEN t.ready_at < 'infinity' THEN extract(epoch FROM t.ready_at - clock_timestamp())::float8 END,
       q.name, p.paused_by, p.reason
FROM {schema}.task t JOIN {schema}.workflow w ON w.id = t.workflow JOIN {schema}.queue q ON q.id = t.queue
LEFT JOIN {schema}.queue_pause p ON p.queue = t.queue ORDER BY t.run_id;

-- name: all_runs :many
-- Every run, in the order of their starts.
-- Locks:  none.     Index:  run primary key
-- Returns run
SELECT r.run_id FROM {schema}.run r ORDER BY r.run_id;

-- name: drop_schema :exec
-- Remove everything of an environment whose schema is its own.
-- Locks:  ACCESS EXCLUSIVE on all of it.     Index:  none
DROP SCHEMA {schema} CASCADE;
