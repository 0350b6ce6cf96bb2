"""Steps that run on the loop's thread and suddenly hold it, until the test lets them go."""

from __future__ import annotations

import asyncio
import threading
import time

from supervisor import current, step, workflow
from supervisor.sync import gather as gather_def
from tests.harness import note, wait_for_file

_before: list[int] = []


@step
def quick(n: int, hold: str = "") -> int:
    """Quick, unless it is told to hold: then it stays until the test makes the file of that name."""
    if not hold:
        _before.append(n)
        return n + 1
    note("held", hold, n, time.time(), *_before[-8:])
    wait_for_file(hold)
    note("let_go", hold, current().run_id, current().seq, threading.current_thread() is threading.main_thread())
    return n + 1


@step
def naps(n: int, seconds: float = 0.0) -> int:
    """Quick, or away for a moment."""
    if seconds:
        note("napped", time.time())
        time.sleep(seconds)
    return n + 1


@step(run="inline")
def declared(n: int, hold: str = "") -> int:
    if hold:
        note("held", hold, n, time.time())
        wait_for_file(hold)
    return n + 1


@step(run="thread")
def in_thread(n: int) -> int:
    time.sleep(0.01)
    return n + 1


@step
async def in_task(n: int) -> int:
    await asyncio.sleep(0.01)
    return n + 1


@step
def fails(n: int, hold: str) -> int:
    if hold:
        note("held", hold, n, time.time())
        wait_for_file(hold)
        raise ValueError(f"let go of {n}")
    return n


@workflow
async def stuck_one(n: int, hold: str = "") -> int:
    return await quick.aio(n, hold)


@workflow
async def stuck_of_declared(n: int, hold: str = "") -> int:
    return await declared.aio(n, hold)


@workflow
async def stuck_many(n: int, hold: str = "") -> int:
    """Inline, task and thread, again and again."""
    for _ in range(5):
        n = await quick.aio(n)
        n = await in_task(n)
        n = await in_thread.aio(n)
    return await quick.aio(n, hold)


@workflow
def stuck_many_def(n: int, hold: str = "") -> int:
    note("body", n)
    for _ in range(5):
        n = quick(n)
        n = in_thread(n)
        n, _other = gather_def(quick.aio(n), in_thread.aio(n))
    return quick(n, hold)


@workflow
async def stuck_branches(n: int, hold: str) -> list[int]:
    """The first of its branches holds; the others are begun after it."""
    from supervisor import gather

    return list(await gather(quick.aio(n, hold), *(quick.aio(n + i) for i in range(1, 6))))


@workflow
async def stuck_raises(n: int, hold: str = "") -> int:
    return await fails.aio(n, hold)


@workflow
def stuck_naps_def(n: int, steps: int, nap_at: int = -1) -> int:
    note("body", n)
    for i in range(steps):
        naps(i, 0.06 if i == nap_at else 0.0)
    return n


@workflow
async def stuck_warm(n: int) -> None:
    for i in range(n):
        await quick.aio(i)
        await naps.aio(i)
        await fails.aio(i, "")
