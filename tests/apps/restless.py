"""Runs that leave memory at once when they wait for a signal, so that every message meets a parking; and some that linger."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from supervisor import Signal, workflow
from supervisor.engine import signals

pings = Signal("pings", int)
pongs = Signal("pongs", int)
_stays = signals.Signals.stays


def stays(self: signals.Signals, run: Any, waits: Iterable[Any]) -> bool:
    return run.workflow.name == "lingers_in_turns" and _stays(self, run, waits)


signals.Signals.stays = stays  # type: ignore[method-assign]


@workflow
async def hears(count: int) -> list[int]:
    return [await pings.wait() for _ in range(count)]


@workflow
async def hears_in_turns(count: int) -> list[int]:
    """Waits for one name while messages of the other come."""
    return [await (pings if n % 2 == 0 else pongs).wait(timeout=3600) for n in range(count)]


@workflow
async def lingers_in_turns(count: int) -> list[int]:
    """The same, in memory for the first second of each wait."""
    return [await (pings if n % 2 == 0 else pongs).wait(timeout=3600) for n in range(count)]
