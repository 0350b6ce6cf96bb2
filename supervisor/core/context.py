"""`current()`: which run and step the calling code belongs to. Facts only; nothing here executes or stores."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, TypeVar, overload
from uuid import UUID

from supervisor.core import codec, tokens
from supervisor.core.errors import OutsideWorkflow


T = TypeVar("T")


class Token:
    """Whether anybody still waits for this attempt of a step: true when its run was cancelled, its time was over or its branch lost. For steps in threads."""

    __slots__ = ("_command",)

    def __init__(self, command: Any) -> None:
        self._command = command

    def __bool__(self) -> bool:
        return not getattr(self._command.extra, "live", True)

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep for *timeout* seconds, or until nobody waits any more; whether nobody does."""
        import threading

        call = self._command.extra
        if not hasattr(call, "told"):  # inline, in a transaction or in a process of its own: nobody would tell it
            time.sleep(timeout or 0.0)
            return False
        if call.told is None:
            call.told = threading.Event()
        if call.live:  # looked at after the event is there: whoever gives it up sets it, or is seen
            call.told.wait(timeout)
        return bool(self)

    def __repr__(self) -> str:
        return f"<cancelled: {bool(self)}>"


@dataclass(frozen=True)
class Current:
    """The run, and inside a step the step, that is executing.

    redelivered      this attempt may have begun before, in a process that died
    history_length   how many steps, timers, children and waits the run has called so far
    should_continue  it is so long that workflow code should call continue_as_new
    idempotency_key  equal in all attempts of this step: give it to services outside
    cancelled        true when nobody waits for this attempt any more: `if current().cancelled: …`, `current().cancelled.wait(1.0)`
    """

    run_id: UUID
    key: str | None
    workflow: str
    seq: int | None
    step: str | None
    attempt: int
    redelivered: bool
    deadline: datetime | None
    logger: logging.LoggerAdapter[logging.Logger]
    cancelled: Token
    history_length: int = 0
    should_continue: bool = False
    _token: Callable[[], str] | None = field(default=None, repr=False, compare=False)
    _step: Any = field(default=None, repr=False, compare=False)

    def token(self) -> str:
        """In a step: what completes this try of it from outside, for whoever gets it; see CompleteLater. The same whenever it is asked for."""
        if self._token is None:
            raise OutsideWorkflow("current().token() completes a step: it means something in steps only")
        return self._token()

    @overload
    def heartbeat_details(self) -> Any: ...
    @overload
    def heartbeat_details(self, type: type[T]) -> T | None: ...
    def heartbeat_details(self, type: Any = Any) -> Any:
        """In a step: what was said last with heartbeat(…), by this try or one before it, read as *type*; None when nothing was. Raises ResultInvalid."""
        if self._step is None:
            raise OutsideWorkflow("current().heartbeat_details() is of a step: it means something in steps only")
        past = self._step.run.past
        encoded = past.details.get(self._step.seq) if past is not None else None
        return None if encoded is None else codec.Shape(type, f"heartbeat of step {self._step.step.name}").decode(encoded)

    @property
    def idempotency_key(self) -> str:
        return f"{self.run_id}/{self.seq}"


# Set around a step in a thread or a task; holds what `describe` needs, not the description: most steps never ask.
executing: ContextVar[Any] = ContextVar("pgsupervisor_step", default=None)

# In a thread or task of the worker: the try that executes there.
given: ContextVar[Any] = ContextVar("pgsupervisor_try", default=None)

# Takes a step's signs of life: (command, try or None, encoded details or None). Set once per process, by the worker or by a step's process.
note_beat: Callable[[Any, Any, bytes | None], None] | None = None

# The cell's key for tokens; set once per process by the worker. A step's process is given its token instead.
token_key = b""

# The worker's loop, for steps that run on its own thread; set once per process by the worker.
loop: Any = None


def current() -> Current:
    """The run (and step) that the calling code belongs to. Raises OutsideWorkflow elsewhere."""
    found = here()
    if found is None:
        raise OutsideWorkflow("current() means something in steps and workflows only; it was called outside of a run")
    return describe(found)


def here() -> Any:
    """The step's command, or the run, that the calling code belongs to; None outside."""
    found = loop.on_this_thread() if loop is not None else None
    return found if found is not None else executing.get()


def is_repeated(found: Any) -> bool:
    """Whether the calling code, which belongs to *found*, has said before what it says now.

    Workflow code is run again over its history, and once more, to no effect, when it leaves memory. A step never is.
    """
    replays = getattr(found, "history", None) is not None and not found.past.anew
    return replays or loop is not None and loop.leaves_memory()


def token_of(step: Any) -> str:
    """The token of a step's command; of one in a process of its own, what it was given."""
    given: str | None = getattr(step, "token", None)
    return given if given is not None else tokens.make(token_key, step.run.id, step.seq, step.attempt)


def describe(found: Any) -> Current:
    run = getattr(found, "run", found)
    step = found if run is not found else None
    run_id = UUID(bytes=run.id)
    facts = {"run_id": str(run_id), "workflow": run.workflow.name}
    if step is not None:
        facts |= {"step": step.step.name, "seq": step.seq, "attempt": step.attempt}
    return Current(
        run_id=run_id,
        key=run.key.decode() if run.key is not None else None,
        workflow=run.workflow.name,
        seq=step.seq if step is not None else None,
        step=step.step.name if step is not None else None,
        attempt=step.attempt if step is not None else 0,
        redelivered=bool(step.redelivered) if step is not None else False,
        deadline=getattr(step.extra, "deadline", None) if step is not None else None,
        history_length=run.seq,
        should_continue=run.seq >= run.workflow.seq_warn,
        logger=logging.LoggerAdapter(logging.getLogger(f"pgsupervisor.{run.workflow.name}"), facts),
        cancelled=Token(found if step is not None else _Nobody),
        _token=partial(token_of, step) if step is not None else None,
        _step=step,
    )


class _Nobody:
    """Stands where a step's command does: workflow code is told by an error."""

    extra = None

