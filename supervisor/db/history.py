"""One run's history, as the views show it: for `show`, and for whoever asks why a run does not move.

Reads only, through views that a viewer may read; decides nothing and formats nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from supervisor.core.errors import RunUnknown, SchemaMissing, SupervisorError
from supervisor.db import migrations
from supervisor.db.connect import unavailable
from supervisor.db.statements import Sql

ROWS_MAX = 10_000

Row = dict[str, Any]


@dataclass(frozen=True)
class History:
    """`run` is a row of runs, `wait` of waits (None once it ended), `steps` and `attempts` rows of theirs, at most 10,000."""

    run: Row
    wait: Row | None
    steps: Sequence[Row]
    attempts: Sequence[Row]


def read(conn: psycopg.Connection, schema: str, which: str) -> History:
    """Read the run that *which* names: a run id, else a key. Raises RunUnknown, or an error that lists a key's runs."""
    sql = Sql(schema)
    try:
        run_id = _run_id(conn, sql, which)
        run = _rows(conn, sql, "show_run", run_id)
        if not run:
            raise RunUnknown(which)
        wait = _rows(conn, sql, "show_wait", run_id)
        steps, attempts = (_rows(conn, sql, name, run_id, ROWS_MAX) for name in ("show_steps", "show_attempts"))
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedFunction, psycopg.errors.InvalidSchemaName):
        raise SchemaMissing(
            f"schema {schema!r} has no tables of pgsupervisor, or older ones; make them: {migrations.command(schema)}"
        ) from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise SchemaMissing(
            f"role {conn.info.user!r} may not read schema {schema!r} ({str(error).splitlines()[0]}); "
            f'grant it the engine\'s role: GRANT {sql.tokens["role_operator"]} TO "{conn.info.user}"'
        ) from None
    except psycopg.OperationalError as error:
        raise unavailable(error) from None
    return History(run[0], wait[0] if wait else None, steps, attempts)


def _run_id(conn: psycopg.Connection, sql: Sql, which: str) -> uuid.UUID:
    try:
        return uuid.UUID(which)
    except ValueError:
        pass
    found = _rows(conn, sql, "show_same_key", which)
    if not found:
        raise RunUnknown(f"with the id or key {which!r}")
    if len(found) > 1:
        names = ", ".join(f"{each['run_id']} ({each['workflow']})" for each in found[:5])
        raise SupervisorError(f"key {which!r} names {len(found)} runs of different workflows: {names}; give the run's id")
    run_id: uuid.UUID = found[0]["run_id"]
    return run_id


def _rows(conn: psycopg.Connection, sql: Sql, name: str, *values: object) -> list[Row]:
    cursor = psycopg.RawCursor(conn, row_factory=dict_row)
    return cursor.execute(sql.get(name).encode(), values).fetchall()
