-- What a worker asks once, when it is born: before its loop and outside of it.

-- name: register_worker :one
-- A new incarnation: its id is the fencing token and is never used again.
-- Locks:  none but the new row.     Index:  none
-- $1 uuid boot    $2 text host    $3 int4 pid    $4 uuid supervisor     Returns id
INSERT INTO {schema}.worker (boot, host, pid, supervisor) VALUES (%s, %s, %s, %s) RETURNING id;

-- name: live_lock :one
-- The session's sign of life: whoever can take this lock knows that the worker's session is gone.
-- Locks:  an advisory lock, until the session ends.     Index:  none
-- $1 int4 worker     Returns whether it was free
SELECT pg_try_advisory_lock({lock_class}, %s);

-- name: upsert_workflow :one
-- Tell the catalogue what this worker can run.
-- Locks:  the workflow's row.     Index:  workflow_name_key
-- $1 text name    $2 text queue    $3 float8 timeout_s    $4 bytea parameters     Returns id, queue
INSERT INTO {schema}.workflow AS w (name, queue, timeout_s, parameters) VALUES (%s, {schema}.queue_id(%s), %s, %s)
ON CONFLICT (name) DO UPDATE SET queue = excluded.queue, timeout_s = excluded.timeout_s, parameters = excluded.parameters, last_seen_at = clock_timestamp()
RETURNING w.id, w.queue;

-- name: queue_id :one
-- The number of a queue; made when it is new.
-- Locks:  none but a new row.     Index:  queue_name_key
-- $1 text name     Returns int4
SELECT {schema}.queue_id(%s);

-- name: clock :one
-- The database's clock.
-- Locks:  none.     Index:  none     Returns us since 2000-01-01
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8 - 946684800000000;

-- name: cell_number :one
-- The cell's number, for the low 12 bits of run ids.
-- Locks:  none.     Index:  none (one row)     Returns int2
SELECT number FROM {schema}.cell;
