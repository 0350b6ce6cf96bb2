-- The statements of the worker's loop. Each batch is one pipeline with one Sync, so one implicit transaction:
-- fence, what was executed, outcomes, releases, the next claim. Lock order: sql/README.md.
-- All are prepared once per session under the loop's connection profile (generic plans, no seqscan, no sort).

-- name: fence :exec
-- Refuse everything that follows in this batch unless this worker may still write.
-- Locks:  worker row, FOR SHARE (whoever declares it dead waits for the batch).     Index:  worker_pkey
-- $1 int4 worker    $2 uuid boot    $3 int4 epoch    Raises SV003.
SELECT {schema}.fence($1::int4, $2::uuid, $3::int4);

-- name: insert_steps :exec
-- Record completed steps. unnest in the select list runs in lockstep and spares the tuple store that `FROM unnest(…, …)`
-- fills first (3.7 -> 3.2 us of backend CPU a row); times come as seconds since 1970, for timestamptz's own binary
-- input breaks every value down to year, month and day.
-- Locks:  none but the new rows.     Index:  none (insert; the primary key refuses a second result)
-- $1 uuid[] run    $2 int4[] seq    $3 int4[] pos    $4 text[] name    $5 bytea[] result    $6 float8[] started    $7 float8[] ended    $8 int4 worker
INSERT INTO {schema}.step (run_id, started_at, ended_at, seq, pos, worker, kind, status, name, result)
SELECT u.run_id, to_timestamp(u.started), to_timestamp(u.ended), u.seq, u.pos, $8::int4, 1, 1, u.name, u.result
FROM (SELECT unnest($1::uuid[]) AS run_id, unnest($2::int4[]) AS seq, unnest($3::int4[]) AS pos, unnest($4::text[]) AS name,
             unnest($5::bytea[]) AS result, unnest($6::float8[]) AS started, unnest($7::float8[]) AS ended) AS u;

-- name: insert_mixed_steps :exec
-- The same for a batch that has timers, joins, failures or cancellations in it.
-- Locks:  none but the new rows.     Index:  none (insert; the primary key refuses a second result)
-- $1 … $7 as insert_steps    $8 int2[] kind    $9 int2[] status    $10 int4 worker
INSERT INTO {schema}.step (run_id, started_at, ended_at, seq, pos, worker, kind, status, name, result)
SELECT u.run_id, to_timestamp(u.started), to_timestamp(u.ended), u.seq, u.pos, $10::int4, u.kind, u.status, u.name, u.result
FROM (SELECT unnest($1::uuid[]) AS run_id, unnest($2::int4[]) AS seq, unnest($3::int4[]) AS pos, unnest($4::text[]) AS name,
             unnest($5::bytea[]) AS result, unnest($6::float8[]) AS started, unnest($7::float8[]) AS ended,
             unnest($8::int2[]) AS kind, unnest($9::int2[]) AS status) AS u;

-- name: insert_attempts :exec
-- Record failed tries, and the durable start of at_most_once steps (kind 2).
-- Locks:  none but the new rows.     Index:  none
-- $1 uuid[] run    $2 int4[] seq    $3 int4[] n    $4 int2[] kind    $5 text[] name    $6 bytea[] error    $7 text[] fingerprint
-- $8 timestamptz[] started    $9 timestamptz[] ended    $10 timestamptz[] next retry    $11 int4 worker
INSERT INTO {schema}.attempt (run_id, seq, n, kind, started_at, ended_at, next_retry_at, worker, name, error, fingerprint)
SELECT u.run_id, u.seq, u.n, u.kind, u.started_at, u.ended_at, u.next_retry_at, $11::int4, u.name, u.error, u.fingerprint
FROM unnest($1::uuid[], $2::int4[], $3::int4[], $4::int2[], $5::text[], $6::bytea[], $7::text[], $8::timestamptz[], $9::timestamptz[], $10::timestamptz[])
  AS u (run_id, seq, n, kind, name, error, fingerprint, started_at, ended_at, next_retry_at);

-- name: insert_published :exec
-- Record what runs have published, in the batch of what led to it. A replay may repeat the last of it: the rows are there then.
-- Locks:  none but the new rows.     Index:  none (insert; the primary key is looked at)
-- $1 uuid[] run    $2 text[] key    $3 int4[] pos    $4 bytea[] value    $5 timestamptz[] published at
INSERT INTO {schema}.publication (run_id, key, pos, value, published_at)
SELECT u.run_id, u.key, u.pos, u.value, u.published_at
FROM unnest($1::uuid[], $2::text[], $3::int4[], $4::bytea[], $5::timestamptz[]) AS u (run_id, key, pos, value, published_at)
ON CONFLICT (run_id, key, pos) DO NOTHING;

-- name: insert_progress :exec
-- Record how far runs say that they are, in the batch of what led to it. A replay may repeat the last of it: the row is there then.
-- Locks:  none but the new rows.     Index:  none (insert; the primary key is looked at)
-- $1 uuid[] run    $2 int4[] pos    $3 float8[] done    $4 float8[] total (null: not known)    $5 timestamptz[] at
INSERT INTO {schema}.progress_note (run_id, pos, done, total, noted_at)
SELECT u.run_id, u.pos, u.done, u.total, u.noted_at
FROM unnest($1::uuid[], $2::int4[], $3::float8[], $4::float8[], $5::timestamptz[]) AS u (run_id, pos, done, total, noted_at)
ON CONFLICT (run_id, pos) DO NOTHING;

-- name: note_beats :exec
-- Last signs of life of steps that execute, and what was said with them: null leaves what was said before.
-- Locks:  the rows of beat, by run and seq.     Index:  none (insert; the primary key is looked at)
-- $1 uuid[] run    $2 int4[] seq    $3 int4[] number of the try    $4 timestamptz[] when    $5 bytea[] details
INSERT INTO {schema}.beat AS b (run_id, seq, n, at, details)
SELECT * FROM unnest($1::uuid[], $2::int4[], $3::int4[], $4::timestamptz[], $5::bytea[]) ORDER BY 1, 2
ON CONFLICT (run_id, seq) DO UPDATE SET n = excluded.n, at = excluded.at, details = coalesce(excluded.details, b.details);

-- name: set_attributes :exec
-- Record what runs set of their attributes, and index it. A replay may repeat the last of it: nothing happens then.
-- Locks:  none but rows of the index of runs that this worker has.     Index:  none here; those of its function: primary keys
-- $1 uuid[] run    $2 int4[] pos    $3 bytea[] all that each has set so far, JSON    $4 timestamptz[] at
SELECT {schema}.set_attributes(u.run_id, u.pos, u.value, u.set_at) FROM unnest($1::uuid[], $2::int4[], $3::bytea[], $4::timestamptz[]) AS u (run_id, pos, value, set_at);

-- name: continue_runs :exec
-- Make the successors of runs that end as continued in this batch.
-- Locks:  their task rows, by run_id; the rows of their keys in run_key, for 20 ms at most (55P03).     Index:  none here; those of its function: primary keys, pruned
-- $1 uuid[] run, ascending    $2 uuid[] successor    $3 int4[] workflow (null: the same)    $4 text[] queue (null: the same)    $5 int2[] prio (null: the same)
-- $6 bytea[] input    $7 int8[] delay in us    $8 int4 worker
SELECT {schema}.continue_run(u.run_id, u.next, u.workflow, u.queue, u.prio, u.input, u.delay_us * interval '1 us', $8::int4)
FROM unnest($1::uuid[], $2::uuid[], $3::int4[], $4::text[], $5::int2[], $6::bytea[], $7::int8[]) AS u (run_id, next, workflow, queue, prio, input, delay_us);

