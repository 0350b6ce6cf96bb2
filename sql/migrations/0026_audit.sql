-- deploy: pre            older code neither writes nor reads what is new; older workers do not see that a run of theirs is to be paused, or was edited
-- lock:   ACCESS EXCLUSIVE on the view attempts and on wait_kind, brief
-- undo:   request_cancel and continue_run as in 0023; DROP FUNCTION of each other name; DROP VIEW audits, pauses; DROP TABLE audit, pause, changed; DROP SEQUENCE audit_n; attempts as in 0008;
--         DELETE FROM {schema}.attempt WHERE kind > 4
--
-- What operators do to live runs: pause and resume, try again now, other terms for a step that failed, a result in place of a step. Each
-- leaves its row in audit, in the same transaction. The history never changes: what is decided about a step that has no
-- result yet is a row of attempt (kind 5 edited, 6 skipped), so that a replay honours it.
-- A run that a worker has goes on until its steps have ended; the worker looks in pause and changed, and is told where that is allowed.
-- Lock order (sql/README.md): worker rows where a run is taken away, task rows, then the rows of pause and changed of those tasks.

-- ── audit ────────────────────────────────────────────────────────────────────────────────────────────────────
-- Partitioned by the run, like its history, and dropped with it: who keeps audit longer copies it from the view.
CREATE SEQUENCE {schema}.audit_n;
CREATE TABLE {schema}.audit (
    run_id  uuid NOT NULL,
    n       int8 NOT NULL DEFAULT nextval('{schema}.audit_n'),
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    verb    text NOT NULL,
    login   text NOT NULL,
    actor   text CHECK (length(actor) <= 200),
    reason  text CHECK (length(reason) <= 4000),
    details jsonb NOT NULL,
    PRIMARY KEY (run_id, n)
) PARTITION BY RANGE (run_id);
CREATE INDEX audit_at_idx ON {schema}.audit (at);
COMMENT ON TABLE {schema}.audit IS 'What operators did to runs; insert only, and only by the functions that do it, in their transaction';
COMMENT ON COLUMN {schema}.audit.run_id IS 'The run';
COMMENT ON COLUMN {schema}.audit.n IS 'Number, in the order of the deeds';
COMMENT ON COLUMN {schema}.audit.at IS 'When';
COMMENT ON COLUMN {schema}.audit.verb IS 'pause, resume, retry, edit_retry, skip, fork';
COMMENT ON COLUMN {schema}.audit.login IS 'Role that the session had logged in as, whatever it said of itself';
COMMENT ON COLUMN {schema}.audit.actor IS 'Who it was, as the caller says';
COMMENT ON COLUMN {schema}.audit.reason IS 'Why, as the caller says';
COMMENT ON COLUMN {schema}.audit.details IS 'What in particular';
SELECT {schema}.make_partitions_of('audit');

CREATE FUNCTION {schema}.note(p_run uuid, p_verb text, p_reason text, p_actor text, p_details jsonb DEFAULT '{}') RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF length(p_reason) > 4000 OR length(p_actor) > 200 THEN
        RAISE EXCEPTION 'a reason has at most 4000 characters and an actor 200, not % and %', coalesce(length(p_reason), 0), coalesce(length(p_actor), 0)
            USING ERRCODE = '22023';
    END IF;
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    INSERT INTO {schema}.audit (run_id, verb, login, actor, reason, details) VALUES (p_run, p_verb, session_user, p_actor, p_reason, jsonb_strip_nulls(p_details));
END $$;
COMMENT ON FUNCTION {schema}.note(uuid, text, text, text, jsonb) IS 'Internal: write down who did what to a run, and why';

CREATE VIEW {schema}.audits AS
SELECT a.n, a.at, a.verb, a.run_id, w.name AS workflow, r.key, a.login, a.actor, a.reason, a.details
FROM {schema}.audit a
LEFT JOIN {schema}.run r ON r.run_id = a.run_id
LEFT JOIN {schema}.workflow w ON w.id = r.workflow;
COMMENT ON VIEW {schema}.audits IS 'What operators did to runs, one row each; ask by run_id or by at. Kept as long as the run''s history';
COMMENT ON COLUMN {schema}.audits.n IS 'Number, in the order of the deeds';
COMMENT ON COLUMN {schema}.audits.at IS 'When, by the database''s clock';
COMMENT ON COLUMN {schema}.audits.verb IS 'pause, resume, retry, edit_retry, skip, fork';
COMMENT ON COLUMN {schema}.audits.run_id IS 'The run';
COMMENT ON COLUMN {schema}.audits.workflow IS 'Name of its workflow';
COMMENT ON COLUMN {schema}.audits.key IS 'Its idempotency key';
COMMENT ON COLUMN {schema}.audits.login IS 'Role that the session had logged in as';
COMMENT ON COLUMN {schema}.audits.actor IS 'Who it was, as the caller said; null when not said';
COMMENT ON COLUMN {schema}.audits.reason IS 'Why, as the caller said; null when not said';
COMMENT ON COLUMN {schema}.audits.details IS 'What in particular: the step, the result, the run that came of it';

