"""Death of a worker, and of everything, at random under load: no run is lost, nothing is done twice that must not be."""

from __future__ import annotations

import pytest

from tests.faults.load import Load, dice
from tests.harness import Database, Effects, HostFactory


@pytest.fixture
def load(database: Database, hosts: HostFactory, effects: Effects) -> Load:
    return Load(database, hosts, effects)


def test_kill_of_a_worker_again_and_again(load: Load, build: str) -> None:
    """A killed worker costs the bodies that it was inside of, and nothing else: its runs go on in milliseconds."""
    chance, kills = dice(), 12
    host = load.host(build, procs=2).wait_up(2)
    with load:
        for kill in range(kills):
            load.after_more(chance.randrange(20, 200))
            # one in three may hit a newborn; not all, for a host whose workers die at birth gives up
            load.note_ended(host.kill_worker(load.victim(host, chance, 1.05 if kill % 3 else 0.0)))
        load.finish(within_s=40)
    counts = load.judge(deaths=kills)
    assert counts["repeated"] > 0, "no kill hit a body: the test has shown nothing"
    host.stop()


def test_kill_of_everything_again_and_again(load: Load, build: str) -> None:
    """Parent and workers die at once; the next host finds what they held by the missing signs of life."""
    chance, kills = dice(), 4
    host = load.host(build, procs=2).wait_up(2)
    with load:
        for _ in range(kills):
            load.after_more(chance.randrange(50, 400))
            load.note_ended(*host.worker_pids())
            host.kill_all()
            host = load.host(build, procs=2)
        load.finish(within_s=40)
    counts = load.judge(deaths=2 * kills)
    assert counts["repeated"] > 0, "no kill hit a body: the test has shown nothing"
    host.stop()
