"""What operators do to runs, on tables in memory: pause, resume, retry, fork, skip a step, change its retry policy.

As the functions of the database do it (sql/migrations/0026, 0027, 0028, 0032, 0052): who may, what it comes to, and in which words it is refused. What leaves
rows in audit there leaves none here, for no client reads them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from supervisor.core.errors import OperationRefused, RunEnded, RunUnknown
from supervisor.testing.errors import BadValue
from supervisor.testing.forks import COMPENSATION, Forks
from supervisor.testing.jsonb import texts_of
from supervisor.testing.statements import wake_updated
from supervisor.testing.tables import (
    ACTOR, COMPLETED, CRASHED, EDITED, FAILED_TRY, OUTCOMES, PARKED_FROM, PAUSED, QUEUED, RESUMED, SKIPPED, UPDATED, WAITS, AttemptRow, Pause, StepRow, Tables,
)  # fmt: skip

RESULT_BYTES_MAX = 2_097_152
REASON_MAX, ACTOR_MAX = 4000, 200
STEP_BACKOFF = 9
OPEN = range(9, 16)  # task.wait_kind: it waits for something of its own


class Came(NamedTuple):
    """What came of a verb, as sql has it. `state`: what it is now, or ended, unknown, refused; `why`: of a refusal, or how it ended."""

    did: bool
    state: str
    why: str | None = None
    made: bytes | None = None
    owner: int | None = None


class Pending(NamedTuple):
    """A step that failed and has no result: tries so far, when the next one is due, other terms that somebody gave it."""

    seq: int
    name: str
    failed: int
    next_at: int | None
    policy: dict[str, Any]
    edits: int


class Operators:
    """The verbs on one environment's runs."""

    def __init__(self, tables: Tables, new_id: Callable[[], bytes]) -> None:
        self._t, self._new_id = tables, new_id
        self._forks = Forks(tables)

    def decide(self, verb: str, run_id: uuid.UUID, made: uuid.UUID | None, seq: int | None, payload: bytes | None, options: str, reason: str | None, actor: str | None) -> Came:
        """One verb on one run. Raises RunUnknown, RunEnded, OperationRefused, UnknownWorkflow, BadValue."""
        came = self.one(verb, run_id.bytes, made.bytes if made is not None else None, seq, payload, json.loads(options), reason, actor)
        if came.state == "unknown":
            raise RunUnknown(run_id)
        if came.state == "ended":
            raise RunEnded(run_id, came.why or "", verb)
        if came.state == "refused":
            raise OperationRefused(run_id, verb, came.why or "")
        self._t.wake()
        return came

    def many(self, verb: str, runs: Sequence[uuid.UUID], seq: int | None, payload: bytes | None, options: str, reason: str | None, actor: str | None) -> Iterator[tuple[uuid.UUID, Came]]:
        """One verb on many runs: those that have ended first. Raises for bad arguments alone, before anything is changed."""
        given = json.loads(options)
        order = sorted({run.bytes for run in runs}, key=lambda run: (run in self._t.tasks, run))
        if verb == "fork":
            for run in order:
                self._forks.plan(run, seq, payload, given.get("workflow"))
        for run in order:
            yield uuid.UUID(bytes=run), self.one(verb, run, None, seq, payload, given, reason, actor)
        self._t.wake()

    def one(self, verb: str, run: bytes, made: bytes | None, seq: int | None, payload: bytes | None, options: dict[str, Any], reason: str | None, actor: str | None) -> Came:
        """A run that went on as another one: the newest is paused, resumed, retried. What names a step is of that very run."""
        if verb in ("pause", "resume", "retry"):
            run = self._t.newest(run)
        if verb == "pause":
            return self._pause(run, reason, actor)
        if verb == "resume":
            return self._resume(run, reason, actor)
        if verb == "retry":
            return self._retry(run, made or self._new_id(), reason, actor)
        if verb == "fork":
            return self._fork(run, made or self._new_id(), seq, payload, options.get("workflow"), reason, actor)
        if verb == "skip":
            return self._skip(run, seq, payload, reason, actor)
        return self._edit(run, seq, options.get("policy") or {}, options.get("next_in"), reason, actor)

    def _absent(self, run: bytes) -> Came:
        outcome = self._t.outcomes.get(run)
        return Came(False, "unknown") if outcome is None else Came(False, "ended", OUTCOMES[outcome.status])

    # ── pause and resume ─────────────────────────────────────────────────────────────────────────────────────────

    def _pause(self, run: bytes, reason: str | None, actor: str | None) -> Came:
        task = self._t.tasks.get(run)
        if task is None:
            return self._absent(run)
        if why := self._to_end(run):
            return Came(False, "refused", why)
        did = run not in self._t.pauses
        if did:
            check_said(reason, actor)
            self._t.pauses[run] = Pause(json.dumps({"by": actor or ACTOR, **({"reason": reason} if reason is not None else {})}))
        self._t.put_aside(run)
        return Came(did, "paused" if task.owner is None else "pausing", None, None, task.owner)

    def _to_end(self, run: bytes) -> str | None:
        """Why it can't be paused."""
        task = self._t.tasks[run]
        if task.cancel_to is not None:
            how, (_, by) = max(self._t.cancellations[run].items())
            return f"it is being {OUTCOMES[how]} (asked for by {by}): it ends by its own code, or terminate ends it"
        if task.cancel_at is not None and task.cancel_at <= self._t.now():
            return "its time is over: it ends as timed_out by its own code, or terminate ends it"
        return None

    def _resume(self, run: bytes, reason: str | None, actor: str | None) -> Came:
        task, now = self._t.tasks.get(run), self._t.now()
        if task is None:
            return self._absent(run)
        stands = task.owner is None and task.wait_kind == PAUSED
        if stands or run in self._t.pauses:
            check_said(reason, actor)
        was = self._t.pauses.pop(run, None)
        if stands:
            task.wake(now)
            due = now if was is None or was.ready_at is None else min(was.ready_at, task.cancel_at or was.ready_at)
            if was is not None and due > now:
                task.ready_at, task.wait_kind, task.detail = due, was.wait_kind, was.wait_detail
        if any(each.error is None for each in self._t.updates[run]) and not wake_updated(self._t, [run]) and task.owner is None:
            task.resumed = UPDATED
        return Came(stands or was is not None, "resumed" if was is not None else "not paused", None, None, task.owner)

    # ── again ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _retry(self, run: bytes, made: bytes, reason: str | None, actor: str | None) -> Came:
        came = self._retry_live(run, reason, actor)
        if came.state != "ended":
            return came
        if came.why in ("completed", "continued"):
            return Came(False, "refused", f"it has {came.why}: there is nothing to try again; fork goes on from a step of it")
        if any(step.kind == COMPENSATION for step in self._t.steps[run]):
            return Came(False, "refused", "it has undone what it had done: start it anew, or fork it before the first step that is to be done again")
        if run in self._t.retried:
            return Came(False, "retried", None, self._t.retried[run])
        came = self._fork(run, made, self._forks.failed_seq(run), None, None, reason, actor, keeps_key=True)
        if came.did:
            self._t.retried[run] = made
        return came

    def _retry_live(self, run: bytes, reason: str | None, actor: str | None) -> Came:
        task, now = self._t.tasks.get(run), self._t.now()
        if task is None:
            return self._absent(run)
        if task.owner is None and task.wait_kind == PAUSED:
            return Came(False, "refused", "it is paused: resume it first", None, task.owner)
        if task.owner is None and (task.wait_kind or 0) >= PARKED_FROM:
            check_said(reason, actor)
            task.wake(now)
            task.claims = 0
            return Came(True, "ready", None, run, task.owner)
        waiting = [step for step in self._pending(run) if step.next_at is not None and step.next_at > now]
        if not waiting:
            why = "a worker executes it and none of its steps waits for a retry" if task.owner is not None else f"it waits for something else: {WAITS[(task.wait_kind or QUEUED) - 1]}"
            return Came(False, "refused", why, None, task.owner)
        check_said(reason, actor)
        for step in waiting:
            self._edit_step(run, step, step.policy, now)
        return Came(True, "ready", None, run, task.owner)

    def _fork(
        self, run: bytes, made: bytes, seq: int | None, payload: bytes | None, workflow: str | None, reason: str | None, actor: str | None, keeps_key: bool = False
    ) -> Came:
        plan = self._forks.plan(run, seq, payload, workflow)
        if plan is None:
            return Came(False, "unknown")
        if plan.why is not None:
            return Came(False, "refused", plan.why)
        check_said(reason, actor)
        self._forks.make(plan, made, keeps_key)
        return Came(True, "forked", None, made)

    # ── steps that failed and have no result yet ─────────────────────────────────────────────────────────────────

    def _pending(self, run: bytes) -> list[Pending]:
        recorded = {step.seq for step in self._t.steps[run]}
        found = []
        for seq in sorted({each.seq for each in self._t.attempts[run] if each.kind == FAILED_TRY} - recorded):
            tries = [each for each in self._t.attempts[run] if each.seq == seq]
            last = max((each for each in tries if each.kind == FAILED_TRY), key=lambda each: each.n)
            edit = max((each for each in tries if each.kind == EDITED), key=lambda each: each.n, default=None)
            terms = msgspec.json.decode(edit.error or b"{}") if edit is not None else {}
            edited = edit is not None and terms["after"] == last.n and edit.next_retry is not None
            found.append(Pending(seq, last.name, last.n, edit.next_retry if edit is not None and edited else last.next_retry, terms.get("policy", {}), edit.n if edit is not None else 0))
        return found

    def _edit_step(self, run: bytes, step: Pending, policy: dict[str, Any], next_at: int | None) -> None:
        """Its run is woken to read them, or its worker told."""
        t, now, task = self._t, self._t.now(), self._t.tasks[run]
        terms = msgspec.json.encode({"after": step.failed, "policy": policy})
        t.attempts[run].append(AttemptRow(step.seq, step.edits + 1, EDITED, step.name, terms, now, None, next_at))
        if task.owner is not None:
            t.changed[run] = t.number()
        elif task.wait_kind in OPEN:
            task.wake(now)
        pause = t.pauses.get(run)
        if pause is not None and pause.wait_kind == STEP_BACKOFF:
            pause.ready_at = None

    def _edit(self, run: bytes, seq: int | None, policy: dict[str, Any], next_in_s: float | None, reason: str | None, actor: str | None) -> Came:
        terms = _checked_policy({name: part for name, part in policy.items() if part is not None})
        if next_in_s is not None and not 0 <= next_in_s <= 1e9:
            raise BadValue(f"the next try can't be in {repr(next_in_s).removesuffix('.0')} s: give seconds from now, 0 or more")
        if next_in_s is None and not terms:
            raise BadValue("nothing to change: give a part of the policy, or when the next try is due")
        task = self._t.tasks.get(run)
        if task is None:
            return self._absent(run)
        step = next((each for each in self._pending(run) if each.seq == seq), None)
        if step is None:
            step, why = self._unfailed(run, seq, next_in_s is not None)
            if step is None:
                return Came(False, "refused", why, None, task.owner)
        check_said(reason, actor)
        self._edit_step(run, step, step.policy | terms, step.next_at if next_in_s is None else self._t.now() + round(next_in_s * 1e6))
        return Came(True, "edited", None, None, task.owner)

    def _unfailed(self, run: bytes, seq: int | None, due: bool) -> tuple[Pending | None, str]:
        """A step that was called and has not failed; or why nothing of it can be changed. *due*: its next try was to be."""
        name = self._t.skippable(run, seq)
        if name is None and any(step.seq == seq for step in self._t.steps[run]):
            return None, f"step {seq} has its result: it is not tried again; a fork from there is"
        if name is None or seq is None:
            return None, f"step {seq} has not begun, or less than a second ago: its policy can be changed when it has failed, or has been executing for a second"
        if due:
            return None, f"step {seq} has not failed: no next try is due that could be put off or hurried; its policy alone can be changed"
        edits = [each for each in self._t.attempts[run] if each.seq == seq and each.kind == EDITED]
        last = max(edits, key=lambda each: each.n, default=None)
        policy = msgspec.json.decode(last.error or b"{}")["policy"] if last is not None else {}
        return Pending(seq, name, 0, None, policy, last.n if last is not None else 0), ""

    # ── a result in place of a step ──────────────────────────────────────────────────────────────────────────────

    def _skip(self, run: bytes, seq: int | None, result: bytes | None, reason: str | None, actor: str | None) -> Came:
        if result is None or len(result) > RESULT_BYTES_MAX:
            raise BadValue(f"a result is JSON of at most {RESULT_BYTES_MAX} bytes, not {len(result) if result is not None else '<NULL>'}")
        t, task, name, now = self._t, self._t.tasks.get(run), self._t.skippable(run, seq), self._t.now()
        if task is None:
            return self._absent(run)
        if name is None or seq is None:
            why = f"step {seq} has its result, or nobody knows yet that it was called: a step is named when it fails, crashes, or has run for a second"
            return Came(False, "refused", why)
        check_said(reason, actor)
        if task.owner is not None:
            task.version = t.pin(task)
            t.drop(run)
            task.owner, task.resumed = None, CRASHED
            task.wake(now)
        there = t.steps[run]
        there.append(StepRow(seq, len(there), 1, COMPLETED, name, result, now, now, 0))
        said = msgspec.json.encode({"by": actor or ACTOR, "reason": reason})
        t.attempts[run].append(AttemptRow(seq, 1, SKIPPED, name, said, now, None, None))
        if task.wait_kind != PAUSED:
            task.wake(now)
            task.claims, task.cancel_to = 0, None if task.cancel_to is None else 0
        task.resumed = UPDATED if task.resumed == UPDATED else RESUMED
        if run in t.pauses:
            t.pauses[run].ready_at = None
        return Came(True, "skipped")


