"""The project's words for what the server refuses to whoever reads the views: no schema, no right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import psycopg

from supervisor.core.errors import (
    OperationRefused,
    PermissionMissing,
    QueueUnknown,
    RunEnded,
    ScheduleExists,
    ScheduleInvalid,
    ScheduleUnknown,
    SchemaMissing,
    SupervisorError,
    TokenClosed,
    TokenUnknown,
)
from supervisor.db import migrations
from supervisor.db.statements import Sql


def no_schema(schema: str, dbname: str) -> SchemaMissing:
    return SchemaMissing(f"schema {schema!r} of database {dbname!r} has no tables of pgsupervisor, or older ones; make them: {migrations.command(schema)}")


def no_right(schema: str, user: str, role: str, text: str, what: str = "this") -> PermissionMissing:
    """What *text* says the server refused *user*, who lacks *role* of the engine's. *what*: a verb, or what it was about."""
    asked = "" if what in ("a question", "this") else what
    return PermissionMissing(
        f"role {user!r} may not {f'do what {asked} asks for' if asked else 'ask for this'} in schema {schema!r} ({text}); "
        f'grant it the engine\'s role: GRANT {Sql(schema).tokens[f"role_{role}"]} TO "{user}"'
    )


def operated(state: str, detail: str) -> SupervisorError | None:
    """What the functions of operators, and those for tokens, schedules and queues, refuse, by its SQLSTATE; None for anything else."""
    if state == "SV029":
        facts = json.loads(detail)
        return RunEnded(UUID(facts["run_id"]), facts["status"], facts["verb"])
    if state == "SV030":
        facts = json.loads(detail)
        return OperationRefused(UUID(facts["run_id"]), facts["verb"], facts["why"])
    if state == "SV031":
        return TokenUnknown()
    if state == "SV032":
        facts = json.loads(detail)
        return TokenClosed(UUID(facts["run_id"]), facts["seq"], facts["attempt"], facts["why"])
    if state == "SV038":
        return ScheduleExists(detail)
    if state == "SV039":
        return ScheduleUnknown(detail)
    if state == "SV040":
        facts = json.loads(detail)
        return ScheduleInvalid(facts["schedule"], facts["why"], term=facts.get("term"))
    if state == "SV041":
        facts = json.loads(detail)
        return QueueUnknown(facts["queue"] or "", facts["known"], facts["queues"])
    return None


@contextmanager
def told(conn: psycopg.Connection, schema: str, role: str = "viewer") -> Iterator[None]:
    """A missing schema becomes SchemaMissing, a missing right PermissionMissing that names the *role* which has it."""
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedFunction, psycopg.errors.UndefinedColumn, psycopg.errors.InvalidSchemaName):
        raise no_schema(schema, conn.info.dbname) from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise no_right(schema, conn.info.user, role, str(error).splitlines()[0]) from None
