"""A place to run workflows in a test, without a database: the engine's own worker on tables in memory, and time that is skipped.

Owns who drives: nothing runs but inside of a verb of the environment. Each verb lets everything run that can run at the present moment; waiting for
a result moves the time to whatever is due next. One thread; several environments may live beside each other, one is driven at a time.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from random import SystemRandom
from typing import Any, TypeVar

from supervisor._fastpath.wire import thread_id
from supervisor.api import client as clients
from supervisor.api.asked import CHUNK_RUNS, chunk_of, id_of, value_of
from supervisor.api.client import Client
from supervisor.api.handles import Run
from supervisor.api.verbs import Verbs
from supervisor.core import context, registry
from supervisor.core.errors import EnvironmentStuck, NotInMemory, ReplayMismatch
from supervisor.core.histories import History
from supervisor.db.client_calls import carry
from supervisor.engine.visibility import loop_hidden
from supervisor.testing import reading
from supervisor.testing.clock import Clock, VirtualLoop
from supervisor.testing.ids import SeededIds
from supervisor.testing.mocks import Call, Mock, Mocks, step_of
from supervisor.testing.questions import MemoryQuestions
from supervisor.testing.tables import Tables
from supervisor.testing.worker import MemoryWorker

T = TypeVar("T")

BEGINS_AT = datetime(2030, 1, 1, tzinfo=UTC)
SEED_VARIABLE = "PGSUPERVISOR_TEST_SEED"
JUMPS_MAX = 100_000  # of the time, in one verb
TURNS_MAX = 1_000  # without the time moving and without anything being taken up
_UNSET: Any = object()


def seed_of(given: int | None) -> int:
    """A seed: that which was given, else the environment variable's, else a new one."""
    if given is not None:
        return given
    told = os.environ.get(SEED_VARIABLE)
    return int(told) if told else SystemRandom().getrandbits(32)


