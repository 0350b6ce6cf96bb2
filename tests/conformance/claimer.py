"""A worker's session without the worker: registers, claims and finishes by the loop's own statements and marks."""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import pq

from supervisor.db.connect import connect
from supervisor.db.pipeline import Pipeline
from supervisor.db.statements import Sql
from supervisor.engine.batch import elements, encode_rows
from supervisor.engine.claims import Claims
from supervisor.engine.worker import HOT
from tests.harness import Database

SQL = Sql()
MINUS_INFINITY = -(1 << 63)
UUID_OID = 2950

# a million ids of the minute before now; `made` has them in their order
MAKE_IDS = """
create temp table made as
select (lpad(to_hex((extract(epoch from clock_timestamp()) * 1000)::int8 - 30000 + g / 100), 12, '0')
        || '7' || substr(md5(g::text || random()), 1, 3) || '8' || substr(md5(g::text || random()), 4, 15))::uuid as id, g
from generate_series(1, %s) as g
"""


def insert_runs(database: Database, runs: int, queue: str, workflow: str, prio: int = 5, with_run_rows: bool = False) -> None:
    """Put ready runs straight into the tables, oldest first: 8 us each and not 20."""
    database.sql("drop table if exists made")
    database.sql(MAKE_IDS, runs)
    database.sql(
        """insert into supervisor.task (run_id, ready_at, queue, workflow, prio, input)
           select id, clock_timestamp() - interval '30 s' + g * interval '10 us', (select id from supervisor.queue where name = %s),
                  (select id from supervisor.workflow where name = %s), %s, '{"n":1}' from made""",
        queue, workflow, prio,
    )  # fmt: skip
    if with_run_rows:
        database.sql(
            """insert into supervisor.run (run_id, workflow, queue, prio, input)
               select t.run_id, t.workflow, t.queue, t.prio, t.input from made join supervisor.task t on t.run_id = made.id"""
        )


def make_catalogue(database: Database, *queues: str) -> None:
    """Queues, and one workflow in each, of the same name."""
    for queue in queues:
        database.sql("insert into supervisor.workflow (name, queue) values (%s, supervisor.queue_id(%s))", queue, queue)


@dataclass(frozen=True)
class Claimed:
    run_id: uuid.UUID
    queue: int
    prio: int
    resumed: int


class Claimer:
    """Claims like a worker's loop, one statement at a time, in transactions of its own unless the caller began one."""

    def __init__(self, database: Database, *queues: str, look_behind: bool = False) -> None:
        self.conn = connect(database.dsn, purpose="claimer", profile="loop")
        row = self.conn.execute(SQL.get("register_worker"), (uuid.uuid4(), "test", 1, uuid.uuid4())).fetchone()
        assert row is not None
        self.worker: int = row[0]
        pipeline = Pipeline(self.conn)
        for name in HOT:
            pipeline.prepare(name, SQL.get(name))
        self.look_behind = look_behind
        ids = [self.conn.execute("select supervisor.queue_id(%s)", (queue,)).fetchone()[0] for queue in queues]  # type: ignore[index]
        self.claims = Claims(ids, lambda _now: self.look_behind)

    def claim(self, limit: int) -> list[Claimed]:
        """Claim up to *limit* runs and note the marks, as the loop does."""
        result = self.execute("claim", [*self.claims.params(limit, 0.0), struct.pack(">i", self.worker)])
        rows = [[result.get_value(row, column) for column in range(8)] for row in range(result.ntuples)]
        for row in rows:
            key, at = row[4] + row[5], row[6] + row[0]
            if at > self.claims.marks.get(key, b""):
                self.claims.marks[key] = at
        self.claims.took(len(rows), limit)
        return [Claimed(uuid.UUID(bytes=row[0]), *struct.unpack(">ih", row[4] + row[5]), struct.unpack(">h", row[2])[0]) for row in rows]

    def finish(self, claimed: list[Claimed]) -> None:
        """End runs as completed."""
        ids = sorted(each.run_id.bytes for each in claimed)
        now = 0
        rows = [(id, 1, 1, b"1", now) for id in ids]
        self.execute("finish", [*encode_rows((UUID_OID, 21, 23, 17, 701), rows), struct.pack(">i", self.worker)])

    def release(self, run_ids: list[uuid.UUID], ready_us: int) -> None:
        """Give runs back as ready at that time (us since 2000), with history."""
        rows = [(id, ready_us, 1, None, None, None, None, 1, None, None) for id in sorted(id.bytes for id in run_ids)]
        self.execute("release", [*encode_rows((UUID_OID, 1184, 21, 25, 23, 25, 23, 21, 25, 1184), rows), struct.pack(">i", self.worker)])

    def execute(self, name: str, params: list[bytes]) -> Any:
        result = self.conn.pgconn.exec_prepared(name.encode(), params, [pq.Format.BINARY] * len(params), pq.Format.BINARY)
        assert result.status in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK), f"{name}: {result.get_error_message()}"
        return result

    def claim_arguments(self, limit: int) -> str:
        """The parameters that the next claim would send, as SQL."""
        query = "select parameter_types::text[] from pg_prepared_statements where name = 'claim'"
        types = self.conn.execute(query).fetchone()[0]  # type: ignore[index]
        params = [*self.claims.params(limit, 0.0), struct.pack(">i", self.worker)]
        return ", ".join(_literal(value, type) for value, type in zip(params, types, strict=True))

    def pages_of_a_claim(self, limit: int) -> int:
        """Pages that a claim would touch now; it is undone."""
        with self.conn.transaction(force_rollback=True):
            query = f"explain (analyze, buffers, timing off, format json) execute claim({self.claim_arguments(limit)})"
            row = self.conn.execute(query).fetchone()  # type: ignore[arg-type]
        assert row is not None
        # what is below the UPDATE finds and locks the rows; the writes cost the same whatever lies dead around them
        (finds,) = [plan for plan in row[0][0]["Plan"]["Plans"] if plan.get("Parent Relationship") == "InitPlan"]
        pages: int = finds["Shared Hit Blocks"] + finds["Shared Read Blocks"]
        return pages

    def close(self) -> None:
        self.conn.close()


def _literal(value: bytes, type: str) -> str:
    """A binary parameter as SQL text."""
    if not type.endswith("[]"):
        return f"'{_text(value, type)}'::{type}"
    inner = ",".join(_text(element, type[:-2]) for element in elements(value) if element is not None)
    return f"'{{{inner}}}'::{type}"


def _text(value: bytes, type: str) -> str:
    if type == "uuid":
        return str(uuid.UUID(bytes=value))
    number: int = struct.unpack({2: ">h", 4: ">i", 8: ">q"}[len(value)], value)[0]
    if type != "timestamp with time zone":
        return str(number)
    return "-infinity" if number == MINUS_INFINITY else f'"{datetime(2000, 1, 1, tzinfo=UTC) + timedelta(microseconds=number)}"'
