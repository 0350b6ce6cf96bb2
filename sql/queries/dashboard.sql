-- What the dashboard's pages ask, beside what `list`, `show`, `queues` and `workers` ask: through the views and the catalogue alone; a viewer's role is
-- enough. Each page is one transaction that reads and is bounded in time (page_settings). What its forms do beside the client's verbs stands at the end.

-- name: page_settings :void
-- Limit the time of each statement of this transaction, let it have one processor, and plan it for its values.
-- Locks:  none
-- $1 text ms
SELECT pg_catalog.set_config('statement_timeout', $1, true), pg_catalog.set_config('max_parallel_workers_per_gather', '0', true), pg_catalog.set_config('jit', 'off', true),
       pg_catalog.set_config('plan_cache_mode', 'force_custom_plan', true);

-- name: page_rights :many
-- What the role of this session may do to runs.
-- Locks:  none
-- Returns name of a function, may execute it; login
SELECT p.proname::pg_catalog.text AS verb, pg_catalog.bool_or(pg_catalog.has_function_privilege(p.oid, 'EXECUTE')) AS may, current_user::pg_catalog.text AS login
FROM pg_catalog.pg_proc AS p
WHERE p.pronamespace = {schema_literal}::pg_catalog.regnamespace
  AND p.proname = ANY ('{cancel,terminate,cancel_many,terminate_many,operate,operate_many,intervene,send_because,finish_because,save_view,pause_queue,pause_schedule}'::pg_catalog.text[])
GROUP BY p.proname;

-- name: page_pulse :one
-- Whether anything was written since the last look: the end of the log.
-- Locks:  none
SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_insert_lsn() END::pg_catalog.text AS lsn;

-- ── one run ──────────────────────────────────────────────────────────────────────────────────────────────────────

-- name: page_steps_before :many
-- The last entries of one run's history before a position, newest first, with payloads up to a size.
-- Locks:  none.     Index:  step primary key, pruned, read backwards
-- $1 uuid run    $2 int4 before that seq (null: the last ones)    $3 int4 limit    $4 int4 characters of a payload
SELECT s.seq, s.pos, s.name, s.kind, s.status, s.started_at, s.ended_at, s.duration_ms, s.worker,
       pg_catalog.octet_length(p.payload) AS bytes, pg_catalog.left(p.payload, $4::pg_catalog.int4) AS payload
FROM {schema}.steps AS s CROSS JOIN LATERAL (SELECT coalesce(s.result, s.error)::pg_catalog.text AS payload) AS p
WHERE s.run_id = $1 AND ($2::pg_catalog.int4 IS NULL OR s.seq < $2::pg_catalog.int4) ORDER BY s.seq DESC LIMIT $3::pg_catalog.int4;

-- name: page_steps_from :many
-- The entries of one run's history from a position on, with payloads up to a size.
-- Locks:  none.     Index:  step primary key, pruned
-- $1 uuid run    $2 int4 from that seq on    $3 int4 limit    $4 int4 characters of a payload
SELECT s.seq, s.pos, s.name, s.kind, s.status, s.started_at, s.ended_at, s.duration_ms, s.worker,
       pg_catalog.octet_length(p.payload) AS bytes, pg_catalog.left(p.payload, $4::pg_catalog.int4) AS payload
FROM {schema}.steps AS s CROSS JOIN LATERAL (SELECT coalesce(s.result, s.error)::pg_catalog.text AS payload) AS p
WHERE s.run_id = $1 AND s.seq >= $2::pg_catalog.int4 ORDER BY s.seq LIMIT $3::pg_catalog.int4;

