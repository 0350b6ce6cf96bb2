-- What a worker asks outside of its loop: when it is born, and when it has lost its session.

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

-- name: serve_versions :exec
-- Say which version of each workflow this worker has, and which queues it claims from, before its first claim.
-- Locks:  the versions' rows, by workflow; the worker's row.     Index:  workflow_version_workflow_version_key, worker_pkey
-- $1 int4[] workflow, ascending    $2 text[] version    $3 text[] module and function    $4 int4[] queue    $5 int4 worker
WITH known AS (
    INSERT INTO {schema}.workflow_version AS v (workflow, version, source)
    SELECT u.workflow, u.version, u.source FROM unnest(%s::int4[], %s::text[], %s::text[]) AS u (workflow, version, source)
    ON CONFLICT (workflow, version) DO UPDATE SET source = excluded.source, last_seen_at = clock_timestamp()
    RETURNING v.id)
UPDATE {schema}.worker SET serves = ARRAY(SELECT id FROM known), queues = %s::int4[] WHERE id = %s;

-- name: inherit_versions :exec
-- The process has the same code, and the same queues, as under its earlier id.
-- Locks:  the new worker's row.     Index:  worker_pkey
-- $1 int4[] earlier    $2 int4 worker
UPDATE {schema}.worker SET (serves, queues) = (SELECT e.serves, e.queues FROM {schema}.worker e WHERE e.id = ANY (%s) ORDER BY e.id DESC LIMIT 1) WHERE id = %s;

-- name: declare_schedule :one
-- Say what the app declares of a schedule: made where there is none, changed where another declaration was the last one.
-- Locks:  its row of schedule, where it is not as declared.     Index:  schedule_pkey
-- $1 text name    $2 text what is said of it, JSON    $3 text hash of that     Returns created, changed or unchanged     Raises  SV040, 22023
SELECT {schema}.put_schedule(%s, %s::text::jsonb, 'declare', %s, 'declared by the app', NULL);

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

-- name: token_key :one
-- The secret that tokens are made with.
-- Locks:  none.     Index:  none (one row)     Returns bytea
SELECT token_key FROM {schema}.cell;

-- ── a lost session ───────────────────────────────────────────────────────────────────────────────────────────
-- Its successor takes over: end what is left of it, wait until it can't commit any more, take its tasks in the transaction
-- that declares it dead, and then look what had become durable.

-- name: server_timeline :one
-- On which timeline this server writes: after a failover what was acknowledged may be undone. By the name of the WAL file, for
-- pg_control_checkpoint() still has the old timeline until the first checkpoint after a promotion.
-- Locks:  none.     Index:  none     Returns int8
SELECT ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::pg_catalog.bit(32)::pg_catalog.int8;

-- name: server_identifier :one
-- Which cluster this is. Managed servers may keep it to themselves.
-- Locks:  none.     Index:  none     Returns int8
SELECT system_identifier FROM pg_catalog.pg_control_system();

-- name: end_earlier_sessions :many
-- End what is left of this process's earlier sessions: those of its name, and whoever holds a sign of life of its.
-- Locks:  none.     Index:  worker_pkey; pg_stat_activity has none
-- $1 text[] application_name    $2 int4 first id of this process    $3 uuid boot     Returns whether there was one, each
SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a
WHERE a.pid <> pg_backend_pid() AND a.datname = current_database()
  AND (a.application_name = ANY (%s)
       OR a.pid IN (SELECT l.pid FROM pg_locks l JOIN {schema}.worker w ON w.id >= %s AND w.boot = %s AND l.objid = w.id
                    WHERE l.locktype = 'advisory' AND l.classid = {lock_class}::int8 & 4294967295 AND l.objsubid = 2
                      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())));

-- name: lock_earlier :many
-- The rows of this process's earlier ids, so that what they have in flight has ended. Several, when an adoption's own answer was lost.
-- Locks:  worker rows, ascending id, FOR UPDATE (waits for their batches).     Index:  worker_pkey
-- $1 int4 first id of this process    $2 uuid boot     Returns id
SELECT id FROM {schema}.worker WHERE id >= %s AND boot = %s ORDER BY id FOR UPDATE;

-- name: earlier_is_gone :one
-- Whether the session that held this sign of life has ended, with all that it could still commit.
-- Locks:  the advisory lock, for this transaction.     Index:  none
-- $1 int4 worker     Returns boolean
SELECT pg_try_advisory_xact_lock({lock_class}, %s);

-- name: bury_earlier :many
-- Declare earlier ids of this process dead; the reaper may have been here before.
-- Locks:  worker rows, already held.     Index:  worker_pkey
-- $1 text why    $2 int4[] worker     Returns id
UPDATE {schema}.worker SET dead_at = clock_timestamp(), death = %s, epoch = epoch + 1 WHERE id = ANY (%s) AND dead_at IS NULL RETURNING id;

