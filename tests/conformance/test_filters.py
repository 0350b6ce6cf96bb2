"""Filters against a real history: what they find is what they say, and what they read is bounded whatever the history's size."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from supervisor.core.errors import ReadTimeout
from supervisor.core.filters import STATUSES, WAITS, parse, parse_list
from supervisor.db import filters, look
from supervisor.db.filters import FEW, Parameters, Sizes, key_rows, key_test
from supervisor.db.statements import Sql
from tests.conformance.filling import FILL, NUMBERED, OLD_PARTITIONS
from tests.harness import Database, Server

RUNS = 100_000
LIMIT = 20


@dataclass
class Filled:
    """A database of 100,000 runs, and a session that explains what is sent."""

    database: Database
    conn: psycopg.Connection[Any]
    index_of: dict[str, str]

    def id(self, n: int) -> uuid.UUID:
        found: uuid.UUID = self.database.one("select run_id from numbered where n = %s", n)
        return found

    def plan(self, text: str, limit: int = LIMIT, sizes: Sizes | None = None) -> Plan:
        asked = parse(text.format(parent=self.id(5001), run=self.id(500))) if text else None
        sent, values = look.statement("supervisor", "list_runs", asked, 3, sizes)
        return self.explained(sent.encode(), (None, limit, *values))

    def explained(self, sent: bytes, values: Sequence[object]) -> Plan:
        cursor = psycopg.RawCursor(self.conn)
        with self.conn.transaction():
            cursor.execute(Sql().get("list_settings").encode(), ("30000",))
            row = cursor.execute(b"explain (analyze, timing off, format json) " + sent, values).fetchone()
        assert row is not None
        return Plan(row[0][0]["Plan"], self.index_of)


@dataclass
class Plan:
    root: dict[str, Any]
    index_of: dict[str, str]

    def scans(self) -> Iterator[dict[str, Any]]:
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            waiting += node.get("Plans", [])
            if "Relation Name" in node or "Index Name" in node:
                yield node

    def indexes(self) -> set[str]:
        return {self.index_of.get(each["Index Name"], each["Index Name"]) for each in self.scans() if "Index Name" in each and each["Actual Loops"]}

    def rows_read(self) -> float:
        return sum((each["Actual Rows"] + each.get("Rows Removed by Filter", 0)) * each["Actual Loops"] for each in self.scans())

    def read_whole(self) -> set[str]:
        """Tables of the history that were read from end to end; task is small, whatever the history's size."""
        scanned = {each["Relation Name"] for each in self.scans() if each["Node Type"] == "Seq Scan" and each["Actual Loops"]}
        return {table for table in scanned if table.split("_")[0] in ("run", "outcome", "step", "child", "attempt")}


# of two steps: an error that 100 runs met at the one and 100 at the other, and one that 10,000 met
_TRIES = tuple(
    f"""insert into supervisor.attempt (run_id, seq, n, kind, started_at, ended_at, worker, name, error, fingerprint)
        select run_id, 2, 1, 1, at, at + interval '0.1 s', 1, '{step}', convert_to(json_build_object('type', 'shop.Declined', 'message', 'card ' || n)::text, 'UTF8'), '{fingerprint}' from numbered where n % {each} = {rest}"""
    for step, fingerprint, each, rest in (("charge", "rare", 1000, 500), ("book", "rare", 1000, 600), ("charge", "often", 10, 1))
)


@pytest.fixture(scope="module", params=["with statistics", "without statistics"])
def filled(server: Server, request: pytest.FixtureRequest) -> Iterator[Filled]:
    database = server.database()
    tables = "select oid::regclass::text from pg_class where relnamespace = 'supervisor'::regnamespace and relkind = 'r'"
    database.sql(OLD_PARTITIONS)
    for (table,) in database.sql(tables):  # none are taken behind the test's back
        database.sql(f"alter table {table} set (autovacuum_enabled = off)")
    database.sql(NUMBERED.format(runs=RUNS))
    database.sql("create unique index on numbered (n)")
    for statement in (*FILL, *_TRIES):
        database.sql(statement)
    if request.param == "with statistics":
        for table in ("run", "outcome", "task", "run_key", "child", "workflow", "queue", "batch", "schedule_fire", "attempt"):
            database.sql(f"analyze supervisor.{table}")
    index_of = dict(database.sql(
        "select child.relname, parent.relname from pg_inherits"
        " join pg_class child on child.oid = inhrelid join pg_class parent on parent.oid = inhparent where child.relkind = 'i'"))  # fmt: skip
    with database.connect() as conn:
        yield Filled(database, conn, index_of)
    database.drop()


