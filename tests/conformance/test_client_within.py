"""Verbs in the caller's transaction: on psycopg, SQLAlchemy and Django, in every isolation level, with savepoints."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader

from supervisor import AsyncClient, Client, ClientInsideRun, ClientMisused, KeyExists, KeyMismatch, RunUnknown, UnknownWorkflow
from supervisor.bench import pooler
from supervisor.db import borrowed
from tests.apps.asked import Doubled, asked_double, asked_failure, asked_sleeper
from tests.conformance.client_host import Hosted, hosted as hosted, register
from tests.conformance.connections import django_connection
from tests.harness import Database, Server, eventually

LEVELS = [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]


@pytest.fixture(params=LEVELS, ids=lambda level: level.name.lower())
def conn(request: pytest.FixtureRequest, hosted: Hosted) -> Iterator[psycopg.Connection[Any]]:
    """An application's connection, with a table of its own."""
    hosted.database.sql("create table if not exists orders (id int, run_id uuid)")
    with psycopg.connect(hosted.database.dsn) as made:
        made.isolation_level = request.param
        yield made


def known(hosted: Hosted, *runs: Any) -> int:
    """How many of these runs others see."""
    return hosted.runs(f"run_id in ({','.join(repr(str(run.id)) for run in runs)})")


def sent(hosted: Hosted, *runs: Any) -> list[Any]:
    """What these runs were sent."""
    return [value for (value,) in hosted.database.sql("select payload from supervisor.signals where run_id = any(%s) order by n", [run.id for run in runs])]


# ── psycopg ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_commits_is_started_and_what_rolls_back_is_not(hosted: Hosted, conn: psycopg.Connection[Any]) -> None:
    with conn.transaction():
        kept = hosted.client.within(conn).start(asked_double, 4)
        conn.execute("insert into orders values (4, %s)", (kept.id,))
        assert known(hosted, kept) == 0
    dropped = hosted.client.within(conn).start(asked_double, 5)
    conn.rollback()
    assert kept.result(timeout=20) == Doubled(4, 8)
    assert known(hosted, kept, dropped) == 1
    # nobody waits for ever for what was rolled back
    began = time.monotonic()
    with pytest.raises(RunUnknown, match="rolled back"):
        dropped.result()
    with pytest.raises(RunUnknown):
        dropped.status()
    assert time.monotonic() - began < 5


def test_a_savepoint_takes_back_its_own_starts_only(hosted: Hosted, conn: psycopg.Connection[Any]) -> None:
    within = hosted.client.within(conn)
    with conn.transaction():
        outer = within.start(asked_double, 1)
        with pytest.raises(ZeroDivisionError), conn.transaction():
            inner = within.start(asked_double.options(key=f"sp-{outer.id}"), 2)
            _ = 1 / 0
        with pytest.raises(KeyMismatch), conn.transaction():
            within.start(asked_double.options(key=f"again-{outer.id}"), 3)
            within.start(asked_double.options(key=f"again-{outer.id}"), 4)
        with pytest.raises(UnknownWorkflow), conn.transaction():  # an error of the server's aborts up to the savepoint
            within.start("no_such_workflow")
        second = within.start(asked_double.options(key=f"sp-{outer.id}"), 5)
    assert known(hosted, outer, inner, second) == 2 and second.created
    assert second.result(timeout=20).twice == 10


def test_every_verb_sees_the_transaction_and_leaves_it_open(hosted: Hosted, conn: psycopg.Connection[Any]) -> None:
    ended, failed = hosted.client.start(asked_double, 8), hosted.client.start(asked_failure, 8)
    asleep = hosted.client.start(asked_sleeper.options(key=f"verbs-{ended.id}"), 8)
    ended.result(timeout=20)
    with pytest.raises(Exception, match="asked to fail"):
        failed.result(timeout=20)
    eventually(lambda: asleep.status().wait == "timer", 20)  # under one snapshot, what its worker does later is a conflict
    within = hosted.client.within(conn)
    own = within.start(asked_sleeper, 9)
    batch = within.start_many(asked_double.options(queue="nobody"), range(20), key=lambda n: f"{own.id}-{n}")
    assert (len(batch), batch.created, within.start_record(asked_sleeper, 3).created) == (20, 20, True)
    assert str(within.status(own)) == "ready" and within.get(own.id) == own
    assert within.list(1, key=f"{own.id}-7")[0].run_id == batch[7].id
    assert within.result(ended) == Doubled(8, 16) == within.result(ended.id)
    with pytest.raises(Exception, match="asked to fail"):
        within.result(failed)
    with pytest.raises(TimeoutError, match="reads and does not wait"):
        within.result(own)
    with pytest.raises(RunUnknown):
        within.status("00000000-0000-7000-8000-000000000000")
    assert within.parameters("asked_double") == [{"name": "n", "required": True, "schema": {"type": "number"}}]
    assert within.start("asked_double", 1) != within.start("asked_double", n=1)
    assert within.cancel(own) and within.terminate(asleep.id, "in passing") and not within.cancel(own)
    assert str(within.status(asleep)) == "terminated"
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
    conn.rollback()
    assert str(asleep.status()) != "terminated" and known(hosted, own, *batch) == 0
    assert asleep.cancel()


