-- deploy: pre            older workers neither write nor read what is new: what they give back stays unpinned, as before
-- lock:   ACCESS EXCLUSIVE on worker, brief: a column without a default; on task while the new index is made: 0.2 s per million live runs; on the
--         views runs and steps, brief
-- undo:   DROP VIEW {schema}.versions, {schema}.served, {schema}.missing; DROP FUNCTION of each new name; DROP INDEX {schema}.task_missing_idx; runs as in 0022,
--         steps as in 0021, take_away as in 0007; ALTER TABLE {schema}.worker DROP COLUMN serves; DROP TABLE {schema}.workflow_version
--
-- Which code a run is of. A worker says once, when it registers, which version of each workflow it has; so who has a run says of which
-- version it is, and a run that ends in its first worker's memory has nothing written for it. Its pin, task.version, is written where its row
-- is written anyway: when it leaves memory, and when its worker is declared dead. Code of another version gives it back as code_missing.

CREATE TABLE {schema}.workflow_version (
    id            int4 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workflow      int4 NOT NULL REFERENCES {schema}.workflow (id),
    version       text NOT NULL CHECK (version <> ''),
    source        text NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (workflow, version)
);
COMMENT ON TABLE {schema}.workflow_version IS 'Versions of workflows that workers have said they can run';
COMMENT ON COLUMN {schema}.workflow_version.workflow IS 'workflow.id';
COMMENT ON COLUMN {schema}.workflow_version.version IS 'Its name or the hash of its code, and behind plus signs the patches that this code knows';
COMMENT ON COLUMN {schema}.workflow_version.source IS 'Module and function';
COMMENT ON COLUMN {schema}.workflow_version.first_seen_at IS 'When a worker first had it';
COMMENT ON COLUMN {schema}.workflow_version.last_seen_at IS 'When a worker with it last registered';

ALTER TABLE {schema}.worker ADD COLUMN serves int4[];
COMMENT ON COLUMN {schema}.worker.serves IS 'workflow_version.id of each workflow that it has; written once, before its first claim';

-- In it while it is parked because code is missing; none of its columns changes in a claim.
CREATE INDEX task_missing_idx ON {schema}.task (queue, workflow, (coalesce(version, '')), run_id) WHERE wait_kind = 20;

UPDATE {schema}.wait_kind SET meaning = 'parked: no worker has its workflow in its version',
    freed_by = 'start a worker whose app has its workflow in that version, or move it: python -m supervisor versions move --help'
WHERE code = 'code_missing';
UPDATE {schema}.wait_kind SET freed_by = 'bring back the code that it was started with, then: select retry(run_id)' WHERE code = 'nondeterminism';

-- Which queue, workflow and pin they have, however many they are: one look at the index for each, and one where none is.
CREATE VIEW {schema}.missing AS
WITH RECURSIVE each AS (
    (SELECT t.queue, t.workflow, coalesce(t.version, '') AS pin FROM {schema}.task t WHERE t.wait_kind = 20
     ORDER BY t.queue, t.workflow, coalesce(t.version, ''), t.run_id LIMIT 1)
    UNION ALL
    SELECT n.queue, n.workflow, n.pin FROM each e CROSS JOIN LATERAL (
        SELECT t.queue, t.workflow, coalesce(t.version, '') AS pin FROM {schema}.task t
        WHERE t.wait_kind = 20 AND (t.queue, t.workflow, coalesce(t.version, '')) > (e.queue, e.workflow, e.pin)
        ORDER BY t.queue, t.workflow, coalesce(t.version, ''), t.run_id LIMIT 1) AS n)
SELECT queue, workflow, pin FROM each;
COMMENT ON VIEW {schema}.missing IS 'Internal: of what runs are parked because code is missing; an empty pin: of any version';

