"""POSIX signals of the parent: noted in a pipe that its loop reads, so that nothing happens inside of a handler.

`STOPPING` are handled whoever drives the parent; `SERVING` only where it is the process (`run`): a demo that loses its
terminal ends. WINCH is ignored: a terminal that is resized must stop nothing.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Iterable

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
SERVING = (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1)
READ_BYTES = 256


class Signals:
    """The signals that have come, in their order. `fd` is readable when there are some."""

    def __init__(self) -> None:
        self.fd, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._listen_to(STOPPING)

    def serve(self) -> None:
        """Listen to all that an operator may send. USR1 writes this process's stack to stderr at once, even from a loop that hangs."""
        self._listen_to(SERVING)
        signal.signal(signal.SIGWINCH, signal.SIG_IGN)
        faulthandler.register(signal.SIGUSR1, file=2, chain=True)

    def _listen_to(self, names: Iterable[signal.Signals]) -> None:
        for name in names:
            signal.signal(name, lambda *_: None)  # the number goes to the pipe by itself

    def read(self) -> bytes:
        """The numbers of those that came since; empty when none did."""
        try:
            return os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Close the pipe; handlers stay, and do nothing."""
        signal.set_wakeup_fd(-1)
        os.close(self.fd)
        os.close(self._writing)
