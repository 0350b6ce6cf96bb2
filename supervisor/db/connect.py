"""Sessions: where the database is, and how each kind of session is set up.

Owns the finding of the DSN, the connection profiles, and the words for "the database can't be reached".
Invariant: a password is in no message, no repr and no exception chain that leaves this file.

Profiles are set by statements after connecting, not by the startup packet's `options`, which poolers refuse, and
are read back: a session that is not as it should be is not handed out. The `client` profile sets nothing, so it
works through a pooler in transaction mode; what a start needs for durability is set inside `start_runs`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import psycopg
from psycopg import conninfo as _conninfo

from supervisor.core import settings as _settings
from supervisor.core.errors import ConfigInvalid, DatabaseUnavailable
from supervisor.db.moments import add_loaders
from supervisor.db.statements import checked_schema

Profile = Literal["client", "loop", "tx", "host"]

APPLICATION_NAME_BYTES_MAX = 63
VARIABLES = ("PGSUPERVISOR_DATABASE_URL", "DATABASE_URL")
_LIBPQ = ("PGSERVICE", "PGHOST", "PGHOSTADDR", "PGDATABASE", "PGPORT", "PGUSER")
_SECRET = re.compile("password|secret", re.IGNORECASE)
SECRET_MIN = 6  # characters, from which on it is hidden also within other words

_NOT_CONFIGURED = (
    "no database is configured; give one with {} or in PGSUPERVISOR_DATABASE_URL, "
    "or use the embedded server, which `python -m supervisor db start` starts where it does not run: export PGSUPERVISOR_DATABASE_URL=\"$(python -m supervisor db url)\""
)


# ── where ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Dsn:
    """Where the database is. `conninfo` may hold a password and is left out of the repr; `shown` never does."""

    conninfo: str = field(repr=False)
    source: str
    shown: str = ""

    def __str__(self) -> str:
        return f"{self.shown or 'the default of libpq'} ({self.source})"


def find_dsn(explicit: str | None = None, *, source: str = "--dsn", environ: Mapping[str, str] | None = None) -> Dsn | None:
    """The DSN by order of precedence, or None where nobody configured any.

    explicit, PGSUPERVISOR_DATABASE_URL, DATABASE_URL, [tool.pgsupervisor] dsn, then libpq's own PG* variables and
    service file, which libpq itself reads (`conninfo` is empty then). Raises ConfigInvalid for one that can't be used.
    """
    environ = os.environ if environ is None else environ
    if explicit is not None:
        if not explicit.strip():
            raise ConfigInvalid(f"{source} is empty, as an unset variable of the shell is; give a connection string, or leave it out to use what the environment says")
        return _dsn(explicit, source)
    for variable in VARIABLES:
        if environ.get(variable):
            return _dsn(environ[variable], variable)
    configured = _settings.load(environ={})
    if configured.dsn:
        return _dsn(configured.dsn, configured.sources["dsn"])
    named = [variable for variable in _LIBPQ if environ.get(variable)]
    if named:
        return Dsn("", ", ".join(named), " ".join(f"{variable}={environ[variable]}" for variable in named))
    return None


def resolve_dsn(explicit: str | None = None, *, source: str = "--dsn", environ: Mapping[str, str] | None = None) -> Dsn:
    """Like `find_dsn`, but raises ConfigInvalid that says both ways out where no database is configured."""
    found = find_dsn(explicit, source=source, environ=environ)
    if found is None:
        place = "postgresql://user@host/name"
        raise ConfigInvalid(_NOT_CONFIGURED.format(f"{source} {place}" if source == "--dsn" else source.replace("dsn", f'"{place}"')))
    return found


def schema_name() -> str:
    """The schema by PGSUPERVISOR_SCHEMA, else [tool.pgsupervisor] schema, else "supervisor"."""
    return checked_schema(_settings.load().schema)


def _dsn(text: str, source: str) -> Dsn:
    text = text.strip()
    scheme = re.match(r"([A-Za-z][A-Za-z0-9.-]*)(\+[A-Za-z0-9_]+)?://", text)
    if scheme and scheme[2]:
        raise ConfigInvalid(
            f"{source}: {scheme[0]}… names an SQLAlchemy driver, which libpq does not know; leave {scheme[2]!r} out: {scheme[1]}://…"
        )
    if scheme and scheme[1].lower() not in ("postgres", "postgresql"):
        raise ConfigInvalid(f"{source}: {scheme[0]}… is not PostgreSQL; give postgresql://user@host:port/name or host=… dbname=…")
    try:
        parts = _conninfo.conninfo_to_dict(text)
    except psycopg.Error:
        # libpq's own message repeats parts of the text, of which one may be the password
        raise ConfigInvalid(
            f"{source} can't be read as a connection string; give postgresql://user@host:port/name (special characters as %XX) "
            f"or host=… dbname=… user=… (values with spaces in single quotes)"
        ) from None
    return Dsn(text, source, _shown(parts))


def without_password(text: str) -> str | None:
    """The connection string *text* as it can be typed and shown to anybody; None for one that can't be read."""
    try:
        parts = _conninfo.conninfo_to_dict(text)
    except psycopg.Error:
        return None
    kept = {name: value for name, value in parts.items() if not _SECRET.search(name)}
    return text if kept == parts else _conninfo.make_conninfo("", **kept)


