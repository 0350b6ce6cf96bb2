"""Runs that somebody looks at in a browser: some wait, some fail, some end."""

from __future__ import annotations

from supervisor import CompleteLater, Retry, Signal, Update, continue_as_new, current, gather, publish, sleep, step, workflow

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


@step(retry=Retry(max_attempts=2, initial=0.001, maximum=0.001))
def dashed_second(n: int) -> int:
    """Fails once."""
    if current().attempt == 1:
        raise ConnectionError("once")
    return n


@workflow(queue="dashed")
async def dashed_stumbles(steps: int, ends: bool) -> str:
    """Every tenth step fails once; then all is over, or the last one fails for weeks."""
    for n in range(steps):
        await (dashed_said.aio(str(n)) if n % 10 else dashed_second.aio(n))
    return "over" if ends else await dashed_failing.aio("it")


@workflow(queue="dashed")
async def dashed_chain(left: int) -> int:
    if left:
        continue_as_new(left - 1)
    await sleep(3e6)
    return left


@step(retry=Retry(max_attempts=1))
def dashed_refused() -> None:
    raise ValueError("refused")


@workflow(queue="dashed")
async def dashed_ends_badly() -> None:
    await dashed_refused.aio()


@step
def dashed_ask() -> str:
    raise CompleteLater(timeout=86_400)


@workflow(queue="dashed")
async def dashed_outside() -> str:
    return await dashed_ask.aio()


@workflow(queue="dashed")
async def dashed_many_outside(tokens: int) -> None:
    await gather(*(dashed_ask.aio() for _ in range(tokens)))


@workflow(queue="dashed")
async def dashed_answers() -> int:
    """Doubles what it is asked, until it may go."""

    @DASHED_ASKED.handler
    def asked(number: int) -> int:
        return 2 * number

    await DASHED_GO.wait()
    return 0
