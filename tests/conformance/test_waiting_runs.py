"""Thousands of runs that wait hold nothing of a worker, survive the death of all of them, and go on when it is time."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest

from supervisor import Client
from supervisor.engine import rest
from tests.apps import waiters
from tests.harness import Database, Effects, Host, HostFactory, eventually

APP = "tests.apps.waiters"
ASLEEP, LISTENING, MINDING = 2000, 2000, 500
RUNS = ASLEEP + LISTENING + 2 * MINDING
FAR_S = 86_400.0
WOKEN_AFTER = """
    select t.run_id, extract(epoch from s.started_at - t.started_at)::float8 from supervisor.step t join supervisor.step s using (run_id)
    where t.run_id = any(%s) and t.kind = 2 and s.kind = 1
"""


def start(client: Client) -> None:
    client.start_many(waiters.waiters_mind, [{"number": 0, "seconds": FAR_S}] * MINDING)
    client.start_many(waiters.waiters_listen, range(LISTENING))
    client.start_many(waiters.waiters_sleep, [{"number": n, "seconds": FAR_S} for n in range(ASLEEP)])


def waiting(database: Database) -> int:
    count: int = database.one("select count(*) from supervisor.task where owner is null and wait_kind in (10, 11, 14)")
    return count


def private_mb(host: Host) -> float:
    lines = [line for pid in host.worker_pids() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def threads(host: Host) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in host.worker_pids())


def test_thousands_that_wait_hold_nothing_and_outlive_all_workers(hosts: HostFactory, build: str, database: Database, effects: Effects) -> None:
    """A payment term of thirty days, times all customers, on one small host."""
    # given a host that may have 100 runs in memory, and fifty times as many that wait
    with hosts(APP, procs=2, build=build, args=("--in-flight", "50")) as host, Client(database.dsn) as client:
        for run in client.start_many(waiters.waiters_quick, [-1] * 500):
            run.result(timeout=60)
        memory_mb, before = private_mb(host), threads(host)
        start(client)
        eventually(lambda: waiting(database) == RUNS, 120, "all wait, and none is a worker's")
        assert threads(host) <= before
        assert private_mb(host) - memory_mb < 20, "4 KiB for each would be that much"
        # then others find room
        assert client.start(waiters.waiters_quick, -2).result(timeout=20) == -2
        # when all workers are killed while some are about to wake
        asleep_s = (1.5, 2.0, 2.0, 2.5, 3.0)
        naps = [client.start(waiters.waiters_sleep, -3, seconds) for seconds in asleep_s]
        eventually(lambda: waiting(database) == RUNS + len(naps), 20)
        for pid in host.worker_pids():
            host.kill_worker(pid)
        # then those wake in time, and the others still wait
        assert [run.result(timeout=30) for run in naps] == [-3] * len(naps)
        after_s = dict(database.sql(WOKEN_AFTER, [run.id for run in naps]))
        late_s = [after_s[run.id] - seconds for run, seconds in zip(naps, asleep_s, strict=True)]
        assert all(-0.001 <= each < 10 for each in late_s), "1 s, times ten for a busy machine"
        assert waiting(database) == RUNS
        _all_go_on(database, client)
    assert len(effects.lines("waiters")) == 500 + 1 + len(naps) + RUNS, "each went on once"


def _all_go_on(database: Database, client: Client) -> None:
    """Everything that is waited for happens at once."""
    database.sql("update supervisor.timer set due_at = clock_timestamp()")
    database.sql("update supervisor.task t set ready_at = clock_timestamp() from supervisor.timer m where m.run_id = t.run_id")
    sent = database.one("select count(supervisor.signal(run_id, 'waiters_go', '1')) from supervisor.task where wait_kind = 11")
    assert sent == LISTENING
    eventually(lambda: database.one("select count(*) from supervisor.task") == 0, 120, "all have ended")
    results = "select sum(convert_from(result, 'UTF8')::int) from supervisor.outcome where run_id in (select run_id from supervisor.runs where workflow = %s)"
    assert database.one(results, "waiters_sleep") == sum(range(ASLEEP)) - 3 * 5
    assert database.one(results, "waiters_listen") == sum(range(LISTENING)) + LISTENING
    assert database.one(results, "waiters_mind") == 0


def test_a_short_wait_stays_in_memory(hosts: HostFactory, build: str, database: Database, effects: Effects) -> None:
    """Leaving and coming back costs two transactions and a replay: not for half a second."""
    with hosts(APP, build=build), Client(database.dsn) as client:
        brief, long = client.start(waiters.waiters_brief, 0.4), client.start(waiters.waiters_brief, 1.6)
        assert (brief.result(timeout=20), long.result(timeout=20)) == (0, 0)
        assert effects.count("brief", 0.4) == 1
        assert effects.count("brief", 1.6) == 2, "it left memory and was replayed"


@pytest.mark.alone
def test_an_idle_host_finds_within_half_a_second_a_signal_that_nobody_announced(hosts: HostFactory, database: Database) -> None:
    """A trigger of somebody else's table sends it, in the night, to a run that has left memory: by the database's times, from sending to the next step."""
    parked = "select count(*) from supervisor.task where run_id = %s and owner is null and wait_kind = 11 and clock_timestamp() - wait_since > %s * interval '1 s'"
    took = "select extract(epoch from s.started_at - m.sent_at)::float8 from supervisor.step s join supervisor.message m using (run_id) where s.run_id = %s and s.kind = 1"
    late_s: list[float] = []
    with hosts(APP), Client(database.dsn) as client:
        for n in range(3):
            run = client.start(waiters.waiters_listen, n)
            eventually(lambda run=run: database.one(parked, run.id, rest.BUSY_FOR_S + 1.0), 120, "it has left memory, and its host looks no more as often as after work")
            database.sql("select supervisor.signal(%s, 'waiters_go', '1')", run.id)
            late_s += [late for (late,) in eventually(lambda run=run: database.sql(took, run.id), 10 * rest.POLL_IDLE_S)]
    print({"signal_to_step_s": late_s})
    assert len(late_s) == 3 and all(0 < each < 10 * rest.POLL_IDLE_S for each in late_s)
    assert statistics.median(late_s) < 1.2 * rest.POLL_IDLE_S, "the pause of a look, and the replay"