def test_a_conflict_under_one_snapshot_is_the_callers_to_repeat(hosted: Hosted, conn: psycopg.Connection[Any]) -> None:
    """within repeats nothing: a serialization failure comes as the driver's, for the retry that is around the whole transaction."""
    key = f"race-{conn.isolation_level}"
    conn.execute("select 1 from orders")  # the snapshot
    theirs = hosted.client.start(asked_sleeper.options(key=key), 1)
    if conn.isolation_level == IsolationLevel.READ_COMMITTED:
        assert hosted.client.within(conn).start(asked_sleeper.options(key=key), 1) == theirs
        conn.rollback()
    else:
        with pytest.raises(psycopg.errors.SerializationFailure):
            hosted.client.within(conn).start(asked_sleeper.options(key=key), 1)
        conn.rollback()
        again = hosted.client.within(conn).start(asked_sleeper.options(key=key), 1)
        assert again == theirs and not again.created
        conn.rollback()
    with pytest.raises(KeyExists):
        hosted.client.within(conn).start(asked_sleeper.options(key=key, on_conflict="reject"), 1)
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):  # as after any error of the server's
        hosted.client.within(conn).start(asked_sleeper, 1)
    conn.rollback()
    theirs.cancel()


def test_a_connection_that_the_application_has_furnished(hosted: Hosted) -> None:
    """Its row factories, loaders, prepared statements, path and schema are its own, before and after."""
    hosted.database.sql("create schema if not exists mine")
    with psycopg.connect(hosted.database.dsn, row_factory=dict_row, prepare_threshold=0, options="-csearch_path=mine -cTimeZone=Asia/Tokyo") as conn:  # type: ignore[arg-type]
        for name in ("uuid", "timestamptz", "int4", "bool"):
            conn.adapters.register_loader(name, TextLoader)
        within = hosted.client.within(conn)
        run = within.start(asked_sleeper.options(key="furnished", delay=60), 1)
        info = within.status(run)
        assert (info.run_id, info.key, info.attempt) == (run.id, "furnished", None) and info.created_at.tzinfo is not None
        assert conn.execute("select true as yes").fetchone() == {"yes": "t"}
        assert conn.execute("select count(*) as n from pg_prepared_statements where statement ~ 'start[_]runs'").fetchone() == {"n": 0}
        with conn.pipeline():
            conn.execute("select 1")
            inside = within.start(asked_double, 2)
        conn.commit()
    assert known(hosted, run, inside) == 2
    run.cancel()


def test_what_cant_carry_a_transaction_is_refused_in_words(hosted: Hosted) -> None:
    client = hosted.client
    with psycopg.connect(hosted.database.dsn, autocommit=True) as conn:
        with pytest.raises(ClientMisused, match="commits each statement by itself"):
            client.within(conn).start(asked_double, 1)
        with conn.transaction():
            run = client.within(conn).start(asked_double, 1)
        assert run.result(timeout=20).twice == 2
        assert client.within(conn).status(run)  # reading changes nothing
    with pytest.raises(ClientMisused, match="closed"):
        client.within(conn).start(asked_double, 1)
    for wrong in (object(), "postgresql:///", None, client):
        with pytest.raises(ClientMisused, match="must be psycopg 3"):
            client.within(wrong).start(asked_double, 1)

    async def crossed() -> None:
        async with AsyncClient(hosted.database.dsn) as other, await psycopg.AsyncConnection.connect(hosted.database.dsn) as aconn:
            with pytest.raises(ClientMisused, match="AsyncClient"):
                client.within(aconn)
            with pytest.raises(ClientMisused, match="blocks the event loop"):
                other.within(conn)

    asyncio.run(crossed())


