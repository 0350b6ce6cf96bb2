"""What user code sees of the engine's thread: no running event loop while workflow code may run, and which step it is in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from supervisor._fastpath import loop as core
from supervisor._fastpath.wire import thread_id


@contextmanager
def loop_hidden() -> Iterator[None]:
    """While workflow code may run there is no running event loop: asyncio refuses at the user's line, and nothing is started unseen."""
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)


class OnThisThread:
    """What current() asks: the step or run that executes on the calling thread, if that is the loop's."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop

    def on_this_thread(self) -> Any:
        if thread_id() != self._loop.thread:
            return None
        return self._loop.current or core.current_run()
