-- What the parent asks: declare workers dead and give back what they held.

-- name: end_sessions :many
-- End a worker's sessions, found by the names they gave themselves.
-- Locks:  none.     Index:  none (a view of the server's own)
-- $1 text[] application_name    $2 float8 age of a session at least, in s     Returns backend
SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = ANY (%s) AND datname = current_database() AND pid <> pg_backend_pid() AND backend_start <= clock_timestamp() - make_interval(secs => %s);

-- name: bury_worker :one
-- Declare a worker dead: its session must be gone; waits (lock_timeout) for the batch in flight, refuses every later one.
-- Locks:  the worker's advisory lock, until the commit; the worker's row.     Index:  worker_pkey
-- $1 int4 worker    $2 text why     Returns whether its lock could be had, and how many were declared dead: 0 when somebody else did it
WITH gone AS MATERIALIZED (SELECT pg_try_advisory_xact_lock({lock_class}, %(worker)s) AS free),
     buried AS (UPDATE {schema}.worker w SET dead_at = clock_timestamp(), death = %(why)s, epoch = w.epoch + 1 FROM gone WHERE gone.free AND w.id = %(worker)s AND w.dead_at IS NULL RETURNING w.id)
SELECT gone.free, (SELECT count(*) FROM buried) FROM gone;

-- name: charge_crashes :many
-- Charge runs with the death of the worker that executed them: record the crash (attempt kind 3), then let them go on, or park them as
-- attempts_exhausted where the same step has ended a third worker since retry() last forgave it (kind 4).
-- Record and release are one statement, so a crash is charged once, whoever repeats this. A step that has its row ended
-- before its worker did, so it is not charged; release_tasks gives its run back.
-- Locks:  task rows of that worker, ascending run_id.     Index:  task_pkey; step and attempt primary keys
-- $1 int4 worker    $2 uuid[] runs    $3 int4[] seqs    $4 text[] names    $5 float8[] seconds for which it executed    $6 bytea[] errors, JSON
-- $7 text[] fingerprints     Returns run, crashes of that step since it was forgiven, whether it was parked
WITH accused AS (
    SELECT u.* FROM unnest(%(runs)s::uuid[], %(seqs)s::int4[], %(names)s::text[], %(for_s)s::float8[], %(errors)s::bytea[], %(fingerprints)s::text[])
        AS u (run_id, seq, name, for_s, error, fingerprint)
    WHERE NOT EXISTS (SELECT FROM {schema}.step s WHERE s.run_id = u.run_id AND s.seq = u.seq)),
held AS (
    SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (%(runs)s::uuid[]) AND t.owner = %(worker)s ORDER BY t.run_id FOR NO KEY UPDATE),
counted AS (
    SELECT a.*, before.crashed + 1 AS n, before.crashed + 1 - before.forgiven AS crashes, before.crashed + 1 - before.forgiven >= 3 AS poison
    FROM accused a JOIN held h ON h.run_id = a.run_id CROSS JOIN LATERAL (
        SELECT coalesce(max(t.n) FILTER (WHERE t.kind = 3), 0) AS crashed, coalesce(max(t.n) FILTER (WHERE t.kind = 4), 0) AS forgiven
        FROM {schema}.attempt t WHERE t.run_id = a.run_id AND t.seq = a.seq) AS before),
recorded AS (
    INSERT INTO {schema}.attempt (run_id, seq, n, kind, started_at, ended_at, worker, name, error, fingerprint)
    SELECT run_id, seq, n, 3, clock_timestamp() - for_s * interval '1 s', clock_timestamp(), %(worker)s, name, error, fingerprint FROM counted)
UPDATE {schema}.task t SET owner = NULL, resumed = 2, wait_since = clock_timestamp(), version = {schema}.pin(t.run_id, t.version, t.owner, t.workflow),
    ready_at = CASE WHEN c.poison THEN least('infinity', t.cancel_at) ELSE clock_timestamp() END,
    wait_kind = CASE WHEN c.poison THEN 21 ELSE 1 END,
    wait_detail = CASE WHEN c.poison THEN ({schema}.as_json(c.error) - 'type' - 'message' || jsonb_build_object('crashes', c.crashes))::text END,
    seq = CASE WHEN c.poison AND c.seq >= 0 THEN c.seq END, step = CASE WHEN c.poison THEN c.name END, attempt = NULL,
    claims = CASE WHEN EXISTS (SELECT FROM {schema}.step s WHERE s.run_id = t.run_id AND s.worker = %(worker)s) THEN 0 ELSE greatest(t.claims - 1, 0) END
FROM counted c WHERE t.run_id = c.run_id RETURNING t.run_id, c.crashes, c.poison;

-- name: release_tasks :many
-- Give back what a dead worker held, in slices. A further statement than bury_worker: its snapshot sees the last batch.
-- claims counts claims without a new step, so it begins again where this worker had recorded one; and where its parent
-- saw it die, only runs that may have been what ended it keep the claim: the others are as they were before it.
-- Locks:  task rows of that worker, ascending run_id.     Index:  none on owner (see 0001_tables.sql): a scan of task, once per death; step primary key
-- $1 int4 worker    $2 int4 run_max; the caller repeats until fewer come back    $3 boolean seen    $4 uuid[] suspects     Returns run
WITH lost AS (SELECT run_id, owner FROM {schema}.task WHERE owner = %(worker)s ORDER BY run_id LIMIT %(limit)s FOR NO KEY UPDATE)
UPDATE {schema}.task t SET owner = NULL, ready_at = clock_timestamp(), wait_kind = 1, wait_since = clock_timestamp(), resumed = 2,
    version = {schema}.pin(t.run_id, t.version, t.owner, t.workflow),
    claims = CASE WHEN EXISTS (SELECT FROM {schema}.step s WHERE s.run_id = t.run_id AND s.worker = lost.owner) THEN 0
                  WHEN %(seen)s AND t.run_id <> ALL (%(suspects)s::uuid[]) THEN greatest(t.claims - 1, 0)
                  ELSE t.claims END
FROM lost WHERE t.run_id = lost.run_id RETURNING t.run_id;

-- name: forgotten :many
-- Level-triggered: tasks whose owner is dead, whoever forgot them; and parents parked on children whose count is reached, which
-- a worker left that died between its commit and the wake-up; and runs that have not looked at an update for two seconds: parked ones that nobody
-- woke, and ones in the memory of a worker that was not told and takes none; and runs that the engine has put aside and that are to end without their
-- code: cancelled, terminated with their parent, or late and never begun. One statement, for it is asked for ever.
-- Locks:  none.     Index:  none on owner: a scan of task, every five seconds; worker_pkey; task_children_idx, child_done_parent_idx;
-- update_request_open_idx, task_pkey, task_wait_idx, cancellation primary key
-- Returns dead worker or null, parked run or null, updated run or null, the worker that has that or null, run that was put aside or null
SELECT DISTINCT t.owner, NULL::uuid, NULL::uuid, NULL::int4, NULL::uuid FROM {schema}.task t JOIN {schema}.worker w ON w.id = t.owner WHERE w.dead_at IS NOT NULL
UNION ALL
(SELECT NULL, t.run_id, NULL, NULL, NULL FROM {schema}.task t
 WHERE t.owner IS NULL AND t.wait_children IS NOT NULL
   AND (SELECT coalesce(sum(d.n), 0) >= t.wait_children OR coalesce(sum(d.failed), 0) > t.wait_failed FROM {schema}.child_done d WHERE d.parent_id = t.run_id)
 LIMIT 500)
UNION ALL
(SELECT NULL, NULL, t.run_id, t.owner, NULL FROM {schema}.update_request q JOIN {schema}.task t ON t.run_id = q.run_id
 WHERE q.rejected_at IS NULL AND q.sent_at < clock_timestamp() - interval '2 s' AND (t.owner IS NOT NULL OR t.wait_kind IN (9, 10, 11, 13, 14, 15))
 LIMIT 500)
UNION ALL
(SELECT NULL, NULL, NULL, NULL, t.run_id FROM {schema}.task t
 WHERE t.wait_kind BETWEEN 19 AND 23 AND t.owner IS NULL AND (t.cancel_to IS NOT NULL OR t.wait_kind = 20 AND t.cancel_at <= clock_timestamp())
   AND ({schema}.wedged(t.run_id, t.wait_kind, t.resumed, t.version) OR EXISTS (SELECT FROM {schema}.cancellation c WHERE c.run_id = t.run_id AND c.how = 4))
 LIMIT 500);

-- name: end_wedged :one
-- End those of them: no code of theirs has to be told.
-- Locks:  their task rows, SKIP LOCKED, their parents', their children's.     Index:  task_pkey, outcome and child primary keys, pruned
-- $1 uuid[] run     Returns how many
SELECT {schema}.end_wedged(%s);

-- name: wake_unupdated :many
-- Wake the parked runs that forgotten found.
-- Locks:  task rows of those that are woken, ascending run_id.     Index:  task_pkey, update_request_pkey
-- $1 uuid[] run     Returns run
SELECT {schema}.wake_updated(%s);

-- name: tell_updated :exec
-- Tell the hosts of the workers that have the others.
-- Locks:  the cluster's queue of notifications, at the commit.     Index:  none
-- $1 int4[] workers
SELECT {schema}.announce_signal(told.worker, false, NULL, NULL) FROM unnest(%s::int4[]) AS told (worker);

-- name: parked_on_signals :many
-- A slice of the runs that are parked and wait for signals, and whether one is there that they were not given. Whoever sent it woke them, so
-- none is ever found; asked for ever all the same.
-- Locks:  none.     Index:  task_pkey, from $1 on: a scan that ends after the slice; message and consumed primary keys
-- $1 uuid after    $2 int4 limit     Returns run, whether a signal waits for it
SELECT p.run_id, EXISTS (
    SELECT FROM unnest(p.wait_signals) AS w (name) JOIN {schema}.message m ON m.run_id = p.run_id AND m.kind = 1 AND m.name = w.name
    WHERE m.n > coalesce((SELECT c.n FROM {schema}.consumed c WHERE c.run_id = p.run_id AND c.kind = 1 AND c.name = w.name
                          ORDER BY c.run_id DESC, c.kind DESC, c.name DESC, c.n DESC LIMIT 1), 0))
FROM (SELECT t.run_id, t.wait_signals FROM {schema}.task t
      WHERE t.owner IS NULL AND t.wait_kind IN (11, 15) AND t.wait_signals IS NOT NULL AND t.run_id > %s ORDER BY t.run_id LIMIT %s) AS p
ORDER BY p.run_id;

-- name: wake_unheard :many
-- Wake the runs that parked_on_signals found; one that woke meanwhile is left alone.
-- Locks:  their task rows, ascending run_id.     Index:  task_pkey
-- $1 uuid[] run     Returns run
WITH theirs AS (
    SELECT run_id FROM {schema}.task WHERE run_id = ANY (%s) AND owner IS NULL AND wait_kind IN (11, 15) AND wait_signals IS NOT NULL
    ORDER BY run_id FOR NO KEY UPDATE)
UPDATE {schema}.task t SET ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(), wait_children = NULL,
    wait_failed = NULL, wait_signals = NULL
FROM theirs WHERE t.run_id = theirs.run_id RETURNING t.run_id;

-- name: anything_left :one
-- Whether any run of these queues is live (parked for good: nondeterminism and the like do not count; nor do those that nobody has in a paused queue).
-- Locks:  none.     Index:  none: a scan that ends at the first live run; queue_pause_pkey
-- $1 int4[] queue or null     Returns boolean
SELECT EXISTS (SELECT FROM {schema}.task WHERE (%s::int4[] IS NULL OR queue = ANY (%s)) AND coalesce(wait_kind, 1) NOT BETWEEN 19 AND 23
               AND (owner IS NOT NULL OR queue <> ALL (ARRAY(SELECT p.queue FROM {schema}.queue_pause p))));

-- name: held_up :many
-- Queues that are paused and have live runs which nobody has.
-- Locks:  none.     Index:  queue_pause_pkey; task_ready_idx, the range of each such queue
-- Returns queue, who paused it, why, since when, runs
SELECT q.name, p.paused_by, p.reason, p.paused_at, n.runs
FROM {schema}.queue_pause p JOIN {schema}.queue q ON q.id = p.queue CROSS JOIN LATERAL (
    SELECT count(*) AS runs FROM {schema}.task t WHERE t.queue = p.queue AND t.owner IS NULL AND coalesce(t.wait_kind, 1) NOT BETWEEN 19 AND 23) AS n
WHERE n.runs > 0 ORDER BY q.name;

-- name: wake_forgotten :many
-- Wake the parents that forgotten found; one that woke meanwhile is left alone.
-- Locks:  their task rows, ascending run_id.     Index:  task_pkey
-- $1 uuid[] run     Returns run
WITH theirs AS (SELECT run_id FROM {schema}.task WHERE run_id = ANY (%s) AND owner IS NULL AND wait_children IS NOT NULL ORDER BY run_id FOR NO KEY UPDATE)
UPDATE {schema}.task t SET ready_at = clock_timestamp(), wait_kind = 1, wait_children = NULL, wait_failed = NULL FROM theirs WHERE t.run_id = theirs.run_id RETURNING t.run_id;

-- name: failed_runs :one
-- How many runs ended otherwise than completed: the exit code of a batch job.
-- Locks:  none.     Index:  none: asked once before and once after the job     Returns int8
SELECT count(*) FROM {schema}.outcome WHERE status <> 1;

-- name: connections :one
-- How many sessions the server takes, how many of them it keeps for others than us, and how many are in use. Who may not see a session's kind counts
-- it as a client's; sessions that only check something are gone in a moment and do not count.
-- Locks:  none.     Index:  none     Returns max_connections, reserved, used
SELECT current_setting('max_connections')::int4,
       current_setting('superuser_reserved_connections')::int4 + coalesce(current_setting('reserved_connections', true), '0')::int4,
       (SELECT count(*) FROM pg_stat_activity
        WHERE datid IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend' AND pid <> pg_backend_pid()
          AND application_name <> 'pgsupervisor: check')::int4;
