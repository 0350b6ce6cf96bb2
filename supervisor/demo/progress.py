"""How far the demo is: a bar with rate and ETA on a terminal, a line every two seconds elsewhere. Always on stderr.

Has no thread, since workers are forked while it is shown: whoever calls `show` draws.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

LINE_EVERY_S = 2.0


class Progress(Protocol):
    """What the demo needs of either kind."""

    def show(self, done: int) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self) -> None: ...


def progress(total: int, quiet: bool = False) -> Progress:
    """A bar where stderr is a terminal, else lines; *quiet* leaves out what is said besides."""
    return (Bar if sys.stderr.isatty() else Lines)(total, quiet)


class Lines:
    """For logs and pipes."""

    def __init__(self, total: int, quiet: bool) -> None:
        self._total, self._quiet = total, quiet
        self._began = time.monotonic()
        self._next = self._began + LINE_EVERY_S

    def show(self, done: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + LINE_EVERY_S
        rate = done / (now - self._began)
        eta = f"{(self._total - done) / rate:.0f} s left" if rate else "starting"
        print(f"{done:,} of {self._total:,} files, {rate:,.0f}/s, {eta}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class Bar:
    """For people."""

    def __init__(self, total: int, quiet: bool) -> None:
        from rich import progress as parts
        from rich.console import Console

        self._bar = parts.Progress(
            parts.TextColumn("files"), parts.BarColumn(None), parts.MofNCompleteColumn(), parts.TextColumn("{task.fields[rate]}"),
            parts.TextColumn("eta"), parts.TimeRemainingColumn(),
            console=Console(stderr=True, highlight=False), auto_refresh=False, redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        self._quiet = quiet
        self._task: Any = self._bar.add_task("", total=total, rate="")
        self._began = time.monotonic()
        self._bar.start()

    def show(self, done: int) -> None:
        rate = done / max(1e-3, time.monotonic() - self._began)
        self._bar.update(self._task, completed=done, rate=f"{rate:,.0f}/s")
        self._bar.refresh()

    def say(self, text: str) -> None:
        if not self._quiet:
            self._bar.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.refresh()
        self._bar.stop()
