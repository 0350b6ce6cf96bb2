"""Words for systemd: ready, reloading, stopping, one line of status, and a sign of life from the parent's loop.

Datagrams to $NOTIFY_SOCKET; where that is not set there is no notifier. Level-triggered: it compares what is with what
it said last, so it need not be told of anything. A word that can't be sent is lost: systemd is no reason to wait.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supervisor.host.parent import Parent

log = logging.getLogger("pgsupervisor.parent")

MARGIN_S = 10.0  # what a stop may take beside the drain timeout


class Notifier:
    """A part of *parent*. watchdog_s: how often a sign of life is due at least; inf for never."""

    def __init__(self, parent: Parent, address: str, watchdog_s: float = float("inf")) -> None:
        self._parent = parent
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._every_s = watchdog_s / 2
        self._watchdog_at = time.monotonic() + self._every_s
        self._phase, self._status = "starting", ""
        self._reloads = parent.reload.begun  # that systemd was told of

    @classmethod
    def from_environment(cls, parent: Parent, environ: MutableMapping[str, str] = os.environ) -> Notifier | None:
        """The notifier that systemd asks for. The variables are taken out: they are not meant for programs that steps start."""
        address, usec, pid = (environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
        if not address.startswith(("/", "@")):
            return None
        ours = usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid()))
        return cls(parent, address, int(usec) / 1e6 if ours else float("inf"))

    # ── a part of the parent ─────────────────────────────────────────────────────────────────────────────────────

    def sockets(self) -> tuple[list[int], list[int]]:
        return [], []

    def due(self) -> float:
        return 0.0 if self._look() != (self._phase, self._status) or self._parent.reload.begun != self._reloads else self._watchdog_at

    def act(self, readable: set[int], writable: set[int]) -> None:
        phase, status = self._look()
        if self._parent.reload.begun != self._reloads:
            self._reloads = self._parent.reload.begun
            if phase == self._phase == "ready":  # it was over before we looked; who asked for it waits for both words
                self._send("\n".join(self._words("reloading")))
                self._phase = "reloading"
        lines = self._words(phase) if phase != self._phase else []
        if status != self._status:
            lines.append(f"STATUS={status}")
        self._phase, self._status = phase, status
        now = time.monotonic()
        if now >= self._watchdog_at:
            self._watchdog_at = now + self._every_s
            lines.append("WATCHDOG=1")
        if lines:
            self._send("\n".join(lines))

    def close(self) -> None:
        self._socket.close()

    # ── what it says ─────────────────────────────────────────────────────────────────────────────────────────────

    def _look(self) -> tuple[str, str]:
        """What is: a phase, and a line for people."""
        parent = self._parent
        up = sum(child.ready for child in parent.staying)
        of = f" of {parent.options.app}" if parent.options.app else ""
        if parent.stopping:
            return "stopping", f"stopping: {len(parent.children)} workers{of} finish what they began"
        if parent.reload.active and self._phase != "starting":
            return "reloading", f"reloading: generation {parent.generation}{of} takes over"
        ready = self._phase != "starting" or (up >= parent.target and not parent.reload.active)
        return "ready" if ready else "starting", f"{up} of {parent.target} workers{of} up, generation {parent.generation}"

    def _words(self, phase: str) -> list[str]:
        if phase == "reloading":
            return ["RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"]
        if phase == "stopping":
            return ["STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(1e6 * (self._parent.options.drain_timeout_s + MARGIN_S))}"]
        return ["READY=1"]

    def _send(self, text: str) -> None:
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError as error:
            log.debug("systemd was not told %r: %s", text, error)
