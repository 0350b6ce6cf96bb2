"""What every process that was forked does: it dies with whoever forked it, and ends without that one's clean-up."""

from __future__ import annotations

import ctypes
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import NoReturn

PR_SET_PDEATHSIG = 1


def die_with(parent: int, how: int) -> None:
    """Be sent the signal *how* when *parent* ends. Ends at once where it has ended already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, how, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def fork_apart(close: Iterable[int], live: Callable[[], object], code: int) -> int:
    """Fork a process that closes the descriptors *close*, lives by *live* and ends with *code*; its pid. It never runs what the caller goes
    on with. The calling process must be single-threaded."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            for fd in close:
                os.close(fd)
            live()
        except BaseException:  # noqa: BLE001 - whatever it was, it must not run the caller's code
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def leave(code: int) -> NoReturn:
    """End the process: what was printed goes out, nothing else of the interpreter's end happens."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
