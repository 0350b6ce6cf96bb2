"""The leaves of the loop, uncompiled: binary array parameters, the awaitable command, the black-box slot, the clock.

Same names and behaviour as wire.pyx, and every test runs on both. Owns its buffers; knows nothing of workflows or libpq.
"""

from __future__ import annotations

import struct
import time
from bisect import bisect_left
from threading import get_ident as thread_id
from typing import Any

EPOCH_2000_US = 946684800000000  # PostgreSQL counts microseconds from 2000-01-01
_i16 = struct.Struct(">ih").pack
_i32 = struct.Struct(">ii").pack
_i64 = struct.Struct(">iq").pack
_f64 = struct.Struct(">id").pack
_length = struct.Struct(">i").pack
_NULL = b"\xff\xff\xff\xff"
__all__ = ["Column", "Command", "Returned", "SLOT_BYTES", "Slot", "TALLY_BOUNDS_US", "TALLY_BYTES", "Tally", "Watched", "clock_us", "compiled", "resume", "thread_id"]
SLOT_BYTES = 128
_NAME_AT, _NAME_MAX = 48, 80
_NO_RUN = bytes(16)
_facts = struct.Struct("=iH?xqq")
_started = struct.Struct("=q")
_thread = struct.Struct("=Q")
# upper ends of the buckets of a step's durations; one bucket more has what is longer
TALLY_BOUNDS_US = (
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000
)  # fmt: skip
TALLY_BYTES = 8 * (3 + len(TALLY_BOUNDS_US))
_tally = struct.Struct(f"={TALLY_BYTES // 8}q")


class Column:
    """One parameter of `unnest`: values are appended in the binary form of an array."""

    __slots__ = ("_nulls", "_oid", "_parts", "count")

    def __init__(self, oid: int) -> None:
        self._oid = oid
        self._parts: list[bytes] = []
        self._nulls = 0
        self.count = 0

    def _add(self, part: bytes) -> None:
        self._parts.append(part)
        self.count += 1

    def put(self, value: bytes) -> None:
        self._add(_length(len(value)) + value)

    def put_null(self) -> None:
        self._nulls = 1
        self._add(_NULL)

    def put_i16(self, value: int) -> None:
        self._add(_i16(2, value))

    def put_i32(self, value: int) -> None:
        self._add(_i32(4, value))

    def put_i64(self, value: int) -> None:
        self._add(_i64(8, value))

    def put_moment(self, us: int) -> None:
        """A moment in us since 2000, as float8 seconds since 1970: to_timestamp() reads that exactly, and timestamptz's own input is slower."""
        self._add(_f64(8, (us + EPOCH_2000_US) / 1e6))

    def take(self) -> bytes:
        """The array so far; the column is empty afterwards."""
        count, nulls, parts = self.count, self._nulls, self._parts
        self._parts, self._nulls, self.count = [], 0, 0
        if not count:
            return struct.pack(">iii", 0, 0, self._oid)
        return struct.pack(">iiiii", 1, nulls, self._oid, count, 1) + b"".join(parts)


class Command:
    """One thing a workflow asked for. Awaiting it yields it once to the loop, then gives its value or raises its error.

    called_us    of a wait: when the code called it, us since 2000; 0: not known yet
    taken        somebody has it: it was awaited, or given to a group. One that ends without is told to its run
    """

    __slots__ = ("args", "attempt", "called_us", "done", "error", "extra", "kind", "kwargs", "redelivered", "run", "seq", "step", "taken", "value", "waiter")

    def __init__(self) -> None:
        self.run: Any = None
        self.step: Any = None
        self.waiter: Any = None
        self.value: Any = None
        self.error: BaseException | None = None
        self.extra: Any = None
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] | None = None
        self.seq = self.kind = self.attempt = self.called_us = 0
        self.done = self.redelivered = self.taken = False

    def __del__(self) -> None:
        if not self.taken and self.run is not None:
            self.run.lost(self.kind, self.step, self.seq)

    def __await__(self) -> Command:
        return self

    def __iter__(self) -> Command:
        return self

    def __next__(self) -> Command:
        if not self.done:
            return self
        if self.error is not None:
            raise self.error
        raise StopIteration(self.value)


