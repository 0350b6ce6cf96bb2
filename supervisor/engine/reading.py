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

from supervisor._fastpath.loop import CANCELLED, CHILD, Run
from supervisor._fastpath.loop import UUID as UUID_OID
from supervisor.core.errors import DatabaseUnavailable, ReplayMismatch
from supervisor.db.arrays import encode_ids, encode_rows
from supervisor.db.pipeline import Refused, Statement
from supervisor.engine import replay
from supervisor.engine.replay import RESUMED, SLEPT

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
        runs: list[tuple[Run, bytes | None]] = []
        while self.waiting and len(runs) < self._slice:
            run, payload = self.waiting.popleft()
            if not run.gone:  # taken away meanwhile: nothing may be written for it
                runs.append((run, payload))
        if runs:
            self._busy = True
            self._worker.ask(Reads(runs), self._question(runs))

    def _question(self, runs: list[tuple[Run, bytes | None]]) -> list[Statement]:
        """What is asked about *runs*. The ends of their sleeps are recorded by it, under the fence, so that they are part of what is read."""
        ids = encode_ids([run.id for run, _ in runs])
        requests = self._worker.requests.question()
        longer = encode_rows((UUID_OID,), [(run.id,) for run, payload in runs if payload is None])
        reads: list[Statement] = [("read_inputs", [*ids, *longer]), *((name, ids) for name in READS), ("read_timers", ids[:1])]
        slept = [run.id for run, _ in runs if run.resumed == SLEPT and not self._worker.taking.is_late(run)]
        if not slept:
            return [requests, ("plan_custom", None), *reads, ("plan_generic", None)]
        fence, worker = self._worker.fence()
        return [("fence", fence), requests, ("plan_custom", None), ("fire_slept", [*encode_ids(slept), worker]), *reads, ("plan_generic", None)]

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
            self._refused(read, answer)
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

    def _refused(self, read: Reads, refused: Refused) -> None:
        """Nothing was read or recorded. Where a row may be to blame, sleeps end like any other timer, whose batch is halved until that one is found."""
        self._busy, read.pasts = False, None
        self.again(read)
        slept = [run for run, _ in read.runs if run.resumed == SLEPT]
        if refused.fenced:
            self._worker.adoption.ask()
        elif slept:
            log.warning("worker %d: the ends of %d sleeps were refused together: %s (%s)", self._worker.id, len(slept), refused.message, refused.sqlstate)
            for run in slept:
                run.resumed = RESUMED
        else:
            self._worker.trouble = DatabaseUnavailable(f"history can't be read: {refused.message} ({refused.sqlstate})")

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
        if self._worker.traces is not None:
            self._worker.traces.replayed(run, past)
        if run.dropped:
            self._drop_again(run)
        if past.said:
            commands.say_again(run)
        if past.handling is not None:
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
        if run.pos and len(fresh) == 1 and fresh[0].waiter is None and replay.is_used_up(past):  # as if it had never left: the common case, which the loop is quick at
            run.call, run.open, run.fresh, run.past, run.resumed = fresh[0], None, None, None, 0
        if run.batch == 0:
            loop.ready.append(run)

    def _drop_again(self, run: Run) -> None:
        """What a timer or a transaction has cancelled are rows of the batch after it, which may have been lost with the worker."""
        loop, batch = self._worker.loop, self._worker.commands.batch
        for seq, cmd in run.dropped.items():
            if seq in run.past.timers_us:
                batch.add("drop_timers", run.id, (run.id, seq))
            if cmd.kind == CHILD:
                self._worker.commands.child_lost(run, cmd)
            loop.record(run, cmd, CANCELLED, None, min(cmd.called_us or run.now_us, run.now_us), run.now_us)
        run.dropped = {}

    def _put_aside(self, run: Run, error: ReplayMismatch) -> None:
        """This code can't go on with it, and so can't say what it has to undo, though it were cancelled or late."""
        run.history = None
        self._worker.commands.mismatch(run, error)
