-- deploy: pre            an older claim clears wait_kind, as before; what is replaced here and in 0034 reads both
-- lock:   ACCESS EXCLUSIVE on the view task_now, brief
-- undo:   task_now as in 0003
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
