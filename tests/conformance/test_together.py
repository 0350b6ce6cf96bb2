"""Starts and signals of one client that meet at its session share transactions, and each is told what it would be told alone. No worker lives here."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest

from supervisor import AsyncClient, Client, KeyMismatch, RunClosed, RunUnknown
from tests.apps import letters
from tests.conformance.client_host import register
from tests.conformance.test_client_lost_answers import Forgetful
from tests.harness import Database, eventually

THREADS = 24


@pytest.fixture
def post(database: Database) -> Database:
    register(database, "collects")
    return database


def transactions(database: Database, table: str) -> int:
    count: int = database.one(f"select count(distinct xmin::text) from supervisor.{table}")
    return count


def stored(database: Database, run: object) -> list[object]:
    return [payload for (payload,) in database.sql("select payload from supervisor.signals where run_id = %s order by n", getattr(run, "id", run))]


@contextmanager
def busy(post: Database, client: Client, tells: object) -> Iterator[Callable[[int], None]]:
    """The client's session waits for the lock of run *tells*, which is signalled; what it is given waits until so many calls have come."""
    with psycopg.connect(post.dsn) as conn, ThreadPoolExecutor(1) as other:
        conn.execute("select from supervisor.task where run_id = %s for update", (tells.id,))  # type: ignore[attr-defined]
        first = other.submit(client.signal, tells, letters.numbers, 0)  # type: ignore[arg-type]
        asleep = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and application_name like 'pgsupervisor: client%%'"
        eventually(lambda: post.one(asleep) == 1, 10, "the session waits")

        def until(calls: int) -> None:
            eventually(lambda: len(client._together._calls) == calls, 10, f"{calls} calls wait")
            conn.rollback()

        try:
            yield until
        finally:
            conn.rollback()
        assert first.result(timeout=10)


def test_starts_that_meet_share_a_transaction(post: Database) -> None:
    """Their keys are their own: who names a run that is there, or one that another thread has just started, is told so."""
    with Client(post.dsn) as client, ThreadPoolExecutor(THREADS) as threads:
        run = client.start(letters.collects, 1)
        there = client.start(letters.collects.options(key="there"), 7)
        before = transactions(post, "run")
        with busy(post, client, run) as until:
            plain = [threads.submit(client.start, letters.collects, n) for n in range(10)]
            again = threads.submit(client.start, letters.collects.options(key="there"), 7)
            other = threads.submit(client.start, letters.collects.options(key="there"), 8)
            twins = [threads.submit(client.start, letters.collects.options(key="twin"), 9) for _ in range(5)]
            urgent = [threads.submit(client.start, letters.collects.options(priority=1), n) for n in range(3)]
            until(20)
        runs = [each.result(timeout=10) for each in plain]
        inputs = dict(post.sql("select run_id, convert_from(input, 'UTF8')::jsonb ->> 'n' from supervisor.run"))
        assert [inputs[each.id] for each in runs] == [str(n) for n in range(10)] and all(each.created for each in runs)
        assert (again.result(timeout=10).id, again.result().created) == (there.id, False)
        with pytest.raises(KeyMismatch) as caught:
            other.result(timeout=10)
        assert (caught.value.key, caught.value.run_id) == ("there", there.id)
        made = [each.result(timeout=10) for each in twins]
        assert len({each.id for each in made}) == 1 and sum(each.created for each in made) == 1
        assert {each.result(timeout=10).created for each in urgent} == {True}
        # two transactions: one for each way in which they were to be started
        assert transactions(post, "run") - before == 2
        assert post.one("select count(*) from supervisor.run") == 2 + 10 + 1 + 3


def test_signals_that_meet_share_a_transaction(post: Database) -> None:
    with Client(post.dsn) as client, ThreadPoolExecutor(THREADS) as threads:
        blocked, *runs = [client.start(letters.collects, 100) for _ in range(5)]
        parked = "update supervisor.task set ready_at = 'infinity', wait_kind = 11, wait_signals = array[%s] where run_id = %s"
        for run, name in zip(runs, ("numbers", "another"), strict=False):
            post.sql(parked, name, run.id)
        with busy(post, client, blocked) as until:
            sent = [threads.submit(client.signal, runs[n % 4], letters.numbers, n, id=f"id {n % 10}") for n in range(20)]
            until(20)
        # the same id twice for one run is stored once, and who came second is told so
        assert sorted(n % 4 for n, each in enumerate(sent) if each.result(timeout=10)) == sorted([0, 1, 2, 3] * 5)
        assert [sorted(stored(post, run)) for run in runs] == [list(range(at, 20, 4)) for at in range(4)]  # type: ignore[type-var]
        assert transactions(post, "message") == 2
        # who is parked for that signal is woken, and nobody else
        waits = dict(post.sql("select run_id, wait_kind from supervisor.task where ready_at <= clock_timestamp()"))
        assert waits[runs[0].id] == 1 and runs[1].id not in waits


