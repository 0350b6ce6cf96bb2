-- deploy: pre            older code neither writes nor reads what is new; make_partitions makes one more table per partition
-- lock:   none that anybody waits for: new tables, functions and views
-- undo:   DROP VIEW {schema}.published; DROP FUNCTION of each name; DROP TABLE {schema}.publication; make_partitions, renew_statistics
--         and partitioned as in 0002 and 0006
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

-- ── the history's tables: whatever the schema has that is cut by the time in run ids ─────────────────────────
-- From the catalogue, so that a table which a later file adds is made, measured and dropped with the others.
CREATE OR REPLACE FUNCTION {schema}.partitioned() RETURNS TABLE (name text, id text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT c.relname::text, a.attname::text
    FROM pg_partitioned_table p JOIN pg_class c ON c.oid = p.partrelid JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0]
    WHERE c.relnamespace = {schema_literal}::regnamespace AND p.partstrat = 'r' AND p.partnatts = 1 AND a.atttypid = 'uuid'::regtype
    ORDER BY c.relname
$$;
COMMENT ON FUNCTION {schema}.partitioned() IS 'Internal: the history''s tables and the column that cuts them';

-- As in 0002, but for the list of tables.
CREATE OR REPLACE FUNCTION {schema}.make_partitions(until timestamptz) RETURNS int4
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    width   interval := make_interval(days => (SELECT partition_days FROM {schema}.cell));
    origin  timestamptz := '2020-01-01 00:00:00+00';
    low     timestamptz := date_bin(width, clock_timestamp() - interval '2 minutes', origin);
    made    int4 := 0;
    suffix  text;
    parent  record;
BEGIN
    IF until > clock_timestamp() + 60 * width THEN
        RAISE EXCEPTION 'partitions up to % would be more than 60', until USING ERRCODE = '22023',
            HINT = 'about 40 are the most that plans bear';
    END IF;
    PERFORM pg_advisory_xact_lock({lock_class}, -2);   -- two that make the same partition would collide
    WHILE low < until LOOP
        suffix := to_char(low AT TIME ZONE 'UTC', 'YYYYMMDD');
        FOR parent IN SELECT p.name, p.id FROM {schema}.partitioned() AS p LOOP
            CONTINUE WHEN to_regclass(format('%s.%I', {schema_literal}, parent.name || '_' || suffix)) IS NOT NULL;
            PERFORM {schema}.make_partition(parent.name, parent.id, suffix, {schema}.id_floor(low), {schema}.id_floor(low + width));
            made := made + 1;
        END LOOP;
        low := low + width;
    END LOOP;
    RETURN made;
END $$;

-- CREATE and ATTACH, never PARTITION OF: see 0002.
CREATE FUNCTION {schema}.make_partition(p_name text, p_id text, p_suffix text, p_low uuid, p_high uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('CREATE TABLE {schema}.%I (LIKE {schema}.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE, '
                   'CONSTRAINT born CHECK (%I >= %L AND %I < %L)) WITH (autovacuum_vacuum_insert_threshold = -1)',
                   p_name || '_' || p_suffix, p_name, p_id, p_low, p_id, p_high);
    EXECUTE format('ALTER TABLE {schema}.%I ATTACH PARTITION {schema}.%I FOR VALUES FROM (%L) TO (%L)', p_name, p_name || '_' || p_suffix, p_low, p_high);
    EXECUTE format('ALTER TABLE {schema}.%I DROP CONSTRAINT born', p_name || '_' || p_suffix);
END $$;
COMMENT ON FUNCTION {schema}.make_partition(text, text, text, uuid, uuid) IS 'Internal: make one partition of one of the history''s tables';

-- Runs that live now were born in partitions that exist already.
DO $$
DECLARE
    one record;
BEGIN
    PERFORM pg_catalog.pg_advisory_xact_lock({lock_class}, -2);
    FOR one IN
        SELECT pg_catalog.substr(c.relname, 5) AS suffix, b.bound[1]::uuid AS low, b.bound[2]::uuid AS high
        FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
        CROSS JOIN LATERAL (SELECT pg_catalog.regexp_match(pg_catalog.pg_get_expr(c.relpartbound, c.oid), 'FROM \(''(.*)''\) TO \(''(.*)''\)') AS bound) b
        WHERE p.relname = 'run' AND p.relnamespace = {schema_literal}::regnamespace AND b.bound IS NOT NULL
    LOOP
        PERFORM {schema}.make_partition('publication', 'run_id', one.suffix, one.low, one.high);
    END LOOP;
END $$;

-- As in 0006, but for the list of tables.
CREATE OR REPLACE FUNCTION {schema}.renew_statistics() RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE v_table text;
BEGIN
    SELECT c.relname INTO v_table
    FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
    WHERE c.relnamespace = {schema_literal}::regnamespace AND c.relkind = 'r'
      AND (c.relname = 'task' OR i.inhparent = ANY (ARRAY(
            SELECT p.oid FROM pg_class p JOIN {schema}.partitioned() AS h ON p.relname = h.name WHERE p.relnamespace = {schema_literal}::regnamespace)))
      AND pg_stat_get_live_tuples(c.oid) > 2 * greatest(c.reltuples, 1000)
    ORDER BY pg_stat_get_live_tuples(c.oid) / greatest(c.reltuples, 1000) DESC, c.relname LIMIT 1;
    IF v_table IS NOT NULL THEN
        EXECUTE format('ANALYZE {schema}.%I', v_table);
    END IF;
    RETURN v_table;
END $$;

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
