"""How many durable steps does this machine finish per second, against the best that its PostgreSQL can do?

python -m supervisor bench steps --runs 50000 --steps 10 --procs 2 [--style async|def] [--payload int|typed]

Runs of ten steps wait in the backlog; every step is a commit that the next one waits for. With another style or
payload than the bare one (async def, int) the bare workload is measured too, alternating, in databases of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.bench import app, harness
from supervisor.bench.ceiling import copy_rows_per_s
from supervisor.bench.harness import Load, Measured, Places, Say

BARE = ("async", "int")
WARM_STEPS_MAX = 500_000
SHOWN = (
    "steps_per_s", "copy_rows_per_s", "ratio", "worker_cpu_us_per_step", "wal_bytes_per_step", "commits_per_step", "bare_steps_per_s",
    "ratio_to_bare",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    runs: int
    steps: int
    procs: int
    style: str = "async"
    payload: str = "int"


def load(asked: Asked, runs: int, kind: tuple[str, str]) -> Load:
    """Runs that count from their own number up, by one per step."""
    total = runs * (runs - 1) // 2 + runs * asked.steps
    workflow, steps = app.COUNTING[kind], asked.steps
    if kind[1] == "int":
        return Load(workflow, runs, steps, lambda: ({"number": n, "steps": steps} for n in range(runs)), total)
    lines = lambda: ({"line": app.Line(f"sku-{n:06d}", n, 19.5, False, "by the door"), "steps": steps} for n in range(runs))  # noqa: E731
    return Load(workflow, runs, steps, lines, total, "(convert_from(result, 'UTF8')::jsonb ->> 'quantity')::int8")


def measure(places: Places, asked: Asked, repeats: int, say: Say) -> list[dict[str, float]]:
    """Figures of every repeat, each between two ceilings; a first run, not counted, warms up and gives the first ceiling its rows."""
    kind = (asked.style, asked.payload)
    say("warming up")
    _, before = _once(places, asked, load(asked, min(asked.runs, max(1, WARM_STEPS_MAX // asked.steps)), kind))
    figures = []
    for n in range(repeats):
        bare = None if kind == BARE else _once(places, asked, load(asked, asked.runs, BARE), ceiling=False)[0]
        measured, after = _once(places, asked, load(asked, asked.runs, kind))
        figures.append(_figures(measured, max(before, after), bare))
        before = after
        say(harness.told(n + 1, repeats, figures[-1], SHOWN))
    return figures


def _once(places: Places, asked: Asked, load: Load, ceiling: bool = True) -> tuple[Measured, float]:
    with places.fresh() as place:
        measured = harness.run(place, load, asked.procs)
        return measured, copy_rows_per_s(place, measured.batch_rows, asked.procs) if ceiling else 0.0


def _figures(measured: Measured, ceiling: float, bare: Measured | None) -> dict[str, float]:
    steps_per_s = measured.steps / measured.seconds
    figures: dict[str, float] = {
        "steps_per_s": steps_per_s,
        "copy_rows_per_s": ceiling,
        "ratio": steps_per_s / ceiling,
        "worker_cpu_us_per_step": measured.worker_cpu_s / measured.steps * 1e6,
        "wal_bytes_per_step": measured.wal_bytes / measured.steps,
        "commits_per_step": measured.commits / measured.steps,
    }
    if bare is not None:
        bare_per_s = bare.steps / bare.seconds
        figures |= {"bare_steps_per_s": bare_per_s, "ratio_to_bare": steps_per_s / bare_per_s}
    return figures | harness.raw(measured)
