"""What open pages ask for by themselves is made once for all who look at the same, until something has changed; or for a second, whichever is less.

Owns when a page may be given to another visitor, never what is in it: who puts a page here sees to it that nothing of one visitor is in it. On the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
KEPT_S = 1.0
KEPT_MAX = 256


@dataclass
class _Kept(Generic[T]):
    made: asyncio.Future[T]
    begun_at: float
    generation: int


class Shared(Generic[T]):
    """By address. `forget` may be called from any thread; all else belongs to the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[str, _Kept[T]] = {}
        self._generation = 0

    def forget(self) -> None:
        """What was begun until now is given to nobody who asks from now on."""
        self._generation += 1

    async def of(self, address: str, make: Callable[[], Awaitable[T]]) -> T:
        """What is there, or is being made, else what *make* gives. Of one address one is made at a time, however long it takes; an error is everybody's who waits for it."""
        kept = self._kept.get(address)
        if kept is None or kept.generation != self._generation or (kept.made.done() and self._is_old(kept)):
            before = None if kept is None or kept.made.done() else kept.made
            kept = _Kept(asyncio.ensure_future(_after(before, make)), self._clock(), self._generation)
            kept.made.add_done_callback(lambda made: made.cancelled() or made.exception())  # nobody may be left to hear of it
            self._keep(address, kept)
        return await asyncio.shield(kept.made)

    def _is_old(self, kept: _Kept[T]) -> bool:
        return self._clock() - kept.begun_at > KEPT_S or kept.made.cancelled() or kept.made.exception() is not None

    def _keep(self, address: str, kept: _Kept[T]) -> None:
        for name in [name for name, each in self._kept.items() if each.made.done() and (self._is_old(each) or each.generation != self._generation)]:
            del self._kept[name]
        while len(self._kept) >= KEPT_MAX:
            del self._kept[next(iter(self._kept))]
        self._kept[address] = kept


async def _after(before: asyncio.Future[T] | None, make: Callable[[], Awaitable[T]]) -> T:
    if before is not None:
        await asyncio.wait([before])
    return await make()
