-- deploy: pre            an older claim clears wait_kind, as before; what is replaced here reads both
-- lock:   ACCESS EXCLUSIVE on the views task_now and waits, brief
-- undo:   task_now as in 0003, waits as in 0032
--
-- A claim leaves wait_kind as it was where it says that the run was queued or waited: it stands in an index, and a claim that changed it wrote a new entry into
-- every index of task. So of a run that a worker has, wait_kind tells something only where it is 8, a step that has been running for long.

CREATE OR REPLACE VIEW {schema}.task_now AS
SELECT t.run_id, t.ready_at, t.queue, t.workflow, t.prio, t.resumed, t.claims, t.owner, t.wait_kind, t.attempt, t.seq, t.step, t.wait_children, t.wait_failed,
       t.wait_since, t.wait_detail, t.parent_id, t.parent_close, t.cancel_at, t.batch, t.group_key, t.key, t.version, t.attributes, t.input,
       derived.wait,
       CASE WHEN t.owner IS NOT NULL THEN 'running' WHEN derived.wait = 7 THEN 'paused'
            WHEN derived.wait IN (1, 2) THEN 'ready' ELSE 'waiting' END AS status
FROM {schema}.task t
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN t.owner IS NOT NULL THEN CASE WHEN t.wait_kind = 8 THEN t.wait_kind END
        WHEN t.wait_kind IN (3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) THEN t.wait_kind
        WHEN t.ready_at > clock_timestamp() THEN CASE WHEN t.wait_kind BETWEEN 9 AND 15 THEN t.wait_kind ELSE 10 END
        WHEN EXISTS (SELECT FROM {schema}.worker_now w WHERE w.alive) THEN 1
        ELSE 2 END::int2 AS wait) AS derived;
COMMENT ON COLUMN {schema}.task.wait_kind IS 'wait_kind.id; null and no owner = queued. While a worker has the run: 8 = a step of it runs for long, else what it was claimed from';
COMMENT ON COLUMN {schema}.task.resumed IS
    '0 no history, 1 has history, 2 taken from a dead worker, 3 woken by an update, 4 slept and waited for nothing else';
COMMENT ON COLUMN {schema}.live.parked IS 'Number of the reason that its last transition recorded, by which task_wait_idx is ordered; of a running one what it was claimed from';

-- As in 0032, but for the moment from which on a run that a worker has does not wait.
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
            ELSE coalesce(k.freed_by, 'nothing needs to be done') END AS freed_by
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
