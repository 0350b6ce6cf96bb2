"""What a client asks, answered from tables in memory: as `db.client_calls.Questions`, under the rules of the functions in sql/.

Each is a generator that asks nobody, so that the verbs are the product's own.
"""

from __future__ import annotations

import functools
import hashlib
import uuid
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import msgspec

from supervisor.core.errors import BatchUnknown, InputInvalid, KeyExists, KeyMismatch, RunClosed, RunUnknown, UnknownWorkflow
from supervisor.core.filters import Filter, Order
from supervisor.core.histories import moment
from supervisor.core.ids import RunIds
from supervisor.core.traces import Trace
from supervisor.db.client_calls import BatchResult, Conflict, Found, Outcome, QueryStanding, Sent, Told, UpdateStanding
from supervisor.testing import tables as rows
from supervisor.testing.ending import end_runs, error_json, request_cancel, terminate_runs
from supervisor.testing.errors import NotInMemory
from supervisor.testing.filtering import Facts, fits, page
from supervisor.testing.statements import wake_updated
from supervisor.testing.tables import ACTOR, OUTCOMES, PAUSED, QUEUE_PAUSED, TERMINATED, WAITS, Message, RunRow, Tables, Task

T = TypeVar("T")
Answer = Generator[Any, Any, T]
BAD = (2, 3, 4, 5)  # outcomes after which restart_failed starts anew


def at_once(fn: Callable[..., T]) -> Callable[..., Answer[T]]:
    """A question that is answered without asking anybody."""

    @functools.wraps(fn)
    def ask(*args: Any, **kwargs: Any) -> Answer[T]:
        return fn(*args, **kwargs)
        yield

    return ask


