"""A worker whose event loop stands still: its process was stopped, or an `async def` step blocks. Told once, and once more when it is over.

The loop notes a pulse in the black box twice a second; the parent compares it as often, 8 bytes for each worker. /proc and the slots are read
only where it has not changed for a while. Workflow code that holds the loop is holding.py's, an inline `def` step the watchdog's.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from supervisor.core.shown import count, plain
from supervisor.host import layout
from supervisor.host.boxes import memory

if TYPE_CHECKING:
    from supervisor.host.children import Child
    from supervisor.host.parent import Parent

log = logging.getLogger("pgsupervisor.parent")

LOOK_S = 0.5
SAY_S = 1.9  # four pulses: as long as holding.py takes for workflow code


@dataclass
class Pulse:
    """One pulse of a worker, since when it is the last by the parent's clock, and what was said of that."""

    number: int
    since: float
    said: str = ""


class Standing:
    """A part of *parent*."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent
        self._pulses: dict[int, Pulse] = {}
        self._next = 0.0

    def sockets(self) -> tuple[list[int], list[int]]:
        return [], []

    def due(self) -> float:
        return self._next

    def act(self, readable: set[int], writable: set[int]) -> None:
        now = time.monotonic()
        self._next = now + LOOK_S
        self._pulses = {child.pid: self._look(child, now) for child in self._parent.children.values() if child.ready}

    def close(self) -> None:
        pass

    def _look(self, child: Child, now: float) -> Pulse:
        last, number = self._pulses.get(child.pid), self._parent.blackbox.pulse(child.number)
        if last is None or last.number != number:
            if last is not None and last.said:
                log.info("%s: %s, for %.0f s: it goes on", child.name, last.said, now - last.since)
            return Pulse(number, now)
        if number and not last.said and now - last.since >= SAY_S:
            last.said = self._say(child, now - last.since)
        return last

    def _say(self, child: Child, for_s: float) -> str:
        """What keeps it; "" where that is not known, or somebody else says it."""
        page = self._parent.blackbox.read(child.number)
        if memory(child.pid).stopped:
            runs = count(page.live, "run")
            log.warning("%s was stopped (SIGSTOP, or by a debugger), with %s in it, which nobody else can go on with; kill -CONT %d lets it go on", child.name, runs, child.pid)
            return "it was stopped"
        held = next((entry for entry in page.executing if entry.place == "task" and not entry.resting), None)
        if held is None or page.state == layout.ENDING or any(entry.is_code for entry in page.executing):
            return ""
        log.warning(
            "step %s (run %s, seq %d) holds the loop of %s for %.0f s: it is an async def step that computes or blocks, so no other run of this worker moves meanwhile,"
            " and its timeout= can't end it; await asyncio.sleep or asyncio.to_thread in it, or make it a def step",
            plain(held.step), held.run_id, held.seq, child.name, for_s,
        )  # fmt: skip
        return f"step {plain(held.step)} (run {held.run_id}, seq {held.seq}) has held its loop"
