"""Errors of asyncio in workflow code, told with the durable word that is meant."""

from __future__ import annotations

import traceback

from supervisor.core.errors import AsyncioInWorkflow

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
