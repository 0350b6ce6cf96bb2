"""Statements of a client that are no questions of `db.client_calls.Questions`: pause and resume, and tokens, on tables in memory.

As the functions of the database do it (sql/migrations/0026, 0028, 0032). Other verbs of operators need a database.
"""

from __future__ import annotations

import json
import struct
import uuid
from base64 import urlsafe_b64decode
from collections.abc import Callable, Sequence
from typing import Any

from supervisor.core import tokens
from supervisor.core.errors import OperationRefused, RunEnded, RunUnknown, TokenClosed, TokenUnknown
from supervisor.testing.errors import NotInMemory
from supervisor.testing.statements import wake_updated
from supervisor.testing.tables import ACTOR, OUTCOMES, PAUSED, UPDATED, Completion, Pause, Tables

WHY = {1: "it was completed already", 2: "it was failed already", 3: "its time was over", 4: "its holder gave no sign of life in time"}
Rows = list[tuple[Any, ...]]


class Blocks:
    """Rows of the blocks of sql/queries/client.sql that are known here."""

    def __init__(self, tables: Tables, token_key: bytes) -> None:
        self._t, self._key = tables, token_key
        self._known: dict[str, Callable[..., Rows]] = {"client_operate": self._operate, "client_finish_token": self._finish, "client_beat_token": self._beat}

    def rows(self, question: tuple[Any, Sequence[Any]]) -> Rows:
        name, values = question
        if name not in self._known:
            raise NotInMemory(f"the verb that asks {name}")
        return self._known[name](*values)

    # ── operators ────────────────────────────────────────────────────────────────────────────────────────────────

    def _operate(self, verb: str, run_id: uuid.UUID, made: Any, seq: Any, payload: Any, options: Any, reason: str | None, actor: str | None) -> Rows:
        if verb not in ("pause", "resume"):
            raise NotInMemory(verb)
        run = self._t.newest(run_id.bytes)
        if run not in self._t.tasks:
            outcome = self._t.outcomes.get(run)
            raise RunUnknown(run_id) if outcome is None else RunEnded(run_id, OUTCOMES[outcome.status], verb)
        if verb == "pause" and (why := self._to_end(run)):
            raise OperationRefused(run_id, verb, why)
        done = self._pause(run, reason, actor or ACTOR) if verb == "pause" else self._resume(run)
        self._t.wake()
        return [(*done, None, self._t.tasks[run].owner, None, None)]

    def _to_end(self, run: bytes) -> str | None:
        """Why it can't be paused."""
        task = self._t.tasks[run]
        if task.cancel_to is not None:
            how, (_, by) = max(self._t.cancellations[run].items())
            return f"it is being {OUTCOMES[how]} (asked for by {by}): it ends by its own code, or terminate ends it"
        if task.cancel_at is not None and task.cancel_at <= self._t.now():
            return "its time is over: it ends as timed_out by its own code, or terminate ends it"
        return None

    def _pause(self, run: bytes, reason: str | None, actor: str) -> tuple[bool, str]:
        did = run not in self._t.pauses
        if did:
            self._t.pauses[run] = Pause(json.dumps({"by": actor, **({"reason": reason} if reason is not None else {})}))
        self._t.put_aside(run)
        return did, "paused" if self._t.tasks[run].owner is None else "pausing"

    def _resume(self, run: bytes) -> tuple[bool, str]:
        task, was, now = self._t.tasks[run], self._t.pauses.pop(run, None), self._t.now()
        if task.owner is None and task.wait_kind == PAUSED:
            task.wake(now)
            due = now if was is None or was.ready_at is None else min(was.ready_at, task.cancel_at or was.ready_at)
            if was is not None and due > now:
                task.ready_at, task.wait_kind, task.detail = due, was.wait_kind, was.wait_detail
        if any(each.error is None for each in self._t.updates[run]) and not wake_updated(self._t, [run]) and task.owner is None:
            task.resumed = UPDATED
        return was is not None, "resumed" if was is not None else "not paused"

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


__all__ = ["Blocks"]
