-- What ends a transaction of transactional steps, on the worker's second session. All come last before COMMIT, so user
-- SQL never runs while the worker's row is locked.

-- name: insert_checkpoints :exec
-- The results of the steps of this transaction: they commit together with what the steps wrote.
-- Locks:  none but the new rows.     Index:  step primary key (it refuses the second of two executions)
-- $1 uuid[] run    $2 int4[] seq    $3 int4[] pos    $4 text[] name    $5 bytea[] result    $6 timestamptz[] started    $7 timestamptz[] ended    $8 int4 worker
INSERT INTO {schema}.step (run_id, started_at, ended_at, seq, pos, worker, kind, status, name, result)
SELECT u.run_id, u.started_at, u.ended_at, u.seq, u.pos, $8::int4, 1, 1, u.name, u.result
FROM unnest($1::uuid[], $2::int4[], $3::int4[], $4::text[], $5::bytea[], $6::timestamptz[], $7::timestamptz[])
  AS u (run_id, seq, pos, name, result, started_at, ended_at);

-- name: session_as_left :one
-- What a step could have left behind in the session, beyond its transaction.
-- Locks:  none.     Index:  none     Returns search_path, role, whether the session has temporary objects
SELECT pg_catalog.current_setting('search_path'), pg_catalog.current_setting('role'), pg_catalog.pg_my_temp_schema() <> 0;

-- name: tx_fence :exec
-- The fence, as in the loop; last before COMMIT, so that user SQL never runs while the worker's row is locked.
-- Locks:  worker row, FOR SHARE.     Index:  worker_pkey     Raises SV003.
SELECT {schema}.fence($1::int4, $2::uuid, $3::int4);

-- name: own_backend :one
-- What this session is to the server: a process id may be another's later, with the start it is this one's for ever.
-- Locks:  none.     Index:  none (a view of the server's own)     Returns pid, start
SELECT pid, backend_start FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid();

-- name: end_backend :many
-- End a session that was lost; it is over, with its locks and all that it could commit, when this gives no row any more.
-- Locks:  none.     Index:  none (a view of the server's own)
-- $1 int4 pid    $2 timestamptz start     Returns whether a signal was sent
SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = %s AND backend_start = %s;

-- name: find_checkpoints :many
-- Which of these steps this process has committed, under whichever of its ids.
-- Locks:  none.     Index:  step primary key, worker_pkey
-- $1 uuid[] run    $2 int4[] seq    $3 uuid boot     Returns run, seq
SELECT s.run_id, s.seq
FROM ROWS FROM (pg_catalog.unnest(%s::pg_catalog.uuid[]), pg_catalog.unnest(%s::pg_catalog.int4[])) AS u (run_id, seq)
JOIN {schema}.step s ON s.run_id = u.run_id AND s.seq = u.seq JOIN {schema}.worker w ON w.id = s.worker
WHERE w.boot = %s;
