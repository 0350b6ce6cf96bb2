"""Runs that somebody looks at in a browser: some wait, some fail, some end."""

from __future__ import annotations

from supervisor import Retry, Signal, publish, sleep, step, workflow

DASHED_GO = Signal("dashed_go", str)


@step(retry=Retry(max_attempts=50, initial=3e6, maximum=3e6))
def dashed_failing(word: str) -> str:
    raise ValueError(f"the gateway does not like {word}")


@step
def dashed_said(word: str) -> str:
    return f"said {word}"


@workflow(queue="dashed")
async def dashed_waits(word: str) -> str:
    """Says something, then waits for a signal."""
    publish("word", word)
    await dashed_said.aio(word)
    return await DASHED_GO.wait()


@workflow(queue="dashed")
async def dashed_fails(word: str) -> str:
    return await dashed_failing.aio(word)


@workflow(queue="dashed")
async def dashed_counts(steps: int) -> int:
    for n in range(steps):
        await dashed_said.aio(str(n))
    await sleep(0.001)
    return steps
