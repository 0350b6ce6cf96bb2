-- Wake-ups. All of them are hints: whoever is not told finds the work by looking, a little later.

-- name: announce_starts :one
-- Tell the hosts of this cell that runs were started, or who waits that runs were ended without a worker. In a transaction of its own, after the start's: NOTIFY takes a
-- lock of the whole cluster until its transaction has ended. It need not survive a crash, so nobody waits for the disk.
-- Locks:  the cluster's queue of notifications, at its commit     Index:  none
-- $1 text channel    $2 text what was started, as JSON, or ids of what was ended
SELECT pg_catalog.set_config('synchronous_commit', 'off', true), pg_catalog.pg_notify($1, $2);

-- name: announce_each :many
-- Several notifications in one transaction, with nothing else in it: which runs a client awaits, which of them have ended. As above, nobody waits for the disk.
-- Locks:  the cluster's queue of notifications, at its commit     Index:  none
-- $1 text[] channel    $2 text[] payload
SELECT pg_catalog.set_config('synchronous_commit', 'off', true), pg_catalog.pg_notify(u.channel, u.payload)
FROM ROWS FROM (pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[])) AS u (channel, payload);

-- name: client_backend :one
-- Ask which backend this is: what libpq was told when it connected, unless a pooler is in between.
-- Locks:  none     Index:  none
-- Returns process id
SELECT pg_catalog.pg_backend_pid();

-- name: pulse :one
-- Is anything due in these queues, and when is the next? Part of `beat` and `seek_lead`. Looks at the first *depth* entries of each queue and priority:
-- where all of those are claimed it says so, and a claim, which has marks, has to look. Queues that are paused have nothing due. What is parked because its code was missing is due
-- where a worker of this host has that code; while nothing is parked so, that costs one look at an index.
-- Locks:  none.     Index:  task_ready_idx, one range per (queue, priority); queue_name_key, workflow_name_key, queue_pkey; task_missing_idx,
-- worker_live_idx, workflow_version_pkey; queue_pause_pkey
-- $1 text[] queue (null: those of the workflows)    $2 text[] workflow    $3 int4 depth    $4 uuid supervisor
-- Returns how many are due (at most depth for each queue and priority), s until the next one after them (null: none), whether claimed ones hide the rest
WITH served AS MATERIALIZED (
    SELECT s.id
    FROM (SELECT q.id FROM {schema}.queue q WHERE q.name = ANY (%(queues)s::text[])
          UNION
          SELECT w.queue FROM {schema}.workflow w WHERE %(queues)s::text[] IS NULL AND w.name = ANY (%(workflows)s::text[])) AS s
    WHERE s.id <> ALL (ARRAY(SELECT p.queue FROM {schema}.queue_pause p))),
missing AS MATERIALIZED (
    SELECT count(*) AS n FROM {schema}.missing p JOIN served ON served.id = p.queue
    WHERE EXISTS (SELECT FROM {schema}.worker w CROSS JOIN LATERAL unnest(w.serves) AS s (id) JOIN {schema}.workflow_version m ON m.id = s.id
                  WHERE w.dead_at IS NULL AND w.supervisor = %(supervisor)s::uuid AND m.workflow = p.workflow AND {schema}.accepts(m.version, p.pin)))
SELECT coalesce(sum(head.due), 0)::int8 + (SELECT n FROM missing) AS due, extract(epoch FROM min(head.next_at) - clock_timestamp())::float8 AS next_s,
       coalesce(bool_or(head.hidden), false) AS hidden
FROM served, generate_series(0, 9) AS level (prio),
     LATERAL (
        SELECT count(*) FILTER (WHERE r.owner IS NULL AND r.ready_at <= statement_timestamp()) AS due,
               min(r.ready_at) FILTER (WHERE r.owner IS NULL AND r.ready_at > statement_timestamp() AND isfinite(r.ready_at)) AS next_at,
               count(r.owner) >= %(depth)s::int4 AS hidden
        FROM (SELECT t.owner, t.ready_at FROM {schema}.task t WHERE t.queue = served.id AND t.prio = level.prio::int2
              ORDER BY t.ready_at, t.run_id LIMIT %(depth)s::int4) AS r) AS head;
