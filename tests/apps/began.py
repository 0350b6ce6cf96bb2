"""Waits of every kind, in memory and out of it: when each began, and how long it took."""

from __future__ import annotations

from supervisor import Signal, Update, first, gather, handlers_finished, sleep, step, workflow

began_go = Signal("began_go", str)
began_poke = Update("began_poke", str, str)


@step(run="inline")
def began_step(label: str) -> str:
    return label


@workflow
async def began_sleep(label: str, seconds: float) -> str:
    await began_step.aio(label)
    await sleep(seconds)
    return await began_step.aio("slept")


@workflow
async def began_first_sleep(seconds: float) -> None:
    await sleep(seconds)


@workflow
async def began_first_sleeps(seconds: float) -> None:
    await gather(sleep(seconds), sleep(seconds))


@workflow
async def began_first_timeout(seconds: float) -> bool:
    try:
        await began_go.wait(timeout=seconds)
    except TimeoutError:
        return True
    return False


@workflow
async def began_first_children(seconds: float) -> None:
    await gather(began_first_sleep(seconds), began_first_sleep(seconds))


@workflow
async def began_children(label: str, seconds: float) -> None:
    await began_step.aio(label)
    await gather(began_first_sleep(seconds), began_first_sleep(seconds / 2))


@workflow
async def began_signal(label: str) -> str:
    """Takes updates while it waits."""

    @began_poke.handler
    async def _(value: str) -> str:
        return value

    await began_step.aio(label)
    return await began_go.wait()


@workflow
async def began_race(label: str) -> str:
    await began_step.aio(label)
    winner, _ = await first(go=began_go.wait(), late=sleep(3600))
    return winner


@workflow
async def began_handlers(label: str) -> None:
    @began_poke.handler
    async def _(value: str) -> str:
        await sleep(2.2)
        return value

    await began_go.wait()
    await began_step.aio(label)
    await handlers_finished()
