-- deploy: pre            older clients call start_runs with eight arguments, which still fit; nothing older reads what is new
-- lock:   ACCESS EXCLUSIVE on run and on the view runs, brief: two columns without a default
-- undo:   DROP VIEW {schema}.batches; DROP FUNCTION of each name; start_runs as in 0002, runs as in 0003, their grants as in 0004;
--         ALTER TABLE {schema}.run DROP COLUMN batch, DROP COLUMN attributes; DROP TABLE {schema}.batch
--
-- What applications and people call: start with its policies for keys, batches, cancel, results. What a start says about its
-- run (batch, attributes) never changes, so it stands in run; task.attributes is for what a run says of itself later.
-- Lock order: run_key rows by key, then worker rows, then task rows (sql/README.md).

-- ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────
CREATE TABLE {schema}.batch (
    id         int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL UNIQUE CHECK (name <> '' AND length(name) <= 200),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE {schema}.batch IS 'Names under which starts were put together; a batch exists once a start has named it';
COMMENT ON COLUMN {schema}.batch.id IS 'Its number, in run and task';
COMMENT ON COLUMN {schema}.batch.name IS 'The name';
COMMENT ON COLUMN {schema}.batch.created_at IS 'When a start first named it';

ALTER TABLE {schema}.run ADD COLUMN batch int8, ADD COLUMN attributes bytea;
COMMENT ON COLUMN {schema}.run.batch IS 'batch.id; null when it was started outside of any';
COMMENT ON COLUMN {schema}.run.attributes IS 'JSON object that the start gave it for searching';

CREATE FUNCTION {schema}.batch_id(p_name text) RETURNS int8
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE v_id int8;
BEGIN
    IF length(p_name) NOT BETWEEN 1 AND 200 THEN
        RAISE EXCEPTION 'the name of a batch has 1 to 200 characters, not %', length(p_name) USING ERRCODE = '22023';
    END IF;
    SELECT id INTO v_id FROM {schema}.batch WHERE name = p_name;
    IF NOT FOUND THEN
        INSERT INTO {schema}.batch (name) VALUES (p_name) ON CONFLICT (name) DO NOTHING;
        SELECT id INTO v_id FROM {schema}.batch WHERE name = p_name;
    END IF;
    RETURN v_id;
END $$;
COMMENT ON FUNCTION {schema}.batch_id(text) IS 'Internal: the number of a batch; makes it when it is new';

-- ── ending a run from outside ────────────────────────────────────────────────────────────────────────────────
-- Claimed runs are taken from their workers first, so that a worker's row is locked before the tasks. One that is claimed
-- in that very moment is taken in the next turn. Custom plans: they prune step and child_done.
-- A transactional step must not take a run from its own worker: that raises the epoch which its own fence compares at the end.
CREATE FUNCTION {schema}.end_runs(p_runs uuid[], p_status int2, p_error bytea) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_gone    uuid[];
    v_parents uuid[];
    v_ended   uuid[] := '{}';
    v_bereft  uuid[] := '{}';
BEGIN
    LOOP
        IF EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = ANY (p_runs) AND t.owner IS NOT NULL) THEN
            IF EXISTS (SELECT FROM {schema}.task t JOIN {schema}.worker w ON w.id = t.owner WHERE t.run_id = ANY (p_runs)
                       AND current_setting('application_name') = 'pgsupervisor: tx ' || left(w.boot::text, 8)) THEN
                RAISE EXCEPTION 'a transactional step can''t end a run that its own worker has' USING ERRCODE = '55000',
                    HINT = 'end it in a step that is not transactional, with a client';
            END IF;
            PERFORM {schema}.take_away(p_runs);
        END IF;
        PERFORM FROM {schema}.task t WHERE t.run_id = ANY (p_runs) AND t.owner IS NULL ORDER BY t.run_id FOR UPDATE;
        -- a further statement: its snapshot sees the steps of whatever the locks waited for
        WITH gone AS (
            DELETE FROM {schema}.task t WHERE t.run_id = ANY (p_runs) AND t.owner IS NULL RETURNING t.run_id, t.parent_id, t.version, t.attributes),
        told AS (
            INSERT INTO {schema}.outcome (run_id, ended_at, steps, status, result, version, attributes)
            SELECT g.run_id, clock_timestamp(), (SELECT count(*) FROM {schema}.step s WHERE s.run_id = g.run_id), p_status, p_error, g.version, g.attributes
            FROM gone g),
        counted AS (                                   -- a parent that has ended asks for no count, and its partition may be gone
            INSERT INTO {schema}.child_done (parent_id, n, failed)
            SELECT g.parent_id, count(*), count(*) FROM gone g JOIN {schema}.task p ON p.run_id = g.parent_id GROUP BY g.parent_id RETURNING parent_id)
        SELECT (SELECT array_agg(g.run_id) FROM gone g), (SELECT array_agg(c.parent_id) FROM counted c) INTO v_gone, v_parents;
        v_ended := v_ended || v_gone;
        v_bereft := v_bereft || v_parents;
        EXIT WHEN NOT EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = ANY (p_runs));
    END LOOP;
    IF v_bereft <> '{}' THEN
        PERFORM FROM {schema}.task t WHERE t.run_id = ANY (v_bereft) AND t.owner IS NULL ORDER BY t.run_id FOR NO KEY UPDATE;
        -- as wake_parents. Under one snapshot for the whole transaction the count may be old, so the parent looks for itself
        UPDATE {schema}.task t
        SET ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(), wait_children = NULL, wait_failed = NULL
        FROM (SELECT d.parent_id, sum(d.n) AS n, sum(d.failed) AS failed FROM {schema}.child_done d WHERE d.parent_id = ANY (v_bereft) GROUP BY d.parent_id) AS done
        WHERE t.run_id = done.parent_id AND t.owner IS NULL AND t.wait_children IS NOT NULL
          AND (done.n >= t.wait_children OR done.failed > t.wait_failed
               OR current_setting('transaction_isolation') IN ('repeatable read', 'serializable'));
    END IF;
    IF v_ended <> '{}' THEN
        DELETE FROM {schema}.timer t WHERE t.run_id = ANY (v_ended);
    END IF;
    RETURN v_ended;
