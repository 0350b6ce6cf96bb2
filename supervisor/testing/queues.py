"""Queues that are paused and resumed, on tables in memory. As the functions of sql/migrations/0042; who looks at a pause is whoever claims."""

from __future__ import annotations

from supervisor.core.errors import QueueUnknown
from supervisor.testing.operators import check_said
from supervisor.testing.tables import ACTOR, QueuePause, Tables

KNOWN_MAX = 20


class Queues:
    def __init__(self, tables: Tables) -> None:
        self._t = tables

    def pause(self, name: str, reason: str | None, actor: str | None) -> bool:
        """False where it is paused: who paused it first, and why, stays."""
        queue = self._known(name)
        check_said(reason, actor)
        if queue in self._t.queue_pauses:
            return False
        self._t.queue_pauses[queue] = QueuePause(self._t.now(), actor or ACTOR, reason)
        return True

    def resume(self, name: str, reason: str | None, actor: str | None) -> bool:
        """False where it is not paused."""
        queue = self._known(name)
        if queue not in self._t.queue_pauses:
            return False
        check_said(reason, actor)
        del self._t.queue_pauses[queue]
        self._t.wake()
        return True

    def _known(self, name: str) -> int:
        known = self._t.catalogue.queues
        if name not in known:
            raise QueueUnknown(name or "", sorted(known)[:KNOWN_MAX], len(known))
        return known[name]


__all__ = ["Queues"]
