"""Look: what a host wants to know with every pulse, in the pulse's own statement, so that an idle host asks nothing more.

Owns when it is asked along. The pulse comes first: a look that takes long is asked for more rarely, one that the
database refuses not at all for a while. What is asked and what follows from it is its owner's affair (host/wakeups.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

NOTHING: Mapping[str, Any] = {"queues": [], "workflows": [], "depth": 0, "supervisor": None}  # a pulse without a look
APART_S = 0.35  # pulses may come in a hurry, looks do not
SHARE = 10.0  # of the time at most one part in so many is spent with looking
REFUSED_S = 10.0

Asked = Callable[[], Mapping[str, Any]]
Told = Callable[[int, float | None, bool], None]


class Look:
    """The look that rides on the pulse, if anybody wants one."""

    def __init__(self) -> None:
        self._asked: Asked | None = None
        self._told: Told | None = None
        self._next = 0.0
        self._at: float | None = None  # when the one that is out was asked

    def wanted(self, asked: Asked, told: Told) -> None:
        self._asked, self._told = asked, told

    @property
    def out(self) -> bool:
        """Whether the pulse that is out carries one."""
        return self._at is not None

    def parameters(self) -> Mapping[str, Any]:
        """What the next pulse asks of the block `pulse`."""
        now = time.monotonic()
        if self._asked is None or now < self._next:
            self._at = None
            return NOTHING
        self._at = now
        return self._asked()

    def answered(self, due: int, next_s: float | None, hidden: bool) -> None:
        """The pulse is answered."""
        at, self._at = self._at, None
        if at is not None and self._told is not None:
            self._next = at + max(APART_S, SHARE * (time.monotonic() - at))
            self._told(due, next_s, hidden)

    def refused(self) -> None:
        """The server refused a pulse with a look; it may be the look's fault."""
        self._at = None
        self._next = time.monotonic() + REFUSED_S
