"""Migrations: bring one schema to the state that this program's sql/migrations describes.

Owns the schema's existence, the table `migration`, and every change of the tables' shape. Nothing else runs DDL
but the making of partitions. Invariant: a file and its row in `migration` commit together, and the row goes in
first; so two migrators never both run a file, even where a pooler makes their advisory lock worthless.

The connection must be in autocommit and outside a transaction; what is set here is set for one transaction only.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import NamedTuple

import psycopg
from psycopg import errors

from supervisor.core.errors import (
    DatabaseUnavailable,
    MigrationChanged,
    PermissionMissing,
    SchemaMissing,
    SchemaTooNew,
    SchemaTooOld,
    SupervisorError,
)
from supervisor.core.version import VERSION
from supervisor.db import partitions
from supervisor.db.statements import MigrationFile, Sql, migration_files

SERVER_MIN = 150000
LOCK_TIMEOUT_MS = 2_000  # a waiting ALTER blocks everybody behind it: give up soon, try again
FILE_TRIES = 30  # with the pauses below about two minutes
PAUSE_MAX_S = 5.0
# First argument after {lock_class}: negative numbers are the engine's own, positive ones are ids of workers.
LOCK_MIGRATE = -1

Progress = Callable[[str], None]


class Applied(NamedTuple):
    """One migration that `migrate` ran, or in a dry run would run. `sql` is the text as sent."""

    number: int
    name: str
    checksum: str
    elapsed_ms: float
    sql: str


class State(NamedTuple):
    """How a schema stands to this program's files. `applied_at` is None for what is pending."""

    number: int
    name: str
    applied_at: object | None
    by_version: str | None


def migrate(
    conn: psycopg.Connection,
    schema: str = "supervisor",
    *,
    dry_run: bool = False,
    show_sql: bool = False,
    progress: Progress | None = None,
) -> list[Applied]:
    """Apply every pending migration, each in a transaction of its own; return what was applied, in order.

    dry_run   changes nothing and returns what would be applied.
    show_sql  hands each text to *progress* before it is sent.
    Raises    MigrationChanged, SchemaTooNew; PermissionMissing where the role may not make or change the schema, also where nothing is pending;
              DatabaseUnavailable for a server too old or a lock that can't be had. What was applied before stays.
    """
    say = progress or (lambda _line: None)
    sql = Sql(schema)
    _refuse_old_server(conn)
    if dry_run:
        pending = _pending(_recorded(conn, sql), schema)
        return [_planned(sql, each, say if show_sql else None) for each in pending]
    _create_schema(conn, sql)
    _lock(conn, sql, say)
    try:
        _create_table(conn, sql)
        done = [_apply(conn, sql, each, say, show_sql) for each in _pending(_recorded(conn, sql), schema)]
        _finish(conn, sql, say)
    finally:
        _unlock(conn, sql)
    return [each for each in done if each is not None]


def status(conn: psycopg.Connection, schema: str = "supervisor") -> list[State]:
    """Every migration that the schema or this program knows, in order; empty only if neither knows any."""
    recorded = _recorded(conn, Sql(schema))
    states = [State(number, name, applied_at, by_version) for number, (name, _, applied_at, by_version) in recorded.items()]
    states += [State(each.number, each.name, None, None) for each in migration_files() if each.number not in recorded]
    return sorted(states)


def check(conn: psycopg.Connection, schema: str = "supervisor", role: str = "worker") -> None:
    """Raise SchemaMissing, SchemaTooOld, SchemaTooNew or MigrationChanged unless this program fits the schema; *role*: the least that it needs, named where a right is missing."""
    recorded = _recorded(conn, Sql(schema), role)
    where = f"schema {schema!r} of database {conn.info.dbname!r}"
    if not recorded:
        raise SchemaMissing(f"{where} has no tables of pgsupervisor; make them: {command(schema)}")
    pending = _pending(recorded, schema)
    if pending:
        raise SchemaTooOld(
            f"{where} is at migration {max(recorded)} and this program (pgsupervisor {VERSION}) needs {pending[-1].number}; "
            f"bring it up: {command(schema)}"
        )


def command(schema: str) -> str:
    """What to type to migrate *schema*."""
    from shlex import quote

    return "python -m supervisor migrate" + ("" if schema == "supervisor" else f" --schema {quote(schema)}")


