"""Trace context as text: which trace a run belongs to, in the form of W3C Trace Context, and what connects the engine with tracing.

Imports nothing of OpenTelemetry. A program that does not trace pays one look into sys.modules per start; a worker that does not, nothing.
What comes from outside is untrusted: of a fixed form and bounded, or it is ignored. It never costs a start.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from hashlib import sha256
from typing import Any, NamedTuple

log = logging.getLogger("pgsupervisor.traces")

TRACESTATE_MAX = 512  # characters; what every vendor has to pass on, says the standard
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE = re.compile(r"[\x20-\x7e\t]*")
NO_TRACE, NO_SPAN = "0" * 32, "0" * 16


class Trace(NamedTuple):
    """Whose span a run was started in. `parent` is a traceparent of 55 characters."""

    parent: str
    state: str | None = None


def read(parent: object, state: object = None) -> Trace | None:
    """What a caller gave as traceparent and tracestate; None for what is none, with a line at debug. Never raises."""
    if parent is None:
        return None
    found = _PARENT.fullmatch(parent) if isinstance(parent, str) and len(parent) <= TRACESTATE_MAX else None
    if found is None or found[1] == "ff" or found[1] == "00" and found[5] or found[2] == NO_TRACE or found[3] == NO_SPAN:
        log.debug("a traceparent of %d characters is ignored: it is not of the form 00-<32 hex>-<16 hex>-<2 hex>", len(str(parent)[:10_000]))
        return None
    kept = state if isinstance(state, str) and 0 < len(state) <= TRACESTATE_MAX and _STATE.fullmatch(state) else None
    return Trace(f"00-{found[2]}-{found[3]}-{found[4]}", kept)


def write(trace_id: int, span_id: int, flags: int, state: str = "") -> Trace:
    """The same of a span's context; a state that is too long is left out whole, as the standard has it for who can't cut it by members."""
    return Trace(f"00-{trace_id:032x}-{span_id:016x}-{flags & 0xFF:02x}", state if 0 < len(state) <= TRACESTATE_MAX else None)


def caller() -> Trace | None:
    """The span that the calling code is in, if its program uses OpenTelemetry; this never imports it."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    try:
        context = api.get_current_span().get_span_context()
        if not context.is_valid:
            return None
        return write(context.trace_id, context.span_id, context.trace_flags, context.trace_state.to_header())
    except Exception as error:  # noqa: BLE001 - half imported, replaced by somebody, or of another version: no start fails for it
        log.debug("the current span can't be read: %s", type(error).__name__)
        return None


def sender() -> Trace | None:
    """The same for who sends something: only if that span will be there to be linked to."""
    found = caller()
    return found if found is not None and int(found.parent[-2:], 16) & 1 else None


# ── ids that every process computes alike ────────────────────────────────────────────────────────────────────────


def trace_id_of(run_id: bytes) -> int:
    """The trace of a run that nobody's span started. A hash: the low half of a run's id is not random enough for samplers."""
    return int.from_bytes(sha256(b"trace" + run_id).digest()[:16], "big") or 1


def run_span_id(run_id: bytes) -> int:
    """The span of a run, whichever process ends it."""
    return int.from_bytes(sha256(b"run" + run_id).digest()[:8], "big") or 1


def step_span_id(run_id: bytes, seq: int, attempt: int = 0) -> int:
    """The span of one attempt of a step, or (0) of the step around them: sent twice, because its worker died before it was recorded, it is the same span."""
    return int.from_bytes(sha256(b"step" + run_id + b"%d/%d" % (seq, attempt)).digest()[:8], "big") or 1


# ── where tracing is on: set by supervisor.tracing, in each process ──────────────────────────────────────────────

# In a process of a step: the spans that have ended there since it was last asked, as JSON.
take_spans: Callable[[], bytes | None] | None = None

# The trace and span that calling code is in, as log lines show them.
here: Callable[[], tuple[str, str] | None] | None = None
