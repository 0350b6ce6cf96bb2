-- deploy: pre            older clients ask nothing of it; the column of audits is new
-- lock:   ACCESS EXCLUSIVE on the view audits, brief
-- undo:   DROP VIEW {schema}.schedules, {schema}.schedule_fires; DROP FUNCTION of each name; audits as in 0026
--
-- What is done to schedules (0039) and what is seen of them. Each verb locks the schedule's row, raises its version, so that a leader which computed from an
-- older one writes nothing, and leaves its row in audit, in the same transaction.

-- ── the verbs ────────────────────────────────────────────────────────────────────────────────────────────────
CREATE FUNCTION {schema}.the_schedule(p_name text) RETURNS {schema}.schedule
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE s {schema}.schedule;
BEGIN
    SELECT sc.* INTO s FROM {schema}.schedule sc WHERE sc.name = p_name FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no schedule "%"', p_name USING ERRCODE = 'SV039', DETAIL = coalesce(p_name, 'null'), HINT = 'select name from schedules';
    END IF;
    RETURN s;
END $$;
COMMENT ON FUNCTION {schema}.the_schedule(text) IS 'Internal: the row of a schedule, locked; raises SV039';

CREATE FUNCTION {schema}.note_schedule(p_name text, p_verb text, p_reason text, p_actor text, p_details jsonb DEFAULT '{}') RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$ SELECT {schema}.note({schema}.new_id(), p_verb, p_reason, p_actor, jsonb_build_object('schedule', p_name) || p_details) $$;
COMMENT ON FUNCTION {schema}.note_schedule(text, text, text, text, jsonb) IS 'Internal: write down who did what to a schedule, and why';

