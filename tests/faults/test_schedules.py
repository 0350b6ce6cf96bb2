"""Each tick starts one run, whatever is killed, restarted or locked: leaders by the dozen, hosts, the database."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from supervisor import Client
from supervisor.db.statements import Sql
from supervisor.leader.burial import Burials
from supervisor.leader.lead import Leadership
from tests.faults.terms import judge_history
from tests.harness import ROOT, Database, Effects, HostFactory, Server, drive, eventually

APP = "tests.apps.scheduled"
EVERY_S = 0.1
KILLS = 12
SEED = 20_261_130


@pytest.fixture
def build() -> str:
    """Schedules know no loop: once is enough."""
    return ""


def catalogue(database: Database) -> None:
    """A workflow that nobody has: its runs stay as they are started."""
    database.sql("insert into supervisor.queue (name) values ('q')")
    database.sql("insert into supervisor.workflow (name, queue) values ('w', 1)")


def judge_ticks(database: Database, name: str, every_s: float) -> int:
    """From the first tick to the last one none is missing and none has two runs; how many there are."""
    found = database.sql("select tick_at, run_id, fired_at >= tick_at from supervisor.schedule_fires where schedule = %s and kind = 'tick' order by tick_at", name)
    ticks = [tick for tick, *_ in found]
    assert [later - tick for tick, later in zip(ticks, ticks[1:], strict=False)] == [timedelta(seconds=every_s)] * (len(ticks) - 1), "a tick is missing"
    assert all(in_time for *_, in_time in found), "a tick was fired early"
    keys = [key for (key,) in database.sql("select key from supervisor.run where key like %s", f"{name}@%")]
    assert len(keys) == len(set(keys)) == len(found) == len({run for _, run, _ in found}), "a run without a tick, or a tick with two"
    assert database.one("select fired from supervisor.schedules where name = %s", name) == len(found)
    return len(found)


def fired(database: Database, name: str) -> int:
    n: int = database.one("select count(*) from supervisor.schedule_fires where schedule = %s and state = 'started'", name)
    return n


class Leaders:
    """Processes that lead or wait to, on one database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-m", "tests.faults.leading", self.database.dsn]
        self.processes.append(subprocess.Popen(words, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def kill_the_leader(self) -> None:
        def pid() -> int | None:
            rows = self.database.sql("select pid from supervisor.leaders where leads")
            return rows[0][0] if rows and rows[0][0] in [each.pid for each in self.processes if each.poll() is None] else None

        killed = eventually(pid, 30, "a leader")
        os.kill(killed, signal.SIGKILL)
        next(each for each in self.processes if each.pid == killed).wait()  # a process that still dies is not killed a second time

    def end(self) -> None:
        for each in self.processes:
            each.kill()
            each.wait()


@pytest.fixture
def leaders(database: Database) -> Iterator[Leaders]:
    catalogue(database)
    made = Leaders(database)
    yield made
    made.end()


def test_leaders_that_are_killed_around_their_fires_fire_nothing_twice_and_miss_nothing(leaders: Leaders, database: Database) -> None:
    """kill -9 of the leader at a dozen moments that a schedule of ten ticks a second makes sure are in the middle of something."""
    chance = random.Random(SEED)
    database.sql("select supervisor.create_schedule('often', 'w', every => '0.1 s', overlap => 'allow')")
    database.sql("select supervisor.create_schedule('held', 'w', every => '0.1 s', overlap => 'buffer_one')")
    for _ in range(2):
        leaders.start()
    for _ in range(KILLS):
        before, more = fired(database, "often"), chance.randrange(1, 6)
        eventually(lambda before=before, more=more: fired(database, "often") >= before + more, 30, "fires")  # type: ignore[misc]
        leaders.kill_the_leader()
        leaders.start()
    before = fired(database, "often")
    eventually(lambda: fired(database, "often") > before, 30, "a fire after the last kill")
    database.sql("select supervisor.pause_schedule('often'), supervisor.pause_schedule('held')")
    terms = judge_history(database)
    assert len(terms) > KILLS and terms[-1][3] is None
    assert judge_ticks(database, "often", EVERY_S) > KILLS
    # its first run never ends here, so a second one is held, once, and every further tick was skipped, once
    assert database.sql("select state, count(*) from supervisor.schedule_fires where schedule = 'held' group by 1 having state <> 'skipped' order by 1") == [
        ("held", 1), ("started", 1),
    ]  # fmt: skip
    skipped = database.one("select skipped from supervisor.schedules where name = 'held'")
    assert skipped == database.one("select count(*) from supervisor.schedule_fires where schedule = 'held' and state = 'skipped'")


def test_what_two_hosts_fire_is_executed_once_for_each_tick_though_both_are_killed(hosts: HostFactory, database: Database, effects: Effects) -> None:
    """The whole way: real hosts, the leader's parent and workers killed, the other one goes on; every tick was executed, under its own run."""
    first = hosts.start(APP).wait_up(1)
    hosts.start(APP).wait_up(1)
    with Client(database.dsn) as client:
        client.create_schedule("hosts", "scheduled_tick", every=0.25, pass_tick="at", input={"word": "hosts"}, overlap="allow")
        eventually(lambda: fired(database, "hosts") >= 3, 30)
        first.kill_all()
        before = fired(database, "hosts")
        eventually(lambda: fired(database, "hosts") >= before + 3, 30)
        client.pause_schedule("hosts", "that is enough")
    assert len(judge_history(database)) == 2
    n = judge_ticks(database, "hosts", 0.25)
    done = "select count(*) from supervisor.runs where key like 'hosts@%%' and status = 'completed'"
    eventually(lambda: database.one(done) == n, 60, "all of them completed")
    assert len({line[1] for line in effects.lines("hosts")}) == n


def test_a_restart_of_the_database_loses_no_tick(own_server: Server) -> None:
    """A restart is no outage of the schedules: what ticked meanwhile is fired when it is back."""
    database = own_server.database()
    catalogue(database)
    leaders = Leaders(database)
    try:
        leaders.start()
        database.sql("select supervisor.create_schedule('often', 'w', every => '0.1 s', overlap => 'allow')")
        for _ in range(2):
            before = fired(database, "often")
            eventually(lambda before=before: fired(database, "often") > before + 2, 60)  # type: ignore[misc]
            own_server.embedded.stop("immediate")
            own_server.embedded.start()
        before = fired(database, "often")
        eventually(lambda: fired(database, "often") > before + 10, 60)
        database.sql("select supervisor.pause_schedule('often')")
        judge_ticks(database, "often", EVERY_S)
        assert len(judge_history(database)) >= 3
    finally:
        leaders.end()


class Led:
    """A leadership in this process; no turn of its loop may take longer than 0.2 s (see `drive`)."""

    def __init__(self, database: Database) -> None:
        self.burials = Burials(database.dsn, database.schema)
        self.leadership = Leadership(database.dsn, database.schema, uuid4(), self.burials)
        self.looks = 0
        begin = self.leadership._schedules._look

        def counted(term: int, held: bool) -> Any:
            self.looks += 1
            return begin(term, held)

        self.leadership._schedules._look = counted  # type: ignore[method-assign]

    def until(self, fact: Any, within_s: float = 60.0) -> None:
        drive([self.leadership, self.burials], fact, within_s)

    def close(self) -> None:
        self.leadership.close()
        self.burials.close()


@pytest.fixture
def led(database: Database) -> Iterator[Led]:
    catalogue(database)
    made = Led(database)
    yield made
    made.close()


MANY = 10_000
_MANY = """
insert into supervisor.schedule (name, workflow, cron, timezone, after_at, due_at, overlap)
select 's' || n, 'w', '0 * * * *', (array['UTC', 'Europe/Berlin', 'Asia/Kolkata'])[1 + n %% 3], date_trunc('hour', now()) - interval '40 min', now(), 1
from generate_series(1, %s) as n
"""


def test_ten_thousand_schedules_that_are_due_at_once_hold_nobody_up(led: Led, database: Database) -> None:
    """The full hour of a company: all of it is started, in batches between which the leader's loop turns and its beat comes."""
    led.until(lambda: led.leadership.term)
    database.sql(_MANY, MANY)
    started = "select sum(fired) from supervisor.schedule"
    oldest = 0.0

    def done() -> bool:
        nonlocal oldest
        oldest = max(oldest, float(database.one("select extract(epoch from clock_timestamp() - beat_at) from supervisor.leader order by term desc limit 1")))
        return bool(database.one(started) == MANY)

    led.until(done, 120)
    assert led.leadership.term == 1 and oldest < 1.5, f"the beat came {oldest:.2f} s late: another supervisor would have deposed it"
    assert database.one("select count(*) from supervisor.task") == MANY == database.one("select count(distinct run_id) from supervisor.schedule_fires")
    sizes = [n for (n,) in database.sql("select count(*) from supervisor.schedule_fire group by xmin")]
    assert max(sizes) <= 200, "a transaction of the leader's is larger than it may be"


def test_an_idle_leader_asks_nothing_for_schedules_that_are_not_due(led: Led, database: Database) -> None:
    """When the next one is due comes with the beat: ten thousand that wait cost no question."""
    database.sql(_MANY, 100)
    led.until(lambda: database.one("select count(*) from supervisor.schedules where next_at > now()") == 100)
    beat = "select beat_at from supervisor.leader where term = %s"

    def beats(n: int) -> None:
        seen = set()

        def enough() -> bool:
            seen.add(database.one(beat, led.leadership.term))
            return len(seen) > n

        led.until(enough)

    beats(2)  # one that was asked while they were due may still have been on its way
    before = led.looks
    beats(6)
    assert led.looks == before


@pytest.mark.parametrize("statement", ["schedules_due", "beat"])
def test_what_is_due_is_found_by_the_index(database: Database, statement: str) -> None:
    """Among a hundred thousand schedules the few that are due are found without reading the others."""
    catalogue(database)
    database.sql("set session_replication_role = replica")
    database.sql("insert into supervisor.schedule (name, workflow, every_us, due_at) select 's' || n, 'w', 3600000000, now() + interval '1 d' from generate_series(1, 20000) as n")
    database.sql("analyze supervisor.schedule")
    text = Sql().get(statement)
    values: Any = (100, 4) if statement == "schedules_due" else {
        "ears": 1, "chores": 1, "term": 1, "queues": [], "workflows": [], "depth": 0, "supervisor": uuid4(),
    }  # fmt: skip
    with database.connect() as conn:
        (plan,) = [row[0] for row in conn.execute(f"explain (format json) {text}", values)]
    nodes = list(_nodes(plan[0]["Plan"]))
    scans = {node.get("Index Name") for node in nodes if node.get("Relation Name") == "schedule"}
    assert "schedule_due_idx" in scans and scans <= {"schedule_due_idx", "schedule_held_idx", "schedule_pkey"}, scans
    assert not [node for node in nodes if node["Node Type"] == "Seq Scan" and node.get("Relation Name") == "schedule"]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from _nodes(below)


def test_what_was_fired_goes_with_the_history_of_its_time(database: Database) -> None:
    """Retention keeps no list of runs that are gone."""
    from tests.conformance.test_retention import History, Led as Keeper

    history = History(database)
    run_id = history.run(100, 1)
    low = database.one("select low from old where days = 100")
    database.sql("insert into supervisor.schedule_fire (schedule, tick_at, id, kind, state) values ('s', %s, %s, 1, 1), ('s', now(), supervisor.new_id(), 1, 3)", low, run_id)
    database.sql("insert into supervisor.schedule_miss (schedule, from_at, until_at, ticks, noted_at) values ('s', %s, %s, 3, %s), ('s', now(), now(), 1, now())", low, low, low)
    keeper = Keeper(database, 30)
    try:
        keeper.until(lambda: history.there(100) == 0 and history.there(60) == 0)
    finally:
        keeper.close()
    assert database.sql("select state from supervisor.schedule_fires where tick_at >= now() - interval '1 min' order by 1") == [("missed",), ("skipped",)]
    assert database.one("select count(*) from supervisor.schedule_fires") == 2