# ── what is there ────────────────────────────────────────────────────────────────────────────────────────────────


def _recorded(conn: psycopg.Connection, sql: Sql, needed: str = "owner") -> dict[int, tuple[str, str, object, str]]:
    """number → name, checksum, applied_at, by_version; empty where the table does not exist."""
    try:
        if not _row(conn, "SELECT pg_catalog.to_regclass({schema_literal} || '.migration') IS NOT NULL", sql)[0]:
            return {}
        rows = conn.execute(sql.render(_READ).encode()).fetchall()
    except errors.InsufficientPrivilege as error:
        role = conn.info.user
        raise PermissionMissing(
            f"role {role!r} may not read schema {sql.schema!r}; grant it the engine's role for this: "
            f"GRANT {sql.tokens[f'role_{needed}']} TO \"{role}\""
        ) from error
    return {number: (name, checksum, applied_at, by_version) for number, name, checksum, applied_at, by_version in rows}


def _pending(recorded: dict[int, tuple[str, str, object, str]], schema: str) -> list[MigrationFile]:
    """What is to be applied. Refuses a schema that is newer than this program or was made from other texts."""
    known = migration_files()
    newer = sorted(recorded.keys() - {each.number for each in known})
    if newer:
        raise SchemaTooNew(
            f"schema {schema!r} is at migration {newer[-1]} ({recorded[newer[-1]][0]}, by pgsupervisor {recorded[newer[-1]][3]}) "
            f"and this program (pgsupervisor {VERSION}) knows {len(known)}; upgrade the program: pip install -U pgsupervisor"
        )
    for each in known:
        if each.number in recorded and recorded[each.number][1] != each.checksum:
            raise MigrationChanged(
                f"migration {each.number:04d}_{each.name} was applied to schema {schema!r} with the text "
                f"{recorded[each.number][1][:12]} and is {each.checksum[:12]} in this program; "
                f"install the program that applied it (pgsupervisor {recorded[each.number][3]}), "
                f"or put a change of the schema into a new migration"
            )
    return [each for each in known if each.number not in recorded]


def _planned(sql: Sql, file: MigrationFile, say: Progress | None) -> Applied:
    text = sql.render(file.text)
    if say:
        say(text)
    return Applied(file.number, file.name, file.checksum, 0.0, text)


def _refuse_old_server(conn: psycopg.Connection) -> None:
    if conn.info.server_version < SERVER_MIN:
        raise DatabaseUnavailable(
            f"the server is PostgreSQL {conn.info.server_version // 10000} and pgsupervisor needs 15 or newer; use a newer server"
        )


# ── doing it ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _create_schema(conn: psycopg.Connection, sql: Sql) -> None:
    there = conn.execute(sql.render(_SCHEMA).encode()).fetchone()
    if there is not None:
        owner, may_create = there
        if not may_create:
            raise PermissionMissing(
                f"role {conn.info.user!r} may not change schema {sql.schema!r}, which belongs to {owner!r}; migrate as {owner!r}, "
                f'or let it run: GRANT {owner} TO "{conn.info.user}"'
            )
        return
    try:
        conn.execute(sql.render("CREATE SCHEMA IF NOT EXISTS {schema}").encode())
    except (errors.UniqueViolation, errors.DuplicateSchema):
        pass  # another migrator made it in the same moment; IF NOT EXISTS does not look that far
    except errors.InsufficientPrivilege as error:
        database, role = conn.info.dbname, conn.info.user
        raise PermissionMissing(
            f"role {role!r} may not create schema {sql.schema!r} in database {database!r}; migrate as the database's owner, "
            f'or let the owner run: CREATE SCHEMA {sql.tokens["schema"]} AUTHORIZATION "{role}"'
        ) from error


def _lock(conn: psycopg.Connection, sql: Sql, say: Progress) -> None:
    """Take the migration lock by asking again and again: a blocking wait would hold a snapshot and pin xmin."""
    waited_s, told_s, pause_s = 0.0, 0.0, 0.05
    while not _row(conn, f"SELECT pg_catalog.pg_try_advisory_lock({{lock_class}}, {LOCK_MIGRATE})", sql)[0]:
        if waited_s >= told_s:
            say(f"another migration of schema {sql.schema!r} is running{_holder(conn, sql)}; waiting ({waited_s:.0f} s)")
            told_s = max(5.0, told_s * 2)
        time.sleep(pause_s)
        waited_s += pause_s
        pause_s = min(pause_s * 1.5, 1.0)


