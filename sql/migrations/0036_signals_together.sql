-- deploy: pre            nothing of an older version asks for these
-- lock:   nothing that anybody waits for
-- undo:   DROP PROCEDURE signals_together(uuid[], text[], bytea[], text[], boolean[], int4[], boolean[], text[], text[]); DROP FUNCTION send_signals(uuid[], text[], bytea[], text[])
--
-- Signals that the threads or tasks of one client send at the same time, in one transaction: what a signal costs beside its own row (a transaction, a
-- wait for the disk, a round trip) is paid once for all of them.

-- SECURITY DEFINER: as send_signal. One that is refused refuses all: the caller sends them one by one then. Tasks are locked in the order of their ids.
CREATE FUNCTION {schema}.send_signals(p_runs uuid[], p_names text[], p_payloads bytea[], p_ids text[])
RETURNS TABLE (at int8, stored boolean, owner int4, woken boolean, workflow text, queue text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    one record;
BEGIN
    IF cardinality(p_runs) NOT BETWEEN 1 AND 500 OR cardinality(p_names) <> cardinality(p_runs) OR cardinality(p_payloads) <> cardinality(p_runs)
       OR cardinality(p_ids) <> cardinality(p_runs) THEN
        RAISE EXCEPTION 'send_signals takes 1 to 500 signals, with a run, a name, a payload and an id each' USING ERRCODE = '22023';
    END IF;
    FOR one IN
        SELECT u.* FROM unnest(p_runs, p_names, p_payloads, p_ids) WITH ORDINALITY AS u (run_id, name, payload, id, at) ORDER BY u.run_id, u.at
    LOOP
        at := one.at;
        SELECT s.stored, s.owner, s.woken, s.workflow, s.queue INTO stored, owner, woken, workflow, queue
        FROM {schema}.send(one.run_id, 1::int2, one.name, one.payload, one.id) AS s;
        RETURN NEXT;
    END LOOP;
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
