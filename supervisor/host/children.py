"""A worker as a process: its birth, what it tells its parent, what it keeps of the parent's.

Owns the fork and everything that a child does before its work: it closes what it inherited, resets signals, asks to be
killed with its parent, loads the app. A child never returns from here: it ends by `os._exit`.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

import msgspec

from supervisor.core.errors import ConfigInvalid, DefinitionError
from supervisor.engine.forked import die_with, leave
from supervisor.engine.main import Birth
from supervisor.engine.responder import release
from supervisor.engine.rest import HEAR, NUDGED, SIGNALLED
from supervisor.host import log_lines
from supervisor.host.titles import set_title

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

EXIT_BROKEN = 70
TRACEBACK_MAX = 16_000  # characters of its end; a pipe takes 64 KiB without a reader
FD_MAX = 65_536
READ_BYTES = 65_536
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

Load = Callable[[Birth], tuple[list[str], list[str]]]
Work = Callable[[Birth], int]


class Loaded(msgspec.Struct, tag=True):
    """The app is imported: its workflows, and for what a worker of it opens sessions."""

    workflows: list[str]
    sessions: list[str]


class NotLoaded(msgspec.Struct, tag=True):
    """The app can't be imported. code: of an error of ours whose message says all; else the words are a traceback."""

    code: str
    words: str


class Born(msgspec.Struct, tag=True):
    """Who the worker is: told once it is registered, and again when it is ready to work."""

    worker_id: int
    application_name: str
    ready: bool = False


class Broken(msgspec.Struct, tag=True):
    """What it died of, if that was an exception: its traceback."""

    words: str


class Left(msgspec.Struct, tag=True):
    """What it leaves behind, ending in peace: runs given back, runs in the middle, steps cut off."""

    given_back: int
    held: int
    cut: int


class Away(msgspec.Struct, tag=True):
    """Why it had no session to be born with."""

    words: str


Told = Loaded | NotLoaded | Born | Broken | Left | Away
_read = msgspec.json.Decoder(Told).decode


@dataclass
class Child:
    """One worker process, from the parent's side.

    number   its place: which slots of the black box are its own; a successor has the same
    nudge    an eventfd, open here and in the worker: written to say "there may be work"
    """

    number: int
    generation: int
    pid: int
    pidfd: int
    pipe: int
    nudge: int
    started: float
    born: Born | None = None
    times_born: int = 0  # ready under how many ids
    loaded: Loaded | None = None
    not_loaded: NotLoaded | None = None
    broken: Broken | None = None
    left: Left | None = None
    away: Away | None = None
    heard: bytes = b""
    closed: bool = False
    leaving: bool = False
    kill_at: float = float("inf")

    @property
    def ready(self) -> bool:
        """Whether it has said that it works."""
        return self.born is not None and self.born.ready

    def listen(self) -> list[Told]:
        """What it has said since, without waiting: a process of the app's may hold the other end for ever."""
        news: list[Told] = []
        while not self.closed:
            try:
                heard = os.read(self.pipe, READ_BYTES)
            except BlockingIOError:
                break
            self.closed = not heard
            *lines, self.heard = (self.heard + heard).split(b"\n")
            news.extend(self._note(_read(line)) for line in lines)
        return news

    def _note(self, told: Told) -> Told:
        match told:
            case Born():
                self.born = told
                self.times_born += told.ready
            case Loaded():
                self.loaded = told
            case NotLoaded():
                self.not_loaded = told
            case Broken():
                self.broken = told
            case Left():
                self.left = told
            case Away():
                self.away = told
        return told

    @property
    def name(self) -> str:
        """Who it is, for the log: by the number that all else shows, and by its place."""
        place = f"slot {self.number}, pid {self.pid}"
        return f"worker {self.born.worker_id} ({place})" if self.born is not None else f"the worker of {place}, not born yet,"

    def wake(self) -> None:
        """Say that there may be work. Never blocks, and says it once to a worker that has not looked yet."""
        os.eventfd_write(self.nudge, NUDGED)

    def signalled(self) -> None:
        """Say that signals were sent to runs that it has."""
        os.eventfd_write(self.nudge, SIGNALLED)

    def hear(self) -> None:
        """Tell it to hear for itself what clients start, as long as it lives."""
        os.eventfd_write(self.nudge, HEAR)

    def kill(self, number: int) -> None:
        """Send it a signal; it is not reaped yet, so the pid is its own."""
        os.kill(self.pid, number)

    def close(self) -> None:
        for fd in (self.pidfd, self.pipe, self.nudge):
            os.close(fd)


