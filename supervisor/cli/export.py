"""`export`: histories as files, for `replay --file` where no database is, in CI above all."""

from __future__ import annotations

import sys

import click

from supervisor.cli import histories, options
from supervisor.cli.output import say


@click.command("export")
@click.argument("runs", metavar="[RUN|KEY]...", nargs=-1)
@histories.choice
@options.dsn
@options.schema
@options.as_json
def export(
    runs: tuple[str, ...], workflow: str | None, since: float, sample: int, of_version: str | None, dsn: str | None, schema: str | None, as_json: bool
) -> int | None:
    """Write histories of runs to stdout, one JSON document a line: inputs and results as they are stored, nothing left out.

    python -m supervisor export --workflow checkout --sample 50 > histories.json

    Any role but client may do it. Exit code 1 where there are none, or some were left out because they are too long.
    """
    if not runs and not workflow:
        raise click.UsageError("name runs, or a --workflow")
    from supervisor.core.histories import line
    from supervisor.db.histories import reading

    written = 0
    left_out: list[str] = []
    write = sys.stdout.buffer.write
    with reading(dsn, options.resolve_schema(schema)) as found:
        ids = histories.chosen(found, runs, workflow, since, sample, of_version)
        for history in histories.each(found, ids, left_out, bool(runs)):
            write(line(history))
            written += 1
    for each in left_out:
        say(f"left out: {each}")
    if not written:
        say("no run fits; nothing was exported")
    return None if written and not left_out else 1
