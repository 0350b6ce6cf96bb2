"""A worker's traces: which span each run in memory belongs to, and the span of a run, sent by whoever ends it.

Knows the engine by what it is told: what a claim brought (`claimed`), what a history held (`replayed`), what is durable (`settled`).
A run's span is sent when its outcome is durable, once, with ids that every process computes alike; what its own code said of the span is
said again by each replay, at the times of what it had been given, so the last process knows all of it. The span of a step around its attempts is sent
when its end is durable, and that of a first attempt that raised when it is durable that it did: then it is known whether it was the only one.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable, Container, Iterable
from functools import wraps
from typing import Any
from uuid import UUID

import msgspec
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from supervisor._fastpath.wire import id_time_us
from supervisor.core import codec, traces
from supervisor.db.arrays import elements
from supervisor.tracing import names
from supervisor.tracing.attempts import (
    CANCELLED, COMPLETED, FAILED_TRY, HANDED_OVER, Tried, Values, as_part, begin_attempt, error_attributes, is_given_up, tell_end,
)  # fmt: skip
from supervisor.tracing.sdk import Provider

EPOCH_2000_NS = 946_684_800 * 10**9
OUTCOMES = ("", "completed", "failed", "cancelled", "terminated", "timed_out", "continued")
BAD = ("failed", "terminated", "timed_out")  # a run that was cancelled did what it was told
SWEEP_AT = 10_000
SENT = (names.EVENT + "signal", names.EVENT + "update")  # events of what somebody had sent
EVENTS_MAX = 128  # of one span; what the SDK keeps, too
AT_TRACE = 12  # the first of the columns that claim_traced has more than claim
MIXED_COLUMNS = 9
_i2, _i4, _f8 = (struct.Struct(form).unpack for form in (">h", ">i", ">d"))
log = logging.getLogger("pgsupervisor.traces")


def harmless(act: Callable[..., Any]) -> Callable[..., Any]:
    """What is told to the traces of a worker never fails the worker: an error is logged, the first of each place."""
    told = False

    @wraps(act)
    def acting(*args: Any) -> Any:
        nonlocal told
        try:
            return act(*args)
        except Exception:  # noqa: BLE001
            log.log(logging.DEBUG if told else logging.ERROR, "spans are missing: %s failed", act.__name__, exc_info=True)
            told = True

    return acting


def read_context(text: traces.Trace, remote: bool = True) -> SpanContext:
    """The span that a traceparent names, in another process or in this one."""
    _, trace_id, span_id, flags = text.parent.split("-")
    state = TraceState.from_header([text.state]) if text.state else TraceState()
    return SpanContext(int(trace_id, 16), int(span_id, 16), remote, TraceFlags(int(flags, 16)), state)


class RunSpan(trace.Span):
    """What workflow code finds as the current span: takes all that is said of it, and is sent when the run has ended, maybe by another process."""

    def __init__(self, run: Any, about: RunTrace, clock: Clock) -> None:
        self._run, self._about, self._clock = run, about, clock
        self.attributes: Values = {}
        self.events: list[tuple[str, Values, int]] = []
        self.links: list[Link] = []
        self.name: str | None = None
        self.status: Status | None = None

    def get_span_context(self) -> SpanContext:
        return self._about.span_context

    def is_recording(self) -> bool:
        return self._about.span_context.trace_flags.sampled

    def set_attribute(self, key: str, value: Any) -> None:
        self.attributes[key] = value

    def set_attributes(self, attributes: Any) -> None:
        self.attributes.update(attributes)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        """At the time of the last thing that the run was given, which a replay knows too."""
        if len(self.events) < EVENTS_MAX:
            self.events.append((name, dict(attributes or {}), timestamp or self._clock.ns(self._run.now_us)))

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        self.links.append(Link(context, attributes))

    def update_name(self, name: str) -> None:
        self.name = name

    def set_status(self, status: Any, description: str | None = None) -> None:
        self.status = status if isinstance(status, Status) else Status(status, description)

    def record_exception(self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False) -> None:
        self.add_event(names.EXCEPTION, {**error_attributes(codec.encode_error(exception)), **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        """Its run's end is its end."""


