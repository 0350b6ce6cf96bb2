-- What ends a transaction of transactional steps, on the worker's second session. All come last before COMMIT, so user
-- SQL never runs while the worker's row is locked.

-- name: insert_checkpoints :exec
-- The results of the steps of this transaction: they commit together with what the steps wrote.
-- Locks:  none but the new rows.     Index:  step primary key (it refuses the second of two executions)
-- $1 uuid[] run    $2 int4[] seq    $3 int4[] pos    $4 text[] name    $5 bytea[] result    $6 int8[] started, us since 2000    $7 int8[] ended    $8 int4 worker
INSERT INTO {schema}.step (run_id, started_at, ended_at, seq, pos, worker, kind, status, name, result)
SELECT u.run_id, timestamptz '2000-01-01 00:00:00+00' + u.started_us * interval '1 us', timestamptz '2000-01-01 00:00:00+00' + u.ended_us * interval '1 us',
       u.seq, u.pos, %(worker)s, 1, 1, u.name, u.result
FROM unnest(%(run)s::uuid[], %(seq)s::int4[], %(pos)s::int4[], %(name)s::text[], %(result)s::bytea[], %(started)s::int8[], %(ended)s::int8[])
  AS u (run_id, seq, pos, name, result, started_us, ended_us);

-- name: session_as_left :one
-- What a step could have left behind in the session, beyond its transaction.
-- Locks:  none.     Index:  none     Returns search_path, role, whether the session has temporary objects
SELECT pg_catalog.current_setting('search_path'), pg_catalog.current_setting('role'), pg_catalog.pg_my_temp_schema() <> 0;

-- name: tx_fence :exec
-- The fence, as in the loop; last before COMMIT, so that user SQL never runs while the worker's row is locked.
-- Locks:  worker row, FOR SHARE.     Index:  worker_pkey     Raises SV003.
SELECT {schema}.fence(%s, %s, %s);
