"""What user code sees of the engine's thread: no running event loop while workflow code may run, and which step it is in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from supervisor._fastpath import loop as core
from supervisor._fastpath.wire import thread_id


class loop_hidden:  # noqa: N801 - a context manager
    """While workflow code may run there is no running event loop: asyncio refuses at the user's line, and nothing is started unseen.

    A class and no generator: four of them are in the way of every quick run.
    """

    __slots__ = ("_loop",)

    def __enter__(self) -> None:
        self._loop = asyncio._get_running_loop()
        asyncio._set_running_loop(None)

    def __exit__(self, *_: object) -> None:
        asyncio._set_running_loop(self._loop)


class OnThisThread:
    """What current() asks: the step or run that executes on the calling thread, if that is the loop's, or was when the step began.

    stuck(thread)   the step that has held this thread since it was the loop's, or None
    """

    def __init__(self, loop: Any, stuck: Callable[[int], Any]) -> None:
        self._loop, self._stuck = loop, stuck

    def on_this_thread(self) -> Any:
        if thread_id() != self._loop.thread:
            return self._stuck(thread_id())
        return self._loop.current or core.current_run()

    def published(self, run: Any, key: str, value: bytes) -> None:
        """Workflow code on this thread has published something."""
        self._loop.worker.published(run, key, value)

    def progressed(self, run: Any, done: float, total: float | None) -> None:
        self._loop.worker.progressed(run, done, total)

    def attributed(self, run: Any, changes: dict[str, Any]) -> None:
        self._loop.worker.attributed(run, changes)

    def compensates(self, run: Any, what: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Workflow code on this thread has named what undoes something."""
        self._loop.worker.compensates(run, what, args, kwargs)

    def met(self, run: Any, cmd: Any) -> None:
        """Workflow code on this thread takes the new branch of a patch."""
        self._loop.worker.met(run, cmd)

    def handles(self, run: Any, query: Any, handler: Any) -> None:
        """Workflow code has a handler for a query. It is of no use here: queries are answered elsewhere (answering.py)."""

    def handles_update(self, run: Any, update: Any, handler: Any, validator: Any) -> None:
        """Workflow code on this thread takes an update."""
        self._loop.worker.updates.handles(run, update, handler, validator)

    def leaves_memory(self) -> bool:
        """Whether workflow code on this thread is being unwound, which executes nothing."""
        return core.mode() == core.INERT
