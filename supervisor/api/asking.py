"""Asking: of all runs that one client waits for, about which is the database asked, and when?

Decides and does nothing else: no thread, no session, no clock. A run that was started just now is first asked about when quick runs
of late had ended: a question before that is answered in vain, and in the way of those who do the work. While few wait for such runs the database
answers when the first of them has ended, within a moment. Then it is asked about at a tenth
of the time that it has been waited for, from 0.3 ms apart: a quick run's result is late by the time of a question, a slow one's by at most a tenth. Where
hosts announce what ends, a run that was told to them is asked about when they say so, and else more and more rarely.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from math import ceil, floor, log2
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from supervisor.db.client_calls import Outcome

PACE = 0.1
PAUSE_MIN_S, PAUSE_MAX_S, PAUSE_MAX_MANY_S = 0.0003, 0.2, 1.0
PAUSE_PER_RUN_S = 0.0001  # the longest pause of a tenth of a thousandth of a second for each that is waited for, within those bounds
TOLD_PAUSE_MIN_S, TOLD_PAUSE_MAX_S = 0.1, 2.0  # where an ending is announced
QUICK_S = 0.01  # a run that ended within that after its start says something about the next one
USUAL_S, STEP = 0.0016, 0.04  # after its start the first is expected to be found; by how much one moves what is expected of the next
EARLY, FRESH_S = 0.5, 0.0008  # when a run is first asked about: before it usually ends, for the database waits; not within that after its start
NEAR_ASKS, FEW = 3, 8
TOGETHER_S = 0.0005  # who is to be asked about that soon is asked about now
IDS_MAX, MANY = 1000, 100
SLOW_S = 0.1  # a run that has been waited for so long is told to the hosts
SURE_S = 0.5  # an announcement that has not come that long after the run was told is missing
MISSED_MAX = 3
# questions: as many as one likes where few wait, 40 a second where ten thousand do; some may be saved up
PER_S_MIN, PER_S_AND_RUN, BURST = 40.0, 400_000.0, 20.0


class Place:
    """Somebody who waits for one run. *stir* wakes that one, by its `set()`; `outcome` is what it waits for."""

    __slots__ = ("announced", "ask_at", "asked", "outcome", "run_id", "since", "started_at", "stir", "told_at")

    def __init__(self, run_id: bytes, since: float, started_at: float, ask_at: float, stir: Any) -> None:
        self.run_id, self.since, self.started_at, self.ask_at, self.stir = run_id, since, started_at, ask_at, stir
        self.asked = 0
        self.outcome: Outcome | None = None
        self.told_at = 0.0  # when the hosts were told that it is awaited; 0: not
        self.announced = False


class Asking:
    """All places of one client. Times are the caller's, by one clock; nothing here is thread-safe.

    hears   set by whoever listens: hosts' announcements arrive
    """

    def __init__(self) -> None:
        self.places: set[Place] = set()
        self.hears = False
        self._by_run: dict[bytes, list[Place]] = {}
        self._times: list[tuple[float, int, Place]] = []  # a heap; an entry whose time is not its place's any more is nobody's
        self._numbers = count()
        self._rest_until = 0.0
        self._tokens, self._tokens_at = BURST, 0.0
        self._usual_s = USUAL_S  # after their start quick runs of late were found
        self._missed = 0  # outcomes that should have been announced and were not, one after another

    # ── who waits ────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, run_id: bytes, now: float, started_at: float, stir: Any) -> Place:
        """Somebody begins to wait. A run that was started just now is not asked about at once."""
        place = Place(run_id, now, started_at, max(now, started_at + self._fresh_s()), stir)
        self.places.add(place)
        self._by_run.setdefault(run_id, []).append(place)
        self._plan(place, place.ask_at)
        return place

    def discard(self, place: Place) -> bool:
        """It has what it waited for, or gives up. Whether it was the last one for a run that the hosts were told of."""
        self.places.discard(place)
        others = self._by_run.get(place.run_id, [])
        if place in others:
            others.remove(place)
        if not others:
            self._by_run.pop(place.run_id, None)
        return not others and place.told_at > 0.0

    # ── when ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def next_at(self, now: float) -> float:
        """When the next question is due; inf while nobody waits."""
        while self._times and not self._counts(self._times[0]):
            heapq.heappop(self._times)
        if not self._times:
            return float("inf")
        return max(self._times[0][0], self._rest_until, self._allowed_at(now))

    def take(self, now: float) -> list[Place]:
        """Who is to be asked about now: at most IDS_MAX, those first who are due first. Afterwards call `answered`, or `put_back`."""
        due: list[Place] = []
        while self._times and self._times[0][0] <= now + TOGETHER_S and len(due) < IDS_MAX:
            entry = heapq.heappop(self._times)
            if self._counts(entry):
                entry[2].ask_at = 0.0  # no entry is its own any more
                entry[2].asked += 1
                due.append(entry[2])
        self._tokens -= 1.0
        return due

    def patience_s(self, due: Sequence[Place], now: float) -> float:
        """How long the answer to a question about these may wait for the first of them to end."""
        near = 0 < len(self.places) <= FEW and all(self._is_near(place, now) for place in due)
        return self._usual_s if near else 0.0

    def put_back(self, due: Iterable[Place], now: float) -> None:
        """There was no answer about these."""
        for place in due:
            if not place.ask_at:
                self._plan(place, now)

    def answered(self, due: Sequence[Place], ended: Mapping[bytes, Outcome], asked_at: float, now: float) -> tuple[list[Place], list[bytes]]:
        """Returns who has an outcome now, and runs that the hosts are to be told of."""
        if len(self.places) > FEW or not any(self._is_near(place, now) for place in due):
            self._rest_until = now + (now - asked_at)  # at most half of the time is spent with asking
        done = [place for run_id, outcome in ended.items() for place in self._end(run_id, outcome, now)]
        slow: list[bytes] = []
        for place in due:
            if place.outcome is not None and place.asked:
                self._learn(place, now)
            if place.outcome is not None or place not in self.places or place.ask_at:  # announced meanwhile, perhaps too late for this answer
                continue
            if not place.told_at and now - place.since >= SLOW_S:
                place.told_at = now
                slow.append(place.run_id)
            place.announced = False
            self._plan(place, self._again_at(place, now))
        return done, slow

    def announced(self, ids: Iterable[bytes] | None, now: float) -> bool:
        """Hosts say that these have ended, or that nobody knows which: whether anybody waits for them."""
        found = [place for run_id in (list(self._by_run) if ids is None else ids) for place in self._by_run.get(run_id, ())]
        for place in found:
            place.announced = True
            self._plan(place, now)
        if found:
            self._missed = 0
        return bool(found)

    def forget_told(self, now: float) -> None:
        """Nobody hears what the hosts say of those that they were told of: ask about them, and have them told of again."""
        for place in self.places:
            if place.told_at and place.outcome is None:
                place.told_at = 0.0
                if place.ask_at:
                    self._plan(place, now)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _plan(self, place: Place, at: float) -> None:
        place.ask_at = at
        heapq.heappush(self._times, (at, next(self._numbers), place))

    def _counts(self, entry: tuple[float, int, Place]) -> bool:
        at, _, place = entry
        return place.ask_at == at and place.outcome is None and place in self.places

    def _learn(self, place: Place, now: float) -> None:
        """It has just been found."""
        took_s = now - place.started_at
        if took_s <= QUICK_S:
            self._usual_s *= 1 + STEP if took_s > self._usual_s else 1 - STEP  # so that half take longer, whatever the slow ones take

    def _fresh_s(self) -> float:
        """How long after its start a run is first asked about."""
        return max(FRESH_S, EARLY * self._usual_s)

    def _is_near(self, place: Place, now: float) -> bool:
        """Whether it is likely to end this moment: then, where few are waited for, it is asked about again without a pause."""
        return place.asked <= NEAR_ASKS and now - place.started_at < QUICK_S

    def _allowed_at(self, now: float) -> float:
        per_s = max(PER_S_MIN, PER_S_AND_RUN / max(1, len(self.places)))
        self._tokens = min(BURST, self._tokens + (now - self._tokens_at) * per_s)
        self._tokens_at = now
        return now if self._tokens >= 1.0 else now + (1.0 - self._tokens) / per_s

    def _pause_s(self, place: Place, now: float) -> float:
        waited_s = now - place.since
        if len(self.places) <= FEW and self._is_near(place, now):
            return 0.0
        if place.told_at and self.hears and self._missed < MISSED_MAX:
            return min(max(waited_s, TOLD_PAUSE_MIN_S), TOLD_PAUSE_MAX_S)
        longest_s = min(max(PAUSE_MAX_S, PAUSE_PER_RUN_S * len(self.places)), PAUSE_MAX_MANY_S)
        return min(max(PACE * waited_s, PAUSE_MIN_S), longest_s)

    def _again_at(self, place: Place, now: float) -> float:
        """Where many wait, at one of few moments, so that they are asked about together: late by a quarter of the pause at most."""
        pause_s = self._pause_s(place, now)
        if len(self.places) < MANY:
            return now + pause_s
        apart_s = 2.0 ** floor(log2(pause_s / 4))
        return ceil((now + pause_s) / apart_s) * apart_s

    def _end(self, run_id: bytes, outcome: Outcome, now: float) -> list[Place]:
        places = self._by_run.get(run_id, [])
        for place in places:
            place.outcome = outcome
            if place.told_at and self.hears and not place.announced and now - place.told_at > SURE_S:
                self._missed += 1
        return list(places)
