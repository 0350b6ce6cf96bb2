"""What becomes of each command: begun in an executor, made durable as a timer or a child, retried, or waited for out of memory.

The loop asks (`begin`, `failed`, `quiet`, …), this answers by filling the batch that is being built. It decides; the
worker sends. Invariant: a run that leaves memory does so when the batch that says so is durable, not before.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from contextvars import copy_context
from typing import Any
from uuid import UUID

import msgspec

from supervisor._fastpath import loop as core
from supervisor._fastpath.wire import Command
from supervisor.api.words import SLEEP, TIMEOUT, ChildRun, Continued
from supervisor.core import codec, versions
from supervisor.core.cancelled import Cancelled
from supervisor.core.errors import (
    CompleteLater, HistoryTooLong, ReplayMismatch, RunCancelled, RunTerminated, RunTimedOut, StepInterrupted,
)  # fmt: skip
from supervisor.db.arrays import Row
from supervisor.engine.batch import INFINITY, Batch
from supervisor.engine.compensation import Undo, begin, time_is_over
from supervisor.engine import counting, terms
from supervisor.engine.executors import Call, Executors, OffCpu, demote
from supervisor.engine.green import close_green, green
from supervisor.engine.misuse import explained, refused, unawaited
from supervisor.engine.replay import CANCELLED, RESUMED, SLEPT, TERMINATED, Kid, Past, check, has_begun, too_long
from supervisor.engine.signals import Listening, is_due_once, until
from supervisor.engine.tokens import Entrusted
from supervisor.engine.waits import Waiting, date, since_us

log = logging.getLogger("pgsupervisor.engine")

STAY_S = 1.0  # a run that waits no longer than this stays in memory: leaving and coming back costs two transactions
PUBLISH_AFTER_US = 1_000_000  # a step that runs longer is named in its run's task row
STEP_RUNNING = 8
STAY_BESIDE_CHILDREN_S = 0.02  # nobody tells a run in memory that its child has ended
CLOSE_POLICIES = {"request_cancel": 0, "abandon": 1, "terminate": 2}  # task.parent_close
BACKOFF, TIMER, SIGNAL, TOKEN, CHILD, ANY_OF, NONDETERMINISM, CODE_MISSING, CRASH_LOOP, COMMIT_REJECTED = 9, 10, 11, 13, 14, 15, 19, 20, 22, 23


class Commands:
    """The loop's answers. `batch` is the one being built; `pump` asks the worker to look for work soon."""

    may_inline = True  # `def` steps, on the loop's own thread

    def __init__(self, executors: Executors, transactions: Any, workflow_ids: dict[str, int], new_id: Callable[[], bytes], pump: Callable[[], None]) -> None:
        self.loop: Any = None
        self.batch = Batch()
        self.executors = executors
        self.transactions = transactions
        self._workflow_ids = workflow_ids
        self._new_id = new_id
        self.pump = pump
        self._time = asyncio.get_running_loop()
        self._context = copy_context()  # of no step: what is called later must not inherit the one that happened to end just now
        self.group = OffCpu()
        self.with_children: set[Any] = set()
        self.watchdog: Any = None
        later: Any = None
        self.signals = self.updates = self.tokens = self.beats = later
        self.tally: Callable[[str, str], Any] = counting.unread
        self.green = green
        self.close_green = close_green

    def time(self) -> float:
        return self._time.time()

    def call_later(self, in_s: float, act: Callable[..., None], *args: Any) -> None:
        self._time.call_later(in_s, act, *args, context=self._context)

    # ── begin ────────────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, run: Any, cmd: Any) -> None:
        """Start what *cmd* asks for. Its run has nothing unacknowledged but what this pass has put into the batch."""
        kind = cmd.kind
        if kind == core.STEP:
            self._begin_step(run, cmd)
            return
        date(run, cmd, self.loop.now_us())
        if kind == core.TIMER:
            self._begin_timer(run, cmd)
        elif kind == core.CHILD:
            self._begin_child(run, cmd)
        elif kind == core.SIGNAL:
            self.signals.begin(run, cmd)
        elif kind == core.HANDLED:
            self.updates.begin(run, cmd)
        elif kind == core.UNDO:
            self._begin_undo(run, cmd)
        else:
            self._start_child(run, cmd)

    def _begin_step(self, run: Any, cmd: Any) -> None:
        step, past = cmd.step, run.past
        if past is not None and not self._recall(run, cmd, past):
            return
        info = step.info
        if step.shape is None:
            step.settle()
        if info.close_s is not None and self._closed(run, cmd):
            return
        step.inline = self.may_inline and (step.inline or info.place == "inline")
        if step.inline:
            self.loop.inline(run, cmd)
        elif info.at_most_once and cmd.extra is None:
            cmd.extra = "begun"
            now = self.loop.now_us()
            self.batch.add("insert_attempts", run.id, (run.id, cmd.seq, cmd.attempt, 2, step.name, None, None, now, None, None))
            self.again_after_ack(run, cmd)
        elif info.transactional:
            if run.batch != 0:
                self.again_after_ack(run, cmd)
            else:
                run.in_tx = True
                run.executing += 1
                self.transactions.submit(run, cmd)
        else:
            run.executing += 1
            self.executors.begin(run, cmd)

    def _closed(self, run: Any, cmd: Any) -> bool:
        """Whether the time of all its tries is over. When the first one begins, its end is recorded, so that no crash begins it anew."""
        now, closes = self.loop.now_us(), self.past_of(run).closes
        if cmd.seq not in closes:
            closes[cmd.seq] = now + int(cmd.step.info.close_s * 1e6)
            self.batch.add("insert_attempts", run.id, (run.id, cmd.seq, 1, terms.SCHEDULED, cmd.step.name, None, None, now, None, closes[cmd.seq]))
            self.loop.touch(run)
        if now < closes[cmd.seq]:
            return False
        self.failed_for_good(run, cmd, terms.closed(cmd), now, now)
        return True

    def again_after_ack(self, run: Any, cmd: Any) -> None:
        self.loop.touch(run)
        run.fresh = [*(run.fresh or []), cmd]

    def _recall(self, run: Any, cmd: Any, past: Past) -> bool:
        """Take up a step where the history left it; False when it does not begin now."""
        cmd.attempt += past.attempts.pop(cmd.seq, 0)
        if (past.entrusted or past.settled) and self.tokens.recall(run, cmd, past):
            return False
        if past.begun.pop(cmd.seq, 0) == cmd.attempt:
            error = StepInterrupted(f"step {cmd.step.name} had begun when its worker died; whether it did its work is not known")
            now = self.loop.now_us()
            self.failed_for_good(run, cmd, error, now, now)
            return False
        wait_us, failed_us = past.retry_in_us.pop(cmd.seq, 0), past.failed_us.pop(cmd.seq, 0)
        if wait_us > 0:
            self.wait_for_retry(run, cmd, wait_us / 1e6, failed_us)
            return False
        return True

    # ── timers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin_timer(self, run: Any, cmd: Any) -> None:
        waiting = cmd.extra
        run.timers = True
        if isinstance(waiting, Waiting):
            if waiting.fire and run.batch == 0:
                self.batch.add("fire_timers", run.id, (run.id, cmd.seq, run.pos, cmd.step.name, core.TIMER, core.COMPLETED, None, cmd.called_us))
                self.loop.touch(run)
                run.in_tx = True
            elif waiting.fire:
                self.again_after_ack(run, cmd)
            return
        remaining = run.past.timers_us.pop(cmd.seq, None) if run.past is not None else None
        if remaining is not None:
            self.arm(run, cmd, remaining, self.loop.now_us() + remaining)
            return
        how, us = waiting
        self.batch.add("insert_timers", run.id, (run.id, cmd.seq, us if how == "for" else 0, us if how == "until" else None))
        self.loop.touch(run)

    def timers_inserted(self, rows: list[tuple[bytes, int, int, int]]) -> None:
        """Acknowledged: (run, seq, due, us from now to due)."""
        for run_id, seq, due_us, in_us in rows:
            run = self.loop.live.get(run_id)
            cmd = run.open.get(seq) if run is not None and run.open is not None else None
            if cmd is not None:
                self.arm(run, cmd, in_us, due_us)

    def arm(self, run: Any, cmd: Any, in_us: int, due_us: int) -> None:
        due_at = self._time.time() + max(in_us / 1e6, 0.0)
        if cmd.kind == core.SIGNAL:
            cmd.extra.arm(due_us, due_at)
        else:
            cmd.extra = Waiting(due_us, due_at)
        self.watch(run, cmd)

    def watch(self, run: Any, cmd: Any) -> None:
        """Be called when a timer or a retry is due, if that is soon; a later one leaves memory instead (`quiet`), or is looked at again (`Worker.watch_beside_calls`)."""
        waiting = cmd.extra
        in_s = waiting.due_at - self._time.time()
        if not waiting.armed and in_s <= STAY_S:
            waiting.armed = True
            self._time.call_later(max(in_s, 0.0), self._due, run, cmd, waiting, context=self._context)

    def _due(self, run: Any, cmd: Any, waiting: Any) -> None:
        if run.gone or cmd.done or cmd.extra is not waiting:  # another moment may have been put in its place
            return
        if cmd.kind == core.SIGNAL:
            self.signals.due(run, cmd)
            return
        if cmd.kind == core.TIMER:
            cmd.extra.fire = True
        else:
            cmd.extra = None
        self.later(run, cmd)

    def later(self, run: Any, cmd: Any) -> None:
        """Begin *cmd* (again) as soon as its run has nothing in flight."""
        run.fresh = [*(run.fresh or []), cmd]
        if run.batch == 0 and not run.in_tx:
            self.loop.ready.append(run)
        self.pump()

    def timers_fired(self, asked: list[tuple[bytes, int]], fired: dict[tuple[bytes, int], int]) -> None:
        """Acknowledged: which of the timers asked for did fire; the database's clock was behind for the others."""
        for run_id, seq in asked:
            run = self.loop.live.get(run_id)
            if run is None or run.gone:
                continue
            run.in_tx = False
            cmd = run.open.get(seq) if run.open is not None else None
            if cmd is None:
                continue
            ended = fired.get((run_id, seq))
            if ended is None:
                self.arm(run, cmd, 5000, cmd.extra.due_us)
                continue
            run.pos += 1
            run.now_us = ended
            run.timers = len(run.open) > 1 or run.past is not None and bool(run.past.timers_us)  # whether others may be left, to be dropped at the end
            if cmd.kind == core.SIGNAL:
                self.signals.timed_out(run, cmd)
            else:
                self.loop.deliver(run, cmd, None, None)

    # ── children ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin_child(self, run: Any, cmd: Any) -> None:
        joined = isinstance(cmd.extra, tuple)
        seq = cmd.extra[1] if joined else cmd.seq
        workflow = cmd.extra[2] if joined else cmd.step.workflow
        past = self.past_of(run)
        kid = past.kids.get(seq)
        if kid is None:
            self._insert_child(run, cmd)
        elif kid.status is not None:
            self._child_ended(run, cmd, kid, workflow)
        self.with_children.add(run)

    def children_to_look_at(self) -> list[tuple[Any, Any, Kid]]:
        """(run, command, child) of joins in runs that stay in memory because a step of theirs executes: nobody would wake those."""
        found = []
        for run in list(self.with_children):
            if run.gone:
                self.with_children.discard(run)
            elif run.executing and run.open:
                kids = self.past_of(run).kids
                joins = [(cmd, kids.get(cmd.extra[1] if isinstance(cmd.extra, tuple) else cmd.seq)) for cmd in run.open.values() if cmd.kind == core.CHILD]
                found += [(run, cmd, kid) for cmd, kid in joins if kid is not None and kid.status is None]
        return found

    def child_seen(self, run: Any, cmd: Any) -> None:
        """A child was seen to have ended while its parent is in memory."""
        if not run.gone and not cmd.done:
            self.later(run, cmd)

    def _insert_child(self, run: Any, cmd: Any) -> bytes:
        start = cmd.step
        options = start.options
        kid = self._new_id()
        workflow_id = self._workflow_ids.get(start.workflow.name)
        if workflow_id is None:
            raise _not_registered(start.workflow.name)
        past = self.past_of(run)
        row = (
            kid, workflow_id, options.queue, options.priority, start.payload, run.id, cmd.seq, int(options.delay_s * 1e6),
            CLOSE_POLICIES[options.parent_close], int(past.cancelled is not None or past.compensating),
        )  # fmt: skip
        self.batch.add("insert_runs", run.id, row)
        self.loop.touch(run)
        past.kids[cmd.seq] = Kid(kid)
        return kid

    def past_of(self, run: Any) -> Past:
        if run.past is None:
            run.past = Past()
        past: Past = run.past
        return past

    def _start_child(self, run: Any, cmd: Any) -> None:
        kid = self._insert_child(run, cmd)
        now = self.loop.now_us()
        text = str(UUID(bytes=kid))
        self.loop.record(run, cmd, core.COMPLETED, msgspec.json.encode(text), now, now)
        self.loop.deliver(run, cmd, self.make_child(cmd, text), None)

    @staticmethod
    def make_child(cmd: Any, run_id: str) -> ChildRun[Any]:
        return ChildRun(UUID(run_id), cmd.step.workflow, cmd.seq)

    def _child_ended(self, run: Any, cmd: Any, kid: Kid, workflow: Any) -> None:
        now = self.loop.now_us()
        if kid.status == core.COMPLETED:
            self.loop.record(run, cmd, core.COMPLETED, kid.result, cmd.called_us, now)
            self.loop.deliver(run, cmd, workflow.decode_result(kid.result), None)
            return
        encoded = codec.encode_error(kid.error(workflow.name, cmd.extra[1] if isinstance(cmd.extra, tuple) else cmd.seq))
        self.loop.record(run, cmd, core.FAILED, encoded, cmd.called_us, now)
        self.loop.deliver(run, cmd, None, codec.decode_error(encoded))

    # ── what runs say without waiting ────────────────────────────────────────────────────────────────────────────

    def published(self, run: Any, key: str, value: bytes) -> None:
        """Workflow code has something to be read by others."""
        self._say(run, "insert_published", key, (run.id, key, run.pos, value, self.loop.now_us()))

    def progressed(self, run: Any, done: float, total: float | None) -> None:
        """Workflow code says how far it is."""
        self._say(run, "insert_progress", "", (run.id, run.pos, done, total, self.loop.now_us()))

    def attributed(self, run: Any, changes: dict[str, Any]) -> None:
        """Workflow code sets attributes: what is stored is all that it has set so far, so the last row is enough."""
        past = self.past_of(run)
        past.attributes.update(changes)
        self._say(run, "set_attributes", "", (run.id, run.pos, codec.encode(past.attributes, "attributes"), self.loop.now_us()))

    def _say(self, run: Any, statement: str, key: str, row: Row) -> None:
        """It becomes durable with what led to it: the row rides in the same batch."""
        if run.history is None:
            self.said(run, statement, key, row)
        else:  # a replay: it is durable, unless nothing was delivered after it
            self.past_of(run).said[statement, key] = row

    def met(self, run: Any, cmd: Any) -> None:
        """Workflow code takes the new branch of a patch: a row that is durable before anything that follows. It is given nothing by it."""
        last_us, now = run.now_us, self.loop.now_us()
        self.loop.record(run, cmd, core.COMPLETED, None, now, now)
        run.now_us = last_us

    def say_again(self, run: Any) -> None:
        """After a replay: what followed the last recorded delivery may have been lost with the worker. If it was not, nothing is written."""
        for (statement, key), row in run.past.said.items():
            self.said(run, statement, key, row)
        run.past.said = {}

    def said(self, run: Any, statement: str, key: str, row: Row) -> None:
        """Put it into the batch, in the place of what was said there under that key."""
        self.batch.said[run.id, statement, key] = row
        self.loop.bytes_now += sum(len(value) for value in row if isinstance(value, bytes))
        self.loop.touch(run)

    # ── updates ──────────────────────────────────────────────────────────────────────────────────────────────────

    def updated(self, run: Any, cmd: Any) -> None:
        self.updates.updated(run, cmd)

    def handled(self, run: Any, fiber: Any, value: Any, error: BaseException | None) -> None:
        self.updates.handled(run, fiber, value, error)

    # ── undoing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def compensates(self, run: Any, what: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Workflow code names what undoes something."""
        self.past_of(run).undo.append(Undo(what, args, kwargs, run.seq - 1))

    def _begin_undo(self, run: Any, cmd: Any) -> None:
        """The plan is recorded. From here on the run has all the time that it takes."""
        now = self.loop.now_us()
        run.deadline_us = 0
        self.batch.add("no_deadline", run.id, (run.id,))
        self.loop.record(run, cmd, core.COMPLETED, cmd.args[0], now, now)
        self.loop.deliver(run, cmd, None, None)

    # ── ends of attempts ─────────────────────────────────────────────────────────────────────────────────────────

    def ended_call(self, call: Call, value: Any, error: BaseException | None, ended: int) -> None:
        """An executor finished a call."""
        run, cmd = call.run, call.command
        run.executing -= 1
        if call.published and not run.gone:
            self.batch.add("publish", run.id, (run.id, None, None, None, None, None))
        self.loop.completions.append((run, cmd, value, error, call.started, ended))
        self.pump()

    def publish_slow(self) -> None:
        """Name the steps that have been running for more than a second, so that SQL answers what their runs do."""
        now = self.loop.now_us()
        for call in self.executors.calls:
            if not call.published and now - call.started > PUBLISH_AFTER_US:
                call.published = True
                cmd = call.command
                self.batch.add("publish", call.run.id, (call.run.id, STEP_RUNNING, cmd.seq, cmd.step.name, cmd.attempt, call.started))

    def failed(self, run: Any, cmd: Any, error: BaseException, started: int, ended: int) -> None:
        """An attempt raised: try again later, or give the error to the workflow."""
        if isinstance(error, CompleteLater):
            self.tokens.entrust(run, cmd, error, started, ended)
            return
        step = cmd.step
        self.beats.settle(run, cmd)
        wait_s = terms.next_try_s(run, cmd, error, ended)
        if wait_s is None:
            self.failed_for_good(run, cmd, error, started, ended)
            return
        row = (run.id, cmd.seq, cmd.attempt, 1, step.name, codec.encode_error(error), codec.fingerprint(error), started, ended, ended + int(wait_s * 1e6))
        self.batch.add("insert_attempts", run.id, row)
        self.loop.tally_of(run.workflow, step).fail(ended - started)
        self.loop.touch(run)
        if run.open is None:
            run.open = {cmd.seq: cmd}
        cmd.attempt += 1
        self.wait_for_retry(run, cmd, wait_s, ended)

    def wait_for_retry(self, run: Any, cmd: Any, wait_s: float, failed_us: int) -> None:
        run.open[cmd.seq] = cmd
        cmd.extra = Waiting(self.loop.now_us() + int(wait_s * 1e6), self._time.time() + wait_s, failed_us)
        self.watch(run, cmd)

    def failed_for_good(self, run: Any, cmd: Any, error: BaseException, started: int, ended: int) -> None:
        encoded = codec.encode_error(error)
        row = (run.id, cmd.seq, cmd.attempt, 1, cmd.step.name, encoded, codec.fingerprint(error), started, ended, None)
        self.batch.add("insert_attempts", run.id, row)
        self.loop.tally_of(run.workflow, cmd.step).fail(ended - started)
        self.loop.record(run, cmd, core.FAILED, encoded, started, ended)
        self.loop.deliver(run, cmd, None, codec.decode_error(encoded))

    def slow(self, step: Any, took_us: int) -> None:
        """An inline call took long. Was it the step, or was this process just not running?"""
        if not self.group.explains(took_us):
            demote(step, self._time.time(), took_us)

    # ── another thread has the loop: the watchdog's part ─────────────────────────────────────────────────────────

    def came_back(self, cmd: Any, value: Any, error: BaseException | None, started: int, ended: int) -> None:
        """An inline call returned in a thread that is not the loop's any more. Never returns."""
        self.watchdog.came_back(cmd, value, error, started, ended)

    def away(self, run: Any, work: list[Any]) -> None:
        """Its greenlet can be resumed in another thread only."""
        self.watchdog.away(run, work)

    def abandoned(self, run: Any, coros: list[Any]) -> None:
        self.watchdog.abandoned(run, coros)

    # ── ends of runs ─────────────────────────────────────────────────────────────────────────────────────────────

    def finish_failed(self, run: Any, error: BaseException) -> None:
        past = run.past
        if past is not None and begin(self.loop, run, error):
            return
        if past is not None and past.cancelled is not None and isinstance(error, Cancelled):
            self.loop.finish(run, CANCELLED, _ended_from_outside(RunCancelled, past.cancelled.reason))
        elif isinstance(error, Continued):
            self._continue(run, error)
        elif past is not None and past.timed_out and isinstance(error, RunTimedOut):
            self.loop.finish(run, core.TIMED_OUT, codec.encode_error(error))
        else:
            self.loop.finish(run, core.FAILED, codec.encode_error(explained(error)))

    def _continue(self, run: Any, asked: Continued) -> None:
        """The run ends, and its successor begins, in one batch."""
        options = asked.options
        same = options.workflow is run.workflow
        workflow_id = None if same else self._workflow_ids.get(options.workflow.name)
        if workflow_id is None and not same:
            self.loop.finish(run, core.FAILED, codec.encode_error(_not_registered(options.workflow.name)))
            return
        successor = self._new_id()
        row = (run.id, successor, workflow_id, options.queue, options.priority if asked.chosen else None, asked.payload, int(options.delay_s * 1e6))
        self.past_of(run).successor = row
        self.end(run, core.CONTINUED, msgspec.json.encode(str(UUID(bytes=successor))))

    def end(self, run: Any, status: int, encoded: bytes) -> None:
        """End *run*; one that continues with its successor. A replay comes back here when it knows that the history is used up."""
        replays = run.history is not None
        if status == core.CONTINUED and not replays:
            self.batch.add("continue_runs", run.id, run.past.successor)
        self.loop.finish(run, status, encoded)

    def grown(self, run: Any, cmd: Any) -> HistoryTooLong | None:
        """The run calls a command beyond what its history is warned at: the error where it may not."""
        error = too_long(run, cmd)
        if error is None and run.history is None:
            name, most = run.workflow.name, run.workflow.info.max_steps
            log.warning("run %s of %s has called %d of at most %d steps; it should continue as a new run", UUID(bytes=run.id), name, cmd.seq, most)
        return error

    def time_out(self, run: Any) -> None:
        """The run's `timeout=` is over: it ends here, whatever it was doing, once what it has named is undone. A step that is executing is given up."""
        error = time_is_over(run.workflow)
        if run.past is None or not run.past.undo:
            self._end(run, core.TIMED_OUT, codec.encode_error(error))
            return
        mark = Command()
        mark.kind, mark.step, mark.run, mark.value = core.CANCEL, TIMEOUT, run, b"{}"
        run.past.timed_out = True
        self.loop.abandon(run, mark)
        begin(self.loop, run, error)

    def terminate(self, run: Any, reason: str) -> None:
        """Somebody has asked this worker to end the run without its code."""
        self._end(run, TERMINATED, _ended_from_outside(RunTerminated, reason))

    def _end(self, run: Any, status: int, encoded: bytes) -> None:
        """End a run whatever it is doing; nothing of its code runs."""
        for cmd in list((run.open or {}).values()):
            if isinstance(cmd.extra, Call):
                self.executors.give_up(cmd.extra)
        self.loop.unwind(run)
        self.loop.live[run.id] = run
        self.loop.finish(run, status, encoded)

    def ended(self, run: Any, status: int) -> None:
        """A run ended that has more than rows of steps: timers, children, a parent, steps that nobody waits for any more."""
        if run.timers:
            self.batch.add("drop_timers", run.id, (run.id, None))
        past = run.past
        lives = run.resumed != 0 if past is None else past.is_heir or any(kid.status is None for kid in past.kids.values())  # or: its history was never read
        if lives and status != core.CONTINUED:
            self.batch.add("close_children", run.id, (run.id,))
        if run.parent is not None and status != core.CONTINUED:  # its successor will have ended
            self.batch.add("insert_children_done", run.id, (run.parent, 1, int(status != core.COMPLETED)))
        for cmd in list((run.open or {}).values()):
            if isinstance(cmd.extra, Call):
                self.executors.give_up(cmd.extra)

    def dropped(self, run: Any, cmd: Any) -> None:
        """A branch lost: stop what it had begun."""
        if isinstance(cmd.extra, Call):
            if cmd.extra.live:
                run.executing -= 1
            self.executors.give_up(cmd.extra)
        elif cmd.kind == core.TIMER:
            self.batch.add("drop_timers", run.id, (run.id, cmd.seq))
        elif cmd.kind == core.SIGNAL:
            self.signals.dropped(run, cmd)
        elif cmd.kind == core.CHILD:
            self.child_lost(run, cmd)

    def child_lost(self, run: Any, cmd: Any) -> None:
        """Nobody waits for a child any more that was started to be waited for. One that was started by itself goes on: who has it may ask again."""
        kid = None if run.past is None else run.past.kids.get(cmd.seq)
        if kid is not None and kid.status is None and not isinstance(cmd.extra, tuple):
            self.batch.add("lose_children", run.id, (run.id, cmd.seq))

    # ── waiting ──────────────────────────────────────────────────────────────────────────────────────────────────

    def quiet(self, run: Any) -> None:
        """Nothing of this run executes or is in flight: stay for a short wait, else leave memory."""
        if not run.open or run.in_tx or self.watchdog.holds(run):
            return
        waits = sorted((seq, cmd) for seq, cmd in run.open.items() if cmd.kind != core.HANDLED)  # that waits for other commands
        if not waits or run.past is not None and run.past.handling is not None and not run.past.handling.looked:
            return
        dues = [cmd for _, cmd in waits if is_due_once(cmd)]
        children = [cmd for _, cmd in waits if cmd.kind == core.CHILD]
        signals = [cmd for _, cmd in waits if cmd.kind == core.SIGNAL]
        tokens = [cmd for _, cmd in waits if isinstance(cmd.extra, Entrusted)]
        if sum(cmd.kind != core.SIGNAL for cmd in dues) + len(children) + len(signals) + len(tokens) < len(waits):
            return
        if not all(isinstance(cmd.extra, Listening) and cmd.extra.settled() for cmd in signals):
            return
        stay_s = STAY_BESIDE_CHILDREN_S if children else STAY_S
        if dues and min(cmd.extra.due_at for cmd in dues) - self._time.time() <= stay_s:
            for cmd in dues:
                self.watch(run, cmd)
            return
        if signals and not children and self.signals.stays(run, signals):
            return
        for each in tokens:
            self.batch.add("wake_completed", run.id, (run.id, each.seq, each.attempt))
        self._leave(run, waits, dues, children, signals)

    def rest(self, run: Any) -> None:
        """Have it asked whether anything of it is left to do."""
        if not run.gone and run.batch == 0 and not run.in_tx:
            self.loop.ready.append(run)
            self.pump()

    def _leave(self, run: Any, waits: list[tuple[int, Any]], dues: list[Any], children: list[Any], signals: list[Any]) -> None:
        seq, cmd = waits[0]
        entrusted = [cmd.extra.wake_us for _, cmd in waits if isinstance(cmd.extra, Entrusted)]
        ready_at = min([*(due.extra.due_us for due in dues), *entrusted], default=INFINITY)
        kinds = {TOKEN if isinstance(cmd.extra, Entrusted) else _WAIT_KINDS[cmd.kind] for _, cmd in waits}
        kind = kinds.pop() if len(kinds) == 1 else ANY_OF
        facts: dict[str, Any] = {"waits_for": [f"{_word(cmd)} {cmd.step.name} at seq {at}" for at, cmd in waits[:5]], "of": len(waits)}
        target, failed = self._wake_at(run, waits, children) if children else (None, None)
        if signals:
            facts |= {"signals": sorted({cmd.step.name for cmd in signals})[:5], "until": until(signals)}
            row: Row = (run.id, *self.signals.parking(run, signals), target, failed, ready_at, seq, cmd.step.name, json.dumps(facts), kind, self.pin(run), since_us(cmd))
            self.batch.add("park_on_signals", run.id, row)
        elif children:
            row = (run.id, target, failed, ready_at, seq, cmd.step.name, json.dumps(facts), kind, self.pin(run), since_us(cmd))
            self.batch.add("park_on_children", run.id, row)
        else:
            how = SLEPT if len(waits) == 1 and cmd.step is SLEEP else RESUMED
            self.batch.add("release", run.id, (run.id, ready_at, kind, json.dumps(facts), seq, cmd.step.name, cmd.attempt, how, self.pin(run), since_us(cmd)))
        self._goes(run)

    def _wake_at(self, run: Any, waits: list[tuple[int, Any]], children: list[Any]) -> tuple[int, int]:
        """After how many ended (and failed) children the run can go on: all of them where it gathers them, else the next one."""
        kids = run.past.kids.values()
        ended = sum(kid.status is not None for kid in kids)
        failed = sum(kid.status is not None and kid.status != core.COMPLETED for kid in kids)
        needs_all = len(children) == len(waits) and ended + len(children) == len(kids) and all(_gathered(cmd) for cmd in children)
        return (len(kids) if needs_all else ended + 1), failed

    def park(self, run: Any, kind: int, detail: dict[str, Any], cmd: Any = None) -> None:
        """Put a run aside for good: nothing of it executes until somebody wakes it."""
        seq, name = (cmd.seq, cmd.step.name) if cmd is not None else (None, None)
        pin = self.pin(run) if kind != NONDETERMINISM and has_begun(run) else None  # what this code can't replay is not of its version
        resumed = run.resumed if kind == CODE_MISSING else RESUMED  # who has its code finds it as it was
        self.batch.add("release", run.id, (run.id, INFINITY, kind, json.dumps(detail), seq, name, None, resumed, pin, None))
        self._goes(run)

    def give_back(self, run: Any) -> None:
        """Ready at once, for any worker."""
        pin = self.pin(run) if has_begun(run) else None  # what has not begun is of no version yet
        self.batch.add("release", run.id, (run.id, self.loop.now_us(), 1, None, None, None, None, 1, pin, None))
        self._goes(run)

    @staticmethod
    def pin(run: Any) -> str | None:
        """The version that a run stays with from here on, whoever takes it up: that of this code, with the patches that the run has met."""
        return versions.pin(run.workflow.version, run.patches) if run.workflow is not None else None

    def pause(self, run: Any) -> None:
        """Put a run aside that somebody paused: nothing of it executes, and nothing begins."""
        waits = sorted((run.open or {}).items())
        cmd = waits[0][1] if waits else run.call
        seq, name = (cmd.seq, cmd.step.name) if cmd is not None else (None, None)
        self.batch.add("park_paused", run.id, (run.id, seq, name, 1, self.pin(run)))
        self._goes(run)

    def _goes(self, run: Any) -> None:
        self.loop.touch(run)
        run.in_tx = True  # nothing may begin or be recorded any more
        self.batch.leaving.append(run)

    def broken(self, run: Any, error: BaseException) -> None:
        """The engine itself failed at this run: put it aside, so that neither its worker nor its neighbours pay for it."""
        log.error("run %s is parked: the engine failed at it", UUID(bytes=run.id), exc_info=error)
        if not run.gone and not run.in_tx:
            self.park(run, CRASH_LOOP, {"why": "the engine failed at this run", "error": codec.brief(error)})

    # ── what no replay could answer ──────────────────────────────────────────────────────────────────────────────

    def check_history(self, run: Any, cmd: Any) -> None:
        check(run, cmd)

    def mismatch(self, run: Any, error: ReplayMismatch) -> None:
        log.error("%s", error)
        self.park(run, NONDETERMINISM, {"seq": error.seq, "expected": error.expected, "found": error.found, "place": error.place, "version": error.version, "error": str(error)})

    misuse, unawaited = staticmethod(refused), staticmethod(unawaited)  # the errors for something awaited that is no durable command, and for one that nobody awaited


