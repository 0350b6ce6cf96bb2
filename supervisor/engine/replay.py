"""Bring a run back: its workflow code runs again, and everything that is in the history is answered from it.

Deliveries are given in the order of `pos`, as they were live, so branches interleave as they did. Nothing is executed
here: commands without a record are left open for the caller. Code that does something else than the history says is
found out before anything new is begun.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

import msgspec

from supervisor._fastpath import loop as core
from supervisor._fastpath.wire import id_time_us
from supervisor.api.words import TIMEOUT
from supervisor.core.cancelled import Cancelled
from supervisor.core.codec import decode_error, brief
from supervisor.core.errors import HistoryTooLong, InputInvalid, ReplayMismatch, RunCancelled, RunFailed, RunTerminated, SupervisorError
from supervisor.engine import compensation, stacks, waits
from supervisor.engine.handlers import Handling, give
from supervisor.engine.terms import NEVER, SCHEDULED, SKIPPED

_i2 = struct.Struct(">h").unpack
_i4 = struct.Struct(">i").unpack
_i8 = struct.Struct(">q").unpack
KINDS = {core.STEP: "step", core.TIMER: "timer", core.CHILD: "child run", core.START: "start of a child run", core.SIGNAL: "wait for signal"}
KINDS |= {core.UPDATE: "update", core.HANDLED: "wait for handlers", core.CANCEL: "delivery of", core.UNDO: "plan of", core.PATCH: "patch"}
CANCELLED, TERMINATED = 3, 4  # outcome.status: ended from outside
RESUMED, SLEPT = 1, 4  # task.resumed: has a history; has one, and was parked for one sleep and nothing else


@dataclass(slots=True)
class Record:
    """One row of `step`."""

    seq: int
    kind: int
    status: int
    name: bytes
    result: bytes | None
    ended: int

    def __str__(self) -> str:
        return f"{KINDS.get(self.kind, 'command')} {self.name.decode('utf-8', 'replace')!r}"


@dataclass
class Kid:
    """A child run that was started; status None while it runs, as far as was read."""

    run_id: bytes
    status: int | None = None
    result: bytes | None = None
    first: bytes | None = None  # the run that was started, where this one is its successor

    def seen(self, outcomes: dict[bytes, tuple[int, bytes | None]]) -> bool:
        """Take in what was read; whether it has ended. One that continued is its successor from then on."""
        status, result = outcomes.get(self.run_id, (None, None))
        if status == core.CONTINUED and result is not None:
            self.run_id = UUID(msgspec.json.decode(result)).bytes
            return False
        self.status, self.result = status, result
        return status is not None

    def error(self, workflow: str, seq: int) -> SupervisorError:
        """What its parent is told of one that did not complete."""
        run_id = str(UUID(bytes=self.run_id))
        cause = decode_error(self.result) if self.result else None
        if self.status in (CANCELLED, TERMINATED):
            return (RunCancelled if self.status == CANCELLED else RunTerminated)(run_id, workflow, str(cause or ""), seq=seq)
        return RunFailed(run_id, workflow, brief(cause) if cause is not None else "it ended without a result", seq, cause)


@dataclass
class Request:
    """That the run be ended: `how` is the status that was asked for."""

    how: int
    cause: Cancelled


@dataclass
class Past:
    """All that the database knows of one resumed run."""

    input: bytes | None = None
    records: list[Record] = field(default_factory=list)
    drawn_from: bytes | None = None  # of a fork: the run whose random numbers it draws, and at whose start its time begins
    attempts: dict[int, int] = field(default_factory=dict)  # seq → tries that failed
    retry_in_us: dict[int, int] = field(default_factory=dict)
    failed_us: dict[int, int] = field(default_factory=dict)  # seq → when the last of them ended, us since 2000
    tried: dict[int, int] = field(default_factory=dict)  # seq → when the first try that failed or was handed over began, us since 2000
    skipped: set[int] = field(default_factory=set)  # seqs whose result somebody gave
    entrusted: dict[int, Handed] = field(default_factory=dict)  # seq → its last try that was
    settled: dict[int, Settled] = field(default_factory=dict)  # seq → what came of the last
    terms: dict[int, dict[str, Any]] = field(default_factory=dict)  # seq → parts of its retry policy that somebody changed
    begun: dict[int, int] = field(default_factory=dict)  # seq → try whose start is durable (at_most_once)
    closes: dict[int, int] = field(default_factory=dict)  # seq → when the time of all its tries is over, us since 2000
    details: dict[int, bytes] = field(default_factory=dict)  # seq → what was said last with a heartbeat
    timers_us: dict[int, int] = field(default_factory=dict)
    kids: dict[int, Kid] = field(default_factory=dict)
    is_heir: bool = False  # earlier runs of its chain had started children that its end is to reach
    given: int = 0  # in the replay: records that the workflow was given
    reached: int = -1  # the largest seq of which anything is known
    said: dict[tuple[str, str], Any] = field(default_factory=dict)  # in the replay, after the last delivery so far: statement and key → row
    attributes: dict[str, Any] = field(default_factory=dict)  # all that the run has set of them
    successor: Any = None  # of a run that continues as a new one: its row
    boxes: dict[str, Any] = field(default_factory=dict)  # signals: name → messages that were read (engine/signals.py)
    handling: Handling | None = None  # of updates, where the run takes any
    staying: bool = False  # it waits in memory for now, and is asked again
    request: Request | None = None  # to cancel it, or to terminate it, that is not delivered yet
    cancelled: Cancelled | None = None  # what was delivered
    undo: list[Any] = field(default_factory=list)  # what its code has named to undo its steps (engine/compensation.py)
    compensating: bool = False  # its own code has ended, and that is being done
    timed_out: bool = False  # because its time was over
    anew: bool = False  # its code is run over its history no more, though what it calls is looked up there


def is_used_up(past: Past) -> bool:
    """After a replay: whether nothing is left that a run in memory would need of its past."""
    unread = past.attempts or past.retry_in_us or past.entrusted or past.settled or past.terms or past.begun or past.closes or past.details or past.timers_us
    kept = past.kids or past.is_heir or past.said or past.attributes or past.boxes or past.undo
    state = past.handling is not None or past.request is not None or past.cancelled is not None or past.compensating or past.timed_out
    return not (unread or kept or state)


def handling_of(run: Any) -> Handling:
    """What *run* has of updates."""
    if run.past is None:
        run.past = Past()
    if run.past.handling is None:
        run.past.handling = Handling()
    handling: Handling = run.past.handling
    return handling


def has_begun(run: Any) -> bool:
    """Whether anything of a run in memory is durable."""
    past = run.past
    if run.coro is None or run.pos or run.timers or past is not None and (past.reached >= 0 or past.kids):
        return run.coro is not None
    asked = [*(run.open or {}).values(), *([run.call] if run.call is not None else [])]
    return any(cmd.attempt > 1 or cmd.extra == "begun" for cmd in asked)


@dataclass
class Handed:
    """A try that its step's body has handed over to a token; times in us since 2000."""

    attempt: int
    started_us: int
    since_us: int
    due_us: int
    heartbeat_s: float | None


