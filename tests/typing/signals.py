"""Signals: what a wait gives is what a sender must give, in both kinds of workflow, alone and beside other things."""

import asyncio
from dataclasses import dataclass
from typing import Any

from supervisor import AsyncClient, Client, Signal, first, gather, sync, workflow


@dataclass
class Approval:
    by: str


approved = Signal("approved", Approval)
numbers = Signal("numbers", int)
lists = Signal("lists", list[int])
anything: Signal[Any] = Signal("anything")
paid = sync.Signal("paid", int)


@workflow
async def waits(n: int) -> str:
    reveal_type(approved)  # R: Signal[Approval]
    told = await approved.wait(timeout=60)
    reveal_type(told)  # R: Approval
    reveal_type(await lists.wait())  # R: list[int]
    reveal_type(await anything.wait())  # R: Any
    reveal_type(await gather(approved.wait(), numbers.wait()))  # R: tuple[Approval, int]
    reveal_type((await first(a=approved.wait(), b=numbers.wait()))[0])  # R: str
    async for number in numbers:
        reveal_type(number)  # R: int
        break
    await approved.wait("soon")  # E: arg-type reportArgumentType
    return told.by


@workflow
def waits_def(n: int) -> int:
    reveal_type(paid)  # R: Signal[int]
    reveal_type(paid.wait(timeout=60))  # R: int
    reveal_type(sync.gather(paid.aio(), paid.aio()))  # R: tuple[int, int]
    for cents in paid:
        reveal_type(cents)  # R: int
        break
    return paid.wait()


with Client() as client:
    run = client.start(waits, 1)
    reveal_type(client.signal(run, approved, Approval("ann"), id="e-1"))  # R: bool
    reveal_type(run.signal(paid, 7))  # R: bool
    reveal_type(run.signal("approved", {"by": "ann"}))  # R: bool
    reveal_type(client.signal_with_start(approved.message(Approval("ann")), waits, 1))  # R: Run[str]
    reveal_type(client.signal_with_start(paid.message(1, id="e"), waits_def.options(key="k"), 1))  # R: Run[int]
    run.signal(approved, "ann")  # E: misc reportArgumentType
    run.signal(approved)  # E: call-overload reportArgumentType
    approved.message("ann")  # E: arg-type reportArgumentType
    client.signal_with_start(approved.message(Approval("ann")), waits, "1")  # E: call-overload reportArgumentType
    client.signal_with_start("approved", waits, 1)  # E: call-overload reportArgumentType


async def main() -> None:
    async with AsyncClient() as client:
        run = await client.signal_with_start(paid.message(1), waits_def, 1)
        reveal_type(run)  # R: AsyncRun[int]
        reveal_type(await run.signal(paid, 1))  # R: bool
        await client.signal(run, paid, "1")  # E: misc reportArgumentType


asyncio.run(main())
