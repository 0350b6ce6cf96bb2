-- deploy: pre            older code neither calls nor reads what is new
-- lock:   none           new objects alone
-- undo:   DROP FUNCTION of each name; DROP VIEW {schema}.saved_views; DROP TABLE {schema}.saved_view; the comments as in 0026
--
-- What operators' forms need beside the verbs: a message or a token's answer with its reason in the audit, in the same transaction; and filters of runs that are kept by name.

-- ── verbs that leave no row of audit by themselves ───────────────────────────────────────────────────────────
COMMENT ON COLUMN {schema}.audit.verb IS 'pause, resume, retry, edit_retry, skip, fork; signal, update, complete, fail where an operator did it and said why';
COMMENT ON COLUMN {schema}.audits.verb IS 'pause, resume, retry, edit_retry, skip, fork; signal, update, complete, fail where an operator did it and said why';

-- SECURITY DEFINER: as send_signal and send_update.
CREATE FUNCTION {schema}.send_because(p_what text, p_run uuid, p_name text, p_payload bytea, p_id text, p_reason text, p_actor text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE sent record;
BEGIN
    IF p_what = 'signal' THEN
        SELECT * INTO sent FROM {schema}.send(p_run, 1::int2, p_name, p_payload, p_id);
    ELSIF p_what = 'update' THEN
        SELECT * INTO sent FROM {schema}.admit(p_run, p_name, p_payload, p_id);
    ELSE
        RAISE EXCEPTION '% is neither signal nor update', coalesce(p_what, 'null') USING ERRCODE = '22023';
    END IF;
    IF sent.stored THEN
        PERFORM {schema}.note(p_run, p_what, p_reason, p_actor, jsonb_build_object('name', p_name, 'id', p_id));
        PERFORM {schema}.announce_signal(sent.owner, sent.woken, sent.workflow, sent.queue);
    END IF;
    RETURN sent.stored;
END $$;
COMMENT ON FUNCTION {schema}.send_because(text, uuid, text, bytea, text, text, text) IS
    'signal and update for operators'' forms: who sent it, and why, is in the audit; false when one of that name and id is there already';

-- SECURITY DEFINER: as intervene. An operator needs no token: the one of the try that waits is made here.
CREATE FUNCTION {schema}.finish_because(p_run uuid, p_seq int4, p_kind int2, p_payload bytea, p_retry boolean, p_reason text, p_actor text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_verb  text := (ARRAY['complete', 'fail'])[p_kind];
    v_n     int4;
    v_key   bytea;
    v_named bytea;
    done    record;
BEGIN
    IF v_verb IS NULL THEN
        RAISE EXCEPTION '% is neither 1 (completed) nor 2 (failed)', coalesce(p_kind::text, 'null') USING ERRCODE = '22023';
    END IF;
    SELECT a.n INTO v_n FROM {schema}.attempt a WHERE a.run_id = p_run AND a.seq = p_seq AND a.kind = 7 ORDER BY a.n DESC LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'run %: % is not possible: no try of step % waits for a token', p_run, v_verb, p_seq USING ERRCODE = 'SV030',
            DETAIL = json_build_object('run_id', p_run, 'verb', v_verb, 'why', format('no try of step %s waits for a token', p_seq))::text;
    END IF;
    SELECT c.token_key INTO v_key FROM {schema}.cell c;
    v_named := uuid_send(p_run) || int4send(p_seq) || int4send(v_n);
    SELECT * INTO done FROM {schema}.settle_token(
        'pgst_' || translate(rtrim(encode(v_named || substr(sha256(v_key || sha256(v_key || v_named)), 1, 16), 'base64'), '='), '+/', '-_'),
        p_kind, p_payload, coalesce(p_retry, true));
    IF done.stored THEN
        PERFORM {schema}.note(p_run, v_verb, p_reason, p_actor, jsonb_build_object('seq', p_seq, 'attempt', v_n));
        PERFORM {schema}.announce_signal(done.owner, done.woken, done.workflow, done.queue);
    END IF;
    RETURN done.stored;
END $$;
COMMENT ON FUNCTION {schema}.finish_because(uuid, int4, int2, bytea, boolean, text, text) IS
    'complete (1) and fail (2) for operators'' forms: of the try that waits for a token, without it; who did it, and why, is in the audit';

-- ── filters that are kept ────────────────────────────────────────────────────────────────────────────────────
CREATE TABLE {schema}.saved_view (
    name     text PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 60 AND name !~ '[[:cntrl:]]'),
    filter   text NOT NULL CHECK (length(filter) BETWEEN 1 AND 2000 AND filter !~ '[[:cntrl:]]'),
    login    text NOT NULL,
    actor    text CHECK (length(actor) <= 200),
    saved_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE {schema}.saved_view IS 'Filters of runs that somebody keeps by name, for all who use the dashboard; at most 200';
COMMENT ON COLUMN {schema}.saved_view.name IS 'What it is called';
COMMENT ON COLUMN {schema}.saved_view.filter IS 'The filter, as list and the dashboard''s Runs read it';
COMMENT ON COLUMN {schema}.saved_view.login IS 'Role that the session had logged in as';
COMMENT ON COLUMN {schema}.saved_view.actor IS 'Who saved it last, as the caller said';
COMMENT ON COLUMN {schema}.saved_view.saved_at IS 'When';

CREATE VIEW {schema}.saved_views AS SELECT v.name, v.filter, coalesce(v.actor, v.login) AS saved_by, v.saved_at FROM {schema}.saved_view v;
COMMENT ON VIEW {schema}.saved_views IS 'Filters of runs that are kept by name';
COMMENT ON COLUMN {schema}.saved_views.name IS 'What it is called';
COMMENT ON COLUMN {schema}.saved_views.filter IS 'The filter, as list and the dashboard''s Runs read it';
COMMENT ON COLUMN {schema}.saved_views.saved_by IS 'Who saved it last';
COMMENT ON COLUMN {schema}.saved_views.saved_at IS 'When';

-- SECURITY DEFINER: operators keep filters, and must not be able to write the tables otherwise.
CREATE FUNCTION {schema}.save_view(name text, filter text, actor text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF length(save_view.name) NOT BETWEEN 1 AND 60 OR length(save_view.filter) NOT BETWEEN 1 AND 2000 OR length(save_view.actor) > 200
       OR save_view.name ~ '[[:cntrl:]]' OR save_view.filter ~ '[[:cntrl:]]' OR save_view.name IS NULL OR save_view.filter IS NULL THEN
        RAISE EXCEPTION 'a saved view has a name of 1 to 60 characters and a filter of 1 to 2000, without control characters, and an actor of at most 200' USING ERRCODE = '22023';
    END IF;
    INSERT INTO {schema}.saved_view AS v (name, filter, login, actor) VALUES (save_view.name, save_view.filter, session_user, save_view.actor)
    ON CONFLICT ON CONSTRAINT saved_view_pkey DO UPDATE SET filter = excluded.filter, login = excluded.login, actor = excluded.actor, saved_at = excluded.saved_at;
    IF (SELECT count(*) FROM {schema}.saved_view) > 200 THEN
        RAISE EXCEPTION '200 views are kept, and that is the most; forget one that nobody uses' USING ERRCODE = '22023';
    END IF;
END $$;
COMMENT ON FUNCTION {schema}.save_view(text, text, text) IS 'Keep a filter of runs by a name; one that has the name already is replaced';

-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.forget_view(name text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    DELETE FROM {schema}.saved_view v WHERE v.name = forget_view.name;
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION {schema}.forget_view(text) IS 'Keep a filter of runs no longer; false when there is none of that name';

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
        ('EXECUTE ON FUNCTION {schema}.send_because(text, uuid, text, bytea, text, text, text)', ARRAY[worker, client, operator]),
        ('EXECUTE ON FUNCTION {schema}.finish_because(uuid, int4, int2, bytea, boolean, text, text), {schema}.save_view(text, text, text), {schema}.forget_view(text)', ARRAY[operator]),
        ('SELECT ON {schema}.saved_views', ARRAY[worker, viewer, operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