@dataclass
class Settled:
    """What came of a try that has a token: the row of completion (kind 0: there is none), and the last sign of life, us since 2000."""

    attempt: int
    kind: int = 0
    retry: bool = True
    payload: bytes | None = None
    beat_us: int = 0


def read_past(results: dict[str, Any]) -> dict[bytes, Past]:
    """What the reads of one batch brought, by run id."""
    pasts: dict[bytes, Past] = defaultdict(Past)
    for row in _rows(results.get("read_inputs")):
        pasts[row[0]].input, pasts[row[0]].drawn_from = row[1], row[2]
    _read_steps(pasts, results.get("read_steps"))
    _read_attempts(pasts, results.get("read_attempts"))
    for run_id, seq, due_in in _rows(results.get("read_timers")):
        pasts[run_id].timers_us[_i4(seq)[0]] = _i8(due_in)[0]
    for (run_id, at), settled in read_settled(results.get("read_completions")).items():
        pasts[run_id].settled[at] = settled
    for (run_id, at), details in read_details(results.get("read_completions")).items():
        pasts[run_id].details[at] = details
    for run_id, seq, kid, first in _rows(results.get("read_children")):
        if seq is None:
            pasts[run_id].is_heir = True
        else:
            pasts[run_id].kids[_i4(seq)[0]] = Kid(kid, first=first)
    for run_id, request in read_requests(results.get("read_cancellations")).items():
        pasts[run_id].request = request
    return pasts


