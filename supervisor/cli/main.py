"""The program: finds the command, runs it, and turns errors into a few lines and an exit code.

Commands are looked up by name in `COMMANDS` and imported when used; `--help` imports none, so it is quick and works
where a driver is missing. A command whose module is not there is not listed. Unknown first options belong to `run`:
`python -m supervisor --procs 16 --app orders`.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
import re
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Sequence


class Command(NamedTuple):
    """Where a command is and its line in `--help`, so that the list needs no import."""

    module: str
    attribute: str
    help: str


COMMANDS = {
    "run": Command("supervisor.cli.run", "run", "Run workers until told to stop; the default command."),
    "dev": Command("supervisor.cli.dev", "dev", "Run an app while it is written: what is saved is loaded."),
    "demo": Command("supervisor.cli.demo", "demo", "Work through every .py file of a directory, with processes killed on the way."),
    "migrate": Command("supervisor.cli.migrate", "migrate", "Bring the schema up to this program."),
    "start": Command("supervisor.cli.start", "start", "Start a run of a workflow, or one of every record of a file."),
    "results": Command("supervisor.cli.results", "results", "Write the results of a batch, in the order of its input."),
    "list": Command("supervisor.cli.list", "list_runs", "List runs, newest first: all, or those that a filter asks for."),
    "show": Command("supervisor.cli.show", "show", "Show one run: what it does, why it waits, its steps, how it ended."),
    "query": Command("supervisor.cli.query", "query", "Ask a run what its handler answers, by a replay of its history."),
    "cancel": Command("supervisor.cli.cancel", "cancel", "Cancel live runs: by id, by key, or all that a filter asks for."),
    "terminate": Command("supervisor.cli.cancel", "terminate", "End live runs at once, without their code."),
    "pause": Command("supervisor.cli.operate", "pause", "Stop live runs until somebody resumes them."),
    "resume": Command("supervisor.cli.operate", "resume", "Let paused runs go on where they were."),
    "retry": Command("supervisor.cli.operate", "retry", "Try again now: parked runs, steps that wait for a retry, runs that failed."),
    "skip": Command("supervisor.cli.operate", "skip", "Give a step that failed, crashed or hangs a result."),
    "edit-retry": Command("supervisor.cli.operate", "edit_retry", "Change the retry policy of a step that has no result yet, for this run alone."),
    "fork": Command("supervisor.cli.operate", "fork", "Start a new run with the history of another one, up to a step."),
    "complete": Command("supervisor.cli.tokens", "complete", "Give a step that handed out a token its result."),
    "fail": Command("supervisor.cli.tokens", "fail", "Fail the try of a step that handed out a token."),
    "heartbeat": Command("supervisor.cli.tokens", "heartbeat", "A sign of life of who holds a token."),
    "audit": Command("supervisor.cli.audit", "audit", "List what operators did to runs, schedules and queues, and why."),
    "signal": Command("supervisor.cli.signal", "signal", "Send a message to a live run, by its id or its key."),
    "update": Command("supervisor.cli.update", "update", "Send a request to a live run, and wait for its answer."),
    "versions": Command("supervisor.cli.versions", "versions", "Show which code has how many runs; give runs to another version."),
    "replay": Command("supervisor.cli.replay", "replay", "Compare recorded histories with the code that is here; execute nothing."),
    "export": Command("supervisor.cli.export", "export", "Write histories to files that replay reads without a database."),
    "queues": Command("supervisor.cli.queues", "queues", "Show what stands in each queue; pause or resume one."),
    "schedules": Command("supervisor.cli.schedules", "schedules", "Show which workflow is started when; make, pause, trigger, backfill schedules."),
    "workers": Command("supervisor.cli.workers", "workers", "Show who works: hosts, processes, what each executes, the last crash."),
    "top": Command("supervisor.cli.top", "top", "Watch the workers of this host: rates, latencies, what each executes, queues."),
    "logs": Command("supervisor.cli.logs", "logs", "Show log lines of this host: of a run, a step, a worker, a level; follow them."),
    "dashboard": Command("supervisor.cli.dashboard", "dashboard", "Serve pages for a browser: runs, why they wait, and what frees them."),
    "metrics": Command("supervisor.cli.metrics", "metrics", "Print the Grafana dashboard and the alert rules; list what is measured."),
    "stacks": Command("supervisor.cli.stacks", "stacks", "Show what every process is doing: threads and parked runs, with their lines."),
    "profile": Command("supervisor.cli.profile", "profile", "Sample a running worker: flame graph, speedscope, hottest lines."),
    "db": Command("supervisor.cli.db", "db", "Start, stop and look at the embedded PostgreSQL."),
    "bench": Command("supervisor.cli.bench", "bench", "Measure this machine and its database."),
}
DEFAULT = "run"
OWN_FLAGS = ("-h", "--help", "--version", "--debug")

EXIT_NEGATIVE, EXIT_USAGE, EXIT_DATABASE, EXIT_INTERNAL, EXIT_CREATE = 1, 2, 69, 70, 73
EXIT_SCHEMA, EXIT_PERMISSION, EXIT_CONFIG, EXIT_UNFIT, EXIT_TIMEOUT, EXIT_INTERRUPTED, EXIT_PIPE = 75, 77, 78, 79, 124, 130, 141

UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)  # what writing fails with, where the place is at fault

EXIT_CODES = f"""\b
Exit codes:
  0    it did what was asked
  {EXIT_NEGATIVE}    it ran and the answer is negative: the run failed, no such run, not equal
  {EXIT_USAGE}    wrong usage, or input that does not fit
  {EXIT_DATABASE}   the database can't be reached
  {EXIT_INTERNAL}   an error of the program itself (--debug shows where)
  {EXIT_CREATE}   files can't be made or written: the embedded server's folder, standard output
  {EXIT_SCHEMA}   the schema is missing or too old: run migrate
  {EXIT_PERMISSION}   a permission is missing
  {EXIT_CONFIG}   the configuration is wrong, or a part is not installed
  {EXIT_UNFIT}   of a worker, in its host's log: too many of its threads hang, another took its place
  {EXIT_TIMEOUT}  waited, and the time was over
  {EXIT_INTERRUPTED}  interrupted (128 + signal: 143 for SIGTERM)"""

# by SupervisorError.code; all others are EXIT_NEGATIVE
EXIT_OF_ERROR = {
    "input_invalid": EXIT_USAGE,
    "payload_refused": EXIT_USAGE,
    "record_refused": EXIT_USAGE,
    "file_damaged": EXIT_USAGE,
    "filter_invalid": EXIT_USAGE,
    "database_unavailable": EXIT_DATABASE,
    "embedded_server": EXIT_CREATE,
    "schema_missing": EXIT_SCHEMA,
    "schema_too_old": EXIT_SCHEMA,
    "schema_too_new": EXIT_CONFIG,
    "migration_changed": EXIT_CONFIG,
    "config_invalid": EXIT_CONFIG,
    "missing_extra": EXIT_CONFIG,
    "may_not_profile": EXIT_PERMISSION,
    "permission_missing": EXIT_PERMISSION,
    "definition": EXIT_CONFIG,
    "history_unreadable": EXIT_USAGE,
    "token_unknown": EXIT_USAGE,
    "schedule_invalid": EXIT_USAGE,
    "run_timed_out": EXIT_NEGATIVE,  # the run's time was over, not the caller's
}


class LazyGroup(click.Group):
    """Commands by name from `COMMANDS`, imported at use; a first option that is not the group's own goes to `run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = 0
        while own < len(args) and args[own] in OWN_FLAGS:
            own += 1
        asks_about_itself = any(each != "--debug" for each in args[:own])
        if not asks_about_itself and (own == len(args) or args[own].startswith("-")):
            args = [*args[:own], DEFAULT, *args[own:]]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, command in COMMANDS.items() if importlib.util.find_spec(command.module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS or not importlib.util.find_spec(COMMANDS[cmd_name].module):
            return None
        found: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name].module), COMMANDS[cmd_name].attribute)
        return found

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None:
            from difflib import get_close_matches

            near = get_close_matches(args[0], self.list_commands(ctx), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"commands are: {', '.join(self.list_commands(ctx))}"
            raise click.UsageError(f"there is no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].help) for name in self.list_commands(ctx)])


def _print_version(ctx: click.Context, _param: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from supervisor.cli import about

        click.echo("\n".join(about.lines()))
        ctx.exit()


@click.command(cls=LazyGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show where an error comes from.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show versions of all parts.")
def cli(debug: bool) -> None:
    """Durable workflows in Python on nothing but PostgreSQL.

    The database: --dsn of each command, else PGSUPERVISOR_DATABASE_URL, DATABASE_URL, [tool.pgsupervisor] dsn in
    pyproject.toml, libpq's PG* variables and service file.
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run the program and exit. Never returns."""
    from supervisor.cli import output

    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words[:2]
    out = sys.stdout
    try:
        output.draw_for_stdout()
        _warn_of_namesakes()
        out = sys.stdout
        result: Any = cli.main(words, prog_name=_program_name(), standalone_mode=False)
        if sys.stdout is not None:  # None where nobody opened it: >&-
            sys.stdout.flush()
        code = result if isinstance(result, int) else 0
    except BaseException as error:  # noqa: BLE001 - the last resort of the program
        if isinstance(error, BrokenPipeError) or isinstance(error, SystemExit) and sys.stdout is not out:  # click exits with 1 then, its own stdout in place
            # whoever read our output went away: say nothing
            _discard_stdout()
            code = EXIT_PIPE
        else:
            code = _report(error, debug, _given_dsn(words))
    sys.exit(code)


def _given_dsn(words: Sequence[str]) -> str | None:
    """What --dsn was given."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word == "--dsn" or word.startswith("--dsn="):
            return after if word == "--dsn" else word.partition("=")[2]
    return None


def _with_dsn(text: str, dsn: str | None) -> str:
    """Commands that *text* says to type, with the --dsn that was typed: without it they would go to another database. Without its password, for which there are PGPASSWORD and ~/.pgpass."""
    if dsn is None or "python -m supervisor" not in text:
        return text
    from shlex import quote

    from supervisor.db.connect import without_password

    shown = without_password(dsn)
    if shown is None:
        return text
    return re.sub(r"python -m supervisor (?!db\b)([a-z][a-z-]*)", lambda found: f"{found[0]} --dsn {quote(shown)}" if found[1] in COMMANDS else found[0], text)


def _report(error: BaseException, debug: bool, dsn: str | None = None) -> int:
    """Print *error* in at most three lines and return its exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_NEGATIVE
    if isinstance(error, (KeyboardInterrupt, click.exceptions.Abort)):
        return EXIT_INTERRUPTED
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    from supervisor.core.errors import SupervisorError

    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, SupervisorError):
        _print_error(_with_dsn(str(error), dsn), getattr(error, "__notes__", []))
        return EXIT_OF_ERROR.get(error.code, EXIT_TIMEOUT if isinstance(error, TimeoutError) else EXIT_NEGATIVE)
    if type(error) is TimeoutError and error.errno is None:  # ours; the system's have a number
        _print_error(str(error), [])
        return EXIT_TIMEOUT
    if isinstance(error, OSError) and error.errno in UNWRITTEN and error.filename is None:
        _discard_stdout()
        _print_error(f"what was asked for can't be written to standard output: {error.strerror}; make room there, or write it somewhere else", [])
        return EXIT_CREATE
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] != "supervisor":
        _print_error(f"the package {error.name!r} is not installed; pip install 'pgsupervisor[binary]' installs all that is needed", [])
        return EXIT_CONFIG
    if isinstance(error, PermissionError):
        _print_error(f"{error}; give this account the permission, or use another place", [])
        return EXIT_PERMISSION
    where = "" if debug else "; this is an error of pgsupervisor itself: --debug shows where"
    _print_error(f"{type(error).__name__}: {error}{where}", [])
    return EXIT_INTERNAL


def _discard_stdout() -> None:
    """Keep the interpreter from trying again at exit to write what can't be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _print_error(text: str, notes: Sequence[str]) -> None:
    """What and why on one line, what to do on the next, notes on a third."""
    from supervisor.cli.output import plain

    text = " ".join(re.sub(r"\n\s*\^\s*(?=[;\n]|$)", "", text).split())  # the server's place in a statement is drawn with lines
    what, _, remedy = text.rpartition("; ")
    lines = [f"error: {what}", f"  {remedy}"] if what else [f"error: {text}"]
    if notes:
        lines.append("  " + "; ".join(notes))
    for line in lines:
        click.echo(plain(line), err=True)


def _program_name() -> str:
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return "python -m supervisor" if name in ("__main__.py", "-m", "") else name


# ── the name `supervisor` ────────────────────────────────────────────────────────────────────────────────────────


def _warn_of_namesakes() -> None:
    """Say loudly when another thing of our name is about: supervisord's package in the same folder, or a file in the way."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for line in namesakes(home, os.getcwd()):
        click.echo(f"WARNING: {line}", err=True)


def namesakes(home: str, folder: str) -> list[str]:
    """What is wrong with the name in *home*, the package's folder, and in *folder*, where the user is. Costs three stats."""
    found = []
    if os.path.exists(os.path.join(home, "supervisord.py")):
        found.append(
            f"supervisord is installed in the same environment ({home}). Both work today, but to uninstall either breaks the other: "
            f"give supervisord an environment of its own (pipx install supervisor)"
        )
    package = sys.modules.get("supervisor")
    origin = getattr(package, "__file__", None)
    if package is not None and (origin is None or os.path.dirname(os.path.abspath(origin)) != home or not hasattr(package, "__version__")):
        found.append(
            f"`import supervisor` gives {origin or 'a package without __init__.py'}, which is not pgsupervisor's ({home}/__init__.py): "
            f"`from supervisor import workflow` fails; reinstall (pip install --force-reinstall pgsupervisor), "
            f"or write `from supervisor.api import workflow`"
        )
    for name in ("supervisor.py", os.path.join("supervisor", "__init__.py")):
        path = os.path.join(folder, name)
        if os.path.exists(path) and os.path.dirname(os.path.realpath(path)) != os.path.realpath(home) and not _is_clone(folder):
            found.append(f"{path} hides pgsupervisor from every Python program that is started in this folder; rename it")
    return found


def _is_clone(folder: str) -> bool:
    """Whether *folder* is a clone of this project, whose package is ours: Python takes that one there, which is no fault and nothing to rename."""
    return os.path.exists(os.path.join(folder, "supervisor", "cli", "main.py")) and os.path.exists(os.path.join(folder, "_fastpath", "loop.pxd"))
