"""`signal`: send a message to a live run."""

from __future__ import annotations

from uuid import UUID

import click

from supervisor.cli import options
from supervisor.cli.output import print_json


@click.command("signal")
@click.argument("run", metavar="RUN|KEY")
@click.argument("name")
@click.option("--json-value", "value", metavar="JSON", default="null", show_default=True, help="What to send.")
@click.option("--id", "message_id", metavar="TEXT", help="A second message of this name with this id is not stored; exit code 1 then.")
@options.dsn
@options.schema
@options.as_json
def signal(run: str, name: str, value: str, message_id: str | None, dsn: str | None, schema: str | None, as_json: bool) -> int | None:
    """Send the signal NAME to a live run, by its id or its key.

    It is stored when this returns, and the run is given it at its next wait for that name. Any role but viewer may do it.

    \b
      pgsupervisor signal order-42 approved --json-value '{"by": "ann"}'
    """
    import msgspec

    from supervisor.core.errors import RunUnknown

    try:
        message = msgspec.json.decode(value.encode("utf-8", "surrogateescape"))
    except msgspec.DecodeError as error:
        raise click.UsageError(f"--json-value {value[:80]!r} is no JSON ({error}); text wants quotes of its own: --json-value '\"yes\"'") from None
    with options.client(dsn, schema) as client:
        try:
            run_id = UUID(run)
        except ValueError:
            named = client.list(2, key=run)
            if not named:
                raise RunUnknown(f"with key {run!r}") from None
            if len(named) > 1:
                raise click.UsageError(f"key {run!r} names runs of {named[0].workflow} and of {named[1].workflow}; give the run's id") from None
            run_id = named[0].run_id
        stored = client.signal(run_id, name, message, id=message_id)
    if as_json:
        print_json({"run_id": run_id, "signal": name, "id": message_id, "stored": stored})
    else:
        click.echo(f"sent {name} to {run_id}" if stored else f"{run_id} has a signal {name} with that id already; nothing was stored")
    return None if stored else 1