-- name: page_steps_during :many
-- The entries of one run's history that went on at some time between two moments, the first ones from a position on, with payloads up to a size.
-- Locks:  none.     Index:  step, attempt primary keys, pruned; all entries of the run from there on
-- $1 uuid run    $2 timestamptz from    $3 timestamptz until    $4 int4 from that seq on    $5 int4 limit    $6 int4 characters of a payload    $7 int4 entries that are counted
-- Returns each with how many there are from that position on; where that is $7, at least so many
WITH there AS MATERIALIZED (
    SELECT s.seq FROM {schema}.steps AS s
    WHERE s.run_id = $1 AND s.seq >= $4::pg_catalog.int4
      AND (s.started_at <= $3::pg_catalog.timestamptz AND s.ended_at >= $2::pg_catalog.timestamptz
           OR s.seq IN (SELECT a.seq FROM {schema}.attempts AS a
                        WHERE a.run_id = $1 AND a.started_at <= $3 AND coalesce(a.next_retry_at, a.ended_at, a.started_at) >= $2))
    ORDER BY s.seq LIMIT $7::pg_catalog.int4)
SELECT s.seq, s.pos, s.name, s.kind, s.status, s.started_at, s.ended_at, s.duration_ms, s.worker,
       pg_catalog.octet_length(p.payload) AS bytes, pg_catalog.left(p.payload, $6::pg_catalog.int4) AS payload, (SELECT count(*) FROM there) AS there
FROM (SELECT t.seq FROM there AS t ORDER BY t.seq LIMIT $5::pg_catalog.int4) AS t
CROSS JOIN LATERAL (SELECT * FROM {schema}.steps AS s WHERE s.run_id = $1 AND s.seq = t.seq OFFSET 0) AS s
CROSS JOIN LATERAL (SELECT coalesce(s.result, s.error)::pg_catalog.text AS payload) AS p ORDER BY s.seq;

-- name: page_differences :many
-- Entries in which the histories of two runs differ, from a position on: the first ones among so many.
-- Locks:  none.     Index:  step primary key, pruned, of both
-- $1 uuid run    $2 uuid another    $3 int4 from that seq on    $4 int4 entries of each that are compared    $5 int4 limit    $6 int4 characters of a payload
-- Returns seq, and of both (null where it has none) name, kind, status, the payload's beginning and its size
WITH mine AS MATERIALIZED (SELECT s.seq, s.name, s.kind, s.status, coalesce(s.result, s.error) AS payload FROM {schema}.steps AS s
                           WHERE s.run_id = $1 AND s.seq >= $3::pg_catalog.int4 ORDER BY s.seq LIMIT $4::pg_catalog.int4),
     other AS MATERIALIZED (SELECT s.seq, s.name, s.kind, s.status, coalesce(s.result, s.error) AS payload FROM {schema}.steps AS s
                            WHERE s.run_id = $2 AND s.seq >= $3::pg_catalog.int4 ORDER BY s.seq LIMIT $4::pg_catalog.int4)
SELECT coalesce(m.seq, o.seq) AS seq, m.name, m.kind, m.status, pg_catalog.left(m.payload::pg_catalog.text, $6::pg_catalog.int4) AS payload, pg_catalog.octet_length(m.payload::pg_catalog.text) AS bytes,
       o.name AS other_name, o.kind AS other_kind, o.status AS other_status, pg_catalog.left(o.payload::pg_catalog.text, $6::pg_catalog.int4) AS other_payload, pg_catalog.octet_length(o.payload::pg_catalog.text) AS other_bytes
FROM mine AS m FULL JOIN other AS o ON o.seq = m.seq
WHERE (m.name, m.kind, m.status, m.payload) IS DISTINCT FROM (o.name, o.kind, o.status, o.payload)
ORDER BY 1 LIMIT $5::pg_catalog.int4;

-- name: page_attempts :many
-- Failed tries and what else is recorded of some steps of one run, and of those between two positions that have no entry yet; the last first.
-- Locks:  none.     Index:  attempt, step primary keys, pruned
-- $1 uuid run    $2 int4[] steps    $3 int4 first seq of the others    $4 int4 their last (null: all that follow)    $5 timestamptz that began until then (null: whenever)    $6 int4 limit
SELECT a.seq, a.n, a.name, a.kind, a.started_at, a.ended_at, a.next_retry_at, a.worker, a.error, a.fingerprint
FROM {schema}.attempts AS a
WHERE a.run_id = $1
  AND (a.seq = ANY ($2::pg_catalog.int4[])
       OR a.seq >= $3::pg_catalog.int4 AND ($4::pg_catalog.int4 IS NULL OR a.seq <= $4::pg_catalog.int4) AND ($5::pg_catalog.timestamptz IS NULL OR a.started_at <= $5::pg_catalog.timestamptz)
          AND NOT EXISTS (SELECT FROM {schema}.steps AS s WHERE s.run_id = $1 AND s.seq = a.seq))
