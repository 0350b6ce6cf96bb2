"""The project's words for what the server refuses to whoever reads the views: no schema, no right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from supervisor.core.errors import PermissionMissing, SchemaMissing
from supervisor.db import migrations
from supervisor.db.statements import Sql


def no_schema(schema: str) -> SchemaMissing:
    return SchemaMissing(f"schema {schema!r} of the database has no tables of pgsupervisor, or older ones; make them: {migrations.command(schema)}")


def no_right(schema: str, user: str, role: str, text: str, what: str = "this") -> PermissionMissing:
    """What *text* says the server refused *user*, who lacks *role* of the engine's."""
    return PermissionMissing(
        f"role {user!r} may not do {what} in schema {schema!r} ({text}); "
        f'grant it the engine\'s role: GRANT {Sql(schema).tokens[f"role_{role}"]} TO "{user}"'
    )


@contextmanager
def told(conn: psycopg.Connection, schema: str, role: str = "viewer") -> Iterator[None]:
    """A missing schema becomes SchemaMissing, a missing right PermissionMissing that names the *role* which has it."""
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedFunction, psycopg.errors.UndefinedColumn, psycopg.errors.InvalidSchemaName):
        raise no_schema(schema) from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise no_right(schema, conn.info.user, role, str(error).splitlines()[0]) from None
