-- deploy: pre            older clients call cancel with two arguments, which still fit
-- lock:   none that anybody waits for: functions alone
-- undo:   DROP FUNCTION {schema}.announce_ends(uuid[]), {schema}.home(), {schema}.replace_runs(text, uuid[], bytea[], text[], bytea[], text, int2,
--         interval, bytea, text), {schema}.cancel(uuid, text, boolean); end_runs, cancel, as_inputs and start_many as in 0009, their grants too
--
-- The edges of what clients and SQL ask for: who ends a run from outside may tell those that wait for it; a parent that is
-- parked in the moment in which its last child is ended wakes; input is nested no deeper than a client's may be; a
-- connection says which database it goes to.

-- ── ends from outside are told to waiters ────────────────────────────────────────────────────────────────────
-- Workers note what they end and their hosts announce it to whom it concerns. What ends without a worker is announced to all
-- clients that listen, as ids in the form of core/awaited.py: 360 to a notification.
CREATE FUNCTION {schema}.announce_ends(p_runs uuid[]) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT pg_notify((SELECT n.nspname FROM pg_namespace n WHERE n.oid = {schema_literal}::regnamespace) || '_ended',
                     replace(encode(string_agg(uuid_send(u.id), ''::bytea ORDER BY u.n), 'base64'), chr(10), ''))
    FROM unnest(p_runs) WITH ORDINALITY AS u (id, n) GROUP BY (u.n - 1) / 360
$$;
COMMENT ON FUNCTION {schema}.announce_ends(uuid[]) IS 'Internal: tell the clients that wait, at the commit, that runs were ended without a worker';

-- ── ending a run from outside ────────────────────────────────────────────────────────────────────────────────
-- As in 0009, but that a parent's row is locked whoever has it: its worker may be parking it in this very moment, without having seen
-- what is ended here. Either that transaction is waited for, and what follows sees the parked row, or it waits for this one and sees the count.
CREATE OR REPLACE FUNCTION {schema}.end_runs(p_runs uuid[], p_status int2, p_error bytea) RETURNS uuid[]
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
        PERFORM FROM {schema}.task t WHERE t.run_id = ANY (v_bereft) ORDER BY t.run_id FOR NO KEY UPDATE;
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

DROP FUNCTION {schema}.cancel(uuid, text);

-- SECURITY DEFINER: a client may cancel runs and must not be able to write the tables otherwise.
CREATE FUNCTION {schema}.cancel(run uuid, reason text DEFAULT NULL, notify boolean DEFAULT false) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    IF {schema}.end_runs(ARRAY[run], 3::int2, {schema}.error_json('RunCancelled', coalesce(reason, 'it was cancelled'))) <> '{}' THEN
        IF notify THEN
            PERFORM {schema}.announce_ends(ARRAY[run]);
        END IF;
        RETURN true;
    END IF;
    IF NOT EXISTS (SELECT FROM {schema}.outcomes(ARRAY[run])) THEN
        RAISE EXCEPTION 'there is no run %', coalesce(run::text, 'null') USING ERRCODE = 'SV006', DETAIL = coalesce(run::text, 'null');
    END IF;
    RETURN false;
END $$;
COMMENT ON FUNCTION {schema}.cancel(uuid, text, boolean) IS
    'End a run as cancelled, at once and whoever has it; false when it had ended before. Its children go on';

-- SECURITY DEFINER: as start_runs.
-- Which runs it has ended is a hint for those who wait for them: a key that is given away between the first statement and the second is not among them.
CREATE FUNCTION {schema}.replace_runs(
    p_workflow text, p_ids uuid[], p_inputs bytea[], p_keys text[], p_hashes bytea[] DEFAULT NULL,
    p_queue text DEFAULT NULL, p_priority int2 DEFAULT 5, p_delay interval DEFAULT interval '0', p_attributes bytea DEFAULT NULL, p_batch text DEFAULT NULL)
RETURNS TABLE (n int8, run_id uuid, matches boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_live uuid[];
BEGIN
    v_live := ARRAY(
        SELECT t.run_id
        FROM {schema}.workflow w, unnest(p_keys) AS u (key),
             LATERAL (SELECT k.run_id FROM {schema}.run_key k WHERE k.workflow = w.id AND k.key = u.key OFFSET 0) AS named,
             LATERAL (SELECT t.run_id FROM {schema}.task t WHERE t.run_id = named.run_id OFFSET 0) AS t
        WHERE w.name = p_workflow);
    RETURN QUERY
        SELECT s.n, s.run_id, s.matches
        FROM {schema}.start_runs(p_workflow, p_ids, p_inputs, p_keys, p_hashes, p_queue, p_priority, p_delay, p_attributes, p_batch, 'replace') AS s;
    RETURN QUERY
        SELECT NULL::int8, u.id, NULL::boolean FROM unnest(v_live) AS u (id)
        WHERE NOT EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = u.id);
