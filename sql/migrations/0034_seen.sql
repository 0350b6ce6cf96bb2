-- deploy: pre            older code reads none of it; its failed tries go into the new indexes
-- lock:   SHARE on attempt while its indexes are made (failed tries wait, 1 s per million of them); ACCESS EXCLUSIVE on wait_kind and three views, brief
-- undo:   DROP FUNCTION of each name; DROP INDEX {schema}.attempt_failed_at_idx, {schema}.attempt_fingerprint_idx; errors as in 0008; DROP VIEW {schema}.waits, then
--         waits as in 0015 with its comments as in 0003; workers as in 0003; ALTER TABLE {schema}.wait_kind DROP COLUMN who
--
-- What a page, `top` and an operator at night ask of all runs at once: what waits for what, what fails where, how much begins and ends. Each of the
-- three functions looks at a bounded number of rows, by an index or from the end of a table, however long the history is, and says how far it came.
-- No run that succeeds pays for any of it: the two indexes hold failed tries and crashes alone.

CREATE INDEX attempt_failed_at_idx ON {schema}.attempt (ended_at) WHERE kind IN (1, 3);
CREATE INDEX attempt_fingerprint_idx ON {schema}.attempt (fingerprint, ended_at) WHERE kind IN (1, 3);

-- ── who can act ──────────────────────────────────────────────────────────────────────────────────────────────
ALTER TABLE {schema}.wait_kind ADD COLUMN who text NOT NULL DEFAULT '';
COMMENT ON COLUMN {schema}.wait_kind.who IS 'Who can act, and by which command; RUN and SEQ stand for the run and its step';
UPDATE {schema}.wait_kind k SET who = w.who
FROM (VALUES
    ('queued',             'nobody has to; if it takes too long, who runs the workers: run with more --procs, or on another host'),
    ('no_worker',          'who runs the workers'),
    ('concurrency',        'nobody has to; who sets the limit of its queue or group'),
    ('rate_limited',       'nobody has to; who sets the limit of its queue or group'),
    ('fairness',           'nobody has to'),
    ('queue_paused',       'operators: resume the queue'),
    ('run_paused',         'operators: python -m supervisor resume RUN'),
    ('step_running',       'nobody has to; where it is: python -m supervisor stacks; operators: python -m supervisor skip RUN --seq SEQ, or cancel RUN'),
    ('step_backoff',       'nobody has to; operators, at once: python -m supervisor retry RUN, or skip RUN --seq SEQ, or edit-retry RUN --seq SEQ'),
    ('timer',              'nobody has to; operators can end it: python -m supervisor cancel RUN'),
    ('signal',             'whoever may send signals: clients, operators'),
    ('update',             'whoever may send updates: clients, operators'),
    ('token',              'who holds the token: python -m supervisor complete TOKEN, or fail TOKEN; operators: skip RUN --seq SEQ'),
    ('child',              'whoever can free its children; operators can end it with them: python -m supervisor cancel RUN'),
    ('any_of',             'whoever can make one of them happen'),
    ('debounce',           'nobody has to'),
    ('batch',              'operators: release the batch'),
    ('schedule_overlap',   'nobody has to; who can free the previous run'),
    ('nondeterminism',     'who deploys its code; then operators: python -m supervisor retry RUN'),
    ('code_missing',       'who deploys its code; or operators: python -m supervisor versions move --help'),
    ('attempts_exhausted', 'who wrote the step; then operators: python -m supervisor retry RUN, or skip RUN --seq SEQ'),
    ('crash_loop',         'who runs the workers, or wrote the step; then operators: python -m supervisor retry RUN'),
    ('commit_rejected',    'who wrote the step, or runs the database; then operators: python -m supervisor retry RUN')
) AS w (code, who) WHERE k.code = w.code;

