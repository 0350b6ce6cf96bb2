"""One worker process: claim, execute, commit, round and round, on one session that it never blocks on.

Owns the session, the batches in flight and how much is claimed. Two batches alternate: while PostgreSQL commits one,
the next is executed. What happens when the session is lost or the fence refuses stands in adoption.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import struct
import uuid
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from supervisor._fastpath.loop import Loop, Run
from supervisor._fastpath.wire import SLOT_BYTES, Slot
from supervisor.core import codec, context, registry
from supervisor.core.errors import DatabaseUnavailable, Fenced
from supervisor.core.ids import RunIds
from supervisor.core.shown import plain
from supervisor.db.pipeline import Refused
from supervisor.db.worker_calls import Identity, Origin, WorkerCalls
from supervisor.engine import leaving, replay
from supervisor.engine.adoption import ASKED, Adoption, Own
from supervisor.engine.batch import HOT, INFINITY, Batch
from supervisor.engine.beats import Beats
from supervisor.engine.cancelling import Cancels, Marks, Reasons
from supervisor.engine.claims import Claims, every_second
from supervisor.engine.commands import COMMIT_REJECTED, Commands
from supervisor.engine.counting import Totals, count_durable, count_into, tries_of
from supervisor.engine.endings import Notes
from supervisor.engine.executors import Executors
from supervisor.engine.failures import Failures
from supervisor.engine.processes import Processes
from supervisor.engine.reading import Look, Reading, Reads
from supervisor.engine.nudges import Nudges
from supervisor.engine.requests import Edited, Wishes
from supervisor.engine.requests import Requests as OperatorRequests
from supervisor.engine.rest import Board, Rest, Seat
from supervisor.engine.signals import Letters, Signals, is_due_once
from supervisor.engine.taking import Taking
from supervisor.engine.tokens import Look as TokenLook
from supervisor.engine.tokens import Tokens
from supervisor.engine.transactional import Transactions
from supervisor.engine.updates import Left, Requests, Updates
from supervisor.engine.visibility import OnThisThread, loop_hidden
from supervisor.engine.watchdog import Detached, Watchdog

log = logging.getLogger("pgsupervisor.worker")

GROUP_MAX = 2500  # runs executed between two sends
EXECUTE_MAX_S = 0.05  # and no longer than that, so that results do not wait for the group to be full
QUICK_CYCLE_S, SLOW_CYCLE_S = 0.02, 0.1
WINDOW_STEPS = 8
SLOW_CALL_US = 2000
LOOK_AT_SLOW_S = 0.5
TRY_AGAIN = ("40001", "40P01", "55P03")  # somebody else was in the way
SESSION_TROUBLE = ("08", "25", "26", "0A", "53", "57", "58", "XX")  # classes of SQLSTATE for which another session is tried
MAYBE_A_ROW, TRIES_MAX = ("26", "0A", "58", "XX", "SV"), 3  # of those: which may be a row's fault after all, when it happens again and again
_i4 = struct.Struct(">i")
_i8 = struct.Struct(">q").unpack


@dataclass
class WorkerOptions:
    """How a worker is run."""

    dsn: str
    schema: str = "supervisor"
    queues: tuple[str, ...] = ()  # empty: the queues of the registered workflows
    threads: int = 8
    in_flight: int = 5000
    drain_timeout_s: float = 25.0
    supervisor_id: uuid.UUID = field(default_factory=uuid.uuid4)
    number: int = 0
    nudge_fd: int = -1  # an eventfd that the parent writes when there may be work
    hints_fd: int = -1  # an eventfd that the parent writes when a query may be open
    pass_fd: int = -1  # an eventfd that the parent reads: how many runs it heard of and has no room for
    seat: Seat = field(default_factory=lambda: Board(1).seat(0))
    endings: Notes | None = None  # where the parent reads which runs ended
    loop_slot: Any = None
    thread_slots: list[Any] = field(default_factory=list)
    task_slots: list[Any] = field(default_factory=list)
    page: Any = None  # this worker's page of the black box
    look_behind: Callable[[float], bool] | None = None
    born: Callable[[int, str, bool], None] | None = None  # told (worker id, application name, ready) once registered and once ready
    left: Callable[[int, int, int], None] | None = None  # told at the end how many runs were given back while it drained, how many are left, how many steps cut off
    nursery: Any = None  # makes processes for steps; None where no step needs one
    begin_traces: Callable[[int], Any] | None = None  # (number of the worker) → what is told of claims and of what is durable; None: nothing is traced
    traces: Any = None
    leave: Callable[[BaseException | None, bool], None] | None = None  # ends the process when its main thread is stuck for good: (why, unfit)


class Worker:
    """Runs until told to stop or declared dead. `identity` is its fencing token, `id` the part of it that logs name.

    repairs  batches that are to be sent (again) before any new one
    held     nothing may be sent just now: there is no session, or it is not known which runs are still this worker's
    trouble  why the session has to be replaced, once the answers at hand are processed
    """

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self.origin = Origin(uuid.uuid4(), socket.gethostname(), os.getpid(), options.supervisor_id)
        self.id = self.first_id = 0
        self.traces = options.traces
        self.statements = {name: name for name in (*HOT, *ASKED)} | (self.traces.statements if self.traces is not None else {})
        self.capacity = max(1, options.threads)
        self.reading = Reading(self)
        self.nudges = Nudges(self)
        self.repairs: deque[Batch] = deque()
        self.held = False
        self.trouble: DatabaseUnavailable | None = None
        self._parents: set[bytes] = set()  # children of theirs have ended, durably: to be woken
        self._parked: set[bytes] = set()  # parked, durably: children may have ended meanwhile
        self._claims_in_flight = self._asked_in_flight = 0
        self._steps_before = self._calls_before = 0
        self.totals = Totals()
        self._given_back = 0  # runs, while draining
        self._in_threads = self._draining = self._pump_due = False
        self._walking: list[Run] = []
        self.unfit = False  # half of its threads are lost: another process is to take its place
        self._writing = False
        self._fd = -1
        self._end: asyncio.Future[None] | None = None

    # ── birth and death ──────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Work until stopped. Raises DatabaseUnavailable where there was no session to begin with, Fenced when declared dead."""
        self._time = asyncio.get_running_loop()
        asyncio.set_event_loop(None)  # get_event_loop() in a workflow must not find it either
        self._end = self._time.create_future()
        self._context = copy_context()  # of no step, see Commands
        self.rest = Rest(self.options.seat, self._schedule, partial(self._time.call_later, context=self._context), self._time.time)
        self._time.add_signal_handler(signal.SIGTERM, self.drain)  # before the parent hears that we are ready
        self._be_born()
        self._watch()
        if self.options.nudge_fd >= 0:
            self._time.add_reader(self.options.nudge_fd, self.nudges.read)
        self._look_at_slow()
        self._schedule()
        try:
            await self._end
        finally:
            self.adoption.stop()
            self.unwatch()
            self.watchdog.stop()
            self.executors.stop()
            self.transactions.stop()
            self.pipeline.close()

    def _be_born(self) -> None:
        """Connect, register, prepare; everything here may block."""
        calls = WorkerCalls(self.options.dsn, self.options.schema, self.origin.boot)
        self.application_name = calls.application_name
        self.identity = calls.register(self.origin)
        self.id = self.first_id = self.identity.id
        self._say(ready=False)
        self.catalogue = self.register(calls, self.id)
        offset, cell = calls.clock_offset_us(), calls.cell()
        context.token_key = calls.token_key()
        self.pipeline = calls.pipeline(self.statements)
        self._make_parts(*self.catalogue, offset, cell)
        self.become(self.identity, self.application_name)
        self._say(ready=True)
        log.info("worker %d serves %s", self.id, ", ".join(sorted(self._queue_names)))
        known = {workflow.queue for workflow in registry.workflows().values()}
        if self.options.number == 0 and (foreign := sorted(self._queue_names - known)) and known:
            log.warning(
                "--queues %s: no workflow of this app goes there unless it is started with that queue; its workflows go to %s",
                plain(",".join(foreign)), plain(", ".join(sorted(known))),
            )  # fmt: skip

    def _say(self, ready: bool) -> None:
        if self.options.born is not None:
            self.options.born(self.id, self.application_name, ready)

    def register(self, calls: WorkerCalls, worker_id: int) -> tuple[dict[str, int], dict[str, int]]:
        """Tell the catalogue what this worker can run, and in which versions; returns the numbers of workflows and of queues."""
        workflow_ids, queue_ids = {}, {}
        registry.settle()
        workflows = registry.workflows()
        for name, workflow in workflows.items():
            described = json.dumps(workflow.input.describe()).encode()
            found = calls.upsert_workflow(name, workflow.queue, workflow.info.timeout_s, described)
            workflow_ids[name], queue_ids[workflow.queue] = found
        for schedule in registry.schedules():
            calls.declare_schedule(*schedule.declaration())
        self._queue_names = set(self.options.queues or queue_ids or ("default",))
        for queue in self._queue_names - set(queue_ids):
            queue_ids[queue] = calls.queue_id(queue)
        versions = [(workflow_ids[name], workflow.version, workflow.info.where) for name, workflow in workflows.items()]
        calls.serve(versions, (queue_ids[queue] for queue in self._queue_names), worker_id)
        return workflow_ids, queue_ids

    def become(self, identity: Identity, application_name: str) -> None:
        """From here on everything is written under *identity*."""
        self.identity, self.application_name = identity, application_name
        self.id = identity.id
        self._fence = identity.fence()
        self.worker_param = self._fence[0]
        self.transactions.go_on(identity)

    def fence(self) -> tuple[list[bytes], bytes]:
        """Parameters of `fence`, and of what is written under it."""
        return self._fence, self.worker_param

    def new_server(self, offset_us: int) -> None:
        """After a failover: the clock is another one, and so is what the marks stand for."""
        self.loop.clock_offset_us = self._ids.offset_us = offset_us
        self.claims.forget()

    def _watch(self) -> None:
        self._fd = self.pipeline.fileno()
        self._time.add_reader(self._fd, self._readable)

    def unwatch(self) -> None:
        """Look at the session's socket no more; libpq may have closed it already."""
        if self._fd >= 0:
            self._time.remove_reader(self._fd)
            self._time.remove_writer(self._fd)
        self._fd = -1  # the number may soon be that of a socket of a step
        self._writing = False

    def forget_asked(self) -> None:
        """What was asked of a session that is lost will not be answered."""
        self.reading.forget_asked()
        self.signals.forget_asked()
        self.updates.forget_asked()
        self.cancels.forget_asked()
        self.requests.forget_asked()
        self.tokens.forget_asked()
        self._claims_in_flight = self._asked_in_flight = 0
        self.rest.lost()
        self.trouble = None

    def go_on(self) -> None:
        """Adopted: there is a session again."""
        self._watch()
        self._say(ready=True)
        self.nudges.hear()
        self.signals.look()
        self.updates.look()
        self._schedule()

    def _make_parts(self, workflow_ids: dict[str, int], queue_ids: dict[str, int], offset_us: int, cell: int) -> None:
        options = self.options
        ids = self._ids = RunIds(offset_us=offset_us, cell=cell)
        self.adoption = Adoption(self)
        self.transactions = Transactions(options.dsn, options.schema, self.identity, self._tx_done, self.adoption.ask, self.fail)
        commands: list[Commands] = []
        self.executors = Executors(
            options.threads, options.thread_slots, options.task_slots, lambda: self.loop.now_us(), lambda *ended: commands[0].ended_call(*ended),
            Processes(options.nursery, options.threads, self.traces) if options.nursery is not None else None, self._replace,
        )  # fmt: skip
        self.commands = Commands(self.executors, self.transactions, workflow_ids, lambda: ids.new().bytes, self._schedule)
        commands.append(self.commands)
        self.loop = Loop(self.commands, options.loop_slot or Slot(bytearray(SLOT_BYTES), 0), offset_us)
        self.commands.loop = self.loop
        if self.traces is not None:
            self.traces.queues, self.traces.known = {number: name for name, number in queue_ids.items()}, self.adoption.known
        if options.page is not None:
            count_into(options.page.tallies, self.commands)
        self.signals = self.commands.signals = Signals(self)
        self.updates = self.commands.updates = Updates(self)
        self.requests = OperatorRequests(self)
        self.tokens = self.commands.tokens = Tokens(self)
        self.beats = self.commands.beats = self.executors.beats = Beats(self.commands, self._time.call_soon_threadsafe)
        context.note_beat = self.beats.note
        self.cancels = Cancels(self)
        self._takers: dict[type, Callable[[Any, Any], None]] = {
            Reads: self.reading.answered, Look: self.reading.looked, Letters: self.signals.answered, Requests: self.updates.answered, Left: self.updates.answered,
            Marks: self.cancels.marked, Reasons: self.cancels.asked, Wishes: self.requests.answered, Edited: self.requests.answered,
            TokenLook: self.tokens.answered, Own: self.adoption.told,
        }  # fmt: skip
        if self.traces is not None:
            self._takers |= self.traces.outside(self)
        self.watchdog = self.commands.watchdog = Watchdog(self.loop, self.commands, self._schedule, self._walk_again, self._leave)
        self.transactions.clock = self.loop.now_us
        self.transactions.slot = options.page.tx_slot if options.page is not None else None
        context.loop = OnThisThread(self.loop, self.watchdog.on_thread)
        self.failures = Failures(self.commands.call_later)
        self.claims = Claims([queue_ids[name] for name in sorted(self._queue_names)], options.look_behind or every_second())
        self.taking = Taking(self, workflow_ids, [queue_ids[name] for name in sorted(self._queue_names)])

    def watch_beside_calls(self) -> float | None:
        """Timers and retries that were far off when they began, of runs that stay in memory for what they execute: see to those that are due soon.

        To be asked twice in a second. Returns in how many seconds the first of the others is due.
        """
        left = []
        for run in sorted({call.run for call in self.executors.calls}, key=lambda run: run.id):
            for cmd in (run.open or {}).values():
                if is_due_once(cmd):
                    self.commands.watch(run, cmd)
                    if not cmd.extra.armed:
                        left.append(cmd.extra.due_at - self._time.time())
        return min(left, default=None)

    def _look_at_slow(self) -> None:
        self._time.call_later(LOOK_AT_SLOW_S, self._look_at_slow, context=self._context)
        if self.options.page is not None:
            self.options.page.turned()
        if not self.executors.calls:
            return
        self.commands.publish_slow()
        self.watch_beside_calls()
        if self.commands.batch.rare:
            self._schedule()
        if not self.adoption.away:
            self.reading.look_at(self.commands.children_to_look_at())

    def drain(self) -> None:
        """Stop claiming, give back what has not begun, end what has, then return from `run`."""
        if not self._draining:
            self._draining = True
            self.rest.stop()
            self._time.call_later(self.options.drain_timeout_s, self._stop)
            self.adoption.drain(self.options.drain_timeout_s)
            self._schedule()

    def _stop(self) -> None:
        if self._end is not None and not self._end.done():
            self.failures.flush()
            leaving.say(self, self._given_back, self.options.drain_timeout_s)
            self._end.set_result(None)

    def fail(self, error: BaseException) -> None:
        """End the process: it can't go on, or must not."""
        if self._end is not None and not self._end.done():
            self._end.set_exception(error)

    # ── the pump ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _schedule(self) -> None:
        if not self._pump_due:
            self._pump_due = True
            self._time.call_soon(self._pump, context=self._context.copy())  # a copy: a thread that is stuck in it keeps it

    def _pump(self) -> None:
        self._pump_due = False
        if self.held or self._end is None or self._end.done():
            if self._draining and not (self._parents or self._parked) and self.adoption.idle():
                self._stop()
            return
        try:
            with loop_hidden():
                self._work()
        except Detached as gone:  # this thread was stuck, and another one has done the rest of this
            if not gone.home:
                raise
        except Fenced as error:
            self.fail(error)
        except BaseException as error:
            log.exception("worker %d: the loop failed", self.id)
            self.fail(error)

    def _work(self) -> None:
        loop = self.loop
        while self.pipeline.waiting < 2 and not self.held:
            while loop.completions:
                run, *ended = loop.completions.popleft()
                self.guarded(run, loop.complete, run, *ended)
            if self.cancels.pending:
                self.cancels.deliver()
            if loop.ready:
                self._execute()
            batch = self._compose()
            if batch is None:
                break
            self._send(batch)
        if self.reading.waiting and not self.held:
            self.reading.next()
        if not self.held:
            self.signals.ask()
            self.updates.ask()
            self.cancels.ask()
            self.requests.ask()
            self.tokens.ask()
        if loop.ready and self.pipeline.waiting < 2:
            self._schedule()
        elif self._draining and not loop.live and not self.pipeline.waiting and not self.executors.active:
            self._stop()

    def guarded(self, run: Run, act: Callable[..., Any], *args: Any) -> None:
        """Do something for one run; if the engine fails at it, that run is put aside."""
        try:
            act(*args)
        except (DatabaseUnavailable, Fenced):
            raise
        except Exception as error:  # noqa: BLE001
            self.commands.broken(run, error)

    def _execute(self) -> None:
        loop = self.loop
        ready, loop.ready = loop.ready, []
        if self._draining:
            ready = self._give_back(ready)
        if self.requests.pausing:
            ready = self.requests.hold(ready)
        group = ready[:GROUP_MAX]
        self._walking = ready
        self.watchdog.before_group()
        self.commands.group.begin()
        taken = loop.execute(group, int(EXECUTE_MAX_S * 1e6))
        if taken < len(ready):
            loop.ready = ready[taken:] + loop.ready

    def _walk_again(self) -> None:
        self.loop.ready = self._walking + self.loop.ready
        self._walking = []

    def _replace(self, why: str) -> None:
        """This process has lost too much to go on: drain, and say by the exit code that another one is to take its place."""
        if not self.unfit:
            self.unfit = True
            log.warning("worker %d ends and is replaced: %s", self.id, why)
            self.drain()

    def _leave(self) -> None:
        if self.options.leave is not None:
            ended = self._end is not None and self._end.done()
            self.options.leave(self._end.exception() if ended and self._end is not None else None, self.unfit)

    def _give_back(self, ready: list[Run]) -> list[Run]:
        """Draining: runs at rest go back to the queue; those with something begun stay until that has ended."""
        stay = []
        for run in ready:
            if run.gone or run.batch != 0 or run.in_tx:
                continue
            if run.executing or run.later:
                stay.append(run)
            else:
                self.commands.give_back(run)
                self._given_back += 1
        return stay

    def _compose(self) -> Batch | None:
        if self.repairs:
            return self.repairs.popleft()
        batch = self.take_batch()
        for statement, ids in (("wake_parents", self._parents), ("look_at_parked", self._parked)):
            for run_id in ids:
                batch.add(statement, run_id, (run_id,))
            ids.clear()
        batch.asked = self._claim_size(at_rest=batch.empty() and not self.loop.ready and not self.pipeline.waiting)
        if batch.asked:
            batch.claim = self.claims.params(batch.asked, self._time.time())
            batch.missing = self.taking.missing(batch.asked, self._time.time())
            self._claims_in_flight += 1
            self._asked_in_flight += batch.asked
            self.rest.asked()
        return None if batch.empty() else batch

    def take_batch(self) -> Batch:
        """What was executed since the last one."""
        batch = self.commands.batch
        batch.steps, batch.outcomes, batch.runs, batch.finished, batch.tried = self.loop.take_rows()
        self.commands.batch = Batch()
        if self.traces is not None:
            self.traces.composed(batch)
        return batch

    def _send(self, batch: Batch) -> None:
        batch.sent_at = self._time.time()
        self.ask(batch, batch.statements(self._fence, self.worker_param))

    def ask(self, token: Any, statements: list[Any]) -> None:
        """Send statements under one Sync; what comes back is given to `_answered` with *token*."""
        try:
            self.pipeline.send(token, statements)
            self._flush()
        except DatabaseUnavailable as error:
            self.adoption.lose(error)

    def _flush(self) -> None:
        if self.pipeline.flush():
            if self._writing:
                self._writing = False
                self._time.remove_writer(self._fd)
        elif not self._writing:
            self._writing = True
            self._time.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        try:
            self._flush()
        except DatabaseUnavailable as error:
            self.adoption.lose(error)

    def _readable(self) -> None:
        pipeline = self.pipeline
        try:
            with loop_hidden():
                for batch, answer in pipeline.read():
                    self._answered(batch, answer)
        except Fenced as error:
            self.fail(error)
            return
        except BaseException as error:
            log.exception("worker %d: an answer could not be processed", self.id)
            self.fail(error)
            return
        if pipeline.heard:
            self.nudges.heard(pipeline)
        if pipeline.broken is not None or self.trouble is not None:
            self.adoption.lose(self.trouble or DatabaseUnavailable(pipeline.broken))
        self._pump()

    def _answered(self, batch: Any, answer: Any) -> None:
        if batch is None:  # it listens, or does without
            return
        taken_by = self._takers.get(type(batch))
        if taken_by is not None:
            taken_by(batch, answer)
        elif isinstance(answer, Refused):
            self._refused(batch, answer)
        else:
            self._acknowledged(batch, answer)

    # ── how much to claim ────────────────────────────────────────────────────────────────────────────────────────

    def _claim_size(self, at_rest: bool) -> int:
        """Runs to ask for in the batch that is being composed; 0 for none. *at_rest*: there is nothing else to do."""
        if self.rest.empty and (self._time.time() < self.rest.look_at or self._claims_in_flight):
            return 0
        return self.room(at_rest)

    def room(self, at_rest: bool = False) -> int:
        """Runs that it would begin now, if there were any."""
        if self._draining or self.executors.backlog or self.watchdog.waits:
            return 0
        free = self.capacity - len(self.loop.live) - len(self.reading.waiting) - self._asked_in_flight
        if self._sits_in_threads():
            return max(0, min(free, self.executors.idle - len(self.loop.ready) - self._asked_in_flight))
        if free < max(1, self.capacity // 8):
            if not at_rest or self.capacity >= self.options.in_flight:
                return 0
            grown = min(2 * self.capacity, self.options.in_flight)  # all that it has waits: there is room for more
            free, self.capacity = free + grown - self.capacity, grown
        return min(free, max(1, self.capacity // 2), GROUP_MAX)

    def _sits_in_threads(self) -> bool:
        """Whether most of what this worker does is slow and in threads: then it takes only what a thread is free for."""
        executors = self.executors
        if executors.busy * 2 >= len(self.loop.live) > 0:
            return True
        steps, calls = self.loop.steps_total - self._steps_before, executors.ended - self._calls_before
        if steps >= WINDOW_STEPS:
            self._steps_before, self._calls_before = self.loop.steps_total, executors.ended
            self._in_threads = calls * 2 > steps
        elif self._steps_before == 0:  # no window is full yet: what there is must do, or the first that end free the worker to take everything
            self._in_threads = calls * 2 > steps
        return self._in_threads and executors.mean_us > SLOW_CALL_US

    def _claimed(self, batch: Batch, count: int) -> None:
        """Adapt: claim more while claims come back full and the cycle is quick, look again later when there was nothing."""
        now = self._time.time()
        self._claims_in_flight -= 1
        self._asked_in_flight -= batch.asked
        took_s = now - batch.sent_at
        if count >= batch.asked and not self.executors.backlog and took_s < SLOW_CYCLE_S:
            self.capacity = min(self.capacity * (4 if took_s < QUICK_CYCLE_S else 2), self.options.in_flight)
        elif self.executors.backlog or took_s > 2 * SLOW_CYCLE_S:
            self.capacity = max(self.options.threads, self.capacity * 3 // 4)
        self.rest.answered(count, batch.asked)

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _acknowledged(self, batch: Batch, results: dict[str, Any]) -> None:
        self.adoption.losses = 0
        self.settled(batch)
        if self.options.page is not None:
            claimed = results["claim"].ntuples if "claim" in results else 0
            self.options.page.batch(
                self._time.time() - batch.sent_at, claimed, self.totals.rows, self.totals.ended, self.totals.failures, len(self.loop.live), self._draining,
            )  # fmt: skip
        if "insert_timers" in results:
            rows = replay._rows(results["insert_timers"])
            self.commands.timers_inserted([(row[0], _i4.unpack(row[1])[0], _i8(row[2])[0], _i8(row[3])[0]) for row in rows])
        if "fire_timers" in results:
            fired = {(row[0], _i4.unpack(row[1])[0]): _i8(row[2])[0] for row in replay._rows(results["fire_timers"])}
            self.commands.timers_fired([(row[0], row[1]) for _, row in batch.rare["fire_timers"]], fired)
        if "expire_tokens" in results:
            self.tokens.expired([row for _, row in batch.rare["expire_tokens"]])
        if "look_at_parked" in results:
            self._parents.update(row[0] for row in replay._rows(results["look_at_parked"]))
        if "claim" in results:
            self._claimed(batch, results["claim"].ntuples)
            if self.traces is not None:
                self.traces.claimed(results["claim"], self.loop.clock_offset_us)
            self.taking.took(results["claim"], self.claims.marks)
            self.claims.took(results["claim"].ntuples, batch.asked)
        if "claim_missing" in results:
            if self.traces is not None:
                self.traces.claimed(results["claim_missing"], self.loop.clock_offset_us)
            self.taking.took_missing(results["claim_missing"], batch.asked)

    def settled(self, batch: Batch) -> None:
        """*batch* is durable: its runs go on, have ended, or leave memory."""
        if self.traces is not None:
            self.traces.settled(batch)
        for run in batch.leaving:
            self.updates.left(run)
            self.loop.evict(run)
        self.loop.acknowledge(batch.runs, batch.finished, tries_of(batch, self.commands.tally))
        self.totals.add(batch)
        if batch.outcomes is not None:
            self.failures.settled(batch)
            endings = self.options.endings
            if endings is not None and endings.wanted:
                endings.note(batch.outcomes[0])
        if not batch.rare:
            return
        if "insert_children_done" in batch.rare:
            self._parents.update(row[0] for _, row in batch.rare["insert_children_done"])
        self._parked.update(batch.parked_on_children())
        if batch.rare.keys() & {"close_children", "lose_children"}:
            self.cancels.look()
        if batch.rare.keys() & {"insert_children_done", "insert_runs", "continue_runs", "close_children", "lose_children"}:
            self.rest.nudged()  # children, or the parents that go on: nobody announces them

    # ── batches that the server refused ──────────────────────────────────────────────────────────────────────────

    def _refused(self, batch: Batch, refused: Refused) -> None:
        """The batch did nothing. Send it again, or find the run that is to blame by halving."""
        sqlstate = refused.sqlstate
        blameless = batch.tries < TRIES_MAX or not sqlstate.startswith(MAYBE_A_ROW)
        level = logging.DEBUG if refused.fenced and blameless else logging.WARNING  # a run was taken from it, on purpose: which one is told when it is known
        log.log(level, "worker %d: batch of %d runs refused at %s: %s (%s)", self.id, len(batch.runs), refused.statement, refused.message, sqlstate)
        if batch.claim is not None:
            self._claims_in_flight -= 1
            self._asked_in_flight -= batch.asked
            batch.claim_nothing()
            self.rest.lost()
        held_key = sqlstate == "55P03" and "continue_runs" in batch.rare and len(batch.runs) > 1  # a lock that must not hold the others up
        if sqlstate in TRY_AGAIN and not held_key:
            self.repairs.append(batch)
        elif refused.fenced and blameless:
            self.adoption.refused(batch)
        elif not sqlstate or (sqlstate.startswith(SESSION_TROUBLE) and blameless):
            batch.tries += 1
            self.repairs.append(batch)
            self.trouble = DatabaseUnavailable(f"the database refuses to work: {refused.message} ({sqlstate})")
        elif batch.runs and batch.nobodys():
            self.repairs.extend((Batch(rare=batch.nobodys()), batch.only({run.id for run in batch.runs})))
        elif len(batch.runs) > 1:
            self.repairs.extend(half for half in batch.halves() if not half.empty())
        elif batch.runs:
            self._reject(batch.runs[0], refused)

    def _reject(self, run: Run, refused: Refused) -> None:
        """The one run that the database refuses: park it. What its coroutine did since was speculation and is dropped."""
        detail = json.dumps({"statement": refused.statement, "sqlstate": refused.sqlstate, "error": codec.clean(refused.message)})
        log.error("run %s is parked: the database refuses what it wants to record: %s", uuid.UUID(bytes=run.id), refused.message)
        self.loop.evict(run)
        parking = Batch(runs=[run])
        parking.add("release", run.id, (run.id, INFINITY, COMMIT_REJECTED, detail, None, None, None, 1, self.commands.pin(run), None))
        self.repairs.append(parking)

    # ── transactional steps ──────────────────────────────────────────────────────────────────────────────────────

    def _tx_done(self, ended: list[tuple[Run, Any, Any, BaseException | None, int, int]]) -> None:
        """Transactional steps ended: their checkpoints are durable, or they failed and nothing of them is."""
        with loop_hidden():
            for one in ended:
                self._settle_tx(*one)
        self._schedule()

    def _settle_tx(self, run: Run, cmd: Any, value: Any, error: BaseException | None, started: int, ended: int) -> None:
        run.in_tx = False
        run.executing -= 1
        if error is None:
            self.totals.rows += 1
            count_durable(self.commands.tally(run.workflow.name, cmd.step.name), ended - started)
            if self.traces is not None:
                self.traces.committed(run, cmd.seq, ended)
        if run.gone:
            return
        if cmd.done:
            self.loop.ready.append(run)
        elif error is not None:
            self.guarded(run, self.loop.complete, run, cmd, None, error, started, ended)
        else:
            run.pos += 1
            run.now_us = ended
            self.loop.steps_total += 1
            self.guarded(run, self.loop.deliver, run, cmd, value, None)
        if not run.gone and run.batch == 0:
            self.loop.ready.append(run)