class MemoryQuestions:
    """Questions to one environment. What is missing here raises NotInMemory by its name."""

    schema = "memory"

    def __init__(self, tables: Tables, ids: RunIds, answer: Callable[[bytes, str, bytes | None], tuple[int, bytes]]) -> None:
        self._t, self.ids, self._answer = tables, ids, answer
        self._queries: dict[uuid.UUID, tuple[int, bytes]] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise NotInMemory(f"the verb that asks {name}")

    # ── start ────────────────────────────────────────────────────────────────────────────────────────────────────

    @at_once
    def run_ids(self, n: int) -> list[bytes]:
        return self.ids.new_bytes(n)

    @at_once
    def measure_anew(self) -> None:
        """There is one clock."""

    @at_once
    def start_one(self, workflow: str, run_id: bytes, payload: bytes, *, queue: str | None, priority: int, delay_s: float, hint: str | None) -> None:
        self._make(workflow, run_id, payload, None, queue, priority, delay_s, None, None)

    @at_once
    def start(
        self, workflow: str, ids: Sequence[bytes], inputs: Sequence[bytes], keys: Sequence[str | None] | None = None, hashes: Sequence[bytes] | None = None, *,
        queue: str | None = None, priority: int = 5, delay_s: float = 0.0, attributes: bytes | None = None, batch: str | None = None,
        on_conflict: str = "return", trace: Trace | None = None, ended: list[bytes] | None = None,
    ) -> list[Conflict]:  # fmt: skip
        conflicts = []
        for at, (run_id, payload) in enumerate(zip(ids, inputs, strict=True)):
            key = keys[at] if keys is not None else None
            hashed = hashes[at] if hashes is not None else hashlib.sha256(payload).digest()
            there = None if key is None else self._settle_key(workflow, key, run_id, hashed, on_conflict, ended)
            if there is not None:
                conflicts.append(Conflict(at, there[0], there[1]))
            else:
                self._make(workflow, run_id, payload, key, queue, priority, delay_s, attributes, batch)
        return conflicts

    def _settle_key(self, workflow: str, key: str, run_id: bytes, hashed: bytes, on_conflict: str, ended: list[bytes] | None) -> tuple[uuid.UUID, bool] | None:
        """The run that the key names, if it goes on naming it, and whether it has the same input."""
        number = self._number(workflow)
        named = self._t.keys.get((number, key))
        if named is None:
            self._t.keys[number, key] = (run_id, hashed)
            return None
        there, same = uuid.UUID(bytes=named[0]), named[1] == hashed
        if on_conflict == "reject":
            raise KeyExists(workflow, key, there)
        outcome = self._t.outcomes.get(named[0])
        if on_conflict == "replace" or on_conflict == "restart_failed" and outcome is not None and outcome.status in BAD:
            self._t.keys[number, key] = (run_id, hashed)
            if on_conflict == "replace":
                gone = end_runs(self._t, [named[0]], TERMINATED, error_json("RunTerminated", "its key was given to another run"))
                if ended is not None:
                    ended += gone
            return None
        return there, same

    def _number(self, workflow: str) -> int:
        number = self._t.catalogue.workflows.get(workflow)
        if number is None:
            raise UnknownWorkflow(workflow)
        return number

    def _make(
        self, workflow: str, run_id: bytes, payload: bytes, key: str | None, queue: str | None, priority: int, delay_s: float, attributes: bytes | None,
        batch: str | None,
    ) -> None:  # fmt: skip
        t, number, now = self._t, self._number(workflow), self._t.now()
        if not 0 <= priority <= 9:
            raise InputInvalid(f"start of {workflow!r}", f"priority {priority} is not between 0 (first) and 9 (last)")
        place = t.catalogue.queue(queue) if queue is not None else t.catalogue.facts[number][0]
        ready_at = now + int(delay_s * 1e6)
        row = RunRow(run_id, number, place, priority, payload, now, key, batch=batch, attributes=attributes)
        t.add_run(row, ready_at=ready_at, cancel_at=t.deadline(number, ready_at))

    @at_once
    def parameters(self, workflow: str) -> bytes | None:
        number = self._t.catalogue.workflows.get(workflow)
        return None if number is None else self._t.catalogue.facts[number][2]

    # ── signals and updates ──────────────────────────────────────────────────────────────────────────────────────

    @at_once
    def signal(self, run_id: uuid.UUID, name: str, payload: bytes, message_id: str, tell: bool | None, trace: Trace | None = None) -> Sent:
        return self._signal(run_id.bytes, name, payload, message_id)

    @at_once
    def signals(self, messages: Sequence[tuple[uuid.UUID, str, bytes, str]]) -> list[Sent]:
        """All or none."""
        for run_id, name, _, message_id in messages:
            run = self._t.newest(run_id.bytes)
            if run not in self._t.tasks and not self._was_sent(run_id.bytes, run, name, message_id):
                raise self._closed(run, signal=name)
        return [self._signal(run_id.bytes, name, payload, message_id) for run_id, name, payload, message_id in messages]

    def _signal(self, asked: bytes, name: str, payload: bytes, message_id: str) -> Sent:
        run = self._t.newest(asked)
        task = self._t.tasks.get(run)
        if self._was_sent(asked, run, name, message_id):
            return self._sent(run, False, False)
        if task is None:
            raise self._closed(run, signal=name)
        self._t.messages[run, name].append(Message(self._t.number(), message_id, payload))
        woken = task.owner is None and name in (task.signals or ())
        if woken:
            task.wake(self._t.now())
        self._t.wake()
        return self._sent(run, True, woken)

    def _was_sent(self, asked: bytes, run: bytes, name: str, message_id: str) -> bool:
        return any(of in self._t.runs and self._t.was_sent(of, name, message_id) for of in {asked, run})

    def _closed(self, run: bytes, **what: str) -> Exception:
        outcome = self._t.outcomes.get(run)
        shown = uuid.UUID(bytes=run)
        return RunUnknown(shown) if outcome is None else RunClosed(shown, OUTCOMES[outcome.status], **what)

    def _sent(self, run: bytes, stored: bool, woken: bool) -> Sent:
        row, task = self._t.runs[run], self._t.tasks.get(run)
        return Sent(stored, None if task is None else task.owner, woken, self._t.catalogue.name_of(row.workflow), None)

    @at_once
    def update(self, run_id: uuid.UUID, name: str, payload: bytes, update_id: str, trace: Trace | None = None) -> Sent:
        return self._update(run_id.bytes, name, payload, update_id)

    def _update(self, run: bytes, name: str, payload: bytes, update_id: str) -> Sent:
        accepted = (run, name, update_id) in self._t.accepted
        if run not in self._t.tasks:
            if accepted:
                return self._sent(run, False, False)
            raise self._closed(run, update=name)
        if accepted or any((each.name, each.id) == (name, update_id) for each in self._t.updates[run]):
            return self._sent(run, False, False)
        self._t.updates[run].append(rows.Sent(self._t.number(), name, update_id, payload))
        woken = bool(wake_updated(self._t, [run]))
        self._t.wake()
        return self._sent(run, True, woken)

    @at_once
    def send_start(
        self, what: str, workflow: str, run_id: bytes, payload: bytes, key: str | None, input_hash: bytes | None, name: str, message: bytes, message_id: str, *,
        queue: str | None = None, priority: int = 5, delay_s: float = 0.0, attributes: bytes | None = None, batch: str | None = None, on_conflict: str = "return",
        trace: Trace | None = None,
    ) -> tuple[uuid.UUID, Sent]:  # fmt: skip
        hashed = input_hash or hashlib.sha256(payload).digest()
        there = None if key is None else self._settle_key(workflow, key, run_id, hashed, on_conflict, None)
        if there is not None and not there[1]:
            raise KeyMismatch(workflow, key or "", there[0])
        if there is None:
            self._make(workflow, run_id, payload, key, queue, priority, delay_s, attributes, batch)
        named = uuid.UUID(bytes=run_id) if there is None else there[0]
        send = self._signal if what == "signal" else self._update
        return named, send(named.bytes, name, message, message_id)

    @at_once
    def update_standing(self, run_id: uuid.UUID, name: str, update_id: str) -> UpdateStanding | None:
        run, t = run_id.bytes, self._t
        outcome = t.outcomes.get(run)
        how = None if outcome is None else OUTCOMES[outcome.status]
        seq = t.accepted.get((run, name, update_id))
        if seq is not None:
            status, reply, _ = t.answers.get((run, seq), (0, None, 0))
            stage = {1: "completed", 2: "failed"}.get(status) or ("accepted" if how is None else "unfinished")
            return UpdateStanding(stage, reply, how)
        sent = next((each for each in t.updates.get(run, ()) if (each.name, each.id) == (name, update_id)), None)
        if sent is not None and sent.error is not None:
            return UpdateStanding("rejected", sent.error, how)
        if how is not None:
            return UpdateStanding("closed", None, how)
        if sent is not None:
            return UpdateStanding("admitted", None, None)
        self._known(run)
        return None

    # ── queries ──────────────────────────────────────────────────────────────────────────────────────────────────

    @at_once
    def ask_query(self, query_id: uuid.UUID, run_id: uuid.UUID, name: str, payload: bytes | None, within_s: float) -> str:
        row = self._known(run_id.bytes)
        self._queries[query_id] = self._answer(run_id.bytes, name, payload)
        return self._t.catalogue.name_of(row.workflow)

    @at_once
    def query_answer(self, query_id: uuid.UUID) -> QueryStanding | None:
        return QueryStanding(*self._queries[query_id], True)

    @at_once
    def forget_query(self, query_id: uuid.UUID) -> None:
        self._queries.pop(query_id, None)

    @at_once
    def tell_of_query(self, workflow: str) -> None:
        """It was answered as it was asked."""

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @at_once
    def cancel(self, run_id: uuid.UUID, reason: str | None, actor: str | None) -> list[Told]:
        run = self._t.newest(self._known(run_id.bytes).id)
        asked = request_cancel(self._t, [run], reason, actor or ACTOR)
        return [self._told(each) for each in asked]

    def _told(self, run: bytes) -> Told:
        task = self._t.tasks.get(run)
        return Told(uuid.UUID(bytes=run), task is None, None if task is None else task.owner, self._t.catalogue.name_of(self._t.runs[run].workflow), None)

    @at_once
    def terminate(self, run_id: uuid.UUID, reason: str | None, actor: str | None) -> bool:
        return bool(terminate_runs(self._t, [self._t.newest(self._known(run_id.bytes).id)], reason, actor or ACTOR))

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _known(self, run: bytes) -> RunRow:
        row = self._t.runs.get(run)
        if row is None:
            raise RunUnknown(uuid.UUID(bytes=run))
        return row

    @at_once
    def outcomes(self, ids: Sequence[bytes], patience_s: float = 0.0) -> list[Outcome]:
        found = [(run, self._t.outcome(run)) for run in ids]
        return [Outcome(uuid.UUID(bytes=run), OUTCOMES[each.status], each.result, moment(each.ended)) for run, each in found if each is not None]

    @at_once
    def newest(self, run_id: uuid.UUID) -> uuid.UUID:
        return uuid.UUID(bytes=self._t.newest(run_id.bytes))

    @at_once
    def find(
        self, *, ids: Sequence[bytes] | None = None, key: str | None = None, workflow: str | None = None, status: str | None = None,
        before: uuid.UUID | None = None, limit: int = 100,
    ) -> list[Found]:  # fmt: skip
        named = None if key is None else {run for (_, each), (run, _) in self._t.keys.items() if each == key}  # at this moment
        chosen = [row for row in self._t.runs.values() if (ids is None or row.id in ids) and (named is None or row.id in named)]
        found = [self.found(row) for row in sorted(chosen, key=lambda row: row.id, reverse=True) if before is None or row.id < before.bytes]
        wanted = (("workflow", workflow), ("status", status))
        return [each for each in found if all(value is None or getattr(each, name) == value for name, value in wanted)][: max(limit, 0)]

    @at_once
    def filtered(self, asked: Filter | None, before: uuid.UUID | None, limit: int, patience_s: float, order: Order | None = None) -> list[Found]:
        runs = {row.id: Facts(self._t, row, self.found(row)) for row in self._t.runs.values()}
        fitting = [run for run in runs.values() if fits(self._t, asked, run)]
        return page(fitting, order, None if before is None else runs.get(before.bytes, before), limit)

    def found(self, row: RunRow) -> Found:
        task, outcome, names = self._t.tasks.get(row.id), self._t.outcomes.get(row.id), self._t.catalogue
        facts = (uuid.UUID(bytes=row.id), row.key, names.name_of(row.workflow), names.queue_name(row.queue))
        if task is None:
            status, ended = (OUTCOMES[outcome.status], moment(outcome.ended)) if outcome is not None else ("lost", None)
            return Found(*facts, status, None, None, None, None, moment(row.created), ended)
        wait = self._wait(task)
        status = "running" if task.owner is not None else {1: "ready", QUEUE_PAUSED: "ready", PAUSED: "paused"}.get(wait or 0, "waiting")
        return Found(*facts, status, None if wait is None else WAITS[wait - 1], task.step, task.seq, task.attempt, moment(row.created), None)

    def _wait(self, task: Task) -> int | None:
        if task.owner is not None or task.put_aside or task.wait_kind == PAUSED:
            return task.wait_kind
        if task.ready_at > self._t.now():
            return task.wait_kind if task.wait_kind in range(9, 16) else 10
        return QUEUE_PAUSED if task.queue in self._t.queue_pauses else 1

    @at_once
    def published(self, run_id: uuid.UUID, key: str | None = None) -> list[tuple[str, bytes]]:
        self._known(run_id.bytes)
        said = sorted(self._t.published.get(run_id.bytes, {}).items(), key=lambda one: one[0][1])
        last = {name: value for (name, _), (value, _) in said}
        return [(name, value) for name, value in sorted(last.items()) if key is None or name == key]

    @at_once
    def progress(self, run_id: uuid.UUID) -> str | None:
        run = self._t.newest(self._known(run_id.bytes).id)
        said = self._t.progress.get(run)
        if not said:
            return None
        done, total, at = said[max(said)]
        return msgspec.json.encode({"done": done, "total": total, "at": moment(at)}).decode()

    @at_once
    def attributes(self, run_id: uuid.UUID) -> str:
        return msgspec.json.encode(self._t.merged_attributes(self._t.newest(self._known(run_id.bytes).id))).decode()

    @at_once
    def batch_results(self, batch: str, after: uuid.UUID | None, limit: int) -> list[BatchResult]:
        mine = sorted((row for row in self._t.runs.values() if row.batch == batch), key=lambda row: row.id)
        if not mine:
            raise BatchUnknown(batch)
        return [self._batch_result(row) for row in mine if after is None or row.id > after.bytes][:limit]

    def _batch_result(self, row: RunRow) -> BatchResult:
        outcome = self._t.outcome(row.id)
        shown = uuid.UUID(bytes=row.id)
        if outcome is None:
            return BatchResult(shown, row.key, self.found(row).status, None, None)
        return BatchResult(shown, row.key, OUTCOMES[outcome.status], outcome.result, moment(outcome.ended))

    @at_once
    def home(self) -> str:
        return "in memory"


__all__ = ["MemoryQuestions"]