def test_one_that_is_refused_refuses_no_other(post: Database) -> None:
    with Client(post.dsn) as client, ThreadPoolExecutor(THREADS) as threads:
        blocked, open_, closed = [client.start(letters.collects, 100) for _ in range(3)]
        closed.cancel()
        with busy(post, client, blocked) as until:
            good = [threads.submit(client.signal, open_, letters.numbers, n) for n in range(5)]
            late, lost = threads.submit(client.signal, closed, letters.numbers, 1), threads.submit(client.signal, UUID(int=7), letters.numbers, 1)
            until(7)
        for refused, error in ((late, RunClosed), (lost, RunUnknown)):
            with pytest.raises(error):
                refused.result(timeout=10)
        assert all(each.result(timeout=10) for each in good) and sorted(stored(post, open_)) == list(range(5))  # type: ignore[type-var]


@pytest.mark.parametrize("lost", ["signals_together", "start_runs"])
def test_answers_that_are_lost_are_asked_for_again(post: Database, lost: str) -> None:
    """The transaction has committed and nobody is told: it is repeated under the same ids, for all that are in it."""
    way = Forgetful(post.dsn)
    try:
        with Client(way.dsn) as client, ThreadPoolExecutor(THREADS) as threads:
            run = client.start(letters.collects, 100)
            with busy(post, client, run) as until:
                way.asks, way.lose = lost.encode(), 1
                calls: list[Future[Any]] = [
                    threads.submit(client.signal, run, letters.numbers, n) if lost == "signals_together" else threads.submit(client.start, letters.collects, n)
                    for n in range(1, 11)
                ]
                until(10)
            answers = [call.result(timeout=30) for call in calls]
            assert way.lost == 1
            if lost == "signals_together":
                assert answers == [True] * 10 and sorted(stored(post, run)) == list(range(11))  # type: ignore[type-var]
            else:
                assert post.one("select count(*) from supervisor.run") == 11 == 1 + len({each.id for each in answers})
    finally:
        way.stop()


def test_a_thread_keeps_its_order(post: Database) -> None:
    """Sixteen threads send to one run as fast as they can: everything arrives once, each thread's in its own order."""
    with Client(post.dsn) as client, ThreadPoolExecutor(16) as threads:
        run = client.start(letters.collects, 10_000)

        def send(thread: int) -> None:
            for n in range(50):
                assert client.signal(run, letters.numbers, 1000 * thread + n)

        list(threads.map(send, range(16)))
        got: list[Any] = stored(post, run)
        assert len(got) == 800 and all([n for n in got if n // 1000 == thread] == [1000 * thread + n for n in range(50)] for thread in range(16))
        assert transactions(post, "message") < 400, "hardly any two of them met"
        assert not client._together.busy


def test_tasks_that_meet(post: Database) -> None:
    """And a task that is cancelled before its turn has started nothing, whatever becomes of those beside it."""

    async def main() -> None:
        async with AsyncClient(post.dsn) as client, await psycopg.AsyncConnection.connect(post.dsn) as conn:
            run = await client.start(letters.collects, 100)
            await conn.execute("select from supervisor.task where run_id = %s for update", (run.id,))
            first = asyncio.create_task(client.signal(run, letters.numbers, 0))
            while not client._lock.locked():
                await asyncio.sleep(0)
            starts = [asyncio.create_task(client.start(letters.collects, n)) for n in range(10)]
            sends = [asyncio.create_task(client.signal(run, letters.numbers, n)) for n in range(1, 11)]
            wrong = asyncio.create_task(client.signal(UUID(int=7), letters.numbers, 1))
            while len(client._together._calls) < 21:
                await asyncio.sleep(0)
            assert starts[3].cancel() and sends[3].cancel()
            await conn.rollback()
            with pytest.raises(RunUnknown):
                await wrong
            assert await first and [await each for n, each in enumerate(sends) if n != 3] == [True] * 9
            assert len({(await each).id for n, each in enumerate(starts) if n != 3}) == 9
            assert starts[3].cancelled() and sends[3].cancelled()
            assert stored(post, run) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10] and post.one("select count(*) from supervisor.run") == 10

    asyncio.run(main())


def test_the_loop_ends_while_tasks_wait(post: Database) -> None:
    """Nothing hangs and nothing is left: they are cancelled like everything else."""
    with psycopg.connect(post.dsn) as conn, Client(post.dsn) as outside:
        run = outside.start(letters.collects, 100)
        conn.execute("select from supervisor.task where run_id = %s for update", (run.id,))
        tasks = []

        async def main() -> None:
            client = AsyncClient(post.dsn)
            tasks.append(asyncio.create_task(client.signal(run.id, letters.numbers, 0)))
            while not client._lock.locked():
                await asyncio.sleep(0)
            tasks.extend(asyncio.create_task(client.start(letters.collects, n)) for n in range(5))
            while len(client._together._calls) < 5:
                await asyncio.sleep(0)

        ended = threading.Thread(target=asyncio.run, args=(main(),))
        ended.start()
        ended.join(timeout=20)
        assert not ended.is_alive() and all(task.done() for task in tasks)
        conn.rollback()
        assert post.one("select count(*) from supervisor.run") == 1
