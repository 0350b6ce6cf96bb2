"""What operators do to runs: pause, resume, retry, fork, skip a step, change a step's retry policy. Said once, for both kinds of client.

Owns these verbs' words, arguments and encoding; what each does stands in sql. Each leaves a row in the view audits, in its transaction.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from supervisor.api.asked import Asked, id_of, registered
from supervisor.api.bulk import AsyncBulkVerbs, BulkVerbs
from supervisor.api.handles import AsyncRun, Run, RunInfo
from supervisor.core import codec, registry
from supervisor.core.errors import InputInvalid
from supervisor.core.retry import seconds

if TYPE_CHECKING:
    from datetime import timedelta

    from supervisor.api.client import Client
    from supervisor.api.client_async import AsyncClient
    from supervisor.api.verbs import Verbs
    from supervisor.db.client_calls import Verb
    from supervisor.db.operator_calls import Operated

T = TypeVar("T")


# ── the verbs, without I/O ───────────────────────────────────────────────────────────────────────────────────────


def operate(verbs: Verbs, verb: str, run_id: uuid.UUID, *given: Any) -> Verb[Operated]:
    """Do *verb*, and have told who may look now."""
    from supervisor.db import operator_calls

    done = yield from operator_calls.operate(verb, run_id, *given)
    verbs.tell_operated(done)
    return done


def goes_on(verbs: Verbs, verb: str, run_id: uuid.UUID, *given: Any) -> Verb[RunInfo]:
    """`retry` or `fork`: the run that goes on, which may be another one."""
    (made,) = yield from verbs.questions.run_ids(1)
    done = yield from operate(verbs, verb, run_id, made, *given)
    return (yield from verbs.itself(done.made or run_id))


def fork(verbs: Verbs, run_id: uuid.UUID, seq: int | None, record: Any, workflow: Any, reason: str | None, actor: str | None) -> Verb[RunInfo]:
    name = Asked.of(workflow).name if workflow is not None else None
    payload = None
    if record is not None:
        what = Asked.of(workflow) if workflow is not None else None
        if what is None:
            found = yield from verbs.itself(run_id)
            what = Asked(name=found.workflow, definition=registered(found.workflow))
        payload = (yield from verbs.encoder(what))(record)
    return (yield from goes_on(verbs, "fork", run_id, seq, payload, {"workflow": name}, reason, actor))


def skip(verbs: Verbs, run_id: uuid.UUID, seq: int, result: Any, reason: str | None, actor: str | None) -> Verb[Operated]:
    """Where the step's code is imported here, *result* is checked against its return annotation, else it is any JSON."""
    from supervisor.db import operator_calls

    name = yield from operator_calls.step_of(run_id, seq)
    step = next((step for step in registry.steps() if step.name == name), None)
    if step is None:
        payload = codec.encode(result)
    else:
        step.settle()
        payload, _ = step.shape.settle(result)
    return (yield from operate(verbs, "skip", run_id, None, seq, payload, None, reason, actor))


def policy(**parts: Any) -> dict[str, Any]:
    """The parts of a retry policy that are given, with durations in seconds."""
    lasting = ("initial", "maximum")
    return {name: seconds(part, name) if name in lasting else part for name, part in parts.items() if part is not None}


def terms(parts: dict[str, Any], next_in: Any) -> dict[str, Any]:
    changed = policy(**parts)
    if not changed and next_in is None:
        raise InputInvalid("edit_retry", "nothing to change: give max_attempts, initial, factor, maximum or next_in")
    return {"policy": changed, "next_in": None if next_in is None else seconds(next_in, "next_in")}


# ── for threads ──────────────────────────────────────────────────────────────────────────────────────────────────


