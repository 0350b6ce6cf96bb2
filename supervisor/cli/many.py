"""Verbs on all runs that a filter finds: counted and shown first, asked for on a terminal, then done by the slice.

Owns what all such commands have in common: their options, the questions, how far it is, what came of it. What is done stands in supervisor/db/bulk.py.
Nothing is done without --yes or a yes on a terminal; what was done is said, whatever ended the command.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import click

from supervisor.cli import options
from supervisor.cli.output import plain, print_json, say, table
from supervisor.cli.progress import Progress
from supervisor.core.errors import ReadTimeout
from supervisor.core.filters import Filter, open_to, parse

if TYPE_CHECKING:
    import psycopg

    from supervisor.db.operator_calls import Deed, Done

PAGE_RUNS = 5000
TURNS, LOCKED_S = 3, 0.5  # what somebody has locked is tried again that often, after so long
EXAMPLES, REFUSED_SHOWN = 3, 5
COUNT_S = 5.0  # counting what --yes is about to do is for the bar alone, and may take no longer
# what would be done with so many, and what was; else the verb says it
WOULD = {"cancel": "{} that would be asked to end", "terminate": "{} that would be terminated"}
WAS = {"cancel": "asked {} to end", "terminate": "terminated {}"}


class Order(NamedTuple):
    """What a command was told, but for the verb's own."""

    runs: Sequence[str]
    asked: Filter | None
    yes: bool
    dry_run: bool
    reason: str | None
    actor: str
    timeout: float
    dsn: str | None
    schema: str
    as_json: bool