def check_said(reason: str | None, actor: str | None) -> None:
    """Asked before anything is changed."""
    if len(reason or "") > REASON_MAX or len(actor or "") > ACTOR_MAX:
        raise BadValue(f"a reason has at most {REASON_MAX} characters and an actor {ACTOR_MAX}, not {len(reason or '')} and {len(actor or '')}")


_FITS: dict[str, Callable[[Decimal], bool]] = {
    "max_attempts": lambda n: 1 <= n <= 1000 and n == n.to_integral_value(), "factor": lambda n: 1 <= n <= 1_000_000, "initial": lambda n: 0 <= n <= 10**9,
    "maximum": lambda n: 0 <= n <= 10**9,
}  # fmt: skip


def _checked_policy(policy: dict[str, Any]) -> dict[str, Any]:
    """The parts of a retry policy that are given."""
    bad = [
        name for name, part in sorted(policy.items(), key=lambda one: (len(one[0]), one[0]))
        if name not in _FITS or isinstance(part, bool) or not isinstance(part, int | float) or not _FITS[name](Decimal(repr(part)))
    ]  # fmt: skip
    if bad:
        raise BadValue(
            f"retry policy {texts_of(policy)}: {', '.join(bad)} does not fit; max_attempts is a whole number from 1 to 1000, initial and maximum are seconds, factor is 1 or more"
        )
    return policy


__all__ = ["Came", "Operators", "check_said"]
