"""`cancel`: end live runs, those that are named or all that a filter asks for."""

from __future__ import annotations

import time
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

    from supervisor.api.client import Client

PAGE_RUNS = 5000
TURNS, LOCKED_S = 3, 0.5  # what somebody has locked is tried again that often, after so long


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
    The role wants to be client or operator, with --filter operator. Exit code 1 when a run that was named had ended before, or
    one that a filter found is locked by somebody else.
    """
    if bool(runs) == (asked is not None):
        raise click.UsageError("name runs, or give a --filter")
    name = options.resolve_schema(schema)
    if runs:
        with options.client(dsn, name) as client:
            return _named(client, runs, reason, as_json)
    with options.connect(dsn, name, purpose="cancel") as conn:
        asked = both(asked, Compare("status", "in", LIVE))
        if not yes:
            _count(conn, name, asked, timeout, as_json)
        else:
            return _all(conn, name, asked, reason, timeout, as_json)
    return None


def _named(client: Client, runs: Sequence[str], reason: str | None, as_json: bool) -> int | None:
    """All of them; the first that is not there is raised when the others are done."""
    from supervisor.core.errors import RunUnknown

    unknown: list[RunUnknown] = []
    ended = 0
    for which in runs:
        try:
            run_id, done = _one(client, which, reason)
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


def _one(client: Client, which: str, reason: str | None) -> tuple[UUID, bool]:
    """By its id; else, for ids make good keys, by the key."""
    from supervisor.core.errors import RunUnknown
    from supervisor.db import history

    try:
        run_id = UUID(which)
        return run_id, client.cancel(run_id, reason)
    except (ValueError, RunUnknown):
        run_id = history.one_of(which, [(each.run_id, each.workflow) for each in client.list(10, key=which)])
        return run_id, client.cancel(run_id, reason)


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


def _all(conn: psycopg.Connection, schema: str, asked: Filter | None, reason: str | None, timeout: float, as_json: bool) -> int | None:
    """Slice by slice, the newest first; what starts meanwhile is left alone, and what somebody has locked is tried again."""
    from supervisor.cli.progress import Progress

    told = _Told(as_json)
    progress = Progress("cancelled", None)
    newest: UUID | None = None
    try:
        for turn in range(TURNS):
            if turn:
                time.sleep(LOCKED_S)
            told.locked.clear()
            for page in _pages(conn, schema, asked, timeout, newest):
                newest = newest or UUID(int=page[0].int + 1)
                _slices(conn, schema, page, reason, told)
                progress.show(told.cancelled, 0, f"{len(told.locked):,} locked by others" if told.locked else "")
            if not told.locked:
                break
    finally:
        progress.close()
        told.say()
    return 1 if told.locked else None


def _slices(conn: psycopg.Connection, schema: str, page: Sequence[UUID], reason: str | None, told: _Told) -> None:
    from supervisor.db import bulk

    for at in range(0, len(page), bulk.SLICE_RUNS):
        ended, locked = bulk.cancel(conn, schema, page[at : at + bulk.SLICE_RUNS], reason)
        told.add(ended, locked)


class _Told:
    """What became of the runs so far: with --json a line for each that is cancelled, and at the end for each that is not."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self.cancelled = 0
        self.locked: list[UUID] = []

    def add(self, ended: Sequence[UUID], locked: Sequence[UUID]) -> None:
        self.cancelled += len(ended)
        self.locked += locked
        if self._as_json:
            for run_id in ended:
                print_json({"run_id": run_id, "cancelled": True})

    def say(self) -> None:
        if self._as_json:
            for run_id in self.locked:
                print_json({"run_id": run_id, "cancelled": False})
        else:
            click.echo(f"cancelled {_runs(self.cancelled)}")
        if self.locked:
            say(f"not cancelled, for transactions of others have them locked: {_runs(len(self.locked))}; type it again when those have ended")


def _runs(n: int) -> str:
    return f"{n:,} run" + ("" if n == 1 else "s")


def _pages(conn: psycopg.Connection, schema: str, asked: Filter | None, timeout: float, after: UUID | None) -> Iterator[Sequence[UUID]]:
    from supervisor.db import look

    while page := look.ids(conn, schema, asked, after=after, limit=PAGE_RUNS, patience_s=timeout):
        yield page
        after = page[-1]