def test_a_client_that_only_ever_borrows_needs_no_database_of_its_own(hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGSUPERVISOR_DATABASE_URL", "DATABASE_URL", "PGHOST", "PGSERVICE", "PGDATABASE", "PGPORT", "PGUSER"):
        monkeypatch.delenv(name, raising=False)
    with Client() as client, psycopg.connect(hosted.database.dsn) as conn:
        assert client.within(conn).start(asked_double, 1).created


@pytest.fixture
def elsewhere(server: Server) -> Iterator[Database]:
    """A database with the same schema and workflows."""
    database = server.database()
    register(database, "asked_double")
    yield database
    database.drop()


def test_a_connection_to_another_database_is_refused(hosted: Hosted, elsewhere: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs would be where nobody looks for them. Asked once of each connection, by what it answers and not by how it was opened."""
    asked: list[str] = []
    admit = borrowed.Home.admit
    monkeypatch.setattr(borrowed.Home, "admit", lambda home, conn, where: (asked.append(where), admit(home, conn, where))[1])
    with Client(hosted.database.dsn) as client, psycopg.connect(elsewhere.dsn) as wrong, psycopg.connect(hosted.database.dsn) as right:
        for act in (lambda within: within.start(asked_double, 1), lambda within: within.list(), lambda within: within.list(filter="age < 1d")):
            with pytest.raises(ClientMisused, match=f"goes to database '{elsewhere.name}' at .*, and this client is for .*dbname={hosted.database.name}"):
                act(client.within(wrong))
            wrong.rollback()
        assert elsewhere.one("select count(*) from supervisor.run") == 0
        asked.clear()
        for n in range(3):
            client.within(right).start(asked_double, n)
        client.within(right).list()
        assert len(asked) == 1
        wrong.execute("drop schema supervisor cascade")
        with pytest.raises(ClientMisused, match="has no schema 'supervisor' of this version"):
            client.within(wrong).start(asked_double, 1)


def test_a_client_without_a_database_is_for_that_of_its_first_connection(hosted: Hosted, elsewhere: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGSUPERVISOR_DATABASE_URL", "DATABASE_URL", "PGHOST", "PGSERVICE", "PGDATABASE", "PGPORT", "PGUSER"):
        monkeypatch.delenv(name, raising=False)
    with Client() as client, psycopg.connect(hosted.database.dsn) as first, psycopg.connect(elsewhere.dsn) as second:
        assert client.within(first).start(asked_double, 1).created
        with pytest.raises(ClientMisused, match=f"'{elsewhere.name}'"):
            client.within(second).start(asked_double, 1)


def test_async_connections_are_looked_at_too(hosted: Hosted, elsewhere: Database) -> None:
    async def main() -> None:
        async with AsyncClient(hosted.database.dsn) as client, await psycopg.AsyncConnection.connect(elsewhere.dsn) as wrong:
            with pytest.raises(ClientMisused, match=f"'{elsewhere.name}'"):
                await client.within(wrong).start(asked_double, 1)
            async with await psycopg.AsyncConnection.connect(hosted.database.dsn) as right:
                assert (await client.within(right).start(asked_double, 1)).created

    asyncio.run(main())


def test_a_pooler_changes_nothing_about_where_a_connection_goes(hosted: Hosted) -> None:
    if pooler.program() is None:
        pytest.skip("pgbouncer is not installed: apt install pgbouncer")
    with pooler.pooled(hosted.database.dsn) as dsn, Client(dsn) as client, psycopg.connect(hosted.database.dsn) as conn:
        assert client.within(conn).start(asked_double, 1).created


def test_async_psycopg(hosted: Hosted) -> None:
    async def main() -> None:
        async with AsyncClient(hosted.database.dsn) as client, await psycopg.AsyncConnection.connect(hosted.database.dsn) as aconn:
            async with aconn.transaction():
                kept = await client.within(aconn).start(asked_double, 3)
                batch = await client.within(aconn).start_many(asked_double.options(queue="nobody"), range(7))
                with pytest.raises(UnknownWorkflow):
                    async with aconn.transaction():
                        await client.within(aconn).start("no_such_workflow")
            dropped = await client.within(aconn).start(asked_double, 3)
            assert (await client.within(aconn).list(1))[0].run_id == dropped.id
            await aconn.rollback()
            assert await kept.result(timeout=20) == Doubled(3, 6)
            assert await client.within(aconn).result(kept) == Doubled(3, 6)
            assert known(hosted, kept, dropped, *batch) == 8
            with pytest.raises(RunUnknown):
                await dropped

    asyncio.run(main())


# ── what holds a psycopg connection ──────────────────────────────────────────────────────────────────────────────


@contextmanager
def engine_of(dsn: str, **options: Any) -> Iterator[Any]:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    made = sqlalchemy.create_engine("postgresql+psycopg://", connect_args=conninfo_to_dict(dsn), **options)
    try:
        yield made
    finally:
        made.dispose()


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_sqlalchemy_connection_and_session(hosted: Hosted, level: str) -> None:
    with engine_of(hosted.database.dsn, isolation_level=level) as engine:
        from sqlalchemy import text
        from sqlalchemy.orm import Session

        client = hosted.client
        asleep = client.start(asked_sleeper, 1)
        with engine.connect() as conn:
            first = client.within(conn).start(asked_double, 1)  # the first statement of the connection: it begins as any other would
            assert conn.in_transaction()
            conn.execute(text("select 1"))
            conn.commit()
            dropped = client.within(conn).start(asked_double, 1)
            conn.rollback()
            with conn.begin():
                second = client.within(conn).start(asked_double, 2)
                with conn.begin_nested() as savepoint:
                    taken_back = client.within(conn).start(asked_double, 2)
                    savepoint.rollback()
        with engine.connect() as conn:
            lost = client.within(conn).start(asked_double, 1)  # closed without a commit
        with Session(engine) as session:
            third = client.within(session).start(asked_double, 3)
            session.commit()
            other = client.within(session).start(asked_double, 3)
            session.rollback()
        with Session(engine) as session, session.begin():
            fourth = client.within(session).start(asked_double, 4)
            client.within(session).signal(asleep, "sent", 1)
        with Session(engine) as session:
            client.within(session).signal(asleep, "sent", 2)  # closed without a commit
        assert sent(hosted, asleep) == [1]
        assert known(hosted, first, second, third, fourth) == 4
        assert known(hosted, dropped, taken_back, lost, other) == 0
        assert fourth.result(timeout=20).twice == 8


def test_sqlalchemy_that_commits_by_itself_is_refused(hosted: Hosted) -> None:
    with engine_of(hosted.database.dsn, isolation_level="AUTOCOMMIT") as engine, engine.connect() as conn:
        with pytest.raises(ClientMisused, match="commits each statement by itself"):
            hosted.client.within(conn).start(asked_double, 1)
        with pytest.raises(ClientMisused, match="event loop"):
            pytest.importorskip("sqlalchemy.ext.asyncio")
            from sqlalchemy.ext.asyncio import AsyncConnection

            hosted.client.within(AsyncConnection.__new__(AsyncConnection))


def test_sqlalchemy_on_another_driver_is_refused_by_name(hosted: Hosted) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as conn, pytest.raises(ClientMisused, match=r"whose driver is sqlite3; the driver must be psycopg 3"):
        hosted.client.within(conn).start(asked_double, 1)
    engine.dispose()


def test_async_sqlalchemy(hosted: Hosted) -> None:
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("greenlet")
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    async def main() -> None:
        engine = create_async_engine("postgresql+psycopg://", connect_args=conninfo_to_dict(hosted.database.dsn))
        async with AsyncClient(hosted.database.dsn) as client:
            async with engine.connect() as conn:
                first = await client.within(conn).start(asked_double, 1)
                await conn.commit()
                dropped = await client.within(conn).start(asked_double, 1)
                await conn.rollback()
            async with AsyncSession(engine) as session:
                second = await client.within(session).start(asked_double, 2)
                await session.commit()
                await client.within(session).cancel(await client.within(session).start(asked_sleeper, 2))
                await session.rollback()
                asleep = await client.start(asked_sleeper, 2)
                await client.within(session).signal(asleep, "sent", 3)
                await session.commit()
                await client.within(session).signal(asleep, "sent", 4)
                await session.rollback()
                assert sent(hosted, asleep) == [3]
            assert known(hosted, first, second) == 2 and known(hosted, dropped) == 0
            assert (await second).twice == 4
        await engine.dispose()

    asyncio.run(main())


def test_django(hosted: Hosted) -> None:
    pytest.importorskip("django")
    from django.db import OperationalError, transaction

    client = hosted.client
    with django_connection(hosted.database.dsn, "default") as connection:
        with transaction.atomic():
            kept = client.within(connection).start(asked_double, 1)
            with connection.cursor() as cursor:
                cursor.execute("select 1")
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                taken_back = client.within(connection).start(asked_double, 2)
                _ = 1 / 0
            with pytest.raises(KeyMismatch), transaction.atomic():
                client.within(connection).start(asked_double.options(key="dj"), 2)
                client.within(connection).start(asked_double.options(key="dj"), 3)
        asleep = client.start(asked_sleeper, 1)
        with transaction.atomic():
            client.within(connection).signal(asleep, "sent", 5)
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                client.within(connection).signal(asleep, "sent", 6)
                _ = 1 / 0
        assert sent(hosted, asleep) == [5]
        assert kept.result(timeout=20).twice == 2 and known(hosted, kept, taken_back) == 1
        with pytest.raises(ClientMisused, match=r"transaction\.atomic"):
            client.within(connection).start(asked_double, 1)
        # what is the transaction's own affair comes as Django's error
        with pytest.raises(OperationalError), transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("set transaction isolation level repeatable read")
                cursor.execute("select 1")
            client.start(asked_sleeper.options(key="dj-race"), 1)
            client.within(connection).start(asked_sleeper.options(key="dj-race"), 1)


def test_workflow_code_may_not_borrow_either(hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    from supervisor.api import words

    monkeypatch.setattr(words, "inside_run", lambda: True)
    with psycopg.connect(hosted.database.dsn) as conn, pytest.raises(ClientInsideRun):
        hosted.client.within(conn)
    with pytest.raises(ClientInsideRun):
        asked_double.start(1)
