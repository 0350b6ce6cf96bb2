"""Is this host alive, and is it ready? From its black box and, for readiness alone, from the database.

Nothing here waits: the black box is memory, and what the database has to say is asked in a thread (stored.py).
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from supervisor.core.errors import SupervisorError
from supervisor.db import migrations
from supervisor.db.connect import connect, told_when_broken
from supervisor.host import boxes

if TYPE_CHECKING:
    from supervisor.db.connect import Dsn
    from supervisor.metrics.stored import Question

log = logging.getLogger("pgsupervisor.metrics")

STUCK_S = 10.0  # the loop turns twice a second
# why the schema does not fit, without the names of hosts and roles: whoever may reach the port reads it
_WORDS = {
    "database_unavailable": "the database can't be reached",
    "schema_missing": "the database has no schema of pgsupervisor, or this role may not see it: python -m supervisor migrate",
    "schema_too_old": "the schema is older than this program: python -m supervisor migrate",
    "schema_too_new": "the schema is newer than this program: upgrade the program",
    "migration_changed": "the schema was made by other migrations than this program has",
}


class Probes:
    """Of the supervisor with that pid. fits: whether the database can be worked with, as `Schema.fits` answers it."""

    def __init__(self, pid: int, fits: Question[str]) -> None:
        self._pid, self._fits = pid, fits
        self._fd: int | None = None
        self._began = False

    def box(self) -> boxes.Box | None:
        """The black box now; None before there is one."""
        if self._fd is None:
            self._fd = boxes.open_box(self._pid)
        return boxes.read_open(self._fd, self._pid) if self._fd is not None else None

    def tallies(self) -> tuple[boxes.Tallied, boxes.Tallied]:
        return boxes.read_tallies(self._fd) if self._fd is not None else ({}, {})

    def not_live(self) -> str | None:
        """Why the host is not alive; None where it is."""
        box = self.box()
        if box is None or box.host.ticked_us == 0:
            return "the host has not begun yet"
        silent_s = time.monotonic() - box.host.ticked_us / 1e6
        return f"the host's loop has not turned for {silent_s:.0f} s: it hangs, or is stopped" if silent_s > STUCK_S else None

    def not_ready(self) -> list[str]:
        """Why nothing should be sent here, one reason per line; empty where all is well."""
        box, reasons = self.box(), []
        if (dead := self.not_live()) is not None:
            reasons.append(dead)
        if box is not None and box.host.stopping:
            reasons.append("the host is draining: it was told to stop")
        if box is not None and box.host.ready == 0:
            reasons.append(f"no worker is ready, of {box.host.target}")
        words = self._fits.answer()
        if words is None:
            words = "the database does not answer in time"
        return [*reasons, *([words] if words else [])]

    def not_begun(self) -> str | None:
        """Why the host has not come up yet; None from the first ready worker on."""
        box = self.box()
        self._began = self._began or (box is not None and box.host.ready > 0)
        return None if self._began else "no worker has been ready yet"


class Schema:
    """Asks whether the schema fits this program. A session each time: that there is one to be had is half of the answer."""

    def __init__(self, dsn: Dsn, schema: str) -> None:
        self._dsn, self._schema = dsn, schema
        self._said = ""

    def fits(self) -> str:
        """Why it does not; "" where it does."""
        try:
            with connect(self._dsn, purpose="readiness", schema=self._schema) as conn, told_when_broken():
                migrations.check(conn, self._schema)
        except SupervisorError as error:
            words = _WORDS.get(error.code, error.code)
            if words != self._said:
                log.warning("not ready: %s", error)
            self._said = words
            return words
        self._said = ""
        return ""

