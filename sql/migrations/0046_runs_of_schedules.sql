-- deploy: pre            older code reads the same columns of runs, and of SV040 what it had
-- lock:   ACCESS EXCLUSIVE on the view runs, brief; SHARE on schedule_fire while its index is made, last: the leader's fires wait, a second per million ticks
-- undo:   DROP VIEW {schema}.schedule_runs, {schema}.workflows after runs as in 0027; said_of_schedule as in 0040; DROP INDEX {schema}.schedule_fire_run_idx
--
-- Which runs a schedule has started, newest first; which workflows there are; and, where what is said of a schedule can't be, which of its terms that is about.

-- ── runs of schedules ────────────────────────────────────────────────────────────────────────────────────────
CREATE VIEW {schema}.schedule_runs AS
SELECT f.schedule, f.id AS run_id FROM {schema}.schedule_fire f WHERE f.state < 3;
COMMENT ON VIEW {schema}.schedule_runs IS 'Which runs schedules have started, by their ticks, triggers and backfills; ask by schedule or by run_id, both are indexed';
COMMENT ON COLUMN {schema}.schedule_runs.schedule IS 'Name of the schedule, also of one that was deleted';
COMMENT ON COLUMN {schema}.schedule_runs.run_id IS 'The run; what became of it is in runs';

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
        WHERE p.run_id = r.run_id ORDER BY p.pos DESC LIMIT 1) AS progress,
       r.forked_from, r.forked_seq,
       (SELECT s.schedule FROM {schema}.schedule_runs s WHERE s.run_id = r.run_id) AS schedule
FROM {schema}.run r
LEFT JOIN {schema}.workflow w ON w.id = r.workflow
LEFT JOIN {schema}.outcome o ON o.run_id = r.run_id
LEFT JOIN {schema}.task_now t ON t.run_id = r.run_id
LEFT JOIN {schema}.queue q ON q.id = coalesce(t.queue, r.queue)
LEFT JOIN {schema}.wait_kind k ON k.id = t.wait
LEFT JOIN {schema}.batch b ON b.id = r.batch;
COMMENT ON COLUMN {schema}.runs.schedule IS 'Schedule that started it; null when none did';

-- ── workflows ────────────────────────────────────────────────────────────────────────────────────────────────
CREATE VIEW {schema}.workflows AS
SELECT w.name AS workflow, q.name AS queue, w.timeout_s, {schema}.as_json(w.parameters) AS parameters, w.registered_at, w.last_seen_at
FROM {schema}.workflow w JOIN {schema}.queue q ON q.id = w.queue;
COMMENT ON VIEW {schema}.workflows IS 'What workers have registered: no run is of any other workflow';
COMMENT ON COLUMN {schema}.workflows.workflow IS 'Name of the workflow';
COMMENT ON COLUMN {schema}.workflows.queue IS 'Queue of its runs where their start names none';
COMMENT ON COLUMN {schema}.workflows.timeout_s IS 'How long a run of it may take, in seconds; null: as long as it likes';
COMMENT ON COLUMN {schema}.workflows.parameters IS 'Its parameters in order: name, whether required, JSON schema';
COMMENT ON COLUMN {schema}.workflows.registered_at IS 'When a worker registered it first';
COMMENT ON COLUMN {schema}.workflows.last_seen_at IS 'When a worker registered it last';

-- ── what is said of a schedule ───────────────────────────────────────────────────────────────────────────────
-- A schedule as p_was is, with what p_spec says of it. Cron and time zone are read by the leader; the rest is checked here.
CREATE OR REPLACE FUNCTION {schema}.said_of_schedule(p_was {schema}.schedule, p_spec jsonb) RETURNS {schema}.schedule
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s         {schema}.schedule := p_was;
    v_unknown text;
    v_wrong   text[];                                  -- which of the terms, and why
    v_whole   jsonb;
