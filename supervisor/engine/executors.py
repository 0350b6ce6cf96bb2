"""Where step bodies run that do not run inline: a pool of threads for `def`, tasks of the event loop for `async def`, processes where the step says so.

Owns the threads, the tasks, timeouts, and the measurements by which a `def` step moves onto the loop's own thread.
A call that was given up (timeout, cancelled branch) may still be running; what it returns is dropped, and its thread is replaced.
When half of the threads are lost to such calls, the worker is unfit: it is told, and ends.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue
from types import CoroutineType
from typing import Any
from uuid import UUID

from supervisor._fastpath.wire import Watched
from supervisor.core.context import executing, given
from supervisor.core.errors import DefinitionError, HeartbeatMissed
from supervisor.engine import terms
from supervisor.engine.processes import Processes

log = logging.getLogger("pgsupervisor.engine")

PROMOTE_AFTER_CALLS = 50
PROMOTE_BELOW_US = 100
LOST_AFTER_S = 2.0  # a thread whose call ends so soon after it was given up was never lost
STRIKES, STRIKES_S, STRIKES_LOST_US = 3, 10.0, 100_000


class Call:
    """One attempt of a step in a thread, a task or a process. `live` until it ended or was given up."""

    __slots__ = ("beat_at", "command", "deadline", "holds", "limit_s", "live", "lost", "published", "pulse", "run", "started", "task", "timer", "told")

    def __init__(self, run: Any, command: Any, started: int) -> None:
        self.run = run
        self.command = command
        command.extra = self  # before the body can ask: current() finds it there
        self.started = started
        self.live = True
        self.holds = False  # a thread of the pool is inside of it
        self.lost = False  # that thread counts as lost
        self.published = False  # its run's task row names this step
        self.deadline: datetime | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.limit_s = 0.0  # what the timer was set to
        self.pulse: asyncio.TimerHandle | None = None  # looks for signs of life
        self.beat_at = 0.0  # the last one, by time.monotonic()
        self.told: threading.Event | None = None  # made by the body, where it waits to be told that it was given up


class Executors:
    """Threads and tasks of one worker.

    finished(call, value, error, ended_us)   called on the loop's thread for every call that was not given up
    thread_slots, task_slots                 black-box slots; a thread or task beyond them is not seen there
    processes                                for steps with run="process"; None where the app has none
    unfit(why)                               called when this process has lost too much to go on
    """

    def __init__(
        self, threads: int, thread_slots: list[Any], task_slots: list[Any], clock: Callable[[], int],
        finished: Callable[[Call, Any, BaseException | None, int], None], processes: Processes | None, unfit: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.threads = threads
        self._processes, self._unfit = processes, unfit
        if processes is not None:
            processes.unfit = unfit
        self._clock = clock
        self._finished = finished
        self._thread_slots, self._task_slots = list(thread_slots), list(task_slots)
        self._queue: SimpleQueue[Call | None] = SimpleQueue()
        self._done: deque[tuple[Call, Any, BaseException | None, int, int, int, int]] = deque()
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._woken = False
        self._started = 0
        self._stuck = 0
        self._lost = 0  # threads inside of calls that were given up a while ago
        self._in_processes = 0
        self._tallies: dict[Any, list[tuple[int, int]]] = {}
        self.beats: Any = None
        self.busy = 0  # calls given to threads and not ended
        self.ended = 0  # calls that threads have ended
        self.mean_us = 0.0  # how long they take, the last ones most
        self.calls: set[Call] = set()  # not ended and not given up
        self._detached: set[Call] = set()
        self.doing: dict[int, Call] = {}  # by thread, given up or not

    @property
    def backlog(self) -> int:
        """Calls that wait for a thread or a process."""
        return max(0, self.busy - self._stuck - self.threads, self._in_processes - self.threads)

    @property
    def active(self) -> int:
        """Calls that somebody waits for."""
        return len(self.calls)

    @property
    def idle(self) -> int:
        return max(0, self.threads - max(self.busy - self._stuck, self._in_processes))

    def begin(self, run: Any, command: Any) -> Call:
        """Run a step where it belongs."""
        if command.step.is_async:
            return self.task(run, command)
        if command.step.info.place == "process":
            return self.process(run, command)
        return self.thread(run, command)

    # ── threads ──────────────────────────────────────────────────────────────────────────────────────────────────

    def thread(self, run: Any, command: Any) -> Call:
        """Run a `def` step in the pool."""
        call = Call(run, command, self._clock())
        self.calls.add(call)
        self.busy += 1
        self._limit(call)
        self._queue.put(call)
        self._start_thread()
        return call

    def _start_thread(self) -> None:
        """One more thread, unless there are as many as calls, or as may run besides those that are stuck."""
        if self._started >= min(self.busy, self.threads + self._stuck):
            return
        slot = self._thread_slots.pop() if self._thread_slots else None
        self._started += 1
        threading.Thread(target=self._work, args=(slot,), name=f"step-{self._started}", daemon=True).start()

    def _work(self, slot: Any) -> None:
        me = threading.get_ident()
        if slot is not None:
            slot.own()
        while (call := self._queue.get()) is not None:
            if not call.live:
                self._post(call, None, None, 0, 0, 0)
                continue
            command = call.command
            call.holds = True
            slept = _sleeps()
            started, busy = time.perf_counter_ns(), time.thread_time_ns()
            call.started = self._clock()
            if slot is not None:
                slot.enter(call.run.id, command.seq, call.started, command.step.wire_name)
            call.beat_at = time.monotonic()
            token, mine = executing.set(command), given.set(call)
            self.doing[me] = call
            value = error = None
            try:
                value = command.step.fn(*command.args, **(command.kwargs or {}))
            except BaseException as raised:  # noqa: BLE001 - the workflow decides what it means
                error = raised
            del self.doing[me]
            executing.reset(token)
            given.reset(mine)
            if slot is not None:
                slot.leave()
            took_us, busy_us = (time.perf_counter_ns() - started) // 1000, (time.thread_time_ns() - busy) // 1000
            self._post(call, value, error, took_us, busy_us, took_us if _sleeps() > slept else busy_us)

    def _post(self, call: Call, value: Any, error: BaseException | None, took_us: int, busy_us: int, own_us: int) -> None:
        self._done.append((call, value, error, self._clock(), took_us, busy_us, own_us))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._collect, context=self._context)

    def _collect(self) -> None:
        self._woken = False
        while self._done:
            call, value, error, ended, took_us, busy_us, own_us = self._done.popleft()
            self.busy -= 1
            self.ended += 1
            self.mean_us += (took_us - self.mean_us) / 8
            if call.live:
                self._tally(call.command.step, busy_us, own_us)
                self._end(call, value, error, ended)
            else:
                self._stuck -= 1
                self._lost -= call.lost
            call.holds = False

    def _tally(self, step: Any, busy_us: int, own_us: int) -> None:
        """Count a call; a step that has been quick for 50 calls moves onto the loop's thread.

        Quick: it used little CPU every time (all but one), and little time of its own most of the time: the time that a
        preempted thread was off the CPU is not its own. The rest may be other threads' that held the interpreter, which a
        measurement from inside can't tell from waiting.
        """
        if step.inline or step.special or step.info.place == "thread" or step in _DEMOTED:
            return
        tally = self._tallies.setdefault(step, [])
        tally.append((busy_us, own_us))
        if len(tally) >= PROMOTE_AFTER_CALLS:
            busy, own = sorted(busy for busy, _ in tally), sorted(own for _, own in tally)
            step.inline = busy[-2] < PROMOTE_BELOW_US and own[len(own) * 4 // 5] < PROMOTE_BELOW_US
            tally.clear()

    # ── tasks ────────────────────────────────────────────────────────────────────────────────────────────────────

    def task(self, run: Any, command: Any) -> Call:
        """Run an `async def` step as a task of the event loop."""
        call = Call(run, command, self._clock())
        self.calls.add(call)
        self._limit(call)
        call.task = self._loop.create_task(self._await(call), context=self._context.copy())
        return call

    def process(self, run: Any, command: Any) -> Call:
        """Run a `def` step in a process of its own, as a task that talks with it."""
        call = Call(run, command, self._clock())
        self.calls.add(call)
        self._in_processes += 1
        call.task = self._loop.create_task(self._in_process(call), context=self._context.copy())
        return call

    async def _in_process(self, call: Call) -> None:
        started = time.perf_counter()
        try:
            await self._await(call)
        finally:
            self._in_processes -= 1
            self.ended += 1
            self.mean_us += ((time.perf_counter() - started) * 1e6 - self.mean_us) / 8

    def _call_process(self, call: Call) -> Any:
        if self._processes is None:
            raise DefinitionError(f"step {call.command.step.name}: run=\"process\" was not known when this worker was started; define the step at import")

        def begun() -> float | None:
            call.started = self._clock()
            return self._deadline(call)

        executing = self._processes.call(call.command, begun, lambda details: self.beats.note(call.command, call, details))
        traces = self._processes.traces
        return executing if traces is None else traces.in_process(call, executing)

    async def _await(self, call: Call) -> None:
        command = call.command
        slot = self._task_slots.pop() if self._task_slots else None
        if slot is not None:
            slot.enter(call.run.id, command.seq, call.started, command.step.wire_name)
        executing.set(command)
        given.set(call)
        value = error = None
        try:
            body = command.step.fn(*command.args, **(command.kwargs or {})) if command.step.is_async else self._call_process(call)
            value = await (Watched(body, slot) if slot is not None and type(body) is CoroutineType else body)
        except BaseException as raised:  # noqa: BLE001
            error = raised
        finally:
            if slot is not None:
                slot.leave()
                self._task_slots.append(slot)
        if call.live and call.timer is not None and (late_s := self._loop.time() - call.timer.when()) > 0:
            log.warning(
                "step %s (run %s, seq %d) ended %.1f s after its time of %g s was over, and counts as timed out: the event loop was held so long that nothing could"
                " cancel it; code of an async def step that computes or blocks (time.sleep) does that: await asyncio.sleep or asyncio.to_thread, or make it a def step",
                command.step.name, UUID(bytes=call.run.id), command.seq, late_s, call.limit_s,
            )  # fmt: skip
            self._expire(call, call.limit_s)
        elif call.live:
            self._end(call, value, error, self._clock())

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _deadline(self, call: Call) -> float | None:
        """How long a try that begins now may take."""
        limit_s = terms.limit_s(call.run, call.command, self._clock())
        if limit_s is not None:
            call.deadline = datetime.now(UTC) + timedelta(seconds=limit_s)
        return limit_s

    def _limit(self, call: Call) -> None:
        limit_s = self._deadline(call)
        if limit_s is not None:
            call.limit_s = limit_s
            call.timer = self._loop.call_later(limit_s, self._expire, call, limit_s, context=self._context)
        if call.command.step.info.heartbeat_s is not None:
            call.beat_at = time.monotonic()
            self._listen(call, call.command.step.info.heartbeat_s)

    def _expire(self, call: Call, limit_s: float) -> None:
        if call.live:
            self._end_early(call, terms.over(call.command, limit_s))

    def _listen(self, call: Call, in_s: float) -> None:
        call.pulse = self._loop.call_later(in_s, self._listened, call, context=self._context)

    def _listened(self, call: Call) -> None:
        """Has it said that it is at work? One that waits for a thread is given its time when it has one."""
        if not call.live:
            return
        every_s = call.command.step.info.heartbeat_s
        if call.task is None and not call.holds:
            call.beat_at = time.monotonic()
        left_s = call.beat_at + every_s - time.monotonic()
        if left_s > 0:
            self._listen(call, left_s)
        else:
            self._end_early(call, HeartbeatMissed(f"step {call.command.step.name} gave no sign of life for {every_s:g} s (heartbeat)"))

    def _end_early(self, call: Call, error: BaseException) -> None:
        self.give_up(call)
        self._finished(call, None, error, self._clock())

    def give_up(self, call: Call) -> None:
        """Nobody waits for this call any more. A task is cancelled; a thread is told, and another one takes its place, for it can't be ended."""
        if not call.live:
            return
        self.beats.collect()
        call.live = False
        if call.told is not None:
            call.told.set()
        self.calls.discard(call)
        self._disarm(call)
        if call.task is not None:
            call.task.cancel()
        elif call not in self._detached:
            self._stuck += 1
            self._start_thread()
            self._loop.call_later(LOST_AFTER_S, self._count_lost, call, context=self._context)

    def _count_lost(self, call: Call) -> None:
        """Is the thread of a call that was given up still inside of it? Then nothing but the end of the process ends it."""
        if not call.holds:
            return
        call.lost = True
        self._lost += 1
        if self._lost * 2 >= self.threads:
            what = f"{self._lost} of {self.threads} threads are inside of calls that nobody waits for any more, the last one of step {call.command.step.name}"
            self._unfit(f"{what}; a step that may hang is ended by run=\"process\" with a timeout")

    # ── calls that the watchdog moved off the loop's thread ──────────────────────────────────────────────────────

    def detach(self, command: Any, for_us: int) -> tuple[Call, Any]:
        """An inline call has become one in a thread that is not of the pool; returns it and its slot of the black box."""
        call = Call(command.run, command, self._clock() - for_us)
        self.calls.add(call)
        self._detached.add(call)
        slot = self._task_slots.pop() if self._task_slots else None
        if slot is not None:
            slot.enter(call.run.id, command.seq, call.started, command.step.wire_name)
        return call, slot

    def detached_ended(self, call: Call, slot: Any, value: Any, error: BaseException | None, ended: int) -> None:
        self._detached.discard(call)
        if slot is not None:
            slot.leave()
            self._task_slots.append(slot)
        if call.live:
            self._end(call, value, error, ended)

    def _end(self, call: Call, value: Any, error: BaseException | None, ended: int) -> None:
        self.beats.collect()  # what a try said comes before its end
        call.live = False
        self.calls.discard(call)
        self._disarm(call)
        self._finished(call, value, error, ended)

    @staticmethod
    def _disarm(call: Call) -> None:
        for timer in (call.timer, call.pulse):
            if timer is not None:
                timer.cancel()
        call.timer = call.pulse = None

    def stop(self) -> None:
        for _ in range(self._started):
            self._queue.put(None)
        if self._processes is not None:
            self._processes.stop()


