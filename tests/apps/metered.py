"""Runs whose tries are counted: quick ones, slow ones, failing ones, names that a text format has to escape."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from supervisor import Retry, Signal, current, gather, step, workflow
from tests.harness import note, wait_for_file

metered_word = Signal("metered_word", str)
ODD = 'metered "quotes" back\\slash ünï'


@step
def metered_add(n: int) -> int:
    return n + 1


@workflow(queue="metered")
async def metered_counts(steps: int) -> int:
    n = 0
    for _ in range(steps):
        n = await metered_add.aio(n)
    return n


@step(retry=Retry(max_attempts=2, initial=0.01))
def metered_fail() -> None:
    raise ValueError("as it should")


@workflow(queue="metered")
async def metered_fails() -> None:
    await metered_fail.aio()


@workflow(queue="metered")
async def metered_shares() -> int:
    return await metered_add.aio(await metered_add.aio(0))


@step
def metered_says(n: int, word: str) -> str:
    return f"{word} {n}"


@step(retry=Retry(max_attempts=2, initial=0.001))
def metered_second_time() -> None:
    if current().attempt == 1:
        raise ValueError("as it should")


@workflow(queue="metered")
async def metered_mixed(n: int, poison: str = "") -> int:
    await metered_says.aio(n, "fine")
    await metered_second_time.aio()
    await metered_says.aio(n, poison)
    return await metered_add.aio(n)


@step(run="thread")
def metered_sleep(seconds: float) -> None:
    time.sleep(seconds)


@step
async def metered_rest(seconds: float) -> None:
    await asyncio.sleep(seconds)


@workflow(queue="metered")
async def metered_slow() -> None:
    await gather(metered_sleep.aio(0.03), metered_rest(0.03))


@step(name=ODD)
def metered_odd_step() -> int:
    return 1


@workflow(name=ODD, queue='metered "odd"')
async def metered_odd() -> int:
    return await metered_odd_step.aio()


@step(run="thread")
def metered_dies() -> None:
    note("dies")
    os.kill(os.getpid(), signal.SIGKILL)


@workflow(queue="metered")
async def metered_poison() -> None:
    await metered_dies.aio()


@step(run="thread")
def metered_held(name: str) -> None:
    note("held", name)
    wait_for_file(name)


@workflow(queue="metered")
async def metered_holds(name: str) -> None:
    await metered_held.aio(name)


@workflow(queue="metered")
async def metered_waits() -> str:
    return await metered_word.wait()
