"""`versions`: which code has how many runs, and `versions move`: let runs of one version go on with another's code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from supervisor.cli import options
from supervisor.cli.many import confirmed, dry_run_option, examples, may_ask, runs_of, show_examples, yes_option
from supervisor.cli.ordered import Order, ordered
from supervisor.cli.output import ago, plain, print_json, say, table
from supervisor.cli.progress import Progress
from supervisor.core.filters import Compare, both, open_to

if TYPE_CHECKING:
    from supervisor.api.handles import Moved

Row = dict[str, Any]
NONE = "no worker has registered a workflow yet: python -m supervisor run --app …"
NO_VERSION = "none"
EXAMPLES_S = 5.0  # that looking for examples may take


@click.group("versions", invoke_without_command=True)
@click.option("--workflow", metavar="NAME", help="Only this one.")
@options.dsn
@options.schema
@options.as_json
@click.pass_context
def versions(ctx: click.Context, workflow: str | None, dsn: str | None, schema: str | None, as_json: bool) -> None:
    """Show the versions of workflows: who has them, how many live runs are of each, how many are parked because nobody has their code.

    A version without workers and without live runs can go. Counts live runs: 0.3 s per million. Reads the views: the role wants
    to be viewer or operator.
    """
    if ctx.invoked_subcommand is not None:
        return
    from supervisor.db import look

    name = options.resolve_schema(schema)
    with options.connect(dsn, name, purpose="versions") as conn:
        found = look.versions(conn, name, workflow)
    if as_json:
        for each in found:
            print_json(each)
    elif found:
        click.echo(_table([each for each in found if workflow or _matters(each)]))
        _explain(found)
    else:
        say(NONE)


def _matters(row: Row) -> bool:
    """Whether it is shown among all workflows: old versions are many."""
    return bool(row["workers"] or row["live"] or row["ended_1h"])


def _table(found: list[Row]) -> str:
    heads = ("workflow", "version", "workers", "hosts", "live", "running", "code missing", "ended (1 h)", "last seen")
    counts = ("live", "running", "code_missing", "ended_1h")
    rows = [
        (
            each["workflow"], each["version"] or NO_VERSION, each["workers"], len(each["hosts"]), *(each[count] for count in counts),
            ago(each["last_seen_at"]) if each["last_seen_at"] else None,
        )
        for each in found
    ]  # fmt: skip
    return table(heads, rows)


def _explain(found: list[Row]) -> None:
    """What to do about runs that wait for code, to stderr."""
    for each in found:
        if not each["code_missing"] or not each["version"]:
            continue
        name, wanted = plain(each["workflow"]), plain(each["version"])
        there = next((other["version"] for other in found if other["workflow"] == each["workflow"] and other["workers"]), None)
        say(f"{runs_of(each['code_missing'])} of {name} wait for code of version {wanted}, since {ago(each['missing_since'])}: start a worker that has it, or,")
        if there:
            say(f"  if version {plain(there)} does the same so far: python -m supervisor versions move --workflow {name} --from {wanted} --to {plain(there)}")
        else:
            say("  when a worker has another version that does the same so far: python -m supervisor versions move --help")


@versions.command("move")
@click.option("--workflow", metavar="NAME", required=True, help="Of this workflow.")
@click.option("--from", "from_version", metavar="VERSION", required=True, help="Runs of this version; none: those that began before there were versions.")
@click.option("--to", "to_version", metavar="VERSION", required=True, help="A version that a worker has, or has had.")
@dry_run_option
@yes_option
@ordered
def move(order: Order, workflow: str, from_version: str, to_version: str, dry_run: bool, yes: bool) -> int | None:
    """Let live runs of one version go on with the code of another, in slices of 500; without --yes they are counted first.

    A run whose history that code does not repeat is parked again (nondeterminism) before anything new is done, and can be moved back:
    python -m supervisor replay --workflow W --version VERSION --app … says beforehand which would be. Runs that workers have are left, and counted; when those workers have
    ended, type it again. The role wants to be operator. Exit code 1 where runs were left.
    """
    if dry_run and yes:
        raise click.UsageError("--dry-run counts, and does nothing; leave it out, or --yes")
    version = None if from_version == NO_VERSION else from_version
    with options.client(order.dsn, order.schema) as client:
        found = client.move(workflow, version, to_version, dry_run=True)
        if not yes:
            _say_moved(order, workflow, from_version, to_version, found, _examples(order, workflow, version))
            if not found.moved:
                return None
            if dry_run or not may_ask(order.as_json):
                say("nothing was done; to do it: --yes")
                return None
            if not confirmed(f"move {runs_of(found.moved)}?"):
                return 1
        total = found.moved + found.claimed
        progress = Progress(f"of {total:,} runs", total)

        def tell(so_far: Moved) -> None:
            progress.show(so_far.moved + so_far.claimed, so_far.moved + so_far.claimed, f"{so_far.claimed:,} left" if so_far.claimed else "")

        try:
            done = client._carry(lambda verbs: verbs.move(workflow, version, to_version, False, order.reason, order.actor, tell))
        finally:
            progress.close()
    _say_moved(order, workflow, from_version, to_version, done)
    return 1 if done.claimed else None


def _examples(order: Order, workflow: str, version: str | None) -> list[Row]:
    """Some of the version's live runs. Of those that have none nothing tells which have begun, so none is shown."""
    if version is None:
        return []
    asked = open_to("move", both(Compare("workflow", "=", (workflow,)), Compare("version", "=", (version,))))
    name = options.resolve_schema(order.schema)
    with options.connect(order.dsn, name, purpose="versions") as conn:
        return examples(conn, name, asked, EXAMPLES_S)


def _say_moved(order: Order, workflow: str, from_version: str, to_version: str, done: Moved, some: list[Row] | None = None) -> None:
    """What was moved; with *some* of them: what would be."""
    dry_run = some is not None
    if order.as_json:
        facts = {"workflow": workflow, "from": from_version, "to": to_version, "dry_run": dry_run, "moved": done.moved, "claimed": done.claimed}
        print_json({**facts, "examples": some} if dry_run else facts)
        return
    click.echo(f"{'would move' if dry_run else 'moved'} {runs_of(done.moved)} of {plain(workflow)} from {plain(from_version)} to {plain(to_version)}")
    show_examples(some or [])
    if done.claimed:
        say(f"{'would be ' if dry_run else ''}left because workers have them: {runs_of(done.claimed)}; type it again when those workers have ended")
