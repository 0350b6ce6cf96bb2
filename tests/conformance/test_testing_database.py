"""The test kit on PostgreSQL: transactional steps, time that is skipped by moving what is due, crashes, and a schema of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest

from supervisor import RunFailed
from supervisor.core.errors import ReplayMismatch
from supervisor.testing import DatabaseEnvironment
from supervisor.testing.errors import EnvironmentStuck, StepNotMocked
from tests.apps import kit_shop
from tests.apps.kit_shop import KitOrder, kit_add, kit_approved, kit_book, kit_charge, kit_checkout, kit_total
from tests.harness import Database, Server

ORDER = KitOrder(42, 999)


@pytest.fixture(scope="module")
def shared(server: Server) -> Iterator[tuple[Database, DatabaseEnvironment]]:
    """One environment for those tests that leave nothing behind: a schema takes two seconds."""
    database = server.database()
    database.sql("create table public.ledger (n int)")
    with DatabaseEnvironment(database.dsn, schema="supervisor") as env:
        yield database, env
    database.drop()


@pytest.fixture
def env(shared: tuple[Database, DatabaseEnvironment]) -> DatabaseEnvironment:
    return shared[1]


def test_thirty_days_take_no_time(env):
    """The timer fires after its due time by the database's clock: what was moved is the due time."""
    began, before = time.monotonic(), env.now
    run = env.start(kit_shop.kit_month)
    assert run.status().wait == "timer"
    run.result()
    assert env.now - before >= timedelta(days=30) and time.monotonic() - began < 30


def test_time_is_skipped_for_timeouts_backoff_and_what_is_in_memory(env):
    env.mock(kit_charge, sequence=[OSError(), OSError(), "p"])
    run = env.start(kit_checkout, ORDER)
    env.advance(180)
    assert [call.attempt for call in env.calls(kit_charge)[-3:]] == [1, 2, 3]
    with pytest.raises(RunFailed, match="kit_approved did not come within 3600 s"):
        run.result()
    env.mock(kit_charge, returns="p")
    run = env.start(kit_checkout, ORDER)
    with pytest.raises(TimeoutError, match="within 1800 s"):
        run.result(timeout=1800)
    run.signal(kit_approved, "ann")
    assert run.result().by == "ann"


def test_silence_and_the_time_of_all_tries_are_skipped(env):
    """An hour without a sign of life, two hours of tries."""
    before = env.now
    assert env.start(kit_shop.kit_long_steps).result() == ["HeartbeatMissed", "again"]
    assert timedelta(hours=2) <= env.now - before <= timedelta(hours=3.2)


def test_a_transactional_step_has_its_transaction(shared):
    """What it writes and that it ended commit together; a mock stands in for the body, with its checkpoint."""
    database, env = shared
    assert env.start(kit_shop.kit_books, 7).result() == 7
    assert database.sql("select n from public.ledger") == [(7,)]
    with env.mock(kit_book, calls=lambda order_id: order_id + 1) as book:
        assert env.start(kit_shop.kit_books, 8).result() == 9
        assert book.calls[0].arguments == {"order_id": 8}
    assert database.sql("select n from public.ledger") == [(7,)]


def test_a_killed_worker_loses_nothing_and_repeats_nothing(env):
    charge = env.mock(kit_charge, returns="p")
    run = env.start(kit_checkout, ORDER)
    env.crash()
    run.signal(kit_approved, "ann")
    env.crash()
    assert run.result().by == "ann" and len(charge.calls) == 1


def test_updates_queries_and_stuck_runs(env):
    run = env.start(kit_shop.kit_sums)
    assert (run.update(kit_add, 4), run.query(kit_total), run.published("total")) == (4, 4, 4)
    with pytest.raises(EnvironmentStuck, match="kit_sums: waits for signal kit_approved"):
        run.result()
    run.signal(kit_approved, "ann")
    assert run.result() == 4


def test_replays_find_what_is_not_deterministic(server):
    database = server.database()
    kit_shop.kit_calls.clear()
    with DatabaseEnvironment(database.dsn, schema="supervisor", replay=True) as env:
        with pytest.raises(ReplayMismatch, match="kit_"):
            env.start(kit_shop.kit_changes_its_mind).result()
        run = env.start(kit_checkout, ORDER)
        run.signal(kit_approved, "ann")
        assert run.result().by == "ann"
        assert [call.step for call in env.calls() if call.run_id == run.id] == ["kit_charge", "kit_pack"]
    database.drop()


def test_a_strict_environment_executes_no_step(server):
    database = server.database()
    with DatabaseEnvironment(database.dsn, schema="supervisor", strict=True) as env, pytest.raises(StepNotMocked):
        env.start(kit_checkout, ORDER)
    database.drop()


def test_a_schema_of_its_own_goes_with_it(server):
    """Beside the application's tables, and beside another engine in the same database."""
    database = server.database()
    with DatabaseEnvironment(database.dsn) as env:
        assert env.schema.startswith("test_")
        assert env.start(kit_shop.kit_takes, 0).result() == 0
        assert database.one("select count(*) from supervisor.run") == 0
        schemas = "select count(*) from pg_namespace where nspname = %s"
        assert database.one(schemas, env.schema) == 1
    assert database.one(schemas, env.schema) == 0
    database.drop()


def test_a_private_server_is_started_and_ended(tmp_path):
    """For who has no database at hand: gone when the process ends."""
    import subprocess
    import sys

    from tests.harness import ROOT

    code = "from supervisor.testing import DatabaseEnvironment\nwith DatabaseEnvironment() as env: print(env.dsn); from tests.apps import kit_shop; print(env.start(kit_shop.kit_takes, 0).result())"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()
    assert said[1] == "0.0"
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(said[0])


def test_a_paused_queue_stops_what_waits_there_and_not_the_test(env):
    """Who waits for a run in it is told, at once."""
    assert env.pause_queue("default", "stocktaking", actor="ann")
    run = env.start(kit_shop.kit_month)
    with pytest.raises(EnvironmentStuck, match=f"run {run.id} of kit_month: its queue default is paused, by ann: stocktaking"):
        run.result()
    assert env.resume_queue("default")
    run.result()
