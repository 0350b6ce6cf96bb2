"""Runs that sleep out of memory: what they are when they wake, and what else has come by then."""

from __future__ import annotations

from supervisor import sleep, step, workflow
from tests.apps.gates import at_gate
from tests.harness import note


@step(run="inline")
def slept_done(label: str) -> str:
    note("slept_done", label)
    return label


@step
async def slept_held(gate: str) -> str:
    note("slept_held", gate)
    await at_gate(gate)
    return gate


@workflow
async def slept_short(label: str, seconds: float = 86_400.0) -> str:
    await sleep(seconds)
    return await slept_done.aio(label)


@workflow(timeout=43_200)
async def slept_limited(label: str) -> str:
    await sleep(86_400.0)
    return await slept_done.aio(label)


@workflow
async def slept_often(label: str, times: int) -> list[str]:
    said = []
    for n in range(times):
        await sleep(86_400.0 + n)
        said.append(await slept_done.aio(f"{label} {n}"))
    return said


@workflow
async def slept_gated(gate: str) -> str:
    await sleep(86_400.0)
    return await slept_held.aio(gate)
