"""Filters on what is live: among 100,000 live runs the few that are asked for are found by an index, whatever the others do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from supervisor.core.errors import ReadTimeout
from supervisor.core.filters import LIVE, WAITS, parse
from supervisor.db import filters, look
from supervisor.db.statements import Sql
from tests.conformance.test_filters import Plan
from tests.harness import Database, Server

RUNS = 100_000
LIMIT = 20
# wait_kind, whether a worker has it, when its time is, how many; and 100,000 others
FEW = (
    (None, True, "-1 hour", 300), (None, False, "-1 min", 200), (1, False, "-1 s", 30), (8, True, "-1 hour", 5), (None, False, "1 hour", 50), (10, False, "1 day", 100),
    (10, False, "-1 s", 7), (7, False, "infinity", 20), (20, False, "infinity", 10), (21, False, "infinity", 3), (14, False, "infinity", 30), (9, False, "1 min", 15),
    (15, False, "2 days", 8),
)  # fmt: skip
OTHERS = {"all wait": (11, False, "infinity"), "all are due": (None, False, "-10 min"), "all have a time": (11, False, "3 days")}

_IDS = """
create table numbered as select n, (substr(supervisor.id_floor(clock_timestamp() - interval '1 hour' + n * interval '10 ms')::text, 1, 24) || lpad(to_hex(n), 12, '0'))::uuid as run_id
from generate_series(1, %s) as n
"""
_TASKS = """
with made as (
    insert into supervisor.task (run_id, ready_at, queue, workflow, prio, owner, wait_kind, wait_since, seq, step)
    select n.run_id, case %(at)s when 'infinity' then 'infinity' else clock_timestamp() + %(at)s::interval end, 1 + n.n %% 3, 1 + n.n %% 2, n.n %% 10,
           case when %(owned)s then 1 end, %(kind)s, clock_timestamp() - interval '2 min', 1, 'charge'
    from numbered n where n.n > %(first)s and n.n <= %(first)s + %(runs)s returning run_id, queue, workflow, prio)
