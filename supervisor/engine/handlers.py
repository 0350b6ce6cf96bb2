"""Handlers of updates in one run: which it has named, which are under way, and how one begins; the same live and in a replay.

Decides nothing about what is stored: the worker records what it gives a run (updates.py), a replay gives what was recorded (replay.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from supervisor._fastpath import loop as core
from supervisor.core import codec


class Handling:
    """What one run in memory has of updates.

    named   name → (Update, handler, validator or None)
    open    seq of the acceptance → Update, of handlers that have not ended
    seen    numbers of requests that were given to it
    looked  what was sent to it was asked for since it came into memory: until then it does not leave
    ended   in a replay, after the last delivery so far: seq → row of a handler that has ended
    """

    __slots__ = ("ended", "looked", "named", "open", "seen")

    def __init__(self) -> None:
        self.named: dict[str, tuple[Any, Callable[..., Any], Callable[..., Any] | None]] = {}
        self.open: dict[int, Any] = {}
        self.seen: set[int] = set()
        self.looked = False
        self.ended: dict[int, tuple[Any, ...]] = {}


async def _called(fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """A handler that is a plain function, or gives something to be awaited, as a coroutine."""
    value = fn(*args)
    return await value if inspect.isawaitable(value) else value


def spread(run: Any) -> None:
    """From the common case, one command of the root's, to that of several branches."""
    if run.open is None:
        run.open = {}
        if run.call is not None:
            run.open[run.call.seq] = run.call
            run.fresh, run.call = [run.call], None


def give(loop: Any, run: Any, handling: Handling, seq: int, name: str, payload: bytes) -> None:
    """Begin the handler of an update that was accepted at *seq*: it is a branch of the run from here on. Raises InputInvalid."""
    update, fn, _ = handling.named[name]
    args = update.arguments(payload)
    coro = _called(fn, args) if run.workflow.is_async else loop.worker.green(fn, args)
    fiber = core.Fiber(coro, None, seq)
    if run.fibers is None:
        run.fibers = []
    run.fibers.append(fiber)
    handling.open[seq] = update
    spread(run)
    loop.drive(run, [(fiber, core.ASK)])


def ended(run: Any, handling: Handling, fiber: Any, value: Any, error: BaseException | None, now_us: int) -> tuple[Any, ...]:
    """A handler has ended: its row, as `insert_update_ends` takes it."""
    update = handling.open.pop(fiber.index)
    run.fibers.remove(fiber)
    if error is None:
        try:
            return run.id, fiber.index, core.COMPLETED, update.answer.settle(value)[0], now_us
        except Exception as wrong:  # noqa: BLE001 - what it returned can't be stored: whoever waits is told
            error = wrong
    return run.id, fiber.index, core.FAILED, codec.encode_error(error), now_us


def in_handler(cmd: Any) -> bool:
    """Whether what awaits *cmd* is, or belongs to, the handler of an update."""
    waiter = cmd.waiter
    while waiter is not None:
        if isinstance(waiter, core.Fiber):
            if waiter.group is None:
                return True
            waiter = waiter.group.waiter
        else:
            waiter = waiter[0].waiter
    return False
