"""Updates: name and two types once; what a handler takes, what a validator takes, what the sender gives and is given."""

from __future__ import annotations

from dataclasses import dataclass

from supervisor import AsyncClient, AsyncUpdateHandle, Client, Update, UpdateHandle, handlers_finished, step, workflow


@dataclass
class Item:
    name: str


add = Update("add", Item, int)
clear = Update("clear")
size = Update("size", returns=int)
note = Update("note", str)

reveal_type(add)  # R: Update[Item, int]
reveal_type(clear)  # R: Update[None, None]
reveal_type(size)  # R: Update[None, int]
reveal_type(note)  # R: Update[str, None]


@step
async def priced(name: str) -> int:
    return 1


@workflow
async def shop() -> int:
    def check(item: Item) -> None: ...

    async def put(item: Item) -> int:
        return await priced(item.name)

    async def wrong_answer(item: Item) -> str:
        return "x"

    def wrong_argument(item: int) -> int:
        return item

    add.handler(put)
    add.handler(put, validator=check)
    add.handler(lambda item: len(item.name), validator=check)
    size.handler(lambda: 1)
    add.handler(wrong_answer)  # E: arg-type reportCallIssue
    add.handler(wrong_argument)  # E: arg-type reportCallIssue

    @add.handler(validator=check)
    async def again(item: Item) -> int:
        return await put(item)

    reveal_type(await handlers_finished())  # R: None
    return await again(Item("x"))


def outside(client: Client, run_id: str) -> None:
    run = client.start(shop)
    reveal_type(run.update(add, Item("x")))  # R: int
    reveal_type(run.update(size))  # R: int
    reveal_type(run.update(add, Item("x"), wait_for="accepted"))  # R: UpdateHandle[int]
    reveal_type(run.update(add, Item("x"), wait_for="accepted").result(timeout=1))  # R: int
    reveal_type(client.update(run_id, size, wait_for="admitted"))  # R: UpdateHandle[int]
    reveal_type(client.update_with_start(add.message(Item("x"), id="u"), shop))  # R: UpdateHandle[int]
    run.update(add, "x")  # E: misc reportCallIssue
    run.update(add)  # E: arg-type reportCallIssue
    run.update(size, 1)  # E: misc reportCallIssue


async def outside_async(client: AsyncClient) -> None:
    run = await client.start(shop)
    reveal_type(await run.update(add, Item("x")))  # R: int
    handle = await client.update(run, add, Item("x"), wait_for="accepted")
    reveal_type(handle)  # R: AsyncUpdateHandle[int]
    reveal_type(await handle)  # R: int
    await run.update(note, 3)  # E: misc reportCallIssue


def holds(one: UpdateHandle[int], two: AsyncUpdateHandle[int]) -> None: ...
