"""Replays of histories outside of any worker: the other half of a loop whose batches go nowhere. Executes nothing, records nothing.

For whoever asks a run (answering.py) and for whoever compares histories with code (verify.py). One per process: workflow code finds it as
what it speaks to (core.context).
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from supervisor._fastpath import loop as core
from supervisor._fastpath.wire import SLOT_BYTES, Slot
from supervisor.api.words import Continued
from supervisor.core import codec, context, registry
from supervisor.core.errors import HistoryTooLong, ReplayMismatch
from supervisor.engine import compensation, handlers
from supervisor.engine.commands import Commands
from supervisor.engine.green import close_green, green
from supervisor.engine.replay import Past, check, handling_of, replay, too_long


class Reader:
    """Of the run that it replays: the handlers that it has named, the patches that it met anew, what it did instead of its history, what ended it."""

    green, close_green = staticmethod(green), staticmethod(close_green)
    misuse, unawaited = staticmethod(Commands.misuse), staticmethod(Commands.unawaited)

    def __init__(self) -> None:
        registry.settle()
        self.loop = core.Loop(self, Slot(bytearray(SLOT_BYTES), 0))
        self.handlers: dict[str, tuple[Any, Any]] = {}
        self.met_anew = 0
        self.culprit: Any = None
        self.error: BaseException | None = None
        context.loop = self

    def begin(self, run_id: UUID, workflow: str, key: str | None) -> Any:
        """A run to be replayed."""
        self.handlers, self.met_anew, self.culprit, self.error = {}, 0, None, None
        run = core.Run(run_id.bytes, registry.find(workflow))
        run.key = key.encode() if key is not None else None
        return run

    def follow(self, run: Any, past: Past) -> None:
        """Bring it as far as its history goes. Raises ReplayMismatch; the run still stands where that was, until it is forgotten."""
        run.past = past
        replay(self.loop, run, past, Commands.make_child)

    def forget(self, run: Any) -> None:
        run.history = None
        self.loop.evict(run)

    # what the loop asks in a replay

    def check_history(self, run: Any, cmd: Any) -> None:
        try:
            check(run, cmd)
        except ReplayMismatch:
            self.culprit = cmd
            raise

    def finish_failed(self, run: Any, error: BaseException) -> None:
        self.error = error
        status = core.CONTINUED if isinstance(error, Continued) else core.FAILED
        if not compensation.begin(self.loop, run, error):
            self.loop.finish(run, status, codec.encode_error(error))

    def handled(self, run: Any, fiber: Any, value: Any, error: BaseException | None) -> None:
        """Who sent the update was told when the run did this."""
        handlers.ended(run, handling_of(run), fiber, value, error, 0)

    # what workflow code says (see core.context)

    def handles(self, run: Any, query: Any, handler: Any) -> None:
        self.handlers[query.name] = (query, handler)

    def handles_update(self, run: Any, update: Any, handler: Any, validator: Any) -> None:
        handling_of(run).named[update.name] = (update, handler, validator)

    def published(self, run: Any, key: str, value: bytes) -> None:
        """It was published when the run did this."""

    def progressed(self, run: Any, done: float, total: float | None) -> None:
        pass

    def attributed(self, run: Any, changes: dict[str, Any]) -> None:
        pass

    def grown(self, run: Any, cmd: Any) -> HistoryTooLong | None:
        """What its code was told then it is told again: a run may have ended by it."""
        return too_long(run, cmd)

    def compensates(self, run: Any, what: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        run.past.undo.append(compensation.Undo(what, args, kwargs, run.seq - 1))

    def met(self, run: Any, cmd: Any) -> None:
        """The run has recorded it, or will when it gets here."""
        run.pos += 1
        self.met_anew += 1

    def on_this_thread(self) -> Any:
        return core.current_run()

    def leaves_memory(self) -> bool:
        return core.mode() == core.INERT


__all__ = ["Reader"]
