-- deploy: pre            older code neither writes nor reads what is new; what it starts with attributes is indexed by start_runs
-- lock:   ACCESS EXCLUSIVE on the view runs, brief; the attributes of runs that are here already are indexed, 20 us a run that has some
-- undo:   DROP VIEW {schema}.attributes; start_runs and runs as in 0009; DROP FUNCTION of each new name;
--         DROP TABLE {schema}.attribute, {schema}.attribute_set, {schema}.progress_note
--
-- What runs say of themselves so that they are found, and how far they are. Insert only like all history: attribute_set and progress_note, whose
-- last row of a run counts. `attribute` is the index of them: one row per value that a run has now, which set_attributes replaces. Ending a run
-- touches none of it, so the path of runs without attributes pays nothing; the rows go with their partition.

CREATE TABLE {schema}.attribute_set (
    run_id uuid NOT NULL,
    set_at timestamptz NOT NULL,
    pos    int4 NOT NULL,
    value  bytea NOT NULL,
    PRIMARY KEY (run_id, pos)
) PARTITION BY RANGE (run_id);
COMMENT ON TABLE {schema}.attribute_set IS 'What runs set of their attributes by set_attributes; insert only, the largest pos counts';
COMMENT ON COLUMN {schema}.attribute_set.run_id IS 'The run';
COMMENT ON COLUMN {schema}.attribute_set.set_at IS 'When it said so';
COMMENT ON COLUMN {schema}.attribute_set.pos IS 'How much the run had been given by then, see step.pos';
COMMENT ON COLUMN {schema}.attribute_set.value IS 'JSON object of all that it has set so far; null for what it has removed';

CREATE TABLE {schema}.progress_note (
    run_id   uuid NOT NULL,
    noted_at timestamptz NOT NULL,
    pos      int4 NOT NULL,
    done     float8 NOT NULL,
    total    float8,
    PRIMARY KEY (run_id, pos)
) PARTITION BY RANGE (run_id);
COMMENT ON TABLE {schema}.progress_note IS 'How far runs said that they are by progress(done, total); insert only, the largest pos counts';
COMMENT ON COLUMN {schema}.progress_note.run_id IS 'The run';
COMMENT ON COLUMN {schema}.progress_note.noted_at IS 'When it said so';
COMMENT ON COLUMN {schema}.progress_note.pos IS 'How much the run had been given by then, see step.pos';
COMMENT ON COLUMN {schema}.progress_note.done IS 'How much is done';
COMMENT ON COLUMN {schema}.progress_note.total IS 'Of how much; null where that is not known';

-- Texts in the order of their bytes ("C"), so that a prefix is a range of the index whatever the database's collation is.
CREATE TABLE {schema}.attribute (
    run_id uuid NOT NULL,
    n      int4 NOT NULL,
    kind   int2 NOT NULL,
    name   text COLLATE "C" NOT NULL,
    txt    text COLLATE "C",
    num    numeric,
    PRIMARY KEY (run_id, name, n)
) PARTITION BY RANGE (run_id);
CREATE INDEX attribute_text_idx ON {schema}.attribute (name, txt, run_id) WHERE txt IS NOT NULL;
CREATE INDEX attribute_number_idx ON {schema}.attribute (name, num, run_id) WHERE num IS NOT NULL;
COMMENT ON TABLE {schema}.attribute IS 'The index of attributes: a row per value that a run has now, of a list one per member';
COMMENT ON COLUMN {schema}.attribute.run_id IS 'The run';
COMMENT ON COLUMN {schema}.attribute.n IS '0, or the place of a member in its list';
COMMENT ON COLUMN {schema}.attribute.kind IS '1 text, 2 number, 3 boolean, 4 time, 5 member of a list of texts';
COMMENT ON COLUMN {schema}.attribute.name IS 'Name of the attribute';
COMMENT ON COLUMN {schema}.attribute.txt IS 'The text; of a long one its first 500 characters';
COMMENT ON COLUMN {schema}.attribute.num IS 'The number; a boolean as 0 or 1, a time as seconds since 1970';

SELECT {schema}.make_partitions_of('attribute_set'), {schema}.make_partitions_of('progress_note'), {schema}.make_partitions_of('attribute');

-- ── the index ────────────────────────────────────────────────────────────────────────────────────────────────
-- A text of exactly the form in which Python writes a time is one. What is of no type that can be searched has no row.
CREATE FUNCTION {schema}.attribute_rows(p_doc bytea) RETURNS TABLE (name text, n int4, kind int2, txt text, num numeric)
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT v.name, v.n, v.kind, CASE WHEN v.kind IN (1, 5) THEN left(v.text, 500) END,
           CASE v.kind WHEN 2 THEN v.text::numeric WHEN 3 THEN v.text::bool::int::numeric WHEN 4 THEN extract(epoch FROM v.text::timestamptz) END
    FROM (SELECT e.key AS name, 0 AS n, e.value #>> '{}' AS text,
                 CASE jsonb_typeof(e.value) WHEN 'number' THEN 2 WHEN 'boolean' THEN 3
                     WHEN 'string' THEN CASE WHEN e.value #>> '{}' ~ '^\d{4}-(0\d|1[0-2])-([012]\d|3[01])T([01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{6}Z$' THEN 4 ELSE 1 END END::int2 AS kind
          FROM jsonb_each({schema}.as_json(p_doc)) AS e (key, value) WHERE jsonb_typeof(e.value) IN ('string', 'number', 'boolean')
          UNION ALL
          SELECT e.key, m.n::int4, m.value, 5::int2
          FROM jsonb_each({schema}.as_json(p_doc)) AS e (key, value)
          CROSS JOIN LATERAL jsonb_array_elements_text(CASE WHEN jsonb_typeof(e.value) = 'array' THEN e.value ELSE '[]' END) WITH ORDINALITY AS m (value, n)) AS v