LIVE = 2_000 * 4  # waits is read whole where live runs are asked for by their state, 4 tables per run
QUICK = [
    # filter, an index that must be used, rows that may be read at most
    ("", "run_pkey", 20 * LIMIT),
    ("run = {run}", "run_pkey", 20),
    ("key = order-500", "run_key_pkey", 40),
    ("key = order-500 AND workflow = checkout", "run_key_pkey", 40),
    ("key in (order-500, order-700)", "run_key_pkey", 60),
    ("parent = {parent}", "child_pkey", 60),
    ("status = failed", "outcome_unsuccessful_idx", 20 * LIMIT),
    ("status in (failed, timed_out) AND workflow = report", "outcome_unsuccessful_idx", 20 * LIMIT),
    ("status = timed_out", "outcome_unsuccessful_idx", 2_000),  # all that did not complete, until 20 of this kind are found
    ("error ~ declined", "outcome_unsuccessful_idx", 20 * LIMIT),
    ("error.type = shop.CardDeclined AND age > 1h", "outcome_unsuccessful_idx", 20 * LIMIT),
    ("fingerprint = rare", "attempt_fingerprint_idx", 2_000),  # all that met it, 200, are put in order
    ("fingerprint.charge = rare AND status = failed", "attempt_fingerprint_idx", 3_000),
    ("fingerprint.charge = often AND age < 1h", "", 25_000),  # by that index, or where nearly all errors are these by the one of their times
    ("fingerprint = nobody", "attempt_fingerprint_idx", 0),
    ("status = failed AND fingerprint is null", "outcome_unsuccessful_idx", 40 * LIMIT),
    ("status = completed", "run_pkey", 2_000 * 4),  # the newest 2,000 are live here
    ("status = waiting", "task_pkey", LIVE),
    ("wait = signal AND age > 1h", "task_pkey", LIVE),
    ("wait = signal AND waited > 5min", "task_pkey", LIVE),
    ("batch = nightly", "run_batch_idx", 4_000),  # the batch's 1,000 are put in order
    ("workflow = checkout", "run_pkey", 20 * LIMIT),
    ("workflow = rare AND age < 5min", "run_pkey", 1_100),
    ("age > 4h AND workflow = checkout", "run_pkey", 20 * LIMIT),
    ("workflow = nobody", "", 5),  # not one run is looked at
    ("workflow in (nobody, none) AND age > 1h", "", 5),
    ("workflow ~ nobo AND status = failed", "", 10),
    ("workflow = nobody AND status = waiting", "", 10),
    ("workflow = nobody AND key ^= order-", "", 10),
    ("schedule = often", "schedule_fire_run_idx", 20 * LIMIT),
    ("schedule = hourly AND status = completed", "schedule_fire_run_idx", 20 * LIMIT),
    ("schedule in (often, hourly) AND age > 1h", "schedule_fire_run_idx", 20 * LIMIT),
    ("schedule = nobody", "schedule_fire_run_idx", 0),
    ("schedule = often AND status = failed", "outcome_unsuccessful_idx", 40 * LIMIT),
    ("started < 2020-02-01", "", 0),  # no partition is looked at
    ("attribute.tenant = t4 AND age < 1h", "run_pkey", 100 * LIMIT),
]


