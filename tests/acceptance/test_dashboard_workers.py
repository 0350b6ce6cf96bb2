"""The dashboard's page of workers: per host and supervisor what each process executes, and how the last one died. Real hosts, one worker of which was killed by its step."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

from supervisor import Client
from tests.acceptance.visits import Read, Shown, Visitor, served, tables
from tests.apps import poison
from tests.harness import Database, Effects, HostFactory, eventually

APP = "tests.apps.poison"
OWN = ["worker", "process", "state", "generation", "since", "queues", "runs", "executes", "run", "for", "memory", "cpu", "steps/s", "runs/s", "last crash", "by", "in step", "its run"]


def supervisor_of(visitor: Visitor, pid: int) -> dict[str, Any]:
    found = [(host["host"], each) for host in visitor.get("/workers.json").json()["hosts"] for each in host["supervisors"] if each["pid"] == pid]
    assert len(found) == 1 and found[0][0] == socket.gethostname()
    made: dict[str, Any] = found[0][1]
    return made


def measured(supervisor: dict[str, Any]) -> dict[str, Any] | None:
    return supervisor if all(worker["rates"] for worker in supervisor["workers"]) else None


def processes(html: str, supervisor: str) -> Shown:
    return tables(html)[f"Processes of supervisor {supervisor[:8]}"]


def test_workers_of_this_host_are_shown_with_what_they_execute_and_how_the_last_one_died(hosts: HostFactory, database: Database, effects: Effects, tmp_path: Path) -> None:
    """Host, supervisor, process: a step that executes at this moment, and the crash of another worker with its step and run, which the database alone does not know."""
    host = hosts.start(APP, procs=2).wait_up(2)
    eventually(lambda: database.sql("select from supervisor.leaders where leads"), 60)
    with Client(database.dsn) as client, served(tmp_path / "pages", database.dsn) as dashboard:
        ann = dashboard.visitor()
        killed = client.start(poison.deadly, "thread", "once", alone=True)
        assert killed.result(timeout=60) == 1
        held = client.start(poison.neighbour, 1)
        eventually(lambda: effects.count("neighbour", 1), 60)
        host.wait_up(2)

        supervisor = eventually(lambda: measured(supervisor_of(ann, host.pid)), 60, "rates, which need two looks")
        assert supervisor["leads"] is True and supervisor["term"] >= 1
        assert len(supervisor["workers"]) == 2 and {worker["pid"] for worker in supervisor["workers"]} == set(host.worker_pids())
        (busy,) = [worker for worker in supervisor["workers"] if worker["executing"]]
        (executing,) = busy["executing"]
        assert (executing["run_id"], executing["seq"], executing["step"], executing["where"]) == (str(held.id), 0, "sits_in_a_thread", "thread") and executing["since"] and executing["for_s"] > 0
        assert busy["state"] == "busy" and busy["queues"] == ["deadly"] and all(worker["memory_bytes"] > 10_000_000 and worker["generation"] is not None for worker in supervisor["workers"])
        (crashed,) = [worker for worker in supervisor["workers"] if worker["last_crash"]]
        crash = crashed["last_crash"]
        assert (crash["signal"], crash["step"], crash["run_id"], crash["seq"], crash["deaths"]) == ("SIGKILL", "in_thread", str(killed.id), 0, 1) and crash["pid"] not in host.worker_pids()

        html = ann.get("/workers").text
        text = Read.of(html).text
        assert f"{socket.gethostname()}, supervisor {supervisor['supervisor'][:8]}" in text and supervisor["supervisor"] in text
        shown = processes(html, supervisor["supervisor"])
        assert shown.columns == OWN
        rows = {int(row["process"][0]): row for row in shown.rows}
        assert set(rows) == set(host.worker_pids())
        assert rows[busy["pid"]]["executes"][0] == "sits_in_a_thread (seq 0, thread)" and rows[busy["pid"]]["run"][1] == f"/runs/{held.id}" and rows[busy["pid"]]["runs"] == ("1", f"/runs?q=worker+%3D+{busy['worker']}")
        dead = rows[crashed["pid"]]
        assert dead["by"][0] == "SIGKILL" and dead["in step"][0] == "in_thread (seq 0)" and dead["its run"][1] == f"/runs/{killed.id}" and dead["last crash"][0]
        assert all("MB" in row["memory"][0] and "%" in row["cpu"][0] and row["steps/s"][0] != "–" for row in rows.values())
        others = [row for pid, row in rows.items() if pid != crashed["pid"]]
        assert [row["by"][0] for row in others] == ["–"]
        (died,) = tables(html)["Died within the hour"].rows
        assert died["process"][0] == str(crash["pid"]) and died["how"][0] == "signal 9"
        effects.open("enough")
        assert held.result(timeout=60) == 1

        os.kill(host.pid, signal.SIGTTOU)  # a worker fewer: it ends as it is told to
        found = eventually(lambda: made if (made := ann.get("/workers.json").json())["ended_as_told"] else None, 60)
        assert found["ended_as_told"] == 1 and [row["pid"] for row in found["died"]] == [crash["pid"]]
        died_then = tables(ann.get("/workers").text)["Died within the hour"]
        assert [row["process"][0] for row in died_then.rows] == [str(crash["pid"])]
        health = Read.of(ann.get("/health").text).text
        assert re.search(r"died within the hour\s*1\s*ended as told within the hour\s*1(?!\d)", health)


def test_workers_of_another_host_are_shown_by_what_they_have_published(hosts: HostFactory, database: Database, effects: Effects, tmp_path: Path) -> None:
    """A step that runs for more than a second is known to the database; memory and what is shorter are not, and the page says so."""
    hosts.start(APP, procs=1).wait_up(1)
    with Client(database.dsn) as client, served(tmp_path / "pages", database.dsn) as dashboard:
        ann = dashboard.visitor()
        held = client.start(poison.neighbour, 1)
        eventually(lambda: database.sql("select from supervisor.waits where code = 'step_running'"), 60)
        database.sql("update supervisor.worker set host = 'elsewhere', supervisor = gen_random_uuid()")
        found = ann.get("/workers.json").json()
        (place,) = found["hosts"]
        (supervisor,) = place["supervisors"]
        (worker,) = supervisor["workers"]
        assert (place["host"], worker["state"], worker["runs"], supervisor["leads"], supervisor["pid"]) == ("elsewhere", "alive", 1, False, None)
        (executing,) = worker["executing"]
        assert (executing["run_id"], executing["step"], executing["seq"]) == (str(held.id), "sits_in_a_thread", 0) and executing["since"]
        assert found["other_supervisors"] >= 1  # the one that it really is of
        html = ann.get("/workers").text
        (row,) = processes(html, supervisor["supervisor"]).rows
        assert row["executes"][0] == "sits_in_a_thread (seq 0)" and row["run"][1] == f"/runs/{held.id}" and row["runs"][0] == "1" and "ago" in row["step since"][0]
        assert "memory, rates, crashes and steps below a second are seen on that host alone" in Read.of(html).text and "memory" not in row
        effects.open("enough")
        assert held.result(timeout=60) == 1


def test_nobody_works(database: Database, tmp_path: Path) -> None:
    """Not an empty page: what to do."""
    with served(tmp_path, database.dsn) as dashboard:
        ann = dashboard.visitor()
        found = ann.get("/workers.json").json()
        assert found["hosts"] == [] and found["died"] == []
        assert "no worker is alive: python -m supervisor run --app" in Read.of(ann.get("/workers").text).text
