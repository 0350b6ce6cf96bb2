"""Plans of the hot statements: prepared while their tables are empty, looked at when these hold 100,000 rows.

That is a worker's life: it starts on an empty queue, and its plans stay when the queue fills. What each statement
intends stands in the `Index:` part of its header in sql/queries; the plan must use exactly that, may not scan any
table of the engine, and may not read many more rows than it was asked for. Nothing here is a duration.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from supervisor.db.connect import connect
from supervisor.db.pipeline import Pipeline
from supervisor.db.statements import Sql
from supervisor.engine.worker import HOT
from tests.conformance.filling import MADE
from tests.harness import Database, Server

ROWS = 100_000
BATCH = 500  # runs that a statement is asked about
WORKER, BOOT = 77, uuid.UUID(int=7)
SQL = Sql()
WHOLE = {"queue_pause_pkey"}  # has a row for each queue that is paused, and all of them are asked for
NO_PLAN = {"plan_custom", "plan_generic"}  # SET has none
FUNCTIONS = {"fence", "look_at_requests", "take_trace_ends"}
CUSTOM = {"lock_parents", "wake_parents", "look_at_parked", "close_children", "lose_children", "park_on_children", "park_on_signals", "park_paused", "expire_tokens", "wake_completed", "fire_slept", "read_tried", "read_senders"} | {
    name for name in HOT if name.startswith("read_")
}  # sent between plan_custom and plan_generic

# of each ten tasks one is this worker's, one a parked parent, eight are ready (but for a few that nobody knows the code of)
_FILL = (
    "insert into supervisor.queue (name) select 'q' || g from generate_series(1, 3) as g",
    "insert into supervisor.workflow (name, queue) select 'w' || g, 1 from generate_series(1, 1000) as g",
    """insert into supervisor.worker (id, boot, host, pid, supervisor) overriding system value
       select n, '00000000-0000-0000-0000-000000000007', 'h', 1, id from made""",
    """insert into supervisor.task (run_id, ready_at, queue, workflow, prio, owner, wait_kind, wait_children, wait_failed, input)
       select id, case when n % 10 = 2 then 'infinity' else clock_timestamp() - interval '1 s' end, 1 + n % 3, 1, n % 10,
              case when n % 10 = 1 then 77 end, case when n % 10 = 2 then 14 else 1 end,
              case when n % 10 = 2 then 5 end, case when n % 10 = 2 then 0 end, '{}' from made""",
    """update supervisor.task set wait_kind = 20, ready_at = 'infinity', workflow = 900, version = case when n % 200 = 3 then 'v' || n / 200 % 100 end
       from made where run_id = id and n % 100 = 3""",
    "insert into supervisor.workflow_version (workflow, version, source) select w, 'v' || v, 'm' from generate_series(1, 1000) as w, generate_series(1, 100) as v",
    "insert into supervisor.run (run_id, workflow, queue, prio, input) select id, 1, 1, 5, '{}' from made",
    "insert into supervisor.step select id, now(), now(), s, s, 77, 1, 1, 'some step', '1' from made, generate_series(0, 2) as s",
    "insert into supervisor.attempt select id, 3, 1, 1, now(), now(), now(), 77, 'some step', '{}', 'f' from made",
    "insert into supervisor.outcome (run_id, ended_at, worker, steps, status) select id, now(), 77, 3, 1 from made where n % 10 > 4",
    "insert into supervisor.child select id, 4, id from made",
    "insert into supervisor.child_done select id, 5, 0 from made",
    """insert into supervisor.update_request (run_id, n, name, id, payload) select id, n, 'go', 'u', '1' from made where n % 10 in (0, 1)""",
    "insert into supervisor.message select id, 1, n, now(), 'go', null, '1' from made",
    "insert into supervisor.consumed select id, 1, n, 6, 'go' from made",
    "insert into supervisor.cancellation select id, 3, now(), 'somebody', 'why' from made where n % 100 = 1",
    "update supervisor.task set cancel_to = 77 where run_id in (select id from made where n % 100 = 1)",
    "insert into supervisor.attempt (run_id, seq, n, kind, started_at, ended_at, next_retry_at, worker, name, error) "
    "select id, 6, 1, 7, now(), now(), now(), 77, 'some step', '{\"heartbeat_s\": 1}' from made",
    "insert into supervisor.completion (run_id, seq, n, kind, payload) select id, 7, 1, 1, '1' from made",
    "insert into supervisor.beat (run_id, seq, n) select id, 6, 1 from made",
    "insert into supervisor.pause (run_id, detail) select id, '{}' from made where n % 20 = 1",
    "insert into supervisor.changed (run_id) select id from made where n % 2000 = 11",
    "insert into supervisor.timer select id, 5, now() - interval '1 s' from made",
)


@dataclass
class Looked:
    """What EXPLAIN (ANALYZE) and the server's counters say of one execution, which was undone."""

    plan: dict[str, Any]
    seq_scanned: list[str]  # tables read from end to end, also inside functions
    index_scanned: list[str]  # likewise by index
    locked: list[str]  # partitions on which it holds locks

    def nodes(self) -> Iterator[dict[str, Any]]:
        todo = [self.plan]
        while todo:
            node = todo.pop()
            yield node
            todo += node.get("Plans", [])

    def scans(self) -> list[dict[str, Any]]:
        return [
            node for node in self.nodes()
            if "Index Name" in node or (node.get("Schema") == "supervisor" and "Scan" in node["Node Type"] and "Function Name" not in node)  # those of functions are counted
        ]

    def rows_read(self) -> float:
        return sum((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"] for node in self.scans())


@dataclass
class Prepared:
    """A session as a worker's loop has it, with the statements prepared on empty tables, and what the tables hold now."""

    conn: psycopg.Connection[Any]
    today: str  # suffix of the partitions of today
    index_of: dict[str, str]  # index of a partition → index of its parent
    partial: set[str]  # indexes that hold only some rows of their table
    owned: list[uuid.UUID]  # this worker's tasks
    parents: list[uuid.UUID]
    ended: list[uuid.UUID]
    fresh: list[uuid.UUID]  # ids that no run has

    def arguments(self, name: str, empty: bool = False) -> str:
        """EXECUTE's arguments for *name*, cast to what the statement takes; with *empty*, all lists without elements."""
        query = "select parameter_types::text[] from pg_prepared_statements where name = %s"
        types = self.conn.execute(query, (name,)).fetchone()[0]  # type: ignore[index]
        assert name in ARGUMENTS, f"HOT has a new statement {name}: give arguments for {types} in ARGUMENTS"
        values = ARGUMENTS[name](self)
        assert len(values) == len(types), f"{name} takes {len(types)} parameters now: {types}"
        return ", ".join(
            _literal([] if empty and isinstance(value, list) else value, type) for value, type in zip(values, types, strict=True)
        )

    def plan_on_empty(self, name: str) -> None:
        """Execute once, so that a generic plan is made and kept."""
        with self.conn.transaction(force_rollback=True):
            try:
                self.conn.execute(f'execute "{name}" ({self.arguments(name, empty=True)})')  # type: ignore[arg-type]
            except psycopg.errors.RaiseException as error:
                raise AssertionError(f"{name} on empty tables: {error}") from error
            except psycopg.Error as error:
                if error.sqlstate != "SV003":  # the fence finds no worker yet
                    raise

    def look(self, name: str) -> Looked:
        given = self.arguments(name)
        with self.conn.transaction(force_rollback=True):
            if name in CUSTOM:
                self.conn.execute(SQL.get("plan_custom"))  # type: ignore[arg-type]
            query = f'explain (analyze, verbose, timing off, format json) execute "{name}" ({given})'
            row = self.conn.execute(query).fetchone()  # type: ignore[arg-type]
            assert row is not None
            counted = self.conn.execute(
                "select relname, seq_scan, idx_scan from pg_stat_xact_user_tables"
                " where schemaname = 'supervisor' and seq_scan + coalesce(idx_scan, 0) > 0"
            ).fetchall()
            locked = self.conn.execute(
                "select c.relname from pg_locks l join pg_class c on c.oid = l.relation"
                " where l.pid = pg_backend_pid() and c.relispartition and c.relkind = 'r'"
                " and c.relnamespace = 'supervisor'::regnamespace"
            ).fetchall()
        return Looked(row[0][0]["Plan"], [r[0] for r in counted if r[1]], [r[0] for r in counted if r[2]], [r[0] for r in locked])


def _literal(value: Any, type: str) -> str:
    if isinstance(value, list):
        inner = ",".join("NULL" if each is None else f'"{each}"' for each in value)
        return f"'{{{inner}}}'::{type}"
    return f"'{value}'::{type}"


def _same(value: Any) -> list[Any]:
    return [value] * BATCH


def _among(ids: list[uuid.UUID]) -> list[Any]:
    """As `encode_ids` gives them."""
    return [ids, min(ids, default=uuid.UUID(int=0)), max(ids, default=uuid.UUID(int=0))]


ARGUMENTS = {
    "fence": lambda p: [WORKER, BOOT, 1],
    "insert_steps": lambda p: [p.owned, _same(9), _same(9), _same("s"), _same("1"), _same(1.8e9), _same(1.8e9), WORKER],
    "insert_mixed_steps": lambda p: [p.owned, _same(9), _same(9), _same("s"), _same("1"), _same(1.8e9), _same(1.8e9), _same(2), _same(1), WORKER],
    "insert_attempts": lambda p: [
        p.owned, _same(9), _same(1), _same(1), _same("s"), _same("{}"), _same("f"), _same("now"), _same("now"), _same(None), WORKER,
    ],
    "insert_published": lambda p: [p.owned, _same("k"), _same(9), _same("1"), _same("now")],
    "insert_progress": lambda p: [p.owned, _same(9), _same(1.0), _same(2.0), _same("now")],
    "set_attributes": lambda p: [p.owned, _same(9), _same("{}"), _same("now")],
    "note_beats": lambda p: [p.owned, _same(9), _same(1), _same("now"), _same("{}")],
    "continue_runs": lambda p: [p.owned, p.fresh, _same(None), _same(None), _same(None), _same("{}"), _same(0), WORKER],
    "wake_updated": lambda p: [p.parents],
    "finish": lambda p: [p.owned, _same(1), _same(3), _same("1"), _same(1.8e9), WORKER],
    "insert_children_done": lambda p: [p.parents, _same(1), _same(0)],
    "lock_parents": lambda p: [p.parents],
    "wake_parents": lambda p: [p.parents],
    "look_at_parked": lambda p: [p.parents],
    "release": lambda p: [p.owned, _same("infinity"), _same(10), _same(None), _same(1), _same("s"), _same(1), _same(1), _same("v1"), _same("now"), WORKER],
    "lock_own": lambda p: [p.owned, WORKER],
    "park_on_children": lambda p: [p.owned, _same(9), _same(0), _same("infinity"), _same(1), _same("s"), _same(None), _same(14), _same("v1"), _same("now"), WORKER],
    "park_on_signals": lambda p: [
        p.owned, _same("go"), _same("1000000"), _same(9), _same(0), _same("infinity"), _same(1), _same("go"), _same(None), _same(11), _same("v1"), _same("now"), WORKER,
    ],
    "park_paused": lambda p: [p.owned, _same(1), _same("s"), _same(1), _same(None), WORKER],
    "expire_tokens": lambda p: [p.owned, _same(6), _same(1)],
    "wake_completed": lambda p: [p.owned, _same(7), _same(1)],
    "read_completions": lambda p: _among(p.owned),
    "look_at_requests": lambda p: [WORKER, [1]],
    "insert_consumed": lambda p: [p.owned, _same("go"), _same(1000000), _same(7)],
    "read_messages": lambda p: [p.owned, _same("go"), _same(None), *_among(p.owned)[1:]],
    "look_at_updates": lambda p: [WORKER],
    "accept_updates": lambda p: [p.owned, _same("go"), _same("u"), _same(9)],
    "reject_updates": lambda p: [p.owned, _same("go"), _same("u"), _same("{}")],
    "insert_update_ends": lambda p: [p.owned, _same(9), _same(1), _same("1"), _same("now")],
    "insert_runs": lambda p: [p.fresh, _same(500), _same(None), _same(5), _same("{}"), p.owned, _same(9), _same(0), _same(0), _same(0)],
    "insert_timers": lambda p: [p.owned, _same(9), _same(1000), _same(None)],
    "fire_timers": lambda p: [p.owned, _same(5), _same(9), _same("timer"), _same(2), _same(1), _same(None), _same("now"), WORKER],
    "fire_slept": lambda p: [*_among(p.owned), WORKER],
    "drop_timers": lambda p: [p.owned, _same(5)],
    "publish": lambda p: [p.owned, _same(8), _same(9), _same("s"), _same(1), _same("now"), WORKER],
    "claim_missing": lambda p: [[900, 901], ["v1+p", "v1"], [1, 2, 3], BATCH, WORKER],
    "claim": lambda p: [
        [1 + n % 3 for n in range(30)], [n // 3 for n in range(30)], ["-infinity"] * 30, [uuid.UUID(int=0)] * 30, BATCH, WORKER,
    ],
    "read_inputs": lambda p: [*_among(p.owned), p.owned],
    "read_steps": lambda p: _among(p.owned),
    "read_attempts": lambda p: _among(p.owned),
    "read_timers": lambda p: [p.owned],
    "read_children": lambda p: _among(p.owned),
    "read_outcomes": lambda p: _among(p.ended),
    "read_cancellations": lambda p: _among(p.owned),
    "read_marks": lambda p: [WORKER],
    "told_cancel": lambda p: [p.owned, WORKER],
    "no_deadline": lambda p: [p.owned, WORKER],
    "close_children": lambda p: [p.owned],
    "lose_children": lambda p: [p.owned, [4] * len(p.owned)],
}  # fmt: skip


TRACED = ("claim_traced", "claim_missing_traced", "insert_traces", "take_trace_ends", "read_tried", "read_senders")  # what a worker prepares where it traces
ARGUMENTS |= {
    "claim_traced": ARGUMENTS["claim"],
    "claim_missing_traced": ARGUMENTS["claim_missing"],
    "take_trace_ends": lambda p: [p.ended, 200],
    "read_tried": lambda p: _among(p.ended),
    "read_senders": lambda p: _among(p.ended),
    "insert_traces": lambda p: [p.fresh, _same("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), _same(None), _same(None)],
}


@pytest.fixture(scope="module", params=["partitions made by migrate", "40 partitions"])
def prepared(server: Server, request: pytest.FixtureRequest) -> Iterator[Prepared]:
    database = server.database()
    if request.param == "40 partitions":
        database.sql(
            "select supervisor.make_partitions(clock_timestamp() + 39 * make_interval(days => partition_days)) from supervisor.cell"
        )
        assert database.one("select count(*) from pg_inherits where inhparent = 'supervisor.step'::regclass") == 40
    # statistics of the full tables would save a plan that was made on empty ones: nobody takes them here
    for (table,) in database.sql(
        "select oid::regclass::text from pg_class where relnamespace = 'supervisor'::regnamespace and relkind = 'r'"
    ):
        database.sql(f"alter table {table} set (autovacuum_enabled = off)")
    conn = connect(database.dsn, purpose="plans", profile="loop")
    pipeline = Pipeline(conn)
    made = Prepared(conn, "", {}, set(), [], [], [], [])
    for name in (*HOT, *TRACED):
        pipeline.prepare(name, SQL.get(name))
        if name in ARGUMENTS:
            made.plan_on_empty(name)
    _fill(database, made)
    try:
        yield made
    finally:
        conn.close()
        database.drop()


def _fill(database: Database, made: Prepared) -> None:
    database.sql(MADE, ROWS)
    for statement in _FILL:
        database.sql(statement)

    def ids(where: str) -> list[uuid.UUID]:
        return [id for (id,) in database.sql(f"select run_id from supervisor.task where {where} order by run_id limit {BATCH}")]

    made.owned, made.parents = ids("owner = 77"), ids("wait_children is not null")
    made.ended = [id for (id,) in database.sql(f"select run_id from supervisor.outcome order by run_id limit {BATCH}")]
    made.fresh = [uuid.UUID(int=id.int ^ 0xABC000) for id in made.owned]
    made.partial = {
        name
        for (name,) in database.sql("select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid where i.indpred is not null")
    }
    made.today = database.one("select tableoid::regclass::text from supervisor.step limit 1").rpartition("_")[2]
    made.index_of = dict(database.sql(
        "select child.relname, parent.relname from pg_inherits"
        " join pg_class child on child.oid = inhrelid join pg_class parent on parent.oid = inhparent"
        " where child.relkind = 'i'"))  # fmt: skip


def intended(name: str) -> set[str]:
    """The indexes that a block's header names; a table's primary key is <table>_pkey."""
    words = SQL.header(name).get("index", "")
    assert words, f"the header of {name} has no `Index:`"
    if words.startswith("none"):
        return set()
    return set(re.findall(r"\b[a-z_]+_(?:pkey|idx|key)\b", words)) | {
        f"{table}_pkey" for table in re.findall(r"\b([a-z_]+) primary keys?\b", words)
    }


@pytest.mark.parametrize("name", [name for name in (*HOT, *TRACED) if name not in NO_PLAN])
def test_a_hot_statement_prepared_on_empty_tables_uses_the_intended_index(prepared: Prepared, name: str) -> None:
    """A claim whose plan was made on an empty queue took 250 times as long once the queue was full."""
    looked = prepared.look(name)
    scans = looked.scans()
    used = {prepared.index_of.get(scan["Index Name"], scan["Index Name"]) for scan in scans if "Index Name" in scan}
    if name in FUNCTIONS:  # its plan is not shown, but what it touched is counted
        assert {re.sub(r"_\d{8}$", "", table) + "_pkey" for table in looked.index_scanned} >= intended(name)  # the server counts for the session, so others too
    elif name in ("close_children", "lose_children"):
        assert {"child_" + prepared.today, "task"} <= set(looked.index_scanned)
    else:
        assert used == intended(name), f"{name} uses {used or 'no index'}, its header intends {intended(name) or 'none'}"
    assert not looked.seq_scanned, f"{name} read {looked.seq_scanned} from end to end"
    for scan in scans if name not in FUNCTIONS else ():
        assert scan["Node Type"] in ("Index Scan", "Index Only Scan", "Tid Scan"), f"{name}: {scan['Node Type']} on {scan['Relation Name']}"
        # a partial index may be read from its beginning: how far is counted below
        bounded = scan["Node Type"] == "Tid Scan" or "Index Cond" in scan or scan["Index Name"] in prepared.partial | WHOLE
        assert bounded, f"{name} goes through all of {scan['Index Name']}"
    most = 6 if name == "fire_slept" else 4  # it looks at three rows of each history
    assert name in FUNCTIONS or looked.rows_read() <= most * BATCH, f"{name} for {BATCH} runs read {looked.rows_read():.0f} rows of {ROWS}"
    assert name.startswith("read_") or not any(node["Node Type"] == "Sort" and node["Actual Rows"] > BATCH for node in looked.nodes()), (
        f"{name} sorts"
    )


@pytest.mark.parametrize("name", [name for name in (*HOT, *TRACED) if name not in NO_PLAN])
def test_a_hot_statement_touches_only_the_partitions_of_its_runs(prepared: Prepared, name: str) -> None:
    """A plan that locks every partition costs 200 locks at 38 of them, and all lock slots of the server at some more."""
    looked = prepared.look(name)
    others = [partition for partition in looked.locked if not partition.endswith(prepared.today) and not partition.startswith("run_key")]
    assert not others, f"{name} locks {len(others)} partitions that its runs are not in: {others[:5]}"
    touched = {scan["Relation Name"] for scan in looked.scans() if "Relation Name" in scan}
    assert not [table for table in touched if re.search(r"_\d{8}$", table) and not table.endswith(prepared.today)]


@pytest.mark.parametrize("name", sorted({name for name in HOT if name.startswith("read_")} - {"read_timers", "read_marks"}))
def test_without_a_custom_plan_a_read_would_touch_all_partitions(prepared: Prepared, name: str) -> None:
    """Why the loop changes the plan mode around its reads. Where this fails, PostgreSQL has learnt to prune before it locks."""
    with prepared.conn.transaction(force_rollback=True):
        prepared.conn.execute(f'execute "{name}" ({prepared.arguments(name)})')  # type: ignore[arg-type]
        table = {
            "read_inputs": "run",
            "read_steps": "step",
            "read_attempts": "attempt",
            "read_children": "child",
            "read_outcomes": "outcome",
            "read_messages": "message",
            "read_cancellations": "cancellation",
            "read_completions": "completion",
        }[name]
        count = (
            "select count(*) from pg_locks l join pg_inherits i on i.inhrelid = l.relation"
            " where l.pid = pg_backend_pid() and i.inhparent = %s::regclass"
        )
        locked = prepared.conn.execute(count, (f"supervisor.{table}",)).fetchone()[0]  # type: ignore[index]
        there = prepared.conn.execute(
            "select count(*) from pg_inherits where inhparent = %s::regclass", (f"supervisor.{table}",)
        ).fetchone()[0]  # type: ignore[index]
    assert locked == there


@pytest.mark.parametrize("kind", [1, 10, 11, 14])
def test_a_claim_of_a_run_that_waited_changes_no_index(prepared: Prepared, kind: int) -> None:
    """Else it writes an entry into every index of task, and every claim after it walks over the dead one: twice the time for the claim alone."""
    counts = (
        "select pg_stat_get_xact_tuples_updated(c.oid), pg_stat_get_xact_tuples_hot_updated(c.oid)"
        " from pg_class c where c.oid = 'supervisor.task'::regclass"
    )
    parked = (
        "update supervisor.task set wait_kind = %s, ready_at = '2020-01-01' where run_id in"
        " (select run_id from supervisor.task where owner is null and wait_kind = 1 and queue = 1 and prio = 0 order by run_id limit %s)"
    )
    with prepared.conn.transaction(force_rollback=True):
        prepared.conn.execute(parked, (kind, BATCH))
        before = prepared.conn.execute(counts).fetchone()
        prepared.conn.execute(f"execute claim ({prepared.arguments('claim')})")  # type: ignore[arg-type]
        after = prepared.conn.execute(counts).fetchone()
        claimed = prepared.conn.execute("select count(*) from supervisor.task where ready_at = '2020-01-01' and owner = 77").fetchone()
    assert before is not None and after is not None and claimed == (BATCH,)
    assert after[0] - before[0] == BATCH
    assert after[1] - before[1] > 0.9 * BATCH, "there is room for a new version on nearly every page"


def test_what_a_chain_was_sent_is_looked_up_one_by_one(prepared: Prepared) -> None:
    """Each signal to a run that goes on with others asks, while it holds the run's row: a few rows of what may be very many."""
    read = "select coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0) from pg_stat_xact_user_tables where schemaname = 'supervisor' and relname like 'message%'"
    with prepared.conn.transaction(force_rollback=True):
        first, later = prepared.owned[0], prepared.owned[1:]
        prepared.conn.execute("update supervisor.message set id = n::text, chain = %s where run_id = any(%s)", (first, later))
        ids = [str(n) for n, in prepared.conn.execute("select n from supervisor.message where chain = %s order by n limit 300", (first,)).fetchall()]
        before = prepared.conn.execute(read).fetchone()[0]  # type: ignore[index]
        given = ([first] * 300 + [None] * 200, ["go"] * 500, ids + ["unknown"] * 100 + ids[:100])
        known = prepared.conn.execute("select supervisor.sent_before(%s::uuid[], %s, %s)", given).fetchone()[0]  # type: ignore[index]
        assert known == [True] * 300 + [False] * 200
        assert prepared.conn.execute(read).fetchone()[0] - before <= 4 * 300  # type: ignore[index]