class TestEnvironment(Client):
    """Runs workflows in memory. It is a client: `env.start(checkout, order).result()`, and every other verb.

    seed     of run ids and so of random(), uuid4() and the jitter of retries; None: PGSUPERVISOR_TEST_SEED, else a new one each time
    now      when it begins
    strict   a step without a mock ends the test instead of being executed
    replay   every run leaves memory after each of its commits and goes on by a replay, which finds what is not deterministic
    """

    __test__ = False  # pytest: this is no test

    def __init__(self, *, seed: int | None = None, now: datetime = BEGINS_AT, strict: bool = False, replay: bool = False) -> None:
        super().__init__()
        self.seed = seed_of(seed)
        self.replay = replay
        self.commits = 0
        self._clock = Clock(now)
        self._mocks = Mocks(strict)
        self._tables = Tables(lambda: self._clock.us)
        self._ids = SeededIds(self._clock, self.seed)
        self._events = VirtualLoop(self._clock, self._is_busy)
        self._made = Verbs(MemoryQuestions(self._tables, self._ids, self._answer), None)  # type: ignore[arg-type]
        self._worker: MemoryWorker | None = None
        self._facing: Any = None
        self._workers = 0
        self._depth = 0
        self._driving = False
        self._crash_at: int | None = None
        self._before: Client | None = None
        self._installed = self._closed = False

    def __enter__(self) -> TestEnvironment:
        """Until it is closed, `workflow.start(…)` means this environment."""
        if not self._installed:
            self._installed, self._before = True, clients._defaults.get(os.getpid())
            clients._defaults[os.getpid()] = self
        return self

    def close(self) -> None:
        """Drop everything that is in memory; nothing of it is executed."""
        if self._closed:
            return
        self._closed = True
        if self._worker is not None:
            with self._entered():
                self._worker.die()
                self._events.call_soon(self._events.stop)
                self._run_ready()
        self._events.close()
        if self._installed:
            clients._defaults.pop(os.getpid(), None)
            if self._before is not None:
                clients._defaults[os.getpid()] = self._before

    def __repr__(self) -> str:
        return f"<test environment, seed {self.seed}, at {self.now.isoformat()}, {len(self._tables.tasks)} runs live>"

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def now(self) -> datetime:
        """The environment's time."""
        return self._clock.now

    def advance(self, by: float | timedelta) -> None:
        """Let time pass, in seconds, and everything happen that is due meanwhile, each at its moment."""
        until = self._clock.us + round((by.total_seconds() if isinstance(by, timedelta) else by) * 1e6)
        with self._entered():
            self._settle()
            while self._jump(until):
                self._settle()
            self._settle()

    def settle(self) -> None:
        """Let everything run that can run now. Every verb does that too."""
        with self._entered():
            self._settle()

    def run_until_idle(self) -> None:
        """Skip from timer to timer until no run has anything to do any more by itself: all have ended or wait for what nobody has sent."""
        with self._entered():
            for _ in range(JUMPS_MAX):
                self._settle()
                if not self._jump():
                    return
        raise EnvironmentStuck(f"after {JUMPS_MAX:,} jumps of the time runs still go on", self.waiting())

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────

    def mock(
        self, step: Any, *, returns: Any = _UNSET, raises: BaseException | type[BaseException] | None = None, sequence: Sequence[Any] | None = None,
        calls: Callable[..., Any] | None = None, takes: float | timedelta = 0.0,
    ) -> Mock:  # fmt: skip
        """Let *step*, a step or its name, do something else from now on; without anything it returns None.

        returns   the value, which is stored and read back as the step's own would be
        raises    the error of every attempt; the step's retries apply
        sequence  values and errors, one for each attempt
        calls     called instead with the workflow's arguments (without the transaction); async too
        takes     how long an attempt takes, in the environment's time: its timeout applies
        """
        seconds = takes.total_seconds() if isinstance(takes, timedelta) else takes
        given = {} if returns is _UNSET else {"returns": returns}
        return self._mocks.add(step, **given, raises=raises, sequence=sequence, calls=calls, takes_s=seconds)

    def calls(self, step: Any = None) -> list[Call]:
        """Attempts that were begun, of *step* or of all, mocked and real ones, in their order."""
        wanted = None if step is None else step_of(step).name
        return [call for call in self._mocks.calls if wanted is None or call.step == wanted]

    # ── histories, crashes ───────────────────────────────────────────────────────────────────────────────────────

    def history(self, run: Run[Any] | uuid.UUID | str) -> History:
        """What is recorded of a run, as `export` writes it. Raises RunUnknown."""
        return reading.history(self._tables, id_of(run))

    def histories(self) -> list[History]:
        """Of all runs, in the order of their starts."""
        return [reading.history(self._tables, uuid.UUID(bytes=run)) for run in sorted(self._tables.runs)]

    def verify(self) -> None:
        """Replay what is recorded of every run, without executing anything. Raises ReplayMismatch where the code does something else."""
        with self._entered(), self._another_reads():
            for each in self.histories():
                reading.verify(each)

    def crash(self, *, after: int | None = None) -> None:
        """Kill the worker, now or after so many further commits: what it had not committed is lost, and its runs go on by a replay."""
        if after is not None:
            self._crash_at = self.commits + after
            return
        with self._entered():
            self._dies()
            self._settle()

    def waiting(self) -> list[str]:
        """Every live run and what it waits for."""
        return reading.waiting(self._tables)

    # ── a client's inside ────────────────────────────────────────────────────────────────────────────────────────

    def within(self, connection: Any) -> Any:
        raise NotInMemory("within(connection)")

    def _carry(self, make: Callable[[Verbs], Any]) -> Any:
        self._ready()
        with self._entered():
            if not self._driving:
                self._settle()
            answer = carry(make(self._verbs()), _asks_nobody)
            if not self._driving:
                self._settle()
            return answer

    def _pause_or_carry(self, asked: Any) -> Any:
        if not isinstance(asked, float):
            return self._carry(asked)
        with self._entered():
            if not self._jump():
                raise EnvironmentStuck("what was asked is not answered", self.waiting())
            self._settle()

    def _stream(self, asked: Any, encode: Any, items: Iterator[Any], key: Any, batch: Any) -> None:
        while chunk := chunk_of(asked.name, encode, items, key):
            self._send(asked, chunk, batch)
            if len(chunk.inputs) < CHUNK_RUNS:
                return

    def _result(self, run: Run[Any], timeout: float | None) -> Any:
        self._ready()
        with self._entered():
            until = None if timeout is None else self._clock.us + round(timeout * 1e6)
            outcome = self._wait(run, until)
            if outcome is None:
                outcome = carry(self._verbs().outcome_now(run.id, f"within {timeout:g} s"), _asks_nobody)
            return value_of(outcome, run.workflow, run._definition)

    def _wait(self, run: Run[Any], until: int | None) -> Any:
        """How the run ended; None where the time was up before that."""
        for _ in range(JUMPS_MAX):
            self._settle()
            found = carry(self._verbs().outcomes([run.id.bytes]), _asks_nobody)
            if found:
                return found[0]
            reading.refuse_put_aside(self._tables, self._tables.newest(run.id.bytes))
            if not self._jump(until):
                if until is not None:
                    return None
                raise EnvironmentStuck(f"run {run.id} of {run.workflow} has not ended", self.waiting())
        raise EnvironmentStuck(f"run {run.id} of {run.workflow} has not ended after {JUMPS_MAX:,} jumps of the time", self.waiting())

    def _answer(self, run_id: bytes, name: str, payload: bytes | None) -> tuple[int, bytes]:
        with self._another_reads():
            return reading.answer(self._tables, run_id, name, payload)

    # ── driving ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _is_busy(self) -> bool:
        """Whether a step's body executes for real."""
        return self._worker is not None and any(call.task is not None for call in self._worker.executors.calls)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """The engine of this process is this environment's."""
        if self._depth:
            yield
            return
        before = context.loop
        self._depth += 1
        self._clock.hold()
        try:
            self._up()
            yield
        finally:
            self._clock.let_go()
            context.loop = before
            self._depth -= 1

    @contextmanager
    def _another_reads(self) -> Iterator[None]:
        """Histories are replayed beside the worker."""
        try:
            yield
        finally:
            context.loop = self._facing

    def _up(self) -> None:
        """There is a worker, and it knows all workflows that are defined by now."""
        if self._worker is not None and self._worker.known != registry.workflows():
            self._dies()
        if self._worker is None:
            self._workers += 1
            self._worker = MemoryWorker(self._tables, self._clock, self._events, self._ids, self._mocks, self._workers)
            self._worker.evicting = self.replay
            self._worker.on_commit = self._committed
            self._tables.wake, self._tables.drop = self._worker.look, self._worker.forget
            self._worker.begin()
            self._facing = context.loop
        context.loop = self._facing
        self._worker.loop.hand_to(thread_id())

    def _dies(self) -> None:
        if self._worker is not None:
            self._worker.die()
            self._tables.wake = lambda: None
            self._worker = None
            self._up()

    def _committed(self) -> bool:
        """Whether the worker dies of it."""
        self.commits += 1
        if self.commits != self._crash_at:
            return False
        self._crash_at = None
        if self._worker is not None:
            self._worker.held = self._worker.killed = True
        self._events.stop()
        return True

    def _run_ready(self) -> None:
        if self._driving:
            raise RuntimeError("a step, or a mock, waits for its own environment, which waits for it; start and signal from there, and wait in the test")
        self._driving = True
        try:
            with loop_hidden():
                self._events.run_ready()
        finally:
            self._driving = False

    def _settle(self) -> None:
        """Until nothing can run at this moment."""
        for _ in range(TURNS_MAX):
            self._run_ready()
            worker = self._worker
            assert worker is not None
            if worker.failure is not None:
                raise worker.failure
            if worker.killed:
                self._dies()
            due = self._tables.next_due()
            if not worker.killed and (due is None or due > self._clock.us):
                return
            self._tables.wake()
        raise RuntimeError(f"the engine does not take up what is ready: {self.waiting()}")

    def _jump(self, until: int | None = None) -> bool:
        """Move the time to what is due next; False where nothing is, or not before *until*, which it is then."""
        dues = [due for due in (self._events.next_timer(), self._tables.next_due()) if due is not None]
        if not dues or until is not None and min(dues) > until:
            if until is not None:
                self._clock.set(until)
            return False
        self._clock.set(min(dues))
        due = self._tables.next_due()
        if due is not None and due <= self._clock.us:
            self._tables.wake()
        return True


def _asks_nobody(asked: Any) -> Any:
    raise NotInMemory(getattr(asked, "what", "that verb"))


def crashes(make: Callable[[], TestEnvironment] = TestEnvironment) -> Iterator[TestEnvironment]:
    """Environments of one seed: the first without a crash, then one for each of its commits, with a crash after that.

    for env in crashes(): assert env.start(checkout, order).result() == receipt
    """
    with make() as first:
        yield first
    for after in range(1, first.commits + 1):
        with make() as env:
            env.seed = first.seed
            env._ids = SeededIds(env._clock, first.seed)
            env.crash(after=after)
            yield env


__all__ = ["TestEnvironment", "crashes", "seed_of"]
