-- deploy: pre            older workers never call it: their losers go on as before
-- lock:   none
-- undo:   DROP FUNCTION {schema}.lose_children(uuid[], int4[])
--
-- A child run that lost in `first`, or beside a branch of `gather` that failed, is cancelled like every other loser, in the batch that records the loss. It went on until
-- its parent ended, and booked what nobody waited for.

-- SECURITY DEFINER: as close_children.
CREATE FUNCTION {schema}.lose_children(p_parents uuid[], p_seqs int4[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE one record;
BEGIN
    FOR one IN
        SELECT c.parent_id AS id, array_agg({schema}.newest(c.run_id)) AS kids
        FROM unnest(p_parents, p_seqs) AS u (parent, seq) JOIN {schema}.child c ON c.parent_id = u.parent AND c.seq = u.seq
        WHERE c.parent_id = ANY (p_parents) GROUP BY c.parent_id ORDER BY c.parent_id
    LOOP
        PERFORM {schema}.request_cancel(one.kids, 'its parent does not wait for it any more', 'run ' || one.id);
    END LOOP;
END $$;
COMMENT ON FUNCTION {schema}.lose_children(uuid[], int4[]) IS 'Internal: branches of runs lost that had called these children; ask that they be cancelled, with all below them';

DO $$
DECLARE one record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname = {role_worker_literal} LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.lose_children(uuid[], int4[]) TO %I', one.rolname);
    END LOOP;
END $$;
