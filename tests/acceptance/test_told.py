"""What operators are told is so: which queues nobody serves, who ended what, which command helps, which right is missing."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from supervisor import Client
from supervisor.cli.audit import VERBS
from supervisor.cli.main import cli
from supervisor.core.errors import InputInvalid
from tests.acceptance.test_reading import as_role, registered, started
from tests.acceptance.test_workers import command
from tests.acceptance.visits import Read, served
from tests.apps import deaf
from tests.harness import ROOT, Database, HostFactory, Server, eventually


def said(database: Database, *words: str, folder: Path, code: int = 0) -> str:
    made = command(database, *words, folder=folder)
    assert made.returncode == code, f"{words}: {made.returncode}\n{made.stdout}{made.stderr}"
    return made.stdout if "--json" in words else made.stdout + made.stderr


# ── queues ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_queue_that_nobody_serves_is_said_by_name_with_what_to_run(hosts: HostFactory, database: Database, tmp_path: Path) -> None:
    """Workers are alive, and none of them will ever take it: "a worker takes it by itself" would be waited for until somebody reads the code."""
    hosts.start("tests.apps.deaf", procs=1).wait_up(1)
    run = started(database, "deaf", input='{"n": 1}', queue="no body")
    page = said(database, "show", run, folder=tmp_path)
    assert "[no_worker]" in page and "no live worker serves queue no body" in page and "those that live serve default" in page
    assert "python -m supervisor run --app … --queues 'no body'" in page
    assert json.loads(said(database, "list", "wait = no_worker", "--json", folder=tmp_path))["run_id"] == run
    waits = "select code, freed_by like '%%--queues ''no body''' from supervisor.wait_groups()"
    assert database.sql(waits) == [("no_worker", True)]
    (host,) = json.loads(said(database, "workers", "--json", folder=tmp_path))["hosts"]
    assert [worker["queues"] for worker in host["supervisors"][0]["workers"]] == [["default"]]
    assert json.loads(said(database, "top", "--once", "--json", folder=tmp_path))["workers"][0]["queues"] == ["default"]
    rows = {row["queue"]: row["workers"] for row in map(json.loads, said(database, "queues", "--json", folder=tmp_path).splitlines())}
    assert rows == {"default": 1, "no body": 0}
    with served(tmp_path / "pages", database.dsn) as dashboard:
        ann = dashboard.visitor()
        assert ann.get("/workers.json").json()["hosts"][0]["supervisors"][0]["workers"][0]["queues"] == ["default"]
        assert {row["queue"]: row["workers"] for row in ann.get("/queues.json").json()["queues"]} == rows
        assert "no live worker serves queue no body" in Read.of(ann.get(f"/runs/{run}").text).text
    hosts.start("tests.apps.deaf", procs=1, args=("--queues", "no body,other")).wait_up(1)
    eventually(lambda: database.one("select status from supervisor.runs where run_id = %s", run) == "waiting", 30)


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_audit_says_who_ended_what(database: Database, tmp_path: Path) -> None:
    """Who is asked in the morning what was done at 2 looks there."""
    registered(database, "checkout")
    for key, verb in (("fo-1", "terminate"), ("fo-2", "cancel")):
        started(database, "checkout", key=key)
        said(database, verb, key, "--reason", "2am", "--actor", "ann", folder=tmp_path)
        row = json.loads(said(database, "audit", key, "--json", folder=tmp_path))
        assert (row["verb"], row["key"], row["actor"], row["reason"], row["workflow"]) == (verb, key, "ann", "2am", "checkout")
        assert json.loads(said(database, "audit", "--verb", verb, "--json", folder=tmp_path))["key"] == key
    assert "fo-1" not in said(database, "audit", "--verb", "fail", folder=tmp_path)
    assert {"signal", "update", "complete", "fail"} <= set(VERBS)
    assert "2am" in said(database, "show", "fo-1", folder=tmp_path)
    with served(tmp_path / "pages", database.dsn) as dashboard:
        rows = dashboard.visitor().get("/audit.json").json()["audit"]
        assert [(row["verb"], row["key"]) for row in rows] == [("cancel", "fo-2"), ("terminate", "fo-1")]


def test_a_run_that_ignores_its_cancellation_is_said_to_be_ended_by_terminate(hosts: HostFactory, database: Database, tmp_path: Path) -> None:
    """cancel has been tried; that it be tried again helps nobody."""
    hosts.start("tests.apps.deaf", procs=1).wait_up(1)
    with Client(database.dsn) as client:
        run = client.start(deaf.deaf.options(key="deaf1"), 1)
    asleep = "select count(*) from supervisor.timers where run_id = %s" if database.one("select to_regclass('supervisor.timers')") else "select count(*) from supervisor.waits where run_id = %s and code = 'timer'"
    eventually(lambda: database.one(asleep, run.id), 30)
    assert "operators can end it: python -m supervisor cancel" in said(database, "show", "deaf1", folder=tmp_path)
    assert said(database, "cancel", "deaf1", folder=tmp_path) == f"asked {run.id} to end: its code is told, and ends it\n"
    again = eventually(lambda: database.sql("select who from supervisor.waits where run_id = %s and code = 'timer' and who like '%%terminate%%'", run.id), 30)
    assert again[0][0].endswith(f"operators end it without its code: python -m supervisor terminate {run.id}") and " cancel " not in again[0][0]
    assert f"python -m supervisor terminate {run.id}" in said(database, "show", "deaf1", folder=tmp_path)
    assert "was asked to end before and has not ended yet" in said(database, "cancel", "deaf1", folder=tmp_path, code=1)
    assert said(database, "terminate", "deaf1", folder=tmp_path) == f"terminated {run.id}\n"
    assert f"{run.id} had ended before" in said(database, "cancel", "deaf1", folder=tmp_path, code=1)


# ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_workers_of_this_database_alone_are_shown_and_others_counted(hosts: HostFactory, database: Database, server: Server, tmp_path: Path) -> None:
    """Two databases on one host are two sites: who looks at one must not stop the other's."""
    host = hosts.start("tests.apps.deaf", procs=1).wait_up(1)
    other = server.database()
    try:
        for words in (("workers",), ("top", "--once")):
            here, there = said(database, *words, folder=tmp_path), said(other, *words, folder=tmp_path)
            pid = str(host.worker_pids()[0])
            assert pid in here and pid not in there and "other supervisor" in there
    finally:
        other.drop()


