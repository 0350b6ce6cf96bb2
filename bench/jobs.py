"""How many one-step runs does this machine finish per second from a backlog, against the best that its PostgreSQL can do?

python -m supervisor bench jobs --runs 200000 --procs 2

A job is the dearest thing per step: one claim, one step row, one outcome and one deleted task for each. With
--runs 2000000 the same question shows whether the backlog's size matters.
"""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.bench import app, harness
from supervisor.bench.ceiling import copy_rows_per_s
from supervisor.bench.harness import Load, Measured, Places, Say

WARM_RUNS_MAX = 200_000
SHOWN = ("runs_per_s", "copy_rows_per_s", "ratio", "worker_cpu_us_per_run", "wal_bytes_per_run")


@dataclass(frozen=True)
class Asked:
    runs: int
    procs: int


def load(runs: int) -> Load:
    """Runs that add one to their own number."""
    return Load(app.job, runs, 1, lambda: range(runs), runs * (runs - 1) // 2 + runs)


def measure(places: Places, asked: Asked, repeats: int, say: Say) -> list[dict[str, float]]:
    """Figures of every repeat, each between two ceilings; a first run, not counted, warms up."""
    say("warming up")
    _, before = _once(places, asked, load(min(asked.runs, WARM_RUNS_MAX)))
    figures = []
    for n in range(repeats):
        measured, after = _once(places, asked, load(asked.runs))
        figures.append(_figures(measured, max(before, after)))
        before = after
        say(harness.told(n + 1, repeats, figures[-1], SHOWN))
    return figures


def _once(places: Places, asked: Asked, load: Load) -> tuple[Measured, float]:
    with places.fresh() as place:
        measured = harness.run(place, load, asked.procs)
        return measured, copy_rows_per_s(place, measured.batch_rows, asked.procs)


def _figures(measured: Measured, ceiling: float) -> dict[str, float]:
    runs_per_s = measured.runs / measured.seconds
    return {
        "runs_per_s": runs_per_s,
        "copy_rows_per_s": ceiling,
        "ratio": runs_per_s / ceiling,
        "worker_cpu_us_per_run": measured.worker_cpu_s / measured.runs * 1e6,
        "wal_bytes_per_run": measured.wal_bytes / measured.runs,
        "commits_per_run": measured.commits / measured.runs,
        **harness.raw(measured),
    }
