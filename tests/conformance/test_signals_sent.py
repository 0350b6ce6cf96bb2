"""Senders: what they may rely on when answers are lost, transactions end, roles are narrow. No worker lives here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from uuid import UUID

import psycopg
import pytest

from supervisor import AsyncClient, Client, KeyMismatch, RunClosed, RunUnknown, UnknownWorkflow
from supervisor.api import hints
from supervisor.db.statements import signal_channel, wake_channel
from tests.apps import letters
from tests.conformance.client_host import register
from tests.conformance.test_client_lost_answers import Forgetful
from tests.harness import Database, eventually


@pytest.fixture
def post(database: Database) -> Database:
    register(database, "collects")
    return database


def stored(database: Database, run: object) -> list[object]:
    """What a run was sent, in order."""
    return [payload for (payload,) in database.sql("select payload from supervisor.signals where run_id = %s order by n", getattr(run, "id", run))]


@pytest.fixture
def way(post: Database) -> Iterator[Forgetful]:
    made = Forgetful(post.dsn)
    try:
        yield made
    finally:
        made.stop()


def test_a_signal_whose_answer_is_lost_is_stored_once(post: Database, way: Forgetful) -> None:
    """Repeated under the id that the caller gave, or under one of the client's; and the caller is told that it was stored."""
    way.asks = rb"send_signal|signal_and_tell"
    with Client(way.dsn) as client:
        run = client.start(letters.collects, 5)
        for n, message_id in ((1, None), (2, "mine"), (3, None)):
            way.lose = 2
            told = client.signal(run, letters.numbers, n, id=message_id)
            assert told is (message_id is None) and way.lost == 2 * n
        assert stored(post, run) == [1, 2, 3]


def test_a_start_with_a_signal_whose_answer_is_lost_is_one_of_each(post: Database, way: Forgetful) -> None:
    way.asks = b"start_and_send"
    with Client(way.dsn) as client:
        for key, on_conflict in ((None, "return"), ("k", "return"), ("r", "replace"), ("r", "replace"), ("j", "reject")):
            way.lose = 1
            run = client.signal_with_start(letters.numbers.message(1), letters.collects.options(key=key, on_conflict=on_conflict), 5)  # type: ignore[arg-type]
            assert run.created and stored(post, run) == [1]
        assert way.lost == 5 and post.one("select count(*) from supervisor.run") == 5

    async def main() -> None:
        async with AsyncClient(way.dsn) as aclient:
            way.lose = 1
            run = await aclient.signal_with_start(letters.numbers.message(1), letters.collects, 5)
            way.asks, way.lose = rb"send_signal|signal_and_tell", 1
            assert await run.signal(letters.numbers, 2) and way.lost == 7
            assert stored(post, run) == [1, 2]

    asyncio.run(main())


def test_every_verb_of_both_clients_in_the_callers_transaction(post: Database) -> None:
    """Rolled back it was never sent; a savepoint takes back its own; ids are kept apart from those of what was rolled back."""

    async def main() -> None:
        async with AsyncClient(post.dsn) as client, await psycopg.AsyncConnection.connect(post.dsn) as conn:
            run = await client.start(letters.collects, 5)
            within = client.within(conn)
            assert await within.signal(run, letters.numbers, 1, id="a")
            await conn.rollback()
            async with conn.transaction():
                assert await within.signal(run.id, "numbers", 2, id="a")
                with pytest.raises(ZeroDivisionError):
                    async with conn.transaction():
                        assert await within.signal(run, letters.numbers, 3)
                        _ = 1 / 0
                own = await within.signal_with_start(letters.numbers.message(4), letters.collects, 1)
                assert not await within.signal(run, letters.numbers, 2, id="a")
            assert stored(post, run) == [2] and stored(post, own) == [4]
            await run.cancel()
            with pytest.raises(RunClosed):
                await within.signal(run, letters.numbers, 5)
            await conn.rollback()
            with pytest.raises(RunUnknown):
                await client.signal(UUID(int=7), letters.numbers, 5)
            with pytest.raises(UnknownWorkflow):
                await client.signal_with_start(letters.numbers.message(4), "no_such_workflow")

    asyncio.run(main())


