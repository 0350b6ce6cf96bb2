"""`migrate`: bring the schema up to this program."""

from __future__ import annotations

import click

from supervisor.cli import options
from supervisor.cli.output import print_json, say


@click.command("migrate")
@options.dsn
@options.schema
@click.option("--dry-run", is_flag=True, help="Say what would be done and do nothing.")
@click.option("--show-sql", is_flag=True, help="Print the SQL that is or would be sent.")
@options.as_json
def migrate(dsn: str | None, schema: str | None, dry_run: bool, show_sql: bool, as_json: bool) -> None:
    """Bring the schema up to this program: make it where it is missing, apply what is pending.

    Each migration is a transaction of its own. Safe beside running workers and beside another migrate.
    """
    from supervisor.db import migrations

    name = options.resolve_schema(schema)
    with options.connect(dsn, name, purpose="migrate", profile="host") as conn:
        applied = migrations.migrate(conn, name, dry_run=dry_run, progress=None if dry_run else say)
        at = max((each.number for each in migrations.status(conn, name) if each.applied_at), default=0)
    if as_json:
        fields = ("number", "name", "checksum", "elapsed_ms", *(["sql"] if show_sql else []))
        rows = [{field: getattr(each, field) for field in fields} for each in applied]
        print_json({"schema": name, "dry_run": dry_run, "applied": rows, "at": at})
        return
    if show_sql:
        for each in applied:
            click.echo(f"-- {each.number:04d}_{each.name}\n{each.sql}")
    if not applied:
        say(f"schema {name!r} is up to date at migration {at}; nothing to do")
    elif dry_run:
        say(f"would apply to schema {name!r}: {', '.join(f'{each.number:04d}_{each.name}' for each in applied)}")
    else:
        say(f"schema {name!r} is at migration {at}, {len(applied)} of them applied just now")
