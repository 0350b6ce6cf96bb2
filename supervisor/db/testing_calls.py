"""What a test environment asks of its database: when something is due, that time be skipped, what waits. These calls block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from supervisor.core.errors import DatabaseUnavailable
from supervisor.db import migrations
from supervisor.db.connect import connect
from supervisor.db.statements import Sql


class Live(NamedTuple):
    """A live run; due_s: seconds until it is ready, None for ever; shut: its queue, which is paused, by whom and why."""

    run_id: UUID
    workflow: str
    key: str | None
    owned: bool
    wait_kind: int | None
    detail: str | None
    due_s: float | None
    shut: tuple[str, str, str | None] | None


class TestingCalls:
    """One session. Every method raises DatabaseUnavailable when it can't be asked."""

    def __init__(self, dsn: str, schema: str) -> None:
        self._sql, self.schema = Sql(schema), schema
        self._conn = connect(dsn, purpose="test environment", schema=schema, profile="host", settings={"statement_timeout": "120000"})

    def migrate(self) -> None:
        """Make the schema, or bring it up to date."""
        migrations.migrate(self._conn, self.schema)

    def next_due_s(self) -> float | None:
        """Seconds until the next run that nobody has, and somebody may take, is ready; None: none waits for a time."""
        found: float | None = self._rows("next_due_s")[0][0]
        return found

    def skip(self, seconds: float) -> None:
        self._rows("skip_time", seconds)

    def live(self) -> Sequence[Live]:
        return [
            Live(run_id, workflow, key, owned, kind, detail, due_s, None if by is None else (queue, by, reason))
            for run_id, workflow, key, owned, kind, detail, due_s, queue, by, reason in self._rows("live_runs")
        ]

    def runs(self) -> Sequence[UUID]:
        return [run_id for (run_id,) in self._rows("all_runs")]

    def drop_schema(self) -> None:
        self._rows("drop_schema")

    def close(self) -> None:
        self._conn.close()

    def _rows(self, name: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            cursor = psycopg.RawCursor(self._conn).execute(self._sql.get(name).encode(), values)
            return cursor.fetchall() if cursor.description is not None else []
        except psycopg.Error as error:
            raise DatabaseUnavailable(f"{name}: {str(error).splitlines()[0]}") from None


__all__ = ["Live", "TestingCalls"]