CREATE FUNCTION {schema}.seconds_of(p_value jsonb) RETURNS float8 LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE v_lasts interval;
BEGIN
    IF jsonb_typeof(p_value) = 'number' THEN
        RETURN p_value::float8;
    END IF;
    v_lasts := (p_value #>> '{}')::interval;
    IF extract(year FROM v_lasts) <> 0 OR extract(month FROM v_lasts) <> 0 THEN
        RAISE EXCEPTION 'months and years have no fixed length: %', v_lasts USING ERRCODE = '22023', HINT = 'say it by cron, or in days';
    END IF;
    RETURN extract(epoch FROM v_lasts);
END $$;
COMMENT ON FUNCTION {schema}.seconds_of(jsonb) IS 'Internal: a duration as a number of seconds, or as PostgreSQL writes an interval';

-- A schedule as p_was is, with what p_spec says of it. Cron and time zone are read by the leader; the rest is checked here.
CREATE FUNCTION {schema}.said_of_schedule(p_was {schema}.schedule, p_spec jsonb) RETURNS {schema}.schedule
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s         {schema}.schedule := p_was;
    v_unknown text;
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
    v_unknown := CASE
        WHEN s.workflow IS NULL THEN 'give its workflow'
        WHEN num_nonnulls(s.cron, s.every_us) <> 1 THEN 'give either cron or every'
        WHEN s.every_us NOT BETWEEN 100000 AND 31622400000000 THEN format('every is between 0.1 s and 366 days, not %s s', s.every_us / 1e6)
        WHEN s.priority NOT BETWEEN 0 AND 9 THEN format('priority %s is not between 0 (first) and 9 (last)', s.priority)
        WHEN NOT coalesce(s.catchup_s >= 10, false) THEN format('catchup is 10 s at least, not %s: a leader that changes takes some of them', s.catchup_s)
        WHEN NOT coalesce(s.jitter_s BETWEEN 0 AND 86400, false) THEN format('jitter is between 0 and 86400 s, not %s', s.jitter_s)
        WHEN s.ends_at <= s.starts_at THEN 'it ends before it begins'
        WHEN length(s.queue) NOT BETWEEN 1 AND 200 THEN 'the name of a queue has 1 to 200 characters'
        WHEN jsonb_typeof(s.attributes) <> 'object' THEN 'attributes are an object by name'
        WHEN length(s.cron) > 200 THEN 'cron has at most 200 characters' END;
    IF v_unknown IS NOT NULL THEN
        RAISE EXCEPTION 'schedule "%": %', s.name, v_unknown USING ERRCODE = 'SV040', DETAIL = json_build_object('schedule', s.name, 'why', v_unknown)::text;
    END IF;
    IF NOT EXISTS (SELECT FROM {schema}.workflow w WHERE w.name = s.workflow) THEN
        RAISE EXCEPTION 'no worker has ever registered a workflow named "%"', s.workflow USING ERRCODE = 'SV001', HINT = 'start a worker whose app defines it, or check the name';
    END IF;
    v_whole := CASE WHEN s.pass_tick IS NULL THEN s.input ELSE s.input || jsonb_build_object(s.pass_tick, {schema}.tick_text('epoch')) END;
    PERFORM {schema}.as_inputs(s.workflow, ARRAY[v_whole]);
    RETURN s;
END $$;
COMMENT ON FUNCTION {schema}.said_of_schedule({schema}.schedule, jsonb) IS 'Internal: a schedule with what is said of it; raises SV040, 22023 for an input that does not fit, SV001';

-- p_how: create (raises SV038 where there is one), change (raises SV039 where there is none), declare (does nothing where p_declared is what was declared last).
-- SECURITY DEFINER: a client may have schedules and must not be able to write the tables otherwise.
CREATE FUNCTION {schema}.put_schedule(p_name text, p_spec jsonb, p_how text, p_declared text, p_reason text, p_actor text) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_was  {schema}.schedule;
    s      {schema}.schedule;
    v_anew boolean;
BEGIN
    IF p_how NOT IN ('create', 'change', 'declare') OR p_how IS NULL THEN
        RAISE EXCEPTION '"%" is none of create, change, declare', p_how USING ERRCODE = '22023';
    ELSIF p_name IS NULL OR length(p_name) NOT BETWEEN 1 AND 200 OR p_name ~ '[[:cntrl:]]' THEN
        RAISE EXCEPTION 'the name of a schedule has 1 to 200 characters that can be printed' USING ERRCODE = '22023';
    ELSIF p_how = 'declare' AND EXISTS (SELECT FROM {schema}.schedule sc WHERE sc.name = p_name AND sc.declared = p_declared) THEN
        RETURN 'unchanged';
    END IF;
    IF p_how = 'change' THEN
        v_was := {schema}.the_schedule(p_name);
        s := {schema}.said_of_schedule(v_was, p_spec);
    ELSE
        s.name := p_name;
        s := {schema}.said_of_schedule(s, p_spec);
        INSERT INTO {schema}.schedule (name, workflow, input, pass_tick, queue, priority, attributes, cron, every_us, timezone, starts_at, ends_at, overlap, catchup_s, jitter_s, declared)
        VALUES (s.name, s.workflow, s.input, s.pass_tick, s.queue, s.priority, s.attributes, s.cron, s.every_us, s.timezone, s.starts_at, s.ends_at, s.overlap, s.catchup_s, s.jitter_s, p_declared)
        ON CONFLICT (name) DO NOTHING;
        IF FOUND THEN
            PERFORM {schema}.note_schedule(p_name, 'schedule_' || p_how, p_reason, p_actor, p_spec);
            RETURN 'created';
        ELSIF p_how = 'create' THEN
            RAISE EXCEPTION 'there is a schedule "%"', p_name USING ERRCODE = 'SV038', DETAIL = p_name, HINT = 'change it, or take another name';
        END IF;
        v_was := {schema}.the_schedule(p_name);
        IF v_was.declared = p_declared THEN            -- by another worker, meanwhile
            RETURN 'unchanged';
        END IF;
    END IF;
    v_anew := (s.cron, s.every_us, s.timezone, s.starts_at, s.ends_at) IS DISTINCT FROM (v_was.cron, v_was.every_us, v_was.timezone, v_was.starts_at, v_was.ends_at);
    UPDATE {schema}.schedule sc
    SET workflow = s.workflow, input = s.input, pass_tick = s.pass_tick, queue = s.queue, priority = s.priority, attributes = s.attributes, cron = s.cron, every_us = s.every_us,
        timezone = s.timezone, starts_at = s.starts_at, ends_at = s.ends_at, overlap = s.overlap, catchup_s = s.catchup_s, jitter_s = s.jitter_s, declared = coalesce(p_declared, sc.declared),
        version = sc.version + 1, after_at = CASE WHEN v_anew THEN clock_timestamp() ELSE sc.after_at END, next_at = NULL, error = NULL, changed_at = clock_timestamp(),
        due_at = CASE WHEN sc.paused_at IS NULL THEN clock_timestamp() ELSE 'infinity' END
    WHERE sc.name = p_name;
    PERFORM {schema}.note_schedule(p_name, 'schedule_' || p_how, p_reason, p_actor, p_spec);
    RETURN 'changed';
END $$;
COMMENT ON FUNCTION {schema}.put_schedule(text, jsonb, text, text, text, text) IS 'create_schedule and change_schedule for programs, and what workers declare: created, changed or unchanged';

-- SECURITY DEFINER of all that follow: as put_schedule.
CREATE FUNCTION {schema}.create_schedule(
    name text, workflow text, input jsonb DEFAULT '{}', cron text DEFAULT NULL, every interval DEFAULT NULL, timezone text DEFAULT 'UTC', overlap text DEFAULT 'skip',
    catchup interval DEFAULT interval '1 hour', jitter interval DEFAULT interval '0', pass_tick text DEFAULT NULL, queue text DEFAULT NULL, priority int4 DEFAULT 5,
    attributes jsonb DEFAULT NULL, starts_at timestamptz DEFAULT NULL, ends_at timestamptz DEFAULT NULL, reason text DEFAULT NULL, actor text DEFAULT NULL) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT {schema}.put_schedule($1, jsonb_strip_nulls(jsonb_build_object('workflow', $2, 'cron', $4, 'every', $5::text, 'timezone', $6, 'overlap', $7, 'catchup', $8::text, 'jitter', $9::text,
        'pass_tick', $10, 'queue', $11, 'priority', $12, 'starts_at', $14, 'ends_at', $15)) || jsonb_build_object('input', coalesce($3, '{}'))
        || CASE WHEN $13 IS NULL THEN '{}' ELSE jsonb_build_object('attributes', $13) END, 'create', NULL, $16, $17)
$$;
COMMENT ON FUNCTION {schema}.create_schedule(text, text, jsonb, text, interval, text, text, interval, interval, text, text, int4, jsonb, timestamptz, timestamptz, text, text) IS
    'Start a workflow again and again, by cron in a time zone or every so often, from now on; the leader reads cron and time zone: what it can''t read stands in schedules.error';

CREATE FUNCTION {schema}.change_schedule(name text, changes jsonb, reason text DEFAULT NULL, actor text DEFAULT NULL) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT {schema}.put_schedule($1, $2, 'change', NULL, $3, $4) $$;
COMMENT ON FUNCTION {schema}.change_schedule(text, jsonb, text, text) IS 'Change what is given of a schedule, by the names of create_schedule; with another cron, every, timezone or bounds it begins anew from now';

CREATE FUNCTION {schema}.pause_schedule(name text, reason text DEFAULT NULL, actor text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE s {schema}.schedule := {schema}.the_schedule(name);
BEGIN
    IF s.paused_at IS NOT NULL THEN
        RETURN false;
    END IF;
    UPDATE {schema}.schedule sc SET paused_at = clock_timestamp(), paused_by = coalesce(actor, session_user), paused_reason = reason, due_at = 'infinity', next_at = NULL, version = sc.version + 1
    WHERE sc.name = s.name;
    PERFORM {schema}.note_schedule(s.name, 'schedule_pause', reason, actor);
    RETURN true;
END $$;
COMMENT ON FUNCTION {schema}.pause_schedule(text, text, text) IS 'Fire no tick of it until it is resumed; its live runs go on. False where it is paused';

CREATE FUNCTION {schema}.resume_schedule(name text, reason text DEFAULT NULL, actor text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE s {schema}.schedule := {schema}.the_schedule(name);
BEGIN
    IF s.paused_at IS NULL THEN
        RETURN false;
    END IF;
    UPDATE {schema}.schedule sc
    SET paused_at = NULL, paused_by = NULL, paused_reason = NULL, after_at = clock_timestamp(), due_at = clock_timestamp(), next_at = NULL, error = NULL, version = sc.version + 1
    WHERE sc.name = s.name;
    PERFORM {schema}.note_schedule(s.name, 'schedule_resume', reason, actor, jsonb_build_object('paused_s', round(extract(epoch FROM clock_timestamp() - s.paused_at), 3)));
    RETURN true;
END $$;
COMMENT ON FUNCTION {schema}.resume_schedule(text, text, text) IS 'Fire it again from its next tick on; those of the pause are not made up for (backfill_schedule does). False where it is not paused';

CREATE FUNCTION {schema}.trigger_schedule(name text, reason text DEFAULT NULL, actor text DEFAULT NULL, overlap text DEFAULT 'allow', notify boolean DEFAULT false, id uuid DEFAULT NULL) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    s      {schema}.schedule := {schema}.the_schedule(name);
    v_done record;
BEGIN
    SELECT f.state, CASE WHEN f.state < 3 THEN f.id END AS run INTO v_done FROM {schema}.schedule_fire f WHERE f.id = trigger_schedule.id;
    IF FOUND THEN                                      -- asked again, for the first answer was lost
        RETURN v_done.run;
    END IF;
    PERFORM {schema}.look_at_live(s.name);
    SELECT f.state, f.run INTO v_done FROM {schema}.fire_tick(s, clock_timestamp(), 2::int2, {schema}.overlap_number(overlap), trigger_schedule.id) AS f;
    UPDATE {schema}.schedule sc
    SET fired = sc.fired + (v_done.run IS NOT NULL)::int4, skipped = sc.skipped + (v_done.state IS NOT DISTINCT FROM 3)::int4, held = sc.held OR v_done.state IS NOT DISTINCT FROM 2,
        last_run = coalesce(v_done.run, sc.last_run), last_at = CASE WHEN v_done.run IS NULL THEN sc.last_at ELSE clock_timestamp() END
    WHERE sc.name = s.name;
    PERFORM {schema}.note_schedule(s.name, 'schedule_trigger', reason, actor, jsonb_build_object('run', v_done.run, 'overlap', overlap));
    IF notify AND v_done.state = 1 THEN
        PERFORM {schema}.announce(s.workflow, s.queue, 1, interval '0');
    END IF;
    RETURN v_done.run;
END $$;
COMMENT ON FUNCTION {schema}.trigger_schedule(text, text, text, text, boolean, uuid) IS 'Start a run of it now, paused or not, beside its ticks; the run, or null where the policy skips it';

CREATE FUNCTION {schema}.backfill_schedule(
    name text, from_at timestamptz, until_at timestamptz, reason text DEFAULT NULL, actor text DEFAULT NULL, overlap text DEFAULT 'allow') RETURNS int8
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s    {schema}.schedule := {schema}.the_schedule(name);
    v_id int8;
BEGIN
    IF NOT coalesce(from_at <= until_at AND isfinite(from_at) AND until_at <= clock_timestamp(), false) THEN
        RAISE EXCEPTION 'a backfill goes from one moment to a later one that is over: not from % to %', from_at, until_at USING ERRCODE = '22023';
    END IF;
    INSERT INTO {schema}.schedule_backfill (schedule, after_at, until_at, overlap)
    VALUES (s.name, from_at - interval '1 microsecond', until_at, {schema}.overlap_number(overlap)) RETURNING id INTO v_id;
    PERFORM {schema}.note_schedule(s.name, 'schedule_backfill', reason, actor, jsonb_build_object('from', from_at, 'until', until_at, 'overlap', overlap));
    RETURN v_id;
END $$;
COMMENT ON FUNCTION {schema}.backfill_schedule(text, timestamptz, timestamptz, text, text, text) IS
    'Have a run started for each tick from one moment to another, both included, that has none; the leader does it bit by bit. Returns the number of the request';

CREATE FUNCTION {schema}.delete_schedule(name text, reason text DEFAULT NULL, actor text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    s      {schema}.schedule := {schema}.the_schedule(name);
    v_held uuid[];
BEGIN
    PERFORM {schema}.look_at_live(s.name);
    v_held := ARRAY(SELECT l.run_id FROM {schema}.schedule_live l WHERE l.schedule = s.name AND l.held ORDER BY l.run_id);
    IF v_held <> '{}' THEN
        PERFORM {schema}.request_cancel(v_held, 'its schedule was deleted', coalesce(actor, session_user));
    END IF;
    DELETE FROM {schema}.schedule_live l WHERE l.schedule = s.name;
    DELETE FROM {schema}.schedule sc WHERE sc.name = s.name;
    PERFORM {schema}.note_schedule(s.name, 'schedule_delete', reason, actor, jsonb_build_object('workflow', s.workflow, 'cron', s.cron, 'every_s', s.every_us / 1e6));
END $$;
COMMENT ON FUNCTION {schema}.delete_schedule(text, text, text) IS 'Forget a schedule. Its live runs go on, those that wait behind them are cancelled; what it fired stays in the history';

-- ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────
CREATE VIEW {schema}.schedules AS
SELECT s.name, s.workflow, s.cron, s.every_us / 1e6::float8 AS every_s, s.timezone,
       CASE WHEN s.paused_at IS NOT NULL THEN 'paused' WHEN s.error IS NOT NULL THEN 'failing' WHEN s.due_at = 'infinity' THEN 'over' ELSE 'active' END AS state,
       s.next_at, s.last_at, s.last_run, s.error, s.fired, s.skipped, s.missed, n.live, n.held, (ARRAY['skip', 'allow', 'buffer_one', 'buffer_all', 'cancel_other', 'terminate_other'])[s.overlap] AS overlap,
       s.paused_at, s.paused_by, s.paused_reason, s.input, s.pass_tick, s.queue, s.priority, s.attributes, s.catchup_s, s.jitter_s, s.starts_at, s.ends_at,
       (SELECT count(*) FROM {schema}.schedule_backfill b WHERE b.schedule = s.name) AS backfills, s.declared IS NOT NULL AS declared, s.created_at, s.changed_at
FROM {schema}.schedule s
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE NOT l.held) AS live, count(*) FILTER (WHERE l.held) AS held
    FROM {schema}.schedule_live l JOIN {schema}.task t ON t.run_id = l.run_id WHERE l.schedule = s.name) AS n;
COMMENT ON VIEW {schema}.schedules IS 'Which workflow is started when, and how that stands';
COMMENT ON COLUMN {schema}.schedules.name IS 'Name of the schedule';
COMMENT ON COLUMN {schema}.schedules.workflow IS 'Name of the workflow that it starts';
COMMENT ON COLUMN {schema}.schedules.cron IS 'When, as cron says it; null where every_s says it';
COMMENT ON COLUMN {schema}.schedules.every_s IS 'How often, in seconds, counted from 1970-01-01 UTC; null where cron says it';
COMMENT ON COLUMN {schema}.schedules.timezone IS 'Time zone that cron is read in';
COMMENT ON COLUMN {schema}.schedules.state IS 'active; paused by somebody; failing (see error); over (no tick is left)';
COMMENT ON COLUMN {schema}.schedules.next_at IS 'The next tick, its jitter not counted; null where there is none, or until the leader has looked (half a second after a change)';
COMMENT ON COLUMN {schema}.schedules.last_at IS 'The tick that was fired last';
COMMENT ON COLUMN {schema}.schedules.last_run IS 'Its run';
COMMENT ON COLUMN {schema}.schedules.error IS 'Why it can''t be fired: a cron or a time zone that can''t be read, or what the database said to its start, which is tried again every minute';
COMMENT ON COLUMN {schema}.schedules.fired IS 'Runs that it has started';
COMMENT ON COLUMN {schema}.schedules.skipped IS 'Ticks that started none, for a run before was live';
COMMENT ON COLUMN {schema}.schedules.missed IS 'Ticks that came while no leader was there, and were older than catchup_s when one was';
COMMENT ON COLUMN {schema}.schedules.live IS 'Runs of it that have begun, or may, and have not ended';
COMMENT ON COLUMN {schema}.schedules.held IS 'Runs of it that wait for those';
COMMENT ON COLUMN {schema}.schedules.overlap IS 'What becomes of a tick while a run is live: skip, allow, buffer_one, buffer_all, cancel_other, terminate_other';
COMMENT ON COLUMN {schema}.schedules.paused_at IS 'Since when it is paused';
COMMENT ON COLUMN {schema}.schedules.paused_by IS 'Who paused it';
COMMENT ON COLUMN {schema}.schedules.paused_reason IS 'Why, as they said';
COMMENT ON COLUMN {schema}.schedules.input IS 'Input of its runs by parameter name, without pass_tick';
COMMENT ON COLUMN {schema}.schedules.pass_tick IS 'Parameter that is given the tick';
COMMENT ON COLUMN {schema}.schedules.queue IS 'Queue of its runs; null: the workflow''s';
COMMENT ON COLUMN {schema}.schedules.priority IS 'Priority of its runs';
COMMENT ON COLUMN {schema}.schedules.attributes IS 'Attributes of its runs';
COMMENT ON COLUMN {schema}.schedules.catchup_s IS 'How late a tick may be and still be fired';
COMMENT ON COLUMN {schema}.schedules.jitter_s IS 'Within how many seconds after its tick a run is started, at a moment that name and tick decide';
COMMENT ON COLUMN {schema}.schedules.starts_at IS 'No tick before';
COMMENT ON COLUMN {schema}.schedules.ends_at IS 'No tick after';
COMMENT ON COLUMN {schema}.schedules.backfills IS 'Backfills that are still at work';
COMMENT ON COLUMN {schema}.schedules.declared IS 'Whether code declares it: a changed declaration is taken over when a worker starts';
COMMENT ON COLUMN {schema}.schedules.created_at IS 'Since when there is one of that name';
COMMENT ON COLUMN {schema}.schedules.changed_at IS 'When its definition was changed last';

CREATE VIEW {schema}.schedule_fires AS
SELECT f.schedule, f.tick_at, f.fired_at, (ARRAY['tick', 'trigger', 'backfill'])[f.kind] AS kind,
       CASE WHEN f.state = 3 THEN 'skipped' WHEN EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = f.id AND t.wait_kind = 18) THEN 'held' ELSE 'started' END AS state,
       CASE WHEN f.state < 3 THEN f.id END AS run_id, 1 AS ticks, NULL::timestamptz AS until_at, f.id
FROM {schema}.schedule_fire f
UNION ALL
SELECT m.schedule, m.from_at, m.noted_at, 'tick', 'missed', NULL, m.ticks, m.until_at, NULL
FROM {schema}.schedule_miss m;
COMMENT ON VIEW {schema}.schedule_fires IS 'What became of the ticks of schedules: ask by schedule, which is indexed with tick_at, or by id. Kept as long as the history of its time';
COMMENT ON COLUMN {schema}.schedule_fires.schedule IS 'Name of the schedule, also of one that was deleted';
COMMENT ON COLUMN {schema}.schedule_fires.tick_at IS 'The tick; of a trigger the moment of it; of several missed ones the first';
COMMENT ON COLUMN {schema}.schedule_fires.fired_at IS 'When the leader, or the trigger, dealt with it';
COMMENT ON COLUMN {schema}.schedule_fires.kind IS 'tick, trigger or backfill';
COMMENT ON COLUMN {schema}.schedule_fires.state IS 'started; held (its run waits for the one before it); skipped (a run before was live); missed (nobody was there, then it was too late)';
COMMENT ON COLUMN {schema}.schedule_fires.run_id IS 'The run; null when none was started';
COMMENT ON COLUMN {schema}.schedule_fires.ticks IS 'How many ticks the row is of: 1, or how many were missed';
COMMENT ON COLUMN {schema}.schedule_fires.until_at IS 'The last of several missed ticks';
COMMENT ON COLUMN {schema}.schedule_fires.id IS 'Of a tick that started a run, the run; indexed';

CREATE OR REPLACE VIEW {schema}.audits AS
SELECT a.n, a.at, a.verb, a.run_id, w.name AS workflow, r.key, a.login, a.actor, a.reason, a.details, a.details ->> 'schedule' AS schedule
FROM {schema}.audit a
LEFT JOIN {schema}.run r ON r.run_id = a.run_id
LEFT JOIN {schema}.workflow w ON w.id = r.workflow;
COMMENT ON VIEW {schema}.audits IS 'What operators did to runs and to schedules, one row each; ask by run_id or by at. Kept as long as the history of its time';
COMMENT ON COLUMN {schema}.audits.verb IS
    'pause, resume, retry, edit_retry, skip, fork; signal, update, complete, fail where an operator did it and said why; schedule_create, schedule_change, schedule_declare (by a worker), schedule_pause, schedule_resume, schedule_trigger, schedule_backfill, schedule_delete';
COMMENT ON COLUMN {schema}.audits.run_id IS 'The run; of a deed on a schedule a number of its own, which names no run';
COMMENT ON COLUMN {schema}.audits.schedule IS 'The schedule that it was done to; null for runs';

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
        ('SELECT ON {schema}.schedules, {schema}.schedule_fires', ARRAY[worker, viewer, operator]),
        ('EXECUTE ON FUNCTION {schema}.put_schedule(text, jsonb, text, text, text, text), '
         '{schema}.create_schedule(text, text, jsonb, text, interval, text, text, interval, interval, text, text, int4, jsonb, timestamptz, timestamptz, text, text), '
         '{schema}.change_schedule(text, jsonb, text, text), {schema}.pause_schedule(text, text, text), {schema}.resume_schedule(text, text, text), '
         '{schema}.trigger_schedule(text, text, text, text, boolean, uuid), {schema}.backfill_schedule(text, timestamptz, timestamptz, text, text, text), '
         '{schema}.delete_schedule(text, text, text)', ARRAY[worker, client, operator])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
