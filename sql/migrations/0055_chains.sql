-- deploy: pre            older workers do not know of children that earlier runs of a chain started: those go on when it ends, as before
-- lock:   SHARE on message: signals wait, a second per million of them
-- undo:   was_sent as in 0015, children_now and close_children as in 0023, fork_run as in 0031, request_cancel as in 0032, continue_run as in 0026,
--         send as in 0023, send_signals as in 0036; DROP FUNCTION {schema}.sent_before(uuid[], text[], text[]); DROP TABLE {schema}.child_kept;
--         DROP INDEX {schema}.message_chain_idx
--
-- What a run that goes on as a new one has to leave to its successor: the ids of signals that it was given, so that none is given twice to a chain, and the
-- children that it started, so that who cancels or ends the chain ends them. Chains that are there already begin with their next run.

-- ── signals ──────────────────────────────────────────────────────────────────────────────────────────────────
CREATE INDEX message_chain_idx ON {schema}.message (chain, name, id) WHERE chain IS NOT NULL AND id IS NOT NULL;

-- The first run of a chain has no mark, nor have its messages; all later ones have, in whichever partition since. Custom plan: prunes the partitions before.
CREATE FUNCTION {schema}.sent_before(p_chains uuid[], p_names text[], p_ids text[]) RETURNS boolean[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE v_first uuid := (SELECT min(u.id::text)::uuid FROM unnest(p_chains) AS u (id));
BEGIN
    RETURN ARRAY(
        SELECT coalesce(f.there, l.there, false)
        FROM unnest(p_chains, p_names, p_ids) WITH ORDINALITY AS u (chain, name, id, at)
        LEFT JOIN LATERAL (SELECT true AS there FROM {schema}.message m
                           WHERE m.run_id = u.chain AND m.run_id = ANY (p_chains) AND m.kind = 1 AND m.name = u.name AND m.id = u.id LIMIT 1) AS f ON true
        LEFT JOIN LATERAL (SELECT true AS there FROM {schema}.message m
                           WHERE m.chain = u.chain AND m.run_id >= v_first AND m.name = u.name AND m.id = u.id LIMIT 1) AS l ON f.there IS NULL
        ORDER BY u.at);
END $$;
COMMENT ON FUNCTION {schema}.sent_before(uuid[], text[], text[]) IS
    'Internal: of signals to runs that go on with others, by chain, name and id: which of them some run of their chain has, as far as its history is kept';

-- As in 0015, but for runs that go on with others. Custom plan: prunes.
CREATE OR REPLACE FUNCTION {schema}.was_sent(p_run uuid, p_kind int2, p_name text, p_id text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    RETURN p_id IS NOT NULL AND (
        EXISTS (SELECT FROM {schema}.message m WHERE m.run_id = p_run AND m.kind = p_kind AND m.name = p_name AND m.id = p_id)
        OR coalesce(({schema}.sent_before(ARRAY(SELECT r.chain FROM {schema}.run r WHERE r.run_id = p_run AND r.chain IS NOT NULL), ARRAY[p_name], ARRAY[p_id]))[1], false));
END $$;
COMMENT ON FUNCTION {schema}.was_sent(uuid, int2, text, text) IS 'Internal: whether a run that has ended, or one that it goes on with, has a message with that id';

-- As in 0023, but for what earlier runs of the chain have.
CREATE OR REPLACE FUNCTION {schema}.send(
    p_run uuid, p_kind int2, p_name text, p_payload bytea, p_id text, OUT stored boolean, OUT owner int4, OUT woken boolean, OUT workflow text, OUT queue text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_ended  text;
    v_newest uuid;
    v_chain  uuid;
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
        SELECT t.owner, w.name, q.name, t.chain INTO owner, workflow, queue, v_chain
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
    IF v_chain IS NOT NULL AND p_id IS NOT NULL AND ({schema}.sent_before(ARRAY[v_chain], ARRAY[p_name], ARRAY[p_id]))[1] THEN
        RETURN;                                        -- an earlier run of the chain was given it
    END IF;
    INSERT INTO {schema}.message (run_id, kind, n, name, id, payload, chain)
    VALUES (p_run, p_kind, nextval('{schema}.message_n'), p_name, p_id, p_payload, v_chain)
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

-- As in 0036, but for what earlier runs of the chains have.
-- SECURITY DEFINER: as in 0036.
CREATE OR REPLACE FUNCTION {schema}.send_signals(p_runs uuid[], p_names text[], p_payloads bytea[], p_ids text[])
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
    v_chain uuid[];
    v_known boolean[];
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
    SELECT array_agg(l.run_id ORDER BY l.run_id), array_agg(l.owner ORDER BY l.run_id), array_agg(l.flow ORDER BY l.run_id), array_agg(l.queue ORDER BY l.run_id),
           array_agg(l.chain ORDER BY l.run_id)
    INTO v_found, v_owner, v_flow, v_queue, v_chain
    FROM (
        SELECT t.run_id, t.owner, w.name AS flow, q.name AS queue, t.chain
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
    IF num_nonnulls(VARIADIC v_chain) > 0 THEN
        v_chain := ARRAY(SELECT v_chain[array_position(v_found, u.run_id)] FROM unnest(p_runs) WITH ORDINALITY AS u (run_id, at) ORDER BY u.at);
        v_known := {schema}.sent_before(v_chain, p_names, p_ids);
    ELSE
        v_chain := NULL;
    END IF;
    WITH sent AS MATERIALIZED (
        SELECT o.*, nextval('{schema}.message_n') AS n
        FROM (SELECT u.* FROM unnest(p_runs, p_names, p_payloads, p_ids, v_chain, v_known) WITH ORDINALITY AS u (run_id, name, payload, id, chain, known, at)
              ORDER BY u.at) AS o
    ), kept AS (
        INSERT INTO {schema}.message (run_id, kind, n, name, id, payload, chain)
        SELECT e.run_id, 1, e.n, e.name, e.id, e.payload, e.chain FROM sent e WHERE e.known IS NOT TRUE ORDER BY e.at
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

-- ── children ─────────────────────────────────────────────────────────────────────────────────────────────────
CREATE TABLE {schema}.child_kept (
    heir_id uuid NOT NULL,
    run_id  uuid NOT NULL,
    PRIMARY KEY (heir_id, run_id)
) PARTITION BY RANGE (heir_id);
COMMENT ON TABLE {schema}.child_kept IS
    'Children that earlier runs of a chain had started and that lived when it went on, but for those that no end of their parent reaches; insert only';
COMMENT ON COLUMN {schema}.child_kept.heir_id IS 'The run that went on: its end is that of their parent';
COMMENT ON COLUMN {schema}.child_kept.run_id IS 'The child, or the newest of its own chain by then';
SELECT {schema}.make_partitions_of('child_kept');
COMMENT ON COLUMN {schema}.task.resumed IS
    '0 no history, 1 has history, 2 taken from a dead worker, 3 woken by an update, 4 slept and waited for nothing else, 5 no history, but children that earlier runs of its chain had started';

CREATE OR REPLACE VIEW {schema}.children_now AS
SELECT c.parent_id, c.run_id FROM {schema}.child c UNION ALL SELECT c.parent_id, c.run_id FROM {schema}.child_continued c
UNION ALL SELECT k.heir_id, {schema}.newest(k.run_id) FROM {schema}.child_kept k;
COMMENT ON VIEW {schema}.children_now IS 'Internal: children of runs, and of those that they go on with, and the runs that those went on as';
COMMENT ON COLUMN {schema}.children_now.parent_id IS 'The run that started the child, or one that goes on with that';

-- As in 0032, but for children that go on as other runs meanwhile, and for what has inherited children and has not begun.
CREATE OR REPLACE FUNCTION {schema}.request_cancel(p_runs uuid[], p_reason text, p_actor text) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_level uuid[] := p_runs;
    v_live  uuid[];
    v_on    uuid[];
    v_all   uuid[] := '{}';
    v_dead  uuid[] := '{}';
BEGIN
    LOOP
        v_live := ARRAY(SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (v_level) AND t.cancel_to IS NULL ORDER BY t.run_id FOR NO KEY UPDATE);
        -- a further statement: what went on as another run while this waited for its row, for that one is nobody's child yet in what was read above
        v_on := ARRAY(SELECT n.id FROM unnest(v_level) AS u (id) CROSS JOIN LATERAL {schema}.newest(u.id) AS n (id)
                      WHERE u.id <> ALL (v_live) AND NOT EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = u.id) AND n.id <> u.id);
        EXIT WHEN v_live = '{}' AND v_on = '{}';
        -- a paused run goes on, to be told; what the engine had put aside before is that again
        WITH was AS (DELETE FROM {schema}.pause p WHERE p.run_id = ANY (v_live) RETURNING p.run_id, p.wait_kind, p.wait_detail, p.wait_since)
        UPDATE {schema}.task t SET ready_at = 'infinity', wait_kind = was.wait_kind, wait_detail = was.wait_detail, wait_since = was.wait_since
        FROM was WHERE t.run_id = was.run_id AND t.owner IS NULL AND t.wait_kind = 7 AND was.wait_kind BETWEEN 19 AND 23;
        UPDATE {schema}.task t SET cancel_to = coalesce(t.owner, 0) WHERE t.run_id = ANY (v_live) AND (t.owner IS NOT NULL OR t.wait_kind BETWEEN 19 AND 23);
        UPDATE {schema}.task t
        SET cancel_to = 0, ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(),
            wait_children = NULL, wait_failed = NULL, wait_signals = NULL
        WHERE t.run_id = ANY (v_live) AND t.cancel_to IS NULL;
        INSERT INTO {schema}.cancellation (run_id, how, actor, reason) SELECT u.id, 3, p_actor, p_reason FROM unnest(v_live) AS u (id);
        -- no code of theirs has to be told
        v_dead := v_dead || ARRAY(SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (v_live) AND t.owner IS NULL
                                  AND (t.resumed IN (0, 5) OR {schema}.wedged(t.run_id, t.wait_kind, t.resumed, t.version)));
        v_all := v_all || v_live;
        -- a further statement than the marks: a child that started before is there, and one that starts later sees its parent's mark
        v_level := v_on || ARRAY(SELECT c.run_id FROM {schema}.children_now AS c JOIN {schema}.task t ON t.run_id = c.run_id
                         WHERE c.parent_id = ANY (v_live) AND t.parent_close IS DISTINCT FROM 1);
    END LOOP;
    IF v_dead <> '{}' THEN
        PERFORM {schema}.end_runs(v_dead, 3::int2, {schema}.error_json('RunCancelled', coalesce(p_reason, 'it was cancelled')));
    END IF;
    RETURN v_all;
END $$;

-- As in 0023, but for children that go on as other runs meanwhile.
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
        LOOP
            v_kids := ARRAY(SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (one.terminated) ORDER BY t.run_id FOR UPDATE);
            one.terminated := ARRAY(SELECT n.id FROM unnest(one.terminated) AS u (id) CROSS JOIN LATERAL {schema}.newest(u.id) AS n (id)
                                    WHERE NOT EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = u.id) AND n.id <> u.id);
            EXIT WHEN v_kids = '{}' AND one.terminated = '{}';
            INSERT INTO {schema}.cancellation (run_id, how, actor, reason) SELECT u.id, 4, 'run ' || one.id, 'its parent ended' FROM unnest(v_kids) AS u (id)
            ON CONFLICT DO NOTHING;
            UPDATE {schema}.task t SET cancel_to = t.owner WHERE t.run_id = ANY (v_kids) AND t.owner IS NOT NULL;
            PERFORM {schema}.end_runs(ARRAY(SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (v_kids) AND t.owner IS NULL),
                                      4::int2, {schema}.error_json('RunTerminated', 'its parent ended'));
        END LOOP;
    END LOOP;
END $$;

-- As in 0026, but for the chain, and for children that live; and one that was to be terminated is, though it went on.
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
    INSERT INTO {schema}.run (run_id, created_at, workflow, queue, prio, key, input, parent_id, parent_seq, batch, attributes, chain)
    VALUES (p_next, v_now, v_next.id, v_next.queue, coalesce(p_prio, v_task.prio), v_was.key, p_input, v_was.parent_id, v_was.parent_seq, NULL, v_facts,
            coalesce(v_was.chain, p_run));
    INSERT INTO {schema}.task (run_id, ready_at, cancel_at, queue, workflow, prio, parent_id, parent_close, batch, group_key, key, input, chain)
    VALUES (p_next, v_now + p_delay, v_next.deadline, v_next.queue, v_next.id, coalesce(p_prio, v_task.prio), v_task.parent_id, v_task.parent_close, NULL,
            v_task.group_key, v_task.key, CASE WHEN length(p_input) <= 1024 THEN p_input END, coalesce(v_was.chain, p_run));
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
    INSERT INTO {schema}.child_kept (heir_id, run_id)
    SELECT p_next, c.run_id FROM {schema}.children_now AS c JOIN {schema}.task t ON t.run_id = c.run_id
    WHERE c.parent_id = p_run AND t.parent_close IS DISTINCT FROM 1;
    IF FOUND THEN                                      -- its worker is told so when it is read
        UPDATE {schema}.task t SET resumed = 5 WHERE t.run_id = p_next;
    END IF;
    IF v_task.cancel_to > 0 THEN                       -- it was to be told to end, and was not yet: its successor is, when it is read
        INSERT INTO {schema}.cancellation (run_id, how, actor, reason)
        SELECT p_next, c.how, c.actor, c.reason FROM {schema}.cancellation c WHERE c.run_id = p_run AND c.how IN (3, 4);
        UPDATE {schema}.task t SET cancel_to = 0, resumed = 1 WHERE t.run_id = p_next;
    END IF;
    INSERT INTO {schema}.message (run_id, kind, n, sent_at, name, id, payload, chain)
    SELECT p_next, m.kind, m.n, m.sent_at, m.name, m.id, m.payload, coalesce(v_was.chain, p_run)
    FROM {schema}.message m
    WHERE m.run_id = p_run AND m.kind = 1
      AND NOT EXISTS (SELECT FROM {schema}.consumed c WHERE c.run_id = p_run AND c.kind = m.kind AND c.name = m.name AND c.n = m.n);
END $$;

-- As in 0031, but that a retry is of its chain. p_id may be there already: its first try arrived, and only the answer was lost.
CREATE OR REPLACE FUNCTION {schema}.fork_run(
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
    END IF;
    v_input := coalesce(p_input, v_from.input);        -- byte for byte: as jsonb it is only looked at
    IF p_input IS NOT NULL OR v_to.name <> v_from.named THEN
        PERFORM {schema}.check_inputs(v_to.name, ARRAY[convert_from(v_input, 'UTF8')::jsonb], ARRAY[v_input]);
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
    INSERT INTO {schema}.run (run_id, created_at, workflow, queue, prio, codec, key, input, attributes, forked_from, forked_seq, drawn_from, chain)
    VALUES (p_id, clock_timestamp(), v_to.id, CASE WHEN v_to.name = v_from.named THEN v_from.queue ELSE v_to.queue END, v_from.prio, v_from.codec, v_key, v_input,
            v_from.attributes, p_run, p_seq, coalesce(v_from.drawn_from, p_run),
            CASE WHEN p_verb = 'retry' THEN v_from.chain END);
    PERFORM {schema}.copy_history(p_run, p_id, v_cut.pos);
    v_facts := convert_to({schema}.merged_attributes(v_from.attributes, (
        SELECT a.value FROM {schema}.attribute_set a WHERE a.run_id = p_id ORDER BY a.pos DESC LIMIT 1))::text, 'UTF8');
    IF v_facts IS NOT NULL THEN
        PERFORM {schema}.index_attributes(ARRAY[p_id], v_facts);
    END IF;
    -- Where there is no history the input stands in run alone, so that whoever claims it reads that, and with it whose numbers it draws.
    INSERT INTO {schema}.task (run_id, ready_at, cancel_at, queue, workflow, prio, key, resumed, input, chain)
    SELECT r.run_id, r.created_at, r.created_at + v_to.timeout_s * interval '1 s', r.queue, r.workflow, r.prio, r.key, CASE WHEN v_cut.pos > 0 THEN 1 ELSE 0 END,
           CASE WHEN length(r.input) <= 1024 AND v_cut.pos > 0 THEN r.input END, r.chain
    FROM {schema}.run r WHERE r.run_id = p_id;
    PERFORM {schema}.note(p_run, p_verb, p_reason, p_actor, jsonb_build_object(
        'run', p_id, 'seq', p_seq, 'kept', v_cut.pos, 'workflow', p_workflow, 'input', CASE WHEN p_input IS NOT NULL THEN {schema}.as_json(v_input) END));
    did := true;
    state := 'forked';
END $$;

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE one record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname = {role_worker_literal} LOOP
        EXECUTE format('GRANT SELECT ON {schema}.child_kept TO %I', one.rolname);
    END LOOP;
END $$;
