"""Runs that wait for signals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from supervisor import InputInvalid, Signal, first, gather, sleep, step, sync, workflow
from tests.apps.gates import at_gate
from tests.harness import note


@dataclass
class Approval:
    by: str
    amount: int = 0


approved = Signal("approved", Approval)
numbers = Signal("numbers", int)
others = Signal("others", str)
anything = Signal("anything")
numbers_def = sync.Signal("numbers", int)


@step
def seen(n: int) -> int:
    note("seen", n)
    return n


@step
async def gate(name: str) -> str:
    await at_gate(name)
    return name


@step
def doubled(n: int) -> int:
    return 2 * n


@workflow
async def approval(timeout: float | None = None) -> str:
    try:
        told = await approved.wait(timeout=timeout)
    except TimeoutError as error:
        return f"late: {error}"
    assert type(told) is Approval
    return f"{told.by} {told.amount}"


@workflow
async def reads_anything(n: int) -> list[Any]:
    return [await anything.wait() for _ in range(n)]


@workflow
async def collects(n: int) -> list[int]:
    got: list[int] = []
    if n:
        async for number in numbers:
            got.append(number)
            if len(got) == n:
                break
    return got


@workflow
def collects_def(n: int) -> list[int]:
    got: list[int] = []
    for number in numbers_def:
        got.append(number)
        if len(got) == n:
            break
    return got


@workflow
async def collects_with_steps(n: int) -> list[int]:
    """Each message is used by a step, so whoever dies in between replays what it was given."""
    return [await seen.aio(await numbers.wait()) for _ in range(n)]


@workflow
def collects_with_steps_def(n: int) -> list[int]:
    return [seen(numbers_def.wait()) for _ in range(n)]


@workflow
async def starts_late(gate_name: str) -> int:
    await gate(gate_name)
    return await numbers.wait()


@workflow
async def either(seconds: float) -> list[Any]:
    winner, value = await first(number=numbers.wait(), late=sleep(seconds))
    return [winner, value]


@workflow
def either_def(seconds: float) -> list[Any]:
    winner, value = sync.first(number=numbers_def.aio(), late=numbers_def.aio(timeout=seconds))
    return [winner, value]


@workflow
async def loser_keeps_nothing() -> list[Any]:
    """The wait that lost must not have taken a message: the next wait is given it."""
    winner, value = await first(text=others.wait(timeout=60), number=numbers.wait())
    return [winner, value, await others.wait(), await numbers.wait()]


@workflow
async def both() -> list[Any]:
    return list(await gather(numbers.wait(), others.wait(), numbers.wait()))


@workflow
async def branches(n: int) -> list[int]:
    async def branch() -> int:
        return await doubled.aio(await numbers.wait())

    return await gather(*(branch() for _ in range(n)))


@workflow
async def beside_a_step(gate_name: str) -> list[Any]:
    winner, value = await first(number=numbers.wait(), step=gate(gate_name))
    return [winner, value]


@workflow
async def lettered_kid(name: str) -> str:
    return await gate(name)


@workflow
async def beside_a_child(gate_name: str) -> list[Any]:
    winner, value = await first(kid=lettered_kid(gate_name), number=numbers.wait())
    return [winner, value]


@workflow
async def forgives() -> list[str]:
    got = []
    for _ in range(3):
        try:
            got.append(f"number {await numbers.wait()}")
        except InputInvalid as error:
            got.append(f"{type(error).__name__} {error.name}")
    return got


@workflow
async def patient(timeouts: int) -> list[str]:
    """Timeouts, then what came after them."""
    got = []
    for _ in range(timeouts):
        try:
            await numbers.wait(timeout=0.05)
        except TimeoutError:
            got.append("late")
    return [*got, str(await numbers.wait())]


@workflow
def misplaced() -> int:
    return numbers.wait()  # type: ignore[return-value]


@workflow
async def lettered_step(n: int) -> int:
    return await doubled.aio(n)
