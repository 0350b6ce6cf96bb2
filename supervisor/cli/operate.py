"""`pause`, `resume`, `retry`, `fork`, `skip`, `edit-retry`: what operators do to runs, by id, by key, or to all that a filter asks for.

The commands differ in their verb and what it takes; how runs are found, counted and told of stands once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import click

from supervisor.cli import options
from supervisor.cli.cancel import LOCKED_S, TURNS, _pages, _runs
from supervisor.cli.list import GRAMMAR
from supervisor.cli.output import plain, print_json, say
from supervisor.core.filters import LIVE, UNSUCCESSFUL, Compare, Filter, both, parse

if TYPE_CHECKING:
    import psycopg

    from supervisor.api.client import Client
    from supervisor.db.operator_calls import Deed, Done

REFUSED_SHOWN = 5


class Order(NamedTuple):
    """What a command was told, but for the verb's own."""

    runs: Sequence[str]
    asked: Filter | None
    yes: bool
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
        order = Order(runs, asked, yes, reason, actor or options.actor(), timeout, dsn, options.resolve_schema(schema), as_json)
        return function(order, **own)

    told.__doc__ = function.__doc__
    for option in (
        options.as_json, options.schema, options.dsn,
        click.option("--timeout", type=click.FloatRange(0.1, 86_400), default=30.0, show_default=True, help="Seconds that looking for runs may take."),
        click.option("--actor", metavar="TEXT", help="Who does it, for the audit  [default: account@host]."),
        click.option("--reason", metavar="TEXT", help="Why; kept in the audit."),
        click.option("--dry-run", is_flag=True, help="With --filter: only count, as without --yes."),
        click.option("--yes", is_flag=True, help="Do it to all that the filter finds."),
        click.option("--filter", "asked", metavar="FILTER", type=parse, help="All runs that fit; without --yes it only counts them."),
        click.argument("runs", metavar="[RUN|KEY]...", nargs=-1),
    ):  # fmt: skip
        told = option(told)
    return told


seq_option = click.option("--seq", type=int, required=True, metavar="N", help="The step, by its position as show has it.")


# ── the commands ─────────────────────────────────────────────────────────────────────────────────────────────────


@click.command("pause", epilog=GRAMMAR)
@operating
def pause(order: Order) -> int | None:
    """Stop live runs until somebody resumes them.

    Steps that execute end and are recorded first; timers keep their due times, signals are kept. The role wants to be client or operator, with --filter
    operator. Exit code 1 when one had ended, or is locked by somebody else.
    """
    return _do(order, "pause", LIVE, lambda client, run_id: (True, client.pause(run_id, order.reason, actor=order.actor), None))


@click.command("resume", epilog=GRAMMAR)
@operating
def resume(order: Order) -> int | None:
    """Let paused runs go on where they were. Exit code 1 when one is not paused."""

    def one(client: Client, run_id: UUID) -> Came:
        did = client.resume(run_id, order.reason, actor=order.actor)
        return did, "resumed" if did else "not paused", None

    return _do(order, "resume", LIVE, one)


@click.command("retry", epilog=GRAMMAR)
@operating
def retry(order: Order) -> int | None:
    """Try again now: runs that are parked, that wait for the next try of a step, or that failed.

    Of a run that failed, timed out or was cancelled a new run goes on from the step that failed; a second time it is the same one.
    """

    def one(client: Client, run_id: UUID) -> Came:
        again = client.retry(run_id, order.reason, actor=order.actor)
        return True, "ready" if again.id == run_id else "forked", again.id

    return _do(order, "retry", (*LIVE, *UNSUCCESSFUL), one)


@click.command("fork", epilog=GRAMMAR)
@seq_option
@click.option("--input-json", metavar="JSON", help="Another input: an object by parameter name.")
@click.option("--workflow", metavar="NAME", help="Another workflow, whose code does the same up to there.")
@operating
def fork(order: Order, seq: int, input_json: str | None, workflow: str | None) -> int | None:
    """Start new runs that have been given what these were before the result of step N, and go on from there. The runs themselves stay as they are."""
    given = None if input_json is None else _json("--input-json", input_json)
    if given is not None and not isinstance(given, dict):
        raise click.UsageError("--input-json wants an object by parameter name: '{\"order_id\": 42}'")

    def one(client: Client, run_id: UUID) -> Came:
        from supervisor.api.operators import goes_on
        from supervisor.core import codec

        payload = None if given is None else codec.encode(given)  # the database checks it by the catalogue
        made = client._carry(lambda verbs: goes_on(verbs, "fork", run_id, seq, payload, {"workflow": workflow}, order.reason, order.actor))
        return True, "forked", made.run_id

    return _do(order, "fork", None, one, seq=seq, payload=given, options={"workflow": workflow})