-- name: finish :exec
-- End runs: their task rows go, their outcomes come, all of the batch or none (SV003 if one was not this worker's any more).
-- Counting what went instead of joining it with what comes spares a hash join and a wide tuple store: 5.5 -> 4.1 us a run.
-- IS NOT DISTINCT FROM keeps the planner from any index that could ever be made on owner: thousands of rows are one worker's.
-- Locks:  task rows, by run_id (an array key is scanned in index order).     Index:  task_pkey
-- $1 uuid[] run, ascending, each once    $2 int2[] status    $3 int4[] steps    $4 bytea[] result    $5 float8[] ended, s since 1970    $6 int4 worker
WITH gone AS (DELETE FROM {schema}.task t WHERE t.run_id = ANY ($1::uuid[]) AND t.owner IS NOT DISTINCT FROM $6::int4 RETURNING 1)
INSERT INTO {schema}.outcome (run_id, ended_at, worker, steps, status, result)
SELECT u.run_id, to_timestamp(u.ended), $6::int4, u.steps, u.status, u.result
FROM (SELECT unnest($1::uuid[]) AS run_id, unnest($2::int2[]) AS status, unnest($3::int4[]) AS steps, unnest($4::bytea[]) AS result,
             unnest($5::float8[]) AS ended) AS u
WHERE {schema}.all_owned((SELECT count(*) FROM gone), cardinality($1::uuid[]), $6::int4);

-- name: insert_children_done :exec
-- Tell parents how many of their children ended in this batch; wake_parents follows in a later transaction.
-- Locks:  none but the new rows.     Index:  task_pkey
-- A parent that has ended asks for no count, and its partition may be gone.
-- $1 uuid[] parent    $2 int4[] ended    $3 int4[] of those failed
INSERT INTO {schema}.child_done (parent_id, n, failed)
SELECT u.parent_id, u.n, u.failed FROM unnest($1::uuid[], $2::int4[], $3::int4[]) AS u (parent_id, n, failed)
WHERE EXISTS (SELECT FROM {schema}.task p WHERE p.run_id = u.parent_id OFFSET 0);

-- name: lock_parents :exec
-- First half of waking parents: take the rows of those whose count is reached, in order. A parent that waits for more is not locked: the workers
-- that end its other children do not wait for one another. Whoever commits last looks last, and sees the counts of all.
-- Locks:  task rows, ascending run_id.     Index:  task_children_idx, child_done_parent_idx (custom plan: prunes)
-- $1 uuid[] parent, ascending
SELECT FROM {schema}.task t
WHERE t.run_id = ANY ($1::uuid[]) AND t.owner IS NOT DISTINCT FROM NULL::int4 AND t.wait_children IS NOT NULL
  AND (SELECT coalesce(sum(d.n), 0) >= t.wait_children OR coalesce(sum(d.failed), 0) > t.wait_failed
       FROM {schema}.child_done d WHERE d.parent_id = t.run_id AND d.parent_id = ANY ($1::uuid[]))
ORDER BY t.run_id FOR NO KEY UPDATE;

-- name: wake_parents :exec
-- Second half: wake those that are parked on children and whose count is reached.
-- Locks:  as lock_parents, already held.     Index:  task_children_idx, child_done_parent_idx of the parents' partitions (custom plan: prunes)
-- $1 uuid[] parent
UPDATE {schema}.task t
SET ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(), wait_children = NULL, wait_failed = NULL
FROM (SELECT d.parent_id, sum(d.n) AS n, sum(d.failed) AS failed FROM {schema}.child_done d WHERE d.parent_id = ANY ($1::uuid[]) GROUP BY d.parent_id) AS done
WHERE t.run_id = ANY ($1::uuid[]) AND t.run_id = done.parent_id AND t.owner IS NOT DISTINCT FROM NULL::int4 AND t.wait_children IS NOT NULL
  AND (done.n >= t.wait_children OR done.failed > t.wait_failed);

-- name: look_at_parked :many
-- The parker's part in that, in a transaction after its own: has the last child ended while the parking was not committed? Then its worker has
-- passed the row by, for it was still owned. Whoever of them looks last looks at a newer snapshot than all the commits.
-- Locks:  none.     Index:  task_children_idx, child_done_parent_idx (custom plan: prunes)
-- $1 uuid[] run     Returns those that are to be woken
SELECT t.run_id
FROM {schema}.task t
JOIN (SELECT d.parent_id, sum(d.n) AS n, sum(d.failed) AS failed FROM {schema}.child_done d WHERE d.parent_id = ANY ($1::uuid[]) GROUP BY d.parent_id) AS done
  ON done.parent_id = t.run_id
WHERE t.run_id = ANY ($1::uuid[]) AND t.owner IS NOT DISTINCT FROM NULL::int4 AND t.wait_children IS NOT NULL
  AND (done.n >= t.wait_children OR done.failed > t.wait_failed);

-- name: release :exec
-- Give runs back: to wait for a time (timer, backoff), at once, or for ever (parked). One that is to be told of its cancellation does not wait, but for its
-- code (19, 20): then its timeout does not wake it either, unless it has not begun, or changed code may be mended by then.
-- Locks:  task rows in the order given: ascending run_id.     Index:  task_pkey
-- $1 uuid[] run, ascending    $2 timestamptz[] ready_at (infinity = until something wakes it)    $3 int2[] wait_kind    $4 text[] detail
-- $5 int4[] seq    $6 text[] step    $7 int4[] attempt    $8 int2[] resumed (4: it sleeps, see fire_slept)    $9 text[] version of its code (null: nothing has begun)
-- $10 timestamptz[] since when it waits (null: now)    $11 int4 worker
UPDATE {schema}.task t
SET owner = NULL, claims = 0, wait_detail = u.detail, wait_since = CASE WHEN t.cancel_to > 0 THEN clock_timestamp() ELSE least(u.since, clock_timestamp()) END,
    cancel_to = CASE WHEN t.cancel_to IS NOT NULL THEN 0 END,
    ready_at = CASE WHEN u.wait_kind IN (19, 20) AND u.resumed <> 0
                    THEN CASE WHEN u.wait_kind = 19 AND t.cancel_at > clock_timestamp() THEN t.cancel_at ELSE u.ready_at END
                    WHEN t.cancel_to > 0 THEN clock_timestamp() ELSE least(u.ready_at, t.cancel_at) END,
    wait_kind = CASE WHEN t.cancel_to > 0 AND u.wait_kind < 19 THEN 1 ELSE u.wait_kind END,
    seq = u.seq, step = u.step, attempt = u.attempt, resumed = CASE WHEN t.cancel_to > 0 THEN greatest(u.resumed, 1::int2) ELSE u.resumed END, wait_children = NULL, wait_failed = NULL, version = coalesce(u.version, t.version)
FROM unnest($1::uuid[], $2::timestamptz[], $3::int2[], $4::text[], $5::int4[], $6::text[], $7::int4[], $8::int2[], $9::text[], $10::timestamptz[])
  AS u (run_id, ready_at, wait_kind, detail, seq, step, attempt, resumed, version, since)
WHERE t.run_id = u.run_id AND t.run_id = ANY ($1::uuid[]) AND t.owner IS NOT DISTINCT FROM $11::int4;

-- name: lock_own :exec
-- First half of parking on children or signals: take the rows; a child that ends, or a signal that is sent meanwhile, waits for us or is seen by
-- park_on_children, park_on_signals.
-- Locks:  task rows, ascending run_id.     Index:  task_pkey
-- $1 uuid[] run, ascending    $2 int4 worker
SELECT FROM {schema}.task WHERE run_id = ANY ($1::uuid[]) AND owner IS NOT DISTINCT FROM $2::int4 ORDER BY run_id FOR NO KEY UPDATE;

-- name: park_on_children :exec
-- Second half, with the newer snapshot: park those whose count is not reached; the others become ready at once.
-- Locks:  as lock_own, already held.     Index:  task_pkey, child_done_parent_idx (custom plan: prunes)
-- $1 uuid[] run    $2 int4[] wait_children    $3 int4[] wait_failed    $4 timestamptz[] wake at the latest (a timer beside the children, or infinity)
-- $5 int4[] seq    $6 text[] step    $7 text[] detail    $8 int2[] wait_kind    $9 text[] version of its code    $10 timestamptz[] since when it waits    $11 int4 worker
UPDATE {schema}.task t
SET owner = NULL, claims = 0, wait_since = CASE WHEN p.reached THEN clock_timestamp() ELSE least(p.since, clock_timestamp()) END, version = p.version, seq = p.seq, step = p.step, attempt = NULL, resumed = 1, wait_detail = p.detail,
    cancel_to = CASE WHEN t.cancel_to IS NOT NULL THEN 0 END,
    ready_at = CASE WHEN p.reached THEN clock_timestamp() ELSE least(p.ready_at, t.cancel_at) END,
    wait_kind = CASE WHEN p.reached THEN 1 ELSE p.wait_kind END,
    wait_children = CASE WHEN NOT p.reached THEN p.wait_children END,
    wait_failed = CASE WHEN NOT p.reached THEN p.wait_failed END
FROM (SELECT u.*, coalesce(done.n, 0) >= u.wait_children OR coalesce(done.failed, 0) > u.wait_failed OR coalesce(asked.cancel_to, 0) > 0 AS reached
      FROM unnest($1::uuid[], $2::int4[], $3::int4[], $4::timestamptz[], $5::int4[], $6::text[], $7::text[], $8::int2[], $9::text[],
                  $10::timestamptz[])
             AS u (run_id, wait_children, wait_failed, ready_at, seq, step, detail, wait_kind, version, since)
      LEFT JOIN (SELECT d.parent_id, sum(d.n) AS n, sum(d.failed) AS failed FROM {schema}.child_done d WHERE d.parent_id = ANY ($1::uuid[]) GROUP BY d.parent_id) AS done
        ON done.parent_id = u.run_id
      JOIN {schema}.task asked ON asked.run_id = u.run_id) AS p
WHERE t.run_id = p.run_id AND t.run_id = ANY ($1::uuid[]) AND t.owner IS NOT DISTINCT FROM $11::int4;

-- name: park_on_signals :exec
-- The same for runs that wait for signals, beside children or a time, or for nothing else: those for which one has come become ready at once.
-- Numbers of messages are taken under the lock of the task row, so for each run they are in the order of commits: what is after the
-- last one that was read is all that was not read.
-- Locks:  as lock_own, already held.     Index:  task_pkey, message primary key, child_done_parent_idx (custom plan: prunes)
-- $1 uuid[] run    $2 text[] names, a line each    $3 text[] for each name the last number that was read, by commas
-- $4 int4[] wait_children (null: none)    $5 int4[] wait_failed    $6 timestamptz[] wake at the latest (a timer, or infinity)
-- $7 int4[] seq    $8 text[] step    $9 text[] detail    $10 int2[] wait_kind    $11 text[] version of its code
-- $12 timestamptz[] since when it waits    $13 int4 worker
WITH p AS MATERIALIZED (                             -- so that whether one has come is asked once, not wherever it is needed
    SELECT u.*,
           EXISTS (SELECT FROM unnest(string_to_array(u.names, E'\n'), string_to_array(u.afters, ',')::int8[]) AS w (name, after)
                   JOIN {schema}.message m ON m.run_id = u.run_id AND m.kind = 1 AND m.name = w.name AND m.n > w.after
                   WHERE m.run_id = ANY ($1::uuid[]))
           OR u.wait_children IS NOT NULL AND (coalesce(done.n, 0) >= u.wait_children OR coalesce(done.failed, 0) > u.wait_failed)
           OR (SELECT asked.cancel_to > 0 FROM {schema}.task asked WHERE asked.run_id = u.run_id AND asked.run_id = ANY ($1::uuid[])) IS TRUE AS reached
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::int4[], $5::int4[], $6::timestamptz[], $7::int4[], $8::text[], $9::text[], $10::int2[],
                $11::text[], $12::timestamptz[])
           AS u (run_id, names, afters, wait_children, wait_failed, ready_at, seq, step, detail, wait_kind, version, since)
    LEFT JOIN (SELECT d.parent_id, sum(d.n) AS n, sum(d.failed) AS failed FROM {schema}.child_done d WHERE d.parent_id = ANY ($1::uuid[]) GROUP BY d.parent_id) AS done
      ON done.parent_id = u.run_id)
