-- deploy: pre            older code neither writes nor reads what is new; retry(uuid) is called by people, by that name it goes on
-- lock:   ACCESS EXCLUSIVE on run and on the view runs, brief: two columns without a default
-- undo:   DROP FUNCTION of each new name; DROP TABLE retried; retry as in 0008, runs as in 0022; ALTER TABLE {schema}.run DROP COLUMN forked_from, DROP COLUMN forked_seq
--
-- The history of a run that has ended never changes. So what goes on with it is another run: it copies what the first one had been given
-- before a point, and its code is replayed over that. The point is a delivery: all that came before the result of step seq did.
-- Then what operators call, one run or a slice of many.

ALTER TABLE {schema}.run ADD COLUMN forked_from uuid, ADD COLUMN forked_seq int4;
COMMENT ON COLUMN {schema}.run.forked_from IS 'Run whose history it began with; null: with none';
COMMENT ON COLUMN {schema}.run.forked_seq IS 'The first step of that one which it did not take over; null: it took over all';

-- As in 0022, with where its history comes from.
CREATE OR REPLACE VIEW {schema}.runs AS
SELECT r.run_id, r.key, w.name AS workflow, q.name AS queue, r.prio AS priority,
       coalesce((ARRAY['completed', 'failed', 'cancelled', 'terminated', 'timed_out', 'continued'])[o.status], t.status, 'lost') AS status,
       k.code AS wait, t.step, t.seq, t.attempt,
       r.created_at, o.ended_at, extract(epoch FROM o.ended_at - r.created_at)::float8 AS duration_s, o.steps,
       coalesce(o.worker, t.owner) AS worker,
       CASE WHEN o.status IN (1, 6) THEN {schema}.as_json(o.result, r.codec) END AS result,
       CASE WHEN o.status NOT IN (1, 6) THEN {schema}.as_json(o.result, r.codec) END AS error,
       {schema}.as_json(r.input, r.codec) AS input,
       r.parent_id, r.parent_seq,
       coalesce(o.version, t.version,
                (SELECT s.version FROM {schema}.served s WHERE s.worker = coalesce(o.worker, t.owner) AND s.workflow = r.workflow),
                (SELECT s.version FROM {schema}.served s WHERE s.workflow = r.workflow AND s.worker = (
                    SELECT p.worker FROM {schema}.step p WHERE p.run_id = r.run_id AND o.run_id IS NOT NULL ORDER BY p.seq DESC LIMIT 1))) AS version,
       coalesce((SELECT {schema}.merged_attributes(r.attributes, s.value) FROM {schema}.attribute_set s WHERE s.run_id = r.run_id ORDER BY s.pos DESC LIMIT 1),
                {schema}.as_json(r.attributes)) AS attributes,
       b.name AS batch,
       (SELECT jsonb_build_object('done', p.done, 'total', p.total, 'at', p.noted_at) FROM {schema}.progress_note p
        WHERE p.run_id = r.run_id ORDER BY p.pos DESC LIMIT 1) AS progress,
       r.forked_from, r.forked_seq
FROM {schema}.run r
LEFT JOIN {schema}.workflow w ON w.id = r.workflow
LEFT JOIN {schema}.outcome o ON o.run_id = r.run_id
LEFT JOIN {schema}.task_now t ON t.run_id = r.run_id
LEFT JOIN {schema}.queue q ON q.id = coalesce(t.queue, r.queue)
LEFT JOIN {schema}.wait_kind k ON k.id = t.wait
LEFT JOIN {schema}.batch b ON b.id = r.batch;
COMMENT ON COLUMN {schema}.runs.forked_from IS 'Run whose history it began with (fork, or retry of one that had ended); null: with none';
COMMENT ON COLUMN {schema}.runs.forked_seq IS 'The first step of that one which it did not take over';

CREATE TABLE {schema}.retried (
    run_id  uuid NOT NULL,
    made_id uuid NOT NULL,
    PRIMARY KEY (run_id)                               -- two that retry one run at once get one run
) PARTITION BY RANGE (run_id);
COMMENT ON TABLE {schema}.retried IS 'Which run goes on with one that had ended; insert only';
COMMENT ON COLUMN {schema}.retried.run_id IS 'The run that had ended';
COMMENT ON COLUMN {schema}.retried.made_id IS 'The run that goes on with it';
SELECT {schema}.make_partitions_of('retried');