END $$;
COMMENT ON FUNCTION {schema}.end_runs(uuid[], int2, bytea) IS
    'Internal: end those of the runs that live, whoever has them, and tell their parents; returns those that it ended';

CREATE FUNCTION {schema}.error_json(p_class text, p_message text) RETURNS bytea
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT convert_to(json_build_object('type', 'supervisor.core.errors.' || p_class, 'message', p_message, 'args', json_build_array(p_message))::text, 'UTF8') $$;
COMMENT ON FUNCTION {schema}.error_json(text, text) IS 'Internal: an error as outcomes hold it';

-- SECURITY DEFINER: a client may cancel runs and must not be able to write the tables otherwise.
CREATE FUNCTION {schema}.cancel(run uuid, reason text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    IF {schema}.end_runs(ARRAY[run], 3::int2, {schema}.error_json('RunCancelled', coalesce(reason, 'it was cancelled'))) <> '{}' THEN
        RETURN true;
    END IF;
    IF NOT EXISTS (SELECT FROM {schema}.outcomes(ARRAY[run])) THEN
        RAISE EXCEPTION 'there is no run %', coalesce(run::text, 'null') USING ERRCODE = 'SV006', DETAIL = coalesce(run::text, 'null');
    END IF;
    RETURN false;
END $$;
COMMENT ON FUNCTION {schema}.cancel(uuid, text) IS
    'End a run as cancelled, at once and whoever has it; false when it had ended before. Its children go on';

-- ── start ────────────────────────────────────────────────────────────────────────────────────────────────────
CREATE FUNCTION {schema}.same_json(p_one bytea, p_other bytea) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN convert_from(p_one, 'UTF8')::jsonb = convert_from(p_other, 'UTF8')::jsonb;
EXCEPTION WHEN OTHERS THEN
    RETURN false;
END $$;
COMMENT ON FUNCTION {schema}.same_json(bytea, bytea) IS 'Internal: whether two texts are the same JSON value, however they are written; never raises';

CREATE FUNCTION {schema}.is_json_object(p_text bytea) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN jsonb_typeof(convert_from(p_text, 'UTF8')::jsonb) = 'object';
EXCEPTION WHEN OTHERS THEN
    RETURN false;
END $$;
COMMENT ON FUNCTION {schema}.is_json_object(bytea) IS 'Internal: whether a text is a JSON object that jsonb can hold; never raises';

-- Custom plan: prunes.
CREATE FUNCTION {schema}.same_inputs(p_runs uuid[], p_inputs bytea[], p_matches boolean[]) RETURNS boolean[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    RETURN (SELECT array_agg(u.matches OR coalesce({schema}.same_json(r.input, u.input), false) ORDER BY u.n)
            FROM unnest(p_runs, p_inputs, p_matches) WITH ORDINALITY AS u (run_id, input, matches, n)
            LEFT JOIN {schema}.run r ON r.run_id = u.run_id AND r.run_id = ANY (p_runs) AND r.codec = 0 AND NOT u.matches);
END $$;
COMMENT ON FUNCTION {schema}.same_inputs(uuid[], bytea[], boolean[]) IS
    'Internal: where hashes differ, whether the inputs are the same value: SQL and Python write JSON differently';

-- Custom plan: prunes.
CREATE FUNCTION {schema}.arrived(p_ids uuid[]) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    RETURN ARRAY(SELECT r.run_id FROM {schema}.run r WHERE r.run_id = ANY (p_ids));
END $$;
COMMENT ON FUNCTION {schema}.arrived(uuid[]) IS 'Internal: those of the ids under which runs were started already';

-- Custom plan: prunes.
CREATE FUNCTION {schema}.ended_badly(p_ids uuid[]) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    RETURN ARRAY(SELECT o.run_id FROM {schema}.outcome o WHERE o.run_id = ANY (p_ids) AND o.status IN (2, 3, 4, 5));
END $$;
COMMENT ON FUNCTION {schema}.ended_badly(uuid[]) IS 'Internal: those of the runs that ended as failed, cancelled, terminated or timed_out';

-- Give the keys of a start to its runs, those that are free, and decide by the policy about those that name a run.
-- Insert, and on conflict lock and look in further statements: in one statement the loser of a race gets no row. Under one
-- snapshot for the whole transaction the insert raises 40001 for a key that was taken, or given away, after the snapshot.
-- LATERAL … FOR SHARE is one index lookup per key, in the order of the keys, whatever statistics say: a join of 5,000 keys with a table that
-- was not analyzed yet took a hundred times as long.
-- An item whose id is here already arrived before: a start whose answer was lost is repeated, and that changes nothing.
CREATE FUNCTION {schema}.settle_keys(
    p_workflow int4, p_name text, p_ids uuid[], p_keys text[], p_hashes bytea[], p_on_conflict text,
    OUT kept int8[], OUT kept_runs uuid[], OUT kept_matches boolean[], OUT replaced uuid[])
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_taken   int8[];
    v_keys    text[];
    v_ids     uuid[];
    v_hashes  bytea[];
    v_named   uuid[];
    v_arrived uuid[];
    v_bad     uuid[];
    v_key     record;
    one       record;
BEGIN
    WITH made AS (
        INSERT INTO {schema}.run_key AS k (workflow, key, run_id, input_hash)
        SELECT p_workflow, u.key, u.id, u.hash FROM unnest(p_keys, p_ids, p_hashes) WITH ORDINALITY AS u (key, id, hash, n) WHERE u.key IS NOT NULL
        ORDER BY u.key, u.n
        ON CONFLICT (workflow, key) DO NOTHING RETURNING k.run_id)
    SELECT array_agg(u.n), array_agg(u.key), array_agg(u.id), array_agg(u.hash) INTO v_taken, v_keys, v_ids, v_hashes
    FROM unnest(p_keys, p_ids, p_hashes) WITH ORDINALITY AS u (key, id, hash, n) LEFT JOIN made ON made.run_id = u.id
    WHERE u.key IS NOT NULL AND made.run_id IS NULL;
    IF v_taken IS NULL THEN
        RETURN;
    END IF;
    IF p_on_conflict = 'return' THEN
        SELECT array_agg(u.n), array_agg(k.run_id), array_agg(k.input_hash = u.hash) INTO kept, kept_runs, kept_matches
        FROM (SELECT t.* FROM unnest(v_taken, v_keys, v_hashes) AS t (n, key, hash) ORDER BY t.key) AS u,
             LATERAL (SELECT r.run_id, r.input_hash FROM {schema}.run_key r WHERE r.workflow = p_workflow AND r.key = u.key FOR SHARE) AS k;
        IF cardinality(kept) IS DISTINCT FROM cardinality(v_taken) THEN
            RAISE EXCEPTION 'a key of workflow "%" lost its run to retention in this moment; try again', p_name USING ERRCODE = '40001';
        END IF;
        RETURN;
    END IF;
    v_named := ARRAY(SELECT k.run_id FROM (SELECT DISTINCT t.key FROM unnest(v_keys) AS t (key) ORDER BY t.key) AS u,
                     LATERAL (SELECT r.run_id FROM {schema}.run_key r WHERE r.workflow = p_workflow AND r.key = u.key FOR NO KEY UPDATE) AS k);
    v_arrived := {schema}.arrived(v_ids);
    IF p_on_conflict = 'restart_failed' THEN
        v_bad := {schema}.ended_badly(v_named);
    END IF;
    FOR one IN SELECT t.* FROM unnest(v_taken, v_keys, v_ids, v_hashes) AS t (n, key, id, hash) ORDER BY t.n LOOP
        SELECT k.run_id, k.input_hash INTO v_key FROM {schema}.run_key k WHERE k.workflow = p_workflow AND k.key = one.key;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'a key of workflow "%" lost its run to retention in this moment; try again', p_name USING ERRCODE = '40001';
        ELSIF one.id = ANY (v_arrived) THEN
            kept := kept || one.n; kept_runs := kept_runs || one.id; kept_matches := kept_matches || true;
        ELSIF p_on_conflict = 'reject' THEN
            RAISE EXCEPTION 'key "%" of workflow "%" names run % already', one.key, p_name, v_key.run_id USING ERRCODE = 'SV005',
                DETAIL = json_build_object('workflow', p_name, 'key', one.key, 'run_id', v_key.run_id)::text,
                HINT = 'start with another key, or with on_conflict return, replace or restart_failed';
        ELSIF p_on_conflict = 'replace' OR v_key.run_id = ANY (v_bad) THEN
            UPDATE {schema}.run_key k SET run_id = one.id, input_hash = one.hash WHERE k.workflow = p_workflow AND k.key = one.key;
            IF p_on_conflict = 'replace' THEN
                replaced := replaced || v_key.run_id;
            END IF;
        ELSE
            kept := kept || one.n; kept_runs := kept_runs || v_key.run_id; kept_matches := kept_matches || (v_key.input_hash = one.hash);
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION {schema}.settle_keys(int4, text, uuid[], text[], bytea[], text) IS
    'Internal: give keys to the runs of a start; what is kept are the items whose key goes on naming another run, what is replaced is to be ended';

DROP FUNCTION {schema}.start_runs(text, uuid[], bytea[], text[], bytea[], text, int2, interval);

-- SECURITY DEFINER: a client may start runs and must not be able to write the tables otherwise.
-- Returns a row only for what was not created: a key that names a run already (matches: with the same input).
CREATE FUNCTION {schema}.start_runs(
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
    SELECT w.id, w.queue, v_now + p_delay + w.timeout_s * interval '1 s' INTO v_workflow, v_queue, v_deadline FROM {schema}.workflow w WHERE w.name = p_workflow;
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
COMMENT ON FUNCTION {schema}.start_runs(text, uuid[], bytea[], text[], bytea[], text, int2, interval, bytea, text, text) IS
    'Start runs of one workflow in one transaction; a key that names a run already returns that run, or does as p_on_conflict says';

-- ── the same for people: jsonb, names, one value back ────────────────────────────────────────────────────────
CREATE FUNCTION {schema}.as_inputs(p_workflow text, p_inputs jsonb[]) RETURNS bytea[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_names    text[];
    v_required text[];
    bad        record;
BEGIN
    SELECT array_agg(e.it ->> 'name' ORDER BY e.n), array_agg(e.it ->> 'name' ORDER BY e.n) FILTER (WHERE (e.it ->> 'required')::boolean)
    INTO v_names, v_required
    FROM {schema}.workflow w, jsonb_array_elements({schema}.as_json(w.parameters)) WITH ORDINALITY AS e (it, n) WHERE w.name = p_workflow;
    SELECT u.n, jsonb_typeof(u.input) AS kind, length(u.input::text) AS bytes,
           array(SELECT k FROM jsonb_object_keys(u.object) AS k WHERE k <> ALL (coalesce(v_names, '{}'))) AS unknown,
           array(SELECT k FROM unnest(v_required) AS k WHERE NOT u.object ? k) AS missing
    INTO bad
    FROM (SELECT i.n, i.input, CASE WHEN jsonb_typeof(i.input) = 'object' THEN i.input ELSE '{}' END AS object
          FROM unnest(p_inputs) WITH ORDINALITY AS i (input, n)) AS u
    WHERE jsonb_typeof(u.input) IS DISTINCT FROM 'object' OR length(u.input::text) > 2097152
       OR EXISTS (SELECT FROM jsonb_object_keys(u.object) AS k WHERE k <> ALL (coalesce(v_names, '{}')))
       OR NOT u.object ?& coalesce(v_required, '{}')
    ORDER BY u.n LIMIT 1;
    IF FOUND AND EXISTS (SELECT FROM {schema}.workflow w WHERE w.name = p_workflow) THEN
        RAISE EXCEPTION 'input % of workflow "%": %', bad.n, p_workflow,
            CASE WHEN bad.kind IS DISTINCT FROM 'object' THEN format('it must be an object by parameter name, not %s', coalesce(bad.kind, 'null'))
                 WHEN bad.unknown <> '{}' THEN format('%s: no parameter of it; it takes %s', array_to_string(bad.unknown, ', '),
                                                      coalesce(array_to_string(v_names, ', '), 'none'))
                 WHEN bad.missing <> '{}' THEN format('required but not given: %s', array_to_string(bad.missing, ', '))
                 ELSE format('%s bytes of JSON, more than 2097152', bad.bytes) END USING ERRCODE = '22023';
    END IF;
    RETURN ARRAY(SELECT convert_to(i.input::text, 'UTF8') FROM unnest(p_inputs) WITH ORDINALITY AS i (input, n) ORDER BY i.n);
END $$;
COMMENT ON FUNCTION {schema}.as_inputs(text, jsonb[]) IS 'Internal: inputs as they are stored; raises 22023 for one that does not fit the workflow''s parameters';

CREATE FUNCTION {schema}.announce(p_workflow text, p_queue text, p_runs int8, p_delay interval) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT pg_notify((SELECT n.nspname FROM pg_namespace n WHERE n.oid = {schema_literal}::regnamespace) || '_wake',
                     json_build_array(json_build_array(p_workflow, p_queue, p_runs, extract(epoch FROM p_delay)::float8))::text)
    WHERE p_runs > 0 AND p_delay <= interval '1 s'
$$;
COMMENT ON FUNCTION {schema}.announce(text, text, int8, interval) IS 'Internal: tell the hosts, at the commit, that runs were started';

-- SECURITY DEFINER: as start_runs. Ids are made here in the order of the inputs.
CREATE FUNCTION {schema}.start_many(
    workflow text, inputs jsonb[], keys text[] DEFAULT NULL, queue text DEFAULT NULL, priority int4 DEFAULT 5, delay interval DEFAULT interval '0',
    attributes jsonb DEFAULT NULL, batch text DEFAULT NULL, on_conflict text DEFAULT 'return', notify boolean DEFAULT false)
RETURNS TABLE (n int8, run_id uuid, created boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_ids  uuid[];
    v_key  text;
    v_runs uuid[] := ARRAY[]::uuid[];
    v_n    int8[] := ARRAY[]::int8[];
    one    record;
BEGIN
    IF keys IS NOT NULL AND cardinality(keys) <> cardinality(inputs) THEN
        RAISE EXCEPTION '% inputs and % keys were given', cardinality(inputs), cardinality(keys) USING ERRCODE = '22023';
    END IF;
    SELECT k.key INTO v_key FROM unnest(keys) AS k (key) WHERE length(k.key) NOT BETWEEN 1 AND 500 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'a key has 1 to 500 characters, not %', length(v_key) USING ERRCODE = '22023';
    END IF;
    v_ids := ARRAY(SELECT m.id FROM (SELECT {schema}.new_id() AS id FROM generate_series(1, cardinality(inputs))) AS m ORDER BY m.id);
    FOR one IN
        SELECT s.* FROM {schema}.start_runs(
            start_many.workflow, v_ids, {schema}.as_inputs(start_many.workflow, inputs), keys, NULL, start_many.queue, least(greatest(priority, -1), 10)::int2,
            start_many.delay, convert_to(start_many.attributes::text, 'UTF8'), start_many.batch, start_many.on_conflict) AS s
    LOOP
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
    END IF;
    RETURN QUERY
        SELECT u.n, coalesce(k.run_id, u.id), k.n IS NULL
        FROM unnest(v_ids) WITH ORDINALITY AS u (id, n) LEFT JOIN unnest(v_n, v_runs) AS k (n, run_id) ON k.n = u.n ORDER BY u.n;
END $$;
COMMENT ON FUNCTION {schema}.start_many(text, jsonb[], text[], text, int4, interval, jsonb, text, text, boolean) IS
    'Start a run per input, all in one transaction; which runs they are, in the order of the inputs, and whether each was created';

-- SECURITY DEFINER: as start_runs.
CREATE FUNCTION {schema}.start(
    workflow text, input jsonb DEFAULT '{}', key text DEFAULT NULL, queue text DEFAULT NULL, priority int4 DEFAULT 5, delay interval DEFAULT interval '0',
    attributes jsonb DEFAULT NULL, batch text DEFAULT NULL, on_conflict text DEFAULT 'return', notify boolean DEFAULT false)
RETURNS uuid
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT s.run_id FROM {schema}.start_many($1, ARRAY[$2], CASE WHEN $3 IS NOT NULL THEN ARRAY[$3] END, $4, $5, $6, $7, $8, $9, $10) AS s
$$;
COMMENT ON FUNCTION {schema}.start(text, jsonb, text, text, int4, interval, jsonb, text, text, boolean) IS
    'Start a run in the transaction that calls it; returns the run, or the one that the key names';

-- ── results ──────────────────────────────────────────────────────────────────────────────────────────────────
CREATE OR REPLACE VIEW {schema}.runs AS
SELECT r.run_id, r.key, w.name AS workflow, q.name AS queue, r.prio AS priority,
       coalesce((ARRAY['completed', 'failed', 'cancelled', 'terminated', 'timed_out', 'continued'])[o.status], t.status, 'lost') AS status,
       k.code AS wait, t.step, t.seq, t.attempt,
       r.created_at, o.ended_at, extract(epoch FROM o.ended_at - r.created_at)::float8 AS duration_s, o.steps,
       coalesce(o.worker, t.owner) AS worker,
       CASE WHEN o.status IN (1, 6) THEN {schema}.as_json(o.result, r.codec) END AS result,
       CASE WHEN o.status NOT IN (1, 6) THEN {schema}.as_json(o.result, r.codec) END AS error,
       {schema}.as_json(r.input, r.codec) AS input,
       r.parent_id, r.parent_seq,
       coalesce(o.version, t.version) AS version,
       {schema}.as_json(coalesce(o.attributes, t.attributes, r.attributes)) AS attributes,
       b.name AS batch
FROM {schema}.run r
LEFT JOIN {schema}.workflow w ON w.id = r.workflow
LEFT JOIN {schema}.outcome o ON o.run_id = r.run_id
LEFT JOIN {schema}.task_now t ON t.run_id = r.run_id
LEFT JOIN {schema}.queue q ON q.id = coalesce(t.queue, r.queue)
LEFT JOIN {schema}.wait_kind k ON k.id = t.wait
LEFT JOIN {schema}.batch b ON b.id = r.batch;
COMMENT ON COLUMN {schema}.runs.attributes IS 'JSON object for searching, from its start or from itself';
COMMENT ON COLUMN {schema}.runs.batch IS 'Name of the batch that it was started in (see batches); null when none';

-- SECURITY DEFINER: whoever may start runs may ask how they ended, and needs no right on the views for it. Custom plan: prunes.
CREATE FUNCTION {schema}.result(run uuid) RETURNS TABLE (status text, result jsonb, error jsonb, ended_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY SELECT r.status, r.result, r.error, r.ended_at FROM {schema}.runs r WHERE r.run_id = run;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no run %', coalesce(run::text, 'null') USING ERRCODE = 'SV006', DETAIL = coalesce(run::text, 'null');
    END IF;
END $$;
COMMENT ON FUNCTION {schema}.result(uuid) IS 'How a run stands: its status, and once it has ended its result or what ended it otherwise. Does not wait';

-- The bound from the batch's own time prunes partitions; ids may be 60 s off.
-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.batch_results(p_batch text, p_after uuid DEFAULT NULL, p_limit int4 DEFAULT 1000)
RETURNS TABLE (run_id uuid, key text, status text, result bytea, ended_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    v_batch int8;
    v_after uuid;
BEGIN
    SELECT b.id, greatest(p_after, {schema}.id_floor(b.created_at - interval '2 minutes')) INTO v_batch, v_after FROM {schema}.batch b WHERE b.name = p_batch;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no batch "%"', p_batch USING ERRCODE = 'SV008';
    END IF;
    RETURN QUERY
        SELECT r.run_id, r.key, coalesce({schema}.outcome_name(o.status), t.status, 'lost'), o.result, o.ended_at
        FROM {schema}.run r
        LEFT JOIN {schema}.outcome o ON o.run_id = r.run_id AND o.run_id > v_after
        LEFT JOIN {schema}.task_now t ON t.run_id = r.run_id AND o.run_id IS NULL
        WHERE r.batch = v_batch AND r.run_id > v_after ORDER BY r.run_id LIMIT least(greatest(p_limit, 0), 10000);
END $$;
COMMENT ON FUNCTION {schema}.batch_results(text, uuid, int4) IS
    'Runs of a batch in the order of their ids, how they stand and what they returned; p_after takes the last run_id of the page before';

CREATE VIEW {schema}.batches AS
SELECT b.name AS batch, n.runs, n.ready, n.running, n.waiting, n.paused, n.completed, n.failed, n.cancelled, n.terminated, n.timed_out, n.continued,
       b.created_at, n.first_started_at, n.last_started_at, n.last_ended_at
FROM {schema}.batch b
CROSS JOIN LATERAL (
    SELECT count(*) AS runs, count(*) FILTER (WHERE t.status = 'ready') AS ready, count(*) FILTER (WHERE t.status = 'running') AS running,
           count(*) FILTER (WHERE t.status = 'waiting') AS waiting, count(*) FILTER (WHERE t.status = 'paused') AS paused,
           count(*) FILTER (WHERE o.status = 1) AS completed, count(*) FILTER (WHERE o.status = 2) AS failed,
           count(*) FILTER (WHERE o.status = 3) AS cancelled, count(*) FILTER (WHERE o.status = 4) AS terminated,
           count(*) FILTER (WHERE o.status = 5) AS timed_out, count(*) FILTER (WHERE o.status = 6) AS continued,
           min(r.created_at) AS first_started_at, max(r.created_at) AS last_started_at, max(o.ended_at) AS last_ended_at
    FROM {schema}.run r
    LEFT JOIN {schema}.outcome o ON o.run_id = r.run_id
    LEFT JOIN {schema}.task_now t ON t.run_id = r.run_id
    WHERE r.batch = b.id) AS n;
COMMENT ON VIEW {schema}.batches IS 'What became of the runs of each batch. Counts the runs of those that are asked for, 0.2 s per 100,000: ask by name';
COMMENT ON COLUMN {schema}.batches.batch IS 'Name of the batch';
COMMENT ON COLUMN {schema}.batches.runs IS 'Runs that were started in it';
COMMENT ON COLUMN {schema}.batches.ready IS 'Of those: a worker could take them now';
COMMENT ON COLUMN {schema}.batches.running IS 'Workers have them';
COMMENT ON COLUMN {schema}.batches.waiting IS 'They wait for a time or an event, or are parked (see waits)';
COMMENT ON COLUMN {schema}.batches.paused IS 'Somebody paused them';
COMMENT ON COLUMN {schema}.batches.completed IS 'They completed';
COMMENT ON COLUMN {schema}.batches.failed IS 'They failed';
COMMENT ON COLUMN {schema}.batches.cancelled IS 'Somebody cancelled them';
COMMENT ON COLUMN {schema}.batches.terminated IS 'They were ended from outside, for example replaced';
COMMENT ON COLUMN {schema}.batches.timed_out IS 'The timeout of their workflow ended them';
COMMENT ON COLUMN {schema}.batches.continued IS 'They went on as a new run';
COMMENT ON COLUMN {schema}.batches.created_at IS 'When a start first named the batch';
COMMENT ON COLUMN {schema}.batches.first_started_at IS 'When the first of them was started';
COMMENT ON COLUMN {schema}.batches.last_started_at IS 'When the last of them was started';
COMMENT ON COLUMN {schema}.batches.last_ended_at IS 'When the last of those that have ended ended';

-- ── rights: what is not named here nobody but the owner may use ──────────────────────────────────────────────
DO $$
DECLARE
    worker   text := {role_worker_literal};
    client   text := {role_client_literal};
    viewer   text := {role_viewer_literal};
    operator text := {role_operator_literal};
    one      record;
BEGIN
    FOR one IN SELECT g.what, r.rolname FROM (VALUES
        ('EXECUTE ON FUNCTION {schema}.start_runs(text, uuid[], bytea[], text[], bytea[], text, int2, interval, bytea, text, text), '
         '{schema}.start(text, jsonb, text, text, int4, interval, jsonb, text, text, boolean), '
         '{schema}.start_many(text, jsonb[], text[], text, int4, interval, jsonb, text, text, boolean), {schema}.cancel(uuid, text), '
         '{schema}.result(uuid), {schema}.batch_results(text, uuid, int4)', ARRAY[worker, client, operator]),
        ('SELECT ON {schema}.batches', ARRAY[worker, viewer, operator]),
        ('SELECT ON {schema}.batch', ARRAY[worker])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
