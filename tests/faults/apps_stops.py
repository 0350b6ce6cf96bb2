"""The load, and steps that a stop finds executing: most end when the test lets them, one never lets go of the interpreter."""

from __future__ import annotations

import ctypes
import os

from supervisor import current, gather, step, workflow
from tests.apps.taken import afterwards, in_task, tasked, threaded, times_begun, transacted
from tests.faults.apps_load import order
from tests.harness import note, wait_for_file

__all__ = ["order", "tasked", "threaded", "transacted"]


@step(run="thread")
def stopped_in_the_way(word: str, gate: str) -> int:
    """The first time nothing of its process can go on, not even what would end it: a C function that keeps the interpreter's lock."""
    note("standing", word, os.getpid(), int(current().redelivered))
    time = times_begun(word)
    if time == 1:
        ctypes.PyDLL(None).sleep(3600)
    wait_for_file(gate)
    return time


@workflow
async def stopped_blocking(word: str, gate: str) -> int:
    time = await stopped_in_the_way.aio(word, gate)
    await afterwards.aio(word)
    return time


@workflow
async def stopped_beside(first: str, second: str) -> list[int]:
    """Two steps at once, each at a gate of its own name."""
    times = await gather(in_task(first, first), in_task(second, second))
    await afterwards.aio(first)
    return times
