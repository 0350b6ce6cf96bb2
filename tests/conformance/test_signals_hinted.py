"""What makes a signal quick: its sender tells the worker that has the run. Here nothing else would."""

from __future__ import annotations

from typing import Any

from supervisor import Run
from tests.apps import hinted
from tests.conformance.conftest import Live
from tests.harness import eventually

APP = "tests.apps.hinted"
PROCS = 2


def listens(live: Live, run: Run[Any]) -> None:
    """Until *run* is in a worker's memory and that worker's host hears what is said."""
    ears = "select 1 from pg_stat_activity where datname = current_database() and application_name ~ '^pgsupervisor: ears'"
    live.until(lambda: live.database.sql(ears), 20)
    live.until(lambda: live.database.sql("select 1 from supervisor.task where run_id = %s and owner is not null", run.id), 20)


def test_a_run_in_memory_hears_of_a_clients_signal_at_once(live: Live) -> None:
    """Or at its wait's begin, where the signal was there before that. Many, so that both happen."""
    for n in range(30):
        run = live.start(hinted.hinted)
        listens(live, run)
        run.signal(hinted.calls, n)
        assert run.result(timeout=20) == n


def test_a_run_with_an_executing_step_hears_too(live: Live, build: str) -> None:
    run = live.start(hinted.hinted_beside, f"held_{build}")
    listens(live, run)
    live.until(lambda: run.status().wait == "step_running", 20)  # so it has asked for messages long ago
    live.database.sql("select pg_notify('supervisor_signal', 'no json'), pg_notify('supervisor_signal', '[99999]'), pg_notify('supervisor_signal', '{}')")
    run.signal(hinted.calls, 1)
    assert run.result(timeout=20) == ["call", 1]
    live.effects.open(f"held_{build}")


def test_sql_tells_when_it_is_asked_to(live: Live) -> None:
    run = live.start(hinted.hinted)
    listens(live, run)
    live.database.sql("select supervisor.signal(%s, 'calls', '5', notify => true)", run.id)
    assert run.result(timeout=20) == 5


def test_a_worker_that_lost_its_session_looks_when_it_has_another(live: Live) -> None:
    """What was sent meanwhile was announced to a number that nobody has any more."""
    for n in range(3):
        run = live.start(hinted.hinted)
        listens(live, run)
        (worker,) = live.database.sql("select owner from supervisor.task where run_id = %s", run.id)[0]
        gone = live.database.sql(
            "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and objid = %s and objsubid = 2 and granted "
            "and database = (select oid from pg_database where datname = current_database())", worker
        )  # fmt: skip
        assert gone
        live.database.sql("select supervisor.signal(%s, 'calls', to_jsonb(%s::int))", run.id, n)
        assert run.result(timeout=30) == n
        eventually(lambda: "goes on as worker" in live.host.log(), 20)