def read_requests(result: Any) -> dict[bytes, Request]:
    """What was asked of runs; that one be terminated outweighs that it be cancelled."""
    found: dict[bytes, Request] = {}
    for run_id, how, reason, actor in sorted(_rows(result), key=lambda row: row[1]):
        found[run_id] = Request(_i2(how)[0], Cancelled(_text(reason), _text(actor)))
    return found


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode()


def _read_steps(pasts: dict[bytes, Past], result: Any) -> None:
    if result is None:
        return
    get = result.get_value
    for row in range(result.ntuples):
        record = Record(_i4(get(row, 1))[0], _i2(get(row, 3))[0], _i2(get(row, 4))[0], get(row, 5), get(row, 6), _i8(get(row, 7))[0])
        pasts[get(row, 0)].records.append(record)


def _read_attempts(pasts: dict[bytes, Past], result: Any) -> None:
    edits: dict[tuple[bytes, int], tuple[int, bytes, bytes | None]] = {}
    for run_id, seq, n, kind, retry_in, terms, started, ended, due in _rows(result):
        past, at, number = pasts[run_id], _i4(seq)[0], _i4(n)[0]
        if _i2(kind)[0] == 2:
            past.begun[at] = number
        elif _i2(kind)[0] == SCHEDULED:
            past.closes[at] = _i8(due)[0]
        elif _i2(kind)[0] == SKIPPED:
            past.skipped.add(at)
        elif _i2(kind)[0] == 7:
            past.tried.setdefault(at, _i8(started)[0])
            past.entrusted[at] = Handed(number, _i8(started)[0], _i8(ended)[0], NEVER if due is None else _i8(due)[0], msgspec.json.decode(terms)["heartbeat_s"])
        elif _i2(kind)[0] == 5:
            edits[run_id, at] = max(edits.get((run_id, at), (0, b"", None)), (number, terms, retry_in), key=lambda each: each[0])
        else:
            past.tried.setdefault(at, _i8(started)[0])
            past.attempts[at], past.failed_us[at] = number, _i8(started if ended is None else ended)[0]
            if retry_in is not None:
                past.retry_in_us[at] = _i8(retry_in)[0]
    for (run_id, at), (_, terms, retry_in) in edits.items():
        edit(pasts[run_id], at, terms, None if retry_in is None else _i8(retry_in)[0])


def read_settled(result: Any) -> dict[tuple[bytes, int], Settled]:
    """By run and seq, of the last try of each that has anything: completions, and signs of life (kind 0)."""
    found: dict[tuple[bytes, int], Settled] = {}
    for run_id, seq, n, kind, retry, payload, at in _rows(result):
        key, attempt, what = (run_id, _i4(seq)[0]), _i4(n)[0], _i2(kind)[0]
        one = found.get(key)
        if one is None or attempt > one.attempt:
            one = found[key] = Settled(attempt)
        if attempt == one.attempt:
            if what == 0:
                one.beat_us = _i8(at)[0]
            else:
                one.kind, one.retry, one.payload = what, retry == b"\x01", payload
    return found