class OperatorVerbs(BulkVerbs):
    """The verbs of `Client` and `Within`. *reason* and *actor* are kept in the view audits, with the role of the session."""

    _unsure = False

    def _carry(self, make: Callable[[Verbs], Verb[T]]) -> T:
        raise NotImplementedError

    def _owner(self) -> Client:
        raise NotImplementedError

    def pause(self, run: Run[Any] | uuid.UUID | str, reason: str | None = None, *, actor: str | None = None) -> str:
        """Stop a live run until somebody resumes it: "paused", or "pausing" while its worker finishes the steps that it executes.

        Timers keep their due times, signals and ends of children are kept; its own timeout goes on, and ends it all the same.
        Raises OperationRefused where it is being cancelled or its time is over, RunEnded, RunUnknown.
        """
        return self._carry(lambda verbs: operate(verbs, "pause", id_of(run), None, None, None, None, reason, actor)).state

    def resume(self, run: Run[Any] | uuid.UUID | str, reason: str | None = None, *, actor: str | None = None) -> bool:
        """Let a paused run go on where it was. False where it is not paused. Raises RunEnded, RunUnknown."""
        return self._carry(lambda verbs: operate(verbs, "resume", id_of(run), None, None, None, None, reason, actor)).did

    @overload
    def retry(self, run: Run[T], reason: str | None = None, *, actor: str | None = None) -> Run[T]: ...
    @overload
    def retry(self, run: uuid.UUID | str, reason: str | None = None, *, actor: str | None = None) -> Run[Any]: ...
    def retry(self, run: Run[Any] | uuid.UUID | str, reason: str | None = None, *, actor: str | None = None) -> Run[Any]:
        """Try again now; returns the run that goes on.

        A run that is parked, or whose step waits for its next try, goes on at once. Of one that failed, timed out or was cancelled a new run goes on
        from the step that failed, under the same key; asked again, it is the same one. Raises OperationRefused, RunUnknown.
        """
        return self._goes_on(self._carry(lambda verbs: goes_on(verbs, "retry", id_of(run), None, None, None, reason, actor)), id_of(run))

    def fork(
        self, run: Run[Any] | uuid.UUID | str, seq: int | None, *, input: Any = None, workflow: Any = None, reason: str | None = None, actor: str | None = None
    ) -> Run[Any]:
        """Start a new run that has been given what *run* was before the result of step *seq* (None: all), and goes on from there.

        input     another one: the only parameter's value where the workflow has one parameter, else a dict by name
        workflow  another one, or its name; its code must do the same up to there
        Raises    OperationRefused where the history has no such step, InputInvalid, UnknownWorkflow, RunUnknown.
        """
        return self._goes_on(self._carry(lambda verbs: fork(verbs, id_of(run), seq, input, workflow, reason, actor)), id_of(run))

    def skip(self, run: Run[Any] | uuid.UUID | str, seq: int, result: Any, reason: str | None = None, *, actor: str | None = None) -> None:
        """Give a step that failed, crashed or hangs a result, in place of executing it again; its run goes on.

        *result* is checked against the step's return annotation where its code is imported here. Raises OperationRefused, ResultInvalid, RunEnded, RunUnknown.
        """
        self._carry(lambda verbs: skip(verbs, id_of(run), seq, result, reason, actor))

    def edit_retry(
        self,
        run: Run[Any] | uuid.UUID | str,
        seq: int,
        *,
        max_attempts: int | None = None,
        initial: float | timedelta | None = None,
        factor: float | None = None,
        maximum: float | timedelta | None = None,
        next_in: float | timedelta | None = None,
        reason: str | None = None,
        actor: str | None = None,
    ) -> None:
        """Change the retry policy of one step that has no result yet, for this run alone; *next_in*: when the next try of one that failed is due, from now.

        The step failed, crashed, or has been executing for a second: before that nobody knows of it. Raises OperationRefused, RunEnded, RunUnknown, InputInvalid.
        """
        changed = terms({"max_attempts": max_attempts, "initial": initial, "factor": factor, "maximum": maximum}, next_in)
        self._carry(lambda verbs: operate(verbs, "edit_retry", id_of(run), None, seq, None, changed, reason, actor))

    def _goes_on(self, found: RunInfo, asked: uuid.UUID) -> Run[Any]:
        unsure = self._unsure and found.run_id != asked
        return Run(self._owner(), found.run_id, found.workflow, registered(found.workflow), found.key, found.run_id != asked, unsure=unsure)