_KIND_WORDS = {core.STEP: "retry of", core.TIMER: "timer", core.CHILD: "child run", core.START: "start of", core.SIGNAL: "signal"}
_WAIT_KINDS = {core.STEP: BACKOFF, core.TIMER: TIMER, core.CHILD: CHILD, core.SIGNAL: SIGNAL}


def _ended_from_outside(kind: type[Exception], reason: str) -> bytes:
    """As `error_json` of SQL writes it."""
    why = reason or f"it was {kind.how}"  # type: ignore[attr-defined]
    return codec.encode_raw(codec.StoredError(f"{kind.__module__}.{kind.__qualname__}", why, [why]))


def _not_registered(workflow: str) -> LookupError:
    return LookupError(f"workflow {workflow} was defined after this worker had registered its workflows; define it at import")


def _word(cmd: Any) -> str:
    return "token of" if isinstance(cmd.extra, Entrusted) else _KIND_WORDS[cmd.kind]


def _gathered(cmd: Any) -> bool:
    """Whether the root waits for *cmd* through nothing but gather, so that it goes on only when all are there."""
    waiter = cmd.waiter
    while type(waiter) is tuple:
        group = waiter[0]
        if group.kind != core.GATHER:
            return False
        waiter = group.waiter
    return waiter is None
