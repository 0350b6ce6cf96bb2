-- deploy: pre            older code does not read the column: a fork that an older worker takes up draws numbers of its own, and a newer one parks it if it goes by them
-- lock:   ACCESS EXCLUSIVE on run, brief: a column without a default
-- undo:   DROP FUNCTION {schema}.check_inputs(text, jsonb[], bytea[]); as_inputs as in 0014, history_run as in 0025, fork_run as in 0027; ALTER TABLE {schema}.run DROP COLUMN drawn_from
--
-- A fork replays the code of the run that it was made from, so it draws what that one drew: the same random numbers, and until its first result the same moment.
-- Both come from a run's id. Then: another input for a fork is stored byte for byte, as that of a start.

ALTER TABLE {schema}.run ADD COLUMN drawn_from uuid;
COMMENT ON COLUMN {schema}.run.drawn_from IS 'Run whose random numbers it draws and at whose start its time begins: of a fork the first one that its history comes from; null: its own';

-- What as_inputs looked for in 0014. The size is that of what is stored, for as jsonb it may be another one.
CREATE FUNCTION {schema}.check_inputs(p_workflow text, p_inputs jsonb[], p_stored bytea[]) RETURNS void
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
    SELECT u.n, jsonb_typeof(u.input) AS kind, u.bytes,
           array(SELECT k FROM jsonb_object_keys(u.object) AS k WHERE k <> ALL (coalesce(v_names, '{}'))) AS unknown,
           array(SELECT k FROM unnest(v_required) AS k WHERE NOT u.object ? k) AS missing,
           (SELECT f.key FROM jsonb_each(u.object) AS f WHERE {schema}.too_deep(jsonb_build_array(f.value)) LIMIT 1) AS deep
    INTO bad
    FROM (SELECT i.n, i.input, octet_length(i.stored) AS bytes, CASE WHEN jsonb_typeof(i.input) = 'object' THEN i.input ELSE '{}' END AS object
          FROM unnest(p_inputs, p_stored) WITH ORDINALITY AS i (input, stored, n)) AS u
    WHERE jsonb_typeof(u.input) IS DISTINCT FROM 'object' OR u.bytes > 2097152
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
END $$;
COMMENT ON FUNCTION {schema}.check_inputs(text, jsonb[], bytea[]) IS 'Internal: raises 22023 for an input that does not fit the workflow''s parameters, or is too large as it is stored';

