"""Sleeps, measured by the database's clock."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from supervisor import first, gather, now, sleep, sleep_until, step, sync, workflow
from supervisor.core import context
from tests.apps.gates import at_gate
from tests.harness import note


@step(transactional=True)
def database_clock(tx: Any) -> datetime:
    clock: datetime = tx.execute("select clock_timestamp()")[0][0]
    return clock


@step(run="inline")
def turn_clock(by_s: float) -> None:
    """As if this machine's clock had been set since the worker was born."""
    context.loop._loop.clock_offset_us += int(by_s * 1e6)


@workflow
async def sleeps(seconds: float, turned_by_s: float = 0.0) -> float:
    """How long the sleep was by the database's clock."""
    if turned_by_s:
        await turn_clock.aio(turned_by_s)
    begun = await database_clock.aio()
    await sleep(seconds)
    took = (await database_clock.aio()) - begun
    return took.total_seconds()


@workflow
def sleeps_def(seconds: float) -> float:
    begun = database_clock()
    sync.sleep(timedelta(seconds=seconds))
    return (database_clock() - begun).total_seconds()


@workflow
async def sleeps_until(in_s: float) -> float:
    """How late it woke, by the database's clock; negative is too early."""
    when = (await database_clock.aio()) + timedelta(seconds=in_s)
    await sleep_until(when)
    return ((await database_clock.aio()) - when).total_seconds()


@workflow
async def sleeps_in_branches() -> list[str]:
    order = []

    async def branch(seconds: float, label: str) -> None:
        await sleep(seconds)
        order.append(label)

    await gather(branch(0.3, "c"), branch(0.1, "a"), branch(0.2, "b"), sleep(0))
    winner, value = await first(long=sleep(1000), short=sleep(0.05))
    assert value is None
    return [*order, winner]


@workflow
async def long_sleep(seconds: float) -> list[datetime]:
    note("asleep", seconds)
    before = now()
    await sleep(seconds)
    return [before, now()]


@step
async def stands(gate: str) -> None:
    await at_gate(gate)


@workflow(timeout=0.7)
async def limited(seconds: float, gate: str = "") -> str:
    await sleep(seconds)
    if gate:
        await stands(gate)
    return "in time"


@workflow(timeout=timedelta(seconds=0.7))
def limited_def(seconds: float) -> str:
    sync.sleep(seconds)
    return "in time"


@workflow
async def naive() -> None:
    await sleep_until(datetime(2020, 1, 1))


@workflow
async def negative() -> None:
    await sleep(-1)
