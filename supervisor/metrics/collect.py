"""The collector: from a host's black box and the database's answers to metric families. Exposition and escaping are prometheus_client's.

Counts nothing itself: whoever restarts this process finds the same numbers in the black box.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.utils import floatToGoString

from supervisor._fastpath import build
from supervisor.core.version import VERSION
from supervisor.db.statements import migration_files
from supervisor.host import layout
from supervisor.metrics.catalogue import METRICS, PREFIX
from supervisor.metrics.probes import Probes

if TYPE_CHECKING:
    from supervisor.host.boxes import Box, Tallied
    from supervisor.metrics.stored import Facts, Question

COMMIT_BUCKETS = range(8, 27)  # of the black box's: 0.26 ms to 67 s
STATE_WORDS = {layout.STARTING: "starting", layout.IDLE: "idle", layout.BUSY: "busy", layout.DRAINING: "draining", layout.AWAY: "database_away", layout.ENDING: "ending"}
Labels = Iterable[str]


class Collector:
    """What prometheus_client asks with each scrape."""

    def __init__(self, probes: Probes, stored: Question[Facts]) -> None:
        self._probes, self._stored = probes, stored

    def describe(self) -> Iterator[Family]:
        """The names alone, so that a scrape may ask for some: `?name[]=…`. Asks nobody."""
        yield InfoMetricFamily(PREFIX + "build", "")
        for name, metric in METRICS.items():
            if metric.kind in ("counter", "gauge"):
                yield family(name, {})
            elif metric.kind == "histogram":
                yield histogram(name, [])

    def collect(self) -> Iterator[Family]:
        yield from of_program()
        box = self._probes.box()
        yield family("alive", {(): float(self._probes.not_live() is None)})
        if box is not None:
            yield from of_host(box)
            yield from of_names(*self._probes.tallies())
        facts = self._stored.answer()
        yield family("database_up", {(): float(facts is not None)})
        if facts is not None:
            yield from of_facts(facts)


def family(name: str, values: dict[tuple[str, ...], float]) -> Family:
    """A gauge or counter of the catalogue, by the values of its labels."""
    metric = METRICS[name]
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    made = kind(PREFIX + name, metric.meaning, labels=metric.labels, unit=metric.unit(name))
    for labels, value in values.items():
        made.add_metric(labels, value)
    return made


def histogram(name: str, values: Iterable[tuple[tuple[str, ...], Iterable[tuple[float, int]], float]]) -> Family:
    """A histogram of the catalogue: labels, (upper end in s, how many are in that bucket), sum."""
    metric = METRICS[name]
    made = HistogramMetricFamily(PREFIX + name, metric.meaning, labels=metric.labels, unit=metric.unit(name))
    for labels, buckets, total_s in values:
        ends, counts = zip(*buckets, strict=True)
        made.add_metric(labels, [(_end(end), count) for end, count in zip(ends, accumulate(counts), strict=True)], total_s)
    return made


def _end(seconds: float) -> str:
    """As the label of a bucket is written."""
    written: str = floatToGoString(seconds)  # type: ignore[no-untyped-call]
    return written


def of_program() -> Iterator[Family]:
    info = InfoMetricFamily(PREFIX + "build", METRICS["build_info"].meaning)
    info.add_metric((), {"version": VERSION, "python": platform.python_version(), "loop": build()})
    yield info
    yield family("schema_version", {(): len(migration_files())})


def of_host(box: Box) -> Iterator[Family]:
    host, living = box.host, [worker for worker in box.workers if worker.page.pid]
    yield family("start_time_seconds", {(): layout.us_to_unix_s(box.started_us)})
    yield family("draining", {(): host.stopping})
    yield family("leader", {(): host.term > 0})
    yield family("leader_term", {(): host.term})
    yield family("workers", {(word,): sum(worker.page.state == state for worker in living) for state, word in STATE_WORDS.items()})
    yield family("workers_wanted", {(): host.target})
    yield family("workers_ready", {(): host.ready})
    yield family("worker_restarts_total", {(reason,): count for reason, count in host.restarts.items()})
    yield family("worker_crashes_charged_total", {(): host.charged})
    yield family("worker_cpu_seconds_total", {(str(number),): total.cpu_s for number, total in box.totals.items()})
    yield family("worker_memory_bytes", {(str(worker.page.number),): worker.memory.resident_bytes for worker in living})
    yield family("log_records_dropped_total", {(): host.log_dropped})
    yield family("runs_in_memory", {(): sum(worker.page.live for worker in living)})
    yield family("steps_executing", {(): sum(entry.seq != layout.CODE_SEQ for worker in living for entry in worker.page.executing)})
    yield from _of_totals([total.done for total in box.totals.values()])


def _of_totals(done: list[layout.Totals]) -> Iterator[Family]:
    words = {"runs_claimed_total": "claimed", "runs_ended_total": "ended", "steps_recorded_total": "steps", "step_failures_total": "failures", "commits_total": "commits"}
    for name, field in words.items():
        yield family(name, {(): sum(getattr(each, field) for each in done)})
    latency = [sum(each.latency[n] for each in done) for n in range(layout.BUCKETS)]
    first, last = COMMIT_BUCKETS[0], COMMIT_BUCKETS[-1]
    buckets = [(2**first / 1e6, sum(latency[: first + 1])), *((2**n / 1e6, latency[n]) for n in COMMIT_BUCKETS[1:]), (float("inf"), sum(latency[last + 1 :]))]
    yield histogram("commit_duration_seconds", [((), buckets, sum(each.commits_us for each in done) / 1e6)])


def of_names(workflows: Tallied, steps: Tallied) -> Iterator[Family]:
    ended = {name: each for (name, _), each in workflows.items() if not name.startswith("(") or any(each.numbers)}
    yield family("runs_finished_total", {(name, outcome): count for name, each in ended.items() for outcome, count in each.ends.items()})
    tried = {name: each for name, each in steps.items() if any(each.numbers)}
    attempts: dict[tuple[str, ...], float] = {}
    for name, each in tried.items():
        failed = min(each.failed, sum(each.numbers[2:]))
        attempts |= {(*name, "completed"): sum(each.numbers[2:]) - failed, (*name, "failed"): failed}
    yield family("step_attempts_total", attempts)
    yield histogram("step_duration_seconds", [(name, each.buckets, each.took_s) for name, each in tried.items()])


def of_facts(facts: Facts) -> Iterator[Family]:
    """What the database has said; a part that it refused says nothing."""
    yield family("database_answered", {(part,): float(good) for part, good in facts.answered.items()})
    for name, values in facts.values.items():
        yield family(name, values)
