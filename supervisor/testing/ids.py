"""Run ids from a seed: as `core.ids` makes them, by the environment's clock, and the same for the same seed."""

from __future__ import annotations

import uuid
from random import Random

from supervisor.core.ids import RunIds
from supervisor.testing.clock import Clock

EPOCH_2000_US = 946_684_800_000_000


class SeededIds(RunIds):
    """Ascending; of one millisecond each is up to 2^20 above the one before."""

    def __init__(self, clock: Clock, seed: int) -> None:
        super().__init__()
        self._clock, self._random = clock, Random(f"run ids {seed}")

    def new(self) -> uuid.UUID:
        ms = (self._clock.us + EPOCH_2000_US) // 1000
        if ms > self._ms:
            self._ms = ms
            self._head = (ms << 80) | (7 << 76) | (2 << 62) | (self._random.getrandbits(12) << 64)
            self._count = self._random.getrandbits(49)
        self._count += 1 + self._random.getrandbits(20)
        return uuid.UUID(int=self._head + (self._count << 12))

    def new_bytes(self, n: int) -> list[bytes]:
        return [self.new().bytes for _ in range(n)]


__all__ = ["SeededIds"]
