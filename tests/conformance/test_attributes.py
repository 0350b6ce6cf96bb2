"""Runs are found by their attributes, typed, in any order, page by page, live or ended; by the same words in the client, the program and SQL."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from supervisor import AsyncClient, FilterInvalid, ReadTimeout, RunUnknown
from supervisor.core.filters import parse_list
from supervisor.db import look
from supervisor.db.statements import Sql
from tests.apps import marked as app
from tests.conformance.conftest import Live
from tests.harness import ROOT, Database

APP = "tests.apps.marked"
RUNS = 60
EPOCH = datetime(2026, 12, 1, tzinfo=UTC)
ALL = "workflow = marked AND attribute.set = {set}"


@pytest.fixture(scope="module")
def marked(live: Live) -> tuple[str, list[uuid.UUID]]:
    """Sixty runs: half of them wait, half have ended; the name of the set, and their ids by number."""
    name = uuid.uuid4().hex
    runs = []
    for n in range(RUNS):
        attributes: dict[str, Any] = {
            "set": name, "n": n, "amount": (n * 7 % RUNS) / 4, "even": n % 2 == 0, "due": EPOCH + timedelta(days=n), "city": f"{'ab'[n % 2]}-{n % 6}",
            "tags": [f"t{n % 3}", f"u{n % 5}"], "stage": "new", **({"rare": n} if n % 10 == 0 else {}), "mixed": n if n < 30 else f"x{n}",
        }  # fmt: skip
        runs.append(live.start(app.marked.options(attributes=attributes), n))
    live.until(lambda: live.database.one("select count(*) from supervisor.task where wait_kind = 11") == RUNS // 2, 40)
    live.until(lambda: live.database.one("select count(*) from supervisor.task") == RUNS // 2, 40)
    return name, [run.id for run in runs]


def numbers(live: Live, marked: tuple[str, list[uuid.UUID]], text: str, **how: Any) -> list[int]:
    name, ids = marked
    return [ids.index(info.run_id) for info in live.client.list(1000, filter=f"{ALL.format(set=name)} AND {text}", **how)]


def newest(*fits: Any) -> list[int]:
    return [n for n in reversed(range(RUNS)) if all(fit(n) for fit in fits)]


TESTS: list[tuple[str, Any]] = [
    ("attribute.n = 7", lambda n: n == 7),
    ("attribute.n != 7", lambda n: n != 7),
    ("attribute.n >= 50 AND attribute.n < 55", lambda n: 50 <= n < 55),
    ("attribute.n in (1, 2, 77)", lambda n: n in (1, 2)),
    ("attribute.amount <= 2.5", lambda n: (n * 7 % RUNS) / 4 <= 2.5),
    ("attribute.even = true", lambda n: n % 2 == 0),
    ("NOT attribute.even = true", lambda n: n % 2 == 1),
    ("attribute.due < 2026-12-11", lambda n: n < 10),
    ("attribute.due >= 2026-12-11T00:00:00+00:00", lambda n: n >= 10),
    ("attribute.due = 2026-12-03", lambda n: n == 2),
    ('attribute.city ^= "a-"', lambda n: n % 2 == 0),
    ("attribute.city in (a-0, b-1)", lambda n: n % 6 in (0, 1)),
    ("attribute.city > b", lambda n: n % 2 == 1),
    ("attribute.city ~ B-", lambda n: n % 2 == 1),
    ("attribute.tags = t1", lambda n: n % 3 == 1),
    ("attribute.tags in (t1, u4)", lambda n: n % 3 == 1 or n % 5 == 4),
    ("attribute.rare is null", lambda n: n % 10 != 0),
    ("attribute.rare is not null AND (attribute.n < 20 OR attribute.n = 50)", lambda n: n % 10 == 0 and (n < 20 or n == 50)),
    ("attribute.stage = waits", lambda n: n % 2 == 1),
    ("attribute.stage = new AND status = completed", lambda n: n % 2 == 0),
    ("attribute.stage = waits AND status = waiting AND NOT attribute.tags = t0", lambda n: n % 2 == 1 and n % 3 != 0),
    ("attribute.mixed = 5", lambda n: n == 5),
    ("attribute.mixed ^= x3", lambda n: 30 <= n < 40),
]


@pytest.mark.parametrize(("text", "fits"), TESTS, ids=[text for text, _ in TESTS])
def test_runs_are_found_by_typed_attributes(live: Live, marked: tuple[str, list[uuid.UUID]], text: str, fits: Any) -> None:
    """Numbers, booleans, times and texts compare as what they are; a list has its members."""
    assert numbers(live, marked, text) == newest(fits)


def _by_city(n: int) -> tuple[str, int]:
    return f"{'ab'[n % 2]}-{n % 6}", n


ORDERS: list[tuple[str, list[int]]] = [
    ("attribute.n > 5 ORDER BY attribute.amount DESC", sorted((n for n in range(6, RUNS)), key=lambda n: (n * 7 % RUNS, n), reverse=True)),
    ("attribute.even = false order by attribute.amount", sorted(newest(lambda n: n % 2), key=lambda n: (n * 7 % RUNS, n))),
    ("attribute.n >= 0 ORDER BY attribute.city ASC", sorted(range(RUNS), key=_by_city)),
    ("attribute.n >= 0 ORDER BY attribute.due DESC", list(reversed(range(RUNS)))),
    ("attribute.n >= 0 ORDER BY attribute.rare", [0, 10, 20, 30, 40, 50]),
    ("attribute.n >= 0 ORDER BY attribute.mixed", list(range(RUNS))),  # numbers, then texts
    ("attribute.n >= 0 ORDER BY attribute.mixed DESC", list(reversed(range(RUNS)))),
    ("attribute.amount >= 10 ORDER BY attribute.amount", sorted((n for n in range(RUNS) if n * 7 % RUNS >= 40), key=lambda n: n * 7 % RUNS)),
    ("attribute.n < 9 ORDER BY started ASC", list(range(9))),
    ("attribute.n < 9 ORDER BY started", list(reversed(range(9)))),
]


@pytest.mark.parametrize(("text", "expected"), ORDERS, ids=[text for text, _ in ORDERS])
def test_they_are_listed_in_an_order_page_by_page(live: Live, marked: tuple[str, list[uuid.UUID]], text: str, expected: list[int]) -> None:
    """Each page follows the last run of the one before; none is left out or listed twice."""
    name, ids = marked
    assert numbers(live, marked, text) == expected
    found: list[int] = []
    while page := live.client.list(7, filter=f"{ALL.format(set=name)} AND {text}", before=ids[found[-1]] if found else None):
        found += [ids.index(info.run_id) for info in page]
    assert found == expected


def test_the_program_asyncio_and_a_transaction_say_the_same(live: Live, marked: tuple[str, list[uuid.UUID]]) -> None:
    name, ids = marked
    text = f"{ALL.format(set=name)} AND attribute.n > 40 ORDER BY attribute.amount DESC"
    expected = [ids[n] for n in sorted((n for n in range(41, RUNS)), key=lambda n: (n * 7 % RUNS, n), reverse=True)][:5]
    words = [sys.executable, "-m", "supervisor", "list", text, "--limit", "5", "--json", "--dsn", live.database.dsn]
    rows = [json.loads(line) for line in subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()]
    assert [uuid.UUID(row["run_id"]) for row in rows] == expected
    assert rows[0]["attributes"]["set"] == name and rows[0]["progress"] is None

    async def by_asyncio() -> list[uuid.UUID]:
        async with AsyncClient(live.database.dsn) as client:
            return [info.run_id for info in await client.list(5, filter=text)]

    assert asyncio.run(by_asyncio()) == expected
    with live.database.connect() as conn, conn.transaction():
        assert [info.run_id for info in live.client.within(conn).list(5, filter=text)] == expected
    sql = "select run_id from supervisor.attributes where name = 'set' and text = %s order by run_id desc limit 3"
    assert [row[0] for row in live.database.sql(sql, name)] == ids[:-4:-1]


def test_what_a_run_changes_is_found_at_once_and_the_old_is_not(live: Live, marked: tuple[str, list[uuid.UUID]]) -> None:
    """Live and ended."""
    run = live.start(app.marked.options(attributes={"set": "changing"}), 1)
    assert run.result is not None
    live.until(lambda: [each.run_id for each in live.client.list(filter="attribute.set = changing AND attribute.stage = waits")] == [run.id], 20)
    run.signal(app.marked_go, 1)
    assert run.result(timeout=20) == 1
    assert live.client.list(filter="attribute.set = changing AND attribute.stage = waits") == []
    assert [each.run_id for each in live.client.list(filter="attribute.stage = over AND attribute.amount > 1000 ORDER BY attribute.amount")] == [run.id]


@pytest.mark.parametrize(
    ("text", "words"),
    [("order by attribute", "attribute.NAME"), ("order by key", "listed by started"), ("order attribute.x", "order"), ("attribute.x = 1 order by attribute.x up", "nothing more")],
)
def test_an_order_that_does_not_exist_is_refused(live: Live, text: str, words: str) -> None:
    with pytest.raises(FilterInvalid, match=words):
        live.client.list(filter=text)


def test_a_page_after_a_run_that_is_not_in_the_list_is_refused(live: Live, marked: tuple[str, list[uuid.UUID]]) -> None:
    with pytest.raises(RunUnknown, match="no attribute 'rare'"):
        live.client.list(filter="order by attribute.rare", before=marked[1][1])


# ── what it reads ────────────────────────────────────────────────────────────────────────────────────────────────

MANY = 50_000
_FILL = (
    "insert into supervisor.queue (name) values ('q')",
    "insert into supervisor.workflow (name, queue) values ('w', 1)",
    f"""create table many as select n, (substr(supervisor.id_floor(clock_timestamp() - ({MANY} - n) * interval '1 ms')::text, 1, 24) || lpad(to_hex(n), 12, '0'))::uuid as run_id
        from generate_series(1, {MANY}) as n""",
    """insert into supervisor.run (run_id, workflow, queue, prio, input, attributes)
       select run_id, 1, 1, 5, '{}', convert_to(json_build_object('n', n, 'tenant', 't' || n % 10, 'name', 'user-' || n)::text, 'UTF8') from many""",
    """insert into supervisor.attribute (run_id, name, n, kind, txt, num)
       select r.run_id, a.name, a.n, a.kind, a.txt, a.num from supervisor.run r, supervisor.attribute_rows(r.attributes) a""",
    "insert into supervisor.outcome (run_id, ended_at, steps, status) select run_id, clock_timestamp(), 1, 1 from many",
)
PLANS = [
    ("attribute.name = user-77", "name_txt_run_id", 100),
    ("attribute.name ^= user-777", "name_txt_run_id", 3000),
    ("attribute.n > 49990 AND status = completed", "name_num_run_id", 500),
    ("attribute.name in (user-1, user-2)", "name_txt_run_id", 200),
    ("order by attribute.n desc", "name_num_run_id", 1500),
    ("attribute.n < 1000 order by attribute.n desc", "name_num_run_id", 1500),
    ("attribute.tenant = t3 order by attribute.name", "name_txt_run_id", 5000),
    ("attribute.tenant = t3", "name_txt_run_id", 60_000),
]


@pytest.fixture(scope="module")
def many(live: Live) -> Any:
    database: Database = live.database.server.database()
    for statement in _FILL:
        database.sql(statement)
    database.sql("analyze supervisor.attribute")
    yield database
    database.drop()


@pytest.mark.parametrize(("text", "index", "rows_max"), PLANS, ids=[text for text, _, _ in PLANS])
def test_an_index_leads_to_the_page(many: Database, text: str, index: str, rows_max: int) -> None:
    """Of 50,000 ended runs with three attributes each: what is read is near to what is shown."""
    asked, order = parse_list(text)
    plans: list[dict[str, Any]] = []
    conn = psycopg.connect(many.dsn, autocommit=True, cursor_factory=psycopg.RawCursor)

    def ask(question: Any) -> Any:
        what, values = question
        said = what if isinstance(what, bytes) else Sql().get(what).encode()
        if b"list_ids" in said or b"MATERIALIZED" in said:
            plans.append(conn.execute(b"explain (analyze, timing off, format json) " + said, values).fetchone()[0][0]["Plan"])  # type: ignore[index]
        cursor = conn.execute(said, values)
        return cursor.fetchall() if cursor.description else []

    from supervisor.db.client_calls import carry

    with conn.transaction(force_rollback=True):
        rows = carry(look.talk("supervisor", "list_runs", asked, (None, 20), 30.0, order), ask)
    conn.close()
    assert rows
    scans = [node for plan in plans for node in _nodes(plan) if "Index Name" in node or node["Node Type"] == "Seq Scan"]
    used = {node.get("Index Name", node["Node Type"]) for node in scans if node["Actual Loops"]}
    assert any(name.startswith("attribute_") and index in name for name in used), used
    read = sum((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"] for node in scans)
    assert read <= rows_max, f"{read:.0f} rows, by {sorted(used)}"


def _nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *(inner for each in node.get("Plans", []) for inner in _nodes(each))]


def test_a_look_that_takes_too_long_is_given_up(many: Database) -> None:
    """In an order too: its time is the statement's."""
    asked, order = parse_list("input ~ nothing order by attribute.n")
    with psycopg.connect(many.dsn, autocommit=True) as conn, pytest.raises(ReadTimeout):
        look.runs(conn, "supervisor", asked, order=order, patience_s=0.05)
