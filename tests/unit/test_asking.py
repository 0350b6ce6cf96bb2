"""Which run is asked about when: with a clock of the test's own, and thousands that wait."""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import pytest

from supervisor.api import asking
from supervisor.api.asking import Asking, Place
from supervisor.db.client_calls import Outcome

QUESTION_S = 0.005  # what a question with a thousand ids takes
PATIENCE_MAX_S = 0.002  # of the database


def outcome(run_id: bytes) -> Outcome:
    return Outcome(uuid.UUID(bytes=run_id), "completed", b"1", datetime.now(timezone.utc))


@dataclass
class Client:
    """One that asks whenever it may, of a server that answers at once; runs end when `ends` says so."""

    hears: bool
    hosts_announce: bool = True
    now: float = 100.0
    ends: dict[bytes, float] = field(default_factory=dict)
    asked: list[tuple[float, int]] = field(default_factory=list)
    told: list[bytes] = field(default_factory=list)
    asking: Asking = field(default_factory=Asking)
    late_s: dict[bytes, float] = field(default_factory=dict)
    question_s: float = QUESTION_S

    def waits(self, n: int, ends_at: float = float("inf"), started_at: float = 0.0) -> Place:
        run_id = n.to_bytes(16, "big")
        self.ends[run_id] = ends_at
        return self.asking.add(run_id, self.now, started_at, threading.Event())

    def go_on(self, until: float) -> None:
        self.asking.hears = self.hears
        while True:
            heard = min((at for run_id, at in self.ends.items() if at > self.now), default=float("inf")) if self.hears and self.hosts_announce else float("inf")
            at = max(self.now, min(self.asking.next_at(self.now), heard))
            if at >= until:
                self.now = until
                return
            self.now = at
            if at == heard:
                self.asking.announced([run_id for run_id, end in self.ends.items() if end == at and run_id in self.told], at)
            if self.asking.next_at(self.now) <= self.now:
                self._ask()

    def _ask(self) -> None:
        due = self.asking.take(self.now)
        ids = {place.run_id for place in due}
        assert 0 < len(ids) <= asking.IDS_MAX
        self.asked.append((self.now, len(ids)))
        asked_at, looks_until = self.now, self.now + min(self.asking.patience_s(due, self.now), PATIENCE_MAX_S)
        answered_at = max(asked_at, min(looks_until, min(self.ends[run_id] for run_id in ids)))
        ended = {run_id: outcome(run_id) for run_id in ids if self.ends[run_id] <= answered_at}
        self.now = answered_at + self.question_s
        done, slow = self.asking.answered(due, ended, asked_at, self.now)
        self.told += slow
        for place in done:
            self.late_s[place.run_id] = self.now - self.ends[place.run_id]
            self.asking.discard(place)

    def questions(self, since: float, until: float) -> int:
        return sum(since <= at < until for at, _ in self.asked)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("hears", [True, False])
def test_ten_thousand_cost_less_than_fifty_questions_a_second(hears: bool, together: bool) -> None:
    """As soon as they wait, whether announcements arrive or not, whether they all began at once or within seconds."""
    client = Client(hears)
    for n in range(10_000):
        client.waits(n)
        if not together and n % 10 == 9:
            client.go_on(client.now + 0.004)
    all_wait = client.now
    client.go_on(130.0)
    assert client.questions(all_wait, all_wait + 10.0) <= 50 * 10
    assert all(client.questions(all_wait + n, all_wait + n + 1.0) <= 65 for n in range(20)), "twenty may be saved up"
    assert len(client.told) == len(set(client.told)) == 10_000
    at_rest = client.questions(120.0, 130.0) / 10
    assert at_rest <= (8 if hears else 16), "each run every 2 s, or every second"


@pytest.mark.parametrize("hears", [True, False])
def test_a_quick_run_among_ten_thousand_slow_ones_is_as_quick_as_ever(hears: bool) -> None:
    """One that waits for quick runs, one by one, shares a client with them."""
    client = Client(hears)
    for n in range(10_000):
        client.waits(n)
    client.go_on(130.0)
    for n in range(10_000, 10_020):
        client.waits(n, ends_at=client.now + 0.003)
        client.go_on(client.now + 1.0)
    late = sorted(late_s for run_id, late_s in client.late_s.items())
    assert len(late) == 20 and late[10] < 0.03, late


def test_a_slow_run_that_is_announced_is_asked_about_at_once() -> None:
    """Its outcome is late by a question; without announcements by a tenth of its time."""
    client = Client(hears=True)
    client.waits(1, ends_at=105.0)
    client.go_on(110.0)
    assert client.late_s.popitem()[1] < 2 * QUESTION_S
    assert len([at for at, _ in client.asked if at > 100.5]) <= 4, "and it was hardly asked about before"
    alone = Client(hears=False)
    alone.waits(1, ends_at=105.0)
    alone.go_on(110.0)
    assert alone.late_s.popitem()[1] <= asking.PAUSE_MAX_S + 2 * QUESTION_S


