-- deploy: pre            the first migration: nothing older runs against it
-- lock:   none that matters; every object is new
-- undo:   DROP SCHEMA {schema} CASCADE
--
-- What happened never changes (run, step, attempt, outcome, child, child_done: insert only, partitioned by the
-- time in the run id); what is to do is one small row per live run (task), and only that row churns.
-- Run ids are uuid v7: 48 bits of milliseconds by the database's clock, the low 12 bits the cell's number.

-- ── the cell: which database this is ─────────────────────────────────────────────────────────────────────────
CREATE TABLE {schema}.cell (
    only_row          boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    number            int2 NOT NULL DEFAULT 0 CHECK (number BETWEEN 0 AND 4095),
    system_identifier int8 NOT NULL,                   -- of the server that was migrated; a restored clone differs
    partition_days    int4 NOT NULL DEFAULT 7 CHECK (partition_days BETWEEN 1 AND 366),
    created_at        timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE {schema}.cell IS 'One row: this engine''s number, the server it was installed on, how wide its partitions are';

-- ── catalogues ───────────────────────────────────────────────────────────────────────────────────────────────
CREATE TABLE {schema}.wait_kind (
    id      int2 PRIMARY KEY,
    code    text NOT NULL UNIQUE,
    meaning text NOT NULL
);
COMMENT ON TABLE {schema}.wait_kind IS 'The closed list of reasons for which a run is not moving; codes are stable';
INSERT INTO {schema}.wait_kind (id, code, meaning) VALUES
    (1,  'queued',             'ready; a worker with free capacity takes it'),
    (2,  'no_worker',          'ready, but no live worker serves its queue'),
    (3,  'concurrency',        'its queue or group has as many running as it may'),
    (4,  'rate_limited',       'its queue or group has started as many as it may in this period'),
    (5,  'fairness',           'other groups of its queue come first'),
    (6,  'queue_paused',       'its queue is paused'),
    (7,  'run_paused',         'somebody paused it'),
    (8,  'step_running',       'a step of it has been running for more than a second'),
    (9,  'step_backoff',       'a step failed and is retried later'),
    (10, 'timer',              'it sleeps'),
    (11, 'signal',             'it waits for a signal'),
    (12, 'update',             'it waits for an update'),
    (13, 'token',              'it waits for a completion from outside'),
    (14, 'child',              'it waits for child runs'),
    (15, 'any_of',             'it waits for the first of several things'),
    (16, 'debounce',           'its start is delayed while more starts of its kind come in'),
    (17, 'batch',              'its batch is held'),
    (18, 'schedule_overlap',   'the previous run of its schedule has not ended'),
    (19, 'nondeterminism',     'parked: the code no longer does what the history says it did'),
    (20, 'code_missing',       'parked: no worker knows its workflow'),
    (21, 'attempts_exhausted', 'parked: it killed its worker too often'),
    (22, 'crash_loop',         'parked: claimed again and again without a new step'),
    (23, 'commit_rejected',    'parked: the database refuses what it wants to record');

CREATE TABLE {schema}.queue (
    id         int4 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL UNIQUE CHECK (name <> '' AND length(name) <= 200),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE {schema}.queue IS 'Names of queues; a queue exists once a worker or a start has named it';

CREATE TABLE {schema}.workflow (
    id            int4 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name          text NOT NULL UNIQUE CHECK (name <> '' AND length(name) <= 500),
    queue         int4 NOT NULL REFERENCES {schema}.queue (id),
    timeout_s     float8,
    parameters    bytea NOT NULL DEFAULT '[]',         -- JSON: names, required or not, JSON schema of each
    registered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE {schema}.workflow IS 'What workers said they can run; a start of a name that is not here is refused';

-- ── who works ────────────────────────────────────────────────────────────────────────────────────────────────
CREATE TABLE {schema}.worker (
    id            int4 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,   -- never reused: it is the fencing token
    boot          uuid NOT NULL,                                   -- the process, over several ids
    epoch         int4 NOT NULL DEFAULT 1,                         -- raised by whoever takes a run away from it
    host          text NOT NULL,
    pid           int4 NOT NULL,
    supervisor    uuid NOT NULL,                                   -- the parent's boot id
    started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    dead_at       timestamptz,
    death         text
);
CREATE INDEX worker_live_idx ON {schema}.worker (id) WHERE dead_at IS NULL;
COMMENT ON TABLE {schema}.worker IS 'One row per worker incarnation; every batch locks its row FOR SHARE and compares id, boot and epoch';

-- ── what was asked ───────────────────────────────────────────────────────────────────────────────────────────
CREATE TABLE {schema}.run (
    run_id     uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    workflow   int4 NOT NULL,
    queue      int4 NOT NULL,
    prio       int2 NOT NULL,
    codec      int2 NOT NULL DEFAULT 0,
    key        text,
    input      bytea NOT NULL,
    parent_id  uuid,
    parent_seq int4,
    PRIMARY KEY (run_id)
) PARTITION BY RANGE (run_id);
COMMENT ON TABLE {schema}.run IS 'What was asked for; insert only';

CREATE TABLE {schema}.run_key (
    workflow   int4 NOT NULL,
    key        text NOT NULL CHECK (length(key) <= 500),
    run_id     uuid NOT NULL,
    input_hash bytea NOT NULL,
    PRIMARY KEY (workflow, key)
) PARTITION BY HASH (workflow, key);
DO $$ BEGIN
    FOR i IN 0..7 LOOP
        EXECUTE format('CREATE TABLE {schema}.%I PARTITION OF {schema}.run_key FOR VALUES WITH (MODULUS 8, REMAINDER %s)', 'run_key_' || i, i);
    END LOOP;
END $$;
COMMENT ON TABLE {schema}.run_key IS 'Idempotency keys, per workflow; they live as long as their run''s history';

-- ── what is to do now: the only table that churns ────────────────────────────────────────────────────────────
-- fillfactor 50, and no index on owner or with owner in its predicate: a claim writes a new version of every row of a
-- page, onto the same page and without touching an index (HOT). Whoever looks for the tasks of one owner scans: that is
-- the reaper, once per death. Claims pass claimed rows only between two low-water marks.
-- autovacuum: the table is small and turns over completely; a fixed threshold, no sleeping, and no truncation
-- (truncation takes ACCESS EXCLUSIVE and would stop every worker).
CREATE TABLE {schema}.task (
    run_id        uuid PRIMARY KEY,
    ready_at      timestamptz NOT NULL,                -- claimable from then on; infinity = until something wakes it
    queue         int4 NOT NULL,
    workflow      int4 NOT NULL,
    prio          int2 NOT NULL DEFAULT 5,             -- 0 first, 9 last
    resumed       int2 NOT NULL DEFAULT 0,             -- 0 no history, 1 has history, 2 taken from a dead worker
    claims        int2 NOT NULL DEFAULT 0,             -- since it was last given back by a live worker
    owner         int4,                                -- worker.id while claimed
    wait_kind     int2,                                -- wait_kind.id; null and no owner = queued
    attempt       int4,                                -- of the step that step and seq name
    seq           int4,
    step          text,
    wait_children int4,                                -- wakes when that many children have ended,
    wait_failed   int4,                                -- or when more than that many have failed
    wait_since    timestamptz,
    wait_detail   text,
    parent_id     uuid,
    parent_close  int2,
    cancel_at     timestamptz,
    batch         int8,
    group_key     text,
    key           text,
    version       text,
    attributes    bytea,
    input         bytea                                -- a copy of run.input up to 1 KiB, so that a claim reads task alone
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000,
        autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
ALTER TABLE {schema}.task ALTER COLUMN input SET STORAGE MAIN;
CREATE INDEX task_ready_idx ON {schema}.task (queue, prio, ready_at, run_id);
CREATE INDEX task_children_idx ON {schema}.task (run_id) WHERE wait_children IS NOT NULL;
CREATE INDEX task_code_missing_idx ON {schema}.task (run_id) WHERE wait_kind = 20;
COMMENT ON TABLE {schema}.task IS 'One small row per live run: what it does next, who does it, what it waits for';

CREATE TABLE {schema}.timer (
    run_id uuid NOT NULL,
    seq    int4 NOT NULL,
    due_at timestamptz NOT NULL,
    PRIMARY KEY (run_id, seq)
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
COMMENT ON TABLE {schema}.timer IS 'Sleeps of live runs, by the database''s clock; removed when they fire or the run ends';

-- ── what has happened ────────────────────────────────────────────────────────────────────────────────────────
CREATE TABLE {schema}.step (
    run_id     uuid NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at   timestamptz NOT NULL,
    seq        int4 NOT NULL,                          -- order of calls
    pos        int4 NOT NULL,                          -- order of deliveries into the workflow
    worker     int4 NOT NULL,
    kind       int2 NOT NULL,                          -- 1 step, 2 timer, 3 child, 4 child start
    status     int2 NOT NULL,                          -- 1 completed, 2 failed, 3 cancelled
    name       text NOT NULL,
    result     bytea,                                  -- JSON of the result, or of the error
    PRIMARY KEY (run_id, seq)
) PARTITION BY RANGE (run_id);
COMMENT ON TABLE {schema}.step IS 'Finished steps, timers and joined children; insert only, one row each';

CREATE TABLE {schema}.attempt (
    run_id        uuid NOT NULL,
    seq           int4 NOT NULL,
    n             int4 NOT NULL,
    kind          int2 NOT NULL,                       -- 1 failed, 2 started (an at_most_once step commits its start)
    started_at    timestamptz NOT NULL,
    ended_at      timestamptz,
    next_retry_at timestamptz,
    worker        int4 NOT NULL,
    name          text NOT NULL,
    error         bytea,
    fingerprint   text,
    PRIMARY KEY (run_id, seq, n, kind)
) PARTITION BY RANGE (run_id);
COMMENT ON TABLE {schema}.attempt IS 'Tries of steps that failed, and durable starts of at_most_once steps; insert only';

CREATE TABLE {schema}.outcome (
    run_id     uuid NOT NULL,
    ended_at   timestamptz NOT NULL,
    worker     int4,
    steps      int4 NOT NULL,
    status     int2 NOT NULL,                          -- 1 completed 2 failed 3 cancelled 4 terminated 5 timed_out 6 continued
    result     bytea,                                  -- JSON of the result, or of the error
    version    text,
    attributes bytea,
    PRIMARY KEY (run_id)
) PARTITION BY RANGE (run_id);
COMMENT ON TABLE {schema}.outcome IS 'How runs ended; insert only';

CREATE TABLE {schema}.child (
    parent_id uuid NOT NULL,
    seq       int4 NOT NULL,
    run_id    uuid NOT NULL,
    PRIMARY KEY (parent_id, seq)
) PARTITION BY RANGE (parent_id);
COMMENT ON TABLE {schema}.child IS 'Which run a parent''s command started; insert only';

CREATE TABLE {schema}.child_done (
    parent_id uuid NOT NULL,
    n         int4 NOT NULL,                           -- ended
    failed    int4 NOT NULL                            -- of those: ended otherwise than completed
) PARTITION BY RANGE (parent_id);
CREATE INDEX child_done_parent_idx ON {schema}.child_done (parent_id);
COMMENT ON TABLE {schema}.child_done IS 'How many children of a parent ended in one batch; insert only';
