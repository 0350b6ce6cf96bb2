"""Declare workers dead and give back what they held, so that no claim outlives its worker for long.

The order is what makes it right: terminate the dead worker's sessions (one stopped in mid-pipeline holds its row and no
timeout ends it), then declare it dead (waits for its last batch), then, in a further statement, release its tasks: the
snapshot of one statement for both would miss the claims of that last batch.
"""

from __future__ import annotations

import time
from uuid import UUID

from supervisor.db import host_calls

SLICE = 500
LOCK_FREE_S = 1.0  # a sign of life that is missing for so long is believed
LOOK_S = 5.0  # what a crash swallowed (a release, a wake-up) is found within that
SERVER_YOUNG_S = 5.0  # after its start all are missing at once: live workers come back first


class Reaper:
    """The parent's session for burying workers. Connects when it is first needed, and again after it was lost."""

    def __init__(self, dsn: str, schema: str) -> None:
        self._calls = host_calls.HostCalls(dsn, schema)
        self._missing: dict[int, float] = {}
        self._next_look = 0.0

    def bury(self, worker_id: int, application_name: str, why: str, executing: list[UUID] | None = None) -> int:
        """Free what a worker held that is known to be dead; returns how many tasks. Raises DatabaseUnavailable.

        executing   the runs whose steps it was executing, from its black box; None when nobody saw it die
        """
        self._calls.terminate_sessions(application_name)
        self._calls.bury(worker_id, why)
        return self._release(worker_id, executing)

    def _release(self, worker_id: int, executing: list[UUID] | None = None) -> int:
        freed = 0
        while True:
            n = self._calls.release_tasks(worker_id, SLICE, executing)
            freed += n
            if n < SLICE:
                return freed

    def sweep(self) -> int:
        """Bury workers of anybody whose sign of life is gone, release what was forgotten, wake parents; returns tasks freed.

        Level-triggered: it looks at what is, whoever missed what happened.
        """
        freed = 0
        now = time.monotonic()
        missing: dict[int, float] = {}
        workers = self._calls.live_workers()
        if any(worker.lock_free for worker in workers) and self._calls.server_age_s() < SERVER_YOUNG_S:
            return 0
        for worker in workers:
            if not worker.lock_free or worker.age_s < LOCK_FREE_S:
                continue
            since = missing[worker.id] = self._missing.get(worker.id, now)
            if now - since >= LOCK_FREE_S:
                freed += self.bury(worker.id, worker.application_name, "its session is gone")
        self._missing = missing
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            for owner in self._calls.orphans():
                freed += self._release(owner)
            self._calls.wake_parked_parents()
        return freed

    def make_partitions(self) -> int:
        """Every supervisor looks hourly: a missing partition stops the engine. Never done by a worker, for DDL waits."""
        return self._calls.make_partitions()

    def close(self) -> None:
        self._calls.close()

