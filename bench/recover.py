"""How soon do others go on when something dies or hangs?

python -m supervisor bench recover [--kills 50]

Hosts are those of `run`, in processes of their own, and killed as the kernel would do it.

worker_kill_to_claim  KILL of a worker that executes a run → that run is another worker's
leader_kill_to_lead   KILL of the leading supervisor → another one's term has begun
leader_stop_to_lead   STOP of it (it says nothing, and its sessions stay) → the same
stuck_step_commit_delay   of neighbours of a step that holds the loop: the longest time from the end of one of their steps to
                      the beginning of the next one, which begins when the commit is acknowledged

Moments of death are this process's, what follows is seen by looks at the database, 2 ms apart: both err upwards.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from psycopg import sql

from supervisor.api.client import Client
from supervisor.bench import app, harness
from supervisor.bench.harness import BenchInvalid, Place, Places, Say

T = TypeVar("T")
LOOK_S = 0.002
GIVE_UP_S = 60.0
STUCK_S = 0.5
TICKS, TICKERS = 150, 4
SHOWN = ("worker_kill_to_claim_p99_ms", "leader_kill_to_lead_p99_ms", "leader_stop_to_lead_p99_ms", "stuck_step_commit_delay_p99_ms")


@dataclass(frozen=True)
class Asked:
    kills: int


def measure(places: Places, asked: Asked, repeats: int, say: Say) -> list[dict[str, float]]:
    """Figures of every repeat, each of *kills* times the four things."""
    figures = []
    for n in range(repeats):
        found: dict[str, float] = {}
        for name, question in QUESTIONS.items():
            with places.fresh() as place:
                times_ms = question(place, asked.kills)
            found |= {f"{name}_p50_ms": harness.percentile(times_ms, 50), f"{name}_p99_ms": harness.percentile(times_ms, 99)}
        figures.append(found)
        say(harness.told(n + 1, repeats, figures[-1], SHOWN))
    return figures


# ── hosts and looks ──────────────────────────────────────────────────────────────────────────────────────────────


def _start_host(place: Place, procs: int, folder: str) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "PGSUPERVISOR_DATABASE_URL": place.dsn, "PGSUPERVISOR_SCHEMA": place.schema}
    words = [sys.executable, "-m", "supervisor", "run", "--app", "supervisor.bench.app", "--procs", str(procs), "--log-level", "error"]
    with open(Path(folder, "log"), "ab") as log:
        return subprocess.Popen(words, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


@contextmanager
def _hosts(place: Place, count: int, procs: int) -> Iterator[tuple[Any, Client, list[subprocess.Popen[bytes]], str]]:
    """So many hosts, all of whose workers are up; a session, a client, and a folder for gates."""
    with tempfile.TemporaryDirectory() as folder, place.connect() as conn, Client(place.dsn, schema=place.schema) as client:
        hosts = [_start_host(place, procs, folder) for _ in range(count)]
        try:
            _until(lambda: _live_workers(conn, place) == count * procs, "all workers are up")
            yield conn, client, hosts, folder
        finally:
            for host in hosts:
                host.kill()
                host.wait()


def _until(fact: Callable[[], T], what: str) -> T:
    give_up_at = time.monotonic() + GIVE_UP_S
    while not (found := fact()):
        if time.monotonic() > give_up_at:
            raise BenchInvalid(f"not within {GIVE_UP_S:.0f} s: {what}")
        time.sleep(LOOK_S)
    return found


def _live_workers(conn: Any, place: Place) -> int:
    """Workers that nobody has declared dead and whose process lives; where nobody reaps orphans, a dead one keeps its place in /proc."""
    rows = conn.execute(sql.SQL("SELECT pid FROM {} WHERE dead_at IS NULL").format(place.table("worker"))).fetchall()
    return sum(_lives(pid) for (pid,) in rows)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# ── a worker ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _worker_kills(place: Place, kills: int) -> list[float]:
    owner = sql.SQL("SELECT w.id, w.pid FROM {} t JOIN {} w ON w.id = t.owner WHERE t.run_id = %s").format(place.table("task"), place.table("worker"))
    times_ms = []
    with _hosts(place, 1, 2) as (conn, client, _, folder):
        for n in range(kills):
            gate = Path(folder, f"gate-{n}")
            run = client.start(app.holding, str(gate))
            first, pid = _until(lambda: conn.execute(owner, (run.id,)).fetchone(), "the run is claimed")
            killed_at = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            _until(lambda: (conn.execute(owner, (run.id,)).fetchone() or (first,))[0] != first, "the run is claimed again")
            times_ms.append((time.monotonic() - killed_at) * 1000)
            gate.touch()
            run.result(timeout=GIVE_UP_S)
            _until(lambda: _live_workers(conn, place) == 2, "the dead worker has a successor")
    return times_ms


# ── a leader ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _leader_kills(place: Place, kills: int) -> list[float]:
    return _leaderless(place, kills, signal.SIGKILL)


def _leader_stops(place: Place, kills: int) -> list[float]:
    return _leaderless(place, kills, signal.SIGSTOP)


def _leaderless(place: Place, kills: int, how: int) -> list[float]:
    """One of two supervisors is killed or stopped, the one that leads; then it gets a successor, and once that follows, the next turn comes."""
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgsupervisor: lead %'"
    leads = sql.SQL("SELECT term, pid FROM {} WHERE ended_at IS NULL ORDER BY term DESC LIMIT 1").format(place.table("leader"))
    times_ms = []
    with _hosts(place, 2, 1) as (conn, _, hosts, folder):
        for _turn in range(kills):
            pids = {host.pid: host for host in hosts}
            term, pid = _until(lambda: _row(conn, leads, lambda row: row[1] in pids), "one of the hosts leads")
            happened_at = time.monotonic()
            os.kill(pid, how)
            _until(lambda: _row(conn, leads, lambda row: row[0] > term), "another one leads")
            times_ms.append((time.monotonic() - happened_at) * 1000)
            gone = pids[pid]
            gone.kill()
            gone.wait()
            hosts.remove(gone)
            hosts.append(_start_host(place, 1, folder))
            _until(lambda: _live_workers(conn, place) == 2 and harness.one(conn, sessions) == 2, "the new host's worker is up, and it follows")
    return times_ms


def _row(conn: Any, question: sql.Composed, fits: Callable[[Any], bool]) -> Any:
    row = conn.execute(question).fetchone()
    return row if row is not None and fits(row) else None


# ── a step that holds the loop ───────────────────────────────────────────────────────────────────────────────────


def _stuck_steps(place: Place, kills: int) -> list[float]:
    """The neighbours have started when the step begins and go on when it has ended, so its whole time lies within theirs."""
    longest = sql.SQL("""
        SELECT (1000 * max(extract(epoch FROM began - ended)))::float8 FROM (
            SELECT s.ended_at AS ended, lead(s.started_at) OVER (PARTITION BY s.run_id ORDER BY s.pos) AS began FROM {step} s WHERE s.run_id = ANY (%(others)s)
        ) AS pauses, (SELECT started_at, ended_at FROM {step} WHERE run_id = %(stuck)s) AS hold
        WHERE began > hold.started_at AND ended < hold.ended_at
    """).format(step=place.table("step"))
    begun = sql.SQL("SELECT count(DISTINCT run_id) FROM {} WHERE run_id = ANY (%s)").format(place.table("step"))
    times_ms = []
    with _hosts(place, 1, 1) as (conn, client, _, _):
        for _turn in range(kills):
            others = [client.start(app.ticking, TICKS) for _ in range(TICKERS)]
            ids = [run.id for run in others]
            _until(lambda: harness.one(conn, begun, ids) == TICKERS, "the neighbours have begun")
            stuck = client.start(app.surprising, STUCK_S)
            stuck.result(timeout=GIVE_UP_S)
            for run in others:
                run.result(timeout=GIVE_UP_S)
            found = conn.execute(longest, {"others": ids, "stuck": stuck.id}).fetchone()
            if found is None or found[0] is None:
                raise BenchInvalid("no neighbour had anything to commit while the step held the loop")
            times_ms.append(found[0])
    return times_ms


QUESTIONS: dict[str, Callable[[Place, int], list[float]]] = {
    "worker_kill_to_claim": _worker_kills,
    "leader_kill_to_lead": _leader_kills,
    "leader_stop_to_lead": _leader_stops,
    "stuck_step_commit_delay": _stuck_steps,
}
