"""What a worker counts by name: how runs of each workflow end, how tries of their steps go. The loop counts; here it is told where.

A try is counted when its row is durable, once. The loop gathers what a batch will count while it builds it; of a part of a batch that was refused
or lost that is read from the rows, for they are what the database has taken.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from supervisor._fastpath.loop import COMPLETED, STEP
from supervisor._fastpath.wire import TALLY_BYTES, Tally
from supervisor.core import registry
from supervisor.db.arrays import elements

if TYPE_CHECKING:
    from supervisor.engine.batch import Batch

FAILED_TRY = 1  # attempt.kind
PLAIN_COLUMNS = 7  # of steps: without kind and status
_i2, _f8 = struct.Struct(">h").unpack, struct.Struct(">d").unpack
_one = Tally(bytearray(TALLY_BYTES), 0)  # nobody reads what is booked there
Tries = list[tuple[Tally, bytes]]
OfStep = Callable[[str, str], Tally]


def unread(workflow: str, step: str) -> Tally:
    """Where there is no black box: nobody reads it."""
    return Tally(bytearray(TALLY_BYTES), 0)


def count_into(tallies: Any, commands: Any) -> None:
    """From now on into the black box; what an earlier worker of this process remembered is forgotten."""
    commands.tally = tallies.of_step
    for name, workflow in registry.workflows().items():
        workflow.ends = tallies.of_workflow(name)
    for step in registry.steps():
        step.tallies = []


def count_durable(tally: Tally, took_us: int) -> None:
    """A try whose result is durable already, in a transaction of its own. What waits in *tally* for its batch goes on waiting."""
    _one.add(took_us)
    tally.book(_one.take())


@dataclass
class Totals:
    """What is durable of all that a worker did: rows of history, ends of runs, tries that failed."""

    rows: int = 0
    ended: int = 0
    failures: int = 0

    def add(self, batch: Batch) -> None:
        if batch.steps is not None:
            self.rows += int.from_bytes(batch.steps[0][12:16], "big")  # of an array in binary form
        self.ended += len(batch.finished)
        if "insert_attempts" in batch.rare:
            self.failures += sum(row[3] == FAILED_TRY for _, row in batch.rare["insert_attempts"])


def tries_of(batch: Batch, of_step: OfStep) -> Tries:
    """What is counted when *batch* is durable."""
    return batch.tried if batch.tried is not None else _tries_of_rows(batch, of_step)


def _tries_of_rows(batch: Batch, of_step: OfStep) -> Tries:
    workflows = {run.id: run.workflow for run in batch.runs}
    tried: dict[tuple[str, str], Tally] = defaultdict(lambda: Tally(bytearray(TALLY_BYTES), 0))
    for run_id, name, took_us in _completed(batch.steps):
        tried[workflows[run_id].name, name].add(took_us)
    for run_id, row in batch.rare.get("insert_attempts", ()):
        if row[3] == FAILED_TRY:
            tried[workflows[run_id].name, row[4]].fail(row[8] - row[7])
    return [(of_step(*name), tally.take()) for name, tally in tried.items()]


def _completed(steps: list[bytes] | None) -> list[tuple[bytes, str, int]]:
    """Steps that completed: run id, name, us that they took."""
    if steps is None:
        return []
    found = []
    for row in zip(*(elements(column) for column in steps), strict=True):
        if len(row) == PLAIN_COLUMNS or (_i2(row[7])[0], _i2(row[8])[0]) == (STEP, COMPLETED):
            found.append((row[0], row[3].decode(), _us(row[6]) - _us(row[5])))
    return found


def _us(moment: bytes) -> int:
    seconds: float = _f8(moment)[0]
    return round(seconds * 1e6)