ORDER BY a.seq DESC, a.started_at DESC, a.n DESC LIMIT $6::pg_catalog.int4;

-- name: page_kinds :many
-- How much of what one run's history has, and how long that took.
-- Locks:  none.     Index:  step primary key, pruned
-- $1 uuid run     Returns kind, how many, how many failed, seconds in sum, first and last seq, when the first began
SELECT s.kind, count(*) AS entries, count(*) FILTER (WHERE s.status = 'failed') AS failed,
       coalesce(pg_catalog.sum(s.duration_ms), 0) / 1000 AS seconds, pg_catalog.min(s.seq) AS first, pg_catalog.max(s.seq) AS last, pg_catalog.min(s.started_at) AS began_at
FROM {schema}.steps AS s WHERE s.run_id = $1 GROUP BY s.kind;

-- name: page_backoffs :one
-- How often steps of one run failed or ended their worker, and how long it waited before it tried again.
-- Locks:  none.     Index:  attempt primary key, pruned
-- $1 uuid run    $2 timestamptz its end, or now     Returns failed, crashed, seconds waited
SELECT count(*) FILTER (WHERE a.kind = 'failed') AS failed, count(*) FILTER (WHERE a.kind = 'crashed') AS crashed,
       coalesce(pg_catalog.sum(extract(epoch FROM least(a.next_retry_at, $2::pg_catalog.timestamptz) - a.ended_at))
                FILTER (WHERE a.kind IN ('failed', 'crashed') AND a.next_retry_at IS NOT NULL), 0)::pg_catalog.float8 AS seconds
FROM {schema}.attempts AS a WHERE a.run_id = $1;

-- name: page_step :many
-- One entry of a run's history, whole.
-- Locks:  none.     Index:  step primary key, pruned
-- $1 uuid run    $2 int4 seq
SELECT s.seq, s.pos, s.name, s.kind, s.status, s.started_at, s.ended_at, s.duration_ms, s.worker, s.result, s.error
FROM {schema}.steps AS s WHERE s.run_id = $1 AND s.seq = $2::pg_catalog.int4;

-- name: page_signals :many
-- Signals that were sent to one run, newest first, with payloads up to a size.
-- Locks:  none.     Index:  message primary key, consumed primary key, pruned
-- $1 uuid run    $2 int4 limit    $3 int4 characters of a payload
SELECT g.n, g.name, g.id, pg_catalog.octet_length(g.payload::pg_catalog.text) AS bytes, pg_catalog.left(g.payload::pg_catalog.text, $3::pg_catalog.int4) AS payload, g.sent_at, g.seq
FROM {schema}.signals AS g WHERE g.run_id = $1 ORDER BY g.n DESC LIMIT $2::pg_catalog.int4;

-- name: page_updates :many
-- The updates that were sent to one run, newest first.
-- Locks:  none.     Index:  as show_updates
-- $1 uuid run    $2 int4 limit
SELECT u.n, u.name, u.id, u.stage, u.sent_at, u.accepted_at, u.ended_at, u.seq, u.payload, u.result, u.error FROM {schema}.updates AS u WHERE u.run_id = $1 ORDER BY u.n DESC LIMIT $2::pg_catalog.int4;

-- name: page_tokens :many
-- Tries of one run that were handed over to a token.
-- Locks:  none.     Index:  attempt, completion, beat primary keys, pruned
-- $1 uuid run    $2 int4 limit
SELECT t.seq, t.attempt, t.step, t.state, t.since, t.due_at, t.beat_at, t.details, t.closed_at FROM {schema}.tokens AS t WHERE t.run_id = $1 ORDER BY t.seq DESC, t.attempt DESC LIMIT $2::pg_catalog.int4;

