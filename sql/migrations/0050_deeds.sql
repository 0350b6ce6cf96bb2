-- deploy: pre            older clients call move_runs by its first six arguments, and their moves leave rows without a reason
-- lock:   none
-- undo:   DROP FUNCTION {schema}.move_runs(text, text, text, uuid, int4, boolean, text, text), then move_runs as in 0024, with its rights
--
-- A move says who and why, as every other deed on runs does.

-- As in 0024, but that each run that is moved has its row of audit.
DROP FUNCTION {schema}.move_runs(text, text, text, uuid, int4, boolean);
CREATE FUNCTION {schema}.move_runs(
    workflow text, from_version text, to_version text, after uuid DEFAULT NULL, max_runs int4 DEFAULT 500, dry_run boolean DEFAULT false,
    reason text DEFAULT NULL, actor text DEFAULT NULL,
    OUT moved int8, OUT claimed int8, OUT last uuid)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
AS $$
#variable_conflict use_variable
DECLARE
    v_workflow int4;
    v_slice    uuid[];
    v_runs     uuid[];
BEGIN
    IF max_runs IS NULL OR max_runs NOT BETWEEN 1 AND 500 THEN
        RAISE EXCEPTION 'max_runs % is not between 1 and 500', max_runs USING ERRCODE = '22023', HINT = 'move them in slices';
    END IF;
    SELECT w.id INTO v_workflow FROM {schema}.workflow w WHERE w.name = move_runs.workflow;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no worker has ever registered a workflow named "%"', workflow USING ERRCODE = 'SV001';
    ELSIF NOT EXISTS (SELECT FROM {schema}.workflow_version v WHERE v.workflow = v_workflow AND v.version = to_version) THEN
        RAISE EXCEPTION 'no worker has ever had version "%" of workflow "%"', coalesce(to_version, 'null'), workflow USING ERRCODE = 'SV026',
            DETAIL = json_build_object('workflow', workflow, 'version', to_version, 'known', ARRAY(
                SELECT v.version FROM {schema}.workflow_version v WHERE v.workflow = v_workflow ORDER BY v.last_seen_at DESC LIMIT 10))::text,
            HINT = 'start a worker that has it first';
    END IF;
    IF current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    v_slice := ARRAY(SELECT t.run_id FROM {schema}.task t
                     WHERE t.run_id > coalesce(after, '00000000-0000-0000-0000-000000000000') AND t.workflow = v_workflow
                       AND (t.version = from_version OR from_version IS NULL AND t.version IS NULL AND t.owner IS NULL AND t.resumed > 0
                            OR t.version IS NULL AND t.owner IS NOT NULL AND {schema}.version_of(t.owner, v_workflow) = from_version)
                     ORDER BY t.run_id LIMIT max_runs);
    last := v_slice[cardinality(v_slice)];
    v_runs := ARRAY(SELECT t.run_id FROM {schema}.task t
                    WHERE t.run_id = ANY (v_slice) AND t.owner IS NULL AND t.version IS NOT DISTINCT FROM from_version
                    ORDER BY t.run_id FOR NO KEY UPDATE SKIP LOCKED);
    moved := cardinality(v_runs);
    claimed := cardinality(v_slice) - moved;
    IF dry_run THEN
        RETURN;
    END IF;
    UPDATE {schema}.task t SET version = to_version,
        wait_kind = CASE WHEN t.wait_kind = 19 THEN 20 ELSE t.wait_kind END,
        wait_detail = CASE WHEN t.wait_kind IN (19, 20) THEN json_build_object('wants', to_version, 'moved_from', from_version)::text ELSE t.wait_detail END,
        wait_since = CASE WHEN t.wait_kind = 19 THEN clock_timestamp() ELSE t.wait_since END
    WHERE t.run_id = ANY (v_runs);
    PERFORM {schema}.note(m.run_id, 'move', reason, actor, jsonb_build_object('from', from_version, 'to', to_version)) FROM unnest(v_runs) AS m (run_id);
END $$;
COMMENT ON FUNCTION {schema}.move_runs(text, text, text, uuid, int4, boolean, text, text) IS
    'Give one slice of the live runs of a version (null: of none) to another version, with a row of audit for each: how many were moved, how many of the slice workers have or others have locked, and after which run to go on (null: that was all)';
COMMENT ON COLUMN {schema}.audit.verb IS 'pause, resume, retry, edit_retry, skip, fork, move; signal, update, complete, fail where an operator did it and said why';
COMMENT ON COLUMN {schema}.audits.verb IS
    'pause, resume, retry, edit_retry, skip, fork, move, cancel, terminate; signal, update, complete, fail where an operator did it and said why; schedule_create, schedule_change, schedule_declare (by a worker), schedule_pause, schedule_resume, schedule_trigger, schedule_backfill, schedule_delete; queue_pause, queue_resume';

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE
    worker   text := {role_worker_literal};
    operator text := {role_operator_literal};
    one      record;
BEGIN
    FOR one IN SELECT g.what, r.rolname FROM (VALUES
        ('EXECUTE ON FUNCTION {schema}.move_runs(text, text, text, uuid, int4, boolean, text, text)', ARRAY[worker, operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
