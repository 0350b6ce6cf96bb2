-- deploy: pre            older leaders fire nothing
-- lock:   none
-- undo:   DROP FUNCTION of each name; DROP TABLE {schema}.schedule, {schema}.schedule_fire, {schema}.schedule_miss, {schema}.schedule_live, {schema}.schedule_backfill
--
-- Schedules: which workflow is started when. A tick is a moment that a schedule names, by cron in a time zone or every so many microseconds. The leader
-- computes ticks (no cron is parsed here) and hands those that are due to fire_schedules: in one transaction the fire is written down, its run is started and the
-- schedule moves on. So a leader that is killed anywhere has done all of that or none, and the primary key of schedule_fire says once more that a tick fires once.
-- A run that has to wait for the one before it is there and parked (wait_kind 18); the leader wakes it.
-- Lock order (sql/README.md): rows of schedule, by name, before everything that a start, a cancel or an end locks.

CREATE TABLE {schema}.schedule (
    name          text PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 200),
    workflow      text NOT NULL,
    input         jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(input) = 'object'),
    pass_tick     text,
    queue         text,
    priority      int2 NOT NULL DEFAULT 5 CHECK (priority BETWEEN 0 AND 9),
    attributes    jsonb,
    cron          text,
    every_us      int8 CHECK (every_us >= 100000),
    timezone      text NOT NULL DEFAULT 'UTC',
    starts_at     timestamptz,
    ends_at       timestamptz,
    overlap       int2 NOT NULL DEFAULT 1 CHECK (overlap BETWEEN 1 AND 6),
    catchup_s     float8 NOT NULL DEFAULT 3600 CHECK (catchup_s >= 10),
    jitter_s      float8 NOT NULL DEFAULT 0 CHECK (jitter_s BETWEEN 0 AND 86400),
    version       int8 NOT NULL DEFAULT 1,
    after_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    next_at       timestamptz,
    due_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    held          boolean NOT NULL DEFAULT false,
    error         text,
    paused_at     timestamptz,
    paused_by     text,
    paused_reason text,
    declared      text,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_at       timestamptz,
    last_run      uuid,
    fired         int8 NOT NULL DEFAULT 0,
    skipped       int8 NOT NULL DEFAULT 0,
    missed        int8 NOT NULL DEFAULT 0,
    CHECK (num_nonnulls(cron, every_us) = 1)
) WITH (fillfactor = 70);                              -- each fire updates its row, and due_at is indexed
CREATE INDEX schedule_due_idx ON {schema}.schedule (due_at);
CREATE INDEX schedule_held_idx ON {schema}.schedule (name) WHERE held;
COMMENT ON TABLE {schema}.schedule IS 'Which workflow is started when; changed by the verbs and by the leader''s fires, under the lock of the row';
COMMENT ON COLUMN {schema}.schedule.input IS 'Input of its runs by parameter name, without the one that is given the tick';
COMMENT ON COLUMN {schema}.schedule.pass_tick IS 'Parameter of the workflow that is given the tick';
COMMENT ON COLUMN {schema}.schedule.overlap IS '1 skip, 2 allow, 3 buffer_one, 4 buffer_all, 5 cancel_other, 6 terminate_other';
COMMENT ON COLUMN {schema}.schedule.version IS 'Raised by each verb, so that a leader which computed from an older definition writes nothing';
COMMENT ON COLUMN {schema}.schedule.after_at IS 'Ticks up to here are dealt with';
COMMENT ON COLUMN {schema}.schedule.next_at IS 'The next tick; null: none, or the leader has not computed it yet';
COMMENT ON COLUMN {schema}.schedule.due_at IS 'When the leader looks at it: the next tick and its jitter, at once after a change, infinity where there is nothing to do';
COMMENT ON COLUMN {schema}.schedule.held IS 'Whether a run of it is parked behind another one';
COMMENT ON COLUMN {schema}.schedule.declared IS 'Hash of its declaration in code; null where it was made at run time';

CREATE TABLE {schema}.schedule_fire (
    schedule text NOT NULL,
    tick_at  timestamptz NOT NULL,
    id       uuid NOT NULL,
    fired_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind     int2 NOT NULL,
    state    int2 NOT NULL,
    PRIMARY KEY (schedule, tick_at)
);
CREATE UNIQUE INDEX schedule_fire_id_idx ON {schema}.schedule_fire (id);
COMMENT ON TABLE {schema}.schedule_fire IS 'One row per tick that was reached: insert only, but that a backfill starts what was skipped. Goes with the history of its time';
COMMENT ON COLUMN {schema}.schedule_fire.id IS 'The run; of a tick that started none an id of the same clock, so that retention finds it by its range';
COMMENT ON COLUMN {schema}.schedule_fire.kind IS '1 by its time, 2 triggered, 3 backfilled';
COMMENT ON COLUMN {schema}.schedule_fire.state IS '1 started, 2 started behind another run, 3 skipped';

