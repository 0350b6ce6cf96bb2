"""A dashboard beside a host or the demo. What it has to say, the URL to open among it, it says on the same terminal; one that dies is missed by nobody."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from supervisor.db.connect import Dsn
from supervisor.host.beside import Beside


def dashboard_beside(dsn: Dsn, schema: str, port: int | None, log_dir: str | None = None) -> AbstractContextManager[object]:
    """The dashboard of *dsn* while the block lasts; none where *port* is None."""
    words = ["dashboard", "--port", str(port), *(["--log-dir", log_dir] if log_dir else [])]
    return Beside(words, dsn, schema) if port is not None else nullcontext()
