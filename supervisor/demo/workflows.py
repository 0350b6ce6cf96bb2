"""The demo's app, as anybody would write one: a run per file, five steps each, and a parent that waits for all.

Works without the demo too: `python -m supervisor run --app supervisor.demo.workflows`. What the demo adds is `stage`,
which it sets before it forks its workers and which only step bodies read, so that replay does not depend on it.
"""

from __future__ import annotations

import ast
import hashlib
import io
import mmap
import time
import tokenize
import zlib
from collections import Counter
from dataclasses import dataclass

import msgspec

from supervisor import NonRetryable, Retry, Transaction, current, gather, step, workflow
from supervisor.demo.table import INSERT

HOLD_MAX_S = 30.0
LEFT, HELD = 0, 1  # bytes of stage.shared
FLAKY_OF_1000 = 60
DECISIONS = (
    "If", "IfExp", "For", "AsyncFor", "While", "ExceptHandler", "Assert", "comprehension", "BoolOp", "match_case",
)  # fmt: skip
CHILDLESS = (ast.Name, ast.Constant)
UNTOKENIZED = (tokenize.TokenError, SyntaxError, ValueError, LookupError)
UNPARSED = (SyntaxError, ValueError, RecursionError, MemoryError)
AGAIN = Retry(max_attempts=5, initial=0.05, factor=2, maximum=1)


class Source(msgspec.Struct):
    """A file as it was read."""

    sha256: str
    size_bytes: int
    lines: int


class Measures(msgspec.Struct):
    """What is booked of a file."""

    lines: int
    functions: int
    complexity: int
    imports: int


class DiskHiccup(Exception):
    """A failure at random, as a network file system would have it. Nothing is wrong; the next try succeeds."""


@dataclass
class Stage:
    """What the demo tells its workers.

    demo         runs of another demo end at once: one that was interrupted shall not book into this one's table
    held         the file whose `parse` waits until no kill is to come, so that a small set does not end before
    shared       two bytes that the demo and its workers see: kills that are to come, whether the held step is waiting
    """

    demo: str = ""
    held: str = ""
    shared: mmap.mmap | None = None


stage = Stage()


# ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────


@step(retry=AGAIN)
def read_and_hash(demo: str, path: str) -> Source:
    _refuse_another_demo(demo)
    _fail_at_random(path)
    source = _read(path)
    return Source(hashlib.sha256(source).hexdigest(), len(source), source.count(b"\n") + (not source.endswith(b"\n") and bool(source)))


@step(retry=AGAIN, run="thread")
def tokenize_source(demo: str, path: str) -> int:
    """Tokens of the file; where it can't be tokenized, those before that place."""
    _refuse_another_demo(demo)
    _fail_at_random(path)
    tokens = 0
    try:
        for _ in tokenize.tokenize(io.BytesIO(_read(path)).readline):
            tokens += 1
    except UNTOKENIZED:
        pass
    return tokens


@step(retry=AGAIN, run="thread")
def parse(demo: str, path: str) -> dict[str, int]:
    """How often each kind of node is in the file's syntax tree (load and store apart); empty where it can't be parsed."""
    _refuse_another_demo(demo)
    _hold(path)
    _fail_at_random(path)
    try:
        nodes: list[ast.AST] = [ast.parse(_read(path))]
    except UNPARSED:
        return {}
    for node in nodes:  # grows as it goes
        if isinstance(node, CHILDLESS):
            continue
        for value in node.__dict__.values():
            if isinstance(value, list):
                nodes += [each for each in value if isinstance(each, ast.AST)]
            elif isinstance(value, ast.AST) and not isinstance(value, ast.expr_context):
                nodes.append(value)
    return {kind.__name__: count for kind, count in Counter(map(type, nodes)).items()}


@step
def measure(source: Source, nodes: dict[str, int]) -> Measures:
    functions = nodes.get("FunctionDef", 0) + nodes.get("AsyncFunctionDef", 0)
    return Measures(
        lines=source.lines,
        functions=functions,
        complexity=functions + sum(nodes.get(kind, 0) for kind in DECISIONS),
        imports=nodes.get("Import", 0) + nodes.get("ImportFrom", 0),
    )


@step(transactional=True)
def book(tx: Transaction, demo: str, path: str, source: Source, tokens: int, measures: Measures) -> None:
    """One row in an ordinary table. It has no unique key: a second booking would not be refused, it would show in the sum."""
    _refuse_another_demo(demo)
    tx.execute(INSERT, {
        "demo": demo, "run_id": current().run_id, "path": path, "sha256": source.sha256, "size_bytes": source.size_bytes, "tokens": tokens,
        "lines": measures.lines, "functions": measures.functions, "complexity": measures.complexity, "imports": measures.imports,
    })  # fmt: skip


# ── workflows ────────────────────────────────────────────────────────────────────────────────────────────────────


@workflow(queue="demo")
async def measure_file(path: str, demo: str = "") -> Measures:
    source = await read_and_hash.aio(demo, path)
    tokens = await tokenize_source.aio(demo, path)
    nodes = await parse.aio(demo, path)
    measures = await measure.aio(source, nodes)
    await book.aio(demo, path, source, tokens, measures)
    return measures


@workflow(queue="demo")
async def measure_all(demo: str, root: str, names: list[str]) -> Measures:
    """Start one run per file, wait for all, and add up what they return. A name goes on where *root* ends."""
    each = await gather(*(measure_file(root + name, demo) for name in names))
    return Measures(
        lines=sum(one.lines for one in each),
        functions=sum(one.functions for one in each),
        complexity=sum(one.complexity for one in each),
        imports=sum(one.imports for one in each),
    )


# ── inside steps ─────────────────────────────────────────────────────────────────────────────────────────────────


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _fail_at_random(path: str) -> None:
    """Fail in the first try of some steps: always the same ones, so that two demos can be compared."""
    now = current()
    if now.attempt == 1 and zlib.crc32(f"{now.step} {path}".encode()) % 1000 < FLAKY_OF_1000:
        raise DiskHiccup(f"could not read {path} this time")


def _hold(path: str) -> None:
    """Keep the last file's step from ending while kills are to come, for HOLD_MAX_S at most."""
    if path != stage.held or stage.shared is None:
        return
    deadline = time.monotonic() + HOLD_MAX_S
    while stage.shared[LEFT] and time.monotonic() < deadline:
        stage.shared[HELD] = 1
        time.sleep(0.005)


def _refuse_another_demo(demo: str) -> None:
    if stage.demo and demo and demo != stage.demo:
        raise NonRetryable(f"demo {demo} was interrupted and {stage.demo} has begun since; its table is gone")
