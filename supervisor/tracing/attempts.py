"""Spans of steps: of each attempt, and of a step around its attempts where one was not all.

An attempt is a span below its run, and all that there is to say of a step that was tried once. A step that is tried again, or is completed from
outside, has a span of its own, from the begin of its first attempt to its end, and its attempts are parts of that. It is made at the step's end from
what is stored of its attempts, so it does not matter in which processes they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, Status, StatusCode

from supervisor.core import codec, traces
from supervisor.core.codec import StoredError
from supervisor.core.errors import CompleteLater
from supervisor.tracing import names
from supervisor.tracing.sdk import Provider

FAILED_TRY, HANDED_OVER = 1, 7  # attempt.kind
COMPLETED, FAILED, CANCELLED = 1, 2, 3  # step.status
Values = dict[str, Any]


# ── attempts ─────────────────────────────────────────────────────────────────────────────────────────────────────


def begin_attempt(provider: Provider, found: Any, context: Context, own: SpanContext, run_id: str, began_ns: int | None = None) -> trace.Span:
    """Start the span of an attempt of a step below the span *own* of its run; of a further attempt below that of the step."""
    attributes = about_step(run_id, found.run.workflow.name, found.step.name, found.seq) | {names.STEP_ATTEMPT: found.attempt}
    if found.redelivered:
        attributes[names.STEP_REDELIVERED] = True
    name, links = f"step {found.step.name}", []
    if found.attempt > 1:
        before = SpanContext(own.trace_id, traces.step_span_id(found.run.id, found.seq, found.attempt - 1), False, own.trace_flags)
        name, links = f"attempt {found.step.name}", [Link(before, {names.LINK: "attempt"})]
        context = trace.set_span_in_context(NonRecordingSpan(step_of(found.run.id, found.seq, own)), context)
    provider.ids.next(traces.step_span_id(found.run.id, found.seq, found.attempt))
    return provider.tracer.start_span(name, context, attributes=attributes, links=links, start_time=began_ns)


def about_step(run_id: str, workflow: str, step: str, seq: int) -> Values:
    return {names.RUN_ID: run_id, names.WORKFLOW: workflow, names.STEP: step, names.STEP_SEQ: seq}


def step_of(run_id: bytes, seq: int, own: SpanContext) -> SpanContext:
    """The span of a step around its attempts, below the span *own* of its run."""
    return SpanContext(own.trace_id, traces.step_span_id(run_id, seq), False, own.trace_flags, own.trace_state)


def tell_end(span: trace.Span, found: Any, attempt: int, error: BaseException | None) -> None:
    """Say of the span of an attempt that it returned, or raised *error*."""
    if not span.is_recording():
        return
    if is_given_up(found, attempt):
        span.set_attribute(names.STEP_GIVEN_UP, True)
    if isinstance(error, CompleteLater):
        span.set_attribute(names.STEP_HANDED_OVER, True)
    elif error is not None:
        tell_error(span, error_attributes(codec.encode_error(error)))


def is_given_up(found: Any, attempt: int) -> bool:
    """Whether nobody waits for an attempt any more: its step may be at the next one."""
    return found.attempt != attempt or not getattr(found.extra, "live", True)


def as_part(span: ReadableSpan, run_id: bytes, seq: int, step: str, again: bool, ended_ns: int) -> ReadableSpan:
    """The span of a first attempt as it is sent: a part of its step's where that is tried *again*, else all that there is of it."""
    assert span.context is not None
    parent = step_of(run_id, seq, span.context) if again else span.parent
    return ReadableSpan(
        f"attempt {step}" if again else span.name, span.context, parent, span.resource, dict(span.attributes or {}), span.events, span.links, span.kind,
        status=span.status, start_time=span.start_time, end_time=ended_ns, instrumentation_scope=span.instrumentation_scope,
    )  # fmt: skip


# ── steps around their attempts ──────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Tried:
    """A step that is to be tried again, or was handed over to a token, and has no result yet."""

    name: str
    began_us: int  # its first attempt, us since 2000 by the database's clock
    last: int = 0  # the last attempt that is recorded
    handed_over: bool = False  # that is the one which a token completes
    skipped: bool = False  # somebody has given it its result

    @classmethod
    def before(cls, past: Any, seq: int, name: str) -> Tried | None:
        """As a history has it; None for one that was not tried, or whose first attempt was never recorded."""
        if seq not in past.tried:
            return None
        failed, handed_over = past.attempts.get(seq, 0), past.entrusted[seq].attempt if seq in past.entrusted else 0
        return cls(name, past.tried[seq], max(failed, handed_over), handed_over > failed)

    def send(self, provider: Provider, run: Any, about: Any, seq: int, began_ns: int, ended_ns: int, status: int, error: bytes) -> None:
        """Its span; *status* is how it ended, CANCELLED where nobody waited for it any more."""
        provider.ids.next(traces.step_span_id(run.id, seq))
        attributes = about_step(about.run_id, run.workflow.name, self.name, seq)
        attributes[names.STEP_ATTEMPTS] = self.last + (status == COMPLETED and not self.handed_over and not self.skipped)
        if self.skipped:
            attributes[names.STEP_SKIPPED] = True
        elif status == CANCELLED:
            attributes[names.STEP_GIVEN_UP] = True
        span = provider.tracer.start_span(f"step {self.name}", about.context, attributes=attributes, start_time=min(began_ns, ended_ns))
        if status == FAILED:
            tell_error(span, error_attributes(error), ended_ns)
        span.end(ended_ns)


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────


def error_attributes(encoded: bytes) -> Values:
    """An error that is stored, as the attributes of an exception event."""
    try:
        stored = msgspec.json.decode(encoded, type=StoredError)
    except msgspec.DecodeError:
        return {names.EXCEPTION_TYPE: "Exception", names.EXCEPTION_MESSAGE: "the error is encoded"}
    found = {names.EXCEPTION_TYPE: stored.type.removeprefix("builtins."), names.EXCEPTION_MESSAGE: stored.message}
    return found if stored.traceback is None else {**found, names.EXCEPTION_STACKTRACE: stored.traceback}


def tell_error(span: trace.Span, told: Values, at_ns: int | None = None) -> None:
    span.add_event(names.EXCEPTION, told, at_ns)
    span.set_status(Status(StatusCode.ERROR, f"{told[names.EXCEPTION_TYPE]}: {told[names.EXCEPTION_MESSAGE]}"[:500]))
