-- What `show` asks, through the views alone; a viewer's role is enough.

-- name: show_run :one
-- Everything about one run.
-- Locks:  none.     Index:  run, outcome, task primary keys, pruned
-- $1 uuid run
SELECT run_id, key, workflow, queue, priority, status, wait, step, seq, attempt, created_at, ended_at, duration_s, steps, worker,
       result, error, input, parent_id, parent_seq, version, attributes, progress, forked_from, forked_seq
FROM {schema}.runs WHERE run_id = $1;

-- name: show_wait :one
-- Why one run does not move; no row when it has ended.
-- Locks:  none.     Index:  task_pkey
-- $1 uuid run
SELECT status, code, meaning, detail, since, wake_at, step, seq, attempt, claims, worker, freed_by, who
FROM {schema}.waits WHERE run_id = $1;

-- name: show_steps :many
-- The finished steps of one run, in the order of calls.
-- Locks:  none.     Index:  step primary key, pruned
-- $1 uuid run    $2 int4 limit
SELECT seq, pos, name, kind, status, started_at, ended_at, duration_ms, worker, result, error
FROM {schema}.steps WHERE run_id = $1 ORDER BY seq LIMIT $2;

-- name: show_attempts :many
-- The failed tries of one run, and durable starts.
-- Locks:  none.     Index:  attempt primary key, pruned
-- $1 uuid run    $2 int4 limit
SELECT seq, n, name, kind, started_at, ended_at, next_retry_at, worker, error, fingerprint
FROM {schema}.attempts WHERE run_id = $1 ORDER BY seq, n LIMIT $2;

-- name: show_children :many
-- The runs that one run has started, in the order of its calls.
-- Locks:  none.     Index:  child primary key, run, outcome, task primary keys
-- $1 uuid parent    $2 int4 limit
SELECT c.seq, r.run_id, r.workflow, r.key, r.status, r.wait, r.step, r.created_at, r.ended_at
FROM (SELECT c.seq, c.run_id FROM {schema}.children AS c WHERE c.parent_id = $1 ORDER BY c.seq LIMIT $2) AS c
CROSS JOIN LATERAL (SELECT * FROM {schema}.runs AS r WHERE r.run_id = c.run_id OFFSET 0) AS r ORDER BY c.seq;

-- name: show_published :many
-- What one run has published, the last value of each key.
-- Locks:  none.     Index:  publication primary key, pruned
-- $1 uuid run
SELECT key, value, published_at, pos FROM {schema}.published WHERE run_id = $1 ORDER BY key;

-- name: show_heartbeats :many
-- The last sign of life of each step of one run that gave any, and what was said.
-- Locks:  none.     Index:  beat primary key, pruned
-- $1 uuid run
SELECT seq, attempt, at, details FROM {schema}.heartbeats WHERE run_id = $1 ORDER BY seq;

-- name: show_updates :many
-- The updates that were sent to one run, in the order of arrival.
-- Locks:  none.     Index:  update_accepted, step, update_done, outcome primary keys, pruned; update_request_pkey
-- $1 uuid run    $2 int4 limit
SELECT n, name, id, stage, sent_at, accepted_at, ended_at, seq, payload, result, error FROM {schema}.updates WHERE run_id = $1 ORDER BY n LIMIT $2;

-- name: show_same_key :many
-- The runs of every workflow that a key names.
-- Locks:  none.     Index:  run_key primary key
-- $1 text key
SELECT k.run_id, k.workflow FROM {schema}.keys AS k WHERE k.key = $1 ORDER BY k.run_id DESC;

-- name: show_pause :many
-- Who has paused one run, and whether it has stopped.
-- Locks:  none.     Index:  pause_pkey, task_pkey
-- $1 uuid run
SELECT settled, asked_at, actor, reason, waited_for FROM {schema}.pauses WHERE run_id = $1;

-- name: show_cancellations :many
-- Who asked that one run be ended.
-- Locks:  none.     Index:  cancellation primary key, pruned
-- $1 uuid run
SELECT c.how, c.asked_at, c.actor, c.reason FROM {schema}.cancellations AS c WHERE c.run_id = $1 ORDER BY c.asked_at;

