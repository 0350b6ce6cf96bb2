"""Spans of OpenTelemetry, where a host asks for them. Importing this imports nothing of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.core.errors import MissingExtra

if TYPE_CHECKING:
    from supervisor.tracing.runs import Traces


def check_installed() -> None:
    """Raise MissingExtra where a part of the extra [otel] is not there."""
    from importlib.util import find_spec

    for name in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        try:
            there = find_spec(name) is not None
        except ModuleNotFoundError:  # of what it is a part
            there = False
        if not there:
            raise MissingExtra("--traces", "otel", name)


def wrap_steps() -> None:
    """In a worker whose app is loaded, before it forks."""
    from supervisor.tracing import steps

    steps.wrap_steps()


def begin(app: str, number: int) -> Traces:
    """In a worker whose forks are behind it: what makes and exports its spans."""
    from supervisor.tracing import steps
    from supervisor.tracing.runs import Traces
    from supervisor.tracing.sdk import Provider

    made = Traces(Provider.of_worker(app, number))
    steps.begin(made)
    return made
