-- What `workers`, `queues` and `top` ask, through the views alone; a viewer's role is enough.

-- name: look_at_workers :many
-- Workers that live or ended within the hour, also as they were told to. What the workers of the asking host do stands in their black boxes, so
-- runs are told of the others alone.
-- Locks:  none.     Index:  none: one row per worker's life, and a scan of the live runs
-- $1 text host     Returns worker, state, host, pid, supervisor, boot, started_at, dead_at, death, queues, runs
SELECT w.worker, w.state, w.host, w.pid, w.supervisor, w.boot, w.started_at, w.dead_at, w.death, w.queues,
       CASE WHEN w.state <> 'dead' AND w.host <> $1 THEN w.runs END AS runs
FROM {schema}.workers w WHERE w.state <> 'dead' OR w.dead_at > now() - interval '1 hour' ORDER BY w.worker;

-- name: look_at_queues :many
-- What stands in each queue, and who paused it.
-- Locks:  none.     Index:  none: a scan of the live runs     Returns queue, ready, running, waiting, paused, oldest_ready_at, paused_at, paused_by, paused_reason, workers
SELECT queue, ready, running, waiting, paused, oldest_ready_at, paused_at, paused_by, paused_reason, workers FROM {schema}.queues ORDER BY queue;

-- name: look_at_waits :many
-- What live runs wait for, in groups.
-- Locks:  none.     Index:  task_wait_idx, task_ready_idx, at most $1 entries of each reason, queue and priority
-- $1 int4 at most     Returns code, workflow, queue, step, runs, complete, since, wake_at, run_id, meaning, freed_by, who
SELECT code, workflow, queue, step, runs, complete, since, wake_at, run_id, meaning, freed_by, who FROM {schema}.wait_groups($1);