-- ── which version ────────────────────────────────────────────────────────────────────────────────────────────
CREATE FUNCTION {schema}.accepts(mine text, pin text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
RETURN pin = '' OR split_part(mine, '+', 1) = split_part(pin, '+', 1) AND string_to_array(pin, '+') <@ string_to_array(mine, '+');
COMMENT ON FUNCTION {schema}.accepts(text, text) IS
    'Whether code of one version may go on with a run of another: the same base, and every patch that the run may have met; an empty one is of any';

CREATE VIEW {schema}.served AS
SELECT w.id AS worker, w.dead_at IS NULL AS listed, v.workflow, v.version
FROM {schema}.worker w CROSS JOIN LATERAL unnest(w.serves) AS s (id) JOIN {schema}.workflow_version v ON v.id = s.id;
COMMENT ON VIEW {schema}.served IS 'Internal: which version of each workflow a worker has or had';

CREATE FUNCTION {schema}.version_of(p_worker int4, p_workflow int4) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT v.version FROM {schema}.worker w JOIN {schema}.workflow_version v ON v.workflow = p_workflow AND v.id = ANY (w.serves) WHERE w.id = p_worker $$;
COMMENT ON FUNCTION {schema}.version_of(int4, int4) IS 'Internal: the version of a workflow that a worker has or had';

-- Custom plan: prunes. One question after the other: what a run with a step, a try or a timer never needs is not even planned, so nobody who holds
-- what was published or noted holds it up.
CREATE FUNCTION {schema}.has_begun(p_run uuid) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.step s WHERE s.run_id = p_run) OR EXISTS (SELECT FROM {schema}.attempt a WHERE a.run_id = p_run AND a.kind <= 2)
       OR EXISTS (SELECT FROM {schema}.timer t WHERE t.run_id = p_run) OR EXISTS (SELECT FROM {schema}.child c WHERE c.parent_id = p_run) THEN
        RETURN true;
    END IF;
    RETURN EXISTS (SELECT FROM {schema}.publication p WHERE p.run_id = p_run) OR EXISTS (SELECT FROM {schema}.progress_note n WHERE n.run_id = p_run);
END $$;
COMMENT ON FUNCTION {schema}.has_begun(uuid) IS 'Internal: whether anything of a run is durable, so that it is of some version';

CREATE FUNCTION {schema}.pin(p_run uuid, p_version text, p_worker int4, p_workflow int4) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN coalesce(p_version, CASE WHEN {schema}.has_begun(p_run) THEN {schema}.version_of(p_worker, p_workflow) END);
END $$;
COMMENT ON FUNCTION {schema}.pin(uuid, text, int4, int4) IS
    'Internal: the version that a run stays with when its worker has not given it back: the one that it had, or that of the worker''s code if it has begun';

-- Custom plan: prunes.
CREATE FUNCTION {schema}.run_version(p_run uuid) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_workflow int4;
    v_worker   int4;
    v_version  text;
BEGIN
    SELECT t.workflow, t.owner, t.version INTO v_workflow, v_worker, v_version FROM {schema}.task t WHERE t.run_id = p_run;
    IF NOT FOUND THEN
        SELECT r.workflow, coalesce(o.worker, (SELECT s.worker FROM {schema}.step s WHERE s.run_id = p_run ORDER BY s.run_id DESC, s.seq DESC LIMIT 1)), o.version
        INTO v_workflow, v_worker, v_version
        FROM {schema}.run r LEFT JOIN {schema}.outcome o ON o.run_id = r.run_id AND o.run_id = p_run WHERE r.run_id = p_run;
    END IF;
    RETURN coalesce(v_version, {schema}.version_of(v_worker, v_workflow));
END $$;
COMMENT ON FUNCTION {schema}.run_version(uuid) IS 'Internal: the version of one run, live or ended; null where it has none';

