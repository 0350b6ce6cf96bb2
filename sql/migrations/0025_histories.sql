-- deploy: pre            new functions only
-- lock:   none
-- undo:   DROP FUNCTION of each name
--
-- Histories as they are recorded, byte for byte, for who compares them with code: jsonb, as the views show it, has another order of keys.
-- Read in slices, each a short statement that reads the partition of the run alone.

-- SECURITY DEFINER: a viewer may read histories and needs no right on the tables. Custom plan: prunes.
CREATE FUNCTION {schema}.history_run(p_run uuid)
RETURNS TABLE (workflow text, key text, version text, status text, codec int2, input bytea, steps int8, result_bytes int8)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT w.name, r.key, {schema}.run_version(p_run), coalesce({schema}.outcome_name(o.status), t.status, 'lost'), r.codec, r.input, s.n, s.bytes
        FROM {schema}.run r JOIN {schema}.workflow w ON w.id = r.workflow
        LEFT JOIN {schema}.outcome o ON o.run_id = p_run LEFT JOIN {schema}.task_now t ON t.run_id = p_run
        CROSS JOIN LATERAL (SELECT count(*) AS n, coalesce(sum(octet_length(p.result)), 0)::int8 AS bytes FROM {schema}.step p WHERE p.run_id = p_run) AS s
        WHERE r.run_id = p_run;
END $$;
COMMENT ON FUNCTION {schema}.history_run(uuid) IS 'A run as it was started, how it stands, and how long its history is; input is as stored';

-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.history_steps(p_run uuid, p_after int4 DEFAULT -1, p_limit int4 DEFAULT 1000)
RETURNS TABLE (pos int4, seq int4, kind int2, status int2, name text, result bytea, ended_us int8)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT s.pos, s.seq, s.kind, s.status, s.name, s.result, (extract(epoch FROM s.ended_at) * 1000000)::int8 - 946684800000000
        FROM {schema}.step s WHERE s.run_id = p_run AND s.pos > p_after ORDER BY s.pos LIMIT least(greatest(p_limit, 1), 10000);
END $$;
COMMENT ON FUNCTION {schema}.history_steps(uuid, int4, int4) IS
    'The records of a run in the order of delivery, as stored; ended_us since 2000; p_after takes the last pos of the page before';

-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.history_pending(p_run uuid) RETURNS TABLE (seq int4, kind text, name text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT t.seq, 'timer', 'sleep' FROM {schema}.timer t WHERE t.run_id = p_run
        UNION ALL
        SELECT c.seq, 'child', w.name FROM {schema}.child c JOIN {schema}.run r ON r.run_id = c.run_id JOIN {schema}.workflow w ON w.id = r.workflow
        WHERE c.parent_id = p_run
        UNION ALL
        SELECT DISTINCT a.seq, 'attempt', a.name FROM {schema}.attempt a WHERE a.run_id = p_run AND a.kind <= 2
        UNION ALL
        SELECT t.seq, 'wait', t.step FROM {schema}.task t
        WHERE t.run_id = p_run AND t.owner IS NULL AND t.wait_kind BETWEEN 9 AND 15 AND t.seq IS NOT NULL AND t.step IS NOT NULL
        ORDER BY 1, 2;
END $$;
COMMENT ON FUNCTION {schema}.history_pending(uuid) IS
    'What a run has asked for and may not have been given: timers, children, attempts, and what it is parked for; whoever has its records takes those out';

-- The newest, and for the rest one of each slot of the time, so that what is rare or old is among them. SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.history_sample(p_workflow text, p_since timestamptz, p_max int4, p_version text DEFAULT NULL) RETURNS SETOF uuid
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_workflow int4 := (SELECT w.id FROM {schema}.workflow w WHERE w.name = p_workflow);
    v_low      uuid := {schema}.id_floor(p_since);
    v_newest   uuid[];
    v_slot     interval := greatest((clock_timestamp() - p_since) / greatest(p_max, 1), interval '1 ms');
BEGIN
    IF v_workflow IS NULL THEN
        RAISE EXCEPTION 'no worker has ever registered a workflow named "%"', p_workflow USING ERRCODE = 'SV001';
    ELSIF p_version IS NOT NULL THEN                   -- those that would be moved
        RETURN QUERY SELECT t.run_id FROM {schema}.task t
            WHERE t.workflow = v_workflow AND t.version = p_version AND t.run_id >= v_low ORDER BY t.run_id DESC LIMIT p_max;
        RETURN;
    END IF;
    v_newest := ARRAY(SELECT r.run_id FROM {schema}.run r WHERE r.run_id >= v_low AND r.workflow = v_workflow ORDER BY r.run_id DESC LIMIT p_max);
    IF cardinality(v_newest) < p_max THEN
        RETURN QUERY SELECT unnest(v_newest);
        RETURN;
    END IF;
    RETURN QUERY
        SELECT e.run_id FROM (
            SELECT s.run_id, 0 AS later FROM generate_series(0, p_max / 2 - 1) AS n CROSS JOIN LATERAL (
                SELECT r.run_id FROM {schema}.run r
                WHERE r.run_id >= {schema}.id_floor(p_since + 2 * n * v_slot) AND r.run_id < {schema}.id_floor(p_since + 2 * (n + 1) * v_slot)
                  AND r.workflow = v_workflow ORDER BY r.run_id LIMIT 1) AS s
            UNION ALL
            SELECT u.run_id, 1 FROM unnest(v_newest) AS u (run_id)) AS e
        GROUP BY e.run_id ORDER BY min(e.later), e.run_id DESC LIMIT p_max;
END $$;
COMMENT ON FUNCTION {schema}.history_sample(text, timestamptz, int4, text) IS
    'Runs of a workflow that were started since then: the newest, and half of them spread over the time; or the live ones of a version';

DO $$
DECLARE
    worker   text := {role_worker_literal};
    viewer   text := {role_viewer_literal};
    operator text := {role_operator_literal};
    one      record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN (worker, viewer, operator) LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.history_run(uuid), {schema}.history_steps(uuid, int4, int4), {schema}.history_pending(uuid), '
                       '{schema}.history_sample(text, timestamptz, int4, text) TO %I', one.rolname);
    END LOOP;
END $$;
