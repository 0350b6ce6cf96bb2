"""Awaited runs: clients say which, and are told when they have ended.

A part of the parent's loop without a session of its own: the leadership's `ears` hears who awaits what and says what has
ended. Owns who is told; the workers note what ended (engine/endings.py), and only while anybody awaits anything. Hints and nothing
more: whoever is not told asks, a little later. What is awaited is forgotten after one to two minutes, and clients say it again before.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from supervisor.core import awaited
from supervisor.engine.endings import Endings

TOLD_PER_S = 50.0  # statements at most, whoever and how many are told
FORGET_S = 60.0  # two generations: what is awaited lives for one of them at least
AWAITED_MAX = 200_000  # in a generation: 50 MB; whoever awaits more looks for the rest
TEXTS_MAX = 64  # notifications in one statement

# channel's tokens and payloads, then what becomes of it
Say = Callable[[list[str], list[str], Callable[[bool], None]], None]


class Awaited:
    """Hears (`heard`) what is awaited, reads what ended, says it.

    say   sends notifications, one payload to each token, and calls back with whether it could
    """

    def __init__(self, endings: Endings, say: Say) -> None:
        self._endings, self._say = endings, say
        self._newer: dict[bytes, tuple[str, ...]] = {}  # run id → tokens of the clients that await it
        self._older: dict[bytes, tuple[str, ...]] = {}
        self._ended: dict[str, list[bytes] | None] = {}  # token → what it is to be told; None: to ask about everything
        self._forget_at = float("inf")
        self._next_at = 0.0  # before then nothing is said
        self._saying = False

    def heard(self, payload: str) -> None:
        """A client awaits runs, or awaits them still."""
        token, ids = awaited.read_asked(payload)
        if not ids:
            return
        if self._forget_at == float("inf"):
            self._endings.take()  # what was noted while nobody looked
            self._endings.want(True)
            self._forget_at = time.monotonic() + FORGET_S
        newer = self._newer
        for run_id in ids[: max(0, AWAITED_MAX - len(newer))]:
            others = newer.get(run_id, ())
            if token not in others:
                newer[run_id] = (*others, token)

    # ── the part of the loop ─────────────────────────────────────────────────────────────────────────────────────

    def sockets(self) -> tuple[list[int], list[int]]:
        watching = self._forget_at != float("inf") and not self._saying and time.monotonic() >= self._next_at
        return [self._endings.fd] if watching else [], []

    def due(self) -> float:
        if self._saying or not (self._ended or time.monotonic() < self._next_at):
            return self._forget_at
        return min(self._forget_at, self._next_at)  # when the descriptor is watched again

    def act(self, readable: set[int], writable: set[int]) -> None:
        now = time.monotonic()
        if now >= self._forget_at:
            self._forget(now)
        if not self._saying and now >= self._next_at:
            self._sort(*self._endings.take())
            self._tell(now)

    def close(self) -> None:
        pass

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _forget(self, now: float) -> None:
        self._older, self._newer = self._newer, {}
        self._forget_at = now + FORGET_S if self._older else float("inf")
        self._endings.want(bool(self._older))

    def _sort(self, ids: list[bytes], overrun: bool) -> None:
        newer, older, ended = self._newer, self._older, self._ended
        for run_id in ids:
            tokens = newer.pop(run_id, ()) + older.pop(run_id, ())
            for token in tokens:
                waiting = ended.setdefault(token, [])
                if waiting is not None:
                    waiting.append(run_id)
        if overrun:
            ended.update(dict.fromkeys({token for each in (newer, older) for tokens in each.values() for token in tokens}))

    def _tell(self, now: float) -> None:
        if not self._ended:
            return
        tokens: list[str] = []
        payloads: list[str] = []
        for token, ids in self._ended.items():
            texts = [awaited.ALL] if ids is None or len(ids) > TEXTS_MAX * awaited.IDS_MAX else awaited.texts(ids)
            if tokens and len(tokens) + len(texts) > TEXTS_MAX:
                break
            tokens += [token] * len(texts)
            payloads += texts
        told = set(tokens)
        for token in told:
            del self._ended[token]
        self._saying, self._next_at = True, now + 1 / TOLD_PER_S

        def said(done: bool) -> None:
            self._saying = False
            if not done:  # nobody knows what of it arrived
                self._ended.update(dict.fromkeys(told))

        self._say(tokens, payloads, said)