-- As in 0007, but for the pin.
CREATE OR REPLACE FUNCTION {schema}.take_away(
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
            wait_since = clock_timestamp(), wait_children = NULL, wait_failed = NULL, resumed = 2, claims = greatest(t.claims - 1, 0),
            version = {schema}.pin(t.run_id, t.version, t.owner, t.workflow)
        FROM theirs WHERE t.run_id = theirs.run_id RETURNING t.run_id;
END $$;

-- ── move ─────────────────────────────────────────────────────────────────────────────────────────────────────
-- What is parked for its code stays so under its new version, and a worker that has that takes it from there. SECURITY DEFINER: an operator may
-- move runs and must not be able to write task otherwise.
CREATE FUNCTION {schema}.move_runs(
    workflow text, from_version text, to_version text, after uuid DEFAULT NULL, max_runs int4 DEFAULT 500, dry_run boolean DEFAULT false,
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
END $$;
COMMENT ON FUNCTION {schema}.move_runs(text, text, text, uuid, int4, boolean) IS
    'Give one slice of the live runs of a version (null: of none) to another version: how many were moved, how many of the slice workers have or others have locked, and after which run to go on (null: that was all)';

-- ── views ────────────────────────────────────────────────────────────────────────────────────────────────────
-- Of runs that ended: those that were started within the last hour, as in throughput.
CREATE VIEW {schema}.versions AS
WITH live AS (
    SELECT t.workflow, coalesce(t.version, s.version) AS version, count(*) AS live, count(t.owner) AS running,
           count(*) FILTER (WHERE t.owner IS NULL AND t.wait_kind = 20) AS code_missing, min(t.wait_since) FILTER (WHERE t.wait_kind = 20) AS missing_since
    FROM {schema}.task t LEFT JOIN {schema}.served s ON s.listed AND s.worker = t.owner AND s.workflow = t.workflow
    GROUP BY 1, 2),
ended AS (
    SELECT e.workflow, coalesce(e.version, s.version) AS version, sum(e.n)::int8 AS n
    FROM (SELECT r.workflow, o.worker, o.version, count(*) AS n
          FROM {schema}.outcome o JOIN {schema}.run r ON r.run_id = o.run_id
          WHERE o.run_id >= {schema}.id_floor(now() - interval '1 hour') AND r.run_id >= {schema}.id_floor(now() - interval '1 hour')
          GROUP BY 1, 2, 3) AS e
    LEFT JOIN {schema}.served s ON e.version IS NULL AND s.worker = e.worker AND s.workflow = e.workflow
    GROUP BY 1, 2),
holders AS (
    SELECT s.workflow, s.version, count(*) AS workers, array_agg(DISTINCT w.host) AS hosts
    FROM {schema}.served s JOIN {schema}.worker_now w ON w.id = s.worker AND w.alive WHERE s.listed GROUP BY 1, 2),
named AS (
    SELECT v.workflow, v.version FROM {schema}.workflow_version v
    UNION SELECT l.workflow, l.version FROM live l
    UNION SELECT e.workflow, e.version FROM ended e)
SELECT w.name AS workflow, n.version, coalesce(h.workers, 0) AS workers, coalesce(h.hosts, '{}') AS hosts, coalesce(l.live, 0) AS live,
       coalesce(l.running, 0) AS running, coalesce(l.code_missing, 0) AS code_missing, l.missing_since, coalesce(e.n, 0) AS ended_1h,
       v.source, v.first_seen_at, v.last_seen_at
FROM named n
JOIN {schema}.workflow w ON w.id = n.workflow
LEFT JOIN {schema}.workflow_version v ON v.workflow = n.workflow AND v.version = n.version
LEFT JOIN live l ON l.workflow = n.workflow AND l.version IS NOT DISTINCT FROM n.version
LEFT JOIN ended e ON e.workflow = n.workflow AND e.version IS NOT DISTINCT FROM n.version
LEFT JOIN holders h ON h.workflow = n.workflow AND h.version = n.version;
COMMENT ON VIEW {schema}.versions IS 'Versions of workflows: who has them, and how many runs are of each; counts live runs, as queues does';
COMMENT ON COLUMN {schema}.versions.workflow IS 'Name of the workflow';
COMMENT ON COLUMN {schema}.versions.version IS 'Its version; null for runs that have not begun, or were last given back before there were versions';
COMMENT ON COLUMN {schema}.versions.workers IS 'Live workers that have exactly this version';
COMMENT ON COLUMN {schema}.versions.hosts IS 'Hosts of these workers';
COMMENT ON COLUMN {schema}.versions.live IS 'Live runs of it';
COMMENT ON COLUMN {schema}.versions.running IS 'Those of them that workers have';
COMMENT ON COLUMN {schema}.versions.code_missing IS 'Those of them that are parked because nobody who claimed them could run them';
COMMENT ON COLUMN {schema}.versions.missing_since IS 'Since when the first of these is parked';
COMMENT ON COLUMN {schema}.versions.ended_1h IS 'Runs of it that were started within the last hour and have ended';
COMMENT ON COLUMN {schema}.versions.source IS 'Module and function of the code';
COMMENT ON COLUMN {schema}.versions.first_seen_at IS 'When a worker first had it';
COMMENT ON COLUMN {schema}.versions.last_seen_at IS 'When a worker with it last registered';

-- As in 0022, but for the version: of a live run that of who has it, of one that ended that of who ended it, else of who recorded its last step.
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
        WHERE p.run_id = r.run_id ORDER BY p.pos DESC LIMIT 1) AS progress
FROM {schema}.run r
LEFT JOIN {schema}.workflow w ON w.id = r.workflow
LEFT JOIN {schema}.outcome o ON o.run_id = r.run_id
LEFT JOIN {schema}.task_now t ON t.run_id = r.run_id
LEFT JOIN {schema}.queue q ON q.id = coalesce(t.queue, r.queue)
LEFT JOIN {schema}.wait_kind k ON k.id = t.wait
LEFT JOIN {schema}.batch b ON b.id = r.batch;
COMMENT ON COLUMN {schema}.runs.version IS 'Version of the code that it is pinned to, or that executes or ended it; null before it has begun';

CREATE OR REPLACE VIEW {schema}.steps AS
SELECT s.run_id, s.seq, s.pos, s.name,
       CASE s.kind WHEN 15 THEN 'patch'
            ELSE (ARRAY['step', 'timer', 'child', 'child_start', 'signal', 'compensation', 'cancellation', 'handlers_finished', 'update'])[s.kind] END AS kind,
       (ARRAY['completed', 'failed', 'cancelled'])[s.status] AS status,
       s.started_at, s.ended_at, extract(epoch FROM s.ended_at - s.started_at)::float8 * 1000 AS duration_ms, s.worker,
       CASE WHEN s.status = 1 THEN {schema}.as_json(s.result, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = s.run_id)) END AS result,
       CASE WHEN s.status <> 1 THEN {schema}.as_json(s.result, (SELECT r.codec FROM {schema}.run r WHERE r.run_id = s.run_id)) END AS error
