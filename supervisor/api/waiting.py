"""Waiting for results: of all threads that wait on one client, one asks for all.

Whose turn it is to ask stays with a thread until it has what it waits for or gives up; then another takes over. So there
is no thread of our own, and nothing is left when nobody waits. A run is asked about at a tenth of the time that it
has been waited for, from 0.3 ms to 200 ms: a quick run's result is late by the time of a question, a slow one's by at most a tenth.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supervisor.db.client_calls import Outcome

PACE = 0.1
PAUSE_MIN_S, PAUSE_MAX_S = 0.0003, 0.2
FRESH_S = 0.0008  # hardly a run ends sooner after its start
TOGETHER_S = 0.0005  # who is to be asked about that soon is asked about now
IDS_MAX = 1000


class _Place:
    """One thread that waits for one run."""

    __slots__ = ("ask_at", "outcome", "run_id", "since", "stir")

    def __init__(self, run_id: bytes, since: float, ask_at: float) -> None:
        self.run_id, self.since, self.ask_at = run_id, since, ask_at
        self.outcome: Outcome | None = None
        self.stir = threading.Event()


class Waiter:
    """Threads of one client that wait. *ask* brings the outcomes of those of the given runs that have ended."""

    def __init__(self, ask: Callable[[Sequence[bytes]], Sequence[Outcome]]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._places: set[_Place] = set()
        self._asker: _Place | None = None
        self._rest_until = 0.0

    def wait(self, run_id: bytes, give_up_at: float | None, started_at: float = 0.0) -> Outcome | None:
        """The outcome of a run, or None at *give_up_at* (time.monotonic()). Raises what asking raises.

        started_at   when this process started it, if it did: it is not asked about at once then
        """
        now = time.monotonic()
        place = _Place(run_id, now, max(now, started_at + FRESH_S))
        with self._lock:
            self._places.add(place)
            if self._asker is None:
                self._asker = place
            else:
                self._asker.stir.set()  # it may be asleep for longer than this one wants
        try:
            while place.outcome is None:
                left_s = None if give_up_at is None else give_up_at - time.monotonic()
                if left_s is not None and left_s <= 0:
                    return None
                if self._asker is place:
                    self._turn(place, left_s)
                else:
                    place.stir.wait(left_s)
                    place.stir.clear()
            return place.outcome
        finally:
            self._leave(place)

    def _leave(self, place: _Place) -> None:
        with self._lock:
            self._places.discard(place)
            if self._asker is place:
                self._asker = next((other for other in self._places if other.outcome is None), None)
                if self._asker is not None:
                    self._asker.stir.set()

    def _turn(self, place: _Place, left_s: float | None) -> None:
        """Sleep until somebody's run is to be asked about, or ask."""
        with self._lock:
            waiting = [each for each in self._places if each.outcome is None]
        now = time.monotonic()
        pause_s = max(min(each.ask_at for each in waiting), self._rest_until) - now
        if pause_s > 0:
            place.stir.wait(pause_s if left_s is None else min(pause_s, left_s))
            place.stir.clear()
            return
        due = sorted((each for each in waiting if each.ask_at <= now + TOGETHER_S), key=lambda each: each.ask_at)[:IDS_MAX]
        ended = {outcome.run_id.bytes: outcome for outcome in self._ask(list({each.run_id for each in due}))}
        asked_at, now = now, time.monotonic()
        self._rest_until = now + (now - asked_at)  # at most half of the time is spent with asking
        for each in waiting:
            each.outcome = ended.get(each.run_id)
            if each.outcome is not None:
                each.stir.set()
        for each in due:
            each.ask_at = now + min(max(PACE * (now - each.since), PAUSE_MIN_S), PAUSE_MAX_S)
