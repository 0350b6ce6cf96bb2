"""What a run that is cancelled is told, at what it awaits. No SupervisorError: `except Exception` must let it pass, as it does asyncio's own."""

from __future__ import annotations

import asyncio

import msgspec


class Cancelled(asyncio.CancelledError):
    """Somebody has cancelled this run: `reason` and `actor` say why and who. Caught to clean up, and then let go on its way.

    A run that lets it out ends as cancelled; one that returns completes, and one that raises something else fails.
    """

    code = "cancelled"

    def __init__(self, reason: str = "", actor: str = "") -> None:
        self.reason, self.actor = reason, actor
        super().__init__(reason or "it was cancelled")

    def again(self) -> Cancelled:
        """Another one that says the same: each branch is given its own, with a traceback of its own."""
        return Cancelled(self.reason, self.actor)

    def encode(self) -> bytes:
        return msgspec.json.encode({"reason": self.reason, "actor": self.actor})

    @classmethod
    def decode(cls, encoded: bytes | None) -> Cancelled:
        return cls(**msgspec.json.decode(encoded or b"{}", type=dict[str, str]))