def _shown(parts: Mapping[str, object]) -> str:
    return " ".join(f"{name}={'***' if _SECRET.search(name) else value}" for name, value in parts.items() if value is not None)


# ── how ──────────────────────────────────────────────────────────────────────────────────────────────────────────

# Half-open networks: a dead peer is noticed after about 5 s idle (3 probes) and 10 s with data unacknowledged.
_TRANSPORT: dict[str, str | int] = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "target_session_attrs": "read-write",  # a standby, or a primary that was demoted, can't do anything for us
}

_EVERY = {
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "idle_session_timeout": "0",  # an idle worker is no reason to lose its advisory lock
    "TimeZone": "UTC",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "standard_conforming_strings": "on",
}

# Times in ms. A batch takes about 10 ms; 30 s leaves room for a checkpoint storm, not for a hung server.
# Plans: one cached while `task` was empty would scan it, 250 times slower (DESIGN §6).
_PROFILES: dict[Profile, dict[str, str]] = {
    "client": {},
    "loop": {
        "statement_timeout": "30000",
        "lock_timeout": "5000",
        "transaction_timeout": "60000",
        "idle_in_transaction_session_timeout": "30000",
        "search_path": "pg_catalog, pg_temp",
        "plan_cache_mode": "force_generic_plan",
        "enable_seqscan": "off",
        "enable_sort": "off",
        "enable_bitmapscan": "off",
        "jit": "off",
    },
    # the application's own SQL: its search_path and its planner; a step's `timeout=` is the finer limit
    "tx": {
        "statement_timeout": "600000",
        "lock_timeout": "30000",
        "transaction_timeout": "900000",
        "idle_in_transaction_session_timeout": "300000",
    },
    "host": {
        "statement_timeout": "10000",
        "lock_timeout": "1000",
        "transaction_timeout": "30000",
        "idle_in_transaction_session_timeout": "10000",
        "search_path": "pg_catalog, pg_temp",
        "jit": "off",
    },
}
_SINCE = {"transaction_timeout": 170000}

# The server's side of the same: a host that vanished without closing would keep its locks for two hours otherwise.
# Not for the client profile (it sets nothing) and not on unix sockets, which have no such settings.
_SERVER_TRANSPORT = {"tcp_keepalives_idle": "2", "tcp_keepalives_interval": "1", "tcp_keepalives_count": "3", "tcp_user_timeout": "10000"}


def connect(
    conninfo: str | Dsn,
    *,
    purpose: str,
    schema: str = "supervisor",
    profile: Profile = "client",
    settings: Mapping[str, str] | None = None,
) -> psycopg.Connection:
    """Open a session: autocommit, named `pgsupervisor: <purpose>`, with *profile* set and read back.

    conninfo   URL or key=value; what it says about keepalives, timeouts or target_session_attrs wins over ours.
    schema     named in errors only; a session belongs to no schema.
    settings   more server settings, over the profile's; numbers in the unit of pg_settings (ms for times).
    Raises     DatabaseUnavailable with what, why and what to do; never with a password.
    Cost       one round trip more than the connect for a profile that sets something, none for "client".
    """
    dsn = conninfo if isinstance(conninfo, Dsn) else Dsn(conninfo, "")
    given = given_parameters(dsn)
    parameters = session_parameters(given, purpose)
    try:
        conn = psycopg.connect(**parameters, autocommit=True, prepare_threshold=None)  # type: ignore[arg-type]
    except psycopg.Error as error:
        raise not_connected(error, given, dsn) from None
    if profile != "tx":  # the application reads its own tables as psycopg does
        add_loaders(conn.adapters)
    try:
        set_profile(conn, profile, {**server_transport(profile, conn.info.host), **(settings or {})})
    except psycopg.Error as error:
        conn.close()
        raise not_connected(error, given, dsn) from None
    except DatabaseUnavailable:
        conn.close()
        raise
    return conn


