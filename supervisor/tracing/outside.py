"""Spans of runs that were ended from outside: no worker ended them, so those that trace ask for them.

Owns that question, every five seconds. An end is its taker's for a minute and forgotten when its span was handed to the exporter, so a span is lost with
no session and sent twice only if its worker died in between; it is the same span then.
"""

from __future__ import annotations

import logging
import struct
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Link

from supervisor.db.arrays import encode_ids, encode_rows
from supervisor.db.pipeline import Refused
from supervisor._fastpath.loop import UUID
from supervisor.tracing import names
from supervisor.tracing.attempts import Tried
from supervisor.tracing.runs import EPOCH_2000_NS, OUTCOMES, RunTrace, harmless
from supervisor.tracing.senders import read

if TYPE_CHECKING:
    from supervisor.tracing.runs import Traces

log = logging.getLogger("pgsupervisor.traces")

LOOK_S, BUSY_S = 5.0, 0.1
ENDS_MAX = 200  # of one question
_i2, _i4, _i8, _param = (struct.Struct(form) for form in (">h", ">i", ">q", ">i"))


class Ends:
    """The question."""


@dataclass
class Steps:
    """The question for steps of runs that had no result when they were ended, and for who had sent them something; and what is known of the runs."""

    rows: list[list[bytes | None]]


@dataclass
class Workflow:
    name: str


@dataclass
class Ended:
    """As much of a run as its span says."""

    id: bytes
    workflow: Workflow
    key: bytes | None
    now_us: int = 0


class Outside:
    """Of one worker, whose session it uses."""

    def __init__(self, worker: Any, traces: Traces) -> None:
        self._worker, self._traces = worker, traces
        self._sent: list[bytes] = []
        self._told = False

    def look(self) -> None:
        """Ask, and again in a while; soon where the session has enough to do."""
        self._worker.commands.call_later(LOOK_S if self._ask() else BUSY_S, self.look)

    def _ask(self) -> bool:
        if self._worker.held or self._worker.pipeline.waiting > 1:
            return False
        [sent] = encode_rows((UUID,), [(run_id,) for run_id in self._sent])
        self._worker.ask(Ends(), [("take_trace_ends", [sent, _param.pack(ENDS_MAX)])])
        return True

    def answered(self, _: Ends, answer: Any) -> None:
        if isinstance(answer, Refused):
            log.log(logging.DEBUG if self._told else logging.WARNING, "spans of runs that are ended from outside are missing: %s (%s)", answer.message, answer.sqlstate)
            self._told = True
            return
        rows, self._sent = answer["take_trace_ends"], []
        if rows.ntuples:
            ids = encode_ids([rows.get_value(row, 0) for row in range(rows.ntuples)])
            taken = Steps([[rows.get_value(row, column) for column in range(14)] for row in range(rows.ntuples)])
            self._worker.ask(taken, [("plan_custom", None), ("read_tried", ids), ("read_senders", ids), ("plan_generic", None)])

    def told(self, taken: Steps, answer: Any) -> None:
        tried: dict[bytes, dict[int, Tried]] = defaultdict(dict)
        senders: dict[bytes, list[Link]] = {}
        if isinstance(answer, Refused):
            log.warning("spans of steps of %d runs are missing: %s (%s)", len(taken.rows), answer.message, answer.sqlstate)
        else:
            rows = answer["read_tried"]
            for row in range(rows.ntuples):
                run_id, seq, name, began, last = (rows.get_value(row, column) for column in range(5))
                tried[run_id][_i4.unpack(seq)[0]] = Tried(name.decode(), _i8.unpack(began)[0], _i4.unpack(last)[0])
            senders = read(answer["read_senders"])
        for each in taken.rows:
            self._send(each, tried.get(each[0] or b"", {}), senders.get(each[0] or b"", []))
        self._sent = [each[0] for each in taken.rows if each[0] is not None]
        self._ask()

    @harmless
    def _send(self, row: list[bytes | None], tried: dict[int, Tried], senders: list[Link]) -> None:
        run_id, workflow, queue, key, status, steps, waits, result, ended, *told = row
        assert run_id and workflow and queue and status and steps and waits and ended
        traces, run = self._traces, Ended(run_id, Workflow(workflow.decode()), key)
        about = RunTrace(0, tuple(told))
        about.begin(run, traces.provider, traces.clock)
        about.tried = tried
        about.links += senders
        if about.span_context.trace_flags.sampled:
            about.span.attributes |= {names.RUN_QUEUE: queue.decode(), names.RUN_WAITS: _i8.unpack(waits)[0]}
            ended_ns = (_i8.unpack(ended)[0] - traces.clock.offset_us) * 1000 + EPOCH_2000_NS
            traces.send(run, about, OUTCOMES[_i2.unpack(status)[0]], _i4.unpack(steps)[0], result or b"", ended_ns)