-- name: show_audit :many
-- What operators did, newest first: to one run, or to all.
-- Locks:  none.     Index:  audit primary key, pruned; of all runs audit_at_idx and cancellation_at_idx, one scan backwards per partition
-- $1 uuid run (null: all)    $2 text verb (null: all)    $3 timestamptz before (null: from now on)    $4 int8, $5 uuid, $6 text before that n (0 where it has none), run
-- and verb, of what was done at that moment (null: none of it)    $7 int4 limit
SELECT a.n, a.at, a.verb, a.run_id, a.workflow, a.key, a.login, a.actor, a.reason, a.details, a.schedule, a.queue
FROM {schema}.audits AS a
WHERE ($1::pg_catalog.uuid IS NULL OR a.run_id = $1) AND ($2::pg_catalog.text IS NULL OR a.verb = $2)
  AND a.at <= coalesce($3::pg_catalog.timestamptz, 'infinity')
  AND ($3 IS NULL OR a.at < $3 OR (coalesce(a.n, 0), a.run_id, a.verb) < ($4::pg_catalog.int8, $5::pg_catalog.uuid, $6::pg_catalog.text))
ORDER BY a.at DESC, coalesce(a.n, 0) DESC, a.run_id DESC, a.verb DESC LIMIT $7;

-- name: show_schedule_audit :many
-- What was done to one schedule, newest first. No run is named, so none is looked for.
-- Locks:  none.     Index:  audit_schedule_idx, all deeds on that schedule before then
-- $1 text schedule    $2 … $7 as show_audit
SELECT a.n, a.at, a.verb, a.run_id, NULL::pg_catalog.text AS workflow, NULL::pg_catalog.text AS key, a.login, a.actor, a.reason, a.details, a.schedule, a.queue
FROM (SELECT a.* FROM {schema}.audits AS a
      WHERE a.schedule = $1 AND ($2::pg_catalog.text IS NULL OR a.verb = $2) AND a.at <= coalesce($3::pg_catalog.timestamptz, 'infinity')
        AND ($3 IS NULL OR a.at < $3 OR (coalesce(a.n, 0), a.run_id, a.verb) < ($4::pg_catalog.int8, $5::pg_catalog.uuid, $6::pg_catalog.text))
      ORDER BY a.at DESC, coalesce(a.n, 0) DESC, a.run_id DESC, a.verb DESC LIMIT $7) AS a
ORDER BY a.at DESC, coalesce(a.n, 0) DESC, a.run_id DESC, a.verb DESC;

-- name: show_schedule :many
-- The schedule that started one run, and for which tick.
-- Locks:  none.     Index:  schedule_fire_id_idx
-- $1 uuid run
SELECT f.schedule, f.tick_at, f.kind FROM {schema}.schedule_fires AS f WHERE f.id = $1 LIMIT 1;

-- name: show_signals :many
-- The signals that were sent to one run, and which wait was given each.
-- Locks:  none.     Index:  message, consumed primary keys, pruned
-- $1 uuid run    $2 int4 limit
SELECT n, name, id, payload, sent_at, seq FROM {schema}.signals WHERE run_id = $1 ORDER BY n LIMIT $2;

-- name: show_goes_on :many
-- The runs that go on with one run and that it goes on from: a continuation, a retry of what had ended.
-- Locks:  none.     Index:  outcome_continued_idx; outcome, retried, run, task primary keys; three runs at most
-- $1 uuid run     Returns how (continued as, retried as, goes on from), and how that run stands
SELECT g.how, r.run_id, r.workflow, r.key, r.status
FROM {schema}.goes_on($1) AS g CROSS JOIN LATERAL (SELECT * FROM {schema}.runs AS r WHERE r.run_id = g.run_id OFFSET 0) AS r;

-- name: show_above :many
-- The runs above one run, the root first.
-- Locks:  none.     Index:  run, outcome, task primary keys, a look for each
-- $1 uuid run    $2 int4 levels     Returns as show_below
WITH RECURSIVE up AS (
    SELECT s.parent_id, 1 AS level FROM {schema}.started AS s WHERE s.run_id = $1
    UNION ALL
    SELECT s.parent_id, u.level + 1 FROM up AS u CROSS JOIN LATERAL (SELECT s.parent_id FROM {schema}.started AS s WHERE s.run_id = u.parent_id OFFSET 0) AS s
    WHERE u.level < $2::pg_catalog.int4)
