"""Log lines: what is kept of a log record, as one line of JSON, and as text for people.

Pure. A line is at most 4,096 bytes with its newline, so that one write puts it whole into a pipe, whoever else writes
there and whoever dies. Hostile text costs nothing but looks: control characters and newlines are escaped, an object
whose `__str__` raises has a line too. Nothing in here raises because of what a record holds.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any
from uuid import UUID

import msgspec

from supervisor.core import context, traces

LINE_BYTES_MAX = 4096  # PIPE_BUF on Linux: a write of no more is never mixed with another's
LINE_BEGINS = b'{"ts":'  # every line of JSON; within one its quotes would be escaped
TEXT_READ_MAX = 16_384  # characters of a message or traceback that are looked at, before it is cut to fit
CUTS = (3000, 1200, 500, 150, 40)  # characters per part, tried one after the other until the line fits
EXTRA_MAX, EXTRA_CHARS_MAX = 32, 500

# what JSON leaves as it is, though terminals act upon it, or no encoding has it
_UNSOUND = re.compile("[\x00\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "place", "span_place"}
_RESET = "\x1b[0m"
_COLOURS = {"dim": "\x1b[2m", "DEBUG": "\x1b[2m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[1;31m"}
_OF_WORKERS = tuple(f"\x1b[{number}m" for number in (36, 32, 35, 34))
PLACE_NAMES = ("run", "workflow", "step", "seq", "attempt")
TRACE_NAMES = ("trace_id", "span_id")

worker_number: int | None = None  # set once per process
worker_id: int | None = None  # set when it is born, and again under a new number


class Raised(msgspec.Struct, omit_defaults=True):
    """An exception: that which was logged, its traceback as Python prints it."""

    type: str
    message: str
    traceback: str = ""


class Line(msgspec.Struct, omit_defaults=True):
    """One line of a log. What a record has not is left out.

    ts       when, UTC           worker   number of the worker under its parent, its slot; the parent itself has none
    worker_id  the number that the database gave it, as all else shows it
    run, workflow, step, seq, attempt     of the run and the step that made the record
    trace_id, span_id                     where spans are made: those that it is in
    extra    what the caller gave as `extra=`
    """

    ts: datetime
    level: str
    logger: str
    message: str
    host: str
    pid: int
    worker: int | None = None
    worker_id: int | None = None
    run: str | None = None
    workflow: str | None = None
    step: str | None = None
    seq: int | None = None
    attempt: int | None = None
    trace_id: str | None = None
    span_id: str | None = None
    exception: Raised | None = None
    stack: str | None = None
    extra: dict[str, Any] | None = None


Place = tuple[str, str, str | None, int | None, int | None]  # run, workflow, step, seq, attempt

decode: Callable[[bytes], Line] = msgspec.json.Decoder(Line).decode
_encode = msgspec.json.Encoder().encode


class PlaceOfRecord(logging.Filter):
    """For handlers: gives each record its `run`, `workflow`, `step`, `seq` and `attempt` (None outside of a run), and where spans are made `trace_id` and `span_id`.

    Refuses what workflow code says while its history is replayed: it was said when it happened.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        facts = record.__dict__
        if "place" in facts:
            return True
        found = context.here()
        if found is not None and context.is_repeated(found):
            return False
        facts["place"] = at = place_of(found) if found is not None else None
        for name, value in zip(PLACE_NAMES, at or (None,) * 5, strict=True):
            facts.setdefault(name, value)
        if traces.here is not None:
            facts["span_place"] = at_span = traces.here()
            for name, value in zip(TRACE_NAMES, at_span or (None, None), strict=True):
                facts.setdefault(name, value)
        return True


def place_of(found: Any) -> Place:
    """Where a record comes from: *found* is a step's command, or a run."""
    run = getattr(found, "run", found)
    run_id, workflow = str(UUID(bytes=run.id)), run.workflow.name
    return (run_id, workflow, None, None, None) if run is found else (run_id, workflow, found.step.name, found.seq, found.attempt)


# ── from a record ────────────────────────────────────────────────────────────────────────────────────────────────


