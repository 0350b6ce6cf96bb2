"""Hints to the hosts that runs were started: coalesced, at most 100 a second from one process.

Decides what is said and when; saying it is the client's affair. A hint that is not sent is no loss: hosts look by
themselves, every 20 ms while there is work and every half second when there was none.
"""

from __future__ import annotations

import threading
import time

import msgspec

PER_S, BURST = 100.0, 10.0
DELAY_MAX_S = 1.0  # what becomes due later is seen by the hosts' own look
KINDS_MAX = 50  # of starts in one hint; a name is at most 500 characters, a notification 8,000 bytes
PAYLOAD_BYTES_MAX = 7_900


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
    """What one client has started and not announced yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: dict[tuple[str, str | None, float], int] = {}

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
