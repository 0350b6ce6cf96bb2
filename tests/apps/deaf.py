"""A run that does not heed its cancellation."""

from __future__ import annotations

from supervisor import Cancelled, sleep, workflow


@workflow
async def deaf(n: int) -> int:
    while True:
        try:
            await sleep(3600)
        except Cancelled:
            pass
