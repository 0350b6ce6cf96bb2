"""A single start goes a shorter way than many at once: it must leave the same rows, and be refused for the same reasons."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from supervisor import Client
from supervisor.api import hints
from supervisor.core.errors import ClockSkew
from supervisor.db import client_calls
from tests.apps.asked import asked_sleeper
from tests.conformance.client_host import register
from tests.harness import Database, Server

ONE = "select supervisor.start_one(%s, %s, %s, %s, %s::int2, make_interval(secs => %s))"
RUNS = "select from supervisor.start_runs(%s, array[%s]::uuid[], array[%s]::bytea[], null, null, %s, %s::int2, make_interval(secs => %s))"
AGO, LATER = "- interval '61 s'", "+ interval '61 s'"


@pytest.mark.parametrize("queue", [None, "asked_other"])
@pytest.mark.parametrize("priority", [0, 5, 9])
@pytest.mark.parametrize("delay_s", [0.0, 90.0])
@pytest.mark.parametrize("size", [7, 1024, 1025, 100_000])
def test_both_ways_leave_the_same_rows(database: Database, queue: str | None, priority: int, delay_s: float, size: int) -> None:
    register(database, "asked_sleeper")
    ids = []
    for way in (ONE, RUNS):
        ids.append(database.one("select supervisor.new_id()"))
        database.sql(way, asked_sleeper.name, ids[-1], b"1" * size, queue, priority, delay_s)
    for table, moment in (("run", "created_at"), ("task", "ready_at")):
        one, many = (database.one(f"select to_jsonb(t) - 'run_id' - %s - 'cancel_at' from supervisor.{table} t where run_id = %s", moment, run) for run in ids)
        assert one == many
    # moments differ by no more than what lies between the two calls; a delay moves the due time and the deadline
    apart = "select every(abs(extract(epoch from t.ready_at - r.created_at) - %s) < 0.001), count(distinct cancel_at is null) from supervisor.task t join supervisor.run r using (run_id)"
    assert database.sql(apart, delay_s) == [(True, 1)]


def test_a_deadline_counts_from_the_end_of_the_delay(database: Database) -> None:
    register(database, "asked_sleeper")
    database.sql("update supervisor.workflow set timeout_s = 60")
    for way in (ONE, RUNS):
        database.sql(way, asked_sleeper.name, database.one("select supervisor.new_id()"), b"{}", None, 5, 30.0)
    assert database.sql("select distinct extract(epoch from cancel_at - ready_at)::int4 from supervisor.task") == [(60,)]


@pytest.mark.parametrize("way", [ONE, RUNS], ids=["one", "many"])
@pytest.mark.parametrize(
    ("changed", "sqlstate"),
    [({0: "nosuch"}, "SV001"), ({4: 10}, "22023"), ({4: None}, "22023"), ({1: AGO}, "SV002"), ({1: LATER}, "SV002"), ({3: ""}, "22023")],
    ids=["unknown workflow", "priority 10", "no priority", "an old id", "an id of the future", "a queue without a name"],
)
def test_both_ways_refuse_the_same(database: Database, way: str, changed: dict[int, Any], sqlstate: str) -> None:
    register(database, "asked_sleeper")
    given = [asked_sleeper.name, database.one("select supervisor.new_id()"), b"{}", None, 5, 0.0]
    for at, value in changed.items():
        given[at] = database.one(f"select supervisor.id_floor(clock_timestamp() {value})") if value in (AGO, LATER) else value
    with pytest.raises(psycopg.Error) as caught:
        database.sql(way, *given)
    assert caught.value.sqlstate == sqlstate or (3 in changed and caught.value.sqlstate == "23514"), caught.value
    assert database.one("select count(*) from supervisor.run") == 0


def test_a_start_is_durable_where_its_session_would_not_wait_for_the_disk(database: Database) -> None:
    register(database, "asked_sleeper")
    with database.connect() as conn, conn.transaction():
        conn.execute("set local synchronous_commit = off")
        conn.execute(ONE, (asked_sleeper.name, conn.execute("select supervisor.new_id()").fetchone()[0], b"{}", None, 5, 0.0))  # type: ignore[index]
        assert conn.execute("show synchronous_commit").fetchone() == ("on",)


def test_workers_hear_of_a_start_with_its_commit(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a transaction of its own, so that the lock of NOTIFY is not held while the start waits for the disk; what could not be told goes with the next."""
    register(database, "asked_sleeper", "asked_double")
    monkeypatch.setattr(hints, "_allowance", hints.Allowance())
    with Client(database.dsn) as client, database.connect() as ear:
        ear.execute("listen supervisor_wake_now")
        client.start(asked_sleeper, 1)
        monkeypatch.setattr(hints._allowance, "take", lambda now_s: False)
        client.start(asked_sleeper, 2)
        client.start(asked_sleeper.options(queue="asked_other"), 3)
        monkeypatch.undo()
        client.start(asked_sleeper, 4)
        told = [note.payload for note in ear.notifies(timeout=10, stop_after=2)]
        assert told == ['[["asked_sleeper",null,1,0.0]]', '[["asked_sleeper",null,2,0.0],["asked_sleeper","asked_other",1,0.0]]']


