"""A history that nobody executed: millions of finished runs, thousands of live ones, for questions of what reading costs.

Rows go by INSERT … SELECT through the real tables, partitions and indexes, in pieces that are committed each: a filling that was interrupted goes on
where it was. Runs end over SPAN_DAYS days before the filling began; each measurement adds some that ended within its last hour (`freshen`).
"""

from __future__ import annotations

import time
from typing import Any, LiteralString
from uuid import UUID

from psycopg import sql

from supervisor.bench import harness
from supervisor.bench.harness import Place, Say

SPAN_DAYS = 28
PIECE = 100_000  # runs of a transaction
RECENT = 20_000  # runs that ended within the last hour, at most
LIVE = 5_000  # at most; fewer where there are few that ended
LONG_STEPS, SHORT_STEPS = 10_000, 12
TELL_S = 5.0

# An id of the moment `at` whose other digits come from n: no two are the same.
_ID: LiteralString = """(lpad(to_hex((extract(epoch FROM {at}) * 1000)::int8), 12, '0') || '7' || substr(md5({n}::text), 1, 3)
                         || '8' || substr(md5({n}::text), 4, 15))::uuid"""
_FURNISH: tuple[LiteralString, ...] = (
    "INSERT INTO {schema}.queue (name) SELECT u FROM unnest(ARRAY['orders', 'mail']) AS u",
    "INSERT INTO {schema}.workflow (name, queue) SELECT u.w, q.id FROM {schema}.queue q JOIN (VALUES ('order', 'orders'), ('report', 'mail')) AS u (w, q) ON u.q = q.name",
    "INSERT INTO {schema}.batch (name) VALUES ('nightly')",
    "INSERT INTO {schema}.worker (boot, host, pid, supervisor) SELECT gen_random_uuid(), 'elsewhere', 1, gen_random_uuid()",
    "CREATE TABLE {schema}.bench_filled (began_at timestamptz NOT NULL DEFAULT now(), runs int8 NOT NULL DEFAULT 0, live boolean NOT NULL DEFAULT false, fresh_at timestamptz NOT NULL DEFAULT now() - interval '1 hour')",
    "INSERT INTO {schema}.bench_filled DEFAULT VALUES",
    """SELECT {schema}.make_partition(p.name, p.id, to_char(low AT TIME ZONE 'UTC', 'YYYYMMDD'), {schema}.id_floor(low), {schema}.id_floor(low + width.days))
       FROM (SELECT make_interval(days => partition_days) AS days FROM {schema}.cell) AS width
       CROSS JOIN LATERAL (SELECT date_bin(width.days, now() - interval '2 minutes', '2020-01-01 00:00:00+00') AS present) AS b
       CROSS JOIN generate_series(1, ceil(28 / extract(day FROM width.days))::int + 1) AS n
       CROSS JOIN LATERAL (SELECT b.present - n * width.days AS low) AS one CROSS JOIN {schema}.partitioned() AS p""",
)
# Of a hundred runs one failed, ten have a key, five have attributes, three stand in a batch; each has a step, and one that failed has two tries.
_MADE: LiteralString = """CREATE TEMP TABLE made ON COMMIT DROP AS
    SELECT m.n, m.at, {id} AS id, w.id AS workflow, w.queue FROM ({moments}) AS m
    JOIN {schema}.workflow w ON w.name = CASE WHEN m.n % 4 = 0 THEN 'report' ELSE 'order' END ORDER BY 3"""
_FILL: tuple[LiteralString, ...] = (
    """INSERT INTO {schema}.run (run_id, created_at, workflow, queue, prio, key, input, batch, attributes)
       SELECT id, at, workflow, queue, 5, CASE WHEN n % 10 = 0 THEN 'order-' || n END, convert_to(json_build_object('order', n)::text, 'UTF8'),
              CASE WHEN n % 33 = 0 THEN (SELECT b.id FROM {schema}.batch b WHERE b.name = 'nightly') END,
              CASE WHEN n % 20 = 0 THEN convert_to(json_build_object('tenant', 't' || n % 1000)::text, 'UTF8') END FROM made""",
    "INSERT INTO {schema}.outcome (run_id, ended_at, worker, steps, status, result) SELECT id, at + interval '0.2 s', 1, 1, CASE WHEN n % 100 = 1 THEN 2 ELSE 1 END, CASE WHEN n % 100 = 1 THEN {error} ELSE '{{\"paid\": 1}}' END FROM made",
    "INSERT INTO {schema}.step SELECT id, at, at + interval '0.2 s', 0, 0, 1, 1, CASE WHEN n % 100 = 1 THEN 2 ELSE 1 END, 'charge', CASE WHEN n % 100 = 1 THEN {error} ELSE '{{\"paid\": 1}}' END FROM made",
    "INSERT INTO {schema}.attempt (run_id, seq, n, kind, started_at, ended_at, worker, name, error, fingerprint) SELECT id, 0, try, 1, at, at + try * interval '0.1 s', 1, 'charge', {error}, 'f' || n % 700 FROM made, generate_series(1, 2) AS try WHERE n % 100 = 1",
    "INSERT INTO {schema}.run_key (workflow, key, run_id, input_hash) SELECT workflow, 'order-' || n, id, '' FROM made WHERE n % 10 = 0",
    "INSERT INTO {schema}.attribute (run_id, n, kind, name, txt) SELECT id, 0, 1, 'tenant', 't' || n % 1000 FROM made WHERE n % 20 = 0",
)
_ERROR: LiteralString = """convert_to(json_build_object('type', 'shop.CardDeclined', 'message', 'card ' || n || ' was declined', 'traceback',
    'Traceback (most recent call last):' || repeat(E'\\n  File "shop.py", line 10, in charge', 5))::text, 'UTF8')"""
