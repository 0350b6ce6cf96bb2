"""Retention: old history goes, partition by partition, and nothing that a live run needs goes with it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from supervisor.db.statements import Sql
from supervisor.leader.burial import Burials
from supervisor.leader.lead import Leadership
from supervisor.leader.look import NOTHING
from tests.harness import Database, HostFactory, drive, eventually

DAY = 86_400.0
TABLES = ("run", "step", "attempt", "outcome", "child", "child_done", "message", "consumed", "publication")
ALL = len(TABLES)

# two partitions of a week each, as they were made at their time: 100 and 60 days ago
_PARTITIONS = """
create table old as select t.days, lower(r)::timestamptz as low, upper(r)::timestamptz as high, to_char(lower(r) at time zone 'UTC', 'YYYYMMDD') as suffix
from (values (100), (60)) as t (days), lateral (
    select tstzrange(date_bin('7 days', now() - make_interval(days => t.days), '2020-01-01 00:00:00+00'),
                     date_bin('7 days', now() - make_interval(days => t.days), '2020-01-01 00:00:00+00') + interval '7 days') as r) as ranged
"""
_MAKE = """
do $$ declare one record; begin
    for one in select p.name, o.suffix, o.low, o.high from supervisor.partitioned() p, old o loop
        execute format('create table supervisor.%I partition of supervisor.%I for values from (%L) to (%L)',
                       one.name || '_' || one.suffix, one.name, supervisor.id_floor(one.low), supervisor.id_floor(one.high));
    end loop;
end $$
"""


class History:
    """A database with old runs in it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        database.sql(_PARTITIONS)
        database.sql(_MAKE)
        database.sql("insert into supervisor.queue (name) values ('q')")
        database.sql("insert into supervisor.workflow (name, queue) values ('w', 1)")
        self.suffix: dict[int, str] = dict(database.sql("select days, suffix from old"))

    def run(self, days: int, n: int, *, ended_days: float | None = None, live: bool = False, key: str | None = None, batch: str | None = None) -> UUID:
        """One run born that many days ago; ended a minute later, or at *ended_days* ago, or live."""
        low = self.database.one("select supervisor.id_floor(low) from old where days = %s", days)
        run_id = UUID(int=low.int + n)
        number = None if batch is None else self.database.one("select supervisor.batch_id(%s)", batch)
        self.database.sql("insert into supervisor.run (run_id, workflow, queue, prio, key, batch, input) values (%s, 1, 1, 5, %s, %s, '{}')", run_id, key, number)
        self.database.sql("insert into supervisor.step values (%s, now(), now(), 0, 0, 1, 1, 1, 's', '1')", run_id)
        if key is not None:
            self.database.sql("insert into supervisor.run_key values (1, %s, %s, '')", key, run_id)
        if live:
            self.database.sql("insert into supervisor.task (run_id, ready_at, queue, workflow) values (%s, 'infinity', 1, 1)", run_id)
        else:
            ended = "insert into supervisor.outcome (run_id, ended_at, steps, status) values (%s, now() - make_interval(secs => %s), 1, 1)"
            self.database.sql(ended, run_id, DAY * (days - 7 if ended_days is None else ended_days))
        return run_id

    def there(self, days: int) -> int:
        """How many of that week's tables there are, attached or not."""
        names = [f"{name}_{self.suffix[days]}" for name in TABLES]
        n: int = self.database.one("select count(*) from pg_class where relnamespace = 'supervisor'::regnamespace and relname = any (%s)", names)
        return n

    def attached(self, days: int) -> int:
        names = [f"{name}_{self.suffix[days]}" for name in TABLES]
        n: int = self.database.one("select count(*) from pg_inherits where inhrelid::regclass::text = any (%s)", [f"supervisor.{name}" for name in names])
        return n


@pytest.fixture
def build() -> str:
    """Retention knows no loop: once is enough."""
    return ""


@pytest.fixture
def history(database: Database) -> History:
    return History(database)


