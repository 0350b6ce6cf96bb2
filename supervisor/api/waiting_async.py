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

from supervisor.api.asking import Asking

if TYPE_CHECKING:
    from supervisor.api.ear import Ear, Heard
    from supervisor.db.client_calls import Outcome


class _Stir:
    """Wakes one waiter, with an error or without."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def set(self, error: BaseException | None = None) -> None:
        if self._future.done():
            return
        if error is not None:
            self._future.set_exception(error)
        else:
            self._future.set_result(None)

    def cancel(self) -> None:
        self._future.cancel()

    async def wait(self) -> None:
        await self._future


class AsyncWaiter:
    """Tasks of one client that wait.

    ask   brings the outcomes of those of the given runs that have ended
    ear   makes the ear, which calls what it is given; without one all is found by asking
    """

    def __init__(self, ask: Callable[[Sequence[bytes]], Awaitable[Sequence[Outcome]]], ear: Callable[[Heard], Ear] | None = None) -> None:
        self._ask, self._make_ear = ask, ear
        self._places = Asking()
        self._asking: asyncio.Task[None] | None = None
        self._asleep_until = 0.0
        self._stir = asyncio.Event()
        self._ear: Ear | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def wait(self, run_id: bytes, give_up_at: float | None, started_at: float = 0.0) -> Outcome | None:
        """The outcome of a run, or None at *give_up_at* (time.monotonic()). Raises what asking raises.

        started_at   when this process started it, if it did: it is not asked about at once then
        """
        now = time.monotonic()
        stir = _Stir()
        place = self._places.add(run_id, now, started_at, stir)
        if self._places.next_at(now) < self._asleep_until:
            self._stir.set()  # who asks is asleep for longer than this one wants
        if self._asking is None or self._asking.done():
            self._loop = asyncio.get_running_loop()
            self._asking = asyncio.create_task(self._ask_for_all(), name="pgsupervisor-results")
        try:
            if give_up_at is None:
                await stir.wait()
            else:
                async with asyncio.timeout(max(0.0, give_up_at - now)) as limit:
                    await stir.wait()
        except TimeoutError:
            if give_up_at is None or not limit.expired():
                raise  # not ours: what asking raised
        finally:
            if self._places.discard(place) and self._ear is not None:
                self._ear.leaves([run_id])
            if not self._places.places:
                self._stir.set()
        return place.outcome

    def close(self) -> None:
        """End the ear's session, a second at most; who waits goes on, and opens another."""
        ear, self._ear = self._ear, None
        if ear is not None:
            ear.close()

    async def _ask_for_all(self) -> None:
        try:
            await self._turns()
        except asyncio.CancelledError:  # the loop is being shut down, so nobody asks any more
            for place in self._places.places:
                place.stir.cancel()
            raise

    async def _turns(self) -> None:
        places = self._places
        while any(place.outcome is None for place in places.places):
            asked_at = time.monotonic()
            places.hears = self._ear is not None and self._ear.hears
            at = places.next_at(asked_at)
            if at > asked_at:
                await self._sleep_until(at)
                continue
            due = places.take(asked_at)
            try:
                ended = {outcome.run_id.bytes: outcome for outcome in await self._ask(list({place.run_id for place in due}))}
            except Exception as error:  # noqa: BLE001 - whoever waits raises it
                for place in due:
                    place.stir.set(error)
                continue
            done, slow = places.answered(due, ended, asked_at, time.monotonic())
            if slow and self._make_ear is not None:
                self._ear = self._ear or self._make_ear(self._heard)
                self._ear.awaits(slow)
            for place in done:
                place.stir.set()

    async def _sleep_until(self, at: float) -> None:
        self._stir.clear()
        self._asleep_until = at
        left_s = at - time.monotonic()
        try:
            async with asyncio.timeout(left_s if left_s < float("inf") else None):
                await self._stir.wait()
        except TimeoutError:
            pass
        finally:
            self._asleep_until = 0.0

    def _heard(self, ids: Sequence[bytes] | None) -> None:
        """On the ear's thread: these have ended, or nobody knows which."""
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self._announced, ids)
            except RuntimeError:  # it was closed in this moment
                pass

    def _announced(self, ids: Sequence[bytes] | None) -> None:
        if self._places.announced(ids, time.monotonic()):
            self._stir.set()
