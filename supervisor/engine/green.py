"""`def` workflows: each runs on a greenlet, so that a plain call can wait for the loop. greenlet is imported at first use.

Greenlets are used again: a new one maps 16 KiB for its frames and unmaps them at its end, which costs more than a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from supervisor._fastpath.wire import Returned

KEPT_MAX = 2500  # as many as one batch may end and the next one begin; 18 KiB each

_kept: list[Any] = []


class Green:
    """A call on a greenlet of its own: each `switch()` gives its next command, or this object when it has returned."""

    __slots__ = ("back", "shell", "switch", "value")

    def __init__(self, shell: Any, hub: Any) -> None:
        self.shell = shell
        self.switch = shell.switch
        self.back = hub.switch  # from inside, to the loop
        self.value: Any = None

    def returned(self) -> Returned:
        """What the call returned; kept here no longer, for a greenlet that waits for its next call still refers to this object."""
        value, self.value = self.value, None
        return Returned(value)


def green(fn: Callable[..., Any], args: tuple[Any, ...]) -> Green:
    """`fn(*args)`, about to run on a greenlet whose hub is the caller's."""
    from greenlet import getcurrent, greenlet  # type: ignore[import-untyped, unused-ignore]

    hub = getcurrent()
    if _kept and _kept[-1].parent is hub:  # greenlets belong to a thread, and the loop may go on in another one
        shell = _kept.pop()
        shell.gr_context = None  # context variables of the run before are not this one's
    else:
        shell = greenlet(_calls, parent=hub)
    made = Green(shell, hub)
    shell.job = (made, fn, args)
    return made


def _calls() -> Any:
    """What a greenlet does: one call after the other. An exception ends it and comes out of `switch()`."""
    from greenlet import getcurrent

    me = getcurrent()
    while True:
        made, fn, args = me.job
        me.job = None
        made.value = fn(*args)
        made.shell = fn = args = None  # from here on the greenlet may be somebody else's
        if len(_kept) >= KEPT_MAX:
            return made
        _kept.append(me)
        me.parent.switch(made)


def close_green(made: Green) -> None:
    """Unwind it: GreenletExit is raised where it waits."""
    shell = made.shell
    if shell is not None:
        made.shell = None
        if shell and not shell.dead:
            shell.throw()
