"""Where log records go: to the terminal in one write each, or through a pipe per worker to the log process.

Owns the handlers that the program installs on the root logger. No handler here has a lock, a queue or a thread: nothing
can be held while a process forks or dies, and a record never waits for another process. User code just uses `logging`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from supervisor.host import log_lines
from supervisor.host.log_lines import PlaceOfRecord, as_json, as_short, as_text, in_colour, line_of

if TYPE_CHECKING:
    from supervisor.host.log_process import LogProcess

STDERR = 2
_FORMS = {"text": as_text, "json": as_json, "short": as_short, "colour": in_colour}


class Lockless(logging.Handler):
    """A handler whose records are one write each, so it needs no lock; logging's own would be one more thing to be held across a fork."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # not the next class's: multiprocessing-logging's would start a thread
        self.addFilter(PlaceOfRecord())

    def createLock(self) -> None:  # noqa: N802
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        wanted = bool(self.filter(record))
        if wanted:
            self.emit(record)
        return wanted


class Terminal(Lockless):
    """Standard error: whole lines of at most 4,096 bytes, one write each."""

    def __init__(self, form: str = "text") -> None:
        super().__init__()
        self._render = _FORMS[form]

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.write(STDERR, self._render(line_of(record)))
        except OSError:  # closed, or its reader is gone: that is no reason to stop working
            pass


def to_terminal(level: str, form: str) -> None:
    """Send what is logged in this process, and in those forked from it, to standard error; *form* is text or json, or for people who watch short or colour."""
    logging.basicConfig(level=level.upper(), handlers=[Terminal(form)], force=True)


def error_told(log: logging.Logger, message: str, *arguments: object, told: str) -> None:
    """Log an error of another process with the traceback that it has *told*: by lines, as one of an exception that was raised here."""
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, f"{message}:" if told else message, arguments, None)
    record.exc_text = told or None
    log.handle(record)


def in_worker(number: int, process: LogProcess | None) -> None:
    """In a worker, when it begins and again when its app is imported: its records go to the log process if there is one, else where they went.

    Handlers that the app has installed learn run and step of each record too, and miss what a replay repeats.
    """
    log_lines.worker_number = number
    root = logging.getLogger()
    if process is not None:
        mine = process.handler_for(number)
        for handler in [*root.handlers]:
            if isinstance(handler, Terminal):
                root.removeHandler(handler)
        if mine not in root.handlers:
            root.addHandler(mine)
    for other in _handlers():
        if not any(isinstance(each, PlaceOfRecord) for each in other.filters):
            other.addFilter(PlaceOfRecord())


def _handlers() -> Iterator[logging.Handler]:
    """Those of every logger."""
    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    for logger in loggers:
        if isinstance(logger, logging.Logger):
            yield from logger.handlers