UPDATE {schema}.task t
SET owner = NULL, claims = 0, wait_since = CASE WHEN p.reached THEN clock_timestamp() ELSE least(p.since, clock_timestamp()) END, version = p.version, seq = p.seq, step = p.step, attempt = NULL, resumed = 1, wait_detail = p.detail,
    cancel_to = CASE WHEN t.cancel_to IS NOT NULL THEN 0 END,
    ready_at = CASE WHEN p.reached THEN clock_timestamp() ELSE least(p.ready_at, t.cancel_at) END,
    wait_kind = CASE WHEN p.reached THEN 1 ELSE p.wait_kind END,
    wait_children = CASE WHEN NOT p.reached THEN p.wait_children END,
    wait_failed = CASE WHEN NOT p.reached THEN p.wait_failed END,
    wait_signals = CASE WHEN NOT p.reached THEN string_to_array(p.names, E'\n') END
FROM p WHERE t.run_id = p.run_id AND t.run_id = ANY ($1::uuid[]) AND t.owner IS NOT DISTINCT FROM $13::int4;

-- name: park_paused :exec
-- Put runs aside that somebody paused, when nothing of them executes any more, until their time is over. One that was resumed, or cancelled, meanwhile is
-- ready at once.
-- Locks:  as lock_own, already held; their rows of pause.     Index:  task_pkey, pause_pkey
-- $1 uuid[] run    $2 int4[] seq    $3 text[] step    $4 int2[] resumed    $5 text[] version    $6 int4 worker
WITH asked AS (
    UPDATE {schema}.pause p SET ready_at = NULL WHERE p.run_id = ANY ($1::uuid[]) RETURNING p.run_id, p.detail)