def test_a_worker_is_named_by_the_number_that_workers_shows(hosts: HostFactory, database: Database, tmp_path: Path) -> None:
    """One process, one name: what `workers`, `top` and `show` say is taken."""
    host = hosts.start("tests.apps.deaf", procs=1).wait_up(1)
    database.sql("select setval(pg_get_serial_sequence('supervisor.worker', 'id'), 70000)")
    host.kill_worker()
    number = eventually(lambda: database.one("select max(worker) from supervisor.workers where state = 'alive' and worker > 70000"), 60)
    pid = eventually(lambda: database.one("select pid from supervisor.workers where worker = %s", number), 20)
    eventually(lambda: str(number) in command(database, "workers", folder=tmp_path).stdout, 30)
    text = said(database, "stacks", "--worker", str(number), folder=tmp_path)
    assert f"worker {number} is pid {pid}, number 0 of its supervisor" in text and f"pid {pid}" in text


# ── rights, and what can't be written ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("words", [("start", "checkout"), ("pause", "k"), ("resume", "k"), ("cancel", "k")], ids=lambda words: words[0])
def test_a_right_that_is_missing_is_said_of_the_verb(words: tuple[str, ...], database: Database, tmp_path: Path) -> None:
    registered(database, "checkout")
    started(database, "checkout", key="k")
    text = said(as_role(database, "viewer"), *words, folder=tmp_path, code=77)
    assert f"may not do what {words[0]} asks for in schema" in text and 'GRANT "supervisor_client"' in text and "a question" not in text


def test_nothing_done_is_not_said_to_be_done(database: Database, tmp_path: Path) -> None:
    """A script reads the first line."""
    registered(database, "checkout")
    started(database, "checkout", key="k")
    made = command(as_role(database, "viewer"), "cancel", "--filter", "key = k", "--yes", folder=tmp_path)
    assert (made.returncode, made.stdout) == (77, "")


def test_what_is_to_be_typed_has_the_dsn_that_was_typed(database: Database, server: Server, tmp_path: Path) -> None:
    """`migrate` without it would make tables in the database of the environment. Its password is not repeated."""
    other = f"{server.dsn} password=canary-secret".replace("dbname=supervisor", "dbname=postgres")
    text = said(database, "list", "--dsn", other, folder=tmp_path, code=75)
    assert "python -m supervisor migrate --dsn '" in text and "dbname=postgres" in text and "canary" not in text
    assert "--dsn is empty" in said(database, "list", "--dsn", "", folder=tmp_path, code=78)


