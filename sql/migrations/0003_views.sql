-- deploy: pre            new views, and a column that only they read
-- lock:   ACCESS EXCLUSIVE on wait_kind, brief: 23 rows
-- undo:   DROP VIEW of each name; ALTER TABLE {schema}.wait_kind DROP COLUMN freed_by
--
-- What people and their tools may rely on: names and meanings of these columns stay. The tables are private.
-- Views run with their owner's rights (no security_invoker), so a viewer needs no right on any table. Payloads
-- go through as_json, which never raises. Nothing here groups or counts history without a bound in time.

ALTER TABLE {schema}.wait_kind ADD COLUMN freed_by text NOT NULL DEFAULT '';
UPDATE {schema}.wait_kind k SET freed_by = f.freed_by
FROM (VALUES
    ('queued',             'a worker with free capacity takes it by itself'),
    ('no_worker',          'start a worker that serves its queue: python -m supervisor run --app …'),
    ('concurrency',        'a run of the same queue or group ends, or the limit is raised'),
    ('rate_limited',       'the period of the limit passes, or the limit is raised'),
    ('fairness',           'its group''s turn comes by itself'),
    ('queue_paused',       'somebody resumes the queue'),
    ('run_paused',         'somebody resumes the run'),
    ('step_running',       'the step ends or its timeout expires; the step''s own code decides'),
    ('step_backoff',       'the time of the next attempt comes'),
    ('timer',              'its time comes, by the database''s clock'),
    ('signal',             'somebody sends the signal, or the wait''s timeout expires'),
    ('update',             'somebody sends the update'),
    ('token',              'somebody completes the token from outside'),
    ('child',              'its children end: see runs where parent_id is this run'),
    ('any_of',             'the first of the things it waits for happens'),
    ('debounce',           'no further start of its kind comes for the delay'),
    ('batch',              'somebody releases the batch'),
    ('schedule_overlap',   'the previous run of its schedule ends'),
    ('nondeterminism',     'bring back the code that it was started with, then: select retry(run_id)'),
    ('code_missing',       'start a worker whose app defines its workflow'),
    ('attempts_exhausted', 'find what kills the worker (see detail), mend it, then: select retry(run_id)'),
    ('crash_loop',         'find what kills the worker or the host before a step ends, mend it, then: select retry(run_id)'),
    ('commit_rejected',    'mend what the database refuses (see detail), then: select retry(run_id)')
) AS f (code, freed_by) WHERE k.code = f.code;
ALTER TABLE {schema}.wait_kind ALTER COLUMN freed_by DROP DEFAULT;

-- ── what the other views share; internal ─────────────────────────────────────────────────────────────────────
-- A worker is alive while its session holds the advisory lock on its id: true also when nobody was left to say that it died.
CREATE VIEW {schema}.worker_now AS
SELECT w.id, w.boot, w.epoch, w.host, w.pid, w.supervisor, w.started_at, w.dead_at, w.death,
       w.dead_at IS NULL AND w.id::int8 IN (
           SELECT l.objid::int8 FROM pg_catalog.pg_locks l
           WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
             AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
             AND l.classid::int8 = ({lock_class}::int8 & 4294967295)) AS alive
FROM {schema}.worker w;
COMMENT ON VIEW {schema}.worker_now IS 'Internal: workers, and whether their session is there';

-- The stored reason is the one of the last transition; two follow from the clock and from who is alive: a due wait
-- is over (queued), and what is queued while no worker lives is not going to move (no_worker).
CREATE VIEW {schema}.task_now AS
SELECT t.*, derived.wait,
       CASE WHEN t.owner IS NOT NULL THEN 'running' WHEN derived.wait = 7 THEN 'paused'
            WHEN derived.wait IN (1, 2) THEN 'ready' ELSE 'waiting' END AS status
FROM {schema}.task t
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN t.owner IS NOT NULL THEN t.wait_kind
        WHEN t.wait_kind IN (3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) THEN t.wait_kind
        WHEN t.ready_at > clock_timestamp() THEN CASE WHEN t.wait_kind BETWEEN 9 AND 15 THEN t.wait_kind ELSE 10 END
        WHEN EXISTS (SELECT FROM {schema}.worker_now w WHERE w.alive) THEN 1
        ELSE 2 END::int2 AS wait) AS derived;
COMMENT ON VIEW {schema}.task_now IS 'Internal: live runs with the reason and the status that hold at this moment';

-- ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────
CREATE VIEW {schema}.runs AS
SELECT r.run_id, r.key, w.name AS workflow, q.name AS queue, r.prio AS priority,
       coalesce((ARRAY['completed', 'failed', 'cancelled', 'terminated', 'timed_out', 'continued'])[o.status], t.status, 'lost') AS status,
       k.code AS wait, t.step, t.seq, t.attempt,
       r.created_at, o.ended_at, extract(epoch FROM o.ended_at - r.created_at)::float8 AS duration_s, o.steps,
       coalesce(o.worker, t.owner) AS worker,
       CASE WHEN o.status IN (1, 6) THEN {schema}.as_json(o.result, r.codec) END AS result,
       CASE WHEN o.status NOT IN (1, 6) THEN {schema}.as_json(o.result, r.codec) END AS error,
       {schema}.as_json(r.input, r.codec) AS input,
       r.parent_id, r.parent_seq,
       coalesce(o.version, t.version) AS version,
       {schema}.as_json(coalesce(o.attributes, t.attributes), r.codec) AS attributes
FROM {schema}.run r
LEFT JOIN {schema}.workflow w ON w.id = r.workflow
LEFT JOIN {schema}.outcome o ON o.run_id = r.run_id
LEFT JOIN {schema}.task_now t ON t.run_id = r.run_id
LEFT JOIN {schema}.queue q ON q.id = coalesce(t.queue, r.queue)
LEFT JOIN {schema}.wait_kind k ON k.id = t.wait;
COMMENT ON VIEW {schema}.runs IS 'Every run: what was asked, where it is now, how it ended. Newest first: order by run_id desc limit n';
COMMENT ON COLUMN {schema}.runs.run_id IS 'uuid v7: carries the time of the start, so its order is the order of starts';
COMMENT ON COLUMN {schema}.runs.key IS 'The idempotency key given at the start, unique per workflow; null when none';
COMMENT ON COLUMN {schema}.runs.workflow IS 'Name of the workflow';
COMMENT ON COLUMN {schema}.runs.queue IS 'Name of the queue that it is or was served from';
COMMENT ON COLUMN {schema}.runs.priority IS '0 first … 9 last, as given at the start';
COMMENT ON COLUMN {schema}.runs.status IS
    'Live: ready running waiting paused; ended: completed failed cancelled terminated timed_out continued; lost: rows are missing';
COMMENT ON COLUMN {schema}.runs.wait IS 'Code of why it does not move (see waits); null when a worker executes it or it has ended';
COMMENT ON COLUMN {schema}.runs.step IS 'The step that it is at or waits for, where one is known';
COMMENT ON COLUMN {schema}.runs.seq IS 'Position of that step in the run';
COMMENT ON COLUMN {schema}.runs.attempt IS 'Number of the try of that step';
COMMENT ON COLUMN {schema}.runs.created_at IS 'When it was started, by the database''s clock';
COMMENT ON COLUMN {schema}.runs.ended_at IS 'When it ended; null while it lives';
COMMENT ON COLUMN {schema}.runs.duration_s IS 'Seconds from start to end; null while it lives';
COMMENT ON COLUMN {schema}.runs.steps IS 'How many steps it recorded; null while it lives';
COMMENT ON COLUMN {schema}.runs.worker IS 'Worker that executes it or ended it (see workers)';
COMMENT ON COLUMN {schema}.runs.result IS 'What it returned; null unless it completed or continued';
COMMENT ON COLUMN {schema}.runs.error IS 'What ended it otherwise: type, message, traceback';
COMMENT ON COLUMN {schema}.runs.input IS 'Its arguments by parameter name';
COMMENT ON COLUMN {schema}.runs.parent_id IS 'Run that started it; null when a client did';
COMMENT ON COLUMN {schema}.runs.parent_seq IS 'Position of that start in the parent';
COMMENT ON COLUMN {schema}.runs.version IS 'Version of the code that it is pinned to';
COMMENT ON COLUMN {schema}.runs.attributes IS 'What it said about itself for searching';

-- ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────
-- The codec is asked for by a subquery, not a join: it costs nothing where result and error are not selected.
CREATE VIEW {schema}.steps AS
SELECT s.run_id, s.seq, s.pos, s.name,
       (ARRAY['step', 'timer', 'child', 'child_start'])[s.kind] AS kind,
       (ARRAY['completed', 'failed', 'cancelled'])[s.status] AS status,
       s.started_at, s.ended_at, extract(epoch FROM s.ended_at - s.started_at)::float8 * 1000 AS duration_ms, s.worker,
       CASE WHEN s.status = 1 THEN {schema}.as_json(s.result, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = s.run_id)) END AS result,
       CASE WHEN s.status <> 1 THEN {schema}.as_json(s.result, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = s.run_id)) END AS error
