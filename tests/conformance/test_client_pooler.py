"""Clients through a real pgbouncer in transaction mode: no statement needs what the one before it left in its session."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from supervisor import AsyncClient, Client, KeyExists, KeyMismatch, UnknownWorkflow
from supervisor.bench.pooler import pooled, program
from tests.apps.asked import Doubled, asked_double, asked_sleeper
from tests.conformance.client_host import Hosted, hosted as hosted
from tests.harness import eventually

POOL = 4  # server sessions: fewer than clients, so that clients take turns on them


@dataclass
class Pooler:
    dsn: str

    def reconnect(self) -> None:
        """Every server session is closed as soon as its transaction is over."""
        with psycopg.connect(make_conninfo(self.dsn, dbname="pgbouncer"), autocommit=True, cursor_factory=psycopg.ClientCursor) as admin:
            admin.execute("RECONNECT")


@pytest.fixture(scope="module")
def pooler(hosted: Hosted) -> Iterator[Pooler]:
    if program() is None:
        pytest.skip("pgbouncer is not installed: apt install pgbouncer")
    with pooled(hosted.database.dsn, default_pool_size=POOL, max_client_conn=500, server_login_retry=0.1) as dsn:
        yield Pooler(dsn)


def test_every_verb_works_through_a_transaction_pooler(hosted: Hosted, pooler: Pooler) -> None:
    with Client(pooler.dsn) as client:
        run = client.start(asked_double.options(key="pooled"), 4)
        assert run.result(timeout=20) == Doubled(4, 8)
        assert client.start(asked_double.options(key="pooled"), 4) == run
        with pytest.raises(KeyMismatch):
            client.start(asked_double.options(key="pooled"), 5)
        with pytest.raises(KeyExists):
            client.start(asked_double.options(key="pooled", on_conflict="reject"), 4)
        with pytest.raises(UnknownWorkflow):
            client.start("no_such_workflow")
        batch = client.start_many("asked_double", range(12_000), key=lambda n: f"pooled-{n}")
        assert (len(batch), batch.created) == (12_000, 12_000)
        assert batch[11_999].result(timeout=60) == {"n": 11_999, "twice": 23_998}
        asleep = client.start(asked_sleeper, 1)
        assert client.cancel(asleep) and client.terminate(client.start(asked_sleeper, 3)) and asleep.status().status in ("ready", "running", "cancelled")
        assert client.list(1, key="pooled")[0].run_id == run.id


def test_more_clients_than_sessions_take_turns(hosted: Hosted, pooler: Pooler) -> None:
    """Twenty clients on four server sessions; server sessions are replaced in the middle of it; every run has its own result."""

    def many(n: int) -> list[int]:
        with Client(pooler.dsn) as client:
            runs = [client.start(asked_double.options(key=f"turn-{n}-{k}"), 100 * n + k) for k in range(20)]
            return [run.result(timeout=60).twice for run in runs]

    with ThreadPoolExecutor(20) as pool:
        working = [pool.submit(many, n) for n in range(20)]
        for done in range(5):
            eventually(lambda done=done: hosted.runs("key ~ '^turn-'") > 60 * done, 60)  # type: ignore[misc]
            pooler.reconnect()
        assert [each.result() for each in working] == [[2 * (100 * n + k) for k in range(20)] for n in range(20)]
    assert hosted.runs("key ~ '^turn-'") == 400
    through = hosted.database.one("select count(*) from pg_stat_activity where datname = current_database() and application_name ~ '^pgsupervisor: (client|waiter)'")
    assert through <= POOL + 2  # the fixture's own client is not pooled


def test_async_clients_through_a_pooler(hosted: Hosted, pooler: Pooler) -> None:
    async def main() -> None:
        async with AsyncClient(pooler.dsn) as client:
            runs = await asyncio.gather(*(client.start(asked_double, n) for n in range(100)))
            assert [result.twice for result in await asyncio.gather(*runs)] == [2 * n for n in range(100)]
            async with await psycopg.AsyncConnection.connect(pooler.dsn, prepare_threshold=None) as aconn:
                run = await client.within(aconn).start(asked_double, 1)
                await aconn.commit()
            assert await run == Doubled(1, 2)

    asyncio.run(main())


def test_transactions_of_the_application_through_a_pooler(hosted: Hosted, pooler: Pooler) -> None:
    hosted.database.sql("create table if not exists pooled_orders (run_id uuid)")
    with Client(pooler.dsn) as client, psycopg.connect(pooler.dsn, prepare_threshold=None) as conn:
        for n in range(50):
            run = client.within(conn).start(asked_double, n)
            conn.execute("insert into pooled_orders values (%s)", (run.id,))
            conn.rollback() if n % 2 else conn.commit()
    both = "from pooled_orders o left join supervisor.run r using (run_id)"
    assert hosted.database.sql(f"select count(*), count(r.run_id) {both}") == [(25, 25)]


def test_a_pooler_that_drops_every_session_loses_nothing(hosted: Hosted, pooler: Pooler) -> None:
    """Clients' sessions with the pooler break at any moment; starts are repeated under their ids."""
    with Client(pooler.dsn) as client, Client(pooler.dsn) as other:
        first = client.start(asked_double, 1)
        other.status(first)
        with psycopg.connect(make_conninfo(pooler.dsn, dbname="pgbouncer"), autocommit=True, cursor_factory=psycopg.ClientCursor) as admin:
            for _ in range(5):
                admin.execute(f"KILL {hosted.database.name}")
                admin.execute(f"RESUME {hosted.database.name}")
                run = client.start(asked_double, 2)
                assert run.created and run.result(timeout=20) == Doubled(2, 4)
                assert other.status(run).status == "completed"
