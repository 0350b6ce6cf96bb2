"""TERM, as every deployment sends it: nothing is lost, nothing is done twice, and nobody is charged with what was cut short at the time-out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor import Client
from tests.faults import apps_stops as stops
from tests.faults.load import Load, dice
from tests.harness import Database, Effects, Host, HostFactory, Server, eventually

APP = "tests.faults.apps_stops"
DRAIN_S = 2
# runs in the middle that are nobody's and wait for nothing
GIVEN_BACK = "select count(*) from supervisor.task t where t.owner is null and t.wait_kind = 1 and exists (select from supervisor.step s where s.run_id = t.run_id)"


def test_term_under_load_again_and_again(database: Database, hosts: HostFactory, effects: Effects, build: str) -> None:
    """Stop, start, in the midst of everything: no process was killed, so every body ran once, even one that may run again."""
    chance, times, given_back = dice(), 5, 0
    load = Load(database, hosts, effects)
    host = load.host(build, procs=2).wait_up(2)
    with load:
        for _ in range(times):
            load.after_more(chance.randrange(50, 400))
            assert host.stop() == 0, host.log()
            assert "after its death" not in host.log(), "a worker ended with claims that it had not given back"
            given_back += database.one(GIVEN_BACK)
            host = load.host(build, procs=2)
        load.finish(within_s=60)
    assert load.judge(deaths=0)["repeated"] == 0
    assert given_back > 0, "no run was given back in the middle: the test has shown nothing"
    assert database.sql("select kind from supervisor.attempts where kind <> 'failed'") == []
    assert host.stop() == 0


def test_a_run_of_which_something_executes_is_given_back_when_that_has_ended(database: Database, hosts: HostFactory, effects: Effects, build: str) -> None:
    """One branch of a gather ends while its worker drains: the run is ready, and whoever took it then would execute the other branch again."""
    database.sql("create table kept (word text not null)")
    old = hosts.start(APP, build=build).wait_up(1)
    with Client(database.dsn) as client:
        run = client.start(stops.stopped_beside, "a", "b")
        standing(effects, 1, "a", "b")
        old.process.terminate()
        eventually(lambda: "stopping" in old.log(), 10, "the host to be told")
        # when the first branch ends, and another host has looked for work after that
        effects.open("b")
        eventually(lambda: database.one("select count(*) from supervisor.step where run_id = %s", run.id) == 1, 10, "its result to be durable")
        with hosts(APP, build=build):
            assert client.start(stops.threaded, "later", "b").result(timeout=30) == 1
            # then it is still the old one's, until the second has ended too
            assert effects.count("standing", "a") == 1
            effects.open("a")
            assert run.result(timeout=30) == [1, 1]
    assert old.process.wait(30) == 0, old.log()
    assert [effects.count(word, "a") for word in ("standing", "afterwards")] == [1, 1]


@pytest.mark.parametrize("kinds", [("threaded", "tasked", "transacted"), ("threaded", "stopped_blocking")], ids=["the worker ends", "the worker is killed"])
def test_what_does_not_end_in_time_goes_on_elsewhere_and_is_charged_to_nobody(
    database: Database, hosts: HostFactory, effects: Effects, build: str, kinds: tuple[str, ...]
) -> None:
    """One TERM and a step that never ends: the host is gone soon after --drain-timeout, with exit code 0, and has freed what it held."""
    database.sql("create table kept (word text not null)")
    old = hosts.start(APP, build=build, args=("--drain-timeout", str(DRAIN_S))).wait_up(1)
    with Client(database.dsn) as client:
        runs: dict[str, Any] = {}
        for kind in kinds:  # one after the other: the last may be one that lets nothing begin after it
            runs[kind] = client.start(getattr(stops, kind), kind, "gate")
            standing(effects, 1, kind)
        with hosts(APP, build=build):
            told_at = time.monotonic()
            assert old.stop(within_s=10 * DRAIN_S) == 0, old.log()
            assert time.monotonic() - told_at >= DRAIN_S, "it did not wait for its steps"
            assert ("killed by SIGKILL" in old.log()) == ("stopped_blocking" in kinds), old.log()
            # then the other host executes them, and neither a crash nor a claim counts against them
            standing(effects, 2, *kinds)
            assert database.sql("select distinct claims from supervisor.task") == [(1,)]
            effects.open("gate")
            assert {kind: run.result(timeout=30) for kind, run in runs.items()} == dict.fromkeys(kinds, 2)
    assert database.sql("select kind from supervisor.attempts where kind in ('crashed', 'forgiven')") == []
    assert all(effects.count("afterwards", kind) == 1 for kind in kinds)
    assert database.sql("select word from kept") == [(kind,) for kind in kinds if kind == "transacted"]


@pytest.fixture
def on_its_own(own_server: Server, effects: Effects, tmp_path: Path) -> Iterator[HostFactory]:
    """Hosts on a server that a test may stop."""
    database = own_server.database()
    made = HostFactory(database, effects, tmp_path)
    try:
        yield made
    finally:
        made.stop_all()


def away(host: Host, server: Server) -> None:
    server.embedded.stop("fast")
    eventually(lambda: "has lost its session" in host.log(), 20, "the worker to notice")


def test_an_idle_host_stops_at_once_while_the_database_is_away(on_its_own: HostFactory, own_server: Server, build: str) -> None:
    """Nothing is held, so there is nothing to give back and nothing to wait for."""
    host = on_its_own.start(APP, build=build).wait_up(1)
    away(host, own_server)
    told_at = time.monotonic()
    assert host.stop() == 0, host.log()
    assert time.monotonic() - told_at < 5, host.log()
    assert "can't be given back" not in host.log()


def test_a_stop_says_that_it_waits_for_the_database(on_its_own: HostFactory, own_server: Server, effects: Effects, build: str) -> None:
    """A run is in memory, and nobody can be told of it: that takes as long as it may, and the log says why."""
    host = on_its_own.start(APP, build=build, args=("--drain-timeout", str(DRAIN_S))).wait_up(1)
    with Client(on_its_own.database.dsn) as client:
        client.start(stops.tasked, "a", "gate")
        standing(effects, 1, "a")
    away(host, own_server)
    told_at = time.monotonic()
    assert host.stop() == 0, host.log()
    assert time.monotonic() - told_at >= DRAIN_S
    assert "can't give back its runs (1), nor store what its executing steps (1) bring: it waits for the database, for 2 s at most" in host.log()
    assert "stopped after" in host.log() and "no run handed back, 1 left in the middle with 1 step cut off" in host.log()
    assert "what ended workers still hold can't be given back: the database is away" in host.log()


def standing(effects: Effects, times: int, *words: str) -> None:
    eventually(lambda: all(effects.count("standing", word) == times for word in words), 30, f"steps of {words} to have begun {times} times")
