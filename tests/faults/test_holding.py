"""Workflow code that computes, loops or blocks for ever: it is told, its worker is ended, it is parked, and its neighbours go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from supervisor import Client, Run, Workflow
from tests.apps import holding
from tests.faults.test_poison import charged, parked
from tests.harness import Database, Effects, Host, HostFactory, eventually

APP = "tests.apps.holding"
TOLD = "holds the loop of worker"


def supervisor(database: Database, *words: str) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "supervisor", *words, "--dsn", database.dsn]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def hosting(hosts: HostFactory, limit_s: float, procs: int = 1, build: str = "") -> Host:
    return hosts.start(APP, procs=procs, build=build, env={"PGSUPERVISOR_CODE_LIMIT_S": str(limit_s)}).wait_up(procs)


def line_of(name: str, text: str) -> str:
    """Where in the app a line stands, as file:line."""
    lines = open(holding.__file__).read().splitlines()
    start = next(n for n, line in enumerate(lines) if line.endswith(f"def {name}() -> None:") or line.endswith(f"def {name}() -> int:"))
    return f"{holding.__file__}:{next(n for n in range(start, len(lines)) if text in lines[n]) + 1}"


@pytest.mark.parametrize("name", ["spins", "spins_in_def"])
def test_code_that_loops_is_parked_and_its_neighbours_go_on(name: str, hosts: HostFactory, database: Database, effects: Effects, build: str) -> None:
    """The wedge that nobody saw: idle in every list, and no run of that worker moved again."""
    host = hosting(hosts, 3, build=build)
    workflow: Workflow[[], None] = getattr(holding, name)
    with Client(database.dsn) as client:
        run = client.start(workflow)
        eventually(lambda: TOLD in host.log(), 60, "the line in the log")
        neighbours = [client.start(holding.goes_on, number) for number in range(5)]
        why = parked(database, run, 200)
        assert effects.count(name) == 3 and charged(database) == {run.id}
        assert why["workflow"] == name and why["crashes"] == 3 and why["signal"] == "SIGKILL"
        places = [line_of(name, "while True"), line_of(name, "        pass")]
        assert why["place"].removesuffix(f" in {name}") in places and why["traceback"].splitlines()[0] == why["place"]
        assert [neighbour.result(timeout=60) for neighbour in neighbours] == [0, 2, 4, 6, 8]
        assert charged(database) == {run.id}
        told = next(line for line in host.log().splitlines() if TOLD in line)
        assert f"of {name} (run {run.id})" in told and any(place in told for place in places)
        shown = supervisor(database, "show", str(run.id))
        assert f"workflow code of {name} has ended its worker 3 times" in shown and any(place in shown for place in places)


def test_everything_says_who_holds_the_loop(hosts: HostFactory, database: Database, effects: Effects) -> None:
    """`show`, `workers`, `top` and the figures for metrics: none of them calls such a worker idle. A second one goes on meanwhile."""
    host = hosting(hosts, 0, procs=2)
    with Client(database.dsn) as client:
        run = client.start(holding.spins)
        eventually(lambda: TOLD in host.log(), 60, "the line in the log")
        client.start(holding.goes_on, 1)
        eventually(lambda: effects.count("lingers", 1), 60)
        shown = supervisor(database, "show", str(run.id))
        assert "its workflow code of spins holds the loop" in shown and f"at {holding.__file__}:" in shown and "it moves" not in shown
        assert "nothing needs to be done" not in shown
        workers = supervisor(database, "workers")
        assert f"executes workflow code of spins of run {run.id} for " in workers and "it holds the loop" in workers
        facts = workers_of(host, database)
        (held,) = [each for worker in facts for each in worker["executing"] if each["seq"] is None and each["for_s"] > 1]
        assert (held["run_id"], held["workflow"]) == (str(run.id), "spins")
        assert sorted((worker["state"], worker["runs"]) for worker in facts)[0][0] == "busy"
        assert "workflow code of spins for " in supervisor(database, "top", "--once")


def workers_of(host: Host, database: Database) -> list[dict[str, Any]]:
    found = json.loads(supervisor(database, "workers", "--json"))
    return next(each["workers"] for machine in found["hosts"] for each in machine["supervisors"] if each["pid"] == host.pid)


def test_code_that_computes_for_a_while_is_told_and_nothing_else(hosts: HostFactory, database: Database, build: str) -> None:
    """Five seconds are long for a loop, and legitimate: a line in the log, once."""
    host = hosting(hosts, 30, build=build)
    with Client(database.dsn) as client:
        assert client.start(holding.computes_long, 5.0).result(timeout=120) == 7
    assert host.log().count(TOLD) == 1 and charged(database) == set() and "ended by" not in host.log()


def test_terminating_it_ends_the_run_and_the_limit_frees_the_worker(hosts: HostFactory, database: Database, effects: Effects) -> None:
    """Nothing can interrupt Python code from outside, but the run is over at once, and its worker within the limit."""
    host = hosting(hosts, 4)
    with Client(database.dsn) as client:
        run = client.start(holding.spins)
        eventually(lambda: TOLD in host.log(), 60, "the line in the log")
        run.terminate()
        assert run.status().status == "terminated"
        assert client.start(holding.goes_on, 1).result(timeout=60) == 2
        assert effects.count("spins") == 1 and charged(database) == set()
        assert run.status().status == "terminated"


def test_a_process_that_is_stopped_is_left_alone(hosts: HostFactory, database: Database, effects: Effects) -> None:
    """A debugger or a profiler stops it: no time of it counts, and its run is charged with nothing."""
    host = hosting(hosts, 3)
    with Client(database.dsn) as client:
        run = client.start(holding.spins)
        eventually(lambda: effects.count("spins"), 30)
        (pid,) = host.worker_pids()
        os.kill(pid, signal.SIGSTOP)
        others = hosting(hosts, 3)
        second = Client(database.dsn)
        for number in range(100, 103):  # the other host works for some seconds, by its own clock
            assert second.start(holding.computes_long, 2.0).result(timeout=60) == 7, number
        second.close()
        assert host.worker_pids() == [pid] and charged(database) == set() and "has held the loop" not in others.log()
        os.kill(pid, signal.SIGCONT)
        assert parked(database, run, 200)["workflow"] == "spins"


@pytest.mark.parametrize("name", ["holds_the_interpreter", "blocks_for_ever"])
def test_what_runs_no_python_is_ended_too(name: str, hosts: HostFactory, database: Database, effects: Effects) -> None:
    """Native code that keeps the interpreter stops every thread of the worker; what blocks uses no CPU, and gets ten times the limit."""
    host = hosting(hosts, 0.4 if name == "blocks_for_ever" else 3)
    with Client(database.dsn) as client:
        run: Run[Any] = client.start(getattr(holding, name))
        why = parked(database, run, 200)
        assert why["workflow"] == name and why["place"].startswith(line_of(name, "sleep" if name == "blocks_for_ever" else "sum(")), host.log()
        assert effects.count(name) == 3
