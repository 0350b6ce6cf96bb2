"""`complete`, `fail`, `heartbeat`: what whoever holds a token does with it."""

from __future__ import annotations

import click

from supervisor.cli import options
from supervisor.cli.operate import _json
from supervisor.cli.output import print_json

_value = click.option("--json-value", "value", metavar="JSON", default="null", show_default=True, help="What goes with it.")


def _tell(as_json: bool, verb: str, stored: bool, words: str) -> int | None:
    if as_json:
        print_json({"verb": verb, "stored": stored})
    else:
        click.echo(words if stored else "it was so already; nothing was stored")
    return None if stored else 1


@click.command("complete")
@click.argument("token")
@_value
@options.dsn
@options.schema
@options.as_json
def complete(token: str, value: str, dsn: str | None, schema: str | None, as_json: bool) -> int | None:
    """Give the step that handed out TOKEN its result. Exit code 1 when it has just that already, or the token is closed.

    \b
      pgsupervisor complete "$TOKEN" --json-value '{"approved": true}'
    """
    result = _json("--json-value", value)
    with options.client(dsn, schema) as client:
        return _tell(as_json, "complete", client.complete(token, result), "completed")


@click.command("fail")
@click.argument("token")
@click.option("--error", metavar="TEXT", default="it was failed from outside", show_default=True, help="What the step is told.")
@click.option("--no-retry", is_flag=True, help="No other try, whatever the step's policy says.")
@options.dsn
@options.schema
@options.as_json
def fail(token: str, error: str, no_retry: bool, dsn: str | None, schema: str | None, as_json: bool) -> int | None:
    """Fail the try of the step that handed out TOKEN. Exit code 1 when it was failed so already, or the token is closed."""
    with options.client(dsn, schema) as client:
        return _tell(as_json, "fail", client.fail(token, error, retry=not no_retry), "failed")


@click.command("heartbeat")
@click.argument("token")
@_value
@options.dsn
@options.schema
@options.as_json
def heartbeat(token: str, value: str, dsn: str | None, schema: str | None, as_json: bool) -> int | None:
    """A sign of life of who holds TOKEN."""
    details = _json("--json-value", value)
    with options.client(dsn, schema) as client:
        client.heartbeat(token, details)
    return _tell(as_json, "heartbeat", True, "noted")
