"""A dashboard beside a host or the demo: a process of its own, started by the same command, which dies with it and whose death hurts nobody.

Nothing waits for it and nothing is told of it: what it has to say, the URL to open among it, it says on the same terminal.
"""

from __future__ import annotations

import os
import subprocess
import sys
from types import TracebackType

from supervisor.db.connect import Dsn

END_S = 5.0


class Beside:
    """The dashboard of *dsn* while the block lasts; none where *port* is None."""

    def __init__(self, dsn: Dsn, schema: str, port: int | None, log_dir: str | None = None) -> None:
        self._dsn, self._schema, self._port, self._log_dir = dsn, schema, port, log_dir
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Beside:
        if self._port is not None:
            words = [sys.executable, "-m", "supervisor", "dashboard", "--port", str(self._port), "--schema", self._schema, "--beside", str(os.getpid())]
            words += ["--log-dir", self._log_dir] if self._log_dir else []
            # by the environment: a password on a command line is seen by everybody
            environ = {**os.environ, **({"PGSUPERVISOR_DATABASE_URL": self._dsn.conninfo} if self._dsn.conninfo else {})}
            self._process = subprocess.Popen(words, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
