"""`queues`: what stands in each queue, and since when the oldest run of it could have been taken."""

from __future__ import annotations

from typing import Any

import click

from supervisor.cli import options, watch
from supervisor.cli.output import ago, print_json, say, table

Row = dict[str, Any]
NONE = "no queues yet; one exists once a worker or a start has named it: python -m supervisor run --app …"


@click.command("queues")
@watch.option
@watch.interval
@options.dsn
@options.schema
@options.as_json
def queues(watching: bool, interval: float, dsn: str | None, schema: str | None, as_json: bool) -> None:
    """Show what stands in each queue: ready, running, waiting and paused runs, and how long the oldest ready one has waited.

    Counts live runs: 0.3 s per million. Reads the views: the role wants to be viewer or operator.
    """
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
    columns = ("queue", "ready", "running", "waiting", "paused")
    shown = [(*(row[column] for column in columns), ago(row["oldest_ready_at"]) if row["oldest_ready_at"] else None) for row in rows]
    return table((*columns, "oldest ready"), shown)
