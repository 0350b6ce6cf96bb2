"""What does the dashboard cost, where ten million runs have ended, and where fifty people have it open?

python -m supervisor bench dashboard [--runs 10000000] [--viewers 50] [--database NAME] [--storm-runs 200000] [--procs 2]

A database with so many finished runs, thousands of live ones, parked ones and retries among them, runs of 12 steps (one ended, one waits) and one of
10,000 (history.py). Then the real dashboard: milliseconds of each page from outside, by HTTP on loopback, request to last byte, on a connection that
stays, each address another one, so that no page is one that was made before. Then the storm, in databases of its own: `bench steps` alternately
alone and with so many open pages, whose own process is on the same machine.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from supervisor.bench import harness
from supervisor.bench import steps as of_steps
from supervisor.bench.harness import Measured, Place, Places, Say
from supervisor.bench.history import History
from supervisor.bench.viewers import Dashboard, Storm, dashboard_of

LOOKS, WARM = 20, 4
STEPS = 10  # of each run in the storm
SHOWN = ("health_ms", "runs_ms", "run_ms", "run_waiting_ms", "run_long_ms", "storm_ratio")


@dataclass(frozen=True)
class Asked:
    """`viewers` 0: no storm. `storm_runs`: what is worked off with it and without. `database`: one of that server which is filled where it is not yet, and stays."""

    runs: int
    viewers: int
    storm_runs: int
    procs: int
    database: str | None = None


def measure(places: Places, asked: Asked, repeats: int, say: Say) -> list[dict[str, float]]:
    """Figures of every repeat: pages of the same database, and a pair of storms."""
    figures = []
    with _filled(places, asked, say) as pages:
        for _ in range(repeats):
            figures.append(pages())
            say(harness.told(len(figures), repeats, figures[-1], SHOWN))
    if asked.viewers:
        say("warming up")
        _steps(places, asked, storm=False)
        for n, each in enumerate(figures):
            each |= _pair(places, asked, n)
            say(harness.told(n + 1, repeats, each, SHOWN))
    return figures


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _filled(places: Places, asked: Asked, say: Say) -> Iterator[Any]:
    """A function that measures the pages once."""
    with places.fresh() if asked.database is None else places.kept(asked.database) as place, place.connect() as conn:
        history = History(place, conn, say)
        history.fill(asked.runs)
        history.freshen(asked.runs)
        history.settle()
        paths = {
            "health": "/health", "runs": "/runs", "run": f"/runs/{history.run('ended')}", "run_waiting": f"/runs/{history.run('waiting')}", "run_long": f"/runs/{history.run('long')}",
            "parked": "/runs?q=wait+in+(nondeterminism,+code_missing,+attempts_exhausted)", "failed": "/runs?q=status+=+failed", "key": "/runs?q=key+%5E=+order-7777",
            "no_key": "/runs?q=key+%5E=+nobody-has-this", "tenant": "/runs?q=attribute.tenant+=+t20", "queues": "/queues", "workers": "/workers", "batches": "/batches", "errors": "/errors",
            "versions": "/versions", "audit": "/audit", "storage": "/storage",
        }  # fmt: skip
        with dashboard_of(place) as dashboard:
            yield lambda: _pages(dashboard, paths)


def _pages(dashboard: Dashboard, paths: dict[str, str]) -> dict[str, float]:
    visitor = dashboard.signed_in()
    figures: dict[str, float] = {}
    asked = int.from_bytes(os.urandom(4))
    for name, path in paths.items():
        took = []
        for n in range(WARM + LOOKS):
            asked += 1
            took.append(visitor.took_ms(f"{path}{'&' if '?' in path else '?'}look={asked}"))
        figures |= {f"{name}_ms": statistics.median(took[WARM:]), f"{name}_max_ms": max(took[WARM:])}
    return figures


# ── the storm ────────────────────────────────────────────────────────────────────────────────────────────────────


def _pair(places: Places, asked: Asked, n: int) -> dict[str, float]:
    """Once with, once without, in turns which comes first."""
    order = (False, True) if n % 2 == 0 else (True, False)
    measured = {storm: _steps(places, asked, storm) for storm in order}
    (with_it, seen), (alone, _) = measured[True], measured[False]
    rates = {"alone_steps_per_s": alone.steps / alone.seconds, "storm_steps_per_s": with_it.steps / with_it.seconds}
    return {**rates, "storm_ratio": rates["storm_steps_per_s"] / rates["alone_steps_per_s"], **{f"storm_{name}": value for name, value in seen.items()}}


def _steps(places: Places, asked: Asked, storm: bool) -> tuple[Measured, dict[str, float]]:
    load = of_steps.load(of_steps.Asked(asked.storm_runs, STEPS, asked.procs), asked.storm_runs, of_steps.BARE)
    seen: dict[str, float] = {}
    with places.fresh() as place:
        return harness.run(place, load, asked.procs, beside=_open_pages(place, asked.viewers, seen) if storm else None), seen


@contextmanager
def _open_pages(place: Place, viewers: int, seen: dict[str, float]) -> Iterator[None]:
    """Two of five look at Health, two at Runs, one at a run of its own. What they had is in *seen* afterwards."""
    with place.connect() as conn:
        runs = [run for (run,) in conn.execute(sql.SQL("SELECT run_id FROM {} ORDER BY run_id LIMIT %s").format(place.table("task")), (viewers,)).fetchall()]
    with dashboard_of(place) as dashboard:
        storm = Storm(dashboard, [("/health", "/runs", "/health", "/runs", f"/runs/{runs[n % len(runs)]}")[n % 5] for n in range(viewers)])
        try:
            yield
            seen |= storm.end()
        finally:
            storm.kill()
