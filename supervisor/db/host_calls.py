"""The parent's statements, one method each, on one session that is opened when needed and opened again when lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from supervisor.core.errors import DatabaseUnavailable
from supervisor.db import partitions
from supervisor.db.connect import connect
from supervisor.db.statements import Sql


@dataclass(frozen=True)
class LiveWorker:
    """A worker that nobody has declared dead."""

    id: int
    application_name: str
    pid: int
    host: str
    age_s: float
    lock_free: bool


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

    def terminate_sessions(self, application_name: str) -> None:
        """End a worker's sessions, by the name of the loop's; returns without waiting for them."""
        names = [application_name, application_name.replace(": worker ", ": tx ")]
        for (pid,) in self._rows("backends_of", (names,)):
            self._rows("terminate", (pid,))

    def bury(self, worker_id: int, why: str) -> bool:
        """Declare a worker dead; False when it was already."""
        return bool(self._rows("bury_worker", (why, worker_id)))

    def release_tasks(self, worker_id: int, limit: int, executing: list[UUID] | None) -> int:
        """Give back up to *limit* tasks; *executing*: what the worker was doing when it died, None when nobody knows."""
        parameters = {"worker": worker_id, "limit": limit, "seen": executing is not None, "executing": executing or []}
        return len(self._rows("release_tasks", parameters))

    def live_workers(self) -> list[LiveWorker]:
        return [
            LiveWorker(id, f"pgsupervisor: worker {boot.hex[:8]}", pid, host, age_s, lock_free)
            for id, boot, _supervisor, pid, host, age_s, lock_free in self._rows("live_workers")
        ]

    def server_age_s(self) -> float:
        age_s: float = self._rows("server_age_s")[0][0]
        return age_s

    def orphans(self) -> list[int]:
        return [owner for (owner,) in self._rows("orphans")]

    def wake_parked_parents(self) -> int:
        """Wake parents whose children have ended though nobody woke them; returns how many."""
        parents = [run_id for (run_id,) in self._rows("parked_parents")]
        if parents:
            self._rows("wake_forgotten", (parents,))
        return len(parents)

    def anything_left(self, queues: list[int] | None = None) -> bool:
        left: bool = self._rows("anything_left", (queues, queues))[0][0]
        return left

    def connections(self) -> tuple[int, int, int]:
        """The server's sessions: at most, reserved for other roles than ours, in use by others than this process."""
        most, reserved, used = self._rows("connections")[0]
        return most, reserved, used

    def failed_runs(self) -> int:
        """Runs that ended otherwise than completed, in all of the kept history."""
        n: int = self._rows("failed_runs")[0][0]
        return n

    def make_partitions(self) -> int:
        """Make the partitions that the days ahead need; returns how many tables were made."""
        conn = self._session()
        try:
            return partitions.ensure(conn, self._sql)
        except psycopg.Error as error:
            raise self._broken("partitions", error) from None

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None
