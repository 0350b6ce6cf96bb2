"""What a parent asks before and after its work, one method each, on a session that is opened when needed and again when lost. These calls block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

from supervisor.core.errors import DatabaseUnavailable
from supervisor.db.connect import connect
from supervisor.db.statements import Sql


class HeldUp(NamedTuple):
    """A paused queue, who paused it, and how many runs wait there for its resume."""

    queue: str
    by: str
    reason: str | None
    since: datetime
    runs: int


class HostCalls:
    """What a parent asks of the database. Every method raises DatabaseUnavailable when it can't be asked."""

    def __init__(self, dsn: str, schema: str) -> None:
        self._dsn, self._schema, self._sql = dsn, schema, Sql(schema)
        self._conn: psycopg.Connection[Any] | None = None

    def _session(self) -> psycopg.Connection[Any]:
        if self._conn is None or self._conn.closed:
            self._conn = connect(self._dsn, purpose="parent", schema=self._schema, profile="host")
        return self._conn

    def _rows(self, name: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
        conn = self._session()
        try:
            cursor = conn.execute(self._sql.get(name), parameters)
            return cursor.fetchall() if cursor.description is not None else []
        except psycopg.Error as error:
            raise self._broken(name, error) from None

    def _broken(self, what: str, error: psycopg.Error) -> DatabaseUnavailable:
        if isinstance(error, psycopg.OperationalError):
            self.close()
        return DatabaseUnavailable(f"{what}: {str(error).splitlines()[0]}")

    def anything_left(self, queues: list[int] | None = None) -> bool:
        left: bool = self._rows("anything_left", (queues, queues))[0][0]
        return left

    def held_up(self) -> list[HeldUp]:
        """Paused queues in which live runs stand that nobody has."""
        return [HeldUp(*row) for row in self._rows("held_up")]

    def connections(self) -> tuple[int, int, int]:
        """The server's sessions: at most, reserved for other roles than ours, in use by others than this process."""
        most, reserved, used = self._rows("connections")[0]
        return most, reserved, used

    def failed_runs(self) -> int:
        """Runs that ended otherwise than completed, in all of the kept history."""
        n: int = self._rows("failed_runs")[0][0]
        return n

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None
