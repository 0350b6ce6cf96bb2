"""What a worker does so that its death can be explained: it keeps its last log lines, and says who is about to kill it.

A step that ends its own process leaves no other trace of which of several it was: the kernel tells the parent a signal or an
exit code, not a thread. So the interpreter's audit events for kill name the step that asks for it, `os._exit` is
wrapped, and faulthandler writes the faulting thread into the black box. All of it costs nothing until it happens.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from supervisor.core import context
from supervisor.host import layout

if TYPE_CHECKING:
    from supervisor.host.blackbox import WorkerPage

RECORD_LINES = 20  # of one record: a long traceback does not push out all that came before
FORMAT = logging.Formatter("%(asctime)s %(levelname).1s %(message)s")


def watch(page: WorkerPage, last_words: int) -> None:
    """Begin, once per worker process. *last_words* is where faulthandler writes; -1 for nowhere."""
    logging.getLogger().addHandler(Ring(page))
    if last_words >= 0:
        faulthandler.enable(last_words, all_threads=True)
    sys.addaudithook(_audit(page))
    leave = os._exit

    def noted_exit(status: int) -> Any:
        _accuse(page, layout.BY_EXIT, status)
        leave(status)

    os._exit = noted_exit


class Ring(logging.Handler):
    """Keeps the last lines of the log in the black box, where they outlive the process."""

    def __init__(self, page: WorkerPage) -> None:
        super().__init__()
        self._page = page
        self.setFormatter(FORMAT)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            for line in self.format(record).splitlines()[-RECORD_LINES:]:
                self._page.say(line)
        except Exception:  # noqa: BLE001 - an argument that can't be formatted is the other handlers' to report
            self._page.say(f"a record of {record.name} could not be formatted")


def _audit(page: WorkerPage) -> Any:
    """An audit hook: before a signal is sent to this process or one of its threads, note which step asks for it."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.kill":
            if args[0] in (page.pid, 0, -1):
                _accuse(page, layout.BY_SIGNAL, args[1])
        elif event == "os.killpg":
            if args[0] in (0, os.getpgrp()):
                _accuse(page, layout.BY_SIGNAL, args[1])
        elif event == "signal.pthread_kill":
            _accuse(page, layout.BY_SIGNAL, args[1])

    return hook


def _accuse(page: WorkerPage, how: int, value: int) -> None:
    if os.getpid() != page.pid:  # a child that a step has forked: its end is not ours
        return
    with contextlib.suppress(Exception):  # whatever goes wrong here, the call goes on
        found = (context.loop.on_this_thread() if context.loop is not None else None) or context.executing.get()
        if found is not None:
            run = getattr(found, "run", found)
            page.accuse(how, int(value), run.id, layout.CODE_SEQ if found is run else found.seq)
