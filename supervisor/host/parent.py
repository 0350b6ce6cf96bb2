"""The parent: forks workers, notices deaths at once, gives back what the dead held, forks again.

Single-threaded, runs no user code after the fork, and lends its children nothing: a child closes every inherited
descriptor but standard ones before it connects. Sleeps in one `select` on the children's pidfds, signals and a tick.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from supervisor.core.errors import DatabaseUnavailable
from supervisor.host.blackbox import BlackBox, Executing
from supervisor.host.reaper import Reaper

log = logging.getLogger("pgsupervisor.parent")

TICK_S = 0.5
SWEEP_S = 1.0
PARTITIONS_S = 3600.0
QUICK_DEATH_S = 1.0
QUICK_DEATHS_MAX = 5
BACKOFF_S = (0.0, 0.05, 0.2, 0.5, 1.0)
EXIT_CRASH_LOOP, EXIT_DATABASE = 70, 69
PR_SET_PDEATHSIG = 1


class Born(msgspec.Struct):
    """What a worker tells its parent through its pipe, one JSON line each: who it is once registered, and again when it is ready to work."""

    worker_id: int
    application_name: str
    ready: bool = False


@dataclass
class Child:
    """One worker process."""

    number: int
    pid: int
    pidfd: int
    pipe: int
    started: float
    born: Born | None = None
    heard: bytes = b""
    closed: bool = False

    @property
    def up(self) -> bool:
        """Whether it has said all that it will say."""
        return self.closed or (self.born is not None and self.born.ready)


@dataclass
class ParentOptions:
    dsn: str
    schema: str
    procs: int
    threads: int
    drain_timeout_s: float = 25.0
    supervisor_id: uuid.UUID = field(default_factory=uuid.uuid4)


class Parent:
    """Keeps `procs` workers running.

    work(number, blackbox, born, supervisor_id)   runs in the child until it ends; its return value is the exit code
    died(child, signal or exit code, executing)   optional: told about every death
    """

    def __init__(self, options: ParentOptions, work: Callable[..., int], died: Callable[..., None] | None = None) -> None:
        self.options = options
        self.blackbox = BlackBox(options.procs, options.threads)
        self.children: dict[int, Child] = {}
        self._work = work
        self._died = died
        self._reaper = Reaper(options.dsn, options.schema)
        self._quick: dict[int, int] = {}
        self._fork_at: dict[int, float] = {}
        self._stopping = False
        self._kill_at = 0.0
        self._signals: tuple[int, int] = (-1, -1)
        self._next_sweep = self._next_partitions = 0.0
        self.exit_code = 0
        self.reclaimed: list[tuple[int, float]] = []  # (worker id, seconds from its death to its tasks being free)

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, tick: Callable[[], bool] | None = None) -> int:
        """Work until stopped; *tick* is called twice a second and stops everything when it returns False. Returns the exit code."""
        self.start()
        try:
            while self.step(TICK_S):
                if tick is not None and not self._stopping and not tick():
                    self.stop()
        finally:
            self.close()
        return self.exit_code

    def close(self) -> None:
        """End the parent's own session; for whoever drives `start` and `step` instead of calling `run`."""
        self._reaper.close()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called, by anybody."""
        return self._stopping

    def start(self) -> None:
        """Fork the workers."""
        self._signals = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._signals[1], warn_on_full_buffer=False)
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(name, lambda *_: None)
        for number in range(self.options.procs):
            self._fork(number)

    def step(self, timeout_s: float) -> bool:
        """Wait for something to happen and deal with it; False when all is over."""
        fds = [self._signals[0], *(child.pidfd for child in self.children.values()), *(child.pipe for child in self.children.values() if not child.up)]
        due = [at for at in self._fork_at.values()] if not self._stopping else []
        wait_s = max(0.0, min([timeout_s, *(at - time.monotonic() for at in due)]))
        readable, _, _ = select.select(fds, [], [], wait_s)
        if self._signals[0] in readable:
            self._on_signals(os.read(self._signals[0], 64))
        for child in list(self.children.values()):
            if not child.up and child.pipe in readable:
                self._listen(child)
            if child.pidfd in readable:
                self._reap(child)
        now = time.monotonic()
        for number, at in list(self._fork_at.items()):
            if at <= now and not self._stopping:
                del self._fork_at[number]
                self._fork(number)
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_S
            self._sweep()
        if self._stopping and now >= self._kill_at:
            for child in self.children.values():
                os.kill(child.pid, signal.SIGKILL)
        return bool(self.children) or not self._stopping

    def stop(self, fast: bool = False) -> None:
        """Drain: workers finish or hand back; those that do not end within the timeout are killed."""
        self._stopping = True
        self._kill_at = time.monotonic() + (0.0 if fast else self.options.drain_timeout_s + 1.0)
        for child in self.children.values():
            os.kill(child.pid, signal.SIGTERM)

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                if self._stopping or number == signal.SIGQUIT:
                    self.exit_code = 128 + number
                    self.stop(fast=True)
                else:
                    log.info("stopping: workers finish what they began (at most %g s); once more to stop at once", self.options.drain_timeout_s)
                    self.stop()

    # ── children ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _fork(self, number: int) -> None:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _become_worker(self, number, writing, parent)
        os.close(writing)
        self.children[pid] = Child(number, pid, os.pidfd_open(pid), reading, time.monotonic())

    def _listen(self, child: Child) -> None:
        heard = os.read(child.pipe, 4096)
        child.closed = not heard
        *lines, child.heard = (child.heard + heard).split(b"\n")
        for line in lines:
            child.born = msgspec.json.decode(line, type=Born)
            if child.born.ready:
                log.info("worker %d (pid %d) is up as %d", child.number, child.pid, child.born.worker_id)

    def _reap(self, child: Child) -> None:
        """A child ended: say so, free its claims, plan its successor."""
        died_at = time.monotonic()
        _, status = os.waitpid(child.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if not child.up:
            self._listen(child)
        os.close(child.pidfd)
        os.close(child.pipe)
        del self.children[child.pid]
        executing = self.blackbox.executing(child.number)
        if not (self._stopping and code == 0):
            _say_death(child, code, executing)
        if child.born is not None:
            self._free(child.born, died_at, f"exit code {code}" if code >= 0 else f"signal {-code}", executing)
        if self._died is not None:
            self._died(child, code, executing)
        self._plan_successor(child, died_at, code)

    def _free(self, born: Born, died_at: float, why: str, executing: list[Executing]) -> None:
        try:
            freed = self._reaper.bury(born.worker_id, born.application_name, why, [entry.run_id for entry in executing])
        except DatabaseUnavailable as error:
            log.warning("the claims of worker %d are freed later: %s", born.worker_id, error)
            return
        self.reclaimed.append((born.worker_id, time.monotonic() - died_at))
        if freed:
            log.info("worker %d: %d claims given back %.0f ms after its death", born.worker_id, freed, 1000 * (time.monotonic() - died_at))

    def _plan_successor(self, child: Child, died_at: float, code: int) -> None:
        if self._stopping:
            return
        # killed from outside after it was ready is no crash loop; a database that is away has its own pace
        killed = code == -signal.SIGKILL and child.born is not None and child.born.ready
        quick = died_at - child.started < QUICK_DEATH_S and code != EXIT_DATABASE and not killed
        deaths = self._quick[child.number] = self._quick.get(child.number, 0) + 1 if quick else 0
        if deaths >= QUICK_DEATHS_MAX:
            log.error("worker %d died %d times within a second of its birth: giving up", child.number, deaths)
            self.exit_code = EXIT_CRASH_LOOP
            self.stop()
            return
        wait_s = 0.5 if code == EXIT_DATABASE else BACKOFF_S[min(deaths, len(BACKOFF_S) - 1)]
        self._fork_at[child.number] = died_at + wait_s

    def _sweep(self) -> None:
        try:
            self._reaper.sweep()
            now = time.monotonic()
            if now >= self._next_partitions:
                self._next_partitions = now + PARTITIONS_S
                made = self._reaper.make_partitions()
                if made:
                    log.info("made %d partitions ahead", made)
        except DatabaseUnavailable as error:
            log.debug("no sweep: %s", error)


def _say_death(child: Child, code: int, executing: list[Any]) -> None:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    doing = ", ".join(f"run {entry.run_id} seq {entry.seq}" for entry in executing[:3])
    log.warning("worker %d (pid %d) %s%s", child.number, child.pid, how, f" while executing {doing}" if doing else "")


def _become_worker(parent: Parent, number: int, writing: int, parent_pid: int) -> None:
    """In the child: keep nothing of the parent's but standard descriptors, die with it, work, and never return."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for name in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(name, signal.SIG_IGN)
        for name in (signal.SIGTERM, signal.SIGQUIT):
            signal.signal(name, signal.SIG_DFL)
        os.dup2(writing, 3)
        os.closerange(4, 65536)
        os.set_inheritable(3, False)
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:
            os._exit(0)

        def born(worker_id: int, application_name: str, ready: bool) -> None:
            os.write(3, msgspec.json.encode(Born(worker_id, application_name, ready)) + b"\n")

        code = parent._work(number, parent.blackbox, born, parent.options.supervisor_id)
    except BaseException:  # noqa: BLE001 - whatever it was, it must not run the parent's code
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
