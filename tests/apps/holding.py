"""Workflow code that holds the loop: for ever, for a while, computing or blocked."""

from __future__ import annotations

import asyncio
import time

from supervisor import step, workflow
from tests.harness import note


@step(run="inline")
def held_quick(number: int) -> int:
    return number


@workflow
async def spins() -> None:
    note("spins")
    while True:
        pass


@workflow
def spins_in_def() -> None:
    note("spins_in_def")
    held_quick(1)
    while True:
        pass


@workflow
async def holds_the_interpreter() -> int:
    note("holds_the_interpreter")
    return sum(range(10**15))


@workflow
async def computes_long(cpu_s: float) -> int:
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        pass
    return await held_quick.aio(7)


@workflow
async def blocks_for_ever() -> None:
    note("blocks_for_ever")
    time.sleep(3600)  # noqa: ASYNC251


@step
async def lingers(number: int) -> int:
    note("lingers", number)
    await asyncio.sleep(0.05)
    return number


@workflow
async def goes_on(number: int) -> int:
    return await held_quick.aio(number) + await lingers(number)
