"""Waking workers: one look per host at what is due, and an ear for what clients announce.

A part of the parent's loop without a session of its own: the look rides on the pulse of the leadership, whose session
`ears` hears for us. Owns who is nudged when. Hints and nothing more: a worker whose parent
is silent looks for itself, and a nudge that finds nothing costs one claim. Of idle workers as few are woken as have
enough threads for what there is. One worker, the ear, hears what clients announce on its own session, 0.3 ms sooner than through
us (bench latency): of what it hears while it waits, that one is not nudged. Of single starts it alone hears, and passes on to us
what it has no room for.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from supervisor.engine.rest import BUSY_FOR_S, POLL_BUSY_S, Board, read_hints

if TYPE_CHECKING:
    from supervisor.host.children import Child

SOON_S = 1.0  # what becomes due within that is waited for; there is another look before
DEPTH = 64  # entries that a pulse looks at in each queue and priority
LOOK_ALL_THE_SAME_S = 10.0  # where a look was wrong
DUE_SLACK_S = 0.001  # a claim before the due time finds nothing
HEARD_S = 0.002  # who hears for itself and ceased to wait within that has heard what we have just heard
_owners = msgspec.json.Decoder(list[int]).decode  # numbers of workers


class Wakeups:
    """Looks (`asks`, `told`), listens (`heard`), nudges.

    children   the workers that there are now
    threads    how many runs one worker begins at once, as far as anybody knows before it began them
    queues     that are served; none: those of the workflows
    workflows  names of those that are served, as soon as they are known
    supervisor the parent's boot id, which its workers registered with
    """

    def __init__(
        self,
        board: Board,
        children: Callable[[], Iterable[Child]],
        threads: int,
        queues: Sequence[str],
        workflows: Callable[[], Collection[str]],
        supervisor: UUID | None = None,
    ) -> None:
        self._board, self._children, self._threads = board, children, threads
        self._queues, self._workflows, self._supervisor = queues, workflows, supervisor
        self._due_at = math.inf  # when the next run that we know of becomes due
        self._poll_at = 0.0
        self._seen_at = -math.inf  # when work was last heard of, or found
        self._nudged_at: dict[int, float] = {}
        self._nudges = itertools.count()
        self._ear: Child | None = None  # the worker that hears for itself
        self.passed_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # it writes how many runs it heard of and has no room for

    # ── the loop's side ──────────────────────────────────────────────────────────────────────────────────────────

    def sockets(self) -> tuple[list[int], list[int]]:
        return [self.passed_fd], []

    def due(self) -> float:
        if self._ear_now() is None and self._may_hear():
            return 0.0
        return min(self._due_at, self._poll_at) if self._busy() else self._due_at

    def act(self, readable: set[int], writable: set[int]) -> None:
        now = time.monotonic()
        if self._ear_now() is None:
            self._give_ear()
        if self.passed_fd in readable:
            self._seen_at = now
            self._wake(self._enough(os.eventfd_read(self.passed_fd)), now, self._ear)
        if now >= self._due_at:
            self._due_at = math.inf
            self._wake(1, now)
        if now >= self._poll_at and self._busy():
            self._wake(1, now)

    def close(self) -> None:
        os.close(self.passed_fd)

    def _busy(self) -> bool:
        """Whether work was seen so lately that more of it is likely."""
        return max(self._seen_at, self._board.found_at()) > time.monotonic() - BUSY_FOR_S

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────

    def asks(self) -> dict[str, Any]:
        """What to look at, as the block `pulse` wants it."""
        return {"queues": list(self._queues) or None, "workflows": list(self._workflows()), "depth": DEPTH, "supervisor": self._supervisor}

    def told(self, due: int, next_s: float | None, hidden: bool) -> None:
        """What was seen. While nothing is, workers take us for silent and look for themselves."""
        now = time.monotonic()
        self._board.pulsed(now)
        if next_s is not None and next_s < SOON_S:
            self._due_at = min(self._due_at, now + next_s + DUE_SLACK_S)
        long_ago = now - max(self._nudged_at.values(), default=0.0) > LOOK_ALL_THE_SAME_S
        if due or hidden or long_ago:
            self._wake(self._enough(due), now)

    # ── hearing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def heard(self, payload: str) -> None:
        """A client has announced starts."""
        now = time.monotonic()
        runs = 0
        for n, delay_s in read_hints(payload, self._queues, self._workflows()):
            if delay_s > 0:
                self._due_at = min(self._due_at, now + delay_s + DUE_SLACK_S)
            else:
                runs += n
        if runs > 0:
            self._seen_at = now
            itself = self._heard_itself(now)
            workers = self._enough(runs) - (itself is not None)
            if workers > 0 and not self._wake(workers, now, itself) and itself is None:
                self._nudge_any(now)

    def signalled(self, payload: str) -> None:
        """Signals were sent to runs that these workers have; those of other hosts are not here."""
        try:
            owners = set(_owners(payload))
        except (msgspec.DecodeError, msgspec.ValidationError):  # whoever may connect may notify
            return
        for child in self._children():
            if child.ready and child.born is not None and child.born.worker_id in owners:
                child.signalled()

    def _heard_itself(self, now: float) -> Child | None:
        """The worker that has heard of this as we have, and claims. One that waits and has not looked since it last heard something may be stuck."""
        ear = self._ear_now()
        if ear is None:
            return None
        since = self._board.waits_since(ear.number)
        if not since:
            return ear if now - self._board.ceased_at(ear.number) < HEARD_S else None
        if self._nudged_at.get(ear.number, 0.0) >= since:
            return None
        self._nudged_at[ear.number] = now
        self._poll_at = now + POLL_BUSY_S
        return ear

    def _ear_now(self) -> Child | None:
        """The ear, if it still is one."""
        ear = self._ear
        if ear is not None and (ear.leaving or not ear.ready or ear not in self._children()):
            self._ear = ear = None
        return ear

    def _may_hear(self) -> list[Child]:
        return [child for child in self._children() if child.ready and not child.leaving]

    def _give_ear(self) -> None:
        """Let the worker that was nudged last hear for itself; one is enough, for PostgreSQL wakes every session that listens."""
        if ready := self._may_hear():
            self._ear = max(ready, key=lambda child: self._nudged_at.get(child.number, 0.0))
            self._ear.hear()

    # ── nudging ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _enough(self, runs: int) -> int:
        return max(1, math.ceil(runs / self._threads))

    def _wake(self, workers: int, now: float, besides: Child | None = None) -> int:
        """Nudge so many of those that wait, not *besides*; returns how many there were.

        First who began to wait last: its code and data are warm, and the others may go on resting. Who was nudged and has
        not looked since may be stuck, and comes last.
        """
        self._poll_at = now + POLL_BUSY_S
        waiting: list[tuple[bool, float, int, Child]] = []
        for child in self._children():
            since = self._board.waits_since(child.number)
            if since and child.ready and not child.leaving and child is not besides:
                nudged = self._nudged_at.get(child.number, 0.0)
                waiting.append((nudged >= since, nudged if nudged >= since else -since, child.number, child))
        for *_, number, child in sorted(waiting)[:workers]:
            self._nudged_at[number] = now
            child.wake()
        return len(waiting)

    def _nudge_any(self, now: float) -> None:
        """Nobody waits, but a claim under way may have been too early for what was announced: who sends it sends another."""
        if ready := self._may_hear():
            child = ready[next(self._nudges) % len(ready)]
            self._nudged_at[child.number] = now
            child.wake()
