"""Signs of life of steps that execute, on their way from any thread into the batch.

A step says heartbeat() as often as it likes: what it says is kept in memory at once, and stored once a second at most, or with the failure of
the try. A sign of life of a try that is over counts for nothing. Nobody waits for a heartbeat: one that a crash loses was not older than that.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from supervisor.engine.commands import Commands
    from supervisor.engine.executors import Call

STORED_EVERY_S = 1.0
STORED_KEPT = 1000  # moments, before the old ones are dropped


class Beats:
    """Heartbeats of the runs in memory."""

    def __init__(self, commands: Commands, call_soon_threadsafe: Callable[..., Any]) -> None:
        self._commands = commands
        self._tell = call_soon_threadsafe
        self._context = copy_context()
        self._heard: deque[tuple[Any, int, Call | None, int, bytes | None]] = deque()
        self._told = False
        self._last: dict[tuple[bytes, int], tuple[Any, Any, int, int, bytes | None]] = {}  # not stored yet: run, command, its attempt, when, details
        self._stored_at: dict[tuple[bytes, int], float] = {}
        self._timed = False

    def note(self, cmd: Any, call: Call | None, details: bytes | None) -> None:
        """A step says that it is at work. From any thread; *call* is the try that says it, where it is known."""
        if call is not None:
            call.beat_at = time.monotonic()
        self._heard.append((cmd, cmd.attempt, call, self._commands.loop.now_us(), details))
        if not self._told:
            self._told = True
            self._tell(self.collect, context=self._context)

    def collect(self) -> None:
        """On the loop's thread: take in what was said."""
        self._told = False
        while self._heard:
            cmd, attempt, call, at_us, details = self._heard.popleft()
            run = cmd.run
            if run.gone or cmd.done or call is not None and not call.live:
                continue
            known = self._commands.past_of(run).details
            if details is None:
                details = known.get(cmd.seq)
            else:
                known[cmd.seq] = details
            self._last[run.id, cmd.seq] = (run, cmd, attempt, at_us, details)
        self._store_due()

    def settle(self, run: Any, cmd: Any) -> None:
        """A try has failed: what it said last is stored with that."""
        if self._heard:
            self.collect()
        self._store((run.id, cmd.seq))

    def _store_due(self) -> None:
        now = time.monotonic()
        for key in list(self._last):
            if now - self._stored_at.get(key, 0.0) >= STORED_EVERY_S:
                self._store(key)
        if self._last and not self._timed:
            self._timed = True
            self._commands.call_later(STORED_EVERY_S / 4, self._again)
        if not self._last or len(self._stored_at) > STORED_KEPT:
            self._stored_at = {key: at for key, at in self._stored_at.items() if now - at < STORED_EVERY_S}

    def _again(self) -> None:
        self._timed = False
        self._store_due()

    def _store(self, key: tuple[bytes, int]) -> None:
        """Put it into the batch, unless its run may have nothing recorded now."""
        if key not in self._last:
            return
        run, cmd, attempt, at_us, details = self._last[key]
        if not run.gone and not cmd.done:
            if run.in_tx:
                return  # again soon
            self._commands.said(run, "note_beats", str(cmd.seq), (run.id, cmd.seq, attempt, at_us, details))
            self._commands.pump()
            self._stored_at[key] = time.monotonic()
        del self._last[key]
