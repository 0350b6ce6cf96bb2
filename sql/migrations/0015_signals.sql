-- deploy: pre            older code neither reads nor writes what is new; it sets wait_kind to something else wherever it parks a run
-- lock:   ACCESS EXCLUSIVE on task and on the views steps and waits, brief: a column without a default
-- undo:   DROP FUNCTION of each new name; DROP VIEW {schema}.signals; DROP TABLE {schema}.message, {schema}.consumed; DROP SEQUENCE {schema}.message_n;
--         ALTER TABLE {schema}.task DROP COLUMN wait_signals; make_partitions as in 0002, steps and waits as in 0003,
--         partitioned and renew_statistics as in 0006
--
-- Messages into runs. Whoever sends locks the run's task row, takes a number, inserts the message, and wakes the run if it is parked
-- and waits for that name, in one transaction. Whoever parks a run locks its row and looks for messages in a further statement.
-- So the order of numbers is that of commits, for each run, and no wake-up is lost. A message and that it was consumed are rows of
-- their own; the position at which the run was given it is its row in step.

CREATE SEQUENCE {schema}.message_n;                    -- no cache: two sessions take numbers in the order of their locks

CREATE TABLE {schema}.message (
    run_id  uuid NOT NULL,
    kind    int2 NOT NULL,                             -- 1 signal
    n       int8 NOT NULL,
    sent_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    name    text NOT NULL,
    id      text,
    payload bytea NOT NULL,
    PRIMARY KEY (run_id, kind, name, n)
) PARTITION BY RANGE (run_id);
CREATE UNIQUE INDEX message_id_idx ON {schema}.message (run_id, kind, name, id) WHERE id IS NOT NULL;
COMMENT ON TABLE {schema}.message IS 'What was sent to runs; insert only';
COMMENT ON COLUMN {schema}.message.run_id IS 'The run';
COMMENT ON COLUMN {schema}.message.kind IS '1 signal';
COMMENT ON COLUMN {schema}.message.n IS 'Its number: for each run in the order of arrival, for it is taken under the lock of the run''s task row';
COMMENT ON COLUMN {schema}.message.sent_at IS 'When it was sent';
COMMENT ON COLUMN {schema}.message.name IS 'Name of the signal';
COMMENT ON COLUMN {schema}.message.id IS 'Given by the sender: a second message of this name with it is not stored';
COMMENT ON COLUMN {schema}.message.payload IS 'JSON';

CREATE TABLE {schema}.consumed (
    run_id uuid NOT NULL,
    kind   int2 NOT NULL,
    n      int8 NOT NULL,
    seq    int4 NOT NULL,
    name   text NOT NULL,
    PRIMARY KEY (run_id, kind, name, n)                -- refuses a second consumption; its last entry says from where on to read
) PARTITION BY RANGE (run_id);
COMMENT ON TABLE {schema}.consumed IS 'Which message was given to which wait of its run; insert only, in the batch that has the wait''s row in step';
COMMENT ON COLUMN {schema}.consumed.run_id IS 'The run';
COMMENT ON COLUMN {schema}.consumed.kind IS 'As message.kind';
COMMENT ON COLUMN {schema}.consumed.n IS 'message.n';
COMMENT ON COLUMN {schema}.consumed.seq IS 'Position of the wait in the run';
COMMENT ON COLUMN {schema}.consumed.name IS 'As message.name';

ALTER TABLE {schema}.task ADD COLUMN wait_signals text[];
COMMENT ON COLUMN {schema}.task.wait_signals IS
    'Signals that a parked run waits for; counts only while wait_kind is 11 (signal) or 15 (any_of): nobody else clears it';

-- ── partitions ───────────────────────────────────────────────────────────────────────────────────────────────
-- The history's tables from the catalogue, so that one which a later file adds is made, measured and dropped with the others.
CREATE OR REPLACE FUNCTION {schema}.partitioned() RETURNS TABLE (name text, id text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT c.relname::text, a.attname::text
    FROM pg_partitioned_table p JOIN pg_class c ON c.oid = p.partrelid JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0]
    WHERE c.relnamespace = {schema_literal}::regnamespace AND p.partstrat = 'r' AND p.partnatts = 1 AND a.atttypid = 'uuid'::regtype
    ORDER BY c.relname
