"""Runs that take updates: handlers of every kind, validators, and ends of runs while handlers are under way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from supervisor import Query, Signal, Update, first, gather, handlers_finished, publish, sleep, step, sync, workflow
from tests.apps.gates import at_gate
from tests.harness import note


@dataclass
class Item:
    name: str
    count: int = 1


@dataclass
class Basket:
    items: list[Item] = field(default_factory=list)


add = Update("add", Item, Basket)
count = Update("count", returns=int)
clear = Update("clear")
never_handled = Update("never_handled", int, int)
misused = Update("misused", str, int)
leave = Signal("updated_leave", str)
leave_def = sync.Signal("updated_leave", str)
contents = Query("updated_contents", list[str])


class Full(Exception):
    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.most = most


@step
def updated_step(what: str) -> str:
    note("updated_step", what)
    return what


@step
async def updated_gate(name: str) -> str:
    note("updated_gate", name)
    await at_gate(name, 120)
    return name


@workflow
async def shop(most: int = 3, gate: str = "") -> list[str]:
    """A handler that calls a step, and one that waits at a gate where the item has its name; it ends by a signal."""
    basket = Basket()

    def check(item: Item) -> None:
        if len(basket.items) >= most:
            raise Full(most)
        if item.count < 1:
            raise ValueError(f"{item.count} of {item.name}")

    @add.handler(validator=check)
    async def _(item: Item) -> Basket:
        await updated_step.aio(item.name)
        if gate and item.name.startswith("slow"):
            await updated_gate(f"{gate}.{item.name}")
        if item.name == "fails":
            raise Full(0)
        basket.items.append(item)
        publish("count", len(basket.items))
        return basket

    count.handler(lambda: len(basket.items))
    clear.handler(basket.items.clear)
    contents.handler(lambda: [each.name for each in basket.items])
    how = await leave.wait()
    if how == "finish":
        await handlers_finished()
    return [each.name for each in basket.items]


@workflow
def shop_def(most: int = 3) -> list[str]:
    basket = Basket()

    def check(item: Item) -> None:
        if len(basket.items) >= most:
            raise Full(most)

    def put(item: Item) -> Basket:
        updated_step(item.name)
        sync.sleep(0.01)
        basket.items.append(item)
        return basket

    add.handler(put, validator=check)
    count.handler(lambda: len(basket.items))
    leave_def.wait()
    sync.handlers_finished()
    return [each.name for each in basket.items]


@workflow
async def steps_and_updates(n: int) -> list[str]:
    """Its root goes from step to step while updates come: the order in which they are given is the run's history."""
    trace: list[str] = []

    async def put(item: Item) -> Basket:
        trace.append(f"begun {item.name}")
        await updated_step.aio(item.name)
        trace.append(f"ended {item.name}")
        return Basket([item])

    add.handler(put)
    for at in range(n):
        trace.append(await updated_step.aio(f"root {at}"))
        await sleep(0.002)
    await handlers_finished()
    trace.append(await updated_gate(f"{trace[0]}.{n}.end") if n > 1000 else "end")
    return trace


@workflow
async def waits_long(how: str) -> int:
    """Parked in every way that there is; the update lets it go."""
    done = 0

    @add.handler
    async def _(item: Item) -> Basket:
        nonlocal done
        await updated_step.aio(item.name)
        done += item.count
        return Basket([item])

    if how == "timer":
        while not done:
            await first(a=sleep(3600), b=leave.wait())
        return done
    if how == "sleep":
        await sleep(3600)
    elif how == "signal":
        await leave.wait()
    elif how == "child":
        await updated_child("never")
    return done


@workflow
async def updated_child(how: str) -> str:
    return await leave.wait()


@workflow
async def handler_outlives(seconds: float) -> str:
    """A handler that waits in the database, while the run waits for it to end."""

    @count.handler
    async def _() -> int:
        await sleep(seconds)
        return 7

    await leave.wait()
    await handlers_finished()
    return "finished"


@workflow
async def misuses(what: str) -> str:
    def validator(how: str) -> Any:
        if how == "step":
            return updated_step.aio("x")
        if how == "sleep":
            return sleep(1)
        if how == "publish":
            return publish("x", 1)
        return None

    @misused.handler(validator=validator)
    async def _(how: str) -> Any:
        if how == "type":
            return "no int"
        if how == "waits for itself":
            await gather(handlers_finished(), updated_step.aio("y"))
        return 1

    return await leave.wait()


@workflow
async def defines_wrongly(what: str) -> None:
    async def waits(how: str) -> int:
        return 1

    if what == "validator":
        misused.handler(lambda how: 1, validator=waits)
    elif what == "argument":
        misused.handler(lambda: 1)  # type: ignore[arg-type, call-overload]
    elif what == "nothing":
        misused.handler(3)  # type: ignore[call-overload]


@workflow
def defines_wrongly_def() -> None:
    async def waits(how: str) -> int:
        return 1

    misused.handler(waits)


@workflow
async def answers_first(name: str) -> str:
    """Takes what it was started with, and ends."""
    got: list[str] = []

    @add.handler
    async def _(item: Item) -> Basket:
        got.append(await updated_step.aio(f"{name} {item.name}"))
        return Basket([item])

    await handlers_finished()
    return ",".join(got)


@workflow
async def takes_none(gate: str) -> str:
    return await updated_gate(gate)


@workflow
async def takes_none_parked() -> str:
    return await leave.wait()
