"""`start`: start a run of a workflow that some worker has registered."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from supervisor.cli import options
from supervisor.cli.output import plain, print_json, say, short_json


@click.command("start")
@click.argument("workflow")
@click.argument("pairs", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--input", "input_json", metavar="JSON", help="The only parameter's value, or an object by parameter name; - reads stdin.")
@click.option("--key", metavar="KEY", help="Idempotency key: a second start with it gives the first one's run.")
@click.option("--queue", metavar="NAME", help="Another queue than the workflow's.")
@click.option("--priority", type=click.IntRange(0, 9), default=5, show_default=True, help="0 first, 9 last.")
@click.option("--delay", "delay_s", type=click.FloatRange(0), default=0.0, metavar="SECONDS", help="Not before so many have passed.")
@click.option("--wait", is_flag=True, help="Wait for its end and print its result; exit code 1 if it did not complete.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0), metavar="SECONDS", help="With --wait: at most so long (exit code 124).")
@options.dsn
@options.schema
@options.as_json
def start(
    workflow: str,
    pairs: tuple[str, ...],
    input_json: str | None,
    key: str | None,
    queue: str | None,
    priority: int,
    delay_s: float,
    wait: bool,
    timeout_s: float | None,
    dsn: str | None,
    schema: str | None,
    as_json: bool,
) -> None:
    """Start a run of WORKFLOW and print its id.

    The input is --input, or an object by parameter name from NAME=VALUE; where the workflow has one parameter, other
    names describe that parameter's value. A VALUE is JSON where it can be read so, else text: total=999 is a number.

    \b
      pgsupervisor start checkout --input '{"id": 42, "total": 999}' --key order-42
      pgsupervisor start resize path=/data/a.png width=640 --wait
    """
    from supervisor.api.client import Named
    from supervisor.core.errors import SupervisorError

    with options.client(dsn, schema) as client:
        asked = Named(workflow, key, queue, priority, delay_s)
        if input_json is not None:
            run = client.start_record(asked, _parsed(pairs, input_json))
        else:
            given = _named(pairs)
            parameters = {each["name"] for each in client.parameters(workflow)}
            if len(parameters) == 1 and given and not given.keys() <= parameters:
                run = client.start_record(asked, given)  # these names describe the only parameter's value
            else:
                run = client.start(asked, **given)
        facts: dict[str, Any] = {"run_id": run.id, "key": run.key, "workflow": run.workflow, "created": run.created}
        if not wait:
            _print(facts, as_json)
            return
        if not as_json:
            say(f"started run {run.id}; waiting for its end")
        try:
            result = run.result(timeout_s)
        except SupervisorError as error:
            if as_json:
                print_json({**facts, "status": str(run.status()), "error": {"code": error.code, "message": str(error)}})
            raise
        if as_json:
            print_json({**facts, "status": "completed", "result": result})
        else:
            click.echo(short_json(result) if sys.stdout.isatty() else json.dumps(result))


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    click.echo(str(facts["run_id"]))
    if not facts["created"]:
        say(f"key {plain(facts['key'])!r} named this run already; nothing was started")


def _parsed(pairs: tuple[str, ...], input_json: str) -> Any:
    if pairs:
        raise click.UsageError("give --input or NAME=VALUE, not both")
    try:
        return json.loads(sys.stdin.read() if input_json == "-" else input_json)
    except ValueError as error:
        raise click.UsageError(f"--input is not JSON: {error}") from None


def _named(pairs: tuple[str, ...]) -> dict[str, Any]:
    """An object from NAME=VALUE."""
    given: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise click.UsageError(f"{pair!r} is not NAME=VALUE")
        if name in given:
            raise click.UsageError(f"{name!r} is given twice")
        given[name] = _value(value)
    return given


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