@pytest.mark.parametrize(("text", "index", "rows_max"), QUICK, ids=[text or "all" for text, _, _ in QUICK])
def test_what_is_asked_often_reads_little(filled: Filled, text: str, index: str, rows_max: int) -> None:
    """Of 100,000 runs, with and without statistics: an index leads to the page, and the history is not read from end to end."""
    plan = filled.plan(text)
    assert index in plan.indexes() or not index, f"{plan.indexes()}"
    assert not plan.read_whole()
    assert plan.rows_read() <= rows_max, f"{plan.rows_read():.0f} rows, by {plan.indexes()}"


@pytest.mark.parametrize(("text", "rows_max"), [("key ^= order-9998", 60), ("key ^= nobody", 0), ("key ^= order-123 AND status = failed", 600)])
def test_few_keys_that_begin_so_are_found_by_an_index(filled: Filled, text: str, rows_max: int) -> None:
    """Also where there are none, for which the whole history was read. How many there are is asked first, by the same index."""
    plan = filled.plan(text, sizes=Sizes(keys=FEW))
    assert plan.indexes() & {"run_prefix_idx"} and plan.rows_read() <= rows_max, f"{plan.rows_read():.0f} rows, by {plan.indexes()}"
    assert not plan.read_whole()
    rows: list[Any] = []
    sent = Sql().get("list_key_size").replace("/*bounds*/", f"AND {key_rows(key_test(parse(text)), Parameters(rows, 2))}")  # type: ignore[arg-type]
    counted = filled.explained(sent.encode(), (FEW + 1, *rows))
    assert counted.indexes() <= {"run_prefix_idx", "workflow_pkey", "batch_pkey"} and counted.rows_read() <= 200


@pytest.mark.parametrize(("text", "rows_max"), [("schedule = hourly AND status = failed", 200 * 20), ("schedule = hourly AND status = running", 200 * 20)])
def test_a_schedule_that_started_few_leads_to_them_whatever_else_is_asked(filled: Filled, text: str, rows_max: int) -> None:
    """However many failed, or live. How many it started is asked first."""
    plan = filled.plan(text, sizes=Sizes(scheduled=FEW))
    assert "schedule_fire_run_idx" in plan.indexes() and plan.rows_read() <= rows_max, f"{plan.rows_read():.0f} rows, by {plan.indexes()}"
    assert not plan.read_whole()
    counted = filled.explained(Sql().get("list_schedule_size").encode(), (100, ["often", "hourly"]))
    assert len(counted.indexes()) == 1 and counted.indexes() <= {"schedule_fire_run_idx", "schedule_fire_pkey"} and counted.rows_read() <= 100