def line_of(record: logging.LogRecord) -> Line:
    """What is kept of *record*. Never raises."""
    run, workflow, step, seq, attempt = record.__dict__.get("place") or (None,) * 5
    trace_id, span_id = record.__dict__.get("span_place") or (None, None)
    try:
        at = datetime.fromtimestamp(record.created, UTC)
    except (TypeError, ValueError, OverflowError, OSError):  # a record that somebody made up
        at = datetime.now(UTC)
    return Line(
        ts=at, level=_sound(str(record.levelname)), logger=_sound(str(record.name)), message=_message(record), host=_host(),
        pid=record.process if isinstance(record.process, int) else os.getpid(), worker=worker_number, worker_id=worker_id,
        run=run, workflow=workflow, step=step, seq=seq, attempt=attempt, trace_id=trace_id, span_id=span_id,
        exception=_raised(record), stack=_sound(str(record.stack_info)) if record.stack_info else None, extra=_extra(record),
    )  # fmt: skip


@cache
def _host() -> str:
    return _sound(socket.gethostname())


def _message(record: logging.LogRecord) -> str:
    try:
        return _sound(record.getMessage())
    except Exception as error:  # noqa: BLE001 - of user code: __str__, __repr__, or a template that does not fit
        arguments = f" with arguments {_shown_object(record.args)}" if record.args else ""
        return f"{_shown_object(record.msg)}{arguments} (no message can be made of it: {type(error).__name__})"


def _raised(record: logging.LogRecord) -> Raised | None:
    """The record's exception; a record that came through somebody's queue may have its text only."""
    found = record.exc_info
    if not isinstance(found, tuple) or len(found) != 3 or found[1] is None:
        return Raised("", "", _sound(str(record.exc_text))) if record.exc_text else None
    kind, error, trace = found
    try:
        message = _sound(str(error))
    except Exception as broken:  # noqa: BLE001
        message = f"(its message can't be shown: {type(broken).__name__})"
    try:
        text = "".join(traceback.format_exception(kind, error, trace))
    except Exception:  # noqa: BLE001
        text = "".join(traceback.format_tb(trace))
    name = getattr(kind, "__qualname__", str(kind))
    module = getattr(kind, "__module__", "")
    return Raised(_sound(name if module in ("builtins", "") else f"{module}.{name}"), message, _sound(text))


def _extra(record: logging.LogRecord) -> dict[str, Any] | None:
    """What was given as `extra=`, as far as JSON can hold it; of the rest its repr."""
    known = dict(zip(PLACE_NAMES, record.__dict__.get("place") or (None,) * 5, strict=True))
    known["run_id"] = known["run"]
    known |= zip(TRACE_NAMES, record.__dict__.get("span_place") or (None, None), strict=True)
    told: dict[str, Any] = {}
    for name, value in list(record.__dict__.items()):
        if name in _OF_EVERY_RECORD or name in known and (value is None or value is known[name] or type(value) in (str, int) and value == known[name]):
            continue  # `==` only between our own kinds: a user's may raise
        if type(value) is str:
            value = _sound(value)[:EXTRA_CHARS_MAX]
        elif value is not None and type(value) not in (bool, float) and not (type(value) is int and value.bit_length() < 64):
            value = _shown_object(value)
        told[_sound(str(name))[:100]] = value
        if len(told) == EXTRA_MAX:
            break
    return told or None


def _shown_object(value: Any) -> str:
    try:
        return _sound(repr(value)[:EXTRA_CHARS_MAX])
    except Exception as error:  # noqa: BLE001
        return f"({type(value).__name__} that can't be shown: {type(error).__name__})"


def _sound(text: str) -> str:
    """*text*, bounded, without what a reader of JSON lines can't be trusted with."""
    if len(text) > TEXT_READ_MAX:
        text = _cut(text, TEXT_READ_MAX)
    return "" + _UNSOUND.sub(_escaped, text)  # the empty text makes a plain str of a subclass, whose methods are not ours


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


# ── to bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────


def as_json(line: Line) -> bytes:
    """One line of JSON with its newline."""
    return _bounded(line, _encode)


def as_text(line: Line) -> bytes:
    """Lines for people, the last newline included; all but the first are indented, so that no text can pass for a line of its own."""
    return _bounded(line, lambda each: text_of(each).encode("utf-8", "backslashreplace"))


def as_short(line: Line) -> bytes:
    """The same for somebody who watches: the time of day here, worker, message, workflow or step with its run; what is everyday is left out."""
    return _bounded(line, lambda each: _short(each, {}).encode("utf-8", "backslashreplace"))


