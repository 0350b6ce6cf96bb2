"""Steps that are completed from outside."""

from __future__ import annotations

from typing import Any

from supervisor import CompleteLater, HeartbeatMissed, Retry, Signal, StepTimeout, current, first, gather, sleep, step, workflow
from tests.harness import note, wait_for_file

HANDED_GO = Signal("handed_go", str)


def _hand_out(word: str, **how: Any) -> int:
    note("token", word, current().attempt, current().token())
    raise CompleteLater(**how)


@step
def handed_in_thread(word: str) -> int:
    return _hand_out(word)


@step(run="inline")
def handed_inline(word: str) -> int:
    return _hand_out(word)


@step(run="process")
def handed_in_process(word: str) -> int:
    return _hand_out(word)


@step
async def handed_in_task(word: str) -> int:
    return _hand_out(word)


@step(at_most_once=True)
def handed_at_most_once(word: str) -> int:
    return _hand_out(word)


@step(transactional=True)
def handed_in_transaction(tx: Any, word: str) -> int:
    return _hand_out(word)


@step(retry=Retry(max_attempts=3, initial=0.001, maximum=0.002))
def handed_retried(word: str) -> int:
    return _hand_out(word)


@step(retry=Retry(max_attempts=2, initial=0.001, maximum=0.002))
def handed_limited(word: str, timeout: float | None, heartbeat: float | None) -> int:
    return _hand_out(word, timeout=timeout, heartbeat=heartbeat)


@step(timeout=1.5)
def handed_with_step_timeout(word: str) -> int:
    return _hand_out(word)


@step
def handed_at_gate(word: str, gate: str) -> int:
    note("token", word, current().attempt, current().token())
    wait_for_file(gate)
    raise CompleteLater


@step
def handed_gate(word: str, gate: str) -> str:
    note("at", word)
    wait_for_file(gate)
    return word


WAYS = {
    "thread": handed_in_thread.aio, "inline": handed_inline.aio, "process": handed_in_process.aio, "task": handed_in_task,
    "at_most_once": handed_at_most_once.aio, "tx": handed_in_transaction.aio, "retried": handed_retried.aio, "step_timeout": handed_with_step_timeout.aio,
}  # fmt: skip


@workflow
async def handed(way: str, word: str) -> int:
    return await WAYS[way](word) + 1


@workflow
def handed_def(word: str) -> int:
    return handed_in_thread(word) + handed_in_task.sync(f"{word}-two")


@workflow
async def handed_caught(way: str, word: str) -> str:
    try:
        return str(await WAYS[way](word))
    except Exception as error:  # noqa: BLE001 - what the test wants to know
        return f"{type(error).__name__}: {error}"


@workflow
async def handed_in_time(word: str, timeout: float | None, heartbeat: float | None) -> str:
    try:
        return str(await handed_limited.aio(word, timeout, heartbeat))
    except (StepTimeout, HeartbeatMissed) as error:
        return type(error).__name__


@workflow
async def handed_early(word: str, gate: str) -> int:
    return await handed_at_gate.aio(word, gate)


@workflow
async def handed_beside(word: str, gate: str) -> list[Any]:
    """One branch goes on from its token while another step executes, so in memory."""

    async def branch() -> int:
        value = await handed_in_thread.aio(word)
        note("went on", word)
        return value

    return list(await gather(branch(), handed_gate.aio(word, gate)))


@step
def handed_quick(word: str, at: int) -> int:
    return at


@workflow
async def handed_busy(word: str, tokens: int, steps: int) -> list[int]:
    """Tokens are completed while other branches go from step to step."""

    async def branch() -> int:
        return sum([await handed_quick.aio(word, at) for at in range(steps)])

    return list(await gather(branch(), *(handed_retried.aio(f"{word}-{at}") for at in range(tokens)), branch()))


@workflow
async def handed_two(word: str) -> list[int]:
    return list(await gather(handed_in_thread.aio(f"{word}-a"), handed_in_thread.aio(f"{word}-b")))


@workflow
async def handed_kid(word: str) -> int:
    return await handed_in_thread.aio(word)


@workflow
async def handed_among(word: str) -> list[Any]:
    """A token, a signal, a child and a sleep at once."""
    return list(await gather(handed_in_thread.aio(word), HANDED_GO.wait(), handed_kid(f"{word}-kid"), sleep(0.1)))


@workflow
async def handed_raced(word: str) -> str:
    winner, value = await first(token=handed_in_thread.aio(word), signal=HANDED_GO.wait())
    return f"{winner} {value}"
