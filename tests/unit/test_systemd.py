"""What systemd is told, without processes: by a parent that looks like this."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from supervisor.host.systemd import Notifier


def parent_with(workers: int) -> Any:
    staying = [SimpleNamespace(ready=True) for _ in range(workers)]
    return SimpleNamespace(
        stopping=False, staying=staying, children={}, target=workers, generation=1, options=SimpleNamespace(app="shop", drain_timeout_s=1.0), reload=SimpleNamespace(active=False, begun=0)
    )


def test_a_reload_that_is_over_before_anybody_looked_is_told_all_the_same(tmp_path: Path) -> None:
    """An import error can come within one turn of the parent's loop; `systemctl reload` waits for both words."""
    parent = parent_with(2)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        notifier = Notifier(parent, str(tmp_path / "notify"))

        def told() -> list[str]:
            notifier.act(set(), set())
            said = []
            while True:
                try:
                    said.append(systemd.recv(4096).decode().partition("\n")[0])
                except BlockingIOError:
                    return said

        assert told() == ["READY=1"]
        assert told() == []
        parent.reload.begun += 1
        assert notifier.due() == 0.0
        assert told() == ["RELOADING=1", "READY=1"]
        assert told() == [] and notifier.due() == float("inf")
        parent.reload.begun, parent.reload.active = 2, True
        assert told() == ["RELOADING=1"]
        parent.reload.active = False
        assert told() == ["READY=1"]
        assert told() == []
        notifier.close()
