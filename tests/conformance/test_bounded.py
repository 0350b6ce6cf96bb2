"""What pages ask over and over of live runs, batches and minutes: it is what the views say, and costs the same however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from supervisor.dashboard import health
from supervisor.db.pages import Look
from supervisor.db.statements import Sql
from tests.conformance.filling import MADE, Filled, Row, read_by_a_viewer
from tests.harness import Server

LIVE = 30_000
FEW = 100  # rows that are looked at
# of ten runs three sleep, three wait for a signal, one is paused, one is parked for its code, one is ready, one is a worker's; a tenth of all in the second queue
_FILL = (
    "insert into supervisor.queue (name) values ('orders'), ('mail'), ('empty')",
    "insert into supervisor.workflow (name, queue) values ('order', 1), ('report', 2)",
    "insert into supervisor.batch (name, created_at) select 'b' || n, now() - n * interval '1 hour' from generate_series(1, 5) as n",
    """insert into supervisor.run (run_id, created_at, workflow, queue, prio, input, batch)
       select id, now() - interval '10 minutes' + n * interval '0.01 s', 1 + (n % 10 = 9)::int, 1 + (n % 10 = 9)::int, 5, '{}', case when n % 3 = 0 then 1 when n % 1000 = 1 then 2 end from made order by n""",
    """insert into supervisor.task (run_id, ready_at, queue, workflow, prio, owner, wait_kind, wait_since, step, version)
       select id, case when n % 10 < 3 then now() + interval '1 day' when n % 10 < 8 then 'infinity' else now() - interval '1 minute' end, 1 + (n % 10 = 9)::int, 1 + (n % 10 = 9)::int, 5,
              case when n % 10 = 9 then 1 end, (array[10, 10, 10, 11, 11, 11, 7, 20, 1, null])[n % 10 + 1], now(), 'charge', case when n % 2 = 0 then 'v1' end
       from made where n <= 15000""",
    """insert into supervisor.outcome (run_id, ended_at, steps, status, worker) select id, now() - interval '10 minutes' + n * interval '0.01 s', 1, 1 + (n % 100 = 1)::int, 1 from made where n > 15000 order by n""",
    "insert into supervisor.worker (boot, host, pid, supervisor) values (gen_random_uuid(), 'h', 1, gen_random_uuid())",
)
OF_LIVE: dict[str, tuple[Any, ...]] = {"look_at_waits": (FEW,), "page_queues": (FEW, 100), "page_worker_sizes": (FEW,), "page_versions": (FEW, 100), "metrics_waits": (FEW,)}


@pytest.fixture(scope="module")
def filled(server: Server) -> Iterator[Filled]:
    database = server.database()
    with database.connect() as conn:
        conn.execute(MADE, (LIVE,))
        for statement in _FILL:
            conn.execute(statement)
        conn.execute("vacuum analyze")
    with read_by_a_viewer(database) as made:
        yield made
    database.drop()


@pytest.mark.parametrize("name", OF_LIVE)
def test_a_question_about_live_runs_costs_what_it_may_look_at(filled: Filled, name: str) -> None:
    """Fifteen thousand live runs, a hundred looked at: of each reason and range, or of each queue its share. Asked for all, it reads many times that."""
    touched, all_of_it = (filled.blocks(Sql().get(name), most, *OF_LIVE[name][1:]) for most in (FEW, LIVE))
    rows = 8 * FEW if name in ("look_at_waits", "metrics_waits") else FEW  # four reasons, two ranges of ready ones, two of later ones
    assert touched < rows + 200 and touched < all_of_it / 2, f"{touched} blocks, of {all_of_it}"


@pytest.mark.parametrize("statistics", [True, False], ids=["analyzed", "stale"])
def test_reasons_are_read_by_their_index_whatever_is_believed_of_the_table(filled: Filled, statistics: bool) -> None:
    """By the primary key each reason was a look at all live runs: the planner took it where it believed that there are few, or that all wait for the same."""
    with filled.database.connect() as conn, conn.transaction(force_rollback=True):
        if not statistics:
            conn.execute("update pg_class set reltuples = 0, relpages = 0 where relname in ('task', 'task_pkey', 'task_wait_idx', 'task_ready_idx')")
            conn.execute("delete from pg_statistic where starelid = 'supervisor.task'::regclass")
        before = conn.execute("select pg_stat_get_xact_tuples_fetched('supervisor.task_pkey'::regclass) + pg_stat_get_xact_tuples_returned('supervisor.task_pkey'::regclass)").fetchone()
        conn.execute("select supervisor.wait_groups(100)").fetchall()
        returned = "select relname, pg_stat_get_xact_tuples_returned(oid) from pg_class where relname in ('task', 'task_pkey', 'task_wait_idx', 'task_ready_idx')"
        read = dict(conn.execute(returned).fetchall())
    assert before == (0,) and read["task"] == read["task_pkey"] == 0 and 0 < read["task_wait_idx"] <= 23 * 100 and 0 < read["task_ready_idx"] <= 3 * 10 * 300


def test_queues_are_as_the_view_has_them(filled: Filled) -> None:
    expected = filled.rows("select queue, ready, running, waiting, paused, oldest_ready_at from supervisor.queues order by queue")
    assert filled.rows("select queue, ready, running, waiting, paused, oldest_ready_at from supervisor.queue_sizes(100000)") == expected
    assert all(row["complete"] for row in filled.rows("select complete from supervisor.queue_sizes(100000)")) and len(expected) == 3


def test_queues_of_more_than_may_be_looked_at_are_at_least_so_many(filled: Filled) -> None:
    found = {row["queue"]: row for row in filled.rows("select * from supervisor.queue_sizes(300)")}
    assert {queue: row["complete"] for queue, row in found.items()} == {"empty": True, "mail": False, "orders": False}
    assert [sum(found[queue][status] for status in ("ready", "running", "waiting", "paused")) for queue in ("orders", "mail", "empty")] == [100, 100, 0]
    assert found["orders"]["ready"] == 100, "what is due comes first"


def test_workers_are_as_the_view_has_them(filled: Filled) -> None:
    (expected,) = filled.rows("select worker, runs from supervisor.workers")
    (found,) = filled.rows("select worker, runs, complete from supervisor.worker_sizes(100000)")
    assert (found["worker"], found["runs"], found["complete"]) == (expected["worker"], expected["runs"], True) and expected["runs"] == 1500
    (least,) = filled.rows("select runs, complete from supervisor.worker_sizes(300)")
    assert (least["runs"], least["complete"]) == (100, False)


def test_versions_are_as_the_view_has_them(filled: Filled) -> None:
    columns = "workflow, version, workers, hosts, live, running, code_missing, missing_since, source"
    expected = filled.rows(f"select {columns} from supervisor.versions where live > 0 order by workflow, version")
    found = filled.rows(f"select {columns} from supervisor.version_sizes(100000) order by workflow, version")
    assert found == expected and len(expected) == 3
    assert {row["complete"] for row in filled.rows("select complete from supervisor.version_sizes(300)")} == {False}


def test_batches_are_as_the_view_has_them(filled: Filled) -> None:
    columns = "batch, runs, ready, running, waiting, paused, completed, failed, cancelled, terminated, timed_out, continued, created_at, last_started_at, last_ended_at"
    expected = filled.rows(f"select {columns} from supervisor.batches order by created_at desc")
    assert filled.rows(f"select {columns} from supervisor.batch_sizes(rows_max => 100000)") == expected and expected[0]["runs"] == 10_000
    page = filled.rows("select batch, runs, complete from supervisor.batch_sizes(batches_max => 2, rows_max => 100)")
    assert [(row["batch"], row["runs"], row["complete"]) for row in page] == [("b1", 100, False), ("b2", 20, True)]
    later = filled.rows("select batch from supervisor.batch_sizes(before => %s, batches_max => 2)", expected[1]["created_at"])
    assert [row["batch"] for row in later] == ["b3", "b4"]
    assert [row["batch"] for row in filled.rows("select batch from supervisor.batch_sizes('b4')")] == ["b4"] and filled.rows("select batch from supervisor.batch_sizes('none')") == []


def test_a_batch_costs_what_may_be_looked_at(filled: Filled) -> None:
    few, all_of_it = (filled.blocks(f"select * from supervisor.batch_sizes('b1', rows_max => {rows})") for rows in (100, 100_000))
    assert few < 1500 < all_of_it


def test_a_page_of_batches_reads_those_that_are_on_it(filled: Filled) -> None:
    """Some of a moment, and of what was made before; whatever there is else."""
    before, name = "2026-11-30 10:00:00+00", "n 150"
    with filled.conn.transaction(force_rollback=True):
        filled.conn.execute("set local role none")
        filled.conn.execute("insert into supervisor.batch (name, created_at) select 'n ' || n, timestamptz '2026-11-30 10:00:00+00' - n / 400 * interval '1 s' from generate_series(0, 29999) as n")
        filled.conn.execute("analyze supervisor.batch")
        filled.conn.execute("set local role supervisor_viewer")
        page = "select batch from supervisor.batch_sizes(before => %s, before_name => %s, batches_max => 500)"
        names = [row["batch"] for row in filled.rows(page, before, name)]
        of_it = sorted((f"n {n}" for n in range(400) if f"n {n}" < name), reverse=True)
        assert names[: len(of_it)] == of_it and names[len(of_it)] == "n 799" and len(names) == 500
        few = "select batch from supervisor.batch_sizes(before => '2026-11-30 10:00:00+00', before_name => 'n 150', batches_max => 10, rows_max => 1)"
        assert filled.blocks(few) < 150, "all of them are more than 300"


# ── minutes ──────────────────────────────────────────────────────────────────────────────────────────────────────

BY_MINUTE = "select minute, sum(started)::int8 as started, sum(ended)::int8 as ended, sum(completed)::int8 as completed, (sum(failed) + sum(timed_out))::int8 as failed from supervisor.rates('1 hour') group by 1 order by 1"


def test_minutes_are_as_rates_has_them(filled: Filled) -> None:
    with filled.conn.transaction():
        expected = filled.rows(BY_MINUTE)
        found = filled.rows("select minute, started, ended, completed, failed, counted_s from supervisor.paces('1 hour', 100000)")
    assert [{name: row[name] for name in expected[0]} for row in found if row["started"] or row["ended"]] == expected and len(expected) >= 5
    whole = filled.database.one("select date_trunc('minute', now())")
    assert [row["minute"] for row in found] == [whole - timedelta(minutes=n) for n in range(len(found) - 1, -1, -1)] and len(found) in (60, 61)
    assert {row["counted_s"] for row in found[1:-1]} == {60.0}


def test_minutes_that_were_not_looked_at_have_no_row(filled: Filled) -> None:
    found = filled.rows("select minute, started, ended, counted_s from supervisor.paces('1 hour', 3000)")
    assert 1 <= len(found) < 10, "a hundred starts a second, ten minutes of them"
    whole = {row["minute"]: row for row in filled.rows(BY_MINUTE)}
    assert all(row["started"] == whole[row["minute"]]["started"] for row in found[1:] if row["minute"] in whole) and 0 < found[0]["counted_s"] < 60
    assert filled.blocks("select * from supervisor.paces('1 hour', 3000)") < filled.blocks("select * from supervisor.paces('1 hour', 100000)") / 2


def test_a_minute_that_is_over_is_counted_once_in_the_life_of_a_process(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pages of before have counted is asked for no more."""
    monkeypatch.setattr(health, "RATES_ROWS", 10 * LIVE)
    remembered: dict[str, Any] = {}
    look = Look(filled.conn, "supervisor", 5.0, remembered)
    first = health.rates(look, look.rows("page_rates", health.since(look), health.RATES_ROWS))
    assert 60 <= float(health.since(look).removesuffix(" s")) <= 240
    second = health.rates(look, look.rows("page_rates", health.since(look), health.RATES_ROWS))
    same = {row["minute"]: row for row in first}
    settled = datetime.now(timezone.utc) - timedelta(seconds=150)
    assert all(row == same[row["minute"]] for row in second[1:] if row["minute"] < settled) and len(second) >= 59
    assert sum(row["started"] for row in second) == LIVE