class Clock:
    """The engine's times (us since 2000 by the database's clock) as those of this machine, in which all other spans are."""

    def __init__(self) -> None:
        self.offset_us = 0

    def ns(self, us: int) -> int:
        return (us - self.offset_us) * 1000 + EPOCH_2000_NS


class RunTrace:
    """One run in memory: the span that it was started in, its own, and what its code has made current.

    raised   seq → the span of a first attempt that raised, its step, and when, until that is durable
    tried    seq → a step that is tried again, or waits for its token
    """

    __slots__ = ("context", "held", "links", "parent", "queue", "raised", "run_id", "span", "span_context", "told", "tried", "waits")

    def __init__(self, queue: int = 0, told: tuple[bytes | None, ...] = ()) -> None:
        self.queue, self.told = queue, told
        self.context: Any = None  # made when it is first asked for
        self.held: Any = None
        self.waits: dict[int, tuple[str, Values, int]] = {}
        self.raised: dict[int, tuple[ReadableSpan, str, int]] = {}
        self.tried: dict[int, Tried] = {}

    def begin(self, run: Any, provider: Provider, clock: Clock) -> None:
        parent, state, link, origin, origin_parent = self.told or (None,) * 5
        told = traces.read(parent.decode(), state.decode() if state else None) if parent is not None else None
        self.run_id = str(UUID(bytes=run.id))
        self.parent = trace.set_span_in_context(NonRecordingSpan(read_context(told)), Context()) if told is not None else Context()
        self.links = [*_links(link, origin, origin_parent)]
        trace_id = int(told.parent[3:35], 16) if told is not None else traces.trace_id_of(run.id)
        asked = provider.sampler.should_sample(self.parent, trace_id, f"run {run.workflow.name}", SpanKind.CONSUMER, self.about(run), self.links)
        flags = TraceFlags(TraceFlags.SAMPLED if asked.decision is Decision.RECORD_AND_SAMPLE else TraceFlags.DEFAULT)
        self.span_context = SpanContext(trace_id, traces.run_span_id(run.id), False, flags, asked.trace_state)
        self.span = RunSpan(run, self, clock)
        self.context = trace.set_span_in_context(self.span, Context())

    def about(self, run: Any) -> Values:
        """What is known of the run from its beginning, and the same in each process: samplers may look at it."""
        found: Values = {names.RUN_ID: self.run_id, names.WORKFLOW: run.workflow.name}
        if run.key is not None:
            found[names.RUN_KEY] = run.key.decode("utf-8", "replace")
        return found

    def as_text(self) -> traces.Trace:
        """The run's own span, for whoever is to be in it."""
        own = self.span_context
        return traces.write(own.trace_id, own.span_id, own.trace_flags, own.trace_state.to_header())


def _links(link: bytes | None, origin: bytes | None, origin_parent: bytes | None) -> Iterable[Link]:
    """To the run that continued as this one, and to the one that this is a fork or a retry of."""
    if link is not None and (found := traces.read(link.decode())) is not None:
        yield Link(read_context(found), {names.LINK: "continued"})
    if origin is not None:
        told = traces.read(origin_parent.decode()) if origin_parent is not None else None
        trace_id = int(told.parent[3:35], 16) if told is not None else traces.trace_id_of(origin)
        yield Link(SpanContext(trace_id, traces.run_span_id(origin), True), {names.LINK: "origin"})


