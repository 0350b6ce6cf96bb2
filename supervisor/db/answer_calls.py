"""What is asked of the database to answer queries: which there are, and the history of the run in question.

One session of a process that executes nothing of the runs. Reads and writes of it touch the rows of queries and nothing of runs. These calls block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from supervisor.core.errors import DatabaseUnavailable
from supervisor.db.connect import connect
from supervisor.db.statements import Sql


class Asked(NamedTuple):
    """One query that was taken; `tries` counts this time too."""

    id: UUID
    run_id: UUID
    name: str
    input: bytes | None
    tries: int


class Started(NamedTuple):
    """A run as it was started, and how much of a history it has."""

    workflow: str
    key: str | None
    input: bytes
    steps: int
    result_bytes: int
    reached: int | None  # the largest seq of what is under way
    drawn_from: UUID | None  # whose random numbers it draws, if not its own


class AnswerCalls:
    """Every method raises DatabaseUnavailable when it can't be asked."""

    def __init__(self, dsn: str, schema: str) -> None:
        self._sql = Sql(schema)
        self._conn = connect(dsn, purpose="answers", schema=schema, profile="host")

    def workflows(self, names: Sequence[str]) -> dict[int, str]:
        """Number and name of those that are registered."""
        return dict(self._rows("query_workflows", list(names)))

    def take(self, workflows: Mapping[int, str], most: int) -> list[Asked]:
        """The oldest open query to runs that code of these versions may answer (by the workflow's number), and others to the same run; they are
        this session's while it is there."""
        return [Asked(*row) for row in self._rows("take_queries", list(workflows), most, list(workflows.values()))]

    def answer(self, answers: Sequence[tuple[UUID, int, bytes]]) -> None:
        """(query, 1 answered or 2 failed, JSON)."""
        self._rows("answer_queries", [each[0] for each in answers], [each[1] for each in answers], [each[2] for each in answers])

    def drop(self) -> None:
        self._rows("drop_queries")

    def run(self, run_id: UUID) -> Started | None:
        """None where its history was pruned."""
        found = self._rows("query_run", run_id)
        return Started(*found[0]) if found else None

    def steps(self, run_id: UUID) -> list[tuple[Any, ...]]:
        """seq, kind, status, name, result, ended of every record, in the order of delivery. All of one moment: records only ever follow one another."""
        return self._rows("query_steps", run_id)

    def close(self) -> None:
        self._conn.close()

    def _rows(self, name: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            cursor = psycopg.RawCursor(self._conn).execute(self._sql.get(name).encode(), values, binary=True)
            return cursor.fetchall() if cursor.description is not None else []
        except psycopg.Error as error:
            raise DatabaseUnavailable(f"{name}: {str(error).splitlines()[0]}") from None
