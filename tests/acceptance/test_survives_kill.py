"""The first promise, end to end: a three-step workflow survives kill -9 of its worker, and of everything."""

from __future__ import annotations

import pytest

from supervisor import Client
from tests.apps import basic
from tests.harness import Database, Effects, HostFactory, eventually


@pytest.fixture
def ledger(database: Database) -> Database:
    database.sql("create table ledger (entry int)")
    return database


def test_killed_worker_loses_no_run_and_repeats_no_checkpoint(ledger: Database, hosts: HostFactory, effects: Effects, build: str) -> None:
    """A crash inside a step costs that attempt and nothing else."""
    with Client(ledger.dsn) as client, hosts("tests.apps.basic", procs=2, build=build) as host:
        # given a run whose first step is durable and whose second waits at a failpoint
        run = client.start(basic.three_steps, 20, gate="go")
        eventually(lambda: effects.count("second_step_begun", 21), 20)
        eventually(lambda: ledger.one("select count(*) from supervisor.step"), 20)
        # when every worker is killed without warning
        for pid in host.worker_pids():
            host.kill_worker(pid)
        effects.open("go")
        # then another process finishes it, and step one ran once
        assert run.result(timeout=8) == 42
    assert effects.count("first_step", 20) == 1
    assert effects.count("second_step", 21) == 1
    assert ledger.sql("select entry from ledger") == [(42,)]


def test_run_survives_kill_of_everything(ledger: Database, hosts: HostFactory, effects: Effects, build: str) -> None:
    """Parent and workers die at once; the next host finds the dead ones' claims by their missing signs of life."""
    with Client(ledger.dsn) as client:
        host = hosts.start("tests.apps.basic", procs=2, build=build).wait_up(2)
        run = client.start(basic.three_steps, 20, gate="go")
        eventually(lambda: effects.count("second_step_begun", 21), 20)
        host.kill_all()
        effects.open("go")
        with hosts("tests.apps.basic", build=build):
            assert run.result(timeout=8) == 42
    assert effects.count("first_step", 20) == 1
    assert ledger.sql("select entry from ledger") == [(42,)]
