-- deploy: pre            older workers neither write nor read what is new; a parent that one of them has takes a child that continued for one that failed
-- lock:   none
-- undo:   outcomes as in 0002, batch_results as in 0009, request_cancel and close_children as in 0019, cancel_tree, cancel and terminate as in 0020, send as in 0015, admit and update_standing as in 0018; DROP FUNCTION {schema}.continue_run, {schema}.newest; DROP VIEW {schema}.children_now; DROP TABLE {schema}.child_continued
--
-- continue_as_new: a run ends as `continued`, and in the same transaction its successor is there, with its key, parent, attributes and the
-- signals that nobody was given. A batch goes on having the first of a chain. The outcome's result is the successor's id, so a chain is followed from any of its runs by the outcomes' primary key.

CREATE TABLE {schema}.child_continued (
    parent_id uuid NOT NULL,
    seq       int4 NOT NULL,
    n         int4 NOT NULL,
    run_id    uuid NOT NULL,
    PRIMARY KEY (parent_id, seq, n)
) PARTITION BY RANGE (parent_id);
COMMENT ON TABLE {schema}.child_continued IS 'Which runs continued a child; insert only, the largest n is the one that its parent waits for';
COMMENT ON COLUMN {schema}.child_continued.parent_id IS 'The run that started the child';
COMMENT ON COLUMN {schema}.child_continued.seq IS 'Position of that start in the parent, see child.seq';
COMMENT ON COLUMN {schema}.child_continued.n IS 'The how manieth run after the first it is';
COMMENT ON COLUMN {schema}.child_continued.run_id IS 'The run';
SELECT {schema}.make_partitions_of('child_continued');

