"""A dashboard beside a host or the demo. What it has to say, the URL to open among it, it says on the same terminal; one that dies is missed by nobody."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from supervisor.dashboard import ANY_PORT, HOST
from supervisor.db.connect import Dsn
from supervisor.host.beside import Beside


def port_beside(asked: bool | None, by_default: bool, port: int | None = None) -> int | None:
    """Where a dashboard is served meanwhile; None for nowhere, which is no error unless it was *asked* for and a part of it is missing.

    A *port* that was said is that one or none. Raises MissingExtra, ConfigInvalid.
    """
    from supervisor.core.errors import MissingExtra
    from supervisor.dashboard.serve import bound, check_installed

    try:
        check_installed()
    except MissingExtra:
        if asked:
            raise
        return None
    if not (asked or (asked is None and by_default)):
        return None
    if port is None or port == ANY_PORT:
        return ANY_PORT
    bound(HOST, port).close()  # what is taken is told before anything is started
    return port


def sessions_beside(port: int | None) -> dict[str, int]:
    """What a host has to leave room for: those of pages, one that listens, the client's own, and one for a form at a time."""
    from supervisor.db.pages import SESSIONS_MAX

    return {"the dashboard": SESSIONS_MAX + 3} if port is not None else {}


def dashboard_beside(dsn: Dsn, schema: str, port: int | None, log_dir: str | None = None) -> AbstractContextManager[object]:
    """The dashboard of *dsn* while the block lasts, on *port* as `port_beside` has it."""
    words = ["dashboard", *(["--port", str(port)] if port != ANY_PORT else []), *(["--log-dir", log_dir] if log_dir else [])]
    return Beside(words, dsn, schema) if port is not None else nullcontext()