BEGIN
    SELECT string_agg(k, ', ') INTO v_unknown FROM jsonb_object_keys(p_spec) AS k
    WHERE k <> ALL (ARRAY['workflow', 'input', 'pass_tick', 'queue', 'priority', 'attributes', 'cron', 'every', 'timezone', 'starts_at', 'ends_at', 'overlap', 'catchup', 'jitter']);
    IF v_unknown IS NOT NULL THEN
        RAISE EXCEPTION 'a schedule has no %', v_unknown USING ERRCODE = 'SV040', DETAIL = json_build_object('schedule', s.name, 'why', 'a schedule has no ' || v_unknown)::text,
            HINT = 'it has workflow, input, pass_tick, queue, priority, attributes, cron, every, timezone, starts_at, ends_at, overlap, catchup, jitter';
    END IF;
    s.workflow := coalesce(p_spec ->> 'workflow', s.workflow);
    s.input := CASE WHEN p_spec ? 'input' THEN p_spec -> 'input' ELSE coalesce(s.input, '{}') END;
    s.pass_tick := CASE WHEN p_spec ? 'pass_tick' THEN p_spec ->> 'pass_tick' ELSE s.pass_tick END;
    s.queue := CASE WHEN p_spec ? 'queue' THEN p_spec ->> 'queue' ELSE s.queue END;
    s.priority := coalesce((p_spec ->> 'priority')::int2, s.priority, 5);
    s.attributes := CASE WHEN p_spec ? 'attributes' THEN nullif(p_spec -> 'attributes', 'null') ELSE s.attributes END;
    IF coalesce(p_spec ->> 'cron', p_spec ->> 'every') IS NOT NULL THEN
        s.cron := p_spec ->> 'cron';
        s.every_us := CASE WHEN p_spec ->> 'every' IS NOT NULL THEN round({schema}.seconds_of(p_spec -> 'every') * 1000000)::int8 END;
    END IF;
    s.timezone := coalesce(p_spec ->> 'timezone', s.timezone, 'UTC');
    s.starts_at := CASE WHEN p_spec ? 'starts_at' THEN (p_spec ->> 'starts_at')::timestamptz ELSE s.starts_at END;
    s.ends_at := CASE WHEN p_spec ? 'ends_at' THEN (p_spec ->> 'ends_at')::timestamptz ELSE s.ends_at END;
    s.overlap := CASE WHEN p_spec ->> 'overlap' IS NOT NULL THEN {schema}.overlap_number(p_spec ->> 'overlap') ELSE coalesce(s.overlap, 1) END;
    s.catchup_s := CASE WHEN p_spec ->> 'catchup' IS NOT NULL THEN {schema}.seconds_of(p_spec -> 'catchup') ELSE coalesce(s.catchup_s, 3600) END;
    s.jitter_s := CASE WHEN p_spec ->> 'jitter' IS NOT NULL THEN {schema}.seconds_of(p_spec -> 'jitter') ELSE coalesce(s.jitter_s, 0) END;
    v_wrong := CASE
        WHEN s.workflow IS NULL THEN ARRAY['workflow', 'give its workflow']
        WHEN num_nonnulls(s.cron, s.every_us) <> 1 THEN ARRAY['cron', 'give either cron or every']
        WHEN s.every_us NOT BETWEEN 100000 AND 31622400000000 THEN ARRAY['every', format('every is between 0.1 s and 366 days, not %s s', s.every_us / 1e6)]
        WHEN s.priority NOT BETWEEN 0 AND 9 THEN ARRAY['priority', format('priority %s is not between 0 (first) and 9 (last)', s.priority)]
        WHEN NOT coalesce(s.catchup_s >= 10, false) THEN ARRAY['catchup', format('catchup is 10 s at least, not %s: a leader that changes takes some of them', s.catchup_s)]
        WHEN NOT coalesce(s.jitter_s BETWEEN 0 AND 86400, false) THEN ARRAY['jitter', format('jitter is between 0 and 86400 s, not %s', s.jitter_s)]
        WHEN s.ends_at <= s.starts_at THEN ARRAY['ends_at', 'it ends before it begins']
        WHEN length(s.queue) NOT BETWEEN 1 AND 200 THEN ARRAY['queue', 'the name of a queue has 1 to 200 characters']
        WHEN jsonb_typeof(s.attributes) <> 'object' THEN ARRAY['attributes', 'attributes are an object by name']
        WHEN length(s.cron) > 200 THEN ARRAY['cron', 'cron has at most 200 characters'] END;
    IF v_wrong IS NOT NULL THEN
        RAISE EXCEPTION 'schedule "%": %', s.name, v_wrong[2] USING ERRCODE = 'SV040', DETAIL = json_build_object('schedule', s.name, 'why', v_wrong[2], 'term', v_wrong[1])::text;
    END IF;
    IF NOT EXISTS (SELECT FROM {schema}.workflow w WHERE w.name = s.workflow) THEN
        RAISE EXCEPTION 'no worker has ever registered a workflow named "%"', s.workflow USING ERRCODE = 'SV001', HINT = 'start a worker whose app defines it, or check the name';
    END IF;
    v_whole := CASE WHEN s.pass_tick IS NULL THEN s.input ELSE s.input || jsonb_build_object(s.pass_tick, {schema}.tick_text('epoch')) END;
    PERFORM {schema}.as_inputs(s.workflow, ARRAY[v_whole]);
    RETURN s;
END $$;

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE one record;
BEGIN
    FOR one IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ({role_worker_literal}, {role_viewer_literal}, {role_operator_literal}) LOOP
        EXECUTE format('GRANT SELECT ON {schema}.schedule_runs, {schema}.workflows TO %I', one.rolname);
    END LOOP;
END $$;

-- Runs of one schedule in the order of lists. Its ticks, in theirs, have the primary key; those that started none are not here.
CREATE INDEX schedule_fire_run_idx ON {schema}.schedule_fire (schedule, id) WHERE state < 3;
