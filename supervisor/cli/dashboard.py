"""`dashboard`: pages over the stored facts, for a browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from supervisor.cli import options
from supervisor.cli.output import plain, print_json, say
from supervisor.dashboard import HOST, PORT


@click.command("dashboard")
@click.option("--host", default=HOST, show_default=True, help="Address to listen on. Any but this machine's own wants --tls-cert or --plain-http.")
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="Port; 0: a free one.")
@click.option("--allow-host", "allow_hosts", metavar="NAME[:PORT]", multiple=True, help="A further name that browsers know it by, behind a proxy.")
@click.option("--tls-cert", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="Certificate, PEM.")
@click.option("--tls-key", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="Its key, PEM.")
@click.option("--plain-http", is_flag=True, help="Listen elsewhere than on this machine alone without TLS: something in front does it.")
@click.option("--read-only", is_flag=True, help="No verbs, whatever the database's role may.")
@click.option("--actor", metavar="TEXT", help="Who does what is done, for the audit, unless one says a name when signing in  [default: account@host].")
@click.option("--token-file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Where the URL with the present token is kept, for this account alone.")
@click.option("--timeout", type=click.FloatRange(0.1, 300), default=5.0, show_default=True, help="Seconds that a statement of a page may take.")
@click.option("--log-dir", metavar="DIR", help="Where the workers of this host log to: the last lines of a run stand on its page  [env: PGSUPERVISOR_LOG_DIR].")
@click.option("--beside", type=int, hidden=True, help="The process that started it, and that it ends with.")
@options.dsn
@options.schema
@options.as_json
@click.pass_context
def dashboard(ctx: click.Context, /, dsn: str | None, schema: str | None, as_json: bool, actor: str | None, timeout: float, log_dir: str | None, beside: int | None, **how: Any) -> int:
    """Serve pages that show what runs do and why they wait, with the verbs that free them. Until ^C or TERM.

    Works while no worker is alive: it reads stored facts alone. Signing in takes the URL that is printed on a terminal, and kept in a file that only this
    account can read; its token is good for one browser. The role decides what one sees: viewer shows, operator acts.
    """
    from supervisor.dashboard.serve import Serving, check_address, check_installed, serve

    check_installed()
    if beside is not None:
        import signal

        from supervisor.engine.forked import die_with

        die_with(beside, signal.SIGTERM)
    from supervisor.core import settings
    from supervisor.db import connect as db
    from supervisor.db import migrations

    name = options.resolve_schema(schema)
    found = db.resolve_dsn(dsn)
    folder = settings.load({"log_dir": log_dir}).log_dir
    talk = _Talk(plain(found), as_json, beside is not None)
    any_port = beside is not None and ctx.get_parameter_source("port") is click.core.ParameterSource.DEFAULT
    serving = Serving(found, name, talk.tell, talk.ready, actor or options.actor(), timeout_s=timeout, any_port=any_port, log_dir=Path(folder) if folder else None, **how)
    check_address(serving)
    with db.connect(found, purpose="check", schema=name) as conn:
        migrations.check(conn, name, "viewer")
    return serve(serving)


class _Talk:
    """What is said and where: the token to a person at a terminal alone. A service's standard error is a log, and there stands only where the file is."""

    def __init__(self, database: str, as_json: bool, beside: bool) -> None:
        self._database, self._as_json, self._beside = database, as_json, beside
        self._told = 0

    def tell(self, url: str) -> None:
        """A URL with a token: each is good for one browser."""
        self._told += 1
        if sys.stderr.isatty() and not (self._beside and self._told > 1):
            fresh_line = "\r\x1b[K" if self._beside else ""  # the host's progress may stand there
            say(f"{fresh_line}{'dashboard' if self._told == 1 else 'another browser'}: {url}")

    def ready(self, url: str, path: Path, listens: str) -> None:
        where = url.removesuffix("login")
        if self._as_json:
            print_json({"url": where, "token_file": str(path), "listens": listens})
        elif not (self._beside and sys.stderr.isatty()):
            say(f"dashboard of {self._database} on {where}; the URL to open stands in {plain(path)}")
