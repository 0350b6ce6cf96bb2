"""Runs that somebody's transactions start, signal, cancel, update and complete; each tells what has reached it."""

from __future__ import annotations

from supervisor import Cancelled, CompleteLater, Retry, Signal, Update, current, gather, shield, step, workflow
from tests.apps.gates import at_gate
from tests.harness import note

END = "end"
within_told = Signal("within_told", str)
within_asked = Update("within_asked", str, str)


@step
def within_noted(verb: str, name: str, word: str) -> str:
    note(verb, name, word)
    return word


@step
async def within_held(gate: str) -> None:
    """Keeps its run in memory."""
    note("held", gate)
    await at_gate(gate, 120)


@step
def within_handed(name: str) -> str:
    note("token", name, current().token())
    raise CompleteLater


@step(retry=Retry(max_attempts=3, initial=3_000_000, maximum=3_000_000))  # full jitter: any time from now on
def within_failing(name: str) -> str:
    raise ValueError(f"{name} always fails")


@workflow
async def within_started(name: str, word: str) -> list[str]:
    return [await within_noted.aio("start", name, word)]


@workflow
async def within_open(name: str, gate: str = "") -> list[str]:
    """What it was told and asked, until it is told the end; with a gate it does not leave memory meanwhile."""
    got: list[str] = []

    @within_asked.handler
    async def _(word: str) -> str:
        if word != END:
            got.append(await within_noted.aio("update", name, word))
        return f"answer to {word}"

    async def listen() -> None:
        async for word in within_told:
            if word == END:
                break
            got.append(await within_noted.aio("signal", name, word))

    try:
        await (gather(listen(), within_held(gate)) if gate else listen())
    except Cancelled as why:
        await shield(within_noted.aio("cancel", name, why.reason))
        raise
    return got


@workflow
async def within_token(name: str, gate: str = "") -> list[str]:
    """What its step was completed with."""

    async def handed() -> str:
        word = await within_handed.aio(name)
        return word if word == END else await within_noted.aio("complete", name, word)

    word = (await gather(handed(), within_held(gate)))[0] if gate else await handed()
    return [] if word == END else [word]


@workflow
async def within_backoff(name: str) -> str:
    return await within_failing.aio(name)


@workflow
async def within_failed(name: str) -> str:
    raise ValueError(f"{name} fails")