-- name: page_compensations :many
-- What one run undoes, the first ones.
-- Locks:  none.     Index:  step primary key, pruned
-- $1 uuid run    $2 int4 limit
SELECT c.seq, c.name, c.of_seq, c.status, c.ended_at, c.because FROM {schema}.compensations AS c WHERE c.run_id = $1 ORDER BY c.seq LIMIT $2::pg_catalog.int4;

-- name: page_children :many
-- How the runs that one run has started stand; of at most so many.
-- Locks:  none.     Index:  child primary key, run, outcome, task primary keys
-- $1 uuid parent    $2 int4 limit
SELECT c.seq, r.run_id, r.workflow, r.key, r.status, r.wait, r.step, r.created_at, r.ended_at
FROM (SELECT d.seq, d.run_id FROM {schema}.children AS d WHERE d.parent_id = $1 ORDER BY d.seq DESC LIMIT $2::pg_catalog.int4) AS c
CROSS JOIN LATERAL (SELECT * FROM {schema}.runs AS r WHERE r.run_id = c.run_id OFFSET 0) AS r ORDER BY c.seq DESC;

-- ── health ───────────────────────────────────────────────────────────────────────────────────────────────────────

-- name: page_rates :many
-- Starts and ends by the minute, of all workflows together.
-- Locks:  none.     Index:  none: the ends of the runs' and the outcomes' tables, $2 rows of both at most
-- $1 interval since    $2 int4 rows
SELECT t.minute, t.started, t.completed, t.failed, t.counted_s FROM {schema}.paces($1::pg_catalog.interval, $2::pg_catalog.int4) AS t ORDER BY t.minute;

-- name: page_queues :many
-- What stands in each queue; where complete is false, at least so many.
-- Locks:  none.     Index:  task_ready_idx, $1 entries at most; queue_pause_pkey; none for workers: one row per worker's life
-- $1 int4 live runs that are looked at    $2 int4 limit
SELECT q.queue, q.ready, q.running, q.waiting, q.paused, q.oldest_ready_at, q.complete, q.paused_at, q.paused_by, q.paused_reason, coalesce(s.workers, 0) AS workers
FROM {schema}.queue_sizes($1::pg_catalog.int4) AS q
LEFT JOIN (SELECT u.queue, pg_catalog.count(*) AS workers FROM {schema}.workers AS w CROSS JOIN LATERAL pg_catalog.unnest(w.queues) AS u (queue) WHERE w.state = 'alive' GROUP BY u.queue) AS s
    ON s.queue = q.queue
ORDER BY q.queue LIMIT $2::pg_catalog.int4;

-- name: page_workers :many
-- Workers that live or ended within the hour, also as they were told to, without what they do.
-- Locks:  none.     Index:  none: one row per worker's life
-- $1 int4 limit
SELECT w.worker, w.state, w.host, w.pid, w.supervisor, w.boot, w.started_at, w.dead_at, w.death, w.queues
FROM {schema}.workers AS w WHERE w.state <> 'dead' OR w.dead_at > pg_catalog.now() - interval '1 hour' ORDER BY w.worker DESC LIMIT $1::pg_catalog.int4;

-- name: page_worker_sizes :many
-- How many runs each of them has; where complete is false, at least so many.
-- Locks:  none.     Index:  task_ready_idx, $1 entries at most; one row per worker's life
-- $1 int4 live runs that are looked at
SELECT w.worker, w.runs, w.complete FROM {schema}.worker_sizes($1::pg_catalog.int4) AS w;

-- name: page_worker_steps :many
-- Steps that have been executing for more than a second, by what their workers have published: what the database knows of what workers do. Of the newest runs.
-- Locks:  none.     Index:  task_wait_idx read backwards, $1 entries at most; run, task primary keys for those
-- $1 int4 limit
SELECT w.worker, w.run_id, w.workflow, w.seq, w.step, w.since
FROM (SELECT l.run_id FROM {schema}.live AS l WHERE l.parked = 8 AND l.status = 'running' ORDER BY l.run_id DESC LIMIT $1::pg_catalog.int4) AS l
CROSS JOIN LATERAL (SELECT * FROM {schema}.waits AS w WHERE w.run_id = l.run_id OFFSET 0) AS w
WHERE w.worker IS NOT NULL ORDER BY w.since;

