"""Spans of OpenTelemetry, where a host asks for them. Importing this imports nothing of it."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING

from supervisor.core.errors import ConfigInvalid, MissingExtra

if TYPE_CHECKING:
    from supervisor.tracing.runs import Traces


GROUP = "opentelemetry_traces_exporter"  # entry points: whoever has an exporter says so there


def wanted_exporter() -> str:
    """The name of the exporter that is asked for: otlp (by HTTP), console, none, or another that is installed."""
    return os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"


def check() -> None:
    """Raise MissingExtra where a part of the extra [otel] is not there, ConfigInvalid for an exporter that is not installed."""
    name = wanted_exporter()
    for part in ("opentelemetry.sdk", *(["opentelemetry.exporter.otlp.proto.http"] if name == "otlp" else [])):
        if not _is_there(part):
            raise MissingExtra("--traces", "otel", part)
    if name not in ("otlp", "console", "none") and not entry_points(group=GROUP, name=name):
        raise ConfigInvalid(f"OTEL_TRACES_EXPORTER={name}: no exporter of that name is installed; give otlp, console or none, or install it")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of what it is a part
        return False


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
