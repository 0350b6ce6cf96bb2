-- deploy: pre            older programs ask the same of it, and read of SV040 what it had; what they are refused now they could not use
-- lock:   ACCESS EXCLUSIVE on worker, brief: no default; SHARE on cancellation while its index is made (who cancels waits, 1 s per million)
-- undo:   start_one as in 0012, start_runs as in 0022, start_many as in 0014, queue_id as in 0002, said_of_schedule as in 0040; then
--         DROP FUNCTION {schema}.checked_delay(interval); DROP FUNCTION {schema}.is_queue_name(text); DROP FUNCTION {schema}.wrong_attribute(jsonb);
--         DROP VIEW waits, queues, workers, task_now and what is above them, then as in 0042 and 0034; wait_groups as in 0034; audits as in 0042; DROP VIEW {schema}.served_queue;
--         DROP INDEX {schema}.cancellation_at_idx; ALTER TABLE {schema}.worker DROP COLUMN queues
--
-- A start is refused what a client refuses, by the same rules: a delay that no calendar has, a queue's name that can't be shown, attributes that nothing is found by.
-- And what operators are told holds: which queues are served, who ended what, and commands that do what they say.

-- ── what a start may say ─────────────────────────────────────────────────────────────────────────────────────
-- The figure is the client's (supervisor/core/retry.py): 317 years, so that every moment made of it can be read anywhere.
CREATE FUNCTION {schema}.checked_delay(p_delay interval) RETURNS interval
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF p_delay IS NULL OR extract(epoch FROM p_delay) < 0 OR extract(epoch FROM p_delay) >= 1e10 THEN
        RAISE EXCEPTION 'a delay is 0 s or more and less than 1e10 s (317 years), not %', coalesce(p_delay::text, 'null') USING ERRCODE = '22023';
    END IF;
    RETURN p_delay;
END $$;
COMMENT ON FUNCTION {schema}.checked_delay(interval) IS 'Internal: the delay of a start, if it is one';

-- The rule is the client's, too (supervisor/core/registry.py).
CREATE FUNCTION {schema}.is_queue_name(p_name text) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
RETURN length(p_name) BETWEEN 1 AND 200 AND p_name !~ '[\u0001-\u001F\u007F-\u009F\u2028\u2029]';
COMMENT ON FUNCTION {schema}.is_queue_name(text) IS 'Internal: whether it can name a queue: 1 to 200 characters on one line, without control characters';

CREATE OR REPLACE FUNCTION {schema}.queue_id(p_name text) RETURNS int4
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp   -- DEFINER: a start may name a new queue
AS $$
DECLARE v_id int4;
BEGIN
    IF p_name IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT id INTO v_id FROM {schema}.queue WHERE name = p_name;
    IF NOT FOUND THEN
        IF NOT {schema}.is_queue_name(p_name) THEN
            RAISE EXCEPTION 'queue %: a name has 1 to 200 characters on one line, without control characters', left(to_json(p_name)::text, 220) USING ERRCODE = '22023';
        END IF;
        INSERT INTO {schema}.queue (name) VALUES (p_name) ON CONFLICT (name) DO NOTHING;
        SELECT id INTO v_id FROM {schema}.queue WHERE name = p_name;
    END IF;
    RETURN v_id;
END $$;

