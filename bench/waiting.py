"""What do runs cost that sleep or wait, and how soon do they go on?

python -m supervisor bench waiting --runs 100000 [--kind sleep] [--over 20] [--wakes 200] [--procs 2]

So many runs leave memory: half of them asleep, a quarter waiting for a signal, an eighth waiting for a child that is asleep (the last eighth);
or all asleep. Beside them, by a process of its own, a few at a time: runs that sleep for two seconds, that wait for a signal, that do not wait at all (the same before
there are any that wait: `alone`); and once more runs that sleep, while all workers are killed. Then all that are asleep become due in the same moment, or evenly
--over so many seconds (the benchmark moves their timers), and all others get their signals in one transaction.

A wait ends when the run's next step begins, which is after its end is durable; all moments are the database's, or of this machine's clock.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from psycopg import sql

from supervisor.api.client import Client
from supervisor.bench import app, harness, signals
from supervisor.bench.harness import BenchInvalid, Place, Places, Say

RATE = 20.0  # wakes a second where they come one by one
NAP_S = 2.0  # longer than a run stays in memory for
FAR_S = 86_400.0
WARM_RUNS = 1000
TIMEOUT_S = 600.0
LOOK_S = 0.1
SOON_S, MOVED_PER_S = 2.0, 5000  # from moving the timers to the moment at which they are due: time enough to commit and vacuum that
SHOWN = (
    "worker_bytes_per_run", "parked_per_s", "sleep_p99_ms", "signal_p99_ms", "killed_max_ms", "together_per_s", "within_1_s",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    runs: int
    kind: str
    wakes: int
    procs: int
    over_s: float = 0.0

    def parts(self) -> tuple[int, int, int]:
        """Runs asleep, waiting for a signal, waiting for a child (which is asleep)."""
        if self.kind == "sleep":
            return self.runs, 0, 0
        hearing, minding = self.runs // 4, self.runs // 8
        return self.runs - hearing - 2 * minding, hearing, minding


def measure(places: Places, asked: Asked, repeats: int, say: Say) -> list[dict[str, float]]:
    """Figures of every repeat, each on a database and workers of its own."""
    figures = []
    for n in range(repeats):
        with places.fresh() as place:
            figures.append(_once(place, asked))
        say(harness.told(n + 1, repeats, figures[-1], SHOWN))
    return figures


def _once(place: Place, asked: Asked) -> dict[str, float]:
    with place.connect() as conn, harness.workers_of(place, asked.procs) as workers:
        workers.wait_ready()
        question = _Question(place, asked, conn, workers)
        return {**question.park(), **question.few(), **question.killed(), **question.together()}


class _Question:
    """One repeat: the same database, session and workers for all of it."""

    def __init__(self, place: Place, asked: Asked, conn: Any, workers: Any) -> None:
        self.place, self.asked, self.conn, self.workers = place, asked, conn, workers
        self.signalled: list[UUID] = []

    # ── out of memory ────────────────────────────────────────────────────────────────────────────────────────────

    def park(self) -> dict[str, float]:
        """Start them all, until none is any worker's; what that took of memory, before and after."""
        alone_ms = self._ask("warm")
        before, bytes_before, threads = self._memory(), self._table_bytes(), self._threads()
        began = time.monotonic()
        self._ask("start")
        self._until_parked(self.asked.runs)
        seconds = time.monotonic() - began
        after = self._memory()
        if self._threads() > threads:
            raise BenchInvalid(f"workers have {self._threads()} threads, {threads} before anything waited")
        return {
            "worker_bytes_per_run": (after - before) / self.asked.runs,
            "worker_mb": after / 1e6 / self.asked.procs,
            "database_bytes_per_run": (self._table_bytes() - bytes_before) / self.asked.runs,
            "parked_per_s": self.asked.runs / seconds,
            **_named("alone", alone_ms),
        }

    def _until_parked(self, runs: int) -> None:
        look = self._sql("SELECT count(*) FILTER (WHERE owner IS NULL AND wait_kind BETWEEN 9 AND 15), count(*) FROM {task}")
        give_up_at = time.monotonic() + TIMEOUT_S
        while True:
            self.workers.step(LOOK_S)
            waiting, live = self.conn.execute(look).fetchone()
            if waiting == live == runs:
                return
            if time.monotonic() > give_up_at:
                raise BenchInvalid(f"{waiting:,} of {runs:,} runs wait after {TIMEOUT_S:.0f} s, {live:,} live")

    def _memory(self) -> int:
        """Bytes that are the workers' own."""
        return sum(_private_bytes(pid) for pid in self.workers.parent.children)

    def _threads(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in self.workers.parent.children)

    def _table_bytes(self) -> int:
        """Of the tables that hold waiting runs, with their indexes and partitions."""
        return int(harness.one(self.conn, self._sql("""
            SELECT sum(pg_total_relation_size(c.oid))::int8 FROM pg_class c WHERE c.relnamespace = {schema}::regnamespace AND c.relkind = 'r'
        """)))  # fmt: skip

    # ── a few at a time ──────────────────────────────────────────────────────────────────────────────────────────

    def few(self) -> dict[str, float]:
        """Beside those that wait: sleepers, signals, runs that wait for nothing."""
        figures: dict[str, float] = self._ask("few")
        return figures

    def killed(self) -> dict[str, float]:
        """All workers are killed, while some runs are about to wake."""
        workers = list(self.workers.parent.children)
        took_ms = self._ask("nap", NAP_S + self.asked.wakes / RATE / 2, self.workers.kill_all)
        self._until_parked(self.asked.runs)
        restarts = len(set(workers) - set(self.workers.parent.children))
        if restarts < self.asked.procs:
            raise BenchInvalid(f"{restarts} of {self.asked.procs} workers were killed")
        return {**_named("killed", took_ms), "restarts": restarts}

    # ── all together ─────────────────────────────────────────────────────────────────────────────────────────────

    def together(self) -> dict[str, float]:
        """All that are asleep become due in one moment; then all others get their signals in one transaction."""
        asleep, hearing, minding = self.asked.parts()
        due_at = harness.one(self.conn, "SELECT clock_timestamp() + %s * interval '1 s'", SOON_S + self.asked.runs / MOVED_PER_S)
        evenly = "UPDATE {timer} m SET due_at = %s + %s * e.part * interval '1 s' FROM (SELECT run_id, random() AS part FROM {timer}) e WHERE e.run_id = m.run_id"
        self.conn.execute(self._sql(evenly), (due_at, self.asked.over_s))
        self.conn.execute(self._sql("UPDATE {task} t SET ready_at = m.due_at FROM {timer} m WHERE m.run_id = t.run_id"))
        self.conn.execute(self._sql("CREATE TEMPORARY TABLE moved AS SELECT run_id, due_at FROM {timer}"))
        for table in ("timer", "task"):
            self.conn.execute(self._sql(f"VACUUM {{{table}}}"))
        if harness.one(self.conn, "SELECT clock_timestamp() > %s", due_at):
            raise BenchInvalid("moving the timers took longer than it may")
        self._until_left(hearing)
        lags = self._sql("""
            SELECT count(*), count(*) FILTER (WHERE lag <= 1), max(lag), percentile_disc(array[0.5, 0.99]) WITHIN GROUP (ORDER BY lag)
            FROM (SELECT extract(epoch FROM s.started_at - m.due_at)::float8 AS lag FROM moved m JOIN {step} s USING (run_id) WHERE s.kind = 1) AS woken
        """)  # fmt: skip
        woken, soon, last_s, (p50_s, p99_s) = self.conn.execute(lags).fetchone()
        figures = {
            "together": woken, "together_per_s": woken / (self.asked.over_s + last_s), "together_p50_s": p50_s, "together_p99_s": p99_s, "within_1_s": soon,
        }  # fmt: skip
        if woken != asleep + minding:
            raise BenchInvalid(f"{woken:,} runs woke from their sleep, not {asleep + minding:,}")
        return {**figures, **self._all_signalled(hearing)} if hearing else figures

    def _all_signalled(self, hearing: int) -> dict[str, float]:
        began = time.monotonic()
        send = 'SELECT count({schema}.signal(run_id, %s, to_jsonb(0.0))) FROM {task}'
        sent = harness.one(self.conn, sql.SQL(send).format(schema=sql.Identifier(self.place.schema), task=self.place.table("task")), app.sent_at.name)
        committed = time.monotonic()
        self._until_left(0)
        if sent != hearing:
            raise BenchInvalid(f"{sent:,} signals were sent, not {hearing:,}")
        return {"sent_per_s": sent / (committed - began), "signalled_per_s": sent / (time.monotonic() - committed)}

    def _until_left(self, runs: int) -> None:
        give_up_at = time.monotonic() + TIMEOUT_S
        look = self._sql("SELECT count(*) FROM {task}")
        while (left := harness.one(self.conn, look)) > runs:
            if time.monotonic() > give_up_at:
                raise BenchInvalid(f"{left:,} runs have not ended after {TIMEOUT_S:.0f} s")
            self.workers.step(LOOK_S)

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _sql(self, words: str) -> sql.Composed:
        tables = {name: self.place.table(name) for name in ("task", "timer", "step")}
        return sql.SQL(words).format(schema=sql.Literal(f'"{self.place.schema}"'), **tables)

    def _ask(self, what: str, *meanwhile: Any) -> Any:
        told = {"dsn": self.place.dsn, "schema": self.place.schema, "what": what, **asdict(self.asked)}
        return self.workers.asked_by("supervisor.bench.waiting", told, *meanwhile)