-- name: page_leader :many
-- Which supervisor leads at this moment.
-- Locks:  none.     Index:  none: a row per term
SELECT l.term, l.supervisor, l.host, l.pid, l.began_at, l.beat_at FROM {schema}.leaders AS l WHERE l.leads ORDER BY l.term DESC LIMIT 1;

-- name: page_database :one
-- The database as far as it bears on this engine: connections, the oldest transaction, the hot tables.
-- Locks:  none.     Index:  none: catalogue and statistics
-- $1 bool its size too, which is the sum of its files' sizes
SELECT pg_catalog.current_database()::pg_catalog.text AS database, pg_catalog.current_setting('server_version') AS version, pg_catalog.clock_timestamp() AS now,
       (SELECT count(*) FROM pg_catalog.pg_stat_activity AS a) AS connections, pg_catalog.current_setting('max_connections')::pg_catalog.int4 AS connections_max,
       (SELECT pg_catalog.max(pg_catalog.age(a.backend_xmin)) FROM pg_catalog.pg_stat_activity AS a) AS oldest_xmin_age,
       (SELECT pg_catalog.min(a.xact_start) FROM pg_catalog.pg_stat_activity AS a WHERE a.pid <> pg_catalog.pg_backend_pid() AND a.backend_type = 'client backend') AS oldest_transaction_at,
       (SELECT pg_catalog.age(d.datfrozenxid) FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database()) AS frozen_age,
       CASE WHEN $1::pg_catalog.bool THEN pg_catalog.pg_database_size(pg_catalog.current_database()) END AS bytes,
       (SELECT s.n_live_tup FROM pg_catalog.pg_stat_all_tables AS s WHERE s.relid = '{schema}.task'::pg_catalog.regclass) AS task_rows,
       (SELECT s.n_dead_tup FROM pg_catalog.pg_stat_all_tables AS s WHERE s.relid = '{schema}.task'::pg_catalog.regclass) AS task_dead,
       pg_catalog.pg_relation_size('{schema}.task'::pg_catalog.regclass) AS task_bytes,
       (SELECT pg_catalog.max(m.number) FROM {schema}.migration AS m) AS migration;

-- name: page_horizon :one
-- Until when the history's partitions exist, and how many there are.
-- Locks:  none.     Index:  none: catalogue
SELECT pg_catalog.max({schema}.id_time((pg_catalog.regexp_match(pg_catalog.pg_get_expr(c.relpartbound, c.oid), 'TO \(''([0-9a-f-]{36})''\)'))[1]::pg_catalog.uuid)) AS until_at,
       count(*) AS partitions
FROM pg_catalog.pg_inherits AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = '{schema}.run'::pg_catalog.regclass;

-- ── lists ────────────────────────────────────────────────────────────────────────────────────────────────────────

-- name: page_batches :many
-- Batches and what became of their runs, newest first; where complete is false, of the newest ones.
-- Locks:  none.     Index:  batch_created_at_idx, run_batch_idx, outcome, task primary keys; $4 runs of each at most
-- $1 timestamptz before (null: from now on)    $2 text before that name, of those made at that moment (null: none of them)    $3 int4 limit    $4 int4 runs of each
SELECT b.batch, b.runs, b.complete, b.ready, b.running, b.waiting, b.paused, b.completed, b.failed, b.cancelled, b.terminated, b.timed_out, b.continued,
       b.created_at, b.last_started_at, b.last_ended_at
FROM {schema}.batch_sizes(NULL, $1::pg_catalog.timestamptz, $3::pg_catalog.int4, $4::pg_catalog.int4, $2::pg_catalog.text) AS b;

