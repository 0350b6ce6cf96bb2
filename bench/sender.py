"""The other process of `bench latency`: starts runs at fixed moments and notes when it has their results.

Open loop: a start is due at its moment whether or not the ones before it have ended, and time is counted from that
moment. So a pause of the engine is seen by every run that it delays, not only by one.
Reads what to do from standard input (a connection string is no matter for an argument), writes what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from supervisor.api.client import Client
from supervisor.api.client_async import AsyncClient
from supervisor.bench import app

WAITERS = 64  # results that are waited for at once
TIMEOUT_S = 60.0
AWAKE_S = 0.0005


def main() -> None:
    asked = json.load(sys.stdin)
    if asked["on_loop"]:
        json.dump(asyncio.run(on_loop(asked)), sys.stdout)
        return
    with Client(asked["dsn"], schema=asked["schema"]) as client:
        for n in range(asked["warm"]):
            client.start(app.job, n).result(timeout=TIMEOUT_S)
        json.dump(open_loop(client, asked["runs"], asked["rate"]), sys.stdout)


def open_loop(client: Client, runs: int, rate: float) -> dict[str, list[float]]:
    """Milliseconds from each intended start to its result, and to the return of `start`."""
    started_ms: list[float] = []

    def ended(n: int, run: Any, intended: float) -> float:
        result = run.result(timeout=TIMEOUT_S)
        took_ms = (time.monotonic() - intended) * 1000
        if result != n + 1:
            raise ValueError(f"run {n} gave {result}")
        return took_ms

    with ThreadPoolExecutor(WAITERS) as waiters:
        began = time.monotonic() + 0.1
        waiting = []
        for n in range(runs):
            intended = began + n / rate
            _until(intended)
            run = client.start(app.job, n)
            started_ms.append((time.monotonic() - intended) * 1000)
            waiting.append(waiters.submit(ended, n, run, intended))
        return {"result_ms": [each.result() for each in waiting], "start_ms": started_ms}


def _until(moment: float) -> None:
    """Awake when it comes, as an application is that starts a run: what a timer is late by is not the engine's."""
    time.sleep(max(0.0, moment - time.monotonic() - AWAKE_S))
    while time.monotonic() < moment:
        pass


async def on_loop(asked: dict[str, Any]) -> dict[str, list[float]]:
    """The same by an AsyncClient."""
    runs, rate = asked["runs"], asked["rate"]
    started_ms: list[float] = []

    async def one(n: int, intended: float) -> float:
        await asyncio.sleep(intended - time.monotonic() - AWAKE_S)
        _until(intended)
        run = await client.start(app.job, n)
        started_ms.append((time.monotonic() - intended) * 1000)
        result = await run.result(timeout=TIMEOUT_S)
        took_ms = (time.monotonic() - intended) * 1000
        if result != n + 1:
            raise ValueError(f"run {n} gave {result}")
        return took_ms

    async with AsyncClient(asked["dsn"], schema=asked["schema"]) as client:
        for n in range(asked["warm"]):
            await (await client.start(app.job, n)).result(timeout=TIMEOUT_S)
        began = time.monotonic() + 0.1
        took_ms = await asyncio.gather(*(one(n, began + n / rate) for n in range(runs)))
        return {"result_ms": list(took_ms), "start_ms": started_ms}


if __name__ == "__main__":
    main()
