"""Waiting for results on an event loop: one task asks for all tasks that wait on a client.

It is there while somebody waits, and ends before the last one goes on. A waiter that is cancelled or gives up takes its
place away and disturbs no question; where it was the last one, the task ends by itself with the question that is under way.
What is asked when stands in asking.py; runs that take long are told to the hosts, whose answers an ear hears (ear.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from supervisor.api.asking import TOGETHER_S, Asking, Place

if TYPE_CHECKING:
    from supervisor.api.ear import Ear, Heard
    from supervisor.db.client_calls import Outcome


TICK_S = 0.001  # of an event loop's timers


class _Stir:
    """Wakes one waiting task, once."""

    def __init__(self) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def set(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def fail(self, error: BaseException) -> None:
        if self.future.done():
            return
        if isinstance(error, Exception):
            self.future.set_exception(error)
        else:
            self.future.cancel()


class AsyncWaiter:
    """Tasks of one client that wait.

    ask   brings the outcomes of those of the given runs that have ended; where none has, its answer may wait for so many seconds
    ear   makes the ear, which calls what it is given; without one all is found by asking
    """

    def __init__(self, ask: Callable[[Sequence[bytes], float], Awaitable[Sequence[Outcome]]], ear: Callable[[Heard], Ear] | None = None) -> None:
        self._ask, self._make_ear = ask, ear
        self._asking = Asking()
        self._places = self._asking.places
        self._task: asyncio.Task[None] | None = None
        self._stir = asyncio.Event()  # the task that asks
        self._asleep_until = 0.0
        self._ear: Ear | None = None

    async def wait(self, run_id: bytes, give_up_at: float | None, started_at: float = 0.0) -> Outcome | None:
        """The outcome of a run, or None at *give_up_at* (time.monotonic()). Raises what asking raises.

        started_at   when this process started it, if it did: it is not asked about at once then
        """
        now = time.monotonic()
        stir = _Stir()
        place = self._asking.add(run_id, now, started_at, stir)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._ask_for_all(), name="pgsupervisor-results")
        elif self._asking.next_at(now) < self._asleep_until:  # it sleeps for longer than this one wants
            self._stir.set()
        try:
            async with asyncio.timeout(None if give_up_at is None else max(0.0, give_up_at - now)) as limit:
                await stir.future
        except TimeoutError:
            if not limit.expired():
                raise  # not ours: what asking raised
        finally:
            self._leave(place)
        return place.outcome

    async def close(self) -> None:
        """End the ear's session; who waits goes on, and opens another."""
        ear, self._ear = self._ear, None
        self._asking.forget_told(time.monotonic())
        self._stir.set()
        if ear is not None:
            await asyncio.to_thread(ear.close)

    def _leave(self, place: Place) -> None:
        if self._asking.discard(place) and self._ear is not None:
            self._ear.leaves([place.run_id])
        if not self._places:
            self._stir.set()

    async def _ask_for_all(self) -> None:
        try:
            while await self._turn():
                pass
        except BaseException as error:  # the loop is being shut down: nobody asks any more
            for place in list(self._places):
                place.stir.fail(error)
            raise

    async def _turn(self) -> bool:
        """Sleep until somebody's run is to be asked about, or ask; False when nobody waits."""
        asked_at = time.monotonic()
        self._asking.hears = self._ear is not None and self._ear.hears
        self._asleep_until = self._asking.next_at(asked_at)
        if self._asleep_until == float("inf"):
            return False
        pause_s = self._asleep_until - asked_at
        if pause_s > TOGETHER_S:
            # asyncio waits whole milliseconds, and rounds up: a pause of 1.1 ms was one of 2, and that of every quick run
            await self._sleep(max(TICK_S, round(pause_s / TICK_S) * TICK_S))
            return True
        due = self._asking.take(asked_at)
        patience_s = self._asking.patience_s(due, asked_at)
        try:
            ended = {outcome.run_id.bytes: outcome for outcome in await self._ask(list({place.run_id for place in due}), patience_s)}
        except Exception as error:  # noqa: BLE001 - whoever waits raises it
            for place in due:
                place.stir.fail(error)
                self._asking.discard(place)
            return True
        done, slow = self._asking.answered(due, ended, asked_at, time.monotonic())
        if slow and self._make_ear is not None:
            loop = asyncio.get_running_loop()
            self._ear = self._ear or self._make_ear(lambda ids: self._hear(loop, ids))
            self._ear.awaits(slow)
        for place in done:
            place.stir.set()
        return True

    async def _sleep(self, seconds: float) -> None:
        self._stir.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._stir.wait()
        except TimeoutError:
            pass

    def _hear(self, loop: asyncio.AbstractEventLoop, ids: Sequence[bytes] | None) -> None:
        """On the ear's thread: these have ended, or nobody knows which."""
        try:
            loop.call_soon_threadsafe(self._announced, ids)
        except RuntimeError:  # the loop is closed
            pass

    def _announced(self, ids: Sequence[bytes] | None) -> None:
        if self._asking.announced(ids, time.monotonic()):
            self._stir.set()
