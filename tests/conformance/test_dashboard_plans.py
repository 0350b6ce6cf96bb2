"""What pages ask reads an index and a few rows, however long the history: a page that scans it would hurt whoever works on it."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

import psycopg
import pytest

from supervisor.db.history import TREE, Place
from supervisor.db.statements import Sql, blocks
from tests.conformance.filling import MADE
from tests.harness import Database, Server

RUNS = 20_000
SQL = Sql()
_FILL = (
    "insert into supervisor.queue (name) values ('q')",
    "insert into supervisor.workflow (name, queue) select 'w', id from supervisor.queue where name = 'q'",
    "insert into supervisor.run (run_id, workflow, queue, prio, input) select id, 1, 1, 5, '{}' from made",
    "insert into supervisor.task (run_id, ready_at, queue, workflow, wait_kind, step, seq) select id, 'infinity', 1, 1, 11, 'go', 3 from made where n % 10 = 0",
    "insert into supervisor.outcome (run_id, ended_at, worker, steps, status) select id, now(), 1, 3, 1 + (n % 100 = 1)::int from made where n % 10 > 0",
    "insert into supervisor.step select id, now(), now(), s, s, 1, 1, 1, 'some step', '1' from made, generate_series(0, 2) as s",
    "insert into supervisor.attempt select id, 3, 1, 1, now(), now(), now(), 1, 'some step', '{}', 'f' from made",
    "insert into supervisor.message select id, 1, n, now(), 'go', null, '1' from made",
    "insert into supervisor.publication select id, now(), 1, 'k', '1' from made",
    "insert into supervisor.child select id, 4, id from made",
    "insert into supervisor.schedule (name, workflow, every_us) select 's' || g, 'w', 1000000 from generate_series(1, 10000) g",
    "insert into supervisor.schedule_fire (schedule, tick_at, id, kind, state) select 's1', now() - n * interval '1 s', id, 1, 1 from made",
    "insert into supervisor.schedule_miss (schedule, from_at, until_at, ticks) select 's1', now() - n * interval '7 s', now(), 1 from made where n % 4 = 0",
    "insert into supervisor.audit (run_id, verb, login, details) select id, 'schedule_pause', 'x', jsonb_build_object('schedule', 's' || n % 400) from made",
)
# of one run, of a page of a list
OF_A_RUN: dict[str, tuple[Any, ...]] = {
    "show_run": (), "show_wait": (), "page_steps_before": (None, 100, 2000), "page_steps_from": (0, 100, 2000), "page_attempts": ([0, 1, 2], 0, None, None, 1000), "page_steps_during": (datetime(2026, 1, 1, tzinfo=timezone.utc), datetime(2100, 1, 1, tzinfo=timezone.utc), 0, 100, 2000, 10_000), "page_kinds": (), "page_backoffs": (datetime.now(timezone.utc),),
    "page_step": (1,), "page_signals": (50, 2000), "page_tokens": (50,), "page_compensations": (50,), "page_children": (100,), "show_above": (32,), "show_below": TREE, "show_published": (), "page_updates": (50,),
    "show_heartbeats": (), "show_pause": (), "show_cancellations": (), "show_schedule": (), "show_goes_on": (),
}  # fmt: skip
AMONG = Place(datetime.now(timezone.utc), 10_000, UUID(int=0), "pause")  # deeds, all of them of about one moment
OF_LISTS: dict[str, tuple[Any, ...]] = {"show_audit": (None, None, *AMONG, 100), "page_worker_steps": (500,), "page_schedules": ("s5", 100), "page_schedule_fires": ("s1", datetime(2100, 1, 1, tzinfo=timezone.utc), 100), "show_schedule_audit": ("s1", None, *AMONG, 100)}
BY_KEY = {name: values for name, values in OF_LISTS.items() if "schedule" in name or "audit" in name}
HISTORY = ("schedule", "audit_2", "run_2", "step_2", "outcome_2", "attempt_2", "message_2", "publication_2", "child_2")
# what reads more by its nature, and is bounded by live runs, workers or the catalogue
OTHERS = {"page_settings", "page_rights", "page_pulse", "page_rates", "page_errors", "page_leader", "page_database", "page_horizon", "page_batches", "page_batch", "page_storage", "page_saved", "page_differences", "page_queues", "page_workers", "page_worker_sizes", "page_versions", "page_workflows"}


@pytest.fixture(scope="module")
def filled(server: Server) -> Any:
    database: Database = server.database()
    with database.connect() as conn:
        conn.execute(MADE, (RUNS,))
        for statement in _FILL:
            conn.execute(statement)
        conn.execute("vacuum analyze")
        yield conn
    database.drop()


def scans(plan: dict[str, Any]) -> list[tuple[str, float]]:
    """Relations of the history that are read whole, and all rows that were looked at."""
    found = [(plan["Relation Name"], plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0))] if plan["Node Type"] == "Seq Scan" and plan["Relation Name"].startswith(HISTORY) and plan.get("Actual Loops") else []
    return found + [each for part in plan.get("Plans", []) for each in scans(part)]


@pytest.mark.parametrize("name", [*OF_A_RUN, *OF_LISTS])
def test_a_page_scans_no_history(filled: psycopg.Connection[Any], name: str) -> None:
    run = filled.execute("select id from made where n = 10000").fetchone()[0]  # type: ignore[index]
    values = (run, *OF_A_RUN[name]) if name in OF_A_RUN else OF_LISTS[name]
    with filled.transaction(force_rollback=True):
        filled.execute("set local role supervisor_viewer")
        rows = psycopg.RawCursor(filled).execute(f"explain (analyze, format json) {SQL.get(name)}".encode(), values).fetchall()
    found = [(relation, rows) for relation, rows in scans(rows[0][0][0]["Plan"]) if rows > 1000]
    assert not found, json.dumps(rows[0][0], indent=1)[:3000]


def read(plan: dict[str, Any]) -> float:
    """Rows that its scans looked at, each time that they were made."""
    own = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"] if "Relation Name" in plan else 0
    return float(own + sum(read(part) for part in plan.get("Plans", [])))


@pytest.mark.parametrize("name", BY_KEY)
def test_a_page_that_goes_on_by_key_reads_its_rows_alone(filled: psycopg.Connection[Any], name: str) -> None:
    """Whatever there is before and after: no sorting of all ticks of a year for the last hundred."""
    with filled.transaction(force_rollback=True):
        filled.execute("set local role supervisor_viewer")
        rows = psycopg.RawCursor(filled).execute(f"explain (analyze, format json) {SQL.get(name)}".encode(), BY_KEY[name]).fetchall()
    assert read(rows[0][0][0]["Plan"]) < 1500, json.dumps(rows[0][0], indent=1)[:6000]


def test_what_goes_on_with_a_run_is_found_by_an_index_from_either_end(filled: psycopg.Connection[Any]) -> None:
    """Of two thousand that continued the one that named it, and no other."""
    with filled.transaction(force_rollback=True):
        filled.execute(
            "insert into supervisor.outcome (run_id, ended_at, worker, steps, status, result)"
            " select id, now(), 1, 1, 6, convert_to(to_json(lead(id, 1, id) over (order by n))::text, 'UTF8') from made where n % 10 = 0"
        )
        filled.execute("analyze supervisor.outcome")
        before, run, after = (row[0] for row in filled.execute("select id from made where n in (9990, 10000, 10010) order by n").fetchall())
        filled.execute("set local role supervisor_viewer")
        filled.execute("select supervisor.goes_on(%s)", (run,)).fetchall()  # the catalogue is in its caches
        plan = filled.execute("explain (analyze, buffers, format json) select * from supervisor.goes_on(%s)", (run,)).fetchall()[0][0][0]["Plan"]
        assert dict(filled.execute("select how, run_id from supervisor.goes_on(%s)", (run,)).fetchall()) == {"continued as": after, "goes on from": before}
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 60


def test_two_histories_are_compared_by_their_index(filled: psycopg.Connection[Any]) -> None:
    """A fork is compared with one run, not with all."""
    one, another = (row[0] for row in filled.execute("select id from made where n in (5000, 10000) order by n").fetchall())
    with filled.transaction(force_rollback=True):
        filled.execute("set local role supervisor_viewer")
        rows = psycopg.RawCursor(filled).execute(f"explain (analyze, format json) {SQL.get('page_differences')}".encode(), (one, another, 0, 1000, 20, 2000)).fetchall()
    assert [each for each in scans(rows[0][0][0]["Plan"]) if each[1] > 1000] == []


def test_every_statement_of_the_pages_is_looked_at_here() -> None:
    assert {name for name, block in blocks().items() if block.file == "dashboard.sql" and not name.startswith("form_")} == {name for name in (*OF_A_RUN, *OF_LISTS) if name.startswith("page_")} | OTHERS
