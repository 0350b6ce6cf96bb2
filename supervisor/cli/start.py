"""`start`: start a run of a workflow that some worker has registered, or one of every record of a file (records.py)."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import click

from supervisor.cli import options
from supervisor.cli.output import plain, print_json, say, short_json


ON_CONFLICT = ("return", "reject", "replace", "restart_failed")
HOW = ("queue", "priority", "delay_s", "batch", "on_conflict", "trace")
WHY_AFTER_S = 5.0  # of silence; what is well ends before
FILE_ONLY = ("form", "rejects", "strict", "key_field", "app")


@click.command("start")
@click.argument("workflow")
@click.argument("pairs", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--input-json", metavar="JSON", help="The only parameter's value, or an object by parameter name; - reads stdin.")
@click.option("--key", metavar="KEY", help="Idempotency key: a second start with it gives the first one's run.")
@click.option("--on-conflict", type=click.Choice(ON_CONFLICT), default="return", show_default=True, help="What becomes of a key that names a run.")
@click.option("--queue", metavar="NAME", help="Another queue than the workflow's.")
@click.option("--priority", type=click.IntRange(0, 9), default=5, show_default=True, help="0 first, 9 last.")
@click.option("--delay", "delay_s", type=click.FloatRange(0), default=0.0, metavar="SECONDS", help="Not before so many have passed.")
@click.option("--attribute", "attributes", multiple=True, metavar="NAME=VALUE", help="To find the run by; again for more.")
@click.option("--batch", metavar="NAME", help="Put the runs into this batch: `results --batch NAME`.")
@click.option("--traceparent", envvar="TRACEPARENT", metavar="TEXT", help="Span of W3C Trace Context that it is started in; also of $TRACEPARENT, with $TRACESTATE.")
@click.option("--wait", is_flag=True, help="Wait for the end and print the result, or what failed, exit code 1 if a run did not complete; what it waits for is said meanwhile.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0), metavar="SECONDS", help="With --wait: at most so long (exit code 124).")
@click.option("--input", "path", metavar="FILE", help="A run of every record: .jsonl .ndjson .csv, also .gz; - is stdin.")
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), help="Of --input, whatever its name ends with.")
@click.option("--key-field", metavar="NAME", help="Of --input: the field that is the key; the file can then be repeated. a.b reaches inside.")
@click.option("--rejects", metavar="FILE", help="Of --input: write bad records there, as JSON Lines, with line, path and error.")
@click.option("--strict", is_flag=True, help="Of --input: end at the first bad record (exit code 2); those before it stay started.")
@click.option("--app", metavar="MODULE", help="Of --input: check records by the types of this module's workflow, not by names alone.")
@options.dsn
@options.schema
@options.as_json
def start(workflow: str, pairs: tuple[str, ...], path: str | None, dsn: str | None, schema: str | None, **told: Any) -> int:
    """Start a run of WORKFLOW and print its id; or with --input one of every record of a file.

    The input is --input-json, or an object by parameter name from NAME=VALUE; where the workflow has one parameter, other
    names describe that parameter's value. A VALUE is JSON where it can be read so, else text: total=999 is a number, unless the parameter takes text alone.
    --input-json, and a record of a file, is the only parameter's value where the workflow has one, else an object by parameter name. Where that value can't
    be an object {"text": …}, and text is the parameter's name, it is by name then, too. What surely does not fit is refused and not started.

    \b
      python -m supervisor start checkout --input-json '{"id": 42, "total": 999}' --key order-42
      python -m supervisor start resize path=/data/a.png width=640 --wait
      python -m supervisor start checkout --input orders.jsonl --key-field id --batch monday --rejects bad.jsonl --wait
    """
    from supervisor.api.asked import encode_attributes
    from supervisor.core import traces

    encoded = encode_attributes(_named(told.pop("attributes"), "--attribute ") or None)

    told["trace"] = traces.read(told.pop("traceparent"), os.environ.get("TRACESTATE"))
    if told["timeout_s"] is not None and not told["wait"]:
        raise click.UsageError("--timeout belongs to --wait")
    if path is not None:
        with _nearest(workflow, dsn, schema):
            return _start_file(workflow, pairs, path, dsn, schema, encoded, told)
    given = [name for name in FILE_ONLY if told[name]]
    if given:
        raise click.UsageError(f"--{given[0].replace('form', 'format').replace('_', '-')} belongs to --input FILE")
    with _nearest(workflow, dsn, schema):
        _start_one(workflow, pairs, dsn, schema, encoded, told)
    return 0


@contextmanager
def _nearest(workflow: str, dsn: str | None, schema: str | None) -> Iterator[None]:
    """A workflow that nobody knows may be misspelt: the error has the nearest of those that are known, where this role may read them."""
    from difflib import get_close_matches

    from supervisor.core.errors import SupervisorError, UnknownWorkflow

    try:
        yield
    except UnknownWorkflow as error:
        with suppress(SupervisorError), options.client(dsn, schema) as client:
            if near := get_close_matches(workflow, {each.workflow for each in client.versions()}, 1):
                error.add_note(f"did you mean {near[0]!r}?")
        raise


def _start_file(
    workflow: str, pairs: tuple[str, ...], path: str, dsn: str | None, schema: str | None, attributes: bytes | None, told: dict[str, Any]
) -> int:
    from supervisor.api.asked import Named
    from supervisor.cli.records import Asked, start_file

    if pairs or told["input_json"] is not None or told["key"] is not None:
        raise click.UsageError("with --input every input comes from the file, and keys from --key-field; leave out NAME=VALUE, --input-json and --key")
    if told["on_conflict"] != "return" and not told["key_field"]:
        raise click.UsageError("--on-conflict is about keys; say which field is the key: --key-field NAME")
    how = Named(workflow=workflow, attributes=attributes, **{name: told[name] for name in HOW})
    asked = Asked(path, **{name: told[name] for name in (*FILE_ONLY, "wait", "timeout_s", "as_json")})
    return start_file(dsn, options.resolve_schema(schema), how, asked)


def _start_one(
    workflow: str, pairs: tuple[str, ...], dsn: str | None, schema: str | None, attributes: bytes | None, told: dict[str, Any]
) -> None:
    from supervisor.api.asked import Named
    from supervisor.core.errors import InputInvalid, SupervisorError
    from supervisor.core.kinds import fits
    from supervisor.core.parameters import unknown_words

    as_json = told["as_json"]
    with options.client(dsn, schema) as client:
        asked = Named(workflow=workflow, key=told["key"], attributes=attributes, **{name: told[name] for name in HOW})
        if told["input_json"] is not None:
            run = client.start_record(asked, _parsed(pairs, told["input_json"]))
        else:
            parameters = {each["name"]: each.get("schema") for each in client.parameters(workflow)}
            given = _named(pairs, schemas=parameters)
            unknown = next((name for name in given if name not in parameters), None)
            if unknown is not None and len(parameters) == 1 and fits(next(iter(parameters.values())), given):
                run = client.start_record(asked, given)  # these names describe the only parameter's value
            elif unknown is not None:
                raise InputInvalid(f"workflow {workflow}", unknown_words(unknown, list(parameters)))
            else:
                run = client.start(asked, **given)
        facts: dict[str, Any] = {"run_id": run.id, "key": run.key, "workflow": run.workflow, "created": run.created}
        if not told["wait"]:
            _print(facts, as_json)
            return
        if not as_json:
            say(f"{'started run' if run.created else f'key {plain(run.key)!r} named this run already, nothing was started: run'} {run.id}; waiting for its end")
        try:
            result = _awaited(run, told["timeout_s"], lambda: _why(run, dsn, schema))
        except KeyboardInterrupt:
            say(f"no longer waited for: run {run.id} goes on; see it: python -m supervisor show {run.id}, end it: python -m supervisor cancel {run.id}")
            raise
        except SupervisorError as error:
            if as_json:
                print_json({**facts, "status": str(run.status()), "error": {"code": error.code, "message": str(error)}})
            raise
        if as_json:
            print_json({**facts, "status": "completed", "result": result})
        else:
            click.echo(short_json(result) if sys.stdout.isatty() else json.dumps(result))


def _awaited(run: Any, timeout_s: float | None, why: Callable[[], tuple[str, list[str]]]) -> Any:
    """Its result. Where it takes longer, what it waits for is said on stderr, each reason once: with no worker, or a paused queue, it would wait in silence."""
    from supervisor.core.errors import SupervisorError

    until = None if timeout_s is None else time.monotonic() + timeout_s
    said = {""}
    while True:
        left_s = float("inf") if until is None else max(0.0, until - time.monotonic())
        part_s = min(left_s, WHY_AFTER_S)
        try:
            return run.result(part_s)
        except TimeoutError as error:
            if isinstance(error, SupervisorError):  # of the run's own
                raise
            if left_s <= WHY_AFTER_S:
                raise TimeoutError(str(error).replace(f"within {part_s:g} s", f"within {timeout_s:g} s")) from None
        reason, lines = why()
        for line in lines if reason not in said else ():
            say(line)
        said.add(reason)


def _why(run: Any, dsn: str | None, schema: str | None) -> tuple[str, list[str]]:
    """What it waits for, and what `show` says of that; nothing while it executes. A role that may not read the views is told the reason alone."""
    from supervisor.cli.why import banner
    from supervisor.core.errors import PermissionMissing, SupervisorError
    from supervisor.db import history

    name = options.resolve_schema(schema)
    with suppress(SupervisorError):
        try:
            with options.connect(dsn, name, purpose="start") as conn:
                found = history.read(conn, name, str(run.id))
        except PermissionMissing:
            info = run.status()
            return info.wait or "", [f"{info.status}: {info.wait}"] if info.wait else []
        if found.wait and found.wait["status"] != "running":
            return found.wait["code"] or "", banner(found, [])
    return "", []


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    click.echo(str(facts["run_id"]))
    if not facts["created"]:
        say(f"key {plain(facts['key'])!r} named this run already; nothing was started")


def _parsed(pairs: tuple[str, ...], input_json: str) -> Any:
    if pairs:
        raise click.UsageError("give --input-json or NAME=VALUE, not both")
    try:
        return json.loads(sys.stdin.read() if input_json == "-" else input_json)
    except ValueError as error:
        raise click.UsageError(f"--input-json is not JSON: {error}") from None


def _named(pairs: tuple[str, ...], what: str = "", schemas: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An object from NAME=VALUE. A VALUE is JSON where it can be read so, and where the schema of its NAME takes that or no text."""
    from supervisor.core.kinds import is_text

    given: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise click.UsageError(f"{what}{pair!r} is not NAME=VALUE")
        if name in given:
            raise click.UsageError(f"{what}{name!r} is given twice")
        read = _value(value)
        given[name] = value if is_text((schemas or {}).get(name), value, read) else read
    return given


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
