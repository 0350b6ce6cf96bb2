"""The engine's own worker, in the test's process, on tables in memory or on a real session; steps are executed one after another, or played by mocks.

Everything that decides (what a command becomes, retries, replay, cancellation, waits) is supervisor.engine. Owned here: that it does not poll, for
whoever changes something tells it; and how the bodies of steps are executed, so that the same test does the same in the same order.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from datetime import datetime, timedelta
from queue import SimpleQueue
from typing import Any

from supervisor.core import context, registry
from supervisor.core.context import executing, given
from supervisor.core.errors import HeartbeatMissed
from supervisor.db.worker_calls import Identity
from supervisor.engine import terms
from supervisor.engine.batch import Batch
from supervisor.engine.beats import Beats
from supervisor.engine.commands import Commands
from supervisor.engine.executors import Call as Executed
from supervisor.engine.executors import Executors
from supervisor.engine.rest import Board, Rest
from supervisor.engine.watchdog import Watchdog
from supervisor.engine.worker import Worker, WorkerOptions
from supervisor.testing.clock import Clock, DrivenLoop, VirtualLoop
from supervisor.testing.errors import MockUsedUp, NotInMemory, StepNotMocked
from supervisor.testing.ids import SeededIds
from supervisor.testing.mocks import Call, Mock, Mocks
from supervisor.testing.session import MemorySession
from supervisor.testing.statements import Statements
from supervisor.testing.tables import COMPLETED, CRASHED, Seen, StepRow, Tables

IN_FLIGHT = 10_000
INF = float("inf")


@contextmanager
def running(events: asyncio.AbstractEventLoop) -> Iterator[None]:
    """While the parts of a worker are made they look for the loop that they live on; a test's own loop is hidden."""
    before = asyncio._get_running_loop()
    asyncio._set_running_loop(events)
    try:
        yield
    finally:
        asyncio._set_running_loop(before)


class Told(Rest):
    """A worker that found nothing rests until it is told."""

    def _wait(self, wait_s: float) -> None:
        self.look_at = INF


class Unwatched(Watchdog):
    """No step runs on the loop's own thread."""

    def before_group(self) -> None:
        pass


