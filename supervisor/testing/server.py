"""A private PostgreSQL for the tests of one process: started at first use, in a temporary folder, ended with the process."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

_servers: dict[int, str] = {}  # by process


def private_server() -> str:
    """The connection string of this process's own server. Raises an error that says what is missing where there are no binaries (extra `embedded`)."""
    known = _servers.get(os.getpid())
    if known is None:
        known = _servers[os.getpid()] = _start()
    return known


def _start() -> str:
    from supervisor.db.embedded import EmbeddedServer

    folder = Path(tempfile.mkdtemp(prefix="pgsupervisor-test-"))
    folder.chmod(0o755)
    # it goes with the process, so nothing has to outlive the machine
    server = EmbeddedServer(folder / "pg", settings={"fsync": "off", "full_page_writes": "off"})
    dsn = server.start()
    mine = os.getpid()

    def end() -> None:
        if os.getpid() == mine:
            server.stop("immediate")
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return dsn


__all__ = ["private_server"]
