"""A screen that is drawn again and again, until q or ^C: for `top` and for every `--watch`."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


def live(draw: Callable[[], RenderableType | None], interval_s: float) -> None:
    """Draw on the whole terminal every *interval_s* until q or ^C, or *draw* has nothing more; the terminal is then as it was.

    At most half of the time is spent with drawing.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with contextlib.suppress(KeyboardInterrupt), _keys() as keys, Live(console=console, screen=True, auto_refresh=False) as shown:
        due = time.monotonic()
        for _ in until_interrupted():
            began = time.monotonic()
            drawn = draw()
            if drawn is None:
                return
            shown.update(drawn, refresh=True)
            now = time.monotonic()
            due = max(due + interval_s, now + (now - began))
            while (left := due - time.monotonic()) > 0:
                if keys is None:
                    time.sleep(left)
                elif select.select([keys], [], [], left)[0] and os.read(keys, 1) in (b"q", b"Q", b""):
                    return


def until_interrupted() -> Iterator[None]:
    """Turns until ^C; also until one whose exception got lost, as it does in a destructor or a callback."""
    interrupted: list[int] = []

    def note(number: int, _frame: Any) -> None:
        interrupted.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        while not interrupted:
            yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """Standard input, key by key; None where it is no terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
