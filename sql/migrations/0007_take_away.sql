-- deploy: pre            one function that nothing older calls
-- lock:   none that anybody waits for
-- undo:   DROP FUNCTION {schema}.take_away(uuid[], timestamptz, int2, text)
--
-- A claimed run is written by its owner alone. Whoever must take it from a live owner makes that owner's fence refuse first:
-- the owner's row is locked (this waits for its batch in flight), its epoch is raised, and only then its task is changed.
-- The refused owner reads its epoch and its tasks again, drops what it lost and sends the rest of its batch once more.
-- A run that is claimed by somebody else in the same moment is left alone: it is not among those returned, ask again.
CREATE FUNCTION {schema}.take_away(
    p_runs uuid[], p_ready_at timestamptz DEFAULT NULL, p_wait_kind int2 DEFAULT 1, p_wait_detail text DEFAULT NULL)
RETURNS SETOF uuid
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_owners int4[];
BEGIN
    PERFORM FROM {schema}.worker w
    WHERE w.id IN (SELECT t.owner FROM {schema}.task t WHERE t.run_id = ANY (p_runs) AND t.owner IS NOT NULL) ORDER BY w.id FOR UPDATE;
    -- a further statement: its snapshot sees what the batches have changed that the locks waited for
    SELECT array_agg(DISTINCT t.owner) INTO v_owners FROM {schema}.task t WHERE t.run_id = ANY (p_runs) AND t.owner IS NOT NULL;
    UPDATE {schema}.worker SET epoch = epoch + 1 WHERE id = ANY (v_owners);
    RETURN QUERY
        WITH theirs AS (
            SELECT t.run_id FROM {schema}.task t WHERE t.run_id = ANY (p_runs) AND t.owner = ANY (v_owners) ORDER BY t.run_id FOR NO KEY UPDATE)
        UPDATE {schema}.task t
        SET owner = NULL, ready_at = coalesce(p_ready_at, clock_timestamp()), wait_kind = p_wait_kind, wait_detail = p_wait_detail,
            wait_since = clock_timestamp(), wait_children = NULL, wait_failed = NULL, resumed = 2, claims = greatest(t.claims - 1, 0)
        FROM theirs WHERE t.run_id = theirs.run_id RETURNING t.run_id;
END $$;
COMMENT ON FUNCTION {schema}.take_away(uuid[], timestamptz, int2, text) IS
    'Take runs from their live owners, in lock order: to be ready at once, at a time, or (infinity) parked; returns those that were taken';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = {role_worker_literal}) THEN
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.take_away(uuid[], timestamptz, int2, text) TO %I', {role_worker_literal});
    END IF;
END $$;
