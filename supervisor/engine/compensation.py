"""Compensation: what a run has named to undo its steps is done in reverse, when it fails, is cancelled or its time is over, before it ends.

The workflow's own code has ended then; what stands here takes its place as the root of the run, and its commands are the run's next ones: they are
recorded, tried again by their own policies, and a replay does the same. Invariant: the first of them is the plan, a row of its own, so that whoever
looks at the history sees which steps undo what.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from supervisor._fastpath import loop as core
from supervisor.api.decorators import Workflow, _child
from supervisor.api.words import COMPENSATION, Continued, undo_pending
from supervisor.core import codec
from supervisor.core.errors import CompensationFailed, RunTimedOut

WHY_MAX = 500  # characters of what ended the run, in the plan


class Undo(NamedTuple):
    """One thing to be done: a step or a workflow, with its arguments. `of`: the seq of what the run had called last when it named this."""

    what: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    of: int


def begin(loop: Any, run: Any, error: BaseException) -> bool:
    """The run's own code has ended with *error*: undo what it has named. False where there is nothing to undo; then the run ends."""
    past = run.past
    if past is None or not past.undo:
        return False
    if isinstance(error, Continued):  # it has named that while it unwound: its successor would not know of it
        error = undo_pending(run) or error
    undo, past.undo = past.undo[::-1], []
    past.compensating = True
    loop.follow(run, _in_turn if run.workflow.is_async else _in_turn_def, (undo, error))
    return True


def time_is_over(workflow: Any) -> RunTimedOut:
    return RunTimedOut(f"the run did not end within the timeout of workflow {workflow.name if workflow else '(unknown)'}")


def _plan(undo: list[Undo], error: BaseException) -> Any:
    """The command whose row says what will be done; each of its commands takes one seq."""
    command = core.new_command(core.UNDO, COMPENSATION, ())
    steps = [{"seq": command.seq + 1 + at, "name": each.what.name, "of": each.of} for at, each in enumerate(undo)]
    command.args = (msgspec.json.encode({"because": codec.brief(error)[:WHY_MAX], "undo": steps}),)
    return command


async def _in_turn(undo: list[Undo], error: BaseException) -> None:
    await _plan(undo, error)
    failed: list[tuple[Undo, BaseException]] = []
    for each in undo:
        try:
            await _command(each)
        except Exception as problem:  # noqa: BLE001 - the others are undone all the same
            failed.append((each, problem))
    raise _end(error, failed)


def _in_turn_def(undo: list[Undo], error: BaseException) -> None:
    core.block(_plan(undo, error))
    failed: list[tuple[Undo, BaseException]] = []
    for each in undo:
        try:
            core.block(_command(each))
        except Exception as problem:  # noqa: BLE001
            failed.append((each, problem))
    raise _end(error, failed)


def _command(undo: Undo) -> Any:
    if isinstance(undo.what, Workflow):  # whoever ends this run now does not end what undoes it
        return _child(undo.what.options(parent_close="abandon"), undo.args, undo.kwargs)
    return undo.what.aio(*undo.args, **undo.kwargs)


def _end(error: BaseException, failed: list[tuple[Undo, BaseException]]) -> BaseException:
    if not failed:
        return error
    made = CompensationFailed([(each.what.name, each.of, codec.brief(problem)) for each, problem in failed], codec.brief(error))
    made.__cause__ = error
    return made
