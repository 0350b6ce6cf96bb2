"""`bench`: measure this machine and its database. The questions are in supervisor.bench, one file each.

By default in databases of its own on the embedded server, which is started for it; with --dsn in fresh databases on
that server, removed at the end. Only --dsn names another server, never the environment: a benchmark takes all it gets.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli import options
from supervisor.cli.output import print_json, say

if TYPE_CHECKING:
    from supervisor.bench.harness import Places

Measure = Callable[["Places", int], list[dict[str, float]]]


@click.group("bench")
def bench() -> None:
    """Measure this machine and its database.

    Figures are medians of several repeats. Nothing counts unless every row in the database is right afterwards.
    """


def _count(name: str, default: int, words: str) -> Callable[[Any], Any]:
    return click.option(f"--{name}", type=click.IntRange(min=1), default=default, show_default=True, help=words)


def _seconds(default: float, words: str) -> Callable[[Any], Any]:
    return click.option("--seconds", type=click.FloatRange(0.1, 86_400), default=default, show_default=True, help=words)


_procs = click.option("--procs", default="auto", show_default=True, help="Worker processes; auto: one per core this process may use.")
_COMMON = (
    _count("repeat", 5, "Repeats; the figures are their medians."),
    click.option("--dsn", metavar="DSN", help="A server where databases may be created and dropped. Default: the embedded one."),
    click.option("--keep", is_flag=True, help="Leave the databases there."),
    click.option("--unsafe", is_flag=True, help="Measure a server that may lose commits too; the result says so."),
    click.option("--record", is_flag=True, help="Append the result to bench/results/."),
    options.as_json,
)


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    return functools.reduce(lambda made, option: option(made), reversed(_COMMON), command)


@bench.command()
@_count("runs", 50_000, "Runs that wait in the backlog.")
@_count("steps", 10, "Steps of each run.")
@_procs
@click.option("--style", type=click.Choice(["async", "def"]), default="async", show_default=True, help="Of the workflow.")
@click.option("--payload", type=click.Choice(["int", "typed"]), default="int", show_default=True, help="typed: a Struct of five fields.")
@_common
def steps(runs: int, steps: int, procs: str, style: str, payload: str, **common: Any) -> None:
    """Durable steps per second, and how near that is to PostgreSQL's best."""
    from supervisor.bench import steps as question
    from supervisor.cli.run import count_procs

    asked = question.Asked(runs, steps, count_procs(procs if procs == "auto" else int(procs)), style, payload)
    _answer("steps", asked, lambda places, repeat: question.measure(places, asked, repeat, say), **common)


@bench.command()
@_count("runs", 200_000, "Runs of one step that wait in the backlog.")
@_procs
@_common
def jobs(runs: int, procs: str, **common: Any) -> None:
    """One-step runs per second, drained from a backlog."""
    from supervisor.bench import jobs as question
    from supervisor.cli.run import count_procs

    asked = question.Asked(runs, count_procs(procs if procs == "auto" else int(procs)))
    _answer("jobs", asked, lambda places, repeat: question.measure(places, asked, repeat, say), **common)


@bench.command()
@_count("runs", 200_000, "Runs to start.")
@click.option("--input", "path", metavar="FILE", help="Start the records of a file, as `start --input` does; made with --runs orders where it is not there.")
@click.option("--key-field", metavar="NAME", help="Of --input: with keys.")
@click.option("--typed", is_flag=True, help="Of --input: records are checked by types too.")
@click.option("--keys", is_flag=True, help="Each run has a key of its own.")
@click.option("--within", is_flag=True, help="One by one, each in a transaction of the application beside a row of its own.")
@click.option("--threads", type=click.IntRange(1, 500), help="One by one, by so many threads of the client.")
@click.option("--pooled", is_flag=True, help="Through a pgbouncer in transaction mode.")
@_common
def start(
    runs: int, path: str | None, key_field: str | None, typed: bool, keys: bool, within: bool, threads: int | None, pooled: bool, **common: Any
) -> None:  # fmt: skip
    """Starts per second, in bulk, from one client; or with --input records of a file per second."""
    if path is not None:
        from supervisor.bench import files

        of_file = files.Asked(path, runs, key_field, typed)
        _answer("start_file", of_file, lambda places, repeat: files.measure(places, of_file, repeat, say), **common)
        return
    from supervisor.bench import start as question

    asked = question.Asked(runs, keys, within, pooled, threads or 0)
    _answer("start", asked, lambda places, repeat: question.measure(places, asked, repeat, say), **common)


@bench.command()
@_count("runs", 20_000, "Runs of one transactional step each.")
@_procs
@click.option("--hot", type=click.IntRange(1, 100_000), help="Use only so many of the rows; compare with one step per transaction.")
@_common
def tx(runs: int, procs: str, hot: int | None, **common: Any) -> None:
    """Transactional steps per second, one UPDATE each."""
    from supervisor.bench import tx as question
    from supervisor.cli.run import count_procs

    asked = question.Asked(runs, count_procs(procs if procs == "auto" else int(procs)), hot)
    _answer("tx", asked, lambda places, repeat: question.measure(places, asked, repeat, say), **common)


@bench.command()
@click.option("--rate", type=click.FloatRange(0.1, 10_000), default=100.0, show_default=True, help="Starts per second.")
@_seconds(20.0, "How long runs are started for.")
@_procs
@click.option("--async", "on_loop", is_flag=True, help="By an AsyncClient.")
@_common
def latency(rate: float, seconds: float, procs: str, on_loop: bool, **common: Any) -> None:
    """Milliseconds from the intended start of a run to its result."""
    from supervisor.bench import latency as question
    from supervisor.cli.run import count_procs

    asked = question.Asked(rate, seconds, count_procs(procs if procs == "auto" else int(procs)), on_loop)
    _answer("latency", asked, lambda places, repeat: question.measure(places, asked, repeat, say), **common)


