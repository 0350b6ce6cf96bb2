"""A file's runs are waited for as results are: announced, not asked for again and again, in bounded memory."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from supervisor import Client
from supervisor.db.client_calls import ClientCalls, Outcome
from supervisor.files import awaiting
from tests.apps import awaited
from tests.harness import Database, Effects, Host, HostFactory, eventually

APP = "tests.apps.awaited"
FOR_EVER_S = 3600.0


@pytest.fixture
def host(hosts: HostFactory) -> Iterator[Host]:
    with hosts(APP, procs=2) as up:
        yield up


class Counted(ClientCalls):
    """A client's calls, which notes how many runs its questions were about."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn, "supervisor")
        self.sizes: list[int] = []

    def outcomes(self, ids: Sequence[bytes]) -> list[Outcome]:
        self.sizes.append(len(ids))
        return super().outcomes(ids)


class Waiting:
    """`awaiting.wait` for *ids* on a thread of its own."""

    def __init__(self, database: Database, ids: Sequence[bytes], give_up_s: float | None = None) -> None:
        self.calls = Counted(database.dsn)
        self.ended = awaiting.Ended(len(ids))
        self.peak = 0
        self._made: list[awaiting._Waiting] = []
        spool = tempfile.SpooledTemporaryFile(16 << 20)
        spool.write(b"".join(ids))
        self._pool = ThreadPoolExecutor(1)
        self._patch = pytest.MonkeyPatch()
        made = awaiting._Waiting
        self._patch.setattr(awaiting, "_Waiting", lambda *given: self._made.append(made(*given)) or self._made[-1])
        give_up_at = None if give_up_s is None else time.monotonic() + give_up_s
        self.waiting: Future[bool] = self._pool.submit(awaiting.wait, self.calls, spool, self.ended, self._look, give_up_at)  # type: ignore[arg-type]

    def _look(self) -> None:
        self.peak = max(self.peak, len(self._made[0]._window))

    def told(self, many: int) -> Waiting:
        """When the hosts have been told of so many runs."""
        eventually(lambda: self._made and self._made[0]._ear.hears and len(self._made[0]._ear.awaited) == many and not self._made[0]._ear.untold, 20)
        eventually(lambda: self._made[0]._ear._thread is not None and self._made[0]._ear._thread._session.idle, 20)
        return self

    def result(self, within_s: float = 20.0) -> bool:
        try:
            return self.waiting.result(within_s)
        finally:
            self._pool.shutdown(wait=False)
            self._patch.undo()
            self.calls.close()


