"""`results`: the results of a batch, in the order of its input."""

from __future__ import annotations

import click

from supervisor.cli import options
from supervisor.cli.output import plain, print_json, say
from supervisor.cli.progress import Progress


@click.command("results")
@click.option("--batch", required=True, metavar="NAME", help="The batch that `start --batch NAME` made.")
@click.option("--output", "path", default="-", show_default=True, metavar="FILE", help="Where to: JSON Lines, packed if it ends with .gz; - is stdout.")
@click.option("--failed-too", is_flag=True, help="Write those that failed, were cancelled, terminated or timed out too, with their errors.")
@options.dsn
@options.schema
@options.as_json
def results(batch: str, path: str, failed_too: bool, dsn: str | None, schema: str | None, as_json: bool) -> int:
    """Write the results of a batch as JSON Lines, one run a line, in the order of its input.

    \b
      {"run_id":"0190…","key":"order-42","status":"completed","result":{"payment":"p-1"}}

    Exit code 1 while some runs have not ended. With --json counts are printed on stdout, so --output must be a file.

    \b
      pgsupervisor results --batch monday --output monday.jsonl
      pgsupervisor results --batch monday --failed-too | jq 'select(.error)'
    """
    from supervisor.db import connect
    from supervisor.db.client_calls import ClientCalls
    from supervisor.files import results as files
    from supervisor.files.source import STDIN

    if as_json and path == STDIN:
        raise click.UsageError("--json and the results both want stdout; give --output FILE")
    calls = ClientCalls(connect.resolve_dsn(dsn, source="--dsn"), options.resolve_schema(schema), "files")
    progress = Progress("results", None)
    try:
        with files.output(path) as out:
            written = files.write(calls, batch, out, failed_too, lambda so_far: progress.show(so_far.runs, 0))
    except OSError as error:
        if path == STDIN or error.filename is None:
            raise
        raise click.UsageError(f"--output {path}: {error.strerror}") from None
    finally:
        progress.close()
        calls.close()
    if as_json:
        print_json({name: getattr(written, name) for name in written.__struct_fields__})
    else:
        left_out = "" if failed_too or not written.failed else f" ({written.failed:,} other{'s' * (written.failed != 1)} ended otherwise: --failed-too)"
        say(plain(f"{written.lines:,} results of {written.runs:,} runs of batch {batch}{left_out}"))
        if written.live:
            say(f"{written.live:,} runs have not ended yet")
    return 1 if written.live else 0
