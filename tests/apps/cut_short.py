"""Runs that somebody ends from outside: asleep, at a gate, with a parent that says what it was told."""

from __future__ import annotations

from typing import Any

from supervisor import RunTerminated, gather, sleep, step, workflow
from tests.apps.taken import afterwards, in_task, in_thread, in_transaction


@step(transactional=True)
def cut_by_a_step(tx: Any, run_id: str) -> bool:
    tx.execute("insert into kept (word) values (%s)", (f"by a step {run_id}",))
    [(ended,)] = tx.execute("select supervisor.terminate(%s::uuid)", (run_id,))
    return bool(ended)


@workflow
async def cut_another(run_id: str) -> str:
    try:
        return str(await cut_by_a_step.aio(run_id))
    except Exception as error:  # noqa: BLE001 - what the test wants to know
        return str(error)


@workflow
async def cut_asleep(seconds: float) -> None:
    await sleep(seconds)


@workflow
async def cut_threaded(word: str, gate: str) -> int:
    time = await in_thread.aio(word, gate)
    await afterwards.aio(word)
    return time


@workflow
async def cut_tasked(word: str, gate: str) -> int:
    time = await in_task(word, gate)
    await afterwards.aio(word)
    return time


@workflow
async def cut_transacted(word: str, gate: str) -> int:
    time = await in_transaction.aio(word, gate)
    await afterwards.aio(word)
    return time


@workflow
async def cut_parent(word: str, gate: str) -> str:
    """What its child ended with."""
    try:
        return str(await cut_threaded(word, gate))
    except RunTerminated as error:
        return f"{type(error).__name__} of {error.workflow}: {error.why}"


@workflow
async def cut_parent_of_sleepers(kids: int) -> str:
    try:
        await gather(*(cut_asleep(3600.0) for _ in range(kids)))
    except RunTerminated as error:
        return type(error).__name__
    return "none of them was cut short"
