"""How long do 200 one-second steps take on 4 workers of 8 threads each?

python -m supervisor bench spread [--runs 200] [--procs 4]

32 at once, so seven seconds are the least. More means that a worker took more than it has threads for while another
one's stood idle, or that a free thread waited for work.
"""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.bench import app, harness
from supervisor.bench.harness import Load, Places, Say

SHOWN = ("seconds", "least_seconds")
THREADS = 8  # ServiceOptions.threads


@dataclass(frozen=True)
class Asked:
    runs: int
    procs: int


def measure(places: Places, asked: Asked, repeats: int, say: Say) -> list[dict[str, float]]:
    """Figures of every repeat."""
    load = Load(app.slow_job, asked.runs, 1, lambda: range(asked.runs), asked.runs * (asked.runs - 1) // 2 + asked.runs)
    figures = []
    for n in range(repeats):
        with places.fresh() as place:
            measured = harness.run(place, load, asked.procs)
        figures.append({"seconds": measured.seconds, "least_seconds": float(-(-asked.runs // (asked.procs * THREADS)))} | harness.raw(measured))
        say(harness.told(n + 1, repeats, figures[-1], SHOWN))
    return figures
