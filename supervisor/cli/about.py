"""What runs here: the lines of `--version`. Parts that are missing are said to be missing, never an error."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from shlex import quote

from supervisor.core.version import VERSION


def lines(server: bool = True) -> list[str]:
    """One line per part: program, Python, driver with libpq and TLS, loop, and the server unless told not to look for it."""
    python = f"Python {platform.python_version()} ({platform.python_implementation()})"
    return [f"pgsupervisor {VERSION}", python, _driver(), f"loop {_loop()}", *([_server()] if server else [])]


def _driver() -> str:
    try:
        from supervisor.db import connect
    except ImportError as error:
        return f"psycopg not usable: {str(error).splitlines()[0]}"
    return connect.driver()


def _loop() -> str:
    try:
        from supervisor._fastpath import build
    except ImportError as error:
        return f"not usable: {error}"
    return build()


def _server() -> str:
    try:
        from supervisor.core.errors import SupervisorError
        from supervisor.db import connect
    except ImportError:
        return "server unknown"
    from supervisor.cli.output import plain

    try:
        dsn = connect.find_dsn()
        if dsn is None:
            return "server none configured"
        with connect.connect(dsn, purpose="version") as conn:
            name = conn.info.parameter_status("server_version") or str(conn.info.server_version)
            return plain(f"server PostgreSQL {name}, {dsn}")
    except SupervisorError as error:
        return plain(f"server not reachable: {error}")


def program() -> str:
    """How this program was called, so that it can be typed again in this folder."""
    if os.path.basename(sys.argv[0]) == "pgsupervisor":
        return "pgsupervisor" if shutil.which("pgsupervisor") else quote(sys.argv[0])
    found = shutil.which("python")
    if found and os.path.samefile(os.path.dirname(found), os.path.dirname(sys.executable)):
        return "python -m supervisor"
    near = os.path.relpath(sys.executable)
    return f"{quote(near if len(near) < len(sys.executable) and not near.startswith('..') else sys.executable)} -m supervisor"
