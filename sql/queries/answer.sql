-- What the process asks that answers queries: which there are, and the history of the run in question. It writes answers, nothing of runs.

-- name: take_queries :many
-- Take the oldest open query of these workflows, and with it all others to the same run: one replay answers them. One that was taken by a session
-- that is gone is open again. Runs of another version than is here are for other hosts.
-- Locks:  those rows of query, SKIP LOCKED.     Index:  query_open_idx; query holds what is waited for at this moment; for each what run_version looks at
-- $1 int4[] workflow    $2 int4 max    $3 text[] version of each workflow     Returns id, run, name, input, tries
WITH oldest AS MATERIALIZED (
    SELECT q.run_id FROM {schema}.query q
    WHERE q.status IS NULL AND q.workflow = ANY ($1::int4[]) AND q.until > clock_timestamp()
      AND {schema}.accepts(($3::text[])[array_position($1::int4[], q.workflow)], coalesce({schema}.run_version(q.run_id), ''))
      AND (q.taken_by IS NULL OR NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = q.taken_by))
    ORDER BY q.asked_at LIMIT 1 FOR NO KEY UPDATE OF q SKIP LOCKED),
theirs AS MATERIALIZED (
    SELECT q.id FROM {schema}.query q JOIN oldest o ON o.run_id = q.run_id
    WHERE q.status IS NULL AND q.until > clock_timestamp()
      AND (q.taken_by IS NULL OR NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = q.taken_by))
    ORDER BY q.asked_at LIMIT $2::int4 FOR NO KEY UPDATE OF q SKIP LOCKED)
UPDATE {schema}.query q SET taken_by = pg_backend_pid(), tries = q.tries + 1 FROM theirs WHERE q.id = theirs.id
RETURNING q.id, q.run_id, q.name, q.input, q.tries;

-- name: answer_queries :exec
-- Answer them; of what was taken by others meanwhile, or is not waited for any more, nothing becomes.
-- Locks:  those rows of query.     Index:  query_pkey
-- $1 uuid[] id    $2 int2[] status    $3 bytea[] reply
UPDATE {schema}.query q SET status = u.status, reply = u.reply FROM unnest($1::uuid[], $2::int2[], $3::bytea[]) AS u (id, status, reply)
WHERE q.id = u.id AND q.status IS NULL;

-- name: drop_queries :one
-- Remove queries that nobody waits for any more.
-- Locks:  those rows of query, SKIP LOCKED.     Index:  none: query holds what is waited for at this moment     Returns how many
SELECT {schema}.drop_queries();

-- name: query_workflows :many
-- The numbers of workflows.
-- Locks:  none.     Index:  workflow_name_key
-- $1 text[] name     Returns number, name
SELECT id, name FROM {schema}.workflow WHERE name = ANY ($1::text[]);

-- name: query_run :one
-- A run as it was started, and how much there is to replay.
-- Locks:  none.     Index:  run, step, child and attempt primary keys, pruned; timer_pkey, workflow_pkey
-- $1 uuid run     Returns workflow, key, input, steps, bytes of their results, the largest seq of what is not recorded as over (null: nothing), drawn from (null: itself)
SELECT w.name, r.key, r.input, s.n, s.bytes, greatest(
    (SELECT max(t.seq) FROM {schema}.timer t WHERE t.run_id = $1::uuid), (SELECT max(c.seq) FROM {schema}.child c WHERE c.parent_id = $1::uuid),
    (SELECT max(a.seq) FROM {schema}.attempt a WHERE a.run_id = $1::uuid AND a.kind <= 2)), r.drawn_from
FROM {schema}.run r JOIN {schema}.workflow w ON w.id = r.workflow
CROSS JOIN LATERAL (SELECT count(*) AS n, coalesce(sum(octet_length(t.result)), 0)::int8 AS bytes FROM {schema}.step t WHERE t.run_id = r.run_id) AS s
WHERE r.run_id = $1::uuid;

-- name: query_steps :many
-- The history of a run, in the order of delivery.
-- Locks:  none.     Index:  step primary key, pruned
-- $1 uuid run     Returns seq, kind, status, name, result, ended in us since 2000
SELECT seq, kind, status, name, result, (extract(epoch FROM ended_at) * 1000000)::int8 - 946684800000000 FROM {schema}.step WHERE run_id = $1::uuid ORDER BY pos;
