"""Updates: requests to runs in memory, from the look at what was sent to the row that says how a handler ended.

Asks in one statement what was sent to any run of this worker: when a run names its first handler or comes back, at a hint of the sender's, and as often as
signals are looked for while runs that have handlers are in memory. A request becomes a delivery like any other: it waits until its run has nothing in
flight, is judged by the validator, and is refused, which writes nothing of the run, or recorded with the run's next seq and pos in the batch
that gives it to the handler. Invariant: nothing that a handler does begins before the acceptance is durable, and its end is a row of the
batch of what led to it; so whoever is told has been told what holds.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from supervisor._fastpath import loop as core
from supervisor._fastpath.loop import UUID as UUID_OID
from supervisor._fastpath.wire import Command
from supervisor.core import codec
from supervisor.core.errors import DatabaseUnavailable, DefinitionError, UpdateUnknown
from supervisor.db.arrays import encode_rows
from supervisor.db.pipeline import Refused
from supervisor.engine import handlers
from supervisor.engine.handlers import Handling
from supervisor.engine.replay import handling_of
from supervisor.engine.signals import LOOK_S

if TYPE_CHECKING:
    from supervisor.engine.worker import Worker

AGAIN_S = 0.02  # a look that found requests which their runs could not be given yet
WOKEN = 3  # task.resumed of a parked run that an update has woken
LOOKED = "looked"  # of a wait for handlers: nothing was there when it was asked for
_i8 = struct.Struct(">q").unpack


@dataclass(frozen=True)
class Request:
    name: str
    id: str
    payload: bytes


@dataclass
class Requests:
    """A look at what was sent, for *runs* the first one; `waits` are those for handlers that were begun before it."""

    runs: list[Any]
    waits: list[tuple[Any, Any]]


@dataclass
class Left:
    """A look at runs that have left memory."""

    ids: set[bytes]


class Updates:
    """Updates to the runs in memory."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._runs: dict[bytes, Any] = {}  # that take updates
        self._new: list[Any] = []  # of those, the ones that no look was asked for yet
        self._waits: list[tuple[Any, Any]] = []  # for handlers, to be settled by the next look
        self._left: set[bytes] = set()
        self._wanted = self._busy = self._timed = False

    # ── what workflow code says ──────────────────────────────────────────────────────────────────────────────────

    def handles(self, run: Any, update: Any, handler: Any, validator: Any) -> None:
        handling_of(run).named[update.name] = (update, handler, validator)
        if run.history is None:
            self._take(run)

    def _take(self, run: Any) -> None:
        if self._runs.get(run.id) is not run:
            self._runs[run.id] = run
            self._new.append(run)
            self.look()

    def begin(self, run: Any, cmd: Any) -> None:
        """A wait for the handlers: it is over when none is under way and a look that began after that found nothing more."""
        loop = self._worker.loop
        if handlers.in_handler(cmd):
            why = "handlers_finished() in the handler of an update would wait for itself; call it in the workflow"
            encoded = codec.encode_error(DefinitionError(why))
            loop.record(run, cmd, core.FAILED, encoded, cmd.called_us, loop.now_us())
            loop.deliver(run, cmd, None, codec.decode_error(encoded))
        elif handling_of(run).open:  # begun again when the last of them has ended
            cmd.extra = None
        elif cmd.extra is LOOKED:
            loop.record(run, cmd, core.COMPLETED, b"null", cmd.called_us, loop.now_us())
            loop.deliver(run, cmd, None, None)
        else:
            self._take(run)
            self._waits.append((run, cmd))
            self.look()

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────

    def look(self) -> None:
        """Ask soon what was sent."""
        self._wanted = True
        self._worker.commands.pump()

    def resumed(self, run: Any) -> None:
        """A run was brought back; an update may be why, also where it has no handler."""
        if run.past.handling is not None or run.resumed == WOKEN:
            handling_of(run)
            self._take(run)

    def left(self, run: Any) -> None:
        """It has left memory, durably."""
        if run.past is not None and run.past.handling is not None:
            self._left.add(run.id)

    def ask(self) -> None:
        """Send what is to be asked, unless a look is under way."""
        if self._left:
            left, self._left = Left(self._left), set()
            self._worker.ask(left, [("wake_updated", encode_rows((UUID_OID,), sorted((each,) for each in left.ids)))])
        if self._runs and not self._timed:
            self._timed = True
            self._worker.commands.call_later(LOOK_S, self._look_again)
        if self._wanted and not self._busy:
            self._wanted, self._busy = False, True
            asked, self._new, self._waits = Requests(self._new, self._waits), [], []
            self._worker.ask(asked, [("look_at_updates", [self._worker.worker_param])])

    def _look_again(self) -> None:
        self._timed = False
        self._runs = {run_id: run for run_id, run in self._runs.items() if not run.gone}
        if self._runs:
            self.look()

    def forget_asked(self) -> None:
        """What was asked will not be answered: the session is gone. With the next one all is asked again."""
        self._busy = False
        self._new = [run for run in self._runs.values() if not run.gone and not handling_of(run).looked]
        waiting = ((run, cmd) for run in self._runs.values() for cmd in (run.open or {}).values())
        self._waits = [(run, cmd) for run, cmd in waiting if cmd.kind == core.HANDLED and not run.gone]

    def answered(self, asked: Requests | Left, answer: Any) -> None:
        if isinstance(asked, Requests):
            self._busy = False
        if isinstance(answer, Refused):
            self._worker.trouble = DatabaseUnavailable(f"updates can't be read: {answer.message} ({answer.sqlstate})")
        elif isinstance(asked, Requests):
            self._read(asked, answer["look_at_updates"])
        elif answer["wake_updated"].ntuples:
            self._worker.rest.nudged()

    def _read(self, asked: Requests, rows: Any) -> None:
        """Give what was found to the runs, and let those go on that waited for their handlers and were sent nothing more."""
        found, get = set(), rows.get_value
        for row in range(rows.ntuples):
            found.add(get(row, 0))
            run = self._worker.loop.live.get(get(row, 0))
            if run is not None:
                self._worker.guarded(run, self._admit, run, _i8(get(row, 1))[0], Request(get(row, 2).decode(), get(row, 3).decode(), get(row, 4)))
        for run in asked.runs:
            handling_of(run).looked = True
            self._worker.commands.rest(run)
        for run, cmd in asked.waits:
            if run.gone or cmd.done:
                continue
            if run.id in found:
                self._waits.append((run, cmd))
                self._worker.commands.call_later(AGAIN_S, self.look)
            elif not handling_of(run).open:
                cmd.extra = LOOKED
                self._worker.commands.later(run, cmd)

    def _admit(self, run: Any, number: int, request: Request) -> None:
        loop = self._worker.loop
        if run.gone or run.coro is None or run.history is not None or (run.home != 0 and run.home != loop.thread):
            return  # it is still there at the next look
        handling = handling_of(run)
        self._take(run)  # one that has no handlers too: it leaves memory after a look that began when it could be found
        if number in handling.seen:
            return
        handling.seen.add(number)
        cmd = Command()
        cmd.kind, cmd.run, cmd.extra = core.UPDATE, run, request
        handlers.spread(run)
        if run.later:  # behind what came before it and waits for an acknowledgement
            run.later.append((run, cmd, None, None, 0, 0))
        else:
            loop.complete(run, cmd, None, None, 0, 0)

    # ── judged, given, ended ─────────────────────────────────────────────────────────────────────────────────────

    def updated(self, run: Any, cmd: Any) -> None:
        """A request whose run has nothing in flight: refuse it, or record it and begin its handler."""
        loop, batch, request, handling = self._worker.loop, self._worker.commands.batch, cmd.extra, handling_of(run)
        refusal = self._refusal(run, handling, request)
        if refusal is not None:
            batch.add("reject_updates", run.id, (run.id, request.name, request.id, codec.encode_error(refusal)))
            loop.touch(run)
            return
        cmd.seq, cmd.step = run.seq, handling.named[request.name][0]
        run.seq += 1
        now = loop.now_us()
        batch.add("accept_updates", run.id, (run.id, request.name, request.id, cmd.seq))
        loop.record(run, cmd, core.COMPLETED, request.payload, now, now)
        handlers.give(loop, run, handling, cmd.seq, request.name, request.payload)

    def _refusal(self, run: Any, handling: Handling, request: Request) -> BaseException | None:
        """Why it is not accepted. The validator reads what the run holds, and can't ask for anything."""
        if request.name not in handling.named:
            return UpdateUnknown(UUID(bytes=run.id), request.name, sorted(handling.named))
        update, _, validator = handling.named[request.name]
        slot = self._worker.loop.slot
        try:
            args = update.arguments(request.payload)
            if validator is not None:
                slot.code(run.id, run.workflow.wire_name)
                core.read_only(run, validator, args)
        except BaseException as error:  # noqa: BLE001 - of the user's validator
            return error
        finally:
            slot.leave()
        return None

    def handled(self, run: Any, fiber: Any, value: Any, error: BaseException | None) -> None:
        """A handler has ended. Who waits for all of them is begun again after the last."""
        loop, handling = self._worker.loop, handling_of(run)
        row = handlers.ended(run, handling, fiber, value, error, loop.now_us())
        if run.history is not None:  # a replay: it is durable, unless nothing was delivered after it
            handling.ended[fiber.index] = row
            return
        self._end(run, row)
        if not handling.open:
            run.fresh = [*(run.fresh or []), *(cmd for cmd in run.open.values() if cmd.kind == core.HANDLED)]

    def _end(self, run: Any, row: tuple[Any, ...]) -> None:
        self._worker.commands.batch.add("insert_update_ends", run.id, row)
        self._worker.loop.bytes_now += len(row[3])
        self._worker.loop.touch(run)

    def end_again(self, run: Any) -> None:
        """After a replay: ends that followed the last recorded delivery may have been lost with the worker. If they were not, nothing is written."""
        if run.past.handling is not None:
            for row in run.past.handling.ended.values():
                self._end(run, row)
            run.past.handling.ended = {}
