"""What pages, `top` and operators ask of all runs at once: it is what one would count by hand, and what it reads is bounded whatever the history's size."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from supervisor.db.history import TREE
from supervisor.db.statements import Sql
from tests.conformance.filling import FILL, NUMBERED, OLD_PARTITIONS, Filled, Row, read_by_a_viewer
from tests.harness import Server

RUNS = 30_000  # one every 0.3 s: two and a half hours

_TRIES = (
    """insert into supervisor.attempt (run_id, seq, n, kind, started_at, ended_at, worker, name, error, fingerprint)
       select run_id, 2, 1, 1, at, at + interval '0.1 s', 1, case when n % 100 = 50 then 'book' else 'charge' end,
              convert_to(json_build_object('type', 'shop.Declined', 'message', 'card ' || n)::text, 'UTF8'), 'f' || n / 50 % 3
       from numbered where n % 50 = 0""",
    """insert into supervisor.attempt (run_id, seq, n, kind, started_at, ended_at, worker, name, error, fingerprint)
       select run_id, 2, 1, 3, at, at + interval '0.2 s', 1, 'charge', '{"signal": "SIGKILL"}', 'crash' from numbered where n % 1000 = 0""",
    "insert into supervisor.attempt (run_id, seq, n, kind, started_at, worker, name) select run_id, 3, 1, 2, at, 1, 'once' from numbered where n % 100 = 0",
)


@pytest.fixture(scope="module")
def filled(server: Server) -> Iterator[Filled]:
    database = server.database()
    database.sql(OLD_PARTITIONS)
    database.sql(NUMBERED.format(runs=RUNS))
    database.sql("create unique index on numbered (n)")
    for statement in (*FILL, *_TRIES):
        database.sql(statement)
    # one that was started 12 days ago, in an older partition, and ended two minutes ago
    old = "supervisor.id_floor(date_bin('7 days', now() - interval '2 minutes', '2020-01-01 00:00:00+00') - interval '1 hour')"
    database.sql(f"insert into supervisor.run (run_id, created_at, workflow, queue, prio, input) select {old}, now() - interval '7 days', 3, 2, 5, '{{}}'")
    database.sql(f"insert into supervisor.outcome (run_id, ended_at, steps, status, worker) select {old}, now() - interval '2 minutes', 1000, 1, 1")
    with read_by_a_viewer(database) as made:
        yield made
    database.drop()


# ── how much begins and ends ─────────────────────────────────────────────────────────────────────────────────────


def by_hand(filled: Filled, until: datetime, minutes: int) -> list[tuple[Any, ...]]:
    """Starts and ends of the minutes before *until*, counted from end to end of the tables."""
    return filled.database.sql(
        """
        with both_ways as (
            select created_at as at, workflow, null::int2 as status, 0 as steps from supervisor.run
            union all select o.ended_at, r.workflow, o.status, o.steps from supervisor.outcome o join supervisor.run r using (run_id))
        select date_trunc('minute', at) as minute, w.name, count(*) filter (where status is null), count(status), count(*) filter (where status = 1),
               count(*) filter (where status = 2), sum(steps)::int8
        from both_ways b join supervisor.workflow w on w.id = b.workflow
        where at >= %s - %s * interval '1 minute' and at < %s group by 1, 2 order by 1, 2
        """, until, minutes, until)  # fmt: skip


def counted(filled: Filled, until: datetime, minutes: int, rows_max: int = 100_000) -> list[tuple[Any, ...]]:
    with psycopg.connect(filled.database.dsn, autocommit=True) as conn:
        return conn.execute(
            """
            select minute, workflow, sum(started)::int8, sum(ended)::int8, sum(completed)::int8, sum(failed)::int8, sum(steps)::int8
            from supervisor.rates(now() - %s + %s * interval '1 minute', %s)
            where minute < %s and counted_s = 60 group by 1, 2 order by 1, 2""", (until, minutes, rows_max, until)).fetchall()  # fmt: skip


@pytest.fixture
def until(filled: Filled) -> datetime:
    """The end of the last whole minute."""
    found: datetime = filled.database.one("select date_trunc('minute', now())")
    return found


def test_rates_are_what_one_counts_by_hand(filled: Filled, until: datetime) -> None:
    """By the minute in which a run ended, whenever it had begun: also the one of another partition."""
    expected = by_hand(filled, until, 30)
    assert len({row[0] for row in expected}) == 30 and sum(row[2] for row in expected) > 5_000
    assert counted(filled, until, 30) == expected
    assert [row for row in expected if row[1] == "rare" and row[6] >= 1000]


def test_rates_of_more_than_they_may_look_at_are_those_of_the_newest_minutes(filled: Filled, until: datetime) -> None:
    """200 runs a minute, 1,000 of each looked at: about four minutes are whole, and the oldest one says how much of it was counted."""
    expected = by_hand(filled, until, 30)
    found = counted(filled, until, 30, rows_max=1000)
    assert 2 <= len({row[0] for row in found}) <= 5
    assert found == [row for row in expected if row[0] >= found[0][0]]
    partly = filled.rows("select distinct minute, counted_s from supervisor.rates('30 minutes', 1000) order by minute")
    assert 0 < partly[0]["counted_s"] < 60 and {row["counted_s"] for row in partly[1:-1]} == {60.0}


def test_rates_read_what_they_count_and_no_more(filled: Filled) -> None:
    whole = filled.database.one("select sum(pg_relation_size(relid)) / 8192 from pg_partition_tree('supervisor.outcome') where isleaf")
    assert filled.blocks("select * from supervisor.rates('1 second')") < whole / 2 + 100, "from the end, whatever lies before"
    few, all_of_it = (filled.blocks(f"select * from supervisor.rates('{time}', {rows})") for time, rows in (("5 hours", 1000), ("5 hours", 100_000)))
    assert few < all_of_it / 8


# ── what fails where ─────────────────────────────────────────────────────────────────────────────────────────────


def test_errors_are_grouped_by_what_they_are_and_where(filled: Filled) -> None:
    """Count, runs, how many of them live, first and last, a sample that is the newest; the first time is of the whole history."""
    groups = filled.rows("select * from supervisor.error_groups('1 hour') where source = 'step'")
    expected = filled.database.sql(
        """
        select a.fingerprint, a.name, count(*), count(distinct a.run_id), count(distinct t.run_id), max(a.ended_at),
               (select min(b.ended_at) from supervisor.attempt b where b.fingerprint = a.fingerprint),
               (select b.run_id from supervisor.attempt b where b.fingerprint = a.fingerprint and b.name = a.name and b.kind in (1, 3) order by b.ended_at desc limit 1)
        from supervisor.attempt a left join supervisor.task t using (run_id)
        where a.kind in (1, 3) and a.ended_at > now() - interval '1 hour' group by 1, 2
        """)  # fmt: skip
    found = {(g["fingerprint"], g["step"]): g for g in groups}
    assert len(groups) == len(found) == len(expected) == 7
    for fingerprint, step, failures, runs, live, last, first, sample in expected:
        group = found[fingerprint, step]
        assert abs(group["failures"] - failures) <= 1 and abs(group["runs"] - runs) <= 1 and group["live"] == live, "a moment may have passed"
        assert (group["ended"], group["last_at"], group["first_at"], group["run_id"]) == (group["runs"] - live, last, first, sample)
        assert first < last - filled.database.one("select interval '2 hours'") and group["workflow"] == "checkout"
        assert group["type"] == (None if fingerprint == "crash" else "shop.Declined") and group["counted_from"] is not None


def test_runs_that_failed_without_a_try_are_groups_too(filled: Filled) -> None:
    """Workflow code that raises, timeouts: by type, for nobody stored a fingerprint of theirs."""
    groups = filled.rows("select * from supervisor.error_groups('5 hours', 100000) where source = 'run'")
    assert {(g["workflow"], g["type"]) for g in groups} == {("report", "shop.CardDeclined"), ("report", "builtins.ValueError"), ("checkout", None)}
    failed = filled.database.one("select count(*) from supervisor.outcome o where status in (2, 5) and not exists (select from supervisor.attempt a where a.run_id = o.run_id and kind in (1, 3))")
    assert sum(g["failures"] for g in groups) == failed and all(g["live"] == 0 and g["ended"] == g["failures"] for g in groups)


def test_the_newest_errors_page_by_page(filled: Filled) -> None:
    """As errors has them; of all, or of one fingerprint."""
    for fingerprint in (None, "f1"):
        pages, before = [], None
        for _ in range(3):
            page = filled.rows("select * from supervisor.newest_errors(%s, %s, 10)", fingerprint, before)
            before = page[-1]["at"]
            pages += page
        expected = filled.rows("select * from supervisor.errors where source = 'attempt' and (%s::text is null or fingerprint = %s) order by at desc limit 30", fingerprint, fingerprint)
        assert pages == expected and len(pages) == 30


def test_pages_of_errors_read_a_page(filled: Filled) -> None:
    tries = filled.database.one("select count(*) from supervisor.attempt")
    for query in ("select * from supervisor.newest_errors(rows_max => 10)", "select * from supervisor.newest_errors('f1', rows_max => 10)"):
        assert filled.blocks(query) < 150 < tries
    assert filled.blocks("select * from supervisor.error_groups('5 hours', 10)") < 3_000


@pytest.mark.parametrize(
    ("condition", "index"),
    [("at > now() - interval '1 minute'", "ended_at_idx"), ("fingerprint = 'f1' and at > now() - interval '1 minute'", "fingerprint_ended_at_idx")],
)
def test_errors_of_a_time_are_found_by_an_index(filled: Filled, condition: str, index: str) -> None:
    """Of what is in the history a minute is read: no try of another time, no step."""
    with filled.database.connect() as conn:
        conn.execute("analyze supervisor.attempt")
        query = f"explain (analyze, timing off, format json) select type, step, count(*) from supervisor.errors where source = 'attempt' and {condition} group by 1, 2"
        (row,) = conn.execute(query).fetchone() or ()
    todo, scans = [row[0]["Plan"]], []
    while todo:
        node = todo.pop()
        todo += node.get("Plans", [])
        scans += [node] if node.get("Relation Name", "").startswith(("attempt", "step", "outcome")) else []
    assert all(node["Relation Name"].startswith("attempt") for node in scans)
    assert sum(node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in scans) < 20
    todo = [row[0]["Plan"]]
    names = set()
    while todo:
        node = todo.pop()
        todo += node.get("Plans", [])
        names.add(node.get("Index Name", ""))
    assert any(name.endswith(index) for name in names), names


# ── one run of many ──────────────────────────────────────────────────────────────────────────────────────────────

SHOWN: dict[str, tuple[Any, ...]] = {  # block → its parameters; "parent": a run with five children, "child": one of them
    "show_run": ("parent",), "show_wait": ("live",), "show_steps": ("parent", 1000), "show_attempts": ("parent", 1000), "show_children": ("parent", 1000),
    "show_signals": ("parent", 1000), "show_above": ("child", 20), "show_below": ("parent", *TREE), "show_usual": ("rare", 2000, None), "show_alike": ("f1", "parent", 100),
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_what_show_asks_is_answered_by_indexes(filled: Filled, name: str) -> None:
    """A page about one run costs the same beside ten runs and beside ten million: what is read is a small part of this history."""
    runs = dict(zip(("parent", "child", "live"), filled.database.sql("select a.run_id, b.run_id, c.run_id from numbered a, numbered b, numbered c where a.n = 5001 and b.n = 5003 and c.n = 29999")[0]))
    cursor = psycopg.RawCursor(filled.conn, row_factory=dict_row)
    with filled.conn.transaction(force_rollback=True):
        cursor.execute(Sql().get("list_settings").encode(), ("30000",))
        query = f"explain (analyze, buffers, timing off, format json) {Sql().get(name)}"
        row = cursor.execute(query.encode(), tuple(runs.get(value, value) for value in SHOWN[name])).fetchone()
    assert row is not None
    todo, scans = [row["QUERY PLAN"][0]["Plan"]], []
    plan = todo[0]
    while todo:
        node = todo.pop()
        todo += node.get("Plans", [])
        scans += [node] if "Relation Name" in node and node["Actual Loops"] else []
    history = [node for node in scans if node["Relation Name"].split("_")[0] in ("run", "outcome", "step", "attempt", "child", "message")]
    assert not [node["Relation Name"] for node in history if node["Node Type"] == "Seq Scan"]
    assert all(node["Actual Rows"] + node.get("Rows Removed by Filter", 0) <= 2_000 for node in history)
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < (6_000 if name == "show_usual" else 600)


# ── what waits for what ──────────────────────────────────────────────────────────────────────────────────────────


def test_live_runs_are_grouped_by_what_they_wait_for(filled: Filled) -> None:
    """As waits has them, one by one; of those that are executed for less than a second there is nothing to say."""
    groups = filled.rows("select code, workflow, queue, step, runs, complete, run_id, since from supervisor.wait_groups(10000)")
    expected = filled.rows("select code, workflow, queue, step, count(*) as runs from supervisor.waits where code is not null group by 1, 2, 3, 4")
    key = lambda row: (row["code"], row["workflow"], row["queue"], row["step"] or "", row["runs"])  # noqa: E731
    assert sorted(map(key, groups)) == sorted(map(key, expected)) and len(groups) >= 3 and all(row["complete"] for row in groups)
    for row in groups:
        (sample,) = filled.rows("select code, workflow, step, since from supervisor.waits where run_id = %s", row["run_id"])
        assert (sample["code"], sample["workflow"], sample["step"]) == (row["code"], row["workflow"], row["step"])


def test_more_than_may_be_looked_at_are_at_least_so_many(filled: Filled) -> None:
    groups = filled.rows("select * from supervisor.wait_groups(5)")
    assert groups and not all(row["complete"] for row in groups)
    assert {row["code"] for row in groups} == {row["code"] for row in filled.rows("select code from supervisor.waits where code is not null")}
    assert filled.blocks("select * from supervisor.wait_groups(5)") + 100 < filled.blocks("select * from supervisor.wait_groups(10000)")


def test_runs_of_workers_are_counted_by_one_look_at_the_live_ones(filled: Filled) -> None:
    """There is a row for every life that a worker ever had; counting for each of them alone took as many looks at all live runs."""
    filled.database.sql("insert into supervisor.worker (boot, host, pid, supervisor, dead_at) select gen_random_uuid(), 'h', n, gen_random_uuid(), now() from generate_series(1, 300) as n")
    (held,) = filled.database.sql("select owner, count(*) from supervisor.task where owner is not null group by owner")
    assert [tuple(row.values()) for row in filled.rows("select worker, runs from supervisor.workers where runs > 0")] == [held]
    assert len(filled.rows("select runs from supervisor.workers")) == 300
    for columns, looks in (("*", 1), ("worker, state", 0)):
        plan = json.dumps(filled.explained(f"select {columns} from supervisor.workers"))
        assert plan.count('"Relation Name": "task"') == looks
        assert not looks or re.search(r'"Relation Name": "task"[^{}]*"Actual Loops": 1[,}]', plan)


def test_every_reason_says_who_can_act(filled: Filled) -> None:
    """Whoever adds one has to say so; in waits the command has the run's own id."""
    assert filled.database.sql("select code from supervisor.wait_kind where who = '' or freed_by = ''") == []
    (row,) = filled.rows("select run_id, who from supervisor.waits where code = 'timer' limit 1")
    assert f"python -m supervisor cancel {row['run_id']}" in row["who"]
    assert filled.database.sql("select run_id from supervisor.waits where who is null or who ~ 'RUN|SEQ'") == []


