"""`query`: ask one run a question that its workflow has a handler for."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import click

from supervisor.cli import options
from supervisor.cli.output import print_json, short_json

SHOWN_MAX = 4 << 20  # characters: whatever an answer may hold


@click.command("query")
@click.argument("run", metavar="RUN|KEY")
@click.argument("name")
@click.option("--json-value", metavar="JSON", help="The argument, where the query takes one.")
@click.option("--timeout", type=click.FloatRange(0.1, 3600), default=20.0, show_default=True, help="Seconds to wait for the answer.")
@options.dsn
@options.schema
@options.as_json
def query(run: str, name: str, json_value: str | None, timeout: float, dsn: str | None, schema: str | None, as_json: bool) -> None:
    """Ask a run, by its id or its key, what the handler of its workflow answers that is called NAME.

    A worker that has its code replays the run's history to answer, and executes nothing; the run need not live, and does not notice.

    \b
      pgsupervisor query order-42 total
    """
    arguments = [] if json_value is None else [_parsed(json_value)]
    with options.client(dsn, schema) as client:
        answer = client.query(id_of(client, run), name, *arguments, timeout=timeout)
    if as_json:
        print_json(answer)
    else:
        click.echo(short_json(answer, SHOWN_MAX))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"--json-value is no JSON: {error}") from None


def id_of(client: Any, which: str) -> UUID:
    """Its id; else, for ids make good keys, the run that the key names."""
    from supervisor.core.errors import RunUnknown, SupervisorError

    try:
        return UUID(which)
    except ValueError:
        named = client.list(key=which)
    if not named:
        raise RunUnknown(f"with the id or key {which!r}")
    if len(named) > 1:
        raise SupervisorError(f"key {which!r} names {len(named)} runs of different workflows; give the run's id")
    found: UUID = named[0].run_id
    return found
