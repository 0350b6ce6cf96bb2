"""A file of records, read as it goes: JSON Lines or CSV, plain or gz, from a path or standard input.

Owns the file and where in it the reader is. Knows nothing of what a record means.
Invariant: no more than one line is held, and of a line no more than LINE_MAX_BYTES; a longer one is given as its beginning.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from supervisor.core.codec import PAYLOAD_MAX_BYTES
from supervisor.core.errors import FileDamaged

LINE_MAX_BYTES = 2 * PAYLOAD_MAX_BYTES  # a payload with as much again of white space and escapes
BUFFER_BYTES = 1 << 20
PACKED_BUFFER_BYTES = 1 << 16  # of a damaged file no more than that is lost before the damage
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
STDIN = "-"
_BOM = b"\xef\xbb\xbf"


class Unread(NamedTuple):
    """A line that can't be a record, and why."""

    text: bytes
    why: str


def format_of(path: str) -> str | None:
    """jsonl or csv by the suffix of *path*, None when it says nothing."""
    name = path.lower().removesuffix(".gz")
    return SUFFIXES.get(os.path.splitext(name)[1])


class Source:
    """One file, opened. `jsonl()` or `csv()` reads it, once; `position` and `total` are bytes as they lie on the disk."""

    def __init__(self, path: str, file: BinaryIO | None = None) -> None:
        self.name = "standard input" if path == STDIN else path
        self._raw = file or (sys.stdin.buffer if path == STDIN else open(path, "rb", buffering=BUFFER_BYTES))
        self.total = _size(self._raw)
        head = self._raw.peek(2)[:2] if isinstance(self._raw, io.BufferedReader) else b""
        packed = path.lower().endswith(".gz") or head == b"\x1f\x8b"
        self._file: BinaryIO = io.BufferedReader(gzip.GzipFile(fileobj=self._raw), PACKED_BUFFER_BYTES) if packed else self._raw

    def close(self) -> None:
        if self._raw is not sys.stdin.buffer:
            self._file.close()
            self._raw.close()

    @property
    def position(self) -> int:
        """Bytes read so far, compressed ones where it is compressed; 0 where the file can't say."""
        try:
            return self._raw.tell()
        except (OSError, ValueError):
            return 0

    def jsonl(self) -> Iterator[tuple[int, bytes | Unread]]:
        """Number and bytes of each line that is not blank."""
        readline, line = self._file.readline, 0
        try:
            while text := readline(LINE_MAX_BYTES):
                line += 1
                if line == 1:
                    text = text.removeprefix(_BOM)
                if len(text) == LINE_MAX_BYTES and not text.endswith(b"\n"):
                    yield line, Unread(text[:200], f"a line longer than {LINE_MAX_BYTES:,} bytes")
                    while (rest := readline(LINE_MAX_BYTES)) and not rest.endswith(b"\n"):
                        pass
                elif not text.isspace():
                    yield line, text
        except (OSError, EOFError, zlib.error) as error:
            raise self._damaged(line, error) from None

    def csv(self) -> Iterator[tuple[int, list[str] | Unread]]:
        """Number of the last line and cells of each record, the head first. Undecodable bytes are lone surrogates in a cell."""
        csv.field_size_limit(LINE_MAX_BYTES)
        rows = csv.reader(self._text(), strict=True)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield rows.line_num, Unread(b"", f"no CSV: {error}")
                continue
            except (OSError, EOFError, zlib.error) as error:
                raise self._damaged(rows.line_num, error) from None
            if row:
                yield rows.line_num, row

    def _text(self) -> Iterator[str]:
        """Lines as text, cut where they are too long: the reader then finds a cell that is."""
        readline, first = self._file.readline, True
        while line := readline(LINE_MAX_BYTES):
            text = line.decode("utf-8", "surrogateescape")
            yield text.removeprefix("\ufeff") if first else text
            first = False

    def _damaged(self, line: int, error: Exception) -> FileDamaged:
        return FileDamaged(f"{self.name} can't be read after line {line:,}: {error or type(error).__name__}; what came before it was read")


def _size(file: BinaryIO) -> int | None:
    try:
        facts = os.fstat(file.fileno())
    except (OSError, io.UnsupportedOperation):
        return None
    return facts.st_size if stat.S_ISREG(facts.st_mode) else None