-- ── what is to be seen by a worker ───────────────────────────────────────────────────────────────────────────
-- Both are small: runs that are paused, and runs of which something changed within the last second.
CREATE TABLE {schema}.pause (
    run_id      uuid PRIMARY KEY,
    asked_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    detail      text NOT NULL,
    ready_at    timestamptz,
    wait_kind   int2,
    wait_detail text,
    wait_since  timestamptz
);
COMMENT ON TABLE {schema}.pause IS 'Runs that are paused, or are to be as soon as their worker can put them aside; changed under the lock of the run''s task row alone';
COMMENT ON COLUMN {schema}.pause.run_id IS 'The run';
COMMENT ON COLUMN {schema}.pause.asked_at IS 'When somebody asked for it';
COMMENT ON COLUMN {schema}.pause.detail IS 'JSON: who and why';
COMMENT ON COLUMN {schema}.pause.ready_at IS 'task.ready_at as it was; null: it is to look for itself what it waits for when it goes on';
COMMENT ON COLUMN {schema}.pause.wait_kind IS 'task.wait_kind as it was';
COMMENT ON COLUMN {schema}.pause.wait_detail IS 'task.wait_detail as it was';
COMMENT ON COLUMN {schema}.pause.wait_since IS 'task.wait_since as it was';

CREATE TABLE {schema}.changed (
    run_id uuid PRIMARY KEY,
    n      int8 NOT NULL UNIQUE DEFAULT nextval('{schema}.audit_n')
);
COMMENT ON TABLE {schema}.changed IS 'Runs of which a pending step was edited while a worker had them: it reads the edits, or whoever finds them without one wakes them';
COMMENT ON COLUMN {schema}.changed.run_id IS 'The run';
COMMENT ON COLUMN {schema}.changed.n IS 'Of the last change';

CREATE VIEW {schema}.pauses AS
SELECT p.run_id, w.name AS workflow, t.owner IS NULL AND t.wait_kind = 7 AS settled, p.asked_at,
       p.detail::jsonb ->> 'by' AS actor, p.detail::jsonb ->> 'reason' AS reason, k.code AS waited_for
FROM {schema}.pause p
JOIN {schema}.task t ON t.run_id = p.run_id
LEFT JOIN {schema}.workflow w ON w.id = t.workflow
LEFT JOIN {schema}.wait_kind k ON k.id = p.wait_kind;
COMMENT ON VIEW {schema}.pauses IS 'Runs that somebody paused, those too whose worker finishes a step first';
COMMENT ON COLUMN {schema}.pauses.run_id IS 'The run';
COMMENT ON COLUMN {schema}.pauses.workflow IS 'Name of its workflow';
COMMENT ON COLUMN {schema}.pauses.settled IS 'Whether it has stopped; false while its worker finishes what it executes';
COMMENT ON COLUMN {schema}.pauses.asked_at IS 'Since when';
COMMENT ON COLUMN {schema}.pauses.actor IS 'Who paused it';
COMMENT ON COLUMN {schema}.pauses.reason IS 'Why';
COMMENT ON COLUMN {schema}.pauses.waited_for IS 'Code of what it waited for when it was stopped; null where it did not wait';

