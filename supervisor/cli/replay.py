"""`replay`: does the working code do what recorded histories say? Compares, executes nothing, writes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli import histories, options
from supervisor.cli.output import plain, print_json, say

if TYPE_CHECKING:
    from supervisor.core.histories import History
    from supervisor.engine.verify import Divergence

EXAMPLES_SHOWN = 3


@click.command("replay")
@click.option("--app", help="Module that defines the workflows, with the code to compare: pkg.mod.")
@click.option("--run", "runs", metavar="RUN|KEY", multiple=True, help="This run; several times for several.")
@histories.choice
@click.option("--file", "files", type=click.Path(exists=True, dir_okay=False), multiple=True, help="Exported histories, instead of a database; several times for several.")
@options.dsn
@options.schema
@options.as_json
def replay(
    app: str | None, runs: tuple[str, ...], workflow: str | None, since: float, sample: int, of_version: str | None, files: tuple[str, ...],
    dsn: str | None, schema: str | None, as_json: bool,
) -> int | None:  # fmt: skip
    """Replay recorded histories against the code that is here, and name the first place of each where the two part, with file and line.

    python -m supervisor replay --workflow checkout --since 7d --sample 500 --app new

    No step, transaction or publication is executed and nothing is written. Histories that part in the same way at the same place are shown
    together. From a database the role wants to be viewer, operator or worker. Exit code 1 when one parts, when one could not be
    compared, or when there was none.
    """
    if bool(files) == bool(runs or workflow):
        raise click.UsageError("give either --file, or --workflow or --run")
    from supervisor.cli.progress import Progress
    from supervisor.cli.run import load_app
    from supervisor.core import settings
    from supervisor.core.errors import ConfigInvalid

    named = settings.load({"app": app}).app
    if not named:
        raise ConfigInvalid('no app is named; say which module has the code: --app pkg.mod, or app = "pkg.mod" in [tool.pgsupervisor] of pyproject.toml')
    load_app(named)
    told = _Told(as_json)
    if files:
        _compare(_of_files(files), None, told, Progress("replayed", None))
    else:
        from supervisor.db.histories import reading

        with reading(dsn, options.resolve_schema(schema)) as found:
            ids = histories.chosen(found, runs, workflow, since, sample, of_version)
            _compare(histories.each(found, ids, told.left_out, bool(runs)), len(ids), told, Progress("replayed", len(ids)))
    told.say()
    return None if told.equal and told.equal == told.replayed and not told.left_out else 1


def _of_files(files: tuple[str, ...]) -> Iterator[History]:
    from supervisor.core.histories import read

    for name in files:
        with open(name, "rb") as file:
            yield from read(file, name)


def _compare(found: Iterator[History], total: int | None, told: _Told, progress: Any) -> None:
    from supervisor.engine.verify import Verifier

    verifier = Verifier()
    try:
        for history in found:
            told.add(verifier.compare(history))
            progress.show(told.replayed, told.replayed + len(told.left_out), f"{told.replayed - told.equal:,} part from it" if told.equal < told.replayed else "")
    finally:
        progress.close()


@dataclass
class _Told:
    """What became of the histories. Of each way to part from the code all ids are counted and a few kept."""

    as_json: bool
    replayed: int = 0
    equal: int = 0
    left_out: list[str] = field(default_factory=list)
    groups: dict[tuple[Any, ...], list[Any]] = field(default_factory=dict)  # kind → [count, the first ones]

    def add(self, parts: Divergence | None) -> None:
        self.replayed += 1
        if parts is None:
            self.equal += 1
            return
        group = self.groups.setdefault(parts.kind, [0, []])
        group[0] += 1
        if len(group[1]) < EXAMPLES_SHOWN:
            group[1].append(parts)
        if self.as_json:
            print_json(
                {
                    "run_id": parts.run_id, "workflow": parts.workflow, "version": parts.version, "seq": parts.seq, "recorded": parts.recorded,
                    "now": parts.now, "file": parts.file or None, "line": parts.line or None, "function": parts.function or None,
                }
            )  # fmt: skip

    def say(self) -> None:
        for each in self.left_out:
            say(f"left out: {plain(each)}")
        parted = self.replayed - self.equal
        if self.as_json:
            print_json({"replayed": self.replayed, "equal": self.equal, "parted": parted, "left_out": len(self.left_out)})
            return
        for count, examples in sorted(self.groups.values(), key=lambda group: -group[0]):
            click.echo("\n".join(_shown(count, examples)))
        if not self.replayed:
            say("no run fits; nothing was compared")
        else:
            click.echo(f"{self.replayed:,} {'history' if self.replayed == 1 else 'histories'} replayed: {self.equal:,} equal, {parted:,} part from this code")


def _shown(count: int, examples: list[Divergence]) -> Iterator[str]:
    """One way to part: where in the code, what was recorded, what it does now, which runs."""
    first = examples[0]
    here = os.getcwd() + os.sep
    file = first.file[len(here) :] if first.file.startswith(here) else first.file
    yield f"{count:,} × {plain(first.workflow)}" + (f" at {plain(file)}:{first.line} in {plain(first.function)}" if file else "")
    yield f"  recorded: {plain(first.recorded)}"
    yield f"  now:      {plain(first.now)}"
    seqs = ", ".join(f"{each.run_id} at seq {each.seq}" for each in examples)
    yield f"  runs:     {seqs}" + (f" and {count - len(examples):,} more" if count > len(examples) else "")
