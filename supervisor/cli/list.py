"""`list`: runs, newest first."""

from __future__ import annotations

import click

from supervisor.cli import options
from supervisor.cli.output import ago, duration, print_json, say, table

STATES = ("ready", "running", "waiting", "paused", "completed", "failed", "cancelled", "terminated", "timed_out", "continued")


@click.command("list")
@click.option("--status", type=click.Choice(STATES), help="Only runs in this state.")
@click.option("--workflow", metavar="NAME", help="Only runs of this workflow.")
@click.option("--key", metavar="KEY", help="Only runs that this key names.")
@click.option("--before", metavar="RUN", type=click.UUID, help="Only runs started before this one: the last of the page before.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many.")
@options.dsn
@options.schema
@options.as_json
def list_runs(
    status: str | None,
    workflow: str | None,
    key: str | None,
    before: object,
    limit: int,
    dsn: str | None,
    schema: str | None,
    as_json: bool,
) -> None:
    """List runs, newest first.

    With --json one object per line.
    """
    with options.client(dsn, schema) as client:
        runs = client.list(limit, workflow=workflow, status=status, key=key, before=before)  # type: ignore[arg-type]
    if as_json:
        for run in runs:
            print_json({name: getattr(run, name) for name in run.__struct_fields__})
        return
    if not runs:
        say("no runs" + (" that fit" if status or workflow or key or before else " yet"))
        return
    rows = [
        (
            run.run_id,
            run.workflow,
            run.key,
            run.status + (f" ({run.wait})" if run.wait and run.wait != "queued" else ""),
            run.step,
            ago(run.created_at),
            duration((run.ended_at - run.created_at).total_seconds()) if run.ended_at else None,
        )
        for run in runs
    ]
    click.echo(table(("run", "workflow", "key", "status", "step", "started", "took"), rows))
    if len(runs) == limit:
        say(f"older ones: --before {runs[-1].run_id}")
