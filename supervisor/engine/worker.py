"""One worker process: claim, execute, commit, round and round, on one session that it never blocks on.

Owns the session, the batches in flight and how much is claimed. Two batches alternate: while PostgreSQL commits one,
the next is executed. Crash-only: when the session is lost or fenced off the process ends, and its claims are reaped.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import struct
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

from supervisor._fastpath.loop import INT4, Loop, Run
from supervisor._fastpath.loop import UUID as UUID_OID
from supervisor._fastpath.wire import Slot
from supervisor.core import codec, context, registry
from supervisor.core.errors import DatabaseUnavailable, Fenced, ReplayMismatch
from supervisor.core.ids import RunIds
from supervisor.db.connect import connect
from supervisor.db.pipeline import Pipeline, Refused
from supervisor.db.statements import Sql
from supervisor.engine import replay
from supervisor.engine.batch import INFINITY, Batch, encode_rows
from supervisor.engine.claims import LOOK_BEHIND_S, Claims
from supervisor.engine.commands import CODE_MISSING, COMMIT_REJECTED, CRASH_LOOP, Commands
from supervisor.engine.executors import Executors
from supervisor.engine.transactional import Transactions

log = logging.getLogger("pgsupervisor.worker")

HOT = (
    "fence", "insert_steps", "insert_mixed_steps", "insert_attempts", "finish", "insert_children_done", "lock_parents", "wake_parents", "release", "lock_own",
    "park_on_children", "insert_runs", "insert_timers", "fire_timers", "drop_timers", "publish", "wake_code_missing", "claim", "plan_custom", "plan_generic",
    "read_inputs", "read_steps", "read_attempts", "read_timers", "read_children", "read_outcomes",
)  # fmt: skip
READS = ("read_inputs", "read_steps", "read_attempts", "read_timers", "read_children")
READ_SLICE = 64  # resumed runs read at once: at 1,000 steps of 60 bytes each that is about 4 MiB
GROUP_MAX = 2500  # runs executed between two sends
EXECUTE_MAX_S = 0.05  # and no longer than that, so that results do not wait for the group to be full
QUICK_CYCLE_S, SLOW_CYCLE_S = 0.02, 0.1
POLL_BUSY_S, POLL_IDLE_S, BUSY_FOR_S = 0.02, 0.5, 10.0
CLAIMS_MAX = 10
DEADLINE_LOOK_S = 60.0
WAKE_MISSING_S = 10.0
WINDOW_STEPS = 8
SLOW_CALL_US = 2000
LOOK_AT_SLOW_S = 0.5
LOOK_AT_CHILDREN_MAX = 1000
SLOT_BYTES = 40
TRY_AGAIN = ("40001", "40P01")
SESSION_TROUBLE = ("08", "25", "26", "0A", "53", "57", "58", "XX")  # classes of SQLSTATE that no single row is to blame for
_i2 = struct.Struct(">h").unpack
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
    loop_slot: Any = None
    thread_slots: list[Any] = field(default_factory=list)
    task_slots: list[Any] = field(default_factory=list)
    look_behind: Callable[[float], bool] | None = None
    born: Callable[[int, str, bool], None] | None = None  # told (worker id, application name, ready) once registered and once ready


class Worker:
    """Runs until told to stop or until its session is gone. `id` is its fencing token."""

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self.sql = Sql(options.schema)
        self.boot = uuid.uuid4()
        self.id = 0
        self.capacity = max(1, options.threads)
        self._reads: deque[list[tuple[Run, bytes | None]]] = deque()
        self._reading = self._looking = False
        self._repairs: deque[Batch] = deque()
        self._parents: set[bytes] = set()
        self._poll_at = self._wake_missing_at = 0.0
        self._found_at = 0.0
        self._claims_in_flight = self._asked_in_flight = 0
        self._last_claim_empty = False
        self._steps_before = self._calls_before = 0
        self._in_threads = False
        self._draining = False
        self._pump_due = False
        self._writing = False
        self._end: asyncio.Future[None] | None = None

    # ── birth and death ──────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Work until stopped. Raises DatabaseUnavailable or Fenced when the session is of no use any more."""
        self._time = asyncio.get_running_loop()
        asyncio.set_event_loop(None)  # get_event_loop() in a workflow must not find it either
        self._end = self._time.create_future()
        self._context = copy_context()  # of no step, see Commands
        self._time.add_signal_handler(signal.SIGTERM, self.drain)  # before the parent hears that we are ready
        self._be_born()
        self._time.add_reader(self.pipeline.fileno(), self._readable)
        self._look_at_slow()
        self._schedule()
        try:
            await self._end
        finally:
            self._time.remove_reader(self.pipeline.fileno())
            self.executors.stop()
            self.transactions.stop()
            self.pipeline.close()

    def _be_born(self) -> None:
        """Connect, register, prepare; everything here may block."""
        name = f"worker {self.boot.hex[:8]}"
        conn = connect(self.options.dsn, purpose=name, schema=self.options.schema, profile="loop")
        self.application_name = conn.info.parameter_status("application_name") or f"pgsupervisor: {name}"
        sql = self.sql
        row = conn.execute(sql.get("register_worker"), (self.boot, socket.gethostname(), os.getpid(), self.options.supervisor_id)).fetchone()
        assert row is not None
        self.id = row[0]
        if not conn.execute(sql.get("live_lock"), (self.id,)).fetchone()[0]:  # type: ignore[index]
            raise Fenced(f"the sign of life of worker {self.id} is taken; another program uses advisory locks of this class")
        if self.options.born is not None:
            self.options.born(self.id, self.application_name, False)
        workflow_ids, queue_ids = self._register(conn)
        before = time.time()
        clock = conn.execute(sql.get("clock")).fetchone()[0]  # type: ignore[index]
        offset = clock - int(((before + time.time()) / 2 - 946684800) * 1e6)
        cell = conn.execute(sql.get("cell_number")).fetchone()[0]  # type: ignore[index]
        self.pipeline = Pipeline(conn)
        for statement in HOT:
            self.pipeline.prepare(statement, sql.get(statement))
        self.pipeline.enter()
        self._make_parts(workflow_ids, queue_ids, offset, cell)
        if self.options.born is not None:
            self.options.born(self.id, self.application_name, True)
        log.info("worker %d serves %s", self.id, ", ".join(sorted(self._queue_names)))

    def _register(self, conn: Any) -> tuple[dict[str, int], dict[str, int]]:
        workflow_ids, queue_ids = {}, {}
        registry.settle()
        for name, workflow in registry.workflows().items():
            described = json.dumps(workflow.input.describe()).encode()
            found = conn.execute(self.sql.get("upsert_workflow"), (name, workflow.queue, workflow.info.timeout_s, described)).fetchone()
            workflow_ids[name], queue_ids[workflow.queue] = found
        self._queue_names = set(self.options.queues or queue_ids or ("default",))
        for queue in self._queue_names - set(queue_ids):
            queue_ids[queue] = conn.execute(self.sql.get("queue_id"), (queue,)).fetchone()[0]
        return workflow_ids, queue_ids

    def _make_parts(self, workflow_ids: dict[str, int], queue_ids: dict[str, int], offset_us: int, cell: int) -> None:
        options = self.options
        ids = RunIds(offset_us=offset_us, cell=cell)
        self._workflows = {_i4.pack(id): registry.find(name) for name, id in workflow_ids.items()}
        self.transactions = Transactions(options.dsn, options.schema, (self.id, self.boot), self._tx_done, self._tx_lost)
        commands: list[Commands] = []
        self.executors = Executors(
            options.threads, options.thread_slots, options.task_slots, lambda: self.loop.now_us(), lambda *ended: commands[0].ended_call(*ended)
        )
        self.commands = Commands(self.executors, self.transactions, workflow_ids, lambda: ids.new().bytes, self._schedule)
        commands.append(self.commands)
        self.loop = Loop(self.commands, options.loop_slot or Slot(bytearray(SLOT_BYTES), 0), offset_us)
        self.commands.loop = self.loop
        self.transactions.clock = self.loop.now_us
        context.loop = _OnThisThread(self.loop)
        self.claims = Claims([queue_ids[name] for name in sorted(self._queue_names)], options.look_behind or _every_second())
        self._known_workflows = encode_rows((INT4,), [(id,) for id in workflow_ids.values()])
        self._worker_param = _i4.pack(self.id)
        self._fence = [self._worker_param, self.boot.bytes, _i4.pack(1)]

    def _look_at_slow(self) -> None:
        self._time.call_later(LOOK_AT_SLOW_S, self._look_at_slow, context=self._context)
        if not self.executors.calls:
            return
        self.commands.publish_slow()
        if self.commands.batch.rare:
            self._schedule()
        joins = self.commands.children_to_look_at()
        if joins and not self._looking:
            self._looking = True
            ids = encode_rows((UUID_OID,), [(kid.run_id,) for _, _, kid in joins[:LOOK_AT_CHILDREN_MAX]])
            self.pipeline.send(_Look(joins), [("plan_custom", None), ("read_outcomes", ids), ("plan_generic", None)])
            self._flush()

    def drain(self) -> None:
        """Stop claiming, give back what has not begun, end what has, then return from `run`."""
        if not self._draining:
            self._draining = True
            self._time.call_later(self.options.drain_timeout_s, self._stop)
            self._schedule()

    def _stop(self) -> None:
        if self._end is not None and not self._end.done():
            self._end.set_result(None)

    def _fail(self, error: BaseException) -> None:
        if self._end is not None and not self._end.done():
            self._end.set_exception(error)

    # ── the pump ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _schedule(self) -> None:
        if not self._pump_due:
            self._pump_due = True
            self._time.call_soon(self._pump, context=self._context)

    def _pump(self) -> None:
        self._pump_due = False
        if self._end is None or self._end.done():
            return
        try:
            with _loop_hidden():
                self._work()
        except (DatabaseUnavailable, Fenced) as error:
            self._fail(error)
        except BaseException as error:
            log.exception("worker %d: the loop failed", self.id)
            self._fail(error)

    def _work(self) -> None:
        loop = self.loop
        while self.pipeline.waiting < 2:
            while loop.completions:
                run, *ended = loop.completions.popleft()
                self._guarded(run, loop.complete, run, *ended)
            if loop.ready:
                self._execute()
            batch = self._compose()
            if batch is None:
                break
            self._send(batch)
        if self._reads and not self._reading:
            self._read_next()
        if loop.ready and self.pipeline.waiting < 2:
            self._schedule()
        elif self._draining and not loop.live and not self.pipeline.waiting and not self.executors.active:
            self._stop()

    def _guarded(self, run: Run, act: Callable[..., Any], *args: Any) -> None:
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
        group = ready[:GROUP_MAX]
        self.commands.group.begin()
        taken = loop.execute(group, int(EXECUTE_MAX_S * 1e6))
        if taken < len(ready):
            loop.ready = ready[taken:] + loop.ready

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
        return stay

    def _compose(self) -> Batch | None:
        if self._repairs:
            return self._repairs.popleft()
        loop, batch = self.loop, self.commands.batch
        batch.steps, batch.outcomes, batch.runs, batch.finished = loop.take_rows()
        self.commands.batch = Batch()
        if self._time.time() >= self._wake_missing_at and not self._draining:
            self._wake_missing_at = self._time.time() + WAKE_MISSING_S
            batch.wake_workflows = self._known_workflows
        for parent in self._parents:
            batch.add("wake_parents", parent, (parent,))
        self._parents.clear()
        batch.asked = self._claim_size()
        if batch.asked:
            batch.claim = self.claims.params(batch.asked, self._time.time())
            self._claims_in_flight += 1
            self._asked_in_flight += batch.asked
        return None if batch.empty() else batch

    def _send(self, batch: Batch) -> None:
        batch.sent_at = self._time.time()
        self.pipeline.send(batch, batch.statements(self._fence, self._worker_param))
        self._flush()

    def _flush(self) -> None:
        if self.pipeline.flush():
            if self._writing:
                self._writing = False
                self._time.remove_writer(self.pipeline.fileno())
        elif not self._writing:
            self._writing = True
            self._time.add_writer(self.pipeline.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            self._flush()
        except DatabaseUnavailable as error:
            self._fail(error)

    def _readable(self) -> None:
        try:
            with _loop_hidden():
                for batch, answer in self.pipeline.read():
                    self._answered(batch, answer)
        except (DatabaseUnavailable, Fenced) as error:
            self._fail(error)
            return
        except BaseException as error:
            log.exception("worker %d: an answer could not be processed", self.id)
            self._fail(error)
            return
        self._pump()

    def _answered(self, batch: Any, answer: Any) -> None:
        if isinstance(batch, _Read):
            self._read_answered(batch, answer)
        elif isinstance(batch, _Look):
            self._look_answered(batch, answer)
        elif isinstance(answer, Refused):
            self._refused(batch, answer)
        else:
            self._acknowledged(batch, answer)

    # ── how much to claim ────────────────────────────────────────────────────────────────────────────────────────

    def _claim_size(self) -> int:
        """Runs to ask for in the batch that is being composed; 0 for none."""
        now = self._time.time()
        if self._draining or self.executors.backlog or (self._last_claim_empty and (now < self._poll_at or self._claims_in_flight)):
            return 0
        free = self.capacity - len(self.loop.live) - sum(map(len, self._reads)) - self._asked_in_flight
        if self._sits_in_threads():
            return max(0, min(free, self.executors.idle - len(self.loop.ready)))
        if free < max(1, self.capacity // 8):
            return 0
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
        self._last_claim_empty = count == 0
        if count:
            self._found_at = now
        else:
            wait_s = POLL_BUSY_S if now - self._found_at < BUSY_FOR_S else POLL_IDLE_S
            self._poll_at = now + wait_s
            self._time.call_later(wait_s, self._schedule, context=self._context)

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _acknowledged(self, batch: Batch, results: dict[str, Any]) -> None:
        loop = self.loop
        for run in batch.leaving:
            loop.evict(run)
        loop.acknowledge(batch.runs, batch.finished)
        if "insert_children_done" in batch.rare:
            self._parents.update(row[0] for _, row in batch.rare["insert_children_done"])
        if "insert_timers" in results:
            rows = replay._rows(results["insert_timers"])
            self.commands.timers_inserted([(row[0], _i4.unpack(row[1])[0], _i8(row[2])[0], _i8(row[3])[0]) for row in rows])
        if "fire_timers" in results:
            fired = {(row[0], _i4.unpack(row[1])[0]): _i8(row[2])[0] for row in replay._rows(results["fire_timers"])}
            self.commands.timers_fired([(row[0], row[1]) for _, row in batch.rare["fire_timers"]], fired)
        if "claim" in results:
            self._took(batch, results["claim"])

    def _took(self, batch: Batch, result: Any) -> None:
        """Runs that a claim brought: fresh ones begin at once, the others are read first or put aside."""
        self._claimed(batch, result.ntuples)
        others: list[tuple[Run, bytes, bytes, bytes | None, bytes, bytes | None]] = []
        self.loop.admit(result, self._workflows, self.claims.marks, others)
        self.claims.took(result.ntuples, batch.asked)
        resumed = []
        for run, history, claims, payload, workflow_id, deadline in others:
            run.resumed = _i2(history)[0]
            run.deadline_us = _i8(deadline)[0] if deadline is not None else 0
            run.timers = run.resumed != 0  # until its past is read, it may have some
            if run.deadline_us and self._deadline_passed(run):
                continue
            if run.workflow is None:
                known = ", ".join(sorted(registry.workflows())) or "none"
                self.commands.park(run, CODE_MISSING, {"workflow_id": _i4.unpack(workflow_id)[0], "this_worker_knows": known})
            elif _i2(claims)[0] > CLAIMS_MAX:
                self.commands.park(run, CRASH_LOOP, {"claims": _i2(claims)[0], "why": "claimed again and again without leaving its workers alive"})
            elif run.resumed == 0 and payload is not None:
                self.loop.begin_run(run, payload)
            else:
                resumed.append((run, payload))
        for at in range(0, len(resumed), READ_SLICE):
            self._reads.append(resumed[at : at + READ_SLICE])

    def _deadline_passed(self, run: Run) -> bool:
        """Whether the run's time is over: it then ends as timed_out. Otherwise it is looked at again when it is."""
        left_s = (run.deadline_us - self.loop.now_us()) / 1e6
        if left_s <= 0:
            self.commands.time_out(run)
            self._schedule()
            return True
        self._time.call_later(min(left_s, DEADLINE_LOOK_S), self._look_at_deadline, run, context=self._context)
        return False

    def _look_at_deadline(self, run: Run) -> None:
        if run.gone:
            return
        if run.batch != 0 or run.in_tx:  # first what is in flight, then the end
            self._time.call_later(0.01, self._look_at_deadline, run, context=self._context)
        else:
            with _loop_hidden():
                self._deadline_passed(run)

    # ── resumed runs ─────────────────────────────────────────────────────────────────────────────────────────────

    def _read_next(self) -> None:
        runs = self._reads.popleft()
        self._reading = True
        ids = encode_rows((UUID_OID,), [(run.id,) for run, _ in runs])
        statements: list[Any] = [("plan_custom", None), *((name, ids) for name in READS), ("plan_generic", None)]
        self.pipeline.send(_Read(runs), statements)
        self._flush()

    def _look_answered(self, look: _Look, answer: Any) -> None:
        """Which children of runs in memory have ended."""
        self._looking = False
        if isinstance(answer, Refused):
            raise DatabaseUnavailable(f"outcomes can't be read: {answer.message} ({answer.sqlstate})")
        outcomes = replay.read_outcomes(answer["read_outcomes"])
        for run, cmd, kid in look.joins:
            if kid.run_id in outcomes:
                kid.status, kid.result = outcomes[kid.run_id]
                self.commands.child_seen(run, cmd)

    def _read_answered(self, read: _Read, answer: Any) -> None:
        if isinstance(answer, Refused):
            raise DatabaseUnavailable(f"history can't be read: {answer.message} ({answer.sqlstate})")
        if read.pasts is None:
            read.pasts = replay.read_past(answer)
            kids = [kid.run_id for past in read.pasts.values() for kid in past.kids.values()]
            if kids:
                ids = encode_rows((UUID_OID,), [(kid,) for kid in kids])
                self.pipeline.send(read, [("plan_custom", None), ("read_outcomes", ids), ("plan_generic", None)])
                self._flush()
                return
        else:
            outcomes = replay.read_outcomes(answer["read_outcomes"])
            for past in read.pasts.values():
                for kid in past.kids.values():
                    kid.status, kid.result = outcomes.get(kid.run_id, (None, None))
        self._reading = False
        for run, payload in read.runs:
            self._replay(run, read.pasts[run.id], payload)

    def _replay(self, run: Run, past: replay.Past, payload: bytes | None) -> None:
        if payload is not None:
            past.input = payload
        run.past = past
        run.timers = bool(past.timers_us)
        try:
            fresh = replay.replay(self.loop, run, past, self.commands.make_child)
        except ReplayMismatch as error:
            run.history = None
            self.commands.mismatch(run, error)
            return
        except Exception as error:  # noqa: BLE001 - a history that this code can't read parks its run and nobody else's
            log.exception("run %s can't be brought back", uuid.UUID(bytes=run.id))
            run.history = None
            self.commands.mismatch(run, ReplayMismatch(uuid.UUID(bytes=run.id), run.pos, "a result that this code can read", f"{type(error).__name__}: {error}"))
            return
        if run.end is not None:
            end, run.end = run.end, None
            self.loop.finish(run, *end)
            return
        for cmd in fresh:
            cmd.redelivered = run.resumed == 2
        run.fresh = fresh
        self.loop.ready.append(run)

    # ── batches that the server refused ──────────────────────────────────────────────────────────────────────────

    def _refused(self, batch: Batch, refused: Refused) -> None:
        """The batch did nothing. Send it again, or find the run that is to blame by halving."""
        log.warning("worker %d: batch of %d runs refused at %s: %s (%s)", self.id, len(batch.runs), refused.statement, refused.message, refused.sqlstate)
        if batch.claim is not None:
            self._claims_in_flight -= 1
            self._asked_in_flight -= batch.asked
            batch.claim, batch.asked = None, 0
        if refused.sqlstate == "SV003":
            raise Fenced(f"worker {self.id} was declared dead, or a run was taken from it; its claims belong to others now")
        if refused.sqlstate in TRY_AGAIN:
            self._repairs.append(batch)
        elif not refused.sqlstate or refused.sqlstate.startswith(SESSION_TROUBLE):
            raise DatabaseUnavailable(f"the database refuses to work: {refused.message} ({refused.sqlstate})")
        elif len(batch.runs) > 1:
            self._repairs.extend(half for half in batch.halves() if not half.empty())
        elif batch.runs:
            self._reject(batch.runs[0], refused)

    def _reject(self, run: Run, refused: Refused) -> None:
        """The one run that the database refuses: park it. What its coroutine did since was speculation and is dropped."""
        detail = json.dumps({"statement": refused.statement, "sqlstate": refused.sqlstate, "error": codec.clean(refused.message)})
        log.error("run %s is parked: the database refuses what it wants to record: %s", uuid.UUID(bytes=run.id), refused.message)
        self.loop.evict(run)
        parking = Batch(runs=[run])
        parking.add("release", run.id, (run.id, INFINITY, COMMIT_REJECTED, detail, None, None, None, 1))
        self._repairs.append(parking)

    # ── transactional steps ──────────────────────────────────────────────────────────────────────────────────────

    def _tx_done(self, ended: list[tuple[Run, Any, Any, BaseException | None, int, int]]) -> None:
        """Transactional steps ended: their checkpoints are durable, or they failed and nothing of them is."""
        with _loop_hidden():
            for one in ended:
                self._settle_tx(*one)
        self._schedule()

    def _settle_tx(self, run: Run, cmd: Any, value: Any, error: BaseException | None, started: int, ended: int) -> None:
        run.in_tx = False
        run.executing -= 1
        if run.gone:
            return
        if cmd.done:
            self.loop.ready.append(run)
        elif error is not None:
            self._guarded(run, self.loop.complete, run, cmd, None, error, started, ended)
        else:
            run.pos += 1
            run.now_us = ended
            self.loop.steps_total += 1
            self._guarded(run, self.loop.deliver, run, cmd, value, None)
        if not run.gone and run.batch == 0:
            self.loop.ready.append(run)

    def _tx_lost(self, error: BaseException) -> None:
        """Whether a transaction committed is not known: only what another worker will read of it counts."""
        self._fail(error)


@contextmanager
def _loop_hidden() -> Iterator[None]:
    """While workflow code may run there is no running event loop: asyncio refuses at the user's line, and nothing is started unseen."""
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)


@dataclass
class _Read:
    """Runs whose history was asked for; pasts once the first answer is there."""

    runs: list[tuple[Run, bytes | None]]
    pasts: Any = None


@dataclass
class _Look:
    """Joins of runs in memory whose children were asked about: (run, command, child)."""

    joins: list[tuple[Run, Any, replay.Kid]]


class _OnThisThread:
    """What current() asks: the step or run that executes on the calling thread, if that is the loop's."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop

    def on_this_thread(self) -> Any:
        from supervisor._fastpath import loop as core
        from supervisor._fastpath.wire import thread_id

        if thread_id() != self._loop.thread:
            return None
        return self._loop.current or core.current_run()


def _every_second() -> Callable[[float], bool]:
    last = [0.0]

    def due(now_s: float) -> bool:
        if now_s - last[0] < LOOK_BEHIND_S:
            return False
        last[0] = now_s
        return True

    return due