class OneByOne(Executors):
    """Bodies of steps: `def` ones in a thread that the loop waits for, `async def` ones as tasks, mocked ones as their mocks say.

    clock    the moment, for deadlines; passes: told how long a body was waited for in vain, where time is not the machine's
    fail     told of what ends the test
    """

    def __init__(
        self, clock: Callable[[], datetime], passes: Callable[[float], None] | None, now_us: Callable[[], int], finished: Any, mocks: Mocks,
        fail: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        super().__init__(1, [], [], now_us, finished, None, lambda _: None)
        self._now, self._passes, self._mocks, self._fail = clock, passes, mocks, fail
        self._played: dict[Executed, asyncio.TimerHandle | asyncio.Handle] = {}
        self._heard: dict[Executed, float] = {}
        self._thread: StepThread | None = None

    def begin(self, run: Any, command: Any) -> Executed:
        call = self._mocks.note(run, command)
        mock = self._mocks.of(command.step)
        if mock is not None:
            return self._play(run, command, mock, call)
        if self._mocks.strict:
            self._fail(StepNotMocked(command.step.name, str(call)))
            return self._known(run, command)
        return self.task(run, command) if command.step.is_async else self._in_thread(run, command)

    def _known(self, run: Any, command: Any) -> Executed:
        call = Executed(run, command, self._clock())
        self.calls.add(call)
        self._limit(call)
        return call

    def _deadline(self, call: Executed) -> float | None:
        limit_s = super()._deadline(call)
        if limit_s is not None:
            call.deadline = self._now() + timedelta(seconds=limit_s)
        return limit_s

    def _listen(self, call: Executed, in_s: float) -> None:
        self._heard[call] = call.beat_at
        super()._listen(call, in_s)

    def _listened(self, call: Executed) -> None:
        """By the environment's time: has it said anything since it was last looked?"""
        heard, every_s = self._heard.pop(call, 0.0), call.command.step.info.heartbeat_s
        if call.live and call.beat_at != heard:
            self._listen(call, every_s)
        elif call.live:
            self._end_early(call, silent(call, every_s))

    # ── mocks ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _play(self, run: Any, command: Any, mock: Mock, call: Call) -> Executed:
        made = self._known(run, command)
        self._played[made] = self._loop.call_later(mock.takes_s, self._played_now, made, mock, call, context=self._context.copy())
        return made

    def _played_now(self, made: Executed, mock: Mock, call: Call) -> None:
        self._played.pop(made, None)
        value, error = outcome_of(made.command, made, lambda: mock.play(call), self._fail)
        if inspect.isawaitable(value):
            made.task = self._loop.create_task(self._await_mock(made, value), context=self._context.copy())
        elif made.live:
            self._end(made, value, error, self._clock())

    async def _await_mock(self, made: Executed, waits: Any) -> None:
        executing.set(made.command)
        given.set(made)
        value = error = None
        try:
            value = await waits
        except BaseException as raised:  # noqa: BLE001 - the workflow decides what it means
            error = raised
        if made.live:
            self._end(made, value, error, self._clock())

    # ── bodies ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _in_thread(self, run: Any, command: Any) -> Executed:
        """Nothing else happens meanwhile; who has not ended when its time is over is left behind."""
        made = Executed(run, command, self._clock())
        self.calls.add(made)
        limit_s = self._deadline(made)
        if self._thread is None:
            self._thread = StepThread()
        ended = self._thread.run(command, made)
        error = self._overdue(made, ended, limit_s)
        if error is None:
            self._loop.call_soon(self._ended, made, *ended.outcome, context=self._context)
        else:
            self._thread = None
            self._loop.call_soon(self._left_behind, made, error, context=self._context)
        return made

    def _overdue(self, made: Executed, ended: _Ended, limit_s: float | None) -> BaseException | None:
        """Wait for a body; why it is waited for no longer. The environment's time is moved by what was waited in vain."""
        every_s, waited_s = made.command.step.info.heartbeat_s, 0.0
        while True:
            heard = made.beat_at
            rest_s = min((s for s in (every_s, None if limit_s is None else limit_s - waited_s) if s is not None), default=None)
            if ended.wait(rest_s):
                return None
            waited_s += rest_s or 0.0
            if limit_s is not None and waited_s >= limit_s:
                error: BaseException = terms.over(made.command, limit_s)
            elif made.beat_at == heard:
                error = silent(made, every_s)
            else:
                continue
            if self._passes is not None:
                self._passes(waited_s)
            return error

    def _left_behind(self, made: Executed, error: BaseException) -> None:
        if made.live:
            self._end_early(made, error)

    def _ended(self, made: Executed, value: Any, error: BaseException | None) -> None:
        if made.live:
            self._end(made, value, error, self._clock())

    def give_up(self, call: Executed) -> None:
        if call.task is not None:
            super().give_up(call)
            return
        if not call.live:
            return
        self.beats.collect()
        call.live = False
        self.calls.discard(call)
        self._disarm(call)
        if (handle := self._played.pop(call, None)) is not None:
            handle.cancel()
        if call.told is not None:
            call.told.set()

    def stop(self) -> None:
        for call in list(self.calls):
            self.give_up(call)
        if self._thread is not None:
            self._thread.stop()
            self._thread = None


def silent(call: Executed, every_s: float) -> HeartbeatMissed:
    return HeartbeatMissed(f"step {call.command.step.name} gave no sign of life for {every_s:g} s (heartbeat)")


class _Ended(threading.Event):
    """Set when a body has ended; `outcome` is (value, error) then."""

    outcome: tuple[Any, BaseException | None] = (None, None)


class StepThread:
    """One thread for the bodies of `def` steps, which are the plain function there, as in a worker's threads."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Any, Executed, _Ended] | None] = SimpleQueue()
        threading.Thread(target=self._work, name="pgsupervisor-test-step", daemon=True).start()

    def run(self, command: Any, made: Executed) -> _Ended:
        ended = _Ended()
        self._queue.put((command, made, ended))
        return ended

    def stop(self) -> None:
        self._queue.put(None)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            command, made, ended = job
            ended.outcome = outcome_of(command, made, lambda: command.step.fn(*command.args, **(command.kwargs or {})), None)  # noqa: B023
            ended.set()


def outcome_of(
    command: Any, made: Executed | None, body: Callable[[], Any], fail: Callable[[BaseException], None] | None
) -> tuple[Any, BaseException | None]:
    """What *body* returns or raises, called as the body of that step, in that try of it."""
    token, mine = executing.set(command), given.set(made)
    try:
        return body(), None
    except MockUsedUp as error:
        if fail is not None:
            fail(error)
        return None, error
    except BaseException as error:  # noqa: BLE001 - the workflow decides what it means
        return None, error
    finally:
        executing.reset(token)
        given.reset(mine)


class StoredAtOnce(Beats):
    """Signs of life are stored as they come: no clock of this environment says when a second is over."""

    def _store_due(self) -> None:
        for key in list(self._last):
            self._store(key)


class WithoutDatabase:
    """Transactional steps where there is no transaction: mocked, or refused. What a mock returns is recorded as the transaction would."""

    def __init__(self, statements: Statements, loop: asyncio.AbstractEventLoop, mocks: Mocks, done: Any, fail: Callable[[BaseException], None], now_us: Any) -> None:
        self._statements, self._loop, self._mocks, self._done, self._fail, self._now = statements, loop, mocks, done, fail, now_us
        self.worker = 0
        self.thread = self.doing = None

    def submit(self, run: Any, command: Any) -> None:
        call, mock = self._mocks.note(run, command), self._mocks.of(command.step)
        if mock is None:
            self._fail(NotInMemory(f"step {command.step.name} is transactional and has no mock: its transaction"))
        else:
            self._loop.call_later(mock.takes_s, self._play, run, command, mock, call)

    def _play(self, run: Any, command: Any, mock: Mock, call: Call) -> None:
        if run.gone:
            return
        now, step = self._now(), command.step
        value, error = outcome_of(command, None, lambda: mock.play(call), self._fail)
        if error is None:
            try:
                encoded, value = step.shape.settle(value)
                self._statements.add_step(run.id, StepRow(command.seq, run.pos, command.kind, COMPLETED, step.name, encoded, now, now, self.worker))
            except Exception as refused:  # noqa: BLE001 - a value that can't be stored fails the attempt
                value, error = None, refused
        self._done([(run, command, value, error, now, now)])

    def go_on(self, identity: Identity) -> None:
        self.worker = identity.id

    def stop(self) -> None:
        pass


class DrivenWorker(Worker):
    """A worker that others drive. `failure` is what ends the test, once there is such a thing; `killed`: it is to die, and does nothing more.

    replay   every run leaves memory after each of its commits, and goes on by a replay
    """

    failure: BaseException | None = None
    killed = False

    def __init__(self, options: WorkerOptions, events: DrivenLoop, mocks: Mocks, replay: bool) -> None:
        super().__init__(options)
        self.events, self.mocks, self.replay = events, mocks, replay
        self.known = registry.workflows()
        self.facing: Any = None  # what user code of this process speaks to
        self.token_key = b""
        self.capacity = IN_FLIGHT
        self._recorded: dict[bytes, tuple[int, int]] = {}

    def begin(self) -> None:
        """As `run`, but that others drive the loop."""
        self._time = self.events
        with running(self.events):
            self._end = self.events.create_future()
            self._context = copy_context()
            self.rest = Told(Board(1).seat(0), self._schedule, self.events.call_later, self.events.time)
            self._be_born()
            self._watch()
        self.facing, self.token_key = context.loop, context.token_key
        for polled in (self.signals, self.updates, self.cancels, self.requests):
            polled._timed = True  # as if it were to look again by itself in a moment: it is told instead
        self._schedule()

    def _take_over_steps(self, clock: Callable[[], datetime], passes: Callable[[float], None] | None) -> None:
        commands: Commands = self.commands
        self.executors = commands.executors = OneByOne(clock, passes, self.loop.now_us, commands.ended_call, self.mocks, self.ends)
        self.beats = commands.beats = self.executors.beats = StoredAtOnce(commands, self.events.call_soon_threadsafe)
        context.note_beat = self.beats.note
        commands.may_inline = False
        for step in registry.steps():
            step.inline = False
        self.watchdog = commands.watchdog = Unwatched(self.loop, commands, self._schedule, self._walk_again, self._leave)

    def ends(self, error: BaseException) -> None:
        """The test can't go on."""
        if self.failure is None:
            self.failure = error
        self.events.stop()

    def fail(self, error: BaseException) -> None:
        self.ends(error)

    # ── told from outside ────────────────────────────────────────────────────────────────────────────────────────

    def look(self) -> None:
        """Something may be to do: runs to claim, those too that wait for this code, messages, updates, cancellations."""
        self.rest.nudged()
        self.taking.look()
        for part in (self.signals, self.updates, self.cancels, self.requests):
            part.look()
        self._schedule()

    def name_slow(self) -> bool:
        """Steps that have been running for more than a second are named to who asks, as a worker does it twice a second; whether there is any that was not yet."""
        self.commands.publish_slow()
        found = bool(self.commands.batch.rare)
        if found:
            self._schedule()
        return found

    def settled(self, batch: Batch) -> None:
        super().settled(batch)
        if batch.leaving:
            self.rest.nudged()
        if self.replay:
            for run in batch.runs:
                if self._may_go(run) and self._has_more(run):
                    self.commands.give_back(run)
        self._schedule()

    @staticmethod
    def _may_go(run: Any) -> bool:
        commands = _commands_of(run)
        begun = any(cmd.extra == "begun" for cmd in commands)
        return not (run.gone or run.in_tx or run.executing or run.later or run.coro is None or begun)

    def _has_more(self, run: Any) -> bool:
        """Whether anything was recorded since it last left: a replay says again what it had published, and is no progress."""
        facts = (run.pos, sum(cmd.attempt for cmd in _commands_of(run)))
        known, self._recorded[run.id] = self._recorded.get(run.id), facts
        return known != facts

    def die(self) -> None:
        """As a kill: what was not committed is gone, the tasks are given back, and whoever takes them is told that a step may have begun before."""
        self.held = True
        self.executors.stop()
        for run in list(self.loop.live.values()):
            self.loop.evict(run)
        self._bury()

    def _bury(self) -> None:
        raise NotImplementedError


def _commands_of(run: Any) -> list[Any]:
    return [*(run.open or {}).values(), *([run.call] if run.call is not None else []), *(run.fresh or [])]


class MemoryWorker(DrivenWorker):
    """On tables in memory."""

    def __init__(self, tables: Tables, clock: Clock, events: VirtualLoop, ids: SeededIds, mocks: Mocks, number: int, replay: bool, token_key: bytes) -> None:
        super().__init__(WorkerOptions(dsn="", threads=1, in_flight=IN_FLIGHT), events, mocks, replay)
        self.tables, self.token_key = tables, token_key
        self._clock, self._seeded, self._number = clock, ids, number
        self.on_commit: Callable[[], bool] = lambda: False

    def _be_born(self) -> None:
        self.identity = Identity(self._number, self.origin.boot)
        self.id = self.first_id = self._number
        self.catalogue = self.register(Registrar(self.tables), self._number)  # type: ignore[arg-type]
        context.token_key = self.token_key
        self.pipeline: Any = MemorySession(Statements(self.tables), lambda: self.events.call_soon(self._readable), lambda: self.on_commit())
        self._make_parts(*self.catalogue, 0, 0)
        self.become(self.identity, "test")

    def _make_parts(self, workflow_ids: dict[str, int], queue_ids: dict[str, int], offset_us: int, cell: int) -> None:
        super()._make_parts(workflow_ids, queue_ids, offset_us, cell)
        self._take_over_steps(lambda: self._clock.now, self._passes)
        self.transactions: Any = WithoutDatabase(self.pipeline.statements, self.events, self.mocks, self._tx_done, self.ends, self.loop.now_us)
        self.commands.transactions = self.transactions
        self.commands._new_id = lambda: self._seeded.new().bytes

    def _passes(self, seconds: float) -> None:
        self._clock.set(self._clock.us + round(seconds * 1e6))

    def _watch(self) -> None:
        """There is no socket."""

    def _flush(self) -> None:
        """What is sent to memory has arrived."""

    def forget(self, run_id: bytes) -> None:
        """Somebody has ended a run that is in memory."""
        run = self.loop.live.get(run_id)
        if run is None:
            return
        for cmd in list((run.open or {}).values()):
            if isinstance(cmd.extra, Executed):
                self.executors.give_up(cmd.extra)
        self.loop.evict(run)

    def _bury(self) -> None:
        """As the reaper does it (`release_tasks`)."""
        for task in self.tables.tasks.values():
            if task.owner == self.id:
                recorded = any(row.worker == self.id for row in self.tables.steps[task.id])
                task.version = self.tables.pin(task)
                task.owner, task.claims, task.resumed = None, 0 if recorded else task.claims, CRASHED
                task.cancel_to = None if task.cancel_to is None else 0
                task.wake(self._clock.us)


class Registrar:
    """What a worker tells the catalogue when it is born."""

    def __init__(self, tables: Tables) -> None:
        self._catalogue, self._now = tables.catalogue, tables.now

    def upsert_workflow(self, name: str, queue: str, timeout_s: float | None, described: bytes) -> tuple[int, int]:
        known = self._catalogue
        number = known.workflows.setdefault(name, len(known.workflows) + 1)
        place = known.queue(queue)
        known.facts[number] = (place, timeout_s, described)
        return number, place

    def serve(self, versions: list[tuple[int, str, str]], queues: Iterable[int], worker: int) -> None:
        now, known = (self._now(), worker), self._catalogue.known
        self._catalogue.served[worker] = {number: version for number, version, _ in versions}
        for number, version, source in versions:
            there = known.get((number, version))
            known[number, version] = Seen(source, now if there is None else there.first, now)

    def declare_schedule(self, name: str, said: str, hashed: str) -> None:
        """An app may declare schedules and be tested all the same: what fires them is a leader's duty, and there is no leader here."""

    def queue_id(self, name: str) -> int:
        return self._catalogue.queue(name)


__all__ = ["DrivenWorker", "MemoryWorker"]
