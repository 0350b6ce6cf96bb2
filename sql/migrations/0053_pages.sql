-- deploy: pre            older code asks batch_sizes and children for what they had
-- lock:   ACCESS EXCLUSIVE on the view children, brief
-- undo:   DROP FUNCTION {schema}.batch_sizes(text, timestamptz, int4, int4, text); batch_sizes as in 0044, children as in 0011 (DROP VIEW first)
--
-- A page of batches went on by a moment alone: of those that were made at the moment of its last one, some were on no page. And what a child went on as
-- could be found from the child alone, one run after the other.

DROP FUNCTION {schema}.batch_sizes(text, timestamptz, int4, int4);

-- SECURITY DEFINER: as queue_sizes. Custom plan: prunes, and goes along run_batch_idx. The first line of the page's condition is what batch_created_at_idx is asked.
CREATE FUNCTION {schema}.batch_sizes(name text DEFAULT NULL, before timestamptz DEFAULT NULL, batches_max int4 DEFAULT 100, rows_max int4 DEFAULT 1000, before_name text DEFAULT NULL)
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
          WHERE ($1 IS NULL OR b.name = $1) AND b.created_at <= coalesce($2, 'infinity')
            AND ($2 IS NULL OR b.created_at < $2 OR b.name < $5)
          ORDER BY b.created_at DESC, b.name DESC LIMIT least(greatest($3, 0), 10000)) AS b
    CROSS JOIN LATERAL (
        SELECT count(*) AS runs, count(*) < v_max AS complete, count(*) FILTER (WHERE t.status = 'ready') AS ready, count(*) FILTER (WHERE t.status = 'running') AS running,
               count(*) FILTER (WHERE t.status = 'waiting') AS waiting, count(*) FILTER (WHERE t.status = 'paused') AS paused,
               count(*) FILTER (WHERE o.status = 1) AS completed, count(*) FILTER (WHERE o.status = 2) AS failed, count(*) FILTER (WHERE o.status = 3) AS cancelled,
               count(*) FILTER (WHERE o.status = 4) AS terminated, count(*) FILTER (WHERE o.status = 5) AS timed_out, count(*) FILTER (WHERE o.status = 6) AS continued,
               max(r.created_at) AS last_started_at, max(o.ended_at) AS last_ended_at
        FROM (SELECT r.run_id, r.created_at FROM {schema}.run r WHERE r.batch = b.id ORDER BY r.run_id DESC LIMIT v_max) AS r
        LEFT JOIN {schema}.outcome o ON o.run_id = r.run_id
        LEFT JOIN {schema}.task_now t ON t.run_id = r.run_id) AS m
    ORDER BY b.created_at DESC, b.name DESC;
END $$;
COMMENT ON FUNCTION {schema}.batch_sizes(text, timestamptz, int4, int4, text) IS
    'Batches and what became of their runs, as the view batches, the newest first: one by its name, or those before a moment, and of those made at that moment the ones before a name; looks at the newest rows_max runs of each: where those were not all, complete is false and each count is at least';

DO $$
DECLARE one record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ({role_worker_literal}, {role_viewer_literal}, {role_operator_literal}) LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.batch_sizes(text, timestamptz, int4, int4, text) TO %I', one.rolname);
    END LOOP;
END $$;

-- child_continued_pkey, read backwards; nothing where the column is not asked for.
CREATE OR REPLACE VIEW {schema}.children AS
SELECT c.parent_id, c.seq, c.run_id,
       coalesce((SELECT x.run_id FROM {schema}.child_continued x WHERE x.parent_id = c.parent_id AND x.seq = c.seq ORDER BY x.n DESC LIMIT 1), c.run_id) AS newest_id
FROM {schema}.child c;
COMMENT ON COLUMN {schema}.children.newest_id IS 'The run that it went on as at last; itself where it did not';
