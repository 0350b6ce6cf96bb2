"""The SDK of OpenTelemetry as a worker uses it: made after the fork, configured by its own OTEL_* variables, never in anybody's way.

Owns the provider, the ids that spans are given, the exporter and its one line in the log. Spans wait in a bounded queue that a thread
empties; when the collector is away they are dropped, and a worker neither waits nor dies for them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult

from supervisor._fastpath import loop as core
from supervisor.core import context
from supervisor.tracing import GROUP, names, wanted_exporter

log = logging.getLogger("pgsupervisor.traces")

FLUSH_S = 0.9  # at a drain: less than the second that a parent grants after its timeout
SAY_FULL_S = 60.0
LOUD = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")  # one line for each request or span that fails


class Ids(RandomIdGenerator):
    """Random ids, but for the span that this thread makes next where one was said."""

    def __init__(self) -> None:
        self._next = threading.local()

    def next(self, span_id: int, trace_id: int = 0) -> None:
        self._next.span_id, self._next.trace_id = span_id, trace_id

    def generate_span_id(self) -> int:
        said = self._next.__dict__.pop("span_id", 0)
        return said or super().generate_span_id()

    def generate_trace_id(self) -> int:
        said = self._next.__dict__.pop("trace_id", 0)
        return said or super().generate_trace_id()


class NotInReplays(Sampler):
    """The sampler that OTEL_TRACES_SAMPLER names; what workflow code begins while it is replayed was begun before, and is no span."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def should_sample(self, parent_context: Context | None, trace_id: int, name: str, *args: Any, **kwargs: Any) -> SamplingResult:
        run = core.current_run()
        if run is not None and context.is_repeated(run):
            return SamplingResult(Decision.DROP)
        return self._sampler.should_sample(parent_context, trace_id, name, *args, **kwargs)

    def get_description(self) -> str:
        return f"NotInReplays({self._sampler.get_description()})"


class Exporting(SpanExporter):
    """An exporter whose failures are one line when they begin and one when they end."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._lost = 0
        self._say_full_at = 0.0
        self._why = "the exporter refused them"
        for name in LOUD:
            logging.getLogger(name).addFilter(self._heard)

    def _heard(self, record: logging.LogRecord) -> bool:
        """What the SDK says of each failure is kept for our line; that its queue is full is said once a minute."""
        said = record.getMessage()
        if not said.startswith("Queue full"):
            self._why = said
        elif time.monotonic() >= self._say_full_at:
            self._say_full_at = time.monotonic() + SAY_FULL_S
            log.warning("spans end faster than they are sent: the oldest are dropped (OTEL_BSP_MAX_QUEUE_SIZE; OTEL_TRACES_SAMPLER for fewer)")
        return False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001 - somebody's exporter
            self._why, result = f"{type(error).__name__}: {error}", SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            if self._lost:
                log.warning("spans are delivered again; %d were lost", self._lost)
                self._lost = 0
        else:
            if not self._lost:
                log.warning("spans can't be delivered and are dropped until they can: %s", self._why)
            self._lost += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def exporter() -> SpanExporter | None:
    """That which OTEL_TRACES_EXPORTER names; the host has looked whether it is there."""
    wanted = wanted_exporter()
    if wanted == "none":
        return None
    if wanted == "otlp":  # which is gRPC among the entry points
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
        if protocol != "http/protobuf":
            log.warning("OTEL_EXPORTER_OTLP_PROTOCOL=%s: spans go by http/protobuf, the one protocol there is", protocol)
        return OTLPSpanExporter()
    made: SpanExporter = next(iter(entry_points(group=GROUP, name=wanted))).load()()
    return made


class Provider:
    """Tracer, ids and exit of one process. `processor` takes spans that have ended, its own or another process's."""

    def __init__(self, processor: SpanProcessor | None, app: str, number: int) -> None:
        attributes: dict[str, Any] = {names.WORKER: number}
        if "OTEL_SERVICE_NAME" not in os.environ and "service.name" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
            attributes[SERVICE_NAME] = app or "pgsupervisor"
        self.ids = Ids()
        self.provider = TracerProvider(resource=Resource.create(attributes), id_generator=self.ids, shutdown_on_exit=False)
        self.sampler = self.provider.sampler  # that which OTEL_TRACES_SAMPLER names
        self.provider.sampler = NotInReplays(self.sampler)
        self.processor = processor
        if processor is not None:
            self.provider.add_span_processor(processor)
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):  # else the app has one of its own for its own spans
            trace.set_tracer_provider(self.provider)
        self.tracer = self.provider.get_tracer(names.SCOPE)

    @classmethod
    def of_worker(cls, app: str, number: int) -> Provider:
        """With a thread that exports."""
        way_out = exporter()
        return cls(BatchSpanProcessor(Exporting(way_out)) if way_out is not None else None, app, number)

    def flush(self) -> None:
        """Export what has ended, for a moment at most: a collector that hangs holds nobody up."""
        if self.processor is not None:
            flushing = threading.Thread(target=self.processor.force_flush, name="spans", daemon=True)
            flushing.start()
            flushing.join(FLUSH_S)