def test_of_a_single_start_hear_only_workers_that_listen(database: Database) -> None:
    """Each host has one. Its parent is told of more than one run, and of what is due later, which it waits for."""
    register(database, "asked_sleeper")
    one, more, later = '[["asked_sleeper",null,1,0.0]]', '[["asked_sleeper",null,2,0.0]]', '[["asked_sleeper",null,1,0.5]]'
    with database.connect() as ear, database.connect() as worker:
        ear.execute("listen supervisor_wake")
        worker.execute("listen supervisor_wake_now")
        hints = (one, more, one, later, "no JSON")
        for hint in hints:
            run = database.one("select supervisor.new_id()")
            worker.execute("call supervisor.start_and_tell(%s, %s, '{}', null, 5::int2, '0', 'supervisor_wake', %s)", (asked_sleeper.name, run, hint))
        ear.execute("notify supervisor_wake, 'the last'")
        assert tuple(note.payload for note in worker.notifies(timeout=10, stop_after=len(hints))) == hints
        assert [note.payload for note in ear.notifies(timeout=10, stop_after=4)] == [more, later, "no JSON", "the last"]
    assert database.one("select count(*) from supervisor.task") == len(hints)


def test_a_start_that_is_seen_before_it_is_on_the_disk_is_there_when_its_caller_is_told(own_server: Server) -> None:
    """The wait for the disk is cancelled, so the start is repeated, meets itself and waits for the disk instead; then the server is killed."""
    database = own_server.database()
    register(database, "asked_sleeper")
    database.sql("alter system set wal_writer_delay = '10s'")  # nobody else brings it there
    database.sql("select pg_reload_conf()")
    database.sql("create sequence supervisor.disk_waits")
    database.sql("""
        create or replace function supervisor.wait_for_disk() returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
        begin
            if nextval('supervisor.disk_waits') = 1 then
                raise exception 'in between' using errcode = '57014';
            end if;
            perform pg_logical_emit_message(true, 'pgsupervisor', '');
        end $$""")
    database.sql("checkpoint")
    with Client(database.dsn) as client:
        run = client.start(asked_sleeper, 1)
        own_server.embedded.restart("immediate")
        assert client.get(run.id).status().status == "ready"


@pytest.mark.parametrize("many", [False, True])
def test_a_clock_that_was_set_is_measured_again(database: Database, monkeypatch: pytest.MonkeyPatch, many: bool) -> None:
    """A client's ids have the database's time, by an offset that is a minute old at most: when the machine's clock was set meanwhile, the start is made again."""
    register(database, "asked_sleeper")

    def start(client: Client, n: int) -> UUID:
        run: UUID = client.start_many(asked_sleeper, [n]).ids[0] if many else client.start(asked_sleeper, n).id
        return run

    with Client(database.dsn) as client:
        start(client, 1)
        client._verbs().questions.ids.offset_us += 120_000_000
        run = start(client, 2)
        assert database.one("select abs(extract(epoch from supervisor.id_time(%s) - now())) < 10", run) and client.get(run).status().status == "ready"
        # and where no measure helps, it is said whose clock is wrong, and nothing was started
        monkeypatch.setattr(client_calls, "clock_offset_us", lambda *_: 120_000_000)
        client._verbs().questions.ids.offset_us += 120_000_000
        with pytest.raises(ClockSkew, match=r"more than 60 s off .*set the clock of this machine \(measured: \+120\.0 s against the database\)") as refused:
            start(client, 3)
        assert refused.value.code == "clock_skew"
    assert database.one("select count(*) from supervisor.run") == 2


def test_what_commits_in_between_is_refused_in_a_transaction(database: Database) -> None:
    register(database, "asked_sleeper")
    run = database.one("select supervisor.new_id()")
    with database.connect() as conn, pytest.raises(psycopg.errors.InvalidTransactionTermination), conn.transaction():
        conn.execute("call supervisor.start_and_tell(%s, %s, '{}', null, 5::int2, '0', 'supervisor_wake', '[]')", (asked_sleeper.name, run))
    assert database.one("select count(*) from supervisor.run") == 0
