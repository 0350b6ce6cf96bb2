"""The same workflows with other code. `forbidden` would be a new effect of a run whose history the code does not match."""

from __future__ import annotations

import msgspec

from supervisor import gather, sleep, step, workflow
from supervisor.sync import sleep as sleep_now
from tests.apps.gates import at_gate
from tests.harness import note


class Figures(msgspec.Struct):
    rows: int


@step
def a(n: int) -> int:
    note("a", n)
    return n


@step
def b(n: int) -> int:
    note("b", n)
    return n


@step
def figures() -> Figures:
    return Figures(3)


@step
async def gate(n: int) -> int:
    await at_gate("go")
    return n


@step
def forbidden() -> int:
    note("forbidden")
    return 0


@step
def fails() -> None:
    raise ValueError("as recorded")


@step
def added(n: int) -> int:
    note("added", n)
    return 100


@workflow(version="1")
async def changed_kid() -> int:
    await forbidden.aio()
    return 5


@workflow(version="1")
async def renamed() -> int:
    return await forbidden.aio() + await gate(1)


@workflow(version="1")
async def inserted() -> int:
    await forbidden.aio()
    return await a.aio(1) + await gate(1)


@workflow(version="1")
async def removed() -> int:
    return await a.aio(1) + await forbidden.aio()


@workflow(version="1")
async def swapped() -> int:
    return await b.aio(2) + await a.aio(1) + await gate(1)


@workflow(version="1")
async def returns_early() -> int:
    return 1


@workflow(version="1")
async def raises_early() -> int:
    raise LookupError("new")


@workflow(version="1")
async def sleeps_instead() -> int:
    await sleep(0)
    return await forbidden.aio()


@workflow(version="1")
async def child_instead() -> int:
    return await changed_kid()


@workflow(version="1")
async def step_instead_of_child() -> int:
    return await forbidden.aio() + await gate(1)


@workflow(version="1")
async def step_instead_of_sleep() -> int:
    return await forbidden.aio() + await gate(1)


@workflow(version="1")
async def gathered_otherwise() -> int:
    return sum(await gather(b.aio(2), a.aio(1), forbidden.aio())) + await gate(1)


@workflow(version="1")
async def gathered_more() -> int:
    await gather(a.aio(1), forbidden.aio())
    return await b.aio(2) + await gate(1)


@workflow(version="1")
async def other_result() -> int:
    await figures.aio()
    return await forbidden.aio()


@workflow(version="1")
async def other_input(n: str) -> int:
    return await forbidden.aio()


@workflow(version="1")
async def handled() -> int:
    await fails.aio()
    return await forbidden.aio()


@workflow(version="1")
def in_def() -> int:
    sleep_now(0)
    return a(1) + forbidden()


@workflow(version="1")
async def unchanged(n: int) -> int:
    return await a.aio(n) + await b.aio(n) + await gate(n)


@workflow(version="1")
async def grown(n: int) -> int:
    return await a.aio(n) + await gate(n) + await added.aio(n)
