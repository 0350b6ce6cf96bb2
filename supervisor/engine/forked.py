"""What every process that was forked does: it dies with whoever forked it, and ends without that one's clean-up."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import NoReturn

PR_SET_PDEATHSIG = 1


def die_with(parent: int, how: int) -> None:
    """Be sent the signal *how* when *parent* ends. Ends at once where it has ended already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, how, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def leave(code: int) -> NoReturn:
    """End the process: what was printed goes out, nothing else of the interpreter's end happens."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