def in_colour(line: Line) -> bytes:
    """The same in colours of a terminal, by worker and level."""
    return _bounded(line, lambda each: _short(each, _COLOURS).encode("utf-8", "backslashreplace"))


def _bounded(line: Line, render: Callable[[Line], bytes]) -> bytes:
    rendered = render(line)
    if len(rendered) < LINE_BYTES_MAX:
        return rendered + b"\n"
    for chars in CUTS:
        rendered = render(_shorter(line, chars))
        if len(rendered) < LINE_BYTES_MAX:
            return rendered + b"\n"
    return rendered[: LINE_BYTES_MAX - 1] + b"\n"


def _shorter(line: Line, chars: int) -> Line:
    """*line* with no text longer than *chars*; what was given as `extra=` goes first."""

    def cut(value: Any) -> Any:
        return _cut(value, chars) if isinstance(value, str) else value

    facts = {name: cut(getattr(line, name)) for name in Line.__struct_fields__}
    if line.exception is not None:
        facts["exception"] = Raised(*(cut(getattr(line.exception, name)) for name in Raised.__struct_fields__))
    if chars < CUTS[0] or len(_encode(line.extra)) > LINE_BYTES_MAX // 4:
        facts["extra"] = None
    return Line(**facts)


def _cut(text: str, chars: int) -> str:
    """Both ends of a text: a traceback's last lines say most, a message's first words."""
    if len(text) <= chars:
        return text
    return f"{text[: chars // 2]} … (cut) … {text[len(text) - chars // 2 :]}"


def text_of(line: Line) -> str:
    """*line* for people: time, first letter of the level, logger, message, run and step; then the traceback, indented."""
    at = line.ts.astimezone(UTC).isoformat(" ", "milliseconds").replace("+00:00", "Z")
    return _with_blocks(line, f"{at} {plain(line.level[:1])} {plain(line.logger)}: {plain(line.message)}{_place_text(line)}{_extra_text(line)}")


def _short(line: Line, colours: Mapping[str, str]) -> str:
    def painted(text: str, colour: str | None) -> str:
        return f"{colour}{text}{_RESET}" if colour and text else text

    at = line.ts.astimezone().strftime("%H:%M:%S.%f")[:-3]
    who = "host" if line.worker is None else f"w{line.worker}"
    by_number = _OF_WORKERS[line.worker % len(_OF_WORKERS)] if line.worker is not None else colours.get("dim")
    level = "" if line.level == "INFO" else f"{plain(line.level)} "
    ours = line.logger.startswith("pgsupervisor")
    message, *more = line.message.rstrip("\n").split("\n")
    said = f"{level}{'' if ours else plain(line.logger) + ': '}{plain(message)}{_extra_text(line)}"
    first = f"{painted(at, colours.get('dim'))} {painted(f'{who:<4}', by_number if colours else None)} {painted(said, colours.get(line.level))}"
    return _with_blocks(line, first + painted(_place_text(line), colours.get("dim")), more)


def _extra_text(line: Line) -> str:
    return " " + plain(" ".join(f"{name}={value}" for name, value in line.extra.items())) if line.extra else ""


def _with_blocks(line: Line, first: str, more: Sequence[str] = ()) -> str:
    """*first*, then what *more* of the message there is, the traceback and the stack of *line*."""
    blocks = [line.exception.traceback or f"{line.exception.type}: {line.exception.message}"] if line.exception is not None else []
    if line.stack:
        blocks.append(line.stack)
    return "\n".join([first, *(f"    {plain(each)}" for each in more), *(f"    {plain(each)}" for block in blocks for each in block.rstrip("\n").split("\n"))])


def _place_text(line: Line) -> str:
    if line.run is None:
        return ""
    if line.step is None:
        return f" [run {plain(line.run)} workflow {plain(line.workflow)}]"
    again = f" attempt {line.attempt}" if line.attempt is not None and line.attempt > 1 else ""
    return f" [run {plain(line.run)} step {plain(line.step)} seq {line.seq}{again}]"


def plain(value: object) -> str:
    """Text with everything escaped that a terminal would act upon, newlines included."""
    text = str(value)
    return text if text.isprintable() else "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
