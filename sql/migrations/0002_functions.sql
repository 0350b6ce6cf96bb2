-- deploy: pre            new functions only
-- lock:   none
-- undo:   DROP FUNCTION of each name
--
-- Every body is fully qualified and runs with search_path = pg_catalog, pg_temp: no path of a caller and no
-- temporary table can send it elsewhere.

-- ── ids ──────────────────────────────────────────────────────────────────────────────────────────────────────
CREATE FUNCTION {schema}.id_floor(at timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
RETURN (lpad(to_hex((extract(epoch FROM at) * 1000)::int8), 12, '0') || '00000000000000000000')::uuid;
COMMENT ON FUNCTION {schema}.id_floor(timestamptz) IS 'The smallest run id of that millisecond; partitions are cut at such ids';

-- SECURITY DEFINER: reads this cell's number, and who may only start runs has no right on the tables.
CREATE FUNCTION {schema}.new_id() RETURNS uuid
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT (ms || '7' || substr(noise, 1, 3) || to_hex(8 + (('x' || substr(noise, 4, 1))::bit(4)::int4 & 3)) || substr(noise, 5, 12)
            || lpad(to_hex((SELECT number::int4 FROM {schema}.cell)), 3, '0'))::uuid
    FROM (SELECT lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::int8), 12, '0') AS ms,
                 replace(gen_random_uuid()::text, '-', '') AS noise) AS made
$$;
COMMENT ON FUNCTION {schema}.new_id() IS 'A run id (uuid v7) by the database''s clock, with this cell''s number in the low 12 bits';

CREATE FUNCTION {schema}.id_time(id uuid) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
RETURN to_timestamp(('x' || substr(replace(id::text, '-', ''), 1, 12))::bit(48)::int8 / 1000.0);
COMMENT ON FUNCTION {schema}.id_time(uuid) IS 'The moment that a run id carries';

-- ── payloads ─────────────────────────────────────────────────────────────────────────────────────────────────
-- One bad row must not fail a view: never raises. PARALLEL UNSAFE because of the EXCEPTION block: before
-- PostgreSQL 17 a subtransaction in a parallel query is an error.
CREATE FUNCTION {schema}.as_json(payload bytea, codec int2 DEFAULT 0) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF payload IS NULL THEN
        RETURN NULL;
    ELSIF codec <> 0 THEN
        RETURN jsonb_build_object('unreadable', 'encoded by codec ' || codec, 'bytes', length(payload));
    END IF;
    RETURN convert_from(payload, 'UTF8')::jsonb;
EXCEPTION WHEN OTHERS THEN
    RETURN jsonb_build_object('unreadable', sqlerrm, 'bytes', length(payload));
END $$;
COMMENT ON FUNCTION {schema}.as_json(bytea, int2) IS 'A payload as jsonb, or an object that says why not; never raises';

-- ── partitions ───────────────────────────────────────────────────────────────────────────────────────────────
-- CREATE and ATTACH, never PARTITION OF: that would take ACCESS EXCLUSIVE on the parent and block every worker
-- behind any reader. The CHECK spares the scan at ATTACH. SECURITY DEFINER: the role that workers and their
-- supervisor log in with owns nothing and has no right to make tables; here it can make these and no others.
CREATE FUNCTION {schema}.make_partitions(until timestamptz) RETURNS int4
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
        FOR parent IN SELECT * FROM (VALUES ('run', 'run_id'), ('step', 'run_id'), ('attempt', 'run_id'),
                          ('outcome', 'run_id'), ('child', 'parent_id'), ('child_done', 'parent_id')) AS p (name, id) LOOP
            CONTINUE WHEN to_regclass(format('%s.%I', {schema_literal}, parent.name || '_' || suffix)) IS NOT NULL;
            EXECUTE format('CREATE TABLE {schema}.%I (LIKE {schema}.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE, '
                           'CONSTRAINT born CHECK (%I >= %L AND %I < %L)) WITH (autovacuum_vacuum_insert_threshold = -1)',
                           parent.name || '_' || suffix, parent.name,
                           parent.id, {schema}.id_floor(low), parent.id, {schema}.id_floor(low + width));
            EXECUTE format('ALTER TABLE {schema}.%I ATTACH PARTITION {schema}.%I FOR VALUES FROM (%L) TO (%L)',
                           parent.name, parent.name || '_' || suffix, {schema}.id_floor(low), {schema}.id_floor(low + width));
            EXECUTE format('ALTER TABLE {schema}.%I DROP CONSTRAINT born', parent.name || '_' || suffix);
            made := made + 1;
        END LOOP;
        low := low + width;
    END LOOP;
    RETURN made;
