"""One workflow in each of three queues."""

from supervisor import step, workflow


@step(run="inline")
def add_one(n: int) -> int:
    return n + 1


@workflow(queue="first")
async def of_first(n: int) -> int:
    return await add_one.aio(n)


@workflow(name="ten_steps_in_first", queue="first")
async def ten_steps(n: int) -> int:
    for _ in range(10):
        n = await add_one.aio(n)
    return n


@workflow(queue="second")
async def of_second(n: int) -> int:
    return await add_one.aio(n)


@workflow(queue="third")
async def of_third(n: int) -> int:
    return await add_one.aio(n)