@click.command("skip", epilog=GRAMMAR)
@seq_option
@click.option("--json-value", "value", metavar="JSON", default="null", show_default=True, help="What the step is to have returned.")
@click.option("--app", metavar="MODULE", help="Where the step's code is: the value is checked against its annotation.")
@operating
def skip(order: Order, seq: int, value: str, app: str | None) -> int | None:
    """Give step N a result, in place of executing it again; the runs go on. For steps that failed, crashed, or have been running for a second."""
    if app is not None:
        from supervisor.cli.run import load_app

        load_app(app)
    result = _json("--json-value", value)

    def one(client: Client, run_id: UUID) -> Came:
        client.skip(run_id, seq, result, order.reason, actor=order.actor)
        return True, "skipped", None

    return _do(order, "skip", LIVE, one, seq=seq, payload=result)


@click.command("edit-retry", epilog=GRAMMAR)
@seq_option
@click.option("--max-attempts", type=int, metavar="N", help="Tries in all.")
@click.option("--initial", type=float, metavar="S", help="Seconds before the second try.")
@click.option("--factor", type=float, metavar="X", help="Each wait is that many times the one before.")
@click.option("--maximum", type=float, metavar="S", help="No wait is longer.")
@click.option("--next-in", type=float, metavar="S", help="Seconds from now to the next try.")
@operating
def edit_retry(order: Order, seq: int, next_in: float | None, **policy: Any) -> int | None:
    """Change the retry policy of step N, which failed and has no result yet, for these runs alone."""
    changed = {name: value for name, value in policy.items() if value is not None}
    if not changed and next_in is None:
        raise click.UsageError("nothing to change: give --max-attempts, --initial, --factor, --maximum or --next-in")

    def one(client: Client, run_id: UUID) -> Came:
        client.edit_retry(run_id, seq, **changed, next_in=next_in, reason=order.reason, actor=order.actor)
        return True, "edited", None

    return _do(order, "edit_retry", LIVE, one, seq=seq, options={"policy": changed, "next_in": next_in})


Came = tuple[bool, str, "UUID | None"]  # whether anything was changed, what it is now, the run that goes on


def _json(option: str, text: str) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(text.encode("utf-8", "surrogateescape"))
    except msgspec.DecodeError as error:
        raise click.UsageError(f"{option} {text[:80]!r} is no JSON ({error}); text wants quotes of its own: '\"yes\"'") from None


def _do(
    order: Order, verb: str, statuses: Sequence[str] | None, one: Callable[[Client, UUID], Came], *, seq: int | None = None, payload: Any = None,
    options: dict[str, Any] | None = None,
) -> int | None:  # fmt: skip
    if order.runs:
        return _named(order, verb, one)
    return _filtered(order, verb, statuses, seq, payload, options)


# ── runs that are named ──────────────────────────────────────────────────────────────────────────────────────────


def _named(order: Order, verb: str, one: Callable[[Client, UUID], Came]) -> int | None:
    """All of them; the first error is raised when the others are done."""
    from supervisor.core.errors import OperationRefused, RunEnded, RunUnknown

    wrong: list[Exception] = []
    nothing = 0
    with options.client(order.dsn, order.schema) as client:
        for which in order.runs:
            try:
                run_id = _id_of(client, which)
                did, state, made = one(client, run_id)
            except (RunUnknown, RunEnded, OperationRefused) as error:
                wrong.append(error)
                continue
            nothing += not did
            _tell(order.as_json, verb, run_id, did, state, made)
    for another in wrong[1:]:
        wrong[0].add_note(f"nor: {another}")
    if wrong:
        raise wrong[0]
    return 1 if nothing else None


