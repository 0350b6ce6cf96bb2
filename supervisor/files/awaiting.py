"""Wait for the runs of a file: how many have ended and how, and the failures by fingerprint.

Asks for outcomes through the client's function alone, some thousand ids at a time, in passes over those that have not
ended. Ids lie in a file; the size of an answer is bounded too. Ends when all have ended or the time is over.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from supervisor.core import codec

if TYPE_CHECKING:
    from supervisor.db.client_calls import ClientCalls, Outcome

ID_BYTES = 16
IDS_MAX = 5_000
ANSWER_BYTES = 4 << 20  # results come with the outcomes; how many are asked for follows their size
PAUSE_MIN_S, PAUSE_MAX_S = 0.1, 2.0
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
    many = IDS_MAX
    pause_s = PAUSE_MIN_S
    while True:
        began, before = time.monotonic(), ended.done
        ids.seek(0)
        still = tempfile.SpooledTemporaryFile(16 << 20)
        while chunk := ids.read(many * ID_BYTES):
            outcomes = calls.outcomes([chunk[at : at + ID_BYTES] for at in range(0, len(chunk), ID_BYTES)])
            _note(chunk, outcomes, ended, still)
            show()
            if outcomes:
                mean = sum(len(each.result or b"") for each in outcomes) / len(outcomes)
                many = int(min(IDS_MAX, max(10, ANSWER_BYTES / (mean + 100))))
            if give_up_at is not None and time.monotonic() >= give_up_at:
                break
        left = still.tell() > 0 or ids.read(1) != b""
        if not left:
            return True
        if give_up_at is not None and time.monotonic() >= give_up_at:
            return False
        ids.close()
        ids = still  # type: ignore[assignment]
        pause_s = PAUSE_MIN_S if ended.done > before else min(pause_s * 1.5, PAUSE_MAX_S)
        left_s = pause_s if give_up_at is None else max(0.0, give_up_at - time.monotonic())
        time.sleep(min(max(pause_s, time.monotonic() - began), left_s if give_up_at is not None else PAUSE_MAX_S))  # half of the time is the server's own


def _note(chunk: bytes, outcomes: list[Outcome], ended: Ended, still: BinaryIO | tempfile.SpooledTemporaryFile[bytes]) -> None:
    """Count what has ended; the rest stays to be asked about. A run that is there twice, as a key's, counts twice."""
    by_id = {outcome.run_id.bytes: outcome for outcome in outcomes}
    for at in range(0, len(chunk), ID_BYTES):
        outcome = by_id.get(chunk[at : at + ID_BYTES])
        if outcome is None:
            still.write(chunk[at : at + ID_BYTES])
        else:
            ended.add(outcome)
