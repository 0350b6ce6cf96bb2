"""Counters by name: how runs of each workflow ended, how tries of each step went and how long they took.

One area of the black box per worker number, with one writer. Entries are added and never removed, and a successor goes on with those that
it finds, so nothing that was counted goes back. There is room for so many names; what comes later is counted together as OTHER.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from supervisor._fastpath.wire import TALLY_BOUNDS_US, TALLY_BYTES, Tally

WORKFLOWS_MAX, STEPS_MAX = 256, 512  # names; the first of each kind is OTHER
OTHER = "(other)"
NAME_BYTES = 128  # of a name; longer ones are cut, and counted together where that makes them equal
OUTCOMES = ("completed", "failed", "cancelled", "terminated", "timed_out", "continued")  # by outcome.status, from 1
_head = struct.Struct("@qq")  # how many workflows, and steps, have an entry
_names = struct.Struct(f"@qHH4x{NAME_BYTES}s{NAME_BYTES}s")  # since when, by the monotonic clock; lengths of both, workflow, step
_numbers = struct.Struct(f"@{TALLY_BYTES // 8}q")
_ENTRY_BYTES = -(-(_names.size + TALLY_BYTES) // 64) * 64
_WORKFLOWS_AT = 64
_STEPS_AT = _WORKFLOWS_AT + WORKFLOWS_MAX * _ENTRY_BYTES
AREA_BYTES = -(-(_STEPS_AT + STEPS_MAX * _ENTRY_BYTES) // 4096) * 4096

Name = tuple[str, str]  # of a workflow and of a step, "" for none


class Tallies:
    """The worker's side: gives each name its counters, those of its predecessor where there are any."""

    def __init__(self, memory: Any, at: int) -> None:
        self._memory, self._at = memory, at
        self._kinds = (_Names(memory, at, 0, _WORKFLOWS_AT, WORKFLOWS_MAX), _Names(memory, at, 1, _STEPS_AT, STEPS_MAX))

    def of_workflow(self, workflow: str) -> Tally:
        return self._kinds[0].tally(workflow, "")

    def of_step(self, workflow: str, step: str) -> Tally:
        return self._kinds[1].tally(workflow, step)


class _Names:
    """The entries of one kind."""

    def __init__(self, memory: Any, at: int, kind: int, first_at: int, most: int) -> None:
        self._memory, self._count_at, self._first_at, self._most = memory, at + 8 * kind, at + first_at, most
        self._count: int = struct.unpack_from("@q", memory, self._count_at)[0]
        self._known: dict[tuple[bytes, bytes], int] = {}
        for index in range(self._count):
            _, long, longer, workflow, step = _names.unpack_from(memory, self._entry(index))
            self._known[workflow[:long], step[:longer]] = index
        if self._count == 0:
            self._add(OTHER.encode(), OTHER.encode() if kind else b"")

    def _entry(self, index: int) -> int:
        return self._first_at + index * _ENTRY_BYTES

    def tally(self, workflow: str, step: str) -> Tally:
        key = workflow.encode("utf-8", "backslashreplace")[:NAME_BYTES], step.encode("utf-8", "backslashreplace")[:NAME_BYTES]
        index = self._known.get(key)
        if index is None:
            index = self._add(*key) if self._count < self._most else 0
        return Tally(self._memory, self._entry(index) + _names.size)

    def _add(self, workflow: bytes, step: bytes) -> int:
        """An entry more. Its names stand there before it counts as one: whoever dies in between leaves nothing."""
        index = self._known[workflow, step] = self._count
        _names.pack_into(self._memory, self._entry(index), time.monotonic_ns(), len(workflow), len(step), workflow, step)
        self._count += 1
        struct.pack_into("@q", self._memory, self._count_at, self._count)
        return index


# ── from another process ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Counted:
    """What all workers of a host have counted for one name: numbers as `Tally` has them. since: when the first of them met it."""

    since: int
    numbers: list[int]

    @property
    def ends(self) -> dict[str, int]:
        """Of a workflow: how many of its runs ended how."""
        return dict(zip(OUTCOMES, self.numbers[1:], strict=False))

    @property
    def failed(self) -> int:
        """Of a step: tries that failed."""
        return self.numbers[0]

    @property
    def took_s(self) -> float:
        return self.numbers[1] / 1e6

    @property
    def buckets(self) -> list[tuple[float, int]]:
        """How many tries took longer than the bucket before and at most so many seconds."""
        return list(zip([*(us / 1e6 for us in TALLY_BOUNDS_US), float("inf")], self.numbers[2:], strict=True))


def read(pread: Callable[[int, int], bytes], areas: Iterable[int]) -> tuple[dict[Name, Counted], dict[Name, Counted]]:
    """Workflows and steps of all *areas* together, by name. pread: (bytes, offset)."""
    workflows: dict[Name, Counted] = {}
    steps: dict[Name, Counted] = {}
    for at in areas:
        counts = _head.unpack(pread(_head.size, at))
        for into, count, first_at in ((workflows, counts[0], _WORKFLOWS_AT), (steps, counts[1], _STEPS_AT)):
            if count:
                _sum(into, pread(count * _ENTRY_BYTES, at + first_at))
    return _first(workflows, WORKFLOWS_MAX, (OTHER, "")), _first(steps, STEPS_MAX, (OTHER, OTHER))


def _sum(into: dict[Name, Counted], entries: bytes) -> None:
    for at in range(0, len(entries), _ENTRY_BYTES):
        since, long, longer, workflow, step = _names.unpack_from(entries, at)
        name = workflow[:long].decode("utf-8", "replace"), step[:longer].decode("utf-8", "replace")
        _add(into, name, since, _numbers.unpack_from(entries, at + _names.size))


def _add(into: dict[Name, Counted], name: Name, since: int, numbers: Iterable[int]) -> None:
    have = into.get(name)
    if have is None:
        into[name] = Counted(since, list(numbers))
    else:
        have.since = min(have.since, since)
        have.numbers = [a + b for a, b in zip(have.numbers, numbers, strict=True)]


def _first(counted: dict[Name, Counted], most: int, other: Name) -> dict[Name, Counted]:
    """The names that were met first, which stay the first; workers may have met others, so together they may have more than one of them has room for."""
    told: dict[Name, Counted] = {}
    ordered = sorted(counted.items(), key=lambda item: (item[0] != other, item[1].since, item[0]))
    for index, (name, each) in enumerate(ordered):
        _add(told, name if index < most else other, each.since, each.numbers)
    return told
