"""`list`: runs, newest first; those that a filter asks for; once, or again and again."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from supervisor.cli import options
from supervisor.cli.output import ago, duration, plain, print_json, say, table
from supervisor.core.filters import STATUSES, Compare, Filter, both, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Row = dict[str, Any]
ERROR_SHOWN = 60

GRAMMAR = """\b
FILTER  workflow = checkout AND (status in (failed, timed_out) OR wait = signal) AND age > 1h AND NOT key ^= "order-"
  texts   workflow key queue batch step version error   = != < <= > >= ^= (begins with) ~ !~ (has in it) in (a, b) is null
  words   status wait                                   = != in (a, b)
  spans   age took waited                               < <= > >=   30s 5m 1h 2d 1h30m
  times   started ended                                 < <= > >=   2026-11-22 2026-11-22T08:30, UTC
  JSON    attribute.NAME input.NAME result.NAME error.type      as texts; bare numbers, true and false as such
  others  run parent priority attempt seq steps worker
AND, OR, NOT and parentheses; what is not one word stands in "quotes". The whole in 'quotes' of the shell."""


@click.command("list", epilog=GRAMMAR)
@click.argument("words", metavar="[FILTER]", nargs=-1)
@click.option("--filter", "more", metavar="FILTER", type=parse, help="The same as an option.")
@click.option("--status", type=click.Choice(STATUSES), help="Only runs in this state.")
@click.option("--workflow", metavar="NAME", help="Only runs of this workflow.")
@click.option("--key", metavar="KEY", help="Only runs that this key names.")
@click.option("--after", "--before", "after", metavar="RUN", type=click.UUID, help="Only what comes after this run in the list, so started before it: the last of the page before.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many.")
@click.option("--watch", is_flag=True, help="Again and again, until q or ^C; with --json a line for every run that is new or has changed.")
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, help="Seconds between two looks of --watch.")
@click.option("--timeout", type=click.FloatRange(0.1, 86_400), default=30.0, show_default=True, help="Seconds that one look may take.")
@options.dsn
@options.schema
@options.as_json
def list_runs(
    words: Sequence[str], more: Filter | None, status: str | None, workflow: str | None, key: str | None, after: UUID | None, limit: int,
    watch: bool, interval: float, timeout: float, dsn: str | None, schema: str | None, as_json: bool,
) -> None:  # fmt: skip
    """List runs, newest first: all, or those that FILTER asks for.

    With --json one object per line. Reads the views: the role wants to be viewer or operator.
    """
    named = {"status": status, "workflow": workflow, "key": key}
    tests = (Compare(name, "=", (value,)) for name, value in named.items() if value is not None)
    asked = both(parse(" ".join(words)) if words else None, more, *tests)
    look = Look(asked, after, limit, timeout, dsn, options.resolve_schema(schema))
    if watch:
        _watch(look, interval, as_json)
    elif as_json:
        for row in look.rows():
            print_json(_as_object(row))
    else:
        rows = look.rows()
        if rows:
            click.echo(_table(rows))
        else:
            say("no runs" + (" that fit" if asked or after else " yet"))
        if len(rows) == limit:
            say(f"older ones: --after {rows[-1]['run_id']}")


class Look:
    """What is asked for, as often as it is asked."""

    def __init__(self, asked: Filter | None, after: UUID | None, limit: int, patience_s: float, dsn: str | None, schema: str) -> None:
        self.asked, self.after, self.limit, self.patience_s = asked, after, limit, patience_s
        self._dsn, self._schema = dsn, schema

    def rows(self) -> list[Row]:
        from supervisor.db import look

        with options.connect(self._dsn, self._schema, purpose="list") as conn:
            return look.runs(conn, self._schema, self.asked, after=self.after, limit=self.limit, patience_s=self.patience_s)


# ── again and again ──────────────────────────────────────────────────────────────────────────────────────────────


def _watch(look: Look, interval: float, as_json: bool) -> None:
    """A table that is drawn anew; in a pipe one table after the other, with --json what has changed."""
    from supervisor.cli.screen import live

    if sys.stdout.isatty() and not as_json:
        from rich.text import Text

        live(lambda: Text(_drawn(look), no_wrap=True, overflow="crop"), interval)
        return
    for drawn in _again_and_again(look, interval, as_json):
        for line in drawn:
            click.echo(line) if not as_json else print_json(line)
        sys.stdout.flush()


def _again_and_again(look: Look, interval: float, as_json: bool) -> Iterable[list[Any]]:
    from supervisor.cli.screen import until_interrupted
    from supervisor.core.errors import DatabaseUnavailable

    seen: dict[UUID, Row] = {}
    with contextlib.suppress(KeyboardInterrupt):
        for turn, _ in enumerate(until_interrupted()):
            if turn:
                time.sleep(interval)
            try:
                rows = look.rows()
            except DatabaseUnavailable as error:
                say(f"{plain(error)}; trying again")
                continue
            if as_json:
                yield [_as_object(row) for row in reversed(rows) if seen.get(row["run_id"]) != row]
                seen = {row["run_id"]: row for row in rows}
            else:
                yield [*([""] if turn else []), _table(rows) if rows else "no runs that fit"]


def _drawn(look: Look) -> str:
    from supervisor.core.errors import DatabaseUnavailable

    try:
        rows = look.rows()
    except DatabaseUnavailable as error:
        return f"{plain(error)}\ntrying again"
    return _table(rows) if rows else "no runs that fit"


# ── one row ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _as_object(row: Row) -> Row:
    made = dict(row)
    kind, message = made.pop("error_type"), made.pop("error_message")
    return {**made, "error": None if kind is None and message is None else {"type": kind, "message": message}}


def _table(rows: Sequence[Row]) -> str:
    heads = ["run", "workflow", "key", "status", "step", "started", "took"]
    failed = any(row["error_type"] for row in rows)
    return table([*heads, "error"] if failed else heads, (_cells(row, failed) for row in rows))


def _cells(row: Row, failed: bool) -> list[Any]:
    cells = [
        row["run_id"],
        row["workflow"],
        row["key"],
        row["status"] + (f" ({row['wait']})" if row["wait"] and row["wait"] != "queued" else ""),
        row["step"],
        ago(row["created_at"]),
        duration((row["ended_at"] - row["created_at"]).total_seconds()) if row["ended_at"] else None,
    ]
    return [*cells, _error(row)] if failed else cells


def _error(row: Row) -> str | None:
    if row["error_type"] is None:
        return None
    kind = str(row["error_type"]).removeprefix("builtins.").removeprefix("supervisor.core.errors.")
    text = f"{kind}: {row['error_message']}" if row["error_message"] else kind
    return text if len(text) <= ERROR_SHOWN else text[: ERROR_SHOWN - 1] + "…"
