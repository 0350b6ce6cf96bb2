"""Functions called from the right and from the wrong place."""

from __future__ import annotations

from typing import Any

from supervisor import first, gather, start, step, workflow
from tests.harness import note


@step
def add(a: int, b: int) -> int:
    return a + b


@step
def add_noted(a: int, b: int) -> int:
    note("ran")
    return a + b


@step
async def add_async(a: int, b: int) -> int:
    return a + b


@workflow
async def ordinary(n: int) -> int:
    return await add.aio(n, 1)


@workflow
async def calls_plain(n: int) -> int:
    return n


@workflow
async def calls_wrongly(wrong: str) -> Any:
    if wrong == "def step without aio":
        return add(add_noted.fn.__code__.co_argcount, 2)
    if wrong == "first without members":
        return await first()
    if wrong == "gather of a value":
        return await gather(add.aio(1, 2), 42)  # type: ignore[arg-type]
    if wrong == "gather of an asyncio coroutine function":
        return await gather(calls_plain.fn)  # type: ignore[arg-type]
    return await start(add, 1, 2)  # type: ignore[call-overload]


@workflow
def calls_wrongly_def(wrong: str) -> Any:
    if wrong == "async step in def workflow":
        return add_async(1, 2)
    return ordinary(1)


@workflow
async def defaulted(n: int, also: int = 2, items: list[int] = [], note_: str | None = None) -> list[Any]:  # noqa: B006
    return [n, also, items, note_]


@workflow
async def mutates(items: list[int] = []) -> list[int]:  # noqa: B006
    items.append(1)
    return items
