"""Names of processes, as `ps` and `top` show them. Without the library setproctitle nothing is named and nothing breaks."""

from __future__ import annotations

PREFIX = "pgsupervisor: "


def set_title(text: str) -> None:
    """Name this process `pgsupervisor: `*text*. It replaces the command line, and with it a password in --dsn."""
    try:
        import setproctitle
    except ImportError:
        return
    setproctitle.setproctitle(PREFIX + text)