def _id_of(client: Client, which: str) -> UUID:
    """By its id; else, for ids make good keys, by the key."""
    from supervisor.core.errors import RunUnknown
    from supervisor.db import history

    try:
        return client.status(UUID(which)).run_id
    except (ValueError, RunUnknown):
        return history.one_of(which, [(each.run_id, each.workflow) for each in client.list(10, key=which)])


def _tell(as_json: bool, verb: str, run_id: UUID, did: bool, state: str, made: UUID | None, why: str | None = None) -> None:
    if as_json:
        print_json({"run_id": run_id, "verb": verb, "done": did, "state": state, "made": made, "why": why})
    else:
        click.echo(f"{state} {run_id}" + (f" as {made}" if made is not None and made != run_id else ""))


# ── runs by filter ───────────────────────────────────────────────────────────────────────────────────────────────


def _filtered(order: Order, verb: str, statuses: Sequence[str] | None, seq: int | None, payload: Any, own: dict[str, Any] | None) -> int | None:
    from supervisor.core import codec
    from supervisor.db.operator_calls import Deed

    asked = both(order.asked, Compare("status", "in", tuple(statuses)) if statuses is not None else None)
    deed = Deed(verb, seq, None if payload is None and verb != "skip" else codec.encode(payload), own)
    with options.connect(order.dsn, order.schema, purpose=verb) as conn:
        if order.yes:
            return _all(conn, order, deed, asked)
        _count(conn, order, verb, asked)
    return None


def _count(conn: psycopg.Connection, order: Order, verb: str, asked: Filter | None) -> None:
    from supervisor.db import look

    rows = look.counts(conn, order.schema, asked, patience_s=order.timeout)
    total = sum(row["runs"] for row in rows)
    if order.as_json:
        print_json({"verb": verb, "would_do": total, "counts": rows})
        return
    for row in rows:
        click.echo(f"{row['runs']:>9,}  {row['status']:8}  {plain(row['workflow'])}")
    say(f"{_runs(total)} that {verb} would be asked of, nothing was done; to do it: --yes" if total else "no run fits")


def _all(conn: psycopg.Connection, order: Order, deed: Deed, asked: Filter | None) -> int | None:
    """Slice by slice, the newest first; what starts meanwhile is left alone, and what somebody has locked is tried again."""
    from supervisor.cli.progress import Progress
    from supervisor.db import bulk

    told = _Told(order.as_json, deed.verb)
    progress = Progress(f"done ({deed.verb})", None)
    try:
        for turn in range(TURNS):
            if turn:
                time.sleep(LOCKED_S)
            again, told.locked = told.locked, []
            for page in [again] if turn else _pages(conn, order.schema, asked, order.timeout, None):
                for at in range(0, len(page), bulk.SLICE_RUNS):
                    told.add(bulk.operate(conn, order.schema, deed, page[at : at + bulk.SLICE_RUNS], order.reason, order.actor))
                progress.show(told.done, 0, f"{len(told.locked):,} locked by others" if told.locked else "")
            if not told.locked:
                break
    finally:
        progress.close()
        told.say()
    return 1 if told.locked else None


class _Told:
    """What became of the runs so far: with --json a line for each, else counts, and the first of those that were refused."""

    def __init__(self, as_json: bool, verb: str) -> None:
        self._as_json, self._verb = as_json, verb
        self.done = self.refused = 0
        self.locked: list[UUID] = []

    def add(self, done: Sequence[Done]) -> None:
        for each in done:
            if each.state == "locked":
                self.locked.append(each.run_id)
                continue
            self.done += each.did
            self.refused += not each.did
            if self._as_json:
                _tell(True, self._verb, each.run_id, each.did, each.state, each.made, each.why)
            elif not each.did and self.refused <= REFUSED_SHOWN:
                say(f"{each.run_id}: {each.state}" + (f" ({each.why})" if each.why else ""))

    def say(self) -> None:
        if self._as_json:
            for run_id in self.locked:
                _tell(True, self._verb, run_id, False, "locked", None)
        else:
            click.echo(f"{self._verb}: {_runs(self.done)}" + (f", {self.refused:,} as they were" if self.refused else ""))
        if self.locked:
            say(f"left, for transactions of others have them locked: {_runs(len(self.locked))}; type it again when those have ended")