-- As in 0015, with who can act and the run in the commands; with what is to end and waits for its code (0032), and who asked for it; of a run that a worker
-- has, since when, whatever it was claimed from (0033).
CREATE OR REPLACE VIEW {schema}.waits AS
SELECT t.run_id, r.key, w.name AS workflow, q.name AS queue, t.status, k.code,
       CASE WHEN t.owner IS NOT NULL AND NOT owned.alive THEN 'its worker is gone and has not been released yet'
            WHEN ending.status IS NOT NULL THEN format('to end as %s, once code that goes on with it has undone what it did; %s', ending.status, k.meaning)
            ELSE coalesce(k.meaning, 'it moves: a worker is executing it') END AS meaning,
       CASE WHEN t.owner IS NOT NULL
            THEN concat_ws('; ', t.wait_detail, format('worker %s, process %s on %s', owned.id, owned.pid, owned.host), owned.death)
            WHEN ending.status IS NOT NULL THEN (coalesce(t.wait_detail::jsonb, '{}') || jsonb_build_object(ending.status, ending.detail))::text
            WHEN k.code = 'timer' AND t.wait_kind IS DISTINCT FROM 10 THEN 'its start is delayed'
            WHEN k.code = 'child' THEN concat_ws('; ', t.wait_detail, (
                SELECT format('%s of %s ended', coalesce(sum(d.n), 0), t.wait_children)
                FROM {schema}.child_done d WHERE d.parent_id = t.run_id))
            WHEN k.code = 'no_worker' THEN concat_ws('; ', t.wait_detail, 'no worker of this schema is alive')
            ELSE t.wait_detail END AS detail,
       CASE WHEN t.wait_kind IS NULL OR t.wait IS NULL OR t.wait <> t.wait_kind
            THEN greatest(t.wait_since, CASE WHEN t.ready_at <= clock_timestamp() THEN t.ready_at END, r.created_at)
            ELSE coalesce(t.wait_since, r.created_at) END AS since,
       CASE WHEN t.owner IS NULL AND t.ready_at > clock_timestamp() AND isfinite(t.ready_at) THEN t.ready_at END AS wake_at,
       t.step, t.seq, t.attempt, t.claims, t.owner AS worker,
       CASE WHEN t.owner IS NOT NULL AND NOT owned.alive THEN 'a running supervisor releases it by itself: python -m supervisor run --app …'
            WHEN k.code IN ('signal', 'any_of') AND s.signals IS NOT NULL
            THEN concat_ws(', or ', s.signals, CASE WHEN k.code = 'any_of' THEN k.freed_by WHEN isfinite(t.ready_at) THEN 'the wait''s timeout expires' END)
            WHEN ending.status IS NOT NULL THEN format('%s; or end it now, with nothing undone: python -m supervisor terminate %s', k.freed_by, t.run_id)
            ELSE coalesce(replace(k.freed_by, 'RUN', t.run_id::text), 'nothing needs to be done') END AS freed_by,
       CASE WHEN t.owner IS NOT NULL AND NOT owned.alive THEN 'who runs the workers'
            ELSE coalesce(replace(replace(k.who, 'RUN', t.run_id::text), 'SEQ', coalesce(t.seq::text, 'N')), 'nobody has to') END AS who
FROM {schema}.task_now t
LEFT JOIN {schema}.run r ON r.run_id = t.run_id
LEFT JOIN {schema}.workflow w ON w.id = t.workflow
LEFT JOIN {schema}.queue q ON q.id = t.queue
LEFT JOIN {schema}.wait_kind k ON k.id = t.wait
LEFT JOIN {schema}.worker_now owned ON owned.id = t.owner
LEFT JOIN LATERAL (
    SELECT format('python -m supervisor signal %s %s --json-value …', t.run_id, quote_literal(o.wait_signals[1])) AS signals
    FROM {schema}.task o WHERE o.run_id = t.run_id AND t.wait IN (11, 15) AND o.wait_signals IS NOT NULL) AS s ON true
