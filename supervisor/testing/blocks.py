"""Statements of a client that are no questions of `db.client_calls.Questions`: operators' verbs and tokens, on tables in memory.

Tokens as the functions of the database do it (sql/migrations/0028).
"""

from __future__ import annotations

import struct
import uuid
from base64 import urlsafe_b64decode
from collections.abc import Callable, Sequence
from typing import Any

from supervisor.core import tokens
from supervisor.core.errors import TokenClosed, TokenUnknown
from supervisor.testing.ending import request_cancel, terminate_runs
from supervisor.testing.errors import NotInMemory
from supervisor.testing.operators import Operators
from supervisor.testing.queues import Queues
from supervisor.testing.tables import ACTOR, OUTCOMES, Completion, Tables
from supervisor.testing.versions import Versions

WHY = {1: "it was completed already", 2: "it was failed already", 3: "its time was over", 4: "its holder gave no sign of life in time"}
Rows = list[tuple[Any, ...]]


class Blocks:
    """Rows of the blocks of sql/queries/client.sql that are known here."""

    def __init__(self, tables: Tables, token_key: bytes, new_id: Callable[[], bytes]) -> None:
        self._t, self._key = tables, token_key
        self._operators, self._queues, self._versions = Operators(tables, new_id), Queues(tables), Versions(tables)
        self._known: dict[str, Callable[..., Rows]] = {
            "client_operate": self._operate, "client_intervene": self._operate, "client_operate_many": self._operate_many, "client_step_of": self._step_of,
            "client_cancel_many": self._cancel_many, "client_terminate_many": self._terminate_many,
            "client_pause_queue": lambda *given: [(self._queues.pause(*given),)], "client_resume_queue": lambda *given: [(self._queues.resume(*given),)],
            "client_versions": self._versions.rows, "client_move_runs": lambda *given: [self._versions.move(*given)],
            "client_finish_token": self._finish, "client_beat_token": self._beat,
        }  # fmt: skip

    def rows(self, question: tuple[Any, Sequence[Any]]) -> Rows:
        name, values = question
        if name not in self._known:
            raise NotInMemory(f"the verb that asks {name}")
        return self._known[name](*values)

    # ── operators ────────────────────────────────────────────────────────────────────────────────────────────────

    def _operate(self, verb: str, run_id: uuid.UUID, made: uuid.UUID | None, seq: int | None, payload: bytes | None, options: str, reason: str | None, actor: str | None) -> Rows:
        came = self._operators.decide(verb, run_id, made, seq, payload, options, reason, actor)
        return [(came.did, came.state, _uuid(came.made), came.owner, None, None)]

    def _operate_many(self, verb: str, runs: Sequence[uuid.UUID], seq: int | None, payload: bytes | None, options: str, reason: str | None, actor: str | None) -> Rows:
        came = self._operators.many(verb, runs, seq, payload, options, reason, actor)
        return [(run_id, each.did, each.state, each.why, _uuid(each.made), each.owner) for run_id, each in came]

    def _cancel_many(self, runs: Sequence[uuid.UUID], reason: str | None, actor: str | None) -> Rows:
        given = {run.bytes for run in runs}
        asked = [run for run in request_cancel(self._t, given, reason, actor or ACTOR) if run in given]
        return [(uuid.UUID(bytes=run), True, run not in self._t.tasks, None, None, None) for run in asked]

    def _terminate_many(self, runs: Sequence[uuid.UUID], reason: str | None, actor: str | None) -> Rows:
        return [(uuid.UUID(bytes=run), True) for run in terminate_runs(self._t, {run.bytes for run in runs}, reason, actor or ACTOR)]

    def _step_of(self, run_id: uuid.UUID, seq: int) -> Rows:
        return [(self._t.skippable(run_id.bytes, seq),)]

    # ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _open(self, token: str) -> tuple[bytes, int, int, str | None]:
        """Run, seq and number of the try, and why it can't be completed any more."""
        try:
            raw = urlsafe_b64decode(token.removeprefix(tokens.PREFIX) + "==")
            run, seq, n = struct.unpack(">16sii", raw[:24])
        except (ValueError, struct.error):
            raise TokenUnknown from None
        if tokens.make(self._key, run, seq, n) != token:
            raise TokenUnknown
        why = None
        if run not in self._t.tasks:
            outcome = self._t.outcomes.get(run)
            why = "its run is not here any more" if outcome is None else f"its run has ended ({OUTCOMES[outcome.status]})"
        elif any(row.seq == seq for row in self._t.steps[run]):
            why = "its step has a result"
        elif any((row.seq, row.n, row.kind) == (seq, n, 1) for row in self._t.attempts[run]):
            why = f"try {n} of its step is over: it failed"
        return run, seq, n, why

    def _finish(self, token: str, kind: int, payload: bytes, retry: bool) -> Rows:
        run, seq, n, why = self._open(token)
        there, now = self._t.completions[run].get((seq, n)), self._t.now()
        stored = why is None and there is None
        if stored:
            self._t.completions[run][seq, n] = Completion(kind, retry, payload, now)
        elif there is None or (there.kind, there.retry, there.payload) != (kind, retry, payload):
            raise TokenClosed(uuid.UUID(bytes=run), seq, n, WHY[there.kind] if there is not None else why or "")
        task = self._t.tasks.get(run)
        woken = stored and task is not None and task.owner is None and task.wait_kind in (13, 15)
        if woken and task is not None:
            task.wake(now)
        self._t.wake()
        return [(stored, None if task is None else task.owner, woken, self._t.catalogue.name_of(self._t.runs[run].workflow), None)]

    def _beat(self, token: str, details: bytes | None) -> Rows:
        run, seq, n, why = self._open(token)
        there = self._t.completions[run].get((seq, n))
        if there is not None or why is not None:
            raise TokenClosed(uuid.UUID(bytes=run), seq, n, WHY[there.kind] if there is not None else why or "")
        self._t.beats[run][seq] = (n, self._t.now(), details)
        self._t.wake()
        return []


def _uuid(run: bytes | None) -> uuid.UUID | None:
    return None if run is None else uuid.UUID(bytes=run)


__all__ = ["Blocks"]