SELECT -u.level AS level, r.run_id, r.run_id AS started_id, r.parent_id, r.parent_seq AS seq, r.workflow, r.key, r.status, r.wait, r.step, r.created_at, r.ended_at, NULL::pg_catalog.int8 AS children
FROM up AS u CROSS JOIN LATERAL (SELECT * FROM {schema}.runs AS r WHERE r.run_id = u.parent_id OFFSET 0) AS r ORDER BY u.level DESC;

-- name: show_below :many
-- One run and those below it, level by level, of each the last ones that it started; and how many it started in all.
-- Locks:  none.     Index:  child, child_continued, run, outcome, task primary keys, a look for each; $5 entries of child for each at most
-- $1 uuid run    $2 int4 runs    $3 int4 levels    $4 int4 children of each    $5 int4 children that are counted
-- Returns level (0 the run itself), run, the one that was started (another where that went on as this one), its parent, the position there, …, how many children it has, of $5 at most
WITH RECURSIVE down AS (
    SELECT $1::pg_catalog.uuid AS run_id, $1::pg_catalog.uuid AS started_id, NULL::pg_catalog.uuid AS parent_id, NULL::pg_catalog.int4 AS seq, 0 AS level
    UNION ALL
    SELECT c.newest_id, c.run_id, d.run_id, c.seq, d.level + 1
    FROM down AS d
    CROSS JOIN LATERAL (SELECT c.newest_id, c.run_id, c.seq FROM {schema}.children AS c WHERE c.parent_id = d.run_id ORDER BY c.seq DESC LIMIT $4::pg_catalog.int4) AS c
    WHERE d.level < $3::pg_catalog.int4),
page AS MATERIALIZED (SELECT d.* FROM down AS d LIMIT $2::pg_catalog.int4)
SELECT p.level, p.run_id, p.started_id, coalesce(p.parent_id, r.parent_id) AS parent_id, coalesce(p.seq, r.parent_seq) AS seq, r.workflow, r.key, r.status, r.wait, r.step, r.created_at, r.ended_at,
       (SELECT count(*) FROM (SELECT FROM {schema}.children AS c WHERE c.parent_id = p.run_id LIMIT $5::pg_catalog.int4) AS c) AS children
FROM page AS p CROSS JOIN LATERAL (SELECT * FROM {schema}.runs AS r WHERE r.run_id = p.run_id OFFSET 0) AS r ORDER BY p.level, p.parent_id, p.seq;

-- name: show_usual :one
-- How many entries the history of a run of one version of a workflow usually has: the median of those that completed among the newest.
-- Locks:  none.     Index:  run primary key, read backwards; run, outcome primary keys for those of the workflow
-- $1 text workflow    $2 int4 runs that are looked at    $3 text version (null: runs without one)     Returns the median, of how many
SELECT pg_catalog.percentile_disc(0.5) WITHIN GROUP (ORDER BY r.steps) AS steps, count(*) AS runs
FROM (SELECT s.run_id FROM (SELECT s.run_id, s.workflow FROM {schema}.started AS s ORDER BY s.run_id DESC LIMIT $2) AS s WHERE s.workflow = $1 LIMIT 50) AS s
CROSS JOIN LATERAL (SELECT r.steps, r.status, r.version FROM {schema}.runs AS r WHERE r.run_id = s.run_id OFFSET 0) AS r
WHERE r.status = 'completed' AND r.version IS NOT DISTINCT FROM $3;

-- name: show_alike :one
-- How many other runs met the same error within the hour; of at most so many tries.
-- Locks:  none.     Index:  attempt_fingerprint_idx
-- $1 text fingerprint    $2 uuid run    $3 int4 tries
SELECT count(DISTINCT e.run_id) AS runs, count(*) >= $3 AS at_least
FROM {schema}.newest_errors($1, NULL, $3) AS e WHERE e.run_id <> $2 AND e.at > now() - interval '1 hour';
