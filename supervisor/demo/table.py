"""The demo's ordinary table, and what it asks of the database. Plays the part of a user's code: reads views, never the engine's tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from supervisor.core.errors import SupervisorError
from supervisor.db.statements import identifier

if TYPE_CHECKING:
    import psycopg

TABLE = "public.pgsupervisor_demo"
COMMENT = "The demo of pgsupervisor books here, one row per file; cleared when a demo starts"
LOCK = 0x64656D6F  # "demo"

CREATE = f"""
create table if not exists {TABLE} (
    demo text not null, run_id uuid not null, path text not null, sha256 text not null, size_bytes int8 not null, tokens int8 not null,
    lines int8 not null, functions int8 not null, complexity int8 not null, imports int8 not null,
    booked_at timestamptz not null default clock_timestamp())"""
INSERT = f"""
insert into {TABLE} (demo, run_id, path, sha256, size_bytes, tokens, lines, functions, complexity, imports)
values (%(demo)s, %(run_id)s, %(path)s, %(sha256)s, %(size_bytes)s, %(tokens)s, %(lines)s, %(functions)s, %(complexity)s, %(imports)s)"""
SUM = f"select sum(lines + functions + complexity + imports) from {TABLE}"


class Booked(NamedTuple):
    """The table and the history of its runs, counted at the end."""

    rows: int
    total: int
    steps: int
    retries: int


class Table:
    """One session on the demo's database."""

    def __init__(self, conn: psycopg.Connection[Any], schema: str) -> None:
        self._conn = conn
        self._schema = identifier(schema)

    def prepare(self) -> None:
        """Make the table where it is missing, clear it, and keep other demos out until this session ends."""
        if not self._one("select pg_try_advisory_lock(%s)", LOCK)[0]:
            raise SupervisorError(f"another demo is running on this database and books into {TABLE}; wait for its end, or stop it")
        there, comment = self._one("select to_regclass(%(t)s) is not null, obj_description(to_regclass(%(t)s), 'pg_class')", t=TABLE)
        if there and comment != COMMENT:
            raise SupervisorError(
                f"the table {TABLE} is there and was not made by the demo, which would clear it; rename it, or use another database: --dsn"
            )
        if not there:
            self._conn.execute(CREATE)
            self._conn.execute(f"comment on table {TABLE} is '{COMMENT}'")
        self._conn.execute(f"truncate {TABLE}")

    def rows(self) -> int:
        """How many files are booked."""
        return int(self._one(f"select count(*) from {TABLE}")[0])

    def booked(self) -> Booked:
        """What is in the table, and what the history says of its runs."""
        rows, total = self._one(f"select count(*), coalesce(sum(lines + functions + complexity + imports), 0) from {TABLE}")
        runs = f"run_id in (select run_id from {TABLE})"
        steps = self._one(f"select count(*) from {self._schema}.steps where {runs} and kind = 'step'")[0]
        retries = self._one(f"select count(*) from {self._schema}.attempts where {runs} and kind = 'failed'")[0]
        return Booked(rows, int(total), steps, retries)

    def children(self, parent_id: UUID, run_ids: list[UUID]) -> set[UUID]:
        """Which of these runs are children of that one."""
        query = f"select run_id from {self._schema}.runs where run_id = any(%s) and parent_id = %s"
        return {run_id for (run_id,) in self._conn.execute(query, (run_ids, parent_id))}

    def finished_by(self, run_id: UUID, seq: int) -> int | None:
        """The worker that ended that step, if its run has completed."""
        found = self._conn.execute(
            f"select s.worker from {self._schema}.steps s join {self._schema}.runs r using (run_id)"
            f" where s.run_id = %s and s.seq = %s and s.status = 'completed' and r.status = 'completed'",
            (run_id, seq),
        ).fetchone()
        return found[0] if found else None

    def _one(self, query: str, *values: Any, **named: Any) -> tuple[Any, ...]:
        row: tuple[Any, ...] | None = self._conn.execute(query, named or values or None).fetchone()
        assert row is not None
        return row


def proof(schema: str) -> str:
    """A query for people that joins workflow history with booked rows: files whose runs were on several workers first."""
    name = schema if schema.isidentifier() and schema == schema.lower() else identifier(schema)
    return (
        f"select b.path, b.lines, r.status, count(distinct s.worker) as workers, count(a.n) as retried from {TABLE} b "
        f"join {name}.runs r using (run_id) join {name}.steps s using (run_id) "
        f"left join {name}.attempts a on a.run_id = s.run_id and a.seq = s.seq group by 1, 2, 3 order by workers desc, b.lines desc limit 9"
    )
