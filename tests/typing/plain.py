"""`supervisor.sync`: the durable words of `def` workflows."""

from datetime import timedelta

from supervisor import step, workflow
from supervisor.sync import current, first, gather, now, random, sleep, sleep_until, start, uuid4


@step
async def charge(order_id: int, cents: int) -> str:
    return f"{order_id}:{cents}"


@step
def pack(order_id: int) -> int:
    return order_id


@workflow
async def child(order_id: int) -> str:
    return await charge(order_id, 1)


@workflow
def parent(order_id: int) -> None:
    reveal_type(pack(order_id))  # R: int
    reveal_type(charge.sync(order_id, 2))  # R: str
    reveal_type(child.sync(order_id))  # R: str
    reveal_type(gather(pack.aio(1), charge.aio(1, 2)))  # R: tuple[int, str]
    reveal_type(gather(pack.aio(1), charge.aio(1, 2), child.aio(1)))  # R: tuple[int, str, str]
    reveal_type(gather(pack.aio(1), charge.aio(1, 2), child.aio(1), pack.aio(2)))  # R: tuple[int, str, str, int]
    reveal_type(gather(*[pack.aio(n) for n in range(3)]))  # R: list[int]
    reveal_type(first(a=pack.aio(1), b=charge.aio(1, 2)))  # R: tuple[str, Any]
    started = start(child, 3)
    reveal_type(started)  # R: ChildRun[str]
    reveal_type(started.result())  # R: str
    reveal_type(start(child.options(delay=3), order_id=3).result())  # R: str
    sleep(3)
    sleep_until(now() + timedelta(days=1))
    reveal_type(random().random())  # R: float
    reveal_type(uuid4())  # R: UUID
    reveal_type(current().attempt)  # R: int


@workflow
def wrong(order_id: int) -> str:
    pack("a")  # E: arg-type reportArgumentType
    charge.sync("a", 2)  # E: arg-type reportArgumentType
    child.sync("a")  # E: arg-type reportArgumentType
    child.aio("a")  # E: arg-type reportArgumentType
    start(child, "a")  # E: call-overload reportArgumentType
    gather(pack(1), pack(2))  # E: call-overload reportArgumentType
    first(a=pack(1))  # E: arg-type reportArgumentType
    sleep(None)  # E: arg-type reportArgumentType
    return charge(order_id, 2)  # E: return-value reportReturnType
