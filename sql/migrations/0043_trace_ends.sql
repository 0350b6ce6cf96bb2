-- deploy: pre            older code neither reads nor writes what is new
-- lock:   nothing that anybody waits for
-- undo:   DROP FUNCTION {schema}.take_trace_ends(uuid[], int4); end_runs as in 0019; DROP TABLE {schema}.trace_end, {schema}.trace_reader
--
-- The span of a run is sent by the worker that ends it. One that is ended from outside has none, so it is noted, and a worker of a host that traces takes
-- the note, sends the span, and says so. Where nobody has traced for three minutes nothing is noted: that costs an end one look at a table of one row.

CREATE TABLE {schema}.trace_reader (
    one     bool PRIMARY KEY DEFAULT true CHECK (one),
    seen_at timestamptz NOT NULL
);
COMMENT ON TABLE {schema}.trace_reader IS 'One row: whether any worker traces';
COMMENT ON COLUMN {schema}.trace_reader.one IS 'True: there is one row';
COMMENT ON COLUMN {schema}.trace_reader.seen_at IS 'When one last asked for ends, to the minute';
INSERT INTO {schema}.trace_reader (seen_at) VALUES ('-infinity');

CREATE TABLE {schema}.trace_end (
    run_id   uuid NOT NULL,
    taken_at timestamptz,
    PRIMARY KEY (run_id)
);
COMMENT ON TABLE {schema}.trace_end IS 'Runs that were ended from outside and whose span nobody has sent yet; all but empty';
COMMENT ON COLUMN {schema}.trace_end.run_id IS 'The run';
COMMENT ON COLUMN {schema}.trace_end.taken_at IS 'When a worker took it; it has a minute';

-- As in 0019, and where somebody traces the ends are noted.
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
        UPDATE {schema}.task t SET ready_at = least(t.ready_at, clock_timestamp() + interval '0.1 s')
        WHERE t.run_id = ANY (v_bereft) AND t.owner IS NULL AND t.wait_children IS NOT NULL;
    END IF;
    IF v_ended <> '{}' THEN
        DELETE FROM {schema}.timer t WHERE t.run_id = ANY (v_ended);
        IF EXISTS (SELECT FROM {schema}.trace_reader r WHERE r.one AND r.seen_at > clock_timestamp() - interval '3 minutes') THEN
            INSERT INTO {schema}.trace_end (run_id) SELECT unnest(v_ended) ON CONFLICT (run_id) DO NOTHING;
        END IF;
        PERFORM {schema}.close_children(v_ended);
    END IF;
    RETURN v_ended;
END $$;

-- SECURITY DEFINER: a worker needs no right on these tables for anything else. Two workers at once take different ones; the notes of runs whose history
-- was dropped are dropped. Custom plan: prunes.
CREATE FUNCTION {schema}.take_trace_ends(p_sent uuid[], p_max int4)
RETURNS TABLE (run_id uuid, workflow text, queue text, key text, status int2, steps int4, waits int8, result bytea, ended_at timestamptz,
               traceparent text, tracestate text, link text, origin uuid, origin_traceparent text)
LANGUAGE plpgsql VOLATILE ROWS 100 SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    v_runs uuid[];
BEGIN
    UPDATE {schema}.trace_reader r SET seen_at = clock_timestamp() WHERE r.one AND r.seen_at < clock_timestamp() - interval '1 minute';
    DELETE FROM {schema}.trace_end e WHERE e.run_id = ANY (p_sent);
    WITH free AS (
        SELECT e.run_id FROM {schema}.trace_end e WHERE e.taken_at IS NULL OR e.taken_at < clock_timestamp() - interval '1 minute'
        ORDER BY e.run_id LIMIT p_max FOR UPDATE SKIP LOCKED),
    taken AS (
        UPDATE {schema}.trace_end e SET taken_at = clock_timestamp() FROM free WHERE e.run_id = free.run_id RETURNING e.run_id)
    SELECT array_agg(t.run_id) INTO v_runs FROM taken t;
    IF v_runs IS NULL THEN
        RETURN;
    END IF;
    DELETE FROM {schema}.trace_end e WHERE e.run_id = ANY (v_runs) AND NOT EXISTS (SELECT FROM {schema}.outcome o WHERE o.run_id = e.run_id AND o.run_id = ANY (v_runs));
    RETURN QUERY
    SELECT r.run_id, w.name, q.name, r.key, o.status, o.steps,
           (SELECT count(*) FROM {schema}.step s WHERE s.run_id = r.run_id AND s.run_id = ANY (v_runs) AND s.kind IN (2, 3, 5, 7, 9)),
           o.result, o.ended_at, x.traceparent, x.tracestate, x.link, x.origin, x.origin_traceparent
    FROM {schema}.run r
    JOIN {schema}.outcome o ON o.run_id = r.run_id AND o.run_id = ANY (v_runs)
    JOIN {schema}.workflow w ON w.id = r.workflow
    JOIN {schema}.queue q ON q.id = r.queue
    LEFT JOIN {schema}.traces_of(v_runs) AS x ON x.run_id = r.run_id
    WHERE r.run_id = ANY (v_runs);
END $$;
COMMENT ON FUNCTION {schema}.take_trace_ends(uuid[], int4) IS
    'Internal: forget the ends whose spans were sent, and take further ones: runs that were ended from outside, with what their spans say';

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE
    worker text := {role_worker_literal};
    one    record;
BEGIN
    FOR one IN SELECT g.what, r.rolname FROM (VALUES
        ('EXECUTE ON FUNCTION {schema}.take_trace_ends(uuid[], int4)', ARRAY[worker])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