def _private_bytes(pid: int) -> int:
    """What a process has and shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024


def _named(name: str, took_ms: list[float]) -> dict[str, float]:
    return {f"{name}_p50_ms": harness.percentile(took_ms, 50), f"{name}_p99_ms": harness.percentile(took_ms, 99), f"{name}_max_ms": max(took_ms)}


# ── the other process ────────────────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    told = json.load(sys.stdin)
    place, what = Place(told.pop("dsn"), told.pop("schema")), told.pop("what")
    with Client(place.dsn, schema=place.schema) as client:
        json.dump(_TASKS[what](client, place, Asked(**told)), sys.stdout)


def _warm(client: Client, _place: Place, asked: Asked) -> list[float]:
    for run in client.start_many(app.job, range(WARM_RUNS)):
        run.result(timeout=TIMEOUT_S)
    return _starts(client, asked)


def _start(client: Client, _place: Place, asked: Asked) -> None:
    asleep, hearing, minding = asked.parts()
    client.start_many(app.minding, [FAR_S] * minding)
    client.start_many(app.hearing, [1] * hearing)
    client.start_many(app.sleeping, [FAR_S] * asleep)


def _few(client: Client, place: Place, asked: Asked) -> dict[str, float]:
    figures = _named("sleep", _naps(client, place, asked))
    figures |= _named("signal", signals.parked(client, place, asked.wakes, RATE, announced=True))
    return figures | _named("start", _starts(client, asked))


def _starts(client: Client, asked: Asked) -> list[float]:
    """Runs that wait for nothing, one by one: ms from the start to the result."""
    took_ms = []
    for n in range(asked.wakes):
        began = time.monotonic()
        client.start(app.job, n).result(timeout=TIMEOUT_S)
        took_ms.append(1000 * (time.monotonic() - began))
    return took_ms


def _naps(client: Client, place: Place, asked: Asked) -> list[float]:
    """Runs that sleep, begun one by one: ms from the moment at which each was due to the begin of its next step."""
    began = time.time()
    runs = []
    for n in range(asked.wakes):
        signals.wait_until(began + n / RATE)
        runs.append(client.start(app.sleeping, NAP_S))
    for run in runs:
        run.result(timeout=TIMEOUT_S)
    with place.connect() as conn:
        rows = conn.execute(
            f'SELECT 1000 * (extract(epoch FROM s.started_at - t.started_at)::float8 - %s) FROM "{place.schema}".step t JOIN "{place.schema}".step s USING (run_id) '
            "WHERE t.run_id = ANY (%s) AND t.kind = 2 AND s.kind = 1", (NAP_S, [run.id for run in runs])
        ).fetchall()  # fmt: skip
    if len(rows) != len(runs):
        raise BenchInvalid(f"{len(rows)} of {len(runs)} runs woke")
    return [row[0] for row in rows]


_TASKS: dict[str, Any] = {"warm": _warm, "start": _start, "few": _few, "nap": _naps}

if __name__ == "__main__":
    main()