def test_no_row_fails_them(filled: Filled) -> None:
    """Errors that are no JSON, without a fingerprint, of a workflow that is not known."""
    filled.database.sql(
        "insert into supervisor.attempt (run_id, seq, n, kind, started_at, ended_at, worker, name, error) "
        "select run_id, 9, t.n, 1, now(), now(), 1, 'odd', '\\xff00'::bytea from numbered, generate_series(1, 2) as t (n) where numbered.n = 100"
    )
    filled.database.sql("insert into supervisor.task (run_id, ready_at, queue, workflow, wait_kind, step) values (supervisor.new_id(), 'infinity', 999, 999, 19, e'\\x01')")
    fell = "update supervisor.outcome set result = %s where run_id = (select run_id from numbered where n = %s)"
    for n, payload in enumerate((b"\xff", b"[1]", b'"x"', b'{"type": 1, "message": {}, "traceback": "' + b'File \\"' * 100_000 + b'"}', b"{", None)):
        filled.database.sql(fell, payload, 29_000 + 207 - n * 200)
    (odd,) = filled.rows("select * from supervisor.error_groups('1 hour') where step = 'odd'")
    assert (odd["failures"], odd["runs"], odd["fingerprint"], odd["type"], odd["message"]) == (2, 1, "", None, None)
    assert "unreadable" in filled.rows("select error from supervisor.newest_errors(rows_max => 1)")[0]["error"]
    assert [(row["runs"], row["workflow"]) for row in filled.rows("select * from supervisor.wait_groups() where code = 'nondeterminism'")] == [(1, None)]
    assert filled.rows("select * from supervisor.rates('1 minute')")
    groups = filled.rows("select type, sum(failures) as n from supervisor.error_groups('1 hour') where source = 'run' and workflow = 'report' group by 1")
    assert {(row["type"], int(row["n"])) for row in groups} >= {("1", 1), (None, 5)}
