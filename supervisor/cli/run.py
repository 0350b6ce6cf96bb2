"""`run`: workers on this host, until told to stop."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Any

import click

from supervisor.cli import options


@click.command()
@click.option("--app", help="Module that defines the workflows: pkg.mod. Default: [tool.pgsupervisor] app.")
@click.option("--procs", default="auto", show_default=True, help="Worker processes; auto: one per core this process may use.")
@click.option("--threads", type=click.IntRange(1, 1000), default=8, show_default=True, help="Threads for def steps, per worker.")
@click.option("--in-flight", type=click.IntRange(1, 100_000), default=5000, show_default=True, help="Runs in memory at most, per worker.")
@click.option("--queues", help="Serve these queues only: a,b. Default: those of the app's workflows.")
@click.option("--until-empty", is_flag=True, help="Stop when no run is left; exit 1 if a run failed meanwhile.")
@click.option("--drain-timeout", type=click.FloatRange(0, 3600), default=25.0, show_default=True, help="Seconds that workers get to finish when stopped.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True)
@options.dsn
@options.schema
def run(app: str | None, procs: str, threads: int, in_flight: int, queues: str | None, until_empty: bool, drain_timeout: float, log_level: str, dsn: str | None, schema: str | None) -> int:
    """Run workers until told to stop: TERM or ^C drains, a second one stops at once.

    \b
    python -m supervisor --procs 16 --app orders
    """
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname).1s %(message)s", stream=sys.stderr, force=True)
    from supervisor.core import settings
    from supervisor.core.errors import ConfigInvalid
    from supervisor.db import connect as db
    from supervisor.db import migrations
    from supervisor.host.service import Service, ServiceOptions

    app = app or settings.load().app
    if not app:
        raise ConfigInvalid("no app is named; say which module defines the workflows: --app pkg.mod, or app = \"pkg.mod\" in [tool.pgsupervisor] of pyproject.toml")
    found = db.resolve_dsn(dsn)
    schema = schema or db.schema_name()
    with db.connect(found, purpose="check", schema=schema) as conn:
        migrations.check(conn, schema)
    load_app(app)
    return Service(ServiceOptions(
        dsn=found.conninfo, schema=schema, procs=count_procs(procs), threads=threads, in_flight=in_flight, until_empty=until_empty,
        drain_timeout_s=drain_timeout, queues=tuple(name.strip() for name in queues.split(",") if name.strip()) if queues else (),
    )).run()  # fmt: skip


def count_procs(text: str) -> int:
    """The number of workers that `--procs` asks for."""
    if text == "auto":
        return max(1, len(os.sched_getaffinity(0)))
    if not text.isdigit() or not 1 <= int(text) <= 512:
        raise click.BadParameter(f"{text!r}; give auto or a number from 1 to 512", param_hint="--procs")
    return int(text)


def load_app(name: str) -> Any:
    """Import the module that defines the workflows, from the current folder too."""
    from supervisor.core import registry
    from supervisor.core.errors import ConfigInvalid

    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigInvalid(f"--app {name}: there is no module {error.name!r}; looked in {sys.path[0] or os.getcwd()} and the installed packages") from None
        raise
    if not registry.workflows():
        raise ConfigInvalid(f"--app {name}: the module defines no workflow; decorate a function with @workflow")
    return module
