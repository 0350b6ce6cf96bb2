"""Runs that leave memory again and again, with steps in their `finally`."""

from __future__ import annotations

from typing import Any

from supervisor import current, first, gather, now, random, sleep, start, step, sync, uuid4, workflow
from tests.apps.gates import at_gate
from tests.harness import note


@workflow
async def tiny(n: int) -> int:
    return n


@step
def clean_def(who: str) -> str:
    note("cleaned", who)
    return who


@step
async def clean(who: str) -> str:
    note("cleaned", who)
    return who


@step(transactional=True)
def clean_tx(tx: Any, who: str) -> str:
    note("cleaned", who)
    return who


@workflow
async def cleaner(who: str) -> str:
    note("cleaned", who)
    return who


@workflow
async def cleans_once(children: int) -> int:
    """Each wait for a child leaves memory; `finally` unwinds each time, and means it once."""
    total = 0
    try:
        for n in range(children):
            total += await tiny(n)
    finally:
        note("unwound", "root")
        await clean("task")
        await clean_def.aio("thread")
        await clean_tx.aio("tx")
        await cleaner("child")
        await (await start(cleaner, "started")).result()
        await sleep(0)
        await gather(clean("gathered"), clean_def.aio("gathered"))
        total += now().year > 2000 and random().random() < 1 and uuid4().version == 4 and current().run_id is not None
    return total


@workflow
async def branches_clean_once(children: int) -> list[Any]:
    """The same in branches within branches."""

    async def inner(who: str) -> int:
        total = 0
        try:
            for n in range(children):
                total += await tiny(n)
        finally:
            note("unwound", who)
            await clean(who)
        return total

    async def outer() -> list[int]:
        try:
            return list(await gather(inner("inner1"), inner("inner2")))
        finally:
            note("unwound", "outer")
            await clean("outer")
            await gather(clean("outer_gathered"))

    try:
        return list(await gather(outer(), first(a=inner("inner3"), late=sleep(3600))))
    finally:
        note("unwound", "root_of_branches")
        await clean("root_of_branches")


@workflow
def def_cleans_once(children: int) -> int:
    total = 0
    try:
        for n in range(children):
            total += tiny.sync(n)
    finally:
        note("unwound", "def")
        clean_def("def")
        clean.sync("def_task")
        sync.sleep(0)
        cleaner.sync("def_child")
    return total


@workflow
async def swallows(children: int) -> int:
    """Catches whatever comes, its own eviction too, and goes on awaiting."""
    total = 0
    for n in range(children):
        while True:
            try:
                total += await tiny(n)
                break
            except BaseException:  # noqa: BLE001 - on purpose
                note("swallowed")
                await clean("swallowed")
    return total


@step
async def stands(gate: str) -> None:
    note("standing", gate)
    await at_gate(gate)


@workflow
async def stands_and_cleans(gate: str) -> None:
    """Inside of a step when its worker ends."""

    async def branch() -> None:
        try:
            await stands(gate)
        finally:
            await clean(f"{gate}_branch")

    try:
        await gather(branch(), clean_def.aio(f"{gate}_before"))
    finally:
        await clean(f"{gate}_root")


@workflow
def stands_and_cleans_def(gate: str) -> None:
    try:
        stands.sync(gate)
    finally:
        clean_def(f"{gate}_def")


@workflow
def def_swallows(children: int) -> int:
    total = 0
    for n in range(children):
        try:
            total += tiny.sync(n)
        except BaseException:  # noqa: BLE001 - on purpose
            note("swallowed_def")
            clean_def("swallowed_def")
    return total


@workflow
async def raises_while_unwinding(children: int) -> int:
    total = 0
    try:
        for n in range(children):
            total += await tiny(n)
    except GeneratorExit:
        raise RuntimeError("while leaving") from None
    return total
