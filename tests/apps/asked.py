"""Workflows that the client's tests start."""

from __future__ import annotations

from dataclasses import dataclass

from supervisor import sleep, step, workflow
from tests.harness import note


@dataclass
class Doubled:
    n: int
    twice: int


@step
def doubled(n: int) -> int:
    note("doubled", n)
    return 2 * n


@workflow
async def asked_double(n: int) -> Doubled:
    return Doubled(n, await doubled.aio(n))


@workflow
async def asked_sleeper(n: int) -> int:
    await sleep(3600)
    return n


@workflow
async def asked_failure(n: int) -> int:
    raise ValueError(f"asked to fail {n}")


@workflow
async def asked_parent(n: int) -> str:
    try:
        await asked_sleeper(n)
    except Exception as error:
        return type(error).__name__
    return "slept"
