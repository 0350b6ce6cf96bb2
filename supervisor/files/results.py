"""The results of a batch as JSON Lines, in the order of its input, page by page.

    {"run_id":"0190…","key":"order-42","status":"completed","result":{"payment":"p-1"}}
    {"run_id":"0190…","key":"order-43","status":"failed","error":{"type":"shop.CardDeclined","message":"…"}}

One page is in memory: PAGE_RUNS runs, fewer where results are large. A line is one line of JSON whatever is stored: what can't be read
stands in it as {"unreadable": why, "bytes": …}, as in the views, and on a terminal it is ASCII.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from supervisor.core.errors import BatchUnknown
from supervisor.files.source import STDIN

if TYPE_CHECKING:
    import uuid

    from supervisor.db.client_calls import BatchResult, ClientCalls

PAGE_RUNS = 2_000
PAGE_BYTES = 4 << 20


class Written(msgspec.Struct):
    """What was written and what was not."""

    batch: str
    runs: int = 0
    completed: int = 0
    failed: int = 0  # ended in another way than completed or continued
    live: int = 0  # have not ended
    lines: int = 0


def write(calls: ClientCalls, batch: str, out: BinaryIO, failed_too: bool, show: Callable[[Written], None]) -> Written:
    """Write the results of *batch* to *out*. Raises BatchUnknown when it has no run."""
    written = Written(batch)
    for page in _pages(calls, batch):
        lines = []
        for each in page:
            written.runs += 1
            if each.ended_at is None:
                written.live += 1
                continue
            good = each.status in ("completed", "continued")
            written.completed += good
            written.failed += not good
            if good or failed_too:
                lines.append(_line(each, good))
        written.lines += len(lines)
        out.write(b"".join(_ascii(line) for line in lines) if out.isatty() else b"".join(lines))
        show(written)
    if not written.runs:
        raise BatchUnknown(batch)
    return written


def _pages(calls: ClientCalls, batch: str) -> Iterator[list[BatchResult]]:
    after: uuid.UUID | None = None
    limit = PAGE_RUNS // 10  # the first page shows how large results are
    while page := calls.batch_results(batch, after, limit):
        yield page
        after = page[-1].run_id
        mean = sum(len(each.result or b"") for each in page) / len(page)
        limit = int(min(PAGE_RUNS, max(1, PAGE_BYTES / (mean + 100))))


def _line(each: BatchResult, good: bool) -> bytes:
    told: dict[str, Any] = {"run_id": each.run_id, "key": each.key, "status": each.status}
    if good:
        told["result"] = _readable(each.result or b"null")
    else:
        told["error"] = None if each.result is None else _readable(each.result)
    return msgspec.json.encode(told) + b"\n"


def _readable(stored: bytes) -> Any:
    """JSON as it is, on one line; the words of the function as_json for what is none."""
    try:
        made: bytes = msgspec.json.format(stored, indent=-1)
        made.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return {"unreadable": str(error), "bytes": len(stored)}
    return msgspec.Raw(made)


def _ascii(line: bytes) -> bytes:
    """The same JSON, with nothing in it that acts on a terminal: what is not ASCII stands in texts alone."""
    return re.sub(r"[^\n\x20-\x7e]", lambda found: "\\u007f" if found[0] == "\x7f" else json.dumps(found[0])[1:-1], line.decode()).encode()


@contextmanager
def output(path: str) -> Iterator[BinaryIO]:
    """The file, under another name until all is written: a half of one is never taken for the whole. `-` is standard output."""
    if path == STDIN:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = f"{path}.part"
    try:
        with gzip.open(part, "wb", compresslevel=5) if path.endswith(".gz") else open(part, "wb") as file:
            yield file  # type: ignore[misc]
        os.replace(part, path)
    except BaseException:
        if os.path.exists(part):
            os.unlink(part)
        raise