class Led:
    """A leadership that drops what is older than so many days."""

    def __init__(self, database: Database, days: float | None) -> None:
        self.burials = Burials(database.dsn, database.schema)
        self.leadership = Leadership(database.dsn, database.schema, uuid4(), self.burials, None if days is None else days * DAY)

    def until(self, fact: Any, within_s: float = 30.0) -> None:
        drive([self.leadership, self.burials], fact, within_s)

    def turn_ended(self) -> None:
        """Until its first turn of retention is over."""
        duty = next(duty for duty in self.leadership._chores._duties if duty.name == "retention")
        self.until(lambda: duty.due > 0.0)

    def close(self) -> None:
        self.leadership.close()
        self.burials.close()


@pytest.fixture
def lead(database: Database) -> Iterator[Any]:
    made: list[Led] = []

    def begin(days: float | None) -> Led:
        made.append(Led(database, days))
        return made[-1]

    yield begin
    for each in made:
        each.close()


def test_nothing_is_dropped_by_default(history: History, lead: Any) -> None:
    """Nobody may lose history that he did not ask to lose."""
    history.run(100, 1)
    lead(None).turn_ended()
    assert (ALL, ALL) == (history.there(100), history.there(60))


def test_what_is_older_goes_with_its_keys_and_the_rest_stays(history: History, lead: Any) -> None:
    """Six tables per week; a key lives as long as its run's history, and is free again after it."""
    database = history.database
    for n in range(10):
        history.run(100, n, key=f"old-{n}" if n % 2 else None)
    kept = history.run(60, 1, key="young")
    lead(90).until(lambda: history.there(100) == 0)
    assert ALL == history.attached(60) and [(kept,)] == database.sql("select run_id from supervisor.run")
    assert [("young",)] == database.sql("select key from supervisor.run_key")
    eventually(lambda: not database.sql("select 1 from supervisor.retired"), 5)


def test_keys_are_removed_in_slices(history: History, database: Database) -> None:
    """One statement for a million keys would hold a million locks."""
    for n in range(7):
        history.run(100, n, key=f"k-{n}")
    suffix, after, looked = history.suffix[100], UUID(int=0), []
    while True:
        n, last = database.sql("select n, last from supervisor.drop_keys(%s, %s, 3)", suffix, after)[0]
        looked.append(n)
        assert 7 - sum(looked) == database.one("select count(*) from supervisor.run_key")
        if n < 3:
            break
        after = last
    assert [3, 3, 1] == looked


def test_a_key_that_names_a_younger_run_stays(history: History, database: Database) -> None:
    """The old run's key was taken over: it is not the old run's to take away."""
    history.run(100, 1, key="shared")
    young = uuid4()
    database.sql("update supervisor.run_key set run_id = %s where key = 'shared'", young)
    database.sql("select supervisor.drop_keys(%s, %s, 500)", history.suffix[100], UUID(int=0))
    assert young == database.one("select run_id from supervisor.run_key where key = 'shared'")


def batches(database: Database) -> set[str]:
    return {name for (name,) in database.sql("select name from supervisor.batch")}


def test_a_batch_goes_with_the_last_of_its_runs(history: History, lead: Any) -> None:
    """A load every night leaves a name every night; one that has younger runs too keeps its name and those."""
    database = history.database
    for n in range(20):
        history.run(100, n, batch=f"night-{n % 5}" if n % 2 else None)
    history.run(100, 30, batch="weekly")
    young = history.run(60, 1, batch="weekly")
    history.run(60, 2, batch="monday")
    lead(90).until(lambda: history.there(100) == 0)
    assert batches(database) == {"weekly", "monday"}
    assert [("weekly", 1)] == database.sql("select batch, runs from supervisor.batches where batch = 'weekly'")
    assert "weekly" == database.one("select batch from supervisor.runs where run_id = %s", young)


def detached(history: History, days: int) -> str:
    """One week's runs, detached as retention does it."""
    suffix = history.suffix[days]
    history.database.sql(f"alter table supervisor.run detach partition supervisor.run_{suffix}")
    return suffix


def test_batches_are_forgotten_in_slices(history: History, database: Database) -> None:
    """One look per batch and not per run, and a transaction per slice."""
    for n in range(21):
        history.run(100, n, batch=f"night-{n % 7}")
    suffix, after, looked = detached(history, 100), 0, []
    while True:
        n, after = database.sql("select n, last from supervisor.drop_batches(%s, %s, 3)", suffix, after)[0]
        looked.append(n)
        assert 7 - sum(looked) == len(batches(database))
        if n < 3:
            break
    assert [3, 3, 1] == looked