UPDATE {schema}.task t
SET owner = NULL, claims = 0, wait_since = clock_timestamp(), seq = u.seq, step = u.step, attempt = NULL, resumed = u.resumed, wait_children = NULL, wait_failed = NULL,
    wait_signals = NULL, cancel_to = CASE WHEN t.cancel_to IS NOT NULL THEN 0 END,
    ready_at = CASE WHEN a.run_id IS NULL THEN clock_timestamp() ELSE coalesce(t.cancel_at, 'infinity') END, wait_kind = CASE WHEN a.run_id IS NULL THEN 1 ELSE 7 END, wait_detail = a.detail,
    version = coalesce(u.version, t.version)
FROM unnest($1::uuid[], $2::int4[], $3::text[], $4::int2[], $5::text[]) AS u (run_id, seq, step, resumed, version) LEFT JOIN asked a ON a.run_id = u.run_id
WHERE t.run_id = u.run_id AND t.run_id = ANY ($1::uuid[]) AND t.owner IS NOT DISTINCT FROM $6::int4;

-- name: wake_completed :exec
-- After a parking, in its transaction: whose token was completed meanwhile is ready at once. Whoever completes one takes the lock that the parking holds.
-- Locks:  task rows, already held.     Index:  task_pkey, completion primary key (custom plan: prunes)
-- $1 uuid[] run    $2 int4[] seq    $3 int4[] number of the try
UPDATE {schema}.task t
SET ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(), wait_children = NULL, wait_failed = NULL, wait_signals = NULL
FROM (SELECT DISTINCT u.run_id FROM unnest($1::uuid[], $2::int4[], $3::int4[]) AS u (run_id, seq, n)
      JOIN {schema}.completion c ON c.run_id = u.run_id AND c.seq = u.seq AND c.n = u.n WHERE c.run_id = ANY ($1::uuid[])) AS come
WHERE t.run_id = come.run_id AND t.run_id = ANY ($1::uuid[]) AND t.owner IS NOT DISTINCT FROM NULL::int4 AND t.wait_kind + 0 IN (9, 10, 11, 13, 14, 15);   -- + 0: by the run, not by task_wait_idx

-- name: expire_tokens :many
-- Close tokens whose time is over, or whose holder has given no sign of life, by the database's clock; what somebody has closed before stays as it is.
-- Locks:  none but the new rows.     Index:  attempt primary key, beat primary key (custom plan: prunes)
-- $1 uuid[] run    $2 int4[] seq    $3 int4[] number of the try     Returns run, seq
INSERT INTO {schema}.completion (run_id, seq, n, kind)
SELECT a.run_id, a.seq, a.n, CASE WHEN a.next_retry_at <= clock_timestamp() THEN 3 ELSE 4 END
FROM unnest($1::uuid[], $2::int4[], $3::int4[]) AS u (run_id, seq, n)
JOIN {schema}.attempt a ON a.run_id = u.run_id AND a.seq = u.seq AND a.n = u.n AND a.kind = 7
LEFT JOIN {schema}.beat b ON b.run_id = a.run_id AND b.run_id = ANY ($1::uuid[]) AND b.seq = a.seq AND b.n = a.n
WHERE a.run_id = ANY ($1::uuid[]) AND (a.next_retry_at <= clock_timestamp() OR greatest(a.ended_at, b.at)
      + (convert_from(a.error, 'UTF8')::jsonb ->> 'heartbeat_s')::float8 * interval '1 s' <= clock_timestamp())
ON CONFLICT (run_id, seq, n) DO NOTHING RETURNING run_id, seq;

-- name: look_at_requests :many
-- What somebody wants of runs that this worker has, once a second and when it is told.
-- Locks:  task rows that nobody has, SKIP LOCKED, and their rows of pause and changed.     Index:  pause_pkey, changed_pkey, task_pkey
-- $1 int4 worker    $2 int8[] numbers of what it has read     Returns run, number of what changed (null: it is to be paused)
SELECT r.run_id, r.n FROM {schema}.requests_of($1::int4, $2::int8[]) AS r;

-- name: insert_consumed :exec
-- Record which messages were given to their runs, in the batch that has the rows of the waits in step.
-- Locks:  none but the new rows.     Index:  none (insert; the primary key refuses a second consumption)
-- $1 uuid[] run    $2 text[] name    $3 int8[] number    $4 int4[] seq of the wait
INSERT INTO {schema}.consumed (run_id, kind, name, n, seq)
SELECT u.run_id, 1, u.name, u.n, u.seq
FROM (SELECT unnest($1::uuid[]) AS run_id, unnest($2::text[]) AS name, unnest($3::int8[]) AS n, unnest($4::int4[]) AS seq) AS u;

-- name: read_messages :many
-- What has come for runs in memory that wait: for each run and name the next ones after the last that was read, or consumed where nothing was
-- read yet. At most 256 and 256 KiB of each, but one at least.
-- Locks:  none.     Index:  message primary key, consumed primary key, pruned.
-- $1 uuid[] run    $2 text[] name    $3 int8[] after (null: nothing was read yet)
-- $4 uuid the smallest of the runs    $5 uuid the largest
-- Returns run, name, number, payload (both null: there is none), and after which number it was read
SELECT a.run_id, a.name, m.n, m.payload, a.after
FROM (SELECT u.run_id, u.name, coalesce(u.after, (SELECT c.n FROM {schema}.consumed c WHERE c.run_id = u.run_id AND c.run_id BETWEEN $4::uuid AND $5::uuid
                                                  AND c.kind = 1 AND c.name = u.name ORDER BY c.run_id DESC, c.kind DESC, c.name DESC, c.n DESC LIMIT 1), 0) AS after
      FROM unnest($1::uuid[], $2::text[], $3::int8[]) AS u (run_id, name, after) OFFSET 0) AS a   -- OFFSET: so that it is looked up once
LEFT JOIN LATERAL (
    SELECT s.n, s.payload
    FROM (SELECT r.n, r.payload, sum(length(r.payload)) OVER (ORDER BY r.n) - length(r.payload) AS before
          FROM (SELECT m.n, m.payload FROM {schema}.message m
                WHERE m.run_id = a.run_id AND m.run_id BETWEEN $4::uuid AND $5::uuid AND m.kind = 1 AND m.name = a.name AND m.n > a.after
                ORDER BY m.run_id, m.kind, m.name, m.n LIMIT 256) AS r) AS s
    WHERE s.before < 262144) AS m ON true
ORDER BY m.n;

-- name: look_at_updates :many
-- What was sent to runs that this worker has, in the order of arrival: 256 and 4 MiB at most, but one at least. The table holds what nobody has
-- taken yet, so it is all but empty.
-- Locks:  none.     Index:  update_request_open_idx, task_pkey
-- $1 int4 worker     Returns run, number, name, id, argument
SELECT s.run_id, s.n, s.name, s.id, s.payload
FROM (SELECT r.*, sum(length(r.payload)) OVER (ORDER BY r.n) - length(r.payload) AS before
      FROM (SELECT q.run_id, q.n, q.name, q.id, q.payload
            FROM {schema}.update_request q JOIN {schema}.task t ON t.run_id = q.run_id
            WHERE q.rejected_at IS NULL AND t.owner IS NOT DISTINCT FROM $1::int4 ORDER BY q.n LIMIT 256) AS r) AS s
