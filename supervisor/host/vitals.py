"""What a parent says of itself in its black box, for whoever looks from outside: that its loop turns, and what only it knows.

A part of the loop like any other: where the loop hangs, or the process is stopped, the moment of the last turn grows old.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from supervisor.engine.main import EXIT_DATABASE, EXIT_UNFIT
from supervisor.host import layout

if TYPE_CHECKING:
    from supervisor.host.children import Child
    from supervisor.host.parent import Parent

EVERY_S = 0.5
_REASON_OF = {0: "told", -signal.SIGTERM: "told", EXIT_DATABASE: "database", EXIT_UNFIT: "unfit"}


class Vitals:
    """A part of *parent*. term: of the leadership that this host has, 0 for none. dropped: log records that were, so far."""

    def __init__(self, parent: Parent, term: Callable[[], int], dropped: Callable[[], int]) -> None:
        self._parent, self._term, self._dropped = parent, term, dropped
        self._counted = layout.Host(0, 0, 0, 0, dict.fromkeys(layout.REASONS, 0), False, parent.target, 0, parent.generation)
        self._next = 0.0
        parent.on_death.append(self._died)

    def sockets(self) -> tuple[list[int], list[int]]:
        return [], []

    def due(self) -> float:
        return self._next

    def act(self, readable: set[int], writable: set[int]) -> None:
        self._next = time.monotonic() + EVERY_S
        self._say()

    def close(self) -> None:
        """The loop ends: it is stopping, and turns no more."""
        self._say()

    def _say(self) -> None:
        parent = self._parent
        self._counted = replace(
            self._counted, ticked_us=time.monotonic_ns() // 1000, term=self._term(), log_dropped=self._dropped(), stopping=parent.stopping, target=parent.target,
            ready=sum(child.ready for child in parent.staying), generation=parent.generation,
        )  # fmt: skip
        parent.blackbox.say(self._counted)

    def _died(self, child: Child, code: int, executing: list[Any]) -> None:
        """A worker ended: count it, and why where another one takes its place for that."""
        counted, reason = self._counted, _REASON_OF.get(code, "signal" if code < 0 else "exit")
        replaced = not child.leaving and not self._parent.stopping
        restarts = {**counted.restarts, reason: counted.restarts[reason] + replaced}
        self._counted = replace(counted, restarts=restarts, charged=counted.charged + any(entry.crash for entry in executing))
        self._next = 0.0
