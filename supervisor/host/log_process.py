"""The log process: the first child of the parent, where a log folder is configured. It alone opens the file.

Each worker writes into a pipe of its own; a line is one write of at most 4,096 bytes, so a writer that is killed leaves
no half line and holds nothing that others wait for. The parent keeps both ends of every pipe: what is in them outlives
the log process, and the next one goes on. A pipe that is full costs the record, not the worker: it is counted and said.
The log process ends when its writers are gone, or at once after its parent: it needs no signal for either.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import operator
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from multiprocessing_logging import MultiProcessingHandler  # type: ignore[import-untyped, unused-ignore]

from supervisor.core.shown import count
from supervisor.engine.forked import die_with
from supervisor.host.children import close_all_but
from supervisor.host.log_files import LogFile
from supervisor.host.log_lines import LINE_BEGINS, as_json, line_of
from supervisor.host.logs import Lockless
from supervisor.host.titles import set_title

log = logging.getLogger("pgsupervisor.log")

PARENT = -1  # the parent's number among the writers
WRITERS_MAX = 2057  # twice 1024, for a reload, eight, and the parent
PIPE_BYTES, PIPES_BYTES = 1 << 20, 32 << 20  # of one, and of all together: an account without privileges may have 64 MiB
READ_BYTES = 1 << 16
BACKOFF_S = (0.0, 0.05, 0.2, 0.5, 1.0)
STEADY_S = 5.0  # a log process that has lived for so long was well
ORPHAN_S, QUIET_S = 0.5, 0.05  # after its parent's death: at most, and when nothing comes any more
CLOSE_S = 2.0  # that a stop waits for the last lines to be written
COMPLAIN_S = (1.0, 10.0, 60.0)  # from one complaint to the next, while the file can't be written
_tally = struct.Struct("=qq")  # per writer: records dropped, and how many of them were said
_counting = threading.Lock()  # of this process, for the moment of counting a dropped record; a fork gets a new one


def _renew_lock() -> None:
    global _counting
    _counting = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


@dataclass(frozen=True)
class LogOptions:
    """folder: where the file is. bytes_max: its size when it is rotated. files: how many are kept. writers: workers at first."""

    folder: str
    bytes_max: int = 64 << 20
    files: int = 8
    writers: int = 1


class Pipe:
    """The queue of one writer: bounded, never waited for. Filled by any thread or fork of one worker, emptied by the log process."""

    def __init__(self, number: int, size: int, tallies: mmap.mmap) -> None:
        self.reading, self.writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, size)
        except OSError:  # the account has used up its share: it stays at 64 KiB, or one page
            pass
        self._tallies, self._at = tallies, (number + 1) * _tally.size

    def put_nowait(self, line: bytes) -> None:
        """Send one line, or count it as dropped. Says so as soon as there is room again."""
        try:
            if operator.ne(*self.tally()):
                self._say_dropped()
            os.write(self.writing, line)
        except OSError:  # full, or nobody will ever read it
            with _counting:
                dropped, said = self.tally()
                _tally.pack_into(self._tallies, self._at, dropped + 1, said)

    def _say_dropped(self) -> None:
        with _counting:
            dropped, said = self.tally()
            if dropped > said:
                os.write(self.writing, _dropped_line(dropped - said))
                _tally.pack_into(self._tallies, self._at, dropped, dropped)

    def end(self) -> None:
        """Write no more. What comes later is counted as dropped."""
        os.close(self.writing)
        self.writing = -1

    def count_unread(self) -> None:
        """When nobody will read any more: what is still in it was dropped. Of a writer that lives on it takes one pipe full."""
        unread = 0
        with contextlib.suppress(BlockingIOError):
            for _ in range(PIPE_BYTES // READ_BYTES + 1):
                unread += os.read(self.reading, READ_BYTES).count(b"\n")
        dropped, said = self.tally()
        _tally.pack_into(self._tallies, self._at, dropped + unread, said)

    def tally(self) -> tuple[int, int]:
        """How many records were dropped, and how many of them have been said."""
        dropped, said = _tally.unpack_from(self._tallies, self._at)
        return dropped, said


def _dropped_line(dropped: int) -> bytes:
    return as_json(line_of(_record(f"{dropped} log records were dropped: they came faster than the log process writes, or it was dead")))


def _record(message: str) -> logging.LogRecord:
    return log.makeRecord(log.name, logging.WARNING, "", 0, message, (), None)


class PipeHandler(Lockless, MultiProcessingHandler):  # type: ignore[misc, unused-ignore]
    """multiprocessing-logging's handler, given its queue: it starts no thread, has no lock and shares nothing with other workers."""

    def __init__(self, pipe: Pipe) -> None:
        Lockless.__init__(self)
        self.sub_handler = logging.NullHandler()  # to which the package hands a formatter on
        self.queue = pipe

    def _format_record(self, record: logging.LogRecord) -> bytes:
        return as_json(line_of(record))

    def close(self) -> None:
        logging.Handler.close(self)