WHERE s.before < 4194304;

-- name: accept_updates :exec
-- Move requests into the history, in the batch that has their rows in step. Nobody but a run's owner takes them.
-- Locks:  the requests.     Index:  update_request_pkey
-- $1 uuid[] run    $2 text[] name    $3 text[] id    $4 int4[] seq
WITH taken AS (
    DELETE FROM {schema}.update_request q USING unnest($1::uuid[], $2::text[], $3::text[], $4::int4[]) AS u (run_id, name, id, seq)
    WHERE q.run_id = u.run_id AND q.name = u.name AND q.id = u.id
    RETURNING q.run_id, q.n, q.sent_at, u.seq, q.name, q.id)
INSERT INTO {schema}.update_accepted (run_id, n, sent_at, seq, name, id) SELECT run_id, n, sent_at, seq, name, id FROM taken;

-- name: reject_updates :exec
-- Note why requests were refused; that is all that is left of them, for an hour. Repeated, it changes nothing.
-- Locks:  the requests.     Index:  update_request_pkey
-- $1 uuid[] run    $2 text[] name    $3 text[] id    $4 bytea[] error
UPDATE {schema}.update_request q SET rejected_at = clock_timestamp(), error = u.error
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[]) AS u (run_id, name, id, error)
WHERE q.run_id = u.run_id AND q.name = u.name AND q.id = u.id AND q.rejected_at IS NULL;

-- name: insert_update_ends :exec
-- Record how handlers of updates ended, in the batch of what led to it. A replay may repeat the last of it: the rows are there then.
-- Locks:  none but the new rows.     Index:  none (insert; the primary key is looked at)
-- $1 uuid[] run    $2 int4[] seq    $3 int2[] status    $4 bytea[] result    $5 timestamptz[] ended
INSERT INTO {schema}.update_done (run_id, seq, status, result, ended_at)
SELECT u.run_id, u.seq, u.status, u.result, u.ended_at
FROM unnest($1::uuid[], $2::int4[], $3::int2[], $4::bytea[], $5::timestamptz[]) AS u (run_id, seq, status, result, ended_at)
ON CONFLICT (run_id, seq) DO NOTHING;

-- name: wake_updated :exec
-- The parker's part in not leaving a run asleep that was sent an update while its parking was not committed: a look with a newer snapshot,
-- in a transaction after its own. Who sends after that sees that the run is parked.
-- Locks:  task rows of those that are woken, ascending run_id.     Index:  none here; those of its function: task_pkey, update_request_pkey
-- $1 uuid[] run
SELECT {schema}.wake_updated($1::uuid[]);

