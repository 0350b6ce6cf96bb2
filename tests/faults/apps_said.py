"""What goes wrong in ways that a host's log has to name."""

from __future__ import annotations

import os
import time

from supervisor import sleep, step, workflow
from tests.apps.taken import afterwards, tasked, threaded, times_begun
from tests.harness import in_a_host, note

__all__ = ["afterwards", "tasked", "threaded", "times_begun"]


if in_a_host():
    note("imported")


@step
def said_refusing(number: int) -> None:
    raise ValueError(f"no number {number}")


@workflow
async def said_failing(number: int) -> None:
    await said_refusing.aio(number)


@workflow(version=os.environ.get("SAID_VERSION", "one"))
async def said_versioned() -> None:
    await sleep(3)


@step
async def said_standing(seconds: float) -> None:
    time.sleep(seconds)


@workflow
async def said_stood(seconds: float) -> None:
    await said_standing(seconds)


@step(timeout=0.5)
async def said_blocking(seconds: float) -> float:
    note("blocking", os.getpid())
    time.sleep(seconds)
    return seconds


@workflow
async def said_blocked(seconds: float) -> float:
    return await said_blocking(seconds)
