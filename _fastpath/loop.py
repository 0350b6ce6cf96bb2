# cython: language_level=3, annotation_typing=False
"""The loop's core: resume coroutines, run their steps, and build the batch that makes it durable.

One source, two builds: compiled with loop.pxd, or as it stands. It decides nothing about retries, threads, timers or
sessions (the worker does) and never touches libpq. Invariants: a run has rows in at most one unacknowledged batch, so
`pos` has no holes; a command is begun only when everything delivered before it is acknowledged; what a coroutine is
given is what a replay would give it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import uuid
from collections import deque
from itertools import count
from math import isfinite
from opcode import opmap
from typing import Any

from supervisor.core import errors
from supervisor.core.errors import SupervisorError
from supervisor._fastpath.wire import Column, Command, Returned, clock_us, id_time_us, resume, thread_id

log = logging.getLogger("pgsupervisor.worker")

BIG = 65536  # bytes of a result from which on the checks of size are made
_ESCAPED_NUL = b"\\u0000"
# kinds of command: what `step.kind` holds, and the two that have no row
STEP, TIMER, CHILD, START, SIGNAL = 1, 2, 3, 4, 5
UNDO = 6  # the plan of a compensation
CANCEL = 7  # the delivery of a cancellation: a row of a run, no command of its code
HANDLED, UPDATE = 8, 9
GATHER, FIRST, SHIELD = 10, 11, 12
PATCH = 15  # that the run took a new branch: a row of it, awaited by nobody
# step.status and outcome.status
COMPLETED, FAILED, CANCELLED = 1, 2, 3
TIMED_OUT, CONTINUED = 5, 6
# where this thread is
OUTSIDE, IN_ASYNC, IN_SYNC, INERT, READING = 0, 1, 2, 3, 4

UUID, INT4, INT2, TEXT, BYTEA, TIMESTAMPTZ, INT8, FLOAT8 = 2950, 23, 21, 25, 17, 1184, 20, 701  # type oids, fixed in PostgreSQL's catalogue

ASK = object()  # in drive's work: this branch has not been asked yet (None is something that a coroutine can yield)
_FRESH, _FIRST_CLAIM = b"\0\0", b"\0\1"  # int2 on the wire
_mode = OUTSIDE
_thread = 0
_run: Any = None
_numbers = count()  # of workflows
_POP_TOP = opmap["POP_TOP"]
_OWN = ("_fastpath/loop.py", "_fastpath/wire.py")
_PACKAGE = os.path.dirname(os.path.dirname(errors.__file__)) + os.sep


def mode() -> int:
    """Whether this thread is inside workflow code: 0 outside, 1 async workflow, 2 def workflow, 3 leaving memory, 4 in a query's handler."""
    return _mode if _mode != OUTSIDE and thread_id() == _thread else OUTSIDE


def current_run() -> Any:
    """The run whose workflow code is executing on this thread, or None."""
    return _run if mode() != OUTSIDE else None


def read_only(run: Any, fn: Any, args: tuple[Any, ...]) -> Any:
    """Call a handler of a query in the name of *run*: no command can be made meanwhile."""
    global _mode, _run
    _mode, _run = READING, run
    try:
        return fn(*args)
    finally:
        _mode, _run = OUTSIDE, None


def new_command(kind: int, step: Any, args: tuple[Any, ...], takes_seq: bool = True) -> Any:
    """A command of the run that is executing; it takes the run's next seq unless it is a mere group."""
    cmd = Command()
    cmd.kind = kind
    cmd.step = step
    cmd.args = args
    cmd.run = _run
    cmd.attempt = 1
    if takes_seq:
        cmd.seq = _run.seq
        _run.seq += 1
    return cmd