class Returned:
    """What `resume` gives when the coroutine has returned."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def resume(coroutine: Any) -> Any:
    """Run *coroutine* to its next command, or to its end (Returned). Whatever it raises comes through."""
    try:
        return coroutine.send(None)
    except StopIteration as stop:
        return Returned(stop.value)


class Slot:
    """One entry of the black box: which run and step is executing, since when. 128 bytes of shared memory.

    Layout: 16 run id (zeros: nothing), 4 seq (-1: workflow code), 2 length of the name, 1 whether it rests, 1 pad,
    8 started (us since 2000; of workflow code a number that no other entry of it has), 8 count of executions, 8 thread,
    80 name of the step, or of the workflow. The run id is written last.
    """

    __slots__ = ("_count", "_memory", "_offset")

    def __init__(self, memory: Any, offset: int) -> None:
        if offset < 0 or offset + SLOT_BYTES > len(memory):
            raise ValueError(f"slot at {offset} is outside of {len(memory)} bytes")
        self._memory, self._offset, self._count = memory, offset, 0

    def enter(self, run_id: bytes, seq: int, now_us: int, name: bytes = b"") -> None:
        memory, at, name = self._memory, self._offset, name[:_NAME_MAX]
        self._count += 1
        memory[at + _NAME_AT : at + _NAME_AT + len(name)] = name
        _facts.pack_into(memory, at + 16, seq, len(name), False, now_us, self._count)
        memory[at : at + 16] = run_id

    def code(self, run_id: bytes, name: bytes = b"") -> None:
        """Workflow code of that run, of the workflow *name*, has the thread, between its steps. Reads no clock: it counts on from the last step's start."""
        memory, at, name = self._memory, self._offset, name[:_NAME_MAX]
        (started,) = _started.unpack_from(memory, at + 24)
        memory[at + _NAME_AT : at + _NAME_AT + len(name)] = name
        _facts.pack_into(memory, at + 16, -1, len(name), False, started + 1, self._count)
        memory[at : at + 16] = run_id

    def leave(self) -> None:
        self._memory[self._offset : self._offset + 16] = _NO_RUN

    def own(self) -> None:
        """Note that this slot is the calling thread's."""
        _thread.pack_into(self._memory, self._offset + 40, thread_id())

    def rest(self, resting: bool) -> None:
        self._memory[self._offset + 22] = resting


class Tally:
    """Counters of one name in shared memory: numbers of 8 bytes that only grow. They have one writer, and a reader sees each old or new.

    A step's are: tries that failed, us that all took, and how many took how long, by TALLY_BOUNDS_US. They wait here, unseen, for the batch that
    makes them durable: `take` gives what has waited, `book` counts it. A workflow's: ends by outcome, counted at once.
    """

    __slots__ = ("_numbers", "_tried", "waits")

    def __init__(self, memory: Any, offset: int) -> None:
        if offset < 0 or offset + TALLY_BYTES > len(memory):
            raise ValueError(f"tally at {offset} is outside of {len(memory)} bytes")
        self._numbers = memoryview(memory)[offset : offset + TALLY_BYTES].cast("q")
        self._tried, self.waits = [0] * (TALLY_BYTES // 8), False

    def add(self, took_us: int) -> None:
        """A try was completed after so long."""
        took_us = max(took_us, 0)  # the clock may have been set back
        self._tried[1] += took_us
        self._tried[2 + bisect_left(TALLY_BOUNDS_US, took_us)] += 1

    def fail(self, took_us: int) -> None:
        """A try failed after so long."""
        self._tried[0] += 1
        self.add(took_us)

    def take(self) -> bytes:
        """What has waited, for `book`; nothing waits any more."""
        tried, self._tried, self.waits = self._tried, [0] * (TALLY_BYTES // 8), False
        return _tally.pack(*tried)

    def book(self, tried: bytes) -> None:
        """Those tries are durable."""
        for n, more in enumerate(_tally.unpack(tried)):
            self._numbers[n] += more

    def count(self, outcome: int) -> None:
        """A run ended so."""
        self._numbers[outcome] += 1


class Watched:
    """The coroutine of a task; its slot says whether it has the thread or rests, waiting for something."""

    __slots__ = ("_coroutine", "_slot")

    def __init__(self, coroutine: Any, slot: Slot) -> None:
        self._coroutine, self._slot = coroutine, slot

    @property
    def cr_await(self) -> Any:
        """What it awaits: the name that a coroutine has for it, so that whoever shows where a task waits sees through this one."""
        return self._coroutine

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Watched:
        return self

    def __next__(self) -> Any:
        self._slot.rest(False)
        try:
            return self._coroutine.send(None)
        finally:
            self._slot.rest(True)

    def throw(self, *error: Any) -> Any:
        self._slot.rest(False)
        try:
            return self._coroutine.throw(*error)
        finally:
            self._slot.rest(True)

    def close(self) -> None:
        self._coroutine.close()


_held = 0


def clock_us() -> int:
    """This machine's clock in microseconds since 2000-01-01, or what it is held at."""
    return _held or time.time_ns() // 1000 - EPOCH_2000_US


def hold_clock(us: int) -> None:
    """The clock of this process shows *us* from now on; 0: it goes again. For tests of workflows (supervisor.testing)."""
    global _held
    _held = us


def id_time_us(run_id: bytes) -> int:
    """The moment that a run id carries, in us since 2000: a run's time until it is given something."""
    return int.from_bytes(run_id[:6], "big") * 1000 - EPOCH_2000_US


def compiled() -> bool:
    return False
