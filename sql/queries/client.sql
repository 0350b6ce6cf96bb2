-- What a client asks, through functions alone: its role has no right on any table or view. Every statement stands
-- alone in its transaction and needs no session state, so that it works through a pooler in transaction mode.

-- name: client_facts :one
-- Ask which cell this is, how new its schema is, what time it has, and which backend answers.
-- Locks:  none
-- Returns cell, migration, us since 1970 by the database's clock, process id
SELECT f.cell, f.migration, (extract(epoch FROM f.clock) * 1000000)::pg_catalog.int8, pg_catalog.pg_backend_pid() FROM {schema}.client_facts() AS f;

-- name: client_home :one
-- Ask which server, database and schema this is.
-- Locks:  none
-- Returns a text that is the same on all connections to the same
SELECT {schema}.home();

-- name: client_parameters :one
-- Ask for a workflow's parameters as its workers registered them, for a start by name.
-- Locks:  none.     Index:  workflow_name_key
-- $1 text workflow     Returns JSON, or null for a name that no worker registered
SELECT {schema}.workflow_parameters($1);

-- name: client_start :many
-- Start runs of one workflow, all or none. A row comes back only for a key that goes on naming another run.
-- Locks:  run_key rows of the keys, in their order; replace: then the rows of the workers that have the old runs, then their tasks; the rest
-- are new rows.     Index:  run_key primary key
-- $1 text workflow    $2 uuid[] run    $3 bytea[] input    $4 text[] key (null: none)    $5 bytea[] hash of the input, with keys
-- $6 text queue (null: the workflow's)    $7 int2 priority    $8 float8 delay in s    $9 bytea attributes, JSON    $10 text batch    $11 text on_conflict
-- Returns n (from 1), the run that the key names, whether its input is the same
-- Raises  SV001 unknown workflow, SV002 clock skew, SV005 key exists (DETAIL: workflow, key, run_id as JSON), 22023 priority, attributes,
-- batch, on_conflict; 23505 on run when the ids are there already
SELECT s.n, s.run_id, s.matches
FROM {schema}.start_runs($1, $2, $3, $4, $5, $6, $7::pg_catalog.int2, pg_catalog.make_interval(secs => $8), $9, $10, $11) AS s;

-- name: client_start_traced :many
-- client_start, and who starts them says in whose span: of those that it creates. Once more a row without n where none of the others came back.
-- Locks:  as client_start.     Index:  as client_start; task and trace primary keys
-- $1 … $11 as client_start    $12 text traceparent    $13 text tracestate
-- Returns, raises  as client_start
WITH s AS MATERIALIZED ({block:client_start}),
     x AS MATERIALIZED (SELECT {schema}.trace_starts($2, $12, $13) FROM (SELECT pg_catalog.count(*) FROM s) AS started)
SELECT s.n, s.run_id, s.matches FROM x LEFT JOIN s ON true;

-- name: client_replace :many
-- The same with on_conflict replace. A row without n for each run that was ended for it.
-- Locks:  as client_start.     Index:  run_key, task primary keys
-- $1 … $10 as client_start
-- Returns, raises  as client_start
SELECT s.n, s.run_id, s.matches
FROM {schema}.replace_runs($1, $2, $3, $4, $5, $6, $7::pg_catalog.int2, pg_catalog.make_interval(secs => $8), $9, $10) AS s;

-- name: client_replace_traced :many
-- client_replace, likewise.
-- Locks:  as client_replace.     Index:  as client_replace; task and trace primary keys
-- $1 … $10 as client_replace    $11 text traceparent    $12 text tracestate
-- Returns, raises  as client_replace
WITH s AS MATERIALIZED ({block:client_replace}),
     x AS MATERIALIZED (SELECT {schema}.trace_starts($2, $11, $12) FROM (SELECT pg_catalog.count(*) FROM s) AS started)
SELECT s.n, s.run_id, s.matches FROM x LEFT JOIN s ON true;

-- name: client_start_one :exec
-- As client_start, for one run without key, batch and attributes.
-- Locks:  none but the new rows.     Index:  none but the inserts'
-- $1 text workflow    $2 uuid run    $3 bytea input    $4 text queue (null: the workflow's)    $5 int2 priority    $6 float8 delay in s
-- Raises  SV001, SV002, 22023, 23505 as client_start
SELECT {schema}.start_one($1, $2, $3, $4, $5::pg_catalog.int2, pg_catalog.make_interval(secs => $6));

-- name: client_start_told :exec
-- The same, and when it has committed the hosts are told, in a transaction of its own; the answer comes when all is on the disk. Fails within a transaction.
-- Locks:  as client_start_one; after its commit the cluster's queue of notifications     Index:  none but the inserts'
-- $1 to $6 as client_start_one    $7 text channel    $8 text what was started, as JSON
-- Raises  as client_start_one; 54000 after the start's commit when the cluster's queue of notifications is full, 57014 before or after it
CALL {schema}.start_and_tell($1, $2, $3, $4, $5::pg_catalog.int2, pg_catalog.make_interval(secs => $6), $7, $8);

-- name: client_wait_for_disk :exec
-- Wait until all that was committed before is on the disk: what others may see already need not be.
-- Locks:  none.     Index:  none
SELECT {schema}.wait_for_disk();

-- name: client_cancel :many
-- Ask that a run, and all below it, be cancelled.
-- Locks:  its task, then those below it, level by level.     Index:  task_pkey, child, cancellation and outcome primary keys, pruned
-- $1 uuid run    $2 text reason (null: none)    $3 text actor (null: the role that logged in)
-- Returns run, whether it has ended already, else the worker that has it (null: none, it was woken), workflow, queue (null: the workflow's);
-- no row for one that had ended or was cancelled before
-- Raises  SV006 unknown run, 22023 reason, actor
SELECT c.run_id, c.ended, c.owner, c.workflow, c.queue FROM {schema}.cancel_tree(ARRAY[$1::pg_catalog.uuid], $2, $3) AS c;

-- name: client_versions :many
-- Which versions of workflows there are, who has them, how many runs are of each. Reads the views.
-- Locks:  none.     Index:  none: a scan of the live runs; of those that ended a range of the outcomes' primary key
-- $1 text workflow (null: all)
-- Returns workflow, version, workers, hosts, live, running, code_missing, missing_since, ended_1h, source, first_seen_at, last_seen_at
SELECT v.workflow, v.version, v.workers, v.hosts, v.live, v.running, v.code_missing, v.missing_since, v.ended_1h, v.source, v.first_seen_at, v.last_seen_at
FROM {schema}.versions v WHERE $1::pg_catalog.text IS NULL OR v.workflow = $1::pg_catalog.text ORDER BY v.workflow, v.last_seen_at DESC NULLS FIRST, v.first_seen_at DESC, v.version;

-- name: client_move_runs :one
-- Give the next slice of a version's live runs to another version.
-- Locks:  their task rows, ascending run_id, SKIP LOCKED.     Index:  task_pkey, from $4 on
-- $1 text workflow    $2 text version (null: runs that have none)    $3 text new version    $4 uuid after (null: from the first on)    $5 boolean only count    $6 text reason    $7 text actor
-- Returns how many were moved, how many workers have or others have locked, the last run of the slice (null: that was all)
-- Raises  SV001 unknown workflow, SV026 unknown version (DETAIL: workflow, version, known as JSON), 22023 reason, actor, 55P03 locked for too long
SELECT m.moved, m.claimed, m.last FROM {schema}.move_runs($1, $2, $3, $4, dry_run => $5, reason => $6, actor => $7) AS m;

-- name: client_cancel_many :many
-- The same for many, those that nobody else has locked; rows for those that are given alone.
-- Locks:  their tasks (SKIP LOCKED), then those below them.     Index:  task_pkey, child, cancellation and outcome primary keys, pruned
-- $1 uuid[] run, at most 500    $2 text reason (null: none)    $3 text actor
-- Returns run, whether it is cancelled (false: somebody has it locked), then as client_cancel
SELECT c.run_id, c.cancelled, c.ended, c.owner, c.workflow, c.queue FROM {schema}.cancel_many($1, $2, $3) AS c;

-- name: client_terminate :one
-- End a run at once, whoever has it.
-- Locks:  the row of the worker that has it, its task, its parent's task, its children's.     Index:  worker_pkey, task_pkey, outcome primary key, pruned
-- $1 uuid run    $2 text reason (null: none)    $3 text actor     Returns whether it was live
-- Raises  SV006 unknown run
SELECT {schema}.terminate($1, $2, actor => $3);

-- name: client_terminate_many :many
-- End runs at once, those that nobody else has locked.
-- Locks:  the rows of the workers that have them, their tasks (SKIP LOCKED), their parents' and children's tasks.     Index:  worker_pkey, task_pkey, outcome primary key, pruned
-- $1 uuid[] run, at most 500    $2 text reason (null: none)    $3 text actor
-- Returns run, whether it was ended; false: somebody has it locked. No row for one that had ended
SELECT t.run_id, t.terminated FROM {schema}.terminate_many($1, $2, $3) AS t;

-- name: client_signal :one
-- Send a signal to a live run. Sent again under the same id it is stored once.
-- Locks:  the run's task.     Index:  task_pkey, message_id_idx; outcome primary key, pruned
-- $1 uuid run    $2 text name    $3 bytea payload, JSON    $4 text id
-- Returns whether it was stored, and who is to be told: the worker that has the run (null: none), whether the run was parked for it and is woken,
-- workflow, queue (null: the workflow's)
-- Raises  SV006 unknown run, SV010 it has ended (DETAIL: run_id, status, signal as JSON), 22023 name, id, payload
SELECT s.stored, s.owner, s.woken, s.workflow, s.queue FROM {schema}.send_signal($1, $2, $3, $4) AS s;

-- name: client_signal_traced :one
-- client_signal, and who sends it says in whose span: of one that is stored.
-- Locks:  as client_signal.     Index:  as client_signal; trace_sender primary key, pruned
-- $1 … $4 as client_signal    $5 text traceparent    $6 text tracestate
-- Returns, raises  as client_signal
WITH s AS MATERIALIZED ({block:client_signal}),
     x AS MATERIALIZED (SELECT {schema}.trace_sent($1, $2, $4, $5, $6) FROM (SELECT pg_catalog.count(*) FROM s) AS sent)
SELECT s.stored, s.owner, s.woken, s.workflow, s.queue FROM x LEFT JOIN s ON true;

-- name: client_signal_told :one
-- The same, and when it has committed the hosts are told, in a transaction of its own; the answer comes when all is on the disk. Fails within a transaction.
-- Locks:  the run's task, not while it waits for the disk; the cluster's queue of notifications, after that     Index:  as client_signal
-- $1 to $4 as client_signal    $5 text channel of signals    $6 text channel of starts, for a run that was woken (null: nobody is told)
-- Returns, raises  as client_signal; 54000 after the signal's commit when the cluster's queue of notifications is full, 57014 before or after it
CALL {schema}.signal_and_tell($1, $2, $3, $4, $5, $6, NULL::pg_catalog.bool, NULL::pg_catalog.int4, NULL::pg_catalog.bool, NULL::pg_catalog.text, NULL::pg_catalog.text);

-- name: client_signals :one
-- Send up to 500 signals, all or none: what client_signal does for one. The transaction that stores them waits for no disk, a second one does.
-- Locks:  their runs' tasks, in the order of their ids, not while it waits for the disk     Index:  as client_signal
-- $1 uuid[] run    $2 text[] name    $3 bytea[] payload, JSON    $4 text[] id
-- Returns arrays in the order given: as client_signal
-- Raises  as client_signal, of the first that is refused; 57014 before or after the commit
CALL {schema}.signals_together($1, $2, $3, $4, NULL::pg_catalog.bool[], NULL::pg_catalog.int4[], NULL::pg_catalog.bool[], NULL::pg_catalog.text[], NULL::pg_catalog.text[]);

-- name: client_signal_start :one
-- Start a run, or find the one that its key names, and send it a signal: both or neither.
-- Locks:  as client_start, then the run's task.     Index:  as client_start and client_signal
-- $1 text workflow    $2 uuid run    $3 bytea input    $4 text key    $5 bytea hash of the input    $6 text queue    $7 int2 priority
-- $8 float8 delay in s    $9 bytea attributes, JSON    $10 text batch    $11 text on_conflict    $12 text name    $13 bytea payload    $14 text id
-- Returns the run, then as client_signal
-- Raises  as both, SV007 the key names a run with another input (DETAIL: workflow, key, run_id as JSON)
SELECT s.run_id, s.stored, s.owner, s.woken, s.workflow, s.queue
FROM {schema}.start_and_send($1, $2, $3, $4, $5, $6, $7::pg_catalog.int2, pg_catalog.make_interval(secs => $8), $9, $10, $11, $12, $13, $14) AS s;

-- name: client_signal_start_traced :one
-- client_signal_start, likewise.
-- Locks:  as client_signal_start.     Index:  as client_signal_start; task, trace and trace_sender primary keys
-- $1 … $14 as client_signal_start    $15 text traceparent    $16 text tracestate
-- Returns, raises  as client_signal_start
WITH s AS MATERIALIZED ({block:client_signal_start}),
     x AS MATERIALIZED (SELECT {schema}.trace_starts(ARRAY[$2], $15, $16), {schema}.trace_sent(made.runs[1], $12, $14, $15, $16)
                        FROM (SELECT pg_catalog.array_agg(s.run_id) AS runs FROM s) AS made)
SELECT s.run_id, s.stored, s.owner, s.woken, s.workflow, s.queue FROM x LEFT JOIN s ON true;

-- name: client_send_update :one
-- Send an update to a live run. Sent again under the same id it is the same update.
-- Locks:  the run's task.     Index:  task_pkey, update_request_pkey; update_accepted and outcome primary keys, pruned
-- $1 uuid run    $2 text name    $3 bytea argument, JSON    $4 text id
-- Returns  as client_signal
-- Raises  SV006 unknown run, SV010 it has ended (DETAIL: run_id, status, update as JSON), 22023 name, id, argument
SELECT s.stored, s.owner, s.woken, s.workflow, s.queue FROM {schema}.send_update($1, $2, $3, $4) AS s;

-- name: client_send_update_traced :one
-- client_send_update, likewise.
-- Locks:  as client_send_update.     Index:  as client_send_update; trace_sender primary key, pruned
-- $1 … $4 as client_send_update    $5 text traceparent    $6 text tracestate
-- Returns, raises  as client_send_update
WITH s AS MATERIALIZED ({block:client_send_update}),
     x AS MATERIALIZED (SELECT {schema}.trace_sent($1, $2, $4, $5, $6) FROM (SELECT pg_catalog.count(*) FROM s) AS sent)
SELECT s.stored, s.owner, s.woken, s.workflow, s.queue FROM x LEFT JOIN s ON true;

-- name: client_update_start :one
-- Start a run, or find the one that its key names, and send it an update: both or neither.
-- Locks:  as client_start, then the run's task.     Index:  as client_start and client_send_update
-- $1 to $14 as client_signal_start
-- Returns the run, then as client_signal
-- Raises  as both, SV007 the key names a run with another input (DETAIL: workflow, key, run_id as JSON)
SELECT s.run_id, s.stored, s.owner, s.woken, s.workflow, s.queue
FROM {schema}.start_and_update($1, $2, $3, $4, $5, $6, $7::pg_catalog.int2, pg_catalog.make_interval(secs => $8), $9, $10, $11, $12, $13, $14) AS s;

-- name: client_update_start_traced :one
-- client_update_start, likewise.
-- Locks:  as client_update_start.     Index:  as client_update_start; task, trace and trace_sender primary keys
-- $1 … $14 as client_update_start    $15 text traceparent    $16 text tracestate
-- Returns, raises  as client_update_start
WITH s AS MATERIALIZED ({block:client_update_start}),
     x AS MATERIALIZED (SELECT {schema}.trace_starts(ARRAY[$2], $15, $16), {schema}.trace_sent(made.runs[1], $12, $14, $15, $16)
                        FROM (SELECT pg_catalog.array_agg(s.run_id) AS runs FROM s) AS made)
SELECT s.run_id, s.stored, s.owner, s.woken, s.workflow, s.queue FROM x LEFT JOIN s ON true;

-- name: client_update_standing :many
-- Ask how an update stands.
-- Locks:  none.     Index:  update_request_pkey; update_accepted, update_done and outcome primary keys, pruned
-- $1 uuid run    $2 text name    $3 text id     Returns stage, answer or error, how the run ended; no row when the run knows of none
-- Raises  SV006 unknown run
SELECT s.stage, s.reply, s.run_status FROM {schema}.update_standing($1, $2, $3) AS s;


-- name: client_operate :one
-- pause, resume, retry or fork one run.
-- Locks:  its task and its rows of pause and changed; retry of one that has ended: its key.     Index:  task_pkey; outcome, attempt, step, run primary keys, pruned
-- $1 text verb    $2 uuid run    $3 uuid id of the run that is made    $4 int4 seq    $5 bytea input, JSON    $6 text options, JSON    $7 text reason    $8 text actor
-- Returns whether anything was changed, what it is now, the run that goes on, and who is to be told: the worker that has it, or workflow and queue of who is ready
-- Raises  SV006 unknown run, SV029 it has ended, SV030 it does not fit (DETAIL: run_id, status or why, verb as JSON), SV001, 22023
SELECT o.did, o.state, o.made, o.owner, o.workflow, o.queue FROM {schema}.operate($1, $2, $3, $4, $5, $6::pg_catalog.text::pg_catalog.jsonb, $7, $8) AS o;

-- name: client_intervene :one
-- skip a step of one run, or edit_retry.
-- Locks:  skip: the row of the worker that has it; as client_operate.     Index:  worker_pkey; as client_operate
-- $1 … $8 as client_operate; $5 bytea result, JSON     Returns, raises  as client_operate
SELECT o.did, o.state, o.made, o.owner, o.workflow, o.queue FROM {schema}.intervene($1, $2, $3, $4, $5, $6::pg_catalog.text::pg_catalog.jsonb, $7, $8) AS o;

-- name: client_operate_many :many
-- One of those verbs on many runs, those that nobody else has locked.
-- Locks:  as client_operate and client_intervene, tasks with SKIP LOCKED.     Index:  as these
-- $1 text verb    $2 uuid[] run, at most 500    $3 int4 seq    $4 bytea input or result, JSON    $5 text options, JSON    $6 text reason    $7 text actor
-- Returns run, whether anything was changed, what it is now (ended, unknown, refused, locked too), why, the run that goes on, the worker that is to be told
SELECT m.run_id, m.did, m.state, m.why, m.made, m.owner FROM {schema}.operate_many($1, $2, $3, $4, $5::pg_catalog.text::pg_catalog.jsonb, $6, $7) AS m;

-- name: client_finish_token :one
-- Complete or fail the try of a step that a token is of. The same again changes nothing.
-- Locks:  its run's task.     Index:  task_pkey; completion, step, attempt, outcome primary keys, pruned
-- $1 text token    $2 int2 kind: 1 completed, 2 failed    $3 bytea value or error, JSON    $4 boolean whether the step's policy decides on another try
-- Returns whether it was stored, and who is to be told, as client_signal
-- Raises  SV031 no token of ours, SV032 closed (DETAIL: run_id, seq, attempt, why as JSON), 22023
SELECT f.stored, f.owner, f.woken, f.workflow, f.queue FROM {schema}.finish_token($1, $2::pg_catalog.int2, $3, $4) AS f;

-- name: client_beat_token :one
-- A sign of life of who holds a token.
-- Locks:  its run's task, its row of beat.     Index:  as client_finish_token; beat primary key, pruned
-- $1 text token    $2 bytea details, JSON (null: none)     Raises  as client_finish_token
SELECT {schema}.beat_token($1, $2);

-- name: client_step_of :one
-- Which step has that position and no result.
-- Locks:  none.     Index:  step and attempt primary keys, pruned; task_pkey
-- $1 uuid run    $2 int4 seq     Returns its name, or null
SELECT {schema}.step_of($1, $2);

-- name: client_batch_results :many
-- A page of a batch's runs, in the order of their ids, which is that of their inputs.
-- Locks:  none.     Index:  run_batch_idx, outcome primary key, pruned; task_pkey
-- $1 text batch    $2 uuid after (null: from the first)    $3 int4 limit, at most 10,000
-- Returns run, key, status, result or error, ended_at
-- Raises  SV008 unknown batch
SELECT b.run_id, b.key, b.status, b.result, b.ended_at FROM {schema}.batch_results($1, $2, $3) AS b;

-- name: client_published :many
-- Ask what a run has published, the last value of each key.
-- Locks:  none.     Index:  publication primary key, run primary key, pruned
-- $1 uuid run    $2 text key (null: all)     Returns key, value, published_at
-- Raises  SV006 unknown run
SELECT p.key, p.value, p.published_at FROM {schema}.published_values($1, $2) AS p;

-- name: client_newest :one
-- Ask as which run a run goes on that has continued as new ones.
-- Locks:  none.     Index:  outcome primary key, pruned, once for each run of the chain
-- $1 uuid run     Returns the run itself where it has not
SELECT {schema}.newest($1);

-- name: client_progress :one
-- Ask how far a run says that it is.
-- Locks:  none.     Index:  progress_note primary key, pruned; outcome, run primary keys
-- $1 uuid run     Returns JSON (done, total, at) or null
-- Raises  SV006 unknown run
SELECT {schema}.progress($1)::pg_catalog.text;

-- name: client_attributes :one
-- Ask for the attributes that a run has now.
-- Locks:  none.     Index:  attribute_set, run, outcome primary keys, pruned
-- $1 uuid run     Returns a JSON object
-- Raises  SV006 unknown run
SELECT {schema}.attributes($1)::pg_catalog.text;

-- name: client_ask_query :one
-- Ask a run what its handler answers. A host answers when this is committed.
-- Locks:  none but the new row; rows of queries whose time is over, SKIP LOCKED.     Index:  run primary key, pruned; workflow_pkey, query_pkey
-- $1 uuid id    $2 uuid run    $3 text name    $4 bytea argument, JSON (null: none)    $5 float8 s until nobody waits any more     Returns its workflow
-- Raises  SV006 unknown run
SELECT {schema}.ask_query($1, $2, $3, $4, $5);

-- name: client_query_answer :many
-- Look for the answer.
-- Locks:  none.     Index:  query_pkey
-- $1 uuid id     Returns status (null: not yet), answer or error, whether a host has taken it; no row when it is not waited for any more
SELECT a.status, a.reply, a.taken FROM {schema}.query_answer($1) AS a;

-- name: client_forget_query :one
-- Remove a query and its answer.
-- Locks:  its row.     Index:  query_pkey
-- $1 uuid id
SELECT {schema}.forget_query($1);

-- name: client_outcomes :many
-- Ask how runs ended, those that have.
-- Locks:  none.     Index:  outcome primary key, pruned
-- $1 uuid[] run     Returns run, status, result or error, ended_at
SELECT o.run_id, o.status, o.result, o.ended_at FROM {schema}.outcomes($1) AS o;

-- name: client_outcomes_soon :many
-- The same of few that are likely to end this moment: the answer waits for the first of them.
-- Locks:  none.     Index:  task_pkey; outcome primary key, pruned
-- $1 uuid[] run    $2 float8 s to wait, at most 0.002     Returns as client_outcomes
SELECT o.run_id, o.status, o.result, o.ended_at FROM {schema}.outcomes_soon($1, pg_catalog.make_interval(secs => $2)) AS o;

-- name: client_find :many
-- Ask about runs, newest first: those of the ids, or of the key, or all.
-- Locks:  none.     Index:  run primary key, pruned by ids or read backwards; run_key primary key
-- $1 uuid[] run    $2 text key    $3 text workflow    $4 text status    $5 uuid before    $6 int4 limit; null: not asked for
-- Returns run, key, workflow, queue, status, wait, step, seq, attempt, created_at, ended_at
SELECT f.run_id, f.key, f.workflow, f.queue, f.status, f.wait, f.step, f.seq, f.attempt, f.created_at, f.ended_at
FROM {schema}.find_runs($1, $2, $3, $4, $5, $6) AS f;

-- ── schedules ────────────────────────────────────────────────────────────────────────────────────────────────

-- name: client_put_schedule :one
-- Create a schedule, or change what is said of one.
-- Locks:  its row of schedule.     Index:  schedule_pkey, workflow_name_key
-- $1 text name    $2 text what is said of it, JSON    $3 text create or change    $4 text reason    $5 text actor
-- Returns created or changed
-- Raises  SV001 unknown workflow, SV038 there is one, SV039 there is none (DETAIL: its name), SV040 what is said can't be (DETAIL: schedule, why as JSON), 22023 input
SELECT {schema}.put_schedule($1, $2::pg_catalog.text::pg_catalog.jsonb, $3, NULL, $4, $5);

-- name: client_pause_schedule :one
-- Fire no tick of a schedule until it is resumed.
-- Locks:  its row of schedule.     Index:  schedule_pkey
-- $1 text name    $2 text reason    $3 text actor     Returns whether it was not paused     Raises  SV039
SELECT {schema}.pause_schedule($1, $2, $3);

-- name: client_resume_schedule :one
-- Fire it again, from its next tick on.
-- Locks:  its row of schedule.     Index:  schedule_pkey
-- $1 text name    $2 text reason    $3 text actor     Returns whether it was paused     Raises  SV039
SELECT {schema}.resume_schedule($1, $2, $3);

-- name: client_trigger_schedule :one
-- Start a run of it now.
-- Locks:  its row of schedule; then as client_start, and as client_cancel or client_terminate where the policy says so.
-- Index:  schedule_pkey, schedule_fire_pkey, schedule_fire_id_idx, schedule_live_pkey, task_pkey; those of a start
-- $1 text name    $2 text reason    $3 text actor    $4 text overlap    $5 boolean whether the hosts are told    $6 uuid id of its run: asked again under it, it is the same
-- Returns the run; null where the policy skips it     Raises  SV039, 22023
SELECT {schema}.trigger_schedule($1, $2, $3, $4, $5, $6);

-- name: client_backfill_schedule :one
-- Have a run started for each tick of a range that has none.
-- Locks:  its row of schedule.     Index:  schedule_pkey
-- $1 text name    $2 timestamptz from    $3 timestamptz until    $4 text reason    $5 text actor    $6 text overlap     Returns the number of the request     Raises  SV039, 22023
SELECT {schema}.backfill_schedule($1, $2, $3, $4, $5, $6);

-- name: client_delete_schedule :exec
-- Forget a schedule.
-- Locks:  its row of schedule; the tasks of its runs that are held.     Index:  schedule_pkey, schedule_live_pkey, task_pkey
-- $1 text name    $2 text reason    $3 text actor     Raises  SV039
SELECT {schema}.delete_schedule($1, $2, $3);

-- name: client_schedules :many
-- Schedules, or one of them, and how they stand. Reads the view.
-- Locks:  none.     Index:  schedule_pkey, schedule_live_pkey, task_pkey
-- $1 text name (null: all)     Returns the view's columns
SELECT s.name, s.workflow, s.cron, s.every_s, s.timezone, s.state, s.next_at, s.last_at, s.last_run, s.error, s.fired, s.skipped, s.missed, s.live, s.held, s.overlap, s.paused_at, s.paused_by,
       s.paused_reason, s.input, s.pass_tick, s.queue, s.priority, s.attributes, s.catchup_s, s.jitter_s, s.starts_at, s.ends_at, s.backfills, s.declared, s.created_at, s.changed_at
FROM {schema}.schedules s WHERE $1::pg_catalog.text IS NULL OR s.name = $1::pg_catalog.text ORDER BY s.name;

-- name: client_schedule_fires :many
-- What became of the last ticks of a schedule, and how their runs stand, the newest first. Reads the views.
-- Locks:  none.     Index:  schedule_fire_pkey, schedule_miss_pkey; run, outcome primary keys, pruned
-- $1 text schedule    $2 int4 max     Returns tick_at, fired_at, kind, state, run_id, status of the run, ticks, until_at
SELECT f.tick_at, f.fired_at, f.kind, f.state, f.run_id, (SELECT r.status FROM {schema}.runs r WHERE r.run_id = f.run_id) AS status, f.ticks, f.until_at
FROM (SELECT * FROM {schema}.schedule_fires WHERE schedule = $1 ORDER BY tick_at DESC LIMIT $2) AS f ORDER BY f.tick_at DESC;

-- ── queues ───────────────────────────────────────────────────────────────────────────────────────────────────────

-- name: client_pause_queue :one
-- Claim nothing more from a queue until it is resumed.
-- Locks:  its new row of queue_pause.     Index:  queue_name_key, queue_pause_pkey
-- $1 text name    $2 text reason    $3 text actor     Returns whether it was not paused     Raises  SV041 (DETAIL: queue, those that there are, as JSON), 22023
SELECT {schema}.pause_queue($1, $2, $3);

-- name: client_resume_queue :one
-- Claim from it again; the hosts are told at the commit.
-- Locks:  its row of queue_pause.     Index:  queue_name_key, queue_pause_pkey, task_ready_idx
-- $1 text name    $2 text reason    $3 text actor     Returns whether it was paused     Raises  SV041, 22023
SELECT {schema}.resume_queue($1, $2, $3, notify => true);
