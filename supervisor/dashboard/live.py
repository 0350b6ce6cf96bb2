"""What has changed is told to open pages: one listener for the whole process, hints put together, two events a second at most, and fewer where pages take long.

A thread with one session hears what clients and hosts announce, and looks every two seconds whether the log of the database has grown; pages are then
asked anew by whoever shows them. With nobody there it has no session. An event says "changed", "lost" or "back", never what.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from supervisor.db.session import Session
from supervisor.db.statements import ended_channel, signal_channel, wake_channel, wake_now_channel

if TYPE_CHECKING:
    from supervisor.db.connect import Dsn
    from supervisor.db.session import Rows

LOOK_S = 2.0
APART_S, APART_MAX_S = 0.5, 15.0  # events about what was announced
SPENT_SHARE = 20  # a twentieth of the time goes into the pages that are asked for after them, at most
STALE_S = 10.0  # a page says "5 s ago": without any change it is drawn again after that long
HEARTBEAT_S = 15.0  # a comment, so that nothing in between takes the stream for dead
STREAMS_MAX = 64
LINGER_S = 10.0


class Live:
    """Made on the event loop; `events` are read there. *forget*: called before anybody is told, from any thread."""

    def __init__(self, dsn: Dsn, schema: str, forget: Callable[[], None] = lambda: None) -> None:
        self.dsn, self.schema, self._forget = dsn, schema, forget
        self._spent_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: set[asyncio.Queue[str]] = set()
        self._thread: _Listener | None = None
        self._lock = threading.Lock()
        self.closing = False

    @property
    def full(self) -> bool:
        return len(self._streams) >= STREAMS_MAX

    async def events(self) -> AsyncIterator[str]:
        """The stream of one page, as text/event-stream."""
        self._loop = asyncio.get_running_loop()
        mine: asyncio.Queue[str] = asyncio.Queue(4)
        self._streams.add(mine)
        self._listen()
        try:
            yield "retry: 2000\n\n"
            while not self.closing:
                try:
                    event = await asyncio.wait_for(mine.get(), HEARTBEAT_S)
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                yield f"event: {event}\ndata: 1\n\n"
        finally:
            self._streams.discard(mine)

    def tell(self, event: str) -> None:
        """Thread-safe: give *event* to every page; one that has not read the last ones is behind anyway."""
        self._forget()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._spread, event)

    def spent(self, seconds: float) -> None:
        """Thread-safe: so long it took to make a page."""
        with self._lock:
            self._spent_s += seconds

    def apart_s(self) -> float:
        """How far the next event is from the last one, by what pages have taken since: many that are open, or slow ones, are told less often."""
        return min(max(APART_S, SPENT_SHARE * self._spent_s), APART_MAX_S)

    def told(self) -> None:
        with self._lock:
            self._spent_s = 0.0

    def _spread(self, event: str) -> None:
        for stream in self._streams:
            if not stream.full():
                stream.put_nowait(event)

    def close(self) -> None:
        self.closing = True
        self._spread("closing")
        with self._lock:
            if self._thread is not None:
                self._thread.wake()

    def wanted(self) -> bool:
        return bool(self._streams) and not self.closing

    def _listen(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = _Listener(self)
                self._thread.start()

    def ended(self, thread: _Listener) -> bool:
        """Whether the thread may end: nobody has come in between."""
        with self._lock:
            if self.wanted():
                return False
            if self._thread is thread:
                self._thread = None
            return True


class _Listener(threading.Thread):
    def __init__(self, live: Live) -> None:
        super().__init__(name="pgsupervisor-live", daemon=True)
        self._live = live
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lsn = ""
        self._told_at = 0.0
        self._look_at = 0.0
        self._hinted = self._lost_told = self._listens = False
        self._idle_since: float | None = None

    def wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def run(self) -> None:
        live = self._live
        session = Session(live.dsn, live.schema, "dashboard live", "client", self._connected, self._lost, on_away=lambda error: self._lost())
        self._session = session
        try:
            while not (self._rested() and live.ended(self)):
                self._turn(session)
        finally:
            session.close()
            os.close(self._wake_fd)

    def _rested(self) -> bool:
        """Whether nobody has been there for a while: who leaves one page mostly opens another."""
        now = time.monotonic()
        if self._live.closing:
            return True
        if self._live.wanted():
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        return self._idle_since is not None and now - self._idle_since > LINGER_S

    def _turn(self, session: Session) -> None:
        now = time.monotonic()
        if session.connected and session.idle and now >= self._look_at:
            self._look_at = now + LOOK_S
            session.ask("page_pulse", (), self._looked, lambda error: None)
        session.turn(min(self._look_at if session.connected else now + LOOK_S, now + 1.0, self._told_at + self._live.apart_s() if self._hinted else now + 1.0), self._wake_fd)
        if self._hinted and time.monotonic() >= self._told_at + self._live.apart_s():
            self._tell("changed")

    def _connected(self) -> None:
        self._lsn, self._look_at = "", 0.0
        self._session.ask("client_backend", (), self._known, lambda error: None)
        if self._lost_told:
            self._lost_told = False
            self._tell("back")

    def _known(self, rows: Rows) -> None:
        """Listen only where no pooler is in between: there it would stay behind on somebody else's session."""
        if rows[0][0] == self._session.backend_pid and not self._listens:
            self._listens = True
            for channel in (wake_channel, wake_now_channel, ended_channel, signal_channel):
                self._session.listen(channel(self._live.schema), self._heard)

    def _lost(self) -> None:
        if not self._lost_told:
            self._lost_told = True
            self._tell("lost")

    def _heard(self, payload: str) -> None:
        self._hinted = True

    def _looked(self, rows: Rows) -> None:
        lsn = rows[0][0]
        if (self._lsn and lsn != self._lsn) or time.monotonic() - self._told_at > STALE_S:
            self._hinted = True
        self._lsn = lsn

    def _tell(self, event: str) -> None:
        self._hinted, self._told_at = False, time.monotonic()
        self._live.told()
        self._live.tell(event)
