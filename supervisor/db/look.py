"""Who works and what stands in the queues, as the views show it: for `workers` and `top`. Reads only, formats nothing."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import dict_row

from supervisor.core.errors import SchemaMissing
from supervisor.db import migrations
from supervisor.db.statements import Sql

Row = dict[str, Any]


def workers(conn: psycopg.Connection, schema: str, host: str) -> list[Row]:
    """Rows of the view workers: those that live, and those that died within the hour. `runs` is None for workers of *host*."""
    return _rows(conn, schema, "look_at_workers", host)


def queues(conn: psycopg.Connection, schema: str) -> list[Row]:
    """Rows of the view queues; 0.3 s per million live runs."""
    return _rows(conn, schema, "look_at_queues")


def _rows(conn: psycopg.Connection, schema: str, name: str, *values: object) -> list[Row]:
    cursor = psycopg.RawCursor(conn, row_factory=dict_row)
    try:
        return cursor.execute(Sql(schema).get(name).encode(), values).fetchall()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        raise SchemaMissing(f"schema {schema!r} has no tables of pgsupervisor, or older ones; make them: {migrations.command(schema)}") from None
    except psycopg.errors.InsufficientPrivilege as error:
        tokens = Sql(schema).tokens
        raise SchemaMissing(
            f"role {conn.info.user!r} may not read schema {schema!r} ({str(error).splitlines()[0]}); "
            f'grant it the engine\'s role: GRANT {tokens["role_viewer"]} TO "{conn.info.user}"'
        ) from None
