"""Wait for the runs of a file: how many have ended and how, and the failures by fingerprint.

Asks for outcomes through the client's function alone. The next of those that have not ended stand in a window, of which the hosts are
told (api/ear.py); what they announce is asked about at once, the rest of the window seldom, and what is behind it, in a
file, when its turn comes. Invariant: the window is bounded, and so is an answer; a run leaves when its outcome was read.
"""

from __future__ import annotations

import tempfile
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from supervisor.api.ear import Ear
from supervisor.core import codec

if TYPE_CHECKING:
    from supervisor.db.client_calls import ClientCalls, Outcome

ID_BYTES = 16
IDS_MIN, IDS_MAX = 200, 5_000  # in one question; at first few, for nobody knows how large results are
ANSWER_BYTES = 4 << 20  # results come with the outcomes; how many are asked for follows their size
WINDOW_RUNS = 20_000  # awaited at a time: 4 MB
PAUSE_S, SLOWER = 0.1, 2.0  # before a run is asked about again, and by how much that grows each time
PAUSE_HEARING_S, PAUSE_ASKING_S = 5.0, 2.0  # at most: where announcements are heard, and where not
HEARD_EVERY_S = 0.05  # what is announced is asked about together
AHEAD_S = 10.0  # a window where nothing ends for so long hides what has ended behind it
FINGERPRINTS_MAX = 100
GOOD = ("completed", "continued")


class Failure(msgspec.Struct):
    """Runs that ended badly in the same way; `run_id` is the first of them."""

    fingerprint: str
    status: str
    error: str
    run_id: uuid.UUID
    runs: int = 0


class Ended(msgspec.Struct):
    """What became of *total* runs so far."""

    total: int
    by_status: dict[str, int] = msgspec.field(default_factory=dict)
    failures: dict[str, Failure] = msgspec.field(default_factory=dict)

    @property
    def done(self) -> int:
        return sum(self.by_status.values())

    @property
    def bad(self) -> int:
        return self.done - sum(self.by_status.get(status, 0) for status in GOOD)

    def add(self, outcome: Outcome) -> None:
        self.by_status[outcome.status] = self.by_status.get(outcome.status, 0) + 1
        if outcome.status in GOOD:
            return
        mark, error = codec.told(outcome.result) if outcome.status == "failed" else (outcome.status, outcome.status.replace("_", " "))
        if mark not in self.failures and len(self.failures) >= FINGERPRINTS_MAX:
            mark, error = "others", "failures of other kinds"
        self.failures.setdefault(mark, Failure(mark, outcome.status, error, outcome.run_id)).runs += 1


def wait(calls: ClientCalls, ids: BinaryIO, ended: Ended, show: Callable[[], None], give_up_at: float | None = None) -> bool:
    """Fill *ended* until all of *ids* have ended; False when *give_up_at* (time.monotonic()) came first."""
    ids.seek(0)
    waiting = _Waiting(calls, ids, ended, show)
    try:
        return waiting.until(float("inf") if give_up_at is None else give_up_at)
    finally:
        waiting.close()


class Window:
    """The runs that are awaited at this moment, in groups that are asked about together, after pauses that double. Pure."""

    def __init__(self) -> None:
        self._times: Counter[bytes] = Counter()  # a key's run may stand in a file twice
        self._groups: list[tuple[float, float, list[bytes]]] = []  # asked about when, the pause after that, runs

    def __len__(self) -> int:
        return len(self._times)

    def __contains__(self, run_id: bytes) -> bool:
        return run_id in self._times

    def add(self, ids: Iterable[bytes], now: float) -> None:
        """Await these too; they are asked about at once."""
        given = Counter(ids)
        self._groups.append((now, PAUSE_S, [run_id for run_id in given if run_id not in self._times]))
        self._times.update(given)

    def next_at(self) -> float:
        return min((at for at, _, _ in self._groups), default=float("inf"))

    def take(self, now: float, pause_max_s: float) -> tuple[list[bytes], list[bytes]]:
        """Those that are asked about now: for the first time, and again. They are one group from here on."""
        due = [group for group in self._groups if group[0] <= now]
        fresh = [run_id for _, pause_s, ids in due if pause_s == PAUSE_S for run_id in ids if run_id in self._times]
        again = [run_id for _, pause_s, ids in due if pause_s != PAUSE_S for run_id in ids if run_id in self._times]
        self._groups = [group for group in self._groups if group[0] > now]
        if fresh:
            self._groups.append((now + PAUSE_S, SLOWER * PAUSE_S, fresh))
        if again:
            pause_s = min(pause_max_s, max(pause_s for _, pause_s, _ in due))
            self._groups.append((now + pause_s, SLOWER * pause_s, again))
        return fresh, again

    def ask_all(self, now: float) -> None:
        """Something was announced, and nobody knows of which."""
        self._groups = [(min(at, now), pause_s, ids) for at, pause_s, ids in self._groups]

    def leave(self, run_id: bytes) -> int:
        """It has ended: how often it was awaited."""
        return self._times.pop(run_id, 0)


