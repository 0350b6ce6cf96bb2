-- deploy: pre            new tables and functions that nothing older uses; older supervisors go on reaping by themselves
-- lock:   none that anybody waits for
-- undo:   DROP FUNCTION of each name; DROP TABLE {schema}.leader, {schema}.retired; DROP VIEW {schema}.leaders
--
-- At any time at most one supervisor leads: it holds the advisory lock ({lock_class}, -3) in one session, and its term
-- is the newest row here. Whatever it writes as leader is preceded, in the same transaction, by as_leader(term).

-- ── terms ────────────────────────────────────────────────────────────────────────────────────────────────────
CREATE TABLE {schema}.leader (
    term       int8 PRIMARY KEY,
    supervisor uuid NOT NULL,
    host       text NOT NULL,
    pid        int4 NOT NULL,
    lead_pid   int4 NOT NULL,
    ears_pid   int4,
    chores_pid int4,
    began_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    beat_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at   timestamptz,
    why        text
) WITH (fillfactor = 50);                              -- a beat stays on its page and touches no index
COMMENT ON TABLE {schema}.leader IS 'One row per term of leadership; the newest without an end leads';
COMMENT ON COLUMN {schema}.leader.term IS 'Raised by whoever takes the lead; every write of a leader names its own and is refused when that has ended';
COMMENT ON COLUMN {schema}.leader.supervisor IS 'The supervisor''s boot id, as in worker.supervisor';
COMMENT ON COLUMN {schema}.leader.host IS 'Host that it runs on';
COMMENT ON COLUMN {schema}.leader.pid IS 'Its process there';
COMMENT ON COLUMN {schema}.leader.lead_pid IS 'Backend of the session that holds the lock and beats; whoever deposes it terminates this one';
COMMENT ON COLUMN {schema}.leader.ears_pid IS 'Backend of the session that listens';
COMMENT ON COLUMN {schema}.leader.chores_pid IS 'Backend of the session for DDL and ANALYZE; it does nothing before this is written';
COMMENT ON COLUMN {schema}.leader.began_at IS 'When it took the lead';
COMMENT ON COLUMN {schema}.leader.beat_at IS 'Its last sign of life, twice a second';
COMMENT ON COLUMN {schema}.leader.ended_at IS 'When it gave the lead back, or its successor took it';
COMMENT ON COLUMN {schema}.leader.why IS 'Why the term ended';

CREATE VIEW {schema}.leaders AS
SELECT term, ended_at IS NULL AS leads, supervisor, host, pid, began_at, beat_at, ended_at, why FROM {schema}.leader;
COMMENT ON VIEW {schema}.leaders IS 'Terms of leadership: which supervisor does what one must do for all, since when, and why others ended';
COMMENT ON COLUMN {schema}.leaders.term IS 'Number of the term, one higher each time';
COMMENT ON COLUMN {schema}.leaders.leads IS 'Whether it is the present one';
COMMENT ON COLUMN {schema}.leaders.supervisor IS 'The supervisor (see workers)';
COMMENT ON COLUMN {schema}.leaders.host IS 'Host that it runs on';
COMMENT ON COLUMN {schema}.leaders.pid IS 'Its process there';
COMMENT ON COLUMN {schema}.leaders.began_at IS 'When it took the lead';
COMMENT ON COLUMN {schema}.leaders.beat_at IS 'Its last sign of life; twice a second';
COMMENT ON COLUMN {schema}.leaders.ended_at IS 'When the term ended';
COMMENT ON COLUMN {schema}.leaders.why IS 'Why it ended: stopped, its session was gone, or deposed because it gave no sign of life';

-- FOR KEY SHARE: a beat does not wait for it, and take_term, which locks the row FOR UPDATE, waits for every write of the
-- term before it. So nothing of an old term commits after a new one has begun.
CREATE FUNCTION {schema}.as_leader(p_term int8) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM {schema}.leader WHERE term = p_term AND ended_at IS NULL FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'term % of leadership has ended', p_term USING ERRCODE = 'SV004';
    END IF;
END $$;
COMMENT ON FUNCTION {schema}.as_leader(int8) IS 'First statement of every write of a leader: raises SV004 unless its term is the present one';

