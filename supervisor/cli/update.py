"""`update`: send a request to a live run, and wait for what becomes of it."""

from __future__ import annotations

import json
from typing import Any

import click

from supervisor.cli import options
from supervisor.cli.output import print_json, short_json
from supervisor.cli.query import SHOWN_MAX, id_of

WAIT_FOR = ("completed", "accepted", "admitted")


@click.command("update")
@click.argument("run", metavar="RUN|KEY")
@click.argument("name")
@click.argument("value", metavar="[JSON]", required=False)
@click.option("--id", "update_id", metavar="TEXT", help="The same id is the same update: it runs once, and is answered alike.")
@click.option("--wait-for", type=click.Choice(WAIT_FOR), default="completed", show_default=True, help="Until which stage to wait.")
@click.option("--timeout", type=click.FloatRange(0.1), metavar="SECONDS", help="How long to wait; else until the run ends.")
@options.dsn
@options.schema
@options.as_json
def update(
    run: str, name: str, value: str | None, update_id: str | None, wait_for: str, timeout: float | None, dsn: str | None, schema: str | None, as_json: bool
) -> None:
    """Send the update NAME to a live run, by its id or its key, and print what its handler returns.

    A rejection by the run's validator leaves nothing in its history. Any role but viewer may do it.

    \b
      pgsupervisor update order-42 set_address '{"city": "Bern"}'
    """
    arguments = [] if value is None else [_parsed(value)]
    with options.client(dsn, schema) as client:
        handle: Any = client.update(id_of(client, run), name, *arguments, id=update_id, wait_for="admitted")
        if wait_for == "accepted":
            handle.accepted(timeout)
        result = handle.result(timeout) if wait_for == "completed" else None
        stage = "completed" if wait_for == "completed" else handle.stage()
    if as_json:
        print_json({"run_id": handle.run_id, "update": name, "id": handle.id, "stage": stage} | ({"result": result} if stage == "completed" else {}))
    else:
        click.echo(short_json(result, SHOWN_MAX) if wait_for == "completed" else f"update {name} {handle.id} of {handle.run_id} is {stage}")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{text[:80]!r} is no JSON ({error}); text wants quotes of its own: '\"yes\"'") from None
