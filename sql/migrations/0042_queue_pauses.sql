-- deploy: pre            older workers go on claiming from queues that are paused; resume them all before going back
-- lock:   ACCESS EXCLUSIVE on five views and on wait_kind, brief; SHARE on audit while its index is made
-- undo:   DROP FUNCTION of each name; waits as in 0034, task_now as in 0033, audits as in 0040 (DROP VIEW first), queues as in 0003 (likewise);
--         DROP INDEX {schema}.audit_schedule_idx; DROP TABLE {schema}.queue_pause
--
-- Queues that somebody pauses: nothing more is claimed from them. What workers have goes on; what wakes meanwhile waits for the resume. A row here is all
-- that a pause is: no task is touched, so pausing a queue of a million runs takes as long as pausing an empty one. Claims look here, once each.

CREATE TABLE {schema}.queue_pause (
    queue     int4 PRIMARY KEY REFERENCES {schema}.queue (id),
    paused_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    paused_by text NOT NULL CHECK (length(paused_by) <= 200),
    reason    text CHECK (length(reason) <= 4000)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20, autovacuum_vacuum_cost_delay = 0);   -- every claim reads all of it
COMMENT ON TABLE {schema}.queue_pause IS 'Queues that nothing is claimed from; a row comes with the pause and goes with the resume, both of which stand in audit';
COMMENT ON COLUMN {schema}.queue_pause.queue IS 'Number of the queue';
COMMENT ON COLUMN {schema}.queue_pause.paused_at IS 'Since when';
COMMENT ON COLUMN {schema}.queue_pause.paused_by IS 'Who paused it, as the caller says, else the role';
COMMENT ON COLUMN {schema}.queue_pause.reason IS 'Why, as the caller says';

CREATE INDEX audit_schedule_idx ON {schema}.audit ((details ->> 'schedule'), at) WHERE (details ->> 'schedule') IS NOT NULL;

-- ── the verbs ────────────────────────────────────────────────────────────────────────────────────────────────
CREATE FUNCTION {schema}.known_queue(p_name text) RETURNS int4
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE v_id int4;
BEGIN
    SELECT q.id INTO v_id FROM {schema}.queue q WHERE q.name = p_name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no queue "%"', p_name USING ERRCODE = 'SV041', HINT = 'select queue from queues',
            DETAIL = json_build_object('queue', p_name, 'known', ARRAY(SELECT q.name FROM {schema}.queue q ORDER BY q.name LIMIT 20), 'queues', (SELECT count(*) FROM {schema}.queue))::text;
    END IF;
    RETURN v_id;
END $$;
COMMENT ON FUNCTION {schema}.known_queue(text) IS 'Internal: number of a queue that there is; raises SV041 with those that there are';

