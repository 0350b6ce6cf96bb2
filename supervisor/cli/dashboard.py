"""`dashboard`: pages over the stored facts, for a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from supervisor.cli import options
from supervisor.cli.output import plain, print_json, say


@click.command("dashboard")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on. Any but this machine's own wants --tls-cert or --plain-http.")
@click.option("--port", type=click.IntRange(0, 65535), default=8577, show_default=True, help="Port; 0: a free one.")
@click.option("--allow-host", "allow_hosts", metavar="NAME[:PORT]", multiple=True, help="A further name that browsers know it by, behind a proxy.")
@click.option("--tls-cert", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="Certificate, PEM.")
@click.option("--tls-key", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="Its key, PEM.")
@click.option("--plain-http", is_flag=True, help="Listen elsewhere than on this machine alone without TLS: something in front does it.")
@click.option("--read-only", is_flag=True, help="No verbs, whatever the database's role may.")
@click.option("--actor", metavar="TEXT", help="Who does what is done, for the audit, unless one says a name when signing in  [default: account@host].")
@click.option("--token-file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Where the URL with the present token is kept, for this account alone.")
@click.option("--timeout", type=click.FloatRange(0.1, 300), default=5.0, show_default=True, help="Seconds that a statement of a page may take.")
@options.dsn
@options.schema
@options.as_json
def dashboard(dsn: str | None, schema: str | None, as_json: bool, actor: str | None, timeout: float, **how: Any) -> int:
    """Serve pages that show what runs do and why they wait, with the verbs that free them. Until ^C or TERM.

    Works while no worker is alive: it reads stored facts alone. Signing in takes the URL that is printed on a terminal, and kept in a file that only this
    account can read; its token is good for one browser. The role decides what one sees: viewer shows, operator acts.
    """
    from supervisor.dashboard.serve import Serving, check_address, check_installed, serve, to_terminal

    check_installed()
    from supervisor.cli.cancel import _user
    from supervisor.db import connect as db
    from supervisor.db import migrations

    name = options.resolve_schema(schema)
    found = db.resolve_dsn(dsn)

    def ready(url: str, path: Path) -> None:
        if as_json:
            print_json({"url": url.removesuffix("login"), "token_file": str(path)})
        else:
            say(f"dashboard of {plain(found)} on {url.removesuffix('login')}; the URL to open stands in {plain(path)}")

    serving = Serving(found, name, lambda url: _tell(to_terminal, url), ready, actor or _user(), timeout_s=timeout, **how)
    check_address(serving)
    with db.connect(found, purpose="check", schema=name) as conn:
        migrations.check(conn, name)
    return serve(serving)


def _tell(to_terminal: Any, url: str) -> None:
    """The token goes to a person at a terminal; a service's standard error is a log, and there stands only where the file is."""
    to_terminal(f"open  {url}")
