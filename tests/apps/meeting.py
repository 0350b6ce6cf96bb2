"""An async step that ends when so many of them are inside at once."""

from __future__ import annotations

import asyncio

from supervisor import step, workflow

RUNS = 1000
_barrier: list[asyncio.Barrier] = []


@step
async def meet(n: int) -> int:
    if not _barrier:
        _barrier.append(asyncio.Barrier(RUNS))
    await _barrier[0].wait()
    return n


@workflow
async def meeting(n: int) -> int:
    return await meet(n)
