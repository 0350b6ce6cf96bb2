"""`demo`: durable workflows over every .py file of a directory, with workers killed on the way, and the proof that nothing was lost."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from supervisor.cli import options
from supervisor.cli.output import plain, print_json, say

if TYPE_CHECKING:
    import uuid

    from supervisor.db.connect import Dsn
    from supervisor.demo.kills import Kill
    from supervisor.demo.perform import Figures


@click.command("demo")
@click.option(
    "--path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Files below this folder  [default: standard library and site-packages].",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The first N files only.")
@click.option("--procs", default="auto", show_default=True, help="Worker processes; auto: one per core this process may use.")
@click.option("--dashboard/--no-dashboard", "dashboard", default=None, help="Serve a dashboard meanwhile  [default: where it is installed and somebody is at a terminal].")
@options.metrics
@options.dsn
@options.schema
@options.as_json
def demo(path: Path | None, limit: int | None, procs: str, dashboard: bool | None, metrics: str | None, dsn: str | None, schema: str | None, as_json: bool) -> int:
    """Work through every .py file of a directory, one durable run each, while three workers are killed inside a step.

    Each file is read and hashed, tokenized, parsed and measured, and the figures are booked into an ordinary table in
    the same database. At the end the sum of what was booked must be what a separate process expects. Without a
    database it uses the embedded server. Exit code 1 unless the sums are equal and every kill hit a step.
    """
    from supervisor.cli import about
    from supervisor.cli.run import count_procs
    from supervisor.core import settings
    from supervisor.dashboard.beside import dashboard_beside, port_beside
    from supervisor.demo.files import python_files
    from supervisor.demo.perform import Demo, Interrupted
    from supervisor.demo.progress import progress
    from supervisor.metrics.address import beside

    workers, name = count_procs(procs if procs == "auto" else int(procs)), options.resolve_schema(schema)
    files = python_files(path, limit)
    if not files:
        raise click.UsageError(f"there is no readable .py file below {path}; name another folder: --path DIR")
    found, embedded = _database(dsn, name)
    if not as_json:
        say(", ".join(about.lines(server=False)))
        below = plain(path or "the standard library and site-packages")
        say(f"{len(files):,} files below {below}, a durable run each, on {workers} workers; database {plain(found)}")
    try:
        told = settings.load({"metrics": metrics})
        parts = [beside(told.metrics, told.sources["metrics"], found, name)] if told.metrics is not None else []
        for part in parts:
            say(f"metrics on {part.url}")
        with dashboard_beside(found, name, port_beside(dashboard, by_default=sys.stderr.isatty())):
            figures, kills, run_id = Demo(files, found, name, workers, progress(len(files), as_json), parts).perform()
    except Interrupted:
        say("stopped; what has happened is in the database, and another demo starts anew")
        return 130
    if as_json:
        print_json({field: getattr(figures, field) for field in figures.__struct_fields__})
    else:
        click.echo("\n".join([*_report(figures, kills), *_next(figures, kills, run_id, found, name, embedded)]))
    return 0 if figures.good else 1


def _database(dsn: str | None, schema: str) -> tuple[Dsn, bool]:
    """The configured database, checked, or the embedded server, started and migrated; and whether it is that."""
    from supervisor.cli.run import embedded_database
    from supervisor.db import connect as db
    from supervisor.db import migrations

    found = db.find_dsn(dsn)
    if found is not None:
        with db.connect(found, purpose="check", schema=schema) as conn:
            migrations.check(conn, schema)
        return found, False
    return embedded_database(schema), True


def _report(figures: Figures, kills: list[Kill]) -> list[str]:
    rate = figures.files / figures.seconds if figures.seconds else 0.0
    verdict = "equal" if figures.equal else "NOT EQUAL"
    return [
        f"{figures.runs:,} runs (one per file, and the one that started them) and {figures.steps:,} steps in {figures.seconds:.1f} s ({rate:,.0f} files/s), "
        f"{figures.retries:,} failed tries retried; "
        f"{figures.killed_in_step} of {len(kills)} kills hit a step that another process finished",
        "exactly once",
        f"  expected {figures.expected:>15,}   by a process without the engine",
        f"  booked   {figures.booked:>15,}   by {_sum()}: {verdict}",
    ]


def _sum() -> str:
    from supervisor.demo.table import SUM

    return SUM


def _next(figures: Figures, kills: list[Kill], run_id: uuid.UUID, dsn: Dsn, schema: str, embedded: bool) -> list[str]:
    """What to type next."""
    from supervisor.cli import about
    from supervisor.demo.table import proof

    us = about.program()
    url = f'export PGSUPERVISOR_DATABASE_URL="$({us} db url)"; ' if embedded else ""
    shown = kills[0].executing[0].run_id if kills and kills[0].executing else run_id
    psql = f"{us} db psql" if embedded else f"psql {quote(dsn.shown)}" if dsn.shown else "psql"
    return [
        f"next: {url}{us} show {shown}",
        f"      {us} list --limit 5",
        f'      {psql} -c "{proof(schema)}"',
        f"      {us} run --app supervisor.demo.workflows    (and in a second terminal)",
        f"      {us} start measure_file path={quote(os.path.realpath(os.__file__))} --wait",
    ]
