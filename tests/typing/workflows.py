"""Workflows: called in one another, started with options, and the durable words of `async def` workflows."""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta

from supervisor import Retry, compensate, current, first, gather, now, random, shield, sleep, sleep_until, start, step, uuid4, workflow


@dataclass
class Order:
    id: int
    total: int


@dataclass
class Receipt:
    payment: str


@step(retry=Retry())
async def charge(order_id: int, cents: int) -> str:
    return f"{order_id}:{cents}"


@step
def pack(order_id: int) -> int:
    return order_id


@workflow
async def checkout(order: Order) -> Receipt:
    return Receipt(await charge(order.id, order.total))


@workflow(name="ship_it", queue="orders", timeout=timedelta(days=1))
def ship(order: Order, weight: int = 1) -> int:
    return pack(order.id) * weight


reveal_type(checkout)  # R: Workflow[(order: Order), Receipt]
reveal_type(ship)  # R: Workflow[(order: Order, weight: int = ...), int]
reveal_type(ship.options(key="o-1", queue="later", priority=0, delay=timedelta(hours=1)))  # R: StartOptions[(order: Order, weight: int = ...), int]


@workflow
async def parent(order: Order) -> None:
    # children
    reveal_type(await checkout(order))  # R: Receipt
    reveal_type(await ship(order, weight=3))  # R: int
    child = await start(checkout, order)
    reveal_type(child)  # R: ChildRun[Receipt]
    reveal_type(child.id)  # R: UUID
    reveal_type(await child.result())  # R: Receipt
    reveal_type(await start(ship.options(delay=60), order, 2))  # R: ChildRun[int]
    # several at once
    reveal_type(await gather(charge(1, 2), pack.aio(1)))  # R: tuple[str, int]
    reveal_type(await gather(charge(1, 2), pack.aio(1), checkout(order)))  # R: tuple[str, int, Receipt]
    reveal_type(await gather(charge(1, 2), pack.aio(1), checkout(order), sleep(1)))  # R: tuple[str, int, Receipt, None]
    reveal_type(await gather(gather(pack.aio(1), pack.aio(2)), charge(1, 2)))  # R: tuple[tuple[int, int], str]
    reveal_type(await gather(*(pack.aio(n) for n in range(3))))  # R: list[int]
    reveal_type(await gather(pack.aio(1), pack.aio(2), pack.aio(3), pack.aio(4), pack.aio(5)))  # R: list[int]
    reveal_type(await first(paid=charge(1, 2), late=sleep(600)))  # R: tuple[str, Any]
    # time, chance, facts
    await sleep(timedelta(days=30))
    await sleep_until(now() + timedelta(hours=1))
    reveal_type(now())  # R: datetime
    reveal_type(random().choice(["a", "b"]))  # R: str
    reveal_type(uuid4())  # R: UUID
    reveal_type(current().run_id)  # R: UUID
    reveal_type(current().key)  # R: str | None
    reveal_type(current().idempotency_key)  # R: str


async def branch(order: Order) -> str:
    """A coroutine of one's own may be gathered too."""
    await sleep(1)
    return await charge(order.id, 1)


@workflow
async def wrong(order: Order) -> int:
    await checkout(3)  # E: arg-type reportArgumentType
    await checkout()  # E: call-arg reportCallIssue
    await ship(order, weight="heavy")  # E: arg-type reportArgumentType
    await start(checkout, 3)  # E: call-overload reportArgumentType
    await start(ship, order, 3, 4)  # E: call-overload reportCallIssue
    await start(charge, 1, 2)  # E: call-overload reportArgumentType
    await gather(1, 2)  # E: call-overload reportArgumentType
    await gather(pack(1), pack(2))  # E: call-overload reportArgumentType
    await first(charge(1, 2), sleep(3))  # E: arg-type reportArgumentType
    await first(paid=charge(1, 2), late=600)  # E: arg-type reportArgumentType
    await sleep("1 h")  # E: arg-type reportArgumentType
    await sleep_until(3600)  # E: arg-type reportArgumentType
    checkout(order)  # E: unused-coroutine reportUnusedCoroutine
    sleep(1)  # E: unused-coroutine reportUnusedCoroutine
    gather(pack.aio(1), pack.aio(2))  # E: unused-coroutine reportUnusedCoroutine
    paid, packed = await gather(charge(1, 2), pack.aio(1))
    paid + packed  # E: operator reportOperatorIssue
    checkout.options(priority="high")  # E: arg-type reportArgumentType
    checkout.options(delay=datetime(2030, 1, 1))  # E: arg-type reportArgumentType
    checkout.options(keys="o-1")  # E: call-arg reportCallIssue
    reveal_type(await gather(branch(order), sleep(1)))  # R: tuple[str, None]
    reveal_type(await shield(charge(1, 2), timeout=3))  # R: str
    reveal_type(await shield(branch(order)))  # R: str
    await shield(3)  # E: arg-type reportArgumentType
    compensate(charge, 1, 2)
    compensate(pack, 1)
    compensate(checkout, order)
    compensate(charge, 1, "2")  # E: arg-type reportArgumentType
    compensate(checkout)  # E: call-arg reportCallIssue
    checkout.options(parent_close="abandon")
    checkout.options(parent_close="leave")  # E: arg-type reportArgumentType
    return await charge(1, 2)  # E: return-value reportReturnType


@workflow(queues=["orders"])  # E: call-overload reportCallIssue
async def unknown_option() -> None: ...


# Outside of a run a step or workflow is the plain function: a test may call it.
reveal_type(asyncio.run(checkout(Order(1, 2))))  # R: Receipt
reveal_type(asyncio.run(charge(1, 2)))  # R: str
