"""The async client, within, options and `workflow.start`: typed as the sync client is."""

import asyncio
from collections.abc import AsyncIterator

import psycopg

from supervisor import AsyncClient, AsyncRun, Client, Run, step, workflow


@step
def double(n: int) -> int:
    return 2 * n


@workflow
async def ordered(order_id: int, cents: int = 1) -> dict[str, int]:
    return {"booked": await double.aio(order_id)}


async def numbers() -> AsyncIterator[int]:
    yield 1


async def main(conn: psycopg.AsyncConnection) -> None:
    async with AsyncClient("postgresql:///", schema="supervisor") as client:
        reveal_type(client)  # R: AsyncClient
        run = await client.start(ordered, 1, cents=2)
        reveal_type(run)  # R: AsyncRun[dict[str, int]]
        reveal_type(await run)  # R: dict[str, int]
        reveal_type(await run.result(timeout=3))  # R: dict[str, int]
        reveal_type((await run.status()).status)  # R: str
        reveal_type(await run.cancel("why"))  # R: bool
        reveal_type(await client.start("ordered", 1))  # R: AsyncRun[Any]
        reveal_type(await client.start_many(ordered, numbers(), key=str))  # R: AsyncBatch[dict[str, int]]
        reveal_type(await client.within(conn).start(ordered, 1))  # R: AsyncRun[dict[str, int]]
        reveal_type(await client.cancel(run))  # R: bool
        reveal_type(await client.retry(run))  # R: AsyncRun[dict[str, int]]
        reveal_type(await client.pause(run, actor="ann"))  # R: str
        reveal_type(await client.complete("pgst_x"))  # R: bool
        await client.start(ordered, "1")  # E: call-overload reportArgumentType
        await client.start(ordered)  # E: call-overload reportCallIssue
        client.result(3)  # E: arg-type reportArgumentType

    reveal_type(await ordered.start.aio(1))  # R: AsyncRun[dict[str, int]]
    await ordered.start.aio("1")  # E: arg-type reportArgumentType


def blocking(conn: psycopg.Connection, one: Run[int], other: AsyncRun[int]) -> None:
    reveal_type(ordered.start(1))  # R: Run[dict[str, int]]
    reveal_type(ordered.start(1, cents=2).result())  # R: dict[str, int]
    reveal_type(ordered.options(key="k", on_conflict="replace", attributes={"tenant": "a"}, batch="b").start(1))  # R: Run[dict[str, int]]
    reveal_type(one == other)  # R: bool
    reveal_type(one.cancel())  # R: bool
    ordered.start("1")  # E: arg-type reportArgumentType
    ordered.options(on_conflict="ignore")  # E: arg-type reportArgumentType
    ordered.options(attributes=["a"])  # E: arg-type reportArgumentType
    with Client() as client:
        within = client.within(conn)
        reveal_type(within.start(ordered.options(key="k"), 1))  # R: Run[dict[str, int]]
        reveal_type(within.cancel(one, "why"))  # R: bool
        reveal_type([info.key for info in within.list()])  # R: list[str | None]
        within.start(ordered, "1")  # E: call-overload reportArgumentType
        one.cancel(5)  # E: arg-type reportArgumentType


asyncio.run(main(psycopg.AsyncConnection.__new__(psycopg.AsyncConnection)))
