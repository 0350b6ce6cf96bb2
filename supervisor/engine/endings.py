"""Endings: workers note the ids of runs that ended, their parent reads them; only while somebody awaits runs.

Owns a piece of shared memory, made before the forks: whether anything is to be noted, then a ring per worker with the
number of all that was ever noted in it. Each has one writer, and nobody locks. What is read here is a hint: a worker that dies
between its commit and its note, or a note that is overwritten while it is read, costs whoever waits one look more.
"""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import suppress

ENTRIES = 8192  # three of the largest batches; memory that nobody writes to is none
ENTRY_BYTES = 20  # an element of uuid[] on the wire: its length, then the id
ARRAY_HEAD_BYTES = 20
FLAG_BYTES = 64
_total = struct.Struct("=q")
_RING_BYTES = 64 + ENTRIES * ENTRY_BYTES


class Endings:
    """The parent's side. `fd` is readable when something was noted since the last `take`."""

    def __init__(self, workers: int) -> None:
        self._memory = mmap.mmap(-1, FLAG_BYTES + workers * _RING_BYTES)
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._read = [0] * workers

    def want(self, wanted: bool) -> None:
        """Say whether endings are to be noted."""
        self._memory[0] = wanted

    def take(self) -> tuple[list[bytes], bool]:
        """What was noted since, and whether more was than fits."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        ids: list[bytes] = []
        overrun = False
        for number, read in enumerate(self._read):
            total = self._total(number)
            if total == read:
                continue
            self._read[number] = total
            if total - read <= ENTRIES:
                ids += self._entries(number, read, total)
            overrun = overrun or self._total(number) - read > ENTRIES
        return ids, overrun

    def _total(self, number: int) -> int:
        total: int = _total.unpack_from(self._memory, FLAG_BYTES + number * _RING_BYTES)[0]
        return total

    def _entries(self, number: int, start: int, end: int) -> list[bytes]:
        ring = FLAG_BYTES + number * _RING_BYTES + 64
        first, count = start % ENTRIES, end - start
        before_wrap = min(count, ENTRIES - first)
        at = ring + first * ENTRY_BYTES
        data = self._memory[at : at + before_wrap * ENTRY_BYTES] + self._memory[ring : ring + (count - before_wrap) * ENTRY_BYTES]
        return [data[at + 4 : at + ENTRY_BYTES] for at in range(0, len(data), ENTRY_BYTES)]

    def of(self, number: int) -> Notes:
        """The place of one worker."""
        return Notes(self._memory, FLAG_BYTES + number * _RING_BYTES, self.fd)


class Notes:
    """The worker's side. What the last worker of its number has noted stays, and the count goes on."""

    def __init__(self, memory: mmap.mmap, at: int, fd: int) -> None:
        self._memory, self._ring, self._at, self._fd = memory, at + 64, at, fd

    @property
    def wanted(self) -> bool:
        return self._memory[0] != 0

    def note(self, ids: bytes) -> None:
        """Runs ended, durably. *ids* is the uuid[] that was sent: its elements are copied as they lie there."""
        entries = ids[max(ARRAY_HEAD_BYTES, len(ids) - ENTRIES * ENTRY_BYTES) :]
        total: int = _total.unpack_from(self._memory, self._at)[0] + (len(ids) - ARRAY_HEAD_BYTES) // ENTRY_BYTES
        at = self._ring + (total - len(entries) // ENTRY_BYTES) % ENTRIES * ENTRY_BYTES
        before_wrap = min(len(entries), self._ring + ENTRIES * ENTRY_BYTES - at)
        self._memory[at : at + before_wrap] = entries[:before_wrap]
        self._memory[self._ring : self._ring + len(entries) - before_wrap] = entries[before_wrap:]
        _total.pack_into(self._memory, self._at, total)  # last: what it counts is there
        os.eventfd_write(self._fd, 1)
