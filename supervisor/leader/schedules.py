"""Schedules: fire the ticks that are due, wake the runs that waited for the one before them. A duty of the leader.

What is due comes with the leader's beat, so nothing is asked while nothing is due. Ticks are computed here, in slices of a
few milliseconds; a slice is fired, and its schedules are moved on, in one transaction after `as_leader(term)`. A refusal, a lost
session or a kill at any point leaves either all of that or nothing, and the next look begins with what is still due.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from supervisor.core.errors import DatabaseUnavailable
from supervisor.core.schedules import Due, Planned, backfill_of, plan
from supervisor.leader.burial import Burials
from supervisor.leader.talk import TERM_ENDED, Ask, Talk, is_refused

log = logging.getLogger("pgsupervisor.leader")

ROWS_MAX = 100  # schedules of one transaction
BACKFILLS_MAX = 4  # beside them
SLICE_S = 0.01  # of computing ticks; the loop turns in between
SLICE_TICKS = 200
SLACK_S = 0.002  # a look before the time finds nothing
AGAIN_S = 1.0  # after a refusal
KINDS_MAX = 10  # workflows in one announcement; names have 500 characters at most, a notification 8,000 bytes

Announce = Callable[[str], None]


class Schedules:
    """The duty. *announce* tells the hosts what was started, as JSON; a hint."""

    def __init__(self, burials: Burials, announce: Announce) -> None:
        self._burials, self._announce = burials, announce
        self._term = 0
        self._next = float("inf")  # of the loop: the next look
        self._held = False
        self._out = False  # whether a talk is going on

    def begin(self, term: int) -> None:
        self._term, self._next, self._held = term, float("inf"), False

    def stop(self) -> None:
        self.begin(0)

    def heard(self, next_s: float | None, held: bool) -> None:
        """The beat: when the next schedule is due, and whether runs are held or backfills at work."""
        self._held = held
        if held:
            self._next = 0.0
        elif next_s is not None:
            self._next = min(self._next, time.monotonic() + next_s + SLACK_S)

    def due(self) -> float:
        return float("inf") if self._out or not self._term else self._next

    def act(self) -> None:
        if time.monotonic() >= self.due():
            self._out, self._next = True, float("inf")
            self._burials.begin(self._look(self._term, self._held), self._looked, self._refused)

    def _looked(self, due_s: float | None) -> None:
        self._out = False
        if due_s is not None:
            self._next = min(self._next, time.monotonic() + due_s + SLACK_S)

    def _refused(self, error: DatabaseUnavailable) -> None:
        self._out = False
        if not is_refused(error, TERM_ENDED):
            log.warning("schedules are fired later: %s", error)
            self._next = time.monotonic() + AGAIN_S

    # ── the talk ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _look(self, term: int, held: bool) -> Talk:
        """Until nothing is due; returns how soon one of those that were fired is due again."""
        fence = ("as_leader", (term,))
        if held:
            self._tell((yield Ask("release_held", (ROWS_MAX,), fence)))
        soonest: float | None = None
        before: list[Due] = []
        while term == self._term:
            rows = yield Ask("schedules_due", (ROWS_MAX, BACKFILLS_MAX))
            dues = [Due(*row) for row in rows]
            if dues and _same(dues, before):  # whoever has them locked keeps them
                return AGAIN_S
            before = dues
            for part in _parts([due if due.backfill is None else backfill_of(due) for due in dues]):
                self._tell((yield Ask("fire_schedules", (json.dumps([planned.as_json(due) for due, planned in part]),), fence)))
                soonest = min((each for each in (soonest, *_waits(part)) if each is not None), default=None)
            if len(dues) < ROWS_MAX:
                return soonest
        return None

    def _tell(self, started: Sequence[tuple[str, str | None, int]]) -> None:
        if started:
            log.debug("schedules: %d runs started", sum(n for *_, n in started))
            self._announce(json.dumps([[workflow, queue, n, 0.0] for workflow, queue, n in started[:KINDS_MAX]]))


def _parts(dues: list[Due]) -> Iterator[list[tuple[Due, Planned]]]:
    """What is to be done with each, in slices that take no longer than the loop may be held up."""
    part: list[tuple[Due, Planned]] = []
    began, ticks = time.monotonic(), 0
    for due in dues:
        planned = plan(due)
        part.append((due, planned))
        ticks += len(planned.ticks)
        if ticks >= SLICE_TICKS or time.monotonic() - began > SLICE_S:
            yield part
            part, began, ticks = [], time.monotonic(), 0
    if part:
        yield part


def _same(these: list[Due], those: list[Due]) -> bool:
    return [each._replace(now=None) for each in these] == [each._replace(now=None) for each in those]  # type: ignore[arg-type]


def _waits(part: list[tuple[Due, Planned]]) -> Iterator[Any]:
    """Seconds until each is due again, from when it was read."""
    for due, planned in part:
        if planned.due_at is not None and due.backfill is None:
            yield max(0.0, (planned.due_at - due.now).total_seconds())
