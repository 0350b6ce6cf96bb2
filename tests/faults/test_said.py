"""What a host says of what goes wrong: in words that an operator can act on, once, and no more than that."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor import Client, RunFailed, RunTerminated
from supervisor.db.embedded import EmbeddedServer
from tests.faults import apps_said as said
from tests.harness import Database, Effects, HostFactory, Server, eventually

APP = "tests.faults.apps_said"
STORM = 300


@pytest.fixture
def on_its_own(own_server: Server, effects: Effects, tmp_path: Path) -> Iterator[HostFactory]:
    """Hosts on a server that a test may stop."""
    database = own_server.database()
    made = HostFactory(database, effects, tmp_path)
    try:
        yield made
    finally:
        made.stop_all()


def test_failed_runs_are_told_first_of_a_kind_then_summed_up(database: Database, hosts: HostFactory, build: str) -> None:
    """Thirty runs failed, and no log had a line. A storm of them must not flood it either."""
    with hosts(APP, build=build) as host, Client(database.dsn) as client:
        first = client.start(said.said_failing, 7)
        with pytest.raises(RunFailed):
            first.result(timeout=30)
        told = f"W pgsupervisor.engine: run {first.id} of said_failing failed, after step said_refusing (seq 0) had: ValueError: no number 7; python -m supervisor show {first.id}"
        eventually(lambda: told in host.log(), 20, "the first to be told")
        for run in list(client.start_many(said.said_failing, range(STORM))):
            with pytest.raises(RunFailed):
                run.result(timeout=60)

        def counted() -> int:
            sums = re.findall(r"W pgsupervisor.engine: (\d+) more runs? failed like those before: \d+ of said_failing with ValueError", host.log())
            return sum(map(int, sums)) + host.log().count("said_failing failed, after")

        eventually(lambda: counted() == STORM + 1, 30, "all to be counted")
        assert host.log().count("said_failing") < 20


def test_a_run_of_a_workflow_that_nobody_has_is_told_when_its_time_is_over(database: Database, hosts: HostFactory, build: str) -> None:
    """Whoever takes it ends it as timed out, knows no name for it, and goes on."""
    with hosts(APP, build=build, procs=1):
        pass
    database.sql("insert into supervisor.workflow (name, queue, timeout_s) values ('said_nowhere', supervisor.queue_id('default'), 0.1)")
    run = database.one("select supervisor.new_id()")
    database.sql("select supervisor.start_one('said_nowhere', %s, '{}', null, 5::int2, '0')", run)
    eventually(lambda: database.one("select clock_timestamp() > cancel_at from supervisor.task"), 10)
    with hosts(APP, build=build, procs=1) as host:
        told = f"run {run} of a workflow that this app has not timed out: "
        eventually(lambda: told in host.log(), 20, "it to be told")
        assert database.one("select status from supervisor.runs where run_id = %s", run) == "timed_out"
        assert "could not be processed" not in host.log() and host.log().count(" is up as ") == 1


def test_a_failed_run_is_told_with_its_fields(hosts: HostFactory, database: Database, tmp_path: Path) -> None:
    """What reads logs as JSON finds run, workflow, step and error without taking a sentence to pieces."""
    with hosts(APP, args=("--log-dir", str(tmp_path / "logs"))), Client(database.dsn) as client:
        run = client.start(said.said_failing, 7)
        with pytest.raises(RunFailed):
            run.result(timeout=30)
    lines = [json.loads(line) for line in (tmp_path / "logs" / "supervisor.log").read_text().splitlines()]
    (line,) = [line for line in lines if line.get("run") == str(run.id)]
    assert (line["level"], line["workflow"], line["step"], line["seq"]) == ("WARNING", "said_failing", "said_refusing", 0)
    assert line["extra"] == {"error": "ValueError: no number 7"}


def test_runs_whose_code_is_gone_are_told_once(hosts: HostFactory, database: Database) -> None:
    """A reload without their version parked live runs in silence, while everything graver and rarer was told."""
    with hosts(APP), Client(database.dsn) as client:
        runs = list(client.start_many(said.said_versioned, [{}] * 3))
        eventually(lambda: database.one("select count(*) from supervisor.task where wait_kind = 10") == 3, 30, "all to sleep")
    with hosts(APP, env={"SAID_VERSION": "two"}) as host:
        eventually(lambda: database.one("select count(*) from supervisor.task where wait_kind = 20") == 3, 30, "all to be parked")
        told = "3 runs parked as code_missing, of said_versioned: they want version one, this worker has two; a worker that has it takes them up"
        eventually(lambda: told in host.log(), 20, host.log())
        assert host.log().count("code_missing") == 1
    assert len(runs) == 3


def test_a_queue_that_no_workflow_goes_to_is_told(hosts: HostFactory, database: Database) -> None:
    """A typo in --queues looks like a host that has nothing to do."""
    with hosts(APP, procs=2, args=("--queues", "default,nosuchq")) as host:
        (line,) = [line for line in host.log().splitlines() if "--queues" in line]
        assert "W pgsupervisor.worker: --queues nosuchq: no workflow of this app goes there" in line and line.endswith("go to default")


def test_births_without_a_database_are_told_once_and_slow_down(on_its_own: HostFactory, own_server: Server) -> None:
    """Two lines and an import every half second for each slot, for as long as an outage lasts."""
    host, effects = on_its_own.start(APP, procs=2).wait_up(2), on_its_own.effects
    own_server.embedded.stop("fast")
    eventually(lambda: host.log().count("has lost its session") == 2, 20, "both workers to notice")
    for pid in host.worker_pids():
        host.kill_worker(pid)
    began, before = time.monotonic(), effects.count("imported")
    eventually(lambda: effects.count("imported") >= before + 6, 60, "three births of each")
    assert time.monotonic() - began > 0.75 * (0.5 + 1.0), "without any wait from one birth to the next"
    assert host.log().count("no worker can begin without the database; tried again, up to 5 s apart: ") == 1
    assert "exit code 69" not in host.log() and " E " not in host.log(), host.log()
    own_server.embedded.start()
    eventually(lambda: host.log().count(" is up as ") == 4, 60, "two workers in their places")
    host.stop()


def test_logs_takes_the_number_that_all_else_shows(hosts: HostFactory, database: Database, tmp_path: Path) -> None:
    """`workers` and `show` say 84, and `logs --worker 84` found nothing."""
    folder = str(tmp_path / "logs")
    database.sql("select setval(pg_get_serial_sequence('supervisor.worker', 'id'), 83)")
    with hosts(APP, args=("--log-dir", folder)) as host:
        (pid,) = [int(found) for found in re.findall(r"slot 0 \(pid (\d+)\) is up as worker 84", host.log())]

    def lines(number: int) -> str:
        command = [sys.executable, "-m", "supervisor", "logs", "--log-dir", folder, "--worker", str(number)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    assert "worker 84 serves default" in lines(84) and "worker 84 serves" in lines(0) and "worker 84 serves" in lines(pid)
    assert lines(83) == ""


def test_a_log_of_the_server_that_can_not_be_read_is_an_error(tmp_path: Path) -> None:
    """tail's words and exit code 0 told a script that all was well."""
    (tmp_path / "server.log").mkdir()
    done = subprocess.run([sys.executable, "-m", "supervisor", "db", "--data-dir", str(tmp_path), "logs"], capture_output=True, text=True, timeout=60)
    assert done.returncode not in (0, 1, 2) and "error: the log can't be read: tail: " in done.stderr.lower(), done
    assert "it belongs to the account of the server (" in done.stderr


