"""Runs in memory that hear of a signal by a hint or never: their worker does not look by itself."""

from __future__ import annotations

from typing import Any

from supervisor import Signal, first, step, workflow
from supervisor.engine import signals
from tests.apps.gates import at_gate
from tests.harness import in_a_host

if in_a_host():
    signals.LOOK_S = 3600.0
    signals.STAY_S = 3600.0

calls = Signal("calls", int)


@step
async def held(name: str) -> str:
    await at_gate(name)
    return name


@workflow
async def hinted() -> int:
    return await calls.wait()


@workflow
async def hinted_beside(gate: str) -> list[Any]:
    winner, value = await first(call=calls.wait(), step=held(gate))
    return [winner, value]
