"""`logs`: the log lines of this host, filtered, as they are or as they come; and those of one run, for `show --logs`."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import click

from supervisor.cli import options
from supervisor.cli.output import say

if TYPE_CHECKING:
    from supervisor.host.log_files import Reader
    from supervisor.host.log_lines import Line

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Wanted:
    """Which lines; all that is given has to hold."""

    run: str | None = None
    step: str | None = None
    level: str | None = None
    worker: int | None = None

    def fits(self, line: Line) -> bool:
        return (
            (self.run is None or line.run in (self.run, None))
            and (self.step is None or line.step == self.step)
            and (self.worker is None or self.worker in (line.worker_id, line.pid, line.worker))
            and (self.level is None or _number(line.level) >= _number(self.level))
        )

    def having(self) -> bytes:
        """Bytes that every such line has."""
        return (self.run or "").encode()


def _number(level: str) -> int:
    """How grave; a level of the application's own, by its name or as "Level 25"."""
    known = logging.getLevelNamesMapping().get(level)
    return known if known is not None else int(level.rpartition(" ")[2]) if level.rpartition(" ")[2].isdigit() else logging.CRITICAL


@click.command("logs")
@click.option("--run", metavar="RUN|KEY", help="Only lines of this run, and what the engine said of it. A key is looked up in the database.")
@click.option("--step", metavar="NAME", help="Only lines of this step.")
@click.option("--level", type=click.Choice(LEVELS, case_sensitive=False), help="Only lines of this level and graver ones.")
@click.option("--worker", type=int, metavar="N", help="Only lines of this worker: its number, as `workers` or its supervisor counts, or its pid.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N of those that are there.  [default: all; with --follow 10]")
@click.option("--follow", "-f", is_flag=True, help="Go on with lines as they come, until ^C.")
@click.option("--log-dir", metavar="DIR", help="Where the workers of this host log to  [env: PGSUPERVISOR_LOG_DIR].")
@options.dsn
@options.schema
@options.as_json
def logs(
    run: str | None, step: str | None, level: str | None, worker: int | None, tail: int | None, follow: bool, log_dir: str | None,
    dsn: str | None, schema: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Show the log lines of this host's workers, oldest first, through all rotations: all, or those of a run, a step, a level, a worker.

    Reads the log directory that workers were started with (run --log-dir); with --json lines as they are stored.
    """
    reader = _reader(log_dir)
    wanted = Wanted(_run_id(run, dsn, schema) if run else None, step, level.upper() if level else None, worker)
    count = _print(_last(_fitting(reader, wanted), 10 if tail is None and follow else tail), as_json)
    if follow:
        _follow(reader, wanted, as_json)
    elif not count:
        say("no line that fits; each host keeps the lines of the steps that it executed, and rotates old ones away")


def print_run(run: str, log_dir: str | None, dsn: str | None, schema: str | None, as_json: bool) -> None:
    """All lines of one run, as they are read."""
    reader = _reader(log_dir)
    run_id = _run_id(run, dsn, schema)
    if not _print(_fitting(reader, Wanted(run_id)), as_json):
        say(f"no line of run {run_id} in the log directory; each host keeps the lines of the steps that it executed, and rotates old ones away")


def _reader(log_dir: str | None) -> Reader:
    from supervisor.core import settings
    from supervisor.core.errors import ConfigInvalid
    from supervisor.host.log_files import Reader

    folder = settings.load({"log_dir": log_dir}).log_dir
    if folder is None:
        raise ConfigInvalid("no log directory is configured, so lines are kept nowhere but on the workers' standard error; run workers with --log-dir DIR, or set PGSUPERVISOR_LOG_DIR")
    return Reader(Path(folder))


def _run_id(run: str, dsn: str | None, schema: str | None) -> str:
    """Its id is enough; a key is looked up in the database."""
    try:
        return str(UUID(run))
    except ValueError:
        from supervisor.db import history

        name = options.resolve_schema(schema)
        with options.connect(dsn, name, purpose="logs") as conn:
            return str(history.id_of(conn, name, run))


def _fitting(reader: Reader, wanted: Wanted) -> Iterator[Line]:
    return filter(wanted.fits, reader.turn(wanted.having()))


def _last(lines: Iterable[Line], tail: int | None) -> Iterable[Line]:
    return lines if tail is None else deque(lines, maxlen=tail)


def _print(lines: Iterable[Line], as_json: bool) -> int:
    from supervisor.host import log_lines

    count = 0
    for count, line in enumerate(lines, 1):
        click.echo(log_lines.as_json(line) if as_json else log_lines.as_text(line), nl=False)
    return count


def _follow(reader: Reader, wanted: Wanted, as_json: bool) -> None:
    from contextlib import suppress

    from supervisor.cli.screen import until_interrupted

    with suppress(KeyboardInterrupt):
        for _ in until_interrupted():
            _print(_fitting(reader, wanted), as_json)
            sys.stdout.flush()
            time.sleep(LOOK_EVERY_S)
