"""What is recorded of runs in memory: as a document, replayed, asked, and in words."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from supervisor.core import context, registry
from supervisor.core.errors import ReplayMismatch, RunUnknown
from supervisor.core.histories import STATUSES, History, Pending, Recorded, kind_name, moment, read
from supervisor.engine.answering import answers
from supervisor.engine.batch import INFINITY
from supervisor.engine.reader import Reader
from supervisor.engine.verify import Divergence, Verifier
from supervisor.testing.errors import EnvironmentStuck
from supervisor.testing.tables import OUTCOMES, WAITS, RunRow, Tables, Task

NONDETERMINISM = 19


def history(tables: Tables, run_id: uuid.UUID) -> History:
    """As db/histories.py reads it."""
    row = tables.runs.get(run_id.bytes)
    if row is None:
        raise RunUnknown(run_id)
    records = [
        Recorded(each.seq, kind_name(each.kind), STATUSES[each.status], each.name, moment(each.ended), msgspec.Raw(each.result if each.result is not None else b"null"))
        for each in tables.steps.get(row.id, ())
    ]  # fmt: skip
    task, outcome = tables.tasks.get(row.id), tables.outcomes.get(row.id)
    status = OUTCOMES[outcome.status] if outcome is not None else "waiting"
    recorded = {each.seq for each in records}
    return History(
        run_id=run_id, workflow=tables.catalogue.name_of(row.workflow), version=tables.run_version(row.id), key=row.key, status=status, input=msgspec.Raw(row.input), records=records,
        pending=[each for each in _pending(tables, row.id, task) if each.seq not in recorded], drawn_from=_drawn_from(row),
    )  # fmt: skip


def _drawn_from(row: RunRow) -> uuid.UUID | None:
    return None if row.drawn_from is None else uuid.UUID(bytes=row.drawn_from)


def _pending(tables: Tables, run: bytes, task: Task | None) -> Iterator[Pending]:
    for seq in tables.timers.get(run, ()):
        yield Pending(seq, "timer", "sleep")
    for seq, kid in tables.children.get(run, {}).items():
        yield Pending(seq, "child", tables.catalogue.name_of(tables.runs[kid].workflow))
    for seq, name in {each.seq: each.name for each in tables.attempts.get(run, ())}.items():
        yield Pending(seq, "attempt", name)
    if task is not None and task.owner is None and task.wait_kind in range(9, 16) and task.seq is not None and task.step is not None:
        yield Pending(task.seq, "wait", task.step)


# ── replayed ─────────────────────────────────────────────────────────────────────────────────────────────────────


class _Untimed(Verifier):
    """Without an alarm clock: a test has a limit of its own."""

    @contextmanager
    def _watched(self, code: Any) -> Iterator[None]:
        yield


def verify(document: History) -> None:
    """Raises ReplayMismatch where the code that is here does something else."""
    parted = _Untimed().compare(document)
    if parted is not None:
        raise mismatch(parted)


def replay_file(path: str | Path) -> int:
    """Replay every history of a file that `export` wrote, without executing anything; how many. Raises ReplayMismatch, HistoryUnreadable."""
    before, n = context.loop, 0
    try:
        with Path(path).open("rb") as file:
            for n, document in enumerate(read(file, str(path)), 1):
                verify(document)
    finally:
        context.loop = before
    return n


def mismatch(parted: Divergence) -> ReplayMismatch:
    known = registry.find(parted.workflow)
    same = known is not None and parted.version is not None and known.accepts(parted.version)
    place = f"{parted.file}:{parted.line}" if parted.file else ""
    return ReplayMismatch(parted.run_id, parted.seq, parted.recorded, parted.now, place, known.version if known is not None and same else None)


class _Started(msgspec.Struct):
    """As AnswerCalls.run gives it."""

    workflow: str
    key: str | None
    input: bytes
    steps: int
    result_bytes: int
    reached: int | None
    drawn_from: uuid.UUID | None = None


class _Asked(msgspec.Struct):
    id: uuid.UUID
    run_id: uuid.UUID
    name: str
    input: bytes | None
    tries: int = 0


class _Calls:
    """What the answerer of queries reads."""

    def __init__(self, tables: Tables) -> None:
        self._t = tables

    def run(self, run_id: uuid.UUID) -> _Started:
        row, steps = self._t.runs[run_id.bytes], self._t.steps.get(run_id.bytes, [])
        known = [*self._t.timers.get(row.id, ()), *self._t.children.get(row.id, ()), *(each.seq for each in self._t.attempts.get(row.id, ()))]
        name = self._t.catalogue.name_of(row.workflow)
        return _Started(name, row.key, row.input, len(steps), sum(len(each.result or b"") for each in steps), max(known, default=None), _drawn_from(row))

    def steps(self, run_id: uuid.UUID) -> list[tuple[Any, ...]]:
        return [(each.seq, each.kind, each.status, each.name, each.result, each.ended) for each in self._t.steps.get(run_id.bytes, ())]


def answer(tables: Tables, run: bytes, name: str, payload: bytes | None) -> tuple[int, bytes]:
    """Of a query: (status, JSON), by a replay beside the run, as a host answers it."""
    asked = _Asked(uuid.uuid4(), uuid.UUID(bytes=run), name, payload)
    calls: Any = _Calls(tables)
    [(_, status, reply)] = answers(calls, Reader(), [asked])  # type: ignore[list-item]
    return status, reply


# ── in words ─────────────────────────────────────────────────────────────────────────────────────────────────────


def waiting(tables: Tables) -> list[str]:
    """Every live run and what it waits for."""
    return [_of_task(tables, task) for task in sorted(tables.tasks.values(), key=lambda task: task.id)]


def _of_task(tables: Tables, task: Task) -> str:
    name, until = tables.catalogue.name_of(task.workflow), None if task.ready_at >= INFINITY else moment(task.ready_at)
    pause = tables.queue_pauses.get(task.queue)
    shut = None if pause is None else (tables.catalogue.queue_name(task.queue), pause.by, pause.reason)
    return words(uuid.UUID(bytes=task.id), name, task.key, task.owner is not None, task.wait_kind, task.detail, task.ready_at <= tables.now(), until, shut)


def words(
    run_id: uuid.UUID, workflow: str, key: str | None, owned: bool, kind: int | None, detail: str | None, ready: bool, until: datetime | None,
    shut: tuple[str, str, str | None] | None = None,
) -> str:  # fmt: skip
    """One live run and what it waits for. *shut*: its queue, which is paused, by whom and why."""
    facts = json.loads(detail) if detail else {}
    code = WAITS[(kind or 1) - 1]
    if owned:
        what = "it is in memory"
    elif (kind or 0) >= NONDETERMINISM:
        what = f"put aside, {code}: {facts.get('error') or facts.get('why') or facts}"
    elif ready and shut is not None:
        what = f"its queue {shut[0]} is paused, by {shut[1]}{f': {shut[2]}' if shut[2] is not None else ''}"
    elif ready:
        what = "it is ready"
    else:
        what = f"waits for {', '.join(facts.get('waits_for') or [code])}{'' if until is None else f', until {until.isoformat()}'}"
    return f"run {run_id} of {workflow}{f' (key {key!r})' if key is not None else ''}: {what}"


def refuse_put_aside(tables: Tables, run: bytes) -> None:
    """Raise why the engine has put the run aside, if it has."""
    task = tables.tasks.get(run)
    if task is not None and task.owner is None and task.put_aside:
        raise put_aside(uuid.UUID(bytes=run), task.wait_kind or 0, json.loads(task.detail or "{}"), waiting(tables))


def put_aside(run_id: uuid.UUID, kind: int, facts: dict[str, Any], others: list[str]) -> Exception:
    if kind == NONDETERMINISM:
        return ReplayMismatch(run_id, **{each: facts[each] for each in ("seq", "expected", "found", "place", "version")})
    return EnvironmentStuck(f"run {run_id} was put aside by the engine", others)


__all__ = ["NONDETERMINISM", "answer", "history", "put_aside", "refuse_put_aside", "replay_file", "verify", "waiting", "words"]
