-- What supervisors ask to have one leader among them, and what that one does for all.

-- name: as_leader :exec
-- The fence of a leader: first in the transaction of everything that it writes.
-- Locks:  its row of leader, FOR KEY SHARE.     Index:  leader_pkey
-- $1 int8 term     Raises SV004 when the term has ended
SELECT {schema}.as_leader(%s);

-- name: seek_lead :one
-- A follower's turn: try for the lead, look at who has it, and with `pulse` at what is due. Never waits: a session that waits for a lock pins xmin.
-- Locks:  the advisory lock -3, until the session ends, if it was free.     Index:  leader_pkey, and those of pulse
-- $1 text[] queue    $2 text[] workflow    $3 int4 depth: see pulse
-- Returns whether it was free, newest term, whether that has ended, age of its beat in s; pulse's row
WITH look AS ({block:pulse})
SELECT pg_try_advisory_lock({lock_class}, -3), l.term, l.ended_at IS NOT NULL, extract(epoch FROM clock_timestamp() - l.beat_at)::float8, look.due, look.next_s, look.hidden
FROM look LEFT JOIN LATERAL (SELECT * FROM {schema}.leader ORDER BY term DESC LIMIT 1) l ON true;

-- name: take_term :one
-- Begin a term; the session holds the lock. Waits for what the term before it is writing.
-- Locks:  the newest row of leader.     Index:  leader_pkey
-- $1 uuid supervisor    $2 text host    $3 int4 pid    $4 text why the term before it ended     Returns term
SELECT {schema}.take_term(%s, %s, %s, %s);

-- name: beat :one
-- The leader's pulse: a sign of life, which workers give none, and with `pulse` what is due.
-- Locks:  its row of leader.     Index:  leader_pkey, worker_live_idx, schedule_due_idx, schedule_held_idx, and those of pulse
-- $1 int4 backend of ears    $2 int4 backend of chores    $3 int8 term    $4 text[] queue    $5 text[] workflow    $6 int4 depth: see pulse
-- Returns backend of chores as written, server's age in s, workers without their lock, s until a schedule is to be looked at (null: none is), whether runs of
-- schedules are held or backfills are at work, pulse's row; nothing when deposed
WITH beat AS (
    UPDATE {schema}.leader SET beat_at = clock_timestamp(), ears_pid = %(ears)s, chores_pid = %(chores)s
    WHERE term = %(term)s AND ended_at IS NULL AND lead_pid = pg_backend_pid()
    RETURNING chores_pid, extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::float8 AS server_age_s,
        ARRAY(SELECT w.id FROM {schema}.worker w WHERE w.dead_at IS NULL AND w.id <> ALL (ARRAY(
            SELECT l.objid::int8 FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.classid::int8 = ({lock_class}::int8 & 4294967295)
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())))) AS missing),
look AS ({block:pulse})
SELECT beat.chores_pid, beat.server_age_s, beat.missing,
       (SELECT extract(epoch FROM s.due_at - clock_timestamp())::float8 FROM {schema}.schedule s WHERE s.due_at < 'infinity' ORDER BY s.due_at LIMIT 1),
       EXISTS (SELECT FROM {schema}.schedule s WHERE s.held) OR EXISTS (SELECT FROM {schema}.schedule_backfill),
       look.due, look.next_s, look.hidden
FROM beat, look;

-- name: who_leads :one
-- Who holds the lock, and what its term says: asked when the leader gives no sign of life.
-- Locks:  none.     Index:  leader_pkey
-- Returns backend that holds the lock, seconds since it last did anything, newest term, its backend, whether it has ended, age of its beat in s, server's age in s
SELECT k.pid, extract(epoch FROM clock_timestamp() - a.state_change)::float8, l.term, l.lead_pid, l.ended_at IS NOT NULL,
       extract(epoch FROM clock_timestamp() - l.beat_at)::float8, extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::float8
FROM pg_locks k LEFT JOIN pg_stat_activity a ON a.pid = k.pid LEFT JOIN LATERAL (SELECT * FROM {schema}.leader ORDER BY term DESC LIMIT 1) l ON true
WHERE k.locktype = 'advisory' AND k.granted AND k.objsubid = 2 AND k.classid::int8 = ({lock_class}::int8 & 4294967295) AND k.objid::int8 = (-3::int8 & 4294967295)
  AND k.database = (SELECT oid FROM pg_database WHERE datname = current_database());

