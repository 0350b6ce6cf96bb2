"""Asking the processes of this host's supervisors for their stacks, and the parent's own answer.

Finds them by their listening sockets, asks each, and reads what a signal makes it write where it does not answer: then
something holds its interpreter, or it is stopped. Changes nothing in them.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.core.errors import SupervisorError
from supervisor.engine.responder import PARENT, is_memfd, listen, may_ask, peer_of, prefix
from supervisor.engine.stacks import of_thread, places

log = logging.getLogger("pgsupervisor.stacks")

HEAR_WITHIN_S = 3.0  # a process whose interpreter is free says at once that it has heard
ANSWER_WITHIN_S = 60.0
WRITE_WITHIN_S = 1.0
ENDS_WITHIN_S = 0.5  # after its socket is closed, a process goes through the end of its interpreter
ENDED = "it has ended meanwhile"
STATES = {"T": "it is stopped (SIGSTOP); kill -CONT lets it go on", "t": "a debugger holds it", "D": "it waits in the kernel for a disk"}
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)")
_FRAME = re.compile(r'^  File "(.*)", line (\d+|\?\?\?) in (.*)$')


class NoSuchProcess(SupervisorError):
    """No process of a supervisor on this host is what was asked for."""

    code = "no_such_process"


@dataclass(frozen=True, order=True)
class Process:
    """One process of a supervisor: under which parent, as what (a worker's number, or -1 for the parent itself), its pid."""

    parent: int
    number: int
    pid: int

    @property
    def title(self) -> str:
        return f"the parent (pid {self.pid})" if self.number < 0 else f"worker {self.number} (pid {self.pid})"

    @property
    def address(self) -> str:
        return f"\0{prefix()}{self.parent}/{PARENT if self.number < 0 else self.number}/{self.pid}"


def discover() -> list[Process]:
    """All processes of supervisors that share this process's pid and network namespace, whoever's they are."""
    found = set()
    start = "@" + prefix()
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines():
        name = line.rpartition(" ")[2]
        parts = name.removeprefix(start).split("/")
        if name.startswith(start) and len(parts) == 3 and parts[0].isdigit() and parts[2].isdigit() and (parts[1].isdigit() or parts[1] == PARENT):
            found.add(Process(int(parts[0]), -1 if parts[1] == PARENT else int(parts[1]), int(parts[2])))
    return sorted(found)


def chosen(processes: Sequence[Process], worker: int | None = None, pid: int | None = None) -> list[Process]:
    """Those of *processes* that are meant: a worker by number or pid, any process by pid, all. Raises NoSuchProcess."""
    if not processes:
        raise NoSuchProcess("no supervisor runs on this host, as far as this process can see; in a container, type the command inside of it")
    found = [
        process
        for process in processes
        if (pid is None or process.pid == pid) and (worker is None or process.number >= 0 and worker in (process.number, process.pid))
    ]
    if not found:
        there = ", ".join(process.title for process in processes[:20])
        raise NoSuchProcess(f"no process of a supervisor on this host is {f'worker {worker}' if worker is not None else f'pid {pid}'}; there are {there}")
    return found


# ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────


def ask_all(processes: Sequence[Process], everything: bool = False) -> list[dict[str, Any]]:
    """The facts of each, asked at once, in the order given."""
    with ThreadPoolExecutor(min(32, len(processes) or 1)) as pool:
        return list(pool.map(lambda process: ask(process, everything), processes))


def ask(process: Process, everything: bool = False) -> dict[str, Any]:
    """What one process is doing. Where it does not answer, its Python stacks as C code reads them, and why, in `note`."""
    facts = {"role": "parent" if process.number < 0 else "worker", "number": process.number, "pid": process.pid, "parent_pid": process.parent}
    owner = owner_of(process.pid)
    if owner is None:
        return {**facts, "threads": [], "note": ENDED}
    if os.geteuid() not in (0, owner):
        return {**facts, "threads": [], "refused": True, "note": f"refused: it belongs to {account(owner)}, and stacks are for that account and root; ask as one of them: sudo {_again()}"}
    try:
        return {**facts, **_answer_of(process, everything)}
    except (OSError, ValueError) as error:
        why = error
    if not isinstance(why, TimeoutError) and _ends(process.pid):
        return {**facts, "threads": [], "note": ENDED}
    state = STATES.get(state_of(process.pid))
    reason = state or ("its loop is held up" if process.number < 0 else "some code holds its interpreter")
    threads = [] if state is not None else written_by_signal(process.pid)
    if state is None and not threads:
        reason += "; SIGUSR1 was sent: where it can, it writes its stacks to its log"
    return {**facts, "threads": threads, "unanswered": True, "note": f"it did not answer ({why or type(why).__name__}): {reason}"}


def _ends(pid: int) -> bool:
    """Whether a process that closed its door has ended, or does so now."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], ENDS_WITHIN_S)[0])
    finally:
        os.close(pidfd)


def _answer_of(process: Process, everything: bool) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(HEAR_WITHIN_S)
        sock.connect(process.address)
        if peer_of(sock)[0] != process.pid:
            raise ValueError("another process sits at its address")
        sock.sendall(b"all\n" if everything else b"\n")
        parts = [sock.recv(1 << 16)]
        sock.settimeout(ANSWER_WITHIN_S)
        while part := sock.recv(1 << 16):
            parts.append(part)
    answer = json.loads(b"".join(parts))
    if not isinstance(answer, dict):
        raise ValueError("its answer makes no sense")
    return answer


def written_by_signal(pid: int) -> list[dict[str, Any]]:
    """Stacks of a process that can run no Python: SIGUSR1 has C code write them into its memfd. [] where it has none."""
    link = next((link for link in _links(pid) if is_memfd(link)), None)
    before = len(Path(link).read_bytes()) if link is not None else 0
    if catches(pid, signal.SIGUSR1):
        os.kill(pid, signal.SIGUSR1)
    if link is None:
        return []
    until, text = time.monotonic() + WRITE_WITHIN_S, b""
    while time.monotonic() < until:
        now = Path(link).read_bytes()[before:]
        if now and now == text:  # it has written all
            break
        text = now
        time.sleep(0.02)
    return read_traceback(text.decode("utf-8", "replace"))


def read_traceback(text: str) -> list[dict[str, Any]]:
    """faulthandler's text as threads, frames from the outermost on. The main thread is written last."""
    threads: list[dict[str, Any]] = []
    for line in text.splitlines():
        if found := _THREAD.match(line):
            threads.append({"name": f"0x{found[1]}", "native_id": None, "executing": None, "frames": []})
        elif threads and (found := _FRAME.match(line)):
            threads[-1]["frames"].insert(0, {"function": found[3], "file": found[1], "line": int(found[2]) if found[2].isdigit() else 0})
    if threads:
        threads[-1]["name"] = "MainThread"
    return threads[::-1]


def _links(pid: int) -> list[str]:
    try:
        return [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return []


def owner_of(pid: int) -> int | None:
    """The effective uid of a process; None if there is no such process."""
    try:
        return next(int(line.split()[2]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Uid:"))
    except (OSError, StopIteration):
        return None


def catches(pid: int, signum: int) -> bool:
    """Whether a process has a handler for *signum*; without one it may end by it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return bool(int(next(line.split()[1] for line in lines if line.startswith("SigCgt:")), 16) >> (signum - 1) & 1)
    except (OSError, StopIteration):
        return False


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "Z"


def account(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _again() -> str:
    return f"{sys.executable} -m supervisor stacks"


# ── the parent's answer ──────────────────────────────────────────────────────────────────────────────────────────


def _parents_facts() -> dict[str, Any]:
    main = {"name": "MainThread", "native_id": threading.get_native_id(), "executing": None, "frames": places(of_thread(sys._getframe(2)))}
    return {"role": "parent", "pid": os.getpid(), "threads": [main]}


class Answering:
    """A part of the parent's loop: answers for the parent, which has no thread for it. `facts()` adds what the parent knows."""

    def __init__(self, facts: Callable[[], dict[str, Any]] = dict) -> None:
        self._facts = facts
        self._asked = listen(os.getpid(), PARENT)
        self._askers: dict[int, socket.socket] = {}

    def sockets(self) -> tuple[list[int], list[int]]:
        return ([self._asked.fileno()] if self._asked is not None else []) + list(self._askers), []

    def due(self) -> float:
        return float("inf")

    def act(self, readable: set[int], writable: set[int]) -> None:
        if self._asked is not None and self._asked.fileno() in readable:
            self._accept(self._asked)
        for fd in readable & set(self._askers):
            self._answer(self._askers.pop(fd))

    def _accept(self, asked: socket.socket) -> None:
        try:
            asker, _ = asked.accept()
        except OSError as error:  # there are no descriptors left, for one
            log.debug("an answer failed: %s", error)
            return
        asker.setblocking(False)
        if may_ask(asker):
            self._askers[asker.fileno()] = asker
        else:
            asker.close()

    def _answer(self, asker: socket.socket) -> None:
        try:
            asker.recv(64)
            asker.send(json.dumps({**_parents_facts(), **self._facts()}).encode())  # far less than a socket holds
        except OSError:
            pass
        asker.close()

    def close(self) -> None:
        for sock in [*self._askers.values(), *([self._asked] if self._asked is not None else [])]:
            sock.close()
        self._askers.clear()
        self._asked = None