CREATE OR REPLACE FUNCTION {schema}.as_inputs(p_workflow text, p_inputs jsonb[]) RETURNS bytea[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_stored bytea[] := ARRAY(SELECT convert_to(i.input::text, 'UTF8') FROM unnest(p_inputs) WITH ORDINALITY AS i (input, n) ORDER BY i.n);
BEGIN
    PERFORM {schema}.check_inputs(p_workflow, p_inputs, v_stored);
    RETURN v_stored;
END $$;

-- As in 0027; it draws what its source drew, and its input is not read as jsonb and written again.
-- p_id may be there already: its first try arrived, and only the answer was lost.
CREATE OR REPLACE FUNCTION {schema}.fork_run(
    p_run uuid, p_id uuid, p_seq int4, p_input bytea, p_workflow text, p_verb text, p_reason text, p_actor text,
    OUT did boolean, OUT state text, OUT why text, OUT made uuid, OUT owner int4)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_from  record;
    v_to    record;
    v_cut   record;
    v_input bytea;
    v_key   text;
    v_facts bytea;
BEGIN
    did := false;
    SELECT r.*, w.name AS named INTO v_from FROM {schema}.run r JOIN {schema}.workflow w ON w.id = r.workflow WHERE r.run_id = p_run;
    IF NOT FOUND THEN
        state := 'unknown';
        RETURN;
    END IF;
    made := p_id;
    IF EXISTS (SELECT FROM {schema}.run r WHERE r.run_id = p_id) THEN
        state := 'forked';
        RETURN;
    END IF;
    SELECT w.id, w.name, w.queue, w.timeout_s INTO v_to FROM {schema}.workflow w WHERE w.name = coalesce(p_workflow, v_from.named);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no worker has ever registered a workflow named "%"', p_workflow USING ERRCODE = 'SV001',
            HINT = 'start a worker whose app defines it, or check the name';
    END IF;
    IF v_from.codec <> 0 AND (p_input IS NOT NULL OR v_to.name <> v_from.named) THEN
        RAISE EXCEPTION 'the input of run % is encoded by codec %: it can only be forked with it', p_run, v_from.codec USING ERRCODE = '22023';
    END IF;
    v_input := coalesce(p_input, v_from.input);        -- byte for byte: as jsonb it is only looked at
    IF p_input IS NOT NULL OR v_to.name <> v_from.named THEN
        PERFORM {schema}.check_inputs(v_to.name, ARRAY[convert_from(v_input, 'UTF8')::jsonb], ARRAY[v_input]);
    END IF;
    SELECT c.pos, c.why INTO v_cut FROM {schema}.cut_before(p_run, p_seq) AS c;
    IF v_cut.why IS NOT NULL THEN
        state := 'refused';
        why := v_cut.why;
        made := NULL;
        RETURN;
    END IF;
    IF p_verb = 'retry' THEN                           -- it goes on with what the key stands for, unless that names another run by now
        UPDATE {schema}.run_key k SET run_id = p_id WHERE k.workflow = v_from.workflow AND k.key = v_from.key AND k.run_id = p_run RETURNING k.key INTO v_key;
    END IF;
    INSERT INTO {schema}.run (run_id, created_at, workflow, queue, prio, codec, key, input, attributes, forked_from, forked_seq, drawn_from)
    VALUES (p_id, clock_timestamp(), v_to.id, CASE WHEN v_to.name = v_from.named THEN v_from.queue ELSE v_to.queue END, v_from.prio, v_from.codec, v_key, v_input,
            v_from.attributes, p_run, p_seq, coalesce(v_from.drawn_from, p_run));
    PERFORM {schema}.copy_history(p_run, p_id, v_cut.pos);
    v_facts := convert_to({schema}.merged_attributes(v_from.attributes, (
        SELECT a.value FROM {schema}.attribute_set a WHERE a.run_id = p_id ORDER BY a.pos DESC LIMIT 1))::text, 'UTF8');
    IF v_facts IS NOT NULL THEN
        PERFORM {schema}.index_attributes(ARRAY[p_id], v_facts);
    END IF;
    -- Where there is no history the input stands in run alone, so that whoever claims it reads that, and with it whose numbers it draws.
    INSERT INTO {schema}.task (run_id, ready_at, cancel_at, queue, workflow, prio, key, resumed, input)
    SELECT r.run_id, r.created_at, r.created_at + v_to.timeout_s * interval '1 s', r.queue, r.workflow, r.prio, r.key, CASE WHEN v_cut.pos > 0 THEN 1 ELSE 0 END,
           CASE WHEN length(r.input) <= 1024 AND v_cut.pos > 0 THEN r.input END
    FROM {schema}.run r WHERE r.run_id = p_id;
    PERFORM {schema}.note(p_run, p_verb, p_reason, p_actor, jsonb_build_object(
        'run', p_id, 'seq', p_seq, 'kept', v_cut.pos, 'workflow', p_workflow, 'input', CASE WHEN p_input IS NOT NULL THEN {schema}.as_json(v_input) END));
    did := true;
    state := 'forked';
END $$;

-- As in 0025, with whose numbers it draws. SECURITY DEFINER: a viewer may read histories and needs no right on the tables. Custom plan: prunes.
DROP FUNCTION {schema}.history_run(uuid);
CREATE FUNCTION {schema}.history_run(p_run uuid)
RETURNS TABLE (workflow text, key text, version text, status text, codec int2, input bytea, steps int8, result_bytes int8, drawn_from uuid)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT w.name, r.key, {schema}.run_version(p_run), coalesce({schema}.outcome_name(o.status), t.status, 'lost'), r.codec, r.input, s.n, s.bytes, r.drawn_from
        FROM {schema}.run r JOIN {schema}.workflow w ON w.id = r.workflow
        LEFT JOIN {schema}.outcome o ON o.run_id = p_run LEFT JOIN {schema}.task_now t ON t.run_id = p_run
        CROSS JOIN LATERAL (SELECT count(*) AS n, coalesce(sum(octet_length(p.result)), 0)::int8 AS bytes FROM {schema}.step p WHERE p.run_id = p_run) AS s
        WHERE r.run_id = p_run;
END $$;
COMMENT ON FUNCTION {schema}.history_run(uuid) IS 'A run as it was started, how it stands, and how long its history is; input is as stored; drawn_from: whose random numbers it draws, null: its own';

DO $$
DECLARE
    worker   text := {role_worker_literal};
    viewer   text := {role_viewer_literal};
    operator text := {role_operator_literal};
    one      record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN (worker, viewer, operator) LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.history_run(uuid) TO %I', one.rolname);
    END LOOP;
END $$;
