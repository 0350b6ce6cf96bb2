-- deploy: pre            older code neither writes nor reads what is new; an app that hands out tokens can't run on an older worker
-- lock:   ACCESS EXCLUSIVE on cell and on the view attempts, brief
-- undo:   DROP FUNCTION of each name; DROP VIEW {schema}.tokens; DROP TABLE {schema}.completion, {schema}.beat; ALTER TABLE {schema}.cell DROP COLUMN token_key;
--         skippable and attempts as in 0026, wake_updated as in 0018; DELETE FROM {schema}.attempt WHERE kind = 7
--
-- Steps that are completed from outside. A token names one try of one step and proves that it was given out: the run, the seq, the try, and a code over
-- them by the cell's key. So no token is stored, a step can hand one out without asking the database, and it can be completed before the step has returned.
-- attempt kind 7: the step's body has handed its try over to a token (due: next_retry_at, since: ended_at). What comes of it is one row of completion: the first
-- that is there counts, whoever wrote it: who holds the token, or the worker that found its time over.

ALTER TABLE {schema}.cell ADD COLUMN token_key bytea NOT NULL
    DEFAULT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
COMMENT ON COLUMN {schema}.cell.token_key IS 'Secret: whoever reads it can make tokens';

CREATE TABLE {schema}.completion (
    run_id  uuid NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    seq     int4 NOT NULL,
    n       int4 NOT NULL,
    kind    int2 NOT NULL,                             -- 1 completed, 2 failed, 3 its time was over, 4 a heartbeat was missed
    retry   boolean NOT NULL DEFAULT true,
    payload bytea,
    PRIMARY KEY (run_id, seq, n)                       -- refuses a second one
) PARTITION BY RANGE (run_id);
COMMENT ON TABLE {schema}.completion IS 'What came of tries that were handed over to a token; insert only';
COMMENT ON COLUMN {schema}.completion.run_id IS 'The run';
COMMENT ON COLUMN {schema}.completion.at IS 'When';
COMMENT ON COLUMN {schema}.completion.seq IS 'Position of the step';
COMMENT ON COLUMN {schema}.completion.n IS 'Number of the try';
COMMENT ON COLUMN {schema}.completion.kind IS '1 completed, 2 failed, 3 its time was over, 4 a heartbeat was missed';
COMMENT ON COLUMN {schema}.completion.retry IS 'Of a failure: whether the step''s policy decides; false: it is final';
COMMENT ON COLUMN {schema}.completion.payload IS 'JSON of the value, or of the error';
SELECT {schema}.make_partitions_of('completion');

CREATE TABLE {schema}.beat (
    run_id  uuid NOT NULL,
    seq     int4 NOT NULL,
    n       int4 NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    details bytea,
    PRIMARY KEY (run_id, seq)
) PARTITION BY RANGE (run_id);
COMMENT ON TABLE {schema}.beat IS 'Last signs of life of who holds a token; the one table of a run''s that is updated, while it lives, and goes with its history';
COMMENT ON COLUMN {schema}.beat.run_id IS 'The run';
COMMENT ON COLUMN {schema}.beat.seq IS 'Position of the step';
COMMENT ON COLUMN {schema}.beat.n IS 'Number of the try';
COMMENT ON COLUMN {schema}.beat.at IS 'When';
COMMENT ON COLUMN {schema}.beat.details IS 'JSON: what its sender said';
SELECT {schema}.make_partitions_of('beat');

-- ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────
-- As core/tokens.py: uuid, int4 seq, int4 n, 16 bytes of sha256(key || sha256(key || those)); base64 for URLs, without padding.
CREATE FUNCTION {schema}.token_parts(p_token text, OUT run_id uuid, OUT seq int4, OUT n int4)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_raw bytea;
    v_key bytea;
