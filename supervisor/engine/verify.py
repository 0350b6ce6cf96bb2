"""Does this code do what a history says? One replay each, and where they part: what was recorded, what the code does, at which line.

Executes nothing: commands are left open, as in any replay. What a run had asked for beyond its last result is compared too.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any
from uuid import UUID

from supervisor._fastpath import loop as core
from supervisor.core import codec, registry
from supervisor.core.errors import ReplayMismatch
from supervisor.core.histories import History, Pending, kind_number, microseconds, status_number
from supervisor.engine.reader import Reader
from supervisor.engine.replay import KINDS, Past, Record
from supervisor.engine.stacks import is_engine, standing

REPLAY_MAX_S = 10.0  # of one history; a replay of 10,000 steps takes a tenth of a second
AGAIN_S = 1.0  # for code that catches everything
_ASKED = {"timer": (core.TIMER, core.SIGNAL), "child": (core.CHILD, core.START), "attempt": (core.STEP,)}
_ASKED_WORD = {"timer": "timer", "child": "child run", "attempt": "attempt of step", "wait": "wait for"}


# how the code itself ends a run: outcome.status, and in words
_ENDS = {"completed": (core.COMPLETED, "return"), "failed": (core.FAILED, "an error that ends it"), "continued": (core.CONTINUED, "continue_as_new")}


@dataclass(frozen=True)
class Divergence:
    """Where a history and the code part. `file` and `line` are the app's; empty and 0 where no code of its stands there."""

    run_id: UUID
    workflow: str
    version: str | None
    seq: int
    recorded: str
    now: str
    file: str
    line: int
    function: str

    @property
    def kind(self) -> tuple[str, str, str, str, int]:
        """Equal for histories that part from the code in the same way at the same place."""
        return self.workflow, self.recorded, self.now, self.file, self.line


class _TooLong(BaseException):
    """Not an Exception, so that workflow code is less likely to catch it."""


class Verifier:
    """Compares one history after the other, in the main thread of a process that does nothing else."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._returned: tuple[str, int, str] = ("", 0, "")

    def compare(self, history: History) -> Divergence | None:
        """Where the code parts from *history*; None where it does the same."""
        workflow = registry.find(history.workflow)
        if workflow is None:
            return self._parts(history, -1, f"a run of {history.workflow}", "nothing: the app has no such workflow", ("", 0, ""))
        reader, past = self._reader, _past(history)
        run = reader.begin(history.run_id, history.workflow, history.key)
        try:
            with self._watched(workflow.fn.__code__):
                reader.follow(run, past)
            return self._too_long(history, run) or self._end(history, run)
        except ReplayMismatch as error:
            return self._too_long(history, run) or self._parts(history, error.seq, error.expected, error.found, self._place(run))
        except _TooLong as error:  # while no code of the app was executing
            reader.error = error
            return self._too_long(history, run)
        except Exception as error:  # noqa: BLE001 - a history that this code can't read
            return self._parts(history, run.pos, "a result that this code can read", codec.brief(error), self._place(run))
        finally:
            with self._watched(workflow.fn.__code__):
                reader.forget(run)

    @contextmanager
    def _watched(self, code: Any) -> Iterator[None]:
        """A limit in time, and a note of where the workflow's function last returned, or stopped."""

        def profile(frame: FrameType, event: str, _arg: Any) -> None:
            if event == "return" and frame.f_code is code:
                self._returned = (code.co_filename, frame.f_lineno, code.co_qualname)

        def late(*_: Any) -> None:
            raise _TooLong

        before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, REPLAY_MAX_S, AGAIN_S)
        sys.setprofile(profile)
        try:
            yield
        finally:
            sys.setprofile(None)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _too_long(self, history: History, run: Any) -> Divergence | None:
        error = self._reader.error
        if not isinstance(error, _TooLong):
            return None
        return self._parts(history, run.pos, "a history that ends", f"something that takes longer than {REPLAY_MAX_S:g} s", _raised_at(error))

    # ── what follows the last record ─────────────────────────────────────────────────────────────────────────────

    def _end(self, history: History, run: Any) -> Divergence | None:
        """The history was followed to its end: is what comes then what the run had asked for, or how it ended?"""
        ended = run.end is not None
        if history.status in _ENDS:
            how, word = _ENDS[history.status]
            if ended and (run.end[0] == how or how == core.FAILED and run.forgotten is not None):  # its end is made of that when it ends, not in a replay
                return None
            return self._parts(history, run.seq, word, self._now(run), self._place(run))
        if history.status not in ("ready", "running", "waiting", "paused"):
            return None  # it was ended from outside
        recorded = {record.seq for record in history.records}
        for asked in history.pending:
            if asked.seq not in recorded and not (asked.kind == "wait" and self._reader.met_anew) and not _is_asked(run, asked):
                return self._parts(history, asked.seq, f"{_ASKED_WORD[asked.kind]} {asked.name!r}", self._now(run, asked.seq), self._place(run))
        return None

    def _now(self, run: Any, seq: int = -1) -> str:
        if run.end is not None:
            if run.end[0] == core.CONTINUED:
                return "continue_as_new"
            return "return" if run.end[0] == core.COMPLETED else f"raise {codec.brief(codec.decode_error(run.end[1]))}"
        there = [run.open[seq]] if seq in run.open else [run.open[each] for each in sorted(run.open)[:3]]
        return ", ".join(f"{KINDS.get(cmd.kind, 'command')} {cmd.step.name!r}" for cmd in there) or "nothing that waits"

    # ── where the code stands ────────────────────────────────────────────────────────────────────────────────────

    def _place(self, run: Any) -> tuple[str, int, str]:
        """File, line and function of the app where the replay stopped."""
        reader = self._reader
        if reader.culprit is None and run.end is not None:
            return _raised_at(reader.error) if reader.error is not None else self._returned
        place = standing(run, reader.culprit)
        return place if place[0] else self._returned

    def _parts(self, history: History, seq: int, recorded: str, now: str, place: tuple[str, int, str]) -> Divergence:
        return Divergence(history.run_id, history.workflow, history.version, seq, recorded, now, *place)


def _past(history: History) -> Past:
    records = [
        Record(each.seq, kind_number(each.kind), status_number(each.status), each.name.encode(), bytes(each.result), microseconds(each.ended_at))
        for each in history.records
    ]
    reached = max((each.seq for each in history.pending if each.kind != "wait"), default=-1)
    drawn_from = None if history.drawn_from is None else history.drawn_from.bytes
    return Past(input=bytes(history.input), records=records, reached=reached, drawn_from=drawn_from)


def _is_asked(run: Any, asked: Pending) -> bool:
    command = run.open.get(asked.seq) if run.end is None and run.open else None
    if command is None:
        return False
    if asked.kind == "timer":
        return command.kind in _ASKED["timer"]
    return command.step.name == asked.name and (asked.kind == "wait" or command.kind in _ASKED[asked.kind])


def _raised_at(error: BaseException) -> tuple[str, int, str]:
    """Where an error left the app's own code."""
    found = ("", 0, "")
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if not is_engine(code.co_filename):
            found = (code.co_filename, trace.tb_lineno, code.co_qualname)
        trace = trace.tb_next
    return found


__all__ = ["Divergence", "Verifier"]
