"""The ear: tells the hosts which runs this client awaits, and hears from them which have ended.

Owns a thread with one session that listens, while there is something to be awaited and some seconds longer. Everything
heard and said is a hint: without an ear, behind a pooler or with a lost session, results are found by asking.
Invariant: nothing is set on the session and nothing listened to before it is known that no pooler is in between, where it would
stay behind on somebody else's session.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from supervisor.core import awaited

if TYPE_CHECKING:
    from supervisor.core.errors import DatabaseUnavailable
    from supervisor.db.connect import Dsn
    from supervisor.db.session import Rows

log = logging.getLogger("pgsupervisor.client")

LINGER_S = 5.0  # with nothing awaited: the next wait may come, and a session costs the server a process
TELL_EVERY_S = 0.1  # runs that are awaited newly are told together
RENEW_S = 30.0  # hosts forget after a minute; one that came up since hears of all
CLOSE_S = 1.0

Heard = Callable[[Sequence[bytes] | None], None]


class Ear:
    """Thread-safe. `hears` is True while announcements are known to arrive.

    heard   called on the ear's thread, with ids of runs that have ended, or None for "ask about all of them"; it must not block.
            An asyncio loop's would be `lambda ids: loop.call_soon_threadsafe(…)`.
    """

    def __init__(self, dsn: Dsn, schema: str, heard: Heard) -> None:
        self.dsn, self.schema, self.heard = dsn, schema, heard
        self.hears = False
        self.deaf = False  # a pooler is in between: it never will
        self.lock = threading.Lock()
        self.awaited: set[bytes] = set()
        self.untold: list[bytes] = []
        self._thread: _Thread | None = None
        self._pid = os.getpid()
        self.closed = False

    def awaits(self, ids: Iterable[bytes]) -> None:
        """Tell the hosts that these are awaited. Returns at once."""
        with self.lock:
            if self.deaf or self.closed or self._pid != os.getpid():
                return
            fresh = [run_id for run_id in ids if run_id not in self.awaited]
            self.awaited.update(fresh)
            self.untold += fresh
            if self._thread is None:
                self._thread = _Thread(self)
                self._thread.start()
            else:
                self._thread.wake()

    def leaves(self, ids: Iterable[bytes]) -> None:
        """These are awaited no more. The hosts forget them by themselves."""
        with self.lock:
            self.awaited.difference_update(ids)
            if not self.awaited and self._thread is not None and self._pid == os.getpid():
                self._thread.wake()  # it looks how long it lingers

    def close(self) -> None:
        """End the thread and its session; waits for that, a second at most."""
        with self.lock:
            self.closed = True
            self.awaited.clear()
            thread = self._thread
            if thread is not None and self._pid == os.getpid():
                thread.wake()
        if thread is not None and self._pid == os.getpid() and thread is not threading.current_thread():
            thread.join(CLOSE_S)

    def ended(self, thread: _Thread) -> None:
        """Its thread ends; with *lock* held."""
        if self._thread is thread:
            self._thread, self.hears = None, False


class _Thread(threading.Thread):
    """Listens until there is nothing to listen for. Its session is its own: one per thread, none when it has ended."""

    def __init__(self, ear: Ear) -> None:
        super().__init__(name="pgsupervisor-ear", daemon=True)
        self._ear = ear
        self._token = secrets.token_hex(4)
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._idle_since: float | None = None
        self._tell_at = self._renew_at = 0.0

    def wake(self) -> None:
        """With the ear's lock held, which says that the thread has not ended."""
        os.eventfd_write(self._wake_fd, 1)

    def run(self) -> None:
        from supervisor.db.session import Session
        from supervisor.db.statements import await_channel, done_channel, ended_channel

        ear = self._ear
        self._channel, self._hosts, self._all = done_channel(ear.schema, self._token), await_channel(ear.schema), ended_channel(ear.schema)
        session: Session | None = None
        try:
            self._session = session = Session(ear.dsn, ear.schema, "ear", "client", self._connected, self._lost)
            while self._goes_on():
                self._turn()
        except Exception:  # noqa: BLE001 - whatever it was, results are found without it
            log.warning("results are found by asking from now on, for the ear failed", exc_info=True)
            ear.deaf = True
        finally:
            if session is not None:
                session.close()
            with ear.lock:
                ear.ended(self)
                os.close(self._wake_fd)

    def _goes_on(self) -> bool:
        now = time.monotonic()
        with self._ear.lock:
            if self._ear.awaited:
                self._idle_since = None
            elif self._idle_since is None:
                self._idle_since = now
            lingered = self._idle_since is not None and now >= self._idle_since + LINGER_S
            if not (self._ear.closed or self._ear.deaf or lingered):
                return True
            self._ear.ended(self)  # whoever awaits something from here on starts another
            return False

    def _turn(self) -> None:
        """Sleep until there is something to do, and do it."""
        self._session.turn(min(self._next_telling(), float("inf") if self._idle_since is None else self._idle_since + LINGER_S), self._wake_fd)
        self._tell()

    # ── the session ──────────────────────────────────────────────────────────────────────────────────────────────

    def _connected(self) -> None:
        self._session.ask("client_backend", (), self._known, self._refused)

    def _known(self, rows: Rows) -> None:
        """A pooler makes up what it calls the backend, for it is another one in each transaction."""
        if rows[0][0] != self._session.backend_pid:
            log.debug("a pooler is between here and the server: results are found by asking")
            self._ear.deaf = True
            return
        self._session.listen(self._all, self._ended)
        self._session.listen(self._channel, self._notified)
        self._session.ask("announce_each", ([self._channel], [awaited.HELLO]), None, self._refused)

    def _lost(self) -> None:
        self._ear.hears = False

    def _refused(self, error: DatabaseUnavailable) -> None:
        log.debug("%s", error)

    def _notified(self, payload: str) -> None:
        if payload == awaited.HELLO:
            self._ear.hears = True
            self._renew_at = 0.0
        elif payload == awaited.ALL:
            self._ear.heard(None)
        elif ids := awaited.ids_of(payload):
            self._ear.heard(ids)

    def _ended(self, payload: str) -> None:
        """Somebody ended runs without a worker, and tells all clients."""
        with self._ear.lock:
            ids = [run_id for run_id in awaited.ids_of(payload) if run_id in self._ear.awaited]
        if ids:
            self._ear.heard(ids)

    # ── telling the hosts ────────────────────────────────────────────────────────────────────────────────────────

    def _next_telling(self) -> float:
        if not self._ear.hears or not self._session.idle:
            return float("inf")
        return max(self._tell_at, 0.0 if self._ear.untold else self._renew_at) if self._ear.awaited else float("inf")

    def _tell(self) -> None:
        now = time.monotonic()
        if now < self._next_telling():
            return
        with self._ear.lock:
            if now >= self._renew_at:
                ids, self._renew_at = list(self._ear.awaited), now + RENEW_S
            else:
                ids = [run_id for run_id in self._ear.untold if run_id in self._ear.awaited]
            self._ear.untold.clear()
        self._tell_at = now + TELL_EVERY_S
        payloads = awaited.asked(self._token, ids)
        if payloads:
            self._session.ask("announce_each", ([self._hosts] * len(payloads), payloads), None, self._not_told)

    def _not_told(self, error: DatabaseUnavailable) -> None:
        log.debug("%s", error)
        self._renew_at = min(self._renew_at, time.monotonic() + 1.0)
