"""A step that ends its process every time is parked after three; whoever runs beside it is never charged."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from supervisor import Client, Run
from tests.apps import poison
from tests.harness import Database, Effects, Host, HostFactory, eventually

APP = "tests.apps.poison"
CHARGED = "select n, kind, name, seq, error from supervisor.attempts where run_id = %s and kind <> 'failed' order by started_at, n"


def parked(database: Database, run: Run[Any], within_s: float = 60.0) -> dict[str, Any]:
    """Wait until *run* is parked as poison; returns why."""

    def found() -> list[tuple[Any, ...]]:
        return database.sql("select code, step, seq, detail, wake_at from supervisor.waits where run_id = %s and code = 'attempts_exhausted'", run.id)

    code, step, seq, detail, wake_at = eventually(found, within_s, "parked")[0]
    assert wake_at is None
    return {"code": code, "step": step, "seq": seq, **json.loads(detail)}


def charged(database: Database) -> set[Any]:
    return {run_id for (run_id,) in database.sql("select distinct run_id from supervisor.attempt where kind = 3")}


@pytest.fixture
def host(hosts: HostFactory, build: str) -> Host:
    return hosts.start(APP, procs=1, threads=16, build=build).wait_up(1)


def test_a_signal_that_a_step_sends_itself(host: Host, database: Database, effects: Effects) -> None:
    """The commonest poison: the kernel says a signal and not a thread, and ten others are executing."""
    with_company(host, database, effects, "thread", "kill", "SIGKILL")


@pytest.mark.parametrize(("place", "how", "name"), [("task", "kill", "SIGKILL"), ("transaction", "kill", "SIGKILL"), ("thread", "segfault", "SIGSEGV"),
                                                       ("task", "segfault", "SIGSEGV"), ("thread", "exit", None), ("task", "abort", "SIGABRT")])  # fmt: skip
def test_other_deaths_beside_ten_neighbours(place: str, how: str, name: str | None, hosts: HostFactory, database: Database, effects: Effects) -> None:
    """In tasks and transactions, by the processor's own signals, by an exit code."""
    host = hosts.start(APP, procs=1, threads=16).wait_up(1)
    with_company(host, database, effects, place, how, name)


def with_company(host: Host, database: Database, effects: Effects, place: str, how: str, name: str | None) -> None:
    # given ten neighbours in threads and tasks, all executing in the same process as the poison each time it kills
    with Client(database.dsn) as client:
        neighbours = [client.start(poison.neighbour, number) for number in range(poison.NEIGHBOURS)]
        run = client.start(poison.deadly, place, how)
        why = parked(database, run)
        # then it has killed three times and no more, and its record says by what, in which step, with the last words
        assert effects.count("deadly", how) == 3
        step = {"thread": "in_thread", "task": "in_task", "transaction": "in_transaction"}[place]
        assert (why["step"], why["seq"], why["crashes"], why["signal"]) == (step, 0, 3, name)
        assert any(f"about to die by {how}" in line for line in why["log"])
        if how == "segfault":
            assert "Segmentation fault" in why["traceback"] and "in die" in why["traceback"]
        rows = database.sql(CHARGED, run.id)
        assert [(n, kind, name, seq) for n, kind, name, seq, _ in rows] == [(n, "crashed", step, 0) for n in (1, 2, 3)]
        assert len({error["worker"] for *_, error in rows}) == 3 and {error["type"] for *_, error in rows} == {"WorkerCrash"}
        # and the neighbours complete, uncharged
        assert charged(database) == {run.id}
        effects.open("enough")
        assert [neighbour.result(timeout=60) for neighbour in neighbours] == list(range(poison.NEIGHBOURS))
        assert charged(database) == {run.id}
        assert "giving up" not in host.log()


@pytest.mark.parametrize("place", ["inline", "promoted", "code"])
def test_on_the_loops_own_thread(place: str, host: Host, database: Database, effects: Effects) -> None:
    """An inline step, one that was promoted, and the workflow's own code end the loop with them."""
    with Client(database.dsn) as client:
        neighbours = [client.start(poison.neighbour, number) for number in range(poison.NEIGHBOURS)]
        eventually(lambda: len(effects.lines("neighbour")) == poison.NEIGHBOURS, 30)
        run = client.start(poison.deadly, place, "kill")
        why = parked(database, run)
        assert effects.count("deadly", "kill") == 3
        assert why["step"] == {"inline": "inline", "promoted": "promoted", "code": "(workflow code)"}[place]
        assert charged(database) == {run.id}
        effects.open("enough")
        assert [neighbour.result(timeout=60) for neighbour in neighbours] == list(range(poison.NEIGHBOURS))