FROM {schema}.step s;
COMMENT ON VIEW {schema}.steps IS 'Finished steps, timers and children of runs, one row each; ask by run_id';
COMMENT ON COLUMN {schema}.steps.run_id IS 'The run';
COMMENT ON COLUMN {schema}.steps.seq IS 'Position by order of calls';
COMMENT ON COLUMN {schema}.steps.pos IS 'Position by order of deliveries into the workflow; replay follows it';
COMMENT ON COLUMN {schema}.steps.name IS 'Name of the step, timer or child workflow';
COMMENT ON COLUMN {schema}.steps.kind IS 'step, timer, child (its end) or child_start';
COMMENT ON COLUMN {schema}.steps.status IS 'completed, failed or cancelled';
COMMENT ON COLUMN {schema}.steps.started_at IS 'When its last attempt began';
COMMENT ON COLUMN {schema}.steps.ended_at IS 'When it ended';
COMMENT ON COLUMN {schema}.steps.duration_ms IS 'Milliseconds from begin to end of its last attempt';
COMMENT ON COLUMN {schema}.steps.worker IS 'Worker that executed it (see workers)';
COMMENT ON COLUMN {schema}.steps.result IS 'What it returned; null unless it completed';
COMMENT ON COLUMN {schema}.steps.error IS 'What it raised: type, message, traceback; null when it completed';

-- ── attempts ─────────────────────────────────────────────────────────────────────────────────────────────────
CREATE VIEW {schema}.attempts AS
SELECT a.run_id, a.seq, a.n, a.name, (ARRAY['failed', 'started'])[a.kind] AS kind,
       a.started_at, a.ended_at, a.next_retry_at, a.worker,
       {schema}.as_json(a.error, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = a.run_id)) AS error, a.fingerprint
FROM {schema}.attempt a;
COMMENT ON VIEW {schema}.attempts IS
    'Tries of steps that failed, and durable starts of at_most_once steps; a first try that succeeds is in steps alone';
COMMENT ON COLUMN {schema}.attempts.run_id IS 'The run';
COMMENT ON COLUMN {schema}.attempts.seq IS 'Position of the step in the run';
COMMENT ON COLUMN {schema}.attempts.n IS 'Number of the try, from 1';
COMMENT ON COLUMN {schema}.attempts.name IS 'Name of the step';
COMMENT ON COLUMN {schema}.attempts.kind IS 'failed, or started (an at_most_once step commits its start first)';
COMMENT ON COLUMN {schema}.attempts.started_at IS 'When the try began';
COMMENT ON COLUMN {schema}.attempts.ended_at IS 'When it failed; null for started';
COMMENT ON COLUMN {schema}.attempts.next_retry_at IS 'When the next try may begin; null when there is none';
COMMENT ON COLUMN {schema}.attempts.worker IS 'Worker that made the try (see workers)';
COMMENT ON COLUMN {schema}.attempts.error IS 'What it raised: type, message, traceback';
COMMENT ON COLUMN {schema}.attempts.fingerprint IS 'Equal for errors of one kind at one place in the code';

-- ── waits: why is it not moving ──────────────────────────────────────────────────────────────────────────────
CREATE VIEW {schema}.waits AS
SELECT t.run_id, r.key, w.name AS workflow, q.name AS queue, t.status, k.code,
       CASE WHEN t.owner IS NOT NULL AND NOT owned.alive THEN 'its worker is gone and has not been released yet'
            ELSE coalesce(k.meaning, 'it moves: a worker is executing it') END AS meaning,
       CASE WHEN t.owner IS NOT NULL
            THEN concat_ws('; ', t.wait_detail, format('worker %s, process %s on %s', owned.id, owned.pid, owned.host), owned.death)
            WHEN k.code = 'timer' AND t.wait_kind IS DISTINCT FROM 10 THEN 'its start is delayed'
            WHEN k.code = 'child' THEN concat_ws('; ', t.wait_detail, (
                SELECT format('%s of %s ended', coalesce(sum(d.n), 0), t.wait_children)
                FROM {schema}.child_done d WHERE d.parent_id = t.run_id))
            WHEN k.code = 'no_worker' THEN concat_ws('; ', t.wait_detail, 'no worker of this schema is alive')
            ELSE t.wait_detail END AS detail,
       CASE WHEN t.wait_kind IS NULL OR t.wait <> t.wait_kind
            THEN greatest(t.wait_since, CASE WHEN t.ready_at <= clock_timestamp() THEN t.ready_at END, r.created_at)
            ELSE coalesce(t.wait_since, r.created_at) END AS since,
       CASE WHEN t.owner IS NULL AND t.ready_at > clock_timestamp() AND isfinite(t.ready_at) THEN t.ready_at END AS wake_at,
       t.step, t.seq, t.attempt, t.claims, t.owner AS worker,
       CASE WHEN t.owner IS NOT NULL AND NOT owned.alive THEN 'a running supervisor releases it by itself: python -m supervisor run --app …'
            ELSE coalesce(k.freed_by, 'nothing needs to be done') END AS freed_by
