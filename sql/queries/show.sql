-- What `show` asks, through the views alone; a viewer's role is enough.

-- name: show_run :one
-- Everything about one run.
-- Locks:  none.     Index:  run, outcome, task primary keys, pruned
-- $1 uuid run
SELECT run_id, key, workflow, queue, priority, status, wait, step, seq, attempt, created_at, ended_at, duration_s, steps, worker,
       result, error, input, parent_id, parent_seq, version, attributes
FROM {schema}.runs WHERE run_id = $1;

-- name: show_wait :one
-- Why one run does not move; no row when it has ended.
-- Locks:  none.     Index:  task_pkey
-- $1 uuid run
SELECT status, code, meaning, detail, since, wake_at, step, seq, attempt, claims, worker, freed_by
FROM {schema}.waits WHERE run_id = $1;

-- name: show_steps :many
-- The finished steps of one run, in the order of calls.
-- Locks:  none.     Index:  step primary key, pruned
-- $1 uuid run    $2 int4 limit
SELECT seq, pos, name, kind, status, started_at, ended_at, duration_ms, worker, result, error
FROM {schema}.steps WHERE run_id = $1 ORDER BY seq LIMIT $2;

-- name: show_attempts :many
-- The failed tries of one run, and durable starts.
-- Locks:  none.     Index:  attempt primary key, pruned
-- $1 uuid run    $2 int4 limit
SELECT seq, n, name, kind, started_at, ended_at, next_retry_at, worker, error, fingerprint
FROM {schema}.attempts WHERE run_id = $1 ORDER BY seq, n LIMIT $2;

-- name: show_same_key :many
-- The runs of every workflow that a key names.
-- Locks:  none
-- $1 text key
SELECT f.run_id, f.workflow, f.status, f.created_at FROM {schema}.find_runs(p_key => $1) AS f ORDER BY f.run_id DESC;