-- name: end_leader :many
-- End the sessions of a term, if they are still its own and its leader has not come back: a deposed leader finds them gone.
-- Locks:  none.     Index:  leader_pkey
-- $1 int8 term    $2 float8 seconds without a beat     Returns backend
SELECT a.pid, pg_terminate_backend(a.pid) FROM {schema}.leader l JOIN pg_stat_activity a ON a.pid IN (l.lead_pid, l.ears_pid, l.chores_pid)
WHERE l.term = %s AND l.ended_at IS NULL AND l.beat_at <= clock_timestamp() - make_interval(secs => %s) AND a.pid <> pg_backend_pid()
  AND a.datname = current_database() AND a.application_name ~ ('^pgsupervisor: (lead|ears|chores) ' || left(l.supervisor::text, 8) || '$');

-- name: end_lock_holder :many
-- End the session that holds the leader's lock and has begun no term: its supervisor stopped in between.
-- Locks:  none.     Index:  none (views of the server's own)
-- $1 int4 backend    $2 float8 seconds without doing anything     Returns backend
SELECT a.pid, pg_terminate_backend(a.pid) FROM pg_stat_activity a JOIN pg_locks k ON k.pid = a.pid
WHERE a.pid = %s AND a.state_change <= clock_timestamp() - make_interval(secs => %s) AND a.datname = current_database() AND a.application_name ~ '^pgsupervisor: lead '
  AND k.locktype = 'advisory' AND k.granted AND k.objsubid = 2 AND k.classid::int8 = ({lock_class}::int8 & 4294967295) AND k.objid::int8 = (-3::int8 & 4294967295);

-- name: end_term :one
-- Give the lead back: the term ends, then (a further statement) the lock goes.
-- Locks:  its row of leader.     Index:  leader_pkey
-- $1 text why    $2 int8 term     Returns term
UPDATE {schema}.leader SET ended_at = clock_timestamp(), why = %s WHERE term = %s AND ended_at IS NULL AND lead_pid = pg_backend_pid() RETURNING term;

-- name: release_lead :one
-- Let the leader's lock go.
-- Locks:  none any more.     Index:  none
SELECT pg_advisory_unlock({lock_class}, -3);

-- name: announce :one
-- Tell whoever listens; a statement of its own, never in a worker's commit.
-- Locks:  none.     Index:  none
-- $1 text channel    $2 text payload
SELECT pg_notify(%s, %s);

-- ── duties ───────────────────────────────────────────────────────────────────────────────────────────────────

-- name: lost_worker :one
-- One worker whose sign of life was missing: is it still?
-- Locks:  none.     Index:  worker_pkey
-- $1 int4 worker     Returns boot, pid, host; nothing when it was declared dead meanwhile, or its lock is there
SELECT boot, pid, host FROM {schema}.worker w WHERE id = %s AND dead_at IS NULL AND NOT EXISTS (
    SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.classid::int8 = ({lock_class}::int8 & 4294967295)
    AND l.objid::int8 = w.id AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()));

-- name: make_partitions :one
-- Make what is missing of the partitions for the days ahead, or one partition's width if that is more. Names are
-- qualified: migrating asks it too, on a session with any search_path.
-- Locks:  the advisory lock -2, SHARE UPDATE EXCLUSIVE on the partitioned tables, until the commit.     Index:  none (cell has one row)
-- $1 int4 days     Returns how many tables were made
SELECT {schema}.make_partitions(pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) pg_catalog.make_interval(days => greatest(%s::pg_catalog.int4, partition_days))) FROM {schema}.cell;

-- name: renew_statistics :one
-- ANALYZE the one table that has grown most.
-- Locks:  SHARE UPDATE EXCLUSIVE on that table.     Index:  none     Returns its name, or null
SELECT {schema}.renew_statistics();