CREATE FUNCTION {schema}.take_term(p_supervisor uuid, p_host text, p_pid int4, p_why text) RETURNS int8
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE v_term int8;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.pid = pg_backend_pid() AND l.granted AND l.objsubid = 2
                   AND l.classid::int8 = ({lock_class}::int8 & 4294967295) AND l.objid::int8 = (-3::int8 & 4294967295)) THEN
        RAISE EXCEPTION 'this session does not hold the leader''s lock' USING ERRCODE = 'SV004';
    END IF;
    SELECT term INTO v_term FROM {schema}.leader ORDER BY term DESC LIMIT 1 FOR UPDATE;   -- waits for what the old term is writing
    UPDATE {schema}.leader SET ended_at = clock_timestamp(), why = p_why WHERE term = v_term AND ended_at IS NULL;
    v_term := coalesce(v_term, 0) + 1;
    INSERT INTO {schema}.leader (term, supervisor, host, pid, lead_pid) VALUES (v_term, p_supervisor, p_host, p_pid, pg_backend_pid());
    DELETE FROM {schema}.leader WHERE term < v_term - 1000;
    RETURN v_term;
END $$;
COMMENT ON FUNCTION {schema}.take_term(uuid, text, int4, text) IS 'Begin a new term of leadership; the session must hold the lock. Ends the term before it';

-- ── statistics ───────────────────────────────────────────────────────────────────────────────────────────────
-- SECURITY DEFINER: ANALYZE wants the table's owner, and supervisors need not be that. One table per call, so that it is bounded.
-- Only what has doubled since: a small table's statistics are never renewed, an empty moment of task would spoil its plans.
CREATE FUNCTION {schema}.renew_statistics() RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE v_table text;
BEGIN
    SELECT c.relname INTO v_table
    FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
    WHERE c.relnamespace = {schema_literal}::regnamespace AND c.relkind = 'r'
      AND (c.relname = 'task' OR i.inhparent = ANY (ARRAY(
            SELECT p.oid FROM pg_class p WHERE p.relnamespace = {schema_literal}::regnamespace
            AND p.relname IN ('run', 'step', 'attempt', 'outcome', 'child', 'child_done'))))
      AND pg_stat_get_live_tuples(c.oid) > 2 * greatest(c.reltuples, 1000)
    ORDER BY pg_stat_get_live_tuples(c.oid) / greatest(c.reltuples, 1000) DESC, c.relname LIMIT 1;
    IF v_table IS NOT NULL THEN
        EXECUTE format('ANALYZE {schema}.%I', v_table);
    END IF;
    RETURN v_table;
END $$;
COMMENT ON FUNCTION {schema}.renew_statistics() IS 'ANALYZE the one table that has grown most, if any has doubled; returns its name';

