-- What `list` and `cancel --filter` ask, through the views alone; a viewer's role is enough. What a filter asks for is put in by
-- supervisor/db/filters.py (and the order, where it is another one: there `value` is what runs are in the order of): in place of `started` the source that leads to the few runs that can fit, what bounds that source in place of the
-- first comment, and the filter itself in place of the second; its values are parameters.
--
-- A view of many joins is planned well only alone, so both halves are fenced by OFFSET 0: ids in their order, newest first, and per id one
-- look at `runs`. list_settings leaves the planner no other way (a fenced half does not know that a page is all that is wanted): so the plan
-- is the same whatever the filter, the statistics and the size of the history.

-- name: list_settings :void
-- Limit the time of this transaction's statements, for a filter may be one that only a look at the whole history can answer, and let them
-- go by indexes alone.
-- Locks:  none
-- $1 text ms
SELECT pg_catalog.set_config(s.name, s.value, true)
FROM (VALUES ('statement_timeout', $1), ('enable_seqscan', 'off'), ('enable_sort', 'off'), ('enable_bitmapscan', 'off'),
             ('enable_hashjoin', 'off'), ('enable_mergejoin', 'off'), ('jit', 'off')) AS s (name, value);

-- name: list_sizes :one
-- How many live runs stand in each range that can be read whole.
-- Locks:  none.     Index:  task_ready_idx, task_wait_idx; at most $1 entries of each
-- $1 int4 at most     Returns due, not yet due, parked for a reason
SELECT (SELECT count(*) FROM (SELECT FROM {schema}.due LIMIT $1::pg_catalog.int4) AS d) AS due,
       (SELECT count(*) FROM (SELECT FROM {schema}.later LIMIT $1::pg_catalog.int4) AS d) AS later,
       (SELECT count(*) FROM (SELECT FROM {schema}.live AS l WHERE l.parked > 1 LIMIT $1::pg_catalog.int4) AS d) AS parked;

-- name: list_attribute_size :one
-- How many values a test of an attribute is true of.
-- Locks:  none.     Index:  attribute_text_idx or attribute_number_idx; at most $1 entries
-- $1 int4 at most    $2 … the test's     Returns how many
SELECT count(*) FROM (SELECT FROM {schema}.attributes AS a WHERE true /*bounds*/ LIMIT $1::pg_catalog.int4) AS d;

-- name: list_key_size :one
-- How many runs have a key that begins so.
-- Locks:  none.     Index:  run_prefix_idx; at most $1 entries
-- $1 int4 at most    $2 … the test's     Returns how many
SELECT count(*) FROM (SELECT FROM {schema}.started AS s WHERE true /*bounds*/ LIMIT $1::pg_catalog.int4) AS d;

-- name: list_schedule_size :one
-- How many runs these schedules have started.
-- Locks:  none.     Index:  schedule_fire_run_idx; at most $1 entries
-- $1 int4 at most    $2 text[] names     Returns how many
SELECT count(*) FROM (SELECT FROM {schema}.schedule_runs AS s WHERE s.schedule = ANY ($2::pg_catalog.text[]) LIMIT $1::pg_catalog.int4) AS d;

-- name: list_slice :many
-- The last of the next so many runs, whatever they are; no row where fewer are left.
-- Locks:  none.     Index:  run primary key, $2 entries
-- $1 uuid after; null: from the newest on    $2 int4 how many    $3 … the filter's
SELECT d.run_id FROM {schema}.started AS d
WHERE ($1::pg_catalog.uuid IS NULL OR d.run_id < $1::pg_catalog.uuid) /*bounds*/
ORDER BY d.run_id DESC OFFSET $2::pg_catalog.int4 - 1 LIMIT 1;

-- name: list_position :many
-- Where a run stands in the order of an attribute.
-- Locks:  none.     Index:  attribute primary key, pruned
-- $1 uuid run    $2 text name     Returns its number or its text; no row where it has none
SELECT a.number, a.text FROM {schema}.attributes AS a WHERE a.run_id = $1::pg_catalog.uuid AND a.name = $2::pg_catalog.text AND a.n = 0;

-- name: list_ids :many
-- Runs that fit, newest first.
-- Locks:  none.     Index:  run, task primary keys, outcome_unsuccessful_idx, task_wait_idx read backwards, task_ready_idx; run_prefix_idx; schedule_fire_run_idx; run_key, child primary keys; then run, outcome, task primary keys
-- $1 uuid after; null: from the newest on    $2 int4 limit    $3 … the filter's     Returns run
SELECT d.run_id /*value*/
FROM (SELECT d.run_id /*value*/ FROM {schema}.started AS d
      WHERE ($1::pg_catalog.uuid IS NULL OR d.run_id < $1::pg_catalog.uuid) /*bounds*/ ORDER BY d.run_id DESC OFFSET 0) AS d
CROSS JOIN LATERAL (SELECT * FROM {schema}.runs AS r WHERE r.run_id = d.run_id OFFSET 0) AS r
WHERE true /*filter*/
ORDER BY d.run_id DESC LIMIT $2::pg_catalog.int4;

-- name: list_runs :many
-- What is shown of them.
-- Locks:  none.     Index:  as list_ids; run, outcome, task primary keys
-- $1 uuid after    $2 int4 limit    $3 … the filter's
WITH page AS MATERIALIZED ({block:list_ids})
SELECT r.run_id, r.key, r.workflow, r.queue, r.status, r.wait, r.step, r.seq, r.attempt, r.created_at, r.ended_at,
       r.error ->> 'type' AS error_type, pg_catalog.left(r.error ->> 'message', 1000) AS error_message, r.attributes, r.batch, r.progress
FROM page AS p CROSS JOIN LATERAL (SELECT * FROM {schema}.runs AS r WHERE r.run_id = p.run_id OFFSET 0) AS r
ORDER BY p.run_id DESC;

-- name: list_found :many
-- What a client is told of them.
-- Locks:  none.     Index:  as list_runs
-- $1 uuid after    $2 int4 limit    $3 … the filter's     Returns as client_find
WITH page AS MATERIALIZED ({block:list_ids})
SELECT r.run_id, r.key, r.workflow, r.queue, r.status, r.wait, r.step, r.seq, r.attempt, r.created_at, r.ended_at
FROM page AS p CROSS JOIN LATERAL (SELECT * FROM {schema}.runs AS r WHERE r.run_id = p.run_id OFFSET 0) AS r
ORDER BY p.run_id DESC;

-- name: list_counts :many
-- How many runs fit, by workflow and status.
-- Locks:  none.     Index:  as list_ids
-- $1 … the filter's     Returns workflow, status, runs
SELECT r.workflow, r.status, count(*) AS runs
FROM (SELECT d.run_id FROM {schema}.started AS d WHERE true /*bounds*/ OFFSET 0) AS d
CROSS JOIN LATERAL (SELECT * FROM {schema}.runs AS r WHERE r.run_id = d.run_id OFFSET 0) AS r
WHERE true /*filter*/
GROUP BY r.workflow, r.status ORDER BY r.workflow, r.status;
