"""Runs that take long: until a gate opens, or for some seconds out of memory."""

from supervisor import sleep, step, workflow
from tests.harness import wait_for_file


@step(run="thread")
def behind(gate: str) -> str:
    wait_for_file(gate)
    return gate


@workflow
async def awaited_gate(gate: str) -> str:
    return await behind.aio(gate)


@workflow
async def awaited_sleep(n: int, seconds: float) -> int:
    await sleep(seconds)
    return n


@workflow
async def awaited_quick(n: int) -> int:
    return n
