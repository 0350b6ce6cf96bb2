"""Chores: duties that wait for locks (DDL, ANALYZE), on a session of their own, so that they never delay a beat.

Owns that session and the timetable. One duty at a time; a lock that is not to be had within 100 ms is asked for again
later, because whoever waits for a strong lock blocks all who come after him.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from supervisor.core.errors import DatabaseUnavailable
from supervisor.db.session import Session
from supervisor.leader.talk import LOCK_NOT_AVAILABLE, Talk, Talks, is_refused

log = logging.getLogger("pgsupervisor.leader")

LOCK_TIMEOUT_MS = 100
STATEMENT_S = 60.0
LOCKED_S, FAILED_S = 1.0, 30.0  # until the next try


@dataclass
class Duty:
    """What is done every *every_s* seconds; *talk* is given the term."""

    name: str
    every_s: float
    talk: Callable[[int], Talk]
    due: float = 0.0


class Chores:
    """The duties of a leader on their session, which is there while it leads. A part of the parent's loop."""

    def __init__(self, dsn: str, schema: str, purpose: str, duties: list[Duty]) -> None:
        self._made = dsn, schema, purpose
        self._duties = duties
        self._session: Session | None = None
        self._talks: Talks | None = None
        self._term = 0
        self._known_pid = 0
        self._busy = False

    @property
    def backend_pid(self) -> int:
        return self._session.backend_pid if self._session is not None else 0

    def begin(self, term: int) -> None:
        """A term begins: open the session; every duty is due."""
        self.stop()
        settings = {"lock_timeout": str(LOCK_TIMEOUT_MS), "transaction_timeout": str(int(2000 * STATEMENT_S))}
        self._session = Session(*self._made, on_lost=self._lost, settings=settings, timeout_s=STATEMENT_S)
        self._talks = Talks(self._session)
        self._term = term
        for duty in self._duties:
            duty.due = 0.0

    def known(self, backend_pid: int | None) -> None:
        """The leader's row names this backend of ours: whoever deposes us finds it, so it may begin."""
        self._known_pid = backend_pid or 0

    def stop(self) -> None:
        """The term is over: nothing more is asked, and the server ends what is going on when it notices."""
        self._term, self._known_pid, self._busy = 0, 0, False
        if self._talks is not None and self._session is not None:
            self._talks.forget()
            self._session.close()
        self._session = self._talks = None

    def _lost(self) -> None:
        self._known_pid = 0

    def _ready(self) -> bool:
        return self._session is not None and self._session.connected and self._session.backend_pid == self._known_pid and not self._busy

    def sockets(self) -> tuple[list[int], list[int]]:
        return self._session.sockets() if self._session is not None else ([], [])

    def due(self) -> float:
        if self._session is None or self._talks is None:
            return float("inf")
        at = min(self._session.due(), self._talks.due())
        return min(at, min(duty.due for duty in self._duties)) if self._ready() else at

    def act(self, readable: set[int], writable: set[int]) -> None:
        session, talks = self._session, self._talks
        if session is None or talks is None:
            return
        session.act(readable, writable)
        talks.act()
        if self._ready():
            now = time.monotonic()
            duty = min(self._duties, key=lambda each: each.due)
            if duty.due <= now:
                self._begin(duty)

    def _begin(self, duty: Duty) -> None:
        assert self._talks is not None
        self._busy = True
        term = self._term

        def ended(_: object) -> None:
            self._next(duty, term, duty.every_s)

        def failed(error: DatabaseUnavailable) -> None:
            locked = is_refused(error, LOCK_NOT_AVAILABLE)
            log.log(logging.DEBUG if locked else logging.WARNING, "%s: %s", duty.name, error)
            self._next(duty, term, LOCKED_S if locked else FAILED_S)

        self._talks.begin(duty.talk(term), ended, failed)

    def _next(self, duty: Duty, term: int, after_s: float) -> None:
        if term == self._term:
            duty.due = time.monotonic() + after_s
            self._busy = False
