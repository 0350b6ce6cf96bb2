"""What a client's session asks again and again goes without a cursor: the same answers, refusals and ends, from `Client` and `AsyncClient`."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import Any

import pytest

from supervisor import AsyncClient, Client
from supervisor.core.errors import KeyMismatch, UnknownWorkflow
from supervisor.db.prepared import PREPARE_AFTER, Prepared
from tests.apps.asked import asked_sleeper
from tests.conformance.client_host import register
from tests.harness import Database, eventually

OFTEN = PREPARE_AFTER + 3
PREPARED = "select name from pg_prepared_statements where statement like '%%start_and_tell%%'"
BLOCKED = "select pid from pg_stat_activity where wait_event_type = 'Lock' and query like '%%start_and_tell%%'"


@pytest.fixture(autouse=True)
def known(database: Database) -> None:
    register(database, "asked_sleeper")


def session(client: Any) -> Any:
    assert client._opened is not None and client._opened._conn is not None
    return client._opened._conn


def warm(client: Client) -> None:
    for n in range(OFTEN):
        client.start(asked_sleeper, n)


def test_a_session_that_goes_straight_to_its_server_prepares_what_it_asks_often(database: Database) -> None:
    with Client(database.dsn) as client:
        for _ in range(PREPARE_AFTER):
            client.start(asked_sleeper, 1)
        assert session(client).execute(PREPARED).fetchall() == []
        warm(client)
        assert len(session(client).execute(PREPARED).fetchall()) == 1


def test_values_of_another_type_make_another_statement(database: Database) -> None:
    """The driver sends a number as the smallest type that holds it."""
    with database.connect() as conn:
        prepared = Prepared(conn)
        asked = [1, 70_000, 2, 2**40, 70_001]
        assert [conn.wait(prepared.talk("next", b"select $1 + 1, $1 is null", [n])) for n in asked] == [[(n + 1, False)] for n in asked]
        types = conn.execute("select parameter_types::text from pg_prepared_statements where name like 'pgs%%' order by name").fetchall()
    assert types == [("{smallint}",), ("{integer}",), ("{bigint}",)]


def test_one_that_was_interrupted_while_it_was_prepared_is_prepared_again(database: Database) -> None:
    """The server has it by then, and nobody noted that."""
    with database.connect() as conn:
        prepared = Prepared(conn)
        cut = prepared.talk("next", b"select $1 + 1", [1])
        next(cut)
        cut.close()
        while conn.pgconn.get_result() is not None:
            pass
        assert conn.execute("select count(*) from pg_prepared_statements").fetchone() == (1,)
        assert conn.wait(prepared.talk("next", b"select $1 + 1", [1])) == [(2,)]


def test_what_is_refused_is_refused_in_the_same_words(database: Database) -> None:
    def words(times: int) -> list[str]:
        said = []
        with Client(database.dsn) as client:
            first = client.start(asked_sleeper.options(key="k"), 1)
            for _ in range(times):
                with pytest.raises(KeyMismatch) as mismatch:
                    client.start(asked_sleeper.options(key="k"), 2)
                with pytest.raises(UnknownWorkflow) as unknown:
                    client.start("nobody's", 1)
                said += [str(mismatch.value), str(unknown.value)]
            assert client.start(asked_sleeper.options(key="k"), 1).id == first.id
        return said

    once, often = words(1), words(OFTEN)
    assert set(often) == set(once) and len(set(once)) == 2


def test_a_session_that_was_lost_prepares_anew(database: Database) -> None:
    with Client(database.dsn) as client:
        warm(client)
        database.sql("select pg_terminate_backend(%s)", session(client).info.backend_pid)
        warm(client)
        assert len(session(client).execute(PREPARED).fetchall()) == 1
    assert database.one("select count(*) from supervisor.run") == 2 * OFTEN


def test_an_interrupted_start_leaves_the_session_usable(database: Database) -> None:
    """Ctrl-C while the server is busy with it: the question is cancelled at the server, too."""
    with Client(database.dsn) as client, database.connect() as holder:
        warm(client)
        pid = session(client).info.backend_pid

        def interrupt() -> None:
            eventually(lambda: database.sql(BLOCKED), 10)
            os.kill(os.getpid(), signal.SIGINT)

        with holder.transaction():
            holder.execute("lock table supervisor.task in access exclusive mode")
            other = threading.Thread(target=interrupt)
            other.start()
            with pytest.raises(KeyboardInterrupt):
                client.start(asked_sleeper, 100)
            other.join()
        run = client.start(asked_sleeper, 101)
        assert session(client).info.backend_pid == pid and run.status().status == "ready"
    assert database.one("select count(*) from supervisor.run") == OFTEN + 1


def test_a_cancelled_task_leaves_the_session_usable(database: Database) -> None:
    async def main() -> None:
        async with AsyncClient(database.dsn) as client:
            for n in range(OFTEN):
                await client.start(asked_sleeper, n)
            pid = session(client).info.backend_pid
            assert len(await (await session(client).execute(PREPARED)).fetchall()) == 1
            with database.connect() as holder, holder.transaction():
                holder.execute("lock table supervisor.task in access exclusive mode")
                task = asyncio.create_task(client.start(asked_sleeper, 100))
                await asyncio.to_thread(eventually, lambda: database.sql(BLOCKED), 10)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            run = await client.start(asked_sleeper, 101)
            assert session(client).info.backend_pid == pid and (await run.status()).status == "ready"

    asyncio.run(main())
    assert database.one("select count(*) from supervisor.run") == OFTEN + 1