async def connect_async(conninfo: str | Dsn, *, purpose: str) -> psycopg.AsyncConnection:
    """`connect` with the profile "client", which sets nothing, for the running event loop."""
    dsn = conninfo if isinstance(conninfo, Dsn) else Dsn(conninfo, "")
    given = given_parameters(dsn)
    parameters = session_parameters(given, purpose)
    try:
        conn = await psycopg.AsyncConnection.connect(**parameters, autocommit=True, prepare_threshold=None)  # type: ignore[arg-type]
    except psycopg.Error as error:
        raise not_connected(error, given, dsn) from None
    add_loaders(conn.adapters)
    return conn


def given_parameters(dsn: Dsn) -> dict[str, str | int | None]:
    """What *dsn* itself says, by libpq's names. Raises ConfigInvalid, without the text, for one that can't be read."""
    try:
        return dict(_conninfo.conninfo_to_dict(dsn.conninfo))
    except psycopg.Error:
        _dsn(dsn.conninfo, dsn.source or "the connection string")
        raise ConfigInvalid("the connection string can't be read") from None


def session_parameters(given: Mapping[str, str | int | None], purpose: str) -> dict[str, str | int | None]:
    """How a session for *purpose* is opened: what was given wins over our transport settings."""
    return {**_TRANSPORT, **given, "application_name": application_name(purpose), "client_encoding": "UTF8"}


def server_transport(profile: Profile, host: str) -> dict[str, str]:
    """What the server's side of a session sets for noticing a dead peer; nothing on unix sockets."""
    return {} if profile == "client" or host.startswith("/") else dict(_SERVER_TRANSPORT)


def profile_settings(profile: Profile, server_version: int) -> dict[str, str]:
    """What *profile* sets on a server of that version, in the units of pg_settings."""
    if not _PROFILES[profile]:
        return {}
    wanted = {"synchronous_commit": "on", **_EVERY, **_PROFILES[profile]}
    return {name: value for name, value in wanted.items() if server_version >= _SINCE.get(name, 0)}


def set_profile(conn: psycopg.Connection, profile: Profile, settings: Mapping[str, str] | None = None) -> None:
    """Set *profile* on *conn* in one statement and check it by reading pg_settings back."""
    wanted = {**profile_settings(profile, conn.info.server_version), **(settings or {})}
    if not wanted:
        return
    rows = conn.execute(SET_AND_READ, {"names": list(wanted), "values": list(wanted.values())}).fetchall()
    check_settings(dict(rows), wanted)


def check_settings(found: Mapping[str, str | None], wanted: Mapping[str, str]) -> None:
    """Raise DatabaseUnavailable unless the session has what it was asked to have; remote_apply is more than `on` and stays."""
    for name, value in wanted.items():
        if found.get(name) != value and not (name == "synchronous_commit" and found.get(name) == "remote_apply"):
            raise DatabaseUnavailable(
                f"the session's {name} is {found.get(name)!r} and must be {value!r}; something between here and the server "
                f"(a pooler?) or a rule of the server keeps it so: give workers a direct connection"
            )


# MATERIALIZED and the join by name make the settings happen before they are read.
SET_AND_READ = b"""
WITH wanted AS MATERIALIZED (
    SELECT w.name, CASE WHEN w.name = 'synchronous_commit' AND pg_catalog.current_setting(w.name) = 'remote_apply'
                        THEN 'remote_apply' ELSE pg_catalog.set_config(w.name, w.value, false) END AS made
    FROM ROWS FROM (pg_catalog.unnest(%(names)s::pg_catalog.text[]), pg_catalog.unnest(%(values)s::pg_catalog.text[])) AS w (name, value))
SELECT w.name, s.setting FROM wanted w LEFT JOIN pg_catalog.pg_settings s ON s.name = w.name
WHERE (SELECT pg_catalog.count(w.made) FROM wanted w) > 0
"""


def application_name(purpose: str) -> str:
    """What a session for *purpose* is called in pg_stat_activity."""
    return f"pgsupervisor: {purpose}".encode("ascii", "replace")[:APPLICATION_NAME_BYTES_MAX].decode()