FROM {schema}.task_now t
LEFT JOIN {schema}.run r ON r.run_id = t.run_id
LEFT JOIN {schema}.workflow w ON w.id = t.workflow
LEFT JOIN {schema}.queue q ON q.id = t.queue
LEFT JOIN {schema}.wait_kind k ON k.id = t.wait
LEFT JOIN {schema}.worker_now owned ON owned.id = t.owner;
COMMENT ON VIEW {schema}.waits IS 'Why is it not moving: one row per live run, true also while no worker is alive';
COMMENT ON COLUMN {schema}.waits.run_id IS 'The run';
COMMENT ON COLUMN {schema}.waits.key IS 'Its idempotency key';
COMMENT ON COLUMN {schema}.waits.workflow IS 'Name of its workflow';
COMMENT ON COLUMN {schema}.waits.queue IS 'Name of its queue';
COMMENT ON COLUMN {schema}.waits.status IS 'ready, running, waiting or paused';
COMMENT ON COLUMN {schema}.waits.code IS 'Stable code of the reason (see wait_kind in the docs); null while a worker executes it';
COMMENT ON COLUMN {schema}.waits.meaning IS 'The reason in words';
COMMENT ON COLUMN {schema}.waits.detail IS 'What in particular: the worker, the signal, how many children, the database''s refusal';
COMMENT ON COLUMN {schema}.waits.since IS 'Since when it waits for that; for a run that is being executed, its last transition';
COMMENT ON COLUMN {schema}.waits.wake_at IS 'When it moves by itself; null when only something else frees it, or nothing holds it';
COMMENT ON COLUMN {schema}.waits.step IS 'The step that it is at, where one is known';
COMMENT ON COLUMN {schema}.waits.seq IS 'Position of that step';
COMMENT ON COLUMN {schema}.waits.attempt IS 'Number of the try of that step';
COMMENT ON COLUMN {schema}.waits.claims IS 'How often workers took it since one last gave it back alive';
COMMENT ON COLUMN {schema}.waits.worker IS 'Worker that has it (see workers)';
COMMENT ON COLUMN {schema}.waits.freed_by IS 'What will free it, and what one can do';

-- ── queues ───────────────────────────────────────────────────────────────────────────────────────────────────
CREATE VIEW {schema}.queues AS
SELECT q.name AS queue, coalesce(n.ready, 0) AS ready, coalesce(n.running, 0) AS running, coalesce(n.waiting, 0) AS waiting,
       coalesce(n.paused, 0) AS paused, n.oldest_ready_at, q.created_at
FROM {schema}.queue q
LEFT JOIN (
    SELECT t.queue, count(*) FILTER (WHERE t.status = 'ready') AS ready, count(*) FILTER (WHERE t.status = 'running') AS running,
           count(*) FILTER (WHERE t.status = 'waiting') AS waiting, count(*) FILTER (WHERE t.status = 'paused') AS paused,
           min(t.ready_at) FILTER (WHERE t.status = 'ready') AS oldest_ready_at
    FROM {schema}.task_now t GROUP BY t.queue) AS n ON n.queue = q.id;
COMMENT ON VIEW {schema}.queues IS 'What stands in each queue; counts live runs alone, 0.3 s per million of them';
COMMENT ON COLUMN {schema}.queues.queue IS 'Name of the queue';
COMMENT ON COLUMN {schema}.queues.ready IS 'Runs that a worker could take now';
COMMENT ON COLUMN {schema}.queues.running IS 'Runs that workers have';
COMMENT ON COLUMN {schema}.queues.waiting IS 'Runs that wait for a time or an event, or are parked (see waits)';
COMMENT ON COLUMN {schema}.queues.paused IS 'Runs that somebody paused';
COMMENT ON COLUMN {schema}.queues.oldest_ready_at IS 'Since when the oldest ready run could have been taken';
COMMENT ON COLUMN {schema}.queues.created_at IS 'When the queue was first named';

-- ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────
CREATE VIEW {schema}.workers AS
SELECT w.id AS worker, CASE WHEN w.alive THEN 'alive' WHEN w.dead_at IS NULL THEN 'lost' ELSE 'dead' END AS state,
       w.host, w.pid, w.supervisor, w.boot, w.epoch, w.started_at, w.dead_at, w.death,
       (SELECT count(*) FROM {schema}.task t WHERE t.owner = w.id) AS runs
FROM {schema}.worker_now w;
COMMENT ON VIEW {schema}.workers IS 'Worker processes, one row per life; a process that lost its session goes on under a new number';
COMMENT ON COLUMN {schema}.workers.worker IS 'Number, never used again';
COMMENT ON COLUMN {schema}.workers.state IS 'alive (its session is there), lost (gone, not yet released), dead (released)';
COMMENT ON COLUMN {schema}.workers.host IS 'Host that it runs on';
COMMENT ON COLUMN {schema}.workers.pid IS 'Its process there';
COMMENT ON COLUMN {schema}.workers.supervisor IS 'Its parent''s boot id: equal for all workers of one command';
COMMENT ON COLUMN {schema}.workers.boot IS 'The process''s own boot id: equal for all numbers of one process';
COMMENT ON COLUMN {schema}.workers.epoch IS 'Raised by whoever takes a run away from it';
COMMENT ON COLUMN {schema}.workers.started_at IS 'When it registered';
COMMENT ON COLUMN {schema}.workers.dead_at IS 'When it was declared dead';
COMMENT ON COLUMN {schema}.workers.death IS 'How it died, by whoever declared it';
COMMENT ON COLUMN {schema}.workers.runs IS 'Runs that it has claimed at this moment';

-- ── throughput ───────────────────────────────────────────────────────────────────────────────────────────────
-- Bounded by the ids of one hour: an index range, whatever the history's size.
CREATE VIEW {schema}.throughput AS
SELECT date_trunc('minute', r.created_at) AS minute, count(*) AS started, count(o.run_id) AS ended,
       count(*) FILTER (WHERE o.status = 1) AS completed, count(*) FILTER (WHERE o.status = 2) AS failed,
       sum(o.steps)::int8 AS steps,
       (percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM o.ended_at - r.created_at)::float8) * 1000) AS p50_ms,
       (percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM o.ended_at - r.created_at)::float8) * 1000) AS p99_ms
FROM {schema}.run r
LEFT JOIN {schema}.outcome o ON o.run_id = r.run_id AND o.run_id >= {schema}.id_floor(now() - interval '1 hour')
WHERE r.run_id >= {schema}.id_floor(now() - interval '1 hour')
GROUP BY 1;
COMMENT ON VIEW {schema}.throughput IS 'Runs that were started within the last hour, by the minute of their start, and what became of them';
COMMENT ON COLUMN {schema}.throughput.minute IS 'The minute of the start';
COMMENT ON COLUMN {schema}.throughput.started IS 'Runs started in it';
COMMENT ON COLUMN {schema}.throughput.ended IS 'How many of them have ended';
COMMENT ON COLUMN {schema}.throughput.completed IS 'How many of them have completed';
COMMENT ON COLUMN {schema}.throughput.failed IS 'How many of them have failed';
COMMENT ON COLUMN {schema}.throughput.steps IS 'Steps of those that have ended';
COMMENT ON COLUMN {schema}.throughput.p50_ms IS 'Half of those that have ended took at most so many milliseconds from start to end';
COMMENT ON COLUMN {schema}.throughput.p99_ms IS 'The same for 99 of 100';

-- ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────
-- Rows, not groups: `select type, step, count(*) from errors where at > now() - interval '1 day' group by 1, 2`.
-- The bound on `at` does not prune partitions, one on run_id does (id_floor).
CREATE VIEW {schema}.errors AS
SELECT f.at, f.run_id, w.name AS workflow, f.source, f.seq, f.step, f.n,
       f.error ->> 'type' AS type, f.error ->> 'message' AS message, f.fingerprint, f.next_retry_at, f.worker, f.error