-- ── forks ────────────────────────────────────────────────────────────────────────────────────────────────────
-- The step whose error ended a run: the last that failed with the same error, else the last delivery if that failed. What was cancelled after it
-- does not count. None: the workflow's own code raised, and all of the history stays. Of one that was cancelled, or timed out: where it was told so.
-- Custom plan: prunes.
CREATE FUNCTION {schema}.failed_seq(p_run uuid) RETURNS int4
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_error jsonb;
    v_seq   int4;
BEGIN
    IF {schema}.ended_as(p_run) IN ('cancelled', 'timed_out') THEN
        RETURN (SELECT s.seq FROM {schema}.step s WHERE s.run_id = p_run AND s.kind = 7 ORDER BY s.pos LIMIT 1);
    END IF;
    SELECT {schema}.as_json(o.result, r.codec) INTO v_error FROM {schema}.outcome o JOIN {schema}.run r ON r.run_id = o.run_id WHERE o.run_id = p_run AND o.status = 2;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT f.seq INTO v_seq
    FROM (SELECT s.seq, s.pos, {schema}.as_json(s.result) AS error FROM {schema}.step s WHERE s.run_id = p_run AND s.status = 2) AS f
    WHERE (f.error ->> 'type', f.error ->> 'message') IN ((v_error ->> 'type', v_error ->> 'message'), (v_error #>> '{cause,type}', v_error #>> '{cause,message}'))
    ORDER BY f.pos DESC LIMIT 1;
    IF NOT FOUND THEN
        SELECT l.seq INTO v_seq FROM (SELECT s.seq, s.status FROM {schema}.step s WHERE s.run_id = p_run AND s.status <> 3 ORDER BY s.pos DESC LIMIT 1) AS l WHERE l.status = 2;
    END IF;
    RETURN v_seq;
END $$;
COMMENT ON FUNCTION {schema}.failed_seq(uuid) IS 'Internal: the step whose error ended a failed run, or where it was told that it is cancelled; null where it was the code''s own';

-- Custom plan: prunes.
CREATE FUNCTION {schema}.cut_before(p_run uuid, p_seq int4, OUT pos int4, OUT why text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_last  int4;
    v_alive uuid;
BEGIN
    SELECT s.pos INTO pos FROM {schema}.step s WHERE s.run_id = p_run AND s.seq = p_seq;
    IF NOT FOUND THEN
        SELECT coalesce(max(s.pos) + 1, 0), coalesce(max(s.seq), -1) INTO pos, v_last FROM {schema}.step s WHERE s.run_id = p_run;
        IF p_seq < 0 OR p_seq > v_last + 1 AND {schema}.skippable(p_run, p_seq) IS NULL THEN
            why := format('its history has no step %s: the last one that is known is %s', p_seq, v_last);
            RETURN;
        END IF;
    END IF;
    SELECT c.run_id INTO v_alive
    FROM (SELECT k.parent_id, k.seq, k.run_id FROM {schema}.child k UNION ALL SELECT k.parent_id, k.seq, k.run_id FROM {schema}.child_continued k) AS c
    JOIN {schema}.step s ON s.run_id = c.parent_id AND s.seq = c.seq
    WHERE c.parent_id = p_run AND s.run_id = p_run AND s.kind = 4 AND s.pos < cut_before.pos AND EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = c.run_id) LIMIT 1;
    IF FOUND THEN
        why := format('its child %s was started before that and still lives: it reports to one parent alone; wait for its end, or fork before its start', v_alive);
    END IF;
END $$;
COMMENT ON FUNCTION {schema}.cut_before(uuid, int4) IS 'Internal: how many deliveries of a run came before the result of step seq (null: all), or why it can''t be forked there';

-- Not what was asked of it (cancellation): the new run is asked anew. That it was told so before the point (step kind 7) is history like the rest,
-- and so is what it had begun to undo (kind 6). Runs that a child went on as are found from the child.
-- Custom plan: prunes.
CREATE FUNCTION {schema}.copy_history(p_from uuid, p_to uuid, p_pos int4) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    INSERT INTO {schema}.step (run_id, started_at, ended_at, seq, pos, worker, kind, status, name, result)
    SELECT p_to, s.started_at, s.ended_at, s.seq, s.pos, s.worker, s.kind, s.status, s.name, s.result FROM {schema}.step s WHERE s.run_id = p_from AND s.pos < p_pos;
    INSERT INTO {schema}.attempt (run_id, seq, n, kind, started_at, ended_at, next_retry_at, worker, name, error, fingerprint)
    SELECT p_to, a.seq, a.n, a.kind, a.started_at, a.ended_at, a.next_retry_at, a.worker, a.name, a.error, a.fingerprint
    FROM {schema}.attempt a WHERE a.run_id = p_from AND a.seq IN (SELECT s.seq FROM {schema}.step s WHERE s.run_id = p_from AND s.pos < p_pos);
    -- children that were started and are joined later: they have ended, so they are counted as they would have been
    INSERT INTO {schema}.child (parent_id, seq, run_id)
    SELECT p_to, c.seq, c.run_id FROM {schema}.child c WHERE c.parent_id = p_from
      AND c.seq IN (SELECT s.seq FROM {schema}.step s WHERE s.run_id = p_from AND s.pos < p_pos AND s.kind = 4);
    INSERT INTO {schema}.child_done (parent_id, n, failed)
    SELECT p_to, count(*), count(*) FILTER (WHERE o.status IS DISTINCT FROM 'completed') FROM {schema}.child c LEFT JOIN {schema}.outcomes(ARRAY[c.run_id]) AS o ON true
    WHERE c.parent_id = p_to HAVING count(*) > 0;
    -- all messages: those that were not consumed before the point are there for what comes after it
    INSERT INTO {schema}.message (run_id, kind, n, sent_at, name, id, payload)
    SELECT p_to, m.kind, m.n, m.sent_at, m.name, m.id, m.payload FROM {schema}.message m WHERE m.run_id = p_from AND m.kind = 1;
    INSERT INTO {schema}.consumed (run_id, kind, n, seq, name)
    SELECT p_to, c.kind, c.n, c.seq, c.name FROM {schema}.consumed c WHERE c.run_id = p_from AND c.kind = 1
      AND c.seq IN (SELECT s.seq FROM {schema}.step s WHERE s.run_id = p_from AND s.pos < p_pos AND s.kind = 5);
    INSERT INTO {schema}.update_accepted (run_id, n, sent_at, seq, name, id)
    SELECT p_to, u.n, u.sent_at, u.seq, u.name, u.id FROM {schema}.update_accepted u WHERE u.run_id = p_from
      AND u.seq IN (SELECT s.seq FROM {schema}.step s WHERE s.run_id = p_from AND s.pos < p_pos AND s.kind = 9);
    -- handlers that had ended for certain; the others end again
    INSERT INTO {schema}.update_done (run_id, ended_at, seq, status, result)
    SELECT p_to, d.ended_at, d.seq, d.status, d.result FROM {schema}.update_done d WHERE d.run_id = p_from
      AND d.seq IN (SELECT s.seq FROM {schema}.step s WHERE s.run_id = p_from AND s.pos < p_pos AND s.kind = 9)
      AND d.ended_at < (SELECT s.ended_at FROM {schema}.step s WHERE s.run_id = p_from AND s.pos = p_pos - 1);
    INSERT INTO {schema}.publication (run_id, published_at, pos, key, value)
    SELECT p_to, p.published_at, p.pos, p.key, p.value FROM {schema}.publication p WHERE p.run_id = p_from AND p.pos < p_pos;
    INSERT INTO {schema}.progress_note (run_id, noted_at, pos, done, total)
    SELECT p_to, p.noted_at, p.pos, p.done, p.total FROM {schema}.progress_note p WHERE p.run_id = p_from AND p.pos < p_pos;
    INSERT INTO {schema}.attribute_set (run_id, set_at, pos, value)
    SELECT p_to, a.set_at, a.pos, a.value FROM {schema}.attribute_set a WHERE a.run_id = p_from AND a.pos < p_pos;
END $$;
COMMENT ON FUNCTION {schema}.copy_history(uuid, uuid, int4) IS 'Internal: the first deliveries of one run as the history of another';

-- p_id may be there already: its first try arrived, and only the answer was lost.
CREATE FUNCTION {schema}.fork_run(
    p_run uuid, p_id uuid, p_seq int4, p_input bytea, p_workflow text, p_verb text, p_reason text, p_actor text,
    OUT did boolean, OUT state text, OUT why text, OUT made uuid, OUT owner int4)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_from  record;
    v_to    record;
    v_cut   record;
    v_input bytea;
    v_key   text;
    v_facts bytea;
BEGIN
    did := false;
    SELECT r.*, w.name AS named INTO v_from FROM {schema}.run r JOIN {schema}.workflow w ON w.id = r.workflow WHERE r.run_id = p_run;
    IF NOT FOUND THEN
        state := 'unknown';
        RETURN;
    END IF;
    made := p_id;
    IF EXISTS (SELECT FROM {schema}.run r WHERE r.run_id = p_id) THEN
        state := 'forked';
        RETURN;
    END IF;
    SELECT w.id, w.name, w.queue, w.timeout_s INTO v_to FROM {schema}.workflow w WHERE w.name = coalesce(p_workflow, v_from.named);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no worker has ever registered a workflow named "%"', p_workflow USING ERRCODE = 'SV001',
            HINT = 'start a worker whose app defines it, or check the name';
    END IF;
    IF v_from.codec <> 0 AND (p_input IS NOT NULL OR v_to.name <> v_from.named) THEN
        RAISE EXCEPTION 'the input of run % is encoded by codec %: it can only be forked with it', p_run, v_from.codec USING ERRCODE = '22023';
    ELSIF p_input IS NULL AND v_to.name = v_from.named THEN
        v_input := v_from.input;
    ELSE
        v_input := ({schema}.as_inputs(v_to.name, ARRAY[convert_from(coalesce(p_input, v_from.input), 'UTF8')::jsonb]))[1];
    END IF;
    SELECT c.pos, c.why INTO v_cut FROM {schema}.cut_before(p_run, p_seq) AS c;
    IF v_cut.why IS NOT NULL THEN
        state := 'refused';
        why := v_cut.why;
        made := NULL;
        RETURN;
    END IF;
    IF p_verb = 'retry' THEN                           -- it goes on with what the key stands for, unless that names another run by now
        UPDATE {schema}.run_key k SET run_id = p_id WHERE k.workflow = v_from.workflow AND k.key = v_from.key AND k.run_id = p_run RETURNING k.key INTO v_key;
    END IF;
    INSERT INTO {schema}.run (run_id, created_at, workflow, queue, prio, codec, key, input, attributes, forked_from, forked_seq)
    VALUES (p_id, clock_timestamp(), v_to.id, CASE WHEN v_to.name = v_from.named THEN v_from.queue ELSE v_to.queue END, v_from.prio, v_from.codec, v_key, v_input,
            v_from.attributes, p_run, p_seq);
    PERFORM {schema}.copy_history(p_run, p_id, v_cut.pos);
    v_facts := convert_to({schema}.merged_attributes(v_from.attributes, (
        SELECT a.value FROM {schema}.attribute_set a WHERE a.run_id = p_id ORDER BY a.pos DESC LIMIT 1))::text, 'UTF8');
    IF v_facts IS NOT NULL THEN
        PERFORM {schema}.index_attributes(ARRAY[p_id], v_facts);
    END IF;
    INSERT INTO {schema}.task (run_id, ready_at, cancel_at, queue, workflow, prio, key, resumed, input)
    SELECT r.run_id, r.created_at, r.created_at + v_to.timeout_s * interval '1 s', r.queue, r.workflow, r.prio, r.key, CASE WHEN v_cut.pos > 0 THEN 1 ELSE 0 END,
           CASE WHEN length(r.input) <= 1024 THEN r.input END
    FROM {schema}.run r WHERE r.run_id = p_id;
    PERFORM {schema}.note(p_run, p_verb, p_reason, p_actor, jsonb_build_object(
        'run', p_id, 'seq', p_seq, 'kept', v_cut.pos, 'workflow', p_workflow, 'input', CASE WHEN p_input IS NOT NULL THEN {schema}.as_json(v_input) END));
    did := true;
    state := 'forked';
END $$;
COMMENT ON FUNCTION {schema}.fork_run(uuid, uuid, int4, bytea, text, text, text, text) IS
    'Internal: start a run whose history is what another one had been given before the result of step seq (null: all of it)';

-- Of a run that has ended: another one that goes on with it, once, whoever asks how often.
CREATE FUNCTION {schema}.retry_run(
    p_run uuid, p_id uuid, p_reason text, p_actor text, OUT did boolean, OUT state text, OUT why text, OUT made uuid, OUT owner int4)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    SELECT r.* INTO did, state, why, made, owner FROM {schema}.retry_live(p_run, p_reason, p_actor) AS r;
    IF state <> 'ended' THEN
        RETURN;
    ELSIF why IN ('completed', 'continued') THEN
        state := 'refused';
        why := format('it has %s: there is nothing to try again; fork goes on from a step of it', why);
        RETURN;
    ELSIF EXISTS (SELECT FROM {schema}.step s WHERE s.run_id = p_run AND s.kind = 6) THEN
        state := 'refused';
        why := 'it has undone what it had done: start it anew, or fork it before the first step that is to be done again';
        RETURN;
    END IF;
    INSERT INTO {schema}.retried (run_id, made_id) VALUES (p_run, p_id) ON CONFLICT (run_id) DO NOTHING;
    IF NOT FOUND THEN
        SELECT t.made_id INTO made FROM {schema}.retried t WHERE t.run_id = p_run;
        state := 'retried';
        why := NULL;
        RETURN;
    END IF;
    SELECT f.* INTO did, state, why, made, owner FROM {schema}.fork_run(p_run, p_id, {schema}.failed_seq(p_run), NULL, NULL, 'retry', p_reason, p_actor) AS f;
    IF NOT did THEN
        DELETE FROM {schema}.retried t WHERE t.run_id = p_run AND t.made_id = p_id;
    END IF;
END $$;
COMMENT ON FUNCTION {schema}.retry_run(uuid, uuid, text, text) IS
    'Internal: let a run that is parked or waits for a retry go on at once; of one that failed, was cancelled or timed out make one that goes on with it';

-- ── one run or many ──────────────────────────────────────────────────────────────────────────────────────────
-- A run that went on as another one: the newest is paused, resumed, retried. What names a step is of that very run.
CREATE FUNCTION {schema}.operate_one(
    p_verb text, p_run uuid, p_id uuid, p_seq int4, p_payload bytea, p_options jsonb, p_reason text, p_actor text,
    OUT did boolean, OUT state text, OUT why text, OUT made uuid, OUT owner int4)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF p_verb IN ('pause', 'resume', 'retry') THEN
        p_run := {schema}.newest(p_run);
    END IF;
    CASE p_verb
        WHEN 'pause' THEN SELECT r.* INTO did, state, why, made, owner FROM {schema}.pause_run(p_run, p_reason, p_actor) AS r;
        WHEN 'resume' THEN SELECT r.* INTO did, state, why, made, owner FROM {schema}.resume_run(p_run, p_reason, p_actor) AS r;
        WHEN 'retry' THEN SELECT r.* INTO did, state, why, made, owner FROM {schema}.retry_run(p_run, coalesce(p_id, {schema}.new_id()), p_reason, p_actor) AS r;
        WHEN 'fork' THEN SELECT r.* INTO did, state, why, made, owner
            FROM {schema}.fork_run(p_run, coalesce(p_id, {schema}.new_id()), p_seq, p_payload, p_options ->> 'workflow', 'fork', p_reason, p_actor) AS r;
        WHEN 'skip' THEN SELECT r.* INTO did, state, why, made, owner FROM {schema}.skip_run(p_run, p_seq, p_payload, p_reason, p_actor) AS r;
        WHEN 'edit_retry' THEN SELECT r.* INTO did, state, why, made, owner
            FROM {schema}.edit_run(p_run, p_seq, coalesce(p_options -> 'policy', '{}'), (p_options ->> 'next_in')::float8, p_reason, p_actor) AS r;
        ELSE RAISE EXCEPTION 'there is no verb "%"', p_verb USING ERRCODE = '22023';
    END CASE;
END $$;
COMMENT ON FUNCTION {schema}.operate_one(text, uuid, uuid, int4, bytea, jsonb, text, text) IS 'Internal: one verb on one run; raises for bad arguments alone';

CREATE FUNCTION {schema}.decide(
    p_verb text, p_run uuid, p_id uuid, p_seq int4, p_payload bytea, p_options jsonb, p_reason text, p_actor text,
    OUT did boolean, OUT state text, OUT made uuid, OUT owner int4, OUT workflow text, OUT queue text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE one record;
BEGIN
    SELECT r.* INTO one FROM {schema}.operate_one(p_verb, p_run, p_id, p_seq, p_payload, p_options, p_reason, p_actor) AS r;
    IF one.state = 'unknown' THEN
        RAISE EXCEPTION 'there is no run %', coalesce(p_run::text, 'null') USING ERRCODE = 'SV006', DETAIL = coalesce(p_run::text, 'null');
    ELSIF one.state = 'ended' THEN
        RAISE EXCEPTION 'run % has ended (%): % changes nothing of it', p_run, one.why, p_verb USING ERRCODE = 'SV029',
            DETAIL = json_build_object('run_id', p_run, 'status', one.why, 'verb', p_verb)::text, HINT = 'retry or fork go on with it as another run';
    ELSIF one.state = 'refused' THEN
        RAISE EXCEPTION 'run %: % is not possible: %', p_run, p_verb, one.why USING ERRCODE = 'SV030',
            DETAIL = json_build_object('run_id', p_run, 'verb', p_verb, 'why', one.why)::text;
    END IF;
    did := one.did; state := one.state; made := one.made; owner := one.owner;
    IF did THEN                                        -- who may have work now
        SELECT w.name, q.name INTO workflow, queue
        FROM {schema}.task t JOIN {schema}.workflow w ON w.id = t.workflow LEFT JOIN {schema}.queue q ON q.id = t.queue AND t.queue <> w.queue
        WHERE t.run_id = coalesce(made, {schema}.newest(p_run)) AND t.owner IS NULL AND t.ready_at <= clock_timestamp();
    END IF;
END $$;
COMMENT ON FUNCTION {schema}.decide(text, uuid, uuid, int4, bytea, jsonb, text, text) IS
    'Internal: one verb on one run; raises SV006, SV029 where it has ended, SV030 where it can''t be done; whom to tell';

CREATE FUNCTION {schema}.tell(p_notify boolean, p_owner int4, p_workflow text, p_queue text) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$ SELECT {schema}.announce_signal(p_owner, p_workflow IS NOT NULL, p_workflow, p_queue) WHERE p_notify $$;
COMMENT ON FUNCTION {schema}.tell(boolean, int4, text, text) IS 'Internal: announce, at the commit, what a verb has made ready or who is to look';

-- SECURITY DEFINER: a client may pause, resume, retry and fork runs and must not be able to write the tables otherwise.
CREATE FUNCTION {schema}.operate(p_verb text, p_run uuid, p_id uuid, p_seq int4, p_payload bytea, p_options jsonb, p_reason text, p_actor text)
RETURNS TABLE (did boolean, state text, made uuid, owner int4, workflow text, queue text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF p_verb IS NULL OR p_verb NOT IN ('pause', 'resume', 'retry', 'fork') THEN
        RAISE EXCEPTION '"%" is none of pause, resume, retry, fork', p_verb USING ERRCODE = '22023';
    END IF;
    RETURN QUERY SELECT d.did, d.state, d.made, d.owner, d.workflow, d.queue FROM {schema}.decide(p_verb, p_run, p_id, p_seq, p_payload, p_options, p_reason, p_actor) AS d;
END $$;
COMMENT ON FUNCTION {schema}.operate(text, uuid, uuid, int4, bytea, jsonb, text, text) IS 'pause, resume, retry, fork for programs: what has come of it, and who is to be told';

-- SECURITY DEFINER: an operator may change what a step comes to, and must not be able to write the tables otherwise.
CREATE FUNCTION {schema}.intervene(p_verb text, p_run uuid, p_id uuid, p_seq int4, p_payload bytea, p_options jsonb, p_reason text, p_actor text)
RETURNS TABLE (did boolean, state text, made uuid, owner int4, workflow text, queue text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF p_verb IS NULL OR p_verb NOT IN ('skip', 'edit_retry') THEN
        RAISE EXCEPTION '"%" is none of skip, edit_retry', p_verb USING ERRCODE = '22023';
    END IF;
    RETURN QUERY SELECT d.did, d.state, d.made, d.owner, d.workflow, d.queue FROM {schema}.decide(p_verb, p_run, p_id, p_seq, p_payload, p_options, p_reason, p_actor) AS d;
END $$;
COMMENT ON FUNCTION {schema}.intervene(text, uuid, uuid, int4, bytea, jsonb, text, text) IS 'skip, edit_retry for programs: what has come of it, and who is to be told';

-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.step_of(p_run uuid, p_seq int4) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT {schema}.skippable(p_run, p_seq) $$;
COMMENT ON FUNCTION {schema}.step_of(uuid, int4) IS 'Name of a step that was called and has no result; null where that is not known';

-- As cancel_many: the owners' rows first where runs are taken from them, then the tasks; what somebody else has locked is left for the next call.
-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.operate_many(
    p_verb text, p_runs uuid[], p_seq int4 DEFAULT NULL, p_payload bytea DEFAULT NULL, p_options jsonb DEFAULT '{}', p_reason text DEFAULT NULL, p_actor text DEFAULT NULL)
RETURNS TABLE (run_id uuid, did boolean, state text, why text, made uuid, owner int4)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
AS $$
#variable_conflict use_column
DECLARE
    v_owners int4[];
    v_free   uuid[];
    v_held   uuid[] := '{}';
    v_ended  uuid[];
    one      uuid;
BEGIN
    IF cardinality(p_runs) > 500 THEN
        RAISE EXCEPTION '% runs are too many for one transaction, at most 500', cardinality(p_runs) USING ERRCODE = '22023', HINT = 'do them in slices';
    END IF;
    -- those that are not live first: a key that goes over to a new run is locked before any task
    v_ended := ARRAY(SELECT u.id FROM unnest(p_runs) AS u (id) WHERE NOT EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = u.id));
    FOR one IN SELECT DISTINCT u.id FROM unnest(v_ended) AS u (id) ORDER BY u.id LOOP
        RETURN QUERY SELECT one, r.did, r.state, r.why, r.made, r.owner
                     FROM {schema}.operate_one(p_verb, one, NULL, p_seq, p_payload, p_options, p_reason, p_actor) AS r;
    END LOOP;
    IF p_verb = 'skip' THEN
        v_owners := ARRAY(SELECT w.id FROM {schema}.worker w
                          WHERE w.id IN (SELECT t.owner FROM {schema}.task t WHERE t.run_id = ANY (p_runs)) ORDER BY w.id FOR UPDATE);
    END IF;
    v_free := ARRAY(SELECT t.run_id FROM {schema}.task t
                    WHERE t.run_id = ANY (p_runs) AND t.run_id <> ALL (v_ended) AND (p_verb <> 'skip' OR t.owner IS NULL OR t.owner = ANY (v_owners))
                    ORDER BY t.run_id FOR NO KEY UPDATE SKIP LOCKED);
    FOREACH one IN ARRAY v_free LOOP
        RETURN QUERY SELECT one, r.did, r.state, r.why, r.made, r.owner
                     FROM {schema}.operate_one(p_verb, one, NULL, p_seq, p_payload, p_options, p_reason, p_actor) AS r;
    END LOOP;
    v_held := ARRAY(SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (p_runs) AND t.run_id <> ALL (v_free) AND t.run_id <> ALL (v_ended));
    RETURN QUERY SELECT u.id, false, 'locked', NULL::text, NULL::uuid, NULL::int4 FROM unnest(v_held) AS u (id);
END $$;
COMMENT ON FUNCTION {schema}.operate_many(text, uuid[], int4, bytea, jsonb, text, text) IS
    'pause, resume, retry, fork, skip or edit_retry on at most 500 runs in one transaction; a row for each, also for those that are refused, or locked by somebody else';

-- ── what people call ─────────────────────────────────────────────────────────────────────────────────────────
-- SECURITY DEFINER, all of them: as operate and intervene.
CREATE FUNCTION {schema}.pause(run uuid, reason text DEFAULT NULL, actor text DEFAULT NULL, notify boolean DEFAULT false) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE d record;
BEGIN
    SELECT * INTO d FROM {schema}.decide('pause', run, NULL, NULL, NULL, '{}', reason, actor);
    PERFORM {schema}.tell(notify AND d.did, d.owner, d.workflow, d.queue);
    RETURN d.state;
END $$;
COMMENT ON FUNCTION {schema}.pause(uuid, text, text, boolean) IS
    'Stop a live run until somebody resumes it: paused, or pausing while its worker finishes the steps that it executes';

CREATE FUNCTION {schema}.resume(run uuid, reason text DEFAULT NULL, actor text DEFAULT NULL, notify boolean DEFAULT false) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE d record;
BEGIN
    SELECT * INTO d FROM {schema}.decide('resume', run, NULL, NULL, NULL, '{}', reason, actor);
    PERFORM {schema}.tell(notify AND d.did, d.owner, d.workflow, d.queue);
    RETURN d.did;
END $$;
COMMENT ON FUNCTION {schema}.resume(uuid, text, text, boolean) IS 'Let a paused run go on where it was; false when it is not paused';

DROP FUNCTION {schema}.retry(uuid);
CREATE FUNCTION {schema}.retry(run uuid, reason text DEFAULT NULL, actor text DEFAULT NULL, notify boolean DEFAULT false) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE d record;
BEGIN
    SELECT * INTO d FROM {schema}.decide('retry', run, NULL, NULL, NULL, '{}', reason, actor);
    PERFORM {schema}.tell(notify AND d.did, d.owner, d.workflow, d.queue);
    RETURN d.made;
END $$;
COMMENT ON FUNCTION {schema}.retry(uuid, text, text, boolean) IS
    'Try again now: a run that is parked, its crashes forgiven, or whose step waits for its next try, goes on at once; of one that ended otherwise than completed a new run goes on from the step that failed. Returns the run that goes on';

CREATE FUNCTION {schema}.fork(
    run uuid, seq int4, input jsonb DEFAULT NULL, workflow text DEFAULT NULL, reason text DEFAULT NULL, actor text DEFAULT NULL, notify boolean DEFAULT false) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE d record;
BEGIN
    SELECT * INTO d FROM {schema}.decide('fork', run, NULL, fork.seq, convert_to(fork.input::text, 'UTF8'), jsonb_build_object('workflow', fork.workflow), reason, actor);
    PERFORM {schema}.tell(notify AND d.did, d.owner, d.workflow, d.queue);
    RETURN d.made;
END $$;
COMMENT ON FUNCTION {schema}.fork(uuid, int4, jsonb, text, text, text, boolean) IS
    'Start a new run that has been given what this one was before the result of step seq, with another input or workflow where they are given; returns it. The run itself goes on or stays as it is';

CREATE FUNCTION {schema}.skip(run uuid, seq int4, result jsonb DEFAULT NULL, reason text DEFAULT NULL, actor text DEFAULT NULL, notify boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE d record;
BEGIN
    IF {schema}.too_deep(skip.result) THEN
        RAISE EXCEPTION 'the result is nested deeper than 64 levels, the most that every reader of JSON copes with' USING ERRCODE = '22023';
    END IF;
    SELECT * INTO d FROM {schema}.decide('skip', run, NULL, skip.seq, convert_to(coalesce(skip.result, 'null')::text, 'UTF8'), '{}', reason, actor);
    PERFORM {schema}.tell(notify AND d.did, d.owner, d.workflow, d.queue);
END $$;
COMMENT ON FUNCTION {schema}.skip(uuid, int4, jsonb, text, text, boolean) IS
    'Give a step that failed, crashed or hangs a result, in place of executing it again; its run goes on. A worker that executes it is told that the run is not its own any more';

CREATE FUNCTION {schema}.edit_retry(
    run uuid, seq int4, max_attempts int4 DEFAULT NULL, initial float8 DEFAULT NULL, factor float8 DEFAULT NULL, maximum float8 DEFAULT NULL, next_in float8 DEFAULT NULL,
    reason text DEFAULT NULL, actor text DEFAULT NULL, notify boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE d record;
BEGIN
    SELECT * INTO d FROM {schema}.decide('edit_retry', run, NULL, edit_retry.seq, NULL, jsonb_build_object('next_in', next_in, 'policy', jsonb_strip_nulls(
        jsonb_build_object('max_attempts', max_attempts, 'initial', initial, 'factor', factor, 'maximum', maximum))), reason, actor);
    PERFORM {schema}.tell(notify AND d.did, d.owner, d.workflow, d.queue);
END $$;
COMMENT ON FUNCTION {schema}.edit_retry(uuid, int4, int4, float8, float8, float8, float8, text, text, boolean) IS
    'Change the retry policy of one step that failed and has no result yet, or when its next try is due (next_in, seconds from now), for this run alone';

-- ── rights: what is not named here nobody but the owner may use ──────────────────────────────────────────────
DO $$
DECLARE
    worker   text := {role_worker_literal};
    client   text := {role_client_literal};
    viewer   text := {role_viewer_literal};
    operator text := {role_operator_literal};
    one      record;
BEGIN
    FOR one IN SELECT g.what, r.rolname FROM (VALUES
        ('SELECT, UPDATE, DELETE ON {schema}.pause, {schema}.changed', ARRAY[worker]),
        ('EXECUTE ON FUNCTION {schema}.requests_of(int4, int8[]), {schema}.put_aside(uuid[])', ARRAY[worker]),
        ('EXECUTE ON FUNCTION {schema}.operate(text, uuid, uuid, int4, bytea, jsonb, text, text), {schema}.pause(uuid, text, text, boolean), '
         '{schema}.resume(uuid, text, text, boolean), {schema}.retry(uuid, text, text, boolean), '
         '{schema}.fork(uuid, int4, jsonb, text, text, text, boolean)', ARRAY[worker, client, operator]),
        ('EXECUTE ON FUNCTION {schema}.intervene(text, uuid, uuid, int4, bytea, jsonb, text, text), '
         '{schema}.operate_many(text, uuid[], int4, bytea, jsonb, text, text), {schema}.skip(uuid, int4, jsonb, text, text, boolean), {schema}.step_of(uuid, int4), '
         '{schema}.edit_retry(uuid, int4, int4, float8, float8, float8, float8, text, text, boolean)', ARRAY[operator]),
        ('SELECT ON {schema}.audits, {schema}.pauses', ARRAY[worker, viewer, operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
