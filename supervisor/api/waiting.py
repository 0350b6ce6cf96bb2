"""Waiting for results: of all threads that wait on one client, one asks for all.

Whose turn it is to ask stays with a thread until it has what it waits for or gives up; then another takes over. So there
is no thread of our own, and nothing is left when nobody waits. What is asked when stands in asking.py; runs that take long are
told to the hosts, whose answers an ear hears (ear.py), which is made when the first of them is waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from supervisor.api.asking import Asking, Place

if TYPE_CHECKING:
    from supervisor.api.ear import Ear, Heard
    from supervisor.db.client_calls import Outcome


class Waiter:
    """Threads of one client that wait.

    ask   brings the outcomes of those of the given runs that have ended; where none has, its answer may wait for so many seconds
    ear   makes the ear, which calls what it is given; without one all is found by asking
    """

    def __init__(self, ask: Callable[[Sequence[bytes], float], Sequence[Outcome]], ear: Callable[[Heard], Ear] | None = None) -> None:
        self._ask, self._make_ear = ask, ear
        self._lock = threading.Lock()
        self._asking = Asking()
        self._places = self._asking.places
        self._asker: Place | None = None
        self._asleep_until = 0.0  # the one whose turn it is
        self._ear: Ear | None = None

    def wait(self, run_id: bytes, give_up_at: float | None, started_at: float = 0.0) -> Outcome | None:
        """The outcome of a run, or None at *give_up_at* (time.monotonic()). Raises what asking raises.

        started_at   when this process started it, if it did: it is not asked about at once then
        """
        now = time.monotonic()
        with self._lock:
            place = self._asking.add(run_id, now, started_at, threading.Event())
            if self._asker is None:
                self._asker = place
            elif self._asking.next_at(now) < self._asleep_until:  # it sleeps for longer than this one wants
                self._asker.stir.set()
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

    def close(self) -> None:
        """End the ear's session; who waits goes on, and opens another."""
        with self._lock:
            ear, self._ear = self._ear, None
            self._asking.forget_told(time.monotonic())
            if self._asker is not None:
                self._asker.stir.set()
        if ear is not None:
            ear.close()

    def _leave(self, place: Place) -> None:
        with self._lock:
            if self._asking.discard(place) and self._ear is not None:
                self._ear.leaves([place.run_id])
            if self._asker is place:
                self._asker = next((other for other in self._places if other.outcome is None), None)
                if self._asker is not None:
                    self._asker.stir.set()

    def _turn(self, place: Place, left_s: float | None) -> None:
        """Sleep until somebody's run is to be asked about, or ask."""
        asked_at = time.monotonic()
        with self._lock:
            self._asking.hears = self._ear is not None and self._ear.hears
            pause_s = self._asking.next_at(asked_at) - asked_at
            self._asleep_until = asked_at + pause_s
            due = self._asking.take(asked_at) if pause_s <= 0 else []
            patience_s = self._asking.patience_s(due, asked_at)
        if pause_s > 0:
            place.stir.wait(pause_s if left_s is None else min(pause_s, left_s))
            place.stir.clear()
            return
        try:
            ended = {outcome.run_id.bytes: outcome for outcome in self._ask(list({each.run_id for each in due}), patience_s)}
        except BaseException:
            with self._lock:
                self._asking.put_back(due, time.monotonic())
            raise
        with self._lock:
            done, slow = self._asking.answered(due, ended, asked_at, time.monotonic())
            if slow and self._make_ear is not None:
                self._ear = self._ear or self._make_ear(self._heard)
                self._ear.awaits(slow)
        for each in done:
            each.stir.set()

    def _heard(self, ids: Sequence[bytes] | None) -> None:
        """On the ear's thread: these have ended, or nobody knows which."""
        with self._lock:
            if self._asking.announced(ids, time.monotonic()) and self._asker is not None:
                self._asker.stir.set()
