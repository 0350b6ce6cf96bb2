"""Runs that publish: before their first step, between steps, in branches, after whatever delivers in a transaction of its own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from supervisor import Signal, first, gather, publish, sleep, start, step, sync, workflow
from tests.apps.gates import at_gate


heard = Signal("published_heard", str)


@dataclass
class Standing:
    done: int
    of: int


@step
async def published_gate(run: str, name: str) -> str:
    await at_gate(f"{run}.{name}", 120)
    return name


@step
def published_step(value: int) -> int:
    return value


@step(transactional=True)
def published_tx(tx: Any, value: int) -> int:
    tx.execute("select 1")
    return value


@workflow
async def tells_state(run: str) -> str:
    publish("standing", Standing(0, 3))
    publish("stage", "begun")
    for done in range(3):
        await published_step.aio(done)
        publish("standing", Standing(done + 1, 3))
    await published_gate(run, "middle")
    publish("stage", "last")
    await published_gate(run, "end")
    publish("stage", "over")
    return "returned"


@workflow
def tells_def(run: str) -> str:
    sync.publish("stage", "begun")
    published_step(1)
    sync.publish("stage", {"one": [1, None, "x"]})
    published_gate.sync(run, "middle")
    publish("stage", "over")
    return "returned"


@workflow
async def tells_child(value: int) -> int:
    publish("value", value)
    return value


@workflow
async def tells_after(run: str, what: str) -> str:
    """The last delivery before the gate is one of `what`, and only then something is published."""
    if what == "tx":
        await published_tx.aio(1)
    elif what == "timer":
        await sleep(0.01)
    elif what == "child":
        await tells_child(1)
    elif what == "start":
        await start(tells_child, 1)
    elif what == "branches":
        await gather(published_step.aio(1), published_tx.aio(2))
    elif what == "first":
        await first(won=published_tx.aio(1), lost=sleep(3600))
    elif what == "step":
        await published_step.aio(1)
    elif what == "signal":
        await heard.wait()
    publish("after", what)
    await published_gate(run, "middle")
    return what


@workflow
async def tells_in_branches(run: str) -> list[str]:
    async def branch(label: str) -> str:
        publish("last", label)
        await published_gate(run, label)
        publish("last", f"{label} over")
        publish(label, "over")
        return label

    return await gather(*(branch(label) for label in "abc"))


@workflow
async def tells_much(times: int) -> int:
    for n in range(times):
        publish("n", n)
    await published_step.aio(1)
    return times


@workflow
async def tells_every_step(steps: int) -> int:
    for n in range(steps):
        publish("n", await published_step.aio(n))
    return steps


@workflow
async def tells_and_fails() -> None:
    publish("stage", "just before")
    raise ValueError("after it was published")


@workflow
async def tells_wrongly(what: str) -> None:
    if what == "nan":
        publish("x", {"a": [float("nan")]})
    elif what == "object":
        publish("x", object())
    elif what == "big":
        publish("x", "x" * (3 << 20))
    elif what == "key":
        publish("", 1)
    elif what == "long key":
        publish("k" * 201, 1)
    elif what == "nul":
        publish("k\0", 1)
    elif what == "step":
        await in_a_step.aio()


@step
def in_a_step() -> None:
    publish("x", 1)


@workflow
async def never_tells(steps: int) -> int:
    for n in range(steps):
        await published_step.aio(n)
    return steps


@workflow
async def waits_silently(run: str) -> str:
    await published_step.aio(1)
    return await published_gate(run, "middle")


async def not_in_a_run() -> None:
    await asyncio.sleep(0)
    publish("x", 1)
