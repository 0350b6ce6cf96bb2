"""Runs that leave memory at once when they wait for a signal, so that every message meets a parking."""

from __future__ import annotations

from supervisor import Signal, workflow
from supervisor.engine import signals

signals.STAY_S = 0.0

pings = Signal("pings", int)
pongs = Signal("pongs", int)


@workflow
async def hears(count: int) -> list[int]:
    return [await pings.wait() for _ in range(count)]


@workflow
async def hears_in_turns(count: int) -> list[int]:
    """Waits for one name while messages of the other come."""
    return [await (pings if n % 2 == 0 else pongs).wait(timeout=3600) for n in range(count)]
