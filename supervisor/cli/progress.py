"""How far a long command is, with rate and ETA: a bar on a terminal, a line every two seconds elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from typing import Any

from supervisor.cli.output import duration, say

LINE_EVERY_S = 2.0
DRAW_EVERY_S = 0.1


class Progress:
    """*what* is counted, in *total* parts; None: nobody knows how many, so there is no ETA. `total` parts need not be what is counted."""

    def __init__(self, what: str, total: int | None) -> None:
        self._what, self._total = what, total or None
        self._began = time.monotonic()
        bar = sys.stderr.isatty()
        self._next = self._began + (DRAW_EVERY_S if bar else LINE_EVERY_S)
        self._bar: Any = _bar() if bar else None
        self._task = self._bar and self._bar.add_task("", total=self._total, said="")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def show(self, counted: int, done: int, more: str = "") -> None:
        """*counted* things so far, *done* of the total parts, and a word on what went wrong."""
        now = time.monotonic()
        if now < self._next:
            return
        said = f"{counted:,} {self._what}, {counted / self.seconds:,.0f}/s" + (f", {more}" if more else "")
        if self._bar is not None:
            self._next = now + DRAW_EVERY_S
            self._bar.update(self._task, completed=done, said=said)
            self._bar.refresh()
            return
        self._next = now + LINE_EVERY_S
        if self._total and done:
            left_s = max(0.0, self._total - done) * self.seconds / done
            said += f", {min(1.0, done / self._total):.0%}, {duration(left_s)} left"
        say(said)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()
            self._bar = None


def _bar() -> Any:
    from rich import progress as parts
    from rich.console import Console

    bar = parts.Progress(
        parts.BarColumn(None), parts.TextColumn("{task.fields[said]}"), parts.TextColumn("eta"), parts.TimeRemainingColumn(),
        console=Console(stderr=True, highlight=False), auto_refresh=False, redirect_stdout=False, redirect_stderr=False, transient=True,
    )  # fmt: skip
    bar.start()
    return bar
