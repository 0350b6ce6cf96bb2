"""Commands that draw on a terminal again and again, until q."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.harness import ROOT, Database


def drawn_until_q(database: Database, folder: Path, *words: str, wanted: bytes, times: int) -> bytes:
    """What `python -m supervisor` *words* draws: q is typed once *wanted* was drawn so many times; it ends well and gives the screen back."""
    here, there = pty.openpty()
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PGSUPERVISOR_DATABASE_URL": database.dsn, "TERM": "xterm", "COLUMNS": "160", "LINES": "60"}
    process = subprocess.Popen([sys.executable, "-m", "supervisor", *words], cwd=folder, env=environ, stdin=there, stdout=there, stderr=there)
    os.close(there)
    drawn = b""
    deadline = time.monotonic() + 60
    try:
        while drawn.count(wanted) < times and time.monotonic() < deadline:
            if select.select([here], [], [], 1)[0]:
                drawn += os.read(here, 65536)
        os.write(here, b"q")
        with contextlib.suppress(OSError):  # the other end is closed: it has ended
            while time.monotonic() < deadline:
                if select.select([here], [], [], 1)[0]:
                    drawn += os.read(here, 65536)
        assert process.wait(20) == 0, drawn[-2000:]
        assert b"\x1b[?1049l" in drawn, "it did not give the screen back"
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        os.close(here)
    return drawn
