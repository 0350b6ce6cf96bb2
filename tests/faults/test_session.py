"""A session for a select loop: whatever the server does, the loop goes on turning, and what was asked is answered once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from supervisor.core.errors import DatabaseUnavailable
from supervisor.db.session import Session, StatementRefused
from tests.harness import Database, Server, drive

SLEEP = "SELECT pg_sleep(3600)"


class Answers:
    """What came back, in order: rows, or the error."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def then(self, rows: list[tuple[Any, ...]]) -> None:
        self.got.append(rows)

    def refused(self, error: DatabaseUnavailable) -> None:
        self.got.append(error)

    def ask(self, session: Session, name: str, *parameters: Any, **more: Any) -> None:
        session.ask(name, parameters, self.then, self.refused, **more)

    def ask_text(self, session: Session, text: str) -> None:
        session.ask_text(text, self.then, self.refused)

    def wait(self, session: Session, n: int, within_s: float = 20.0) -> list[Any]:
        drive([session], lambda: len(self.got) >= n, within_s, f"{n} answers; got {self.got}")
        return self.got


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    made = Session(database.dsn, database.schema, "test", timeout_s=5.0)
    yield made
    made.close()


@pytest.fixture
def stoppable(own_server: Server) -> Iterator[tuple[Server, Session]]:
    database = own_server.database()
    made = Session(database.dsn, database.schema, "test", timeout_s=1.0)
    yield own_server, made
    made.close()


def test_answers_come_in_the_order_of_the_questions(session: Session, answers: Answers) -> None:
    """Whoever asks twice must know which answer is which."""
    names: list[str] = ["nobody"]
    answers.ask(session, "end_sessions", names, 0.0)
    answers.ask(session, "cell_number")
    answers.ask_text(session, "select 'made by the database'")
    assert [[], [(0,)], [("made by the database",)]] == answers.wait(session, 3)
    assert session.idle


def test_a_refused_statement_leaves_the_session_as_it_was(session: Session, answers: Answers) -> None:
    """An error of one statement is that statement's, not its neighbours'."""
    answers.ask_text(session, "select 1/0")
    answers.ask(session, "cell_number")
    error, number = answers.wait(session, 2)
    assert isinstance(error, StatementRefused) and "22012" == error.sqlstate
    assert [(0,)] == number and session.connected


def test_a_statement_after_a_fence_that_fails_does_nothing(session: Session, answers: Answers, database: Database) -> None:
    """A fence and what it guards are one transaction."""
    worker = database.one("insert into supervisor.worker (boot, host, pid, supervisor) values (gen_random_uuid(), 'h', 1, gen_random_uuid()) returning id")
    burial = {"worker": worker, "why": "old age"}
    session.ask("bury_worker", burial, answers.then, answers.refused, first=("live_lock", (10**12,)))  # no int4: refused
    answers.ask(session, "cell_number")
    assert isinstance(answers.wait(session, 2)[0], StatementRefused) and [(0,)] == answers.got[1]
    assert database.one("select dead_at is null from supervisor.worker where id = %s", worker)
    session.ask("bury_worker", burial, answers.then, answers.refused, first=("cell_number", ()))
    assert [(True, 1)] == answers.wait(session, 3)[2], "the rows are the second statement's"


def test_notifications_are_heard_and_heard_again_after_a_loss(session: Session, database: Database) -> None:
    """LISTEN belongs to a session; whoever listens must not need to know that there was another one."""
    heard: list[str] = []
    session.listen("a channel", heard.append)
    drive([session], lambda: session.connected and session.idle, 20)
    database.sql("select pg_notify('a channel', 'one')")
    drive([session], lambda: heard == ["one"], 20)
    before = session.backend_pid
    database.sql("select pg_terminate_backend(%s)", before)
    drive([session], lambda: session.connected and session.backend_pid != before and session.idle, 20)
    database.sql("select pg_notify('a channel', 'two')")
    drive([session], lambda: heard == ["one", "two"], 20)


def test_what_was_in_flight_when_the_session_ended_is_refused_once(database: Database, answers: Answers) -> None:
    """Nobody may wait for an answer that can't come any more; and its owner hears first that it has lost its locks."""
    order: list[str] = []
    session = Session(database.dsn, database.schema, "test", on_connect=lambda: order.append("there"), on_lost=lambda: order.append("lost"))
    answers.ask_text(session, SLEEP)
    drive([session], lambda: session.connected, 20)
    database.sql("select pg_terminate_backend(%s)", session.backend_pid)
    error = answers.wait(session, 1)[0]
    assert isinstance(error, DatabaseUnavailable)
    drive([session], lambda: order == ["there", "lost", "there"], 20)
    session.close()
    assert 1 == len(answers.got)


def test_a_slow_statement_is_ended_by_the_server(stoppable: tuple[Server, Session], answers: Answers) -> None:
    """The deadline is the server's too: nothing goes on there that nobody waits for."""
    _, session = stoppable
    answers.ask_text(session, SLEEP)
    error = answers.wait(session, 1, 10)[0]
    assert isinstance(error, StatementRefused) and "57014" == error.sqlstate and session.connected


def test_a_server_that_stops_in_mid_statement_does_not_stop_the_loop(stoppable: tuple[Server, Session], answers: Answers) -> None:
    """A hung server, or a network that swallows everything: the statement has its deadline, the loop goes on turning."""
    server, session = stoppable
    drive([session], lambda: session.connected, 20)
    pids = [server.embedded.pid, session.backend_pid]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        answers.ask(session, "cell_number")
        error = answers.wait(session, 1, 15)[0]
        assert isinstance(error, DatabaseUnavailable) and not isinstance(error, StatementRefused)
        assert not session.connected
        answers.ask(session, "cell_number")  # waits for a session, and no longer than its deadline
        assert isinstance(answers.wait(session, 2, 10)[1], DatabaseUnavailable)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    drive([session], lambda: session.connected, 60, "a session with the server that goes on")
    answers.ask(session, "cell_number")
    assert [(0,)] == answers.wait(session, 3, 10)[2]


def test_a_server_that_crashes_is_found_again_without_spinning(stoppable: tuple[Server, Session], answers: Answers) -> None:
    """Reconnecting has a pace: a loop that tries without pause would take a core while the server recovers."""
    server, session = stoppable
    drive([session], lambda: session.connected, 20)
    server.embedded.stop("immediate")
    began, turns = time.monotonic(), 0

    def turned() -> bool:
        nonlocal turns
        turns += 1
        return time.monotonic() - began > 2.0

    drive([session], turned, 10)
    assert not session.connected and turns < 40 + 100, f"{turns} turns in 2 s"
    server.embedded.start()
    drive([session], lambda: session.connected, 60)
    answers.ask(session, "cell_number")
    assert [(0,)] == answers.wait(session, 1, 10)[0]


def test_a_setting_that_does_not_hold_is_no_session(database: Database) -> None:
    """A pooler that swallows settings would give a session without deadlines."""
    session = Session(database.dsn, database.schema, "test", settings={"lock_timeout": "200ms"})  # read back as 200
    failures = 0

    def failed() -> bool:
        nonlocal failures
        failures = session._failures
        return failures >= 2

    drive([session], failed, 20)
    assert not session.connected
    session.close()