$$;
COMMENT ON FUNCTION {schema}.partitioned() IS 'Internal: the history''s tables and the column that cuts them';

-- CREATE and ATTACH, never PARTITION OF: see 0002.
CREATE FUNCTION {schema}.make_partition(p_name text, p_id text, p_suffix text, p_low uuid, p_high uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('CREATE TABLE {schema}.%I (LIKE {schema}.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE, '
                   'CONSTRAINT born CHECK (%I >= %L AND %I < %L)) WITH (autovacuum_vacuum_insert_threshold = -1)',
                   p_name || '_' || p_suffix, p_name, p_id, p_low, p_id, p_high);
    EXECUTE format('ALTER TABLE {schema}.%I ATTACH PARTITION {schema}.%I FOR VALUES FROM (%L) TO (%L)', p_name, p_name || '_' || p_suffix, p_low, p_high);
    EXECUTE format('ALTER TABLE {schema}.%I DROP CONSTRAINT born', p_name || '_' || p_suffix);
END $$;
COMMENT ON FUNCTION {schema}.make_partition(text, text, text, uuid, uuid) IS 'Internal: make one partition of one of the history''s tables';

-- As in 0002, but for the list of tables.
CREATE OR REPLACE FUNCTION {schema}.make_partitions(until timestamptz) RETURNS int4
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    width   interval := make_interval(days => (SELECT partition_days FROM {schema}.cell));
    origin  timestamptz := '2020-01-01 00:00:00+00';
    low     timestamptz := date_bin(width, clock_timestamp() - interval '2 minutes', origin);
    made    int4 := 0;
    suffix  text;
    parent  record;
BEGIN
    IF until > clock_timestamp() + 60 * width THEN
        RAISE EXCEPTION 'partitions up to % would be more than 60', until USING ERRCODE = '22023',
            HINT = 'about 40 are the most that plans bear';
    END IF;
    PERFORM pg_advisory_xact_lock({lock_class}, -2);   -- two that make the same partition would collide
    WHILE low < until LOOP
        suffix := to_char(low AT TIME ZONE 'UTC', 'YYYYMMDD');
        FOR parent IN SELECT p.name, p.id FROM {schema}.partitioned() AS p LOOP
            CONTINUE WHEN to_regclass(format('%s.%I', {schema_literal}, parent.name || '_' || suffix)) IS NOT NULL;
            PERFORM {schema}.make_partition(parent.name, parent.id, suffix, {schema}.id_floor(low), {schema}.id_floor(low + width));
            made := made + 1;
        END LOOP;
        low := low + width;
    END LOOP;
    RETURN made;
END $$;

-- As in 0006, but for the list of tables.
CREATE OR REPLACE FUNCTION {schema}.renew_statistics() RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE v_table text;
BEGIN
    SELECT c.relname INTO v_table
    FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
    WHERE c.relnamespace = {schema_literal}::regnamespace AND c.relkind = 'r'
      AND (c.relname = 'task' OR i.inhparent = ANY (ARRAY(
            SELECT p.oid FROM pg_class p JOIN {schema}.partitioned() t ON t.name = p.relname WHERE p.relnamespace = {schema_literal}::regnamespace)))
      AND pg_stat_get_live_tuples(c.oid) > 2 * greatest(c.reltuples, 1000)
    ORDER BY pg_stat_get_live_tuples(c.oid) / greatest(c.reltuples, 1000) DESC, c.relname LIMIT 1;
    IF v_table IS NOT NULL THEN
        EXECUTE format('ANALYZE {schema}.%I', v_table);
    END IF;
    RETURN v_table;
END $$;

-- For a table that a file adds: runs that are here already were born in partitions that exist.
CREATE FUNCTION {schema}.make_partitions_of(p_name text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE one record;
BEGIN
    PERFORM pg_advisory_xact_lock({lock_class}, -2);
    FOR one IN
        SELECT t.id, substr(c.relname, length('run_') + 1) AS suffix, b.bound[1]::uuid AS low, b.bound[2]::uuid AS high
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN {schema}.partitioned() AS t ON t.name = p_name
        CROSS JOIN LATERAL (SELECT regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''(.*)''\) TO \(''(.*)''\)') AS bound) b
        WHERE i.inhparent = '{schema}.run'::regclass AND b.bound IS NOT NULL
    LOOP
        PERFORM {schema}.make_partition(p_name, one.id, one.suffix, one.low, one.high);
    END LOOP;
END $$;
COMMENT ON FUNCTION {schema}.make_partitions_of(text) IS 'Internal: give a new one of the history''s tables a partition beside each of run';

SELECT {schema}.make_partitions_of('message'), {schema}.make_partitions_of('consumed');

-- ── send ─────────────────────────────────────────────────────────────────────────────────────────────────────
-- Custom plan: prunes.
CREATE FUNCTION {schema}.was_sent(p_run uuid, p_kind int2, p_name text, p_id text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    RETURN EXISTS (SELECT FROM {schema}.message m WHERE m.run_id = p_run AND m.kind = p_kind AND m.name = p_name AND m.id = p_id);
END $$;
COMMENT ON FUNCTION {schema}.was_sent(uuid, int2, text, text) IS 'Internal: whether a message with that id is there';

CREATE FUNCTION {schema}.send(
    p_run uuid, p_kind int2, p_name text, p_payload bytea, p_id text, OUT stored boolean, OUT owner int4, OUT woken boolean, OUT workflow text, OUT queue text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE v_ended text;
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
    SELECT t.owner, w.name, q.name INTO owner, workflow, queue
    FROM {schema}.task t JOIN {schema}.workflow w ON w.id = t.workflow LEFT JOIN {schema}.queue q ON q.id = t.queue AND t.queue <> w.queue
    WHERE t.run_id = p_run FOR NO KEY UPDATE OF t;
    IF NOT FOUND THEN
        IF {schema}.was_sent(p_run, p_kind, p_name, p_id) THEN
            RETURN;                                    -- it arrived while the run lived: who repeats it is told the same as then
        END IF;
        SELECT o.status INTO v_ended FROM {schema}.outcomes(ARRAY[p_run]) AS o;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'there is no run %', coalesce(p_run::text, 'null') USING ERRCODE = 'SV006', DETAIL = coalesce(p_run::text, 'null');
        END IF;
        RAISE EXCEPTION 'run % has ended (%): signal "%" was not stored', p_run, v_ended, p_name USING ERRCODE = 'SV010',
            DETAIL = json_build_object('run_id', p_run, 'status', v_ended, 'signal', p_name)::text;
    END IF;
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
COMMENT ON FUNCTION {schema}.send(uuid, int2, text, bytea, text) IS
    'Internal: store a message for a live run under the lock of its task row, and wake the run if it is parked for it; who is to be told';

CREATE FUNCTION {schema}.checked_payload(p_name text, p_payload jsonb) RETURNS bytea
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF length(p_payload::text) > 2097152 THEN
        RAISE EXCEPTION 'signal "%" has % bytes of JSON, more than 2097152', p_name, length(p_payload::text) USING ERRCODE = '22023';
    ELSIF {schema}.too_deep(p_payload) THEN
        RAISE EXCEPTION 'signal "%" is nested deeper than 64 levels', p_name USING ERRCODE = '22023';
    END IF;
    RETURN convert_to(coalesce(p_payload, 'null')::text, 'UTF8');
END $$;
COMMENT ON FUNCTION {schema}.checked_payload(text, jsonb) IS 'Internal: a signal''s payload as it is stored; raises 22023 for one that is too long or too deep';

CREATE FUNCTION {schema}.announce_signal(p_owner int4, p_woken boolean, p_workflow text, p_queue text) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN p_owner IS NOT NULL
                THEN pg_notify((SELECT n.nspname FROM pg_namespace n WHERE n.oid = {schema_literal}::regnamespace) || '_signal', json_build_array(p_owner)::text)
                WHEN p_woken THEN {schema}.announce(p_workflow, p_queue, 1, interval '0') END
$$;
COMMENT ON FUNCTION {schema}.announce_signal(int4, boolean, text, text) IS
    'Internal: tell, at the commit, the host of the worker that has the run, or all hosts that a run was woken';

-- SECURITY DEFINER: a client may send to runs and must not be able to write the tables otherwise.
CREATE FUNCTION {schema}.signal(run uuid, name text, payload jsonb DEFAULT 'null', id text DEFAULT NULL, notify boolean DEFAULT false) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE sent record;
BEGIN
    SELECT * INTO sent FROM {schema}.send(run, 1::int2, name, {schema}.checked_payload(name, payload), id);
    IF notify AND sent.stored THEN
        PERFORM {schema}.announce_signal(sent.owner, sent.woken, sent.workflow, sent.queue);
    END IF;
    RETURN sent.stored;
END $$;
COMMENT ON FUNCTION {schema}.signal(uuid, text, jsonb, text, boolean) IS
    'Send a signal to a live run, in the transaction that calls it; false when one of that name and id is there already';

-- SECURITY DEFINER: the same.
CREATE FUNCTION {schema}.send_signal(p_run uuid, p_name text, p_payload bytea, p_id text)
RETURNS TABLE (stored boolean, owner int4, woken boolean, workflow text, queue text)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT s.stored, s.owner, s.woken, s.workflow, s.queue FROM {schema}.send(p_run, 1::int2, p_name, p_payload, p_id) AS s $$;
COMMENT ON FUNCTION {schema}.send_signal(uuid, text, bytea, text) IS 'signal for programs: an encoded payload, and who is to be told';

-- A transaction that commits only once all earlier commits are on the disk, on the standbys too where they count: it writes something, for
-- nothing else makes a commit wait. Readers of the log see an empty message of the name pgsupervisor.
CREATE FUNCTION {schema}.wait_for_disk() RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    PERFORM pg_logical_emit_message(true, 'pgsupervisor', '');
END $$;
COMMENT ON FUNCTION {schema}.wait_for_disk() IS 'Internal: have this transaction''s commit wait until it, and all that was committed before, is on the disk';

-- A procedure, for it commits in between: senders to one run stand in line for its task row, and the lock should not outlast the wait for the disk. So
-- the message is committed first, and others may see it; then its announcement, see 0012; then all waits for the disk together, with other senders'.
-- What is seen of a message before it is safe is not safe before it either: the log is one. All names are qualified and there is no operator.
CREATE PROCEDURE {schema}.signal_and_tell(
    p_run uuid, p_name text, p_payload bytea, p_id text, p_signal_channel text, p_wake_channel text,
    INOUT stored boolean, INOUT owner int4, INOUT woken boolean, INOUT workflow text, INOUT queue text)
LANGUAGE plpgsql
AS $$
BEGIN
    SELECT s.stored, s.owner, s.woken, s.workflow, s.queue INTO stored, owner, woken, workflow, queue FROM {schema}.send_signal(p_run, p_name, p_payload, p_id) AS s;
    PERFORM pg_catalog.set_config('synchronous_commit', 'off', true);
    COMMIT;
    IF stored AND owner IS NOT NULL AND p_signal_channel IS NOT NULL THEN
        PERFORM pg_catalog.set_config('synchronous_commit', 'off', true), pg_catalog.pg_notify(p_signal_channel, pg_catalog.json_build_array(owner)::text);
        COMMIT;
    ELSIF stored AND woken AND p_wake_channel IS NOT NULL THEN
        PERFORM pg_catalog.set_config('synchronous_commit', 'off', true),
                pg_catalog.pg_notify(p_wake_channel, pg_catalog.json_build_array(pg_catalog.json_build_array(workflow, queue, 1, 0.0))::text);
        COMMIT;
    END IF;
    PERFORM {schema}.wait_for_disk();
END $$;
COMMENT ON PROCEDURE {schema}.signal_and_tell(uuid, text, bytea, text, text, text, boolean, int4, boolean, text, text) IS
    'Internal: send_signal, its commit, in a second transaction the announcement to the hosts, and in a third the wait for the disk';

-- ── start and send ───────────────────────────────────────────────────────────────────────────────────────────
-- SECURITY DEFINER: as start_runs and send_signal, both or neither.
CREATE FUNCTION {schema}.start_and_send(
    p_workflow text, p_run uuid, p_input bytea, p_key text, p_hash bytea, p_queue text, p_priority int2, p_delay interval, p_attributes bytea, p_batch text,
    p_on_conflict text, p_name text, p_payload bytea, p_id text)
RETURNS TABLE (run_id uuid, stored boolean, owner int4, woken boolean, workflow text, queue text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_run     uuid := p_run;
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
    RETURN QUERY SELECT v_run, s.stored, s.owner, s.woken, s.workflow, s.queue FROM {schema}.send(v_run, 1::int2, p_name, p_payload, p_id) AS s;
END $$;
COMMENT ON FUNCTION {schema}.start_and_send(text, uuid, bytea, text, bytea, text, int2, interval, bytea, text, text, text, bytea, text) IS
    'Start a run, or find the one that the key names, and send it a signal, all in one transaction';

-- SECURITY DEFINER: as start and signal.
CREATE FUNCTION {schema}.signal_with_start(
    workflow text, name text, payload jsonb DEFAULT 'null', input jsonb DEFAULT '{}', key text DEFAULT NULL, id text DEFAULT NULL, queue text DEFAULT NULL,
    priority int4 DEFAULT 5, delay interval DEFAULT interval '0', attributes jsonb DEFAULT NULL, batch text DEFAULT NULL,
    on_conflict text DEFAULT 'return', notify boolean DEFAULT false)
RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    v_run uuid;
    sent  record;
BEGIN
    v_run := {schema}.start(workflow, input, key, queue, priority, delay, attributes, batch, on_conflict, notify);
    SELECT s.* INTO sent FROM {schema}.send(v_run, 1::int2, name, {schema}.checked_payload(name, payload), id) AS s;
    IF notify AND sent.stored THEN
        PERFORM {schema}.announce_signal(sent.owner, sent.woken, sent.workflow, sent.queue);
    END IF;
    RETURN v_run;
END $$;
COMMENT ON FUNCTION {schema}.signal_with_start(text, text, jsonb, jsonb, text, text, text, int4, interval, jsonb, text, text, boolean) IS
    'Start a run, or find the one that the key names, and send it a signal, both or neither; returns the run';

-- ── views ────────────────────────────────────────────────────────────────────────────────────────────────────
CREATE VIEW {schema}.signals AS
SELECT m.run_id, m.n, m.name, m.id, {schema}.as_json(m.payload) AS payload, m.sent_at, c.seq
FROM {schema}.message m
LEFT JOIN {schema}.consumed c ON c.run_id = m.run_id AND c.kind = m.kind AND c.name = m.name AND c.n = m.n
WHERE m.kind = 1;
COMMENT ON VIEW {schema}.signals IS 'Signals that were sent to runs, and which wait was given each; ask by run_id';
COMMENT ON COLUMN {schema}.signals.run_id IS 'The run';
COMMENT ON COLUMN {schema}.signals.n IS 'Number; for each run in the order of arrival';
COMMENT ON COLUMN {schema}.signals.name IS 'Name of the signal';
COMMENT ON COLUMN {schema}.signals.id IS 'Id that its sender gave it, so that it is stored once; null when none';
COMMENT ON COLUMN {schema}.signals.payload IS 'What was sent';
COMMENT ON COLUMN {schema}.signals.sent_at IS 'When it was sent';
COMMENT ON COLUMN {schema}.signals.seq IS 'Position of the wait in the run that was given it (see steps); null while none was';

CREATE OR REPLACE VIEW {schema}.steps AS
SELECT s.run_id, s.seq, s.pos, s.name,
       (ARRAY['step', 'timer', 'child', 'child_start', 'signal'])[s.kind] AS kind,
       (ARRAY['completed', 'failed', 'cancelled'])[s.status] AS status,
       s.started_at, s.ended_at, extract(epoch FROM s.ended_at - s.started_at)::float8 * 1000 AS duration_ms, s.worker,
       CASE WHEN s.status = 1 THEN {schema}.as_json(s.result, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = s.run_id)) END AS result,
       CASE WHEN s.status <> 1 THEN {schema}.as_json(s.result, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = s.run_id)) END AS error
FROM {schema}.step s;
COMMENT ON VIEW {schema}.steps IS 'Finished steps, timers, children and received signals of runs, one row each; ask by run_id';
COMMENT ON COLUMN {schema}.steps.name IS 'Name of the step, timer, child workflow or signal';
COMMENT ON COLUMN {schema}.steps.kind IS 'step, timer, child (its end), child_start or signal (a wait for one)';

-- As in 0003, but for what frees a run that waits for signals: the command that sends the first of them.
CREATE OR REPLACE VIEW {schema}.waits AS
SELECT t.run_id, r.key, w.name AS workflow, q.name AS queue, t.status, k.code,
       CASE WHEN t.owner IS NOT NULL AND NOT owned.alive THEN 'its worker is gone and has not been released yet'
            ELSE coalesce(k.meaning, 'it moves: a worker is executing it') END AS meaning,
       CASE WHEN t.owner IS NOT NULL
            THEN concat_ws('; ', t.wait_detail, format('worker %s, process %s on %s', owned.id, owned.pid, owned.host), owned.death)
            WHEN k.code = 'timer' AND t.wait_kind IS DISTINCT FROM 10 THEN 'its start is delayed'
            WHEN k.code = 'child' THEN concat_ws('; ', t.wait_detail, (
                SELECT format('%s of %s ended', coalesce(sum(d.n), 0), t.wait_children)
                FROM {schema}.child_done d WHERE d.parent_id = t.run_id))
            WHEN k.code = 'no_worker' THEN concat_ws('; ', t.wait_detail, 'no worker of this schema is alive')
            ELSE t.wait_detail END AS detail,
       CASE WHEN t.wait_kind IS NULL OR t.wait <> t.wait_kind
            THEN greatest(t.wait_since, CASE WHEN t.ready_at <= clock_timestamp() THEN t.ready_at END, r.created_at)
            ELSE coalesce(t.wait_since, r.created_at) END AS since,
       CASE WHEN t.owner IS NULL AND t.ready_at > clock_timestamp() AND isfinite(t.ready_at) THEN t.ready_at END AS wake_at,
       t.step, t.seq, t.attempt, t.claims, t.owner AS worker,
       CASE WHEN t.owner IS NOT NULL AND NOT owned.alive THEN 'a running supervisor releases it by itself: python -m supervisor run --app …'
            WHEN k.code IN ('signal', 'any_of') AND s.signals IS NOT NULL
            THEN concat_ws(', or ', s.signals, CASE WHEN k.code = 'any_of' THEN k.freed_by WHEN isfinite(t.ready_at) THEN 'the wait''s timeout expires' END)
            ELSE coalesce(k.freed_by, 'nothing needs to be done') END AS freed_by
FROM {schema}.task_now t
LEFT JOIN {schema}.run r ON r.run_id = t.run_id
LEFT JOIN {schema}.workflow w ON w.id = t.workflow
LEFT JOIN {schema}.queue q ON q.id = t.queue
LEFT JOIN {schema}.wait_kind k ON k.id = t.wait
LEFT JOIN {schema}.worker_now owned ON owned.id = t.owner
LEFT JOIN LATERAL (
    SELECT format('python -m supervisor signal %s %s --json-value …', t.run_id, quote_literal(o.wait_signals[1])) AS signals
    FROM {schema}.task o WHERE o.run_id = t.run_id AND t.wait IN (11, 15) AND o.wait_signals IS NOT NULL) AS s ON true;

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
        ('SELECT ON {schema}.message, {schema}.consumed', ARRAY[worker]),
        ('INSERT ON {schema}.consumed', ARRAY[worker]),
        ('EXECUTE ON FUNCTION {schema}.signal(uuid, text, jsonb, text, boolean), {schema}.send_signal(uuid, text, bytea, text), {schema}.wait_for_disk(), '
         '{schema}.start_and_send(text, uuid, bytea, text, bytea, text, int2, interval, bytea, text, text, text, bytea, text), '
         '{schema}.signal_with_start(text, text, jsonb, jsonb, text, text, text, int4, interval, jsonb, text, text, boolean)', ARRAY[worker, client, operator]),
        ('EXECUTE ON PROCEDURE {schema}.signal_and_tell(uuid, text, bytea, text, text, text, boolean, int4, boolean, text, text)', ARRAY[worker, client, operator]),
        ('SELECT ON {schema}.signals', ARRAY[worker, viewer, operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