def test_a_batch_that_is_being_named_is_not_forgotten(history: History, database: Database) -> None:
    """Between a start's look at the name and its commit the batch has no run that anybody sees: its row is held, and nobody waits for that."""
    history.run(100, 1, batch="nightly")
    suffix = detached(history, 100)
    with database.connect() as starting:
        with starting.transaction():
            starting.execute("select supervisor.start('w', batch => 'nightly')")
            database.sql("set lock_timeout = '1s'")
            database.sql("select supervisor.drop_batches(%s, 0, 500)", suffix)
            assert batches(database) == {"nightly"}
        database.sql("select supervisor.drop_batches(%s, 0, 500)", suffix)
    assert [("nightly", 1)] == database.sql("select batch, runs from supervisor.batches")


def test_a_batch_that_is_named_while_it_goes_is_made_anew(history: History, database: Database) -> None:
    """The start waits for whoever forgets it, and its run is in a batch of that name."""
    history.run(100, 1, batch="nightly")
    suffix = detached(history, 100)
    with database.connect() as forgetting, ThreadPoolExecutor(1) as other, database.connect() as starting:
        with forgetting.transaction():
            forgetting.execute("select supervisor.drop_batches(%s, 0, 500)", (suffix,))
            start = other.submit(starting.execute, "select supervisor.start('w', batch => 'nightly')")
            eventually(lambda: database.one("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"), 20)
            assert not start.done()
        start.result(20)
    assert [("nightly", 1)] == database.sql("select batch, runs from supervisor.batches")


@pytest.mark.parametrize("case", ["live", "lately", "awaited"])
def test_a_partition_that_somebody_needs_stays_whole(history: History, lead: Any, case: str) -> None:
    """A run that sleeps for a year keeps its input and its steps; a long one its outcome; an older live parent its children's outcomes."""
    days = 100
    if case == "live":
        history.run(100, 1, live=True)
    elif case == "lately":
        history.run(100, 1, ended_days=1)
    else:
        parent, child, days = history.run(100, 1, live=True), history.run(60, 1), 60
        history.database.sql("insert into supervisor.child values (%s, 3, %s)", parent, child)
    lead(30).turn_ended()
    assert (ALL, ALL) == (history.there(days), history.attached(days))


def test_a_run_that_came_back_to_life_meanwhile_keeps_its_partition(history: History, lead: Any) -> None:
    """Between the look and the DETACH a run may be started again: the detached tables are attached again."""
    run_id = history.run(100, 1, live=True)
    database = history.database
    low, high = database.sql("select supervisor.id_floor(low), supervisor.id_floor(high) from old where days = 100")[0]
    database.sql("insert into supervisor.retired (suffix, low, high) values (%s, %s, %s)", history.suffix[100], low, high)  # decided, then it came
    lead(None).until(lambda: not database.sql("select 1 from supervisor.retired"))
    assert ALL == history.attached(100)
    assert [(run_id,)] == database.sql("select run_id from supervisor.step where run_id = %s", run_id)