def test_hosts_that_announce_nothing_are_not_relied_on() -> None:
    """Of an older version, say: three runs are late by two seconds at most, those after them by a tenth."""
    client = Client(hears=True, hosts_announce=False)
    for n in range(8):
        client.waits(n, ends_at=client.now + 5.0)
        client.go_on(client.now + 8.0)
    late = [client.late_s[n.to_bytes(16, "big")] for n in range(8)]
    assert max(late) <= asking.TOLD_PAUSE_MAX_S + 2 * QUESTION_S
    assert max(late[3:]) <= asking.PAUSE_MAX_S + 2 * QUESTION_S
    # and as soon as one is announced they are relied on again
    client.hosts_announce = True
    client.waits(9, ends_at=client.now + 5.0)
    client.go_on(client.now + 8.0)
    assert client.asking._missed == 0


def test_an_announcement_during_a_question_leads_to_another() -> None:
    """The answer that is on its way may be older than the end that was announced."""
    made = Asking()
    made.hears = True
    place = made.add(b"r" * 16, 100.0, 0.0, threading.Event())
    place.told_at = 99.0
    due = made.take(100.0)
    assert made.announced([b"r" * 16], 100.1)
    made.answered(due, {}, 100.0, 100.2)
    assert made.next_at(100.2) <= 100.4
    due = made.take(100.4)
    assert due == [place]
    made.answered(due, {}, 100.4, 100.4)
    assert made.next_at(100.4) > 100.49, "one that is not true is asked about once"


def test_who_waits_for_the_same_run_is_told_together_and_leaves_nothing() -> None:
    """Two threads with one handle: one question for both, and the hosts forget it with the last of them."""
    client = Client(hears=True)
    places = [client.waits(1, ends_at=102.0), client.waits(1, ends_at=102.0)]
    client.go_on(101.0)
    assert not client.asking.discard(places[0]), "the other one still waits"
    client.go_on(104.0)
    assert places[0].outcome is None and places[1].outcome is not None
    assert not client.asking.places and client.asking.next_at(client.now) == float("inf") and not client.asking._by_run


def test_what_could_not_be_asked_is_asked_again() -> None:
    """The one that asked was interrupted: whoever has the next turn asks about all of them."""
    made = Asking()
    places = [made.add(bytes([n]) * 16, 100.0, 0.0, threading.Event()) for n in range(3)]
    made.put_back(made.take(100.0), 100.1)
    assert set(made.take(100.2)) == set(places)


def test_nothing_is_kept_of_ten_thousand_that_gave_up() -> None:
    """A client lives for months."""
    client = Client(hears=True)
    places = [client.waits(n) for n in range(10_000)]
    client.go_on(103.0)
    for place in places:
        client.asking.discard(place)
    client.go_on(110.0)
    kept: Any = client.asking
    assert not kept.places and not kept._by_run and not kept._times


def test_the_first_question_comes_when_quick_runs_of_late_had_ended() -> None:
    """One that comes long before is answered in vain; one that comes after makes the result late. Slow runs say nothing of quick ones."""
    client = Client(hears=False, question_s=0.0004)

    def quick(runs: int, took_s: float) -> tuple[float, float]:
        """Questions a run, and by how much its result was late, over the last half."""
        first = len(client.late_s)
        for n in range(first, first + runs):
            if n == first + runs // 2:
                asked = len(client.asked)
            client.waits(n, client.now + took_s, client.now)
            client.go_on(client.now + 0.01)
        late = list(client.late_s.values())[first + runs // 2 :]
        return (len(client.asked) - asked) / (runs - runs // 2), sum(late) / len(late)

    for took_s in (0.003, 0.0015, 0.004):
        asked, late_s = quick(300, took_s)
        assert 1.0 <= asked < 1.8 and late_s < 0.0008, (took_s, asked, late_s)
    for n in range(1000, 1050):
        client.waits(n, client.now + 1.0, client.now)
        client.go_on(client.now + 3.0)
    asked, late_s = quick(2, 0.004)
    assert asked < 3 and late_s < 0.0008


def test_many_fresh_runs_are_asked_about_with_pauses() -> None:
    """Of few that are about to end one asks without a pause, of many not."""
    client = Client(hears=False, question_s=0.0004)
    for n in range(500):
        client.waits(n, started_at=client.now)
    client.go_on(client.now + 0.05)
    for tenth_ms in range(8, 60):
        few = Client(hears=False, question_s=0.0004)
        few.waits(1, few.now + tenth_ms / 10_000, started_at=few.now)
        few.go_on(few.now + 0.05)
        assert list(few.late_s.values())[0] <= 2.1 * few.question_s, tenth_ms
    assert client.questions(100.0, 100.05) <= 20 + 0.05 * 800