END $$;
COMMENT ON FUNCTION {schema}.make_partitions(timestamptz) IS
    'Make every missing partition up to that time; returns how many tables it made';

-- ── the fence ────────────────────────────────────────────────────────────────────────────────────────────────
-- FOR SHARE, not KEY SHARE: whoever declares the worker dead updates the row and must wait for this batch.
CREATE FUNCTION {schema}.fence(p_worker int4, p_boot uuid, p_epoch int4) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM {schema}.worker WHERE id = p_worker AND boot = p_boot AND epoch = p_epoch AND dead_at IS NULL FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'worker % is fenced off: it was declared dead or a run was taken from it', p_worker USING ERRCODE = 'SV003';
    END IF;
END $$;
COMMENT ON FUNCTION {schema}.fence(int4, uuid, int4) IS 'First statement of every batch: raises SV003 unless this worker may still write';

-- ── start ────────────────────────────────────────────────────────────────────────────────────────────────────
-- SECURITY DEFINER: a client may start runs and must not be able to write the tables otherwise.
-- Returns a row only for what was not created: a key that names a run already (matches: with the same input).
CREATE FUNCTION {schema}.start_runs(
    p_workflow text, p_ids uuid[], p_inputs bytea[], p_keys text[] DEFAULT NULL, p_hashes bytea[] DEFAULT NULL,
    p_queue text DEFAULT NULL, p_priority int2 DEFAULT 5, p_delay interval DEFAULT interval '0')
