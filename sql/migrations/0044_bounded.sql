-- deploy: pre            what is new nobody asks yet
-- lock:   SHARE on run while its index is made, last: starts wait, 2 s for 10 million runs with a million keys that are in memory; readers do not wait
-- undo:   DROP FUNCTION queue_sizes, worker_sizes, version_sizes, batch_sizes, paces, last_minutes, live_part, queue_share; DROP INDEX {schema}.run_prefix_idx, {schema}.batch_created_at_idx
--
-- What pages ask over and over, of live runs as of those that ended, looks at so many rows and no more, by an index that the planner can't leave: each
-- function takes how many, and says where that was not all. So a page costs the same with a million live runs as with ten thousand.

CREATE INDEX batch_created_at_idx ON {schema}.batch (created_at);

-- ── live runs by queue, worker and version ───────────────────────────────────────────────────────────────────
CREATE FUNCTION {schema}.queue_share(rows_max int4) RETURNS int4
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT greatest(least(greatest($1, 1), 10000000) / greatest((SELECT count(*) FROM {schema}.queue), 1), 10)::int4 $$;
COMMENT ON FUNCTION {schema}.queue_share(int4) IS 'Internal: how many live runs of each queue are looked at, where so many may be in all';

-- Of each queue its share, in the order in which they are claimed: of the first priority before the next, what is due before what is not.
CREATE FUNCTION {schema}.live_part(rows_max int4)
RETURNS TABLE (queue int4, workflow int4, version text, owner int4, wait_kind int2, wait_since timestamptz, share int4)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET enable_memoize = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE v_share int4 := {schema}.queue_share(rows_max);
BEGIN
    RETURN QUERY
    SELECT t.queue, t.workflow, t.version, t.owner, t.wait_kind, t.wait_since, v_share
    FROM {schema}.queue q CROSS JOIN LATERAL (
        SELECT t.* FROM {schema}.task t WHERE t.queue = q.id ORDER BY t.prio, t.ready_at, t.run_id LIMIT v_share) AS t;
END $$;
COMMENT ON FUNCTION {schema}.live_part(int4) IS 'Internal: so many live runs at most, of each queue at most share: where that many are here there may be more';

