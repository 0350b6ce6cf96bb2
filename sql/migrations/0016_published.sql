-- deploy: pre            older code neither writes nor reads what is new
-- lock:   none that anybody waits for: new tables, functions and views
-- undo:   DROP VIEW {schema}.published; DROP FUNCTION of each name; DROP TABLE {schema}.publication
--
-- What runs publish while they live: insert only, partitioned like step, dropped with their run. The last row of a key counts.

CREATE TABLE {schema}.publication (
    run_id       uuid NOT NULL,
    published_at timestamptz NOT NULL,
    pos          int4 NOT NULL,                        -- how much the run had been given by then, see step.pos
    key          text NOT NULL CHECK (length(key) BETWEEN 1 AND 200),
    value        bytea NOT NULL,
    PRIMARY KEY (run_id, key, pos)
) PARTITION BY RANGE (run_id);
COMMENT ON TABLE {schema}.publication IS 'What runs said about themselves by publish(key, value); insert only, the largest pos of a key counts';

SELECT {schema}.make_partitions_of('publication');

-- ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────
CREATE VIEW {schema}.published AS
SELECT last.run_id, last.key, {schema}.as_json(last.value, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = last.run_id)) AS value, last.published_at, last.pos
FROM (SELECT DISTINCT ON (p.run_id, p.key) p.* FROM {schema}.publication p ORDER BY p.run_id, p.key, p.pos DESC) AS last;
COMMENT ON VIEW {schema}.published IS 'What runs have published, the last value of each key; ask by run_id. It stays when the run has ended';
COMMENT ON COLUMN {schema}.published.run_id IS 'The run';
COMMENT ON COLUMN {schema}.published.key IS 'Under which name it published the value';
COMMENT ON COLUMN {schema}.published.value IS 'The value';
COMMENT ON COLUMN {schema}.published.published_at IS 'When it said so, by the database''s clock as its worker knew it';
COMMENT ON COLUMN {schema}.published.pos IS 'How many results the run had been given by then (see steps)';

-- One step per key, however often each was published. SECURITY DEFINER: a client may ask what a run has published and needs no right
-- on tables or views for it. Custom plan: prunes.
CREATE FUNCTION {schema}.published_values(p_run uuid, p_key text DEFAULT NULL) RETURNS TABLE (key text, value bytea, published_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
BEGIN
    IF p_key IS NOT NULL THEN
        RETURN QUERY SELECT p.key, p.value, p.published_at FROM {schema}.publication p WHERE p.run_id = p_run AND p.key = p_key ORDER BY p.pos DESC LIMIT 1;
    ELSE
        RETURN QUERY
            WITH RECURSIVE keys AS (
                (SELECT p.key FROM {schema}.publication p WHERE p.run_id = p_run ORDER BY p.key LIMIT 1)
                UNION ALL
                SELECT (SELECT p.key FROM {schema}.publication p WHERE p.run_id = p_run AND p.key > k.key ORDER BY p.key LIMIT 1) FROM keys k WHERE k.key IS NOT NULL)
            SELECT k.key, last.value, last.published_at
            FROM keys k CROSS JOIN LATERAL (
                SELECT p.value, p.published_at FROM {schema}.publication p WHERE p.run_id = p_run AND p.key = k.key ORDER BY p.pos DESC LIMIT 1) AS last
            WHERE k.key IS NOT NULL;
    END IF;
    IF NOT FOUND AND NOT EXISTS (SELECT FROM {schema}.run r WHERE r.run_id = p_run) THEN
        RAISE EXCEPTION 'there is no run %', coalesce(p_run::text, 'null') USING ERRCODE = 'SV006', DETAIL = coalesce(p_run::text, 'null');
    END IF;
END $$;
COMMENT ON FUNCTION {schema}.published_values(uuid, text) IS 'What a run has published, the last value of each key, or of one; as it is stored';

-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.published(run uuid, key text) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_variable
DECLARE v_value bytea;
BEGIN
    IF key IS NULL THEN
        RAISE EXCEPTION 'published(%, null): name a key', run USING ERRCODE = '22023';
    END IF;
    SELECT p.value INTO v_value FROM {schema}.published_values(run, key) AS p;
    RETURN {schema}.as_json(v_value, coalesce((SELECT r.codec FROM {schema}.run r WHERE r.run_id = run), 0::int2));
END $$;
COMMENT ON FUNCTION {schema}.published(uuid, text) IS 'The last value that a run has published under a key; null where it has not';

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE
    worker   text := {role_worker_literal};
    client   text := {role_client_literal};
    viewer   text := {role_viewer_literal};
    operator text := {role_operator_literal};
    one      record;
BEGIN
    FOR one IN SELECT g.what, r.rolname FROM (VALUES
        ('SELECT, INSERT ON {schema}.publication', ARRAY[worker]),
        ('SELECT ON {schema}.published', ARRAY[worker, viewer, operator]),
        ('EXECUTE ON FUNCTION {schema}.published(uuid, text), {schema}.published_values(uuid, text)', ARRAY[worker, client, operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
