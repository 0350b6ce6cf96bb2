-- deploy: pre            a new table and functions that nothing older uses; hosts that do not know them leave queries unanswered
-- lock:   none that anybody waits for
-- undo:   DROP FUNCTION of each name; DROP TABLE {schema}.query
--
-- Questions to runs, while somebody waits for their answers; nothing of them is history. So they stand in a table of their own, which the
-- requester, or whoever comes by after his time is over, empties again; unlogged: the server need not write them down, and who
-- waits when it crashes asks again. An answer is found by replaying the run in a process that executes nothing of it.

CREATE UNLOGGED TABLE {schema}.query (
    id       uuid PRIMARY KEY,
    run_id   uuid NOT NULL,
    workflow int4 NOT NULL,
    name     text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    input    bytea,                                    -- JSON of its argument; null: it has none
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    until    timestamptz NOT NULL,                     -- nobody waits any longer
    taken_by int4,                                     -- backend of the session that answers it
    tries    int2 NOT NULL DEFAULT 0,                  -- how often it was taken: an answer may end the process that looks for it
    status   int2,                                     -- 1 answered, 2 failed; null: not yet
    reply    bytea                                     -- JSON of the answer, or of the error
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
CREATE INDEX query_open_idx ON {schema}.query (asked_at) WHERE status IS NULL;
COMMENT ON TABLE {schema}.query IS 'Questions to runs while somebody waits for the answer; asked, taken, answered, removed';

CREATE FUNCTION {schema}.drop_queries() RETURNS int4
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE n int4;
BEGIN
    DELETE FROM {schema}.query WHERE id IN (SELECT q.id FROM {schema}.query q WHERE q.until < clock_timestamp() LIMIT 1000 FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION {schema}.drop_queries() IS 'Internal: remove queries that nobody waits for any more, a thousand at most';

-- SECURITY DEFINER: a client may ask runs and must not be able to read or write the tables otherwise. Asked again under the same id, it is the same question.
CREATE FUNCTION {schema}.ask_query(p_id uuid, p_run uuid, p_name text, p_input bytea DEFAULT NULL, p_timeout_s float8 DEFAULT 20) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan   -- custom: prunes
AS $$
DECLARE v_workflow record;
BEGIN
    SELECT w.id, w.name INTO v_workflow FROM {schema}.run r JOIN {schema}.workflow w ON w.id = r.workflow WHERE r.run_id = p_run;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no run %', coalesce(p_run::text, 'null') USING ERRCODE = 'SV006', DETAIL = coalesce(p_run::text, 'null');
    END IF;
    IF p_timeout_s IS NULL OR NOT (p_timeout_s > 0 AND p_timeout_s <= 3600) THEN
        RAISE EXCEPTION 'a query is waited for for up to 3600 s, not %', p_timeout_s USING ERRCODE = '22023';
    END IF;
    IF length(p_name) NOT BETWEEN 1 AND 200 THEN
        RAISE EXCEPTION 'the name of a query has 1 to 200 characters, not %', length(p_name) USING ERRCODE = '22023';
    END IF;
    IF length(p_input) > 2097152 THEN
        RAISE EXCEPTION 'the argument of a query has at most 2097152 bytes, not %', length(p_input) USING ERRCODE = '22023';
    END IF;
    PERFORM {schema}.drop_queries();
    INSERT INTO {schema}.query (id, run_id, workflow, name, input, until)
    VALUES (p_id, p_run, v_workflow.id, p_name, p_input, clock_timestamp() + p_timeout_s * interval '1 s') ON CONFLICT (id) DO NOTHING;
    RETURN v_workflow.name;
END $$;
COMMENT ON FUNCTION {schema}.ask_query(uuid, uuid, text, bytea, float8) IS
    'Ask a run, under a new id, what its handler of that name answers; returns its workflow. A host answers once this is committed: see query_answer';

-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.query_answer(p_id uuid) RETURNS TABLE (status int2, reply bytea, taken boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT q.status, q.reply, q.taken_by IS NOT NULL FROM {schema}.query q WHERE q.id = p_id $$;
COMMENT ON FUNCTION {schema}.query_answer(uuid) IS 'How a query stands: status 1 answered, 2 failed, null not yet; the answer, or the error, as JSON; whether a host has taken it';

-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.forget_query(p_id uuid) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ DELETE FROM {schema}.query WHERE id = p_id $$;
COMMENT ON FUNCTION {schema}.forget_query(uuid) IS 'Remove a query and its answer; by itself it goes when its time is over';

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE
    worker   text := {role_worker_literal};
    client   text := {role_client_literal};
    operator text := {role_operator_literal};
    one      record;
BEGIN
    FOR one IN SELECT g.what, r.rolname FROM (VALUES
        ('SELECT, UPDATE, DELETE ON {schema}.query', ARRAY[worker]),
        ('EXECUTE ON FUNCTION {schema}.drop_queries()', ARRAY[worker]),
        ('EXECUTE ON FUNCTION {schema}.ask_query(uuid, uuid, text, bytea, float8), {schema}.query_answer(uuid), {schema}.forget_query(uuid)',
         ARRAY[worker, client, operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