# A fifth each is ready or with a worker, sleeps, waits for a signal, waits to try again; some are parked.
_LIVE: tuple[LiteralString, ...] = (
    "INSERT INTO {schema}.run (run_id, created_at, workflow, queue, prio, input) SELECT id, at, workflow, queue, 5, '{{\"order\": 1}}' FROM made",
    """INSERT INTO {schema}.task (run_id, ready_at, queue, workflow, owner, wait_kind, wait_since, wait_signals, step, seq, attempt)
       SELECT id, CASE n % 5 WHEN 0 THEN at WHEN 1 THEN now() + interval '1 day' WHEN 3 THEN now() + interval '6 h' ELSE 'infinity' END, queue, workflow,
              CASE WHEN n % 10 = 0 THEN 1 END, CASE WHEN n % 25 = 4 THEN 19 + n / 25 % 3 WHEN n % 5 = 0 THEN 1 ELSE (ARRAY[10, 11, 9, 14])[n % 5] END, at,
              CASE WHEN n % 5 = 2 THEN ARRAY['approved'] END, CASE WHEN n % 5 > 0 THEN 'charge' END, 1, 1 + n % 3 FROM made""",
)
_ONE: tuple[LiteralString, ...] = (
    "INSERT INTO {schema}.run (run_id, created_at, workflow, queue, prio, key, input) SELECT {run}, now() - interval '1 hour', w.id, w.queue, 5, {key}, '{{\"order\": 1}}' FROM {schema}.workflow w WHERE w.name = 'order'",
    """INSERT INTO {schema}.step SELECT {run}, now() - interval '1 hour' + s * interval '0.1 s', now() - interval '1 hour' + (s + 1) * interval '0.1 s', s, s, 1, 1, 1, 'charge ' || s % 7,
       convert_to(json_build_object('paid', s, 'note', repeat('x', 50))::text, 'UTF8') FROM generate_series(0, {steps} - 1) AS s""",
    "INSERT INTO {schema}.attempt (run_id, seq, n, kind, started_at, ended_at, worker, name, error, fingerprint) SELECT {run}, s, 1, 1, now() - interval '1 hour', now() - interval '1 hour', 1, 'charge', {error}, 'f1' FROM generate_series(0, {steps} - 1, 10) AS s, (SELECT 1 AS n) AS one",
)
_ENDED: LiteralString = "INSERT INTO {schema}.outcome (run_id, ended_at, worker, steps, status, result) SELECT {run}, now(), 1, {steps}, 1, '1'"
_WAITS: LiteralString = """INSERT INTO {schema}.task (run_id, ready_at, queue, workflow, wait_kind, wait_since, wait_signals, step, seq, attempt)
    SELECT r.run_id, 'infinity', r.queue, r.workflow, 11, now(), ARRAY['approved'], 'approved', {steps}, 1 FROM {schema}.run r WHERE r.run_id = {run}"""
ONES = {"ended": SHORT_STEPS, "waiting": SHORT_STEPS, "long": LONG_STEPS}  # by the ends of their keys