LEFT JOIN LATERAL (
    SELECT 'cancelled' AS status, jsonb_strip_nulls(jsonb_build_object('at', c.asked_at, 'by', c.actor, 'reason', c.reason)) AS detail
    FROM {schema}.task o JOIN {schema}.cancellation c ON c.run_id = o.run_id
    WHERE o.run_id = t.run_id AND c.run_id = t.run_id AND c.how = 3 AND o.cancel_to IS NOT NULL AND t.wait IN (19, 20) AND t.owner IS NULL
    UNION ALL
    SELECT 'timed_out', jsonb_build_object('at', o.cancel_at)
    FROM {schema}.task o
    WHERE o.run_id = t.run_id AND o.cancel_to IS NULL AND o.cancel_at <= clock_timestamp() AND t.wait IN (19, 20) AND t.owner IS NULL
) AS ending ON true;
COMMENT ON COLUMN {schema}.waits.who IS 'Who can act, and by which command';
COMMENT ON COLUMN {schema}.waits.detail IS
    'What in particular: the worker, the signal, how many children, the database''s refusal; who cancelled what waits for its code to end, or since when its time is over';

-- ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────
-- As in 0008, planned better: with source = 'attempt' the other two parts are left out, and the indexes above answer a bound on `at` or on
-- `fingerprint`. Which are the newest without a bound, newest_errors says.
CREATE OR REPLACE VIEW {schema}.errors AS
SELECT f.at, f.run_id, w.name AS workflow, f.source, f.seq, f.step, f.n, e.error ->> 'type' AS type, e.error ->> 'message' AS message,
       f.fingerprint, f.next_retry_at, f.worker, e.error
FROM (
    SELECT a.ended_at AS at, a.run_id, 'attempt' AS source, a.seq, a.name AS step, a.n, a.error, a.kind < 3 AS coded, a.fingerprint, a.next_retry_at, a.worker
    FROM {schema}.attempt a WHERE a.kind IN (1, 3)
    UNION ALL
    SELECT s.ended_at, s.run_id, 'step', s.seq, s.name, NULL, s.result, true, NULL, NULL, s.worker
    FROM {schema}.step s
    WHERE s.status = 2 AND NOT EXISTS (SELECT FROM {schema}.attempt a WHERE a.run_id = s.run_id AND a.seq = s.seq AND a.kind = 1)
    UNION ALL
    SELECT o.ended_at, o.run_id, 'run', NULL, NULL, NULL, o.result, true, NULL, NULL, o.worker
    FROM {schema}.outcome o WHERE o.status IN (2, 5)
) AS f
LEFT JOIN {schema}.run r ON r.run_id = f.run_id
LEFT JOIN {schema}.workflow w ON w.id = r.workflow
CROSS JOIN LATERAL (SELECT {schema}.as_json(f.error, CASE WHEN f.coded THEN r.codec END) AS error) AS e;
COMMENT ON VIEW {schema}.errors IS
    'What failed: every failed try and every crash, every failed step without a recorded try, every run that ended as failed or timed_out. Ask by run_id, or where source = ''attempt'' by at or fingerprint';

-- One page by attempt_failed_at_idx, or by attempt_fingerprint_idx; what is read further is of that page. SECURITY DEFINER: a viewer has no right on
-- the tables. Custom plan: prunes, and has the one index or the other.
CREATE FUNCTION {schema}.newest_errors(fingerprint text DEFAULT NULL, before timestamptz DEFAULT NULL, rows_max int4 DEFAULT 100) RETURNS SETOF {schema}.errors
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET enable_seqscan = off SET jit = off
AS $$
BEGIN
    RETURN QUERY
    WITH page AS MATERIALIZED (
        SELECT a.* FROM {schema}.attempt a
        WHERE a.kind IN (1, 3) AND ($1 IS NULL OR a.fingerprint = $1) AND a.ended_at < coalesce($2, 'infinity')
        ORDER BY a.ended_at DESC LIMIT least(greatest($3, 0), 10000))
    SELECT p.ended_at, p.run_id, w.name, 'attempt'::text, p.seq, p.name, p.n, e.error ->> 'type', e.error ->> 'message',
           p.fingerprint, p.next_retry_at, p.worker, e.error
    FROM page p
    LEFT JOIN {schema}.run r ON r.run_id = p.run_id
    LEFT JOIN {schema}.workflow w ON w.id = r.workflow
    CROSS JOIN LATERAL (SELECT {schema}.as_json(p.error, CASE WHEN p.kind < 3 THEN r.codec END) AS error) AS e
    ORDER BY p.ended_at DESC;
