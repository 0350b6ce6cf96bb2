"""Errors of asyncio in workflow code, and commands that nobody awaits, told with the durable word that is meant."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any
from uuid import UUID

from supervisor._fastpath import loop as core
from supervisor._fastpath.wire import Command
from supervisor.core.errors import AsyncioInWorkflow, DefinitionError

DURABLE_WORD = {
    "sleep": "sleep(seconds)", "gather": "gather(…)", "wait": "gather(…) or first(…)", "TaskGroup": "gather(…)", "timeout": "@step(timeout=…) or first(…)",
    "timeout_at": "@step(timeout=…) or first(…)", "wait_for": "@step(timeout=…) or first(…)", "create_task": "gather(…)", "ensure_future": "gather(…)",
    "to_thread": "a def step, called with .aio", "run_in_executor": "a def step, called with .aio", "shield": "shield(…)", "Event": "a step",
    "get_running_loop": "a step", "Queue": "a step", "Lock": "a step", "open_connection": "a step",
}  # fmt: skip


def explained(error: BaseException) -> BaseException:
    """asyncio's "no running event loop" in workflow code, told with the durable word for it, at its line."""
    if not isinstance(error, (RuntimeError, AttributeError)) or isinstance(error, AsyncioInWorkflow):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    lost_loop = any(words in str(error) for words in ("no running event loop", "no current event loop", "inside a task"))
    if not lost_loop and not (isinstance(error, AttributeError) and frames and "asyncio" in frames[-1].filename):
        return error
    inside = next((i for i, frame in enumerate(frames) if "asyncio" in frame.filename), None)
    name = frames[inside].name if inside is not None else "get_running_loop"
    if inside is not None and name in ("__aenter__", "__init__"):
        name = {"taskgroups.py": "TaskGroup", "timeouts.py": "timeout"}.get(frames[inside].filename.rsplit("/", 1)[-1], name)
    at = frames[max((inside or len(frames)) - 1, 0)]
    file = frames[inside].filename.rsplit("/", 1)[-1] if inside is not None else ""
    word = "a step" if file in ("locks.py", "queues.py", "streams.py", "subprocess.py") else DURABLE_WORD.get(name, "a step")
    told = AsyncioInWorkflow(f"{at.filename}:{at.lineno}: asyncio.{name} in workflow code can't be replayed; use {word}")
    told.__traceback__ = error.__traceback__
    return told


def refused(got: Any) -> BaseException:
    """The error for something awaited that is no durable command."""
    if isinstance(got, Command):
        return AsyncioInWorkflow(f"a command of another run was awaited ({got.step.name}); a run can only await what it called itself")
    what = "something of asyncio (sleep(0), a future or a task)" if got is None or asyncio.isfuture(got) else repr(got)
    return AsyncioInWorkflow(f"workflow code awaited {what}; a replay can't answer it: use the durable words (sleep, gather, first), or put it into a step")


def unawaited(run: Any, call: tuple[int, Any, int, str], returned: bool = False) -> BaseException:
    """The error for a command that nobody was given: (kind, step, seq, where). returned: it is the workflow's result."""
    kind, step, seq, where = call
    seq_words = f" (seq {seq})" if kind < core.GATHER else ""
    name, words = _call_words(kind, step)
    if run.workflow.is_async:
        instead = f"return await {words}" if returned else f"await {words}"
    elif kind == core.STEP:
        instead = f"{name}.sync(…)" if step.is_async else f"{name}(…)"
    elif kind == core.CHILD and not words.startswith("started."):
        instead = f"{name}.sync(…)"
    else:
        instead = f"{words} with the {words.partition('(')[0].partition('.')[0]} of supervisor.sync, which waits"
    did = "was returned without being awaited" if returned else "was called and never awaited"
    return DefinitionError(f"run {UUID(bytes=run.id)} of {run.workflow.name}: {step.name}{seq_words} {did}{where}, so nothing of it was executed; write: {instead}")


def _call_words(kind: int, step: Any) -> tuple[str, str]:
    """The name by which it was called, and the call as it is written in an async workflow."""
    name = step.name
    if kind == core.STEP:
        name = step.fn.__name__
        return name, f"{name}(…)" if step.is_async else f"{name}.aio(…)"
    if kind == core.START:
        return name, f"start({name}, …)"
    if kind == core.SIGNAL:
        return name, f"{name}.wait()"
    if kind == core.CHILD and not hasattr(step, "options"):
        return name, "started.result()"
    return name, f"{name}()" if kind == core.HANDLED else f"{name}(…)"