@pytest.fixture
def only_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was asked about twice is asked about again when it is announced, and never else."""
    monkeypatch.setattr(awaiting, "PAUSE_HEARING_S", FOR_EVER_S)
    monkeypatch.setattr(awaiting, "PAUSE_ASKING_S", FOR_EVER_S)
    monkeypatch.setattr(awaiting, "SLOWER", FOR_EVER_S / awaiting.PAUSE_S)


def test_the_last_runs_are_announced(host: Host, database: Database, effects: Effects, only_announced: None) -> None:
    """Nothing is asked meanwhile, and the end is known when the hosts say so."""
    with Client(database.dsn) as client:
        ids = [client.start(awaited.awaited_gate, f"gate{n % 2}").id.bytes for n in range(8)]
        ids += [run.bytes for run in client.start_many(awaited.awaited_quick, range(2000)).ids]
    # what ends while the hosts are being told is found by asking, which there is none of here
    eventually(lambda: database.one("select count(*) from supervisor.outcome") == 2000, 60)
    waiting = Waiting(database, ids).told(8)
    assert waiting.ended.by_status == {"completed": 2000}
    before = len(waiting.calls.sizes)
    effects.open("gate0")
    eventually(lambda: waiting.ended.done == 2004, 20)
    effects.open("gate1")
    assert waiting.result() is True and waiting.ended.by_status == {"completed": 2008}
    assert len(waiting.calls.sizes) - before <= 8, "about what was announced, and nothing else"


def test_waiting_for_slow_runs_asks_little(host: Host, database: Database, effects: Effects) -> None:
    """Six hundred runs that sleep: while nothing ends, questions get seldom."""
    with Client(database.dsn) as client:
        ids = [run.bytes for run in client.start_many(awaited.awaited_sleep.options(), ({"n": n, "seconds": 3600.0} for n in range(600))).ids]
    waiting = Waiting(database, ids).told(600)
    began, before = time.monotonic(), len(waiting.calls.sizes)
    eventually(lambda: time.monotonic() - began > 5.0, 10)
    assert len(waiting.calls.sizes) - before <= 6 and not waiting.waiting.done()
    database.sql("select supervisor.terminate_many(array(select run_id from supervisor.task limit 500))")
    database.sql("select supervisor.terminate_many(array(select run_id from supervisor.task limit 500))")
    assert waiting.result(30) is True and waiting.ended.by_status == {"terminated": 600}, "what nobody announces is found by asking"


def made_up(database: Database, runs: int, ended: str) -> list[bytes]:
    """Ids of runs that never were; those that fit *ended* (over n) have an outcome."""
    database.sql("create table made as select n, supervisor.new_id() as run_id from generate_series(1, %s) as n", runs)
    database.sql(f"insert into supervisor.outcome (run_id, ended_at, steps, status, result) select run_id, now(), 0, 1, '1' from made where {ended}")
    return [run.bytes for (run,) in database.sql("select run_id from made order by n")]


def test_what_ended_behind_a_window_that_stands_still_is_counted(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 30,000 records take for ever, and the 30,000 behind them are done: who looks at the progress sees them."""
    monkeypatch.setattr(awaiting, "AHEAD_S", 0.2)
    ids = made_up(database, 60_000, "n > 30000")
    waiting = Waiting(database, ids)
    eventually(lambda: waiting.ended.done == 30_000, 60)
    assert not waiting.waiting.done()
    database.sql("insert into supervisor.outcome (run_id, ended_at, steps, status, result) select run_id, now(), 0, 1, '1' from made where n <= 30000")
    assert waiting.result(60) is True and waiting.ended.by_status == {"completed": 60_000}
    assert 10_000 < waiting.peak <= awaiting.WINDOW_RUNS


def test_runs_that_have_ended_are_asked_about_once(database: Database) -> None:
    """A file of 100,000 whose runs are over is read through in questions of thousands."""
    ids = made_up(database, 100_000, "true")
    waiting = Waiting(database, [*ids, *ids[:10]])
    assert waiting.result(60) is True and waiting.ended.by_status == {"completed": 100_010}
    assert sum(waiting.calls.sizes) <= 100_010 and len(waiting.calls.sizes) <= 30 and waiting.peak <= awaiting.WINDOW_RUNS


def test_large_results_are_asked_for_by_their_size(database: Database) -> None:
    """Results of 100 kB come some forty at a time, so an answer has 4 MiB; the first has more, for nobody knew."""
    ids = made_up(database, 1000, "false")
    database.sql("insert into supervisor.outcome (run_id, ended_at, steps, status, result) select run_id, now(), 0, 1, convert_to('\"' || repeat('x', 100000) || '\"', 'UTF8') from made")
    waiting = Waiting(database, ids)
    assert waiting.result(60) is True and waiting.ended.done == 1000
    first, *others = waiting.calls.sizes
    assert first == awaiting.IDS_MIN and 10 <= max(others) <= 42


def test_giving_up_leaves_what_is_known(database: Database) -> None:
    ids: list[Any] = [*made_up(database, 100, "n <= 40"), *(uuid.uuid4().bytes for _ in range(10))]
    waiting = Waiting(database, ids, give_up_s=0.5)
    assert waiting.result(20) is False and waiting.ended.by_status == {"completed": 40}
