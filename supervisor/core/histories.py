"""A run's history as a document: what was recorded, byte for byte, and in which order it was given to the workflow.

One JSON object, on one line where there are several: files of them are JSON Lines. Its form is documented in docs/versions.md and has a
number; a reader takes that number and those before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import IO, Any
from uuid import UUID

import msgspec

from supervisor.core.errors import HistoryUnreadable

FORMAT, FORMAT_VERSION = "pgsupervisor.history", 2  # the newest that is read
KINDS = {1: "step", 2: "timer", 3: "child", 4: "child_start", 5: "signal", 6: "compensation", 7: "cancellation", 8: "handlers_finished", 9: "update", 15: "patch"}  # of step.kind
STATUSES = {1: "completed", 2: "failed", 3: "cancelled"}
EPOCH_2000 = datetime(2000, 1, 1, tzinfo=UTC)
NULL = msgspec.Raw(b"null")


class Recorded(msgspec.Struct, omit_defaults=True):
    """One row of `step`, in the order of delivery."""

    seq: int
    kind: str
    status: str
    name: str
    ended_at: datetime
    result: msgspec.Raw = NULL


class Pending(msgspec.Struct):
    """Something that the run has asked for and not been given: a timer, a child, an attempt of a step, or what it is parked for (wait)."""

    seq: int
    kind: str
    name: str


class History(msgspec.Struct, kw_only=True):
    """One run. `drawn_from`: whose random numbers it draws, if not its own; who reads format 1 alone does not know of that, so such a document is of format 2."""

    format: str = FORMAT
    format_version: int = 1
    run_id: UUID
    workflow: str
    version: str | None
    key: str | None
    status: str
    input: msgspec.Raw
    records: list[Recorded]
    pending: list[Pending]
    drawn_from: UUID | None = None

    def __post_init__(self) -> None:
        if self.drawn_from is not None:
            self.format_version = max(self.format_version, 2)


def kind_name(kind: int) -> str:
    return KINDS.get(kind, f"kind_{kind}")


def kind_number(name: str) -> int:
    """The number of a kind. Raises ValueError."""
    known = {text: number for number, text in KINDS.items()}
    return known[name] if name in known else int(name.removeprefix("kind_"))


def status_number(name: str) -> int:
    return next(number for number, text in STATUSES.items() if text == name)


def moment(us: int) -> datetime:
    """Of microseconds since 2000."""
    return EPOCH_2000 + timedelta(microseconds=us)


def microseconds(at: datetime) -> int:
    return (at - EPOCH_2000) // timedelta(microseconds=1)


_encode = msgspec.json.Encoder().encode
_decode: Any = msgspec.json.Decoder(History).decode


def line(history: History) -> bytes:
    """The document, on one line."""
    return _encode(history).replace(b"\n", b" ") + b"\n"


def read(file: IO[bytes], name: str) -> Iterator[History]:
    """The histories of a file, one after the other: JSON Lines, or one document over several lines. Raises HistoryUnreadable."""
    for number, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            yield _checked(text, name, number)
        except msgspec.DecodeError as error:
            if number > 1 or isinstance(error, msgspec.ValidationError):
                raise HistoryUnreadable(name, number, str(error)) from None
            try:
                yield _checked(text + file.read(), name, 1)
            except msgspec.DecodeError as whole:
                raise HistoryUnreadable(name, 1, str(whole)) from None


def _checked(text: bytes, name: str, number: int) -> History:
    history: History = _decode(text)
    if history.format != FORMAT or history.format_version > FORMAT_VERSION:
        raise HistoryUnreadable(name, number, f"it is {history.format!r} {history.format_version}, and {FORMAT!r} up to {FORMAT_VERSION} is read here")
    try:
        for record in history.records:
            kind_number(record.kind), status_number(record.status)
    except (ValueError, StopIteration):
        raise HistoryUnreadable(name, number, f"seq {record.seq} is a {record.status!r} {record.kind!r}, which is not known here") from None
    return history


__all__ = ["FORMAT", "FORMAT_VERSION", "History", "Pending", "Recorded", "kind_name", "kind_number", "line", "microseconds", "moment", "read", "status_number"]