BEGIN
    IF p_token ~ '^pgst_[A-Za-z0-9_-]{54}$' THEN
        v_raw := decode(translate(substr(p_token, 6), '-_', '+/') || '==', 'base64');
        SELECT c.token_key INTO v_key FROM {schema}.cell c;
        IF substr(sha256(v_key || sha256(v_key || substr(v_raw, 1, 24))), 1, 16) = substr(v_raw, 25) THEN
            run_id := encode(substr(v_raw, 1, 16), 'hex')::uuid;
            seq := ('x' || encode(substr(v_raw, 17, 4), 'hex'))::bit(32)::int4;
            n := ('x' || encode(substr(v_raw, 21, 4), 'hex'))::bit(32)::int4;
            RETURN;
        END IF;
    END IF;
    RAISE EXCEPTION 'this is no token that was given out here' USING ERRCODE = 'SV031', HINT = 'give it as current().token() had it, to the same database and schema';
END $$;
COMMENT ON FUNCTION {schema}.token_parts(text) IS 'Internal: which try a token is of; raises SV031 for what is none';

-- Locks the run's task row, so that whoever parks the run sees what is inserted afterwards, or is seen. Custom plan: prunes.
CREATE FUNCTION {schema}.open_token(p_token text, OUT run_id uuid, OUT seq int4, OUT n int4, OUT owner int4, OUT workflow text, OUT queue text, OUT why text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    v_parts record;
    v_ended text;
BEGIN
    SELECT p.run_id, p.seq, p.n INTO v_parts FROM {schema}.token_parts(p_token) AS p;
    run_id := v_parts.run_id; seq := v_parts.seq; n := v_parts.n;
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    SELECT t.owner, w.name, q.name INTO owner, workflow, queue
    FROM {schema}.task t JOIN {schema}.workflow w ON w.id = t.workflow LEFT JOIN {schema}.queue q ON q.id = t.queue AND t.queue <> w.queue
    WHERE t.run_id = v_parts.run_id FOR NO KEY UPDATE OF t;
    IF NOT FOUND THEN
        v_ended := {schema}.ended_as(v_parts.run_id);
        why := CASE WHEN v_ended IS NOT NULL THEN format('its run has ended (%s)', v_ended) ELSE 'its run is not here any more' END;
    ELSIF EXISTS (SELECT FROM {schema}.step s WHERE s.run_id = v_parts.run_id AND s.seq = v_parts.seq) THEN
        why := 'its step has a result';
    ELSIF EXISTS (SELECT FROM {schema}.attempt a WHERE a.run_id = v_parts.run_id AND a.seq = v_parts.seq AND a.n = v_parts.n AND a.kind = 1) THEN
        why := format('try %s of its step is over: it failed', v_parts.n);
    END IF;
END $$;
COMMENT ON FUNCTION {schema}.open_token(text) IS 'Internal: the try that a token is of, its run locked, and why it can''t be completed any more, if so';

CREATE FUNCTION {schema}.settle_token(
    p_token text, p_kind int2, p_payload bytea, p_retry boolean,
    OUT stored boolean, OUT run_id uuid, OUT owner int4, OUT woken boolean, OUT workflow text, OUT queue text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    v_open record;
    v_done record;
BEGIN
    IF p_payload IS NULL OR length(p_payload) > 2097152 THEN
        RAISE EXCEPTION 'a completion is JSON of at most 2097152 bytes, not %', length(p_payload) USING ERRCODE = '22023';
    END IF;
    SELECT o.* INTO v_open FROM {schema}.open_token(p_token) AS o;
    run_id := v_open.run_id; owner := v_open.owner; workflow := v_open.workflow; queue := v_open.queue;
    stored := false;
    woken := false;
    IF v_open.why IS NULL THEN
        INSERT INTO {schema}.completion (run_id, seq, n, kind, retry, payload) VALUES (v_open.run_id, v_open.seq, v_open.n, p_kind, p_retry, p_payload)
        ON CONFLICT (run_id, seq, n) DO NOTHING;
        stored := FOUND;
    END IF;
    IF stored THEN
        UPDATE {schema}.task t SET ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(), wait_children = NULL, wait_failed = NULL,
            wait_signals = NULL
        WHERE t.run_id = v_open.run_id AND t.owner IS NULL AND t.wait_kind IN (13, 15);
        woken := FOUND;
        RETURN;
    END IF;
    SELECT c.kind, c.retry, c.payload INTO v_done FROM {schema}.completion c WHERE c.run_id = v_open.run_id AND c.seq = v_open.seq AND c.n = v_open.n;
    IF FOUND AND v_done.kind = p_kind AND v_done.retry = p_retry AND (v_done.payload = p_payload OR {schema}.same_json(v_done.payload, p_payload)) THEN
        RETURN;                                        -- the same again: whoever repeats it is told that it is there
    END IF;
    RAISE EXCEPTION 'this token is closed: %', coalesce(
        (ARRAY['it was completed already', 'it was failed already', 'its time was over', 'its holder gave no sign of life in time'])[v_done.kind], v_open.why)
        USING ERRCODE = 'SV032', DETAIL = json_build_object('run_id', v_open.run_id, 'seq', v_open.seq, 'attempt', v_open.n, 'why', coalesce(
        (ARRAY['it was completed already', 'it was failed already', 'its time was over', 'its holder gave no sign of life in time'])[v_done.kind], v_open.why))::text;
END $$;
COMMENT ON FUNCTION {schema}.settle_token(text, int2, bytea, boolean) IS 'Internal: record what came of a try that has a token, once, and wake its run; SV032 where it is closed';

-- SECURITY DEFINER: whoever has a token may complete its step, and must not be able to write the tables otherwise.
CREATE FUNCTION {schema}.finish_token(p_token text, p_kind int2, p_payload bytea, p_retry boolean DEFAULT true)
RETURNS TABLE (stored boolean, owner int4, woken boolean, workflow text, queue text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF p_kind IS NULL OR p_kind NOT IN (1, 2) THEN
        RAISE EXCEPTION '% is neither 1 (completed) nor 2 (failed)', p_kind USING ERRCODE = '22023';
    END IF;
    RETURN QUERY SELECT s.stored, s.owner, s.woken, s.workflow, s.queue FROM {schema}.settle_token(p_token, p_kind, p_payload, p_retry) AS s;
END $$;
COMMENT ON FUNCTION {schema}.finish_token(text, int2, bytea, boolean) IS 'complete (1) and fail (2) for programs: an encoded value or error, and who is to be told';

-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.beat_token(p_token text, p_details bytea) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_open record;
    v_kind int2;
BEGIN
    IF length(p_details) > 65536 THEN
        RAISE EXCEPTION 'the details of a heartbeat are JSON of at most 65536 bytes, not %', length(p_details) USING ERRCODE = '22023';
    END IF;
    SELECT o.* INTO v_open FROM {schema}.open_token(p_token) AS o;
    SELECT c.kind INTO v_kind FROM {schema}.completion c WHERE c.run_id = v_open.run_id AND c.seq = v_open.seq AND c.n = v_open.n;
    IF FOUND THEN
        v_open.why := (ARRAY['it was completed already', 'it was failed already', 'its time was over', 'its holder gave no sign of life in time'])[v_kind];
    END IF;
    IF v_open.why IS NOT NULL THEN
        RAISE EXCEPTION 'this token is closed: %', v_open.why USING ERRCODE = 'SV032',
            DETAIL = json_build_object('run_id', v_open.run_id, 'seq', v_open.seq, 'attempt', v_open.n, 'why', v_open.why)::text;
    END IF;
    INSERT INTO {schema}.beat AS b (run_id, seq, n, details) VALUES (v_open.run_id, v_open.seq, v_open.n, p_details)
    ON CONFLICT (run_id, seq) DO UPDATE SET n = excluded.n, at = clock_timestamp(), details = coalesce(excluded.details, b.details);
END $$;
COMMENT ON FUNCTION {schema}.beat_token(text, bytea) IS 'heartbeat for programs: encoded details';

-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.complete(token text, value jsonb DEFAULT NULL, notify boolean DEFAULT false) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE s record;
BEGIN
    IF {schema}.too_deep(value) THEN
        RAISE EXCEPTION 'the value is nested deeper than 64 levels, the most that every reader of JSON copes with' USING ERRCODE = '22023';
    END IF;
    SELECT * INTO s FROM {schema}.settle_token(token, 1::int2, convert_to(coalesce(value, 'null')::text, 'UTF8'), true);
    IF notify AND s.stored THEN
        PERFORM {schema}.announce_signal(s.owner, s.woken, s.workflow, s.queue);
    END IF;
    RETURN s.stored;
END $$;
COMMENT ON FUNCTION {schema}.complete(text, jsonb, boolean) IS
    'Give the step that handed out this token its result; false when it has just that already, SV032 when the token is closed';

-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.fail(token text, error text, retry boolean DEFAULT true, notify boolean DEFAULT false) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE s record;
BEGIN
    SELECT * INTO s FROM {schema}.settle_token(token, 2::int2, {schema}.error_json('CompletionFailed', left(coalesce(error, 'it was failed from outside'), 4000)), coalesce(retry, true));
    IF notify AND s.stored THEN
        PERFORM {schema}.announce_signal(s.owner, s.woken, s.workflow, s.queue);
    END IF;
    RETURN s.stored;
END $$;
COMMENT ON FUNCTION {schema}.fail(text, text, boolean, boolean) IS
    'Fail the try of the step that handed out this token; with retry the step''s policy decides whether there is another; false when it was failed so already';

-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.heartbeat(token text, details jsonb DEFAULT NULL) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT {schema}.beat_token(token, convert_to(details::text, 'UTF8')) $$;
COMMENT ON FUNCTION {schema}.heartbeat(text, jsonb) IS 'A sign of life of who holds this token: the wait for the next one begins anew; SV032 when the token is closed';

-- ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────
CREATE VIEW {schema}.tokens AS
SELECT a.run_id, a.seq, a.n AS attempt, a.name AS step,
       coalesce((ARRAY['completed', 'failed', 'timed_out', 'heartbeat_missed'])[c.kind],
                CASE WHEN EXISTS (SELECT FROM {schema}.step s WHERE s.run_id = a.run_id AND s.seq = a.seq)
                       OR NOT EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = a.run_id) THEN 'dropped' ELSE 'waiting' END) AS state,
       a.ended_at AS since, a.next_retry_at AS due_at,
       ({schema}.as_json(a.error) ->> 'heartbeat_s')::float8 AS heartbeat_s, b.at AS beat_at, {schema}.as_json(b.details) AS details, c.at AS closed_at
FROM {schema}.attempt a
LEFT JOIN {schema}.completion c ON c.run_id = a.run_id AND c.seq = a.seq AND c.n = a.n
LEFT JOIN {schema}.beat b ON b.run_id = a.run_id AND b.seq = a.seq AND b.n = a.n
WHERE a.kind = 7;
COMMENT ON VIEW {schema}.tokens IS 'Tries of steps that were handed over to a token, and what came of them; ask by run_id. The tokens themselves are stored nowhere';
COMMENT ON COLUMN {schema}.tokens.run_id IS 'The run';
COMMENT ON COLUMN {schema}.tokens.seq IS 'Position of the step in the run';
COMMENT ON COLUMN {schema}.tokens.attempt IS 'Number of the try';
COMMENT ON COLUMN {schema}.tokens.step IS 'Name of the step';
COMMENT ON COLUMN {schema}.tokens.state IS 'waiting, completed, failed, timed_out, heartbeat_missed; dropped: nobody waits for it any more';
COMMENT ON COLUMN {schema}.tokens.since IS 'Since when it is waited for';
COMMENT ON COLUMN {schema}.tokens.due_at IS 'When its time is over; null when it has no limit';
COMMENT ON COLUMN {schema}.tokens.heartbeat_s IS 'Seconds within which its holder has to give a sign of life, again and again; null when it has not to';
COMMENT ON COLUMN {schema}.tokens.beat_at IS 'Last sign of life';
COMMENT ON COLUMN {schema}.tokens.details IS 'What was said with it';
COMMENT ON COLUMN {schema}.tokens.closed_at IS 'When something came of it';

CREATE OR REPLACE VIEW {schema}.attempts AS
SELECT a.run_id, a.seq, a.n, a.name, (ARRAY['failed', 'started', 'crashed', 'forgiven', 'edited', 'skipped', 'entrusted'])[a.kind] AS kind,
       a.started_at, a.ended_at, a.next_retry_at, a.worker,
       {schema}.as_json(a.error, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = a.run_id AND a.kind < 3)) AS error, a.fingerprint
FROM {schema}.attempt a;
COMMENT ON COLUMN {schema}.attempts.kind IS
    'failed, started (an at_most_once step commits its start first), crashed (it ended its worker), forgiven (retry was called), edited (edit_retry, or retry while it waited), skipped (it was given its result), entrusted (it waits for a token, see tokens)';
COMMENT ON COLUMN {schema}.attempts.ended_at IS 'When it failed, crashed or was entrusted; null for the others';
COMMENT ON COLUMN {schema}.attempts.next_retry_at IS 'When the next try may begin, for entrusted when its time is over; null when there is none';

-- As in 0026, but that a step which waits for a token can be skipped too.
CREATE OR REPLACE FUNCTION {schema}.skippable(p_run uuid, p_seq int4) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.step s WHERE s.run_id = p_run AND s.seq = p_seq) THEN
        RETURN NULL;
    END IF;
    RETURN coalesce(
        (SELECT a.name FROM {schema}.attempt a WHERE a.run_id = p_run AND a.seq = p_seq AND p_seq >= 0 AND a.kind <> 6 LIMIT 1),
        (SELECT t.step FROM {schema}.task t WHERE t.run_id = p_run AND t.seq = p_seq AND t.wait_kind IN (8, 9, 13, 21)));
