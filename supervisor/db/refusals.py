"""The project's words for what the server refuses to whoever reads the views: no schema, no right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from supervisor.core.errors import PermissionMissing, SchemaMissing
from supervisor.db import migrations
from supervisor.db.statements import Sql


@contextmanager
def told(conn: psycopg.Connection, schema: str, role: str = "viewer") -> Iterator[None]:
    """A missing schema becomes SchemaMissing, a missing right PermissionMissing that names the *role* which has it."""
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedFunction, psycopg.errors.UndefinedColumn, psycopg.errors.InvalidSchemaName):
        raise SchemaMissing(f"schema {schema!r} has no tables of pgsupervisor, or older ones; make them: {migrations.command(schema)}") from None
    except psycopg.errors.InsufficientPrivilege as error:
        tokens, user = Sql(schema).tokens, conn.info.user
        raise PermissionMissing(
            f"role {user!r} may not do this in schema {schema!r} ({str(error).splitlines()[0]}); "
            f'grant it the engine\'s role: GRANT {tokens[f"role_{role}"]} TO "{user}"'
        ) from None