-- SECURITY DEFINER: an operator has no right on the tables.
CREATE FUNCTION {schema}.pause_queue(name text, reason text DEFAULT NULL, actor text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE v_queue int4 := {schema}.known_queue(name);
BEGIN
    IF length(reason) > 4000 OR length(actor) > 200 THEN
        RAISE EXCEPTION 'a reason has at most 4000 characters and an actor 200, not % and %', coalesce(length(reason), 0), coalesce(length(actor), 0) USING ERRCODE = '22023';
    END IF;
    INSERT INTO {schema}.queue_pause AS p (queue, paused_by, reason) VALUES (v_queue, coalesce(pause_queue.actor, session_user), pause_queue.reason) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM {schema}.note({schema}.new_id(), 'queue_pause', reason, actor, jsonb_build_object('queue', name));
    RETURN true;
END $$;
COMMENT ON FUNCTION {schema}.pause_queue(text, text, text) IS
    'Claim nothing more from a queue until it is resumed; runs that workers have go on. False where it is paused: who paused it first, and why, stays';

-- What is ready in the queue is announced by workflow, as a start of each would be: hosts know which workflows they serve. At most 64 of each priority are
-- looked at, and 20 workflows named; the hosts' next look finds the rest. SECURITY DEFINER: as pause_queue.
CREATE FUNCTION {schema}.resume_queue(name text, reason text DEFAULT NULL, actor text DEFAULT NULL, notify boolean DEFAULT false) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $$
DECLARE
    v_queue int4 := {schema}.known_queue(name);
    v_was   {schema}.queue_pause;
BEGIN
    DELETE FROM {schema}.queue_pause p WHERE p.queue = v_queue RETURNING p.* INTO v_was;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM {schema}.note({schema}.new_id(), 'queue_resume', reason, actor, jsonb_build_object(
        'queue', name, 'paused_by', v_was.paused_by, 'paused_s', round(extract(epoch FROM clock_timestamp() - v_was.paused_at), 3)));
    IF notify THEN
        PERFORM {schema}.announce(w.name, resume_queue.name, ready.n, interval '0')
        FROM (SELECT t.workflow, count(*) AS n
              FROM generate_series(0, 9) AS level (prio) CROSS JOIN LATERAL (
                  SELECT t.workflow FROM {schema}.task t
                  WHERE t.queue = v_queue AND t.prio = level.prio::int2 AND t.ready_at <= clock_timestamp() AND t.owner IS NULL ORDER BY t.ready_at, t.run_id LIMIT 64) AS t
              GROUP BY t.workflow ORDER BY 2 DESC LIMIT 20) AS ready
        JOIN {schema}.workflow w ON w.id = ready.workflow;
    END IF;
    RETURN true;
END $$;
COMMENT ON FUNCTION {schema}.resume_queue(text, text, text, boolean) IS
    'Claim from a queue again; notify: hosts are told at the commit, else they find out within half a second. False where it is not paused';

-- ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────
-- As in 0033; what is due in a paused queue is ready, and not going to move (queue_paused).
CREATE OR REPLACE VIEW {schema}.task_now AS
SELECT t.run_id, t.ready_at, t.queue, t.workflow, t.prio, t.resumed, t.claims, t.owner, t.wait_kind, t.attempt, t.seq, t.step, t.wait_children, t.wait_failed,
       t.wait_since, t.wait_detail, t.parent_id, t.parent_close, t.cancel_at, t.batch, t.group_key, t.key, t.version, t.attributes, t.input,
       derived.wait,
       CASE WHEN t.owner IS NOT NULL THEN 'running' WHEN derived.wait = 7 THEN 'paused'
            WHEN derived.wait IN (1, 2, 6) THEN 'ready' ELSE 'waiting' END AS status
FROM {schema}.task t
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN t.owner IS NOT NULL THEN CASE WHEN t.wait_kind = 8 THEN t.wait_kind END
        WHEN t.wait_kind IN (3, 4, 5, 7, 16, 17, 18, 19, 20, 21, 22, 23) THEN t.wait_kind
        WHEN t.ready_at > clock_timestamp() THEN CASE WHEN t.wait_kind BETWEEN 9 AND 15 THEN t.wait_kind ELSE 10 END
        WHEN t.queue = ANY (ARRAY(SELECT p.queue FROM {schema}.queue_pause p)) THEN 6
        WHEN EXISTS (SELECT FROM {schema}.worker_now w WHERE w.alive) THEN 1
        ELSE 2 END::int2 AS wait) AS derived;

CREATE OR REPLACE VIEW {schema}.queues AS
SELECT q.name AS queue, coalesce(n.ready, 0) AS ready, coalesce(n.running, 0) AS running, coalesce(n.waiting, 0) AS waiting,
       coalesce(n.paused, 0) AS paused, n.oldest_ready_at, q.created_at, p.paused_at, p.paused_by, p.reason AS paused_reason