@pytest.mark.parametrize("text", ["key ^= order- AND queue = nowhere", "key ^= order- AND queue = orders AND started > 2020-01-01 ORDER BY started ASC", "key ^= order- AND error ~ card"])
def test_many_keys_that_begin_so_are_looked_through_by_slices(filled: Filled, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Together they find what one look finds; the time over, what was found is there, and where to go on."""
    asked, order = parse_list(text)
    whole = [row["run_id"] for row in look.runs(filled.conn, "supervisor", asked, limit=10_000, order=order)]
    monkeypatch.setattr(filters, "FEW", 100)
    sliced = look.runs(filled.conn, "supervisor", asked, limit=10_000, order=order)
    assert [row["run_id"] for row in sliced] == whole and sliced.reached is None
    monkeypatch.setattr(look, "SLICE_RUNS", 600)
    monkeypatch.setattr(look, "SLICE_RUNS_MAX", 600)
    found, after, pages = list[uuid.UUID](), None, 0
    while pages == 0 or after is not None:
        page = look.runs(filled.conn, "supervisor", asked, after=after, limit=10_000, patience_s=0.5, order=order)
        found, after, pages = [*found, *(row["run_id"] for row in page)], page.reached, pages + 1
    assert found == whole and pages > 1
    assert [row["run_id"] for row in look.runs(filled.conn, "supervisor", asked, limit=3, order=order)] == whole[:3]


def test_pages_of_one_schedule_go_on_where_the_one_before_ended(filled: Filled) -> None:
    """Both ways, whatever other schedules have started in between."""
    for text in ("schedule = hourly", "schedule = hourly ORDER BY started ASC"):
        asked, order = parse_list(text)
        found, after = list[uuid.UUID](), None
        while page := look.runs(filled.conn, "supervisor", asked, after=after, limit=40, order=order):
            found, after = [*found, *(row["run_id"] for row in page)], page[-1]["run_id"]
        expected = [run_id for (run_id,) in filled.database.sql("select id from supervisor.schedule_fire where schedule = 'hourly' and state < 3 order by id")]
        assert found == (expected if order else expected[::-1]) and len(found) > 100
        sent, values = look.statement("supervisor", "list_runs", asked, 3, order=order)
        deep = filled.explained(sent.encode(), (found[-21], LIMIT, *values))
        assert "schedule_fire_run_idx" in deep.indexes() and deep.rows_read() <= 20 * LIMIT


def test_a_slice_ends_by_the_order_of_ids(filled: Filled) -> None:
    """And within the times that are asked about; of a workflow that nobody has registered there is none."""
    for text, rows_max in (("key ^= order-", 500), ("key ^= order- AND age < 5min", 500), ("key ^= order- AND workflow = nobody", 2), ("key ^= order- AND started < 2020-02-01", 0)):
        plan = filled.explained(*look.slice_statement("supervisor", parse(text), (None, 500)))
        assert plan.indexes() <= {"run_pkey", "workflow_name_key", "queue_pkey"} and plan.rows_read() <= rows_max, (text, plan.rows_read(), plan.indexes())


def test_what_would_read_everything_is_given_up(filled: Filled) -> None:
    """Nobody's mistake holds the database up: the look ends, and says how to ask."""
    with pytest.raises(ReadTimeout, match="age < 1d"):
        look.runs(filled.conn, "supervisor", parse("input ~ 'in none of them'"), patience_s=0.05)
    assert filled.conn.execute("select 1").fetchone() == (1,), "the session is as before"
    assert filled.conn.execute("show statement_timeout").fetchone() == ("0",)


# ── what they find ───────────────────────────────────────────────────────────────────────────────────────────────

Row = dict[str, Any]


def _has(row: Row, name: str, *path: str) -> Any:
    value = row[name]
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _error(row: Row) -> str:
    return f"{row['error']['type']}: {row['error']['message']}" if row["error"] else ""


FOUND: list[tuple[str, Callable[[Row], bool]]] = [
    ("workflow = checkout", lambda row: row["workflow"] == "checkout"),
    ("workflow != checkout", lambda row: row["workflow"] != "checkout"),
    ("workflow in (report, rare)", lambda row: row["workflow"] in ("report", "rare")),
    ("queue ^= ord AND NOT workflow ~ CHECK", lambda row: row["queue"] == "orders" and row["workflow"] != "checkout"),
    ("key is null", lambda row: row["key"] is None),
    ("key ^= order-9998", lambda row: (row["key"] or "").startswith("order-9998")),
    ('key ^= "order-%"', lambda row: False),
    ("key = order-99990", lambda row: row["key"] == "order-99990"),
    ("key != order-99990", lambda row: row["key"] != "order-99990"),
    ("key in (order-99990, order-99980, x)", lambda row: row["key"] in ("order-99990", "order-99980")),
    ("key >= order-99990", lambda row: (row["key"] or "") >= "order-99990"),
    ("key = order-99990 OR key = order-99980", lambda row: row["key"] in ("order-99990", "order-99980")),
    ("status = failed OR wait = signal", lambda row: row["status"] == "failed" or row["wait"] == "signal"),
    ("status = failed AND wait = signal", lambda row: False),
    ("NOT (status = failed OR wait = signal)", lambda row: not (row["status"] == "failed" or row["wait"] == "signal")),
    ("wait is null", lambda row: row["wait"] is None),
    ("wait != signal", lambda row: row["wait"] != "signal"),
    ("error is null", lambda row: row["error"] is None),
    ("error is not null", lambda row: row["error"] is not None),
    ("error ~ CARDDECLINED", lambda row: "CardDeclined" in _error(row)),
    ('error ~ "100%_\\\\"', lambda row: "100%_\\" in _error(row)),
    ("error !~ CardDeclined", lambda row: "CardDeclined" not in _error(row)),
    ("error ^= shop.", lambda row: _error(row).startswith("shop.")),
    ("error.type = builtins.ValueError", lambda row: _has(row, "error", "type") == "builtins.ValueError"),
    ("fingerprint = rare", lambda row: row["input"]["order"] % 1000 in (500, 600)),
    ("fingerprint.charge in (rare, nobody)", lambda row: row["input"]["order"] % 1000 == 500),
    ("fingerprint.book != rare", lambda row: row["input"]["order"] % 1000 != 600),
    ("fingerprint is null AND workflow = checkout", lambda row: row["input"]["order"] % 10 != 1 and row["input"]["order"] % 1000 not in (500, 600) and row["workflow"] == "checkout"),
    ("fingerprint.charge is not null AND status = failed", lambda row: (row["input"]["order"] % 10 == 1 or row["input"]["order"] % 1000 == 500) and row["status"] == "failed"),
    ("error.place is null", lambda row: True),
    ("priority >= 7 AND priority != 8", lambda row: row["priority"] in (7, 9)),
    ("priority in (1, 2)", lambda row: row["priority"] in (1, 2)),
    ("steps = 3", lambda row: row["steps"] == 3),
    ("steps is null", lambda row: row["steps"] is None),
    ("step = charge AND attempt < 2", lambda row: row["step"] == "charge" and row["attempt"] < 2),
    ("worker = 1", lambda row: row["worker"] == 1),
    ("took > 90s", lambda row: (row["duration_s"] or 0) > 90),
    ("took <= 5s", lambda row: row["duration_s"] is not None and row["duration_s"] <= 5),
    ("NOT took <= 5s", lambda row: row["duration_s"] is None or row["duration_s"] > 5),
    ("parent is not null", lambda row: row["parent_id"] is not None),
    ("parent is null", lambda row: row["parent_id"] is None),
    ("batch = nightly", lambda row: row["batch"] == "nightly"),
    ("batch != nightly", lambda row: row["batch"] != "nightly"),
    ("attribute.tenant = t4", lambda row: _has(row, "attributes", "tenant") == "t4"),
    ("attribute.tenant != t4", lambda row: _has(row, "attributes", "tenant") != "t4"),
    ("attribute.tenant is null", lambda row: _has(row, "attributes", "tenant") is None),
    ("attribute.tenant in (t4, t8)", lambda row: _has(row, "attributes", "tenant") in ("t4", "t8")),
    ("attribute.n >= 99900", lambda row: (_has(row, "attributes", "n") or 0) >= 99900),
    ("attribute.n = 99900.0", lambda row: _has(row, "attributes", "n") == 99900),
    ('attribute.n = "99900"', lambda row: _has(row, "attributes", "n") == 99900),
    ("attribute.tenant > 5", lambda row: False),
    ('attribute.deep."first name" = 3', lambda row: _has(row, "attributes", "deep", "first name") == 3),
    ('attribute ~ "t12"', lambda row: "t12" in json.dumps(row["attributes"])),
    ("attribute is null", lambda row: row["attributes"] is None),
    ("input.big = true", lambda row: row["input"]["big"] is True),
    ("input.big != true", lambda row: row["input"]["big"] is not True),
    ("input.order < 99500 and input.name ^= x99", lambda row: row["input"]["order"] < 99500 and row["input"]["name"].startswith("x99")),
    ("result.ok = true", lambda row: _has(row, "result", "ok") is True),
    ("schedule = hourly", lambda row: row["schedule"] == "hourly"),
    ("schedule != often", lambda row: row["schedule"] != "often"),
    ("schedule in (often, hourly, nobody) AND workflow = checkout", lambda row: row["schedule"] in ("often", "hourly") and row["workflow"] == "checkout"),
    ("schedule is null", lambda row: row["schedule"] is None),
    ("schedule is not null OR key is not null", lambda row: row["schedule"] is not None or row["key"] is not None),
    ("schedule = often AND status = failed", lambda row: row["schedule"] == "often" and row["status"] == "failed"),
    ("schedule = often AND status = waiting", lambda row: row["schedule"] == "often" and row["status"] == "waiting"),
    ("workflow = nobody OR key = order-99990", lambda row: row["key"] == "order-99990"),
    ("NOT workflow = nobody", lambda row: True),
    *((f"status = {status}", lambda row, status=status: row["status"] == status) for status in STATUSES),  # type: ignore[misc]
    *((f"wait = {code}", lambda row, code=code: row["wait"] == code) for code in ("no_worker", "signal", "timer", "child")),  # type: ignore[misc]
]


@pytest.fixture(scope="module")
def everything(filled: Filled) -> list[Row]:
    """The newest runs as the view shows them, all that the filters below are asked about."""
    cursor = filled.conn.cursor(row_factory=dict_row)
    return cursor.execute("select * from supervisor.runs where run_id >= %s order by run_id desc", (filled.id(RUNS - 1500),)).fetchall()


@pytest.mark.parametrize(("text", "holds"), FOUND, ids=[text for text, _ in FOUND])
def test_a_filter_finds_exactly_what_it_says(filled: Filled, everything: list[Row], text: str, holds: Callable[[Row], bool]) -> None:
    """Compared run by run with the view, also where a run lacks what is asked for."""
    oldest = everything[-1]["created_at"].isoformat()
    found = look.runs(filled.conn, "supervisor", parse(f'({text}) AND started >= "{oldest}"'), limit=10_000)
    expected = [row["run_id"] for row in everything if holds(row)]
    assert [row["run_id"] for row in found] == expected
    assert sum(row["runs"] for row in look.counts(filled.conn, "supervisor", parse(f'({text}) AND started >= "{oldest}"'))) == len(expected)


AGES: list[tuple[str, Callable[[float], bool]]] = [
    ("age < 5min", lambda age: age < 300),
    ("age > 1h", lambda age: age > 3600),
    ("age >= 5min AND age <= 10min", lambda age: 300 <= age <= 600),
]


@pytest.mark.parametrize(("text", "holds"), AGES, ids=[text for text, _ in AGES])
def test_ages_are_counted_to_the_second(filled: Filled, text: str, holds: Callable[[float], bool]) -> None:
    """By the database's clock."""
    now: datetime = filled.database.one("select now()")
    found = {row["run_id"] for row in look.runs(filled.conn, "supervisor", parse(f"({text}) AND workflow = rare"), limit=10_000)}
    rows = filled.database.sql("select run_id, created_at from supervisor.runs where workflow = 'rare'")
    clear = [(run_id, (now - at).total_seconds()) for run_id, at in rows]
    for run_id, age in clear:
        if all(abs(age - edge) > 30 for edge in (300, 600, 3600)):
            assert (run_id in found) == holds(age), age


def test_started_and_waited_go_by_their_moments(filled: Filled) -> None:
    middle: datetime = filled.database.one("select at from numbered where n = 50000")
    for text, count in ((f'started >= "{middle.isoformat()}"', 50_001), (f'started < "{(middle + timedelta(milliseconds=1)).isoformat()}"', 50_000)):
        assert abs(sum(row["runs"] for row in look.counts(filled.conn, "supervisor", parse(text))) - count) <= 1, text
    waited = look.ids(filled.conn, "supervisor", parse("waited > 25min"), limit=10_000)  # no run gets as old as that within minutes
    assert set(waited) == {run_id for (run_id,) in filled.database.sql("select run_id from supervisor.waits where since < now() - interval '25 min'")} and waited


def test_every_reason_for_waiting_can_be_asked_for(database: Database) -> None:
    """The closed list of the grammar is the database's."""
    assert list(WAITS) == [code for (code,) in database.sql("select code from supervisor.wait_kind order by id")]
