"""What commands print: data to stdout, talk to stderr; tables for people, ISO times in JSON.

Nothing from the database reaches a terminal with its control characters (core/shown.py).
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from supervisor.core.shown import JSON_SHOWN_MAX as JSON_SHOWN_MAX
from supervisor.core.shown import ago as ago
from supervisor.core.shown import as_json
from supervisor.core.shown import duration as duration
from supervisor.core.shown import plain as plain
from supervisor.core.shown import progress_words as progress_words
from supervisor.core.shown import short_json as short_json

COLUMNS = 100  # where there is no terminal to ask
# what we draw ourselves, for where it can't be shown; one letter each where it stands in columns
_ASCII = str.maketrans({"█": "#", "▓": "x", "░": ".", "─": "-", "▶": ">", "┄": "~", "│": "|", "└": "`", "…": "...", "µ": "u"})


class Ascii(io.TextIOWrapper):
    """Standard output for a terminal or a file that is not UTF-8: what we draw ourselves is drawn in ASCII; all else is left as it is."""

    def write(self, text: str) -> int:
        super().write(text.translate(_ASCII))
        return len(text)


def draw_for_stdout() -> None:
    """Have bars, ellipses and µs drawn in ASCII where standard output says that it is not UTF-8."""
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "").replace("_", "")
    if encoding and not encoding.startswith("utf") and isinstance(sys.stdout, io.TextIOWrapper):
        by_line = sys.stdout.isatty()
        sys.stdout.flush()
        sys.stdout = Ascii(sys.stdout.detach(), encoding="utf-8", errors="backslashreplace", line_buffering=by_line)


def columns() -> int:
    """How wide a page is."""
    return shutil.get_terminal_size((COLUMNS, 24)).columns


def say(text: str) -> None:
    """Talk: to stderr."""
    click.echo(text, err=True)


def print_json(value: object) -> None:
    """One JSON document on one line; ASCII only, so nothing in it acts on a terminal."""
    click.echo(json.dumps(value, default=as_json, separators=(",", ":")))


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Aligned columns; the last one is not padded. Cells are made plain."""
    lines = [list(heads), *([plain("-" if cell is None else cell) for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
