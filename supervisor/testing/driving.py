"""What both environments are: a client that drives the engine inside of its own verbs, with mocks, and with time that is skipped.

Nothing runs but inside of a verb. Each verb lets everything run that can run at the present moment; waiting for a result moves the time to whatever
is due next. One thread; several environments may live beside each other, one is driven at a time.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from random import SystemRandom
from typing import Any, Self

from supervisor._fastpath.wire import thread_id
from supervisor.api import client as clients
from supervisor.api import client_async as clients_async
from supervisor.api.asked import CHUNK_RUNS, chunk_of, value_of
from supervisor.api.client import Client
from supervisor.api.handles import Run
from supervisor.api.verbs import Verbs
from supervisor.core import context, registry
from supervisor.core.histories import History
from supervisor.core.retry import seconds
from supervisor.engine.visibility import loop_hidden
from supervisor.testing import reading
from supervisor.testing.client_async import DrivenAsyncClient
from supervisor.testing.clock import DrivenLoop
from supervisor.testing.errors import EnvironmentStuck
from supervisor.testing.mocks import Call, Mock, Mocks, step_of
from supervisor.testing.stubs import Stubs
from supervisor.testing.worker import DrivenWorker

SEED_VARIABLE = "PGSUPERVISOR_TEST_SEED"
JUMPS_MAX = 100_000  # of the time, in one verb
_UNSET: Any = object()


def seed_of(given: int | None) -> int:
    """A seed: that which was given, else the environment variable's, else a new one."""
    if given is not None:
        return given
    told = os.environ.get(SEED_VARIABLE)
    return int(told) if told else SystemRandom().getrandbits(32)