def test_a_parameter_that_is_not_there_is_named_with_the_nearest(database: Database, hosts: HostFactory, tmp_path: Path) -> None:
    """`start tea centz=5`: that cents expects a number is true, and helps nobody."""
    hosts.start("tests.apps.deaf", procs=1).wait_up(1)
    text = said(database, "start", "deaf", "m=2", folder=tmp_path, code=2)
    assert "workflow deaf: 'm' is not one of its parameters (n)" in text
    with Client(database.dsn) as client, pytest.raises(InputInvalid, match="'nn' is not one of its parameters .n.; did you mean 'n'"):
        client.start(deaf.deaf, nn=2)  # type: ignore[call-arg]


def test_a_key_that_named_a_run_is_said_also_when_it_is_waited_for(database: Database, tmp_path: Path) -> None:
    registered(database, "checkout")
    run = started(database, "checkout", key="k")
    text = said(database, "start", "checkout", "--key", "k", "--wait", "--timeout", "0.1", folder=tmp_path, code=124)
    assert f"key 'k' named this run already, nothing was started: run {run}; waiting for its end" in text


@pytest.mark.parametrize("where", ["> /dev/full", ">&-"])
def test_an_output_that_takes_nothing_is_no_error_of_ours(where: str, database: Database, tmp_path: Path) -> None:
    registered(database, "checkout")
    started(database, "checkout")
    made = subprocess.run(f"{sys.executable} -m supervisor list {where}", shell=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PGSUPERVISOR_DATABASE_URL": database.dsn, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in made.stderr and "error of pgsupervisor" not in made.stderr, made.stderr
    assert (made.returncode, "No space left on device" in made.stderr) == ((73, True) if "full" in where else (0, False)), made.stderr


@pytest.mark.parametrize("words", [("list", "--json"), ("list", "--watch"), ("export", "k")], ids=" ".join)
def test_a_reader_that_goes_away_is_one_exit_code(words: tuple[str, ...], database: Database, tmp_path: Path) -> None:
    """`export | head` ended with 1, as if something had gone wrong."""
    registered(database, "checkout")
    started(database, "checkout", key="k")
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "wb") as out:
        made = subprocess.run([sys.executable, "-m", "supervisor", *words], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PGSUPERVISOR_DATABASE_URL": database.dsn, "PATH": "/usr/bin:/bin"}, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (made.returncode, made.stderr) == (141, "")


@pytest.mark.parametrize("command", ["list", "signal", "update", "query", "pause", "skip", "edit-retry", "fork", "complete", "audit"])
def test_help_has_an_example(command: str) -> None:
    """Each is a line that click itself can read as the command's."""
    made = CliRunner().invoke(cli, [command, "--help"])
    (line, *_) = [line.strip() for line in made.output.splitlines() if line.strip().startswith(f"pgsupervisor {command} ")]
    words = shlex.split(line.replace("$TOKEN", "t"))[2:]
    found = cli.get_command(click.Context(cli), command)
    assert found is not None and found.make_context(command, words)


def test_migrate_without_the_right_says_so(database: Database, tmp_path: Path) -> None:
    """75 would say that the schema is missing, and a script would make it."""
    assert "migrate as" in said(as_role(database, "viewer"), "migrate", folder=tmp_path, code=77)


# ── keys on the dashboard ────────────────────────────────────────────────────────────────────────────────────────


def test_keys_with_a_slash_and_keys_of_two_workflows_have_pages(database: Database, tmp_path: Path) -> None:
    registered(database, "checkout", "report")
    slashed = started(database, "checkout", key="a/b")
    both = {started(database, workflow, key="amb") for workflow in ("checkout", "report")}

    def answer(path: str) -> tuple[int, Any]:
        got = ann.get(path)
        return got.status, got.json() if path.endswith(".json") else got.text

    with served(tmp_path / "pages", database.dsn) as dashboard:
        ann = dashboard.visitor()
        status, page = answer("/runs/a%2Fb")
        assert status == 200 and slashed in page
        assert answer("/runs/a%2Fb.json")[1]["run_id"] == slashed
        status, found = answer("/runs/amb.json")
        assert status == 300 and {row["run_id"] for row in found["runs"]} == both
        status, page = answer("/runs/amb")
        assert status == 300 and {f"/runs/{run}" for run in both} <= set(Read.of(page).attributes("a", "href"))
        got = ann.ask("POST", "/health.json")
        assert got.status in (403, 405)