-- name: may_retire :one
-- Whether this session may drop partitions.
-- Locks:  none.     Index:  none     Returns whether, the tables' owner, this role
SELECT pg_has_role(c.relowner, 'USAGE'), pg_get_userbyid(c.relowner), current_user FROM pg_class c
WHERE c.relnamespace = {schema_literal}::regnamespace AND c.relname = 'run';

-- name: unfinished_detaches :many
-- What an interrupted DETACH CONCURRENTLY left: inserts into its range fail, and no other DETACH works, until it is finished.
-- Locks:  none.     Index:  none (catalogues)     Returns statement
SELECT format('ALTER TABLE {schema}.%%I DETACH PARTITION {schema}.%%I FINALIZE', p.relname, c.relname)
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
WHERE i.inhdetachpending AND p.relnamespace = {schema_literal}::regnamespace;

-- name: old_partitions :many
-- Partitions that can hold no run born after a time, oldest first.
-- Locks:  none.     Index:  none (catalogues)
-- $1 float8 keep_s     Returns suffix, low, high
SELECT substr(c.relname, 5), b.bound[1]::uuid, b.bound[2]::uuid
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
CROSS JOIN LATERAL (SELECT regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''(.*)''\) TO \(''(.*)''\)') AS bound) b
WHERE p.relname = 'run' AND p.relnamespace = {schema_literal}::regnamespace AND NOT i.inhdetachpending AND b.bound IS NOT NULL
  AND {schema}.id_time(b.bound[2]::uuid) < clock_timestamp() - make_interval(secs => %s)
ORDER BY b.bound[1];

-- name: partition_needed :one
-- Why a partition can't be dropped yet: a live run is in it, an older live run has a child in it, or one of its runs ended only lately.
-- Locks:  none.     Index:  task_pkey, child primary key; the partition's outcomes are read to their end
-- $1 low    $2 high    $3 float8 keep_s     Returns why, or null
SELECT CASE
    WHEN EXISTS (SELECT FROM {schema}.task t WHERE t.run_id >= %(low)s AND t.run_id < %(high)s) THEN 'a live run is in it'
    WHEN EXISTS (SELECT FROM {schema}.task t JOIN {schema}.child c ON c.parent_id = t.run_id
                 WHERE t.run_id < %(low)s AND c.run_id >= %(low)s AND c.run_id < %(high)s) THEN 'an older live run has a child in it'
    WHEN EXISTS (SELECT FROM {schema}.outcome o WHERE o.run_id >= %(low)s AND o.run_id < %(high)s
                 AND o.ended_at > clock_timestamp() - make_interval(secs => %(keep_s)s)) THEN 'a run in it ended less than that ago'
    END;

-- name: retire :one
-- Decide that a partition goes; from here on it is brought to an end by whoever leads.
-- Locks:  none but the new row.     Index:  task_pkey
-- $1 suffix    $2 low    $3 high     Returns suffix, or nothing when a live run is in it
INSERT INTO {schema}.retired (suffix, low, high) SELECT %(suffix)s, %(low)s, %(high)s
WHERE NOT EXISTS (SELECT FROM {schema}.task t WHERE t.run_id >= %(low)s AND t.run_id < %(high)s)
ON CONFLICT (suffix) DO UPDATE SET began_at = clock_timestamp() RETURNING suffix;

-- name: retired :many
-- Partitions on their way out, oldest first.
-- Locks:  none.     Index:  none (a row or two)     Returns suffix, low, high, seconds since it was decided
SELECT suffix, low, high, extract(epoch FROM clock_timestamp() - began_at)::float8 FROM {schema}.retired ORDER BY suffix;

-- name: detaches :many
-- The statements that detach what is still attached of one suffix. DETACH CONCURRENTLY blocks nobody; it is no part of a transaction.
-- Locks:  none.     Index:  none (catalogues)
-- $1 text suffix     Returns statement
SELECT format('ALTER TABLE {schema}.%%I DETACH PARTITION {schema}.%%I %%s', p.relname, c.relname, CASE WHEN i.inhdetachpending THEN 'FINALIZE' ELSE 'CONCURRENTLY' END)
FROM {schema}.partitioned() h JOIN pg_class p ON p.relname = h.name JOIN pg_inherits i ON i.inhparent = p.oid JOIN pg_class c ON c.oid = i.inhrelid
WHERE p.relnamespace = {schema_literal}::regnamespace AND c.relname = h.name || '_' || %s ORDER BY i.inhdetachpending DESC, c.relname;