-- As supervisor/core/attributes.py has it. Null where all is well.
CREATE FUNCTION {schema}.wrong_attribute(p_given jsonb) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        WHEN p_given IS NULL THEN NULL
        WHEN jsonb_typeof(p_given) <> 'object' THEN format('an object by name, not %s', jsonb_typeof(p_given))
        WHEN (SELECT count(*) FROM jsonb_object_keys(p_given)) > 50 THEN format('%s names were given and 50 are the most', (SELECT count(*) FROM jsonb_object_keys(p_given)))
        ELSE (
            SELECT CASE
                WHEN length(e.key) NOT BETWEEN 1 AND 200 OR e.key ~ '[\u0001-\u001F\u007F-\u009F\u2028\u2029]'
                    THEN format('%s is no name of 1 to 200 printable characters', to_json(left(e.key, 220)))
                WHEN v.kind = 'object' THEN format('%s is an object; a text, number, boolean, time or list of texts can be searched for', e.key)
                WHEN v.kind = 'string' THEN format('%s has %s characters and 500 are the most', e.key, length(e.value #>> '{}'))
                ELSE format('%s is a list of something else than at most 100 texts of at most 500 characters', e.key) END
            FROM jsonb_each(p_given) AS e (key, value) CROSS JOIN LATERAL (SELECT jsonb_typeof(e.value) AS kind OFFSET 0) AS v
            WHERE length(e.key) NOT BETWEEN 1 AND 200 OR e.key ~ '[\u0001-\u001F\u007F-\u009F\u2028\u2029]'
               OR v.kind = 'object'
               OR v.kind = 'string' AND length(e.value #>> '{}') > 500
               OR v.kind = 'array' AND (jsonb_array_length(e.value) > 100 OR EXISTS (
                    SELECT FROM jsonb_array_elements(e.value) AS m (it) WHERE jsonb_typeof(m.it) <> 'string' OR length(m.it #>> '{}') > 500))
            ORDER BY e.key LIMIT 1) END
$$;
COMMENT ON FUNCTION {schema}.wrong_attribute(jsonb) IS 'Internal: what of the attributes of a start nothing could be found by; null where all can be';

-- SECURITY DEFINER: as start_runs. It refuses what start_runs refuses and leaves the rows that start_runs leaves.
CREATE OR REPLACE FUNCTION {schema}.start_one(p_workflow text, p_run uuid, p_input bytea, p_queue text, p_priority int2, p_delay interval) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_workflow int4;
    v_queue    int4;
    v_deadline timestamptz;
    v_now      timestamptz := clock_timestamp();
BEGIN
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    SELECT w.id, w.queue, v_now + {schema}.checked_delay(p_delay) + w.timeout_s * interval '1 s' INTO v_workflow, v_queue, v_deadline FROM {schema}.workflow w WHERE w.name = p_workflow;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no worker has ever registered a workflow named "%"', p_workflow USING ERRCODE = 'SV001',
            HINT = 'start a worker whose app defines it, or check the name';
    END IF;
    IF p_queue IS NOT NULL THEN
        v_queue := {schema}.queue_id(p_queue);
    END IF;
    IF p_priority IS NULL OR p_priority NOT BETWEEN 0 AND 9 THEN
        RAISE EXCEPTION 'priority % is not between 0 (first) and 9 (last)', p_priority USING ERRCODE = '22023';
    END IF;
    IF p_run NOT BETWEEN {schema}.id_floor(v_now - interval '60 s') AND {schema}.id_floor(v_now + interval '60 s') THEN
        RAISE EXCEPTION 'a run id is more than 60 s off the database''s clock' USING ERRCODE = 'SV002',
            HINT = 'set the clock of the client''s machine, or let new_id() make the id';
    END IF;
    INSERT INTO {schema}.run (run_id, created_at, workflow, queue, prio, input)
    VALUES (p_run, v_now, v_workflow, v_queue, p_priority, p_input);
    INSERT INTO {schema}.task (run_id, ready_at, cancel_at, queue, workflow, prio, input)
    VALUES (p_run, v_now + p_delay, v_deadline, v_queue, v_workflow, p_priority, CASE WHEN length(p_input) <= 1024 THEN p_input END);
END $$;

-- SECURITY DEFINER: a client may start runs and must not be able to write the tables otherwise.
-- Returns a row only for what was not created: a key that names a run already (matches: with the same input).
CREATE OR REPLACE FUNCTION {schema}.start_runs(
    p_workflow text, p_ids uuid[], p_inputs bytea[], p_keys text[] DEFAULT NULL, p_hashes bytea[] DEFAULT NULL,
    p_queue text DEFAULT NULL, p_priority int2 DEFAULT 5, p_delay interval DEFAULT interval '0',
    p_attributes bytea DEFAULT NULL, p_batch text DEFAULT NULL, p_on_conflict text DEFAULT 'return')
RETURNS TABLE (n int8, run_id uuid, matches boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_workflow int4;
    v_queue    int4;
    v_batch    int8;
    v_deadline timestamptz;
    v_now      timestamptz := clock_timestamp();
    v_low      uuid := {schema}.id_floor(v_now - interval '60 s');   -- here and not in the query: once, not once per id
    v_high     uuid := {schema}.id_floor(v_now + interval '60 s');
    v_given    bytea[] := p_inputs;
    v_kept     int8[];
    v_runs     uuid[];
    v_matches  boolean[];
    v_replaced uuid[];
BEGIN
    -- a role, a database or a pooler's session may have it off; an acknowledged start is durable all the same
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    SELECT w.id, w.queue, v_now + {schema}.checked_delay(p_delay) + w.timeout_s * interval '1 s' INTO v_workflow, v_queue, v_deadline FROM {schema}.workflow w WHERE w.name = p_workflow;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no worker has ever registered a workflow named "%"', p_workflow USING ERRCODE = 'SV001',
            HINT = 'start a worker whose app defines it, or check the name';
    END IF;
    IF p_queue IS NOT NULL THEN
        v_queue := {schema}.queue_id(p_queue);
    END IF;
    IF p_priority IS NULL OR p_priority NOT BETWEEN 0 AND 9 THEN
        RAISE EXCEPTION 'priority % is not between 0 (first) and 9 (last)', p_priority USING ERRCODE = '22023';
    END IF;
    IF p_on_conflict IS NULL OR p_on_conflict NOT IN ('return', 'reject', 'replace', 'restart_failed') THEN
        RAISE EXCEPTION 'on_conflict "%" is none of return, reject, replace, restart_failed', p_on_conflict USING ERRCODE = '22023';
    END IF;
    IF EXISTS (SELECT FROM unnest(p_ids) AS id WHERE id NOT BETWEEN v_low AND v_high) THEN
        RAISE EXCEPTION 'a run id is more than 60 s off the database''s clock' USING ERRCODE = 'SV002',
            HINT = 'set the clock of the client''s machine, or let new_id() make the id';
    END IF;
    IF p_attributes IS NOT NULL AND (length(p_attributes) > 16384 OR NOT {schema}.is_json_object(p_attributes)) THEN
        RAISE EXCEPTION 'attributes are % bytes, and no JSON object of at most 16384', length(p_attributes) USING ERRCODE = '22023';
    END IF;
    IF p_batch IS NOT NULL THEN
        v_batch := {schema}.batch_id(p_batch);
    END IF;
    IF p_keys IS NOT NULL THEN
        IF p_hashes IS NULL THEN
            p_hashes := ARRAY(SELECT sha256(u.input) FROM unnest(p_inputs) WITH ORDINALITY AS u (input, n) ORDER BY u.n);
        END IF;
        SELECT k.kept, k.kept_runs, k.kept_matches, k.replaced INTO v_kept, v_runs, v_matches, v_replaced
        FROM {schema}.settle_keys(v_workflow, p_workflow, p_ids, p_keys, p_hashes, p_on_conflict) AS k;
        IF v_kept IS NOT NULL THEN                     -- the others are created
            SELECT array_agg(u.id ORDER BY u.n), array_agg(u.input ORDER BY u.n), array_agg(u.key ORDER BY u.n) INTO p_ids, p_inputs, p_keys
            FROM unnest(p_ids, p_inputs, p_keys) WITH ORDINALITY AS u (id, input, key, n) LEFT JOIN unnest(v_kept) AS kept (n) ON kept.n = u.n
            WHERE kept.n IS NULL;
        END IF;
    END IF;
    INSERT INTO {schema}.run (run_id, created_at, workflow, queue, prio, key, input, batch, attributes)
    SELECT u.id, v_now, v_workflow, v_queue, p_priority, u.key, u.input, v_batch, p_attributes
    FROM unnest(p_ids, p_inputs, p_keys) AS u (id, input, key);
    INSERT INTO {schema}.task (run_id, ready_at, cancel_at, queue, workflow, prio, key, batch, input)
    SELECT u.id, v_now + p_delay, v_deadline, v_queue, v_workflow, p_priority, u.key, v_batch, CASE WHEN length(u.input) <= 1024 THEN u.input END
    FROM unnest(p_ids, p_inputs, p_keys) AS u (id, input, key);
    IF p_attributes IS NOT NULL THEN
        PERFORM {schema}.index_attributes(p_ids, p_attributes);
    END IF;
    IF v_replaced IS NOT NULL THEN
        PERFORM {schema}.end_runs(v_replaced, 4::int2, {schema}.error_json('RunTerminated', 'its key was given to another run'));
    END IF;
    IF v_kept IS NOT NULL THEN
        IF false = ANY (v_matches) THEN
            v_matches := {schema}.same_inputs(v_runs, ARRAY(
                SELECT u.input FROM unnest(v_kept) WITH ORDINALITY AS k (n, at) JOIN unnest(v_given) WITH ORDINALITY AS u (input, n) ON u.n = k.n
                ORDER BY k.at), v_matches);
        END IF;
        RETURN QUERY SELECT k.n, k.run_id, k.matches FROM unnest(v_kept, v_runs, v_matches) AS k (n, run_id, matches);
    END IF;
END $$;

-- SECURITY DEFINER: as start_runs. Ids are made here in the order of the inputs.
CREATE OR REPLACE FUNCTION {schema}.start_many(
    workflow text, inputs jsonb[], keys text[] DEFAULT NULL, queue text DEFAULT NULL, priority int4 DEFAULT 5, delay interval DEFAULT interval '0',
    attributes jsonb DEFAULT NULL, batch text DEFAULT NULL, on_conflict text DEFAULT 'return', notify boolean DEFAULT false)
RETURNS TABLE (n int8, run_id uuid, created boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_ids    uuid[];
    v_key    text;
    v_wrong  text;
    v_inputs bytea[];
    v_facts  bytea := convert_to(start_many.attributes::text, 'UTF8');
    v_prio   int2 := least(greatest(priority, -1), 10)::int2;
    v_runs   uuid[] := ARRAY[]::uuid[];
    v_n      int8[] := ARRAY[]::int8[];
    v_ended  uuid[] := ARRAY[]::uuid[];
    v_tells  boolean := coalesce(on_conflict = 'replace' AND notify AND keys IS NOT NULL, false);
    one      record;
BEGIN
    IF keys IS NOT NULL AND cardinality(keys) <> cardinality(inputs) THEN
        RAISE EXCEPTION '% inputs and % keys were given', cardinality(inputs), cardinality(keys) USING ERRCODE = '22023';
    END IF;
    SELECT k.key INTO v_key FROM unnest(keys) AS k (key) WHERE length(k.key) NOT BETWEEN 1 AND 500 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'a key has 1 to 500 characters, not %', length(v_key) USING ERRCODE = '22023';
    END IF;
    IF {schema}.too_deep(attributes) THEN
        RAISE EXCEPTION 'attributes of workflow "%": nested deeper than 64 levels, the most that every reader of JSON copes with', workflow USING ERRCODE = '22023';
    END IF;
    v_wrong := {schema}.wrong_attribute(attributes);
    IF v_wrong IS NOT NULL THEN
        RAISE EXCEPTION 'attributes of workflow "%": %', workflow, v_wrong USING ERRCODE = '22023';
    END IF;
    v_ids := ARRAY(SELECT m.id FROM (SELECT {schema}.new_id() AS id FROM generate_series(1, cardinality(inputs))) AS m ORDER BY m.id);
    v_inputs := {schema}.as_inputs(start_many.workflow, inputs);
    FOR one IN
        SELECT s.* FROM {schema}.start_runs(start_many.workflow, v_ids, v_inputs, keys, NULL, start_many.queue, v_prio, start_many.delay, v_facts,
                                            start_many.batch, start_many.on_conflict) AS s
        WHERE NOT v_tells
        UNION ALL
        SELECT s.* FROM {schema}.replace_runs(start_many.workflow, v_ids, v_inputs, keys, NULL, start_many.queue, v_prio, start_many.delay, v_facts,
                                              start_many.batch) AS s
        WHERE v_tells
    LOOP
        IF one.n IS NULL THEN
            v_ended := v_ended || one.run_id;
            CONTINUE;
        END IF;
        IF NOT one.matches THEN
            RAISE EXCEPTION 'key "%" of workflow "%" names run %, which was started with another input', keys[one.n], workflow, one.run_id USING ERRCODE = 'SV007',
                DETAIL = json_build_object('workflow', workflow, 'key', keys[one.n], 'run_id', one.run_id)::text,
                HINT = 'use another key, or start with the same input';
        END IF;
        v_n := v_n || one.n;
        v_runs := v_runs || one.run_id;
    END LOOP;
    IF notify THEN
        PERFORM {schema}.announce(workflow, queue, cardinality(v_ids) - cardinality(v_n), delay);
        PERFORM {schema}.announce_ends(v_ended);
    END IF;
    RETURN QUERY
        SELECT u.n, coalesce(k.run_id, u.id), k.n IS NULL
        FROM unnest(v_ids) WITH ORDINALITY AS u (id, n) LEFT JOIN unnest(v_n, v_runs) AS k (n, run_id) ON k.n = u.n ORDER BY u.n;
END $$;

-- As in 0040, but for the queue and the attributes of its runs, which are those of any start; and it says which of the terms can't be.
CREATE OR REPLACE FUNCTION {schema}.said_of_schedule(p_was {schema}.schedule, p_spec jsonb) RETURNS {schema}.schedule
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s         {schema}.schedule := p_was;
    v_unknown text;
    v_wrong   text[];                                  -- which of the terms, and why
    v_whole   jsonb;
BEGIN
    SELECT string_agg(k, ', ') INTO v_unknown FROM jsonb_object_keys(p_spec) AS k
    WHERE k <> ALL (ARRAY['workflow', 'input', 'pass_tick', 'queue', 'priority', 'attributes', 'cron', 'every', 'timezone', 'starts_at', 'ends_at', 'overlap', 'catchup', 'jitter']);
    IF v_unknown IS NOT NULL THEN
        RAISE EXCEPTION 'a schedule has no %', v_unknown USING ERRCODE = 'SV040', DETAIL = json_build_object('schedule', s.name, 'why', 'a schedule has no ' || v_unknown)::text,
            HINT = 'it has workflow, input, pass_tick, queue, priority, attributes, cron, every, timezone, starts_at, ends_at, overlap, catchup, jitter';
    END IF;
    s.workflow := coalesce(p_spec ->> 'workflow', s.workflow);
    s.input := CASE WHEN p_spec ? 'input' THEN p_spec -> 'input' ELSE coalesce(s.input, '{}') END;
    s.pass_tick := CASE WHEN p_spec ? 'pass_tick' THEN p_spec ->> 'pass_tick' ELSE s.pass_tick END;
    s.queue := CASE WHEN p_spec ? 'queue' THEN p_spec ->> 'queue' ELSE s.queue END;
    s.priority := coalesce((p_spec ->> 'priority')::int2, s.priority, 5);
    s.attributes := CASE WHEN p_spec ? 'attributes' THEN nullif(p_spec -> 'attributes', 'null') ELSE s.attributes END;
    IF coalesce(p_spec ->> 'cron', p_spec ->> 'every') IS NOT NULL THEN
        s.cron := p_spec ->> 'cron';
        s.every_us := CASE WHEN p_spec ->> 'every' IS NOT NULL THEN round({schema}.seconds_of(p_spec -> 'every') * 1000000)::int8 END;
    END IF;
    s.timezone := coalesce(p_spec ->> 'timezone', s.timezone, 'UTC');
    s.starts_at := CASE WHEN p_spec ? 'starts_at' THEN (p_spec ->> 'starts_at')::timestamptz ELSE s.starts_at END;
    s.ends_at := CASE WHEN p_spec ? 'ends_at' THEN (p_spec ->> 'ends_at')::timestamptz ELSE s.ends_at END;
    s.overlap := CASE WHEN p_spec ->> 'overlap' IS NOT NULL THEN {schema}.overlap_number(p_spec ->> 'overlap') ELSE coalesce(s.overlap, 1) END;
    s.catchup_s := CASE WHEN p_spec ->> 'catchup' IS NOT NULL THEN {schema}.seconds_of(p_spec -> 'catchup') ELSE coalesce(s.catchup_s, 3600) END;
    s.jitter_s := CASE WHEN p_spec ->> 'jitter' IS NOT NULL THEN {schema}.seconds_of(p_spec -> 'jitter') ELSE coalesce(s.jitter_s, 0) END;
    v_wrong := CASE
        WHEN s.workflow IS NULL THEN ARRAY['workflow', 'give its workflow']
        WHEN num_nonnulls(s.cron, s.every_us) <> 1 THEN ARRAY['cron', 'give either cron or every']
        WHEN s.every_us NOT BETWEEN 100000 AND 31622400000000 THEN ARRAY['every', format('every is between 0.1 s and 366 days, not %s s', s.every_us / 1e6)]
        WHEN s.priority NOT BETWEEN 0 AND 9 THEN ARRAY['priority', format('priority %s is not between 0 (first) and 9 (last)', s.priority)]
        WHEN NOT coalesce(s.catchup_s >= 10, false) THEN ARRAY['catchup', format('catchup is 10 s at least, not %s: a leader that changes takes some of them', s.catchup_s)]
        WHEN NOT coalesce(s.jitter_s BETWEEN 0 AND 86400, false) THEN ARRAY['jitter', format('jitter is between 0 and 86400 s, not %s', s.jitter_s)]
        WHEN s.ends_at <= s.starts_at THEN ARRAY['ends_at', 'it ends before it begins']
        WHEN NOT {schema}.is_queue_name(s.queue) THEN ARRAY['queue', 'the name of a queue has 1 to 200 characters on one line, without control characters']
        WHEN {schema}.wrong_attribute(s.attributes) IS NOT NULL THEN ARRAY['attributes', 'attributes: ' || {schema}.wrong_attribute(s.attributes)]
        WHEN length(s.cron) > 200 THEN ARRAY['cron', 'cron has at most 200 characters'] END;
    IF v_wrong IS NOT NULL THEN
        RAISE EXCEPTION 'schedule "%": %', s.name, v_wrong[2] USING ERRCODE = 'SV040', DETAIL = json_build_object('schedule', s.name, 'why', v_wrong[2], 'term', v_wrong[1])::text;
    END IF;
    IF NOT EXISTS (SELECT FROM {schema}.workflow w WHERE w.name = s.workflow) THEN
        RAISE EXCEPTION 'no worker has ever registered a workflow named "%"', s.workflow USING ERRCODE = 'SV001', HINT = 'start a worker whose app defines it, or check the name';
    END IF;
    v_whole := CASE WHEN s.pass_tick IS NULL THEN s.input ELSE s.input || jsonb_build_object(s.pass_tick, {schema}.tick_text('epoch')) END;
    PERFORM {schema}.as_inputs(s.workflow, ARRAY[v_whole]);
    RETURN s;
END $$;

-- ── which queues are served, and by whom ─────────────────────────────────────────────────────────────────────
ALTER TABLE {schema}.worker ADD COLUMN queues int4[];
COMMENT ON COLUMN {schema}.worker.queues IS 'queue.id of each queue that it claims from; written once, before its first claim; null for workers of older programs, which may serve any';

CREATE OR REPLACE VIEW {schema}.worker_now AS
SELECT w.id, w.boot, w.epoch, w.host, w.pid, w.supervisor, w.started_at, w.dead_at, w.death,
       w.dead_at IS NULL AND w.id::int8 IN (
           SELECT l.objid::int8 FROM pg_catalog.pg_locks l
           WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
             AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
             AND l.classid::int8 = ({lock_class}::int8 & 4294967295)) AS alive,
       w.queues
FROM {schema}.worker w;

CREATE VIEW {schema}.served_queue AS
SELECT q.id AS queue, q.name FROM {schema}.queue q
WHERE q.id = ANY (ARRAY(SELECT unnest(w.queues) FROM {schema}.worker_now w WHERE w.alive)) OR EXISTS (SELECT FROM {schema}.worker_now w WHERE w.alive AND w.queues IS NULL);
COMMENT ON VIEW {schema}.served_queue IS 'Internal: queues that a live worker claims from';

-- As in 0042, but ready (queued) is what a live worker can take, and what is in a queue that none serves is not going to move (no_worker).
CREATE OR REPLACE VIEW {schema}.task_now AS
SELECT t.run_id, t.ready_at, t.queue, t.workflow, t.prio, t.resumed, t.claims, t.owner, t.wait_kind, t.attempt, t.seq, t.step, t.wait_children, t.wait_failed,
       t.wait_since, t.wait_detail, t.parent_id, t.parent_close, t.cancel_at, t.batch, t.group_key, t.key, t.version, t.attributes, t.input,
       derived.wait,
       CASE WHEN t.owner IS NOT NULL THEN 'running' WHEN derived.wait = 7 THEN 'paused'
            WHEN derived.wait IN (1, 2, 6) THEN 'ready' ELSE 'waiting' END AS status,
       t.cancel_to
FROM {schema}.task t
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN t.owner IS NOT NULL THEN CASE WHEN t.wait_kind = 8 THEN t.wait_kind END
        WHEN t.wait_kind IN (3, 4, 5, 7, 16, 17, 18, 19, 20, 21, 22, 23) THEN t.wait_kind
        WHEN t.ready_at > clock_timestamp() THEN CASE WHEN t.wait_kind BETWEEN 9 AND 15 THEN t.wait_kind ELSE 10 END
        WHEN t.queue = ANY (ARRAY(SELECT p.queue FROM {schema}.queue_pause p)) THEN 6
        WHEN t.queue = ANY (ARRAY(SELECT s.queue FROM {schema}.served_queue s)) THEN 1
        ELSE 2 END::int2 AS wait) AS derived;

UPDATE {schema}.wait_kind SET freed_by = 'start a worker that serves its queue: python -m supervisor run --app … --queues QUEUE' WHERE code = 'no_worker';
UPDATE {schema}.wait_kind SET freed_by = replace(freed_by, 'select retry(run_id)', 'python -m supervisor retry RUN') WHERE freed_by ~ 'select retry';

-- As in 0042; which queue nobody serves, by which command runs move to the code that there is, and that one which was asked to end is ended by terminate alone.
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
            WHEN k.code = 'no_worker' THEN concat_ws('; ', t.wait_detail, coalesce(
                'no live worker serves queue ' || q.name || '; those that live serve ' || (
                    SELECT string_agg(s.name, ', ' ORDER BY s.name) FROM (SELECT s.name FROM {schema}.served_queue s ORDER BY s.name LIMIT 10) AS s),
                'no worker of this schema is alive'))
            ELSE t.wait_detail END AS detail,
       CASE WHEN t.wait_kind IS NULL OR t.wait IS NULL OR t.wait <> t.wait_kind
            THEN greatest(t.wait_since, CASE WHEN t.ready_at <= clock_timestamp() THEN t.ready_at END, r.created_at, p.paused_at)
            ELSE coalesce(t.wait_since, r.created_at) END AS since,
       CASE WHEN t.owner IS NULL AND t.ready_at > clock_timestamp() AND isfinite(t.ready_at) THEN t.ready_at END AS wake_at,
       t.step, t.seq, t.attempt, t.claims, t.owner AS worker,
       CASE WHEN t.owner IS NOT NULL AND NOT owned.alive THEN 'a running supervisor releases it by itself: python -m supervisor run --app …'
            WHEN k.code IN ('signal', 'any_of') AND s.signals IS NOT NULL
            THEN concat_ws(', or ', s.signals, CASE WHEN k.code = 'any_of' THEN k.freed_by WHEN isfinite(t.ready_at) THEN 'the wait''s timeout expires' END)
            WHEN ending.status IS NOT NULL THEN format('%s; or end it now, with nothing undone: python -m supervisor terminate %s', said.freed_by, t.run_id)
            ELSE said.freed_by END AS freed_by,
       CASE WHEN t.owner IS NOT NULL AND NOT owned.alive THEN 'who runs the workers'
            WHEN t.cancel_to IS NOT NULL AND ending.status IS NULL
            THEN format('%s; it was asked to end: where it does not, operators end it without its code: python -m supervisor terminate %s',
                        regexp_replace(said.who, '(; operators can end it( with them)?: python -m supervisor|, or) cancel [0-9a-f-]{36}', ''), t.run_id)
            ELSE said.who END AS who
FROM {schema}.task_now t
LEFT JOIN {schema}.run r ON r.run_id = t.run_id
LEFT JOIN {schema}.workflow w ON w.id = t.workflow
LEFT JOIN {schema}.queue q ON q.id = t.queue
LEFT JOIN {schema}.queue_pause p ON p.queue = t.queue AND t.wait = 6
LEFT JOIN {schema}.wait_kind k ON k.id = t.wait
LEFT JOIN {schema}.worker_now owned ON owned.id = t.owner
LEFT JOIN LATERAL (
    SELECT o.version, format('python -m supervisor versions move --workflow %s --from %s --to %s', {schema}.as_word(w.name), {schema}.as_word(t.version), {schema}.as_word(o.version)) AS command
    FROM {schema}.served o JOIN {schema}.worker_now there ON there.id = o.worker AND there.alive
    WHERE t.wait = 20 AND t.version <> '' AND o.workflow = t.workflow AND o.version <> t.version ORDER BY o.worker DESC LIMIT 1) AS moves ON true
CROSS JOIN LATERAL (
    SELECT CASE WHEN moves.command IS NULL THEN coalesce(replace(replace(replace(k.who, 'RUN', t.run_id::text), 'SEQ', coalesce(t.seq::text, 'N')), 'QUEUE', {schema}.as_word(q.name)), 'nobody has to')
                ELSE replace(k.who, 'python -m supervisor versions move --help', moves.command) END AS who,
           CASE WHEN moves.command IS NULL THEN coalesce(replace(replace(k.freed_by, 'RUN', t.run_id::text), 'QUEUE', {schema}.as_word(q.name)), 'nothing needs to be done')
                ELSE format('start a worker whose app has version %s of its workflow; or, if version %s does the same so far, %s', t.version, moves.version, moves.command) END AS freed_by) AS said
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

-- As in 0034, by the queues that are served; what is ready in paused queues stands apart, with the command that frees it; and bounded: there `wait_kind = k.id ORDER BY run_id` let the planner read all live runs by task_pkey, once for each reason.
-- Two bounds and an order of both columns leave it task_wait_idx alone. Which reason holds is decided as task_now does, here in place: a view's own lateral costs as much again as reading. What workers have stands among what is ready, so of that twice as many are looked at.
CREATE OR REPLACE FUNCTION {schema}.wait_groups(rows_max int4 DEFAULT 10000)
RETURNS TABLE (code text, workflow text, queue text, step text, runs int8, complete boolean, since timestamptz, wake_at timestamptz, run_id uuid,
               meaning text, freed_by text, who text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET enable_memoize = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_max    int4 := least(greatest(rows_max, 1), 1000000);
    v_served int4[] := ARRAY(SELECT s.queue FROM {schema}.served_queue s);
BEGIN
    RETURN QUERY
    -- `part` is the range that a row was found in, and `most` how many of it were looked at at most
    WITH looked AS MATERIALIZED (
        SELECT k.id::int8 AS part, v_max AS most, t.*
        FROM {schema}.wait_kind k CROSS JOIN LATERAL (
            SELECT t.run_id, t.wait_kind AS wait, t.workflow, t.queue, t.step, coalesce(t.wait_since, {schema}.id_time(t.run_id)) AS since, t.ready_at,
                   CASE WHEN t.owner IS NOT NULL THEN t.wait_kind = 8 WHEN t.wait_kind IN (3, 4, 5, 7, 16, 17, 18, 19, 20, 21, 22, 23) THEN true
                        ELSE t.wait_kind BETWEEN 9 AND 15 AND t.ready_at > now() END AS fits
            FROM {schema}.task t WHERE t.wait_kind >= k.id AND t.wait_kind <= k.id AND t.wait_kind > 1 ORDER BY t.wait_kind, t.run_id LIMIT v_max) AS t
        WHERE k.id > 1
        UNION ALL
        SELECT 1000 + q.id::int8 * 20 + level.prio, 2 * v_max, t.*
        FROM {schema}.queue q LEFT JOIN {schema}.queue_pause p ON p.queue = q.id CROSS JOIN generate_series(0, 9) AS level (prio) CROSS JOIN LATERAL (
            SELECT t.run_id, CASE WHEN p.queue IS NOT NULL THEN 6 WHEN q.id = ANY (v_served) THEN 1 ELSE 2 END::int2, t.workflow, t.queue, NULL::text, greatest(t.ready_at, t.wait_since, p.paused_at), NULL::timestamptz,
                   t.owner IS NULL AND coalesce(t.wait_kind NOT IN (3, 4, 5, 7, 16, 17, 18, 19, 20, 21, 22, 23), true)
            FROM {schema}.task t
            WHERE t.queue = q.id AND t.prio = level.prio::int2 AND t.ready_at <= now() ORDER BY t.ready_at, t.run_id LIMIT 2 * v_max) AS t
        UNION ALL
        SELECT 1010 + q.id::int8 * 20 + level.prio, v_max, t.*
        FROM {schema}.queue q CROSS JOIN generate_series(0, 9) AS level (prio) CROSS JOIN LATERAL (
            SELECT t.run_id, 10::int2, t.workflow, t.queue, NULL::text, CASE WHEN coalesce(t.wait_kind, 1) = 1 THEN {schema}.id_time(t.run_id) END, t.ready_at,
                   t.owner IS NULL AND coalesce(t.wait_kind, 1) = 1
            FROM {schema}.task t
            WHERE t.queue = q.id AND t.prio = level.prio::int2 AND t.ready_at > now() AND t.ready_at < 'infinity' ORDER BY t.ready_at, t.run_id LIMIT v_max) AS t),
    parts AS (SELECT l.part, count(*) < l.most AS complete FROM looked l GROUP BY l.part, l.most),
    groups AS (
        SELECT l.wait, l.workflow, l.queue, l.step, count(*) AS runs, bool_and(p.complete) AS complete, min(l.since) AS since,
               min(l.ready_at) FILTER (WHERE l.ready_at > now() AND l.ready_at < 'infinity') AS wake_at
        FROM looked l JOIN parts p ON p.part = l.part WHERE l.fits GROUP BY l.wait, l.workflow, l.queue, l.step),
    firsts AS (
        SELECT g.wait, g.workflow, g.queue, g.step, (array_agg(l.run_id))[1] AS run_id
        FROM groups g JOIN looked l ON l.wait = g.wait AND l.workflow = g.workflow AND l.queue = g.queue AND l.since = g.since AND l.step IS NOT DISTINCT FROM g.step
        WHERE l.fits GROUP BY g.wait, g.workflow, g.queue, g.step)
    SELECT k.code, w.name, q.name, g.step, g.runs, g.complete, g.since, g.wake_at, f.run_id, k.meaning, replace(k.freed_by, 'QUEUE', {schema}.as_word(q.name)), replace(k.who, 'QUEUE', {schema}.as_word(q.name))
    FROM groups g
    JOIN firsts f ON f.wait = g.wait AND f.workflow = g.workflow AND f.queue = g.queue AND f.step IS NOT DISTINCT FROM g.step
    JOIN {schema}.wait_kind k ON k.id = g.wait
    LEFT JOIN {schema}.workflow w ON w.id = g.workflow
    LEFT JOIN {schema}.queue q ON q.id = g.queue ORDER BY 5 DESC, 7;
END $$;

CREATE OR REPLACE VIEW {schema}.workers AS
SELECT w.id AS worker, CASE WHEN w.alive THEN 'alive' WHEN w.dead_at IS NULL THEN 'lost' ELSE 'dead' END AS state,
       w.host, w.pid, w.supervisor, w.boot, w.epoch, w.started_at, w.dead_at, w.death, coalesce(n.runs, 0) AS runs,
       ARRAY(SELECT q.name FROM {schema}.queue q WHERE q.id = ANY (w.queues) ORDER BY q.name) AS queues
FROM {schema}.worker_now w
LEFT JOIN (SELECT t.owner, count(*) AS runs FROM {schema}.task t WHERE t.owner IS NOT NULL GROUP BY t.owner) AS n ON n.owner = w.id;
COMMENT ON COLUMN {schema}.workers.queues IS 'Queues that it claims from';

CREATE OR REPLACE VIEW {schema}.queues AS
SELECT q.name AS queue, coalesce(n.ready, 0) AS ready, coalesce(n.running, 0) AS running, coalesce(n.waiting, 0) AS waiting,
       coalesce(n.paused, 0) AS paused, n.oldest_ready_at, q.created_at, p.paused_at, p.paused_by, p.reason AS paused_reason,
       (SELECT count(*) FROM {schema}.worker_now w WHERE w.alive AND (w.queues IS NULL OR q.id = ANY (w.queues))) AS workers
FROM {schema}.queue q
LEFT JOIN {schema}.queue_pause p ON p.queue = q.id
LEFT JOIN (
    SELECT t.queue, count(*) FILTER (WHERE t.status = 'ready') AS ready, count(*) FILTER (WHERE t.status = 'running') AS running,
           count(*) FILTER (WHERE t.status = 'waiting') AS waiting, count(*) FILTER (WHERE t.status = 'paused') AS paused,
           min(t.ready_at) FILTER (WHERE t.status = 'ready') AS oldest_ready_at
    FROM {schema}.task_now t GROUP BY t.queue) AS n ON n.queue = q.id;
COMMENT ON COLUMN {schema}.queues.workers IS 'Live workers that claim from it';

-- ── who asked that a run be ended is among the deeds ─────────────────────────────────────────────────────────
CREATE INDEX cancellation_at_idx ON {schema}.cancellation (asked_at);

CREATE OR REPLACE VIEW {schema}.audits AS
SELECT a.n, a.at, a.verb, a.run_id, w.name AS workflow, r.key, a.login, a.actor, a.reason, a.details, a.details ->> 'schedule' AS schedule,
       CASE WHEN a.verb IN ('queue_pause', 'queue_resume') THEN a.details ->> 'queue' END AS queue
FROM (SELECT a.n, a.at, a.verb, a.run_id, a.login, a.actor, a.reason, a.details FROM {schema}.audit a
      UNION ALL
      SELECT NULL::int8, c.asked_at, CASE c.how WHEN 3 THEN 'cancel' ELSE 'terminate' END, c.run_id, NULL::text, c.actor, c.reason, NULL::jsonb FROM {schema}.cancellation c
      WHERE c.actor !~ '^run [0-9a-f-]{36}$') AS a
LEFT JOIN {schema}.run r ON r.run_id = a.run_id
LEFT JOIN {schema}.workflow w ON w.id = r.workflow;
COMMENT ON VIEW {schema}.audits IS 'What operators did to runs, schedules and queues, one row each, and who asked that a run be ended; ask by run_id or by at. Kept as long as the history of its time';
COMMENT ON COLUMN {schema}.audits.verb IS
    'pause, resume, retry, edit_retry, skip, fork, cancel, terminate; signal, update, complete, fail where an operator did it and said why; schedule_create, schedule_change, schedule_declare (by a worker), schedule_pause, schedule_resume, schedule_trigger, schedule_backfill, schedule_delete; queue_pause, queue_resume';
