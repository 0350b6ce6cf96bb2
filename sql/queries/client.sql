-- What a client asks, through functions alone: its role has no right on any table or view. Every statement stands
-- alone in its transaction and needs no session state, so that it works through a pooler in transaction mode.

-- name: client_facts :one
-- Ask which cell this is, how new its schema is, and what time it has.
-- Locks:  none
-- Returns cell, migration, us since 1970 by the database's clock
SELECT f.cell, f.migration, (extract(epoch FROM f.clock) * 1000000)::pg_catalog.int8 FROM {schema}.client_facts() AS f;

-- name: client_parameters :one
-- Ask for a workflow's parameters as its workers registered them, for a start by name.
-- Locks:  none.     Index:  workflow_name_key
-- $1 text workflow     Returns JSON, or null for a name that no worker registered
SELECT {schema}.workflow_parameters($1);

-- name: client_start :many
-- Start runs of one workflow, all or none. A row comes back only for a key that names a run already.
-- Locks:  run_key rows of the keys, in their order; the rest are new rows.     Index:  run_key primary key
-- $1 text workflow    $2 uuid[] run    $3 bytea[] input    $4 text[] key (null: none)    $5 bytea[] hash of the input, with keys
-- $6 text queue (null: the workflow's)    $7 int2 priority    $8 float8 delay in s
-- Returns n (from 1), the run that the key names, whether its input is the same
-- Raises  SV001 unknown workflow, SV002 clock skew, 22023 priority; 23505 on run when the ids are there already
SELECT s.n, s.run_id, s.matches
FROM {schema}.start_runs($1, $2, $3, $4, $5, $6, $7::pg_catalog.int2, pg_catalog.make_interval(secs => $8)) AS s;

-- name: client_outcomes :many
-- Ask how runs ended, those that have.
-- Locks:  none.     Index:  outcome primary key, pruned
-- $1 uuid[] run     Returns run, status, result or error, ended_at
SELECT o.run_id, o.status, o.result, o.ended_at FROM {schema}.outcomes($1) AS o;

-- name: client_find :many
-- Ask about runs, newest first: those of the ids, or of the key, or all.
-- Locks:  none.     Index:  run primary key, pruned by ids or read backwards; run_key primary key
-- $1 uuid[] run    $2 text key    $3 text workflow    $4 text status    $5 uuid before    $6 int4 limit; null: not asked for
-- Returns run, key, workflow, queue, status, wait, step, seq, attempt, created_at, ended_at
SELECT f.run_id, f.key, f.workflow, f.queue, f.status, f.wait, f.step, f.seq, f.attempt, f.created_at, f.ended_at
FROM {schema}.find_runs($1, $2, $3, $4, $5, $6) AS f;