def test_a_key_with_another_input_is_refused_and_sends_nothing(post: Database) -> None:
    with Client(post.dsn) as client:
        run = client.signal_with_start(letters.numbers.message(1), letters.collects.options(key="k"), 5)
        with pytest.raises(KeyMismatch) as caught:
            client.signal_with_start(letters.numbers.message(2), letters.collects.options(key="k"), 6)
        assert caught.value.run_id == run.id and stored(post, run) == [1]


def test_a_client_role_may_send_and_nothing_else(post: Database) -> None:
    """Through functions alone: its role has no right on message."""
    with post.connect() as conn:
        run_id = conn.execute("select supervisor.start('collects', '{\"n\": 1}')").fetchone()[0]  # type: ignore[index]
        conn.execute("set role supervisor_client")
        assert conn.execute("select supervisor.signal(%s, 'numbers', '1')", (run_id,)).fetchone() == (True,)
        assert conn.execute("select supervisor.signal_with_start('collects', 'numbers', '1', '{\"n\": 1}') is not null").fetchone() == (True,)
        for statement in ("select * from supervisor.message", "select supervisor.send(null, 1::int2, 'a', '1', null)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(statement)  # type: ignore[arg-type]


def test_a_client_tells_the_worker_that_has_the_run_or_all_that_it_is_ready(post: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hint after the commit, in a statement of its own, to one worker by its number; a run that was parked is announced as a start is."""
    monkeypatch.setattr(hints, "_allowance", hints.Allowance())
    post.sql("insert into supervisor.worker (boot, host, pid, supervisor) values (gen_random_uuid(), 'h', 1, gen_random_uuid())")
    with Client(post.dsn) as client, post.connect() as ears:
        run = client.start(letters.collects, 5)
        for channel in (signal_channel("supervisor"), wake_channel("supervisor")):
            ears.execute(f'listen "{channel}"')
        client.signal(run, letters.numbers, 1)  # it is ready: whoever starts it looks for itself
        post.sql("update supervisor.task set owner = 1 where run_id = %s", run.id)
        client.signal(run, letters.numbers, 2)
        post.sql("update supervisor.task set owner = null, wait_kind = 11, wait_signals = '{numbers,others}', ready_at = 'infinity' where run_id = %s", run.id)
        client.signal(run, "approved", {})  # not what it waits for
        assert post.one("select ready_at = 'infinity' from supervisor.task where run_id = %s", run.id)
        client.signal(run, letters.numbers, 3)
        assert post.sql("select ready_at <= now(), wait_kind, wait_signals from supervisor.task where run_id = %s", run.id) == [(True, 1, None)]
        heard = []
        eventually(lambda: heard.extend(ears.notifies(timeout=0.1)) or len(heard) == 2, 10)
        assert [(one.channel, json.loads(one.payload)) for one in heard] == [("supervisor_signal", [1]), ("supervisor_wake", [["collects", None, 1, 0.0]])]
        post.sql("update supervisor.task set owner = 1 where run_id = %s", run.id)
        post.sql("select supervisor.signal(%s, 'numbers', '4')", run.id)  # SQL tells nobody unless it is asked to
        post.sql("select supervisor.signal(%s, 'numbers', '5', notify => true)", run.id)
        assert [(one.channel, one.payload) for one in ears.notifies(timeout=5, stop_after=1)] == [("supervisor_signal", "[1]")]


def test_two_senders_in_a_circle_are_told_apart(post: Database) -> None:
    """Each holds the row of the run that it sent to; PostgreSQL ends one of them, and neither's messages are half there."""
    with Client(post.dsn) as client, psycopg.connect(post.dsn) as one, psycopg.connect(post.dsn) as two:
        a, b = client.start(letters.collects, 5), client.start(letters.collects, 5)
        client.within(one).signal(a, letters.numbers, 1)
        client.within(two).signal(b, letters.numbers, 2)
        two.execute("set local deadlock_timeout = '10ms'; set local lock_timeout = '5s'")

        async def both() -> list[object]:
            return await asyncio.gather(
                asyncio.to_thread(client.within(one).signal, b, letters.numbers, 1), asyncio.to_thread(client.within(two).signal, a, letters.numbers, 2),
                return_exceptions=True,
            )  # fmt: skip

        told = asyncio.run(both())
        assert sorted(type(each).__name__ for each in told) == ["DeadlockDetected", "bool"]
        one.commit() if told[0] is True else one.rollback()
        two.commit() if told[1] is True else two.rollback()
        assert stored(post, a) == stored(post, b) and len(stored(post, a)) == 1
