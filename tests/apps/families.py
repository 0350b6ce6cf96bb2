"""Runs that start other runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from supervisor import RunFailed, current, first, gather, sleep, start, step, sync, workflow
from tests.apps.gates import at_gate
from tests.harness import note


@dataclass
class Parcel:
    n: int
    label: str = ""


@step
def work(n: int) -> int:
    note("work", n)
    return n * 2


@step
async def gate(name: str) -> str:
    await at_gate(name)
    return name


@workflow
async def kid(n: int) -> int:
    return await work.aio(n)


@workflow
def kid_def(n: int) -> int:
    return work(n)


@workflow
async def typed_kid(parcel: Parcel) -> Parcel:
    return Parcel(parcel.n + 1, parcel.label + "!")


@workflow
async def bad_kid(n: int, gate_name: str = "") -> None:
    if gate_name:
        await gate(gate_name)
    raise LookupError(f"kid {n}")


@workflow
async def gated_kid(name: str) -> str:
    return await gate(name)


@workflow(queue="other")
async def on_other_queue() -> str:
    return "other"


@workflow
async def calls() -> list[Any]:
    parcel = await typed_kid(Parcel(1, "p"))
    assert type(parcel) is Parcel
    return [await kid(1), await kid_def(2), parcel, await on_other_queue(), await gather(kid(3), work.aio(4), kid_def(5))]


@workflow
def calls_def() -> list[Any]:
    started = sync.start(kid, 4)
    return [kid.sync(1), kid_def.sync(2), *sync.gather(kid.aio(3), work.aio(5)), started.result()]


@workflow
async def starts(n: int) -> list[Any]:
    runs = [await start(kid, 100 + at) for at in range(n)]
    ids = [str(run.id) for run in runs]
    return [ids, [await run.result() for run in runs], await gather(*(run.result() for run in runs))]


@workflow
async def starts_and_leaves() -> str:
    run = await start(gated_kid.options(parent_close="abandon"), "left")
    return str(run.id)


@workflow
async def fans_out(base: int, n: int) -> int:
    return sum(await gather(*(kid(base + at) for at in range(n))))


@workflow
async def generations(depth: int) -> int:
    return 1 + await generations(depth - 1) if depth else 0


@workflow
async def catches(gate_name: str) -> list[str]:
    told = []
    try:
        await bad_kid(1)
    except RunFailed as error:
        told.append(f"{error.workflow} {type(error.__cause__).__name__} {error.__cause__}")
    try:
        await gather(gated_kid(gate_name), bad_kid(2))  # the failure is told before the other one ends
    except RunFailed as error:
        told.append(f"{error.workflow} {error.__cause__}")
    return told


@workflow
async def waits_for_either(gate_name: str) -> Any:
    return await first(kid=gated_kid(gate_name), late=sleep(0.3))


@workflow
async def waits_for_either_step(gate_name: str) -> Any:
    return await first(kid=kid(1), step=gate(gate_name))


@workflow
async def keyed() -> None:
    await start(kid.options(key="k"), 1)


@workflow
async def delayed() -> int:
    run = await start(kid.options(delay=0.3, priority=0), 1)
    return await run.result()


@workflow
async def wrong_input() -> int:
    return await kid("x")  # type: ignore[arg-type]


@workflow
async def who() -> str:
    return str(current().run_id)


@workflow
async def asks_who() -> list[str]:
    return [await who(), str(current().run_id)]