-- What waits for an event looks for itself when it goes on: a wake-up that is one too many costs a replay, one too few the run.
CREATE FUNCTION {schema}.put_aside(p_runs uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE {schema}.pause p
    SET ready_at = CASE WHEN t.wait_kind BETWEEN 11 AND 15 THEN NULL ELSE t.ready_at END,
        wait_kind = t.wait_kind, wait_detail = t.wait_detail, wait_since = t.wait_since
    FROM {schema}.task t WHERE p.run_id = ANY (p_runs) AND t.run_id = p.run_id AND t.owner IS NULL AND t.wait_kind IS DISTINCT FROM 7;
    UPDATE {schema}.task t
    SET ready_at = 'infinity', wait_kind = 7, wait_detail = p.detail, wait_since = clock_timestamp(), wait_children = NULL, wait_failed = NULL,
        wait_signals = NULL
    FROM {schema}.pause p WHERE p.run_id = ANY (p_runs) AND t.run_id = p.run_id AND t.owner IS NULL AND t.wait_kind IS DISTINCT FROM 7;
END $$;
COMMENT ON FUNCTION {schema}.put_aside(uuid[]) IS 'Internal: stop those of the runs that are to be paused and that nobody has; their task rows are locked';

-- A worker's look, once a second while it has runs. The rows of changed stay until it has said that it read them (p_seen).
CREATE FUNCTION {schema}.requests_of(p_worker int4, p_seen int8[]) RETURNS TABLE (run_id uuid, n int8)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_left uuid[];
BEGIN
    IF p_seen <> '{}' THEN
        DELETE FROM {schema}.changed c WHERE c.n = ANY (p_seen);
    END IF;
    IF NOT EXISTS (SELECT FROM {schema}.changed) AND NOT EXISTS (SELECT FROM {schema}.pause) THEN
        RETURN;
    END IF;
    -- released meanwhile, by a worker that had not heard of it or that died
    v_left := ARRAY(
        SELECT t.run_id FROM {schema}.task t
        WHERE t.run_id IN (SELECT p.run_id FROM {schema}.pause p UNION SELECT c.run_id FROM {schema}.changed c)
          AND t.owner IS NULL AND t.wait_kind IS DISTINCT FROM 7 ORDER BY t.run_id LIMIT 500 FOR NO KEY UPDATE SKIP LOCKED);
    IF v_left <> '{}' THEN
        PERFORM {schema}.put_aside(v_left);
        UPDATE {schema}.task t SET ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(), wait_children = NULL, wait_failed = NULL,
            wait_signals = NULL
        FROM {schema}.changed c WHERE c.run_id = ANY (v_left) AND t.run_id = c.run_id AND t.owner IS NULL AND t.wait_kind BETWEEN 9 AND 15;
        DELETE FROM {schema}.changed c WHERE c.run_id = ANY (v_left);
    END IF;
    DELETE FROM {schema}.pause p WHERE NOT EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = p.run_id);
    DELETE FROM {schema}.changed c WHERE NOT EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = c.run_id);
    RETURN QUERY
        SELECT p.run_id, NULL::int8 FROM {schema}.pause p JOIN {schema}.task t ON t.run_id = p.run_id WHERE t.owner = p_worker
        UNION ALL
        SELECT c.run_id, c.n FROM {schema}.changed c JOIN {schema}.task t ON t.run_id = c.run_id WHERE t.owner = p_worker;
END $$;
COMMENT ON FUNCTION {schema}.requests_of(int4, int8[]) IS
    'Runs of a worker that are to be paused (n null), or of which a step was edited; settles on the way what concerns runs that nobody has';

-- ── cancelled, or gone on ────────────────────────────────────────────────────────────────────────────────────
-- As in 0023, but for paused runs: to be told, they are woken.
CREATE OR REPLACE FUNCTION {schema}.request_cancel(p_runs uuid[], p_reason text, p_actor text) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_level uuid[] := p_runs;
    v_live  uuid[];
    v_all   uuid[] := '{}';
    v_dead  uuid[] := '{}';
BEGIN
    LOOP
        v_live := ARRAY(SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (v_level) AND t.cancel_to IS NULL ORDER BY t.run_id FOR NO KEY UPDATE);
        EXIT WHEN v_live = '{}';
        -- a paused run goes on, to be told; what the engine had put aside before is that again
        WITH was AS (DELETE FROM {schema}.pause p WHERE p.run_id = ANY (v_live) RETURNING p.run_id, p.wait_kind)
        UPDATE {schema}.task t SET wait_kind = was.wait_kind FROM was
        WHERE t.run_id = was.run_id AND t.owner IS NULL AND t.wait_kind = 7 AND was.wait_kind BETWEEN 19 AND 23;
        UPDATE {schema}.task t SET cancel_to = t.owner WHERE t.run_id = ANY (v_live) AND t.owner IS NOT NULL;
        UPDATE {schema}.task t
        SET cancel_to = 0, ready_at = clock_timestamp(), wait_kind = CASE WHEN t.wait_kind BETWEEN 19 AND 23 THEN t.wait_kind ELSE 1 END, wait_detail = NULL,
            wait_since = clock_timestamp(), wait_children = NULL, wait_failed = NULL, wait_signals = NULL
        WHERE t.run_id = ANY (v_live) AND t.owner IS NULL;
        INSERT INTO {schema}.cancellation (run_id, how, actor, reason) SELECT u.id, 3, p_actor, p_reason FROM unnest(v_live) AS u (id);
        -- no code of theirs can run: they never began, or the engine has put them aside
        v_dead := v_dead || ARRAY(SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (v_live) AND t.owner IS NULL
                                  AND (t.resumed = 0 OR t.wait_kind BETWEEN 19 AND 23));
        v_all := v_all || v_live;
        -- a further statement than the marks: a child that started before is there, and one that starts later sees its parent's mark
        v_level := ARRAY(SELECT c.run_id FROM {schema}.children_now AS c JOIN {schema}.task t ON t.run_id = c.run_id
                         WHERE c.parent_id = ANY (v_live) AND t.parent_close IS DISTINCT FROM 1);
    END LOOP;
    IF v_dead <> '{}' THEN
        PERFORM {schema}.end_runs(v_dead, 3::int2, {schema}.error_json('RunCancelled', coalesce(p_reason, 'it was cancelled')));
    END IF;
    RETURN v_all;
