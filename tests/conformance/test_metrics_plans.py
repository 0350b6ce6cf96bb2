"""What metrics ask every few seconds, on every host, reads indexes and catalogues: it costs the same after a year."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from supervisor.db.statements import Sql, blocks
from tests.conformance.filling import MADE
from tests.harness import Database, Server

RUNS, LIVE_SHARE = 20_000, 4
SQL = Sql()
ASKED: dict[str, tuple[Any, ...]] = {"metrics_waits": (100,), "metrics_queues": (200,), "metrics_hosts": (), "metrics_server": ()}
_FILL = (
    "insert into supervisor.queue (name) values ('q')",
    "insert into supervisor.workflow (name, queue) select 'w', id from supervisor.queue where name = 'q'",
    "insert into supervisor.run (run_id, workflow, queue, prio, input) select id, 1, 1, 5, '{}' from made",
    f"insert into supervisor.task (run_id, ready_at, queue, workflow, wait_kind, step, seq) select id, case when n % 8 = 0 then now() else 'infinity' end, 1, 1, case when n % 8 = 0 then 1 else 11 end, 'go', 3 from made where n % {LIVE_SHARE} = 0",
    f"insert into supervisor.outcome (run_id, ended_at, worker, steps, status) select id, now(), 1, 3, 1 from made where n % {LIVE_SHARE} > 0",
    "insert into supervisor.step select id, now(), now(), s, s, 1, 1, 1, 'some step', '1' from made, generate_series(0, 2) as s",
)


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


OF_HISTORY = "select coalesce(sum(pg_stat_get_xact_blocks_fetched(oid)), 0)::int8 from pg_class where relkind in ('r', 'i') and relname ~ '^(run|step|outcome|attempt|message)_2'"


@pytest.mark.parametrize("name", ASKED)
def test_a_question_reads_no_history_and_a_bounded_part_of_what_lives(filled: psycopg.Connection[Any], name: str) -> None:
    with filled.transaction(force_rollback=True):
        before = filled.execute(OF_HISTORY).fetchone()
        filled.execute("set local role supervisor_viewer")
        plan = psycopg.RawCursor(filled).execute(f"explain (analyze, buffers, format json) {SQL.get(name)}".encode(), ASKED[name]).fetchall()[0][0][0]["Plan"]
        filled.execute("reset role")
        assert filled.execute(OF_HISTORY).fetchone() == before, f"it reads history: {json.dumps(plan, indent=1)[:2000]}"
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 6000, json.dumps(plan, indent=1)[:2000]


def test_every_question_is_looked_at_here() -> None:
    assert set(ASKED) == {name for name in blocks() if name.startswith("metrics_")}
