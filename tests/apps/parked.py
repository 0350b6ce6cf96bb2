"""Runs in every situation that `stacks` has to show, and a step that computes under load."""

from __future__ import annotations

import asyncio
import math
import os
from pathlib import Path

from supervisor import gather, step, workflow
from supervisor.sync import sleep as sleep_here
from tests.apps.gates import at_gate
from tests.harness import note, wait_for_file


@step(run="thread")
def in_thread(gate: str) -> int:
    note("in_thread")
    wait_for_file(gate)  # the line of a thread
    return 1


@step
async def in_task(gate: str) -> int:
    note("in_task")
    await at_gate(gate)  # the line of a task
    return 2


@step(run="inline")
def inline(gate: str) -> int:
    note("inline")
    wait_for_file(gate)  # the line that is stuck inline
    return 3


@step(run="inline")
def holding(n: int) -> int:
    note("holding")
    return sum(range(n))  # the line that holds the interpreter


@step(run="inline")
def compute(n: int) -> int:
    total = 0.0
    for i in range(n):
        total += math.sqrt(i) * 1.5  # the hot line
    return int(total)


async def _inner(gate: str) -> int:
    return await in_task(gate)  # the inner line of a coroutine


@workflow
async def parked_async(gate: str) -> int:
    return await _inner(gate)  # the outer line of a coroutine


@step
async def among_many(gate: str) -> int:
    while not (Path(os.environ["TEST_EFFECTS"]).parent / gate).exists():
        await asyncio.sleep(2)  # thousands ask
    return 5


@workflow
async def crowd(gate: str) -> int:
    return await among_many(gate)  # the line of a crowd


@workflow
async def parked_branches(gate: str) -> int:
    one, two = await gather(_inner(gate), _inner(gate))  # the line of a root with branches
    return one + two


@workflow
def parked_def(gate: str) -> int:
    return in_thread(gate)  # the line of a greenlet


@workflow
def sleeping_def(seconds: float) -> int:
    sleep_here(seconds)  # the line of a sleeping greenlet
    return 0


@workflow
async def stuck(gate: str) -> int:
    return await inline.aio(gate)


@workflow
async def parked_holds(n: int) -> int:
    return await holding.aio(n)


@workflow
async def busy(rounds: int, n: int) -> int:
    total = 0
    for _ in range(rounds):
        total += await compute.aio(n)
    return total
