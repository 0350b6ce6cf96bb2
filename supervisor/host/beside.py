"""Another process of this program beside a host: started with it, ended with it whichever way that ends, and its own death hurts nobody.

A part of the parent's loop, which starts it again where it dies; or a block without a loop. Nothing waits for it.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supervisor.db.connect import Dsn

log = logging.getLogger("pgsupervisor.parent")

END_S = 5.0
BACKOFF_S = (0.0, 0.2, 1.0, 5.0)
STEADY_S = 5.0  # one that has lived for so long was well


class Beside:
    """`python -m supervisor COMMAND… --beside PID`, on *dsn*. fds: of ours that it keeps."""

    what, sessions = "", 0  # that it has for as long as the host lives; of what, in words

    def __init__(self, command: Sequence[str], dsn: Dsn, schema: str, fds: Sequence[int] = ()) -> None:
        self._command, self._dsn, self._schema, self._fds = command, dsn, schema, fds
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._start_at = self._started = 0.0
        self._quick = 0
        self._closed = False

    def start(self) -> None:
        words = [sys.executable, "-m", "supervisor", *self._command, "--schema", self._schema, "--beside", str(os.getpid())]
        # by the environment: a password on a command line is seen by everybody
        environ = {**os.environ, **({"PGSUPERVISOR_DATABASE_URL": self._dsn.conninfo} if self._dsn.conninfo else {})}
        self._started = time.monotonic()
        self._process = subprocess.Popen(words, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=self._fds)
        self._pidfd = os.pidfd_open(self._process.pid)

    def close(self) -> None:
        """End it. Waits five seconds at most."""
        self._closed = True
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._forget()

    def _forget(self) -> None:
        os.close(self._pidfd)
        self._process, self._pidfd = None, -1

    # ── a block ──────────────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Beside:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ── a part of the parent's loop ──────────────────────────────────────────────────────────────────────────────

    def sockets(self) -> tuple[list[int], list[int]]:
        return ([self._pidfd] if self._pidfd >= 0 else []), []

    def due(self) -> float:
        return self._start_at if self._process is None and not self._closed else float("inf")

    def act(self, readable: set[int], writable: set[int]) -> None:
        if self._pidfd in readable:
            self._reap()
        if time.monotonic() >= self.due():
            try:
                self.start()
            except OSError as error:
                self._start_at = time.monotonic() + BACKOFF_S[-1]
                log.warning("%s can't be started, tried again in %g s: %s", self._command[0], BACKOFF_S[-1], error)

    def _reap(self) -> None:
        assert self._process is not None
        code, pid, now = self._process.wait(), self._process.pid, time.monotonic()
        self._forget()
        self._quick = 0 if now - self._started > STEADY_S else self._quick + 1
        self._start_at = now + BACKOFF_S[min(self._quick, len(BACKOFF_S) - 1)]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        log.warning("the process for %s (pid %d) %s; another takes its place", self._command[0], pid, how)
