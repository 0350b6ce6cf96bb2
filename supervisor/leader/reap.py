"""Reap: bury workers of anybody whose sign of life is gone, and find what was forgotten. A duty of the leader.

Believes a missing advisory lock after a second, and nothing within five seconds of the server's start: then all locks are
missing at once, and live workers come back first. Level-triggered: it looks at what is, whoever missed what happened.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from uuid import UUID

from supervisor.core import ends
from supervisor.core.errors import DatabaseUnavailable
from supervisor.leader.burial import Burials, Dead, release
from supervisor.leader.talk import Ask, Talk

log = logging.getLogger("pgsupervisor.reaper")

FIRST = UUID(int=0)

LOCK_FREE_S = 1.0  # a sign of life that is missing for so long is believed
SERVER_YOUNG_S = 5.0  # after its start all are missing at once
SLICE = 500  # runs that wait for signals and are looked at each time
LOOK_S = 5.0  # what a crash swallowed (a release, a wake-up) is found within that
LOOKS_PER_SIGNALS = 4  # nothing swallows a signal: whoever sends it wakes the run in the same transaction. An idle host asks three questions a second


class Reap:
    """What the leader's pulse tells about workers, and what follows from it."""

    def __init__(self, burials: Burials) -> None:
        self._burials = burials
        self._missing: dict[int, float] = {}
        self._fence: tuple[str, tuple[int]] = ("as_leader", (0,))
        self._next_look = 0.0
        self._looking = False
        self._signals_after = FIRST
        self._looks = 0

    def begin(self, term: int) -> None:
        """A term begins: nothing that an earlier one saw counts."""
        self._fence = ("as_leader", (term,))
        self._missing.clear()
        self._next_look = 0.0

    def heard(self, missing: Collection[int], server_age_s: float) -> None:
        """The pulse: these workers have no lock now."""
        now = time.monotonic()
        self._missing = lasting(self._missing, missing, now, server_age_s)
        for worker_id, since in list(self._missing.items()):
            if now - since >= LOCK_FREE_S:
                self._missing[worker_id] = now  # and again after a while, should it come to nothing
                self._burials.begin(self._found(worker_id), _nothing, _say)
        if now >= self._next_look and not self._looking:
            self._next_look, self._looking = now + LOOK_S, True
            self._burials.begin(self._all_forgotten(), self._looked, self._looked)

    def _found(self, worker_id: int) -> Talk:
        for boot, pid, host in (yield Ask("lost_worker", (worker_id,))):
            # its loop's session is gone; a younger one may be the same process, come back under a new number
            self._burials.bury(
                Dead(worker_id, f"pgsupervisor: worker {boot.hex[:8]}", ends.SESSION_GONE, older_s=LOCK_FREE_S, first=self._fence),
                lambda freed, took_s: log.warning("worker %d (pid %d on %s) has lost its session: %d claims given back", worker_id, pid, host, freed),
            )

    def _all_forgotten(self) -> Talk:
        yield from forgotten(self._fence)
        self._looks += 1
        if self._looks % LOOKS_PER_SIGNALS:
            return
        self._signals_after = yield from unheard(self._fence, self._signals_after)

    def _looked(self, _: object) -> None:
        self._looking = False


def lasting(before: dict[int, float], missing: Collection[int], now: float, server_age_s: float) -> dict[int, float]:
    """Since when each is missing; none while the server is young."""
    if server_age_s < SERVER_YOUNG_S:
        return {}
    return {worker_id: before.get(worker_id, now) for worker_id in missing}


def forgotten(fence: tuple[str, tuple[int]]) -> Talk:
    """Tasks whose owner is dead, parents whose children have ended: whoever forgot them."""
    found = yield Ask("forgotten")
    for owner in [owner for owner, *_ in found if owner is not None]:
        freed = yield from release(owner, None, fence)
        log.info("worker %d: %d forgotten claims given back", owner, freed)
    parents = [run_id for _, run_id, *_ in found if run_id is not None]
    if parents:
        woken = yield Ask("wake_forgotten", (parents,), fence)
        log.info("%d parents woken whose children have ended", len(woken))
    yield from _unanswered([(run_id, owner) for _, _, run_id, owner, _ in found if run_id is not None], fence)
    aside = [run_id for *_, run_id in found if run_id is not None]
    if aside:
        ended = yield Ask("end_wedged", (aside,), fence)
        log.info("%d cancelled runs ended that the engine had put aside", ended[0][0])


def _unanswered(updated: list[tuple[UUID, int | None]], fence: tuple[str, tuple[int]]) -> Talk:
    """Runs that were sent updates a while ago and have not looked at them: wake those that are parked, tell the workers that have the others."""
    parked, owners = [run_id for run_id, owner in updated if owner is None], sorted({owner for _, owner in updated if owner is not None})
    if parked:
        woken = yield Ask("wake_unupdated", (parked,), fence)
        log.info("%d runs woken that had not looked at their updates", len(woken))
    if owners:
        yield Ask("tell_updated", (owners,))


def unheard(fence: tuple[str, tuple[int]], after: UUID) -> Talk:
    """Runs that are parked although a signal that they wait for is there, in the next slice; returns where the one after it begins."""
    found = yield Ask("parked_on_signals", (after, SLICE))
    runs = [run_id for run_id, unread in found if unread]
    if runs:
        woken = yield Ask("wake_unheard", (runs,), fence)
        log.warning("%d runs woken that had not heard their signals", len(woken))
    return found[-1][0] if len(found) == SLICE else FIRST


def _nothing(_: object) -> None:
    pass


def _say(error: DatabaseUnavailable) -> None:
    log.debug("no reaping: %s", error)
