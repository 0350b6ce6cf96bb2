"""An app as a user would test it with the kit."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from supervisor import (
    Cancelled, CompleteLater, HeartbeatMissed, NonRetryable, Query, Retry, Signal, Update, compensate, first, gather, now, publish, random, sleep, sleep_until, step, uuid4,
    workflow,
)  # fmt: skip
from supervisor import sync


@dataclass
class KitOrder:
    id: int
    cents: int


@dataclass
class KitReceipt:
    payment: str
    by: str


class KitDeclined(Exception):
    pass


kit_approved = Signal("kit_approved", str)
kit_add = Update("kit_add", int, int)
kit_total = Query("kit_total", int)


@step(retry=Retry(max_attempts=4, initial=60, factor=2, non_retryable=(KitDeclined,)), timeout=10)
async def kit_charge(order_id: int, cents: int = 100) -> str:
    return f"really charged {order_id} {cents}"


@step
def kit_pack(order_id: int) -> str:
    return f"really packed {order_id}"


@step(transactional=True)
def kit_book(tx: Any, order_id: int) -> int:
    tx.execute("insert into ledger values (%s)", (order_id,))
    return order_id


@step
async def kit_naps(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@step(timeout=0.2)
def kit_blocks() -> str:
    time.sleep(0.6)
    return "late"


@step
def kit_object() -> Any:
    return object()


@workflow
async def kit_checkout(order: KitOrder) -> KitReceipt:
    payment = await kit_charge(order.id, order.cents)
    await kit_pack.aio(order.id)
    by = await kit_approved.wait(timeout=3600)
    return KitReceipt(payment, by)


@workflow
def kit_checkout_def(order: KitOrder) -> KitReceipt:
    payment = kit_charge.sync(order.id, order.cents)
    kit_pack(order.id)
    sync.sleep(86_400)
    return KitReceipt(payment, "nobody")


@workflow
async def kit_books(order_id: int) -> int:
    return await kit_book.aio(order_id)


@workflow
async def kit_month() -> list[str]:
    began = now()
    await sleep(30 * 86_400)
    return [began.isoformat(), now().isoformat()]


@workflow
async def kit_dice() -> list[Any]:
    return [random().random(), str(uuid4()), now().isoformat(), await kit_charge(1), await gather(kit_pack.aio(1), kit_pack.aio(2), kit_naps(0.1))]


@workflow
async def kit_races() -> str:
    winner, _ = await first(a=kit_charge(1), b=kit_pack.aio(2))
    return winner


@workflow
async def kit_takes(seconds: float) -> float:
    return await kit_naps(seconds)


@workflow
async def kit_blocked() -> str:
    return await kit_blocks.aio()


@workflow
async def kit_cant() -> None:
    await kit_object.aio()


@workflow
async def kit_waits_for_child() -> KitReceipt:
    return await kit_checkout(KitOrder(1, 2))


@workflow
async def kit_sums() -> int:
    total = 0

    @kit_add.handler
    async def _(n: int) -> int:
        nonlocal total
        await sleep(3600)
        total += n
        publish("total", total)
        return total

    kit_total.handler(lambda: total)
    await kit_approved.wait()
    return total


@workflow
async def kit_spins() -> None:
    while True:
        await sleep(1)


kit_calls: list[int] = []


@workflow
async def kit_changes_its_mind() -> str:
    """What no replay can follow."""
    kit_calls.append(1)
    said = await kit_pack.aio(1) if len(kit_calls) % 2 else await kit_charge(1)
    await sleep(1)
    return said


@workflow
async def kit_at(year: int) -> str:
    await sleep_until(now().replace(year=year))
    return now().isoformat()


@workflow
async def kit_gives_up() -> None:
    raise NonRetryable("enough")


@step
def kit_hands_over(beat: float) -> str:
    raise CompleteLater(heartbeat=beat)


@step(retry=Retry(max_attempts=1000, initial=60, factor=1), schedule_to_close=7200)
def kit_fails_on() -> str:
    raise OSError("again")


@workflow
async def kit_long_steps() -> list[str]:
    said = []
    try:
        await kit_hands_over.aio(3600)
    except HeartbeatMissed as error:
        said.append(type(error).__name__)
    try:
        await kit_fails_on.aio()
    except OSError as error:
        said.append(str(error))
    return said


@workflow(timeout=3600)
async def kit_rents(car: int) -> str:
    await kit_pack.aio(car)
    compensate(kit_pack, -car)
    try:
        return await kit_approved.wait()
    except Cancelled:
        await sleep(60)
        raise


@step
async def kit_long(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "long"


@workflow
async def kit_bounded(step_s: float, late_s: float) -> str:
    winner, _ = await first(long=kit_long(step_s), late=sleep(late_s))
    return winner
