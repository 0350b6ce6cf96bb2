"""`run`: workers on this host, until told to stop."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli import options
from supervisor.cli.output import say
from supervisor.dashboard import ANY_PORT, PORT

if TYPE_CHECKING:
    from supervisor.db.connect import Dsn

EXAMPLE = "supervisor.example"
EMBEDDED = "the embedded server"  # where its connection string comes from
START_EXAMPLE = "python -m supervisor start checkout order=42 --wait --dsn '{dsn}'"


class Port(click.IntRange):
    """A port that was said, or ANY_PORT where none was."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value is ANY_PORT else super().convert(value, param, ctx)


EXIT_CODES = """\b
Exit codes:
  0      stopped as told, or with --until-empty nothing is left to do
  1      with --until-empty: a run failed meanwhile
  2      wrong usage
  69     the database can't be reached at the start (later it is waited for)
  70     the app can't be imported, or workers died five times at birth
  75     the schema is missing or too old: run migrate
  78     the configuration is wrong: no such app, no room for its sessions
  79     of a worker, in the log: too many of its threads hang, another took its place
  128+n  stopped at once by signal n: 130 second ^C, 131 QUIT, 143 second TERM"""


@click.command(epilog=EXIT_CODES)
@click.option("--app", help="Module that defines the workflows: pkg.mod.")
@click.option("--procs", help="Worker processes; auto: one per core this process may use.  [default: auto]")
@click.option("--threads", help="Threads for def steps, per worker.  [default: 8]")
@click.option("--in-flight", help="Runs in memory at most, per worker.  [default: 5000]")
@click.option("--queues", help="Serve these queues only: a,b. Default: those of the app's workflows.")
@click.option("--until-empty", is_flag=True, default=None, help="Stop when no run is left; exit 1 if a run failed meanwhile.")
@click.option("--drain-timeout", type=click.FloatRange(0, 3600), default=25.0, show_default=True, help="Seconds that workers get to finish when stopped.")
@click.option("--log-level", help="debug, info, warning or error.  [default: info]")
@click.option("--log-format", help="How lines look on standard error: text or json.  [default: text]")
@click.option("--log-dir", metavar="DIR", help="Workers log into DIR/supervisor.log (JSON lines, rotated) instead; `show RUN --logs` reads it.")
@options.traces
@click.option("--dashboard", type=Port(0, 65535), is_flag=False, flag_value=ANY_PORT, metavar="[PORT]", help=f"A dashboard beside it, for this machine, on PORT, 0: a free one; else on {PORT}, or a free one.")
@options.metrics
@options.dsn
@options.schema
def run(drain_timeout: float, dashboard: int | None, dsn: str | None, schema: str | None, queues: str | None, **flags: Any) -> int:
    """Run workers until told to stop: TERM or ^C drains, a second one or QUIT stops at once.

    HUP loads the app's new code, one worker after the other; TTIN and TTOU mean one worker more and one fewer; USR1 writes stacks to stderr.

    Each option but --dashboard and --drain-timeout can stand in the environment too (PGSUPERVISOR_PROCS=16) and in [tool.pgsupervisor] of pyproject.toml.

    \b
    python -m supervisor --procs 16 --app orders
    """
    from supervisor.core import settings

    if queues is not None:
        flags["queues"] = tuple(name.strip() for name in queues.split(",") if name.strip())
    told = settings.load(flags)
    from supervisor.core.errors import ConfigInvalid
    from supervisor.db import connect as db
    from supervisor.db import migrations
    from supervisor.dashboard.beside import dashboard_beside, port_beside, sessions_beside
    from supervisor.host import logs
    from supervisor.host.service import Service, ServiceOptions
    from supervisor.metrics.address import beside

    dashboard = port_beside(dashboard is not None, by_default=False, port=dashboard)
    if told.traces:
        from supervisor import tracing

        tracing.check()
    logs.to_terminal(told.log_level, told.log_format)
    app = told.app
    found = db.find_dsn(dsn)
    schema = schema or db.schema_name()
    if found is None and app is None:
        app, found = EXAMPLE, embedded_database(schema)
        say(f"nothing is configured: the example app on the embedded server. In a second terminal:\n  {START_EXAMPLE.format(dsn=found.conninfo)}")
    elif not app:
        raise ConfigInvalid("no app is named; say which module defines the workflows: --app pkg.mod, or app = \"pkg.mod\" in [tool.pgsupervisor] of pyproject.toml")
    elif found is None:
        found = db.resolve_dsn(dsn)
    with db.connect(found, purpose="check", schema=schema) as conn:
        migrations.check(conn, schema)
        server = conn.info.parameter_status("server_version")
    for line in banner(found, server or "", app):
        logging.getLogger("pgsupervisor").info("%s", line)
    wanted = ServiceOptions(
        dsn=found.conninfo, schema=schema, procs=count_procs(told.procs), threads=told.threads, in_flight=told.in_flight,
        until_empty=told.until_empty, drain_timeout_s=drain_timeout, queues=told.queues, app=app,
        retention_s=settings.span_s(told.retention) if told.retention else None,
        traces=told.traces, code_limit_s=told.code_limit_s, log_dir=told.log_dir, log_file_bytes=told.log_file_bytes, log_files=told.log_files, beside=sessions_beside(dashboard),
    )  # fmt: skip
    service = Service(wanted, load=partial(load_app, app))
    if told.metrics is not None:
        service.parent.add(beside(told.metrics, told.sources["metrics"], found, schema))
    with dashboard_beside(found, schema, dashboard, told.log_dir):
        code = service.run()
    if found.source == EMBEDDED:
        say("the embedded server goes on, with what was started; to stop it: python -m supervisor db stop")
    return code


