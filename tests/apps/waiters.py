"""Runs that wait: for a time, a signal, a child."""

from __future__ import annotations

from supervisor import Signal, sleep, step, workflow
from tests.harness import note

waiters_go = Signal("waiters_go", int)


@step
def waiters_count(number: int) -> int:
    note("waiters", number)
    return number


@workflow
async def waiters_quick(number: int) -> int:
    return await waiters_count.aio(number)


@workflow
async def waiters_sleep(number: int, seconds: float) -> int:
    await sleep(seconds)
    return await waiters_count.aio(number)


@workflow
async def waiters_listen(number: int) -> int:
    return await waiters_count.aio(number + await waiters_go.wait())


@workflow
async def waiters_mind(number: int, seconds: float) -> int:
    return await waiters_count.aio(number + await waiters_sleep(number, seconds))


@workflow
async def waiters_brief(seconds: float) -> int:
    """Replayed code notes what it does once more; that is what the test counts."""
    note("brief", seconds)
    await sleep(seconds)
    return await waiters_count.aio(0)
