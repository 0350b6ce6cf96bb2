-- deploy: pre            older code neither writes nor reads what is new
-- lock:   nothing that anybody waits for
-- undo:   DROP FUNCTION of each new name; DROP TABLE {schema}.trace
--
-- In whose span a run was started (W3C Trace Context), where it was in any: a row of its own, so that starts without one pay nothing, and no
-- attribute, so that nobody finds runs by it. Written in the start's transaction, by who starts, or by the worker that starts a child.

CREATE TABLE {schema}.trace (
    run_id      uuid NOT NULL,
    traceparent text,
    tracestate  text,
    link        text,
    PRIMARY KEY (run_id),
    CHECK (length(traceparent) <= 55 AND length(tracestate) <= 512 AND length(link) <= 55)
) PARTITION BY RANGE (run_id);
COMMENT ON TABLE {schema}.trace IS 'Which trace runs belong to, where whoever started them said so; insert only';
COMMENT ON COLUMN {schema}.trace.run_id IS 'The run';
COMMENT ON COLUMN {schema}.trace.traceparent IS 'The span in which it was started: 00-<trace>-<span>-<flags>; null: a trace of its own';
COMMENT ON COLUMN {schema}.trace.tracestate IS 'What the vendors of that trace pass on, at most 512 characters';
COMMENT ON COLUMN {schema}.trace.link IS 'The span of the run that continued as this one, in the same form';
SELECT {schema}.make_partitions_of('trace');

-- The traceparent that is stored, or null for what is none: a start does not fail for it.
CREATE FUNCTION {schema}.as_traceparent(p_text text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT '00-' || m.part[2] || '-' || m.part[3] || '-' || m.part[4]
    FROM (SELECT regexp_match(left(p_text, 512), '^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$') AS part) AS m
    WHERE m.part[1] <> 'ff' AND (m.part[1] <> '00' OR m.part[5] IS NULL) AND m.part[2] <> repeat('0', 32) AND m.part[3] <> repeat('0', 16)
$$;
COMMENT ON FUNCTION {schema}.as_traceparent(text) IS 'Internal: a traceparent as it is stored; null for what is none';

-- SECURITY DEFINER: a client says whose span its starts are in, and must not be able to write the table otherwise: only of runs that nobody has claimed,
-- and once. Those that a key named already are not among the tasks under these ids. Custom plan: prunes.
CREATE FUNCTION {schema}.trace_starts(p_runs uuid[], p_traceparent text, p_tracestate text) RETURNS int8
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_parent text := {schema}.as_traceparent(p_traceparent);
    v_count  int8 := 0;
BEGIN
    IF v_parent IS NOT NULL THEN
        INSERT INTO {schema}.trace (run_id, traceparent, tracestate)
        SELECT t.run_id, v_parent, CASE WHEN length(p_tracestate) <= 512 AND p_tracestate <> '' THEN p_tracestate END
        FROM {schema}.task t WHERE t.run_id = ANY (p_runs) AND t.owner IS NULL AND t.claims = 0 AND t.resumed = 0
        ON CONFLICT (run_id) DO NOTHING;
        GET DIAGNOSTICS v_count = ROW_COUNT;
    END IF;
    RETURN v_count;
END $$;
COMMENT ON FUNCTION {schema}.trace_starts(uuid[], text, text) IS 'Internal: say in whose span runs were started, in the transaction that started them; how many of them it is new of';

CREATE FUNCTION {schema}.traced(run uuid, traceparent text, tracestate text DEFAULT NULL) RETURNS uuid
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM {schema}.trace_starts(ARRAY[traced.run], traced.traceparent, traced.tracestate);
    RETURN traced.run;
END $$;
COMMENT ON FUNCTION {schema}.traced(uuid, text, text) IS
    'Put a run that was just started into the trace of its caller: select traced(start(…), ''00-…''); returns the run';

-- Of runs that were just claimed: in whose span each was started, and what it goes on with (a fork, a retry of one that had ended). Custom plan: prunes.
CREATE FUNCTION {schema}.traces_of(p_runs uuid[])
RETURNS TABLE (run_id uuid, traceparent text, tracestate text, link text, origin uuid, origin_traceparent text)
LANGUAGE plpgsql STABLE ROWS 500 SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    v_origins uuid[];
BEGIN
    IF p_runs = '{}' THEN
        RETURN;
    END IF;
    v_origins := ARRAY(SELECT r.forked_from FROM {schema}.run r WHERE r.run_id = ANY (p_runs) AND r.forked_from IS NOT NULL);
    IF v_origins = '{}' THEN
        RETURN QUERY SELECT x.run_id, x.traceparent, x.tracestate, x.link, NULL::uuid, NULL::text FROM {schema}.trace x WHERE x.run_id = ANY (p_runs);
    ELSE
        RETURN QUERY
        SELECT r.run_id, x.traceparent, x.tracestate, x.link, r.forked_from, o.traceparent
        FROM {schema}.run r
        LEFT JOIN {schema}.trace x ON x.run_id = r.run_id AND x.run_id = ANY (p_runs)
        LEFT JOIN {schema}.trace o ON o.run_id = r.forked_from AND o.run_id = ANY (v_origins)
        WHERE r.run_id = ANY (p_runs) AND (x.run_id IS NOT NULL OR r.forked_from IS NOT NULL);
    END IF;
END $$;
COMMENT ON FUNCTION {schema}.traces_of(uuid[]) IS 'Internal: in whose span runs were started, and which runs they go on with; no row for those that have neither';

-- As supervisor.core.traces computes it. SECURITY DEFINER: whoever may look at a run may look for it in its traces. VOLATILE: in the statement that
-- starts a run it sees what that said.
CREATE FUNCTION {schema}.trace_id(run uuid) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    RETURN coalesce((SELECT substr(x.traceparent, 4, 32) FROM {schema}.trace x WHERE x.run_id = trace_id.run),
                    encode(substr(sha256('trace'::bytea || uuid_send(trace_id.run)), 1, 16), 'hex'));
END $$;
COMMENT ON FUNCTION {schema}.trace_id(uuid) IS 'The trace that a run belongs to, as 32 hexadecimal digits: its caller''s, or one of its own';

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE
    worker text := {role_worker_literal};
    client text := {role_client_literal};
    viewer text := {role_viewer_literal};
    operator text := {role_operator_literal};
    one    record;
BEGIN
    FOR one IN SELECT g.what, r.rolname FROM (VALUES
        ('INSERT, SELECT ON {schema}.trace', ARRAY[worker]),
        ('EXECUTE ON FUNCTION {schema}.traces_of(uuid[])', ARRAY[worker]),
        ('EXECUTE ON FUNCTION {schema}.trace_starts(uuid[], text, text), {schema}.traced(uuid, text, text)', ARRAY[worker, client, operator]),
        ('EXECUTE ON FUNCTION {schema}.trace_id(uuid)', ARRAY[worker, client, viewer, operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