def _sleeps() -> int:
    """How often the calling thread has given up the CPU by itself."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class OffCpu:
    """How long this thread was ready but not running, since `begin`: what another process's turn costs is no step's fault.

    One getrusage per group of steps, so that the common, quick call pays nothing.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._wall = time.perf_counter()
        self._usage = resource.getrusage(resource.RUSAGE_THREAD)

    def explains(self, took_us: int) -> bool:
        """Whether a call of *took_us* was slow because the thread was preempted: it never slept, and was off the CPU for about as long."""
        usage = resource.getrusage(resource.RUSAGE_THREAD)
        slept = usage.ru_nvcsw > self._usage.ru_nvcsw
        busy_s = usage.ru_utime + usage.ru_stime - self._usage.ru_utime - self._usage.ru_stime
        off_s = time.perf_counter() - self._wall - busy_s
        return not slept and off_s * 1e6 > took_us * 0.7


_DEMOTED: set[Any] = set()
_strikes: dict[Any, list[tuple[float, int]]] = {}


def demote(step: Any, now_s: float, took_us: int) -> None:
    """An inline call took too long. A step that loses a tenth of a second within ten goes back to threads for good, unless it was declared inline.

    Not at once: a call may also have waited for the interpreter, which another thread held, and a quick step that goes
    to threads by mistake costs five times as much for as long as the worker lives.
    """
    if step.info.place == "inline":
        return
    strikes = [strike for strike in _strikes.get(step, ()) if now_s - strike[0] < STRIKES_S] + [(now_s, took_us)]
    _strikes[step] = strikes
    if len(strikes) >= STRIKES and sum(took for _, took in strikes) >= STRIKES_LOST_US:
        step.inline = False
        _DEMOTED.add(step)


def demote_now(step: Any) -> None:
    """A step held the loop until the watchdog took it away: back to threads for good, unless it was declared inline."""
    if step.info.place != "inline":
        step.inline = False
        _DEMOTED.add(step)
