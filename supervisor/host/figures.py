"""From two looks at black boxes to rates and latencies. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supervisor.host.boxes import Box, Process


@dataclass(frozen=True)
class Rates:
    """What one worker, or all, did per second between two looks; latencies are of batches, sent to acknowledged, None without any."""

    steps_per_s: float
    runs_per_s: float
    failures_per_s: float
    commits_per_s: float
    cpu_percent: float
    p50_ms: float | None
    p99_ms: float | None


def rates(before: Iterable[Box], now: Iterable[Box]) -> tuple[Rates, dict[tuple[int, int], Rates]]:
    """Of all workers together, and of each by (pid of its supervisor, number). A process that is new since *before* counts from zero."""
    old = {(box.pid, process.page.number): process for box in before for process in box.workers}
    at = {box.pid: box.at_us for box in before}
    each: dict[tuple[int, int], Rates] = {}
    total, buckets = [0.0] * 5, [0] * 64
    for box in now:
        passed_s = (box.at_us - at.get(box.pid, box.started_us)) / 1e6
        for process in box.workers:
            if process.page.pid == 0:
                continue
            moved, latency = _moved(old.get((box.pid, process.page.number)), process)
            each[box.pid, process.page.number] = _rates(moved, latency, passed_s)
            if passed_s > 0:  # each supervisor's rate over its own time: one that came later counts no less
                total = [sum_ + one / passed_s for sum_, one in zip(total, moved, strict=True)]
            buckets = [sum_ + one for sum_, one in zip(buckets, [*latency, *[0] * (64 - len(latency))], strict=True)]
    return _rates(total, buckets, 1.0), each


def _moved(before: Process | None, now: Process) -> tuple[list[float], list[int]]:
    """How much steps, ended runs, failures, commits and CPU seconds have grown, and the counts of latencies."""
    page = now.page
    grown = [float(page.steps), float(page.ended), float(page.failures), float(page.commits), now.memory.cpu_s]
    if before is None or before.page.pid != page.pid:
        return grown, list(page.latency)
    old = before.page
    past = [float(old.steps), float(old.ended), float(old.failures), float(old.commits), before.memory.cpu_s]
    return [max(0.0, a - b) for a, b in zip(grown, past, strict=True)], [max(0, a - b) for a, b in zip(page.latency, old.latency, strict=True)]


def _rates(moved: Sequence[float], latency: Sequence[int], seconds: float) -> Rates:
    steps, runs, failures, commits, cpu = (amount / seconds if seconds > 0 else 0.0 for amount in moved)
    return Rates(steps, runs, failures, commits, 100 * cpu, percentile_ms(latency, 0.5), percentile_ms(latency, 0.99))


def percentile_ms(buckets: Sequence[int], share: float) -> float | None:
    """The latency that *share* of all stay below, interpolated within its bucket (bucket n: 2^(n-1) to 2^n us)."""
    total = sum(buckets)
    if total == 0:
        return None
    wanted, seen = share * total, 0
    for n, count in enumerate(buckets):
        if count and seen + count >= wanted:
            low, high = (2.0 ** (n - 1) if n else 0.0), 2.0**n
            return (low + (high - low) * (wanted - seen) / count) / 1000
        seen += count
    return None
