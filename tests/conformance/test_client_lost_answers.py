"""A start whose answer was lost on its way is repeated under its id: one run, and the caller is told the truth."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from supervisor import AsyncClient, Client, KeyExists
from tests.apps.asked import asked_double, asked_sleeper
from tests.conformance.client_host import register
from tests.faults.go_between import GoBetween
from tests.harness import Database


class Forgetful(GoBetween):
    """Loses the answers to so many starts, or whatever *asks* is in, which the server has committed by then, and the connection with them."""

    asks = rb"start_(runs|one|and_tell)|replace_runs"
    lose = lost = 0
    _asking: socket.socket | None = None

    def _pass(self, end: socket.socket) -> None:
        if end in self._clients:
            if self.lose and re.search(self.asks, end.recv(1 << 16, socket.MSG_PEEK)):
                self._asking = end
        elif self._asking is not None and self._peers[end] is self._asking:
            self._close(self._asking)
            self._peers[end] = self._asking = None
            self.lose, self.lost = self.lose - 1, self.lost + 1
        super()._pass(end)


@pytest.fixture
def way(database: Database) -> Iterator[Forgetful]:
    register(database, "asked_sleeper", "asked_double")
    made = Forgetful(database.dsn)
    try:
        yield made
    finally:
        made.stop()


def statuses(database: Database) -> list[tuple[str, int]]:
    return database.sql("select status, count(*) from supervisor.runs group by 1 order by 1")


@pytest.mark.parametrize("on_conflict", ["return", "reject", "replace", "restart_failed"])
@pytest.mark.parametrize("losses", [1, 3])
def test_a_start_whose_answer_is_lost_is_one_run(database: Database, way: Forgetful, on_conflict: Any, losses: int) -> None:
    asked = asked_sleeper.options(key="k", on_conflict=on_conflict)
    with Client(way.dsn) as client, Client(database.dsn) as direct:
        way.lose = losses
        run = client.start(asked, 1)
        assert (way.lost, run.created, statuses(database)) == (losses, True, [("ready", 1)])
        # and once more where the key names that run
        way.lose = losses
        if on_conflict == "reject":
            with pytest.raises(KeyExists) as caught:
                client.start(asked, 1)
            assert caught.value.run_id == run.id
        elif on_conflict == "replace":
            new = client.start(asked, 1)
            assert new.created and new != run and statuses(database) == [("ready", 1), ("terminated", 1)]
        else:
            assert client.start(asked, 1) == run and statuses(database) == [("ready", 1)]
            direct.cancel(run)
            way.lose = losses
            again = client.start(asked, 1)
            assert again.created == (on_conflict == "restart_failed") and (again != run) == again.created
        assert direct.list(5, key="k")[0].status in ("ready", "cancelled")


def test_a_chunk_whose_answer_is_lost_is_started_once(database: Database, way: Forgetful) -> None:
    """With keys of its own, keys of others and without keys."""
    with Client(way.dsn) as client:
        old = client.start(asked_double.options(key="k-3"), 3)
        way.lose = 1
        batch = client.start_many(asked_double, range(10), key=lambda n: f"k-{n}" if n % 2 else None)
        assert (way.lost, len(batch), batch.created, batch[3]) == (1, 10, 9, old)
        assert statuses(database) == [("ready", 10)] and {run.id for run in batch} == {info.run_id for info in client.list()}
        assert [run.created for run in batch] == [n != 3 for n in range(10)]


@pytest.mark.parametrize("losses", [1, 3])
def test_a_start_without_a_key_whose_answer_is_lost_is_one_run(database: Database, way: Forgetful, losses: int) -> None:
    """It is told to the hosts by the statement that starts it, so that the answer comes after two commits."""
    with Client(way.dsn) as client:
        client.start(asked_sleeper, 0)
        way.lose = losses
        run = client.start(asked_sleeper.options(queue="aside", priority=1), 1)
    assert run.created and way.lost == losses and statuses(database) == [("ready", 2)]
    assert database.one("select queue from supervisor.runs where run_id = %s", run.id) == "aside"


@pytest.mark.parametrize("sqlstate", ["54000", "57014"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_start_that_was_refused_around_its_commit_is_one_run(database: Database, way: Forgetful, sqlstate: str, when: str) -> None:
    """The cluster's queue of notifications is full, or a statement_timeout strikes: the caller has a run either way."""
    start = "PERFORM supervisor.start_one(p_workflow, p_run, p_input, p_queue, p_priority, p_delay); COMMIT;"
    database.sql(f"""
        CREATE OR REPLACE PROCEDURE supervisor.start_and_tell(
            p_workflow text, p_run uuid, p_input bytea, p_queue text, p_priority int2, p_delay interval, p_channel text, p_hint text)
        LANGUAGE plpgsql AS $$ BEGIN {start if when == "after" else ""} RAISE EXCEPTION 'in between' USING ERRCODE = '{sqlstate}'; END $$""")
    with Client(database.dsn) as client:
        runs = [client.start(asked_sleeper, n) for n in range(3)]
        assert [info.run_id for info in client.list()] == [run.id for run in reversed(runs)]


def test_an_async_start_whose_answer_is_lost_is_one_run(database: Database, way: Forgetful) -> None:
    async def main() -> None:
        async with AsyncClient(way.dsn) as client:
            way.lose = 2
            run = await client.start(asked_sleeper, 1)
            assert run.created and way.lost == 2
            way.lose = 1
            keyed = await client.start(asked_sleeper.options(key="k", on_conflict="replace"), 1)
            assert keyed.created and keyed != run

    asyncio.run(main())
    assert statuses(database) == [("ready", 2)]
