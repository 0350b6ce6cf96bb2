"""When a worker that found nothing looks again: at a nudge of its parent; by itself where the parent is silent.

Owns the board, a page of shared memory in which workers say that they wait and the parent says that it looks. Nothing
depends on a nudge: one that is lost, or a parent that hangs, delays a look by the pause of a poll.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Collection
from typing import Any

import msgspec

POLL_BUSY_S, POLL_IDLE_S, BUSY_FOR_S = 0.02, 0.5, 10.0
# what is written to a worker's eventfd: there may be work; runs that it has were sent signals; from now on it is to hear for itself what is started
NUDGED, SIGNALLED, HEAR = 1, 1 << 32, 1 << 48
PASSED_MAX = 1 << 32  # runs that a worker heard of and has no room for, in one word to its parent
SILENT_S = 2.0  # a parent whose last answered pulse is older looks no more
_moment = struct.Struct("=d")
_PLACE = 2 * _moment.size
_hints = msgspec.json.Decoder(list[tuple[str, str | None, int, float]]).decode  # workflow, queue if it is not the workflow's, runs, delay in s


def read_hints(payload: str | bytes, queues: Collection[str], workflows: Collection[str]) -> list[tuple[int, float]]:
    """What an announcement of starts holds for whoever serves these *queues* (none: those of the workflows) and *workflows*: runs, delay in s."""
    try:
        hints = _hints(payload)
    except (msgspec.DecodeError, msgspec.ValidationError):  # whoever may connect may notify
        return []
    # the name of a queue that a start chose is known only where ours were chosen too
    return [(n, delay_s) for workflow, queue, n, delay_s in hints if (queue in queues if queue is not None and queues else workflow in workflows)]


class Board:
    """Moments by the monotonic clock, which all processes of a machine share. Made before the forks.

    At first when the parent's last pulse was answered; then for each worker since when it waits (negative: when it ceased to), and
    when it last found something. Each has one writer, and a moment is written at once: nobody locks.
    """

    def __init__(self, workers: int) -> None:
        self._memory = mmap.mmap(-1, _moment.size + _PLACE * workers)
        self.workers = workers

    def _read(self, at: int) -> float:
        moment: float = _moment.unpack_from(self._memory, at)[0]
        return moment

    # ── the parent's side ────────────────────────────────────────────────────────────────────────────────────────

    def pulsed(self, now_s: float) -> None:
        """Note that the parent looked, and had an answer."""
        _moment.pack_into(self._memory, 0, now_s)

    def waits_since(self, number: int) -> float:
        """Since when that worker waits; 0 while it works or claims."""
        return max(0.0, self._read(_moment.size + _PLACE * number))

    def ceased_at(self, number: int) -> float:
        """When that worker last ceased to wait; 0 while it waits."""
        return max(0.0, -self._read(_moment.size + _PLACE * number))

    def found_at(self) -> float:
        """When any worker last found something."""
        return max(self._read(2 * _moment.size + _PLACE * number) for number in range(self.workers))

    # ── the worker's side ────────────────────────────────────────────────────────────────────────────────────────

    def seat(self, number: int) -> Seat:
        """The place of one worker, cleared."""
        return Seat(self._memory, _moment.size + _PLACE * number)


class Seat:
    """One worker's place on the board."""

    def __init__(self, memory: mmap.mmap, at: int) -> None:
        self._memory, self._at = memory, at
        self.works(0.0)
        self.found(0.0)

    def waits(self, now_s: float) -> None:
        _moment.pack_into(self._memory, self._at, now_s)

    def works(self, now_s: float) -> None:
        _moment.pack_into(self._memory, self._at, -now_s)

    def found(self, now_s: float) -> None:
        _moment.pack_into(self._memory, self._at + _moment.size, now_s)

    def parent_looks(self, now_s: float) -> bool:
        return bool(now_s - _moment.unpack_from(self._memory, 0)[0] < SILENT_S)


class Rest:
    """After a claim that found nothing, or a single run of several that it might have: when may the next one be sent?

    Where runs come one by one, the next is announced; a claim that rides in the batch of the first would only delay it.

    look     sends it
    later    the event loop's call_later
    look_at  before then no claim is sent while `empty`
    """

    def __init__(self, seat: Seat, look: Callable[[], None], later: Callable[[float, Callable[[], None]], Any], clock: Callable[[], float]) -> None:
        self._seat, self._look, self._later, self._clock = seat, look, later, clock
        self.empty = False
        self.look_at = 0.0
        self._found_at = 0.0
        self._told = False
        self._timer: Any = None

    def nudged(self) -> None:
        """There may be work. A claim that is under way may have been too early for it: then another one follows."""
        self._told = True
        self.look_at = 0.0

    def asked(self) -> None:
        """A claim is sent."""
        self._told = False
        self._cancel()
        self._seat.works(self._clock())

    def lost(self) -> None:
        """A claim was refused, or the session is lost, and with it perhaps a claim: another one follows as soon as one can be sent."""
        self._cancel()
        self._seat.works(self._clock())
        self.nudged()

    def answered(self, count: int, asked: int) -> None:
        """It brought *count* of *asked*."""
        now = self._clock()
        self.empty = count == 0 or count == 1 < asked
        if count:
            self._found_at = now
            self._seat.found(now)
        if not self.empty:
            return
        if self._told:
            self.look_at = now
        else:
            self._seat.waits(now)
            self._wait(POLL_BUSY_S if now - self._found_at < BUSY_FOR_S else POLL_IDLE_S)

    def stop(self) -> None:
        """No claim follows."""
        self._seat.works(self._clock())
        self._cancel()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self, wait_s: float) -> None:
        self._cancel()
        self.look_at = self._clock() + wait_s
        self._timer = self._later(wait_s, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        if not self._told and self._seat.parent_looks(self._clock()):
            self._wait(POLL_IDLE_S)
        else:
            self._look()