END $$;
COMMENT ON FUNCTION {schema}.replace_runs(text, uuid[], bytea[], text[], bytea[], text, int2, interval, bytea, text) IS
    'As start_runs with on_conflict replace; a row without n for each run that it has ended';

-- ── inputs are nested no deeper than a client's ──────────────────────────────────────────────────────────────
-- 64 levels, the outermost object is the first. A document of 127 characters has no 65.
CREATE FUNCTION {schema}.too_deep(p_document jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE                     -- bound when it is made, so it needs no path; with one it would not be inlined
RETURN length(p_document::text) > 127
       AND jsonb_path_exists(p_document, 'strict $.**{64} ? (@.type() == "object" || @.type() == "array")');
COMMENT ON FUNCTION {schema}.too_deep(jsonb) IS 'Internal: whether a document is nested deeper than 64 levels';

CREATE OR REPLACE FUNCTION {schema}.as_inputs(p_workflow text, p_inputs jsonb[]) RETURNS bytea[]
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
           array(SELECT k FROM unnest(v_required) AS k WHERE NOT u.object ? k) AS missing,
           (SELECT f.key FROM jsonb_each(u.object) AS f WHERE {schema}.too_deep(jsonb_build_array(f.value)) LIMIT 1) AS deep
    INTO bad
    FROM (SELECT i.n, i.input, CASE WHEN jsonb_typeof(i.input) = 'object' THEN i.input ELSE '{}' END AS object
          FROM unnest(p_inputs) WITH ORDINALITY AS i (input, n)) AS u
    WHERE jsonb_typeof(u.input) IS DISTINCT FROM 'object' OR length(u.input::text) > 2097152
       OR EXISTS (SELECT FROM jsonb_object_keys(u.object) AS k WHERE k <> ALL (coalesce(v_names, '{}')))
       OR NOT u.object ?& coalesce(v_required, '{}')
       OR {schema}.too_deep(u.object)
    ORDER BY u.n LIMIT 1;
    IF FOUND AND EXISTS (SELECT FROM {schema}.workflow w WHERE w.name = p_workflow) THEN
        RAISE EXCEPTION 'input % of workflow "%": %', bad.n, p_workflow,
            CASE WHEN bad.kind IS DISTINCT FROM 'object' THEN format('it must be an object by parameter name, not %s', coalesce(bad.kind, 'null'))
                 WHEN bad.unknown <> '{}' THEN format('%s: no parameter of it; it takes %s', array_to_string(bad.unknown, ', '),
                                                      coalesce(array_to_string(v_names, ', '), 'none'))
                 WHEN bad.missing <> '{}' THEN format('required but not given: %s', array_to_string(bad.missing, ', '))
                 WHEN bad.deep IS NOT NULL THEN format('%s: nested deeper than 64 levels, the most that every reader of JSON copes with', bad.deep)
                 ELSE format('%s bytes of JSON, more than 2097152', bad.bytes) END USING ERRCODE = '22023';
    END IF;
    RETURN ARRAY(SELECT convert_to(i.input::text, 'UTF8') FROM unnest(p_inputs) WITH ORDINALITY AS i (input, n) ORDER BY i.n);
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

-- ── which database this is ───────────────────────────────────────────────────────────────────────────────────
-- SECURITY DEFINER: whoever may start runs may know it. Managed servers keep pg_control_system to themselves; what is left
-- tells databases apart that were migrated one by one.
CREATE FUNCTION {schema}.home() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_server int8 := 0;
BEGIN
    IF has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE') THEN
        SELECT s.system_identifier INTO v_server FROM pg_control_system() AS s;
    END IF;
    RETURN (SELECT format('%s/%s/%s/%s', v_server, d.oid, {schema_literal}::regnamespace::oid, extract(epoch FROM c.created_at))
            FROM {schema}.cell c, pg_database d WHERE d.datname = current_database());
END $$;
COMMENT ON FUNCTION {schema}.home() IS 'Which server, database and schema this is: two connections that are told the same go to the same';

-- ── rights: what is not named here nobody but the owner may use ──────────────────────────────────────────────
DO $$
DECLARE
    one record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ({role_worker_literal}, {role_client_literal}, {role_operator_literal}) LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.cancel(uuid, text, boolean), {schema}.home(), '
                       '{schema}.replace_runs(text, uuid[], bytea[], text[], bytea[], text, int2, interval, bytea, text) TO %I', one.rolname);
    END LOOP;
END $$;
