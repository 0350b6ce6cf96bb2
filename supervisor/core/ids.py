"""Run ids: uuid v7 by the database's clock, the low 12 bits the cell's number.

    48 bits milliseconds · version 7 · 12 bits noise · variant · 50 bits that count up from noise · 12 bits cell

Owns the making and reading of ids, not their order in the database: two processes' ids of one millisecond
interleave. Invariant: within one `RunIds` every id is greater than the one before, also when the clock steps back.
Clients make ids themselves, so that a start whose answer was lost is repeated under the same id.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
import uuid
from datetime import datetime, timezone

CELL_MAX = 0xFFF
_VERSION_AND_VARIANT = (7 << 76) | (2 << 62)
_COUNT_BITS = 50
_STEP_BITS = 20  # each id is up to 2^20 above the one before: neighbours can't be guessed one by one, 2^29 fit in a millisecond


class RunIds:
    """A source of run ids. Thread-safe; after a fork the child goes on with noise of its own.

    offset_us  database clock minus this machine's, in microseconds, as measured at connect; may be set anew.
    cell       the cell's number, 0..4095.
    """

    def __init__(self, offset_us: int = 0, cell: int = 0) -> None:
        if not 0 <= cell <= CELL_MAX:
            raise ValueError(f"cell {cell} is not between 0 and {CELL_MAX}")
        self.offset_us = offset_us
        self.cell = cell
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._ms = 0
        self._head = 0  # everything but the counting bits, which stay zero in it
        self._count = 0

    def new(self) -> uuid.UUID:
        """One id."""
        return uuid.UUID(int=self._reserve(1)[0])

    def new_bytes(self, n: int) -> list[bytes]:
        """*n* ids of 16 bytes each, ascending; an order of magnitude cheaper per id than `new`."""
        return [value.to_bytes(16, "big") for value in self._reserve(n)] if n > 0 else []

    def _reserve(self, n: int) -> range:
        step = 1 + secrets.randbits(_STEP_BITS)
        with self._lock:
            now_ms = (time.time_ns() // 1000 + self.offset_us) // 1000
            if now_ms > self._ms or self._count + n * step >= 1 << _COUNT_BITS or self._pid != os.getpid():
                self._begin(max(now_ms, self._ms + (self._ms >= now_ms and self._pid == os.getpid())))
            first = self._head + ((self._count + step) << 12)
            self._count += n * step
        return range(first, first + n * (step << 12), step << 12)

    def _begin(self, ms: int) -> None:
        """Start a millisecond: fresh noise; the counter begins in the lower half, so that it has room."""
        self._pid, self._ms = os.getpid(), ms
        self._head = (ms << 80) | _VERSION_AND_VARIANT | (secrets.randbits(12) << 64) | self.cell
        self._count = secrets.randbits(_COUNT_BITS - 1)


def clock_offset_us(asked_us: int, answered_us: int, told_us: int) -> int:
    """The database's clock minus this machine's, by one question: what it was told, against the middle of the round trip.

    That may be wrong by half of the round trip. 0 where that explains the difference, as it does on one machine, or on two whose clocks agree:
    there one process's moments must not come before those of another that caused them.
    """
    offset_us = told_us - (asked_us + answered_us) // 2
    return offset_us if abs(offset_us) > (answered_us - asked_us) // 2 + 1 else 0


def id_time(run_id: uuid.UUID) -> datetime:
    """The moment that a run id carries, by the database's clock, to the millisecond."""
    return datetime.fromtimestamp((run_id.int >> 80) / 1000, timezone.utc)


def id_cell(run_id: uuid.UUID) -> int:
    """The number of the cell that a run id was made for."""
    return run_id.int & CELL_MAX
