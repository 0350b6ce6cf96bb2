"""An environment on a real PostgreSQL: the engine's worker in the test's process, on sessions of its own; what is due later is made due earlier.

Owns the schema that it makes, and that nobody else works in it. The database's clock goes as it does: skipping time moves the moments at which
something is due (`ready_at`, timers, deadlines, retries, signs of life) by the same amount, and nothing of a history. So nothing fires before its time has come,
and `now()` in a workflow is what the database's clock says.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import secrets
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from supervisor.api.asked import id_of
from supervisor.api.client import Client
from supervisor.api.handles import Run
from supervisor.api.verbs import Verbs
from supervisor.core import registry
from supervisor.core.histories import History
from supervisor.db.answer_calls import AnswerCalls
from supervisor.db.histories import reading as reading_histories
from supervisor.db.testing_calls import Live, TestingCalls
from supervisor.engine.answering import answers
from supervisor.engine.batch import INFINITY
from supervisor.engine.reader import Reader
from supervisor.engine.tokens import Entrusted
from supervisor.engine.transactional import Transactions
from supervisor.engine.worker import WorkerOptions
from supervisor.leader.burial import Burials, Dead
from supervisor.testing import reading
from supervisor.testing.clock import SkippingLoop
from supervisor.testing.driving import Driven
from supervisor.testing.mocks import Mocks
from supervisor.testing.server import private_server
from supervisor.testing.worker import IN_FLIGHT, DrivenWorker

TURNS_MAX = 10_000
NEAR_S = 0.001  # what is due so soon is due
BURIED_S = 10.0
QUERIES_MAX = 100


class MockedTransactions(Transactions):
    """Transactional steps in their transactions; a mock is called instead of the body, without the transaction. `pending`: not ended yet."""

    mocks: Mocks
    pending = 0

    def submit(self, run: Any, command: Any) -> None:
        self.pending += 1
        self.mocks.note(run, command)
        super().submit(run, command)

    def _call(self, command: Any, tx: Any) -> Any:
        mock = self.mocks.of(command.step)
        if mock is None:
            return super()._call(command, tx)
        value = mock.play(self.mocks.last(command))
        return asyncio.run(value) if inspect.iscoroutine(value) else value


class DatabaseWorker(DrivenWorker):
    """A worker with real sessions."""

    transactions: MockedTransactions

    def __init__(self, dsn: str, schema: str, events: SkippingLoop, mocks: Mocks, replay: bool) -> None:
        options = WorkerOptions(dsn=dsn, schema=schema, threads=1, in_flight=IN_FLIGHT, look_behind=lambda _: True)
        super().__init__(options, events, mocks, replay)

    def _make_parts(self, workflow_ids: dict[str, int], queue_ids: dict[str, int], offset_us: int, cell: int) -> None:
        super()._make_parts(workflow_ids, queue_ids, offset_us, cell)
        self._take_over_steps(lambda: datetime.now(UTC), None)
        options = self.options
        made = MockedTransactions(options.dsn, options.schema, self.identity, self._tx_ended, self.adoption.ask, self.fail)
        made.mocks, made.clock = self.mocks, self.loop.now_us
        self.transactions = self.commands.transactions = made

    def _tx_ended(self, ended: list[Any]) -> None:
        self.transactions.pending -= len(ended)
        self._tx_done(ended)

    @property
    def busy(self) -> bool:
        """Whether an answer, or a body, is waited for."""
        under_way = self.pipeline.waiting or self.transactions.pending or self.held
        return not self.killed and (bool(under_way) or any(call.task is not None for call in self.executors.calls))

    def skipped(self, us: int) -> None:
        """What is due later was made due so much earlier."""
        for run in self.loop.live.values():
            run.deadline_us = max(run.deadline_us - us, 1) if run.deadline_us else 0
            if run.past is not None:
                run.past.closes = {seq: at - us for seq, at in run.past.closes.items()}
            for cmd in (run.open or {}).values():
                if 0 < getattr(cmd.extra, "due_us", 0) < INFINITY:
                    cmd.extra.due_us -= us
                if isinstance(cmd.extra, Entrusted):
                    cmd.extra.beat_us -= us

    def _bury(self) -> None:
        self.killed = True
        self.adoption.stop()
        self.unwatch()
        self.transactions.stop()
        self.pipeline.close()
        burials = Burials(self.options.dsn, self.options.schema)
        burials.bury(Dead(self.id, self.application_name, "killed by a test", ()))
        burials.finish(BURIED_S)
        burials.close()


class DatabaseEnvironment(Driven):
    """Runs workflows on PostgreSQL. It is a client, as `TestEnvironment` is, and has the same words; transactional steps have their transactions.

    dsn      of a database; None: a private server of this process, in a temporary folder, whose `dsn` the environment has
    schema   one that is migrated, and that nobody else works in; None: one of its own, which is dropped at the end
    seed     of nothing that the engine makes here: ids and times are the database's
    strict, replay   as of TestEnvironment
    """

    def __init__(self, dsn: str | None = None, *, schema: str | None = None, seed: int | None = None, strict: bool = False, replay: bool = False) -> None:
        self.dsn = dsn if dsn is not None else private_server()
        self.schema = schema or f"test_{secrets.token_hex(6)}"
        super().__init__(self.dsn, self.schema, seed, strict, replay)
        self._own = schema is None
        self._calls = TestingCalls(self.dsn, self.schema)
        if self._own:
            self._calls.migrate()
        self._answers: AnswerCalls | None = None
        self._skipped = timedelta()
        self._events: SkippingLoop = SkippingLoop(lambda: self._worker is not None and self._worker.busy)
        self._worker: DatabaseWorker | None = None

    def __repr__(self) -> str:
        return f"<test environment on schema {self.schema}, at {self.now.isoformat()}>"

    @property
    def now(self) -> datetime:
        """The machine's clock, and what was skipped."""
        return datetime.now(UTC) + self._skipped

    def close(self) -> None:
        if self._closed:
            return
        super().close()
        if self._answers is not None:
            self._answers.close()
        if self._own:
            self._calls.drop_schema()
        self._calls.close()

    def history(self, run: Run[Any] | uuid.UUID | str) -> History:
        with reading_histories(self.dsn, self.schema) as stored:
            return stored.read(id_of(run))

    def histories(self) -> list[History]:
        with reading_histories(self.dsn, self.schema) as stored:
            return [stored.read(run_id) for run_id in self._calls.runs()]

    def waiting(self) -> list[str]:
        return [self._words(each) for each in self._calls.live()]

    def _words(self, live: Live) -> str:
        until = None if live.due_s is None else self.now + timedelta(seconds=live.due_s)
        return reading.words(live.run_id, live.workflow, live.key, live.owned, live.wait_kind, live.detail, live.due_s is not None and live.due_s <= 0, until, live.shut)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask(self, make: Callable[[Verbs], Any]) -> Any:
        return Client._carry(self, make)

    def _refuse_put_aside(self, run_id: uuid.UUID) -> None:
        for live in self._calls.live():
            aside = not live.owned and (live.wait_kind or 0) >= reading.NONDETERMINISM
            if aside and live.run_id == self._ask(lambda verbs: iter(verbs.questions.newest(run_id))):
                raise reading.put_aside(live.run_id, live.wait_kind or 0, json.loads(live.detail or "{}"), self.waiting())

    def _new_worker(self) -> DatabaseWorker:
        worker = DatabaseWorker(self.dsn, self.schema, self._events, self._mocks, self.replay)
        worker.begin()
        return worker

    def _settle(self) -> None:
        for _ in range(TURNS_MAX):
            self._run_worker()
            due_s = self._calls.next_due_s()
            if due_s is None or due_s > 0:
                return
            self._told()
        raise RuntimeError(f"the engine does not take up what is ready: {self.waiting()}")

    def _jump(self, until: datetime | None = None) -> bool:
        dues = [*self._next_timers_s(), *([due_s] if (due_s := self._calls.next_due_s()) is not None else [])]
        left_s = None if until is None else (until - self.now).total_seconds()
        if not dues or left_s is not None and min(dues) > left_s:
            if left_s is not None and left_s > 0:
                self._skip(left_s)
            return False
        self._skip(min(dues) + NEAR_S)
        return True

    def _skip(self, seconds: float) -> None:
        self._calls.skip(seconds)
        self._skipped += timedelta(seconds=seconds)
        self._events.skipped_s += seconds
        if self._worker is not None:
            self._worker.skipped(int(seconds * 1e6))
        self._told()

    def _pause_or_carry(self, asked: Any) -> Any:
        if isinstance(asked, float):
            with self._entered():
                if self._answer_queries():
                    return None
        return super()._pause_or_carry(asked)

    def _answer_queries(self) -> bool:
        """As the answerer of a host; whether there were any."""
        if self._answers is None:
            self._answers = AnswerCalls(self.dsn, self.schema)
        known = registry.workflows()
        workflows = {number: known[name].version for number, name in self._answers.workflows(list(known)).items()}
        asked = self._answers.take(workflows, QUERIES_MAX)
        if asked:
            with self._another_reads():
                self._answers.answer(answers(self._answers, Reader(), asked))
        return bool(asked)


__all__ = ["DatabaseEnvironment"]
