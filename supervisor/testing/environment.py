"""An environment without a database: the engine's own worker on tables in memory, and time that stands still until it is skipped."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from random import Random
from typing import Any

from supervisor.api.asked import id_of
from supervisor.api.handles import Run
from supervisor.api.verbs import Verbs
from supervisor.core.errors import InputInvalid
from supervisor.core.histories import History
from supervisor.db.client_calls import carry
from supervisor.testing import reading
from supervisor.testing.blocks import Blocks
from supervisor.testing.clock import Clock, VirtualLoop, microseconds
from supervisor.testing.driving import Driven
from supervisor.testing.errors import BadValue, NotInMemory
from supervisor.testing.ids import SeededIds
from supervisor.testing.questions import MemoryQuestions
from supervisor.testing.tables import Tables
from supervisor.testing.worker import DrivenWorker, MemoryWorker

BEGINS_AT = datetime(2030, 1, 1, tzinfo=UTC)
TURNS_MAX = 1_000  # without the time moving


class TestEnvironment(Driven):
    """Runs workflows in memory. It is a client: `env.start(checkout, order).result()`, and every other verb.

    seed     of run ids and so of random(), uuid4() and the jitter of retries; None: PGSUPERVISOR_TEST_SEED, else a new one each time
    now      when it begins
    strict   a step without a mock ends the test instead of being executed
    replay   every run leaves memory after each of its commits and goes on by a replay, which finds what is not deterministic
    """

    def __init__(self, *, seed: int | None = None, now: datetime = BEGINS_AT, strict: bool = False, replay: bool = False) -> None:
        super().__init__(None, None, seed, strict, replay)
        self.commits = 0
        self._clock = Clock(now)
        self._tables = Tables(lambda: self._clock.us)
        self._ids = SeededIds(self._clock, self.seed)
        self._events: VirtualLoop = VirtualLoop(self._clock, self._is_busy)
        self._made = Verbs(MemoryQuestions(self._tables, self._ids, self._answer), None)  # type: ignore[arg-type]
        self._token_key = Random(f"tokens {self.seed}").randbytes(32)
        self._blocks = Blocks(self._tables, self._token_key, lambda: self._ids.new().bytes)
        self._workers = 0
        self._crash_at: int | None = None

    def __repr__(self) -> str:
        return f"<test environment, seed {self.seed}, at {self.now.isoformat()}, {len(self._tables.tasks)} runs live>"

    @property
    def now(self) -> datetime:
        """The environment's time."""
        return self._clock.now

    def history(self, run: Run[Any] | uuid.UUID | str) -> History:
        return reading.history(self._tables, id_of(run))

    def histories(self) -> list[History]:
        return [reading.history(self._tables, uuid.UUID(bytes=run)) for run in sorted(self._tables.runs)]

    def crash(self, *, after: int | None = None) -> None:
        """Kill the worker, now or after so many further commits: what it had not committed is lost, and its runs go on by a replay."""
        if after is None:
            super().crash()
        else:
            self._crash_at = self.commits + after

    def reseed(self, seed: int) -> None:
        """Before anything was started: make of it one with that seed."""
        self.seed = seed
        self._ids = SeededIds(self._clock, seed)
        self._made = Verbs(MemoryQuestions(self._tables, self._ids, self._answer), None)  # type: ignore[arg-type]

    def waiting(self) -> list[str]:
        return reading.waiting(self._tables)

    def within(self, connection: Any) -> Any:
        raise NotInMemory("within(connection)")

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask(self, make: Callable[[Verbs], Any]) -> Any:
        return carry(make(self._verbs()), self._answered)

    def _answered(self, asked: Any) -> Any:
        try:
            return carry(asked.talk(1), self._blocks.rows)
        except BadValue as error:
            raise InputInvalid(asked.what, str(error)) from None

    def _told(self) -> None:
        """Whoever changed a table has told the worker."""

    def _refuse_put_aside(self, run_id: uuid.UUID) -> None:
        reading.refuse_put_aside(self._tables, self._tables.newest(run_id.bytes))

    def _answer(self, run_id: bytes, name: str, payload: bytes | None) -> tuple[int, bytes]:
        with self._another_reads():
            return reading.answer(self._tables, run_id, name, payload)

    def _is_busy(self) -> bool:
        """Whether a step's body executes for real."""
        return self._worker is not None and any(call.task is not None for call in self._worker.executors.calls)

    def _hold(self) -> None:
        self._clock.hold()

    def _let_go(self) -> None:
        self._clock.let_go()

    def _new_worker(self) -> DrivenWorker:
        self._workers += 1
        worker = MemoryWorker(self._tables, self._clock, self._events, self._ids, self._mocks, self._workers, self.replay, self._token_key)
        worker.on_commit = lambda: self._committed(worker)
        self._tables.wake, self._tables.drop = worker.look, worker.forget
        worker.begin()
        return worker

    def _dies(self) -> None:
        self._tables.wake = lambda: None
        super()._dies()

    def _committed(self, worker: MemoryWorker) -> bool:
        """Whether the worker dies of it."""
        self.commits += 1
        if self.commits != self._crash_at:
            return False
        worker.held = worker.killed = True
        self._events.stop()
        return True

    def _settle(self) -> None:
        for _ in range(TURNS_MAX):
            killed = self._run_worker().killed
            if killed:
                self._dies()
            due = self._tables.next_due()
            if not killed and (due is None or due > self._clock.us):
                return
            self._tables.wake()
        raise RuntimeError(f"the engine does not take up what is ready: {self.waiting()}")

    def _jump(self, until: datetime | None = None) -> bool:
        timers_s, due = self._next_timers_s(), self._tables.next_due()
        dues = [*(self._clock.us + round(timer_s * 1e6) for timer_s in timers_s), *([due] if due is not None else [])]
        if not dues or until is not None and min(dues) > microseconds(until):
            if until is not None:
                self._clock.set(microseconds(until))
            return False
        self._clock.set(min(dues))
        if due is not None and due <= self._clock.us:
            self._tables.wake()
        return True


def crashes(make: Callable[[], TestEnvironment] = TestEnvironment) -> Iterator[TestEnvironment]:
    """Environments of one seed: the first without a crash, then one for each of its commits, with a crash after that.

    for env in crashes(): assert env.start(checkout, order).result() == receipt
    """
    with make() as first:
        yield first
    for after in range(1, first.commits + 1):
        with make() as env:
            env.reseed(first.seed)
            env.crash(after=after)
            yield env


__all__ = ["TestEnvironment", "crashes"]
