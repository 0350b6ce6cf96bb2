"""`queues`: what stands in each queue, and since when the oldest run of it could have been taken."""

from __future__ import annotations

import click

from supervisor.cli import options
from supervisor.cli.output import ago, print_json, say, table


@click.command("queues")
@options.dsn
@options.schema
@options.as_json
def queues(dsn: str | None, schema: str | None, as_json: bool) -> None:
    """Show what stands in each queue: ready, running, waiting and paused runs, and how long the oldest ready one has waited.

    Counts live runs: 0.3 s per million. Reads the views: the role wants to be viewer or operator.
    """
    from supervisor.db import look

    name = options.resolve_schema(schema)
    with options.connect(dsn, name, purpose="queues") as conn:
        rows = look.queues(conn, name)
    if as_json:
        for row in rows:
            print_json(row)
    elif not rows:
        say("no queues yet; one exists once a worker or a start has named it: python -m supervisor run --app …")
    else:
        columns = ("queue", "ready", "running", "waiting", "paused")
        shown = [(*(row[column] for column in columns), ago(row["oldest_ready_at"]) if row["oldest_ready_at"] else None) for row in rows]
        click.echo(table((*columns, "oldest ready"), shown))