insert into supervisor.run (run_id, workflow, queue, prio, input) select run_id, workflow, queue, prio, '{}' from made
"""


class Full:
    """A database of live runs, and a session that explains what is sent."""

    def __init__(self, database: Database, conn: psycopg.Connection[Any], others: str) -> None:
        self.database, self.conn, self.others = database, conn, others
        self.index_of = dict(database.sql(
            "select child.relname, parent.relname from pg_inherits"
            " join pg_class child on child.oid = inhrelid join pg_class parent on parent.oid = inhparent where child.relkind = 'i'"))  # fmt: skip

    def plan(self, text: str) -> Plan:
        asked = parse(text)
        cursor = psycopg.RawCursor(self.conn, row_factory=dict_row)
        with self.conn.transaction():
            cursor.execute(Sql().get("list_settings").encode(), ("30000",))
            said = look.talk("supervisor", "list_runs", asked, (None, LIMIT), 30.0)
            what, values = next(said)
            while not isinstance(what, bytes):  # settings, sizes, and at last the statement
                rows = cursor.execute(Sql().get(what).encode(), values).fetchall()
                what, values = said.send([tuple(each.values()) for each in rows])
            row = cursor.execute(b"explain (analyze, timing off, format json) " + what, values).fetchone()
        assert row is not None
        return Plan(row["QUERY PLAN"][0]["Plan"], self.index_of)


@pytest.fixture(scope="module", params=OTHERS)
def full(server: Server, request: pytest.FixtureRequest) -> Iterator[Full]:
    database = server.database()
    for table in ("task", "run"):
        for (name,) in database.sql("select oid::regclass::text from pg_class where relnamespace = 'supervisor'::regnamespace and relkind = 'r' and relname ~ %s", f"^{table}(_2|$)"):
            database.sql(f"alter table {name} set (autovacuum_enabled = off)")  # no statistics behind the test's back
    database.sql("insert into supervisor.queue (name) values ('orders'), ('bulk'), ('slow')")
    database.sql("insert into supervisor.workflow (name, queue) values ('checkout', 1), ('report', 1)")
    database.sql("insert into supervisor.worker (boot, host, pid, supervisor) values (gen_random_uuid(), 'h', 1, gen_random_uuid())")
    database.sql(_IDS, RUNS + sum(few[-1] for few in FEW))
    first = 0
    for kind, owned, at, runs in (*FEW[::2], (*OTHERS[request.param], RUNS), *FEW[1::2]):  # older and younger than the others
        with database.connect() as conn:
            conn.execute(_TASKS, {"kind": kind, "owned": owned, "at": at, "first": first, "runs": runs})
        first += runs
    with database.connect() as conn:
        yield Full(database, conn, request.param)
    database.drop()


PAGE = 20 * LIMIT
RANGE = 1_500  # a range that has few is read whole: its tasks, and what leads to them
ALL = 1.2 * RUNS  # what no index can serve: one look at each live run, no more
FOUND = [
    # filter; an index that must be used, and rows that may be read: where all others wait for ever, where all are due, where all have a time
    ("wait = signal", "task_wait_idx", PAGE, PAGE, PAGE),
    ("wait = signal AND waited > 1s AND workflow = checkout", "task_wait_idx", PAGE, PAGE, PAGE),
    ("wait = code_missing", "task_wait_idx", PAGE, PAGE, PAGE),
    ("wait in (code_missing, attempts_exhausted, crash_loop)", "task_wait_idx", PAGE, PAGE, PAGE),
    ("wait in (signal, child)", "task_wait_idx", PAGE, PAGE, PAGE),
    ("wait = step_backoff AND age < 1d", "task_wait_idx", PAGE, PAGE, PAGE),
    ("wait = step_running", "task_wait_idx", PAGE, PAGE, PAGE),
    ("status = paused", "task_wait_idx", PAGE, PAGE, PAGE),
    ("status in (paused, running) AND wait = run_paused", "task_wait_idx", PAGE, PAGE, PAGE),
    ("status = running", "task_ready_idx", RANGE, ALL, RANGE),
    ("status = ready", "", RANGE, PAGE, RANGE),
    ("status in (running, ready) AND workflow = checkout", "", RANGE, PAGE, RANGE),
    ("wait in (queued, no_worker)", "", RANGE, PAGE, RANGE),
    ("wait = timer", "task_wait_idx", PAGE + RANGE, PAGE + RANGE, ALL),
    ("status = waiting", "", PAGE, PAGE + RANGE, PAGE),
    ("status in (ready, running, waiting, paused)", "task_pkey", PAGE, PAGE, PAGE),
    ("waited > 1s", "task_pkey", PAGE, PAGE, PAGE),
]


@pytest.mark.parametrize("asked", FOUND, ids=[text for text, *_ in FOUND])
def test_the_few_are_found_among_many(full: Full, asked: tuple[Any, ...]) -> None:
    """The plan reads what it shows, or a range that was counted before; all live runs only where no index has what is asked for."""
    text, index, *rows = asked
    plan = full.plan(text)
    most = rows[list(OTHERS).index(full.others)]
    assert plan.rows_read() <= most, f"{plan.rows_read():.0f} rows, by {plan.indexes()}"
    assert most > RANGE + PAGE or not index or index in plan.indexes(), f"{plan.indexes()}"
    assert not plan.read_whole()


Shown = list[tuple[Any, str, str | None]]


@pytest.fixture(scope="module")
def shown(full: Full) -> Shown:
    """Run, status and reason of every run as the view has them, which knows no ranges; newest first."""
    return full.conn.execute("select run_id, status, wait from supervisor.runs order by run_id desc").fetchall()


SAME: list[tuple[str, set[str], set[str] | None]] = [
    *((f"wait = {code}", set(LIVE), {code}) for code in WAITS),
    *((f"status = {status}", {status}, None) for status in LIVE),
    ("wait in (signal, child)", set(LIVE), {"signal", "child"}),
    ("wait in (timer, queued, step_backoff)", set(LIVE), {"timer", "queued", "step_backoff"}),
    ("wait in (no_worker, timer, step_running)", set(LIVE), {"no_worker", "timer", "step_running"}),
    ("status in (paused, running)", {"paused", "running"}, None),
    ("status in (waiting, paused)", {"waiting", "paused"}, None),
    ("status in (ready, waiting)", {"ready", "waiting"}, None),
    ("status in (ready, waiting, running, paused) AND wait = timer", set(LIVE), {"timer"}),
]


@pytest.mark.parametrize(("text", "statuses", "waits"), SAME, ids=[text for text, *_ in SAME])
def test_they_are_the_same_that_the_view_shows(full: Full, shown: Shown, text: str, statuses: set[str], waits: set[str] | None) -> None:
    """However they are found: each once, newest first."""
    expected = [run_id for run_id, status, wait in shown if status in statuses and (waits is None or wait in waits)]
    assert look.ids(full.conn, "supervisor", parse(text), limit=500) == expected[:500]
    assert sum(row["runs"] for row in look.counts(full.conn, "supervisor", parse(text))) == len(expected)


def test_what_no_index_has_is_given_up_in_time_and_says_why(full: Full) -> None:
    """A step's name stands in no index: all live runs are looked at, for as long as was said."""
    with pytest.raises(ReadTimeout, match="all live runs had to be looked at"):
        look.runs(full.conn, "supervisor", parse("status in (ready, running, waiting) AND step = nobody"), patience_s=0.05)


def test_the_sizes_are_counted_to_a_limit(full: Full) -> None:
    """Looking how many there are costs the same however many there are."""
    cursor = psycopg.RawCursor(full.conn, row_factory=dict_row)
    with full.conn.transaction():
        cursor.execute(Sql().get("list_settings").encode(), ("30000",))
        row = cursor.execute(b"explain (analyze, timing off, format json) " + Sql().get("list_sizes").encode(), (filters.FEW + 1,)).fetchone()
    assert row is not None
    plan = Plan(row["QUERY PLAN"][0]["Plan"], full.index_of)
    assert plan.rows_read() <= 3 * (filters.FEW + 100) and plan.indexes() >= {"task_ready_idx", "task_wait_idx"}