-- name: keep_if_live :one
-- Of detached partitions: attach them again if a run of theirs is live.
-- Locks:  retired's row; ACCESS EXCLUSIVE on the detached tables, which nobody else finds.     Index:  task_pkey
-- $1 text suffix     Returns whether they were kept
SELECT {schema}.keep_if_live(%s);

-- name: drop_keys :one
-- Remove one slice of the keys that name runs of detached partitions.
-- Locks:  those rows of run_key, by key.     Index:  run_key primary key, the detached table's primary key
-- $1 text suffix    $2 uuid after    $3 int4 max     Returns how many it looked at, the last run
SELECT n, last FROM {schema}.drop_keys(%s, %s, %s);

-- name: drop_batches :one
-- Forget one slice of the batches of detached partitions that have no runs elsewhere.
-- Locks:  those rows of batch, by id, SKIP LOCKED.     Index:  run_batch_idx, of the detached table too; batch_pkey
-- $1 text suffix    $2 int8 after    $3 int4 max     Returns how many it looked at, the last batch
SELECT n, last FROM {schema}.drop_batches(%s, %s, %s);

-- name: drop_fires :one
-- Forget one slice of what schedules fired in the time of detached partitions.
-- Locks:  those rows of schedule_fire.     Index:  schedule_fire_id_idx
-- $1 text suffix    $2 uuid after    $3 int4 max     Returns how many it looked at, the last of them
SELECT n, last FROM {schema}.drop_fires(%s, %s, %s);

-- name: drop_detached :one
-- Drop detached partitions.
-- Locks:  ACCESS EXCLUSIVE on the detached tables, which nobody else finds.     Index:  none
-- $1 text suffix     Returns how many tables
SELECT {schema}.drop_detached(%s);

-- name: drop_updates :one
-- Remove updates that were rejected an hour ago, and those whose runs have ended.
-- Locks:  rows of update_request, SKIP LOCKED.     Index:  none: the table holds what nobody has taken yet
-- Returns how many
SELECT {schema}.drop_updates();

-- ── schedules ────────────────────────────────────────────────────────────────────────────────────────────────

-- name: schedules_due :many
-- Schedules that are to be looked at, those that have waited longest first, and some of the backfills that are at work.
-- Locks:  none.     Index:  schedule_due_idx; schedule_backfill_pkey, schedule_pkey
-- $1 int4 max    $2 int4 max of backfills     Returns the fields of core/schedules.py's Due
(SELECT s.name, s.version, s.cron, s.every_us, s.timezone, s.jitter_s, s.catchup_s, s.after_at, s.starts_at, s.ends_at, clock_timestamp(), NULL::int8
 FROM {schema}.schedule s WHERE s.due_at <= statement_timestamp() ORDER BY s.due_at LIMIT %s)
UNION ALL
(SELECT s.name, s.version, s.cron, s.every_us, s.timezone, 0, 0, b.after_at, s.starts_at, least(b.until_at, s.ends_at), clock_timestamp(), b.id
 FROM {schema}.schedule_backfill b JOIN {schema}.schedule s ON s.name = b.schedule ORDER BY b.id LIMIT %s);

-- name: fire_schedules :many
-- Fire what was computed from them and move them on, if they still are what was read.
-- Locks:  their rows of schedule, by name, SKIP LOCKED; then as client_start, and as client_cancel or client_terminate where the policy says so.
-- Index:  schedule_pkey, schedule_fire_pkey, schedule_live_pkey, task_pkey; those of a start
-- $1 text JSON, as the function says     Returns workflow, queue (null: the workflow's), how many runs were started
SELECT workflow, queue, runs FROM {schema}.fire_schedules(%s::text::jsonb);

-- name: release_held :many
-- Wake runs of schedules that waited for the run before them, where that has ended.
-- Locks:  their rows of schedule, by name, SKIP LOCKED; their tasks.     Index:  schedule_held_idx, schedule_live_pkey, task_pkey
-- $1 int4 max     Returns as fire_schedules
SELECT workflow, queue, runs FROM {schema}.release_held(%s);
