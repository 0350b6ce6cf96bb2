"""Answers "what are you doing?", for a worker whose loop may be stuck and for the parent.

Owns a listening unix socket (in Linux' abstract namespace: no file to guard, to find or to leave behind), the thread of a
worker that sleeps on it, and SIGUSR1. The thread does nothing until it is asked: idle it costs nothing. Code that holds the
interpreter stops this thread too; for that the signal writes the Python stacks from C into a memfd, which others can read. A second signal writes
the main thread's stack alone, for the parent, and nothing of it is ever told to the log or to Python code.
"""

from __future__ import annotations

import faulthandler
import fcntl
import json
import logging
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from supervisor.engine import stacks

log = logging.getLogger("pgsupervisor.stacks")

SPEAK_WITHIN_S = 2.0
WRITTEN_MAX = 1 << 20
MEMFD, PLACE_MEMFD = "pgsupervisor-stacks", "pgsupervisor-place"
PLACE_SIGNAL = signal.SIGRTMIN + 11  # one that no shell, profiler or runtime is known to use
PARENT = "parent"
_peer = struct.Struct("3i")
_caught: dict[int, int] = {}  # signal → memfd


def prefix() -> str:
    """How the addresses of this pid namespace begin: containers that share a network would meet in equal pids otherwise."""
    return f"pgsupervisor/{os.stat('/proc/self/ns/pid').st_ino}/"


def listen(parent: int, place: str) -> socket.socket | None:
    """The socket that is asked, named after the supervisor's *parent* and *place*, a worker's number or PARENT. None where that is not to be had."""
    asked = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        asked.bind(f"\0{prefix()}{parent}/{place}/{os.getpid()}")
        asked.listen(16)
    except OSError as error:
        log.debug("nobody can ask for stacks: %s", error)
        asked.close()
        return None
    return asked


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) at the other end, by the kernel."""
    pid, uid, _gid = _peer.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _peer.size))
    return pid, uid


def may_ask(sock: socket.socket) -> bool:
    """Stacks are for whoever could read this process anyway: the same account, or root."""
    return peer_of(sock)[1] in (0, os.geteuid())


# ── the signal ───────────────────────────────────────────────────────────────────────────────────────────────────


def catch(signum: int) -> None:
    """Have *signum* write all Python stacks into a memfd, from C, and then go on to the handler that was set for it before."""
    release(signum)
    fd = _appending(MEMFD)
    faulthandler.register(signum, file=fd, all_threads=True, chain=True)
    _caught[signum] = fd


def tell_place() -> None:
    """Have PLACE_SIGNAL write the main thread's Python stack into a memfd of its own, from C. Other threads' could change while they are read."""
    faulthandler.register(PLACE_SIGNAL, file=_appending(PLACE_MEMFD), all_threads=False)


def _appending(name: str) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    return fd


def release(signum: int) -> None:
    """Undo `catch`; in a forked child before it closes descriptors, or the next signal would write into whatever has that number then."""
    faulthandler.unregister(signum)
    fd = _caught.pop(signum, None)
    if fd is not None and is_memfd(f"/proc/self/fd/{fd}"):  # a child may have closed it, and opened another thing under its number
        os.close(fd)


def is_memfd(link: str, name: str = MEMFD) -> bool:
    """Whether /proc/<pid>/fd/<n> is what `catch` writes to, or what *name* says."""
    try:
        return os.readlink(link).startswith(f"/memfd:{name}")
    except OSError:
        return False


def forget(signum: int) -> None:
    """What `catch` has written was dealt with; kept for whoever is reading it, unless it has grown."""
    if signum in _caught and os.fstat(_caught[signum]).st_size > WRITTEN_MAX:
        os.ftruncate(_caught[signum], 0)


# ── a worker's thread ────────────────────────────────────────────────────────────────────────────────────────────


class Responder:
    """Answers for a worker: by socket as JSON, by SIGUSR1 in the log. `facts(everything)` says what."""

    def __init__(self, number: int, facts: Callable[[bool], dict[str, Any]]) -> None:
        self._facts = facts
        self._asked = listen(os.getppid(), str(number))
        self._told = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._writer: threading.Thread | None = None

    def start(self) -> None:
        """Begin to answer; called on the main thread. A handler that the app set when it was imported is called, too."""
        before = signal.getsignal(signal.SIGUSR1)

        def told(*about: Any) -> None:
            os.eventfd_write(self._told, 1)
            if callable(before):
                before(*about)

        signal.signal(signal.SIGUSR1, told)
        catch(signal.SIGUSR1)
        tell_place()
        threading.Thread(target=self._serve, name="stacks", daemon=True).start()

    def _serve(self) -> None:
        watched: list[Any] = [self._told, *([self._asked] if self._asked is not None else [])]
        while True:
            readable, _, _ = select.select(watched, [], [])
            try:
                if self._told in readable:
                    os.eventfd_read(self._told)
                    self._write_log()
                if self._asked is not None and self._asked in readable:
                    self._answer()
            except Exception as error:  # noqa: BLE001 - whoever asks must not cost the worker its ears
                log.debug("an answer failed: %s", error)

    def _write_log(self) -> None:
        text = stacks.render(self._facts(False))
        forget(signal.SIGUSR1)
        # in a thread of its own: a log that nobody reads may block for ever
        if self._writer is None or not self._writer.is_alive():
            # the text as a record's stack, which is shown by lines
            record = log.makeRecord(log.name, logging.WARNING, __file__, 0, "stacks, as SIGUSR1 asks:", (), None, sinfo=text)
            self._writer = threading.Thread(target=log.handle, args=(record,), name="stacks-log", daemon=True)
            self._writer.start()

    def _answer(self) -> None:
        assert self._asked is not None
        asker, _ = self._asked.accept()
        with asker:
            if not may_ask(asker):
                return
            asker.settimeout(SPEAK_WITHIN_S)
            everything = asker.recv(64).startswith(b"all")
            asker.sendall(b"\n")  # heard; thousands of runs take a while beside a busy loop
            asker.sendall(json.dumps(self._facts(everything)).encode())
