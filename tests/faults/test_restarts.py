"""PostgreSQL crashes and comes back, at random under load."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor import Client
from tests.faults.load import Load, dice
from tests.harness import Database, Effects, HostFactory, Server


@pytest.fixture
def crashing(own_server: Server) -> Iterator[Database]:
    """A database on a server of this test's own: fsync on, for what the server acknowledged must survive its crash."""
    made = own_server.database()
    try:
        yield made
    finally:
        made.drop()


@pytest.fixture
def load(crashing: Database, effects: Effects, tmp_path: Path) -> Iterator[Load]:
    hosts = HostFactory(crashing, effects, tmp_path)
    try:
        yield Load(crashing, hosts, effects)
    finally:
        hosts.stop_all()


def test_restart_of_the_server_in_mode_immediate(load: Load, own_server: Server, build: str) -> None:
    """Workers outlive it, and every start that was acknowledged before the crash is done; no body that was begun begins again."""
    chance, restarts = dice(), 4
    host = load.host(build, procs=2).wait_up(2)
    with load:
        for _ in range(restarts):
            load.after_more(chance.randrange(50, 400))
            own_server.embedded.restart("immediate")
        load.finish(within_s=60)
    load.judge(deaths=0)
    assert len(re.findall(r"worker \d+ goes on as worker ", host.log())) >= restarts, "no restart hit anything: the test has shown nothing"
    assert host.process.poll() is None, f"the host did not outlive the restarts:\n{host.log()[-2000:]}"
    host.stop()


def test_what_was_acknowledged_survives_a_crash_in_the_next_moment(crashing: Database, own_server: Server) -> None:
    """Senders to one run share a wait for the disk; a signal is acknowledged after it. Here nothing but a commit brings anything to the disk."""
    with own_server.connect() as conn:
        conn.autocommit = True
        conn.execute("alter system set wal_writer_delay = '10s'")
        conn.execute("select pg_reload_conf()")
    crashing.sql("insert into supervisor.queue (name) values ('q')")
    crashing.sql("insert into supervisor.workflow (name, queue) select 'never_runs', id from supervisor.queue")
    with Client(crashing.dsn) as client:
        run = client.start("never_runs")
        for n in range(6):
            assert client.signal(run, "numbers", n)
            own_server.embedded.restart("immediate")
            assert crashing.one("select count(*) from supervisor.message where run_id = %s", run.id) == n + 1