def banner(dsn: Any, server: str, app: str) -> list[str]:
    """What runs here, in two lines: versions of every part, then app and database. What the app has is said by the first worker that imported it."""
    from supervisor.cli import about

    program, python, driver, loop = about.lines(server=False)
    if loop != "loop compiled":
        loop += ", NOT COMPILED: several times slower; install a compiler and Python's headers and install again"
    return [f"{program}, {python}, {driver}, {loop}, PostgreSQL {server}", f"app {app} on {dsn}"]


def embedded_database(schema: str) -> Dsn:
    """The embedded server, started and migrated: for trying things out."""
    from supervisor.db import connect as db
    from supervisor.db import migrations
    from supervisor.db.embedded import EmbeddedServer

    conninfo = EmbeddedServer(progress=say).start()
    found = db.Dsn(conninfo, EMBEDDED, conninfo)
    with db.connect(found, purpose="migrate", schema=schema, profile="host") as conn:
        migrations.migrate(conn, schema)
    return found


def count_procs(asked: int | str) -> int:
    """The number of workers; "auto" is one per core that this process may use."""
    return max(1, len(os.sched_getaffinity(0))) if asked == "auto" else int(asked)


def _near(name: str) -> str:
    """Files of the current folder whose names are about that."""
    from difflib import get_close_matches

    folder = os.path.join(os.getcwd(), *name.split(".")[:-1])
    there = {entry.removesuffix(".py") for entry in (os.listdir(folder) if os.path.isdir(folder) else ()) if entry.endswith(".py") or os.path.isdir(os.path.join(folder, entry))}
    found = get_close_matches(name.rpartition(".")[2], sorted(there), 1)
    return f"; did you mean --app {name.rpartition('.')[0] + '.' if '.' in name else ''}{found[0]}?" if found else ""


def load_app(name: str) -> Any:
    """In a worker: import the module that defines the workflows, from the current folder too."""
    from supervisor.core import registry
    from supervisor.core.errors import ConfigInvalid

    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()  # what the parent saw of folders may be old
    path = name.removesuffix(".py").removeprefix("./").rstrip("/")
    if path != name or "/" in name or not name.strip("."):
        meant = path.replace("/", ".").strip(".")
        raise ConfigInvalid(f"--app {name}: that is a path, and --app wants the name of a module" + (f"; did you mean --app {meant}?" if meant else "; give pkg.mod"))
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            looked = f"looked in {sys.path[0] or os.getcwd()} and the installed packages"
            raise ConfigInvalid(f"--app {name}: there is no module {error.name!r}; {looked}{_near(name)}") from None
        raise
    if not registry.workflows():
        raise ConfigInvalid(f"--app {name}: the module defines no workflow; decorate a function with @workflow")
    return module
