-- deploy: pre            older programs ask the same of it; what they are refused now they could not use
-- lock:   none but on what is made anew
-- undo:   start_one as in 0012, start_runs as in 0022, start_many as in 0014, queue_id as in 0002, said_of_schedule as in 0046; then
--         DROP FUNCTION {schema}.checked_delay(interval); DROP FUNCTION {schema}.is_queue_name(text); DROP FUNCTION {schema}.wrong_attribute(jsonb)
--
-- A start is refused what a client refuses, by the same rules: a delay that no calendar has, a queue's name that can't be shown, attributes that nothing is found by.

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

-- As in 0046, but for the queue and the attributes of its runs, which are those of any start.
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