def _holder(conn: psycopg.Connection, sql: Sql) -> str:
    row = conn.execute(sql.render(_HOLDER).encode()).fetchone()
    return f" (process {row[0]} of the server, {row[1]!r}, since {row[2]:%H:%M:%S %Z})" if row else ""


def _unlock(conn: psycopg.Connection, sql: Sql) -> None:
    if not conn.closed and not conn.broken:
        _row(conn, f"SELECT pg_catalog.pg_advisory_unlock({{lock_class}}, {LOCK_MIGRATE})", sql)


def _create_table(conn: psycopg.Connection, sql: Sql) -> None:
    if not _row(conn, "SELECT pg_catalog.to_regclass({schema_literal} || '.migration') IS NOT NULL", sql)[0]:
        try:
            with conn.transaction():
                conn.execute(_SETTINGS)  # else a default would be bound to what the role's search_path calls clock_timestamp
                conn.execute(sql.render(_TABLE).encode())
        except (errors.UniqueViolation, errors.DuplicateTable, errors.DuplicateObject):
            pass  # another migrator made it in the same moment


def _apply(conn: psycopg.Connection, sql: Sql, file: MigrationFile, say: Progress, show_sql: bool) -> Applied | None:
    """Run one file; again when a lock was not to be had in time. None when another migrator was faster."""
    say(f"migration {file.number:04d}_{file.name}")
    text = sql.render(file.text)
    if show_sql:
        say(text)
    for attempt in range(1, FILE_TRIES + 1):
        began = time.monotonic()
        try:
            if not _apply_once(conn, sql, file, text):
                return None
            return Applied(file.number, file.name, file.checksum, (time.monotonic() - began) * 1000, text)
        except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
            if attempt == FILE_TRIES:
                raise DatabaseUnavailable(
                    f"migration {file.number:04d}_{file.name} could not lock what it changes in {FILE_TRIES} tries "
                    f"({_first_line(error)}); nothing of it was done: end the long transactions "
                    f"(select pid, query from pg_stat_activity where xact_start < now() - interval '1 minute'), then try again"
                ) from error
            pause_s = min(PAUSE_MAX_S, 0.2 * 1.5**attempt) * random.uniform(0.5, 1.0)
            say(f"migration {file.number:04d}_{file.name}: {_first_line(error)}; try {attempt} of {FILE_TRIES}, next in {pause_s:.1f} s")
            time.sleep(pause_s)
        except psycopg.errors.DatabaseError as error:
            if conn.broken:
                raise
            raise _failed(sql, file, error) from error
    return None


def _apply_once(conn: psycopg.Connection, sql: Sql, file: MigrationFile, text: str) -> bool:
    """One transaction: the row first (its primary key stops a second migrator), the file, no right left to PUBLIC."""
    with conn.transaction():
        conn.execute(_SETTINGS)
        if conn.info.server_version >= 170000:
            conn.execute(b"SET LOCAL transaction_timeout = 0")
        row = (file.number, file.name, file.checksum, VERSION)
        if not conn.execute(sql.render(_RECORD).encode(), row).rowcount:
            return False
        conn.execute(text.encode())
        conn.execute(sql.render(_NOTHING_FOR_PUBLIC).encode())
    return True


def _failed(sql: Sql, file: MigrationFile, error: psycopg.Error) -> SupervisorError:
    near = ""
    position = error.diag.statement_position
    if position:
        before = sql.render(file.text)[: int(position)]
        near = f", line {before.count(chr(10)) + 1}"
    return SupervisorError(
        f"migration {file.number:04d}_{file.name}{near} failed on schema {sql.schema!r}: {_first_line(error)} (SQLSTATE {error.sqlstate}); "
        f"nothing of it was done, earlier ones stay; mend the cause and run {command(sql.schema)} again"
    )


