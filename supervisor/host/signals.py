"""POSIX signals of the parent: noted in a pipe that its loop reads, so that nothing happens inside of a handler but what USR1 shows.

`STOPPING` are handled whoever drives the parent; `SERVING` only where it is the process (`run`): a demo that loses its
terminal ends. WINCH is ignored: a terminal that is resized must stop nothing.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Iterable
from typing import Any

from supervisor.engine.responder import catch

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
        """Listen to all that an operator may send. USR1 writes this process's stack to stderr at once, even from a loop that hangs;
        from code that lets no Python run, into a memfd that `stacks` reads."""
        self._listen_to(SERVING)
        signal.signal(signal.SIGWINCH, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, _write_stack)
        catch(signal.SIGUSR1)

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


def _write_stack(*_: Any) -> None:
    """Past logging and sys.stderr: what was interrupted may be in the middle of those."""
    try:
        os.write(2, f"stacks, as SIGUSR1 asks: parent (pid {os.getpid()})\n".encode())
        faulthandler.dump_traceback(file=2)
    except OSError:  # nobody reads it any more
        pass
