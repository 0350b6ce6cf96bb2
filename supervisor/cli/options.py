"""Options that several commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import psycopg

    from supervisor.api.client import Client
    from supervisor.db.connect import Profile

dsn = click.option("--dsn", metavar="DSN", help="The database: postgresql://user@host/name or key=value  [env: PGSUPERVISOR_DATABASE_URL].")
schema = click.option("--schema", metavar="NAME", help="The schema  [env: PGSUPERVISOR_SCHEMA; default: supervisor].")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout; times in ISO 8601, UTC.")
traces = click.option("--traces", is_flag=True, default=None, help="Send spans of runs and steps by OpenTelemetry (OTLP over HTTP), to where OTEL_EXPORTER_OTLP_ENDPOINT says.")
metrics = click.option("--metrics", metavar="[HOST:]PORT", help="Serve metrics for Prometheus, /livez and /readyz there, HOST 127.0.0.1 unless given; port 0: a free one.")


def _text(_ctx: click.Context, _param: click.Parameter, given: str | None) -> str | None:
    """Bytes that are no UTF-8 come as surrogates, which no database keeps."""
    try:
        (given or "").encode()
    except UnicodeEncodeError:
        raise click.BadParameter("it is not UTF-8") from None
    return given


said_by = click.option("--actor", metavar="TEXT", callback=_text, help="Who does it, for the audit  [default: account@host].")
reason = click.option("--reason", metavar="TEXT", callback=_text, help="Why; kept in the audit.")


def actor() -> str:
    """Who types this, for the audit: account@host."""
    import getpass
    import socket

    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a process may have no user of a name
        name = "somebody"
    return f"{name}@{socket.gethostname()}"[:200]


def resolve_schema(given: str | None) -> str:
    """The schema by flag, environment, pyproject.toml, default."""
    from supervisor.core import settings
    from supervisor.db.statements import checked_schema

    return checked_schema(settings.load({"schema": given}).schema)


def client(given: str | None, schema: str | None) -> Client:
    """A client for one command."""
    from supervisor.api.client import Client

    made = Client(given, schema=resolve_schema(schema))
    made._source = "--dsn"
    made._verbs().questions.doing = click.get_current_context().info_name  # what a role may not do, where it may not
    return made


@contextmanager
def connect(given: str | None, schema: str, *, purpose: str, profile: Profile = "client") -> Iterator[psycopg.Connection]:
    """A session for one command. A session that breaks becomes DatabaseUnavailable."""
    from supervisor.db import connect as _connect

    with _connect.connect(_connect.resolve_dsn(given), purpose=purpose, schema=schema, profile=profile) as conn, _connect.told_when_broken():
        yield conn
