"""Histories of runs as they are stored, one in memory at a time: for `replay` and `export`.

A session that can't write, and statements that are short: a sample of ids, then each run by slices of its records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import msgspec
import psycopg

from supervisor.core.errors import HistoryTooLarge, RunUnknown, UnknownWorkflow
from supervisor.core.histories import STATUSES, History, Pending, Recorded, kind_name, moment
from supervisor.db import connect as _connect
from supervisor.db import refusals
from supervisor.db.statements import Sql

STEPS_MAX, HISTORY_MAX_BYTES = 50_000, 64 << 20  # what a process holds of it is a few times that
SLICE_RECORDS = 1000


class Histories:
    """Reads. Raises DatabaseUnavailable, SchemaMissing, PermissionMissing."""

    def __init__(self, conn: psycopg.Connection, schema: str) -> None:
        self._conn, self._schema, self._sql = conn, schema, Sql(schema)

    def sample(self, workflow: str, since_s: float, most: int, version: str | None) -> Sequence[UUID]:
        """At most *most* runs of a workflow that were started within *since_s*. Raises UnknownWorkflow."""
        try:
            return [run_id for (run_id,) in self._rows("history_sample", workflow, since_s, most, version)]
        except psycopg.Error as error:
            if error.sqlstate == "SV001":
                raise UnknownWorkflow(workflow) from None
            raise

    def find(self, which: str) -> UUID:
        """The run of an id or a key. Raises RunUnknown."""
        from supervisor.db.history import one_of

        try:
            return UUID(which)
        except ValueError:
            return one_of(which, [(run_id, workflow) for run_id, workflow in self._rows("history_named", which)])

    def read(self, run_id: UUID) -> History:
        """The whole history of one run. Raises RunUnknown, HistoryTooLarge.

        A live run goes on while it is read: what it has asked for is read first, so whatever of that is answered meanwhile is a record then.
        """
        found = self._rows("history_run", run_id)
        if not found:
            raise RunUnknown(run_id)
        workflow, key, version, status, codec, input, steps, size, drawn_from = found[0]
        if steps > STEPS_MAX or size > HISTORY_MAX_BYTES:
            raise HistoryTooLarge(run_id, steps, size, STEPS_MAX, HISTORY_MAX_BYTES)
        pending = [Pending(*row) for row in self._rows("history_pending", run_id)]
        records = list(self._records(run_id))
        answered = {record.seq for record in records}
        return History(
            run_id=run_id, workflow=workflow, version=version, key=key, status=status, input=msgspec.Raw(input), records=records,
            pending=[each for each in pending if each.seq not in answered], drawn_from=drawn_from,
        )  # fmt: skip

    def _records(self, run_id: UUID) -> Iterator[Recorded]:
        after = -1
        while rows := self._rows("history_steps", run_id, after, SLICE_RECORDS):
            for after, seq, kind, status, name, result, ended in rows:
                yield Recorded(seq, kind_name(kind), STATUSES[status], name, moment(ended), msgspec.Raw(result if result is not None else b"null"))

    def _rows(self, name: str, *values: object) -> list[tuple[Any, ...]]:
        with refusals.told(self._conn, self._schema):
            return psycopg.RawCursor(self._conn).execute(self._sql.get(name).encode(), values, binary=True).fetchall()


@contextmanager
def reading(dsn: str | None, schema: str) -> Iterator[Histories]:
    """A session that can't write."""
    settings = {"default_transaction_read_only": "on"}
    with _connect.connect(_connect.resolve_dsn(dsn), purpose="histories", schema=schema, profile="host", settings=settings) as conn, _connect.told_when_broken():
        yield Histories(conn, schema)
