"""PostgreSQL crashes and comes back, at random under load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
    assert host.log().count(" goes on as worker ") >= restarts, "no restart hit anything: the test has shown nothing"
    assert host.process.poll() is None, f"the host did not outlive the restarts:\n{host.log()[-2000:]}"
    host.stop()
