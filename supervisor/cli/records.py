"""`start --input FILE`: a run of every record of a file. The command's own part: options to parts, what is said, exit codes."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from supervisor.cli.output import duration, plain, print_json, say, table
from supervisor.cli.progress import Progress

if TYPE_CHECKING:
    from supervisor.api.asked import Named
    from supervisor.db.client_calls import ClientCalls
    from supervisor.files.awaiting import Ended
    from supervisor.files.record import Rules
    from supervisor.files.rejects import Rejects
    from supervisor.files.source import Source
    from supervisor.files.starting import Starter, Tally

EXIT_NEGATIVE, EXIT_TIMEOUT, EXIT_INTERRUPTED = 1, 124, 130
ERROR_SHOWN_MAX = 160


class Asked(NamedTuple):
    """What the command line says of the file."""

    path: str
    form: str | None = None
    rejects: str | None = None
    strict: bool = False
    key_field: str | None = None
    app: str | None = None
    wait: bool = False
    timeout_s: float | None = None
    as_json: bool = False


def start_file(dsn: str | None, schema: str, how: Named, asked: Asked) -> int:
    """Start a run of every record; the exit code: 1 where a record was refused, or a run failed that was waited for."""
    from supervisor.db import connect
    from supervisor.db.client_calls import ClientCalls
    from supervisor.files.rejects import Rejects
    from supervisor.files.starting import Starter

    form = asked.form or _format(asked.path)
    calls = ClientCalls(connect.resolve_dsn(dsn, source="--dsn"), schema, "files")
    try:
        rules = _rules(calls, how.workflow, asked)
        source = _open(asked.path)
        rejects = Rejects(_writable(asked))
        try:
            starter = Starter(
                calls, how, rules, rejects, keyed=asked.key_field is not None, strict=asked.strict, keep_ids=asked.wait
            )  # fmt: skip
            return _Performance(calls, how, asked, rules, source, rejects, starter).perform(form)
        finally:
            source.close()
            rejects.close()
    finally:
        calls.close()


class _Performance:
    """One file, from its first record to the last word about it."""

    def __init__(self, calls: ClientCalls, how: Named, asked: Asked, rules: Rules, source: Source, rejects: Rejects, starter: Starter) -> None:
        self.calls, self.how, self.asked, self.rules, self.source, self.rejects, self.starter = calls, how, asked, rules, source, rejects, starter
        self.seconds = 0.0

    @property
    def tally(self) -> Tally:
        return self.starter.tally

    def perform(self, form: str) -> int:
        try:
            self._start(form)
        except KeyboardInterrupt:
            self._tell_rejects()
            say(f"stopped; {self._so_far()}")
            self._print(None, {"code": "interrupted", "message": "interrupted"})
            return EXIT_INTERRUPTED
        except Exception as error:
            self._tell_rejects()
            error.add_note(self._so_far())
            self._print(None, {"code": getattr(error, "code", "error"), "message": str(error)})
            raise
        self._tell_rejects()
        if self.rules.by_name and len(self.rules.names) == 1:
            say(plain(f"records that name the parameter, as {{\"{self.rules.names[0]}\": …}}, were read by name: its value can be no such object"))
        negative = self.tally.rejected + self.tally.mismatched > 0
        if not self.asked.wait:
            self._print(None)
            return EXIT_NEGATIVE if negative else 0
        return self._wait(negative)

    def _start(self, form: str) -> None:
        progress = Progress("records", self.source.total)
        try:
            self.starter.start(self.source, form, lambda: progress.show(self.tally.records, self.source.position, self._bad()))
        finally:
            self.seconds = progress.seconds
            progress.close()

    def _wait(self, negative: bool) -> int:
        from supervisor.files import awaiting

        assert self.starter.ids is not None
        ended = awaiting.Ended(self.tally.created + self.tally.existing)
        if not self.asked.as_json:
            say(f"{self._counts()}; waiting for their end")
        progress = Progress("ended", ended.total)
        give_up_at = None if self.asked.timeout_s is None else time.monotonic() + self.asked.timeout_s
        show = lambda: progress.show(ended.done, ended.done, f"{ended.bad:,} failed" if ended.bad else "")  # noqa: E731
        try:
            all_ended = awaiting.wait(self.calls, self.starter.ids, ended, show, give_up_at)
        except KeyboardInterrupt:
            say("stopped waiting; the runs go on")
            all_ended = None
        finally:
            progress.close()
        self._print(ended)
        if all_ended is None:
            return EXIT_INTERRUPTED
        if not all_ended:
            say(f"{ended.total - ended.done:,} of {ended.total:,} runs have not ended within {duration(self.asked.timeout_s)}; they go on")
            return EXIT_TIMEOUT
        return EXIT_NEGATIVE if negative or ended.bad else 0

    # ── words ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _bad(self) -> str:
        bad = self.tally.rejected + self.tally.mismatched
        return f"{bad:,} refused" if bad else ""

    def _counts(self) -> str:
        tally = self.tally
        parts = [f"{count:,} {word}" for word in ("created", "existing", "mismatched", "rejected") if (count := getattr(tally, word)) or word == "created"]
        rate = f" ({tally.records / self.seconds:,.0f}/s)" if self.seconds > 0 else ""
        return f"{tally.records:,} records in {duration(self.seconds)}{rate}: {', '.join(parts)}"

    def _so_far(self) -> str:
        again = " (repeat the command to go on: keys keep what was started from being started again)" if self.asked.key_field else ""
        return f"{self.tally.created:,} runs were started and stay, all up to line {self.tally.line:,} is done{again}"

    def _tell_rejects(self) -> None:
        for reject in self.rejects.first:
            say(plain(f"line {reject.line:,}, {reject.path}: {reject.why}"))
        more = self.rejects.count - len(self.rejects.first)
        if self.rejects.count and self.rejects.path:
            say(f"{f'and {more:,} more; ' if more else ''}all {self.rejects.count:,} are in {plain(self.rejects.path)}")
        elif more:
            say(f"and {more:,} more; --rejects FILE keeps them all")

    def _print(self, ended: Ended | None, error: dict[str, str] | None = None) -> None:
        if self.asked.as_json:
            print_json(self._facts(ended, error))
            return
        if error is not None:
            return
        if ended is None:
            click.echo(self._counts())
        else:
            counts = ", ".join(f"{count:,} {status}" for status, count in sorted(ended.by_status.items())) or "none ended"
            click.echo(f"{ended.total:,} runs: {counts}")
            if ended.failures:
                found = sorted(ended.failures.values(), key=lambda each: -each.runs)
                click.echo(table(("runs", "fingerprint", "first run", "error"), [(f"{f.runs:,}", f.fingerprint, f.run_id, f.error[:ERROR_SHOWN_MAX]) for f in found]))
        if self.how.batch:
            say(plain(f"results: python -m supervisor results --batch {self.how.batch} --output FILE"))

    def _facts(self, ended: Ended | None, error: dict[str, str] | None) -> dict[str, Any]:
        tally = self.tally
        facts: dict[str, Any] = {
            "workflow": self.how.workflow, "batch": self.how.batch, "records": tally.records, "created": tally.created, "existing": tally.existing,
            "mismatched": tally.mismatched, "rejected": tally.rejected, "rejects": self.rejects.path, "line": tally.line,
            "seconds": round(self.seconds, 3), "records_per_s": round(tally.records / self.seconds) if self.seconds else 0,
        }  # fmt: skip
        if ended is not None:
            facts["ended"] = ended.done
            facts["by_status"] = ended.by_status
            facts["failures"] = [{name: getattr(f, name) for name in f.__struct_fields__} for f in ended.failures.values()]
        if error is not None:
            facts["error"] = error
        return facts


def _rules(calls: ClientCalls, workflow: str, asked: Asked) -> Any:
    import msgspec

    from supervisor.core import registry
    from supervisor.core.errors import ConfigInvalid, UnknownWorkflow
    from supervisor.files.record import Rules

    definition = None
    if asked.app is not None:
        from supervisor.cli.run import load_app

        load_app(asked.app)
        definition = registry.find(workflow)
        if definition is None:
            raise ConfigInvalid(f"--app {asked.app} defines no workflow named {workflow!r}; it has {', '.join(registry.workflows())}")
    stored = calls.parameters(workflow) if workflow.isprintable() else None
    if stored is None:
        raise UnknownWorkflow(workflow)
    parameters = msgspec.json.decode(stored) if definition is None else definition.input.describe()
    return Rules(workflow, parameters, definition, asked.key_field)


def _open(path: str) -> Source:
    from supervisor.files.source import Source

    try:
        return Source(path)
    except OSError as error:
        if path.lstrip()[:1] in ("{", "[", '"'):
            raise click.UsageError("--input is the path of a file; a record of its own is given by --input-json") from None
        raise click.UsageError(f"--input {path}: {error.strerror}") from None


def _format(path: str) -> str:
    from supervisor.files.source import STDIN, format_of

    found = format_of(path)
    if found is None and path != STDIN and os.path.exists(path):
        raise click.UsageError(f"what is in {path}? Its name ends with none of .jsonl .ndjson .csv (and .gz); say --format jsonl or --format csv")
    return found or "jsonl"


def _writable(asked: Asked) -> str | None:
    """The path of the rejects; never the input's own."""
    path = asked.rejects
    if path is None:
        return None
    if os.path.exists(path) and os.path.exists(asked.path) and os.path.samefile(path, asked.path):
        raise click.UsageError("--rejects names the input; give it another file")
    try:
        open(path, "ab").close()
    except OSError as error:
        raise click.UsageError(f"--rejects {path}: {error.strerror}") from None
    return path