-- name: insert_runs :exec
-- Start child runs in the batch of their parent's command. The parent's row is locked FOR SHARE: whoever cancels it waits and sees its children, or has
-- marked it before, and a child that its code started without having been told of that ends as it begins.
-- Locks:  the parents' task rows, FOR SHARE.     Index:  workflow_pkey, task_pkey
-- $1 uuid[] run    $2 int4[] workflow    $3 text[] queue (null: the workflow's)    $4 int2[] prio    $5 bytea[] input
-- $6 uuid[] parent    $7 int4[] parent_seq    $8 int8[] delay in us    $9 int2[] close policy    $10 int2[] 1: the parent was told of its cancellation
WITH parents AS MATERIALIZED (
    SELECT t.run_id, t.cancel_to IS NOT NULL AS marked FROM {schema}.task t WHERE t.run_id = ANY ($6::uuid[]) ORDER BY t.run_id FOR SHARE),
asked AS MATERIALIZED (
    SELECT u.*, coalesce({schema}.queue_id(u.queue), w.queue) AS goes_to, clock_timestamp() + u.delay_us * interval '1 us' AS ready_at, w.timeout_s,
           coalesce(p.marked, false) AND u.told = 0 AND u.parent_close <> 1 AS too_late
    FROM unnest($1::uuid[], $2::int4[], $3::text[], $4::int2[], $5::bytea[], $6::uuid[], $7::int4[], $8::int8[], $9::int2[], $10::int2[])
           AS u (run_id, workflow, queue, prio, input, parent_id, parent_seq, delay_us, parent_close, told)
    JOIN {schema}.workflow w ON w.id = u.workflow LEFT JOIN parents p ON p.run_id = u.parent_id),
made AS (
    INSERT INTO {schema}.run (run_id, workflow, queue, prio, input, parent_id, parent_seq)
    SELECT run_id, workflow, goes_to, prio, input, parent_id, parent_seq FROM asked),
linked AS (
    INSERT INTO {schema}.child (parent_id, seq, run_id) SELECT parent_id, parent_seq, run_id FROM asked),
refused AS (
    INSERT INTO {schema}.cancellation (run_id, how, actor, reason)
    SELECT run_id, 3, 'run ' || parent_id, 'its parent was cancelled' FROM asked WHERE too_late),
ended AS (
    INSERT INTO {schema}.outcome (run_id, ended_at, steps, status, result)
    SELECT run_id, clock_timestamp(), 0, 3, {schema}.error_json('RunCancelled', 'its parent was cancelled') FROM asked WHERE too_late),
counted AS (
    INSERT INTO {schema}.child_done (parent_id, n, failed) SELECT parent_id, count(*), count(*) FROM asked WHERE too_late GROUP BY parent_id)
INSERT INTO {schema}.task (run_id, ready_at, cancel_at, queue, workflow, prio, parent_id, parent_close, input)
SELECT run_id, ready_at, ready_at + timeout_s * interval '1 s', goes_to, workflow, prio, parent_id, nullif(parent_close, 0),
       CASE WHEN length(input) <= 1024 THEN input END
FROM asked WHERE NOT too_late;

-- name: insert_timers :many
-- Make sleeps durable, by the database's clock.
-- Locks:  none but the new rows.     Index:  none
-- $1 uuid[] run    $2 int4[] seq    $3 int8[] delay in us    $4 timestamptz[] due (null: now + delay)
-- Returns run, seq, due as us since 2000, us from now to due
INSERT INTO {schema}.timer (run_id, seq, due_at)
SELECT u.run_id, u.seq, coalesce(u.due_at, clock_timestamp() + u.delay_us * interval '1 us')
FROM unnest($1::uuid[], $2::int4[], $3::int8[], $4::timestamptz[]) AS u (run_id, seq, delay_us, due_at)
RETURNING run_id, seq, due_at, (extract(epoch FROM due_at - clock_timestamp()) * 1000000)::int8;

-- name: fire_timers :many
-- Record the firing of timers that are due by the database's clock; a worker's clock may be wrong, so the rest stays.
-- Locks:  timer rows.     Index:  timer_pkey
-- $1 uuid[] run    $2 int4[] seq    $3 int4[] pos    $4 text[] name    $5 int2[] kind    $6 int2[] status    $7 bytea[] result
-- $8 timestamptz[] when the code called it    $9 int4 worker
-- Returns run, seq, fired at
WITH fired AS (
    DELETE FROM {schema}.timer t
    USING unnest($1::uuid[], $2::int4[], $3::int4[], $4::text[], $5::int2[], $6::int2[], $7::bytea[], $8::timestamptz[])
       AS u (run_id, seq, pos, name, kind, status, result, called_at)
    WHERE t.run_id = u.run_id AND t.seq = u.seq AND t.due_at <= clock_timestamp()
    RETURNING t.run_id, t.seq, u.pos, u.name, u.kind, u.status, u.result, u.called_at)
INSERT INTO {schema}.step (run_id, started_at, ended_at, seq, pos, worker, kind, status, name, result)
SELECT run_id, least(called_at, clock_timestamp()), clock_timestamp(), seq, pos, $9::int4, kind, status, name, result FROM fired
RETURNING run_id, seq, ended_at;

-- name: fire_slept :exec
-- Record the end of sleeps, between the claim of their runs and the reading of their histories: of runs that slept and waited for nothing else, so that
-- whatever comes next in their histories can only be that. What is not due by the database's clock stays, and so does the timer of a run that
-- somebody wants to end, which is told of that first. It began since when its run has waited for it; where something made that run ready meanwhile, which is no
-- more than a guess then, after the last thing before it.
-- Locks:  timer rows (an array key is scanned in index order).     Index:  timer_pkey, task_pkey, step primary key, cancellation primary key (custom plan: prunes)
-- $1 uuid[] run    $2 uuid the smallest of them    $3 uuid the largest    $4 int4 worker
WITH slept AS (
    DELETE FROM {schema}.timer t WHERE t.run_id = ANY (ARRAY(
        SELECT o.run_id FROM {schema}.timer o
        WHERE o.run_id = ANY (ARRAY(SELECT unnest($1::uuid[])))
          AND NOT EXISTS (SELECT FROM {schema}.cancellation c WHERE c.run_id = o.run_id AND c.run_id BETWEEN $2::uuid AND $3::uuid OFFSET 0)
        GROUP BY o.run_id HAVING count(*) = 1 AND max(o.due_at) <= clock_timestamp()))
    RETURNING t.run_id, t.seq, t.due_at)
INSERT INTO {schema}.step (run_id, started_at, ended_at, seq, pos, worker, kind, status, name)
SELECT d.run_id, CASE WHEN d.since <= d.due_at THEN d.since ELSE greatest(h.given_at, {schema}.id_time(d.run_id)) END, clock_timestamp(), d.seq, h.pos, $4::int4, 2, 1, 'sleep'
FROM (SELECT s.*, (SELECT t.wait_since FROM {schema}.task t WHERE t.run_id = s.run_id) AS since FROM slept s) AS d
CROSS JOIN LATERAL (SELECT coalesce(max(s.pos) + 1, 0) AS pos, max(s.ended_at) AS given_at
                    FROM {schema}.step s WHERE s.run_id = d.run_id AND s.run_id BETWEEN $2::uuid AND $3::uuid) AS h;

-- name: drop_timers :exec
-- Forget the timers of runs that ended or no longer wait for them (seq null: all of the run).
-- Locks:  timer rows.     Index:  timer_pkey
-- $1 uuid[] run    $2 int4[] seq
DELETE FROM {schema}.timer t USING unnest($1::uuid[], $2::int4[]) AS u (run_id, seq)
WHERE t.run_id = u.run_id AND (u.seq IS NULL OR t.seq = u.seq);

-- name: claim :many
-- Take ready runs: by priority, then in the order of the queues given, then oldest first.
-- Addressed by ctid: a row newer than this statement's snapshot is skipped, where `run_id in (…)` would follow it and
-- return a run whose history was written in between. So fewer than asked never means empty.
-- One lateral per (queue, priority) with its own low-water mark: no claim walks over the dead entries of earlier ones.
-- Nothing sorts above the laterals, so the outer LIMIT ends the scan: exactly as many rows are locked as are taken.
-- No column changes that an index has, so that every claim is a HOT update: wait_kind stays what the run was queued or parked for, and means nothing
-- while there is an owner. Claims of sleepers that cleared it took 12 us a run, not 7.
-- statement_timestamp() is stable, so it bounds the index scan; it is never later than the clock: nothing is early.
-- Queues that are paused are left out before their ranges are looked at, by one look for all of them: 3 us of a claim while none is paused, about 10 while one is.
-- Locks:  task rows FOR NO KEY UPDATE SKIP LOCKED.     Index:  task_ready_idx, one range per (queue, priority); queue_pause_pkey
-- $1 int4[] queue    $2 int2[] prio, both in claiming order    $3 timestamptz[] mark    $4 uuid[] mark    $5 int4 run_max    $6 int4 worker
-- Returns run, workflow, resumed, claims, queue, prio, ready_at, parent, key, input (null: read it from run), deadline, version (null: any)
UPDATE {schema}.task t
SET owner = $6::int4, claims = t.claims + 1, wait_kind = CASE WHEN t.wait_kind = 1 OR t.wait_kind BETWEEN 9 AND 15 THEN t.wait_kind END
WHERE t.ctid = ANY (ARRAY(
    SELECT c.ctid
    FROM unnest($1::int4[], $2::int2[], $3::timestamptz[], $4::uuid[]) AS m (queue, prio, ready_at, run_id),
         LATERAL (
            SELECT r.ctid FROM {schema}.task r
            WHERE r.queue = m.queue AND r.prio = m.prio AND r.owner IS NULL
              AND (r.ready_at, r.run_id) >= (m.ready_at, m.run_id) AND r.ready_at <= statement_timestamp()
            ORDER BY r.ready_at, r.run_id LIMIT $5::int4 FOR NO KEY UPDATE SKIP LOCKED) AS c
    WHERE m.queue <> ALL (ARRAY(SELECT p.queue FROM {schema}.queue_pause p))
    LIMIT $5::int4))
RETURNING t.run_id, t.workflow, t.resumed, t.claims, t.queue, t.prio, t.ready_at, t.parent_id, t.key, t.input, t.cancel_at, t.version;

-- name: publish :exec
-- Say which step a claimed run has been executing for more than a second, or (kind null) that it no longer does.
-- Locks:  task rows in the order given: ascending run_id.     Index:  task_pkey
-- $1 uuid[] run, ascending    $2 int2[] wait_kind    $3 int4[] seq    $4 text[] step    $5 int4[] attempt    $6 timestamptz[] since    $7 int4 worker
UPDATE {schema}.task t SET wait_kind = u.wait_kind, seq = u.seq, step = u.step, attempt = u.attempt, wait_since = u.since
FROM unnest($1::uuid[], $2::int2[], $3::int4[], $4::text[], $5::int4[], $6::timestamptz[]) AS u (run_id, wait_kind, seq, step, attempt, since)
WHERE t.run_id = u.run_id AND t.run_id = ANY ($1::uuid[]) AND t.owner IS NOT DISTINCT FROM $7::int4;

-- name: claim_missing :many
-- Take runs that are parked because whoever claimed them had not their workflow in their version: this worker has. They are handed over and not
-- woken: who can't run them would be as quick to claim them again.
-- Locks:  task rows FOR NO KEY UPDATE SKIP LOCKED.     Index:  task_missing_idx: a look for each queue, workflow and version of which there are any,
-- and a range for each that is accepted; queue_pause_pkey
-- $1 int4[] workflow    $2 text[] its version here    $3 int4[] queue    $4 int4 run_max    $5 int4 worker
-- Returns as claim
UPDATE {schema}.task t SET owner = $5::int4, claims = t.claims + 1, wait_kind = NULL, wait_detail = NULL, ready_at = statement_timestamp()
WHERE t.ctid = ANY (ARRAY(
    SELECT c.ctid
    FROM {schema}.missing m JOIN unnest($1::int4[], $2::text[]) AS here (workflow, version) ON here.workflow = m.workflow AND {schema}.accepts(here.version, m.pin),
         LATERAL (
            SELECT r.ctid FROM {schema}.task r
            WHERE r.wait_kind = 20 AND r.queue = m.queue AND r.workflow = m.workflow AND coalesce(r.version, '') = m.pin AND r.owner IS NULL
            ORDER BY r.run_id LIMIT $4::int4 FOR NO KEY UPDATE SKIP LOCKED) AS c
    WHERE m.queue = ANY ($3::int4[]) AND m.queue <> ALL (ARRAY(SELECT p.queue FROM {schema}.queue_pause p))
    LIMIT $4::int4))
RETURNING t.run_id, t.workflow, t.resumed, t.claims, t.queue, t.prio, t.ready_at, t.parent_id, t.key, t.input, t.cancel_at, t.version;

-- name: claim_traced :many
-- claim, where a worker traces: with what is known of the trace of each run. In the order of the claim: the rows are joined to it by hashing them.
-- Locks:  as claim.     Index:  task_ready_idx, one range per (queue, priority); queue_pause_pkey; in traces_of those of its tables, pruned
-- $1 … $6 as claim
-- Returns as claim, then traceparent, tracestate, link, the run that it goes on with, the traceparent of that one
WITH taken AS ({block:claim})
SELECT c.*, x.traceparent, x.tracestate, x.link, x.origin, x.origin_traceparent
FROM taken c LEFT JOIN {schema}.traces_of(ARRAY(SELECT t.run_id FROM taken t)) AS x ON x.run_id = c.run_id;

-- name: claim_missing_traced :many
-- claim_missing, likewise.
-- Locks:  as claim_missing.     Index:  task_missing_idx, as claim_missing; queue_pause_pkey; in traces_of those of its tables, pruned
-- $1 … $5 as claim_missing     Returns as claim_traced
WITH taken AS ({block:claim_missing})
SELECT c.*, x.traceparent, x.tracestate, x.link, x.origin, x.origin_traceparent
FROM taken c LEFT JOIN {schema}.traces_of(ARRAY(SELECT t.run_id FROM taken t)) AS x ON x.run_id = c.run_id;

-- name: insert_traces :exec
-- Say in whose span children were started, and which run continues as which, where a worker traces. A batch that is sent again meets its own rows.
-- Locks:  none but the new rows.     Index:  none but the inserts'
-- $1 uuid[] run    $2 text[] traceparent (null: a trace of its own)    $3 text[] tracestate    $4 text[] link
INSERT INTO {schema}.trace (run_id, traceparent, tracestate, link)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[])
ON CONFLICT (run_id) DO NOTHING;