@bench.command("signal")
@click.option("--rate", type=click.FloatRange(0.1, 10_000), default=100.0, show_default=True, help="Signals per second, for the times.")
@_seconds(10.0, "How long signals are sent to a run that waits in memory; runs that wait out of it are 500 at most.")
@_count("messages", 10_000, "Signals to one run, as many a second as there can be.")
@_procs
@_common
def signals(rate: float, seconds: float, messages: int, procs: str, **common: Any) -> None:
    """Milliseconds from a signal to its run being given it, and signals per second to one run."""
    from supervisor.bench import signals as question
    from supervisor.cli.run import count_procs

    asked = question.Asked(rate, seconds, messages, count_procs(procs if procs == "auto" else int(procs)))
    _answer("signal", asked, lambda places, repeat: question.measure(places, asked, repeat, say), **common)


@bench.command()
@_count("runs", 100_000, "Runs that wait.")
@click.option("--kind", type=click.Choice(["mixed", "sleep"]), default="mixed", show_default=True, help="mixed: asleep, for a signal, for a child.")
@_count("wakes", 200, "Runs of each kind that wake beside them, one by one.")
@click.option("--over", "over_s", type=click.FloatRange(0, 3600), default=0.0, show_default=True, help="Seconds over which those that are asleep become due; 0: all in one moment.")
@_procs
@_common
def waiting(runs: int, kind: str, wakes: int, over_s: float, procs: str, **common: Any) -> None:
    """What runs that sleep or wait cost, and how soon they go on."""
    from supervisor.bench import waiting as question
    from supervisor.cli.run import count_procs

    asked = question.Asked(runs, kind, wakes, count_procs(procs if procs == "auto" else int(procs)), over_s)
    _answer("waiting", asked, lambda places, repeat: question.measure(places, asked, repeat, say), **common)


@bench.command()
@_count("procs", 4, "Worker processes.")
@_seconds(30.0, "How long the host is watched.")
@_common
def idle(procs: int, seconds: float, **common: Any) -> None:
    """Queries and CPU of a host that has nothing to do."""
    from supervisor.bench import idle as question

    asked = question.Asked(procs, seconds)
    _answer("idle", asked, lambda places, repeat: question.measure(places, asked, repeat, say), **common)


@bench.command()
@_count("runs", 200, "Runs of one step that takes a second.")
@_count("procs", 4, "Worker processes.")
@_common
def spread(runs: int, procs: int, **common: Any) -> None:
    """Seconds for slow steps on the threads of several workers."""
    from supervisor.bench import spread as question

    asked = question.Asked(runs, procs)
    _answer("spread", asked, lambda places, repeat: question.measure(places, asked, repeat, say), **common)


@bench.command()
@_count("kills", 50, "How often each thing happens.")
@_common
def recover(kills: int, **common: Any) -> None:
    """Milliseconds until others go on: after kills of workers and leaders, and beside a step that does not end."""
    from supervisor.bench import recover as question

    asked = question.Asked(kills)
    _answer("recover", asked, lambda places, repeat: question.measure(places, asked, repeat, say), **common)


@bench.command("dashboard")
@_count("runs", 10_000_000, "Finished runs in the database; 4 minutes and 5 GB for as many.")
@click.option("--viewers", type=click.IntRange(0, 60), default=50, show_default=True, help="Open pages of the storm; 0: none.")
@_count("storm-runs", 200_000, "Runs of 10 steps that are worked off with and without it.")
@click.option("--database", metavar="NAME", help="A database that is filled where it is not yet, and stays for another time.")
@_procs
@_common
def dashboard(runs: int, viewers: int, storm_runs: int, database: str | None, procs: str, **common: Any) -> None:
    """Milliseconds of pages over a long history, and what many open ones cost the workers."""
    from supervisor.bench import dashboard as question
    from supervisor.cli.run import count_procs

    asked = question.Asked(runs, viewers, storm_runs, count_procs(procs if procs == "auto" else int(procs)), database)
    _answer("dashboard", asked, lambda places, repeat: question.measure(places, asked, repeat, say), **common)


def _answer(
    command: str, asked: Any, measure: Measure, *, repeat: int, dsn: str | None, keep: bool, unsafe: bool, record: bool, as_json: bool
) -> None:
    """Measure, then print and record."""
    import dataclasses
    import logging

    from supervisor.bench import harness

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname).1s %(message)s")
    with harness.places(dsn, say, keep=keep) as places:
        facts = harness.circumstances(places, unsafe)
        result = harness.summed_up(command, dataclasses.asdict(asked), measure(places, repeat), facts)
    if record:
        say(f"recorded in {harness.record(result)}")
    if as_json:
        print_json(result)
    else:
        _print(result)


def _print(result: dict[str, Any]) -> None:
    from supervisor.cli.output import plain, table

    spread = result["spread"]
    rows = [(name, *(f"{value:,}" for value in (result[name], *spread[name]))) for name in spread]
    click.echo(table(("figure", "median", "least", "most"), rows))
    facts = result["circumstances"]
    machine = f"{facts['cores']} cores (load {facts['load']} before), {facts['cpu']}"
    click.echo(plain(f"{result['repeats']} repeats; {machine}; PostgreSQL {facts['server']}; loop {facts['loop']}"))
    if facts["unsafe"]:
        click.echo(f"UNSAFE: {', '.join(facts['unsafe'])} off; these figures are not those of a durable database")
