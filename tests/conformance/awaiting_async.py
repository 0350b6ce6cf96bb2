"""A process that awaits thousands of runs at once, a task for each; says on standard output what it saw, as awaiting.py does.

python -m tests.conformance.awaiting_async DSN RUNS SECONDS
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Any

from supervisor import AsyncClient
from tests.apps import awaited
from tests.conformance.awaiting import say

TIMEOUT_S = 120.0


async def main(dsn: str, runs: int, seconds: float) -> None:
    asked: list[float] = []
    ended: list[float] = []
    wrong: list[str] = []
    async with AsyncClient(dsn) as client:
        ask = client._waiter._ask

        def counted(ids: Sequence[bytes], patience_s: float) -> Any:
            asked.append(time.monotonic())
            return ask(ids, patience_s)

        client._waiter._ask = counted

        async def wait(n: int, run: Any) -> None:
            try:
                if await run.result(timeout=TIMEOUT_S) != n:
                    wrong.append(f"{n}: another result")
            except Exception as error:  # noqa: BLE001
                wrong.append(f"{n}: {error}")
            ended.append(time.monotonic())

        batch = await client.start_many(awaited.awaited_sleep, ({"n": n, "seconds": seconds} for n in range(runs)))
        tasks = [asyncio.create_task(wait(n, batch[n])) for n in range(runs)]
        async with asyncio.timeout(60):
            while len(client._waiter._places) < runs:
                await asyncio.sleep(0.01)
        waiting_at = time.monotonic()
        print("waiting", flush=True)
        await asyncio.gather(*tasks)
        waiter = client._waiter
        left = len(waiter._places) + len(waiter._ear.awaited if waiter._ear is not None else ())
    say(waiting_at, asked, ended, wrong, left)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