FROM {schema}.step s;
COMMENT ON VIEW {schema}.steps IS 'Finished steps, timers, children, received signals, accepted updates and met patches of runs, and that they were cancelled, one row each; ask by run_id';
COMMENT ON COLUMN {schema}.steps.name IS 'Name of the step, timer, child workflow, signal, update or patch';
COMMENT ON COLUMN {schema}.steps.kind IS
    'step, timer, child (its end), child_start, signal (a wait for one), cancellation (that the run was told of one, or that its time is over), compensation (what it undoes), update (that one was accepted, with its argument as result), handlers_finished, patch (that it took the new branch)';

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE
    worker   text := {role_worker_literal};
    viewer   text := {role_viewer_literal};
    operator text := {role_operator_literal};
    one      record;
BEGIN
    FOR one IN SELECT g.what, r.rolname FROM (VALUES
        ('SELECT, INSERT, UPDATE ON {schema}.workflow_version', ARRAY[worker]),
        ('USAGE ON SEQUENCE {schema}.workflow_version_id_seq', ARRAY[worker]),
        ('SELECT ON {schema}.served, {schema}.missing', ARRAY[worker]),
        ('SELECT ON {schema}.versions', ARRAY[worker, viewer, operator]),
        ('EXECUTE ON FUNCTION {schema}.accepts(text, text), {schema}.version_of(int4, int4), {schema}.has_begun(uuid), {schema}.run_version(uuid), '
         '{schema}.pin(uuid, text, int4, int4)', ARRAY[worker]),
        ('EXECUTE ON FUNCTION {schema}.move_runs(text, text, text, uuid, int4, boolean)', ARRAY[worker, operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
