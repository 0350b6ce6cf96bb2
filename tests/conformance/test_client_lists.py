"""Lists by a filter, from `Client`, `AsyncClient` and in the caller's transaction: the grammar of the command `list`, typed, page by page."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.conninfo import make_conninfo

from supervisor import AsyncClient, Client, FilterInvalid, PermissionMissing, ReadTimeout, SchemaMissing
from supervisor.api.asked import Named
from supervisor.db.statements import Sql
from tests.conformance.client_host import register
from tests.harness import Database, Server

TOKENS = Sql().tokens
OURS = "select name, setting from pg_settings where name ~ '^enable_|^statement_timeout$|^jit$' order by name"


@pytest.fixture
def shop(database: Database) -> Database:
    """Two workflows whose runs nobody claims: 30 orders with a tenant each, 5 reports, three orders cancelled."""
    register(database, "order", "report")
    with Client(database.dsn) as client:
        for n in range(30):
            client.start(Named(workflow="order", key=f"o-{n}", attributes=b'{"tenant": "t%d"}' % (n % 3)), n)
        client.start_many("report", range(5))
        for n in (3, 4, 5):
            client.cancel(client.list(1, key=f"o-{n}")[0].run_id, f"reason {n}")
    return database


@pytest.fixture
def client(shop: Database) -> Iterator[Client]:
    with Client(shop.dsn) as made:
        yield made


def test_a_filter_narrows_what_is_listed_and_the_words_narrow_the_filter(client: Client) -> None:
    assert {info.key for info in client.list(filter="attribute.tenant = t1 AND status = ready")} == {f"o-{n}" for n in range(30) if n % 3 == 1 and n != 4}
    assert [info.key for info in client.list(filter='error ~ "REASON 4"')] == ["o-4"]
    assert {info.status for info in client.list(filter="workflow = order", status="cancelled")} == {"cancelled"}
    assert [info.key for info in client.list(filter="attribute.tenant = t0", key="o-9")] == ["o-9"] and client.list(filter="attribute.tenant = t1", key="o-9") == []
    assert {info.workflow for info in client.list(filter="age < 1h", workflow="report")} == {"report"}
    (one,) = client.list(filter="key = o-7")
    assert one == client.list(key="o-7")[0], "the same facts, whichever way they were found"


def test_pages_of_a_filter_hold_every_run_once_newest_first(client: Client) -> None:
    found: list[uuid.UUID] = []
    before = None
    while page := client.list(7, filter="workflow = order AND NOT status = cancelled", before=before):
        assert len(page) == 7 or len(found) + len(page) == 27
        found += [info.run_id for info in page]
        before = page[-1].run_id
    assert len(found) == len(set(found)) == 27 and found == sorted(found, reverse=True)


def test_what_is_no_filter_is_refused_before_anything_is_asked(client: Client) -> None:
    for wrong in ("", "statsu = failed", "status = failled", "age ~ 3", "workflow = order AND", "x' OR '1' = '1"):
        with pytest.raises(FilterInvalid):
            client.list(filter=wrong)
    assert client.list(filter='key = "\' or 1=1 --" AND attribute."a\'b" = "$1 %s {schema}"') == [], "whatever is in a value stays one"


def test_the_settings_of_a_list_end_with_it(client: Client, shop: Database) -> None:
    """Behind a pooler, and in the caller's transaction, the session is somebody else's."""
    client.list(filter="status = ready")
    assert client._opened is not None and client._opened._conn is not None
    assert client._opened._conn.execute(OURS).fetchall() == shop.sql(OURS)


def test_a_look_that_takes_too_long_ends_and_harms_nothing(client: Client, shop: Database) -> None:
    client.start_many("report", range(20_000))
    with pytest.raises(ReadTimeout, match="age < 1d"):
        client.list(filter="input ~ nowhere", timeout=0.001)
    with psycopg.connect(shop.dsn) as conn, conn.transaction():
        run = client.within(conn).start("report", 7)
        with pytest.raises(ReadTimeout):
            client.within(conn).list(filter="input ~ nowhere", timeout=0.001)
        assert client.within(conn).status(run).status == "ready", "the transaction goes on"
    assert client.status(run).status == "ready", "and commits"


@pytest.mark.parametrize("level", list(IsolationLevel)[1:], ids=lambda level: level.name.lower())
def test_in_the_callers_transaction_it_sees_what_that_has_done(client: Client, shop: Database, level: IsolationLevel) -> None:
    with psycopg.connect(shop.dsn) as conn:
        conn.isolation_level = level
        before = conn.execute(OURS).fetchall()
        conn.commit()
        within = client.within(conn)
        with conn.transaction():
            run = within.start(Named(workflow="order", key="mine"), 1)
            assert [info.run_id for info in within.list(filter="key = mine AND status = ready")] == [run.id]
            assert client.list(filter="key = mine") == []
            assert conn.execute(OURS).fetchall() == before
        assert [info.run_id for info in client.list(filter="key = mine")] == [run.id]
        conn.commit()
        assert [info.key for info in within.list(2, filter="key in (o-1, o-2)")] == ["o-2", "o-1"], "with no transaction open, too"
        conn.rollback()
    with psycopg.connect(shop.dsn, autocommit=True) as conn:
        assert [info.key for info in client.within(conn).list(filter="key = o-1")] == ["o-1"]
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE and conn.execute(OURS).fetchall() == before


def test_an_event_loops_client_lists_by_filter_too(shop: Database) -> None:
    async def main() -> None:
        async with AsyncClient(shop.dsn) as client, await psycopg.AsyncConnection.connect(shop.dsn) as conn:
            assert [info.key for info in await client.list(2, filter="key ^= o- AND status = ready")] == ["o-29", "o-28"]
            async with conn.transaction():
                run = await client.within(conn).start(Named(workflow="order", key="mine"), 1)
                assert [info.run_id for info in await client.within(conn).list(filter="key = mine")] == [run.id]
            with pytest.raises(FilterInvalid):
                await client.list(filter="nothing")

    asyncio.run(main())


# ── roles ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def app(shop: Database, server: Server) -> Iterator[str]:
    """A role that may log in and has no right."""
    name = f"app_{shop.name}"
    shop.sql(f"create role {name} login")
    yield name
    with server.connect() as conn:
        conn.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", (name,))
    shop.sql(f"drop owned by {name}; drop role {name}")


def test_who_may_not_is_told_which_role_may(shop: Database, app: str) -> None:
    """A client's role has no right on the views: a function that takes a filter would read them for anybody."""
    dsn: Any = make_conninfo(shop.dsn, user=app)
    with Client(dsn) as client, pytest.raises(PermissionMissing, match=f'GRANT {TOKENS["role_client"]} TO "{app}"'):
        client.list()
    shop.sql(f'grant {TOKENS["role_client"]} to {app}')
    with Client(dsn) as client:
        assert len(client.list(workflow="order")) == 30, "needs a client's rights alone"
        with pytest.raises(PermissionMissing, match=f'a list by a filter.*GRANT {TOKENS["role_viewer"]} TO "{app}"'):
            client.list(filter="workflow = order")
        with psycopg.connect(dsn) as conn, conn.transaction(), pytest.raises(PermissionMissing, match="role_viewer|_viewer"):
            client.within(conn).list(filter="workflow = order")
        shop.sql(f'grant {TOKENS["role_viewer"]} to {app}')
        assert len(client.list(filter="workflow = order")) == 30
    with Client(dsn, schema="nowhere") as client, pytest.raises(SchemaMissing):
        client.list(filter="workflow = order")
