"""The durable words of a `def` workflow: the same names as in `supervisor`, without await."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Generic, Never, ParamSpec, TypeVar, overload
from uuid import UUID
from collections.abc import Awaitable, Iterator

from supervisor._fastpath import loop as core_loop
from supervisor.api import words
from supervisor.api.decorators import Durable, StartOptions, Workflow, _block
from supervisor.api.signals import SignalOf, wait_command
from supervisor.api.updates import handlers_command
from supervisor.api.words import compensate, continue_as_new, current, deprecate_patch, now, patched, progress, publish, random, set_attributes, uuid4

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")


def sleep(duration: float | timedelta) -> None:
    """Sleep for *duration* (seconds or timedelta) by the database's clock; never less."""
    _block(words.sleep_command(duration))


def sleep_until(when: datetime) -> None:
    """Sleep until *when* (with a time zone) by the database's clock."""
    _block(words.sleep_until_command(when))


@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], /) -> tuple[T1, T2]: ...
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], /) -> tuple[T1, T2, T3]: ...
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], /) -> tuple[T1, T2, T3, T4]: ...
@overload
def gather(*awaitables: Awaitable[T1]) -> list[T1]: ...
def gather(*awaitables: Any) -> Any:
    """Run several things at once: `gather(parse.aio(a), parse.aio(b))`; a list of their results."""
    return _block(words.group_command(core_loop.GATHER, list(awaitables), None))


def first(*nameless: Never, **awaitables: Awaitable[Any]) -> tuple[str, Any]:
    """Run several things at once; (name, result) of the first that ends."""
    return _block(words.first(*nameless, **awaitables))  # type: ignore[no-any-return]


def shield(awaitable: Awaitable[T1], *, timeout: float | timedelta | None = words.SHIELD_S) -> T1:
    """Let it come to its end though the run is cancelled: `shield(release.aio(order), timeout=30)`. Raises TimeoutError when the time is over."""
    return _block(words.shield_command(awaitable, timeout))  # type: ignore[no-any-return]


class ChildRun(Generic[R]):
    """A child run that was started; `child.result()` waits for it."""

    def __init__(self, inner: words.ChildRun[R]) -> None:
        self.id: UUID = inner.id
        self._inner = inner

    def result(self) -> R:
        result: R = _block(self._inner.result_command())
        return result


@overload
def start(workflow: Workflow[P, R], *args: P.args, **kwargs: P.kwargs) -> ChildRun[R]: ...
@overload
def start(workflow: StartOptions[P, R], *args: P.args, **kwargs: P.kwargs) -> ChildRun[R]: ...
def start(workflow: Any, *args: Any, **kwargs: Any) -> Any:
    """Start a child run without waiting for it."""
    return ChildRun(_block(words.start_command(workflow, args, kwargs)))


class Signal(SignalOf[T]):
    """A named message into runs, for def workflows: `approved.wait(timeout=3600)`, `for order in orders:`."""

    def wait(self, timeout: float | timedelta | None = None) -> T:
        """Wait for the next message; *timeout* in seconds or timedelta, by the database's clock. Raises TimeoutError when none came."""
        value: T = _block(wait_command(self, timeout))
        return value

    def aio(self, timeout: float | timedelta | None = None) -> Durable[T]:
        """A wait to be given to `gather` or `first`."""
        return wait_command(self, timeout)  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[T]:
        """Every message from here on, one after the other, for ever: leave the loop to end it."""
        while True:
            yield self.wait()


def handlers_finished() -> None:
    """Wait until every update that was sent to the run so far is answered."""
    _block(handlers_command())


__all__ = ["ChildRun", "Signal", "compensate", "continue_as_new", "current", "deprecate_patch", "first", "gather", "handlers_finished", "now", "patched", "progress", "publish", "random", "set_attributes", "shield", "sleep", "sleep_until", "start", "uuid4"]