# ── for an event loop ────────────────────────────────────────────────────────────────────────────────────────────


class AsyncOperatorVerbs(AsyncBulkVerbs):
    """`OperatorVerbs`, awaited."""

    _unsure = False

    async def _carry(self, make: Callable[[Verbs], Verb[T]]) -> T:
        raise NotImplementedError

    def _owner(self) -> AsyncClient:
        raise NotImplementedError

    async def pause(self, run: AsyncRun[Any] | uuid.UUID | str, reason: str | None = None, *, actor: str | None = None) -> str:
        """Stop a live run until somebody resumes it; see `Client.pause`."""
        return (await self._carry(lambda verbs: operate(verbs, "pause", id_of(run), None, None, None, None, reason, actor))).state

    async def resume(self, run: AsyncRun[Any] | uuid.UUID | str, reason: str | None = None, *, actor: str | None = None) -> bool:
        """Let a paused run go on where it was; see `Client.resume`."""
        return (await self._carry(lambda verbs: operate(verbs, "resume", id_of(run), None, None, None, None, reason, actor))).did

    @overload
    async def retry(self, run: AsyncRun[T], reason: str | None = None, *, actor: str | None = None) -> AsyncRun[T]: ...
    @overload
    async def retry(self, run: uuid.UUID | str, reason: str | None = None, *, actor: str | None = None) -> AsyncRun[Any]: ...
    async def retry(self, run: AsyncRun[Any] | uuid.UUID | str, reason: str | None = None, *, actor: str | None = None) -> AsyncRun[Any]:
        """Try again now; returns the run that goes on; see `Client.retry`."""
        return self._goes_on(await self._carry(lambda verbs: goes_on(verbs, "retry", id_of(run), None, None, None, reason, actor)), id_of(run))

    async def fork(
        self, run: AsyncRun[Any] | uuid.UUID | str, seq: int | None, *, input: Any = None, workflow: Any = None, reason: str | None = None, actor: str | None = None
    ) -> AsyncRun[Any]:
        """Start a new run that goes on from before the result of step *seq*; see `Client.fork`."""
        return self._goes_on(await self._carry(lambda verbs: fork(verbs, id_of(run), seq, input, workflow, reason, actor)), id_of(run))

    async def skip(self, run: AsyncRun[Any] | uuid.UUID | str, seq: int, result: Any, reason: str | None = None, *, actor: str | None = None) -> None:
        """Give a step a result in place of executing it again; see `Client.skip`."""
        await self._carry(lambda verbs: skip(verbs, id_of(run), seq, result, reason, actor))

    async def edit_retry(
        self,
        run: AsyncRun[Any] | uuid.UUID | str,
        seq: int,
        *,
        max_attempts: int | None = None,
        initial: float | timedelta | None = None,
        factor: float | None = None,
        maximum: float | timedelta | None = None,
        next_in: float | timedelta | None = None,
        reason: str | None = None,
        actor: str | None = None,
    ) -> None:
        """Change the retry policy of one step that has no result yet, for this run alone; see `Client.edit_retry`."""
        changed = terms({"max_attempts": max_attempts, "initial": initial, "factor": factor, "maximum": maximum}, next_in)
        await self._carry(lambda verbs: operate(verbs, "edit_retry", id_of(run), None, seq, None, changed, reason, actor))

    def _goes_on(self, found: RunInfo, asked: uuid.UUID) -> AsyncRun[Any]:
        unsure = self._unsure and found.run_id != asked
        return AsyncRun(self._owner(), found.run_id, found.workflow, registered(found.workflow), found.key, found.run_id != asked, unsure=unsure)
