"""Hints to the hosts that runs were started and signals sent, and to who waits that runs were ended without a worker: at most 100 a second from one process.

Decides what is said and when; saying it is the client's affair. A hint that is not sent is no loss: hosts look by
themselves, every 20 ms while there is work and every half second when there was none, and who waits every two seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from supervisor.core import awaited

if TYPE_CHECKING:
    from supervisor.db.client_calls import Question, Questions, Told
    from supervisor.db.operator_calls import Done

PER_S, BURST = 100.0, 10.0
DELAY_MAX_S = 1.0  # what becomes due later is seen by the hosts' own look
KINDS_MAX = 50  # of starts in one hint; a name is at most 500 characters, a notification 8,000 bytes
OWNERS_MAX = 500  # workers in one hint; a number has at most 10 digits
PAYLOAD_BYTES_MAX = 7_900
ENDED_MAX = 20_000  # ids that wait to be said; 56 notifications


class Allowance:
    """A token per hint: PER_S flow in, BURST are held. For all clients of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens, self._at = BURST, 0.0

    def take(self, now_s: float) -> bool:
        """Whether one more may be sent now."""
        with self._lock:
            self._tokens = min(BURST, self._tokens + (now_s - self._at) * PER_S)
            self._at = now_s
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True


_allowance = Allowance()


class Hints:
    """What one client has started, or ended, and not announced yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: dict[tuple[str, str | None, float], int] = {}
        self._ended: list[bytes] = []
        self._owners: set[int] = set()

    def add(self, workflow: str, queue: str | None, runs: int, delay_s: float) -> None:
        if runs > 0 and delay_s <= DELAY_MAX_S:
            with self._lock:
                if len(self._started) < KINDS_MAX:
                    kind = (workflow, queue, delay_s)
                    self._started[kind] = self._started.get(kind, 0) + runs

    def take_with(self, workflow: str, queue: str | None, delay_s: float) -> str | None:
        """The hint that goes out with a start of one run, if one may be sent now; else `add` it when it is durable."""
        if delay_s > DELAY_MAX_S or len(self._started) >= KINDS_MAX or not _allowance.take(time.monotonic()):
            return None
        self.add(workflow, queue, 1, delay_s)
        return self._taken()

    def may(self) -> bool:
        """Whether what is done now may be announced with it."""
        return _allowance.take(time.monotonic())

    def take(self) -> str | None:
        """The hint to be sent now, if there is one and it may be sent."""
        if not self._started or not _allowance.take(time.monotonic()):
            return None
        return self._taken()

    def _taken(self) -> str | None:
        with self._lock:
            started, self._started = self._started, {}
        hints = [(workflow, queue, runs, delay_s) for (workflow, queue, delay_s), runs in started.items()]
        text = msgspec.json.encode(hints)
        while len(text) > PAYLOAD_BYTES_MAX:
            hints = hints[: len(hints) // 2]
            text = msgspec.json.encode(hints)
        return text.decode() if hints else None

    def ended(self, ids: Sequence[bytes]) -> None:
        """These were ended without a worker, durably."""
        with self._lock:
            self._ended += ids[: max(0, ENDED_MAX - len(self._ended))]

    def take_ended(self) -> str | None:
        """Up to a notification's number of them, to be told to who waits, if it may be sent now."""
        if not self._ended or not _allowance.take(time.monotonic()):
            return None
        with self._lock:
            ids, self._ended = self._ended[: awaited.IDS_MAX], self._ended[awaited.IDS_MAX :]
        return awaited.texts(ids)[0] if ids else None

    def operated(self, told: Sequence[Told | Done]) -> None:
        """This was done to them, durably: what has ended, who has the others, and what was woken to look."""
        self.ended([each.run_id.bytes for each in told if each.ended])
        for each in told:
            if each.owner is not None:
                self.signalled(each.owner)
            elif not each.ended and each.workflow is not None:
                self.add(each.workflow, each.queue, 1, 0.0)

    def signalled(self, owner: int) -> None:
        """A signal was sent to a run that worker *owner* has."""
        with self._lock:
            if len(self._owners) < OWNERS_MAX:
                self._owners.add(owner)

    def take_owners(self) -> str | None:
        """The workers to be told of signals now, if there are any and they may be."""
        if not self._owners or not _allowance.take(time.monotonic()):
            return None
        with self._lock:
            owners, self._owners = self._owners, set()
        return msgspec.json.encode(sorted(owners)).decode()

    def announcements(self, questions: Questions) -> Iterator[Question]:
        """What is to be said now, each in a transaction of its own."""
        if (hint := self.take()) is not None:
            yield questions.announcement(hint)
        if (hint := self.take_owners()) is not None:
            yield questions.announcement_of_signals(hint)
        while (hint := self.take_ended()) is not None:
            yield questions.announcement_of_ends(hint)
