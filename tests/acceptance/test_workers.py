"""`workers` and `top` show what live workers do, and how the last one died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from supervisor import Client
from tests.acceptance.terminal import drawn_until_q
from tests.apps import poison
from tests.faults import apps_plain
from tests.harness import ROOT, Database, Effects, Host, HostFactory, eventually

APP = "tests.apps.poison"


def command(database: Database | None, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PG") and name != "DATABASE_URL"}
    if database is not None:
        environ["PGSUPERVISOR_DATABASE_URL"] = database.dsn
    return subprocess.run([sys.executable, "-m", "supervisor", *words], cwd=folder, env={**environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60)


def shown(database: Database | None, host: Host, folder: Path) -> dict[str, Any]:
    """The supervisor of *host* as `workers --json` shows it."""
    made = command(database, "workers", "--json", folder=folder)
    assert made.returncode == 0, made.stderr
    found = [each for place in json.loads(made.stdout)["hosts"] for each in place["supervisors"] if each["pid"] == host.pid]
    return found[0] if found else {}


@pytest.fixture
def busy(hosts: HostFactory, database: Database, effects: Effects) -> Host:
    """A host with one worker that executes two steps, one in a thread and one in a task."""
    host = hosts.start(APP, procs=1).wait_up(1)
    with Client(database.dsn) as client:
        client.start(poison.neighbour, 1)
        client.start(poison.neighbour, 2)
    eventually(lambda: len(effects.lines("neighbour")) == 2, 30)
    return host


def test_workers_shows_what_each_executes(busy: Host, database: Database, effects: Effects, tmp_path: Path) -> None:
    """Host, supervisor, process, step, since when, memory: of what is executing at this moment, not of the last commit."""
    supervisor = shown(database, busy, tmp_path)
    (worker,) = supervisor["workers"]
    assert worker["pid"] == busy.worker_pids()[0] and worker["worker"] == database.one("select max(worker) from supervisor.workers")
    assert (worker["state"], worker["runs"]) == ("busy", 2) and worker["memory_bytes"] > 10_000_000
    assert {(each["step"], each["where"], each["seq"]) for each in worker["executing"]} == {("sits_in_a_thread", "thread", 0), ("waits_in_a_task", "task", 0)}
    assert all(0 < each["for_s"] < 60 for each in worker["executing"])
    text = command(database, "workers", folder=tmp_path).stdout
    assert f"pid {busy.pid}" in text and "executes sits_in_a_thread of run" in text
    effects.open("enough")
    eventually(lambda: shown(database, busy, tmp_path)["workers"][0]["state"] == "idle", 60)
    assert shown(database, busy, tmp_path)["workers"][0]["ended"] == 2


def test_workers_works_without_the_database(busy: Host, tmp_path: Path) -> None:
    """When the database is away one wants to know it most."""
    assert shown(None, busy, tmp_path)["workers"][0]["state"] == "busy"
    assert "without the database" in command(None, "workers", folder=tmp_path).stderr


def test_workers_shows_the_last_crash(hosts: HostFactory, database: Database, effects: Effects, tmp_path: Path) -> None:
    """Who died, of what, in which step: also after its successor has long been working."""
    host = hosts.start(APP, procs=1).wait_up(1)
    with Client(database.dsn) as client:
        run = client.start(poison.deadly, "thread", "once", alone=True)
        assert run.result(timeout=60) == 1
    (worker,) = shown(database, host, tmp_path)["workers"]
    crash = worker["last_crash"]
    assert (crash["signal"], crash["step"], crash["run_id"], crash["deaths"]) == ("SIGKILL", "in_thread", str(run.id), 1)
    assert crash["pid"] != worker["pid"]
    assert "by SIGKILL in in_thread of run" in command(database, "workers", folder=tmp_path).stdout


def test_show_says_what_is_wrong_with_poison(hosts: HostFactory, database: Database, tmp_path: Path) -> None:
    """Signal, step, the last log lines, and what to do."""
    hosts.start(APP, procs=1).wait_up(1)
    with Client(database.dsn) as client:
        run = client.start(poison.deadly, "thread", "segfault", alone=True)
    eventually(lambda: database.sql("select from supervisor.waits where code = 'attempts_exhausted'"), 60)
    text = command(database, "show", str(run.id), folder=tmp_path).stdout
    assert "step in_thread (seq 0) has ended its worker 3 times, the last one by SIGSEGV" in text
    assert "Segmentation fault" in text and "about to die by segfault" in text
    assert f"mend it, then: python -m supervisor retry {run.id}" in text and "0 + 3 crashes" in text


def test_workers_of_another_host_come_from_the_database(busy: Host, database: Database, tmp_path: Path) -> None:
    """There is no black box of theirs here."""
    database.sql("update supervisor.worker set host = 'elsewhere', supervisor = gen_random_uuid()")
    hosts = json.loads(command(database, "workers", "--json", folder=tmp_path).stdout)["hosts"]
    (other,) = [host for host in hosts if host["host"] == "elsewhere"]
    assert [(worker["state"], worker["runs"]) for worker in other["supervisors"][0]["workers"]] == [("alive", 2)]
    assert "host elsewhere" in command(database, "workers", folder=tmp_path).stdout


def test_nobody_works(database: Database, tmp_path: Path) -> None:
    """Not an empty table: what to do."""
    made = command(database, "workers", folder=tmp_path)
    assert made.returncode == 0
    assert made.stdout or "start some" in made.stderr


# ── top ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_top_prints_once_where_there_is_no_terminal(busy: Host, database: Database, tmp_path: Path) -> None:
    """In a log, a pipe, a cron job."""
    made = command(database, "top", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "steps/s" in made.stdout and "deadly" in made.stdout
    assert "sits_in_a_thread for" in made.stdout or "waits_in_a_task for" in made.stdout
    assert str(busy.worker_pids()[0]) in made.stdout


def test_top_counts_what_is_done(hosts: HostFactory, database: Database, tmp_path: Path) -> None:
    """Rates between two looks, latencies of commits, memory, queues: one object per look, for as long as somebody reads."""
    host = hosts.start("tests.faults.apps_plain", procs=1).wait_up(1)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PGSUPERVISOR_DATABASE_URL": database.dsn}
    looks = tmp_path / "looks"
    with looks.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "supervisor", "top", "--json", "--interval", "0.2"], cwd=tmp_path, env=environ, stdout=file)
    try:
        with Client(database.dsn) as client:

            def busy_look() -> Any:
                client.start_many(apps_plain.ten_steps, range(200))
                for line in looks.read_text().splitlines(keepends=True):
                    seen = json.loads(line) if line.endswith("\n") else {"workers": []}
                    for worker in seen["workers"]:
                        if worker["supervisor_pid"] == host.pid and worker.get("steps_per_s", 0) > 0:
                            return worker, seen
                return None

            worker, seen = eventually(busy_look, 60)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert 0 < worker["p50_ms"] <= worker["p99_ms"] and worker["commits_per_s"] > 0 and worker["memory_bytes"] > 10_000_000
    assert seen["total"]["steps_per_s"] >= worker["steps_per_s"] * 0.9  # each is over a time of its own
    assert {row["queue"] for row in seen["queues"]} >= {"default"}


def test_top_on_a_terminal_ends_with_q(busy: Host, database: Database, tmp_path: Path) -> None:
    """It draws again and again, and leaves the terminal as it was."""
    drawn_until_q(database, tmp_path, "top", "--interval", "0.2", wanted=b"steps/s", times=6)
