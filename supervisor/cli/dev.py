"""`dev`: everything that a developer needs, by one command: database, workers that load what is saved, dashboard."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli import options
from supervisor.cli.output import plain, say
from supervisor.cli.run import banner, count_procs, embedded_database, load_app

if TYPE_CHECKING:
    from supervisor.db.connect import Dsn
    from supervisor.db.embedded import EmbeddedServer

DRAIN_S = 2.0  # what takes longer is executed again, with the new code
KEEPER_S = 15.0  # nobody waits longer for the end of the embedded server: a checkpoint, at most


@click.command("dev")
@click.option("--app", help="Module that defines the workflows: pkg.mod  [default: what pyproject.toml says].")
@click.option("--procs", default="2", show_default=True, help="Worker processes; auto: one per core.")
@click.option("--reload/--no-reload", default=True, show_default=True, help="Load the app's files again when they are saved.")
@click.option("--dashboard/--no-dashboard", "dashboard", default=None, help="Serve the dashboard meanwhile  [default: where it is installed].")
@click.option("--port", type=click.IntRange(0, 65535), help="The dashboard's port; 0: a free one  [default: 8577, or a free one].")
@click.option("--migrate", is_flag=True, help="Bring the schema of a database of yours up to this program first. The embedded one's is, always.")
@click.option("--drain-timeout", type=click.FloatRange(0, 3600), default=DRAIN_S, show_default=True, help="Seconds that steps get to finish before new code takes over, or at the end.")
@click.option("--log-level", help="debug, info, warning or error.  [default: info]")
@options.traces
@options.metrics
@options.dsn
@options.schema
def dev(
    procs: str, reload: bool, dashboard: bool | None, port: int | None, migrate: bool, drain_timeout: float, dsn: str | None, schema: str | None, **flags: Any
) -> int:  # fmt: skip
    """Run an app while it is written: two workers, the dashboard, and every saved file is served within a second or two.

    Without a database it starts the embedded PostgreSQL, and stops it at the end unless others are connected to it; its data stay.
    A file that can't be imported changes nothing but what is said here: the code before it goes on until it is mended.
    Steps that execute when a file is saved get --drain-timeout, then they are executed again with the new code. One ^C ends all.

    \b
    python -m supervisor dev --app orders
    """
    from supervisor.cli import about
    from supervisor.core import settings
    from supervisor.core.errors import ConfigInvalid
    from supervisor.dashboard.beside import dashboard_beside, port_beside, sessions_beside
    from supervisor.host import logs
    from supervisor.host.service import Service, ServiceOptions
    from supervisor.metrics.address import beside as metrics_beside

    told = settings.load({**flags, "schema": schema})
    if not told.app:
        raise ConfigInvalid("no app is named; say which module defines the workflows: python -m supervisor dev --app pkg.mod, or app = \"pkg.mod\" in [tool.pgsupervisor] of pyproject.toml")
    if told.traces:
        from supervisor import tracing

        tracing.check()
    workers, name = count_procs(procs if procs == "auto" else _number(procs)), options.resolve_schema(schema)
    beside = port_beside(dashboard, by_default=True, port=port)
    logs.to_terminal(told.log_level, "colour" if _colours() else "short")
    with ExitStack() as ends:
        found, embedded = ends.enter_context(_database(dsn, name, migrate))
        for line in banner(found, _version(found, name), told.app):
            logging.getLogger("pgsupervisor").info("%s", line)
        if embedded:
            say(f'in a second terminal: export PGSUPERVISOR_DATABASE_URL="$({about.program()} db url)"')
        if beside is None and dashboard is None:
            say("no dashboard: a part of it is not installed; pip install 'pgsupervisor[dashboard]' brings it")
        ends.enter_context(dashboard_beside(found, name, beside))
        wanted = ServiceOptions(
            dsn=found.conninfo, schema=name, procs=workers, threads=told.threads, in_flight=told.in_flight, drain_timeout_s=drain_timeout, queues=told.queues, app=told.app,
            traces=told.traces, code_limit_s=told.code_limit_s, beside=sessions_beside(beside),
        )  # fmt: skip
        service = Service(wanted, load=partial(load_app, told.app), reloads=reload)
        if told.metrics is not None:
            service.parent.add(metrics_beside(told.metrics, told.sources["metrics"], found, name))
        return service.run()


def _number(procs: str) -> int:
    if not procs.isdigit() or not 1 <= int(procs) <= 1024:
        raise click.BadParameter(f"{plain(procs)!r} is neither a number from 1 to 1024 nor auto", param_hint="--procs")
    return int(procs)


def _colours() -> bool:
    """Whether lines are coloured: at a terminal, unless NO_COLOR is set; elsewhere if FORCE_COLOR is."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (sys.stderr.isatty() and os.environ.get("TERM") != "dumb")


def _version(found: Dsn, schema: str) -> str:
    """The server's version, once the schema is known to be there."""
    from supervisor.db import connect as db
    from supervisor.db import migrations

    with db.connect(found, purpose="check", schema=schema) as conn:
        migrations.check(conn, schema)
        return conn.info.parameter_status("server_version") or ""


@contextmanager
def _database(dsn: str | None, schema: str, migrate: bool) -> Iterator[tuple[Dsn, bool]]:
    """The configured database, or the embedded server while the block lasts; and whether it is that."""
    from supervisor.db import connect as db
    from supervisor.db import migrations
    from supervisor.db.embedded import EmbeddedServer

    found = db.find_dsn(dsn)
    if found is None:
        server = EmbeddedServer(progress=say)
        server.start()
        with _kept(server):
            yield embedded_database(schema), True
        return
    if migrate:
        with db.connect(found, purpose="migrate", schema=schema, profile="host") as conn:
            migrations.migrate(conn, schema, progress=say)
    yield found, False


@contextmanager
def _kept(server: EmbeddedServer) -> Iterator[None]:
    """Have a server that we brought up stopped when we are gone, in whatever way, unless others use it: by a shell that waits for the end of a pipe of ours."""
    if not server.launched:
        yield
        return
    words = [sys.executable, "-m", "supervisor", "db", "--data-dir", str(server.data_dir), "stop", "--unused"]
    keeper = subprocess.Popen(["/bin/sh", "-c", 'read _; exec "$@"', "sh", *words], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        assert keeper.stdin is not None
        keeper.stdin.close()
        try:
            keeper.wait(KEEPER_S)
        except subprocess.TimeoutExpired:
            say("PostgreSQL takes long to stop; it goes on stopping by itself")
