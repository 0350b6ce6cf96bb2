"""Killing workers inside steps: stop one, look into its black box, and kill it only if it is executing.

A stopped process can't leave its step between the look and the kill, so what the black box says is what the kill hits.
"""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from supervisor.demo.workflows import HELD, LEFT

if TYPE_CHECKING:
    from supervisor.host.blackbox import Executing
    from supervisor.host.children import Child
    from supervisor.host.parent import Parent

KILLS = 3
STOPPED_WITHIN_S = 0.5


@dataclass
class Kill:
    """One worker that was killed, what it was executing, and how long its claims were held by the dead."""

    worker_id: int
    pid: int
    executing: list[Executing]
    reclaimed_s: float | None = None


class Killer:
    """Kills KILLS workers in the course of a demo, never two at once.

    shared   memory that the workers see too: how many kills are still to come (LEFT), and whether a step waits for them (HELD)
    """

    def __init__(self, parent: Parent, shared: mmap.mmap) -> None:
        self._parent = parent
        self._shared = shared
        shared[LEFT] = KILLS
        self.kills: list[Kill] = []

    def look(self, share: float, ours: Callable[[list[UUID]], set[UUID]]) -> Kill | None:
        """Kill a worker if one is due when *share* of the work is done; returns what was killed.

        ours   which of some runs belong to this demo; others, left over by one that was interrupted, are no prey
        """
        due = share >= (len(self.kills) + 0.5) / (KILLS + 1) or self._shared[HELD]
        if len(self.kills) == KILLS or not due:
            return None
        children = list(self._parent.children.values())
        if len(children) < self._parent.options.procs or not all(child.born and child.born.ready for child in children):
            return None
        for child in children:
            kill = self._strike(child, ours)
            if kill is not None:
                self.kills.append(kill)
                self._shared[LEFT] = KILLS - len(self.kills)
                return kill
        return None

    def _strike(self, child: Child, ours: Callable[[list[UUID]], set[UUID]]) -> Kill | None:
        os.kill(child.pid, signal.SIGSTOP)
        prey: list[Executing] = []
        try:
            executing = self._parent.blackbox.executing(child.number) if _stopped(child.pid) else []
            known = ours([each.run_id for each in executing]) if executing else set()
            prey = [each for each in executing if each.run_id in known]
        finally:
            if prey:
                self._parent.kill(child)  # by order of the parent: three kills of one step are no proof that it is poison
            else:
                os.kill(child.pid, signal.SIGCONT)
        assert child.born is not None
        return Kill(child.born.worker_id, child.pid, prey) if prey else None

    def note_reclaims(self) -> list[Kill]:
        """Kills whose claims have been given back since the last call."""
        took = dict(self._parent.reclaimed)
        news = [kill for kill in self.kills if kill.reclaimed_s is None and kill.worker_id in took]
        for kill in news:
            kill.reclaimed_s = took[kill.worker_id]
        return news


def _stopped(pid: int) -> bool:
    """Wait until every thread of a process stands still."""
    deadline = time.monotonic() + STOPPED_WITHIN_S
    while time.monotonic() < deadline:
        try:
            stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
        except OSError:  # a thread, or the process, ended meanwhile
            continue
        if stats and all(stat.rpartition(")")[2].split()[0] in "Tt" for stat in stats):
            return True
    return False
