"""What was wrong with records: written to a file as it is found, one JSON object a line, in the order of the input.

    {"line":3,"path":"$.total","code":"input_invalid","error":"Expected `int`, got `str`","record":{"id":7,"total":"x"}}

A record that is JSON stands there as JSON, so a mended file is `jq -c .record` away; any other is text.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

SHOWN_MAX = 10


class Reject(NamedTuple):
    line: int
    path: str
    code: str
    why: str
    record: bytes | dict[str, str]  # the line, or the row by column


class Rejects:
    """Counts, keeps the first SHOWN_MAX, and writes all to *path* if there is one; the file is made at once, empty."""

    def __init__(self, path: str | None = None) -> None:
        self.path, self.count = path, 0
        self.first: list[Reject] = []
        self._file = open(path, "wb") if path is not None else None

    def add(self, reject: Reject) -> None:
        self.count += 1
        if len(self.first) < SHOWN_MAX:
            self.first.append(reject._replace(record=b""))
        if self._file is not None:
            self._file.write(_line(reject))

    def flush(self) -> None:
        """So that whoever is killed next has told what it found."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _line(reject: Reject) -> bytes:
    record: Any = reject.record
    if isinstance(record, bytes):
        try:
            record = msgspec.Raw(msgspec.json.format(record, indent=-1))
            msgspec.json.decode(record)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            record = reject.record.decode("utf-8", "backslashreplace").rstrip("\r\n")  # type: ignore[union-attr]
    else:
        record = {_safe(name): _safe(cell) for name, cell in record.items()}
    told = {"line": reject.line, "path": _safe(reject.path), "code": reject.code, "error": _safe(reject.why), "record": record}
    return msgspec.json.encode(told) + b"\n"


def _safe(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