END $$;

-- As in 0018, but that a run which waits for a token is woken too.
CREATE OR REPLACE FUNCTION {schema}.wake_updated(p_runs uuid[]) RETURNS SETOF uuid
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    WITH theirs AS (
        SELECT t.run_id FROM {schema}.task t
        WHERE t.run_id = ANY (p_runs) AND t.owner IS NULL AND t.wait_kind IN (9, 10, 11, 13, 14, 15)
          AND EXISTS (SELECT FROM {schema}.update_request q WHERE q.run_id = t.run_id AND q.rejected_at IS NULL)
        ORDER BY t.run_id FOR NO KEY UPDATE OF t)
    UPDATE {schema}.task t
    SET ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(), wait_children = NULL, wait_failed = NULL,
        wait_signals = NULL, resumed = 3
    FROM theirs WHERE t.run_id = theirs.run_id RETURNING t.run_id
$$;
UPDATE {schema}.wait_kind SET freed_by = 'somebody completes or fails the token, or its time is over' WHERE code = 'token';

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
        ('SELECT, INSERT ON {schema}.completion', ARRAY[worker]),
        ('SELECT ON {schema}.beat', ARRAY[worker]),
        ('SELECT ON {schema}.tokens', ARRAY[worker, viewer, operator]),
        ('EXECUTE ON FUNCTION {schema}.finish_token(text, int2, bytea, boolean), {schema}.beat_token(text, bytea), {schema}.complete(text, jsonb, boolean), '
         '{schema}.fail(text, text, boolean, boolean), {schema}.heartbeat(text, jsonb)', ARRAY[worker, client, operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
