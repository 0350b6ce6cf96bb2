"""A session for a `select` loop: statements are queued, answers come to callbacks, and nothing here ever waits.

Owns one connection, its profile, its queue and its reconnecting. One statement is in flight at a time, each with a
deadline on both sides: the server's statement_timeout ends a slow one, and a moment later the client gives up a session
that does not even say so. What was asked is answered exactly once, by `then` or by `refused`; a statement that was in
flight when its session was lost may have been executed.
libpq looks up a host's name without leaving the call: where that may hang, give `hostaddr` or a unix socket.
"""

from __future__ import annotations

import logging
import os
import random
import select
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import conninfo, generators, pq
from psycopg.adapt import PyFormat, Transformer

from supervisor.core.errors import DatabaseUnavailable
from supervisor.db import connect
from supervisor.db.pipeline import words
from supervisor.db.statement_pipe import in_order, numbered, rows
from supervisor.db.statements import Sql, identifier

if TYPE_CHECKING:
    from psycopg import abc

log = logging.getLogger("pgsupervisor.session")

TIMEOUT_S = 10.0
GRACE_S = 0.5  # what the server's own word about its timeout may take
CONNECT_S = 5.0
BACKOFF_S = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
READ, WRITE = 1, 2  # psycopg's Wait and Ready

Rows = list[tuple[Any, ...]]
Parameters = Sequence[Any] | Mapping[str, Any]
Then = Callable[[Rows], None]
Refused = Callable[[DatabaseUnavailable], None]


class StatementRefused(DatabaseUnavailable):
    """The server's word about one statement, which changed nothing; the session lives on."""

    def __init__(self, statement: str, sqlstate: str, message: str) -> None:
        self.statement, self.sqlstate = statement, sqlstate
        super().__init__(f"{statement}: {message} ({sqlstate})")


@dataclass
class _Asked:
    name: str
    commands: list[tuple[bytes, Parameters | None]]  # more than one: one transaction, the rows are the last one's
    then: Then | None
    refused: Refused | None
    at: float = field(default_factory=time.monotonic)


