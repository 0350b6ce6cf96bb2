"""`cancel`: end live runs, those that are named or all that a filter asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from uuid import UUID

import click

from supervisor.cli import options
from supervisor.cli.list import GRAMMAR
from supervisor.cli.output import plain, print_json, say
from supervisor.core.filters import LIVE, Compare, Filter, both, parse

if TYPE_CHECKING:
    import psycopg

PAGE_RUNS = 1000
TOLD_EVERY = 1000


@click.command("cancel", epilog=GRAMMAR)
@click.argument("runs", metavar="[RUN|KEY]...", nargs=-1)
@click.option("--filter", "asked", metavar="FILTER", type=parse, help="All live runs that fit; without --yes it only counts them.")
@click.option("--yes", is_flag=True, help="Do it.")
@click.option("--reason", metavar="TEXT", help="Kept with the run; whoever waits for it reads it.")
@click.option("--timeout", type=click.FloatRange(0.1, 86_400), default=30.0, show_default=True, help="Seconds that looking for runs may take.")
@options.dsn
@options.schema
@options.as_json
def cancel(
    runs: Sequence[str], asked: Filter | None, yes: bool, reason: str | None, timeout: float, dsn: str | None, schema: str | None, as_json: bool
) -> int | None:
    """End live runs as cancelled, at once: by id, by key, or all that a filter asks for.

    A step that is executing is not interrupted, but nothing of it is recorded any more. Children go on.
    The role wants to be client or operator, with --filter operator. Exit code 1 when a run that was named had ended before.
    """
    if bool(runs) == (asked is not None):
        raise click.UsageError("name runs, or give a --filter")
    name = options.resolve_schema(schema)
    with options.connect(dsn, name, purpose="cancel") as conn:
        if runs:
            return _named(conn, name, runs, reason, as_json)
        asked = both(asked, Compare("status", "in", LIVE))
        if not yes:
            _count(conn, name, asked, timeout, as_json)
        else:
            _all(conn, name, asked, reason, timeout, as_json)
    return None


def _named(conn: psycopg.Connection, schema: str, runs: Sequence[str], reason: str | None, as_json: bool) -> int | None:
    """All of them; the first that is not there is raised when the others are done."""
    from supervisor.core.errors import RunUnknown

    unknown: list[RunUnknown] = []
    ended = 0
    for which in runs:
        try:
            run_id, done = _one(conn, schema, which, reason)
        except RunUnknown as error:
            unknown.append(error)
            continue
        ended += not done
        if as_json:
            print_json({"run_id": run_id, "cancelled": done})
        else:
            click.echo(f"cancelled {run_id}" if done else f"{run_id} had ended before")
    for another in unknown[1:]:
        unknown[0].add_note(f"nor {another.which}")
    if unknown:
        raise unknown[0]
    return 1 if ended else None


def _one(conn: psycopg.Connection, schema: str, which: str, reason: str | None) -> tuple[UUID, bool]:
    """By its id; else, for ids make good keys, by the key."""
    from supervisor.core.errors import RunUnknown
    from supervisor.db import cancelling

    try:
        run_id = UUID(which)
        return run_id, cancelling.cancel(conn, schema, run_id, reason)
    except (ValueError, RunUnknown):
        run_id = cancelling.named_by(conn, schema, which)
        return run_id, cancelling.cancel(conn, schema, run_id, reason)


def _count(conn: psycopg.Connection, schema: str, asked: Filter | None, timeout: float, as_json: bool) -> None:
    from supervisor.db import look

    rows = look.counts(conn, schema, asked, patience_s=timeout)
    total = sum(row["runs"] for row in rows)
    if as_json:
        print_json({"would_cancel": total, "counts": rows})
        return
    for row in rows:
        click.echo(f"{row['runs']:>9,}  {row['status']:8}  {plain(row['workflow'])}")
    say(f"{_runs(total)} that would be cancelled, nothing was done; to do it: --yes" if total else "no live run fits")


def _all(conn: psycopg.Connection, schema: str, asked: Filter | None, reason: str | None, timeout: float, as_json: bool) -> None:
    """One by one, newest first; what starts meanwhile is left alone."""
    from supervisor.core.errors import RunUnknown
    from supervisor.db import cancelling

    done = 0
    try:
        for run_id in _pages(conn, schema, asked, timeout):
            try:
                cancelled = cancelling.cancel(conn, schema, run_id, reason)
            except RunUnknown:  # it ended and its history was dropped meanwhile
                continue
            done += cancelled
            if as_json:
                print_json({"run_id": run_id, "cancelled": cancelled})
            elif cancelled and done % TOLD_EVERY == 0:
                say(f"{done:,} cancelled")
    finally:
        if not as_json:
            click.echo(f"cancelled {_runs(done)}")


def _runs(n: int) -> str:
    return f"{n:,} run" + ("" if n == 1 else "s")


def _pages(conn: psycopg.Connection, schema: str, asked: Filter | None, timeout: float) -> Iterator[UUID]:
    from supervisor.db import look

    after: UUID | None = None
    while page := look.ids(conn, schema, asked, after=after, limit=PAGE_RUNS, patience_s=timeout):
        yield from page
        after = page[-1]