def _finish(conn: psycopg.Connection, sql: Sql, say: Progress) -> None:
    """Fill `cell` and make the partitions. Runs at every `migrate`, so that an interrupted one is completed."""
    if not _row(conn, "SELECT pg_catalog.count(*) FROM {schema}.cell", sql)[0]:
        identifier, why_not = _system_identifier(conn)
        if why_not:
            say(f"the server's identity is not recorded ({why_not}); a restored clone will not be told from this server")
        conn.execute(sql.render(_CELL).encode(), (identifier,))
    made = _make_partitions(conn, sql, say)
    if made:
        say(f"made {made} partitions")


def _make_partitions(conn: psycopg.Connection, sql: Sql, say: Progress) -> int:
    for attempt in range(1, FILE_TRIES + 1):
        try:
            return partitions.ensure(conn, sql)
        except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
            if attempt == FILE_TRIES:
                raise DatabaseUnavailable(
                    f"partitions could not be made in {FILE_TRIES} tries ({_first_line(error)}); the tables are migrated: "
                    f"end the long transactions and run {command(sql.schema)} again"
                ) from error
            say(f"partitions: {_first_line(error)}; try {attempt} of {FILE_TRIES}")
            time.sleep(min(PAUSE_MAX_S, 0.2 * 1.5**attempt) * random.uniform(0.5, 1.0))
    return 0


def _system_identifier(conn: psycopg.Connection) -> tuple[int, str]:
    """The cluster's identity, or 0 and why it can't be read (managed servers keep pg_control_system to themselves)."""
    try:
        row = conn.execute(b"SELECT system_identifier FROM pg_catalog.pg_control_system()").fetchone()
    except psycopg.DatabaseError as error:
        if conn.broken:
            raise
        return 0, _first_line(error)
    return (int(row[0]), "") if row else (0, "pg_control_system() returned nothing")


def _row(conn: psycopg.Connection, text: str, sql: Sql) -> tuple[object, ...]:
    row = conn.execute(sql.render(text).encode()).fetchone()
    assert row is not None, text
    return tuple(row)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


# ── the statements of migrating itself; sql/queries holds what runs after it ─────────────────────────────────────

_SCHEMA = """
SELECT n.nspowner::pg_catalog.regrole::pg_catalog.text, pg_catalog.has_schema_privilege(n.oid, 'CREATE')
FROM pg_catalog.pg_namespace n WHERE n.oid = pg_catalog.to_regnamespace({schema_literal})
"""

_READ = "SELECT number, name, checksum, applied_at, by_version FROM {schema}.migration ORDER BY number"

_TABLE = """
CREATE TABLE IF NOT EXISTS {schema}.migration (
    number     int4 PRIMARY KEY CHECK (number > 0),
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    by_version text NOT NULL
);
COMMENT ON TABLE {schema}.migration IS 'Which numbered files of sql/migrations this schema was made from, and by which program';
REVOKE ALL ON {schema}.migration FROM PUBLIC;
"""

# check_function_bodies: a body that does not parse must fail here; search_path: the role's own could hold another `hashint4`
_SETTINGS = f"""
SET LOCAL lock_timeout = '{LOCK_TIMEOUT_MS}ms';
SET LOCAL statement_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL check_function_bodies = on;
SET LOCAL client_min_messages = notice;
SET LOCAL standard_conforming_strings = on;
SET LOCAL synchronous_commit = on;
""".encode()

_RECORD = """
INSERT INTO {schema}.migration (number, name, checksum, by_version) VALUES (%s, %s, %s, %s) ON CONFLICT (number) DO NOTHING
"""

# ALTER DEFAULT PRIVILEGES … IN SCHEMA can't take away what PUBLIC has by the global default (EXECUTE), so it is
# taken after every file, in its transaction
_NOTHING_FOR_PUBLIC = """
REVOKE ALL ON SCHEMA {schema} FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA {schema} FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA {schema} FROM PUBLIC;
"""

_CELL = "INSERT INTO {schema}.cell (system_identifier) VALUES (%s) ON CONFLICT (only_row) DO NOTHING"

_HOLDER = (
    """
SELECT a.pid, a.application_name, a.backend_start
FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
  AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
  AND l.classid::pg_catalog.int8 = ({lock_class}::pg_catalog.int8 & 4294967295)
  AND l.objid::pg_catalog.int8 = """
    + str(LOCK_MIGRATE & 0xFFFFFFFF)
)