class LogProcess:
    """Keeps a log process running, from the parent's side; a part of the parent's select loop.

    start()              before the first worker is forked
    handler_for(number)  in that worker: its handler; keep(number) names the descriptors that must stay open in it
    close()              after the last worker has ended
    """

    def __init__(self, options: LogOptions) -> None:
        self.options = options
        self._file = LogFile(Path(options.folder), options.bytes_max, options.files)
        self._file.prepare()
        self._tallies = mmap.mmap(-1, WRITERS_MAX * _tally.size)
        self._pipes: dict[int, Pipe] = {}
        self._handlers: dict[int, PipeHandler] = {}
        self._life: socket.socket | None = None  # its other end is the log process's: it hears of new pipes there, and of our end
        self._start_at = self._started = 0.0
        self._quick = 0
        self._closed = False
        self.pid = 0
        self._pidfd = -1
        for number in range(PARENT, options.writers):
            self._pipe(number)
        self.parent_handler = self.handler_for(PARENT)

    def start(self) -> None:
        """Fork the log process, and send what the parent logs to it too."""
        os.register_at_fork(after_in_child=self._in_child)
        self._fork()
        root = logging.getLogger()
        if self.parent_handler not in root.handlers:
            root.addHandler(self.parent_handler)

    def _in_child(self) -> None:
        """What is the parent's own is of no use in a child, which closes it: its number may be another file's by the time that something is logged."""
        logging.getLogger().removeHandler(self.parent_handler)
        self._pipes[PARENT].writing = -1

    def handler_for(self, number: int) -> PipeHandler:
        """The handler of worker *number*, whichever generation of it."""
        if number not in self._handlers:
            self._handlers[number] = PipeHandler(self._pipe(number))
        return self._handlers[number]

    def keep(self, number: int) -> set[int]:
        """What worker *number* must not close."""
        return {self._pipe(number).writing}

    @property
    def dropped(self) -> int:
        """Records dropped so far, by all writers together."""
        return sum(pipe.tally()[0] for pipe in self._pipes.values())

    def _pipe(self, number: int) -> Pipe:
        if number not in self._pipes:
            size = max(1 << 16, min(PIPE_BYTES, PIPES_BYTES // (self.options.writers + 1)))
            pipe = self._pipes[number] = Pipe(number, size, self._tallies)
            if self._life is not None:
                try:
                    socket.send_fds(self._life, [b"+"], [pipe.reading])
                except OSError:  # it is dead; its successor inherits the pipe
                    pass
        return self._pipes[number]

    # ── part of the parent's loop ────────────────────────────────────────────────────────────────────────────────

    def sockets(self) -> tuple[list[int], list[int]]:
        return ([self._pidfd] if self._pidfd >= 0 else []), []

    def due(self) -> float:
        return self._start_at if self._pidfd < 0 and not self._closed else float("inf")

    def act(self, readable: set[int], writable: set[int]) -> None:
        if self._pidfd in readable:
            self._reap()
        if time.monotonic() >= self.due():
            self._fork()

    def close(self) -> None:
        """Let it write what is left and end. Waits two seconds at most, also for one that is stopped."""
        if self._closed:
            return
        self._closed = True
        logging.getLogger().removeHandler(self.parent_handler)
        if self._life is not None:
            self._life.close()
        for pipe in self._pipes.values():
            pipe.end()  # the last ones of their writers
        if self._pidfd >= 0:
            os.kill(self.pid, signal.SIGCONT)
            ended = select.poll()
            ended.register(self._pidfd, select.POLLIN)
            if not ended.poll(1000 * CLOSE_S):
                os.kill(self.pid, signal.SIGKILL)
            if ended.poll(1000 * CLOSE_S):
                os.waitpid(self.pid, 0)
            os.close(self._pidfd)
            self._pidfd = -1
        for pipe in self._pipes.values():
            pipe.count_unread()
            os.close(pipe.reading)
        unsaid = sum(dropped - said for dropped, said in (pipe.tally() for pipe in self._pipes.values()))
        if unsaid:
            log.warning("%d log records were dropped: they came faster than the log process writes, or it was dead", unsaid)

    def _fork(self) -> None:
        if self._life is not None:
            self._life.close()
        self._life, its = socket.socketpair()
        self._life.setblocking(False)
        parent = os.getpid()
        self._started = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become_log_process(self._file, [pipe.reading for pipe in self._pipes.values()], its, parent)
        its.close()
        self._pidfd = os.pidfd_open(self.pid)

    def _reap(self) -> None:
        """It died: say so, and start another. The pipes keep what comes meanwhile."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        self._pidfd = -1
        code = os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        self._quick = 0 if now - self._started > STEADY_S else self._quick + 1
        self._start_at = now + BACKOFF_S[min(self._quick, len(BACKOFF_S) - 1)]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        log.warning("the log process (pid %d) %s; another goes on where it was", self.pid, how)


# ── in the log process ───────────────────────────────────────────────────────────────────────────────────────────


def _become_log_process(file: LogFile, pipes: list[int], life: socket.socket, parent: int) -> NoReturn:
    """Keep nothing of the parent's but what is read, write until the writers are gone, and never return."""
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGCONT, signal.SIGABRT, *_OF_ERRORS}:
            if number < signal.SIGRTMIN:
                signal.signal(number, signal.SIG_IGN)
        # A stopped one would outlive its parent; woken, it finds the other end closed.
        die_with(parent, signal.SIGCONT)
        close_all_but({*pipes, life.fileno()})
        set_title("log")
        Writer(file, pipes, life).run()
        code = 0
    except BaseException as error:  # noqa: BLE001 - whatever it was, it must not run the parent's code
        _complain(f"the log process ends: {type(error).__name__}: {error}")
    finally:
        os._exit(code)


_OF_ERRORS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)


