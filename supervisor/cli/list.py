"""`list`: runs, newest first; those that a filter asks for; once, or again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from supervisor.cli import options, watch
from supervisor.cli.output import ago, duration, print_json, progress_words, say, table
from supervisor.core.filters import STATUSES, Compare, both, parse_list
from supervisor.core.ids import id_time
from supervisor.core.shown import run_as_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from supervisor.core.filters import Filter, Order
    from supervisor.db.look import Found

Row = dict[str, Any]
ERROR_SHOWN = 60

GRAMMAR = """\b
FILTER  workflow = checkout AND (status in (failed, timed_out) OR wait = signal) AND age > 1h AND NOT key ^= "order-"
  texts   workflow key queue batch step version error   = != < <= > >= ^= (begins with) ~ !~ (has in it) in (a, b) is null
  words   status wait schedule                          = != in (a, b); schedule is null
  spans   age took waited                               < <= > >=   30s 5m 1h 2d 1h30m
  times   started ended                                 < <= > >=   2026-11-22 2026-11-22T08:30, UTC
  JSON    attribute.NAME input.NAME result.NAME error.type      as texts; bare numbers, true and false as such; of attributes dates too
  others  run parent priority attempt seq steps worker
AND, OR, NOT and parentheses; what is not one word stands in "quotes". At the end
ORDER BY attribute.NAME [DESC] (those that have it) or started [ASC]. The whole in 'quotes' of the shell."""


@click.command("list", epilog=GRAMMAR)
@click.argument("words", metavar="[FILTER]", nargs=-1)
@click.option("--filter", "more", metavar="FILTER", type=parse_list, help="The same as an option.")
@click.option("--status", type=click.Choice(STATUSES), help="Only runs in this state.")
@click.option("--workflow", metavar="NAME", help="Only runs of this workflow.")
@click.option("--key", metavar="KEY", help="Only runs that this key names.")
@click.option("--after", "--before", "after", metavar="RUN", type=click.UUID, help="Only what comes after this run in the list: the last of the page before.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many.")
@watch.option
@watch.interval
@click.option("--timeout", type=click.FloatRange(0.1, 86_400), default=30.0, show_default=True, help="Seconds that one look may take.")
@options.dsn
@options.schema
@options.as_json
def list_runs(
    words: Sequence[str], more: tuple[Filter | None, Order | None] | None, status: str | None, workflow: str | None, key: str | None, after: UUID | None, limit: int,
    watching: bool, interval: float, timeout: float, dsn: str | None, schema: str | None, as_json: bool,
) -> None:  # fmt: skip
    """List runs, newest first: all, or those that FILTER asks for.

    With --json one object per line. Reads the views: the role wants to be viewer or operator.

    \b
      pgsupervisor list 'workflow = checkout AND status = failed AND age < 1h'
      pgsupervisor list 'wait = signal' --limit 100 --watch
    """
    named = {"status": status, "workflow": workflow, "key": key}
    tests = (Compare(name, "=", (value,)) for name, value in named.items() if value is not None)
    said = [each for each in (parse_list(" ".join(words)) if words else None, more) if each is not None]
    asked = both(*(fits for fits, _ in said), *tests)
    order = next((order for _, order in said if order is not None), None)
    name = options.resolve_schema(schema)

    def rows_now() -> Found:
        from supervisor.db import look

        with options.connect(dsn, name, purpose="list") as conn:
            return look.runs(conn, name, asked, after=after, limit=limit, patience_s=timeout, order=order)

    if watching:
        watch.watch(watch.Watched(rows_now, _looked, _objects), interval, as_json)
    elif as_json:
        rows = rows_now()
        for row in rows:
            print_json(run_as_json(row))
        if rows.reached is not None:
            _say_more(rows, limit, order)
    else:
        rows = rows_now()
        if rows:
            click.echo(_table(rows))
        elif rows.reached is None:
            say("no runs" + (" that fit" if asked or after else " yet"))
        _say_more(rows, limit, order)


def _say_more(rows: Found, limit: int, order: Order | None) -> None:
    """How to go on, and whether these were all as far as was looked."""
    if rows.reached is not None:
        ids = f"until {rows.reached}, {ago(id_time(rows.reached))}"
        say(f"{'at least these' if rows else 'none so far'}: not all was looked at within half of --timeout, only runs {ids}; go on: --after {rows.reached}")
    elif len(rows) == limit:
        say(f"{'older' if order is None else 'further'} ones: --after {rows[-1]['run_id']}")


# ── one row ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _objects(rows: Sequence[Row]) -> Iterator[tuple[UUID, Row]]:
    """The oldest first: what comes later is newer, also in a pipe."""
    return ((row["run_id"], run_as_json(row)) for row in reversed(rows))


def _looked(rows: Found) -> str:
    shown = _table(rows) if rows else "no runs that fit"
    return shown if rows.reached is None else f"{shown}\nnot all was looked at"


def _table(rows: Sequence[Row]) -> str:
    heads = ["run", "workflow", "key", "status", "step", "started", "took"]
    failed = any(row["error_type"] for row in rows)
    tells = any(row["progress"] for row in rows)
    more = ["progress"] * tells + ["error"] * failed
    return table([*heads, *more], (_cells(row, tells, failed) for row in rows))


def _cells(row: Row, tells: bool, failed: bool) -> list[Any]:
    cells = [
        row["run_id"],
        row["workflow"],
        row["key"],
        row["status"] + (f" ({row['wait']})" if row["wait"] and row["wait"] != "queued" else ""),
        row["step"],
        ago(row["created_at"]),
        duration((row["ended_at"] - row["created_at"]).total_seconds()) if row["ended_at"] else None,
    ]
    return [*cells, *[progress_words(row["progress"])] * tells, *[_error(row)] * failed]


def _error(row: Row) -> str | None:
    if row["error_type"] is None:
        return None
    kind = str(row["error_type"]).removeprefix("builtins.").removeprefix("supervisor.core.errors.")
    text = f"{kind}: {row['error_message']}" if row["error_message"] else kind
    return text if len(text) <= ERROR_SHOWN else text[: ERROR_SHOWN - 1] + "…"