$$;
COMMENT ON FUNCTION {schema}.attribute_rows(bytea) IS 'Internal: a JSON object of attributes as rows of their index';

-- Custom plan: prunes.
CREATE FUNCTION {schema}.index_attributes(p_runs uuid[], p_doc bytea) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    INSERT INTO {schema}.attribute (run_id, name, n, kind, txt, num)
    SELECT u.run_id, a.name, a.n, a.kind, a.txt, a.num FROM unnest(p_runs) AS u (run_id), {schema}.attribute_rows(p_doc) AS a;
END $$;
COMMENT ON FUNCTION {schema}.index_attributes(uuid[], bytea) IS 'Internal: index the attributes that a start gave to its runs';

-- SECURITY DEFINER: a worker sets the attributes of the runs that it has, and must not be able to write the index otherwise. Custom plan: prunes.
CREATE FUNCTION {schema}.set_attributes(p_run uuid, p_pos int4, p_doc bytea, p_at timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    INSERT INTO {schema}.attribute_set (run_id, set_at, pos, value) VALUES (p_run, p_at, p_pos, p_doc) ON CONFLICT (run_id, pos) DO NOTHING;
    IF NOT FOUND THEN
        RETURN;                                        -- a replay says it again
    END IF;
    DELETE FROM {schema}.attribute a WHERE a.run_id = p_run AND a.name IN (SELECT jsonb_object_keys({schema}.as_json(p_doc)));
    PERFORM {schema}.index_attributes(ARRAY[p_run], p_doc);
END $$;
COMMENT ON FUNCTION {schema}.set_attributes(uuid, int4, bytea, timestamptz) IS 'Internal: what a run has set of its attributes, and their index';

CREATE FUNCTION {schema}.merged_attributes(p_start bytea, p_set bytea) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF p_set IS NULL THEN
        RETURN {schema}.as_json(p_start);
    END IF;
    RETURN jsonb_strip_nulls(coalesce({schema}.as_json(p_start), '{}') || {schema}.as_json(p_set));
END $$;
COMMENT ON FUNCTION {schema}.merged_attributes(bytea, bytea) IS 'Internal: the attributes of a run, from its start and from itself';

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

INSERT INTO {schema}.attribute (run_id, name, n, kind, txt, num)
SELECT r.run_id, a.name, a.n, a.kind, a.txt, a.num FROM {schema}.run r, {schema}.attribute_rows(r.attributes) AS a WHERE r.attributes IS NOT NULL;

-- ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────
CREATE VIEW {schema}.attributes AS
SELECT a.run_id, a.name, (ARRAY['text', 'number', 'boolean', 'time', 'list'])[a.kind] AS kind, a.txt AS text, a.num AS number, a.n
FROM {schema}.attribute a;
COMMENT ON VIEW {schema}.attributes IS 'Attributes of runs, a row per value: ask by name and text or number, which are indexed, or by run_id';
COMMENT ON COLUMN {schema}.attributes.run_id IS 'The run';
COMMENT ON COLUMN {schema}.attributes.name IS 'Name of the attribute';
COMMENT ON COLUMN {schema}.attributes.kind IS 'text, number, boolean, time or list';
COMMENT ON COLUMN {schema}.attributes.text IS 'The text, or one member of a list; null for other kinds. Ordered by its bytes';
COMMENT ON COLUMN {schema}.attributes.number IS 'The number; a boolean as 0 or 1, a time as seconds since 1970; null for texts';
COMMENT ON COLUMN {schema}.attributes.n IS '0, or the place of a member in its list';

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
       coalesce((SELECT {schema}.merged_attributes(r.attributes, s.value) FROM {schema}.attribute_set s WHERE s.run_id = r.run_id ORDER BY s.pos DESC LIMIT 1),
                {schema}.as_json(r.attributes)) AS attributes,
       b.name AS batch,
       (SELECT jsonb_build_object('done', p.done, 'total', p.total, 'at', p.noted_at) FROM {schema}.progress_note p
        WHERE p.run_id = r.run_id ORDER BY p.pos DESC LIMIT 1) AS progress
FROM {schema}.run r
LEFT JOIN {schema}.workflow w ON w.id = r.workflow
LEFT JOIN {schema}.outcome o ON o.run_id = r.run_id
LEFT JOIN {schema}.task_now t ON t.run_id = r.run_id
LEFT JOIN {schema}.queue q ON q.id = coalesce(t.queue, r.queue)
LEFT JOIN {schema}.wait_kind k ON k.id = t.wait
LEFT JOIN {schema}.batch b ON b.id = r.batch;
COMMENT ON COLUMN {schema}.runs.progress IS 'How far it says that it is: done, total (null: not known) and since when; null where it has not said';

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE
    worker   text := {role_worker_literal};
    viewer   text := {role_viewer_literal};
    operator text := {role_operator_literal};
    one      record;
BEGIN
    FOR one IN SELECT g.what, r.rolname FROM (VALUES
        ('INSERT, SELECT ON {schema}.progress_note', ARRAY[worker]),
        ('EXECUTE ON FUNCTION {schema}.set_attributes(uuid, int4, bytea, timestamptz)', ARRAY[worker]),
        ('EXECUTE ON FUNCTION {schema}.merged_attributes(bytea, bytea)', ARRAY[worker, {role_client_literal}, viewer, operator]),
        ('SELECT ON {schema}.attributes', ARRAY[worker, viewer, operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