class Session:
    """One database session that never blocks: statements are queued, answers come to callbacks. Reconnects with backoff.

    purpose      its application_name is `pgsupervisor: <purpose>`
    on_connect   called when the session is there (and again after each loss); what it asks goes before what was queued
    on_lost      called when a session that was there is gone; before the `refused` of what was in flight
    on_away      called with the reason for every try to connect that failed
    settings     more server settings, over the profile's
    timeout_s    for each statement, set on the server too (but for the client profile, which sets nothing); and for how long a statement waits for a session

    It connects at its first turn in the loop. A part of the parent's loop: `sockets`, `due`, `act`, `close`.
    """

    def __init__(
        self,
        dsn: str | connect.Dsn,
        schema: str,
        purpose: str,
        profile: connect.Profile = "host",
        on_connect: Callable[[], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        *,
        on_away: Callable[[DatabaseUnavailable], None] | None = None,
        settings: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._dsn = dsn if isinstance(dsn, connect.Dsn) else connect.Dsn(dsn, "")
        self._given = connect.given_parameters(self._dsn)
        self._sql = Sql(schema)
        self.application_name = connect.application_name(purpose)
        self._purpose, self._profile = purpose, profile
        self._on_connect, self._on_lost, self._on_away = on_connect, on_lost, on_away
        ours = {} if profile == "client" else {"statement_timeout": str(int(timeout_s * 1000))}  # a client's may be a pooler's
        self._settings = {**ours, **(settings or {})}
        self._timeout_s = timeout_s
        self.connected = False
        self.backend_pid = 0
        self._pgconn: Any = None
        self._work: Generator[Any, Any, Any] | None = None
        self._ended: Callable[[Any], None] = _nothing
        self._fd, self._wait, self._deadline = -1, 0, 0.0
        self._queue: deque[_Asked] = deque()
        self._current: _Asked | None = None
        self._channels: dict[str, Callable[[str], None]] = {}
        self._notices: list[Any] = []
        self._last_words = ""  # what the server said last unasked: why it ends the session
        self._failures = self._attempts = 0
        self._again_at = 0.0
        self._closed = False

    # ── what its owner asks ──────────────────────────────────────────────────────────────────────────────────────

    def ask(self, name: str, params: Parameters = (), then: Then | None = None, refused: Refused | None = None,
            *, first: tuple[str, Parameters] | None = None) -> None:  # fmt: skip
        """Queue the statement *name* of sql/queries; its rows come to *then*, or why there are none to *refused*.

        first   a statement that is executed before it in the same transaction: a fence, which undoes it by failing
        """
        commands = [first, (name, params)] if first else [(name, params)]
        self._queue.append(_Asked(name, [(self._sql.get(each).encode(), given) for each, given in commands], then, refused))

    def ask_text(self, text: str, then: Then | None = None, refused: Refused | None = None) -> None:
        """Queue a statement that the database itself has made (DDL with a name in it)."""
        self._queue.append(_Asked(text[:60], [(text.encode(), None)], then, refused))

    def listen(self, channel: str, heard: Callable[[str], None]) -> None:
        """Call *heard* with the payload of every notification on *channel*, in every session from now on."""
        self._channels[channel] = heard
        if self.connected:
            self._queue.append(self._listening(channel))

    def drop(self, why: str = "its owner dropped it") -> None:
        """Give the connection up, with all that hangs on it; the next one is opened at its next turn."""
        if self._pgconn is not None or self._work is not None:
            self._lose(DatabaseUnavailable(f"session {self._purpose}: {why}"))

    def close(self) -> None:
        """End for good. What was asked and not answered is never answered."""
        self._closed, self.connected, self.backend_pid = True, False, 0
        self._queue.clear()
        self._disconnect()

    @property
    def idle(self) -> bool:
        """Whether everything that was asked is answered."""
        return not self._queue and self._current is None

    def wait(self, within_s: float) -> bool:
        """Block until everything is answered, for an owner whose loop has ended; False when the time is over first."""
        until = time.monotonic() + within_s
        while not self.idle:
            if time.monotonic() >= until or self._closed:
                return False
            self.turn(until)
        return True

    def turn(self, until: float, wake_fd: int = -1) -> None:
        """Sleep until there is something to do for it, somebody writes the eventfd *wake_fd*, or it is *until* (inf: for ever), and do it: for an owner
        who has nothing else to wait for. Raises nothing but what callbacks raise."""
        reading, writing = self.sockets()
        poll = select.poll()
        if wake_fd >= 0:
            poll.register(wake_fd, select.POLLIN)
        for fd in {*reading, *writing}:
            poll.register(fd, (select.POLLIN if fd in reading else 0) | (select.POLLOUT if fd in writing else 0))
        until = min(until, self.due())
        ready = {fd for fd, _ in poll.poll(None if until == float("inf") else 1000 * max(0.0, until - time.monotonic()))}
        if wake_fd in ready:
            os.eventfd_read(wake_fd)
        self.act(ready.intersection(reading), ready.intersection(writing))

    # ── what the loop asks ───────────────────────────────────────────────────────────────────────────────────────

    def sockets(self) -> tuple[list[int], list[int]]:
        """The socket to be watched, for reading and for writing; none between two connections."""
        if self._fd < 0:
            return [], []
        # between statements it is readable when a notification has come, or the news of its end
        wait = self._wait if self._work is not None else READ
        return [self._fd] if wait & READ else [], [self._fd] if wait & WRITE else []

    def due(self) -> float:
        """When it wants to act without its socket being ready, by time.monotonic()."""
        if self._closed:
            return float("inf")
        if self._work is not None:
            at = self._deadline
        elif not self.connected:
            at = self._again_at
        else:
            return 0.0 if self._queue else float("inf")
        return min(at, self._queue[0].at + self._timeout_s) if self._queue and not self.connected else at

    def act(self, readable: set[int], writable: set[int]) -> None:
        """Go as far as that is possible without waiting. Raises nothing but what callbacks raise."""
        if self._closed:
            return
        now = time.monotonic()
        ready = (READ if self._fd in readable else 0) | (WRITE if self._fd in writable else 0)
        if self._work is not None:
            if ready:
                self._advance(ready)
            elif now >= self._deadline:
                self._lose(DatabaseUnavailable(f"session {self._purpose}: no answer from the server within its deadline"))
        elif self.connected and ready:
            self._read_notices()
        elif not self.connected and now >= self._again_at:
            self._connect()
        while self.connected and self._work is None and self._queue:
            self._send(self._queue.popleft())
        if not self.connected:
            self._refuse_overdue(time.monotonic())
        self._tell_notices()

    # ── connecting ───────────────────────────────────────────────────────────────────────────────────────────────

    def _connect(self) -> None:
        parameters = connect.session_parameters(_rotated(self._given, self._attempts), self._purpose)
        self._attempts += 1
        limit_s = float(parameters.pop("connect_timeout") or CONNECT_S)  # libpq keeps it in blocking calls only
        given: dict[str, Any] = parameters
        self._start(generators.connect(conninfo.make_conninfo(**given)), self._set_profile, limit_s)

    def _set_profile(self, pgconn: Any) -> None:
        self._pgconn, self._fd = pgconn, pgconn.socket
        pgconn.nonblocking = 1
        pgconn.notify_handler = self._notices.append
        pgconn.notice_handler = self._note
        wanted = {
            **connect.profile_settings(self._profile, pgconn.server_version),
            **connect.server_transport(self._profile, pgconn.host.decode()),
            **self._settings,
        }
        if not wanted:
            self._established()
            return
        command = connect.SET_AND_READ, {"names": list(wanted), "values": list(wanted.values())}
        transformer = self._send_command(*command)

        def read_back(results: list[Any]) -> None:
            if results[-1].status == pq.ExecStatus.FATAL_ERROR:
                self._lose(DatabaseUnavailable(f"session {self._purpose}: {words(results[-1])}"))
                return
            try:
                connect.check_settings(dict(rows(transformer, results[-1])), wanted)
            except DatabaseUnavailable as error:
                self._lose(error)
                return
            self._established()

        self._start(generators.execute(pgconn), read_back, CONNECT_S)

    def _established(self) -> None:
        self.connected, self.backend_pid, self._failures = True, self._pgconn.backend_pid, 0
        self._last_words = ""
        waiting, self._queue = self._queue, deque(self._listening(channel) for channel in self._channels)
        if self._on_connect is not None:
            self._on_connect()
        self._queue.extend(waiting)

    def _listening(self, channel: str) -> _Asked:
        return _Asked(f"LISTEN {channel}", [(f"LISTEN {identifier(channel)}".encode(), None)], None, None)

    # ── statements ───────────────────────────────────────────────────────────────────────────────────────────────

    def _send(self, asked: _Asked) -> None:
        self._current = asked
        try:
            if len(asked.commands) == 1:
                transformer = self._send_command(*asked.commands[0])
                work = generators.execute(self._pgconn)
            else:
                self._pgconn.enter_pipeline_mode()
                transformer = [self._send_command(*command) for command in asked.commands][-1]
                self._pgconn.pipeline_sync()
                work = _answers(self._pgconn)
        except psycopg.Error as error:
            self._lose(self._words(error))
            return
        self._start(work, lambda results: self._answered(asked, transformer, results), self._timeout_s + GRACE_S)

    def _send_command(self, text: bytes, parameters: Parameters | None) -> abc.Transformer:
        transformer = Transformer()
        if parameters is None:
            self._pgconn.send_query_params(text, None)
            return transformer
        text, wanted = numbered(text.decode())
        values = in_order(parameters, wanted)
        dumped = transformer.dump_sequence(values, [PyFormat.AUTO] * len(values))
        self._pgconn.send_query_params(text, dumped, transformer.types, transformer.formats)
        return transformer

    def _answered(self, asked: _Asked, transformer: abc.Transformer, results: list[Any]) -> None:
        self._current = None
        wrong = next((result for result in results if result.status == pq.ExecStatus.FATAL_ERROR), None)
        if self._pgconn.status == pq.ConnStatus.BAD:
            self._current = asked
            self._lose(DatabaseUnavailable(f"session {self._purpose}: {words(wrong) if wrong else 'it is lost'}"))
        elif wrong is None:
            if asked.then is not None:
                asked.then(rows(transformer, results[-1]))
        else:
            sqlstate = (wrong.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
            _refuse(asked, StatementRefused(asked.name, sqlstate, words(wrong)))

    def _start(self, work: Generator[Any, Any, Any], ended: Callable[[Any], None], limit_s: float) -> None:
        self._work, self._ended, self._deadline = work, ended, time.monotonic() + limit_s
        self._advance(None)

    def _advance(self, ready: int | None) -> None:
        """Let libpq go on; it stops where it would wait, or at the end."""
        assert self._work is not None
        try:
            waits = self._work.send(ready)
        except StopIteration as end:
            self._work = None
            self._ended(end.value)
        except psycopg.Error as error:
            self._lose(self._words(error))
        else:
            if isinstance(waits, tuple):  # while connecting the socket may change
                self._fd, self._wait = waits
            else:
                self._wait = waits

    # ── notifications ────────────────────────────────────────────────────────────────────────────────────────────

    def _read_notices(self) -> None:
        try:
            self._pgconn.consume_input()
            while (notice := self._pgconn.notifies()) is not None:
                self._notices.append(notice)
        except psycopg.Error as error:
            self._lose(self._words(error))

    def _tell_notices(self) -> None:
        if not self._notices:
            return
        notices = self._notices[:]
        self._notices.clear()
        for notice in notices:
            heard = self._channels.get(notice.relname.decode())
            if heard is not None:
                heard(notice.extra.decode())

    def _note(self, result: Any) -> None:
        self._last_words = words(result)

    # ── losing it ────────────────────────────────────────────────────────────────────────────────────────────────

    def _lose(self, error: DatabaseUnavailable) -> None:
        was_connected, self.connected, self.backend_pid = self.connected, False, 0
        unanswered = [self._current] if self._current is not None else []
        self._current = None
        if was_connected:  # what was asked of that session is not asked of the next one
            unanswered += self._queue
            self._queue.clear()
        self._disconnect()
        wait_s = BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)] * random.uniform(0.7, 1.3)
        self._failures += 1
        self._again_at = time.monotonic() + wait_s
        log.log(logging.WARNING if was_connected else logging.DEBUG, "%s", error)
        if was_connected and self._on_lost is not None:
            self._on_lost()
        elif not was_connected and self._on_away is not None:
            self._on_away(error)
        for asked in unanswered:
            if asked is not None:
                _refuse(asked, error)

    def _refuse_overdue(self, now: float) -> None:
        while self._queue and now >= self._queue[0].at + self._timeout_s:
            asked = self._queue.popleft()
            _refuse(asked, DatabaseUnavailable(f"{asked.name}: no session with the database for {self._timeout_s:g} s"))

    def _disconnect(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work.close()
        pgconn, self._pgconn, self._fd = self._pgconn, None, -1
        if pgconn is not None:
            pgconn.finish()

    def _words(self, error: psycopg.Error) -> DatabaseUnavailable:
        if self.connected:
            return DatabaseUnavailable(f"session {self._purpose} is lost: {self._last_words or ' '.join(str(error).split())}")
        return connect.not_connected(error, self._given, self._dsn)


def _answers(pgconn: Any) -> Generator[Any, Any, list[Any]]:
    """Send a pipeline that ends with a Sync and take its results; the pipeline is left in any case but a lost session."""
    yield from generators.send(pgconn)
    results: list[Any] = []
    while True:
        got = yield from generators.fetch_many(pgconn)
        if got and got[0].status == pq.ExecStatus.PIPELINE_SYNC:
            break
        results += got
    pgconn.exit_pipeline_mode()
    return results


def _refuse(asked: _Asked, error: DatabaseUnavailable) -> None:
    if asked.refused is not None:
        asked.refused(error)
    else:
        log.warning("%s", error)


def _rotated(given: Mapping[str, str | int | None], by: int) -> dict[str, str | int | None]:
    """Of several hosts another one first at each attempt: the deadline is for all of them, and the first may hang."""
    parameters = dict(given)
    for name in ("host", "hostaddr", "port"):
        parts = str(parameters.get(name) or "").split(",")
        if len(parts) > 1:
            at = by % len(parts)
            parameters[name] = ",".join(parts[at:] + parts[:at])
    return parameters


def _nothing(_: Any) -> None:
    pass