-- name: take_trace_ends :many
-- Forget the ends whose spans were sent, and take further ones, where a worker traces: runs that were ended from outside. Each is its taker's for a minute.
-- Locks:  rows of trace_end, with SKIP LOCKED; once a minute the row of trace_reader.     Index:  trace_end and trace_reader primary keys; then those of run, outcome, step, trace, pruned
-- $1 uuid[] run, of those that were sent    $2 int4 the most
-- Returns run, workflow, queue, key, status, steps, waits, result, when it ended, traceparent, tracestate, link, the run that it goes on with, the traceparent of that one
SELECT e.run_id, e.workflow, e.queue, e.key, e.status, e.steps, e.waits, e.result, e.ended_at, e.traceparent, e.tracestate, e.link, e.origin, e.origin_traceparent
FROM {schema}.take_trace_ends($1::uuid[], $2::int4) AS e;

-- name: read_tried :many
-- Steps that were to be tried again, or were handed over to a token, and have no result: of runs that were ended from outside, where a worker traces.
-- Locks:  none.     Index:  attempt primary key, step primary key, pruned
-- $1 uuid[] run    $2 uuid the smallest of them    $3 uuid the largest     Returns run, seq, name, when the first try began, number of the last
SELECT a.run_id, a.seq, max(a.name), min(a.started_at), max(a.n)
FROM {schema}.attempt a
WHERE a.run_id = ANY (ARRAY(SELECT unnest($1::uuid[]))) AND a.run_id BETWEEN $2::uuid AND $3::uuid AND (a.kind = 1 AND a.next_retry_at IS NOT NULL OR a.kind = 7)
  AND NOT EXISTS (SELECT FROM {schema}.step s WHERE s.run_id = a.run_id AND s.seq = a.seq AND s.run_id BETWEEN $2::uuid AND $3::uuid)
GROUP BY a.run_id, a.seq;

-- name: read_senders :many
-- In whose spans the signals and updates of runs were sent, where a worker traces: at most 128 of each.
-- Locks:  none.     Index:  trace_sender primary key, pruned
-- $1 uuid[] run    $2 uuid the smallest of them    $3 uuid the largest     Returns run, name, traceparent, tracestate
SELECT x.run_id, x.name, x.traceparent, x.tracestate
FROM unnest($1::uuid[]) AS u (run_id)
CROSS JOIN LATERAL (SELECT s.* FROM {schema}.trace_sender s WHERE s.run_id = u.run_id AND s.run_id BETWEEN $2::uuid AND $3::uuid
                    ORDER BY s.run_id, s.name, s.id LIMIT 128) AS x;

-- name: plan_custom :exec
-- Statements on partitioned tables are planned with their values, so that they prune before they lock. Reads of histories prune by the smallest and
-- the largest id and hide the list from the planner, which else looks at every id for every table: 0.7 ms of planning for 1,024 ids in `step`, not 2.3.
-- Locks:  none.     Index:  none
SET plan_cache_mode = force_custom_plan;

-- name: plan_generic :exec
-- Back to the loop's own profile.
-- Locks:  none.     Index:  none
SET plan_cache_mode = force_generic_plan;

-- name: read_inputs :many
-- Inputs that were too long to stand in task; of forks whose random numbers they draw (null: their own).
-- Locks:  none.     Index:  run primary key, pruned.
-- $1 uuid[] run    $2 uuid the smallest of them    $3 uuid the largest    $4 uuid[] those whose input was not in task     Returns run, input, drawn from
SELECT run_id, input, drawn_from FROM {schema}.run
WHERE run_id = ANY (ARRAY(SELECT unnest($1::uuid[]))) AND run_id BETWEEN $2::uuid AND $3::uuid AND (drawn_from IS NOT NULL OR run_id = ANY ($4::uuid[]));

-- name: read_steps :many
-- The history of resumed runs, in the order of delivery.
-- Locks:  none.     Index:  step primary key, pruned.
-- $1 uuid[] run    $2 uuid the smallest of them    $3 uuid the largest     Returns run, seq, pos, kind, status, name, result, ended_at
SELECT run_id, seq, pos, kind, status, name, result, ended_at FROM {schema}.step WHERE run_id = ANY (ARRAY(SELECT unnest($1::uuid[]))) AND run_id BETWEEN $2::uuid AND $3::uuid ORDER BY run_id, pos;