class Traces:
    """All runs of one worker. Its methods are called on the loop's thread, `of`, `begin_step` and `end_step` on any."""

    statements = {"claim": "claim_traced", "claim_missing": "claim_missing_traced"} | {name: name for name in ("insert_traces", "take_trace_ends", "read_tried", "read_senders")}

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.clock = Clock()
        self.runs: dict[bytes, RunTrace] = {}
        self.queues: dict[int, str] = {}
        self.known: Callable[[], Container[bytes]] = lambda: self.runs  # the runs that the worker has
        self._sweep_at = SWEEP_AT
        self._senders: Any = None
        self._came: dict[int, ReadableSpan] = {}  # spans of attempts that their own processes have sent

    def of(self, run: Any) -> RunTrace:
        found = self.runs.get(run.id)
        if found is None:
            found = self.runs[run.id] = RunTrace()
        if found.context is None:
            found.begin(run, self.provider, self.clock)
        return found

    def outside(self, worker: Any) -> dict[type, Callable[[Any, Any], None]]:
        """From now on *worker* asks for runs that were ended from outside; who takes the answers."""
        from supervisor.tracing.outside import Ends, Outside, Steps
        from supervisor.tracing.senders import Asked, Senders

        made, self._senders = Outside(worker, self), Senders(worker, self)
        worker.commands.call_later(0.0, made.look)
        return {Ends: made.answered, Steps: made.told, Asked: self._senders.answered}

    # ── what the worker tells ────────────────────────────────────────────────────────────────────────────────────

    @harmless
    def claimed(self, result: Any, offset_us: int) -> None:
        """What a claim brought, before anything of it runs."""
        self.clock.offset_us = offset_us
        if len(self.runs) > self._sweep_at:  # what left memory in a way of its own: it was lost, or refused
            known = self.known()
            self.runs = {run_id: about for run_id, about in self.runs.items() if run_id in known}
            self._sweep_at = SWEEP_AT + 2 * len(self.runs)
        get, runs = result.get_value, self.runs
        for row in range(result.ntuples):
            told = tuple(get(row, AT_TRACE + column) for column in range(5))
            runs[get(row, 0)] = RunTrace(_i4(get(row, 4))[0], told)

    @harmless
    def replayed(self, run: Any, past: Any) -> None:
        """What its history says that it was given."""
        about = self.of(run)
        for record in past.records[-EVENTS_MAX:]:
            if record.kind in names.WAITED:
                about.waits[record.seq] = self._wait(record.kind, record.name, record.seq, record.ended)
        if past.tried and about.span_context.trace_flags.sampled:
            self._were_tried(run, about, past)

    def _were_tried(self, run: Any, about: RunTrace, past: Any) -> None:
        """What is known of steps that have no result; and the spans of those that somebody has just given one, for he sends none."""
        for seq, cmd in (run.open or {}).items():
            if (tried := Tried.before(past, seq, cmd.step.name)) is not None:
                about.tried[seq] = tried
        for record in reversed(past.records):  # a result that was given is the last, until the run goes on
            if record.seq not in past.skipped:
                break
            if (tried := Tried.before(past, record.seq, record.name.decode("utf-8", "replace"))) is not None:
                tried.skipped = True
                self._send_step(run, about, record.seq, tried, self.clock.ns(record.ended), COMPLETED)

    @harmless
    def composed(self, batch: Any) -> None:
        """A batch that is about to be sent: its children are in the span of their parent; a successor has a trace of its own, for a chain
        that goes on for ever would be one for ever."""
        if not batch.rare.keys() & {"insert_runs", "continue_runs"}:
            return
        own = {run.id: self.of(run).as_text() for run in batch.runs}
        for run_id, row in batch.rare.get("insert_runs", ()):
            batch.add("insert_traces", run_id, (row[0], own[run_id].parent, own[run_id].state, None))
        for run_id, row in batch.rare.get("continue_runs", ()):
            batch.add("insert_traces", run_id, (row[1], None, None, own[run_id].parent))

    @harmless
    def settled(self, batch: Any) -> None:
        """A batch is durable."""
        for run_id, row in batch.rare.get("insert_attempts", ()):
            if (about := self.runs.get(run_id)) is not None and about.context is not None:
                self._tried(about, row)
        tried = {run.id: run for run in batch.runs if (about := self.runs.get(run.id)) is not None and about.tried}
        if batch.steps is not None and (tried or len(batch.steps) == MIXED_COLUMNS):
            self._given(batch.steps, tried)
        for _, row in batch.rare.get("fire_timers", ()):
            if (about := self.runs.get(row[0])) is not None:
                about.waits[row[1]] = self._wait(row[4], row[3].encode(), row[1], time.time_ns() // 1000 - EPOCH_2000_NS // 1000 + self.clock.offset_us)
        if batch.finished:
            self._ended(batch)
        for run in batch.leaving:
            self.runs.pop(run.id, None)

    @harmless
    def committed(self, run: Any, seq: int, ended_us: int) -> None:
        """A transactional step is durable, with its transaction."""
        about = self.runs.get(run.id)
        if about is not None and (tried := about.tried.pop(seq, None)) is not None:
            self._send_step(run, about, seq, tried, self.clock.ns(ended_us), COMPLETED)

    def _tried(self, about: RunTrace, row: tuple[Any, ...]) -> None:
        """An attempt is recorded: one that failed, or was handed over."""
        run_id, seq, attempt, kind, name, _, _, began_us, _, next_us = row
        if kind not in (FAILED_TRY, HANDED_OVER):
            return
        again = kind == HANDED_OVER or next_us is not None
        self._decide(run_id, about, seq, again)
        if again and seq not in about.tried and about.span_context.trace_flags.sampled:
            about.tried[seq] = Tried(name, began_us)
        if (tried := about.tried.get(seq)) is not None:
            tried.last, tried.handed_over = attempt, kind == HANDED_OVER

    def _given(self, columns: list[bytes], runs: dict[bytes, Any]) -> None:
        """Rows of steps: what runs were given, and the ends of those of *runs* that took more than an attempt."""
        for run_id, seq, _, name, result, _, ended, *mixed in zip(*(elements(column) for column in columns), strict=True):
            about, at = self.runs.get(run_id or b""), _i4(seq)[0]
            if about is None:
                continue
            if mixed and (what := _i2(mixed[0])[0]) in names.WAITED and len(about.waits) < EVENTS_MAX:
                about.waits[at] = self._wait(what, name or b"", at, int(_f8(ended)[0] * 1e6) - EPOCH_2000_NS // 1000)
            if run_id in runs and (tried := about.tried.pop(at, None)) is not None:
                status = _i2(mixed[1])[0] if mixed else COMPLETED
                self._send_step(runs[run_id], about, at, tried, int(_f8(ended)[0] * 1e9) - self.clock.offset_us * 1000, status, result or b"")

    def _send_step(self, run: Any, about: RunTrace, seq: int, tried: Tried, ended_ns: int, status: int, error: bytes = b"") -> None:
        tried.send(self.provider, run, about, seq, self.clock.ns(tried.began_us), ended_ns, status, error)

    def _wait(self, kind: int, name: bytes, seq: int, ended_us: int) -> tuple[str, Values, int]:
        return names.EVENT + names.WAITED[kind], {names.WAIT: name.decode("utf-8", "replace"), names.WAIT_SEQ: seq}, self.clock.ns(ended_us)

    def _ended(self, batch: Any) -> None:
        rows = zip(*(elements(column) for column in batch.outcomes or ()), strict=True)
        ends = {row[0]: row[1:] for row in rows}
        for run in batch.finished:
            end = ends.get(run.id)
            about = self.of(run) if run.workflow is not None else None
            if end is not None and about is not None and about.span_context.trace_flags.sampled:
                status, steps, result, ended = end
                told = OUTCOMES[_i2(status)[0]], _i4(steps)[0], result or b"", int(_f8(ended)[0] * 1e9) - self.clock.offset_us * 1000
                if any(name in SENT for name, _, _ in about.waits.values()):
                    self._senders.ask(run, about, *told)
                else:
                    self.send(run, about, *told)
                for seq in [*about.raised]:
                    self._decide(run.id, about, seq, False)
            self.runs.pop(run.id, None)

    @harmless
    def send(self, run: Any, about: RunTrace, outcome: str, steps: int, result: bytes, ended_ns: int) -> None:
        """The run's span, from the moment of its id to that of its outcome; and those of steps that it has not waited for."""
        for seq, tried in about.tried.items():
            self._send_step(run, about, seq, tried, ended_ns, CANCELLED)
        said = about.span
        provider = self.provider
        provider.ids.next(about.span_context.span_id, about.span_context.trace_id)
        began_ns = min(self.clock.ns(id_time_us(run.id)), ended_ns)
        span = provider.tracer.start_span(
            f"run {run.workflow.name}", about.parent, SpanKind.CONSUMER, about.about(run), [*about.links, *said.links], start_time=began_ns,
        )  # fmt: skip
        span.set_attributes({names.RUN_OUTCOME: outcome, names.RUN_STEPS: steps, names.RUN_WAITS: len(about.waits), **said.attributes})
        if about.queue in self.queues:
            span.set_attribute(names.RUN_QUEUE, self.queues[about.queue])
        if outcome == "continued":
            span.set_attribute(names.RUN_CONTINUED_AS, msgspec.json.decode(result))
        for name, attributes, at_ns in sorted((*about.waits.values(), *said.events), key=lambda event: event[2]):
            span.add_event(name, attributes, at_ns)
        if outcome not in ("completed", "continued"):
            error = error_attributes(result)
            span.add_event(names.EXCEPTION, error, ended_ns)
            if outcome in BAD:
                span.set_status(Status(StatusCode.ERROR, f"{outcome}: {error[names.EXCEPTION_TYPE]}: {error[names.EXCEPTION_MESSAGE]}"[:500]))
        if said.status is not None:
            span.set_status(said.status)
        if said.name is not None:
            span.update_name(said.name)
        span.end(ended_ns)

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────

    def begin_step(self, found: Any, began_ns: int | None = None) -> tuple[trace.Span, Context]:
        """The span of one attempt, begun, and what is to be current in it."""
        about = self.of(found.run)
        if not about.span_context.trace_flags.sampled:
            return about.span, about.context  # whoever is called from there is told so
        span = begin_attempt(self.provider, found, about.context, about.span_context, about.run_id, began_ns)
        return span, trace.set_span_in_context(span, about.context)

    @harmless
    def end_step(self, span: trace.Span, found: Any, attempt: int, error: BaseException | None) -> None:
        """The body of an attempt has returned, or raised *error*."""
        tell_end(span, found, attempt, error)
        if attempt == 1 and isinstance(span, ReadableSpan) and (error is not None or is_given_up(found, attempt)):
            self._raised(span, found, time.time_ns())
        else:
            span.end()

    def _raised(self, span: ReadableSpan, found: Any, ended_ns: int) -> None:
        """Keep the span of a first attempt that failed until that is recorded; where it was given up that may have been before its body ended."""
        about = self.runs.get(found.run.id) or RunTrace()
        about.raised[found.seq] = (span, found.step.name, ended_ns)
        if found.attempt > 1 or found.done or found.run.gone:
            self._decide(found.run.id, about, found.seq, found.attempt > 1)

    def _decide(self, run_id: bytes, about: RunTrace, seq: int, again: bool) -> None:
        """It is known whether the first attempt of a step is all of it."""
        if (kept := about.raised.pop(seq, None)) is not None:
            span, name, ended_ns = kept
            self._export(as_part(span, run_id, seq, name, again, ended_ns))

    def _export(self, span: ReadableSpan) -> None:
        if self.provider.processor is not None:
            self.provider.processor.on_end(span)

    async def in_process(self, call: Any, executing: Any) -> Any:
        """A step in a process of its own, which sends its span with its answer; that of one that died, or was ended, is sent here."""
        found, attempt, raised = call.command, call.command.attempt, None
        span_id = traces.step_span_id(found.run.id, found.seq, attempt)
        try:
            return await executing
        except BaseException as error:
            raised = error
            raise
        finally:
            self._left_process(call, attempt, self._came.pop(span_id, None), raised)

    @harmless
    def _left_process(self, call: Any, attempt: int, came: ReadableSpan | None, error: BaseException | None) -> None:
        found = call.command
        if came is None and error is not None:
            span, _ = self.begin_step(found, self.clock.ns(call.started))
            self.end_step(span, found, attempt, error)
        elif came is not None and error is not None and attempt == 1:
            self._raised(came, found, came.end_time or 0)
        elif came is not None:
            self._export(came)

    @harmless
    def received(self, found: Any, encoded: bytes) -> None:
        """Spans that ended in the process of a step, with its own among them."""
        from supervisor.tracing import relay

        own = traces.step_span_id(found.run.id, found.seq, found.attempt)
        for span in relay.decode(encoded, self.provider.provider.resource):
            if span.context is not None and span.context.span_id == own:
                self._came[own] = span
            else:
                self._export(span)

    def flush(self) -> None:
        if self._senders is not None:
            self._senders.send_all()
        self.provider.flush()
