-- What `list` and `cancel --filter` ask, through the views alone; a viewer's role is enough. What a filter asks for is put in by
-- supervisor/db/filters.py, in the place of the two comments: views that are joined, and a condition; its values are parameters.

-- name: list_patience :void
-- Limit the statements of this transaction: a filter may be one that only a look at the whole history can answer.
-- Locks:  none
-- $1 text ms
SELECT pg_catalog.set_config('statement_timeout', $1, true);

-- name: list_runs :many
-- Runs, newest first.
-- Locks:  none.     Index:  run primary key, read backwards; outcome_unsuccessful_idx or task, where the filter asks for such runs only
-- $1 uuid after; null: from the newest on    $2 int4 limit    $3 … the filter's
SELECT r.run_id, r.key, r.workflow, r.queue, r.status, r.wait, r.step, r.seq, r.attempt, r.created_at, r.ended_at,
       r.error ->> 'type' AS error_type, pg_catalog.left(r.error ->> 'message', 1000) AS error_message, r.attributes, r.batch
FROM {schema}.runs AS r /*joins*/
WHERE ($1::pg_catalog.uuid IS NULL OR r.run_id < $1::pg_catalog.uuid) /*filter*/
ORDER BY r.run_id DESC LIMIT $2::pg_catalog.int4;

-- name: list_ids :many
-- The ids alone.
-- Locks:  none.     Index:  as list_runs
-- $1 uuid after    $2 int4 limit    $3 … the filter's
SELECT r.run_id
FROM {schema}.runs AS r /*joins*/
WHERE ($1::pg_catalog.uuid IS NULL OR r.run_id < $1::pg_catalog.uuid) /*filter*/
ORDER BY r.run_id DESC LIMIT $2::pg_catalog.int4;

-- name: list_counts :many
-- How many runs there are, by workflow and status.
-- Locks:  none.     Index:  as list_runs
-- $1 … the filter's     Returns workflow, status, runs
SELECT r.workflow, r.status, count(*) AS runs
FROM {schema}.runs AS r /*joins*/
WHERE true /*filter*/
GROUP BY r.workflow, r.status ORDER BY r.workflow, r.status;