-- name: read_attempts :many
-- Tries of steps that have no result yet (the caller drops the others), other terms that somebody gave them (kind 5), a result that somebody gave them (kind
-- 6), tries that were handed over to a token (kind 7), and when the time of all tries is over (kind 8). Crashes (3) are no tries.
-- Locks:  none.     Index:  attempt primary key, pruned.
-- $1 uuid[] run    $2 uuid the smallest of them    $3 uuid the largest     Returns run, seq, n, kind, us from now to the next retry, terms as JSON, started, ended, next retry
SELECT run_id, seq, n, kind, (extract(epoch FROM next_retry_at - clock_timestamp()) * 1000000)::int8,
       CASE WHEN kind IN (5, 7) THEN error END, started_at, ended_at, next_retry_at
FROM {schema}.attempt WHERE run_id = ANY (ARRAY(SELECT unnest($1::uuid[]))) AND run_id BETWEEN $2::uuid AND $3::uuid AND kind IN (1, 2, 5, 6, 7, 8) ORDER BY run_id, seq, n;

-- name: read_timers :many
-- Timers that were set and have not fired.
-- Locks:  none.     Index:  timer_pkey
-- $1 uuid[] run     Returns run, seq, us from now to due
SELECT run_id, seq, (extract(epoch FROM due_at - clock_timestamp()) * 1000000)::int8 FROM {schema}.timer WHERE run_id = ANY (ARRAY(SELECT unnest($1::uuid[])));

-- name: read_completions :many
-- What came of tries that have a token, and (kind 0) the last signs of life of steps and of who holds tokens, with what was said.
-- Locks:  none.     Index:  completion primary key, beat primary key, pruned
-- $1 uuid[] run    $2 uuid the smallest of them    $3 uuid the largest     Returns run, seq, number of the try, kind, whether the policy decides, payload, when
SELECT c.run_id, c.seq, c.n, c.kind, c.retry, c.payload, c.at FROM {schema}.completion c WHERE c.run_id = ANY (ARRAY(SELECT unnest($1::uuid[]))) AND c.run_id BETWEEN $2::uuid AND $3::uuid
UNION ALL
SELECT b.run_id, b.seq, b.n, 0::int2, true, b.details, b.at FROM {schema}.beat b WHERE b.run_id = ANY (ARRAY(SELECT unnest($1::uuid[]))) AND b.run_id BETWEEN $2::uuid AND $3::uuid;

-- name: read_children :many
-- Children that the commands of resumed runs have started; of one that went on as other runs the newest. And one row for each run that inherited children.
-- Locks:  none.     Index:  child primary key, child_continued primary key, child_kept primary key, pruned.
-- $1 uuid[] parent    $2 uuid the smallest of them    $3 uuid the largest     Returns parent, seq (null: it has inherited some), child, the one that was started
SELECT c.parent_id, c.seq, coalesce((SELECT k.run_id FROM {schema}.child_continued k WHERE k.parent_id = c.parent_id AND k.parent_id BETWEEN $2::uuid AND $3::uuid AND k.seq = c.seq
                                     ORDER BY k.n DESC LIMIT 1), c.run_id), c.run_id
FROM {schema}.child c WHERE c.parent_id = ANY (ARRAY(SELECT unnest($1::uuid[]))) AND c.parent_id BETWEEN $2::uuid AND $3::uuid
UNION ALL
SELECT u.id, NULL, NULL, NULL FROM unnest($1::uuid[]) AS u (id)
WHERE EXISTS (SELECT FROM {schema}.child_kept k WHERE k.heir_id = u.id AND k.heir_id BETWEEN $2::uuid AND $3::uuid OFFSET 0);

-- name: read_outcomes :many
-- How children ended, those that have.
-- Locks:  none.     Index:  outcome primary key, pruned.
-- $1 uuid[] run    $2 uuid the smallest of them    $3 uuid the largest     Returns run, status, result
SELECT run_id, status, result FROM {schema}.outcome WHERE run_id = ANY (ARRAY(SELECT unnest($1::uuid[]))) AND run_id BETWEEN $2::uuid AND $3::uuid;

-- name: read_identity :one
-- Asked after a refusal: is this worker alive, and what is its epoch now?
-- Locks:  none.     Index:  worker_pkey
-- $1 int4 worker    $2 uuid boot     Returns epoch of a worker that nobody has declared dead; no row for any other
SELECT epoch FROM {schema}.worker WHERE id = $1::int4 AND boot = $2::uuid AND dead_at IS NULL;

-- name: read_own :many
-- Asked after read_identity, whose epoch is then never newer than this answer: which of these runs are still this worker's.
-- Locks:  none.     Index:  task_pkey
-- $1 uuid[] run    $2 int4 worker     Returns run
SELECT run_id FROM {schema}.task WHERE run_id = ANY ($1::uuid[]) AND owner IS NOT DISTINCT FROM $2::int4;

-- name: read_cancellations :many
-- What was asked of resumed runs, and of runs in memory that are marked.
-- Locks:  none.     Index:  cancellation primary key, pruned.
-- $1 uuid[] run    $2 uuid the smallest of them    $3 uuid the largest     Returns run, how (3 cancel, 4 terminate), reason, actor
SELECT run_id, how, reason, actor FROM {schema}.cancellation WHERE run_id = ANY (ARRAY(SELECT unnest($1::uuid[]))) AND run_id BETWEEN $2::uuid AND $3::uuid;

-- name: read_marks :many
-- Which of this worker's runs somebody has asked to end since it was last looked.
-- Locks:  none.     Index:  task_cancel_idx
-- $1 int4 worker     Returns run
SELECT run_id FROM {schema}.task WHERE cancel_to = $1::int4 AND cancel_to > 0 LIMIT 1000;

-- name: told_cancel :exec
-- Note that runs were told of their cancellation, in the batch that has the row of it.
-- Locks:  task rows, by run_id (an array key is scanned in index order).     Index:  task_pkey
-- $1 uuid[] run, ascending    $2 int4 worker
UPDATE {schema}.task t SET cancel_to = 0 WHERE t.run_id = ANY ($1::uuid[]) AND t.owner IS NOT DISTINCT FROM $2::int4;

-- name: no_deadline :exec
-- Runs undo what they did: from here on no timeout of theirs ends them.
-- Locks:  task rows, by run_id (an array key is scanned in index order).     Index:  task_pkey
-- $1 uuid[] run, ascending    $2 int4 worker
UPDATE {schema}.task t SET cancel_at = NULL WHERE t.run_id = ANY ($1::uuid[]) AND t.owner IS NOT DISTINCT FROM $2::int4;

-- name: close_children :exec
-- Treat the live children of runs that end in this batch as their policies say.
-- Locks:  the children's task rows, and below them, level by level.     Index:  child primary key (custom plan: prunes), task_pkey
-- $1 uuid[] parent
SELECT {schema}.close_children($1::uuid[]);

-- name: lose_children :exec
-- Have the live children cancelled that branches had called which lost in this batch.
-- Locks:  the children's task rows, and below them, level by level.     Index:  child primary key (custom plan: prunes), task_pkey
-- $1 uuid[] parent    $2 int4[] seq of the command that started the child
SELECT {schema}.lose_children($1::uuid[], $2::int4[]);