def read_details(result: Any) -> dict[tuple[bytes, int], bytes]:
    """By run and seq: what was said last with a sign of life, whichever try it was."""
    return {(row[0], _i4(row[1])[0]): row[5] for row in _rows(result) if _i2(row[3])[0] == 0 and row[5] is not None}


def edit(past: Past, seq: int, terms: bytes, in_us: int | None) -> None:
    """Other terms for a step that failed: its policy, and when the try after those that it had is due."""
    told = msgspec.json.decode(terms)
    past.terms[seq] = {name: int(value) if name == "max_attempts" else value for name, value in told["policy"].items()}
    if in_us is not None and told["after"] == past.attempts.get(seq):
        past.retry_in_us[seq] = in_us


def read_outcomes(result: Any) -> dict[bytes, tuple[int, bytes | None]]:
    """How children ended, by their run id."""
    return {row[0]: (_i2(row[1])[0], row[2]) for row in _rows(result)}


def _rows(result: Any) -> list[list[Any]]:
    if result is None:
        return []
    return [[result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)]


def replay(loop: Any, run: Any, past: Past, make_child: Any) -> list[Any]:
    """Run the workflow code of *run* over its history; returns the commands that have no record yet, in order of seq.

    Raises   ReplayMismatch; the run must then be evicted, nothing of it was executed or recorded.
    `run.dropped` has the commands whose cancellation was not recorded any more.
    When the code has ended, `run.end` holds (status, encoded result) and nothing is open.
    """
    run.history = {record.seq: record for record in past.records}
    for known in (run.history, past.attempts, past.begun, past.timers_us, past.kids):
        if known:
            past.reached = max(past.reached, max(known))
    run.past = past
    run.dropped = {}
    run.open = {}
    loop.begin_run(run, past.input)
    if past.drawn_from is not None:
        run.drawn, run.now_us = Random(past.drawn_from), id_time_us(past.drawn_from)
    if run.end is None:
        loop.drive(run, [(None, core.ASK)])
    awake = run.resumed == SLEPT and not past.timers_us  # the last record was made by the question that read it: what follows was never executed
    for record in past.records:
        past.given += 1
        past.anew = awake and past.given == len(past.records)
        if record.kind != core.PATCH and record.status != core.CANCELLED:  # which are no deliveries: what the code said before them came after the last one
            if past.said or past.handling is not None:
                _forget_said(past)
        _redeliver(loop, run, record, make_child)
    run.history = None
    if run.end is not None:
        return []
    waits.date_first(run, past, loop.now_us())
    return [run.open[seq] for seq in sorted(run.open)] if len(run.open) > 1 else list(run.open.values())


def _forget_said(past: Past) -> None:
    """What the code has said was in the batch of the record that follows, or in one before."""
    if past.said:
        past.said = {}
    if past.handling is not None and past.handling.ended:
        past.handling.ended = {}


def check(run: Any, command: Any) -> None:
    """A command was called in a replay: the history must not have another one at its seq."""
    waits.date_replayed(run, command)
    record = run.history.get(command.seq)
    if record is not None and (record.kind != command.kind or record.name != command.step.wire_name):
        raise _parted(run, command.seq, str(record), _called(command), command)


def too_long(run: Any, cmd: Any) -> HistoryTooLong | None:
    """The error of a command that is one more than the run may have; from now on it is looked at where that is."""
    most = run.workflow.info.max_steps
    run.seq_max = most
    return None if cmd.seq < most else HistoryTooLong(UUID(bytes=run.id), run.workflow.name, most)


