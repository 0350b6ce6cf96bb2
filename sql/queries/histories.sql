-- What `replay` and `export` ask: histories as they are stored. Through functions, for which a viewer's role is enough. They write nothing.

-- name: history_sample :many
-- Runs of a workflow to compare: the newest, and half of them spread over the time; or the live ones of a version.
-- Locks:  none.     Index:  run primary key, pruned, from the time on; with a version task_pkey
-- $1 text workflow    $2 float8 for how many seconds back    $3 int4 max    $4 text version (null: any, ended ones too)     Returns run
SELECT h.run_id FROM {schema}.history_sample($1, pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) pg_catalog.make_interval(secs => $2), $3, $4) AS h (run_id);

-- name: history_named :many
-- Runs by their key.
-- Locks:  none.     Index:  run_key primary key
-- $1 text key     Returns run, workflow
SELECT k.run_id, k.workflow FROM {schema}.keys k WHERE k.key = $1;

-- name: history_run :one
-- A run as it was started, and how long its history is.
-- Locks:  none.     Index:  run, outcome and step primary keys, pruned; task_pkey
-- $1 uuid run     Returns workflow, key, version, status, codec, input, records, bytes of their results, drawn from (null: itself)
SELECT h.workflow, h.key, h.version, h.status, h.codec, h.input, h.steps, h.result_bytes, h.drawn_from FROM {schema}.history_run($1) AS h;

-- name: history_steps :many
-- A slice of its records, in the order of delivery.
-- Locks:  none.     Index:  step primary key, pruned
-- $1 uuid run    $2 int4 after which pos    $3 int4 limit     Returns pos, seq, kind, status, name, result, ended in us since 2000
SELECT h.pos, h.seq, h.kind, h.status, h.name, h.result, h.ended_us FROM {schema}.history_steps($1, $2, $3) AS h;

-- name: history_pending :many
-- What it has asked for.
-- Locks:  none.     Index:  timer_pkey, child, run and attempt primary keys, task_pkey
-- $1 uuid run     Returns seq, kind, name
SELECT h.seq, h.kind, h.name FROM {schema}.history_pending($1) AS h;