def _command(step: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    cmd = Command()
    run = _run
    cmd.kind = STEP
    cmd.step = step
    cmd.args = args
    if kwargs:
        cmd.kwargs = kwargs
    cmd.run = run
    cmd.attempt = 1
    cmd.seq = run.seq
    run.seq += 1
    return cmd


def block(cmd: Any) -> Any:
    """In a def workflow: hand *cmd* to the loop and come back with its value, or raise its error."""
    _run.coro.back(cmd)
    if cmd.error is not None:
        raise cmd.error
    return cmd.value


class Step:
    """The hot part of a step: calling it in a workflow makes a command, anywhere else it is the plain function."""

    sync: Any
    retry: Any

    def __init__(self, fn: Any, name: str, shape: Any, encode_raw: Any, is_async: bool) -> None:
        self.fn = fn
        self.name = name
        self.wire_name = name.encode()
        self.shape = shape
        self.exact = shape.exact if shape is not None else None
        self.encode_raw = encode_raw
        self.is_async = is_async
        self.floats = False  # its results may hold a NaN, which is written as null
        self.inline = False  # run on the loop's own thread; the worker decides
        self.decode = None  # of a shape whose values need no looking at before they are encoded
        self.special = False  # needs more than a call: timeout, transaction, durable start
        self.tallies: list[Any] = []  # where its tries are counted, by the workflow's number
        self.aio = Aio(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        where = _mode
        if where == OUTSIDE or thread_id() != _thread:
            return self.fn(*args, **kwargs)
        if where == IN_ASYNC and self.is_async:
            return _command(self, args, kwargs)
        if where == IN_SYNC and not self.is_async:
            return block(_command(self, args, kwargs))
        return self.misplaced(where)

    def misplaced(self, where: int) -> Any:
        raise RuntimeError(f"step {self.name} called in mode {where}")  # the decorator's class says what to write instead


class Aio:
    """`step.aio`: in a workflow, the command of one call, to be awaited or gathered."""

    def __init__(self, step: Any) -> None:
        self.step = step

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        where = _mode
        if where == OUTSIDE or thread_id() != _thread:
            return self.step.outside_aio(args, kwargs)
        if where >= INERT:
            return self.step.misplaced(where)
        return _command(self.step, args, kwargs)


class Workflow:
    """The hot part of a workflow: how an input becomes a coroutine, how a result becomes bytes."""

    def __init__(self, fn: Any, name: str, is_async: bool) -> None:
        self.fn = fn
        self.name = name
        self.wire_name = name.encode()
        self.is_async = is_async
        self.number = next(_numbers)
        self.seq_warn = 80_000  # commands of one run from which on its history is getting long
        self.ends: Any = None  # where ends of its runs are counted
        later: Any = None
        self.shape = self.exact = self.encode_raw = self.read_input = later


class Run:
    """One run in memory. `call` is the command that its root awaits, in the common case; else `open` holds all by seq."""

    def __init__(self, id: bytes, workflow: Any) -> None:
        self.id = id
        self.workflow = workflow
        none: Any = None
        self.coro = self.history = self.later = self.parent = self.past = self.drawn = self.key = self.end = self.forgotten = self.patches = none
        self.call = self.open = self.dropped = self.fresh = self.fibers = none
        self.batch = 0
        self.now_us = self.deadline_us = 0
        self.seq_max = 0  # the seq from which on commands are looked at before they begin
        self.seq = self.pos = self.executing = self.resumed = 0
        self.gone = self.in_tx = self.timers = False
        self.status = 0  # how it ended
        self.home = 0  # the thread that the greenlet of a def workflow is bound to; 0: a coroutine, which any thread may resume


    def lost(self, kind: int, step: Any, seq: int) -> None:
        """A command ended that nobody has taken. One that its statement dropped at once is a mistake, and told at the run's end; one that was kept in a
        variable may have been given up for a reason, an error or a cancellation, and is told to the log."""
        if _run is not self or kind == PATCH or _mode not in (IN_ASYNC, IN_SYNC) or self.forgotten is not None:
            return
        where, at_once = _dropped_at()
        if at_once:
            self.forgotten = (kind, step, seq, where)
        elif self.history is None:
            log.warning("run %s of %s: %s (seq %d) was called and never awaited%s; nothing of it was executed", uuid.UUID(bytes=self.id), self.workflow.name, step.name, seq, where)


class Fiber:
    """A branch of gather or first that is a coroutine of its own, or the handler of an update, which belongs to no group."""

    def __init__(self, coro: Any, group: Any, index: int) -> None:
        self.coro = coro
        self.group = group  # the Command of the group it belongs to
        self.index = index  # of a handler: the seq at which its update was accepted
        self.waits = None
        self.ended = False


class Group:
    """State of one gather or first: its members, what they gave, how many are missing."""

    def __init__(self, members: list[Any], names: Any) -> None:
        self.members = members
        self.names = names
        self.results: list[Any] = [None] * len(members)
        self.remaining = len(members)
        self.fibers = 0  # branches whose coroutine has not ended; the group waits for them
        self.settled = self.failed = False
        self.outcome = None
        self.held: Any = None  # of a shield: the cancellation that waits for its end


class Loop:
    """Runs in memory, and the batch that is being built.

    worker    what decides the rest: begin(run, cmd), failed(run, cmd, error, started, ended), ended(run), dropped(run, cmd), updated, handled
    ready     runs whose next command may begin: claimed, or acknowledged
    runs      runs with rows in the batch being built; finished: those of them that ended; tried: tallies of the steps that were
    """

    def __init__(self, worker: Any, slot: Any, clock_offset_us: int = 0, bytes_max: int = 4 << 20) -> None:
        global _thread
        self.thread = _thread = thread_id()
        self.worker = worker
        self.slot = slot
        self.clock_offset_us = clock_offset_us
        self.bytes_max = bytes_max  # results in one batch: bounds what a failed batch costs and what the server buffers
        self.bytes_now = 0
        self.mixed = False  # the batch has rows of other things than completed steps
        self.number = 1
        self.slow_us = 5000
        self.steps_total = 0
        self.current: Any = None
        self.cause: Any = None  # while a run is interrupted: the error that everything of it is given, a fresh one each
        self.fresh: Any = None  # what resume_general is beginning
        self.live: dict[bytes, Any] = {}
        self.ready: list[Any] = []
        self.runs: list[Any] = []
        self.finished: list[Any] = []
        self.tried: list[Any] = []
        self.completions: deque[Any] = deque()
        self.s_run, self.s_seq, self.s_pos = Column(UUID), Column(INT4), Column(INT4)
        self.s_kind, self.s_status, self.s_name = Column(INT2), Column(INT2), Column(TEXT)
        self.s_result, self.s_started, self.s_ended = Column(BYTEA), Column(FLOAT8), Column(FLOAT8)
        self.f_run, self.f_status, self.f_steps = Column(UUID), Column(INT2), Column(INT4)
        self.f_result, self.f_ended = Column(BYTEA), Column(FLOAT8)

    def now_us(self) -> int:
        """The database's clock as well as it is known, in us since 2000."""
        return clock_us() + self.clock_offset_us

    # ── a run begins ─────────────────────────────────────────────────────────────────────────────────────────────

    def begin_run(self, run: Any, payload: bytes) -> None:
        """Start the coroutine of a claimed run and let it ask for its first command."""
        self.live[run.id] = run
        workflow = run.workflow
        run.seq_max = workflow.seq_warn
        run.now_us = id_time_us(run.id)
        try:
            args = workflow.read_input(payload)
            if workflow.is_async:
                run.coro = workflow.fn(*args)
            else:
                run.home = self.thread
                run.coro = self.worker.green(workflow.fn, args)
        except BaseException as error:
            self.worker.finish_failed(run, error)
            return
        if run.history is None:
            self._advance(run)

    def admit(self, result: Any, workflows: dict[bytes, Any], marks: dict[bytes, bytes], others: list[Any]) -> None:
        """Take in the rows of a claim: fresh runs begin, the rest is put into *others* as (run, resumed, claims, input, workflow id, deadline, version, ready_at).

        marks    (queue and priority) → the largest (ready_at and id) that was claimed; updated
        """
        get = result.get_value
        last_queue = last_prio = last_at = last_id = b""
        for row in range(result.ntuples):
            run_id = get(row, 0)
            workflow_id = get(row, 1)
            queue, prio, at = get(row, 4), get(row, 5), get(row, 6)
            if queue != last_queue or prio != last_prio:
                if last_at and last_at + last_id > marks.get(last_queue + last_prio, b""):
                    marks[last_queue + last_prio] = last_at + last_id
                last_queue, last_prio, last_at, last_id = queue, prio, at, run_id
            elif at > last_at or at == last_at and run_id > last_id:
                last_at, last_id = at, run_id
            workflow = workflows.get(workflow_id)
            run = Run(run_id, workflow)
            run.parent, run.key, payload, deadline = get(row, 7), get(row, 8), get(row, 9), get(row, 10)
            if payload is not None and workflow is not None and deadline is None and get(row, 2) == _FRESH and get(row, 3) == _FIRST_CLAIM:
                try:
                    self.begin_run(run, payload)
                except Exception as error:  # noqa: BLE001 - of the engine: it may cost this run, not its neighbours
                    self.worker.broken(run, error)
            else:
                others.append((run, get(row, 2), get(row, 3), payload, workflow_id, deadline, get(row, 11), at))
        if last_at and last_at + last_id > marks.get(last_queue + last_prio, b""):
            marks[last_queue + last_prio] = last_at + last_id

    # ── one step of every run ────────────────────────────────────────────────────────────────────────────────────

    def execute(self, runs: list[Any], time_max_us: int) -> int:
        """Begin the next command of each run; returns how many of *runs* were taken before the batch was full or the time up."""
        n = len(runs)
        until = clock_us() + time_max_us
        for i in range(n):
            run = runs[i]
            if self.bytes_now > self.bytes_max or (i & 31) == 31 and clock_us() > until:
                return i
            cmd = run.call
            if run.batch != 0:  # named twice; its rows are not acknowledged yet
                continue
            try:
                if cmd is None:
                    self.resume_general(run)
                elif cmd.kind == STEP and self._on_loop(cmd):
                    run.call = None
                    self._inline(run, cmd)
                else:
                    run.call = None
                    run.open = {cmd.seq: cmd}
                    self.worker.begin(run, cmd)
                    self._rest(run)
            except Exception as error:  # noqa: BLE001 - of the engine, not of a step: it may cost this run, not its neighbours
                self.worker.broken(run, error)
        return n

    def _on_loop(self, cmd: Any) -> bool:
        step = cmd.step
        return bool(step.inline)

    def inline(self, run: Any, cmd: Any) -> None:
        """Run a step on this thread, now."""
        self._inline(run, cmd)

    def _inline(self, run: Any, cmd: Any) -> None:
        step = cmd.step
        started = clock_us()
        self.slot.enter(run.id, cmd.seq, started, step.wire_name)
        self.current = cmd  # what current() answers on this thread
        try:
            value = step.fn(*cmd.args) if cmd.kwargs is None else step.fn(*cmd.args, **cmd.kwargs)
        except BaseException as error:
            if self.current is not cmd:
                self.worker.came_back(cmd, None, error, started + self.clock_offset_us, self.now_us())
            self.current = None
            self.slot.leave()
            self.worker.failed(run, cmd, error, started + self.clock_offset_us, self.now_us())
            return
        if self.current is not cmd:  # another thread is the loop's now; this does not return
            self.worker.came_back(cmd, value, None, started + self.clock_offset_us, self.now_us())
        self.current = None
        self.slot.leave()
        ended = clock_us()
        if ended - started > self.slow_us:
            self.worker.slow(step, ended - started)
        self.settle(run, cmd, value, started + self.clock_offset_us, ended + self.clock_offset_us)

    def take_over(self, cmd: Any) -> bool:
        """Make the calling thread the loop's; False when *cmd* holds the other one no more. Here and in `_inline`, looking at `current` and changing it is one turn of the interpreter."""
        if self.current is not cmd:
            return False
        self.current = None
        self.hand_to(thread_id())
        return True

    def hand_to(self, thread: int) -> None:
        """From now on *thread* is the loop's. Greenlets stay where they were made."""
        global _thread
        self.thread = _thread = thread

    def settle(self, run: Any, cmd: Any, value: Any, started: int, ended: int) -> None:
        """A step returned *value*: encode it, put its row into the batch, give the coroutine what a replay would."""
        step = cmd.step
        kind = type(value)
        try:
            if kind in step.exact and (kind is int or kind is bool or value is None or _fits(kind, value)):
                encoded = step.encode_raw(value)
                if len(encoded) > BIG:
                    encoded, value = step.shape.settle(value)
            elif step.decode is not None:
                encoded = step.encode_raw(value)
                if len(encoded) > BIG or _ESCAPED_NUL in encoded or step.floats and b"null" in encoded:
                    encoded, value = step.shape.settle(value)
                else:
                    value = step.decode(encoded)
            else:
                encoded, value = step.shape.settle(value)
        except Exception as error:
            if not isinstance(error, SupervisorError):
                error = step.shape.explain(value, error)
            self.worker.failed(run, cmd, error, started, ended)
            return
        self.record(run, cmd, COMPLETED, encoded, started, ended)
        if run.open is None:
            cmd.value = value
            cmd.done = True
            self._advance(run)
        else:
            self.deliver(run, cmd, value, None)

    def tally_of(self, workflow: Any, step: Any) -> Any:
        """Where tries of *step* in runs of *workflow* are counted with the batch that is being built."""
        tallies, number = step.tallies, workflow.number
        if number >= len(tallies):
            tallies += [None] * (number + 1 - len(tallies))
        tally = tallies[number]
        if tally is None:
            tally = tallies[number] = self.worker.tally(workflow.name, step.name)
        if not tally.waits:
            tally.waits = True
            self.tried.append(tally)
        return tally

    def record(self, run: Any, cmd: Any, status: int, encoded: bytes | None, started: int, ended: int) -> None:
        """Put one row of `step` into the batch; it takes the run's next pos."""
        self.s_run.put(run.id)
        self.s_seq.put_i32(cmd.seq)
        self.s_pos.put_i32(run.pos)
        if self.mixed or cmd.kind != STEP or status != COMPLETED:
            self._kind_and_status(cmd.kind, status)
        if cmd.kind == STEP and status == COMPLETED:
            step = cmd.step
            self.s_name.put(step.wire_name)
            self.tally_of(run.workflow, step).add(ended - started)
        else:
            self.s_name.put(cmd.step.wire_name)
        if encoded is None:
            self.s_result.put_null()
        else:
            self.s_result.put(encoded)
            self.bytes_now += len(encoded)
        self.s_started.put_moment(started)
        self.s_ended.put_moment(ended)
        run.pos += 1
        run.now_us = ended
        self.steps_total += 1
        if run.batch != self.number:
            run.batch = self.number
            self.runs.append(run)

    def _kind_and_status(self, kind: int, status: int) -> None:
        """Only a batch with something else than completed steps says of each row what it is."""
        while self.s_kind.count < self.s_run.count - 1:
            self.s_kind.put_i16(STEP)
            self.s_status.put_i16(COMPLETED)
        self.s_kind.put_i16(kind)
        self.s_status.put_i16(status)
        self.mixed = True

    def touch(self, run: Any) -> None:
        """Note that *run* has something in the batch being built, other than a step row."""
        if run.batch != self.number:
            run.batch = self.number
            self.runs.append(run)

    # ── the coroutine goes on ────────────────────────────────────────────────────────────────────────────────────

    def _resume(self, run: Any, coro: Any) -> Any:
        global _mode, _run
        _run = run
        workflow = run.workflow
        self.slot.code(run.id, workflow.wire_name)
        if workflow.is_async:
            _mode = IN_ASYNC
            try:
                return resume(coro)
            finally:
                _mode = OUTSIDE
                _run = None
                self.slot.leave()
        _mode = IN_SYNC
        try:
            got = coro.switch()
        finally:
            _mode = OUTSIDE
            _run = None
            self.slot.leave()
        return coro.returned() if got is coro else got

    def _advance(self, run: Any) -> None:
        """Resume the root of a run whose only command was just answered."""
        if run.home != 0 and run.home != self.thread:
            self.worker.away(run, [(None, ASK)])
            return
        try:
            got = self._resume(run, run.coro)
        except BaseException as error:
            self.worker.finish_failed(run, error)
            return
        if type(got) is Command and got.kind < GATHER and not got.done and got.run is run and got.seq < run.seq_max:
            got.taken = True
            run.call = got
            if run.batch == 0:
                self.ready.append(run)
        elif type(got) is Returned:
            self._return(run, got.value)
        else:
            run.open = {}
            self.drive(run, [(None, got)])

    def _forgot(self, run: Any) -> bool:
        """Whether the code that has ended well never awaited a command: then its run fails. A run that ended before this was known keeps its end:
        while the history is replayed this is asked only where it says that the run had failed and was undone."""
        if run.forgotten is None or run.history is not None and not any(record.kind == UNDO for record in run.history.values()):
            return False
        error, run.forgotten = self.worker.unawaited(run, run.forgotten), None
        self.worker.finish_failed(run, error)
        return True

    def _return(self, run: Any, value: Any) -> None:
        if run.forgotten is not None and self._forgot(run):
            return
        workflow = run.workflow
        kind = type(value)
        try:
            if kind in workflow.exact and (kind is int or kind is bool or value is None or _fits(kind, value)):
                encoded = workflow.encode_raw(value)
                if len(encoded) > BIG:
                    encoded = workflow.shape.settle(value)[0]
            else:
                encoded = workflow.shape.settle(value)[0]
        except Exception as error:
            if kind is Command:
                error = self.worker.unawaited(run, (value.kind, value.step, value.seq, ""), True)
            elif not isinstance(error, SupervisorError):
                error = workflow.shape.explain(value, error)
            self.worker.finish_failed(run, error)
            return
        self._finish(run, COMPLETED, encoded)

    def _finish(self, run: Any, status: int, encoded: bytes) -> None:
        if run.history is not None:  # a replay decides first whether it used up the whole history
            run.end = (status, encoded)
            return
        run.status = status
        self.f_run.put(run.id)
        self.f_status.put_i16(status)
        self.f_steps.put_i32(run.pos)
        self.f_result.put(encoded)
        self.f_ended.put_moment(self.now_us())
        self.bytes_now += len(encoded)
        self.touch(run)
        self.finished.append(run)
        if run.timers or run.parent is not None or run.past is not None or run.executing or run.open:
            self.worker.ended(run, status)
        run.gone = True
        if run.fibers is not None:
            self.unwind(run)
        run.coro = run.call = run.open = run.fresh = run.later = None

    def finish(self, run: Any, status: int, encoded: bytes) -> None:
        """End *run* with an outcome."""
        if status == COMPLETED and self._forgot(run):
            return
        self._finish(run, status, encoded)

    # ── several commands at once ─────────────────────────────────────────────────────────────────────────────────

    def resume_general(self, run: Any) -> None:
        """Acknowledged: process what came in meanwhile, then begin what was asked for."""
        if run.gone:
            return
        later, run.later = run.later, None
        for completion in later or ():
            self.complete(*completion)
        if run.gone or run.in_tx or run.batch != 0:  # what was just recorded has to be durable before anything more begins
            return
        fresh, run.fresh = run.fresh, None
        self.fresh = fresh
        for index, cmd in enumerate(fresh or ()):
            if run.gone:
                return
            if run.in_tx:  # what began last has the run to itself until it is acknowledged
                run.fresh = fresh[index:] + (run.fresh or [])
                return
            if cmd.done:
                continue
            if cmd.kind == STEP and cmd.step.inline and run.past is None:
                self._inline(run, cmd)
            else:
                self.worker.begin(run, cmd)
        self._rest(run)

    def _rest(self, run: Any) -> None:
        if not run.gone and run.batch == 0 and run.executing == 0 and run.call is None and not run.fresh:
            self.worker.quiet(run)

    def complete(self, run: Any, cmd: Any, value: Any, error: Any, started: int, ended: int) -> None:
        """An executor finished *cmd*. Waits for the acknowledgement of what the run has in flight."""
        if run.gone or cmd.done:
            return
        if run.batch != 0 and run.batch != self.number or run.in_tx:
            if run.later is None:
                run.later = []
            run.later.append((run, cmd, value, error, started, ended))
        elif cmd.kind == UPDATE:
            self.worker.updated(run, cmd)
        elif error is not None:
            self.worker.failed(run, cmd, error, started, ended)
        else:
            self.settle(run, cmd, value, started, ended)

    def deliver(self, run: Any, cmd: Any, value: Any, error: Any) -> None:
        """Give a recorded result (or error) to whoever awaits *cmd*, and go on from there."""
        cmd.value = value
        cmd.error = error
        cmd.done = True
        if run.open is None:
            self._advance(run)
            return
        run.open.pop(cmd.seq, None)
        work: list[Any] = []
        self._wake(run, cmd, cmd.waiter, work)
        self.drive(run, work)

    def drive(self, run: Any, work: list[Any]) -> None:
        """Resume branches until every one waits. An item is (branch or None for the root, what it asked for or ASK)."""
        if run.home != 0 and run.home != self.thread and work:
            self.worker.away(run, work)
            return
        while work and not run.gone and run.end is None:
            fiber, got = work.pop(0)
            if got is ASK:
                if fiber is not None and fiber.ended:
                    continue
                coro = run.coro if fiber is None else fiber.coro
                try:
                    got = self._resume(run, coro)
                except BaseException as error:
                    self._branch_ended(run, fiber, None, error, work)
                    continue
            if type(got) is Returned:
                self._branch_ended(run, fiber, got.value, None, work)
            elif type(got) is Command and got.run is run:
                if fiber is not None:
                    fiber.waits = got
                self._take(run, fiber, got, work)
            else:
                self._refuse(run, fiber, got, work)
        if run.gone or run.history is not None or not run.fresh:
            return
        only = run.fresh[0]
        if len(run.open) == 1 and only.waiter is None and only.seq in run.open:  # back to the common case
            run.call = only
            run.open = run.fresh = None
        if run.batch == 0:
            self.ready.append(run)

    def _refuse(self, run: Any, fiber: Any, got: Any, work: list[Any]) -> None:
        """The code awaited something that no replay could answer: raise at that line."""
        global _mode, _run
        coro = run.coro if fiber is None else fiber.coro
        error = self.worker.misuse(got)
        _run = run
        _mode = IN_ASYNC
        self.slot.code(run.id, run.workflow.wire_name)
        try:
            if run.workflow.is_async:
                again = coro.throw(error)
            else:
                again = coro.throw(type(error), error)
        except StopIteration as stop:
            again = Returned(stop.value)
        except BaseException as raised:
            _mode = OUTSIDE
            _run = None
            self._branch_ended(run, fiber, None, raised, work)
            return
        finally:
            _mode = OUTSIDE
            _run = None
            self.slot.leave()
        work.insert(0, (fiber, again))

    def _take(self, run: Any, waiter: Any, cmd: Any, work: list[Any]) -> None:
        """*waiter* (a branch, a group's command, or None for the root) awaits *cmd*."""
        cmd.waiter = waiter
        cmd.taken = True
        if cmd.done:
            self._wake(run, cmd, waiter, work)
        elif cmd.kind >= GATHER:
            group = cmd.extra
            for index, member in enumerate(group.members):
                if group.settled:  # by a member that was answered before
                    if type(member) is not Command:
                        member.close()
                elif type(member) is Command:
                    if member.kind >= GATHER:  # has branches of its own, which the group waits for
                        group.fibers += 1
                    self._take(run, (cmd, index), member, work)
                else:
                    fiber = Fiber(member, cmd, index)
                    group.members[index] = fiber
                    if run.fibers is None:
                        run.fibers = []
                    run.fibers.append(fiber)
                    group.fibers += 1
                    work.append((fiber, ASK))
            if not group.members:
                self._settle_group(run, cmd, [], None, work)
        elif cmd.seq < run.seq_max or not self._is_too_long(run, cmd, work):
            self._open(run, cmd)

    def _is_too_long(self, run: Any, cmd: Any, work: list[Any]) -> bool:
        """Whether this is a command more than the run may have; whoever awaits it is given the error then."""
        if run.history is not None and cmd.seq in run.history:
            return False
        error = self.worker.grown(run, cmd)
        if error is None:
            return False
        cmd.error = error
        cmd.done = True
        self._wake(run, cmd, cmd.waiter, work)
        return True

    def _open(self, run: Any, cmd: Any) -> None:
        run.open[cmd.seq] = cmd
        if run.history is not None:
            self.worker.check_history(run, cmd)
        else:
            if run.fresh is None:
                run.fresh = []
            run.fresh.append(cmd)

    def _wake(self, run: Any, cmd: Any, waiter: Any, work: list[Any]) -> None:
        if waiter is None or type(waiter) is Fiber:
            work.append((waiter, ASK))
        else:
            group_cmd, index = waiter
            if cmd.kind >= GATHER:
                group_cmd.extra.fibers -= 1
            if group_cmd.extra.settled:
                self._close_group(run, group_cmd, work)
            else:
                self._member_ended(run, group_cmd, index, cmd.value, cmd.error, work)

    def _branch_ended(self, run: Any, fiber: Any, value: Any, error: Any, work: list[Any]) -> None:
        if fiber is None:
            if error is not None:
                self.worker.finish_failed(run, error)
            else:
                self._return(run, value)
            return
        fiber.ended = True
        group_cmd = fiber.group
        if group_cmd is None:
            self.worker.handled(run, fiber, value, error)
            return
        group_cmd.extra.fibers -= 1
        if group_cmd.extra.settled:
            self._close_group(run, group_cmd, work)
        else:
            self._member_ended(run, group_cmd, fiber.index, value, error, work)

    def _member_ended(self, run: Any, group_cmd: Any, index: int, value: Any, error: Any, work: list[Any]) -> None:
        group = group_cmd.extra
        if group.settled:
            return
        if error is not None:
            self._settle_group(run, group_cmd, None, error, work)
        elif group_cmd.kind == FIRST:
            self._settle_group(run, group_cmd, (group.names[index], value), None, work)
        elif group_cmd.kind == SHIELD:  # what it shields, or its timer
            late = TimeoutError(f"what was shielded did not end within {group.names} s") if index else None
            self._settle_group(run, group_cmd, value, late, work)
        else:
            group.results[index] = value
            group.remaining -= 1
            if group.remaining == 0:
                self._settle_group(run, group_cmd, group.results, None, work)

    def _settle_group(self, run: Any, group_cmd: Any, value: Any, error: Any, work: list[Any]) -> None:
        """The group is decided; its losers are cancelled, and it is answered when their branches have unwound."""
        group = group_cmd.extra
        group.settled = True
        group.outcome = (value, error)
        for member in group.members:
            self._cancel(run, member, work)
        self._close_group(run, group_cmd, work)

    def _close_group(self, run: Any, group_cmd: Any, work: list[Any]) -> None:
        group = group_cmd.extra
        if group.fibers == 0 and not group_cmd.done:
            group_cmd.value, group_cmd.error = group.outcome
            if group.held is not None:
                group.held.__cause__ = group_cmd.error
                group_cmd.error = group.held
            group_cmd.done = True
            self._wake(run, group_cmd, group_cmd.waiter, work)

    def _cancel(self, run: Any, member: Any, work: list[Any]) -> None:
        if type(member) is Fiber:
            if not member.ended:
                if member.waits is None:  # it never ran: nothing in it has to unwind
                    member.ended = True
                    member.coro.close()
                    member.group.extra.fibers -= 1
                elif member.waits.done:  # answered, and in *work* already: the cancellation takes the place of the answer
                    member.waits.error = self._cancelled()
                elif member.waits.kind >= GATHER:  # its own branches unwind first; then it is woken by the group
                    self._cancel(run, member.waits, work)
                else:
                    self._cancel(run, member.waits, work)
                    member.waits.error = self._cancelled()
                    member.waits.done = True
                    work.append((member, ASK))
        elif member.done:
            return
        elif member.kind == SHIELD:
            self._hold(member.extra)
        elif member.kind >= GATHER:
            unwinding = member.extra.settled  # its members were cancelled already: their `finally` is not cut short
            member.extra.settled = True
            member.extra.outcome = (None, self._cancelled())
            if not unwinding:
                for inner in member.extra.members:
                    self._cancel(run, inner, work)
            self._close_group(run, member, work)
        elif run.open is not None and run.open.pop(member.seq, None) is not None:
            member.done = True
            member.error = self._cancelled()
            if run.history is not None:
                run.dropped[member.seq] = member
                if member.seq in run.history:  # its row follows; what the code says before that was said with this pos
                    run.pos += 1
            else:  # at the moment of what cancelled it, which a replay gives the run as its time
                self.worker.dropped(run, member)
                began = member.called_us if 0 < member.called_us < run.now_us else run.now_us
                self.record(run, member, CANCELLED, None, began, run.now_us)

    def _hold(self, group: Any) -> None:
        """Nothing inside of a shield is cancelled: who awaits it is told when it has ended."""
        inside = group.members[0]
        if group.held is None:
            group.held = self._cancelled()
        if type(inside) is not Command and type(inside) is not Fiber:  # it never began
            inside.close()

    def _cancelled(self) -> BaseException:
        return asyncio.CancelledError() if self.cause is None else self.cause.again()

    def interrupt(self, run: Any, cause: Any, mark: Any) -> bool:
        """The run is cancelled: what its root awaits ends with an error like *cause*, and all that is open below it. False where it awaits nothing now.

        mark    the command that stands for it in the history, with the encoded cause as value; None in a replay
        """
        if run.call is not None:
            run.open = {run.call.seq: run.call}
            run.call = None
        awaited = self._awaited(run)
        if awaited is None:
            return False
        if mark is not None:
            mark.seq = run.seq
            now = self.now_us()
            self.record(run, mark, COMPLETED, mark.value, now, now)
        run.seq += 1
        work: list[Any] = []
        self.cause = cause
        try:
            self._cancel(run, awaited, work)
        finally:
            self.cause = None
        if awaited.kind < GATHER:
            work.append((None, ASK))
        self.drive(run, work)
        return True

    def abandon(self, run: Any, mark: Any) -> None:
        """Nothing of the run's own code runs any more, and what it waits for is forgotten: `follow` comes next. *mark* as in `interrupt`."""
        for cmd in (run.open or {}).values():
            cmd.done = True
            if mark is not None:
                self.worker.dropped(run, cmd)
        if mark is not None:
            mark.seq = run.seq
            now = self.now_us()
            self.record(run, mark, COMPLETED, mark.value, now, now)
        run.seq += 1
        self.unwind(run)

    def follow(self, run: Any, fn: Any, args: tuple[Any, ...]) -> None:
        """The root has ended; *fn* is the root now."""
        if run.workflow.is_async:
            run.coro = fn(*args)
        else:
            run.home = self.thread
            run.coro = self.worker.green(fn, args)
        run.call = None
        run.open = {}
        self.drive(run, [(None, ASK)])

    def _awaited(self, run: Any) -> Any:
        """What the root awaits: whatever is open leads up to it, but for what the handler of an update awaits."""
        for cmd in (run.open or {}).values():
            while cmd is not None and cmd.waiter is not None:
                cmd = cmd.waiter.group if type(cmd.waiter) is Fiber else cmd.waiter[0]
            if cmd is not None:
                return cmd
        return None

    # ── leaving memory ───────────────────────────────────────────────────────────────────────────────────────────

    def evict(self, run: Any) -> None:
        """Forget a run without executing anything of it."""
        self.live.pop(run.id, None)
        run.gone = True
        self.unwind(run)

    def unwind(self, run: Any) -> None:
        """End the coroutines of a run: their `finally` blocks run, as Python has it, but every engine call in them is inert."""
        coros = [fiber.coro for fiber in reversed(run.fibers or ()) if not fiber.ended]
        if run.coro is not None:
            coros.append(run.coro)
        if run.home != 0 and run.home != self.thread:
            self.worker.abandoned(run, coros)
        else:
            self.close(run, coros)
        run.coro = run.call = run.open = run.fresh = run.later = run.fibers = None

    def close(self, run: Any, coros: list[Any]) -> None:
        """Unwind *coros* of a run; every engine call in them is inert."""
        global _mode, _run
        if not coros:
            return
        _mode, _run = INERT, run
        self.slot.code(run.id, run.workflow.wire_name)
        try:
            for coro in coros:
                try:
                    if run.workflow.is_async:
                        coro.close()
                    else:
                        self.worker.close_green(coro)
                except BaseException:  # noqa: BLE001 - user code may raise whatever it likes while it unwinds
                    pass
        finally:
            _mode, _run = OUTSIDE, None
            self.slot.leave()

    # ── the batch ────────────────────────────────────────────────────────────────────────────────────────────────

    def take_rows(self) -> tuple[list[bytes] | None, list[bytes] | None, list[Any], list[Any], list[tuple[Any, bytes]]]:
        """Step rows and outcome rows as array parameters, the runs they are of, those of them that ended, and what `book` of tallies is given then."""
        steps = outcomes = None
        if self.s_run.count:
            steps = [
                self.s_run.take(), self.s_seq.take(), self.s_pos.take(), self.s_name.take(), self.s_result.take(), self.s_started.take(), self.s_ended.take(),
            ]  # fmt: skip
            if self.mixed:
                steps += [self.s_kind.take(), self.s_status.take()]
                self.mixed = False
        if self.f_run.count:
            outcomes = [self.f_run.take(), self.f_status.take(), self.f_steps.take(), self.f_result.take(), self.f_ended.take()]
        runs, finished, tried = self.runs, self.finished, [(tally, tally.take()) for tally in self.tried]
        self.runs, self.finished, self.tried = [], [], []
        self.bytes_now = 0
        self.number += 1
        return steps, outcomes, runs, finished, tried

    def acknowledge(self, runs: list[Any], finished: list[Any], tried: list[tuple[Any, bytes]]) -> None:
        """A batch is durable: count what was tried, forget what ended, let the others go on."""
        live, ready = self.live, self.ready
        for tally, tries in tried:
            tally.book(tries)
        for run in finished:
            live.pop(run.id, None)
            if run.workflow is not None and run.workflow.ends is not None:
                run.workflow.ends.count(run.status)
        for run in runs:
            if not run.gone:
                run.batch = 0
                ready.append(run)


def _dropped_at() -> tuple[str, bool]:
    """Where the app's code is, as ", at file:line", and whether it is just dropping the value of a statement."""
    frame: Any = sys._getframe()
    while frame is not None and frame.f_code.co_filename.endswith(_OWN):
        frame = frame.f_back
    if frame is None or frame.f_code.co_filename.startswith(_PACKAGE):
        return "", False
    return f", at {frame.f_code.co_filename}:{frame.f_lineno}", frame.f_code.co_code[frame.f_lasti] == _POP_TOP


def _fits(kind: Any, value: Any) -> bool:
    """Whether a str or float is one that JSON holds as it is."""
    return "\x00" not in value if kind is str else isfinite(value)