CREATE TABLE {schema}.schedule_miss (
    schedule text NOT NULL,
    from_at  timestamptz NOT NULL,
    until_at timestamptz NOT NULL,
    ticks    int4 NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (schedule, from_at)
);
COMMENT ON TABLE {schema}.schedule_miss IS 'Ticks that nobody was there to fire and that were too old when somebody was; insert only, goes with the history of its time';

CREATE TABLE {schema}.schedule_live (
    schedule text NOT NULL,
    run_id   uuid NOT NULL,
    held     boolean NOT NULL,
    PRIMARY KEY (schedule, run_id)
);
COMMENT ON TABLE {schema}.schedule_live IS 'Runs of schedules that have not been seen to have ended; changed under the lock of the schedule''s row';

CREATE TABLE {schema}.schedule_backfill (
    id       int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    schedule text NOT NULL REFERENCES {schema}.schedule (name) ON DELETE CASCADE,
    after_at timestamptz NOT NULL,
    until_at timestamptz NOT NULL,
    overlap  int2 NOT NULL CHECK (overlap BETWEEN 1 AND 6),
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX schedule_backfill_schedule_idx ON {schema}.schedule_backfill (schedule);
COMMENT ON TABLE {schema}.schedule_backfill IS 'Ranges of ticks that somebody asked for; the leader works them off, and a row goes with its last tick';

CREATE FUNCTION {schema}.overlap_number(p_name text) RETURNS int2 LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE v_names text[] := ARRAY['skip', 'allow', 'buffer_one', 'buffer_all', 'cancel_other', 'terminate_other'];
BEGIN
    IF array_position(v_names, p_name) IS NULL THEN
        RAISE EXCEPTION 'overlap "%" is none of %', p_name, array_to_string(v_names, ', ') USING ERRCODE = '22023';
    END IF;
    RETURN array_position(v_names, p_name);
END $$;
COMMENT ON FUNCTION {schema}.overlap_number(text) IS 'Internal: number of a policy; raises 22023';

CREATE FUNCTION {schema}.tick_text(p_tick timestamptz) RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT to_char($1 AT TIME ZONE 'UTC', CASE WHEN extract(microseconds FROM $1)::int8 % 1000000 = 0 THEN 'YYYY-MM-DD"T"HH24:MI:SS"Z"' ELSE 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"' END) $$;
COMMENT ON FUNCTION {schema}.tick_text(timestamptz) IS 'Internal: a tick as runs and keys have it, UTC';

-- ── firing: under the lock of the schedule's row ─────────────────────────────────────────────────────────────
-- What is known of its live runs: those that ended go, those that continued as new ones are followed, those that began are held no more.
CREATE FUNCTION {schema}.look_at_live(p_schedule text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    one   record;
    v_run uuid;
    v_was uuid;
BEGIN
    FOR one IN SELECT l.run_id FROM {schema}.schedule_live l
               WHERE l.schedule = p_schedule AND NOT EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = l.run_id) LOOP
        DELETE FROM {schema}.schedule_live l WHERE l.schedule = p_schedule AND l.run_id = one.run_id;
        v_was := one.run_id;
        LOOP                                           -- each question has a newer snapshot: the chain may grow meanwhile
            v_run := {schema}.newest(v_was);
            IF v_run <> one.run_id AND EXISTS (SELECT FROM {schema}.task t WHERE t.run_id = v_run) THEN
                INSERT INTO {schema}.schedule_live (schedule, run_id, held) VALUES (p_schedule, v_run, false) ON CONFLICT DO NOTHING;
                EXIT;
            END IF;
            EXIT WHEN v_run = v_was;
            v_was := v_run;
        END LOOP;
    END LOOP;
    UPDATE {schema}.schedule_live l SET held = false FROM {schema}.task t
    WHERE l.schedule = p_schedule AND l.held AND t.run_id = l.run_id AND t.wait_kind IS DISTINCT FROM 18 AND t.wait_kind IS DISTINCT FROM 7;
END $$;
COMMENT ON FUNCTION {schema}.look_at_live(text) IS 'Internal: bring up to date which runs of a schedule are live; the caller has its row locked';

-- Returns null where the tick was fired before, else 1 started, 2 started behind another run, 3 skipped.
CREATE FUNCTION {schema}.fire_tick(s {schema}.schedule, p_tick timestamptz, p_kind int2, p_overlap int2, p_id uuid, OUT state int2, OUT run uuid)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_live uuid[];
    v_held uuid[];
    v_id   uuid := coalesce(p_id, {schema}.new_id());
    v_met  record;
BEGIN
    SELECT coalesce(array_agg(l.run_id) FILTER (WHERE NOT l.held), '{}'), coalesce(array_agg(l.run_id) FILTER (WHERE l.held), '{}') INTO v_live, v_held
    FROM {schema}.schedule_live l WHERE l.schedule = s.name AND p_overlap <> 2;
    state := CASE
        WHEN p_overlap IN (2, 6) OR v_live || v_held = '{}' THEN 1
        WHEN p_overlap = 1 OR p_overlap IN (3, 5) AND v_held <> '{}' OR cardinality(v_held) >= 1000 THEN 3
        ELSE 2 END;
    INSERT INTO {schema}.schedule_fire AS f (schedule, tick_at, id, kind, state) VALUES (s.name, p_tick, v_id, p_kind, state)
    ON CONFLICT (schedule, tick_at) DO UPDATE SET id = excluded.id, kind = excluded.kind, state = excluded.state, fired_at = excluded.fired_at
    WHERE f.state = 3 AND excluded.kind = 3 AND excluded.state < 3;
    IF NOT FOUND THEN
        state := NULL;
        RETURN;
    ELSIF state = 3 THEN
        RETURN;
    END IF;
    IF p_overlap = 5 AND v_live <> '{}' THEN
        PERFORM {schema}.request_cancel(v_live, 'the next run of its schedule is due', left('schedule ' || s.name, 200));
    ELSIF p_overlap = 6 AND v_live || v_held <> '{}' THEN
        v_live := {schema}.end_runs(v_live || v_held, 4::int2, {schema}.error_json('RunTerminated', 'the next run of its schedule is due'));
        INSERT INTO {schema}.cancellation (run_id, how, actor, reason)
        SELECT u.id, 4, left('schedule ' || s.name, 200), 'the next run of its schedule is due' FROM unnest(v_live) AS u (id) ON CONFLICT DO NOTHING;
        DELETE FROM {schema}.schedule_live l WHERE l.schedule = s.name AND l.run_id = ANY (v_live);
    END IF;
    SELECT st.run_id INTO v_met FROM {schema}.start_runs(
        s.workflow, ARRAY[v_id],
        ARRAY[convert_to((CASE WHEN s.pass_tick IS NULL THEN s.input ELSE s.input || jsonb_build_object(s.pass_tick, {schema}.tick_text(p_tick)) END)::text, 'UTF8')],
        ARRAY[s.name || '@' || {schema}.tick_text(p_tick)], NULL, s.queue, s.priority, interval '0', convert_to(s.attributes::text, 'UTF8')) AS st;
    IF FOUND THEN                                      -- somebody else has used that key: it names that run, and no second one is begun
        UPDATE {schema}.schedule_fire f SET id = v_met.run_id WHERE f.schedule = s.name AND f.tick_at = p_tick
          AND NOT EXISTS (SELECT FROM {schema}.schedule_fire o WHERE o.id = v_met.run_id);
        run := v_met.run_id;
        RETURN;
    END IF;
    run := v_id;
    IF state = 2 THEN                                  -- its own time begins when it is woken
        UPDATE {schema}.task t SET ready_at = 'infinity', cancel_at = NULL, wait_kind = 18, wait_since = clock_timestamp(),
            wait_detail = jsonb_build_object('schedule', s.name, 'behind', coalesce(v_held[cardinality(v_held)], v_live[cardinality(v_live)]))::text
        WHERE t.run_id = v_id;
    END IF;
    INSERT INTO {schema}.schedule_live (schedule, run_id, held) VALUES (s.name, v_id, state = 2);
END $$;
COMMENT ON FUNCTION {schema}.fire_tick({schema}.schedule, timestamptz, int2, int2, uuid) IS
    'Internal: what becomes of one tick, by the policy; the caller has the schedule''s row locked and has looked at its live runs';

-- What the leader computed from rows of schedule, if they still are what it read: those that somebody has locked or changed are left for its next look.
-- One that fails (its workflow takes no such queue, …) gets its error and is tried again in a minute; its neighbours are fired.
-- p_due: JSON array of {name, version, was, after, next, due, error, ticks: [time], missed: {from, until, n}, backfill: id}
-- SECURITY DEFINER: a worker's role starts and fires by this alone. Custom plan: prunes.
CREATE FUNCTION {schema}.fire_schedules(p_due jsonb) RETURNS TABLE (workflow text, queue text, runs int8)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    one    record;
    s      {schema}.schedule;
    v_tick timestamptz;
    v_done record;
    v_kind int2;
    v_how  int2;
    v_all  jsonb := '[]';
BEGIN
    FOR one IN
        SELECT u.* FROM jsonb_to_recordset(p_due) AS u (
            name text, version int8, was timestamptz, after timestamptz, next timestamptz, due timestamptz, error text, ticks timestamptz[], missed jsonb, backfill int8)
        ORDER BY u.name, u.backfill NULLS FIRST
    LOOP
        SELECT sc.* INTO s FROM {schema}.schedule sc
        WHERE sc.name = one.name AND sc.version = one.version AND (one.backfill IS NOT NULL OR sc.after_at = one.was) FOR NO KEY UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        v_kind := CASE WHEN one.backfill IS NULL THEN 1 ELSE 3 END;
        v_how := s.overlap;
        IF one.backfill IS NOT NULL THEN
            SELECT b.overlap INTO v_how FROM {schema}.schedule_backfill b WHERE b.id = one.backfill AND b.after_at = one.was;
            CONTINUE WHEN NOT FOUND;
        END IF;
        BEGIN
            IF one.missed IS NOT NULL THEN
                INSERT INTO {schema}.schedule_miss (schedule, from_at, until_at, ticks)
                VALUES (s.name, (one.missed ->> 'from')::timestamptz, (one.missed ->> 'until')::timestamptz, (one.missed ->> 'n')::int4) ON CONFLICT DO NOTHING;
                s.missed := s.missed + (one.missed ->> 'n')::int4;
            END IF;
            IF cardinality(one.ticks) > 0 THEN
                PERFORM {schema}.look_at_live(s.name);
            END IF;
            FOREACH v_tick IN ARRAY coalesce(one.ticks, '{}') LOOP
                SELECT f.state, f.run INTO v_done FROM {schema}.fire_tick(s, v_tick, v_kind, v_how, NULL) AS f;
                s.skipped := s.skipped + (v_done.state IS NOT DISTINCT FROM 3)::int4;
                IF v_done.run IS NOT NULL THEN
                    s.fired := s.fired + 1;
                    s.last_run := v_done.run;
                    s.last_at := v_tick;
                    s.held := s.held OR v_done.state = 2;
                    v_all := v_all || jsonb_build_array(jsonb_build_array(s.workflow, s.queue));
                END IF;
            END LOOP;
            UPDATE {schema}.schedule sc
            SET fired = s.fired, skipped = s.skipped, missed = s.missed, last_run = s.last_run, last_at = s.last_at, held = s.held,
                after_at = CASE WHEN one.backfill IS NULL THEN one.after ELSE sc.after_at END, next_at = CASE WHEN one.backfill IS NULL THEN one.next ELSE sc.next_at END,
                due_at = CASE WHEN one.backfill IS NULL THEN one.due ELSE sc.due_at END, error = CASE WHEN one.backfill IS NULL THEN one.error ELSE sc.error END
            WHERE sc.name = s.name;
            UPDATE {schema}.schedule_backfill b SET after_at = one.after WHERE b.id = one.backfill AND one.next IS NOT NULL;
            DELETE FROM {schema}.schedule_backfill b WHERE b.id = one.backfill AND one.next IS NULL;
        EXCEPTION
            WHEN OTHERS THEN
                IF SQLSTATE ~ '^(08|40|53|55|57|58|XX)' THEN
                    RAISE;                             -- nothing of the schedule's: all of it is tried again
                END IF;
                UPDATE {schema}.schedule sc SET error = left(SQLERRM, 2000), due_at = clock_timestamp() + interval '60 s' WHERE sc.name = s.name;
                DELETE FROM {schema}.schedule_backfill b WHERE b.id = one.backfill;
        END;
    END LOOP;
    RETURN QUERY SELECT e.it ->> 0, e.it ->> 1, count(*) FROM jsonb_array_elements(v_all) AS e (it) GROUP BY 1, 2;
END $$;
COMMENT ON FUNCTION {schema}.fire_schedules(jsonb) IS 'Internal: fire what the leader has computed and move the schedules on, all in its transaction; what was started, to be announced';

-- Runs that wait for the one before them: of each schedule whose live runs have ended the oldest goes.
-- SECURITY DEFINER: as fire_schedules. Custom plan: prunes.
CREATE FUNCTION {schema}.release_held(p_max int4) RETURNS TABLE (workflow text, queue text, runs int8)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    one   record;
    v_run uuid;
    v_all jsonb := '[]';
BEGIN
    FOR one IN
        SELECT sc.name, sc.workflow, sc.queue FROM {schema}.schedule sc
        WHERE sc.held
          AND NOT EXISTS (SELECT FROM {schema}.schedule_live l JOIN {schema}.task t ON t.run_id = l.run_id WHERE l.schedule = sc.name AND NOT l.held)
          AND (NOT EXISTS (SELECT FROM {schema}.schedule_live l JOIN {schema}.task t ON t.run_id = l.run_id WHERE l.schedule = sc.name AND l.held)
               OR EXISTS (SELECT FROM {schema}.schedule_live l JOIN {schema}.task t ON t.run_id = l.run_id
                          WHERE l.schedule = sc.name AND l.held AND t.wait_kind IS DISTINCT FROM 7))
        ORDER BY sc.name LIMIT p_max FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        PERFORM {schema}.look_at_live(one.name);
        IF NOT EXISTS (SELECT FROM {schema}.schedule_live l WHERE l.schedule = one.name AND NOT l.held) THEN
            SELECT t.run_id INTO v_run FROM {schema}.schedule_live l JOIN {schema}.task t ON t.run_id = l.run_id
            WHERE l.schedule = one.name AND l.held AND t.wait_kind = 18 ORDER BY t.run_id LIMIT 1 FOR NO KEY UPDATE OF t;
            IF FOUND THEN
                UPDATE {schema}.task t SET ready_at = clock_timestamp(), wait_kind = 1, wait_detail = NULL, wait_since = clock_timestamp(),
                    cancel_at = clock_timestamp() + w.timeout_s * interval '1 s'
                FROM {schema}.workflow w WHERE t.run_id = v_run AND w.id = t.workflow;
                UPDATE {schema}.schedule_live l SET held = false WHERE l.schedule = one.name AND l.run_id = v_run;
                v_all := v_all || jsonb_build_array(jsonb_build_array(one.workflow, one.queue));
            END IF;
        END IF;
        UPDATE {schema}.schedule sc SET held = EXISTS (SELECT FROM {schema}.schedule_live l WHERE l.schedule = one.name AND l.held) WHERE sc.name = one.name;
    END LOOP;
    RETURN QUERY SELECT e.it ->> 0, e.it ->> 1, count(*) FROM jsonb_array_elements(v_all) AS e (it) GROUP BY 1, 2;
END $$;
COMMENT ON FUNCTION {schema}.release_held(int4) IS 'Internal: wake runs that waited for the run before them of their schedule, now that it has ended';

-- ── retention ────────────────────────────────────────────────────────────────────────────────────────────────
-- SECURITY DEFINER: as fire_schedules.
CREATE FUNCTION {schema}.drop_fires(p_suffix text, p_after uuid, p_max int4, OUT n int8, OUT last uuid)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE v_ids uuid[];
BEGIN
    n := 0;
    SELECT array_agg(f.id ORDER BY f.id) INTO v_ids
    FROM {schema}.retired r CROSS JOIN LATERAL (
        SELECT f.id FROM {schema}.schedule_fire f WHERE f.id > greatest(p_after, {schema}.id_floor({schema}.id_time(r.low))) AND f.id < r.high ORDER BY f.id LIMIT p_max) AS f
    WHERE r.suffix = p_suffix;
    n := coalesce(cardinality(v_ids), 0);
    last := v_ids[n];
    DELETE FROM {schema}.schedule_fire f WHERE f.id = ANY (v_ids);
    IF n < p_max THEN
        DELETE FROM {schema}.schedule_miss m USING {schema}.retired r WHERE r.suffix = p_suffix AND m.noted_at < {schema}.id_time(r.high);
    END IF;
END $$;
COMMENT ON FUNCTION {schema}.drop_fires(text, uuid, int4) IS 'Forget one slice of what schedules fired in the time of a detached partition; how many, and the last of them';

-- ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────
DO $$
DECLARE
    worker text := {role_worker_literal};
    one    record;
BEGIN
    FOR one IN SELECT g.what, r.rolname FROM (VALUES
        ('SELECT ON {schema}.schedule, {schema}.schedule_backfill', ARRAY[worker]),
        ('EXECUTE ON FUNCTION {schema}.fire_schedules(jsonb), {schema}.release_held(int4), {schema}.drop_fires(text, uuid, int4)', ARRAY[worker])
    ) AS g (what, roles) JOIN pg_roles r ON r.rolname = ANY (g.roles) LOOP
        EXECUTE format('GRANT %s TO %I', one.what, one.rolname);
    END LOOP;
END $$;
