"""Spans around the bodies of steps, and the current span of workflow code. Nothing here is imported, and no step wrapped, where tracing is off.

Steps are wrapped in the registry when the app is loaded, so wherever a body runs (inline, in a thread, as a task, in a transaction, in a process of
its own) its span is current in it. Workflow code is not wrapped: who asks for the current span there is answered by looking which run has the thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar, Token
from functools import wraps
from typing import Any, NamedTuple

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context

from supervisor._fastpath import loop as core
from supervisor.core import context, registry, traces
from supervisor.db.step_session import Rerun, WantsConnection, WantsSettings
from supervisor.tracing.runs import Traces, harmless

log = logging.getLogger("pgsupervisor.traces")
DONE_AGAIN = (Rerun, WantsConnection, WantsSettings)  # the body runs once more, as the same attempt: that one is the span

# What begins spans of steps: the worker's Traces, or in a process of a step what stands in for them.
source: Any = None

# The command whose span is current: a body that calls its own function is not another attempt.
_inside: ContextVar[Any] = ContextVar("pgsupervisor_traced", default=None)


class Entered(NamedTuple):
    span: trace.Span
    found: Any
    attempt: int  # of the command: if it is given up it goes on to the next one
    attached: Token[Context]
    before: Token[Any]


def wrap_steps() -> None:
    """Have a span around each step of the app; before anything is forked that executes some."""
    for step in registry.steps():
        if not hasattr(step.fn, "__traced__"):
            step.fn = _async_body(step, step.fn) if step.is_async else _body(step, step.fn)
            step.fn.__traced__ = True


def _body(step: Any, fn: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(fn)
    def traced(*args: Any, **kwargs: Any) -> Any:
        entered = enter(step)
        if entered is None:
            return fn(*args, **kwargs)
        try:
            value = fn(*args, **kwargs)
        except BaseException as error:
            leave(entered, error)
            raise
        leave(entered, None)
        return value

    return traced


def _async_body(step: Any, fn: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(fn)
    async def traced(*args: Any, **kwargs: Any) -> Any:
        entered = enter(step)
        if entered is None:
            return await fn(*args, **kwargs)
        try:
            value = await fn(*args, **kwargs)
        except BaseException as error:
            leave(entered, error)
            raise
        leave(entered, None)
        return value

    return traced


@harmless
def enter(step: Any) -> Entered | None:
    """Begin the span of the attempt that the calling code is about to execute; None where it is a plain call of the function."""
    found = context.here()
    if found is None or getattr(found, "step", None) is not step or found is _inside.get():
        return None
    begins = source or _in_process(found)
    if begins is None:
        return None
    span, current = begins.begin_step(found)
    return Entered(span, found, found.attempt, contexts.attach(current), _inside.set(found))


@harmless
def leave(entered: Entered, error: BaseException | None) -> None:
    _inside.reset(entered.before)
    contexts.detach(entered.attached)
    if not isinstance(error, DONE_AGAIN):
        source.end_step(entered.span, entered.found, entered.attempt, error)


def _in_process(found: Any) -> Any:
    """In the process of a step: what the worker said of the run's span with the request."""
    if getattr(found, "trace", None) is None:
        return None
    from supervisor.tracing import relay

    global source
    source = relay.OfProcess()
    return source


# ── workflow code ────────────────────────────────────────────────────────────────────────────────────────────────


class Held(NamedTuple):
    """What stands for a token where workflow code has attached a context."""

    about: Any
    before: Any


class OfWorkflowCode:
    """The current context, as OpenTelemetry asks for it: in workflow code that of its run, everywhere else whatever it was.

    A context that workflow code attaches is its run's until it is detached: other runs have the thread meanwhile.
    """

    def __init__(self, inner: Any, runs: Traces) -> None:
        self._inner, self._of = inner, harmless(runs.of)

    def get_current(self) -> Context:
        run = core.current_run()
        about = self._of(run) if run is not None else None
        found: Context = self._inner.get_current() if about is None else about.context if about.held is None else about.held
        return found

    def attach(self, current: Context) -> Any:
        run = core.current_run()
        about = self._of(run) if run is not None else None
        if about is None:
            return self._inner.attach(current)
        before, about.held = about.held, current
        return Held(about, before)

    def detach(self, token: Any) -> None:
        if isinstance(token, Held):
            token.about.held = token.before
        else:
            self._inner.detach(token)


def begin(runs: Traces) -> None:
    """From here on this process makes spans."""
    global source
    source = runs
    inner = getattr(contexts, "_RUNTIME_CONTEXT", None)  # its own door, an environment variable, is only looked at when it is first imported
    if inner is None:
        log.warning("this version of opentelemetry-api keeps its context elsewhere: workflow code finds no current span")
    else:
        contexts._RUNTIME_CONTEXT = OfWorkflowCode(inner, runs)  # type: ignore[assignment]
    traces.here = here


def here() -> tuple[str, str] | None:
    """Trace and span of the calling code, as log lines show them."""
    found = trace.get_current_span().get_span_context()
    return (f"{found.trace_id:032x}", f"{found.span_id:016x}") if found.is_valid else None