FROM {schema}.queue q
LEFT JOIN {schema}.queue_pause p ON p.queue = q.id
LEFT JOIN (
    SELECT t.queue, count(*) FILTER (WHERE t.status = 'ready') AS ready, count(*) FILTER (WHERE t.status = 'running') AS running,
           count(*) FILTER (WHERE t.status = 'waiting') AS waiting, count(*) FILTER (WHERE t.status = 'paused') AS paused,
           min(t.ready_at) FILTER (WHERE t.status = 'ready') AS oldest_ready_at
    FROM {schema}.task_now t GROUP BY t.queue) AS n ON n.queue = q.id;
COMMENT ON COLUMN {schema}.queues.ready IS 'Runs that a worker could take now, or could if the queue were not paused';
COMMENT ON COLUMN {schema}.queues.paused IS 'Runs that somebody paused, each by itself; whether the queue is paused says paused_at';
COMMENT ON COLUMN {schema}.queues.paused_at IS 'Since when nothing is claimed from it; null where it is not paused';
COMMENT ON COLUMN {schema}.queues.paused_by IS 'Who paused it';
COMMENT ON COLUMN {schema}.queues.paused_reason IS 'Why, as they said';

UPDATE {schema}.wait_kind SET freed_by = 'somebody resumes the queue', who = 'operators: python -m supervisor queues resume QUEUE' WHERE code = 'queue_paused';
COMMENT ON COLUMN {schema}.wait_kind.who IS 'Who can act, and by which command; RUN, SEQ and QUEUE stand for the run, its step and its queue';

CREATE FUNCTION {schema}.as_word(p_text text) RETURNS text LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT CASE WHEN $1 ~ '^[A-Za-z0-9_.:/-]+$' THEN $1 ELSE quote_literal($1) END $$;
COMMENT ON FUNCTION {schema}.as_word(text) IS 'Internal: a name as one types it in a command';

-- As in 0034; of what is ready in a paused queue since when it is held up, who paused the queue and why.
CREATE OR REPLACE VIEW {schema}.waits AS
SELECT t.run_id, r.key, w.name AS workflow, q.name AS queue, t.status, k.code,
       CASE WHEN t.owner IS NOT NULL AND NOT owned.alive THEN 'its worker is gone and has not been released yet'
            WHEN ending.status IS NOT NULL THEN format('to end as %s, once code that goes on with it has undone what it did; %s', ending.status, k.meaning)
            ELSE coalesce(k.meaning, 'it moves: a worker is executing it') END AS meaning,
       CASE WHEN t.owner IS NOT NULL
            THEN concat_ws('; ', t.wait_detail, format('worker %s, process %s on %s', owned.id, owned.pid, owned.host), owned.death)
            WHEN ending.status IS NOT NULL THEN (coalesce(t.wait_detail::jsonb, '{}') || jsonb_build_object(ending.status, ending.detail))::text
            WHEN k.code = 'queue_paused' THEN jsonb_strip_nulls(jsonb_build_object('queue', q.name, 'by', p.paused_by, 'reason', p.reason, 'paused_at', p.paused_at))::text
            WHEN k.code = 'timer' AND t.wait_kind IS DISTINCT FROM 10 THEN 'its start is delayed'
            WHEN k.code = 'child' THEN concat_ws('; ', t.wait_detail, (
                SELECT format('%s of %s ended', coalesce(sum(d.n), 0), t.wait_children)
                FROM {schema}.child_done d WHERE d.parent_id = t.run_id))
            WHEN k.code = 'no_worker' THEN concat_ws('; ', t.wait_detail, 'no worker of this schema is alive')
            ELSE t.wait_detail END AS detail,
       CASE WHEN t.wait_kind IS NULL OR t.wait IS NULL OR t.wait <> t.wait_kind
            THEN greatest(t.wait_since, CASE WHEN t.ready_at <= clock_timestamp() THEN t.ready_at END, r.created_at, p.paused_at)
            ELSE coalesce(t.wait_since, r.created_at) END AS since,
       CASE WHEN t.owner IS NULL AND t.ready_at > clock_timestamp() AND isfinite(t.ready_at) THEN t.ready_at END AS wake_at,
       t.step, t.seq, t.attempt, t.claims, t.owner AS worker,
       CASE WHEN t.owner IS NOT NULL AND NOT owned.alive THEN 'a running supervisor releases it by itself: python -m supervisor run --app …'
            WHEN k.code IN ('signal', 'any_of') AND s.signals IS NOT NULL
            THEN concat_ws(', or ', s.signals, CASE WHEN k.code = 'any_of' THEN k.freed_by WHEN isfinite(t.ready_at) THEN 'the wait''s timeout expires' END)
            WHEN ending.status IS NOT NULL THEN format('%s; or end it now, with nothing undone: python -m supervisor terminate %s', k.freed_by, t.run_id)
            ELSE coalesce(replace(k.freed_by, 'RUN', t.run_id::text), 'nothing needs to be done') END AS freed_by,
       CASE WHEN t.owner IS NOT NULL AND NOT owned.alive THEN 'who runs the workers'
            WHEN k.code = 'queue_paused' THEN replace(k.who, 'QUEUE', {schema}.as_word(q.name))
            ELSE coalesce(replace(replace(k.who, 'RUN', t.run_id::text), 'SEQ', coalesce(t.seq::text, 'N')), 'nobody has to') END AS who
