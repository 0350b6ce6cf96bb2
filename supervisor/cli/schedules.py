"""`schedules`: which workflow is started when, how that stands, and what operators do about it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli import options
from supervisor.cli.operate import _json
from supervisor.cli.ordered import Order, ordered
from supervisor.cli.output import ago, plain, print_json, say, short_json, table

if TYPE_CHECKING:
    from supervisor.api.schedules import ScheduleFire, ScheduleInfo

NONE = "there are no schedules; declare one in the app, or: python -m supervisor schedules create --help"
OVERLAPS = ("skip", "allow", "buffer_one", "buffer_all", "cancel_other", "terminate_other")
FORMATS = ("%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z")


def _at(_ctx: click.Context, _param: click.Parameter, given: datetime | None) -> datetime | None:
    return given.replace(tzinfo=UTC) if given is not None and given.tzinfo is None else given


def _time(name: str, **more: Any) -> Callable[..., Any]:
    return click.option(name, metavar="TIME", type=click.DateTime(FORMATS), callback=_at, **more)


def _terms(function: Callable[..., int | None], new: bool = True) -> Callable[..., int | None]:
    """What may be said of a schedule; of one that is there, what is not said stays as it is."""
    five, theirs, hour, skip, utc = (f"  [default: {each}]" if new else "" for each in ("5", "the workflow's", "3600", "skip", "UTC"))
    for option in (
        _time("--ends-at", help="No tick after."),
        _time("--starts-at", help="No tick before; UTC where it says no offset."),
        click.option("--attributes-json", metavar="JSON", help="Attributes of its runs, an object."),
        click.option("--priority", type=click.IntRange(0, 9), help=f"Of its runs{five}."),
        click.option("--queue", metavar="NAME", help=f"Of its runs{theirs}."),
        click.option("--pass-tick", metavar="PARAMETER", help="The workflow's parameter that is given the tick."),
        click.option("--jitter", type=float, metavar="S", help="Start its runs within S seconds after their ticks."),
        click.option("--catchup", type=float, metavar="S", help=f"How late a tick may be and still be fired{hour}."),
        click.option("--overlap", type=click.Choice(OVERLAPS), help=f"While a run of it is live{skip}."),
        click.option("--input-json", metavar="JSON", help="Input of its runs, an object by parameter name."),
        click.option("--timezone", metavar="ZONE", help=f"That cron is read in, like Europe/Berlin{utc}."),
        click.option("--every", type=float, metavar="S", help="Every S seconds, counted from 1970-01-01 UTC."),
        click.option("--cron", metavar="CRON", help="'minute hour day month weekday', or a name like @hourly."),
    ):  # fmt: skip
        function = option(function)
    return function


def _said(input_json: str | None, attributes_json: str | None, **terms: Any) -> dict[str, Any]:
    said = {name: value for name, value in terms.items() if value is not None}
    if input_json is not None:
        said["input"] = _json("--input-json", input_json)
    if attributes_json is not None:
        said["attributes"] = _json("--attributes-json", attributes_json)
    for name in ("input", "attributes"):
        if not isinstance(said.get(name, {}), dict):
            raise click.UsageError(f"--{name}-json wants an object: '{{\"order_id\": 42}}'")
    return said


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────────


@click.group("schedules", invoke_without_command=True)
@options.dsn
@options.schema
@options.as_json
@click.pass_context
def schedules(ctx: click.Context, dsn: str | None, schema: str | None, as_json: bool) -> None:
    """List the schedules; create, change, pause, resume, trigger, backfill or delete one.

    Looking reads the views: the role wants to be viewer or operator; all else a client may.
    """
    if ctx.invoked_subcommand is None:
        _list(dsn, schema, as_json)


@schedules.command("list")
@options.dsn
@options.schema
@options.as_json
def list_schedules(dsn: str | None, schema: str | None, as_json: bool) -> None:
    """List the schedules by name: when each ticks next, and what became of its ticks."""
    _list(dsn, schema, as_json)


def _list(dsn: str | None, schema: str | None, as_json: bool) -> None:
    with options.client(dsn, schema) as client:
        found = client.schedules()
    if as_json:
        for each in found:
            print_json(_row(each))
    elif found:
        heads = ("schedule", "workflow", "when", "state", "next", "last", "live", "held", "fired", "skipped", "missed")
        click.echo(table(heads, [_line(each) for each in found]))
        for each in found:
            if each.error:
                say(f"{plain(each.name)}: {plain(each.error)}")
    else:
        say(NONE)


def _row(each: ScheduleInfo | ScheduleFire) -> dict[str, Any]:
    return {name: getattr(each, name) for name in each.__struct_fields__}


def _when(each: ScheduleInfo) -> str:
    return f"every {each.every_s:g} s" if each.every_s is not None else f"{each.cron} {each.timezone}"


def _line(each: ScheduleInfo) -> tuple[object, ...]:
    return (
        each.name, each.workflow, _when(each), each.state, ago(each.next_at) if each.next_at else None, ago(each.last_at) if each.last_at else None, each.live,
        each.held, each.fired, each.skipped, each.missed,
    )  # fmt: skip


@schedules.command("show")
@click.argument("name")
@click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True, help="At most so many of its last ticks.")
@options.dsn
@options.schema
@options.as_json
def show_schedule(name: str, limit: int, dsn: str | None, schema: str | None, as_json: bool) -> None:
    """Show one schedule: what is said of it, its next five ticks, and what became of the last ones."""
    with options.client(dsn, schema) as client:
        found = client.schedule(name)
        fires = client.schedule_fires(name, limit)
    ticks = _next(found)
    if as_json:
        print_json({**_row(found), "next": ticks, "fires": [_row(each) for each in fires]})
        return
    for field, value in _row(found).items():
        if value is not None and value != [] and value != {}:
            shown = short_json(value) if isinstance(value, dict) else value.isoformat() if isinstance(value, datetime) else str(value)
            click.echo(f"{field:14}{plain(shown)}")
    _say_next(found, ticks)
    if fires:
        rows = [(each.tick_at.isoformat(), each.kind, each.state, each.ticks, each.run_id, each.status) for each in fires]
        click.echo("\n" + table(("tick", "by", "became", "ticks", "run", "is"), rows))


def _next(found: ScheduleInfo) -> list[datetime]:
    import itertools

    from supervisor.core.errors import ScheduleInvalid

    try:
        return list(itertools.islice(found.timing().after(datetime.now(UTC)), 5)) if found.state != "paused" else []
    except ScheduleInvalid:
        return []


def _say_next(found: ScheduleInfo, ticks: list[datetime]) -> None:
    zone = found.timing().zone if ticks else UTC
    for n, tick in enumerate(ticks):
        click.echo(f"{'next' if n == 0 else '':14}{tick.astimezone(zone).isoformat()}  ({ago(tick)})")


@schedules.command("next")
@click.option("--cron", metavar="CRON", help="'minute hour day month weekday', or a name like @hourly.")
@click.option("--every", type=float, metavar="S", help="Every S seconds.")
@click.option("--timezone", metavar="ZONE", default="UTC", show_default=True, help="That cron is read in.")
@click.option("-n", "count", type=click.IntRange(1, 1000), default=5, show_default=True, help="So many ticks.")
@options.as_json
def next_ticks(cron: str | None, every: float | None, timezone: str, count: int, as_json: bool) -> None:
    """Say when a schedule would tick; makes none and asks no database."""
    _print_next("next", {"cron": cron, "every": every, "timezone": timezone}, count, as_json)


def _print_next(name: str, terms: dict[str, Any], count: int, as_json: bool) -> None:
    import itertools

    from supervisor.api.schedules import timing_of

    timing = timing_of(name, terms)
    for tick in itertools.islice(timing.after(datetime.now(UTC)), count):
        if as_json:
            print_json({"tick_at": tick, "local": tick.astimezone(timing.zone).isoformat()})
        else:
            click.echo(f"{tick.astimezone(timing.zone).isoformat()}  ({ago(tick)})")


# ── doing ────────────────────────────────────────────────────────────────────────────────────────────────────────


@schedules.command("create")
@click.argument("name")
@click.option("--workflow", metavar="WORKFLOW", required=True, help="Name of the workflow, as a worker has registered it.")
@click.option("--dry-run", is_flag=True, help="Only say its next five ticks.")
@_terms
@ordered
def create(order: Order, name: str, workflow: str, dry_run: bool, **terms: Any) -> int | None:
    """Create a schedule: from now on WORKFLOW is started again and again."""
    said = _said(**terms)
    if dry_run:
        _print_next(name, said, 5, order.as_json)
        return None
    with options.client(order.dsn, order.schema) as client:
        client.create_schedule(name, workflow, reason=order.reason, actor=order.actor, **said)
    return order.done("schedule", name, "created")


@schedules.command("change")
@click.argument("name")
@click.option("--workflow", metavar="WORKFLOW", help="Another workflow.")
@partial(_terms, new=False)
@ordered
def change(order: Order, name: str, workflow: str | None, **terms: Any) -> int | None:
    """Change what is given of a schedule; with another cron, every, time zone or bounds it begins anew from now."""
    with options.client(order.dsn, order.schema) as client:
        client.change_schedule(name, workflow=workflow, reason=order.reason, actor=order.actor, **_said(**terms))
    return order.done("schedule", name, "changed")


@schedules.command("pause")
@click.argument("name")
@ordered
def pause(order: Order, name: str) -> int | None:
    """Fire no tick of it until it is resumed; its live runs go on. Exit code 1 when it is paused."""
    with options.client(order.dsn, order.schema) as client:
        did = client.pause_schedule(name, order.reason, actor=order.actor)
    return order.done("schedule", name, "paused" if did else "paused already", done=did)


@schedules.command("resume")
@click.argument("name")
@ordered
def resume(order: Order, name: str) -> int | None:
    """Fire it again from its next tick on; backfill makes up for those of the pause. Exit code 1 when it is not paused."""
    with options.client(order.dsn, order.schema) as client:
        did = client.resume_schedule(name, order.reason, actor=order.actor)
    return order.done("schedule", name, "resumed" if did else "not paused", done=did)


@schedules.command("trigger")
@click.argument("name")
@click.option("--overlap", type=click.Choice(OVERLAPS), default="allow", show_default=True, help="While a run of it is live.")
@ordered
def trigger(order: Order, name: str, overlap: Any) -> int | None:
    """Start a run of it now, paused or not. Exit code 1 when --overlap skips it."""
    with options.client(order.dsn, order.schema) as client:
        run_id = client.trigger_schedule(name, order.reason, overlap=overlap, actor=order.actor)
    return order.done("schedule", name, "started" if run_id else "skipped, for a run is live:", done=run_id is not None, run_id=run_id)


@schedules.command("backfill")
@click.argument("name")
@_time("--from", required=True, help="The first moment; UTC where it says no offset.")
@_time("--until", required=True, help="The last moment, which is over.")
@click.option("--overlap", type=click.Choice(OVERLAPS), default="allow", show_default=True, help="While a run of it is live.")
@click.option("--dry-run", is_flag=True, help="Only count the ticks.")
@ordered
def backfill(order: Order, name: str, until: datetime, overlap: Any, dry_run: bool, **since: datetime) -> int | None:
    """Have a run started for each tick between two moments that has none; the leader starts them, a hundred at a time."""
    with options.client(order.dsn, order.schema) as client:
        n = client.backfill_schedule(name, since["from"], until, order.reason, overlap=overlap, dry_run=dry_run, actor=order.actor)
    return order.done("schedule", name, "would backfill" if dry_run else "backfills", ticks=n)


@schedules.command("delete")
@click.argument("name")
@ordered
def delete(order: Order, name: str) -> int | None:
    """Forget a schedule. Its live runs go on, those that wait behind them are cancelled."""
    with options.client(order.dsn, order.schema) as client:
        client.delete_schedule(name, order.reason, actor=order.actor)
    return order.done("schedule", name, "deleted")