END $$;

-- As in 0023, but that its successor is paused in the place of a run that was to be.
-- SECURITY DEFINER: as in 0023. Custom plan: prunes.
CREATE OR REPLACE FUNCTION {schema}.continue_run(
    p_run uuid, p_next uuid, p_workflow int4, p_queue text, p_prio int2, p_input bytea, p_delay interval, p_worker int4) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_now   timestamptz := clock_timestamp();
    v_limit text := current_setting('lock_timeout');
    v_facts bytea;
    v_task  record;
    v_was   record;
    v_next  record;
BEGIN
    SELECT t.* INTO v_task FROM {schema}.task t WHERE t.run_id = p_run AND t.owner IS NOT DISTINCT FROM p_worker FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;                                        -- it is somebody else's now, and `finish` refuses the batch
    END IF;
    SELECT r.* INTO v_was FROM {schema}.run r WHERE r.run_id = p_run;
    SELECT w.id, coalesce({schema}.queue_id(p_queue), CASE WHEN w.id = v_task.workflow THEN v_task.queue ELSE w.queue END) AS queue,
           v_now + p_delay + w.timeout_s * interval '1 s' AS deadline
    INTO v_next FROM {schema}.workflow w WHERE w.id = coalesce(p_workflow, v_task.workflow);
    IF v_was.key IS NOT NULL THEN
        PERFORM set_config('lock_timeout', '20ms', true);
        UPDATE {schema}.run_key k SET run_id = p_next WHERE k.workflow = v_was.workflow AND k.key = v_was.key AND k.run_id = p_run;
        IF NOT FOUND THEN                              -- the chain began as another workflow, or the key was given away
            UPDATE {schema}.run_key k SET run_id = p_next
            WHERE k.workflow = ANY (ARRAY(SELECT w.id FROM {schema}.workflow w)) AND k.key = v_was.key AND k.run_id = p_run;
        END IF;
        PERFORM set_config('lock_timeout', v_limit, true);
    END IF;
    v_facts := convert_to({schema}.merged_attributes(v_was.attributes, (
        SELECT s.value FROM {schema}.attribute_set s WHERE s.run_id = p_run ORDER BY s.pos DESC LIMIT 1))::text, 'UTF8');
    INSERT INTO {schema}.run (run_id, created_at, workflow, queue, prio, key, input, parent_id, parent_seq, batch, attributes)
    VALUES (p_next, v_now, v_next.id, v_next.queue, coalesce(p_prio, v_task.prio), v_was.key, p_input, v_was.parent_id, v_was.parent_seq, NULL, v_facts);
    INSERT INTO {schema}.task (run_id, ready_at, cancel_at, queue, workflow, prio, parent_id, parent_close, batch, group_key, key, input)
    VALUES (p_next, v_now + p_delay, v_next.deadline, v_next.queue, v_next.id, coalesce(p_prio, v_task.prio), v_task.parent_id, v_task.parent_close, NULL,
            v_task.group_key, v_task.key, CASE WHEN length(p_input) <= 1024 THEN p_input END);
    IF v_facts IS NOT NULL THEN
        PERFORM {schema}.index_attributes(ARRAY[p_next], v_facts);
    END IF;
    INSERT INTO {schema}.child_continued (parent_id, seq, n, run_id)
    SELECT v_was.parent_id, v_was.parent_seq, coalesce((
        SELECT max(c.n) FROM {schema}.child_continued c WHERE c.parent_id = v_was.parent_id AND c.seq = v_was.parent_seq), 0) + 1, p_next
    WHERE v_was.parent_id IS NOT NULL;
    UPDATE {schema}.pause p SET run_id = p_next WHERE p.run_id = p_run;
    IF FOUND THEN                                      -- it was to be paused as soon as its worker could
        PERFORM {schema}.put_aside(ARRAY[p_next]);
    END IF;
    IF v_task.cancel_to > 0 THEN                       -- it was cancelled and not told yet: its successor is, when it is read
        INSERT INTO {schema}.cancellation (run_id, how, actor, reason)
        SELECT p_next, c.how, c.actor, c.reason FROM {schema}.cancellation c WHERE c.run_id = p_run AND c.how = 3;
        UPDATE {schema}.task t SET cancel_to = 0, resumed = 1 WHERE t.run_id = p_next;
    END IF;
    INSERT INTO {schema}.message (run_id, kind, n, sent_at, name, id, payload)
    SELECT p_next, m.kind, m.n, m.sent_at, m.name, m.id, m.payload
    FROM {schema}.message m
    WHERE m.run_id = p_run AND m.kind = 1
      AND NOT EXISTS (SELECT FROM {schema}.consumed c WHERE c.run_id = p_run AND c.kind = m.kind AND c.name = m.name AND c.n = m.n);
END $$;