def test_an_async_step_that_blocks_is_told_while_it_does(hosts: HostFactory, database: Database, build: str) -> None:
    """All runs of its worker stood still, and no log had a line at any level."""
    with hosts(APP, build=build) as host, Client(database.dsn) as client:
        run = client.start(said.said_stood, 5.0)
        told = rf"W pgsupervisor.parent: step said_standing \(run {run.id}, seq 0\) holds the loop of worker \d+ \(slot 0, pid \d+\) for [2-4] s: .*make it a def step"
        eventually(lambda: re.search(told, host.log()), 30, host.log())
        run.result(timeout=60)
        eventually(lambda: re.search(rf"step said_standing \(run {run.id}, seq 0\) has held its loop, for \d s: it goes on", host.log()), 20)


def test_a_stopped_worker_is_told_and_shown(hosts: HostFactory, database: Database) -> None:
    """`workers` called it busy, and the log was empty."""
    with hosts(APP) as host:
        pid = host.kill_worker(how=signal.SIGSTOP)
        eventually(lambda: re.search(rf"W pgsupervisor.parent: worker \d+ \(slot 0, pid {pid}\) was stopped \(SIGSTOP, .* kill -CONT {pid} lets it go on", host.log()), 30, host.log())
        for words in (["workers"], ["top", "--once"]):
            command = [sys.executable, "-m", "supervisor", *words, "--dsn", database.dsn, "--json"]
            shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
            assert '"state":"stopped"' in shown.replace(": ", ":"), shown
        os.kill(pid, signal.SIGCONT)
        eventually(lambda: "it was stopped, for" in host.log(), 20, "that it goes on")
    assert host.log().count("was stopped (") == 1


def test_a_stop_of_the_server_tells_only_of_the_stop(tmp_path: Path) -> None:
    """How the replication launcher ends at every stop read like a fault."""
    server = EmbeddedServer(tmp_path)
    ends = 'background worker "logical replication launcher" (PID 9075) exited with exit code 1'
    server.log_path.write_text(f"LOG:  database system is ready to accept connections\nLOG:  received fast shutdown request\nLOG:  {ends}\n")
    assert server._last_log_line("shut") == ": received fast shutdown request"
    server.log_path.write_text("LOG:  database system is ready to accept connections\n")
    assert server._last_log_line("shut") == ""


def test_a_terminated_run_is_no_alarm(hosts: HostFactory, database: Database, effects: Effects, build: str) -> None:
    """An everyday verb was told as a refused batch of a fenced worker."""
    with hosts(APP, build=build) as host, Client(database.dsn) as client:
        run = client.start(said.tasked, "a", "gate")
        eventually(lambda: effects.count("standing", "a"), 30)
        run.terminate()
        with pytest.raises(RunTerminated):
            run.result(timeout=30)
        effects.open("gate")
        told = rf"I pgsupervisor.worker: run {run.id} of tasked is not worker \d+'s any more, for somebody has ended it or taken it away \(terminate, .*is dropped"
        eventually(lambda: re.search(told, host.log()), 30, "it to be told")
        assert " W " not in host.log() and "fence" not in host.log()


def test_an_async_step_that_blocks_past_its_timeout_is_timed_out_and_told(hosts: HostFactory, database: Database, build: str) -> None:
    """Nothing can cancel what never lets go of the loop; the timeout counts all the same, as it does for a def step."""
    with hosts(APP, build=build) as host, Client(database.dsn) as client:
        assert client.start(said.said_blocked, 0.0).result(timeout=30) == 0.0
        run = client.start(said.said_blocked, 2.0)
        with pytest.raises(RunFailed, match="did not end within 0.5 s"):
            run.result(timeout=60)
        told = rf"step said_blocking \(run {run.id}, seq 0\) ended 1\.\d s after its time of 0.5 s was over, and counts as timed out: .* asyncio.to_thread, or make it a def step"
        assert re.search(told, host.log()), host.log()