FROM {schema}.task_now t
LEFT JOIN {schema}.run r ON r.run_id = t.run_id
LEFT JOIN {schema}.workflow w ON w.id = t.workflow
LEFT JOIN {schema}.queue q ON q.id = t.queue
LEFT JOIN {schema}.queue_pause p ON p.queue = t.queue AND t.wait = 6
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
COMMENT ON COLUMN {schema}.waits.detail IS
    'What in particular: the worker, the signal, how many children, the database''s refusal; who paused its queue; who cancelled what waits for its code to end, or since when its time is over';

CREATE OR REPLACE VIEW {schema}.audits AS
SELECT a.n, a.at, a.verb, a.run_id, w.name AS workflow, r.key, a.login, a.actor, a.reason, a.details, a.details ->> 'schedule' AS schedule,
       CASE WHEN a.verb IN ('queue_pause', 'queue_resume') THEN a.details ->> 'queue' END AS queue
FROM {schema}.audit a
LEFT JOIN {schema}.run r ON r.run_id = a.run_id
LEFT JOIN {schema}.workflow w ON w.id = r.workflow;
COMMENT ON VIEW {schema}.audits IS 'What operators did to runs, schedules and queues, one row each; ask by run_id or by at. Kept as long as the history of its time';
COMMENT ON COLUMN {schema}.audits.verb IS
    'pause, resume, retry, edit_retry, skip, fork; signal, update, complete, fail where an operator did it and said why; schedule_create, schedule_change, schedule_declare (by a worker), schedule_pause, schedule_resume, schedule_trigger, schedule_backfill, schedule_delete; queue_pause, queue_resume';
COMMENT ON COLUMN {schema}.audits.run_id IS 'The run; of a deed on a schedule or a queue a number of its own, which names no run';
COMMENT ON COLUMN {schema}.audits.queue IS 'The queue that it was done to; null for runs and schedules';

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE
    worker   text := {role_worker_literal};
    viewer   text := {role_viewer_literal};
    operator text := {role_operator_literal};
    one      record;
BEGIN
    FOR one IN SELECT g.what, r.rolname FROM (VALUES
        ('SELECT ON {schema}.queue_pause', ARRAY[worker]),
        ('EXECUTE ON FUNCTION {schema}.as_word(text)', ARRAY[worker, viewer, operator]),
        ('EXECUTE ON FUNCTION {schema}.pause_queue(text, text, text), {schema}.resume_queue(text, text, text, boolean)', ARRAY[operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
