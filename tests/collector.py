"""A collector of spans for tests: OTLP over HTTP on a port of its own, decoded with the protocol's own messages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ROOT = ""


@dataclass
class Span:
    """One span as it came."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    began_ns: int
    ended_ns: int
    kind: int
    error: str | None
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any], int]]
    links: list[tuple[str, str, dict[str, Any]]]
    scope: str
    resource: dict[str, Any]
    state: str = ""

    @property
    def run(self) -> str:
        return str(self.attributes.get("pgsupervisor.run.id"))


@dataclass
class Collector:
    """What came so far. *hold*: requests are taken and never answered, until `free` is set."""

    port: int
    spans: list[Span] = field(default_factory=list)
    requests: int = 0
    status: int = 200
    hold: bool = False
    free: threading.Event = field(default_factory=threading.Event)

    @property
    def env(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}", "OTEL_BSP_SCHEDULE_DELAY": "50"}

    def of(self, run: Any) -> list[Span]:
        """Ours of one run, in the order in which they began."""
        found = [span for span in list(self.spans) if span.run == str(getattr(run, "id", run)) and span.scope == "pgsupervisor"]
        return sorted(found, key=lambda span: span.began_ns)

    def root(self, run: Any) -> list[Span]:
        """Spans of the run itself: one, or it was sent twice."""
        return [span for span in self.of(run) if span.name.startswith("run ")]

    def below(self, span: Span) -> list[Span]:
        return [other for other in list(self.spans) if other.parent_id == span.span_id and other.trace_id == span.trace_id]


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind) if kind else None


def decoded(body: bytes) -> Iterator[Span]:
    request = ExportTraceServiceRequest.FromString(body)
    for of_resource in request.resource_spans:
        resource = _values(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield Span(
                    span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), span.start_time_unix_nano, span.end_time_unix_nano, span.kind,
                    span.status.message or "error" if span.status.code == 2 else None, _values(span.attributes),
                    [(event.name, _values(event.attributes), event.time_unix_nano) for event in span.events],
                    [(link.trace_id.hex(), link.span_id.hex(), _values(link.attributes)) for link in span.links], of_scope.scope.name, resource, span.trace_state,
                )  # fmt: skip


@contextmanager
def collector() -> Iterator[Collector]:
    class Taking(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers["content-length"]))
            made.requests += 1
            if made.hold:
                made.free.wait(60)
            if made.status == 200 and self.path == "/v1/traces":
                made.spans += decoded(body)
            self.send_response(made.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Taking)
    server.daemon_threads = True
    made = Collector(server.server_address[1])
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield made
    finally:
        made.free.set()
        server.shutdown()
        server.server_close()
