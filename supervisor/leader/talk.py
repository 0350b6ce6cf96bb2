"""Talks: what is to be asked of the database one after another, written as a generator, played on a session that never blocks.

A talk yields questions and receives rows; a refusal is raised at its `yield`. Many talks may share one session: its
statements interleave. Never waits: a `Pause` is a time at which the loop comes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from supervisor.core.errors import DatabaseUnavailable
from supervisor.db.session import Parameters, Rows, Session, StatementRefused

LOCK_NOT_AVAILABLE, CANCELLED, TERM_ENDED = "55P03", "57014", "SV004"


@dataclass(frozen=True)
class Ask:
    """A statement of sql/queries; with *first*, after that one in the same transaction."""

    name: str
    params: Parameters = ()
    first: tuple[str, Parameters] | None = None


@dataclass(frozen=True)
class Text:
    """A statement that the database has made."""

    text: str


@dataclass(frozen=True)
class Pause:
    seconds: float


Talk = Generator[Ask | Text | Pause, Any, Any]


class Talks:
    """The talks on one session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._pausing: list[tuple[float, Talk, Callable[[Any], None], Callable[[DatabaseUnavailable], None]]] = []
        self._going: set[Talk] = set()

    def begin(self, talk: Talk, ended: Callable[[Any], None], failed: Callable[[DatabaseUnavailable], None]) -> None:
        """Play *talk*; what it returns comes to *ended*, a refusal that it does not catch to *failed*."""
        self._going.add(talk)
        self._step(talk, ended, failed, lambda: next(talk))

    @property
    def idle(self) -> bool:
        return not self._going

    def due(self) -> float:
        """When the next pause is over, by time.monotonic()."""
        return min((at for at, *_ in self._pausing), default=float("inf"))

    def act(self) -> None:
        """Go on with what has paused long enough."""
        now = time.monotonic()
        over = [each for each in self._pausing if each[0] <= now]
        if over:
            self._pausing = [each for each in self._pausing if each[0] > now]
        for _, talk, ended, failed in over:
            self._answer(talk, ended, failed, None)

    def forget(self) -> None:
        """Play none of them any further; their last questions may still be answered, to nobody."""
        going, self._going, self._pausing = self._going, set(), []
        for talk in going:
            talk.close()

    def _answer(self, talk: Talk, ended: Callable[[Any], None], failed: Callable[[DatabaseUnavailable], None], rows: Rows | None) -> None:
        if talk in self._going:
            self._step(talk, ended, failed, lambda: talk.send(rows))

    def _refuse(self, talk: Talk, ended: Callable[[Any], None], failed: Callable[[DatabaseUnavailable], None], error: DatabaseUnavailable) -> None:
        if talk in self._going:
            self._step(talk, ended, failed, lambda: talk.throw(error))

    def _step(self, talk: Talk, ended: Callable[[Any], None], failed: Callable[[DatabaseUnavailable], None], go: Callable[[], Any]) -> None:
        try:
            question = go()
        except StopIteration as end:
            self._going.discard(talk)
            ended(end.value)
            return
        except DatabaseUnavailable as error:
            self._going.discard(talk)
            failed(error)
            return
        if isinstance(question, Pause):
            self._pausing.append((time.monotonic() + question.seconds, talk, ended, failed))
            return

        def then(rows: Rows) -> None:
            self._answer(talk, ended, failed, rows)

        def refused(error: DatabaseUnavailable) -> None:
            self._refuse(talk, ended, failed, error)

        if isinstance(question, Text):
            self.session.ask_text(question.text, then, refused)
        else:
            self.session.ask(question.name, question.params, then, refused, first=question.first)


def is_refused(error: DatabaseUnavailable, *sqlstates: str) -> bool:
    """Whether *error* is the server's word with one of these codes."""
    return isinstance(error, StatementRefused) and error.sqlstate in sqlstates
