"""One-second steps that use nothing but a thread."""

from __future__ import annotations

import time

from supervisor import step, workflow


@step(run="thread")
def a_second(n: int) -> int:
    time.sleep(1)
    return n


@workflow
async def sleeping_a_second(n: int) -> int:
    return await a_second.aio(n)
