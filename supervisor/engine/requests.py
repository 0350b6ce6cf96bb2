"""What operators want of runs that this worker has: that they be paused, or that a step which failed be tried on other terms.

Owns the look at the database, once a second while there are runs and at once at a hint, and which runs may begin nothing more. A run that
is to be paused finishes the steps that execute; their results are recorded, then it leaves memory. Invariant: nothing here takes a
run from anybody: it is this worker's until the batch that puts it aside is durable.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from supervisor._fastpath import loop as core
from supervisor._fastpath.loop import INT8
from supervisor.core.errors import DatabaseUnavailable
from supervisor.db.arrays import encode_ids, encode_rows
from supervisor.db.pipeline import Refused
from supervisor.engine import replay
from supervisor.engine.waits import Waiting

if TYPE_CHECKING:
    from supervisor.engine.worker import Worker

LOOK_S = 1.0  # how late a request may be that nobody announces
_i8 = struct.Struct(">q").unpack


class Wishes:
    """A question for what is wanted."""


class Edited:
    """A question for the terms of runs of which somebody changed some: run and number of the change, each."""

    def __init__(self, changes: list[tuple[Any, int]]) -> None:
        self.changes = changes


class Requests:
    """`pausing`: ids of this worker's runs that are to be put aside."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.pausing: set[bytes] = set()
        self._seen: list[int] = []
        self._wanted = self._busy = self._timed = False

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────

    def look(self) -> None:
        """Ask with the next opportunity, also what came of tokens."""
        self._wanted = True
        self._worker.tokens.look()
        self._worker.commands.pump()

    def ask(self) -> None:
        """Send the question that is due, unless one is under way."""
        worker = self._worker
        if not self._timed and worker.loop.live:
            self._timed = True
            worker.commands.call_later(LOOK_S, self._look_again)
        if self._wanted and not self._busy:
            self._wanted, self._busy = False, True
            seen, self._seen = self._seen, []
            worker.ask(Wishes(), [self.question(seen)])

    def question(self, seen: Sequence[int] = ()) -> tuple[str, list[bytes] | None]:
        """The statement, also for who reads histories: what was asked for before a run came here holds before anything of it begins."""
        return "look_at_requests", [self._worker.identity.fence()[0], *encode_rows((INT8,), [(number,) for number in seen])]

    def told(self, rows: Any) -> None:
        """It was asked beside a history: those that are to be paused. What was edited stands in the history."""
        self.pausing.update(rows.get_value(row, 0) for row in range(rows.ntuples) if rows.get_value(row, 1) is None)

    def _look_again(self) -> None:
        self._timed = False
        if self._worker.loop.live:
            self.look()

    def forget_asked(self) -> None:
        """What was asked will not be answered: the session is gone. What it had seen is shown again, which changes nothing."""
        self._busy, self._wanted = False, True

    def answered(self, asked: Wishes | Edited, answer: Any) -> None:
        worker = self._worker
        if isinstance(answer, Refused):
            self._busy = False
            worker.trouble = DatabaseUnavailable(f"what operators want can't be read: {answer.message} ({answer.sqlstate})")
        elif isinstance(asked, Wishes):
            self._heard(answer["look_at_requests"])
        else:
            self._busy = False
            self._apply(asked, replay.read_past(answer))

    def _heard(self, rows: Any) -> None:
        live, changes = self._worker.loop.live, []
        before, self.pausing = self.pausing, set()
        for row in range(rows.ntuples):
            run_id, number = rows.get_value(row, 0), rows.get_value(row, 1)
            if number is None:
                self.pausing.add(run_id)
                self._turn(live.get(run_id))
            elif (run := live.get(run_id)) is not None:  # one that is being read honours it anyway, and is shown again
                changes.append((run, _i8(number)[0]))
        for run_id in before - self.pausing:
            self._turn(live.get(run_id))
        self._busy = bool(changes)
        if changes:
            ids = encode_ids([run.id for run, _ in changes])
            self._worker.ask(Edited(changes), [("plan_custom", None), ("read_attempts", ids), ("plan_generic", None)])

    def _turn(self, run: Any) -> None:
        """Have it looked at in the next group of steps, if it is at rest."""
        if run is not None and not run.gone and run.batch == 0 and not run.in_tx:
            self._worker.loop.ready.append(run)
            self._worker.commands.pump()

    # ── pausing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def hold(self, ready: list[Any]) -> list[Any]:
        """Those of *ready* that may begin something. The others are put aside as soon as nothing of them executes."""
        return [run for run in ready if run.id not in self.pausing or not self._held(run)]

    def _held(self, run: Any) -> bool:
        worker = self._worker
        if run.gone or run.batch != 0 or run.in_tx:
            return False  # it begins nothing as it is
        if any(cmd.extra == "begun" for cmd in run.fresh or ()):
            return False  # its start is durable: not to begin it now would look like a crash in the middle of it
        later, run.later = run.later, None
        for completion in later or ():
            worker.guarded(run, worker.loop.complete, *completion)
        if not (run.gone or run.batch or run.executing or worker.watchdog.holds(run)):
            worker.commands.pause(run)
            self.pausing.discard(run.id)  # it may be resumed, and come here again, before the next look
        return True

    # ── other terms ──────────────────────────────────────────────────────────────────────────────────────────────

    def _apply(self, edited: Edited, pasts: dict[bytes, replay.Past]) -> None:
        for run, number in edited.changes:
            self._seen.append(number)
            if run.gone or run.id not in pasts:
                continue
            past = pasts[run.id]
            self._worker.commands.past_of(run).terms.update(past.terms)
            for seq, in_us in past.retry_in_us.items():
                cmd = (run.open or {}).get(seq)
                if cmd is not None and cmd.kind == core.STEP and isinstance(cmd.extra, Waiting) and cmd.attempt == past.attempts[seq] + 1:
                    self._worker.commands.wait_for_retry(run, cmd, max(in_us, 0) / 1e6, cmd.extra.since_us)
            self._turn(run)
        self.look()
