"""A run that does a bit of everything: a def step, a retried one, an async one that takes its time, two transactional ones."""

import asyncio
import os

from supervisor import Retry, current, step, workflow
from tests.harness import note

STEPS = ("count_up", "book", "take_time", "shake", "book")  # by seq
HOT_ROWS = 10


def begun(order: int, seq: int) -> None:
    """Note that a body began: what it is by its arguments, where, and what the engine says that it is."""
    me = current()
    note("begun", order, seq, me.attempt, os.getpid(), int(me.redelivered), me.run_id, me.seq)


@step
def count_up(order: int) -> int:
    begun(order, 0)
    return order + 1


@step
async def take_time(order: int) -> int:
    begun(order, 2)
    await asyncio.sleep(order % 20 / 1000)
    return order + 2


@step(retry=Retry(max_attempts=3, initial=0.01))
def shake(order: int) -> int:
    begun(order, 3)
    if order % 5 == 0 and current().attempt == 1:
        raise ConnectionError("one in five, at the first try")
    return order + 3


@step(transactional=True)
def book(tx, order: int) -> int:  # type: ignore[no-untyped-def]
    me = current()
    tx.execute("insert into ledger (run_id, seq, amount) values (%s, %s, %s)", (me.run_id, me.seq, order))
    tx.execute("update account set balance = balance + %s where id = %s", (order, order % HOT_ROWS))
    return order


@workflow
async def order(number: int) -> int:
    up = await count_up.aio(number)
    await book.aio(number)
    later = await take_time(number)
    shaken = await shake.aio(number)
    await book.aio(number)
    return up + later + shaken
