"""The example app: what `python -m supervisor` runs when nothing is configured. A checkout in three steps."""

from __future__ import annotations

import asyncio

from supervisor import Retry, current, sleep, step, workflow


@step(retry=Retry(max_attempts=8, initial=0.2), timeout=10)
async def charge(order: int, cents: int) -> str:
    """Pretend to charge a card; the idempotency key is what a payment service would be given."""
    await asyncio.sleep(0.05)
    return f"charged {cents} cents for order {order} once, by {current().idempotency_key}"


@step
def pack(order: int) -> str:
    return f"order {order} is packed"


@workflow
async def checkout(order: int, cents: int = 1999) -> list[str]:
    """Charge, wait a second, pack."""
    receipt = await charge(order, cents)
    await sleep(1)
    return [receipt, await pack.aio(order)]
