"""`cancel` and `terminate`: end live runs, those that are named or all that a filter asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import click

from supervisor.cli import options
from supervisor.cli.list import GRAMMAR
from supervisor.cli.many import Order, found_runs, operating
from supervisor.cli.output import print_json
from supervisor.core.filters import LIVE

if TYPE_CHECKING:
    from supervisor.api.client import Client

DONE = {"cancel": "cancelled", "terminate": "terminated"}  # what became of a run: also the key in JSON


@click.command("cancel", epilog=GRAMMAR)
@operating
def cancel(order: Order) -> int | None:
    """Cancel live runs and all below them: by id, by key, or all that a filter asks for.

    Their code is told at what it awaits, may clean up, and ends them; a run that has not begun, or can't run any more, ends at once. The reason is
    kept with the run: its code and whoever waits for it read it.
    The role wants to be client or operator, with --filter operator. Exit code 1 when a run that was named had ended or was cancelled
    before, or one that a filter found is locked by somebody else.
    """
    return _end(order, "cancel")


@click.command("terminate", epilog=GRAMMAR)
@operating
def terminate(order: Order) -> int | None:
    """End live runs at once and without their code, where cancel is not enough: by id, by key, or all that a filter asks for.

    A step that is executing is given up, and nothing of it is recorded any more. Children are treated as they were started: by default they are cancelled.
    The role wants to be client or operator, with --filter operator. Exit code 1 when a run that was named had ended before, or
    one that a filter found is locked by somebody else.
    """
    return _end(order, "terminate")


def _end(order: Order, verb: str) -> int | None:
    from supervisor.db.operator_calls import Deed

    if not order.runs:
        return found_runs(order, Deed(verb))
    with options.client(order.dsn, order.schema) as client:
        return _named(order, verb, client)


def _named(order: Order, verb: str, client: Client) -> int | None:
    """All of them; the first that is not there is raised when the others are done."""
    from supervisor.core.errors import RunUnknown

    unknown: list[RunUnknown] = []
    ended = 0
    for which in order.runs:
        try:
            run_id, done = _one(order, verb, client, which)
        except RunUnknown as error:
            unknown.append(error)
            continue
        ended += not done
        lives = client.status(run_id).status in LIVE
        if order.as_json:
            print_json({"run_id": run_id, DONE[verb]: done, "ended": not lives})
        else:
            click.echo(_what_became(verb, run_id, done, lives))
    for another in unknown[1:]:
        unknown[0].add_note(f"nor {another.which}")
    if unknown:
        raise unknown[0]
    return 1 if ended else None


def _what_became(verb: str, run_id: UUID, done: bool, lives: bool) -> str:
    """Of one run. Its code may take its time, or never end: then it was asked to, and no more."""
    if done:
        return f"asked {run_id} to end: its code is told, and ends it" if lives else f"{DONE[verb]} {run_id}"
    if lives:
        return f"{run_id} was asked to end before and has not ended yet; without its code: python -m supervisor terminate {run_id}"
    return f"{run_id} had ended before"


def _one(order: Order, verb: str, client: Client, which: str) -> tuple[UUID, bool]:
    """By its id; else, for ids make good keys, by the key."""
    from supervisor.core.errors import RunUnknown
    from supervisor.db import history

    end = client.cancel if verb == "cancel" else client.terminate
    try:
        run_id = UUID(which)
        return run_id, end(run_id, order.reason, actor=order.actor)
    except (ValueError, RunUnknown):
        run_id = history.one_of(which, [(each.run_id, each.workflow) for each in client.list(10, key=which)])
        return run_id, end(run_id, order.reason, actor=order.actor)
