"""Leadership: of all supervisors of one schema at most one leads. This is one supervisor's share in that.

Owns the three sessions: *lead* holds the advisory lock and beats twice a second, *ears* listens and announces, *chores* is for
what waits for locks. Followers try for the lock at the same pace, and depose a leader that holds it and beats no more.
A part of the parent's loop: it never blocks it, so a beat that comes late means a process that does not run.
Invariant: what is written as leader is written after `as_leader(term)` in the same transaction.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from uuid import UUID

from supervisor.core.errors import DatabaseUnavailable
from supervisor.db.session import Rows, Session, StatementRefused
from supervisor.db.statements import wake_channel
from supervisor.leader.outage import Outage
from supervisor.leader import partitions, retention, statistics
from supervisor.leader.burial import Burials
from supervisor.leader.chores import Chores, Duty
from supervisor.leader.depose import SILENT_S, Facts, judge
from supervisor.leader.look import Asked, Look, Told
from supervisor.leader.reap import Reap
from supervisor.leader.schedules import Schedules

log = logging.getLogger("pgsupervisor.leader")

PULSE_S = 0.5
JITTER = 0.2  # of followers, so that they do not all ask at once
STATEMENT_S = 1.0
HURRY_S, HURRIED_S = 0.02, 2.0  # the pace after a deposal, and for how long
GIVE_BACK_S = 1.0


class Leadership:
    """Leads while it can; `term` is 0 while another supervisor leads.

    burials       the parent's; strangers are buried there
    retention_s   how long the history is kept; None for ever
    """

    def __init__(self, dsn: str, schema: str, supervisor_id: UUID, burials: Burials, retention_s: float | None = None) -> None:
        name = supervisor_id.hex[:8]
        self._me = supervisor_id, socket.gethostname(), os.getpid()
        self.term = 0
        self._channel = f"{schema}.leader"
        self._outage = Outage(log)
        self._lead = Session(dsn, schema, f"lead {name}", on_connect=self._connected, on_lost=self._lost, on_away=self._outage.goes_on, timeout_s=STATEMENT_S)
        self._ears = Session(dsn, schema, f"ears {name}")
        self._ears.listen(self._channel, self._announced)
        self._chores = Chores(dsn, schema, f"chores {name}", [
            Duty("partitions", partitions.EVERY_S, partitions.partitions),
            Duty("statistics", statistics.EVERY_S, statistics.statistics),
            Duty("retention", retention.EVERY_S, partial(retention.retention, retention_s)),
        ])  # fmt: skip
        self._reap = Reap(burials)
        self._schedules = Schedules(burials, lambda hint: self.say([wake_channel(schema)], [hint], lambda _: None))
        self._look = Look()
        self._next = float("inf")  # its next pulse; inf while one is out or there is no session
        self._hurry_until = 0.0
        self._why = "its session was gone"  # of the term before ours, should we begin one

    def listen(self, channel: str, heard: Callable[[str], None]) -> None:
        """Hear notifications on the session that does nothing else; led or not."""
        self._ears.listen(channel, heard)

    def say(self, channels: Sequence[str], payloads: Sequence[str], said: Callable[[bool], None]) -> None:
        """Notify on that session too: NOTIFY may wait for another's commit, and nothing else waits for that there."""
        self._ears.ask("announce_each", (channels, payloads), lambda _: said(True), lambda _: said(False))

    def look(self, asked: Asked, told: Told) -> None:
        """Ask the block `pulse` with every pulse, led or not: *asked* gives its parameters, *told* is given its row."""
        self._look.wanted(asked, told)

    # ── the part of the loop ─────────────────────────────────────────────────────────────────────────────────────

    def sockets(self) -> tuple[list[int], list[int]]:
        reading: list[int] = []
        writing: list[int] = []
        for each in (self._lead, self._ears, self._chores):
            to_read, to_write = each.sockets()
            reading += to_read
            writing += to_write
        return reading, writing

    def due(self) -> float:
        return min(self._next, self._lead.due(), self._ears.due(), self._chores.due(), self._schedules.due())

    def act(self, readable: set[int], writable: set[int]) -> None:
        self._lead.act(readable, writable)
        if time.monotonic() >= self._next:
            self._pulse()
        self._ears.act(readable, writable)
        self._chores.act(readable, writable)
        self._schedules.act()

    def close(self) -> None:
        """Give the lead back, so that the next one has it at once, and end the sessions. Blocks for a second at most."""
        if self.term and self._lead.connected:
            self._chores.stop()
            # in this order: who takes the lock next must not find our term open; who hears of it must find the lock free
            self._lead.ask("end_term", ("stopped", self.term))
            self._lead.ask("release_lead")
            self._lead.ask("announce", (self._channel, "free"))
            self._lead.wait(GIVE_BACK_S)
        self.term, self._next = 0, float("inf")
        self._chores.stop()
        self._schedules.stop()
        self._lead.close()
        self._ears.close()

    # ── the pulse ────────────────────────────────────────────────────────────────────────────────────────────────

    def _connected(self) -> None:
        self._outage.over()
        self._next = 0.0

    def _pulse(self) -> None:
        self._next = float("inf")
        look = self._look.parameters()
        if self.term:
            at = time.monotonic()
            sign = {"ears": self._ears.backend_pid, "chores": self._chores.backend_pid, "term": self.term}
            self._lead.ask("beat", {**sign, **look}, lambda rows: self._beaten(rows, at), self._put_off)
        else:
            self._lead.ask("seek_lead", look, self._sought, self._put_off)

    def _put_off(self, error: DatabaseUnavailable) -> None:
        """A pulse was refused; the next one may not be. A lost session has its own pace."""
        log.debug("%s", error)
        again_s = PULSE_S / 5
        if self._look.out and isinstance(error, StatementRefused):
            self._look.refused()
            again_s = 0.0  # and without it
        if self._lead.connected:
            self._next = time.monotonic() + again_s

    def _beaten(self, rows: Rows, at: float) -> None:
        if not rows:
            self._lead.drop("its term was ended by somebody else")
            return
        self._next = at + PULSE_S
        chores_pid, server_age_s, missing, schedule_s, held, *seen = rows[0]
        self._chores.known(chores_pid)
        self._reap.heard(missing, server_age_s)
        self._schedules.heard(schedule_s, held)
        self._look.answered(*seen)

    def _sought(self, rows: Rows) -> None:
        free, term, ended, beat_age_s, *seen = rows[0]
        if free:
            if term is not None and not ended:  # what its sessions are still at must not outlive its term
                self._lead.ask("end_leader", (term, 0.0), refused=lambda error: log.debug("%s", error))
            self._lead.ask("take_term", (*self._me, self._why), self._lead_now, self._not_taken)
        elif term is None or ended or beat_age_s > SILENT_S:
            self._lead.ask("who_leads", (), self._doubt, self._put_off)
        else:
            self._follow()
        self._look.answered(*seen)

    def _follow(self) -> None:
        now = time.monotonic()
        hurried = now < self._hurry_until
        self._next = now + (HURRY_S if hurried else PULSE_S * random.uniform(1 - JITTER, 1 + JITTER))
        if not hurried:
            self._why = "its session was gone"

    # ── taking and losing the lead ───────────────────────────────────────────────────────────────────────────────

    def _lead_now(self, rows: Rows) -> None:
        self.term = rows[0][0]
        self._next = self._hurry_until = 0.0
        self._why = "its session was gone"
        log.info("leading: term %d", self.term)
        self._reap.begin(self.term)
        self._schedules.begin(self.term)
        self._chores.begin(self.term)

    def _not_taken(self, error: DatabaseUnavailable) -> None:
        if self._lead.connected:
            self._lead.drop(f"it could not begin a term, so it gives the lock back: {error}")

    def _lost(self) -> None:
        """The lock went with the session: whatever this process does next, it does as a follower."""
        self._next = float("inf")
        self._chores.stop()
        self._schedules.stop()
        if self.term:
            log.warning("no longer leading: term %d is over, its session is lost", self.term)
        self.term = 0

    def _doubt(self, rows: Rows) -> None:
        """The leader gives no sign of life: is there one?"""
        verdict = judge(Facts(*rows[0])) if rows else None
        if verdict is None:
            self._follow()
            return
        self._hurry_until = time.monotonic() + HURRIED_S
        if verdict.term is not None:
            log.warning("the leader of term %d gives no sign of life: its sessions are terminated", verdict.term)
            self._why = verdict.why
            self._lead.ask("end_leader", (verdict.term, SILENT_S), lambda _: self._follow(), self._not_deposed)
        else:
            log.warning("the session of backend %s holds the leader's lock and begins no term: it is terminated", verdict.holder_pid)
            self._lead.ask("end_lock_holder", (verdict.holder_pid, SILENT_S), lambda _: self._follow(), self._not_deposed)

    def _not_deposed(self, error: DatabaseUnavailable) -> None:
        log.warning("the leader that gives no sign of life could not be deposed: %s", error)
        self._hurry_until = 0.0
        if self._lead.connected:
            self._follow()

    def _announced(self, _: str) -> None:
        """The lead was given back."""
        if not self.term and self._lead.connected and self._next != float("inf"):
            self._next = 0.0
