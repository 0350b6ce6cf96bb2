"""What to claim: the low-water marks of one session, and the claims that look behind them.

A mark per (queue, priority) keeps claims from walking over the dead entries of earlier ones. It may hide a row whose
start committed late or that was given back with an older ready_at. So while claims are few they go from the marks of a
second ago; and once a second one goes without marks, and on without them as long as it comes back full.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from supervisor._fastpath.loop import INT2, INT4, TIMESTAMPTZ, UUID
from supervisor._fastpath.wire import Column

PRIORITIES = 10
KEPT_MAX = 16  # orders, of so many queues each
LOOK_BEHIND_S = 1.0
LATE_S = 1.0  # a start that commits so long after its ready_at is not hidden
LATE_ROWS = 500  # where no more rows than that were claimed since: walking over them costs 50 us
_NOTHING = struct.pack(">q", -(1 << 63)) + bytes(16)  # before every row: -infinity, the smallest id
_int4 = struct.Struct(">i").pack
_int2 = struct.Struct(">h").pack


class _Order:
    """In which order a claim looks: by priority, then by queue. What is always the same is encoded once: a claim is in the way of every quick run."""

    def __init__(self, queues: list[int]) -> None:
        queue, prio = Column(INT4), Column(INT2)
        self.keys = [_int4(each) + _int2(n) for n in range(PRIORITIES) for each in queues]
        for key in self.keys:
            queue.put(key[:4])
            prio.put(key[4:])
        self.queue, self.prio = queue.take(), prio.take()


class Claims:
    """Parameters of claims. *look_behind* says whether this session is the one of its host to go without marks now."""

    def __init__(self, queues: list[int], look_behind: Callable[[float], bool]) -> None:
        self._queues = queues
        self._orders: dict[int, _Order] = {}  # by the queue that comes first
        self.marks: dict[bytes, bytes] = {}
        self._look_behind = look_behind
        self._again_without = False
        self._without = False
        self._older: dict[bytes, bytes] = {}  # marks as they were one to two seconds ago, and rows claimed since
        self._newer: dict[bytes, bytes] = {}
        self._since_older = self._since_newer = 0
        self._turned_at_s = 0.0

    def params(self, limit: int, now_s: float) -> list[bytes]:
        """Parameters for up to *limit* runs, without the worker's id."""
        self._without = self._again_without or self._look_behind(now_s)
        if now_s - self._turned_at_s >= LATE_S:
            self._turned_at_s = now_s
            self._older, self._since_older = self._newer, self._since_newer
            self._newer, self._since_newer = dict(self.marks), 0
        marks = self._older if self._since_older <= LATE_ROWS else self.marks
        order = self._next_order()
        ready_at, run_id = Column(TIMESTAMPTZ), Column(UUID)
        for key in order.keys:
            mark = _NOTHING if self._without else marks.get(key, _NOTHING)
            ready_at.put(mark[:8])
            run_id.put(mark[8:])
        return [order.queue, order.prio, ready_at.take(), run_id.take(), _int4(limit)]

    def _next_order(self) -> _Order:
        """Each claim begins with another queue than the one before, so that a busy one does not starve the others."""
        first = self._queues[0]
        order = self._orders.get(first) or _Order(self._queues)
        if len(self._queues) <= KEPT_MAX:
            self._orders[first] = order
        self._queues.append(self._queues.pop(0))
        return order

    def forget(self) -> None:
        """The marks are of no use any more: the clock is another one."""
        for marks in (self.marks, self._older, self._newer):
            marks.clear()

    def took(self, count: int, limit: int) -> None:
        """Note how many the last claim brought. (The loop keeps `marks` while it reads the rows.)"""
        self._again_without = self._without and count >= limit
        self._since_older += count
        self._since_newer += count


def every_second() -> Callable[[float], bool]:
    """A *look_behind* for a worker that shares no black box with others."""
    last = [0.0]

    def due(now_s: float) -> bool:
        if now_s - last[0] < LOOK_BEHIND_S:
            return False
        last[0] = now_s
        return True

    return due
