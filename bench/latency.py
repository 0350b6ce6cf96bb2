"""How long from the moment at which a run is to be started to its result, for a client in another process?

python -m supervisor bench latency --rate 100 [--seconds 20] [--procs 2] [--async]

Runs of one quick step, at a fixed rate that does not wait for results (`sender.py`). The time has in it: the start's
commit, the wake-up, the claim's commit, the step, its commit with the outcome, and the client's learning of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from supervisor.bench import app, harness
from supervisor.bench.harness import BenchInvalid, Place, Places, Say

WARM_RUNS = 100  # a step is run inline after 50 quick calls in a worker
SHOWN = ("p50_ms", "p99_ms", "max_ms", "start_p50_ms")


@dataclass(frozen=True)
class Asked:
    rate: float
    seconds: float
    procs: int
    on_loop: bool = False  # by an AsyncClient

    @property
    def runs(self) -> int:
        return max(1, round(self.rate * self.seconds))


def measure(places: Places, asked: Asked, repeats: int, say: Say) -> list[dict[str, float]]:
    """Figures of every repeat, each on a database and workers of its own that have done some runs before."""
    figures = []
    for n in range(repeats):
        with places.fresh() as place:
            figures.append(_figures(_once(place, asked)))
        say(harness.told(n + 1, repeats, figures[-1], SHOWN))
    return figures


def _once(place: Place, asked: Asked) -> dict[str, list[float]]:
    told = {"dsn": place.dsn, "schema": place.schema, "warm": WARM_RUNS, "runs": asked.runs, "rate": asked.rate, "on_loop": asked.on_loop}
    with harness.workers_of(place, asked.procs) as workers:
        workers.wait_ready()
        seen: dict[str, list[float]] = workers.asked_by("supervisor.bench.sender", told)
    with place.connect() as conn:
        _check(conn, place, asked)
    return seen


def _check(conn: Any, place: Place, asked: Asked) -> None:
    """Every run completed, and the database counts as many as the sender."""
    ended = harness.one(conn, harness.counting(place, "outcome"))
    if ended != asked.runs + WARM_RUNS:
        raise BenchInvalid(f"{ended} runs of {app.job.name} completed, not {asked.runs + WARM_RUNS}; the measurement does not count")


def _figures(seen: dict[str, list[float]]) -> dict[str, float]:
    results = seen["result_ms"]
    return {
        "p50_ms": harness.percentile(results, 50),
        "p99_ms": harness.percentile(results, 99),
        "max_ms": max(results),
        "mean_ms": sum(results) / len(results),
        "start_p50_ms": harness.percentile(seen["start_ms"], 50),
        "runs": len(results),
    }