-- SECURITY DEFINER: a viewer has no right on the tables. What a run's status is, as in task_now.
CREATE FUNCTION {schema}.queue_sizes(rows_max int4 DEFAULT 10000)
RETURNS TABLE (queue text, ready int8, running int8, waiting int8, paused int8, oldest_ready_at timestamptz, complete boolean,
               paused_at timestamptz, paused_by text, paused_reason text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET enable_memoize = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE v_share int4 := {schema}.queue_share(rows_max);
BEGIN
    RETURN QUERY
    SELECT q.name, n.ready, n.running, n.runs - n.ready - n.running - n.paused, n.paused, n.oldest_ready_at, n.runs < v_share, p.paused_at, p.paused_by, p.reason
    FROM {schema}.queue q LEFT JOIN {schema}.queue_pause p ON p.queue = q.id CROSS JOIN LATERAL (
        SELECT count(*) AS runs, count(t.owner) AS running, count(*) FILTER (WHERE t.owner IS NULL AND t.wait_kind = 7) AS paused,
               count(*) FILTER (WHERE t.due) AS ready, min(t.ready_at) FILTER (WHERE t.due) AS oldest_ready_at
        FROM (SELECT t.owner, t.wait_kind, t.ready_at,
                     t.owner IS NULL AND t.ready_at <= now() AND coalesce(t.wait_kind NOT IN (3, 4, 5, 7, 16, 17, 18, 19, 20, 21, 22, 23), true) AS due
              FROM {schema}.task t WHERE t.queue = q.id ORDER BY t.prio, t.ready_at, t.run_id LIMIT v_share) AS t) AS n
    ORDER BY q.name;
END $$;
COMMENT ON FUNCTION {schema}.queue_sizes(int4) IS
    'What stands in each queue, as the view queues; looks at rows_max live runs in all, of each queue the same number: where those were not all, complete is false and each count is at least';

-- SECURITY DEFINER: as queue_sizes.
CREATE FUNCTION {schema}.worker_sizes(rows_max int4 DEFAULT 10000) RETURNS TABLE (worker int4, runs int8, complete boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH part AS MATERIALIZED (SELECT t.queue, t.owner, t.share FROM {schema}.live_part($1) AS t),
         parts AS (SELECT count(*) < max(p.share) AS complete FROM part p GROUP BY p.queue),
         held AS (SELECT p.owner, count(*) AS runs FROM part p WHERE p.owner IS NOT NULL GROUP BY p.owner)
    SELECT w.id, coalesce(h.runs, 0), (SELECT coalesce(bool_and(p.complete), true) FROM parts p)
    FROM {schema}.worker w LEFT JOIN held h ON h.owner = w.id WHERE w.dead_at IS NULL
$$;
COMMENT ON FUNCTION {schema}.worker_sizes(int4) IS
    'How many runs each worker has that is not dead; looks at live runs as queue_sizes: where those were not all, complete is false and runs is at least';

-- SECURITY DEFINER: as queue_sizes.
CREATE FUNCTION {schema}.version_sizes(rows_max int4 DEFAULT 10000)
RETURNS TABLE (workflow text, version text, workers int8, hosts text[], live int8, running int8, code_missing int8, missing_since timestamptz, complete boolean,
               source text, first_seen_at timestamptz, last_seen_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH part AS MATERIALIZED (SELECT t.queue, t.workflow, t.version, t.owner, t.wait_kind, t.wait_since, t.share FROM {schema}.live_part($1) AS t),
    parts AS (SELECT count(*) < max(p.share) AS complete FROM part p GROUP BY p.queue),
    live AS (
        SELECT p.workflow, coalesce(p.version, s.version) AS version, count(*) AS live, count(p.owner) AS running,
               count(*) FILTER (WHERE p.owner IS NULL AND p.wait_kind = 20) AS code_missing, min(p.wait_since) FILTER (WHERE p.wait_kind = 20) AS missing_since
        FROM part p LEFT JOIN {schema}.served s ON s.listed AND s.worker = p.owner AND s.workflow = p.workflow GROUP BY 1, 2),
    holders AS (
        SELECT s.workflow, s.version, count(*) AS workers, array_agg(DISTINCT w.host) AS hosts
        FROM {schema}.served s JOIN {schema}.worker_now w ON w.id = s.worker AND w.alive WHERE s.listed GROUP BY 1, 2),
    named AS (
        SELECT v.workflow, v.version FROM {schema}.workflow_version v
        UNION SELECT l.workflow, l.version FROM live l)
    SELECT w.name, n.version, coalesce(h.workers, 0), coalesce(h.hosts, '{}'), coalesce(l.live, 0), coalesce(l.running, 0), coalesce(l.code_missing, 0), l.missing_since,
           (SELECT coalesce(bool_and(p.complete), true) FROM parts p), v.source, v.first_seen_at, v.last_seen_at
    FROM named n
    JOIN {schema}.workflow w ON w.id = n.workflow
    LEFT JOIN {schema}.workflow_version v ON v.workflow = n.workflow AND v.version = n.version
    LEFT JOIN live l ON l.workflow = n.workflow AND l.version IS NOT DISTINCT FROM n.version
    LEFT JOIN holders h ON h.workflow = n.workflow AND h.version = n.version
    ORDER BY w.name, v.last_seen_at DESC NULLS FIRST, v.first_seen_at DESC, n.version
$$;
COMMENT ON FUNCTION {schema}.version_sizes(int4) IS
    'Versions of workflows, as the view versions without what ended; looks at live runs as queue_sizes: where those were not all, complete is false and live, running and code_missing are at least';

-- ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────
-- SECURITY DEFINER: as queue_sizes. Custom plan: prunes, and goes along run_batch_idx.
CREATE FUNCTION {schema}.batch_sizes(name text DEFAULT NULL, before timestamptz DEFAULT NULL, batches_max int4 DEFAULT 100, rows_max int4 DEFAULT 1000)
RETURNS TABLE (batch text, runs int8, complete boolean, ready int8, running int8, waiting int8, paused int8, completed int8, failed int8, cancelled int8, terminated int8,
               timed_out int8, continued int8, created_at timestamptz, last_started_at timestamptz, last_ended_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_max int4 := least(greatest(rows_max, 1), 10000000);
BEGIN
    RETURN QUERY
    SELECT b.name, m.runs, m.complete, m.ready, m.running, m.waiting, m.paused, m.completed, m.failed, m.cancelled, m.terminated, m.timed_out, m.continued,
           b.created_at, m.last_started_at, m.last_ended_at
    FROM (SELECT b.id, b.name, b.created_at FROM {schema}.batch b
          WHERE ($1 IS NULL OR b.name = $1) AND b.created_at < coalesce($2, 'infinity') ORDER BY b.created_at DESC LIMIT least(greatest($3, 0), 10000)) AS b
    CROSS JOIN LATERAL (
        SELECT count(*) AS runs, count(*) < v_max AS complete, count(*) FILTER (WHERE t.status = 'ready') AS ready, count(*) FILTER (WHERE t.status = 'running') AS running,
               count(*) FILTER (WHERE t.status = 'waiting') AS waiting, count(*) FILTER (WHERE t.status = 'paused') AS paused,
               count(*) FILTER (WHERE o.status = 1) AS completed, count(*) FILTER (WHERE o.status = 2) AS failed, count(*) FILTER (WHERE o.status = 3) AS cancelled,
               count(*) FILTER (WHERE o.status = 4) AS terminated, count(*) FILTER (WHERE o.status = 5) AS timed_out, count(*) FILTER (WHERE o.status = 6) AS continued,
               max(r.created_at) AS last_started_at, max(o.ended_at) AS last_ended_at
        FROM (SELECT r.run_id, r.created_at FROM {schema}.run r WHERE r.batch = b.id ORDER BY r.run_id DESC LIMIT v_max) AS r
        LEFT JOIN {schema}.outcome o ON o.run_id = r.run_id
        LEFT JOIN {schema}.task_now t ON t.run_id = r.run_id) AS m
    ORDER BY b.created_at DESC;
END $$;
COMMENT ON FUNCTION {schema}.batch_sizes(text, timestamptz, int4, int4) IS
    'Batches and what became of their runs, as the view batches, the newest first: one by its name, or those before a moment; looks at the newest rows_max runs of each: where those were not all, complete is false and each count is at least';

-- ── how much begins and ends ─────────────────────────────────────────────────────────────────────────────────
-- As ended_lately for starts as for ends, and counted where they are read: what is asked over and over is numbers alone. run and outcome are insert only, so
-- the last ones stand at the end of each partition. p_columns is one of the two texts below.
CREATE FUNCTION {schema}.last_minutes(p_table regclass, p_columns text, p_from timestamptz, p_max int4)
RETURNS TABLE (minute timestamptz, n int8, completed int8, failed int8, counted_from timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    v_from  timestamptz := p_from;
    v_first timestamptz;
    v_left  int8;
    v_rows  int8;
    v_part  regclass;
    v_high  int8;
    v_step  int4;
    v_size  int4 := current_setting('block_size')::int4;
BEGIN
    FOR v_part IN SELECT i.inhrelid::regclass FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                  WHERE i.inhparent = p_table AND NOT i.inhdetachpending ORDER BY c.relname DESC LOOP
        v_high := pg_relation_size(v_part) / v_size;
        v_left := p_max;
        v_step := 8;
        WHILE v_high > 0 AND v_left > 0 LOOP
            v_rows := 0;
            v_first := NULL;
            FOR minute, n, completed, failed, counted_from IN EXECUTE
                format('SELECT date_bin(interval ''1 minute'', o.at, timestamptz ''epoch''), count(*), count(*) FILTER (WHERE o.status = 1), count(*) FILTER (WHERE o.status IN (2, 5)), min(o.at) '
                       'FROM (SELECT %s FROM %s AS o WHERE o.ctid >= %L::tid AND o.ctid < %L::tid) AS o WHERE o.at >= $1 GROUP BY 1',
                       p_columns, v_part, format('(%s,0)', greatest(v_high - v_step, 0)), format('(%s,0)', v_high)) USING v_from
            LOOP
                v_rows := v_rows + n;
                v_first := least(v_first, counted_from);
                RETURN NEXT;
            END LOOP;
            EXIT WHEN v_rows = 0;
            v_high := v_high - v_step;
            v_step := least(v_step * 2, 128);
            v_left := v_left - v_rows;
            IF v_left <= 0 AND v_high > 0 THEN
                v_from := greatest(v_from, v_first);
            END IF;
        END LOOP;
    END LOOP;
    minute := NULL; n := 0; completed := 0; failed := 0; counted_from := v_from;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION {schema}.last_minutes(regclass, text, timestamptz, int4) IS
    'Internal: starts or ends by the minute since then, the newest, about so many; the last row says from when on they are all of them, to about a second';

-- SECURITY DEFINER: as queue_sizes.
CREATE FUNCTION {schema}.paces(since interval DEFAULT interval '1 hour', rows_max int4 DEFAULT 20000)
RETURNS TABLE (minute timestamptz, counted_s float8, started int8, ended int8, completed int8, failed int8)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_now  timestamptz := now();
    v_from timestamptz := v_now - since;
    v_max  int4 := least(greatest(rows_max, 1), 10000000);
BEGIN
    RETURN QUERY
    WITH begun AS MATERIALIZED (SELECT b.* FROM {schema}.last_minutes('{schema}.run', 'o.created_at AS at, 0 AS status', v_from, v_max) AS b),
    over AS MATERIALIZED (SELECT e.* FROM {schema}.last_minutes('{schema}.outcome', 'o.ended_at AS at, o.status', v_from, v_max) AS e),
    bound AS (SELECT greatest((SELECT b.counted_from FROM begun b WHERE b.minute IS NULL), (SELECT e.counted_from FROM over e WHERE e.minute IS NULL)) AS at),
    both_ways AS (
        SELECT m.minute, 0::int8 AS started, 0::int8 AS ended, 0::int8 AS completed, 0::int8 AS failed
        FROM generate_series((SELECT date_bin(interval '1 minute', b.at, timestamptz 'epoch') FROM bound b), v_now, interval '1 minute') AS m (minute)
        UNION ALL SELECT b.minute, b.n, 0, 0, 0 FROM begun b
        UNION ALL SELECT e.minute, 0, e.n, e.completed, e.failed FROM over e)
    SELECT m.minute, extract(epoch FROM least(m.minute + interval '1 minute', v_now) - greatest(m.minute, (SELECT at FROM bound)))::float8,
           sum(m.started)::int8, sum(m.ended)::int8, sum(m.completed)::int8, sum(m.failed)::int8
    FROM both_ways m WHERE m.minute + interval '1 minute' > (SELECT at FROM bound) AND m.minute <= v_now GROUP BY m.minute ORDER BY m.minute;
END $$;
COMMENT ON FUNCTION {schema}.paces(interval, int4) IS
    'Starts and ends of each minute of the given time, of all workflows together, much cheaper than rates; looks at the newest rows_max of both: what was not looked at has no row, and counted_s says how much of a minute was';

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE one record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ({role_worker_literal}, {role_viewer_literal}, {role_operator_literal}) LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.queue_sizes(int4), {schema}.worker_sizes(int4), {schema}.version_sizes(int4), {schema}.paces(interval, int4), '
                       '{schema}.batch_sizes(text, timestamptz, int4, int4) TO %I', one.rolname);
    END LOOP;
END $$;

-- Keys by what they begin with, whatever the database's collation, of all runs that were started with one; nobody else pays for it.
CREATE INDEX run_prefix_idx ON {schema}.run (key text_pattern_ops) WHERE key IS NOT NULL;
