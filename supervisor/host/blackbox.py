"""The black box: shared memory in which each worker notes what it is executing, so that its parent can read it after a death.

One region, made before the forks; one page-aligned part per worker, one 40-byte slot for its loop and one per thread and
task. Writers never lock; a reader may see a slot change under its eyes, which `read` notices by reading twice.
"""

from __future__ import annotations

import mmap
import struct
import time
from dataclasses import dataclass
from uuid import UUID

from supervisor._fastpath.wire import EPOCH_2000_US, Slot

SLOT_BYTES = 40
TASK_SLOTS = 64
HEADER_BYTES = 64  # the region's first bytes: when somebody last claimed without marks
_slot = struct.Struct("=16si4xqq")
_moment = struct.Struct("=d")


@dataclass(frozen=True)
class Executing:
    """One step that is executing: whose, since when."""

    run_id: UUID
    seq: int
    for_s: float


class BlackBox:
    """Slots of *workers* workers with *threads* threads each."""

    def __init__(self, workers: int, threads: int) -> None:
        self.threads = threads
        self._part = -(-(SLOT_BYTES * (1 + threads + TASK_SLOTS)) // 64) * 64
        self.workers = workers
        self.memory = mmap.mmap(-1, HEADER_BYTES + self._part * workers)

    def _offset(self, worker: int, slot: int) -> int:
        return HEADER_BYTES + worker * self._part + slot * SLOT_BYTES

    def slots(self, worker: int) -> tuple[Slot, list[Slot], list[Slot]]:
        """For the worker itself: the slot of its loop, those of its threads, those of its tasks; all cleared."""
        start = self._offset(worker, 0)
        self.memory[start : start + self._part] = bytes(self._part)
        made = [Slot(self.memory, self._offset(worker, slot)) for slot in range(1 + self.threads + TASK_SLOTS)]
        return made[0], made[1 : 1 + self.threads], made[1 + self.threads :]

    def executing(self, worker: int) -> list[Executing]:
        """What that worker is executing now, or was when it died."""
        found = []
        for slot in range(1 + self.threads + TASK_SLOTS):
            at = self._offset(worker, slot)
            run_id, seq, started, _count = _slot.unpack_from(self.memory, at)
            if run_id != bytes(16) and _slot.unpack_from(self.memory, at)[0] == run_id:
                found.append(Executing(UUID(bytes=run_id), seq, max(0.0, (time.time_ns() // 1000 - EPOCH_2000_US - started) / 1e6)))
        return found

    def executed(self, worker: int) -> int:
        """How many steps that worker has begun since it was born."""
        return sum(_slot.unpack_from(self.memory, self._offset(worker, slot))[3] for slot in range(1 + self.threads + TASK_SLOTS))

    def look_behind(self, now_s: float, every_s: float = 1.0) -> bool:
        """Whether it is this caller's turn to claim without marks: once a second on this host. A race costs one claim more."""
        last = _moment.unpack_from(self.memory, 0)[0]
        if 0 <= now_s - last < every_s:
            return False
        _moment.pack_into(self.memory, 0, now_s)
        return True
