"""The workloads: what a user would write, with public decorators and all defaults.

`bare` is an async def workflow over an int; the others differ from it in one thing each, so that a ratio says what
that thing costs. Every step changes its value, so that a sum over the results shows whether each ran.
"""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec

from supervisor import Signal, Transaction, sleep, step, workflow


class Line(msgspec.Struct):
    """An order line: the five fields of a typed payload."""

    sku: str
    quantity: int
    price: float
    gift: bool
    note: str | None


@step
def add_one(number: int) -> int:
    return number + 1


@step
def add_piece(line: Line) -> Line:
    return Line(line.sku, line.quantity + 1, line.price, line.gift, line.note)


@workflow
async def counting(number: int, steps: int) -> int:
    for _ in range(steps):
        number = await add_one.aio(number)
    return number


@workflow
def counting_def(number: int, steps: int) -> int:
    for _ in range(steps):
        number = add_one(number)
    return number


@workflow
async def filling(line: Line, steps: int) -> Line:
    for _ in range(steps):
        line = await add_piece.aio(line)
    return line


@workflow
def filling_def(line: Line, steps: int) -> Line:
    for _ in range(steps):
        line = add_piece(line)
    return line


@workflow
async def job(number: int) -> int:
    return await add_one.aio(number)


class Order(msgspec.Struct):
    """A record of `bench start --input`."""

    id: int
    customer: str
    lines: list[Line]
    note: str | None = None


@workflow
async def taking(order: Order) -> int:
    return order.id


@step
def slow_add_one(number: int) -> int:
    time.sleep(1.0)
    return number + 1


@workflow
async def slow_job(number: int) -> int:
    return await slow_add_one.aio(number)


@step
def hold(gate: str) -> bool:
    """Stay until a file is made, or half a minute."""
    until = time.monotonic() + 30.0
    while not os.path.exists(gate) and time.monotonic() < until:
        time.sleep(0.02)
    return True


@workflow
async def holding(gate: str) -> bool:
    return await hold.aio(gate)


@step(run="thread")
def tick(number: int) -> int:
    time.sleep(0.002)
    return number + 1


@workflow
async def ticking(ticks: int) -> int:
    number = 0
    for _ in range(ticks):
        number = await tick.aio(number)
    return number


@step(run="inline")
def sometimes_slow(seconds: float) -> float:
    """On the loop's own thread, as a step that was always quick; until it suddenly is not."""
    if seconds:
        time.sleep(seconds)
    return seconds


@workflow
async def surprising(seconds: float) -> float:
    return await sometimes_slow.aio(seconds)


@step(transactional=True)
def book(tx: Transaction, account: int) -> int:
    tx.execute("update account set balance = balance + 1 where id = %s", (account,))
    return account


@workflow
async def booking(account: int) -> int:
    return await book.aio(account)


sent_at = Signal("sent_at", float)
numbers = Signal("numbers", int)


@step
def given(at: float) -> float:
    """Its begin is the moment at which a signal was durably given to its run."""
    return at


@workflow
async def hearing(signals: int) -> int:
    for _ in range(signals):
        await given.aio(await sent_at.wait())
    return signals


@workflow
async def sleeping(seconds: float) -> float:
    await sleep(seconds)
    return await given.aio(seconds)


@workflow
async def minding(seconds: float) -> float:
    return await given.aio(await sleeping(seconds))


@workflow
async def adding(signals: int) -> int:
    total = left = 0
    async for number in numbers:
        total, left = total + number, left + 1
        if left == signals:
            break
    return total


COUNTING: dict[tuple[str, str], Any] = {
    ("async", "int"): counting,
    ("def", "int"): counting_def,
    ("async", "typed"): filling,
    ("def", "typed"): filling_def,
}
