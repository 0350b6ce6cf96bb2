"""`profile`: where a running worker's time goes: a flame graph, a speedscope file, raw stacks and the hottest lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli import options
from supervisor.cli.output import plain, print_json, say

if TYPE_CHECKING:
    from supervisor.profile.samples import Sample
    from supervisor.host.stacks import Process


@click.command()
@click.option("--worker", type=int, metavar="N", help="The worker: its number, as `workers` or its supervisor counts, or its pid.")
@click.option("--all", "everyone", is_flag=True, help="All workers and the parent; with --worker: of that one's supervisor.")
@click.option("--seconds", type=click.FloatRange(1, 3600), default=20.0, show_default=True, help="How long to look; ^C ends early.")
@click.option("--rate", type=click.IntRange(1, 1000), default=100, show_default=True, help="Samples a second.")
@click.option("--native", is_flag=True, help="See into compiled code too: the loop, encoding, libpq, the interpreter. Slows the worker more.")
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="Where the files go.  [default: profile-<time>]")
@options.as_json
def profile(worker: int | None, everyone: bool, seconds: float, rate: int, native: bool, output: Path | None, as_json: bool) -> None:
    """Sample a running worker and say where its time goes; needs the extra [profile] (py-spy).

    \b
    python -m supervisor profile --worker 1 --seconds 20 --native
    """
    from datetime import datetime

    from supervisor.profile import sampler
    from supervisor.profile.samples import summed

    sampler.find_sampler()
    processes = _chosen(worker, everyone)
    titles = ", ".join(process.title for process in processes)
    say(f"sampling {titles}: {rate} times a second for {seconds:g} s")
    with _shown(seconds) as progress:
        seen = sampler.sample(processes, seconds, rate, native, progress)
    samples = [one for part in seen.values() for one in part]
    title = f"{titles}, {seconds:g} s at {rate} Hz{', native' if native else ''}"
    files = _write(output or Path(f"profile-{datetime.now():%Y%m%d-%H%M%S}"), samples, rate, title)
    result = {
        "processes": [{"title": process.title, "number": process.number if process.number >= 0 else None, "pid": process.pid} for process in processes],
        "seconds": seconds, "rate": rate, "native": native, **summed(samples), "files": {name: str(path) for name, path in files.items()},
    }  # fmt: skip
    if as_json:
        print_json(result)
    else:
        _print(result)


def _chosen(worker: int | None, everyone: bool) -> list[Process]:
    """The processes that are meant. One worker unless all are asked for."""
    from supervisor.cli.workers import pid_of
    from supervisor.host.stacks import chosen, discover

    processes = discover()
    found = chosen(processes, None if worker is None else pid_of(worker))
    if everyone:
        return [process for process in processes if process.parent in {one.parent for one in found}]
    workers = [process for process in found if process.number >= 0]
    if len(workers) != 1:
        there = ", ".join(process.title for process in workers[:20]) or "none is running"
        raise click.UsageError(f"which worker? --worker N takes its number or pid, --all takes every process; there are: {there}")
    return workers


@contextmanager
def _shown(seconds: float) -> Iterator[Callable[[float], None]]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _passed: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("sampling"), BarColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=seconds)
        yield lambda passed: bar.update(task, completed=passed)


def _write(folder: Path, samples: list[Sample], rate: int, title: str) -> dict[str, Path]:
    """The three files of one pass."""
    from supervisor.profile.flame import svg
    from supervisor.profile.samples import to_raw, to_speedscope, waits

    folder.mkdir(parents=True, exist_ok=True)
    files = {"flame_graph": folder / "profile.svg", "speedscope": folder / "profile.speedscope.json", "raw": folder / "profile.raw"}
    files["flame_graph"].write_text(svg([one for one in samples if not waits(one.stack)], title), "utf-8")
    files["speedscope"].write_text(json.dumps(to_speedscope(samples, rate, title)), "utf-8")
    files["raw"].write_text(to_raw(samples), "utf-8")
    return files


def _print(result: dict[str, Any]) -> None:
    if not result["samples"]:
        click.echo("nothing was computed: every sample found it waiting")
    for group in result["groups"]:
        click.echo(f"{group['share']:6.1%}  {group['group']}")
        for line in group["lines"]:
            where = f"{_short(line['file'])}:{line['line']}" if line["line"] else _short(line["file"])
            click.echo(plain(f"        {line['share']:6.1%}  {where}  {line['function']}"))
    busy = result["samples"] / max(1.0, result["seconds"] * result["rate"] * len(result["processes"]))
    click.echo(f"busy {min(busy, 9.99):.0%} of the time ({result['samples']} samples; shares are of these)")
    for words, name in (("flame graph", "flame_graph"), ("speedscope, for https://www.speedscope.app", "speedscope"), ("raw stacks", "raw")):
        click.echo(plain(f"{result['files'][name]}  {words}"))


def _short(file: str) -> str:
    here = str(Path.cwd()) + "/"
    return file[len(here) :] if file.startswith(here) else file