def fork(number: int, generation: int, app: str, keep: Iterable[int], blackbox: Any, supervisor_id: UUID, work: Work, load: Load | None) -> Child:
    """Fork a worker. Returns in the parent only. keep: descriptors of the parent's that stay open in it."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reading, False)
    nudge = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    # a signal that comes to the child while it still has our handlers would be written into our pipe
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    if pid != 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    else:
        pipe = _Pipe(writing)
        birth = Birth(number, generation, blackbox, pipe.born, pipe.left, pipe.away, nudge, supervisor_id, (writing, nudge, *keep))
        _become_worker(birth, pipe, app, parent, work, load)
    os.close(writing)
    return Child(number, generation, pid, os.pidfd_open(pid), reading, nudge, time.monotonic())


# ── in the child ─────────────────────────────────────────────────────────────────────────────────────────────────


class _Pipe:
    """The worker's end of the pipe to its parent."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def tell(self, what: Told) -> None:
        os.write(self._fd, msgspec.json.encode(what) + b"\n")

    def born(self, worker_id: int, application_name: str, ready: bool) -> None:
        log_lines.worker_id = worker_id
        self.tell(Born(worker_id, application_name, ready))

    def left(self, given_back: int, held: int, cut: int) -> None:
        self.tell(Left(given_back, held, cut))

    def away(self, words: str) -> None:
        self.tell(Away(words))


def _become_worker(birth: Birth, pipe: _Pipe, app: str, parent_pid: int, work: Work, load: Load | None) -> NoReturn:
    """Keep nothing of the parent's but standard descriptors, die with it, work, and never return."""
    code = 1
    try:
        _reset_signals()
        close_all_but(set(birth.fds))
        die_with(parent_pid, signal.SIGKILL)
        set_title(f"worker {birth.number}{f' of {app}' if app else ''}, generation {birth.generation}")
        code = _load(birth, pipe, load) or work(birth)
    except BaseException as error:  # noqa: BLE001 - whatever it was, it must not run the parent's code
        pipe.tell(Broken(_told(error)))
    finally:
        leave(code)


def _load(birth: Birth, pipe: _Pipe, load: Load | None) -> int:
    """Import the app and say how it went; returns an exit code if it went wrong."""
    if load is None:
        return 0
    try:
        workflows, sessions = load(birth)
    except (ConfigInvalid, DefinitionError) as error:
        pipe.tell(NotLoaded(error.code, str(error)))
        return EXIT_BROKEN
    except BaseException as error:  # noqa: BLE001 - SystemExit too: an app that exits when it is imported is no app
        pipe.tell(NotLoaded("", _told(error)))
        return EXIT_BROKEN
    pipe.tell(Loaded(workflows, sessions))
    return 0


def _reset_signals() -> None:
    """TERM and QUIT end it until the worker has handlers; what the terminal sends to all is ignored, and what the parent forwards, until
    somebody listens (engine/responder.py)."""
    signal.set_wakeup_fd(-1)
    release(signal.SIGUSR1)  # else it would write into whatever has the number of the parent's memfd then
    for name in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH):
        signal.signal(name, signal.SIG_IGN)
    for name in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(name, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    faulthandler.enable(file=2)  # a crash in native code says where


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor but the standard ones and *keep*."""
    start = 3
    for fd in sorted(keep):
        os.closerange(start, fd)
        start = max(start, fd + 1)
    os.closerange(start, FD_MAX)


def _told(error: BaseException) -> str:
    """The traceback from the app's first line on: whole where it never got there, none where importlib refused the file."""
    first = last = error.__traceback__
    while first is not None and _is_machinery(first):
        first, last = first.tb_next, first
    shown = first if first is not None or (last is not None and _is_importlib(last)) else error.__traceback__
    lines = traceback.format_exception(type(error), error, shown)
    return "".join(lines).rstrip()[-TRACEBACK_MAX:]


def _is_machinery(at: TracebackType) -> bool:
    return _is_importlib(at) or at.tb_frame.f_code.co_filename.startswith(_PACKAGE)


def _is_importlib(at: TracebackType) -> bool:
    path = at.tb_frame.f_code.co_filename
    return path.startswith("<frozen importlib") or path.endswith("importlib/__init__.py")