-- name: page_batch :many
-- What became of the runs of one batch; where complete is false, of the newest ones.
-- Locks:  none.     Index:  as page_batches
-- $1 text batch    $2 int4 runs
SELECT b.batch, b.runs, b.complete, b.ready, b.running, b.waiting, b.paused, b.completed, b.failed, b.cancelled, b.terminated, b.timed_out, b.continued,
       b.created_at, b.last_started_at, b.last_ended_at
FROM {schema}.batch_sizes($1, NULL, 1, $2::pg_catalog.int4) AS b;

-- name: page_versions :many
-- Versions of workflows, who has them, how many live runs are of each; where complete is false, at least so many.
-- Locks:  none.     Index:  task_ready_idx, $1 entries at most; one row per version and worker's life
-- $1 int4 live runs that are looked at    $2 int4 limit
SELECT v.workflow, v.version, v.workers, v.hosts, v.live, v.running, v.code_missing, v.missing_since, v.complete, v.source, v.first_seen_at, v.last_seen_at
FROM {schema}.version_sizes($1::pg_catalog.int4) AS v LIMIT $2::pg_catalog.int4;

-- name: page_schedules :many
-- Schedules by name, and how they stand.
-- Locks:  none.     Index:  schedule_pkey; schedule_live_pkey, task_pkey, schedule_backfill_schedule_idx for those of the page
-- $1 text after that name (null: the first ones)    $2 int4 limit
SELECT s.name, s.workflow, s.cron, s.every_s, s.timezone, s.state, s.next_at, s.last_at, s.last_run, s.error, s.fired, s.skipped, s.missed, s.live, s.held, s.overlap, s.paused_at, s.paused_by,
       s.paused_reason, s.declared
FROM {schema}.schedules AS s WHERE s.name > coalesce($1::pg_catalog.text, '') ORDER BY s.name LIMIT $2::pg_catalog.int4;

-- name: page_workflows :many
-- Workflows that workers have registered, by name.
-- Locks:  none.     Index:  workflow_name_key
-- $1 int4 limit
SELECT w.workflow, w.queue, w.parameters FROM {schema}.workflows AS w ORDER BY w.workflow LIMIT $1::pg_catalog.int4;

-- name: page_schedule_fires :many
-- What became of the ticks of one schedule before a moment, and how their runs stand, the newest first.
-- Locks:  none.     Index:  schedule_fire_pkey, schedule_miss_pkey; run, outcome, task primary keys for those of the page
-- $1 text schedule    $2 timestamptz before (null: the last ones)    $3 int4 limit
SELECT f.tick_at, f.fired_at, f.kind, f.state, f.run_id, (SELECT r.status FROM {schema}.runs AS r WHERE r.run_id = f.run_id) AS status, f.ticks, f.until_at
FROM (SELECT f.* FROM {schema}.schedule_fires AS f WHERE f.schedule = $1 AND f.tick_at < coalesce($2::pg_catalog.timestamptz, 'infinity') ORDER BY f.tick_at DESC LIMIT $3::pg_catalog.int4) AS f
ORDER BY f.tick_at DESC;

-- name: page_errors :many
-- What failed lately, by what it is and where, the newest first.
-- Locks:  none.     Index:  attempt_failed_at_idx, outcome_unsuccessful_idx; $2 rows of each at most; run, outcome primary keys for the newest run of each group
-- $1 interval since    $2 int4 rows     Returns of runs that ended without a failed try also `place`, as the filter's error.place; complete: false where not all were counted
SELECT e.fingerprint, e.source, e.workflow, e.step, e.type, pg_catalog.left(e.message, 200) AS message, e.failures, e.runs, e.live, e.ended, e.first_at, e.last_at, e.run_id, e.seq, e.counted_from,
       CASE WHEN e.source = 'run' THEN (SELECT pg_catalog.substring(pg_catalog.right(r.error ->> 'traceback', 10000), '.*(File "[^"]+", line [0-9]+)') FROM {schema}.runs AS r WHERE r.run_id = e.run_id) END AS place,
       CASE WHEN e.source = 'step' THEN e.counted_from <= pg_catalog.now() - $1::pg_catalog.interval
            ELSE (SELECT count(*) FROM (SELECT FROM {schema}.failures AS f WHERE f.run_id >= {schema}.id_floor(pg_catalog.now() - $1::pg_catalog.interval) LIMIT $2::pg_catalog.int4) AS f) < $2::pg_catalog.int4 END AS complete