# ── when it fails ────────────────────────────────────────────────────────────────────────────────────────────────

_HINTS = re.compile(r" ?Is the server running [^?]*\?|connection (failed|is bad): (?=connection to server )")  # libpq's own remedy: ours follows; and psycopg's first words

_REMEDIES = (
    (r'on socket "[^"]*" failed: Permission denied', "let this account into the folder of the socket (that is the file system, not the database's roles), or connect by TCP (host=127.0.0.1) where the server listens there, which the embedded one does not"),
    (r"refused|No such file or directory|could not connect|Connection reset", "is the server running, and is this where it listens?"),
    (r"password authentication failed|no password supplied", "check the user and the password (PGPASSWORD, ~/.pgpass)"),
    (r"(Peer|Ident) authentication failed", "use the operating-system account of that name, or connect by TCP with a password"),
    (r"no pg_hba.conf entry", "let this host, user and database in by the server's pg_hba.conf"),
    (r'database ".*" does not exist', "create it (createdb), or name another"),
    (r'role ".*" does not exist', "create it (createuser), or name another"),
    (r"too many (clients|connections)|remaining connection slots", "raise max_connections, end idle sessions, or let clients use a pooler"),
    (r"translate host name|Name or service not known|name resolution", "check the host's name"),
    (r"timeout expired|timed out", "check host, port and firewall"),
    (r"read-only|hot standby|in recovery", "this server can't be written to: connect to the primary (or list all hosts in the DSN)"),
    (r"starting up|shutting down", "wait a moment and try again"),
    (r"SSL|certificate", "check sslmode= and the certificates"),
    (r"unsupported startup parameter", "a pooler is in between: add the parameter to its ignore_startup_parameters, or connect directly"),
    (r"permission denied", "grant the role what it lacks"),
)


def not_connected(error: psycopg.Error, given: Mapping[str, object], dsn: Dsn) -> DatabaseUnavailable:
    """The words for a session that could not be had: where, why, what to do; without its secrets."""
    why = _HINTS.sub("", " ".join(str(error).split())) or type(error).__name__
    remedies = (remedy for pattern, remedy in _REMEDIES if re.search(pattern, why, re.IGNORECASE))
    remedy = next(remedies, "check the connection string and the server's log")
    for secret in (*(value for name, value in given.items() if _SECRET.search(name)), os.environ.get("PGPASSWORD")):
        why = _without(why, str(secret)) if secret else why
    where = _shown(given) or dsn.shown or "libpq's defaults"
    came = f", from {dsn.source}" if dsn.source else ""
    return DatabaseUnavailable(f"no session with the database ({where}{came}): {why}; {remedy}")


def _without(text: str, secret: str) -> str:
    """*text* with *secret* hidden; a short one, which is in many words, only where it stands as a word."""
    found = re.escape(secret)
    if len(secret) < SECRET_MIN:
        found = ("" if not re.match(r"\w", secret) else r"(?<!\w)") + found + ("" if not re.search(r"\w$", secret) else r"(?!\w)")
    return re.sub(found, "***", text)


def unavailable(error: psycopg.Error, conn: psycopg.Connection | None = None) -> DatabaseUnavailable:
    """The words for a session that broke in use."""
    given: dict[str, object] = {}
    if conn is not None and not conn.closed:
        given = dict(conn.info.get_parameters())
    return not_connected(error, given, Dsn("", ""))


@contextmanager
def told_when_broken() -> Iterator[None]:
    """A session that breaks inside the block becomes DatabaseUnavailable."""
    try:
        yield
    except psycopg.OperationalError as error:
        raise unavailable(error) from error


# ── the driver ───────────────────────────────────────────────────────────────────────────────────────────────────


def driver() -> str:
    """psycopg's version and implementation, the libpq it uses, and whether that has TLS."""
    number = psycopg.pq.version()
    tls = "yes" if has_tls() else "no"
    return f"psycopg {psycopg.__version__} ({psycopg.pq.__impl__}), libpq {number // 10000}.{number % 10000}, TLS {tls}"


def has_tls() -> bool:
    """Whether libpq was built with TLS: without it, it refuses sslmode=require before it looks for a server."""
    attempt = psycopg.pq.PGconn.connect_start(b"host=/nonexistent dbname=x user=x sslmode=require")
    return b"not compiled in" not in attempt.error_message
