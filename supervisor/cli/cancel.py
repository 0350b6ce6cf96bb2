"""`cancel` and `terminate`: end live runs, those that are named or all that a filter asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
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


@dataclass(frozen=True)
class Way:
    """How runs are ended: by which verb, and what is said of that."""

    verb: str
    done: str  # what became of a run: also the key in JSON
    past: str  # what was done with those that a filter found: their code may take its time
    many: str  # the same, of so many

    def one(self, client: Client, run_id: UUID, reason: str | None, actor: str) -> bool:
        done: bool = getattr(client, self.verb)(run_id, reason, actor=actor)
        return done

    def slice(self, conn: psycopg.Connection, schema: str, runs: Sequence[UUID], reason: str | None, actor: str) -> tuple[list[UUID], list[UUID]]:
        from supervisor.db import bulk

        found: tuple[list[UUID], list[UUID]] = getattr(bulk, self.verb)(conn, schema, runs, reason, actor)
        return found


CANCEL, TERMINATE = Way("cancel", "cancelled", "asked to end", "asked {} to end"), Way("terminate", "terminated", "terminated", "terminated {}")
_OPTIONS = (
    click.argument("runs", metavar="[RUN|KEY]...", nargs=-1),
    click.option("--filter", "asked", metavar="FILTER", type=parse, help="All live runs that fit; without --yes it only counts them."),
    click.option("--yes", is_flag=True, help="Do it."),
    click.option("--reason", metavar="TEXT", help="Kept with the run; its code and whoever waits for it read it."),
    click.option("--actor", metavar="TEXT", help="Who does it; default: user@host."),
    click.option("--timeout", type=click.FloatRange(0.1, 86_400), default=30.0, show_default=True, help="Seconds that looking for runs may take."),
    options.dsn,
    options.schema,
    options.as_json,
)


def _asked(command: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments and options that both commands take."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command("cancel", epilog=GRAMMAR)
@_asked
def cancel(**given: Any) -> int | None:
    """Cancel live runs and all below them: by id, by key, or all that a filter asks for.

    Their code is told at what it awaits, may clean up, and ends them; a run that has not begun, or can't run any more, ends at once.
    The role wants to be client or operator, with --filter operator. Exit code 1 when a run that was named had ended or was cancelled
    before, or one that a filter found is locked by somebody else.
    """
    return _end(CANCEL, **given)


@click.command("terminate", epilog=GRAMMAR)
@_asked
def terminate(**given: Any) -> int | None:
    """End live runs at once and without their code, where cancel is not enough: by id, by key, or all that a filter asks for.

    A step that is executing is given up, and nothing of it is recorded any more. Children are treated as they were started: by default they are cancelled.
    The role wants to be client or operator, with --filter operator. Exit code 1 when a run that was named had ended before, or
    one that a filter found is locked by somebody else.
    """
    return _end(TERMINATE, **given)


def _end(
    way: Way, runs: Sequence[str], asked: Filter | None, yes: bool, reason: str | None, actor: str | None, timeout: float, dsn: str | None,
    schema: str | None, as_json: bool,
) -> int | None:  # fmt: skip
    if bool(runs) == (asked is not None):
        raise click.UsageError("name runs, or give a --filter")
    name, who = options.resolve_schema(schema), actor or options.actor()
    if runs:
        with options.client(dsn, name) as client:
            return _named(way, client, runs, reason, who, as_json)
    with options.connect(dsn, name, purpose=way.verb) as conn:
        asked = both(asked, Compare("status", "in", LIVE))
        if not yes:
            _count(way, conn, name, asked, timeout, as_json)
        else:
            return _all(way, conn, name, asked, reason, who, timeout, as_json)
    return None


def _named(way: Way, client: Client, runs: Sequence[str], reason: str | None, actor: str, as_json: bool) -> int | None:
    """All of them; the first that is not there is raised when the others are done."""
    from supervisor.core.errors import RunUnknown

    unknown: list[RunUnknown] = []
    ended = 0
    for which in runs:
        try:
            run_id, done = _one(way, client, which, reason, actor)
        except RunUnknown as error:
            unknown.append(error)
            continue
        ended += not done
        lives = client.status(run_id).status in LIVE
        if as_json:
            print_json({"run_id": run_id, way.done: done, "ended": not lives})
        else:
            click.echo(_what_became(way, run_id, done, lives))
    for another in unknown[1:]:
        unknown[0].add_note(f"nor {another.which}")
    if unknown:
        raise unknown[0]
    return 1 if ended else None


def _what_became(way: Way, run_id: UUID, done: bool, lives: bool) -> str:
    """Of one run. Its code may take its time, or never end: then it was asked to, and no more."""
    if done:
        return f"asked {run_id} to end: its code is told, and ends it" if lives else f"{way.done} {run_id}"
    if lives:
        return f"{run_id} was asked to end before and has not ended yet; without its code: python -m supervisor terminate {run_id}"
    return f"{run_id} had ended before"


def _one(way: Way, client: Client, which: str, reason: str | None, actor: str) -> tuple[UUID, bool]:
    """By its id; else, for ids make good keys, by the key."""
    from supervisor.core.errors import RunUnknown
    from supervisor.db import history

    try:
        run_id = UUID(which)
        return run_id, way.one(client, run_id, reason, actor)
    except (ValueError, RunUnknown):
        run_id = history.one_of(which, [(each.run_id, each.workflow) for each in client.list(10, key=which)])
        return run_id, way.one(client, run_id, reason, actor)


def _count(way: Way, conn: psycopg.Connection, schema: str, asked: Filter | None, timeout: float, as_json: bool) -> None:
    from supervisor.db import look

    rows = look.counts(conn, schema, asked, patience_s=timeout)
    total = sum(row["runs"] for row in rows)
    if as_json:
        print_json({f"would_{way.verb}": total, "counts": rows})
        return
    for row in rows:
        click.echo(f"{row['runs']:>9,}  {row['status']:8}  {plain(row['workflow'])}")
    say(f"{_runs(total)} that would be {way.past}, nothing was done; to do it: --yes" if total else "no live run fits")


def _all(
    way: Way, conn: psycopg.Connection, schema: str, asked: Filter | None, reason: str | None, actor: str, timeout: float, as_json: bool
) -> int | None:
    """Slice by slice, the newest first; what starts meanwhile is left alone, and what somebody has locked is tried again."""
    from supervisor.cli.progress import Progress

    told = _Told(way, as_json)
    progress = Progress(way.past, None)
    newest: UUID | None = None
    try:
        for turn in range(TURNS):
            if turn:
                time.sleep(LOCKED_S)
            told.locked.clear()
            for page in _pages(conn, schema, asked, timeout, newest):
                newest = newest or UUID(int=page[0].int + 1)
                _slices(way, conn, schema, page, reason, actor, told)
                progress.show(told.done, 0, f"{len(told.locked):,} locked by others" if told.locked else "")
            if not told.locked:
                break
    except BaseException:
        progress.close()
        if told.done:  # what was done is said, whatever ended it
            told.say()
        raise
    progress.close()
    told.say()
    return 1 if told.locked else None


def _slices(way: Way, conn: psycopg.Connection, schema: str, page: Sequence[UUID], reason: str | None, actor: str, told: _Told) -> None:
    from supervisor.db import bulk

    for at in range(0, len(page), bulk.SLICE_RUNS):
        ended, locked = way.slice(conn, schema, page[at : at + bulk.SLICE_RUNS], reason, actor)
        told.add(ended, locked)


class _Told:
    """What became of the runs so far: with --json a line for each that was ended, and at the end for each that is not."""

    def __init__(self, way: Way, as_json: bool) -> None:
        self._way, self._as_json = way, as_json
        self.done = 0
        self.locked: list[UUID] = []

    def add(self, ended: Sequence[UUID], locked: Sequence[UUID]) -> None:
        self.done += len(ended)
        self.locked += locked
        if self._as_json:
            for run_id in ended:
                print_json({"run_id": run_id, self._way.done: True})

    def say(self) -> None:
        if self._as_json:
            for run_id in self.locked:
                print_json({"run_id": run_id, self._way.done: False})
        else:
            click.echo(self._way.many.format(_runs(self.done)))
        if self.locked:
            say(f"not {self._way.past}, for transactions of others have them locked: {_runs(len(self.locked))}; type it again when those have ended")


def _runs(n: int) -> str:
    return f"{n:,} run" + ("" if n == 1 else "s")


def _pages(conn: psycopg.Connection, schema: str, asked: Filter | None, timeout: float, after: UUID | None) -> Iterator[Sequence[UUID]]:
    from supervisor.db import look

    while page := look.ids(conn, schema, asked, after=after, limit=PAGE_RUNS, patience_s=timeout):
        yield page
        after = page[-1]
