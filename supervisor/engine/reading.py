"""What a worker reads: the history of resumed runs, a slice at a time, and how the children of runs in memory have ended.

Reads are asked through the loop's session between its batches and in no transaction with them. A history is read after
its claim is acknowledged, so nobody writes to it meanwhile.
"""

from __future__ import annotations

import logging
import uuid
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from supervisor._fastpath.loop import CANCELLED, Run
from supervisor._fastpath.loop import UUID as UUID_OID
from supervisor.core.errors import DatabaseUnavailable, ReplayMismatch
from supervisor.db.arrays import encode_ids, encode_rows
from supervisor.db.pipeline import Refused, Statement
from supervisor.engine import replay

if TYPE_CHECKING:
    from supervisor.engine.worker import Worker

log = logging.getLogger("pgsupervisor.worker")

READS = ("read_steps", "read_attempts", "read_children", "read_completions", "read_cancellations")
# Resumed runs read at once. At first few: with 1,000 steps of 60 bytes each that is about 4 MiB. Twice as many after a slice whose histories were
# short, down to where they are not: a question costs 2 ms of the server's, and waits for the batches that were sent before it.
SLICE_MIN, SLICE_MAX = 64, 1024
SHORT_STEPS, LONG_STEPS = 4_000, 64_000  # records of a whole slice
LOOK_AT_CHILDREN_MAX = 1000


@dataclass
class Reads:
    """Runs whose history was asked for; pasts once the first answer is there."""

    runs: list[tuple[Run, bytes | None]]
    pasts: Any = None


@dataclass
class Look:
    """Joins of runs in memory whose children were asked about: (run, command, child)."""

    joins: list[tuple[Run, Any, replay.Kid]]


class Reading:
    """`waiting`: resumed runs with what their claim brought of the input, still to be read."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.waiting: deque[tuple[Run, bytes | None]] = deque()
        self._slice = SLICE_MIN
        self._busy = self._looking = False

    def add(self, resumed: list[tuple[Run, bytes | None]]) -> None:
        self.waiting.extend(resumed)

    def again(self, read: Reads) -> None:
        """What was asked for these was not answered: they come first."""
        self.waiting.extendleft(reversed(read.runs))

    def forget_asked(self) -> None:
        """What was asked will not be answered: the session is gone."""
        self._busy = self._looking = False

    def look_at(self, joins: list[tuple[Run, Any, replay.Kid]]) -> None:
        """Ask whether these children have ended, unless that was asked already."""
        if joins and not self._looking:
            self._looking = True
            ids = encode_ids([kid.run_id for _, _, kid in joins[:LOOK_AT_CHILDREN_MAX]])
            self._worker.ask(Look(joins), [("plan_custom", None), ("read_outcomes", ids), ("plan_generic", None)])

    def next(self) -> None:
        """Ask for the next slice, unless one is being read."""
        if self._busy:
            return
        runs = [self.waiting.popleft() for _ in range(min(self._slice, len(self.waiting)))]
        self._busy = True
        ids = encode_ids([run.id for run, _ in runs])
        longer = encode_rows((UUID_OID,), [(run.id,) for run, payload in runs if payload is None])
        reads: list[Statement] = [("read_inputs", [*ids, *longer]), *((name, ids) for name in READS), ("read_timers", ids[:1])]
        requests = self._worker.requests.question()
        self._worker.ask(Reads(runs), [requests, ("plan_custom", None), *reads, ("plan_generic", None)])

    def looked(self, look: Look, answer: Any) -> None:
        """Which children of runs in memory have ended."""
        self._looking = False
        worker = self._worker
        if isinstance(answer, Refused):
            worker.trouble = DatabaseUnavailable(f"outcomes can't be read: {answer.message} ({answer.sqlstate})")
            return
        outcomes = replay.read_outcomes(answer["read_outcomes"])
        for run, cmd, kid in look.joins:
            if kid.seen(outcomes):
                worker.commands.child_seen(run, cmd)

    def answered(self, read: Reads, answer: Any) -> None:
        if isinstance(answer, Refused):
            self.again(read)
            self._worker.trouble = DatabaseUnavailable(f"history can't be read: {answer.message} ({answer.sqlstate})")
            return
        if read.pasts is None:
            self._worker.requests.told(answer["look_at_requests"])
            read.pasts = replay.read_past(answer)
            self._adapt(answer["read_steps"].ntuples)
            kids = [kid.run_id for past in read.pasts.values() for kid in past.kids.values()]
            if kids:
                ids = encode_ids(kids)
                self._worker.ask(read, [("plan_custom", None), ("read_outcomes", ids), ("plan_generic", None)])
                return
        else:
            outcomes = replay.read_outcomes(answer["read_outcomes"])
            for past in read.pasts.values():
                for kid in past.kids.values():
                    kid.seen(outcomes)
        self._busy = False
        for run, payload in read.runs:
            self._replay(run, read.pasts[run.id], payload)

    def _adapt(self, steps: int) -> None:
        if steps > LONG_STEPS:
            self._slice = max(self._slice // 2, SLICE_MIN)
        elif steps < SHORT_STEPS:
            self._slice = min(self._slice * 2, SLICE_MAX)

    def _replay(self, run: Run, past: replay.Past, payload: bytes | None) -> None:
        if run.gone:  # taken away meanwhile
            return
        loop, commands = self._worker.loop, self._worker.commands
        if payload is not None:
            past.input = payload
        run.past = past
        run.timers = bool(past.timers_us)
        try:
            fresh = replay.replay(loop, run, past, commands.make_child)
        except ReplayMismatch as error:
            self._put_aside(run, error)
            return
        except Exception as error:  # noqa: BLE001 - a history that this code can't read parks its run and nobody else's
            log.exception("run %s can't be brought back", uuid.UUID(bytes=run.id))
            self._put_aside(run, ReplayMismatch(uuid.UUID(bytes=run.id), run.pos, "a result that this code can read", f"{type(error).__name__}: {error}"))
            return
        self._drop_again(run)
        commands.say_again(run)
        self._worker.updates.end_again(run)
        if past.request is not None:
            self._worker.cancels.add(run, past.request)
        if run.end is not None:
            end, run.end = run.end, None
            commands.end(run, *end)
            return
        if run.deadline_us and self._worker.taking.deadline_passed(run):
            return
        for cmd in fresh:
            cmd.redelivered = run.resumed == 2
        run.fresh = fresh
        self._worker.updates.resumed(run)
        if run.batch == 0:
            loop.ready.append(run)

    def _drop_again(self, run: Run) -> None:
        """What a timer or a transaction has cancelled are rows of the batch after it, which may have been lost with the worker."""
        loop, batch = self._worker.loop, self._worker.commands.batch
        for seq, cmd in run.dropped.items():
            if seq in run.past.timers_us:
                batch.add("drop_timers", run.id, (run.id, seq))
            loop.record(run, cmd, CANCELLED, None, run.now_us, run.now_us)
        run.dropped = {}

    def _put_aside(self, run: Run, error: ReplayMismatch) -> None:
        """This code can't go on with it, and so can't say what it has to undo, though it were cancelled or late."""
        run.history = None
        self._worker.commands.mismatch(run, error)
