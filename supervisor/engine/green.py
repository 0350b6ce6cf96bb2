"""`def` workflows: each runs on a greenlet, so that a plain call can wait for the loop. greenlet is imported at first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from supervisor._fastpath.wire import Returned


def green(fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """A greenlet that runs `fn(*args)`; each `switch()` gives its next command, or Returned."""
    from greenlet import getcurrent, greenlet  # type: ignore[import-untyped, unused-ignore]

    def main() -> Returned:
        return Returned(fn(*args))

    return greenlet(main, parent=getcurrent())


def close_green(glet: Any) -> None:
    """Unwind it: GreenletExit is raised where it waits."""
    if glet and not glet.dead:
        glet.throw()