RETURNS TABLE (n int8, run_id uuid, matches boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_workflow int4;
    v_queue    int4;
    v_deadline timestamptz;
    v_now      timestamptz := clock_timestamp();
    v_low      uuid := {schema}.id_floor(v_now - interval '60 s');   -- here and not in the query: once, not once per id
    v_high     uuid := {schema}.id_floor(v_now + interval '60 s');
    v_taken    int8[];
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
    IF EXISTS (SELECT FROM unnest(p_ids) AS id WHERE id NOT BETWEEN v_low AND v_high) THEN
        RAISE EXCEPTION 'a run id is more than 60 s off the database''s clock' USING ERRCODE = 'SV002',
            HINT = 'set the clock of the client''s machine, or let new_id() make the id';
    END IF;
    IF p_keys IS NOT NULL THEN
        WITH taken AS (
            INSERT INTO {schema}.run_key AS k (workflow, key, run_id, input_hash)
            SELECT v_workflow, u.key, u.id, u.hash FROM unnest(p_keys, p_ids, p_hashes) AS u (key, id, hash) WHERE u.key IS NOT NULL
            ORDER BY u.key
            ON CONFLICT (workflow, key) DO NOTHING RETURNING k.run_id)
        SELECT array_agg(u.n) INTO v_taken
        FROM unnest(p_keys, p_ids) WITH ORDINALITY AS u (key, id, n) LEFT JOIN taken ON taken.run_id = u.id
        WHERE u.key IS NOT NULL AND taken.run_id IS NULL;
    END IF;
    INSERT INTO {schema}.run (run_id, created_at, workflow, queue, prio, key, input)
    SELECT u.id, v_now, v_workflow, v_queue, p_priority, u.key, u.input
    FROM unnest(p_ids, p_inputs, p_keys) WITH ORDINALITY AS u (id, input, key, n)
    WHERE v_taken IS NULL OR u.n <> ALL (v_taken);
    INSERT INTO {schema}.task (run_id, ready_at, cancel_at, queue, workflow, prio, key, input)
    SELECT u.id, v_now + p_delay, v_deadline, v_queue, v_workflow, p_priority, u.key, CASE WHEN length(u.input) <= 1024 THEN u.input END
    FROM unnest(p_ids, p_inputs, p_keys) WITH ORDINALITY AS u (id, input, key, n)
    WHERE v_taken IS NULL OR u.n <> ALL (v_taken);
    IF v_taken IS NOT NULL THEN
        -- a further statement: its snapshot sees the run that won the race
        RETURN QUERY
            SELECT u.n, k.run_id, k.input_hash = u.hash
            FROM unnest(p_keys, p_hashes) WITH ORDINALITY AS u (key, hash, n)
            JOIN {schema}.run_key k ON k.workflow = v_workflow AND k.key = u.key
            WHERE u.n = ANY (v_taken) FOR SHARE OF k;
    END IF;
END $$;
COMMENT ON FUNCTION {schema}.start_runs(text, uuid[], bytea[], text[], bytea[], text, int2, interval) IS
    'Start runs of one workflow in one transaction; a key that names a run already returns that run';

CREATE FUNCTION {schema}.queue_id(p_name text) RETURNS int4
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp   -- DEFINER: a start may name a new queue
AS $$
DECLARE v_id int4;
BEGIN
    IF p_name IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT id INTO v_id FROM {schema}.queue WHERE name = p_name;
    IF NOT FOUND THEN
        INSERT INTO {schema}.queue (name) VALUES (p_name) ON CONFLICT (name) DO NOTHING;
        SELECT id INTO v_id FROM {schema}.queue WHERE name = p_name;
    END IF;
    RETURN v_id;
END $$;
COMMENT ON FUNCTION {schema}.queue_id(text) IS 'The number of a queue; makes it when it is new';

-- SECURITY DEFINER: whoever may start runs may ask how they ended, and needs no right on the tables for it.
CREATE FUNCTION {schema}.outcomes(p_ids uuid[]) RETURNS TABLE (run_id uuid, status text, result bytea, ended_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan   -- prunes partitions
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT o.run_id, {schema}.outcome_name(o.status), o.result, o.ended_at FROM {schema}.outcome o WHERE o.run_id = ANY (p_ids);
END $$;
COMMENT ON FUNCTION {schema}.outcomes(uuid[]) IS 'How those of the given runs ended that have ended';

CREATE FUNCTION {schema}.outcome_name(status int2) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
RETURN (ARRAY['completed', 'failed', 'cancelled', 'terminated', 'timed_out', 'continued'])[status];

-- ── what a client asks before its first start ────────────────────────────────────────────────────────────────
-- SECURITY DEFINER: whoever may start runs may know these facts, and needs no right on the tables for it.
CREATE FUNCTION {schema}.client_facts() RETURNS TABLE (cell int2, migration int4, clock timestamptz)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT (SELECT number FROM {schema}.cell), (SELECT max(number) FROM {schema}.migration), clock_timestamp() $$;
COMMENT ON FUNCTION {schema}.client_facts() IS 'This cell''s number, the newest migration, and the database''s clock';

-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.workflow_parameters(p_name text) RETURNS bytea
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT parameters FROM {schema}.workflow WHERE name = p_name $$;
COMMENT ON FUNCTION {schema}.workflow_parameters(text) IS
    'A workflow''s parameters as JSON, as its workers registered them; null when no worker ever did';

-- SECURITY DEFINER: an operator may let a parked run go on and must not be able to write task otherwise.
CREATE FUNCTION {schema}.retry(p_run uuid) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE {schema}.task SET ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(), claims = 0
    WHERE run_id = p_run AND owner IS NULL AND wait_kind BETWEEN 19 AND 23;
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION {schema}.retry(uuid) IS 'Let a parked run (nondeterminism, code_missing, crash_loop, commit_rejected) go on; false when it is not parked';
