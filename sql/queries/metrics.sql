-- What a host's metrics ask, every few seconds at most, in one transaction that reads and is bounded in time: views and catalogue alone, so a viewer's role
-- is enough. Every host asks the same, so nothing here may cost more where there is more history.

-- name: metrics_waits :many
-- Live runs by what they wait for, and by queue.
-- Locks:  none.     Index:  task_wait_idx, task_ready_idx, at most $1 entries of each reason, queue and priority
-- $1 int4 at most     Returns code, queue, runs, age_s: of the one that waits longest
SELECT g.code, g.queue, pg_catalog.sum(g.runs)::pg_catalog.int8 AS runs,
       extract(epoch FROM pg_catalog.clock_timestamp() - pg_catalog.min(g.since))::pg_catalog.float8 AS age_s
FROM {schema}.wait_groups($1) AS g GROUP BY g.code, g.queue;

-- name: metrics_queues :many
-- Names of queues.
-- Locks:  none.     Index:  none: a row per queue
-- $1 int4 limit
SELECT q.queue FROM {schema}.queues AS q ORDER BY q.queue LIMIT $1::pg_catalog.int4;

-- name: metrics_hosts :many
-- How many workers there are, who leads, and how far the schema is.
-- Locks:  none.     Index:  none: a row per worker's life and per term
SELECT (SELECT count(*) FROM {schema}.workers AS w WHERE w.state = 'alive') AS alive, (SELECT count(*) FROM {schema}.workers AS w WHERE w.state = 'lost') AS lost,
       count(l.term) AS leaders, extract(epoch FROM pg_catalog.clock_timestamp() - pg_catalog.max(l.beat_at))::pg_catalog.float8 AS leader_age_s,
       (SELECT pg_catalog.max(m.number) FROM {schema}.migration AS m) AS migration
FROM {schema}.leaders AS l WHERE l.leads;

-- name: metrics_server :many
-- The server as far as it bears on this engine: how old transactions are, how many sessions there are.
-- Locks:  none.     Index:  none: catalogue and statistics
SELECT (SELECT pg_catalog.age(d.datfrozenxid) FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database()) AS xid_age,
       pg_catalog.max(pg_catalog.age(a.backend_xmin)) AS xmin_age,
       extract(epoch FROM pg_catalog.clock_timestamp() - pg_catalog.min(a.xact_start) FILTER (WHERE a.pid <> pg_catalog.pg_backend_pid() AND a.backend_type = 'client backend'))::pg_catalog.float8 AS transaction_s,
       count(*) AS connections, pg_catalog.current_setting('max_connections')::pg_catalog.int4 AS connections_max
FROM pg_catalog.pg_stat_activity AS a;