-- SECURITY DEFINER: whoever may ask how runs ended may ask what they went on as. Custom plan: prunes. 40 us for each run of the chain.
CREATE FUNCTION {schema}.newest(run uuid) RETURNS uuid
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE v_result bytea;
BEGIN
    LOOP
        SELECT o.result INTO v_result FROM {schema}.outcome o WHERE o.run_id = newest.run AND o.status = 6;
        EXIT WHEN NOT FOUND;
        run := ({schema}.as_json(v_result) #>> '{}')::uuid;
    END LOOP;
    RETURN run;
END $$;
COMMENT ON FUNCTION {schema}.newest(uuid) IS 'The run as which a run goes on that has continued as new ones; any other run itself';

-- As in 0002, but for runs that went on: those have ended when the newest of their chain has.
CREATE OR REPLACE FUNCTION {schema}.outcomes(p_ids uuid[]) RETURNS TABLE (run_id uuid, status text, result bytea, ended_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    v_went_on uuid[];
    v_newest  uuid[];
    one       record;
BEGIN
    FOR one IN SELECT o.run_id, o.status, o.result, o.ended_at FROM {schema}.outcome o WHERE o.run_id = ANY (p_ids) LOOP
        IF one.status = 6 THEN
            v_went_on := v_went_on || one.run_id;
            v_newest := v_newest || {schema}.newest(one.run_id);
        ELSE
            run_id := one.run_id; status := {schema}.outcome_name(one.status); result := one.result; ended_at := one.ended_at;
            RETURN NEXT;
        END IF;
    END LOOP;
    IF v_went_on IS NOT NULL THEN
        RETURN QUERY SELECT u.asked, {schema}.outcome_name(o.status), o.result, o.ended_at
                     FROM unnest(v_went_on, v_newest) AS u (asked, newest) JOIN {schema}.outcome o ON o.run_id = u.newest WHERE o.run_id = ANY (v_newest);
    END IF;
END $$;
COMMENT ON FUNCTION {schema}.outcomes(uuid[]) IS 'How those of the runs ended that have ended; a run that continued as a new one has the outcome of the newest';

-- In the batch that ends the run, before its task goes: so whoever sends it a signal waits, and then finds its successor.
-- The key comes after the worker's row and the task, against the order of locks, so it is waited for less long than a deadlock takes to be found:
-- the batch is tried again (55P03).
-- SECURITY DEFINER: a worker must not be able to give keys to runs otherwise. Custom plan: prunes.
CREATE FUNCTION {schema}.continue_run(
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
COMMENT ON FUNCTION {schema}.continue_run(uuid, uuid, int4, text, int2, bytea, interval, int4) IS
    'Internal: make the successor of a run that ends as continued in this transaction';

-- ── children that went on ────────────────────────────────────────────────────────────────────────────────────
CREATE VIEW {schema}.children_now AS
SELECT c.parent_id, c.run_id FROM {schema}.child c UNION ALL SELECT c.parent_id, c.run_id FROM {schema}.child_continued c;
COMMENT ON VIEW {schema}.children_now IS 'Internal: children of runs, and the runs that those went on as';
COMMENT ON COLUMN {schema}.children_now.parent_id IS 'The run that started the child';
COMMENT ON COLUMN {schema}.children_now.run_id IS 'The child, or a run that continued it';

-- As in 0019, but for children that went on as other runs.
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

-- SECURITY DEFINER: as in 0019.
CREATE OR REPLACE FUNCTION {schema}.close_children(p_parents uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    one    record;
    v_kids uuid[];
BEGIN
    FOR one IN
        SELECT c.parent_id AS id, array_agg(c.run_id) FILTER (WHERE t.parent_close IS DISTINCT FROM 2) AS cancelled,
               array_agg(c.run_id) FILTER (WHERE t.parent_close = 2) AS terminated
        FROM {schema}.children_now AS c JOIN {schema}.task t ON t.run_id = c.run_id
        WHERE c.parent_id = ANY (p_parents) AND t.parent_close IS DISTINCT FROM 1 GROUP BY c.parent_id ORDER BY c.parent_id
    LOOP
        PERFORM {schema}.request_cancel(one.cancelled, 'its parent ended', 'run ' || one.id);
        v_kids := ARRAY(SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (one.terminated) ORDER BY t.run_id FOR UPDATE);
        IF v_kids <> '{}' THEN
            INSERT INTO {schema}.cancellation (run_id, how, actor, reason) SELECT u.id, 4, 'run ' || one.id, 'its parent ended' FROM unnest(v_kids) AS u (id)
            ON CONFLICT DO NOTHING;
            UPDATE {schema}.task t SET cancel_to = t.owner WHERE t.run_id = ANY (v_kids) AND t.owner IS NOT NULL;
            PERFORM {schema}.end_runs(ARRAY(SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (v_kids) AND t.owner IS NULL),
                                      4::int2, {schema}.error_json('RunTerminated', 'its parent ended'));
        END IF;
    END LOOP;
END $$;

-- ── ending a run that went on ────────────────────────────────────────────────────────────────────────────────
-- As in 0020, but for runs that went on: the newest is cancelled, or terminated.
-- SECURITY DEFINER: as in 0020.
CREATE OR REPLACE FUNCTION {schema}.cancel_tree(p_runs uuid[], p_reason text DEFAULT NULL, p_actor text DEFAULT NULL)
RETURNS TABLE (run_id uuid, ended boolean, owner int4, workflow text, queue text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_runs    uuid[] := p_runs;
    v_asked   uuid[] := '{}';
    v_unknown uuid;
BEGIN
    IF length(p_reason) > 2000 OR length(p_actor) > 200 THEN
        RAISE EXCEPTION 'a reason has at most 2,000 characters and an actor 200, not % and %', coalesce(length(p_reason), 0), coalesce(length(p_actor), 0)
            USING ERRCODE = '22023';
    END IF;
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    LOOP
        v_asked := v_asked || {schema}.request_cancel(v_runs, p_reason, coalesce(p_actor, session_user));
        -- a further statement: what went on as another run before its mark was set has ended by now
        v_runs := ARRAY(SELECT {schema}.newest(u.id) FROM unnest(v_runs) AS u (id) WHERE {schema}.newest(u.id) <> ALL (v_asked || u.id));
        EXIT WHEN v_runs = '{}';
    END LOOP;
    SELECT u.id INTO v_unknown FROM (SELECT r.id, {schema}.newest(r.id) AS now FROM unnest(p_runs) AS r (id)) AS u
    WHERE u.id IS NULL OR u.now <> ALL (v_asked) AND NOT EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = u.now)
          AND NOT EXISTS (SELECT FROM {schema}.outcomes(ARRAY[u.now])) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'there is no run %', coalesce(v_unknown::text, 'null') USING ERRCODE = 'SV006', DETAIL = coalesce(v_unknown::text, 'null');
    END IF;
    RETURN QUERY
        SELECT a.id, t.run_id IS NULL, t.owner, w.name, q.name
        FROM unnest(v_asked) AS a (id) LEFT JOIN {schema}.task t ON t.run_id = a.id
        LEFT JOIN {schema}.workflow w ON w.id = t.workflow LEFT JOIN {schema}.queue q ON q.id = t.queue AND t.queue <> w.queue;
END $$;

-- SECURITY DEFINER: as in 0020.
CREATE OR REPLACE FUNCTION {schema}.cancel(run uuid, reason text DEFAULT NULL, notify boolean DEFAULT false, actor text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE told record;
BEGIN
    SELECT count(*) AS n, array_agg(c.run_id) FILTER (WHERE c.ended) AS ended, array_agg(c.owner) AS owners,
           array_agg(c.workflow) AS workflows, array_agg(c.queue) AS queues
    INTO told FROM {schema}.cancel_tree(ARRAY[run], reason, actor) AS c;
    IF notify THEN
        PERFORM {schema}.announce_cancelled(told.ended, told.owners, told.workflows, told.queues);
    END IF;
    RETURN told.n > 0;
END $$;

-- SECURITY DEFINER: as in 0020.
CREATE OR REPLACE FUNCTION {schema}.terminate(run uuid, reason text DEFAULT NULL, notify boolean DEFAULT false, actor text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE v_newest uuid;
BEGIN
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    LOOP
        IF {schema}.end_runs(ARRAY[run], 4::int2, {schema}.error_json('RunTerminated', coalesce(reason, 'it was terminated'))) <> '{}' THEN
            INSERT INTO {schema}.cancellation (run_id, how, actor, reason) VALUES (run, 4, coalesce(actor, session_user), reason) ON CONFLICT DO NOTHING;
            IF notify THEN
                PERFORM {schema}.announce_ends(ARRAY[run]);
            END IF;
            RETURN true;
        END IF;
        v_newest := {schema}.newest(run);              -- it went on as another run
        EXIT WHEN v_newest IS NOT DISTINCT FROM run;
        run := v_newest;
    END LOOP;
    IF NOT EXISTS (SELECT FROM {schema}.outcomes(ARRAY[run])) THEN
        RAISE EXCEPTION 'there is no run %', coalesce(run::text, 'null') USING ERRCODE = 'SV006', DETAIL = coalesce(run::text, 'null');
    END IF;
    RETURN false;
END $$;

-- As in 0015, but for runs that went on: the newest is sent it.
CREATE OR REPLACE FUNCTION {schema}.send(
    p_run uuid, p_kind int2, p_name text, p_payload bytea, p_id text, OUT stored boolean, OUT owner int4, OUT woken boolean, OUT workflow text, OUT queue text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_ended  text;
    v_newest uuid;
BEGIN
    IF p_name IS NULL OR length(p_name) NOT BETWEEN 1 AND 200 OR p_name ~ '[[:cntrl:]]' THEN
        RAISE EXCEPTION 'the name of a signal has 1 to 200 characters and no control characters' USING ERRCODE = '22023';
    ELSIF length(p_id) NOT BETWEEN 1 AND 500 THEN
        RAISE EXCEPTION 'the id of a signal has 1 to 500 characters, not %', length(p_id) USING ERRCODE = '22023';
    ELSIF p_payload IS NULL OR length(p_payload) > 2097152 THEN
        RAISE EXCEPTION 'signal "%" has % bytes of JSON, more than 2097152', p_name, length(p_payload) USING ERRCODE = '22023';
    END IF;
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    stored := false;
    woken := false;
    LOOP
        SELECT t.owner, w.name, q.name INTO owner, workflow, queue
        FROM {schema}.task t JOIN {schema}.workflow w ON w.id = t.workflow LEFT JOIN {schema}.queue q ON q.id = t.queue AND t.queue <> w.queue
        WHERE t.run_id = p_run FOR NO KEY UPDATE OF t;
        EXIT WHEN FOUND;
        IF {schema}.was_sent(p_run, p_kind, p_name, p_id) THEN
            RETURN;                                    -- it arrived while the run lived: who repeats it is told the same as then
        END IF;
        v_newest := {schema}.newest(p_run);            -- it went on as another run, perhaps while we waited for its lock
        IF v_newest IS NOT DISTINCT FROM p_run THEN
            SELECT o.status INTO v_ended FROM {schema}.outcomes(ARRAY[p_run]) AS o;
            IF NOT FOUND THEN
                RAISE EXCEPTION 'there is no run %', coalesce(p_run::text, 'null') USING ERRCODE = 'SV006', DETAIL = coalesce(p_run::text, 'null');
            END IF;
            RAISE EXCEPTION 'run % has ended (%): signal "%" was not stored', p_run, v_ended, p_name USING ERRCODE = 'SV010',
                DETAIL = json_build_object('run_id', p_run, 'status', v_ended, 'signal', p_name)::text;
        END IF;
        p_run := v_newest;
    END LOOP;
    INSERT INTO {schema}.message (run_id, kind, n, name, id, payload)
    VALUES (p_run, p_kind, nextval('{schema}.message_n'), p_name, p_id, p_payload)
    ON CONFLICT (run_id, kind, name, id) WHERE id IS NOT NULL DO NOTHING;
    stored := FOUND;
    IF stored AND owner IS NULL THEN
        UPDATE {schema}.task t
        SET ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(), wait_children = NULL, wait_failed = NULL,
            wait_signals = NULL
        WHERE t.run_id = p_run AND t.wait_kind IN (11, 15) AND p_name = ANY (t.wait_signals);
        woken := FOUND;
    END IF;
END $$;

-- SECURITY DEFINER: whoever may start runs may ask what they say of themselves, and needs no right on the views for it. Custom plan: prunes.
CREATE FUNCTION {schema}.progress(run uuid) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_run   uuid := {schema}.newest(run);
    v_found jsonb;
BEGIN
    SELECT jsonb_build_object('done', p.done, 'total', p.total, 'at', p.noted_at) INTO v_found
    FROM {schema}.progress_note p WHERE p.run_id = v_run ORDER BY p.pos DESC LIMIT 1;
    IF NOT FOUND AND NOT EXISTS (SELECT FROM {schema}.run r WHERE r.run_id = v_run) THEN
        RAISE EXCEPTION 'there is no run %', coalesce(run::text, 'null') USING ERRCODE = 'SV006', DETAIL = coalesce(run::text, 'null');
    END IF;
    RETURN v_found;
END $$;
COMMENT ON FUNCTION {schema}.progress(uuid) IS 'How far a run says that it is: done, total, at; null where it has not said. Of one that continued as a new run the newest';

-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.attributes(run uuid) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_run   uuid := {schema}.newest(run);
    v_start bytea;
BEGIN
    SELECT r.attributes INTO v_start FROM {schema}.run r WHERE r.run_id = v_run;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no run %', coalesce(run::text, 'null') USING ERRCODE = 'SV006', DETAIL = coalesce(run::text, 'null');
    END IF;
    RETURN coalesce({schema}.merged_attributes(v_start, (SELECT s.value FROM {schema}.attribute_set s WHERE s.run_id = v_run ORDER BY s.pos DESC LIMIT 1)), '{}');
END $$;
COMMENT ON FUNCTION {schema}.attributes(uuid) IS 'The attributes of a run, from its start and from itself; of one that continued as a new run the newest''s';

-- As in 0009, but for runs that went on: a batch has its runs as they were started, and of those the status and the result of the newest.
CREATE OR REPLACE FUNCTION {schema}.batch_results(p_batch text, p_after uuid DEFAULT NULL, p_limit int4 DEFAULT 1000)
RETURNS TABLE (run_id uuid, key text, status text, result bytea, ended_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    v_batch int8;
    v_after uuid;
BEGIN
    SELECT b.id, greatest(p_after, {schema}.id_floor(b.created_at - interval '2 minutes')) INTO v_batch, v_after FROM {schema}.batch b WHERE b.name = p_batch;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no batch "%"', p_batch USING ERRCODE = 'SV008';
    END IF;
    RETURN QUERY
        SELECT r.run_id, r.key,
               CASE WHEN o.status = 6 THEN coalesce(went.status, going.status, 'lost') ELSE coalesce({schema}.outcome_name(o.status), t.status, 'lost') END,
               CASE WHEN o.status = 6 THEN went.result ELSE o.result END, CASE WHEN o.status = 6 THEN went.ended_at ELSE o.ended_at END
        FROM {schema}.run r
        LEFT JOIN {schema}.outcome o ON o.run_id = r.run_id AND o.run_id > v_after
        LEFT JOIN {schema}.task_now t ON t.run_id = r.run_id AND o.run_id IS NULL
        LEFT JOIN LATERAL (SELECT e.* FROM {schema}.outcomes(ARRAY[r.run_id]) AS e WHERE o.status = 6) AS went ON true
        LEFT JOIN LATERAL (SELECT n.status FROM {schema}.task_now n WHERE o.status = 6 AND n.run_id = {schema}.newest(r.run_id)) AS going ON true
        WHERE r.batch = v_batch AND r.run_id > v_after ORDER BY r.run_id LIMIT least(greatest(p_limit, 0), 10000);
END $$;

-- ── updates are of one run ───────────────────────────────────────────────────────────────────────────────────
-- Custom plan: prunes.
CREATE FUNCTION {schema}.ended_as(p_run uuid) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    RETURN (SELECT {schema}.outcome_name(o.status) FROM {schema}.outcome o WHERE o.run_id = p_run);
END $$;
COMMENT ON FUNCTION {schema}.ended_as(uuid) IS 'Internal: how this very run ended, continued included; null while it has not';

-- As in 0018, but for runs that went on: those have ended.
CREATE OR REPLACE FUNCTION {schema}.admit(
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
        v_ended := {schema}.ended_as(p_run);
        IF v_ended IS NULL THEN
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

-- The same.
CREATE OR REPLACE FUNCTION {schema}.update_standing(p_run uuid, p_name text, p_id text) RETURNS TABLE (stage text, reply bytea, run_status text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan   -- custom: prunes
AS $$
DECLARE
    v_seq  int4;
    v_done record;
    v_open record;
BEGIN
    run_status := {schema}.ended_as(p_run);
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

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE
    worker   text := {role_worker_literal};
    client   text := {role_client_literal};
    operator text := {role_operator_literal};
    one      record;
BEGIN
    FOR one IN SELECT g.what, r.rolname FROM (VALUES
        ('SELECT ON {schema}.child_continued', ARRAY[worker]),
        ('EXECUTE ON FUNCTION {schema}.continue_run(uuid, uuid, int4, text, int2, bytea, interval, int4)', ARRAY[worker]),
        ('EXECUTE ON FUNCTION {schema}.newest(uuid), {schema}.progress(uuid), {schema}.attributes(uuid)', ARRAY[worker, client, operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