def test_the_only_one_that_executes_is_charged_without_any_sign(host: Host, database: Database, effects: Effects) -> None:
    """Code in C sends the signal: nothing notes it, but the black box shows one step that had the process to itself."""
    with Client(database.dsn) as client:
        run = client.start(poison.deadly, "thread", "libc", alone=True)
        assert parked(database, run)["step"] == "in_thread"
        assert effects.count("deadly", "libc") == 3


def test_retry_forgives(host: Host, database: Database, effects: Effects) -> None:
    """What was mended gets three lives again; what was not is parked again after three."""
    with Client(database.dsn) as client:
        run = client.start(poison.deadly, "thread", "kill", alone=True)
        parked(database, run)
        assert database.one("select supervisor.retry(%s)", run.id)
        eventually(lambda: effects.count("deadly", "kill") == 6, 60)
        assert parked(database, run)["crashes"] == 3
        assert [(kind, n) for n, kind, *_ in database.sql(CHARGED, run.id)] == [("crashed", 1), ("crashed", 2), ("crashed", 3), ("forgiven", 3), ("crashed", 4),
                                                                                 ("crashed", 5), ("crashed", 6)]  # fmt: skip


def test_a_step_that_crashed_once_goes_on_with_the_same_attempt(host: Host, database: Database, effects: Effects) -> None:
    """A crash is not an attempt: without a retry policy the second execution is allowed, and its result counts."""
    with Client(database.dsn) as client:
        run = client.start(poison.deadly, "thread", "once", alone=True)
        assert run.result(timeout=60) == 1
        assert effects.count("deadly", "once") == 2
        assert [kind for _, kind, *_ in database.sql(CHARGED, run.id)] == ["crashed"]


def test_several_without_a_sign_charge_nobody(host: Host, database: Database, effects: Effects) -> None:
    """kill -9 from outside while two steps execute: which of them would it be? Neither is charged."""
    with Client(database.dsn) as client:
        runs = [client.start(poison.neighbour, number) for number in (1, 3)]
        for kill in range(1, 4):
            eventually(lambda: len(effects.lines("neighbour")) == 2 * kill, 60)
            host.kill_worker()
        effects.open("enough")
        assert [run.result(timeout=60) for run in runs] == [1, 3]
        assert charged(database) == set()


def test_a_kill_that_was_ordered_charges_nobody(hosts: HostFactory, database: Database, effects: Effects) -> None:
    """At a second signal the parent kills what has not drained: that is no step's doing, however often."""
    run = None
    with Client(database.dsn) as client:
        for stop in range(1, 5):
            host = hosts.start(APP, procs=1).wait_up(1)
            run = run or client.start(poison.neighbour, 1)
            eventually(lambda: len(effects.lines("neighbour")) == stop, 60)
            host.process.send_signal(signal.SIGTERM)
            eventually(lambda: "stopping" in host.log(), 20)
            host.process.send_signal(signal.SIGTERM)
            host.process.wait(60)
            assert "killed by SIGKILL while executing step sits_in_a_thread" in host.log()
        assert run is not None and charged(database) == set()
        effects.open("enough")
        hosts.start(APP, procs=1)
        assert run.result(timeout=60) == 1


def test_hosts_that_die_with_all_they_saw_are_counted_by_their_claims(hosts: HostFactory, database: Database, effects: Effects, build: str) -> None:
    """A run that takes its whole machine down every time leaves nobody to charge it: claims without a new step have an end too."""
    with Client(database.dsn) as client:
        host = hosts.start(APP, build=build).wait_up(1)
        run = client.start(poison.neighbour, 1)
        for death in range(1, 3):
            eventually(lambda death=death: len(effects.lines("neighbour")) == death, 60, "the step to begin")  # type: ignore[misc]
            if death == 1:  # eight such deaths ago
                database.sql("update supervisor.task set claims = claims + 8")
            host.kill_all()
            host = hosts.start(APP, build=build)
        ((code, detail, claims),) = eventually(
            lambda: database.sql("select code, detail, claims from supervisor.waits where run_id = %s and code = 'crash_loop'", run.id), 60, "it to be parked"
        )
        assert (code, json.loads(detail)["claims"]) == ("crash_loop", 11), (detail, claims)
        assert len(effects.lines("neighbour")) == 2 and charged(database) == set()
        # when what was wrong is mended
        effects.open("enough")
        assert database.one("select supervisor.retry(%s)", run.id)
        assert run.result(timeout=60) == 1
    assert host.stop() == 0