FROM (
    SELECT coalesce(a.ended_at, a.started_at) AS at, a.run_id, 'attempt' AS source, a.seq, a.name AS step, a.n, a.error, a.fingerprint,
           a.next_retry_at, a.worker
    FROM {schema}.attempts a WHERE a.kind = 'failed'
    UNION ALL
    SELECT s.ended_at, s.run_id, 'step', s.seq, s.name, NULL, s.error, NULL, NULL, s.worker
    FROM {schema}.steps s
    WHERE s.status = 'failed' AND NOT EXISTS (SELECT FROM {schema}.attempt a WHERE a.run_id = s.run_id AND a.seq = s.seq AND a.kind = 1)
    UNION ALL
    SELECT o.ended_at, o.run_id, 'run', NULL, NULL, NULL,
           {schema}.as_json(o.result, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = o.run_id)), NULL, NULL, o.worker
    FROM {schema}.outcome o WHERE o.status IN (2, 5)
) AS f
LEFT JOIN {schema}.run r ON r.run_id = f.run_id
LEFT JOIN {schema}.workflow w ON w.id = r.workflow;
COMMENT ON VIEW {schema}.errors IS
    'What failed: every failed try, every failed step without a recorded try, every run that ended as failed or timed_out';
COMMENT ON COLUMN {schema}.errors.at IS 'When it failed';
COMMENT ON COLUMN {schema}.errors.run_id IS 'The run';
COMMENT ON COLUMN {schema}.errors.workflow IS 'Name of its workflow';
COMMENT ON COLUMN {schema}.errors.source IS 'attempt, step or run';
COMMENT ON COLUMN {schema}.errors.seq IS 'Position of the step; null for a run';
COMMENT ON COLUMN {schema}.errors.step IS 'Name of the step; null for a run';
COMMENT ON COLUMN {schema}.errors.n IS 'Number of the try; null unless source is attempt';
COMMENT ON COLUMN {schema}.errors.type IS 'Class of the exception';
COMMENT ON COLUMN {schema}.errors.message IS 'Its text';
COMMENT ON COLUMN {schema}.errors.fingerprint IS 'Equal for errors of one kind at one place in the code; null unless source is attempt';
COMMENT ON COLUMN {schema}.errors.next_retry_at IS 'When the next try may begin; null when there is none';
COMMENT ON COLUMN {schema}.errors.worker IS 'Worker that met it (see workers)';
COMMENT ON COLUMN {schema}.errors.error IS 'All that was recorded of it: type, message, arguments, traceback, cause';

-- ── the same for whoever may only start runs ─────────────────────────────────────────────────────────────────
-- SECURITY DEFINER: a client may look at runs, by id, by key or the newest, and needs no right on tables or views for it.
CREATE FUNCTION {schema}.find_runs(
    p_ids uuid[] DEFAULT NULL, p_key text DEFAULT NULL, p_workflow text DEFAULT NULL, p_status text DEFAULT NULL,
    p_before uuid DEFAULT NULL, p_limit int4 DEFAULT 100)
RETURNS TABLE (run_id uuid, key text, workflow text, queue text, status text, wait text, step text, seq int4, attempt int4,
               created_at timestamptz, ended_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan   -- custom: prunes
AS $$
#variable_conflict use_column
DECLARE v_ids uuid[] := p_ids;
BEGIN
    IF p_key IS NOT NULL THEN
        v_ids := ARRAY(SELECT k.run_id FROM {schema}.workflow w JOIN {schema}.run_key k ON k.workflow = w.id AND k.key = p_key
                       WHERE p_workflow IS NULL OR w.name = p_workflow);
    END IF;
    RETURN QUERY
        SELECT r.run_id, r.key, r.workflow, r.queue, r.status, r.wait, r.step, r.seq, r.attempt, r.created_at, r.ended_at
        FROM {schema}.runs r
        WHERE (v_ids IS NULL OR r.run_id = ANY (v_ids)) AND (p_workflow IS NULL OR r.workflow = p_workflow)
          AND (p_status IS NULL OR r.status = p_status) AND (p_before IS NULL OR r.run_id < p_before)
        ORDER BY r.run_id DESC LIMIT least(greatest(p_limit, 0), 10000);
END $$;
COMMENT ON FUNCTION {schema}.find_runs(uuid[], text, text, text, uuid, int4) IS
    'Runs, newest first: those of the given ids, or of a key, or all; p_before takes the last run_id of the page before';