class _Waiting:
    """One file's runs: the window over them, what is behind it, and the ear."""

    def __init__(self, calls: ClientCalls, ids: BinaryIO, ended: Ended, show: Callable[[], None]) -> None:
        self._calls, self._behind, self._ended, self._show = calls, ids, ended, show
        self._window = Window()
        self._all_read = False
        self._many = IDS_MIN
        self._ahead_at = time.monotonic() + AHEAD_S
        self._heard: deque[Sequence[bytes] | None] = deque()  # filled on the ear's thread
        self._stir = threading.Event()
        self._ear = Ear(calls.dsn, calls.schema, self._hear)

    def close(self) -> None:
        self._ear.close()

    def until(self, give_up_at: float) -> bool:
        """Until all have ended, or False at *give_up_at*."""
        rest_until = 0.0
        while True:
            self._refill()
            if not self._window and self._all_read:
                return True
            now = time.monotonic()
            if now >= give_up_at:
                return False
            due_at = max(rest_until, now if self._heard else min(self._window.next_at(), self._ahead_at))
            if due_at > now:
                self._stir.wait(min(due_at, give_up_at) - now)
                self._stir.clear()
                continue
            if self._heard:
                self._ask_heard()
            elif self._window.next_at() <= now:
                self._ask_again(now)
            else:
                self._look_ahead(give_up_at)
            asked_s = time.monotonic() - now
            rest_until = now + asked_s + max(asked_s, HEARD_EVERY_S)  # half of the time is the server's own

    def _hear(self, ids: Sequence[bytes] | None) -> None:
        self._heard.append(ids)
        self._stir.set()

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _refill(self) -> None:
        now = time.monotonic()
        while not self._all_read and len(self._window) <= WINDOW_RUNS - IDS_MAX:
            if chunk := self._behind.read(IDS_MAX * ID_BYTES):
                self._window.add(_ids(chunk), now)
                self._ahead_at = now + AHEAD_S
            else:
                self._all_read, self._ahead_at = True, float("inf")

    def _ask_again(self, now: float) -> None:
        """About the groups that are due. Those that had not ended at the second question either are told to the hosts."""
        fresh, again = self._window.take(now, PAUSE_HEARING_S if self._ear.hears else PAUSE_ASKING_S)
        self._ask([*fresh, *again])
        slow = [run_id for run_id in again if run_id in self._window]
        if slow:
            self._ear.awaits(slow)

    def _ask_heard(self) -> None:
        heard: set[bytes] = set()
        while self._heard:
            ids = self._heard.popleft()
            if ids is None:
                self._window.ask_all(time.monotonic())
            else:
                heard.update(run_id for run_id in ids if run_id in self._window)
        self._ask(list(heard))

    def _ask(self, ids: Sequence[bytes]) -> None:
        for outcomes in self._outcomes(ids):
            for outcome in outcomes:
                for _ in range(self._window.leave(outcome.run_id.bytes)):
                    self._ended.add(outcome)
            if outcomes:
                self._ear.leaves(outcome.run_id.bytes for outcome in outcomes)

    def _look_ahead(self, give_up_at: float) -> None:
        """Count what has ended behind a window that stands still."""
        began = time.monotonic()
        behind = tempfile.SpooledTemporaryFile(16 << 20)
        while time.monotonic() < give_up_at and (chunk := self._behind.read(IDS_MAX * ID_BYTES)):
            ids = _ids(chunk)
            found = {outcome.run_id.bytes: outcome for outcomes in self._outcomes(ids) for outcome in outcomes}
            for run_id in ids:
                if run_id in found:
                    self._ended.add(found[run_id])
            behind.write(b"".join(run_id for run_id in ids if run_id not in found))
        if time.monotonic() < give_up_at:  # else nobody asks for the rest any more
            behind.seek(0)
            self._behind.close()
            self._behind = behind  # type: ignore[assignment]
        now = time.monotonic()
        self._ahead_at = now + max(AHEAD_S, 10 * (now - began))

    def _outcomes(self, ids: Sequence[bytes]) -> Iterable[list[Outcome]]:
        """How those of *ids* ended that have, some thousand at a time."""
        at = 0
        while at < len(ids):
            outcomes = self._calls.outcomes(ids[at : at + self._many])
            at += self._many
            if outcomes:
                mean = sum(len(each.result or b"") for each in outcomes) / len(outcomes)
                self._many = int(min(IDS_MAX, max(10, ANSWER_BYTES / (mean + 100))))
            else:
                self._many = min(IDS_MAX, 2 * self._many)
            yield outcomes
            self._show()


def _ids(chunk: bytes) -> list[bytes]:
    return [chunk[at : at + ID_BYTES] for at in range(0, len(chunk), ID_BYTES)]
