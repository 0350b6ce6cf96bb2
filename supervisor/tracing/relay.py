"""Spans of a step's own process on their way to its worker: with the step's answer, as JSON.

Such a process has no exporter, no thread and no connection for spans; when it is killed, the worker says what became of the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import msgspec
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode

from supervisor.core import traces
from supervisor.tracing.attempts import begin_attempt, tell_end
from supervisor.tracing.runs import read_context
from supervisor.tracing.sdk import Provider
from supervisor.tracing.steps import here

SPANS_MAX = 1000  # of one step
Values = dict[str, Any]


class Told(msgspec.Struct, omit_defaults=True):
    """A span that ended."""

    name: str
    own: tuple[str, str | None]  # traceparent, tracestate
    began_ns: int
    ended_ns: int
    kind: int = 0
    parent: tuple[str, str | None] | None = None
    status: int = 0
    why: str | None = None
    attributes: Values = {}
    events: list[tuple[str, int, Values]] = []
    links: list[tuple[tuple[str, str | None], Values]] = []
    scope: str = ""
    version: str | None = None


class Collected(SpanProcessor):
    """Spans that have ended since they were last taken."""

    def __init__(self) -> None:
        self._spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled and len(self._spans) < SPANS_MAX:
            self._spans.append(span)

    def take(self) -> bytes | None:
        spans, self._spans = self._spans, []
        return encode(spans) if spans else None


class OfProcess:
    """What a worker's Traces are, in the process of a step."""

    def __init__(self) -> None:
        collected = Collected()
        self._provider = Provider(collected, "", 0)
        traces.take_spans, traces.here = collected.take, here

    def begin_step(self, found: Any) -> tuple[trace.Span, Context]:
        own = read_context(traces.Trace(*found.trace))
        run = trace.set_span_in_context(NonRecordingSpan(own), Context())
        span = begin_attempt(self._provider, found, run, own, str(UUID(bytes=found.run.id)))
        return span, trace.set_span_in_context(span, run)

    def end_step(self, span: trace.Span, found: Any, attempt: int, error: BaseException | None) -> None:
        """The worker sends it, and knows whether there is another attempt."""
        tell_end(span, found, attempt, error)
        span.end()


# ── as JSON ──────────────────────────────────────────────────────────────────────────────────────────────────────


def encode(spans: Iterable[ReadableSpan]) -> bytes:
    return msgspec.json.encode([_told(span) for span in spans], enc_hook=str)


def _told(span: ReadableSpan) -> Told:
    assert span.context is not None
    scope = span.instrumentation_scope
    return Told(
        name=span.name, own=_as_text(span.context), began_ns=span.start_time or 0, ended_ns=span.end_time or 0, kind=span.kind.value,
        parent=_as_text(span.parent) if span.parent is not None else None, status=span.status.status_code.value, why=span.status.description,
        attributes=_plain(span.attributes), events=[(event.name, event.timestamp, _plain(event.attributes)) for event in span.events],
        links=[(_as_text(link.context), _plain(link.attributes)) for link in span.links],
        scope=scope.name if scope is not None else "", version=scope.version if scope is not None else None,
    )  # fmt: skip


def _plain(attributes: Any) -> Values:
    """What JSON holds of them; bytes as text."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in (attributes or {}).items()}


def _as_text(context: SpanContext) -> tuple[str, str | None]:
    written = traces.write(context.trace_id, context.span_id, context.trace_flags, context.trace_state.to_header())
    return written.parent, written.state


def decode(encoded: bytes, resource: Resource) -> Sequence[ReadableSpan]:
    return [_span(told, resource) for told in msgspec.json.decode(encoded, type=list[Told])]


def _span(told: Told, resource: Resource) -> ReadableSpan:
    return ReadableSpan(
        told.name, _read(told.own), _read(told.parent) if told.parent is not None else None, resource, told.attributes,
        [Event(name, attributes, at_ns) for name, at_ns, attributes in told.events], [Link(_read(of), attributes) for of, attributes in told.links],
        SpanKind(told.kind), status=Status(StatusCode(told.status), told.why), start_time=told.began_ns, end_time=told.ended_ns,
        instrumentation_scope=InstrumentationScope(told.scope, told.version),
    )  # fmt: skip


def _read(text: tuple[str, str | None]) -> SpanContext:
    return read_context(traces.Trace(*text), remote=False)
