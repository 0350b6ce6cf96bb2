"""Runs that somebody looks at in a browser: some wait, some fail, some end."""

from __future__ import annotations

from supervisor import CompleteLater, Retry, Signal, Update, publish, sleep, step, workflow

DASHED_GO = Signal("dashed_go", str)
DASHED_ASKED = Update("dashed_asked", int, int)


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


@step
def dashed_ask() -> str:
    raise CompleteLater(timeout=86_400)


@workflow(queue="dashed")
async def dashed_outside() -> str:
    return await dashed_ask.aio()


@workflow(queue="dashed")
async def dashed_answers() -> int:
    """Doubles what it is asked, until it may go."""

    @DASHED_ASKED.handler
    def asked(number: int) -> int:
        return 2 * number

    await DASHED_GO.wait()
    return 0