-- name: adopt_tasks :many
-- Take over the tasks of earlier ids: those that the process has in memory become the new id's. The others are claims whose
-- answer was lost, so nothing of them has begun: they go back to the queue as they were; one that was cancelled meanwhile as one whose past is read.
-- Locks:  task rows of the earlier ids, ascending run_id.     Index:  none on owner: a scan of task, once per lost session; task_pkey
-- $1 int4[] earlier    $2 uuid[] in memory    $3 int4 new id     Returns run, whether it is the new id's
WITH theirs AS (SELECT run_id FROM {schema}.task WHERE owner = ANY (%(earlier)s) ORDER BY run_id FOR NO KEY UPDATE),
known AS MATERIALIZED (SELECT unnest(%(known)s::uuid[]) AS run_id)
UPDATE {schema}.task t SET owner = CASE WHEN k.run_id IS NULL THEN NULL ELSE %(id)s::int4 END,
    claims = CASE WHEN k.run_id IS NULL THEN greatest(t.claims - 1, 0) ELSE t.claims END,
    wait_kind = CASE WHEN k.run_id IS NULL THEN 1 ELSE t.wait_kind END,
    resumed = CASE WHEN k.run_id IS NULL AND t.cancel_to IS NOT NULL THEN greatest(t.resumed, 1::int2) ELSE t.resumed END,
    cancel_to = CASE WHEN t.cancel_to > 0 AND k.run_id IS NOT NULL THEN %(id)s::int4 WHEN t.cancel_to IS NOT NULL THEN 0 END
FROM theirs LEFT JOIN known k ON k.run_id = theirs.run_id
WHERE t.run_id = theirs.run_id RETURNING t.run_id, k.run_id IS NOT NULL;

-- name: give_back_tasks :many
-- After a failover nothing in memory is trusted: all that the earlier ids held goes back to the queue, to be replayed from what survived.
-- Locks:  task rows of the earlier ids, ascending run_id.     Index:  none on owner: a scan of task, once per failover; task_pkey
-- $1 int4[] earlier     Returns run
WITH theirs AS (SELECT run_id FROM {schema}.task WHERE owner = ANY (%s) ORDER BY run_id FOR NO KEY UPDATE)
UPDATE {schema}.task t SET owner = NULL, ready_at = clock_timestamp(), wait_kind = 1, wait_since = clock_timestamp(), resumed = 2, claims = 0,
    version = {schema}.pin(t.run_id, t.version, t.owner, t.workflow)
FROM theirs WHERE t.run_id = theirs.run_id RETURNING t.run_id;

-- name: durable_steps :many
-- Which of these results were made durable by this process, and when they ended.
-- Locks:  none.     Index:  step primary key
-- $1 uuid[] run    $2 int4[] seq    $3 int4[] ids of this process     Returns run, seq, ended in us since 2000
SELECT s.run_id, s.seq, (extract(epoch FROM s.ended_at) * 1000000)::int8 - 946684800000000
FROM unnest(%s::uuid[], %s::int4[]) AS u (run_id, seq) JOIN {schema}.step s ON s.run_id = u.run_id AND s.seq = u.seq WHERE s.worker = ANY (%s);

-- name: durable_outcomes :many
-- Which of these runs this process has ended.
-- Locks:  none.     Index:  outcome primary key
-- $1 uuid[] run    $2 int4[] ids of this process     Returns run
SELECT run_id FROM {schema}.outcome WHERE run_id = ANY (%s::uuid[]) AND worker = ANY (%s);

-- name: durable_attempts :many
-- Which of these tries were recorded by this process.
-- Locks:  none.     Index:  attempt primary key
-- $1 uuid[] run    $2 int4[] seq    $3 int4[] n    $4 int2[] kind    $5 int4[] ids of this process     Returns run, seq, n, kind
SELECT a.run_id, a.seq, a.n, a.kind
FROM unnest(%s::uuid[], %s::int4[], %s::int4[], %s::int2[]) AS u (run_id, seq, n, kind)
JOIN {schema}.attempt a ON a.run_id = u.run_id AND a.seq = u.seq AND a.n = u.n AND a.kind = u.kind WHERE a.worker = ANY (%s);

-- name: durable_timers :many
-- Which of these sleeps are set.
-- Locks:  none.     Index:  timer_pkey
-- $1 uuid[] run    $2 int4[] seq     Returns run, seq, due in us since 2000, us from now to due
SELECT t.run_id, t.seq, (extract(epoch FROM t.due_at) * 1000000)::int8 - 946684800000000, (extract(epoch FROM t.due_at - clock_timestamp()) * 1000000)::int8
FROM unnest(%s::uuid[], %s::int4[]) AS u (run_id, seq) JOIN {schema}.timer t ON t.run_id = u.run_id AND t.seq = u.seq;

-- name: durable_children :many
-- Which of these children were started.
-- Locks:  none.     Index:  child primary key
-- $1 uuid[] parent    $2 int4[] seq    $3 uuid[] child     Returns child
SELECT c.run_id
FROM unnest(%s::uuid[], %s::int4[], %s::uuid[]) AS u (parent_id, seq, run_id)
JOIN {schema}.child c ON c.parent_id = u.parent_id AND c.seq = u.seq AND c.run_id = u.run_id;