def operating(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """The arguments that all of them take, gathered into an Order."""

    def told(
        runs: Sequence[str], asked: Filter | None, yes: bool, dry_run: bool, reason: str | None, actor: str | None, timeout: float, dsn: str | None,
        schema: str | None, as_json: bool, **own: Any,
    ) -> int | None:  # fmt: skip
        if bool(runs) == (asked is not None):
            raise click.UsageError("name runs, or give a --filter")
        if dry_run and (yes or runs):
            raise click.UsageError("--dry-run counts what a --filter finds, and does nothing; leave it out, or --yes and the runs")
        order = Order(runs, asked, yes, dry_run, reason, actor or options.actor(), timeout, dsn, options.resolve_schema(schema), as_json)
        return function(order, **own)

    told.__doc__ = function.__doc__
    for option in (
        options.as_json, options.schema, options.dsn,
        click.option("--timeout", type=click.FloatRange(0.1, 86_400), default=30.0, show_default=True, help="Seconds that looking for runs may take."),
        options.said_by, options.reason,
        dry_run_option, yes_option,
        click.option("--filter", "asked", metavar="FILTER", type=parse, help="All runs that fit; without --yes they are counted first."),
        click.argument("runs", metavar="[RUN|KEY]...", nargs=-1),
    ):  # fmt: skip
        told = option(told)
    return told


dry_run_option = click.option("--dry-run", is_flag=True, help="Only count them, and show some.")
yes_option = click.option("--yes", is_flag=True, help="Do it to all that are found, and ask nobody.")


# ── before it is done ────────────────────────────────────────────────────────────────────────────────────────────


def found_runs(order: Order, deed: Deed) -> int | None:
    """Do it to all that the filter finds, or say what would be done."""
    asked = open_to(deed.verb, order.asked)
    with options.connect(order.dsn, order.schema, purpose=deed.verb) as conn:
        if order.yes:
            return _all(conn, order, deed, asked, _total(conn, order, asked))
        asks = not order.dry_run and may_ask(order.as_json)
        total = _count(conn, order, deed.verb, asked, ", nothing was done; to do it: --yes" if not asks else "")
        if not total or not asks:
            return None
        return _all(conn, order, deed, asked, total) if confirmed(f"{deed.verb} {runs_of(total)}?") else 1


def may_ask(as_json: bool) -> bool:
    """Whether somebody is there who can answer."""
    return not as_json and sys.stdin.isatty() and sys.stderr.isatty()


def confirmed(question: str) -> bool:
    """Ask, and say where nothing is done."""
    yes: bool = click.confirm(question, err=True)
    if not yes:
        say("nothing was done")
    return yes


def examples(conn: psycopg.Connection, schema: str, asked: Filter | None, timeout: float) -> list[dict[str, Any]]:
    """Some of them, the newest: run_id, workflow, key, status, step."""
    from supervisor.db import look

    return [{name: row[name] for name in ("run_id", "workflow", "key", "status", "step")} for row in look.runs(conn, schema, asked, limit=EXAMPLES, patience_s=timeout)]


def show_examples(rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        click.echo(table(("for example", "workflow", "key", "status", "step"), [list(row.values()) for row in rows]))


def _count(conn: psycopg.Connection, order: Order, verb: str, asked: Filter | None, then: str) -> int:
    from supervisor.db import look

    rows = look.counts(conn, order.schema, asked, patience_s=order.timeout)
    total = int(sum(row["runs"] for row in rows))
    some = examples(conn, order.schema, asked, order.timeout) if total else []
    if order.as_json:
        print_json({"verb": verb, "would_do": total, "counts": rows, "examples": some})
        return total
    for row in rows:
        click.echo(f"{row['runs']:>9,}  {row['status']:8}  {plain(row['workflow'])}")
    show_examples(some)
    none = "no run fits" if verb in ("retry", "fork") else "no live run fits"
    say(WOULD.get(verb, f"{{}} that {verb} would be asked of").format(runs_of(total)) + then if total else none)
    return total


def _total(conn: psycopg.Connection, order: Order, asked: Filter | None) -> int | None:
    """How many there are; None where counting takes too long."""
    from supervisor.db import look

    try:
        return int(sum(row["runs"] for row in look.counts(conn, order.schema, asked, patience_s=min(order.timeout, COUNT_S))))
    except ReadTimeout:
        return None


# ── while it is done ─────────────────────────────────────────────────────────────────────────────────────────────


def _all(conn: psycopg.Connection, order: Order, deed: Deed, asked: Filter | None, total: int | None) -> int | None:
    """Slice by slice, the newest first; what starts meanwhile is left alone, and what somebody has locked is tried again."""
    from supervisor.db import bulk

    told = _Told(order.as_json, deed.verb, total)
    try:
        for turn in range(TURNS):
            if turn:
                time.sleep(LOCKED_S)
            again, told.locked = told.locked, []
            for page in [again] if turn else _pages(conn, order.schema, asked, order.timeout):
                for at in range(0, len(page), bulk.SLICE_RUNS):
                    told.add(bulk.operate(conn, order.schema, deed, page[at : at + bulk.SLICE_RUNS], order.reason, order.actor))
            if not told.locked:
                break
    except BaseException:
        told.close(interrupted=True)
        raise
    told.close()
    return 1 if told.locked else None


def _pages(conn: psycopg.Connection, schema: str, asked: Filter | None, timeout: float) -> Iterator[Sequence[UUID]]:
    from supervisor.db import look

    after: UUID | None = None
    while page := look.ids(conn, schema, asked, after=after, limit=PAGE_RUNS, patience_s=timeout):
        yield page
        after = page[-1]


class _Told:
    """What became of the runs so far: with --json a line for each and one for all, else counts, and the first of those that were refused."""

    def __init__(self, as_json: bool, verb: str, total: int | None) -> None:
        self._as_json, self._verb = as_json, verb
        self._progress = Progress("runs" if total is None else f"of {total:,} runs", total)
        self.done = self.refused = 0
        self.locked: list[UUID] = []

    def add(self, came: Sequence[Done]) -> None:
        for each in came:
            if each.state == "locked":
                self.locked.append(each.run_id)
                continue
            self.done += each.did
            self.refused += not each.did
            if self._as_json:
                tell(True, self._verb, each.run_id, each.did, each.state, each.made, each.why)
            elif not each.did and self.refused <= REFUSED_SHOWN:
                say(plain(f"{each.run_id}: {each.state}" + (f" ({each.why})" if each.why else "")))
        self._progress.show(self._found, self._found, self._left)

    @property
    def _found(self) -> int:
        return self.done + self.refused + len(self.locked)

    @property
    def _left(self) -> str:
        counts = ((self.refused, "as they were"), (len(self.locked), "locked by others"))
        return ", ".join(f"{n:,} {word}" for n, word in counts if n)

    def close(self, interrupted: bool = False) -> None:
        """Say what was done; where it was interrupted before anything was, that is said by others."""
        seconds = self._progress.seconds
        self._progress.close()
        if interrupted and not self._found:
            return
        if self._as_json:
            for run_id in self.locked:
                tell(True, self._verb, run_id, False, "locked", None)
            print_json({
                "verb": self._verb, "found": self._found, "done": self.done, "refused": self.refused, "locked": len(self.locked), "interrupted": interrupted,
                "seconds": round(seconds, 3),
            })  # fmt: skip
        else:
            click.echo(WAS.get(self._verb, self._verb + ": {}").format(runs_of(self.done)) + (f", {self.refused:,} as they were" if self.refused else ""))
        if self.locked:
            say(f"left, for transactions of others have them locked: {runs_of(len(self.locked))}; type it again when those have ended")


def tell(as_json: bool, verb: str, run_id: UUID, did: bool, state: str, made: UUID | None, why: str | None = None) -> None:
    """What became of one run."""
    if as_json:
        print_json({"run_id": run_id, "verb": verb, "done": did, "state": state, "made": made, "why": why})
    else:
        click.echo(f"{state} {run_id}" + (f" as {made}" if made is not None and made != run_id else ""))


def runs_of(n: int) -> str:
    """So many, in words."""
    return f"{n:,} run" + ("" if n == 1 else "s")