def test_an_interrupted_detach_is_finished(history: History, lead: Any) -> None:
    """A leader that dies while its DETACH waits leaves a partition that refuses inserts, and no other DETACH works."""
    database = history.database
    table = f"step_{history.suffix[100]}"
    with database.connect() as reader:
        reader.execute("begin isolation level repeatable read")
        reader.execute("select count(*) from supervisor.step")
        with database.connect() as detacher:
            detacher.execute("set lock_timeout = '50ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                detacher.execute(f"alter table supervisor.step detach partition supervisor.{table} concurrently")  # type: ignore[arg-type]
        assert database.one("select inhdetachpending from pg_inherits where inhrelid = %s::regclass", f"supervisor.{table}")
        led = lead(None)
        led.until(lambda: led.leadership.term == 1)
        reader.execute("rollback")
    led.until(lambda: history.attached(100) == ALL - 1)
    assert ALL == history.there(100), "it is finished, and nobody asked for it to be dropped"


def test_a_reader_of_the_history_holds_a_drop_up_and_no_worker(history: History, lead: Any) -> None:
    """A backup reads for hours: the drop waits for it, and inserts go on meanwhile."""
    database = history.database
    history.run(100, 1)
    with database.connect() as reader, database.connect() as writer:
        reader.execute("begin isolation level repeatable read")
        for name in TABLES:
            reader.execute(f"select count(*) from supervisor.{name}")  # type: ignore[arg-type]
        led = lead(90)
        led.until(lambda: database.sql("select 1 from pg_inherits where inhdetachpending"))
        writer.execute("set lock_timeout = '1s'")
        for n in range(20):
            writer.execute("insert into supervisor.step values (supervisor.new_id(), now(), now(), 0, 0, 1, 1, 1, 's', '1')")
            led.until(lambda: True)
        assert ALL == history.there(100)
        reader.execute("rollback")
    led.until(lambda: history.there(100) == 0)


def test_who_does_not_own_the_tables_drops_nothing_and_says_so(history: History, lead: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The worker's role has no DDL; retention wants the owner's."""
    database = history.database
    history.run(100, 1)
    role = f"plain_{uuid4().hex[:8]}"
    database.sql(f"create role {role} login in role supervisor_worker")
    try:
        led = Led(Database(database.server, database.name, psycopg.conninfo.make_conninfo(database.dsn, user=role)), 90)
        led.turn_ended()
        led.close()
        assert ALL == history.attached(100)
        assert "retention: the tables belong to role" in caplog.text and role in caplog.text
    finally:
        database.sql(f"drop owned by {role}; drop role {role}")


def test_statistics_are_renewed_where_a_table_has_doubled(database: Database) -> None:
    """By whoever leads, whatever its role; a table that has not grown is left alone."""
    database.sql(
        "insert into supervisor.task (run_id, ready_at, queue, workflow) select supervisor.new_id(), 'infinity', 1, 1 from generate_series(1, 5000)"
    )
    eventually(lambda: database.one("select pg_stat_get_live_tuples('supervisor.task'::regclass)") == 5000, 20)
    assert "task" == database.one("select supervisor.renew_statistics()")
    assert 5000 == database.one("select reltuples from pg_class where oid = 'supervisor.task'::regclass")
    assert database.one("select supervisor.renew_statistics()") is None


@pytest.mark.parametrize("name", ["as_leader", "seek_lead", "beat", "who_leads", "partition_needed", "lost_worker"])
def test_what_is_asked_often_scans_no_table(history: History, database: Database, name: str) -> None:
    """Twice a second for ever, and beside a full task table."""
    parameters = {
        "as_leader": (1,), "lost_worker": (1,), "seek_lead": NOTHING, "beat": {"ears": 1, "chores": 2, "term": 1, **NOTHING},
        "partition_needed": {"low": UUID(int=0), "high": UUID(int=1), "keep_s": 1.0},
    }.get(name, ())  # fmt: skip
    database.sql("insert into supervisor.worker (boot, host, pid, supervisor, dead_at) select gen_random_uuid(), 'h', 1, gen_random_uuid(), now() from generate_series(1, 3000)")
    database.sql("insert into supervisor.task (run_id, ready_at, queue, workflow) select supervisor.new_id(), 'infinity', 1, 1 from generate_series(1, 3000)")
    database.sql("insert into supervisor.leader (term, supervisor, host, pid, lead_pid) select n, gen_random_uuid(), 'h', 1, 1 from generate_series(1, 1000) as n")
    database.sql("analyze supervisor.worker, supervisor.task, supervisor.leader")
    with database.connect() as conn, conn.transaction(force_rollback=True):
        conn.execute(Sql().get(name), parameters)  # type: ignore[arg-type]
        scanned = conn.execute("select relname, seq_tup_read from pg_stat_xact_user_tables where schemaname = 'supervisor' and seq_tup_read > 0").fetchall()
    assert not scanned


def test_a_host_keeps_as_long_as_its_project_says(history: History, hosts: HostFactory) -> None:
    """`retention` of [tool.pgsupervisor], in the words of people."""
    history.run(100, 1)
    history.run(60, 1)
    (hosts.folder / "pyproject.toml").write_text('[tool.pgsupervisor]\nretention = "70 days"\n')
    with hosts("tests.faults.apps_plain"):
        eventually(lambda: history.there(100) == 0, 60)
        assert history.there(60) == history.attached(60) == ALL
