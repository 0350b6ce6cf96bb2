"""Cancellation: what this worker is told of runs that it has, and how it is delivered into their code.

Whoever cancels a run that a worker has marks its task row with that worker. The worker looks at those marks at a hint, and every 0.25 s while it has
runs; what it reads again it finds with their history. Delivered is at what the run awaits, as a row of the batch in which its code is told, so a
replay tells it there too. Invariant: nothing of a run is delivered while rows of it are in flight.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from uuid import UUID

from supervisor._fastpath import loop as core
from supervisor._fastpath.wire import Command
from supervisor.api.words import CANCELLATION
from supervisor.core.errors import DatabaseUnavailable
from supervisor.db.arrays import encode_ids
from supervisor.db.pipeline import Refused
from supervisor.engine.replay import Past, Request, read_requests

if TYPE_CHECKING:
    from supervisor.engine.worker import Worker

log = logging.getLogger("pgsupervisor.worker")

LOOK_S = 0.25  # how late a cancellation is that nobody announces
TERMINATED = 4


class Marks:
    """The question which runs of this worker are marked."""


class Reasons:
    """The question what was asked of those."""


class Cancels:
    """Cancellations of the runs in memory."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._pending: dict[bytes, Any] = {}  # runs that are to be told
        self._wanted = self._busy = self._timed = False

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────

    def look(self) -> None:
        """Ask soon."""
        self._wanted = True
        self._worker.commands.pump()

    def ask(self) -> None:
        """Send the question, unless one is under way or there is nothing to be asked about."""
        if not self._worker.loop.live:
            return
        if not self._timed:
            self._timed = True
            self._worker.commands.call_later(LOOK_S, self._look_again)
        if self._wanted and not self._busy:
            self._wanted, self._busy = False, True
            self._worker.ask(Marks(), [("read_marks", [self._worker.identity.fence()[0]])])

    def _look_again(self) -> None:
        self._timed = False
        if self._worker.loop.live:
            self.look()

    def forget_asked(self) -> None:
        """What was asked will not be answered: the session is gone."""
        self._busy, self._wanted = False, True

    def marked(self, _: Marks, answer: Any) -> None:
        """Which runs are marked: those of them that are not to be told already are asked about."""
        self._busy = False
        if self._refused(answer):
            return
        rows, live = answer["read_marks"], self._worker.loop.live
        marks = [rows.get_value(row, 0) for row in range(rows.ntuples)]
        unknown = [run_id for run_id in marks if run_id in live and run_id not in self._pending]
        if unknown:
            self._busy = True
            ids = encode_ids(unknown)
            self._worker.ask(Reasons(), [("plan_custom", None), ("read_cancellations", ids), ("plan_generic", None)])

    def asked(self, _: Reasons, answer: Any) -> None:
        """What was asked of them."""
        self._busy = False
        if self._refused(answer):
            return
        for run_id, request in read_requests(answer["read_cancellations"]).items():
            if run_id in self._worker.loop.live:
                self.add(self._worker.loop.live[run_id], request)

    def _refused(self, answer: Any) -> bool:
        if isinstance(answer, Refused):
            self._worker.trouble = DatabaseUnavailable(f"cancellations can't be read: {answer.message} ({answer.sqlstate})")
        return isinstance(answer, Refused)

    # ── telling ──────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, run: Any, request: Request) -> None:
        """*run* is to be told."""
        if run.past is None:
            run.past = Past()
        if run.past.cancelled is not None and request.how != TERMINATED:
            return
        run.past.request = request
        self._pending[run.id] = run
        self._worker.commands.pump()

    def deliver(self) -> None:
        """Tell those that can be told now."""
        loop = self._worker.loop
        for run in list(self._pending.values()):
            if run.gone or run.past is None or run.past.request is None:
                del self._pending[run.id]
            elif not run.in_tx and run.batch in (0, loop.number):
                self._worker.guarded(run, self._tell, run)

    @property
    def pending(self) -> bool:
        return bool(self._pending)

    def _tell(self, run: Any) -> None:
        commands, request = self._worker.commands, run.past.request
        if request.how == TERMINATED:
            del self._pending[run.id]
            commands.terminate(run, request.cause.reason)
            return
        if run.past.compensating:  # it is ending already, and undoes what it did
            del self._pending[run.id]
            run.past.request = None
            commands.batch.add("told_cancel", run.id, (run.id,))
            self._worker.loop.touch(run)
            return
        mark = Command()
        mark.kind, mark.step, mark.run, mark.value = core.CANCEL, CANCELLATION, run, request.cause.encode()
        run.past.cancelled = request.cause
        if not self._worker.loop.interrupt(run, request.cause, mark):
            run.past.cancelled = None  # it awaits nothing at this moment: the next one
            return
        del self._pending[run.id]
        log.debug("run %s is told that it is cancelled: %s", UUID(bytes=run.id), request.cause)
        if not run.gone:
            run.past.request = None
            commands.batch.add("told_cancel", run.id, (run.id,))
