-- deploy: pre            older code neither reads nor writes what is new; its workers leave updates to be answered by newer ones
-- lock:   ACCESS EXCLUSIVE on the view steps, brief
-- undo:   DROP FUNCTION of each new name; DROP VIEW {schema}.updates; DROP TABLE {schema}.update_request, {schema}.update_accepted, {schema}.update_done;
--         steps as in 0015
--
-- Updates: requests to runs that are answered. A request stands in a small table until its run's worker has taken it: then it is refused there,
-- which leaves nothing in the history, or it moves into the history in the batch that gives it to the run. Whoever sends locks the run's
-- task row and wakes the run if it is parked; whoever parks a run that takes updates looks, after its commit, for requests that came meanwhile.

CREATE TABLE {schema}.update_request (
    run_id      uuid NOT NULL,
    n           int8 NOT NULL,                         -- of message_n, taken under the lock of the run's task row: in the order of arrival
    sent_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    name        text NOT NULL,
    id          text NOT NULL,
    payload     bytea NOT NULL,
    rejected_at timestamptz,                           -- null: open
    error       bytea,                                 -- why it was rejected, as JSON
    PRIMARY KEY (run_id, name, id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
CREATE INDEX update_request_open_idx ON {schema}.update_request (n) WHERE rejected_at IS NULL;
COMMENT ON TABLE {schema}.update_request IS 'Updates that were sent to runs and not accepted; rejected ones stay for an hour, so that who asks again is told the same';

CREATE TABLE {schema}.update_accepted (
    run_id  uuid NOT NULL,
    n       int8 NOT NULL,
    sent_at timestamptz NOT NULL,
    seq     int4 NOT NULL,                             -- its row in step: when it was given to the run, after what, and the argument
    name    text NOT NULL,
    id      text NOT NULL,
    PRIMARY KEY (run_id, name, id)                     -- refuses a second acceptance
) PARTITION BY RANGE (run_id);
COMMENT ON TABLE {schema}.update_accepted IS 'Updates that were accepted; insert only, in the batch that has their rows in step';

CREATE TABLE {schema}.update_done (
    run_id   uuid NOT NULL,
    ended_at timestamptz NOT NULL,
    seq      int4 NOT NULL,
    status   int2 NOT NULL,                            -- 1 completed, 2 failed
    result   bytea NOT NULL,                           -- JSON of the answer, or of the error
    PRIMARY KEY (run_id, seq)
) PARTITION BY RANGE (run_id);
COMMENT ON TABLE {schema}.update_done IS 'How the handlers of accepted updates ended; insert only';

SELECT {schema}.make_partitions_of('update_accepted'), {schema}.make_partitions_of('update_done');

-- ── send ─────────────────────────────────────────────────────────────────────────────────────────────────────
CREATE FUNCTION {schema}.wake_updated(p_runs uuid[]) RETURNS SETOF uuid
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    WITH theirs AS (
        SELECT t.run_id FROM {schema}.task t
        WHERE t.run_id = ANY (p_runs) AND t.owner IS NULL AND t.wait_kind IN (9, 10, 11, 14, 15)
          AND EXISTS (SELECT FROM {schema}.update_request q WHERE q.run_id = t.run_id AND q.rejected_at IS NULL)
        ORDER BY t.run_id FOR NO KEY UPDATE OF t)
    UPDATE {schema}.task t
    SET ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(), wait_children = NULL, wait_failed = NULL,
        wait_signals = NULL, resumed = 3                -- who claims it looks for updates, whether its code takes any or not
    FROM theirs WHERE t.run_id = theirs.run_id RETURNING t.run_id
$$;
COMMENT ON FUNCTION {schema}.wake_updated(uuid[]) IS 'Internal: of these runs, wake those that are parked and were sent updates; a parked run waits for a time, a signal, or a child';

CREATE FUNCTION {schema}.update_is_accepted(p_run uuid, p_name text, p_id text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan   -- custom: prunes
AS $$
BEGIN
    RETURN EXISTS (SELECT FROM {schema}.update_accepted a WHERE a.run_id = p_run AND a.name = p_name AND a.id = p_id);
END $$;
COMMENT ON FUNCTION {schema}.update_is_accepted(uuid, text, text) IS 'Internal: whether the run was given the update of that name and id';

CREATE FUNCTION {schema}.admit(
    p_run uuid, p_name text, p_payload bytea, p_id text, OUT stored boolean, OUT owner int4, OUT woken boolean, OUT workflow text, OUT queue text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE v_ended text;
BEGIN
    IF p_name IS NULL OR length(p_name) NOT BETWEEN 1 AND 200 OR p_name ~ '[[:cntrl:]]' THEN
        RAISE EXCEPTION 'the name of an update has 1 to 200 characters and no control characters' USING ERRCODE = '22023';
    ELSIF p_id IS NULL OR length(p_id) NOT BETWEEN 1 AND 500 THEN
        RAISE EXCEPTION 'the id of an update has 1 to 500 characters, not %', length(p_id) USING ERRCODE = '22023';
    ELSIF p_payload IS NULL OR length(p_payload) > 2097152 THEN
        RAISE EXCEPTION 'update "%" has % bytes of JSON, more than 2097152', p_name, length(p_payload) USING ERRCODE = '22023';
    END IF;
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    stored := false;
    woken := false;
    SELECT t.owner, w.name, q.name INTO owner, workflow, queue
    FROM {schema}.task t JOIN {schema}.workflow w ON w.id = t.workflow LEFT JOIN {schema}.queue q ON q.id = t.queue AND t.queue <> w.queue
    WHERE t.run_id = p_run FOR NO KEY UPDATE OF t;
    IF NOT FOUND THEN
        IF {schema}.update_is_accepted(p_run, p_name, p_id) THEN
            RETURN;                                    -- it was accepted while the run lived: who repeats it is told the same as then
        END IF;
        SELECT o.status INTO v_ended FROM {schema}.outcomes(ARRAY[p_run]) AS o;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'there is no run %', coalesce(p_run::text, 'null') USING ERRCODE = 'SV006', DETAIL = coalesce(p_run::text, 'null');
        END IF;
        RAISE EXCEPTION 'run % has ended (%): update "%" was not accepted', p_run, v_ended, p_name USING ERRCODE = 'SV010',
            DETAIL = json_build_object('run_id', p_run, 'status', v_ended, 'update', p_name)::text;
    END IF;
    INSERT INTO {schema}.update_request (run_id, n, name, id, payload)
    VALUES (p_run, nextval('{schema}.message_n'), p_name, p_id, p_payload) ON CONFLICT (run_id, name, id) DO NOTHING;
    stored := FOUND;
    IF {schema}.update_is_accepted(p_run, p_name, p_id) THEN   -- asked after the insert, which waits for a worker that is just accepting it
        DELETE FROM {schema}.update_request q WHERE stored AND q.run_id = p_run AND q.name = p_name AND q.id = p_id;
        stored := false;
        RETURN;
    END IF;
    IF owner IS NULL THEN
        PERFORM {schema}.wake_updated(ARRAY[p_run]);
        woken := FOUND;
    END IF;
END $$;
COMMENT ON FUNCTION {schema}.admit(uuid, text, bytea, text) IS
    'Internal: store an update for a live run under the lock of its task row, unless it is there, and wake the run if it is parked; who is to be told';

-- SECURITY DEFINER: a client may send to runs and must not be able to write the tables otherwise.
CREATE FUNCTION {schema}.send_update(p_run uuid, p_name text, p_payload bytea, p_id text)
RETURNS TABLE (stored boolean, owner int4, woken boolean, workflow text, queue text)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT a.stored, a.owner, a.woken, a.workflow, a.queue FROM {schema}.admit(p_run, p_name, p_payload, p_id) AS a $$;
COMMENT ON FUNCTION {schema}.send_update(uuid, text, bytea, text) IS 'update for programs: an encoded payload, and who is to be told';

CREATE FUNCTION {schema}.admit_json(p_run uuid, p_name text, p_payload jsonb, p_id text, p_notify boolean) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_id text := coalesce(p_id, gen_random_uuid()::text);
    sent record;
BEGIN
    IF length(p_payload::text) > 2097152 OR {schema}.too_deep(p_payload) THEN
        RAISE EXCEPTION 'update "%" has % bytes of JSON; at most 2097152 and 64 levels are stored', p_name, length(p_payload::text) USING ERRCODE = '22023';
    END IF;
    SELECT * INTO sent FROM {schema}.admit(p_run, p_name, convert_to(coalesce(p_payload, 'null')::text, 'UTF8'), v_id);
    IF p_notify THEN
        PERFORM {schema}.announce_signal(sent.owner, sent.woken, sent.workflow, sent.queue);
    END IF;
    RETURN v_id;
END $$;
COMMENT ON FUNCTION {schema}.admit_json(uuid, text, jsonb, text, boolean) IS 'Internal: check and store an update that SQL sends; returns its id';

-- SECURITY DEFINER: as send_update.
CREATE FUNCTION {schema}.update(run uuid, name text, payload jsonb DEFAULT 'null', id text DEFAULT NULL, notify boolean DEFAULT false) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT {schema}.admit_json(run, name, payload, id, notify) $$;
COMMENT ON FUNCTION {schema}.update(uuid, text, jsonb, text, boolean) IS
    'Send an update to a live run, in the transaction that calls it; returns its id: with it update_answer tells what became of it';

-- ── start and send ───────────────────────────────────────────────────────────────────────────────────────────
-- SECURITY DEFINER: as start_runs and send_update, both or neither.
CREATE FUNCTION {schema}.start_and_update(
    p_workflow text, p_run uuid, p_input bytea, p_key text, p_hash bytea, p_queue text, p_priority int2, p_delay interval, p_attributes bytea, p_batch text,
    p_on_conflict text, p_name text, p_payload bytea, p_id text)
RETURNS TABLE (run_id uuid, stored boolean, owner int4, woken boolean, workflow text, queue text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_run     uuid;
    v_matches boolean;
BEGIN
    SELECT s.run_id, s.matches INTO v_run, v_matches
    FROM {schema}.start_runs(p_workflow, ARRAY[p_run], ARRAY[p_input], CASE WHEN p_key IS NOT NULL THEN ARRAY[p_key] END,
                             CASE WHEN p_key IS NOT NULL AND p_hash IS NOT NULL THEN ARRAY[p_hash] END,
                             p_queue, p_priority, p_delay, p_attributes, p_batch, p_on_conflict) AS s;
    IF NOT v_matches THEN
        RAISE EXCEPTION 'key "%" of workflow "%" names run %, which was started with another input', p_key, p_workflow, v_run USING ERRCODE = 'SV007',
            DETAIL = json_build_object('workflow', p_workflow, 'key', p_key, 'run_id', v_run)::text,
            HINT = 'use another key, or start with the same input';
    END IF;
    v_run := coalesce(v_run, p_run);
    RETURN QUERY SELECT v_run, a.stored, a.owner, a.woken, a.workflow, a.queue FROM {schema}.admit(v_run, p_name, p_payload, p_id) AS a;
END $$;
COMMENT ON FUNCTION {schema}.start_and_update(text, uuid, bytea, text, bytea, text, int2, interval, bytea, text, text, text, bytea, text) IS
    'Start a run, or find the one that the key names, and send it an update, all in one transaction';

-- SECURITY DEFINER: as start and update.
CREATE FUNCTION {schema}.update_with_start(
    workflow text, name text, payload jsonb DEFAULT 'null', input jsonb DEFAULT '{}', key text DEFAULT NULL, id text DEFAULT NULL, queue text DEFAULT NULL,
    priority int4 DEFAULT 5, delay interval DEFAULT interval '0', attributes jsonb DEFAULT NULL, batch text DEFAULT NULL,
    on_conflict text DEFAULT 'return', notify boolean DEFAULT false)
RETURNS TABLE (run_id uuid, update_id text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
    run_id := {schema}.start(workflow, input, key, queue, priority, delay, attributes, batch, on_conflict, notify);
    update_id := {schema}.admit_json(run_id, name, payload, id, notify);
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION {schema}.update_with_start(text, text, jsonb, jsonb, text, text, text, int4, interval, jsonb, text, text, boolean) IS
    'Start a run, or find the one that the key names, and send it an update, both or neither; returns the run and the update''s id';

-- ── what became of it ────────────────────────────────────────────────────────────────────────────────────────
-- SECURITY DEFINER: a client may ask and has no right on the tables. One snapshot for all that it looks at: it is a STABLE function.
CREATE FUNCTION {schema}.update_standing(p_run uuid, p_name text, p_id text) RETURNS TABLE (stage text, reply bytea, run_status text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan   -- custom: prunes
AS $$
DECLARE
    v_seq  int4;
    v_done record;
    v_open record;
BEGIN
    SELECT o.status INTO run_status FROM {schema}.outcomes(ARRAY[p_run]) AS o;
    SELECT a.seq INTO v_seq FROM {schema}.update_accepted a WHERE a.run_id = p_run AND a.name = p_name AND a.id = p_id;
    IF FOUND THEN
        SELECT d.status, d.result INTO v_done FROM {schema}.update_done d WHERE d.run_id = p_run AND d.seq = v_seq;
        stage := CASE WHEN v_done.status = 1 THEN 'completed' WHEN v_done.status = 2 THEN 'failed' WHEN run_status IS NULL THEN 'accepted' ELSE 'unfinished' END;
        reply := v_done.result;
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT q.rejected_at, q.error INTO v_open FROM {schema}.update_request q WHERE q.run_id = p_run AND q.name = p_name AND q.id = p_id;
    IF v_open.rejected_at IS NOT NULL THEN
        stage := 'rejected';
        reply := v_open.error;
    ELSIF run_status IS NOT NULL THEN
        stage := 'closed';
    ELSIF FOUND THEN
        stage := 'admitted';
    ELSIF NOT EXISTS (SELECT FROM {schema}.run r WHERE r.run_id = p_run) THEN
        RAISE EXCEPTION 'there is no run %', coalesce(p_run::text, 'null') USING ERRCODE = 'SV006', DETAIL = coalesce(p_run::text, 'null');
    ELSE
        RETURN;
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION {schema}.update_standing(uuid, text, text) IS
    'How an update stands: admitted, accepted, completed, failed, rejected, unfinished (the run ended after it had accepted it), closed (before that); '
    'the answer or the error as JSON, and how the run ended; no row: the run knows of none with that name and id';

-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.update_answer(run uuid, name text, id text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_strip_nulls(jsonb_build_object('stage', s.stage, 'run_status', s.run_status))
           || CASE WHEN s.reply IS NULL THEN '{}' ELSE jsonb_build_object(CASE s.stage WHEN 'completed' THEN 'result' ELSE 'error' END, {schema}.as_json(s.reply)) END
    FROM {schema}.update_standing(run, name, id) AS s
$$;
COMMENT ON FUNCTION {schema}.update_answer(uuid, text, text) IS
    'What became of an update, as an object: stage, and result, error or the run''s status where there is one; null: the run knows of none with that name and id';

CREATE FUNCTION {schema}.drop_updates() RETURNS int4
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE n int4;
BEGIN
    DELETE FROM {schema}.update_request u
    WHERE (u.run_id, u.name, u.id) IN (
        SELECT q.run_id, q.name, q.id FROM {schema}.update_request q
        WHERE q.rejected_at < clock_timestamp() - interval '1 hour'
           OR q.rejected_at IS NULL AND NOT EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = q.run_id)
        LIMIT 1000 FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION {schema}.drop_updates() IS 'Internal: remove updates that were rejected an hour ago, or whose runs have ended, a thousand at most';

-- ── views ────────────────────────────────────────────────────────────────────────────────────────────────────
CREATE VIEW {schema}.updates AS
SELECT a.run_id, a.n, a.name, a.id,
       CASE d.status WHEN 1 THEN 'completed' WHEN 2 THEN 'failed' ELSE CASE WHEN o.run_id IS NULL THEN 'accepted' ELSE 'unfinished' END END AS stage,
       a.sent_at, s.ended_at AS accepted_at, d.ended_at, a.seq, {schema}.as_json(s.result) AS payload,
       CASE WHEN d.status = 1 THEN {schema}.as_json(d.result) END AS result, CASE WHEN d.status = 2 THEN {schema}.as_json(d.result) END AS error
FROM {schema}.update_accepted a
LEFT JOIN {schema}.step s ON s.run_id = a.run_id AND s.seq = a.seq
LEFT JOIN {schema}.update_done d ON d.run_id = a.run_id AND d.seq = a.seq
LEFT JOIN {schema}.outcome o ON o.run_id = a.run_id
UNION ALL
SELECT q.run_id, q.n, q.name, q.id,
       CASE WHEN q.rejected_at IS NOT NULL THEN 'rejected' WHEN EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = q.run_id) THEN 'admitted' ELSE 'closed' END,
       q.sent_at, NULL, q.rejected_at, NULL, {schema}.as_json(q.payload), NULL, {schema}.as_json(q.error)
FROM {schema}.update_request q;
COMMENT ON VIEW {schema}.updates IS 'Updates that were sent to runs and what became of them; ask by run_id. Rejected ones are shown for an hour and are no part of the history';
COMMENT ON COLUMN {schema}.updates.run_id IS 'The run';
COMMENT ON COLUMN {schema}.updates.n IS 'Number; for each run in the order of arrival';
COMMENT ON COLUMN {schema}.updates.name IS 'Name of the update';
COMMENT ON COLUMN {schema}.updates.id IS 'Id of it, its sender''s or made for it';
COMMENT ON COLUMN {schema}.updates.stage IS
    'admitted (stored, the run has not seen it), accepted (its handler has begun), completed, failed (its handler raised), rejected, unfinished (the run ended before its handler), closed (the run ended before it accepted it)';
COMMENT ON COLUMN {schema}.updates.sent_at IS 'When it was sent';
COMMENT ON COLUMN {schema}.updates.accepted_at IS 'When the run was given it';
COMMENT ON COLUMN {schema}.updates.ended_at IS 'When its handler ended, or when it was rejected';
COMMENT ON COLUMN {schema}.updates.seq IS 'Position in the run at which it was accepted (see steps)';
COMMENT ON COLUMN {schema}.updates.payload IS 'The argument';
COMMENT ON COLUMN {schema}.updates.result IS 'What the handler returned';
COMMENT ON COLUMN {schema}.updates.error IS 'What the handler or the validator raised';

-- As in 0015, with two kinds more.
CREATE OR REPLACE VIEW {schema}.steps AS
SELECT s.run_id, s.seq, s.pos, s.name,
       CASE s.kind WHEN 8 THEN 'handlers_finished' WHEN 9 THEN 'update' ELSE (ARRAY['step', 'timer', 'child', 'child_start', 'signal'])[s.kind] END AS kind,
       (ARRAY['completed', 'failed', 'cancelled'])[s.status] AS status,
       s.started_at, s.ended_at, extract(epoch FROM s.ended_at - s.started_at)::float8 * 1000 AS duration_ms, s.worker,
       CASE WHEN s.status = 1 THEN {schema}.as_json(s.result, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = s.run_id)) END AS result,
       CASE WHEN s.status <> 1 THEN {schema}.as_json(s.result, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = s.run_id)) END AS error
FROM {schema}.step s;
COMMENT ON COLUMN {schema}.steps.name IS 'Name of the step, timer, child workflow, signal or update';
COMMENT ON COLUMN {schema}.steps.kind IS
    'step, timer, child (its end), child_start, signal (a wait for one), update (that one was accepted, with its argument as result), handlers_finished';

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
        ('SELECT, UPDATE, DELETE ON {schema}.update_request', ARRAY[worker]),
        ('SELECT, INSERT ON {schema}.update_accepted, {schema}.update_done', ARRAY[worker]),
        ('SELECT ON {schema}.updates', ARRAY[worker, viewer, operator]),
        ('EXECUTE ON FUNCTION {schema}.wake_updated(uuid[]), {schema}.drop_updates(), {schema}.announce_signal(int4, boolean, text, text)', ARRAY[worker]),
        ('EXECUTE ON FUNCTION {schema}.update(uuid, text, jsonb, text, boolean), {schema}.send_update(uuid, text, bytea, text), '
         '{schema}.start_and_update(text, uuid, bytea, text, bytea, text, int2, interval, bytea, text, text, text, bytea, text), '
         '{schema}.update_with_start(text, text, jsonb, jsonb, text, text, text, int4, interval, jsonb, text, text, boolean), '
         '{schema}.update_standing(uuid, text, text), {schema}.update_answer(uuid, text, text)', ARRAY[worker, client, operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
