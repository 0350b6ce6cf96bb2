-- deploy: pre            nothing of an older version asks for these
-- lock:   nothing that anybody waits for
-- undo:   DROP PROCEDURE signals_together(uuid[], text[], bytea[], text[], boolean[], int4[], boolean[], text[], text[]); DROP FUNCTION send_signals(uuid[], text[], bytea[], text[])
--
-- Signals that the threads or tasks of one client send at the same time, in one transaction: what a signal costs beside its own row (a transaction, a
-- wait for the disk, a round trip) is paid once for all of them.

-- SECURITY DEFINER: as send_signal. One that is refused refuses all: the caller sends them one by one then. Tasks are locked in the order of their ids,
-- each once. Where one of the runs has no task (it has ended, went on as another run, or never was) they go the way of a single one, which knows why.
CREATE FUNCTION {schema}.send_signals(p_runs uuid[], p_names text[], p_payloads bytea[], p_ids text[])
RETURNS TABLE (at int8, stored boolean, owner int4, woken boolean, workflow text, queue text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    one     record;
    v_runs  uuid[] := ARRAY(SELECT DISTINCT u.run_id FROM unnest(p_runs) AS u (run_id) ORDER BY u.run_id);
    v_found uuid[];
    v_owner int4[];
    v_flow  text[];
    v_queue text[];
    v_new   boolean[];
    v_woken uuid[] := '{}';
BEGIN
    IF cardinality(p_runs) NOT BETWEEN 1 AND 500 OR cardinality(p_names) <> cardinality(p_runs) OR cardinality(p_payloads) <> cardinality(p_runs)
       OR cardinality(p_ids) <> cardinality(p_runs) THEN
        RAISE EXCEPTION 'send_signals takes 1 to 500 signals, with a run, a name, a payload and an id each' USING ERRCODE = '22023';
    END IF;
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    SELECT array_agg(l.run_id ORDER BY l.run_id), array_agg(l.owner ORDER BY l.run_id), array_agg(l.flow ORDER BY l.run_id), array_agg(l.queue ORDER BY l.run_id)
    INTO v_found, v_owner, v_flow, v_queue
    FROM (
        SELECT t.run_id, t.owner, w.name AS flow, q.name AS queue
        FROM {schema}.task t JOIN {schema}.workflow w ON w.id = t.workflow LEFT JOIN {schema}.queue q ON q.id = t.queue AND t.queue <> w.queue
        WHERE t.run_id = ANY (v_runs) ORDER BY t.run_id FOR NO KEY UPDATE OF t
    ) AS l;
    IF v_found IS DISTINCT FROM v_runs OR EXISTS (
        SELECT FROM unnest(p_names, p_payloads, p_ids) AS u (name, payload, id)
        WHERE u.name IS NULL OR length(u.name) NOT BETWEEN 1 AND 200 OR u.name ~ '[[:cntrl:]]' OR length(u.id) NOT BETWEEN 1 AND 500
           OR u.payload IS NULL OR length(u.payload) > 2097152
    ) THEN
        FOR one IN
            SELECT u.* FROM unnest(p_runs, p_names, p_payloads, p_ids) WITH ORDINALITY AS u (run_id, name, payload, id, at) ORDER BY u.run_id, u.at
        LOOP
            at := one.at;
            SELECT s.stored, s.owner, s.woken, s.workflow, s.queue INTO stored, owner, woken, workflow, queue
            FROM {schema}.send(one.run_id, 1::int2, one.name, one.payload, one.id) AS s;
            RETURN NEXT;
        END LOOP;
        RETURN;
    END IF;
    WITH sent AS MATERIALIZED (
        SELECT o.*, nextval('{schema}.message_n') AS n
        FROM (SELECT u.* FROM unnest(p_runs, p_names, p_payloads, p_ids) WITH ORDINALITY AS u (run_id, name, payload, id, at) ORDER BY u.at) AS o
    ), kept AS (
        INSERT INTO {schema}.message (run_id, kind, n, name, id, payload)
        SELECT e.run_id, 1, e.n, e.name, e.id, e.payload FROM sent e ORDER BY e.at
        ON CONFLICT (run_id, kind, name, id) WHERE id IS NOT NULL DO NOTHING
        RETURNING n
    )
    SELECT array_agg(k.n IS NOT NULL ORDER BY e.at) INTO v_new FROM sent e LEFT JOIN kept k ON k.n = e.n;
    IF array_position(v_owner, NULL) IS NOT NULL THEN
        WITH up AS (
            UPDATE {schema}.task t
            SET ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(), wait_children = NULL, wait_failed = NULL,
                wait_signals = NULL
            WHERE t.run_id = ANY (v_runs) AND t.owner IS NULL AND t.wait_kind IN (11, 15)
              AND t.wait_signals && ARRAY(SELECT u.name FROM unnest(p_runs, p_names, v_new) AS u (run_id, name, new) WHERE u.run_id = t.run_id AND u.new)
            RETURNING t.run_id
        )
        SELECT coalesce(array_agg(up.run_id), '{}') INTO v_woken FROM up;
    END IF;
    RETURN QUERY
    SELECT u.at, u.new, f.owner, u.new AND u.run_id = ANY (v_woken), f.flow, f.queue
    FROM unnest(p_runs, v_new) WITH ORDINALITY AS u (run_id, new, at)
    JOIN unnest(v_found, v_owner, v_flow, v_queue) AS f (run_id, owner, flow, queue) ON f.run_id = u.run_id;
END $$;
COMMENT ON FUNCTION {schema}.send_signals(uuid[], text[], bytea[], text[]) IS 'send_signal for up to 500 of them at once: all or none';

-- A procedure, for it commits in between, as signal_and_tell does and for its reasons. All names are qualified and there is no operator.
CREATE PROCEDURE {schema}.signals_together(
    p_runs uuid[], p_names text[], p_payloads bytea[], p_ids text[],
    INOUT stored boolean[], INOUT owner int4[], INOUT woken boolean[], INOUT workflow text[], INOUT queue text[])
LANGUAGE plpgsql
AS $$
BEGIN
    SELECT pg_catalog.array_agg(s.stored ORDER BY s.at), pg_catalog.array_agg(s.owner ORDER BY s.at), pg_catalog.array_agg(s.woken ORDER BY s.at),
           pg_catalog.array_agg(s.workflow ORDER BY s.at), pg_catalog.array_agg(s.queue ORDER BY s.at)
    INTO stored, owner, woken, workflow, queue FROM {schema}.send_signals(p_runs, p_names, p_payloads, p_ids) AS s;
    PERFORM pg_catalog.set_config('synchronous_commit', 'off', true);
    COMMIT;
    PERFORM {schema}.wait_for_disk();
END $$;
COMMENT ON PROCEDURE {schema}.signals_together(uuid[], text[], bytea[], text[], boolean[], int4[], boolean[], text[], text[]) IS
    'Internal: send_signals, its commit, and in a second transaction the wait for the disk';

DO $$
DECLARE one record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ({role_worker_literal}, {role_client_literal}, {role_operator_literal}) LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.send_signals(uuid[], text[], bytea[], text[]) TO %I', one.rolname);
        EXECUTE format('GRANT EXECUTE ON PROCEDURE {schema}.signals_together(uuid[], text[], bytea[], text[], boolean[], int4[], boolean[], text[], text[]) TO %I', one.rolname);
    END LOOP;
END $$;