END $$;
COMMENT ON FUNCTION {schema}.newest_errors(text, timestamptz, int4) IS
    'The newest failed tries and crashes, as errors has them: all, or those of a fingerprint; before takes the last `at` of the page before';

-- The newest failed tries and crashes, and the newest runs that failed without any; then one look per group at its sample and at its first try ever.
-- SECURITY DEFINER, custom plan: as newest_errors.
CREATE FUNCTION {schema}.error_groups(since interval DEFAULT interval '1 day', rows_max int4 DEFAULT 10000)
RETURNS TABLE (fingerprint text, source text, workflow text, step text, type text, message text, failures int8, runs int8, live int8, ended int8,
               first_at timestamptz, last_at timestamptz, run_id uuid, seq int4, counted_from timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET enable_seqscan = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_from timestamptz := now() - since;
    v_max  int4 := least(greatest(rows_max, 1), 1000000);
BEGIN
    RETURN QUERY
    WITH tries AS MATERIALIZED (
        SELECT a.fingerprint, a.name, a.run_id, a.seq, a.n, a.kind, a.ended_at
        FROM {schema}.attempt a WHERE a.kind IN (1, 3) AND a.ended_at >= v_from ORDER BY a.ended_at DESC LIMIT v_max),
    tried_from AS (SELECT CASE WHEN count(*) < v_max THEN v_from ELSE min(t.ended_at) END AS at FROM tries t),
    tried AS (
        SELECT t.fingerprint, t.name, count(*) AS failures, max(t.ended_at) AS last_at, min(t.ended_at) AS first_at,
               (array_agg(t.run_id ORDER BY t.ended_at DESC, t.run_id DESC))[1] AS run_id, (array_agg(t.seq ORDER BY t.ended_at DESC, t.run_id DESC))[1] AS seq,
               (array_agg(t.n ORDER BY t.ended_at DESC, t.run_id DESC))[1] AS n, (array_agg(t.kind ORDER BY t.ended_at DESC, t.run_id DESC))[1] AS kind
        FROM tries t GROUP BY t.fingerprint, t.name),
    stand AS (
        SELECT d.fingerprint, d.name, count(*) AS runs, count(k.run_id) AS live
        FROM (SELECT DISTINCT t.fingerprint, t.name, t.run_id FROM tries t) AS d LEFT JOIN {schema}.task k ON k.run_id = d.run_id
        GROUP BY d.fingerprint, d.name),
    fell AS MATERIALIZED (
        SELECT o.run_id, o.ended_at, o.status, o.result
        FROM (SELECT o.run_id, o.ended_at, o.status, o.result FROM {schema}.outcome o
              WHERE o.status IN (2, 3, 4, 5) AND o.run_id >= {schema}.id_floor(v_from) ORDER BY o.run_id DESC LIMIT v_max) AS o
        WHERE o.status IN (2, 5) AND NOT EXISTS (SELECT FROM {schema}.attempt a WHERE a.run_id = o.run_id AND a.kind IN (1, 3))),
    told AS (
        SELECT f.run_id, f.ended_at, r.workflow, e.error ->> 'type' AS type, e.error ->> 'message' AS message,
               left(md5(concat(r.workflow, '@', e.error ->> 'type', '@', substring(right(e.error ->> 'traceback', 10000) FROM '.*(File "[^"]+", line [0-9]+)'))), 12) AS fingerprint
        FROM fell f JOIN {schema}.run r ON r.run_id = f.run_id CROSS JOIN LATERAL (SELECT {schema}.as_json(f.result, r.codec) AS error OFFSET 0) AS e)
    SELECT coalesce(t.fingerprint, ''), 'step'::text, w.name, t.name, e.error ->> 'type', left(e.error ->> 'message', 1000), t.failures, s.runs, s.live, s.runs - s.live,
           coalesce(f.first_at, t.first_at), t.last_at, t.run_id, t.seq, (SELECT c.at FROM tried_from c)
    FROM tried t
    JOIN stand s ON s.fingerprint IS NOT DISTINCT FROM t.fingerprint AND s.name = t.name
    LEFT JOIN LATERAL (SELECT a.ended_at AS first_at FROM {schema}.attempt a WHERE a.fingerprint = t.fingerprint AND a.kind IN (1, 3) ORDER BY a.ended_at LIMIT 1) AS f ON true
    LEFT JOIN LATERAL (SELECT {schema}.as_json(a.error, CASE WHEN a.kind < 3 THEN r.codec END) AS error, r.workflow
                       FROM {schema}.attempt a LEFT JOIN {schema}.run r ON r.run_id = a.run_id
                       WHERE a.run_id = t.run_id AND a.seq = t.seq AND a.n = t.n AND a.kind = t.kind) AS e ON true
    LEFT JOIN {schema}.workflow w ON w.id = e.workflow
    UNION ALL
    SELECT t.fingerprint, 'run', w.name, NULL, min(t.type), left((array_agg(t.message ORDER BY t.ended_at DESC))[1], 1000), count(*), count(*), 0::int8, count(*),
           min(t.ended_at), max(t.ended_at), (array_agg(t.run_id ORDER BY t.ended_at DESC))[1], NULL, v_from
    FROM told t LEFT JOIN {schema}.workflow w ON w.id = t.workflow GROUP BY t.fingerprint, w.name
    ORDER BY 7 DESC, 12 DESC;
END $$;
COMMENT ON FUNCTION {schema}.error_groups(interval, int4) IS
    'Failures of the given time by what they are and where: failed tries and crashes of steps, and runs that failed without any; counts the newest rows_max of each, from counted_from on';

-- ── what waits for what ──────────────────────────────────────────────────────────────────────────────────────
-- One range of task_wait_idx per reason, one of task_ready_idx per queue and priority for what is ready, and one for what starts later; at most rows_max of each.
-- SECURITY DEFINER: as newest_errors.
CREATE FUNCTION {schema}.wait_groups(rows_max int4 DEFAULT 10000)
RETURNS TABLE (code text, workflow text, queue text, step text, runs int8, complete boolean, since timestamptz, wake_at timestamptz, run_id uuid,
               meaning text, freed_by text, who text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_max int4 := least(greatest(rows_max, 1), 1000000);
BEGIN
    RETURN QUERY
    WITH looked AS MATERIALIZED (
        SELECT t.*, count(*) OVER (PARTITION BY k.id) < v_max AS complete
        FROM {schema}.wait_kind k CROSS JOIN LATERAL (
            SELECT t.run_id, t.wait, t.workflow, t.queue, t.step, coalesce(t.wait_since, {schema}.id_time(t.run_id)) AS since,
                   t.ready_at, t.wait = t.wait_kind AS fits
            FROM {schema}.task_now t WHERE t.wait_kind = k.id AND t.wait_kind > 1 ORDER BY t.run_id LIMIT v_max) AS t
        WHERE k.id > 1
        UNION ALL
        SELECT t.*, count(*) OVER (PARTITION BY q.id, level.prio) < v_max
        FROM {schema}.queue q CROSS JOIN generate_series(0, 9) AS level (prio) CROSS JOIN LATERAL (
            SELECT t.run_id, t.wait, t.workflow, t.queue, t.step, greatest(t.ready_at, t.wait_since), NULL::timestamptz, t.wait IN (1, 2)
            FROM {schema}.task_now t
            WHERE t.queue = q.id AND t.prio = level.prio::int2 AND t.ready_at <= now() AND t.owner IS NULL ORDER BY t.ready_at, t.run_id LIMIT v_max) AS t
        UNION ALL
        SELECT t.*, count(*) OVER (PARTITION BY q.id, level.prio) < v_max
        FROM {schema}.queue q CROSS JOIN generate_series(0, 9) AS level (prio) CROSS JOIN LATERAL (
            SELECT t.run_id, t.wait, t.workflow, t.queue, NULL::text, {schema}.id_time(t.run_id), t.ready_at, coalesce(t.wait_kind, 1) = 1
            FROM {schema}.task_now t
            WHERE t.queue = q.id AND t.prio = level.prio::int2 AND t.ready_at > now() AND t.ready_at < 'infinity' ORDER BY t.ready_at, t.run_id LIMIT v_max) AS t)
    SELECT k.code, w.name, q.name, l.step, count(*), bool_and(l.complete), min(l.since),
           min(l.ready_at) FILTER (WHERE l.ready_at > now() AND l.ready_at < 'infinity'),
           (array_agg(l.run_id ORDER BY l.since, l.run_id))[1], k.meaning, k.freed_by, k.who
    FROM looked l
    JOIN {schema}.wait_kind k ON k.id = l.wait
    LEFT JOIN {schema}.workflow w ON w.id = l.workflow
    LEFT JOIN {schema}.queue q ON q.id = l.queue
    WHERE l.fits GROUP BY k.id, k.code, k.meaning, k.freed_by, k.who, w.name, q.name, l.step ORDER BY 5 DESC, 7;
END $$;
COMMENT ON FUNCTION {schema}.wait_groups(int4) IS
    'Live runs by what they wait for, workflow, queue and step; looks at rows_max of each reason, and of each queue and priority: where those were not all, complete is false and runs is at least';

-- As in 0003, but that the runs of all workers are counted by one scan of the live runs, not by one for each life of a worker, and by none where nobody
-- asks for them.
CREATE OR REPLACE VIEW {schema}.workers AS
SELECT w.id AS worker, CASE WHEN w.alive THEN 'alive' WHEN w.dead_at IS NULL THEN 'lost' ELSE 'dead' END AS state,
       w.host, w.pid, w.supervisor, w.boot, w.epoch, w.started_at, w.dead_at, w.death, coalesce(n.runs, 0) AS runs
FROM {schema}.worker_now w
LEFT JOIN (SELECT t.owner, count(*) AS runs FROM {schema}.task t WHERE t.owner IS NOT NULL GROUP BY t.owner) AS n ON n.owner = w.id;

-- ── how much begins and ends ─────────────────────────────────────────────────────────────────────────────────
-- outcome is insert only, so what ended last stands at the end of each partition (long runs end in old ones): its pages are read from there, by 128, until
-- some have nothing of the time asked for, or there are enough. So ends are counted by when they were without an index that every run would pay for.
CREATE FUNCTION {schema}.ended_lately(p_from timestamptz, p_max int4)
RETURNS TABLE (ids uuid[], ends timestamptz[], statuses int2[], steps int4[], counted_from timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_from timestamptz := p_from;
    v_left int8;
    v_part regclass;
    v_high int8;
    v_size int4 := current_setting('block_size')::int4;
BEGIN
    FOR v_part IN SELECT i.inhrelid::regclass FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                  WHERE i.inhparent = '{schema}.outcome'::regclass AND NOT i.inhdetachpending ORDER BY c.relname DESC LOOP
        v_high := pg_relation_size(v_part) / v_size;
        v_left := p_max;
        WHILE v_high > 0 AND v_left > 0 LOOP
            EXECUTE format('SELECT array_agg(o.run_id), array_agg(o.ended_at), array_agg(o.status), array_agg(o.steps), min(o.ended_at) FROM %s o '
                           'WHERE o.ctid >= %L::tid AND o.ctid < %L::tid AND o.ended_at >= $1', v_part,
                           format('(%s,0)', greatest(v_high - 128, 0)), format('(%s,0)', v_high))
                INTO ids, ends, statuses, steps, counted_from USING v_from;
            EXIT WHEN ids IS NULL;
            v_high := v_high - 128;
            v_left := v_left - cardinality(ids);
            IF v_left <= 0 AND v_high > 0 THEN
                v_from := counted_from;
            END IF;
            counted_from := v_from;
            RETURN NEXT;
        END LOOP;
    END LOOP;
END $$;
COMMENT ON FUNCTION {schema}.ended_lately(timestamptz, int4) IS 'Internal: runs that ended since then, the newest, about so many; counted_from: from when on they are all of them, to about a second';

-- SECURITY DEFINER, custom plan: as newest_errors.
CREATE FUNCTION {schema}.rates(since interval DEFAULT interval '1 hour', rows_max int4 DEFAULT 100000)
RETURNS TABLE (minute timestamptz, counted_s float8, workflow text, queue text, started int8, ended int8, completed int8, failed int8, cancelled int8,
               terminated int8, timed_out int8, continued int8, steps int8)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET enable_seqscan = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_now   timestamptz := now();
    v_from  timestamptz := v_now - since;
    v_max   int4 := least(greatest(rows_max, 1), 10000000);
BEGIN
    RETURN QUERY
    WITH begun AS MATERIALIZED (
        SELECT r.created_at, r.workflow, r.queue FROM {schema}.run r
        WHERE r.run_id >= {schema}.id_floor(v_from - interval '1 minute') ORDER BY r.run_id DESC LIMIT v_max),
    chunks AS MATERIALIZED (SELECT c.* FROM {schema}.ended_lately(v_from, v_max) AS c),
    bound AS (
        SELECT greatest(v_from, (SELECT max(c.counted_from) FROM chunks c),
                        (SELECT CASE WHEN count(*) = v_max THEN min(b.created_at) END FROM begun b)) AS at),
    over AS (SELECT u.id, u.ended_at, u.status, u.steps FROM chunks c CROSS JOIN LATERAL unnest(c.ids, c.ends, c.statuses, c.steps) AS u (id, ended_at, status, steps)),
    both_ways AS (
        SELECT date_trunc('minute', b.created_at) AS minute, b.workflow, b.queue, NULL::int2 AS status, 0 AS steps FROM begun b
        WHERE b.created_at >= (SELECT at FROM bound) AND b.created_at <= v_now
        UNION ALL
        SELECT date_trunc('minute', o.ended_at), r.workflow, r.queue, o.status, o.steps FROM over o JOIN {schema}.run r ON r.run_id = o.id
        WHERE o.ended_at >= (SELECT at FROM bound) AND o.ended_at <= v_now)
    SELECT m.minute, extract(epoch FROM least(m.minute + interval '1 minute', v_now) - greatest(m.minute, (SELECT at FROM bound)))::float8, w.name, q.name,
           count(*) FILTER (WHERE m.status IS NULL), count(m.status), count(*) FILTER (WHERE m.status = 1), count(*) FILTER (WHERE m.status = 2),
           count(*) FILTER (WHERE m.status = 3), count(*) FILTER (WHERE m.status = 4), count(*) FILTER (WHERE m.status = 5), count(*) FILTER (WHERE m.status = 6),
           sum(m.steps)::int8
    FROM both_ways m LEFT JOIN {schema}.workflow w ON w.id = m.workflow LEFT JOIN {schema}.queue q ON q.id = m.queue
    GROUP BY m.minute, w.name, q.name ORDER BY m.minute DESC, 5 DESC, w.name;
END $$;
COMMENT ON FUNCTION {schema}.rates(interval, int4) IS
    'Starts and ends of each minute of the given time, by workflow and queue, the newest first; looks at the newest rows_max of both: counted_s says how much of a minute that was';

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE
    worker   text := {role_worker_literal};
    viewer   text := {role_viewer_literal};
    operator text := {role_operator_literal};
    one      record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN (worker, viewer, operator) LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.newest_errors(text, timestamptz, int4), {schema}.error_groups(interval, int4), {schema}.wait_groups(int4), {schema}.rates(interval, int4) TO %I', one.rolname);
    END LOOP;
END $$;
