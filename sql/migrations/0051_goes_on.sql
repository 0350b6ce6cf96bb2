-- deploy: pre            older code does not call what is new
-- lock:   SHARE on outcome: ends of runs wait, a second per million of them
-- undo:   DROP FUNCTION {schema}.goes_on(uuid); DROP INDEX {schema}.outcome_continued_idx; wait_kind.who of schedule_overlap as in 0034
--
-- From a run to the one that goes on with it and back: a successor was found from its predecessor alone, what a retry made in the audit alone.

-- A continued run's result is its successor. Of all others nothing is here.
CREATE INDEX outcome_continued_idx ON {schema}.outcome (result) WHERE status = 6;

-- Its predecessor began before it; an hour for clocks that differ. SECURITY DEFINER: whoever reads runs may read this. Custom plan: prunes.
CREATE FUNCTION {schema}.goes_on(run uuid) RETURNS TABLE (how text, run_id uuid)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    v_named bytea := convert_to('"' || goes_on.run || '"', 'UTF8');
    v_later uuid := {schema}.id_floor({schema}.id_time(goes_on.run) + interval '1 h');
BEGIN
    RETURN QUERY
    SELECT 'continued as', ({schema}.as_json(o.result) #>> '{}')::uuid FROM {schema}.outcome o WHERE o.run_id = goes_on.run AND o.status = 6
    UNION ALL
    SELECT 'retried as', t.made_id FROM {schema}.retried t WHERE t.run_id = goes_on.run
    UNION ALL
    (SELECT 'goes on from', o.run_id FROM {schema}.outcome o WHERE o.status = 6 AND o.result = v_named AND o.run_id < v_later LIMIT 1)
    UNION ALL
    SELECT 'goes on from', t.run_id FROM {schema}.retried t
    WHERE t.run_id = (SELECT r.forked_from FROM {schema}.run r WHERE r.run_id = goes_on.run) AND t.made_id = goes_on.run;
END $$;
COMMENT ON FUNCTION {schema}.goes_on(uuid) IS 'Runs that a run goes on from or that go on with it: continued as, retried as, goes on from; one of each at most, the next of a chain alone';

-- It said who, and not what one does. Which run that is stands in the detail.
UPDATE {schema}.wait_kind k SET who = 'nobody has to; operators can cancel or terminate the run that it is behind' WHERE k.code = 'schedule_overlap';

DO $$
DECLARE one record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ({role_worker_literal}, {role_viewer_literal}, {role_operator_literal}) LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {schema}.goes_on(uuid) TO %I', one.rolname);
    END LOOP;
END $$;
