"""Links from a run's span to those in which the signals and updates were sent that it was given.

Owns the question for them, asked of runs that had any when their end is durable; their spans are sent with the answer, or without it where there
is none within seconds: nothing waits for it, and a lost session costs links and no span.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Link

from supervisor.core import traces
from supervisor.db.arrays import encode_ids
from supervisor.db.pipeline import Refused
from supervisor.tracing import names
from supervisor.tracing.runs import harmless, read_context

if TYPE_CHECKING:
    from supervisor.tracing.runs import Traces

WITHIN_S = 5.0


class Asked:
    """The question."""

    def __init__(self, ends: list[tuple[Any, ...]]) -> None:
        self.ends = ends


class Senders:
    """Of one worker, whose session it uses: runs that have ended and whose spans wait."""

    def __init__(self, worker: Any, traces: Traces) -> None:
        self._worker, self._traces = worker, traces
        self._ends: list[tuple[Any, ...]] = []
        self._asked: list[Asked] = []

    def ask(self, *end: Any) -> None:
        """Send the span of a run, what `Traces.send` is given, when it is known who had sent it something."""
        if not self._ends:
            self._worker.commands.call_later(0.0, self._ask)
        self._ends.append(end)

    def _ask(self) -> None:
        if not self._ends:
            return
        asked, self._ends = Asked(self._ends), []
        self._asked.append(asked)
        self._worker.commands.call_later(WITHIN_S, self._late, asked)
        if not self._worker.held:
            ids = encode_ids([run.id for run, *_ in asked.ends])
            self._worker.ask(asked, [("plan_custom", None), ("read_senders", ids), ("plan_generic", None)])

    def answered(self, asked: Asked, answer: Any) -> None:
        self._send(asked, {} if isinstance(answer, Refused) else read(answer["read_senders"]))

    def _late(self, asked: Asked) -> None:
        self._send(asked, {})

    @harmless
    def _send(self, asked: Asked, links: dict[bytes, list[Link]]) -> None:
        if asked not in self._asked:  # there was no answer in time, or there was one
            return
        self._asked.remove(asked)
        for run, about, *end in asked.ends:
            about.links += links.get(run.id, ())
            self._traces.send(run, about, *end)

    def send_all(self) -> None:
        """The worker ends."""
        self._asked.append(Asked(self._ends))
        self._ends = []
        for asked in [*self._asked]:
            self._send(asked, {})


def read(rows: Any) -> dict[bytes, list[Link]]:
    """Links by run."""
    found: dict[bytes, list[Link]] = defaultdict(list)
    for row in range(rows.ntuples):
        run_id, name, parent, state = (rows.get_value(row, column) for column in range(4))
        if (told := traces.read(parent.decode(), state.decode() if state else None)) is not None:
            found[run_id].append(Link(read_context(told), {names.LINK: "sender", names.WAIT: name.decode("utf-8", "replace")}))
    return found
