"""What a start of the program loads, and what it must never say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from supervisor import Client
from tests.apps import basic
from tests.harness import ROOT, Database, Effects, HostFactory, eventually

CANARY = "canary-7Qv-not-to-be-seen"
HEAVY = {
    "psycopg",
    "psycopg_c",
    "psycopg_binary",
    "msgspec",
    "rich",
    "greenlet",
    "asyncio",
    "multiprocessing_logging",
    "starlette",
    "uvicorn",
    "cython",
}
PROGRAM = """
import runpy, sys
sys.argv = ["supervisor", *sys.argv[1:]]
try:
    runpy.run_module("supervisor", run_name="__main__", alter_sys=True)
except SystemExit as end:
    print("ended", end.code, file=sys.stderr)
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def run_program(*words: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PG") and name != "DATABASE_URL"}
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**environ, "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_loads_no_driver(tmp_path):
    """`--help` is quick, and works where a part is not installed."""
    made = run_program("-c", PROGRAM, "--help", cwd=tmp_path)
    assert "Commands:" in made.stdout and "ended 0" in made.stderr
    loaded = set(made.stderr.splitlines()[-1].split())
    assert not loaded & HEAVY, f"--help loads {sorted(loaded & HEAVY)}"


@pytest.mark.parametrize("line", ["import supervisor", "from supervisor import workflow, step, sleep, gather, Retry"])
def test_an_app_that_is_imported_loads_no_driver(line, tmp_path):
    """Modules with steps are imported by tests, web servers and migrations: they pay for what they use."""
    made = run_program("-c", f"{line}\nimport sys\nprint(*(name for name in sys.modules if name.startswith('psycopg')))", cwd=tmp_path)
    assert made.returncode == 0 and made.stdout.split() == [], made.stdout + made.stderr


# ── a password is nowhere ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def with_password(database: Database) -> str:
    """A DSN with a password, which the test's server does not ask for."""
    return psycopg.conninfo.make_conninfo(database.dsn, password=CANARY)


def seen(text: str) -> list[str]:
    return [line[:200] for line in text.splitlines() if CANARY in line]


def test_a_password_is_in_no_log_and_no_workers_command_line(
    database: Database, with_password: str, hosts: HostFactory, effects: Effects
) -> None:
    """Logs go to places that more people read than may connect. A host at its most talkative, through deaths and lost sessions."""
    database.sql("create table ledger (entry int)")
    host = hosts.start("tests.apps.basic", procs=2, args=("--log-level", "debug"), env={"PGSUPERVISOR_DATABASE_URL": with_password})
    host.wait_up(2)
    with Client(with_password) as client:
        run = client.start(basic.three_steps, 20, gate="go")
        eventually(lambda: effects.count("second_step_begun", 21), 20)
        for pid in [host.pid, *host.worker_pids()]:
            assert CANARY.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert CANARY.encode() not in Path(f"/proc/{pid}/comm").read_bytes()
        host.kill_worker()
        database.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name like 'pgsupervisor: worker%%' and datname = current_database()"
        )
        effects.open("go")
        assert run.result(timeout=30) == 42
        assert CANARY not in repr(client) + repr(run)
    in_server = database.sql("select application_name, query from pg_stat_activity")
    host.stop()
    assert not seen(host.log())
    assert CANARY not in str(in_server)
    stored = database.sql(
        "select w::text from supervisor.worker w union all select o::text from supervisor.outcome o"
        " union all select s::text from supervisor.step s"
    )
    assert CANARY not in str(stored)


NOWHERE = f"host=/nonexistent dbname=x user=somebody password={CANARY}"
BAD_URL = f"postgresql://somebody:{CANARY}@/nonexistent:port%zz"
UNKNOWN = f"mysql://somebody:{CANARY}@localhost/x"


RUN = ("run", "--app", "tests.apps.basic")
LIST = ("--debug", "list")


@pytest.mark.parametrize(
    ("dsn", "words"),
    [
        (NOWHERE, RUN),
        (NOWHERE, LIST),
        (NOWHERE, ("start", "three_steps", "order=1")),
        (NOWHERE, ("migrate",)),
        (BAD_URL, RUN),
        (BAD_URL, LIST),
        (UNKNOWN, LIST),
    ],
    ids=lambda value: (
        " ".join(value) if isinstance(value, tuple) else {NOWHERE: "unreachable", BAD_URL: "unreadable", UNKNOWN: "not PostgreSQL"}[value]
    ),
)
def test_a_password_is_in_no_error_of_the_program(words, dsn, tmp_path):
    """Errors are pasted into tickets. Given by the environment and by --dsn; with --debug, tracebacks too."""
    given = run_program("-m", "supervisor", *words, cwd=tmp_path, env={"PGSUPERVISOR_DATABASE_URL": dsn})
    by_option = run_program("-m", "supervisor", *words, "--dsn", dsn, cwd=tmp_path)
    for made in (given, by_option):
        assert made.returncode != 0 and "rror" in made.stderr
        assert not seen(made.stdout + made.stderr)


@pytest.mark.parametrize("dsn", [NOWHERE, BAD_URL], ids=["unreachable", "unreadable"])
def test_a_password_is_not_in_the_versions(dsn, tmp_path):
    """`--version` is what a bug report begins with."""
    made = run_program("-m", "supervisor", "--version", cwd=tmp_path, env={"PGSUPERVISOR_DATABASE_URL": dsn})
    assert made.returncode == 0 and made.stdout.startswith("pgsupervisor ")
    assert not seen(made.stdout + made.stderr)


def test_a_password_is_in_no_exception_of_the_client(with_password: str) -> None:
    """Nor in what it was raised from: error trackers send the whole chain."""
    import traceback

    from supervisor import ConfigInvalid, DatabaseUnavailable

    for dsn, kind in (
        (NOWHERE, DatabaseUnavailable),
        (BAD_URL, ConfigInvalid),
        (UNKNOWN, ConfigInvalid),
        (psycopg.conninfo.make_conninfo(with_password, dbname="nosuch"), DatabaseUnavailable),
    ):
        with pytest.raises(kind) as raised, Client(dsn) as client:
            client.list()
        chain = "".join(traceback.format_exception(raised.value))
        assert CANARY not in chain + repr(raised.value) + repr(vars(raised.value))
