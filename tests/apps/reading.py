"""Runs in the situations that `list`, `show` and `cancel` have to tell."""

from __future__ import annotations

from supervisor import Retry, sleep, start, step, workflow
from tests.harness import note, wait_for_file


@step(run="thread")
def read_gate(name: str) -> str:
    note("read_gate", name)
    wait_for_file(name)
    return name


@step(retry=Retry(max_attempts=3, initial=3600, maximum=3600))
def unpaid(order: int) -> str:
    raise ConnectionError(f"the payment service is down for {order}")


@step
def quick(n: int) -> int:
    return n + 1


@workflow(queue="reading")
async def reads_gate(name: str) -> str:
    await quick.aio(1)
    return await read_gate.aio(name)


@workflow(queue="reading")
async def pays(order: int) -> str:
    return await unpaid.aio(order)


@workflow(queue="reading")
async def read_child(n: int, gate: str = "") -> int:
    if n == 3:
        raise LookupError("child 3 found nothing")
    if gate:
        await read_gate.aio(gate)
    return await quick.aio(n)


@workflow(queue="reading")
async def read_parent(children: int, gate: str) -> int:
    runs = [await start(read_child, n) for n in range(children)]
    for n, run in enumerate(runs):
        if n != 3:  # that one fails
            await run.result()
    return await read_child(1000, gate)


@workflow(queue="reading")
async def waits_for_child(gate: str) -> str:
    try:
        return str(await read_child(1000, gate))
    except Exception as error:  # noqa: BLE001 - what the parent is told
        return f"{type(error).__name__}: {error}"


@workflow(queue="reading")
async def reading_sleeps(seconds: float) -> str:
    await sleep(seconds)
    return "awake"
