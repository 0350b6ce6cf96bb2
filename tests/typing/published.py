"""Published state and queries: a key's type is asked for, a Query's answer and argument are its own."""

import asyncio
from dataclasses import dataclass

from supervisor import AsyncClient, Client, Query, publish, step, workflow


@dataclass
class Progress:
    done: int
    of: int


progress = Query("progress", Progress)
size_of = Query("size_of", int, takes=str)
anything = Query("anything")


@step
def load(file: str) -> int:
    return len(file)


@workflow
async def etl(files: list[str]) -> int:
    sizes: dict[str, int] = {}

    @progress.handler
    def standing() -> Progress:
        return Progress(len(sizes), len(files))

    size_of.handler(lambda file: sizes[file])
    progress.handler(lambda: 3)  # E: arg-type reportArgumentType
    publish("progress", Progress(0, len(files)))
    publish(3, 3)  # E: arg-type reportArgumentType
    await load.aio(files[0])
    reveal_type(standing())  # R: Progress
    return 1


with Client("postgresql:///") as client:
    run = client.start(etl, ["a"])
    reveal_type(run.published("progress"))  # R: Any
    reveal_type(run.published("progress", Progress))  # R: Progress | None
    reveal_type(client.published(run))  # R: Mapping[str, Any]
    reveal_type(run.query(progress))  # R: Progress
    reveal_type(run.query(size_of, "a", timeout=3))  # R: int
    reveal_type(run.query(anything))  # R: Any
    reveal_type(run.query("progress"))  # R: Any
    reveal_type(client.query(run, progress))  # R: Progress
    reveal_type(client.query(run.id, size_of, "a"))  # R: int
    run.query(size_of)  # E: arg-type reportCallIssue
    run.query(size_of, 3)  # E: misc reportArgumentType
    run.query(progress, "a")  # E: misc reportArgumentType


async def main() -> None:
    async with AsyncClient("postgresql:///") as c:
        run = await c.start(etl, ["a"])
        reveal_type(await run.published("progress", Progress))  # R: Progress | None
        reveal_type(await run.query(progress))  # R: Progress
        reveal_type(await c.query(run, size_of, "a"))  # R: int


asyncio.run(main())
