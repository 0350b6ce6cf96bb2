"""`queues`: what stands in each queue, since when the oldest run of it could have been taken, whether it is paused; pauses and resumes one."""

from __future__ import annotations

from typing import Any

import click

from supervisor.cli import options, watch
from supervisor.cli.output import ago, plain, print_json, say, table
from supervisor.cli.ordered import Order, ordered
from supervisor.core.shown import by_whom

Row = dict[str, Any]
NONE = "no queues yet; one exists once a worker or a start has named it: python -m supervisor run --app …"


@click.group("queues", invoke_without_command=True)
@watch.option
@watch.interval
@options.dsn
@options.schema
@options.as_json
@click.pass_context
def queues(ctx: click.Context, watching: bool, interval: float, dsn: str | None, schema: str | None, as_json: bool) -> None:
    """Show what stands in each queue: how many workers serve it, ready, running, waiting and paused runs, how long the oldest ready one has waited, who paused the queue; pause or resume one.

    Counts live runs: 0.3 s per million. Reads the views: the role wants to be viewer or operator.
    """
    if ctx.invoked_subcommand is not None:
        return
    name = options.resolve_schema(schema)

    def rows_now() -> list[Row]:
        from supervisor.db import look

        with options.connect(dsn, name, purpose="queues") as conn:
            return look.queues(conn, name)

    if watching:
        watch.watch(watch.Watched(rows_now, lambda rows: _table(rows) if rows else NONE, lambda rows: ((row["queue"], row) for row in rows)), interval, as_json)
    elif as_json:
        for row in rows_now():
            print_json(row)
    elif rows := rows_now():
        click.echo(_table(rows))
    else:
        say(NONE)


def _table(rows: list[Row]) -> str:
    columns = ("queue", "workers", "ready", "running", "waiting", "paused")
    shown: list[tuple[object, ...]] = [(*(row[column] for column in columns), ago(row["oldest_ready_at"]) if row["oldest_ready_at"] else None) for row in rows]
    if any(row["paused_at"] for row in rows):
        shown = [(*cells, _paused(row)) for cells, row in zip(shown, rows, strict=True)]
        return table((*columns, "oldest ready", "queue is paused"), shown)
    return table((*columns, "oldest ready"), shown)


def _paused(row: Row) -> str | None:
    """Since when, by whom, why."""
    if row["paused_at"] is None:
        return None
    return plain(f"{ago(row['paused_at'])} {by_whom(row['paused_by'], row['paused_reason'])}")


# ── doing ────────────────────────────────────────────────────────────────────────────────────────────────────────


@queues.command("pause")
@click.argument("name")
@ordered
def pause(order: Order, name: str) -> int | None:
    """Claim nothing more from a queue until it is resumed; runs that workers have go on. Exit code 1 when it is paused.

    The role wants to be operator.
    """
    with options.client(order.dsn, order.schema) as client:
        did = client.pause_queue(name, order.reason, actor=order.actor)
    return order.done("queue", name, "paused" if did else "paused already", done=did)


@queues.command("resume")
@click.argument("name")
@ordered
def resume(order: Order, name: str) -> int | None:
    """Claim from it again; hosts that serve it begin at once. Exit code 1 when it is not paused.

    The role wants to be operator.
    """
    with options.client(order.dsn, order.schema) as client:
        did = client.resume_queue(name, order.reason, actor=order.actor)
    return order.done("queue", name, "resumed" if did else "not paused", done=did)