FROM {schema}.error_groups($1::pg_catalog.interval, $2::pg_catalog.int4) AS e ORDER BY e.last_at DESC;

-- name: page_storage :many
-- The engine's tables by size, partitions with their parent.
-- Locks:  none.     Index:  none: catalogue and statistics
SELECT t.name, count(*) FILTER (WHERE t.is_partition) AS partitions, pg_catalog.sum(t.bytes)::pg_catalog.int8 AS bytes, pg_catalog.sum(t.index_bytes)::pg_catalog.int8 AS index_bytes,
       pg_catalog.sum(t.rows)::pg_catalog.int8 AS rows, pg_catalog.sum(t.dead)::pg_catalog.int8 AS dead, pg_catalog.max(t.vacuumed_at) AS vacuumed_at
FROM (SELECT coalesce(parent.relname, c.relname)::pg_catalog.text AS name, c.relispartition AS is_partition, pg_catalog.pg_total_relation_size(c.oid) AS bytes,
             pg_catalog.pg_indexes_size(c.oid) AS index_bytes, s.n_live_tup AS rows, s.n_dead_tup AS dead, greatest(s.last_vacuum, s.last_autovacuum) AS vacuumed_at
      FROM pg_catalog.pg_class AS c
      LEFT JOIN pg_catalog.pg_inherits AS i ON i.inhrelid = c.oid
      LEFT JOIN pg_catalog.pg_class AS parent ON parent.oid = i.inhparent
      LEFT JOIN pg_catalog.pg_stat_all_tables AS s ON s.relid = c.oid
      WHERE c.relnamespace = {schema_literal}::pg_catalog.regnamespace AND c.relkind = 'r') AS t
GROUP BY t.name ORDER BY bytes DESC;

-- name: page_saved :many
-- Filters of runs that are kept by name.
-- Locks:  none.     Index:  none: at most 200 rows
SELECT v.name, v.filter, v.saved_by, v.saved_at FROM {schema}.saved_views AS v ORDER BY v.name;

-- ── what forms do ────────────────────────────────────────────────────────────────────────────────────────────────

-- name: form_settings :void
-- Limit the time of each statement of this transaction, its waits for locks included.
-- Locks:  none
-- $1 text ms
SELECT pg_catalog.set_config('statement_timeout', $1, true), pg_catalog.set_config('lock_timeout', $1, true);

-- name: form_send :one
-- Send a signal or an update to a live run, and write down who did it and why.
-- Locks:  as client_signal, client_send_update.     Index:  the same
-- $1 text signal, or update    $2 uuid run    $3 text name    $4 bytea payload, JSON    $5 text id    $6 text reason    $7 text actor
-- Returns whether it was stored     Raises  as those
SELECT {schema}.send_because($1, $2, $3, $4, $5, $6, $7);

-- name: form_finish :one
-- Complete or fail the try of a step that waits for its token, and write down who did it and why.
-- Locks:  as client_finish_token.     Index:  attempt primary key, pruned; then as that
-- $1 uuid run    $2 int4 seq    $3 int2 1 completed, 2 failed    $4 bytea value or error, JSON    $5 bool whether a failure may be tried again    $6 text reason    $7 text actor
-- Returns whether it was stored     Raises  SV030 where no try waits, SV032
SELECT {schema}.finish_because($1, $2, $3::pg_catalog.int2, $4, $5, $6, $7);

-- name: form_save_view :void
-- Keep a filter of runs by a name.
-- Locks:  the row of saved_view.     Index:  saved_view_pkey
-- $1 text name    $2 text filter    $3 text actor     Raises  22023
SELECT {schema}.save_view($1, $2, $3);

-- name: form_forget_view :one
-- Keep it no longer.
-- Locks:  the row of saved_view.     Index:  saved_view_pkey
-- $1 text name     Returns whether there was one
SELECT {schema}.forget_view($1);
