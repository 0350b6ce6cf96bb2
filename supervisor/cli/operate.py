"""`pause`, `resume`, `retry`, `fork`, `skip`, `edit-retry`: what operators do to runs, by id, by key, or to all that a filter asks for.

The commands differ in their verb and what it takes; how runs are found, counted and told of stands once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from supervisor.cli import options
from supervisor.cli.list import GRAMMAR
from supervisor.cli.many import Order, found_runs, operating, tell

if TYPE_CHECKING:
    from supervisor.api.client import Client

seq_option = click.option("--seq", type=int, required=True, metavar="N", help="The step, by its position as show has it.")


# ── the commands ─────────────────────────────────────────────────────────────────────────────────────────────────


@click.command("pause", epilog=GRAMMAR)
@operating
def pause(order: Order) -> int | None:
    """Stop live runs until somebody resumes them.

    Steps that execute end and are recorded first; timers keep their due times, signals are kept. The role wants to be client or operator, with --filter
    operator. Exit code 1 when one had ended, or is locked by somebody else.

    \b
      pgsupervisor pause order-42 --reason "the warehouse is shut"
    """
    return _do(order, "pause", lambda client, run_id: (True, client.pause(run_id, order.reason, actor=order.actor), None))


@click.command("resume", epilog=GRAMMAR)
@operating
def resume(order: Order) -> int | None:
    """Let paused runs go on where they were. Exit code 1 when one is not paused."""

    def one(client: Client, run_id: UUID) -> Came:
        did = client.resume(run_id, order.reason, actor=order.actor)
        return did, "resumed" if did else "not paused", None

    return _do(order, "resume", one)


@click.command("retry", epilog=GRAMMAR)
@operating
def retry(order: Order) -> int | None:
    """Try again now: runs that are parked, that wait for the next try of a step, or that failed.

    Of a run that failed, timed out or was cancelled a new run goes on from the step that failed; a second time it is the same one.
    """

    def one(client: Client, run_id: UUID) -> Came:
        again = client.retry(run_id, order.reason, actor=order.actor)
        return True, "ready" if again.id == run_id else "forked", again.id

    return _do(order, "retry", one)


@click.command("fork", epilog=GRAMMAR)
@seq_option
@click.option("--input-json", metavar="JSON", help="Another input: an object by parameter name.")
@click.option("--workflow", metavar="NAME", help="Another workflow, whose code does the same up to there.")
@operating
def fork(order: Order, seq: int, input_json: str | None, workflow: str | None) -> int | None:
    """Start new runs that have been given what these were before the result of step N, and go on from there. The runs themselves stay as they are.

    \b
      pgsupervisor fork order-42 --seq 7
    """
    given = None if input_json is None else _json("--input-json", input_json)
    if given is not None and not isinstance(given, dict):
        raise click.UsageError("--input-json wants an object by parameter name: '{\"order_id\": 42}'")

    def one(client: Client, run_id: UUID) -> Came:
        from supervisor.api.operators import goes_on
        from supervisor.core import codec

        payload = None if given is None else codec.encode(given)  # the database checks it by the catalogue
        made = client._carry(lambda verbs: goes_on(verbs, "fork", run_id, seq, payload, {"workflow": workflow}, order.reason, order.actor))
        return True, "forked", made.run_id

    return _do(order, "fork", one, seq=seq, payload=given, options={"workflow": workflow})


@click.command("skip", epilog=GRAMMAR)
@seq_option
@click.option("--json-value", "value", metavar="JSON", default="null", show_default=True, help="What the step is to have returned.")
@click.option("--app", metavar="MODULE", help="Where the step's code is: the value is checked against its annotation.")
@operating
def skip(order: Order, seq: int, value: str, app: str | None) -> int | None:
    """Give step N a result, in place of executing it again; the runs go on. For steps that failed, crashed, or have been running for a second.

    \b
      pgsupervisor skip order-42 --seq 7 --json-value '"paid by hand"' --reason "the bank is down"
    """
    if app is not None:
        from supervisor.cli.run import load_app

        load_app(app)
    result = _json("--json-value", value)

    def one(client: Client, run_id: UUID) -> Came:
        client.skip(run_id, seq, result, order.reason, actor=order.actor)
        return True, "skipped", None

    return _do(order, "skip", one, seq=seq, payload=result)


@click.command("edit-retry", epilog=GRAMMAR)
@seq_option
@click.option("--max-attempts", type=int, metavar="N", help="Tries in all.")
@click.option("--initial", type=float, metavar="S", help="Seconds before the second try.")
@click.option("--factor", type=float, metavar="X", help="Each wait is that many times the one before.")
@click.option("--maximum", type=float, metavar="S", help="No wait is longer.")
@click.option("--next-in", type=float, metavar="S", help="Seconds from now to the next try.")
@operating
def edit_retry(order: Order, seq: int, next_in: float | None, **policy: Any) -> int | None:
    """Change the retry policy of step N, which failed or has been executing for a second, and has no result yet, for these runs alone.

    \b
      pgsupervisor edit-retry order-42 --seq 7 --max-attempts 20 --next-in 0
    """
    changed = {name: value for name, value in policy.items() if value is not None}
    if not changed and next_in is None:
        raise click.UsageError("nothing to change: give --max-attempts, --initial, --factor, --maximum or --next-in")

    def one(client: Client, run_id: UUID) -> Came:
        client.edit_retry(run_id, seq, **changed, next_in=next_in, reason=order.reason, actor=order.actor)
        return True, "edited", None

    return _do(order, "edit_retry", one, seq=seq, options={"policy": changed, "next_in": next_in})


Came = tuple[bool, str, "UUID | None"]  # whether anything was changed, what it is now, the run that goes on


def _json(option: str, text: str) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(text.encode("utf-8", "surrogateescape"))
    except msgspec.DecodeError as error:
        raise click.UsageError(f"{option} {text[:80]!r} is no JSON ({error}); text wants quotes of its own: '\"yes\"'") from None


def _do(
    order: Order, verb: str, one: Callable[[Client, UUID], Came], *, seq: int | None = None, payload: Any = None, options: dict[str, Any] | None = None
) -> int | None:
    from supervisor.core import codec
    from supervisor.db.operator_calls import Deed

    if order.runs:
        return _named(order, verb, one)
    return found_runs(order, Deed(verb, seq, None if payload is None and verb != "skip" else codec.encode(payload), options))


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
            tell(order.as_json, verb, run_id, did, state, made)
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
