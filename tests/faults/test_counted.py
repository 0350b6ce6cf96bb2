"""Counters say what is durable, never what a batch may yet lose: where it is refused, sent again, or dies with its worker."""

from __future__ import annotations

import random
from typing import Any

import psycopg

from supervisor import Client
from tests.acceptance.scraping import Meter, Scraped, metered
from tests.apps import metered as app
from tests.harness import Database, HostFactory, eventually

ROWS = """
select w.name, s.name, 'completed', count(*) from supervisor.step s join supervisor.run r using (run_id) join supervisor.workflow w on w.id = r.workflow
 where s.kind = 1 and s.status = 1 group by 1, 2
union all
select w.name, a.name, 'failed', count(*) from supervisor.attempt a join supervisor.run r using (run_id) join supervisor.workflow w on w.id = r.workflow
 where a.kind = 1 group by 1, 2"""
BLOCKED = "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and application_name like 'pgsupervisor: worker%%'"
END_WORKERS = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and application_name like 'pgsupervisor: worker%%'"
Counts = dict[tuple[str, str, str], float]


def durable(database: Database) -> Counts:
    """Tries that stand in the history, by workflow, step and result."""
    return {(workflow, step, outcome): count for workflow, step, outcome, count in database.sql(ROWS)}


def counted(scraped: Scraped) -> Counts:
    found = {}
    for labels, value in scraped.all("step_attempts_total").items():
        named = dict(labels)
        if value:
            found[named["workflow"], named["step"], named["outcome"]] = value
    return found


def no_more_than_durable(meter: Meter, database: Database) -> tuple[Counts, Counts]:
    """Counted first and read afterwards: what is told is there by then."""
    scraped = meter.scrape()
    told, totals = counted(scraped), {name: scraped.get(name) or 0 for name in ("steps_recorded_total", "step_failures_total", "runs_ended_total")}
    there = durable(database)
    assert {name: (count, there.get(name)) for name, count in told.items() if count > there.get(name, 0)} == {}
    for name, table in (("steps_recorded_total", "step"), ("step_failures_total", "attempt"), ("runs_ended_total", "outcome")):
        assert totals[name] <= database.one(f"select count(*) from supervisor.{table}"), name
    return told, there


def all_is_counted(meter: Meter, database: Database) -> None:
    def same() -> bool:
        told, there = no_more_than_durable(meter, database)
        return told == there

    eventually(same, 30, "every durable try to be counted")
    scraped, rows = meter.scrape(), database.one("select count(*) from supervisor.step")
    assert scraped.get("steps_recorded_total") == rows and scraped.get("runs_ended_total") == database.one("select count(*) from supervisor.outcome")


def test_what_a_refused_batch_had_is_not_counted(hosts: HostFactory, database: Database) -> None:
    """One row among thousands is refused: each half is counted once it is durable, and what the culprit did not at all."""
    database.sql("alter table supervisor.step add constraint poison check (encode(result, 'escape') not like '%%poison%%') not valid")
    with metered(hosts) as meter, Client(database.dsn) as client:
        mixed = client.start_many(app.metered_mixed, [{"n": n, "poison": "poison" if n == 1200 else "fine"} for n in range(1500)])
        client.start_many(app.metered_shares, [{} for _ in range(500)])
        client.start_many(app.metered_counts, [2] * 500)

        def ended() -> bool:
            no_more_than_durable(meter, database)
            return bool(database.one("select count(*) from supervisor.outcome") == 2499)

        eventually(ended, 120, "the others to end")
        assert database.sql("select run_id, code from supervisor.waits") == [(mixed[1200].id, "commit_rejected")]
        assert "runs refused" in meter.host.log()
        all_is_counted(meter, database)
        told = counted(meter.scrape())
        assert [told[name, "metered_add", "completed"] for name in ("metered_mixed", "metered_shares", "metered_counts")] == [1499, 1000, 1000]
        assert told["metered_mixed", "metered_says", "completed"] == 2999 and told["metered_mixed", "metered_second_time", "failed"] == 1500


def test_what_a_killed_worker_had_executed_is_counted_with_who_repeats_it(hosts: HostFactory, database: Database) -> None:
    """Its last batch can't be committed, and is gone with it. Counted when it was executed, each of its tries would count twice."""
    with metered(hosts, procs=1) as meter, Client(database.dsn) as client:
        client.start(app.metered_counts, 1).result(timeout=30)
        with held(database, "lock table supervisor.step in share mode"):
            runs = client.start_many(app.metered_counts, [3] * 300)
            blocked = eventually(lambda: database.sql(BLOCKED), 30, "a batch that waits")
            told, there = no_more_than_durable(meter, database)
            assert told == there == {("metered_counts", "metered_add", "completed"): 1}
            meter.kill_worker()
            eventually(lambda: blocked[0] not in database.sql("select pid from pg_stat_activity"), 30, "its session to be ended")
        assert [run.result(timeout=60) for run in runs] == [3] * 300
        all_is_counted(meter, database)
        assert counted(meter.scrape()) == {("metered_counts", "metered_add", "completed"): 901}


def test_a_batch_that_is_sent_again_counts_once(hosts: HostFactory, database: Database) -> None:
    """Sessions are ended under load: some batches were durable and their answer was lost, others go out once more."""
    chance = random.Random(7)
    with metered(hosts) as meter, Client(database.dsn) as client:
        for _ in range(6):
            client.start_many(app.metered_mixed, [{"n": n} for n in range(400)])
            client.start_many(app.metered_counts, [3] * 100)
            more = (durable(database).get(("metered_counts", "metered_add", "completed")) or 0) + chance.randrange(20, 250)
            eventually(lambda more=more: (durable(database).get(("metered_counts", "metered_add", "completed")) or 0) >= more, 60, "some more steps")  # type: ignore[misc]
            database.sql(END_WORKERS)
        eventually(lambda: database.one("select count(*) from supervisor.task") == 0, 120, "all to end")
        assert "has lost its session" in meter.host.log()
        all_is_counted(meter, database)
        assert counted(meter.scrape())["metered_counts", "metered_add", "completed"] == 1800


class held:
    """While this lasts, a transaction has executed *statement* and not ended."""

    def __init__(self, database: Database, statement: str) -> None:
        self._dsn, self._statement = database.dsn, statement

    def __enter__(self) -> None:
        self._conn: psycopg.Connection[Any] = psycopg.connect(self._dsn)
        self._conn.execute(self._statement)

    def __exit__(self, *_: object) -> None:
        self._conn.rollback()
        self._conn.close()
