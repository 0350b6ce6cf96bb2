"""Time that stands still until somebody moves it, and the event loop that lives by it.

Nothing here waits while nothing outside of the process has to be waited for: when no callback is ready the loop stops, and whoever drives it decides
what the next moment is. While a step's body executes for real, time goes as it really does up to the next timer, and not a microsecond is noted
when the body ends before that: so the same test has the same times.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from supervisor._fastpath.wire import hold_clock

EPOCH_2000 = datetime(2000, 1, 1, tzinfo=UTC)


class Clock:
    """`us` since 2000. While `held`, everything of the engine in this process reads it."""

    def __init__(self, at: datetime) -> None:
        self.began_us = self.us = microseconds(at)
        self.held = False

    @property
    def now(self) -> datetime:
        return EPOCH_2000 + timedelta(microseconds=self.us)

    def set(self, us: int) -> None:
        """It never goes back."""
        self.us = max(self.us, us)
        if self.held:
            hold_clock(self.us)

    def hold(self) -> None:
        self.held = True
        hold_clock(self.us)

    def let_go(self) -> None:
        self.held = False
        hold_clock(0)


def microseconds(at: datetime) -> int:
    """Us since 2000. Raises ValueError for a time without a zone."""
    if at.tzinfo is None:
        raise ValueError(f"{at!r} has no time zone; give one, e.g. datetime(…, tzinfo=UTC)")
    return (at - EPOCH_2000) // timedelta(microseconds=1)


class _Selector(selectors.BaseSelector):
    """The real one, asked without waiting; `rests` is called where the event loop would wait."""

    def __init__(self, rests: Callable[[float | None], list[Any]]) -> None:
        self.real = selectors.DefaultSelector()
        self._rests = rests

    def select(self, timeout: float | None = None) -> list[Any]:
        events = self.real.select(0)
        return events if events or timeout == 0 else self._rests(timeout)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self.real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self.real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self.real.modify(fileobj, events, data)

    def close(self) -> None:
        self.real.close()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self.real.get_map()


class DrivenLoop(asyncio.SelectorEventLoop):
    """An event loop that stops where it would wait. `run_ready` runs what can run now."""

    def __init__(self) -> None:
        self._chosen = _Selector(self._rests)
        super().__init__(self._chosen)

    def run_ready(self) -> None:
        """Run until nothing is ready any more."""
        self.run_forever()

    def next_timer_s(self) -> float | None:
        """Seconds from now to the next timer."""
        whens = [handle.when() for handle in self._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        return None if not whens else max(0.0, min(whens) - self.time())

    def _rests(self, timeout: float | None) -> list[Any]:
        """Nothing is ready."""
        raise NotImplementedError


class VirtualLoop(DrivenLoop):
    """By a Clock.

    busy    whether a step's body executes, so that something from outside may be waited for
    """

    def __init__(self, clock: Clock, busy: Callable[[], bool]) -> None:
        self.clock, self._busy = clock, busy
        self._lent = 0  # calls that the loop's own thread pool has
        self._waited_s, self._waited_at = 0.0, 0  # how long was really waited, since the clock was set to what
        super().__init__()
        self._clock_resolution = 1e-6
        self._own_files = len(self._chosen.get_map())

    def time(self) -> float:
        return (self.clock.us - self.clock.began_us) / 1e6

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        self._lent += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._returned)
        return future

    def _returned(self, _: Any) -> None:
        self._lent -= 1

    def _rests(self, timeout: float | None) -> list[Any]:
        """Wait for what may come from outside; where nothing can, stop."""
        if timeout is not None and timeout <= self._clock_resolution:  # a timer is due, but for what is lost in a float
            return []
        if not self._busy() or not (self._lent or len(self._chosen.get_map()) > self._own_files):
            self.stop()
            return []
        if self._waited_at != self.clock.us:
            self._waited_s, self._waited_at = 0.0, self.clock.us
        began = time.monotonic()
        events = self._chosen.real.select(None if timeout is None else max(0.0, timeout - self._waited_s))
        self._waited_s += time.monotonic() - began
        if not events and timeout is not None:
            self.clock.set(self.clock.us + round(timeout * 1e6))
        return events


class SkippingLoop(DrivenLoop):
    """By the machine's clock and what was skipped of it; waits while *busy* says that an answer or a step is to come."""

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._busy = busy
        self.skipped_s = 0.0
        super().__init__()

    def time(self) -> float:
        return time.monotonic() + self.skipped_s

    def _rests(self, timeout: float | None) -> list[Any]:
        if timeout is not None and timeout <= 1e-4:
            return self._chosen.real.select(timeout)
        if not self._busy():
            self.stop()
            return []
        return self._chosen.real.select(min(timeout if timeout is not None else 1.0, 1.0))
