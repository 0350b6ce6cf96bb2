"""`audit`: what operators did to runs, schedules and queues, and who asked that runs be ended; when, who, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli import options
from supervisor.cli.output import ago, plain, print_json, say, short_json, table

if TYPE_CHECKING:
    from supervisor.db.history import Place

VERBS = ("cancel", "terminate", "pause", "resume", "retry", "fork", "move", "skip", "edit_retry", "signal", "update", "complete", "fail", "queue_pause", "queue_resume", "schedule_create", "schedule_change", "schedule_declare", "schedule_pause", "schedule_resume", "schedule_trigger",
         "schedule_backfill", "schedule_delete")  # fmt: skip


def _place(_ctx: click.Context, _param: click.Parameter, given: str | None) -> Place:
    from supervisor.db.history import FROM_NOW_ON, Place

    try:
        return Place.of(given) if given is not None else FROM_NOW_ON
    except ValueError:
        raise click.BadParameter(f"{given!r} is no time, such as 2026-11-22 or 2026-11-22T08:30:05.5, nor what stands behind the last page") from None


@click.command("audit")
@click.argument("run", metavar="[RUN|KEY]", required=False)
@click.option("--schedule", metavar="NAME", help="What was done to that schedule, in place of a run.")
@click.option("--verb", metavar="VERB", type=click.Choice(VERBS), help=f"Only such deeds: {', '.join(VERBS)}.")
@click.option("--before", metavar="TIME", callback=_place, help="Only older ones; UTC. Or as the page before says how to go on.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many.")
@options.dsn
@options.schema
@options.as_json
def audit(run: str | None, schedule: str | None, verb: str | None, before: Place, limit: int, dsn: str | None, schema: str | None, as_json: bool) -> None:
    """List what operators did to one run, to one schedule, or to all and to queues, newest first.

    Kept as long as the runs' history. With --json one object per line. The role wants to be viewer or operator.

    \b
      pgsupervisor audit order-42
      pgsupervisor audit --verb skip --limit 20
    """
    from supervisor.db import history

    if run is not None and schedule is not None:
        raise click.UsageError("give a run or --schedule, not both")
    name = options.resolve_schema(schema)
    with options.connect(dsn, name, purpose="audit") as conn:
        found = history.audit(conn, name, run, verb, before, limit, schedule)
    if as_json:
        for each in found:
            print_json(each)
    elif found:
        click.echo(table(("when", "verb", "run", "workflow", "who", "why", "what"), rows(found)))
    else:
        say("no operator has done anything of that kind")
    if len(found) == limit:
        say(f"older ones: --before {plain(history.Place.after(found[-1]))}")


def rows(found: Sequence[dict[str, Any]]) -> list[tuple[object, ...]]:
    """As tables show them."""
    return [
        (ago(each["at"]), each["verb"], _done_to(each), each["workflow"], _who(each), each["reason"], None if each["details"] is None else short_json(each["details"])) for each in found
    ]


def _done_to(each: dict[str, Any]) -> object:
    """The run; of a deed on a schedule or a queue which one."""
    kind = next((kind for kind in ("schedule", "queue") if each[kind] is not None), None)
    return each["run_id"] if kind is None else plain(f"{kind} {each[kind]}")


def _who(each: dict[str, Any]) -> str:
    """As they say; and by which role, where that is kept."""
    return plain(each["login"] if each["actor"] is None else each["actor"] if each["login"] is None else f"{each['actor']} ({each['login']})")
