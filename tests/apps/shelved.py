"""Runs in two queues that one worker serves, of which tests pause the one."""

from __future__ import annotations

from supervisor import Retry, Signal, sleep, step, workflow
from supervisor.core.context import current
from tests.harness import note, wait_for_file

SHELVED_GO = Signal("shelved_go", str)
SHUT, OPEN = "shelved_shut", "shelved_open"


@step
def shelved_note(word: str) -> str:
    note("did", word)
    return word


@step
def shelved_gate(word: str, gate: str) -> str:
    note("at", word)
    wait_for_file(gate)
    return word


@step(retry=Retry(max_attempts=3, initial=3e6, maximum=3e6))
def shelved_twice(word: str) -> str:
    note("try", word, current().attempt)
    if current().attempt == 1:
        raise ValueError(word)
    return word


@workflow(queue=SHUT)
async def shelved_plain(word: str) -> str:
    return await shelved_note.aio(word)


@workflow(queue=OPEN)
async def shelved_beside(word: str) -> str:
    return await shelved_note.aio(word)


@workflow(queue=SHUT)
async def shelved_two_steps(word: str, gate: str) -> str:
    await shelved_gate.aio(word, gate)
    return await shelved_note.aio(word)


@workflow(queue=SHUT)
async def shelved_asleep(word: str, seconds: float) -> str:
    await sleep(seconds)
    return await shelved_note.aio(word)


@workflow(queue=SHUT)
async def shelved_signalled(word: str) -> str:
    return await shelved_note.aio(await SHELVED_GO.wait())


@workflow(queue=SHUT)
async def shelved_retried(word: str) -> str:
    return await shelved_twice.aio(word)