def _redeliver(loop: Any, run: Any, record: Record, make_child: Any) -> None:
    if record.kind == core.PATCH:
        if not (run.patches or {}).get(record.name.decode("utf-8", "replace")):
            raise _parted(run, record.seq, str(record), _instead(run))
        return
    if record.status == core.CANCELLED:
        if run.dropped.pop(record.seq, None) is None:
            raise _parted(run, record.seq, f"the cancellation of {record}", "something that keeps it")
        run.now_us = record.ended
        return
    if run.end is not None:
        raise _parted(run, record.seq, str(record), _ending(run.end))
    if record.kind == core.UPDATE:
        _redeliver_update(loop, run, record)
        return
    if record.kind == core.CANCEL:
        _interrupt(loop, run, record)
        return
    command = run.open.get(record.seq)
    if command is None:
        raise _parted(run, record.seq, str(record), _instead(run))
    run.pos += 1
    run.now_us = record.ended
    if record.status == core.FAILED:
        loop.deliver(run, command, None, decode_error(record.result))
    else:
        try:
            value = _value(command, record, make_child)
        except Exception as error:
            wanted = f"a result of {record} that this code can read"
            raise _parted(run, record.seq, wanted, brief(error), unread=True) from error
        loop.deliver(run, command, value, None)


def _redeliver_update(loop: Any, run: Any, record: Record) -> None:
    handling, name = handling_of(run), record.name.decode("utf-8", "replace")
    if name not in handling.named or record.seq != run.seq:
        found = f"another command at its place (the next is seq {run.seq})" if name in handling.named else "no handler of that name"
        raise _parted(run, record.seq, str(record), found)
    assert record.result is not None
    run.seq += 1
    run.pos += 1
    run.now_us = record.ended
    try:
        give(loop, run, handling, record.seq, name, record.result)
    except InputInvalid as error:
        wanted = f"an argument of {record} that this code can read"
        raise _parted(run, record.seq, wanted, brief(error), unread=True) from error


def _interrupt(loop: Any, run: Any, record: Record) -> None:
    """The cancellation is delivered where it was: at that pos, when the code had called so much."""
    if run.seq != record.seq:
        raise _parted(run, record.seq, str(record), f"calls up to seq {run.seq - 1} by then")
    run.pos += 1
    run.now_us = record.ended
    if record.name == TIMEOUT.wire_name:
        run.past.timed_out = True
        loop.abandon(run, None)
        compensation.begin(loop, run, compensation.time_is_over(run.workflow))
        return
    cause = Cancelled.decode(record.result)
    run.past.cancelled = cause
    if run.past.request is not None and run.past.request.how == core.CANCELLED:
        run.past.request = None
    if not loop.interrupt(run, cause, None):
        raise _parted(run, record.seq, str(record), "nothing that waits")


def _value(command: Any, record: Record, make_child: Any) -> Any:
    if record.kind in (core.TIMER, core.HANDLED, core.UNDO):
        return None
    assert record.result is not None
    if record.kind == core.START:
        return make_child(command, msgspec.json.decode(record.result))
    if record.kind == core.CHILD:
        workflow = command.extra[2] if command.extra else command.step.workflow
        return workflow.decode_result(record.result)
    if record.kind == core.SIGNAL:
        return command.step.decode(record.result)
    if command.step.shape is None:
        command.step.settle()
    return command.step.shape.decode(record.result)


def _parted(run: Any, seq: int, expected: str, found: str, culprit: Any = None, unread: bool = False) -> ReplayMismatch:
    """The history and the code part: at *culprit*, else where the run stands. It is of this code's version, or it would not have been taken up.

    unread   a type is what differs, and types are in no version
    """
    file, line, _ = stacks.standing(run, culprit)
    return ReplayMismatch(UUID(bytes=run.id), seq, expected, found, f"{file}:{line}" if file else "", None if unread else run.workflow.version)


def _ending(end: tuple[int, bytes]) -> str:
    if end[0] in (core.COMPLETED, core.CONTINUED):
        return "return" if end[0] == core.COMPLETED else "continue_as_new"
    return f"raise {brief(decode_error(end[1]))}"


def _called(command: Any) -> str:
    return f"{KINDS.get(command.kind, 'command')} {command.step.name!r}"


def _instead(run: Any) -> str:
    if not run.open:
        return "nothing that waits"
    return ", ".join(f"{_called(command)} at seq {seq}" for seq, command in sorted(run.open.items())[:3])