class History:
    """One place that is filled. `conn` is in autocommit."""

    def __init__(self, place: Place, conn: Any, say: Say) -> None:
        self.place, self.conn, self._say = place, conn, say

    def fill(self, runs: int) -> None:
        """So that there are *runs* finished ones at least, and the live ones; 192 s for 10 million."""
        if harness.one(self.conn, "SELECT to_regclass(%s)", f'"{self.place.schema}".bench_filled') is None:
            with self.conn.transaction():
                for statement in _FURNISH:
                    self.conn.execute(self._sql(statement))
        done = int(harness.one(self.conn, self._sql("SELECT runs FROM {schema}.bench_filled")))
        began, told, first = time.monotonic(), time.monotonic(), done
        while done < runs:
            step = min(PIECE, runs - done)
            self._piece(done, step, runs)
            done += step
            if time.monotonic() - told > TELL_S or done == runs:
                told = time.monotonic()
                self._say(f"filled {done:,} of {runs:,} runs, {(done - first) / (told - began):,.0f} a second")
        if not harness.one(self.conn, self._sql("SELECT live FROM {schema}.bench_filled")):
            self._live(min(LIVE, max(100, runs // 10)))
            self.settle()

    def freshen(self, runs: int) -> None:
        """Runs that ended within the last hour, RECENT of them, in the order in which they would have: those since the last time."""
        every = sql.Literal(3600 / min(RECENT, runs))
        moments = sql.SQL("""SELECT {runs} + (extract(epoch FROM m.at) * 1000)::int8 AS n, m.at
            FROM {schema}.bench_filled f, generate_series(greatest(f.fresh_at, now() - interval '1 hour') + {every} * interval '1 s', now(), {every} * interval '1 s') AS m (at)""")
        with self.conn.transaction():
            self._rows(moments.format(runs=sql.Literal(runs), every=every, schema=sql.Identifier(self.place.schema)))
            self.conn.execute(self._sql("UPDATE {schema}.bench_filled SET fresh_at = now()"))

    def settle(self) -> None:
        """Do what autovacuum would have done meanwhile."""
        for table in ("run", "outcome", "step", "attempt", "task", "run_key", "attribute", "worker", "queue", "workflow"):
            self.conn.execute(sql.SQL("VACUUM (ANALYZE) {}").format(self.place.table(table)))
        harness.checkpoint(self.conn, self.place)

    def run(self, which: str) -> UUID:
        """One of ONES."""
        found: UUID = harness.one(self.conn, self._sql("SELECT run_id FROM {schema}.run_key WHERE key = %s"), f"one-{which}")
        return found

    def _piece(self, done: int, step: int, runs: int) -> None:
        every = sql.SQL(f"interval '{SPAN_DAYS} days' / {{}}").format(sql.Literal(runs))
        moments = sql.SQL("SELECT g AS n, f.began_at - interval '1 hour' - ({runs} - g) * {every} AS at FROM {schema}.bench_filled f, generate_series({low}::int8, {high}) AS g").format(
            runs=sql.Literal(runs), every=every, low=sql.Literal(done + 1), high=sql.Literal(done + step), schema=sql.Identifier(self.place.schema)
        )
        with self.conn.transaction():
            self.conn.execute("SET LOCAL synchronous_commit = off")
            self._rows(moments)
            self.conn.execute(self._sql("UPDATE {schema}.bench_filled SET runs = %s"), (done + step,))

    def _rows(self, moments: sql.Composable, statements: tuple[LiteralString, ...] = _FILL) -> None:
        id = sql.SQL(_ID).format(at=sql.SQL("m.at"), n=sql.SQL("m.n"))
        self.conn.execute(sql.SQL(_MADE).format(schema=sql.Identifier(self.place.schema), id=id, moments=moments))
        for statement in statements:
            self.conn.execute(self._sql(statement))
        self.conn.execute("DROP TABLE made")

    def _live(self, live: int) -> None:
        with self.conn.transaction():
            moments = sql.SQL("SELECT g AS n, now() - interval '50 minutes' + g * interval '0.1 s' AS at FROM generate_series(1, {}) AS g").format(sql.Literal(live))
            self._rows(moments, _LIVE)
            for which, steps in ONES.items():
                key, run = f"one-{which}", harness.one(self.conn, self._sql("SELECT {schema}.new_id()"))
                given = {"run": sql.Literal(str(run)) + sql.SQL("::uuid"), "key": sql.Literal(key), "steps": sql.Literal(steps)}
                self.conn.execute(self._sql("INSERT INTO {schema}.run_key (workflow, key, run_id, input_hash) SELECT id, {key}, {run}, '' FROM {schema}.workflow WHERE name = 'order'", **given))
                for statement in (*_ONE, _WAITS if which == "waiting" else _ENDED):
                    self.conn.execute(self._sql(statement, **given))
            self.conn.execute(self._sql("UPDATE {schema}.bench_filled SET live = true"))

    def _sql(self, statement: LiteralString, **given: sql.Composable) -> sql.Composed:
        return sql.SQL(statement).format(schema=sql.Identifier(self.place.schema), error=sql.SQL(_ERROR), **given)
