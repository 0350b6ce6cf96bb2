"""A parent that is being parked in the very moment in which its last child ends is woken at once, by whom it may be."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from supervisor import Client
from tests.apps import parking
from tests.harness import Database, Effects, Host, HostFactory, eventually

APP = "tests.apps.parking"
HELD = 7011  # the advisory lock at which the commit of a parking stands
# deferred: it runs when all of the batch is done and nothing of it is committed
_HOLD = f"""
create function hold_parking() returns trigger language plpgsql as $$
begin
    if new.wait_children is not null and old.wait_children is null then
        perform pg_advisory_xact_lock_shared({HELD});
    end if;
    return null;
end $$;
create constraint trigger hold_parking after update on supervisor.task deferrable initially deferred
    for each row execute function hold_parking()
"""


@pytest.fixture
def client(database: Database) -> Iterator[Client]:
    with Client(database.dsn) as made:
        yield made


@contextmanager
def parents_and_kids(hosts: HostFactory, build: str) -> Iterator[tuple[Host, Host]]:
    """A host for each queue: parents are parked by one worker, and children ended by another."""
    with hosts(APP, build=build, args=("--queues", "parked_parents")) as one, hosts(APP, build=build, args=("--queues", "parked_kids")) as other:
        yield one, other


@contextmanager
def parking_held(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """No parking commits before the lock is released, at the end or by `pg_advisory_unlock`."""
    database.sql(_HOLD)
    with database.connect() as conn:
        conn.execute("select pg_advisory_lock(%s)", (HELD,))
        yield conn
        conn.execute("select pg_advisory_unlock_all()")
    database.sql("drop trigger hold_parking on supervisor.task")


def standing(database: Database) -> bool:
    return bool(database.one("select count(*) from pg_locks where locktype = 'advisory' and objid = %s and not granted", HELD))


def kid_of(database: Database, parent: Any) -> Any:
    return eventually(lambda: database.sql("select run_id from supervisor.children where parent_id = %s", parent.id), 20)[0][0]


def not_swept(*hosts: Host) -> None:
    """The sweep for the forgotten, every five seconds, had nothing to do."""
    for host in hosts:
        assert "parents woken whose children have ended" not in host.log(), host.log()


def test_a_child_that_ends_while_its_parents_parking_is_not_committed(
    hosts: HostFactory, build: str, database: Database, client: Client, effects: Effects
) -> None:
    """Its worker looks at the parent when that is still owned, and never again; so whoever parked it looks, too."""
    with parents_and_kids(hosts, build) as (parents, kids):
        with parking_held(database) as lock:
            run = client.start(parking.parked_parent, "open")
            kid = kid_of(database, run)
            eventually(lambda: standing(database), 20, "the parking, at its commit")
            # when the child ends, and its worker has been through with waking: what it does next comes later
            effects.open("open")
            assert client.result(kid, timeout=20) == "open"
            for n in range(3):
                assert client.start(parking.parked_quick, n).result(timeout=20) == n
            assert standing(database) and str(run.status()) == "running"
            lock.execute("select pg_advisory_unlock(%s)", (HELD,))
        assert run.result(timeout=20) == "open"
        not_swept(parents, kids)


def test_a_child_that_is_terminated_while_its_parents_parking_is_not_committed(
    hosts: HostFactory, build: str, database: Database, client: Client, effects: Effects
) -> None:
    """What ends the child from outside waits for the parking, and wakes the parent."""
    with parents_and_kids(hosts, build) as (parents, kids):
        with parking_held(database) as lock:
            run = client.start(parking.parked_catcher, "never", "open")
            kid = kid_of(database, run)
            eventually(lambda: standing(database), 20, "the parking, at its commit")
            ending = threading.Thread(target=lambda: database_terminate(database, kid))
            ending.start()
            waits = "select count(*) from pg_stat_activity where datname = current_database() and query like '%%supervisor.terminate%%' and wait_event_type = 'Lock'"
            eventually(lambda: database.one(waits) == 1, 20, "the end from outside waits for the parking")
            lock.execute("select pg_advisory_unlock(%s)", (HELD,))
            ending.join(20)
        effects.open("open")
        assert run.result(timeout=20) == [str(kid), "RunTerminated", str(kid), "parked_kid", "by a test"]
        not_swept(parents, kids)
        effects.open("never")


def database_terminate(database: Database, run_id: Any) -> None:
    with database.connect() as conn:
        assert conn.execute("select supervisor.terminate(%s, 'by a test')", (run_id,)).fetchone() == (True,)


def test_a_parent_that_parks_while_an_end_is_not_committed(
    hosts: HostFactory, build: str, database: Database, client: Client, effects: Effects
) -> None:
    """The parking waits for it, and sees then that the child has ended."""
    with hosts(APP, build=build, args=("--queues", "parked_parents")) as parents:
        run = client.start(parking.parked_beside, "open", "never")
        kid = kid_of(database, run)
        eventually(lambda: effects.count("parked_kid", "open"), 20, "the step beside the child")
        with database.connect() as conn:
            with conn.transaction():
                assert conn.execute("select supervisor.terminate(%s, 'by a test')", (kid,)).fetchone() == (True,)
                effects.open("open")
                waits = "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'pgsupervisor: worker%%' and wait_event_type = 'Lock'"
                eventually(lambda: database.one(waits) == 1, 20, "the parking waits for the end from outside")
        assert run.result(timeout=20) == "by a test"
        not_swept(parents)


# ── what a parent is told ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("how", "status", "words"), [("RunCancelled", 3, "not wanted"), ("RunTerminated", 4, "given away")])
def test_a_parent_is_told_what_became_of_its_child_live_and_in_replay(
    hosts: HostFactory, build: str, database: Database, client: Client, effects: Effects, how: str, status: int, words: str
) -> None:
    """Not that it failed: it did not. After the death of the worker the replay says the same."""
    with parents_and_kids(hosts, build) as (parents, _):
        run = client.start(parking.parked_catcher, "never", "afterwards")
        kid = kid_of(database, run)
        eventually(lambda: run.status().wait == "child", 20)
        database.sql("select supervisor.end_runs(array[%s::uuid], %s::int2, supervisor.error_json(%s, %s))", kid, status, how, words)
        eventually(lambda: effects.count("parked_kid", "afterwards"), 20, "the parent to go on")
        (recorded,) = database.sql("select result from supervisor.step where run_id = %s and status = 2", run.id)[0]
        assert json.loads(recorded)["type"] == f"supervisor.core.errors.{how}" and str(kid) in json.loads(recorded)["message"]
        parents.kill_worker()
        eventually(lambda: effects.count("parked_kid", "afterwards") == 2, 30, "the step again, after a replay")
        effects.open("afterwards")
        assert run.result(timeout=20) == [str(kid), how, str(kid), "parked_kid", words]
        effects.open("never")
