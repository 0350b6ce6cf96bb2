"""What does a host cost that has nothing to do?

python -m supervisor bench idle [--procs 4] [--seconds 30]

Queries are transactions by the server's own count for the database, committed and rolled back, whoever made them; the
host sends none with more than one question. Sessions report theirs a moment later, so before the last reading
all processes are stopped and their sessions ended, which makes the server take what is owed: what the count errs
by, it errs to the engine's disadvantage. What the ending itself asks is taken off; what autovacuum does is not.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from supervisor.bench import app, harness
from supervisor.bench.harness import BenchInvalid, Place, Places, Say

SETTLE_S = 11.0  # a session that was born and fell silent reports its count after ten seconds
TURN_S = 0.5
SHOWN = ("queries_per_s", "cpu_percent", "server_cpu_percent")
_COUNT = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
_SESSIONS = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'pgsupervisor: %%' AND application_name <> 'pgsupervisor: bench'
"""


@dataclass(frozen=True)
class Asked:
    procs: int
    seconds: float


def measure(places: Places, asked: Asked, repeats: int, say: Say) -> list[dict[str, float]]:
    """Figures of every repeat, each on a database and a host of its own."""
    figures = []
    for n in range(repeats):
        with places.fresh() as place:
            figures.append(_once(place, asked))
        say(harness.told(n + 1, repeats, figures[-1], SHOWN))
    return figures


def _once(place: Place, asked: Asked) -> dict[str, float]:
    with place.connect() as conn, harness.workers_of(place, asked.procs) as workers:
        workers.wait_ready()
        _let_work(workers, SETTLE_S)
        pids = [pid for (pid,) in conn.execute(_SESSIONS).fetchall()]
        queries, cpu_s, server_cpu_s, began = _count(conn), _cpu_s(workers), _server_cpu_s(pids), time.monotonic()
        _let_work(workers, asked.seconds)
        cpu_s, server_cpu_s, seconds = _cpu_s(workers) - cpu_s, _server_cpu_s(pids) - server_cpu_s, time.monotonic() - began
        with _stopped(workers):
            own = _end_sessions(conn)
            queries = _count(conn) - queries - own
    return {
        "queries_per_s": queries / seconds,
        "cpu_percent": 100 * cpu_s / seconds,
        "server_cpu_percent": 100 * server_cpu_s / seconds,
        "queries": queries,
        "seconds": seconds,
    }


def _let_work(workers: Any, seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left_s := until - time.monotonic()) > 0:
        workers.step(min(TURN_S, left_s))


def _count(conn: Any) -> int:
    conn.execute("SELECT pg_stat_force_next_flush()")
    return int(harness.one(conn, _COUNT))


def _cpu_s(workers: Any) -> float:
    """Of this process, in which the parent lives, and of the workers."""
    return time.process_time() + float(workers.cpu_s())


def _server_cpu_s(pids: list[int]) -> float:
    """Of the sessions' backends; 0 where they can't be seen from here."""
    try:
        return sum(harness.process_cpu_s(pid) for pid in pids)
    except OSError:
        return 0.0


@contextmanager
def _stopped(workers: Any) -> Iterator[None]:
    """Nobody sends anything more; afterwards the workers find their sessions gone and end, which is no news."""
    pids = list(workers.parent.children)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        logging.disable(logging.ERROR)
        try:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            workers.end()
        finally:
            logging.disable(logging.NOTSET)


def _end_sessions(conn: Any) -> int:
    """Returns how many questions that took, all of them ours."""
    asked = 0
    give_up_at = time.monotonic() + harness.SESSIONS_GONE_S
    while pids := [pid for (pid,) in conn.execute(_SESSIONS).fetchall()]:
        asked += 1 + len(pids)
        if time.monotonic() > give_up_at:
            raise BenchInvalid(f"sessions {pids} did not end; what they asked is not counted")
        for pid in pids:
            conn.execute("SELECT pg_terminate_backend(%s)", (pid,))
        time.sleep(0.01)
    return asked + 1
