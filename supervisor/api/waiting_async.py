"""Waiting for results on an event loop: one task asks for all tasks that wait on a client.

It is there while somebody waits, and ends before the last one goes on. A waiter that is cancelled or gives up takes its
place away and disturbs no question; where it was the last one, the task ends by itself with the question that is under way.
The pace is that of waiting.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from supervisor.api.waiting import FRESH_S, IDS_MAX, PACE, PAUSE_MAX_S, PAUSE_MIN_S, TOGETHER_S

if TYPE_CHECKING:
    from supervisor.db.client_calls import Outcome


class _Place:
    """One task that waits for one run."""

    __slots__ = ("ask_at", "outcome", "run_id", "since")

    def __init__(self, run_id: bytes, since: float, ask_at: float) -> None:
        self.run_id, self.since, self.ask_at = run_id, since, ask_at
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()


class AsyncWaiter:
    """Tasks of one client that wait. *ask* brings the outcomes of those of the given runs that have ended."""

    def __init__(self, ask: Callable[[Sequence[bytes]], Awaitable[Sequence[Outcome]]]) -> None:
        self._ask = ask
        self._places: set[_Place] = set()
        self._asking: asyncio.Task[None] | None = None
        self._stir = asyncio.Event()

    async def wait(self, run_id: bytes, give_up_at: float | None, started_at: float = 0.0) -> Outcome | None:
        """The outcome of a run, or None at *give_up_at* (time.monotonic()). Raises what asking raises.

        started_at   when this process started it, if it did: it is not asked about at once then
        """
        now = time.monotonic()
        place = _Place(run_id, now, max(now, started_at + FRESH_S))
        self._places.add(place)
        self._stir.set()  # who asks may be asleep for longer than this one wants
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_for_all(), name="pgsupervisor-results")
        try:
            if give_up_at is None:
                return await place.outcome
            async with asyncio.timeout(max(0.0, give_up_at - now)) as limit:
                return await place.outcome
        except TimeoutError:
            if not limit.expired():
                raise  # not ours: what asking raised
            return None
        finally:
            self._places.discard(place)
            if not self._places:
                self._stir.set()

    async def _ask_for_all(self) -> None:
        try:
            await self._turns()
        except asyncio.CancelledError:  # the loop is being shut down, so nobody asks any more
            for place in self._places:
                place.outcome.cancel()
            raise

    async def _turns(self) -> None:
        rest_until = 0.0
        while waiting := [place for place in self._places if not place.outcome.done()]:
            now = time.monotonic()
            pause_s = max(min(place.ask_at for place in waiting), rest_until) - now
            if pause_s > 0:
                await self._sleep(pause_s)
                continue
            due = sorted((place for place in waiting if place.ask_at <= now + TOGETHER_S), key=lambda place: place.ask_at)[:IDS_MAX]
            try:
                ended = {outcome.run_id.bytes: outcome for outcome in await self._ask(list({place.run_id for place in due}))}
            except Exception as error:  # noqa: BLE001 - whoever waits raises it
                for place in due:
                    if not place.outcome.done():
                        place.outcome.set_exception(error)
                continue
            asked_at, now = now, time.monotonic()
            rest_until = now + (now - asked_at)  # at most half of the time is spent with asking
            for place in due:
                place.ask_at = now + min(max(PACE * (now - place.since), PAUSE_MIN_S), PAUSE_MAX_S)
            for place in waiting:
                if place.run_id in ended and not place.outcome.done():
                    place.outcome.set_result(ended[place.run_id])

    async def _sleep(self, seconds: float) -> None:
        self._stir.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._stir.wait()
        except TimeoutError:
            pass
