"""`stacks`: one look at every process of the supervisors on this host, parked runs included."""

from __future__ import annotations

import click

from supervisor.cli import options
from supervisor.cli.output import plain, print_json


@click.command()
@click.option("--worker", type=int, metavar="N", help="Only this worker: its number, as `workers` or its supervisor counts, or its pid.")
@click.option("--pid", type=int, help="Only the process with this pid.")
@click.option("--all", "everything", is_flag=True, help="Name each run, not three of each place.")
@options.as_json
def stacks(worker: int | None, pid: int | None, everything: bool, as_json: bool) -> int:
    """Show what every process of the local supervisors is doing: threads, step tasks and parked runs, with their lines.

    Runs that wait at the same line are shown together. Runs that have left memory are in no process: see `list`, `show`.
    """
    from supervisor.cli.main import EXIT_NEGATIVE, EXIT_PERMISSION
    from supervisor.cli.workers import pid_of
    from supervisor.engine.stacks import render
    from supervisor.host import stacks as asking

    found = asking.ask_all(asking.chosen(asking.discover(), None if worker is None else pid_of(worker), pid), everything)
    if as_json:
        print_json(found)
    else:
        click.echo("\n\n".join("\n".join(plain(line) for line in render(facts).splitlines()) for facts in found))
    if all(facts.get("refused") for facts in found):
        return EXIT_PERMISSION
    return EXIT_NEGATIVE if any(facts.get("refused") or facts.get("unanswered") for facts in found) else 0