class Driven(Client):
    """A client that executes what it starts."""

    __test__ = False  # pytest: this is no test

    def __init__(self, dsn: str | None, schema: str | None, seed: int | None, strict: bool, replay: bool) -> None:
        super().__init__(dsn, schema=schema)
        self.seed = seed_of(seed)
        self.replay = replay
        self._mocks = Mocks(strict)
        self._stubs = Stubs(self._mocks)
        self._worker: DrivenWorker | None = None
        self._events: DrivenLoop
        self._depth = 0
        self._driving = self._installed = self._closed = False
        self._before: tuple[Client | None, Any] = None, None
        self._aio = DrivenAsyncClient(self)

    def __enter__(self) -> Self:
        """Until it is closed, `workflow.start(…)` and `workflow.start.aio(…)` mean this environment."""
        if not self._installed:
            self._installed, self._before = True, (clients._defaults.get(os.getpid()), clients_async.default_async_client)
            clients._defaults[os.getpid()] = self
            clients_async.default_async_client = self._default_aio
        return self

    def close(self) -> None:
        """Drop everything that is in memory; nothing of it is executed."""
        if self._closed:
            return
        self._closed = True
        if self._installed:
            clients._defaults.pop(os.getpid(), None)
            before, clients_async.default_async_client = self._before
            if before is not None:
                clients._defaults[os.getpid()] = before
        if self._worker is not None:
            with self._entered():
                if self._worker is not None:  # it is not where workflows were defined since the last verb: then it has died of that
                    self._worker.die()
                    self._worker = None
                self._run_ready()
        self._events.close()
        super().close()

    @property
    def aio(self) -> DrivenAsyncClient:
        """This environment as an AsyncClient: `run = await env.aio.start(checkout, order); await run`."""
        return self._aio

    async def _default_aio(self) -> DrivenAsyncClient:
        return self._aio

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def now(self) -> datetime:
        """The environment's time."""
        raise NotImplementedError

    def advance(self, by: float | timedelta) -> None:
        """Let time pass, in seconds, and everything happen that is due meanwhile, each at its moment."""
        until = self.now + timedelta(seconds=seconds(by, "advance(…)"))
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
        """Let *step*, a step or a workflow or the name of one, do something else from now on; without anything it returns None.

        returns   the value, which is stored and read back as the step's own would be
        raises    the error of every attempt; the step's retries apply
        sequence  values and errors, one for each attempt
        calls     called instead with the workflow's arguments (without the transaction); async too. Of a workflow it is workflow code
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
        raise NotImplementedError

    def histories(self) -> list[History]:
        """Of all runs, in the order of their starts."""
        raise NotImplementedError

    def verify(self) -> None:
        """Replay what is recorded of every run, without executing anything. Raises ReplayMismatch where the code does something else."""
        with self._entered(), self._another_reads():
            for each in self.histories():
                if each.run_id not in self._stubs.runs:
                    reading.verify(each)

    def crash(self) -> None:
        """Kill the worker: what it had not committed is lost, and its runs go on by a replay."""
        with self._entered():
            self._dies()
            self._settle()

    def waiting(self) -> list[str]:
        """Every live run and what it waits for."""
        raise NotImplementedError

    # ── a client's inside ────────────────────────────────────────────────────────────────────────────────────────

    def _carry(self, make: Callable[[Verbs], Any]) -> Any:
        self._ready()
        with self._entered():
            if self._driving:
                return self._ask(make)
            self._settle()
            if self._worker is not None and self._worker.name_slow():
                self._settle()
            answer = self._ask(make)
            self._told()
            self._settle()
            return answer

    def _ask(self, make: Callable[[Verbs], Any]) -> Any:
        """Do a verb, and nothing else."""
        raise NotImplementedError

    def _told(self) -> None:
        """A verb may have changed something."""
        if self._worker is not None:
            self._worker.look()

    def _pause_or_carry(self, asked: Any) -> Any:
        if not isinstance(asked, float):
            return self._carry(asked)
        with self._entered():
            self._settle()
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
            until = None if timeout is None else self.now + timedelta(seconds=timeout)
            outcome = self._wait(run, until)
            if outcome is None:
                outcome = self._ask(lambda verbs: verbs.outcome_now(run.id, f"within {timeout:g} s"))
            return value_of(outcome, run.workflow, run._definition)

    def _wait(self, run: Run[Any], until: datetime | None) -> Any:
        """How the run ended; None where the time was up before that."""
        for _ in range(JUMPS_MAX):
            self._settle()
            found = self._ask(lambda verbs: verbs.outcomes([run.id.bytes]))
            if found:
                return found[0]
            self._refuse_put_aside(run.id)
            if not self._jump(until):
                if until is not None:
                    return None
                raise EnvironmentStuck(f"run {run.id} of {run.workflow} has not ended", self.waiting())
        raise EnvironmentStuck(f"run {run.id} of {run.workflow} has not ended after {JUMPS_MAX:,} jumps of the time", self.waiting())

    def _refuse_put_aside(self, run_id: uuid.UUID) -> None:
        """Raise why the engine has put a run aside, if it has."""
        raise NotImplementedError

    # ── driving ──────────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """The engine of this process is this environment's."""
        if self._depth:
            yield
            return
        before = context.loop, context.token_key, context.note_beat
        self._depth += 1
        self._hold()
        try:
            with self._stubs.in_place():
                self._up()
                yield
        finally:
            self._let_go()
            context.loop, context.token_key, context.note_beat = before
            self._depth -= 1

    def _hold(self) -> None:
        """What else of the process is to be this environment's."""

    def _let_go(self) -> None:
        pass

    @contextmanager
    def _another_reads(self) -> Iterator[None]:
        """Histories are replayed beside the worker."""
        before = context.loop
        try:
            yield
        finally:
            context.loop = before

    def _up(self) -> None:
        """There is a worker, and it knows all workflows that are defined by now."""
        if self._worker is not None and self._worker.known != registry.workflows():
            self._dies()
        if self._worker is None and not self._closed:
            self._worker = self._new_worker()
        if self._worker is not None:
            context.loop, context.token_key, context.note_beat = self._worker.facing, self._worker.token_key, self._worker.beats.note
            self._worker.loop.hand_to(thread_id())

    def _new_worker(self) -> DrivenWorker:
        """One that has begun."""
        raise NotImplementedError

    def _dies(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.die()
            self._up()

    def _run_ready(self) -> None:
        if self._driving:
            raise RuntimeError("a step, or a mock, waits for its own environment, which waits for it; start and signal from there, and wait in the test")
        self._driving = True
        try:
            with loop_hidden():
                self._events.run_ready()
        finally:
            self._driving = False

    def _run_worker(self) -> DrivenWorker:
        """Until nothing is ready; what ends the test is raised."""
        self._run_ready()
        worker = self._worker
        assert worker is not None
        if worker.failure is not None:
            raise worker.failure
        return worker

    def _settle(self) -> None:
        """Until nothing can run at this moment."""
        raise NotImplementedError

    def _next_timers_s(self) -> list[float]:
        """Seconds to what the event loop does next by itself, and to what the worker has in mind beside that."""
        beside = self._worker.watch_beside_calls() if self._worker is not None else None
        return [due_s for due_s in (self._events.next_timer_s(), beside) if due_s is not None]

    def _jump(self, until: datetime | None = None) -> bool:
        """Move the time to what is due next; False where nothing is, or not before *until*, which it is then."""
        raise NotImplementedError


__all__ = ["Driven", "seed_of"]
