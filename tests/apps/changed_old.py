"""Workflows as they were deployed first; `changed_new` has the same names with other code."""

from __future__ import annotations

import msgspec

from supervisor import gather, sleep, step, workflow
from tests.apps.gates import at_gate
from tests.harness import note


class Figures(msgspec.Struct):
    lines: int


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
    note("gate", n)
    await at_gate("go")
    return n


@step
def fails() -> None:
    raise ValueError("as recorded")


@workflow(version="1")
async def changed_kid() -> int:
    return 5


@workflow(version="1")
async def renamed() -> int:
    return await a.aio(1) + await gate(1)


@workflow(version="1")
async def inserted() -> int:
    return await a.aio(1) + await gate(1)


@workflow(version="1")
async def removed() -> int:
    return await a.aio(1) + await b.aio(2) + await gate(1)


@workflow(version="1")
async def swapped() -> int:
    return await a.aio(1) + await b.aio(2) + await gate(1)


@workflow(version="1")
async def returns_early() -> int:
    return await a.aio(1) + await gate(1)


@workflow(version="1")
async def raises_early() -> int:
    return await a.aio(1) + await gate(1)


@workflow(version="1")
async def sleeps_instead() -> int:
    return await a.aio(1) + await gate(1)


@workflow(version="1")
async def child_instead() -> int:
    return await a.aio(1) + await gate(1)


@workflow(version="1")
async def step_instead_of_child() -> int:
    return await changed_kid() + await gate(1)


@workflow(version="1")
async def step_instead_of_sleep() -> int:
    await sleep(0)
    return 1 + await gate(1)


@workflow(version="1")
async def gathered_otherwise() -> int:
    return sum(await gather(a.aio(1), b.aio(2))) + await gate(1)


@workflow(version="1")
async def gathered_more() -> int:
    await gather(a.aio(1))
    return await b.aio(2) + await gate(1)


@workflow(version="1")
async def other_result() -> int:
    return (await figures.aio()).lines + await gate(1)


@workflow(version="1")
async def other_input(n: int) -> int:
    return await a.aio(n) + await gate(1)


@workflow(version="1")
async def handled() -> int:
    try:
        await fails.aio()
    except ValueError:
        await a.aio(1)
    return await gate(1)


@workflow(version="1")
def in_def() -> int:
    return a(1) + gate.sync(1)


@workflow(version="1")
async def unchanged(n: int) -> int:
    return await a.aio(n) + await b.aio(n) + await gate(n)


@workflow(version="1")
async def grown(n: int) -> int:
    return await a.aio(n) + await gate(n)