def _complain(text: str) -> None:
    try:
        os.write(2, f"{datetime.now(UTC).isoformat(' ', 'milliseconds').replace('+00:00', 'Z')} E {log.name}: {text}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        pass


class Writer:
    """Carries lines from the pipes to the file until all writers are gone."""

    def __init__(self, file: LogFile, pipes: list[int], life: socket.socket, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._life, self._clock = file, life, clock
        self._rests = dict.fromkeys(pipes, b"")  # of each pipe, what came of a line that is not there to its end
        self._torn = set(pipes)  # those that may begin in the middle of a line: the one before died with its beginning
        self._poll = select.poll()
        for fd in (*pipes, life.fileno()):
            self._poll.register(fd, select.POLLIN)
        self._ends_at = float("inf")
        self._lost = 0
        self._complain_at, self._complaints = 0.0, 0

    def run(self) -> None:
        try:
            self._run()
        finally:
            if self._lost:
                _complain(f"{count(self._lost, 'log record')} could not be written to {self._file.path}")

    def _run(self) -> None:
        while self._rests and self._clock() < self._ends_at:
            alone = self._ends_at < float("inf")
            ready = self._poll.poll(QUIET_S * 1000 if alone else None)
            if alone and not ready:  # what is still open is held by a process of the app's
                return
            lines = []
            for fd, _ in ready:
                if fd == self._life.fileno():
                    self._hear()
                else:
                    lines.append(self._read(fd))
            self._write(b"".join(lines))

    def _hear(self) -> None:
        """A further pipe, or the parent's end."""
        said, fds, _, _ = socket.recv_fds(self._life, 1, 4)
        for fd in fds:
            self._rests[fd] = b""
            self._poll.register(fd, select.POLLIN)
        if not said:
            self._poll.unregister(self._life.fileno())
            self._ends_at = self._clock() + ORPHAN_S

    def _read(self, fd: int) -> bytes:
        """Whole lines from one pipe."""
        try:
            came = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return b""
        if not came:
            self._poll.unregister(fd)
            os.close(fd)
            del self._rests[fd]
            return b""
        if fd in self._torn:
            newline = b"\n"
            if not came.startswith(LINE_BEGINS):
                _, newline, came = came.partition(b"\n")
            if newline:
                self._torn.discard(fd)
        whole, newline, self._rests[fd] = (self._rests[fd] + came).rpartition(b"\n")
        return whole + newline

    def _write(self, lines: bytes) -> None:
        """Into the file; what it refuses is lost and counted, for the writers can't wait for a full disk."""
        if not lines:
            return
        try:
            if self._lost:
                self._file.write(as_json(line_of(_record(f"{count(self._lost, 'log record')} could not be written here"))))
                self._lost = self._complaints = 0
            self._file.write(lines)
        except OSError as error:
            self._lost += lines.count(b"\n")
            self._file.close()
            if self._clock() >= self._complain_at:
                self._complain_at = self._clock() + COMPLAIN_S[min(self._complaints, len(COMPLAIN_S) - 1)]
                self._complaints += 1
                _complain(f"can't write {self._file.path}: {error.strerror}; {count(self._lost, 'log record')} lost so far")