-- ── retention ────────────────────────────────────────────────────────────────────────────────────────────────
CREATE TABLE {schema}.retired (
    suffix   text PRIMARY KEY,
    low      uuid NOT NULL,
    high     uuid NOT NULL,
    began_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE {schema}.retired IS 'Partitions that are being dropped: each step of it can be interrupted, and the next leader goes on';
COMMENT ON COLUMN {schema}.retired.suffix IS 'What their names end in: the day they begin with';
COMMENT ON COLUMN {schema}.retired.low IS 'Run ids from here';
COMMENT ON COLUMN {schema}.retired.high IS 'to here, this one excluded';
COMMENT ON COLUMN {schema}.retired.began_at IS 'When it was decided';

CREATE FUNCTION {schema}.partitioned() RETURNS TABLE (name text, id text)
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ VALUES ('run', 'run_id'), ('step', 'run_id'), ('attempt', 'run_id'), ('outcome', 'run_id'), ('child', 'parent_id'), ('child_done', 'parent_id') $$;
COMMENT ON FUNCTION {schema}.partitioned() IS 'Internal: the history''s tables and the column that cuts them';

-- SECURITY INVOKER: only who owns the tables may drop them. The tables are detached by then, so no statement finds them:
-- their locks are had at once, and a run that came back to life came back before that.
CREATE FUNCTION {schema}.keep_if_live(p_suffix text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    gone record;
    one  record;
BEGIN
    SELECT * INTO gone FROM {schema}.retired WHERE suffix = p_suffix FOR UPDATE;
    IF NOT FOUND THEN
        RETURN true;
    END IF;
    FOR one IN SELECT p.* FROM {schema}.partitioned() p WHERE to_regclass(format('%s.%I', {schema_literal}, p.name || '_' || p_suffix)) IS NOT NULL LOOP
        EXECUTE format('LOCK TABLE {schema}.%I IN ACCESS EXCLUSIVE MODE', one.name || '_' || p_suffix);
    END LOOP;
    IF NOT EXISTS (SELECT FROM {schema}.task t WHERE t.run_id >= gone.low AND t.run_id < gone.high) THEN
        RETURN false;
    END IF;
    FOR one IN SELECT p.* FROM {schema}.partitioned() p WHERE to_regclass(format('%s.%I', {schema_literal}, p.name || '_' || p_suffix)) IS NOT NULL LOOP
        EXECUTE format('ALTER TABLE {schema}.%I ATTACH PARTITION {schema}.%I FOR VALUES FROM (%L) TO (%L)',
                       one.name, one.name || '_' || p_suffix, gone.low, gone.high);
    END LOOP;
    DELETE FROM {schema}.retired WHERE suffix = p_suffix;
    RETURN true;
END $$;
COMMENT ON FUNCTION {schema}.keep_if_live(text) IS 'Of detached partitions: attach them again if a run of theirs is live; whether that was so';

CREATE FUNCTION {schema}.drop_keys(p_suffix text, p_after uuid, p_max int4, OUT n int8, OUT last uuid)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    n := 0;
    IF to_regclass(format('%s.%I', {schema_literal}, 'run_' || p_suffix)) IS NULL THEN
        RETURN;
    END IF;
    EXECUTE format('WITH slice AS MATERIALIZED (SELECT run_id, workflow, key FROM {schema}.%I WHERE run_id > $1 AND key IS NOT NULL ORDER BY run_id LIMIT $2), '
                   'locked AS (SELECT k.workflow, k.key, k.run_id FROM {schema}.run_key k JOIN slice s ON (k.workflow, k.key, k.run_id) = (s.workflow, s.key, s.run_id) '
                   'ORDER BY k.workflow, k.key FOR UPDATE OF k), '
                   'gone AS (DELETE FROM {schema}.run_key k USING locked l WHERE (k.workflow, k.key) = (l.workflow, l.key) AND k.run_id = l.run_id) '
                   'SELECT count(*), (SELECT s.run_id FROM slice s ORDER BY s.run_id DESC LIMIT 1) FROM slice', 'run_' || p_suffix)
    INTO n, last USING p_after, p_max;
END $$;
COMMENT ON FUNCTION {schema}.drop_keys(text, uuid, int4) IS 'Remove one slice of the keys that name runs of detached partitions; how many it looked at, and the last of them';

CREATE FUNCTION {schema}.drop_detached(p_suffix text) RETURNS int4
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    one  record;
    n    int4 := 0;
BEGIN
    FOR one IN SELECT c.oid, c.relname, c.relispartition FROM {schema}.partitioned() p JOIN pg_class c ON c.relname = p.name || '_' || p_suffix
               WHERE c.relnamespace = {schema_literal}::regnamespace LOOP
        IF one.relispartition THEN
            RAISE EXCEPTION 'partition % is still attached', one.relname USING ERRCODE = '55000';
        END IF;
        EXECUTE format('DROP TABLE {schema}.%I', one.relname);
        n := n + 1;
    END LOOP;
    DELETE FROM {schema}.retired WHERE suffix = p_suffix;
    RETURN n;
END $$;
COMMENT ON FUNCTION {schema}.drop_detached(text) IS 'Drop detached partitions; returns how many tables that were';

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE
    worker   text := {role_worker_literal};
    one      record;
BEGIN
    FOR one IN SELECT g.what, r.rolname FROM (VALUES
        ('SELECT, INSERT, UPDATE, DELETE ON {schema}.leader, {schema}.retired', ARRAY[worker]),
        ('SELECT ON {schema}.leaders', ARRAY[worker, {role_viewer_literal}, {role_operator_literal}]),
        ('EXECUTE ON FUNCTION {schema}.as_leader(int8), {schema}.take_term(uuid, text, int4, text), {schema}.renew_statistics(), '
         '{schema}.partitioned(), {schema}.keep_if_live(text), {schema}.drop_keys(text, uuid, int4), {schema}.drop_detached(text)', ARRAY[worker])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
