"""Burials: declare workers dead and give back what they held, so that no claim outlives its worker for long.

The order is what makes it right: end the dead worker's sessions (one stopped in mid-pipeline holds its row and no timeout
ends it), have its advisory lock (its session is gone), declare it dead (waits for its last batch), then, in a further
statement, release its tasks: the snapshot of one statement for both would miss the claims of that last batch.
Every parent buries its own children, whoever leads; strangers are buried by the leader, with its term as the fence.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from supervisor.core.codec import crash_fingerprint
from supervisor.core.errors import DatabaseUnavailable
from supervisor.db.session import Parameters, Rows, Session
from supervisor.leader.talk import LOCK_NOT_AVAILABLE, TERM_ENDED, Ask, Pause, Talk, Talks, is_refused

log = logging.getLogger("pgsupervisor.reaper")

SLICE = 500
LOCK_TIMEOUT_MS = 200  # for the batch in flight
AGAIN_S = (0.01, 0.02, 0.05, 0.1, 0.2)  # a terminated backend takes some milliseconds to go
TRIES_MAX = 20
AWAY_S = 0.5  # between two tries while the database is away


class Seen(Protocol):
    """One step that a worker was executing when it died, as its parent saw."""

    @property
    def run_id(self) -> UUID: ...
    @property
    def seq(self) -> int: ...
    @property
    def for_s(self) -> float: ...
    @property
    def step(self) -> str: ...
    @property
    def suspect(self) -> bool: ...
    @property
    def crash(self) -> bytes | None: ...


@dataclass(frozen=True)
class Dead:
    """Who is to be buried."""

    worker_id: int
    application_name: str
    why: str
    executing: Sequence[Seen] | None = None  # None: nobody saw it die
    held: bool = True  # False: it ended by itself and had nothing left
    older_s: float = 0.0  # end only sessions that are at least that old
    first: tuple[str, Parameters] | None = None  # the fence of every write


class Burials:
    """A session for burying, opened when it is first needed. A part of the parent's loop."""

    def __init__(self, dsn: str, schema: str, purpose: str = "reaper") -> None:
        self.session = Session(dsn, schema, purpose, on_connect=self._connected, on_away=self._not_connected, settings={"lock_timeout": str(LOCK_TIMEOUT_MS)})
        self.talks = Talks(self.session)
        self._used = self._away = False
        self._burying: dict[int, bool] = {}  # worker → whether it may have held something

    def bury(self, dead: Dead, done: Callable[[int, float], None] | None = None) -> None:
        """Free what a worker held that is known to be dead, however long the database is away; *done* hears how many tasks, and after how many seconds."""
        if dead.worker_id in self._burying:
            return
        self._burying[dead.worker_id] = dead.held
        began = time.monotonic()

        def ended(freed: int) -> None:
            self._burying.pop(dead.worker_id, None)
            if done is not None:
                done(freed, time.monotonic() - began)

        def failed(error: DatabaseUnavailable) -> None:
            self._burying.pop(dead.worker_id, None)
            log.debug("worker %d is not buried: %s", dead.worker_id, error)

        self.begin(_bury(dead), ended, failed)

    def begin(self, talk: Talk, ended: Callable[[Any], None], failed: Callable[[DatabaseUnavailable], None]) -> None:
        """Play a talk on this session."""
        self._used = True
        self.talks.begin(talk, ended, failed)

    def sockets(self) -> tuple[list[int], list[int]]:
        return self.session.sockets()

    def due(self) -> float:
        return min(self.session.due(), self.talks.due()) if self._used else float("inf")

    def act(self, readable: set[int], writable: set[int]) -> None:
        self.session.act(readable, writable)
        self.talks.act()

    def finish(self, within_s: float) -> bool:
        """For an owner whose loop has ended: go on until nobody is left to bury, or the time is over; while the database is away only for those that held something."""
        until, said = time.monotonic() + within_s, False
        while not self.talks.idle and (now := time.monotonic()) < until:
            if self._away and not said:
                if not any(self._burying.values()):
                    break
                log.warning("what ended workers still hold can't be given back: the database is away; waiting for it for %.0f s at most, then the leader frees it", until - now)
                said = True
            if not self.session.idle:
                self.session.turn(min(until, self.talks.due()))
            else:
                time.sleep(max(0.0, min(self.talks.due(), until) - now))
            self.talks.act()
        return self.talks.idle

    def _connected(self) -> None:
        self._away = False

    def _not_connected(self, error: DatabaseUnavailable) -> None:
        self._away = True

    def close(self) -> None:
        self.talks.forget()
        self.session.close()


def _bury(dead: Dead) -> Talk:
    """Until it is done: a worker that nobody buries blocks its runs for ever. A refusal by the fence ends it."""
    tries = 0
    while True:
        try:
            names = [dead.application_name, dead.application_name.replace(": worker ", ": tx ")]
            yield Ask("end_sessions", (names, dead.older_s))
            rows: Rows = yield Ask("bury_worker", {"worker": dead.worker_id, "why": dead.why}, dead.first)
            if rows[0][0]:
                charged = yield from _charge(dead)
                return charged + (yield from release(dead.worker_id, dead.executing, dead.first))
            if dead.executing is None and tries >= TRIES_MAX:
                return 0  # a stranger that shows a sign of life again
        except DatabaseUnavailable as error:
            if is_refused(error, TERM_ENDED):
                raise
            if not is_refused(error, LOCK_NOT_AVAILABLE):
                if tries == 0:
                    log.warning("the claims of worker %d are freed later: %s", dead.worker_id, error)
                yield Pause(AWAY_S)
        yield Pause(AGAIN_S[min(tries, len(AGAIN_S) - 1)])
        tries += 1


def _charge(dead: Dead) -> Talk:
    """Record which steps ended the worker, and give their runs back, or park them; returns how many. May be repeated: it touches what the dead still owns."""
    crashes = [each for each in dead.executing or () if each.crash is not None]
    if not crashes:
        return 0
    rows: Rows = yield Ask("charge_crashes", {
        "worker": dead.worker_id,
        "runs": [each.run_id for each in crashes],
        "seqs": [each.seq for each in crashes],
        "names": [each.step for each in crashes],
        "for_s": [each.for_s for each in crashes],
        "errors": [each.crash for each in crashes],
        "fingerprints": [crash_fingerprint(each.crash) for each in crashes if each.crash is not None],
    }, dead.first)  # fmt: skip
    for run_id, times, parked in rows:
        if parked:
            log.error("run %s is parked as attempts_exhausted: it has ended %d workers; python -m supervisor show %s", run_id, times, run_id)
    return len(crashes)


def release(worker_id: int, executing: Sequence[Seen] | None = None, first: tuple[str, Parameters] | None = None) -> Talk:
    """Give back a dead worker's tasks in slices; returns how many."""
    parameters = {"worker": worker_id, "limit": SLICE, "seen": executing is not None, "suspects": [each.run_id for each in executing or () if each.suspect]}
    freed = 0
    while True:
        rows: Rows = yield Ask("release_tasks", parameters, first)
        freed += len(rows)
        if len(rows) < SLICE:
            return freed