-- ── what a verb has come to ──────────────────────────────────────────────────────────────────────────────────
-- did: something was changed. state: what it is now, or ended, unknown, refused, locked. why: of a refusal. made: the run that came of it.
-- owner: worker that is to be told. Nothing below raises but for bad arguments, so that a slice of many does not end at one of them.
CREATE FUNCTION {schema}.absent(p_run uuid, OUT state text, OUT why text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    why := {schema}.ended_as(p_run);
    state := CASE WHEN why IS NULL THEN 'unknown' ELSE 'ended' END;
END $$;
COMMENT ON FUNCTION {schema}.absent(uuid) IS 'Internal: of a run that is not live, whether it has ended, and how';

CREATE FUNCTION {schema}.pause_run(
    p_run uuid, p_reason text, p_actor text, OUT did boolean, OUT state text, OUT why text, OUT made uuid, OUT owner int4)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE one record;
BEGIN
    did := false;
    SELECT t.owner, t.wait_kind, k.code INTO one FROM {schema}.task t LEFT JOIN {schema}.wait_kind k ON k.id = t.wait_kind
    WHERE t.run_id = p_run FOR NO KEY UPDATE OF t;
    IF NOT FOUND THEN
        SELECT a.state, a.why INTO state, why FROM {schema}.absent(p_run) AS a;
        RETURN;
    END IF;
    INSERT INTO {schema}.pause (run_id, detail)
    VALUES (p_run, jsonb_strip_nulls(jsonb_build_object('by', coalesce(p_actor, session_user::text), 'reason', p_reason))::text) ON CONFLICT (run_id) DO NOTHING;
    did := FOUND;
    owner := one.owner;
    state := CASE WHEN one.owner IS NULL THEN 'paused' ELSE 'pausing' END;
    PERFORM {schema}.put_aside(ARRAY[p_run]);
    IF did THEN
        PERFORM {schema}.note(p_run, 'pause', p_reason, p_actor, jsonb_build_object('state', state, 'waited_for', CASE WHEN one.owner IS NULL THEN one.code END));
    END IF;
END $$;
COMMENT ON FUNCTION {schema}.pause_run(uuid, text, text) IS 'Internal: pause a run; one that a worker has is put aside by it';

CREATE FUNCTION {schema}.resume_run(
    p_run uuid, p_reason text, p_actor text, OUT did boolean, OUT state text, OUT why text, OUT made uuid, OUT owner int4)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    one   record;
    was   record;
    waits boolean;
BEGIN
    did := false;
    SELECT t.owner, t.wait_kind, t.cancel_at INTO one FROM {schema}.task t WHERE t.run_id = p_run FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        SELECT a.state, a.why INTO state, why FROM {schema}.absent(p_run) AS a;
        RETURN;
    END IF;
    DELETE FROM {schema}.pause p WHERE p.run_id = p_run RETURNING * INTO was;
    did := FOUND;
    owner := one.owner;
    state := CASE WHEN did THEN 'resumed' ELSE 'not paused' END;
    IF one.owner IS NULL AND one.wait_kind = 7 THEN
        waits := coalesce(least(was.ready_at, one.cancel_at) > clock_timestamp() AND was.ready_at IS NOT NULL, false);
        UPDATE {schema}.task t
        SET ready_at = CASE WHEN waits THEN least(was.ready_at, one.cancel_at) ELSE clock_timestamp() END, wait_kind = CASE WHEN waits THEN was.wait_kind ELSE 1 END,
            wait_detail = CASE WHEN waits THEN was.wait_detail END, wait_since = CASE WHEN waits THEN was.wait_since ELSE clock_timestamp() END
        WHERE t.run_id = p_run;
        did := true;
    END IF;
    -- who sent it an update meanwhile woke nobody
    PERFORM {schema}.wake_updated(ARRAY[p_run]);
    UPDATE {schema}.task t SET resumed = 3
    WHERE t.run_id = p_run AND t.owner IS NULL AND EXISTS (SELECT FROM {schema}.update_request q WHERE q.run_id = p_run AND q.rejected_at IS NULL);
    IF did THEN
        PERFORM {schema}.note(p_run, 'resume', p_reason, p_actor, jsonb_build_object('paused_s', round(extract(epoch FROM clock_timestamp() - was.asked_at), 3)));
    END IF;
END $$;
COMMENT ON FUNCTION {schema}.resume_run(uuid, text, text) IS
    'Internal: let a paused run go on: to wait until the same moment, or else at once, so that it looks for itself what has come';

-- ── steps that failed and have no result yet ─────────────────────────────────────────────────────────────────
-- Custom plan: prunes.
CREATE FUNCTION {schema}.pending_steps(p_run uuid) RETURNS TABLE (seq int4, name text, failed int4, next_at timestamptz, policy jsonb, edits int4)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
    SELECT a.seq, a.name, a.n, CASE WHEN (e.terms ->> 'after')::int4 = a.n THEN coalesce(e.next_retry_at, a.next_retry_at) ELSE a.next_retry_at END,
           coalesce(e.terms -> 'policy', '{}'), coalesce(e.n, 0)
    FROM (SELECT DISTINCT ON (t.seq) t.* FROM {schema}.attempt t WHERE t.run_id = p_run AND t.kind = 1 ORDER BY t.seq, t.n DESC) AS a
    LEFT JOIN LATERAL (SELECT t.n, t.next_retry_at, {schema}.as_json(t.error) AS terms FROM {schema}.attempt t
                       WHERE t.run_id = p_run AND t.seq = a.seq AND t.kind = 5 ORDER BY t.n DESC LIMIT 1) AS e ON true
    WHERE NOT EXISTS (SELECT FROM {schema}.step s WHERE s.run_id = p_run AND s.seq = a.seq)
$$;
COMMENT ON FUNCTION {schema}.pending_steps(uuid) IS
    'Internal: steps of a run that failed and have no result: tries so far, when the next one is due, other terms that somebody gave them';

CREATE FUNCTION {schema}.edit_step(p_run uuid, p_seq int4, p_name text, p_failed int4, p_edits int4, p_policy jsonb, p_next_at timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO {schema}.attempt (run_id, seq, n, kind, started_at, next_retry_at, worker, name, error)
    VALUES (p_run, p_seq, p_edits + 1, 5, clock_timestamp(), p_next_at, 0, p_name, convert_to(json_build_object('after', p_failed, 'policy', p_policy)::text, 'UTF8'));
    UPDATE {schema}.task t SET ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(), wait_children = NULL, wait_failed = NULL,
        wait_signals = NULL
    WHERE t.run_id = p_run AND t.owner IS NULL AND t.wait_kind BETWEEN 9 AND 15;
    UPDATE {schema}.pause p SET ready_at = NULL WHERE p.run_id = p_run AND p.wait_kind = 9;
    INSERT INTO {schema}.changed (run_id) SELECT t.run_id FROM {schema}.task t WHERE t.run_id = p_run AND t.owner IS NOT NULL
    ON CONFLICT (run_id) DO UPDATE SET n = nextval('{schema}.audit_n');
END $$;
COMMENT ON FUNCTION {schema}.edit_step(uuid, int4, text, int4, int4, jsonb, timestamptz) IS
    'Internal: other terms for a step that failed; its run is woken to read them, or its worker told. The task row is locked';

CREATE FUNCTION {schema}.checked_policy(p_policy jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE bad text;
BEGIN
    SELECT string_agg(e.key, ', ') INTO bad FROM jsonb_each(p_policy) AS e
    WHERE e.key NOT IN ('max_attempts', 'initial', 'factor', 'maximum') OR jsonb_typeof(e.value) <> 'number'
       OR NOT CASE e.key WHEN 'max_attempts' THEN e.value::numeric BETWEEN 1 AND 1000 AND e.value::numeric = trunc(e.value::numeric)
                         WHEN 'factor' THEN e.value::numeric BETWEEN 1 AND 1e6 ELSE e.value::numeric BETWEEN 0 AND 1e9 END;
    IF bad IS NOT NULL THEN
        RAISE EXCEPTION 'retry policy %: % does not fit; max_attempts is a whole number from 1 to 1000, initial and maximum are seconds, factor is 1 or more', p_policy, bad
            USING ERRCODE = '22023';
    END IF;
    RETURN p_policy;
END $$;
COMMENT ON FUNCTION {schema}.checked_policy(jsonb) IS 'Internal: the parts of a retry policy that are given; raises 22023 for what is none';

CREATE FUNCTION {schema}.edit_run(
    p_run uuid, p_seq int4, p_policy jsonb, p_next_in float8, p_reason text, p_actor text,
    OUT did boolean, OUT state text, OUT why text, OUT made uuid, OUT owner int4)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    one    record;
    terms  jsonb := {schema}.checked_policy(jsonb_strip_nulls(p_policy));
    v_next timestamptz;
BEGIN
    IF p_next_in IS NOT NULL AND NOT (p_next_in >= 0 AND p_next_in <= 1e9) THEN
        RAISE EXCEPTION 'the next try can''t be in % s: give seconds from now, 0 or more', p_next_in USING ERRCODE = '22023';
    ELSIF p_next_in IS NULL AND terms = '{}' THEN
        RAISE EXCEPTION 'nothing to change: give a part of the policy, or when the next try is due' USING ERRCODE = '22023';
    END IF;
    did := false;
    SELECT t.owner INTO owner FROM {schema}.task t WHERE t.run_id = p_run FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        SELECT a.state, a.why INTO state, why FROM {schema}.absent(p_run) AS a;
        RETURN;
    END IF;
    SELECT p.* INTO one FROM {schema}.pending_steps(p_run) AS p WHERE p.seq = p_seq;
    IF NOT FOUND THEN
        state := 'refused';
        why := format('step %s has not failed, or has its result: there is no retry whose terms could be changed', p_seq);
        RETURN;
    END IF;
    v_next := coalesce(clock_timestamp() + p_next_in * interval '1 s', one.next_at);
    PERFORM {schema}.edit_step(p_run, p_seq, one.name, one.failed, one.edits, one.policy || terms, v_next);
    PERFORM {schema}.note(p_run, 'edit_retry', p_reason, p_actor, jsonb_build_object('seq', p_seq, 'step', one.name, 'policy', terms, 'next_at', v_next));
    did := true;
    state := 'edited';
END $$;
COMMENT ON FUNCTION {schema}.edit_run(uuid, int4, jsonb, float8, text, text) IS 'Internal: change the retry policy, or the next due time, of one step that failed, for this run alone';

CREATE FUNCTION {schema}.retry_live(
    p_run uuid, p_reason text, p_actor text, OUT did boolean, OUT state text, OUT why text, OUT made uuid, OUT owner int4)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    live  record;
    one   record;
    steps text[] := '{}';
BEGIN
    did := false;
    SELECT t.owner, t.wait_kind, k.code INTO live FROM {schema}.task t LEFT JOIN {schema}.wait_kind k ON k.id = t.wait_kind
    WHERE t.run_id = p_run FOR NO KEY UPDATE OF t;
    IF NOT FOUND THEN
        SELECT a.state, a.why INTO state, why FROM {schema}.absent(p_run) AS a;
        RETURN;
    END IF;
    owner := live.owner;
    IF live.owner IS NULL AND live.wait_kind = 7 THEN
        state := 'refused';
        why := 'it is paused: resume it first';
        RETURN;
    ELSIF live.owner IS NULL AND live.wait_kind BETWEEN 19 AND 23 THEN
        UPDATE {schema}.task t SET ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(), claims = 0 WHERE t.run_id = p_run;
        INSERT INTO {schema}.attempt (run_id, seq, n, kind, started_at, worker, name)
        SELECT a.run_id, a.seq, max(a.n), 4, clock_timestamp(), 0, max(a.name) FROM {schema}.attempt a
        WHERE a.run_id = p_run AND a.kind = 3 GROUP BY a.run_id, a.seq
        ON CONFLICT DO NOTHING;
        did := true;
    ELSE
        FOR one IN SELECT p.* FROM {schema}.pending_steps(p_run) AS p WHERE p.next_at > clock_timestamp() LOOP
            PERFORM {schema}.edit_step(p_run, one.seq, one.name, one.failed, one.edits, one.policy, clock_timestamp());
            steps := steps || one.name;
            did := true;
        END LOOP;
    END IF;
    IF NOT did THEN
        state := 'refused';
        why := CASE WHEN live.owner IS NOT NULL THEN 'a worker executes it and none of its steps waits for a retry' ELSE format('it waits for something else: %s', live.code) END;
        RETURN;
    END IF;
    state := 'ready';
    made := p_run;
    PERFORM {schema}.note(p_run, 'retry', p_reason, p_actor, jsonb_build_object('was', live.code, 'steps', to_jsonb(nullif(steps, '{}'))));
END $$;
COMMENT ON FUNCTION {schema}.retry_live(uuid, text, text) IS 'Internal: let a run that is parked, or whose step waits for its next try, go on at once';

-- ── a result in place of a step ──────────────────────────────────────────────────────────────────────────────
-- Which step may be given one: that is known to have been called. Its attempts say so, or its run's task names it.
-- Custom plan: prunes.
CREATE FUNCTION {schema}.skippable(p_run uuid, p_seq int4) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.step s WHERE s.run_id = p_run AND s.seq = p_seq) THEN
        RETURN NULL;
    END IF;
    RETURN coalesce(
        (SELECT a.name FROM {schema}.attempt a WHERE a.run_id = p_run AND a.seq = p_seq AND p_seq >= 0 AND a.kind <= 5 LIMIT 1),
        (SELECT t.step FROM {schema}.task t WHERE t.run_id = p_run AND t.seq = p_seq AND t.wait_kind IN (8, 9, 13, 21)));
END $$;
COMMENT ON FUNCTION {schema}.skippable(uuid, int4) IS 'Internal: name of a step that was called and has no result; null where that is not known';

CREATE FUNCTION {schema}.skip_run(
    p_run uuid, p_seq int4, p_result bytea, p_reason text, p_actor text,
    OUT did boolean, OUT state text, OUT why text, OUT made uuid, OUT owner int4)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_name  text;
    v_owner int4;
    v_at    timestamptz := clock_timestamp();
BEGIN
    IF p_result IS NULL OR length(p_result) > 2097152 THEN
        RAISE EXCEPTION 'a result is JSON of at most 2097152 bytes, not %', length(p_result) USING ERRCODE = '22023';
    END IF;
    did := false;
    LOOP
        v_name := {schema}.skippable(p_run, p_seq);
        SELECT t.owner INTO v_owner FROM {schema}.task t WHERE t.run_id = p_run;
        IF v_name IS NOT NULL AND v_owner IS NOT NULL THEN
            IF EXISTS (SELECT FROM {schema}.worker w WHERE w.id = v_owner AND current_setting('application_name') = 'pgsupervisor: tx ' || left(w.boot::text, 8)) THEN
                RAISE EXCEPTION 'a transactional step can''t take a run from its own worker' USING ERRCODE = '55000', HINT = 'do it in a step that is not transactional, with a client';
            END IF;
            PERFORM {schema}.take_away(ARRAY[p_run]);
        END IF;
        SELECT t.owner INTO v_owner FROM {schema}.task t WHERE t.run_id = p_run FOR NO KEY UPDATE;
        IF NOT FOUND THEN
            SELECT a.state, a.why INTO state, why FROM {schema}.absent(p_run) AS a;
            RETURN;
        END IF;
        IF EXISTS (SELECT FROM {schema}.step s WHERE s.run_id = p_run AND s.seq = p_seq) THEN
            v_name := NULL;                            -- by a snapshot that is newer than the lock; the name is gone with the owner
        END IF;
        EXIT WHEN v_name IS NULL OR v_owner IS NULL;
    END LOOP;
    IF v_name IS NULL THEN
        state := 'refused';
        why := format('step %s has its result, or nobody knows yet that it was called: a step is named when it fails, crashes, or has run for a second', p_seq);
        RETURN;
    END IF;
    INSERT INTO {schema}.step (run_id, started_at, ended_at, seq, pos, worker, kind, status, name, result)
    SELECT p_run, v_at, v_at, p_seq, coalesce(max(s.pos) + 1, 0), 0, 1, 1, v_name, p_result FROM {schema}.step s WHERE s.run_id = p_run;
    INSERT INTO {schema}.attempt (run_id, seq, n, kind, started_at, worker, name, error)
    VALUES (p_run, p_seq, 1, 6, v_at, 0, v_name, convert_to(json_build_object('by', coalesce(p_actor, session_user::text), 'reason', p_reason)::text, 'UTF8'));
    UPDATE {schema}.task t
    SET ready_at = v_at, wait_kind = 1, wait_detail = NULL, wait_since = v_at, wait_children = NULL, wait_failed = NULL, wait_signals = NULL, claims = 0,
        cancel_to = CASE WHEN t.cancel_to IS NOT NULL THEN 0 END, resumed = CASE WHEN t.resumed = 3 THEN 3 ELSE 1 END
    WHERE t.run_id = p_run AND t.wait_kind IS DISTINCT FROM 7;
    UPDATE {schema}.task t SET resumed = CASE WHEN t.resumed = 3 THEN 3 ELSE 1 END WHERE t.run_id = p_run AND t.wait_kind = 7;
    UPDATE {schema}.pause p SET ready_at = NULL WHERE p.run_id = p_run;
    PERFORM {schema}.note(p_run, 'skip', p_reason, p_actor, jsonb_build_object('seq', p_seq, 'step', v_name, 'result', {schema}.as_json(p_result)));
    did := true;
    state := 'skipped';
END $$;
COMMENT ON FUNCTION {schema}.skip_run(uuid, int4, bytea, text, text) IS
    'Internal: record a given result for a step that has none, taking the run from its worker where one has it, and let the run go on';

CREATE OR REPLACE VIEW {schema}.attempts AS
SELECT a.run_id, a.seq, a.n, a.name, (ARRAY['failed', 'started', 'crashed', 'forgiven', 'edited', 'skipped'])[a.kind] AS kind,
       a.started_at, a.ended_at, a.next_retry_at, a.worker,
       {schema}.as_json(a.error, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = a.run_id AND a.kind < 3)) AS error, a.fingerprint
FROM {schema}.attempt a;
COMMENT ON VIEW {schema}.attempts IS
    'Tries of steps that failed, durable starts of at_most_once steps, workers that steps ended, what operators did to steps; a first try that succeeds is in steps alone';
COMMENT ON COLUMN {schema}.attempts.n IS
    'Number of the try, from 1; for crashed the number of the crash, for forgiven of the last crash that no longer counts, for edited of the edit';
COMMENT ON COLUMN {schema}.attempts.kind IS
    'failed, started (an at_most_once step commits its start first), crashed (it ended its worker), forgiven (retry was called), edited (edit_retry, or retry while it waited), skipped (it was given its result)';
COMMENT ON COLUMN {schema}.attempts.error IS
    'What it raised: type, message, traceback; for crashed the signal or exit code and the worker''s last log lines; for edited its terms, for skipped who and why';
UPDATE {schema}.wait_kind SET freed_by = 'somebody resumes the run: python -m supervisor resume RUN' WHERE code = 'run_paused';
