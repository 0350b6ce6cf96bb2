"""Runs whose steps stand at a gate of their own, to be looked at while they run: in a thread, in a task, in a transaction."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from supervisor import current, step, workflow
from tests.harness import note, wait_for_file


def times_begun(word: str) -> int:
    """How often a step has noted that it began with *word*, this time included."""
    lines = Path(os.environ["TEST_EFFECTS"]).read_text().splitlines()
    return sum(line.split()[:2] == ["standing", word] for line in lines)


def stands(word: str, gate: str) -> int:
    note("standing", word, os.getpid(), int(current().redelivered))
    time = times_begun(word)
    wait_for_file(gate)
    note("left", word, time)
    return time


@step(run="thread")
def in_thread(word: str, gate: str) -> int:
    return stands(word, gate)


@step
async def in_task(word: str, gate: str) -> int:
    note("standing", word, os.getpid(), int(current().redelivered))
    time = times_begun(word)
    path = Path(os.environ["TEST_EFFECTS"]).parent / gate
    while not path.exists():
        await asyncio.sleep(0.01)
    note("left", word, time)
    return time


@step(transactional=True)
def in_transaction(tx: Any, word: str, gate: str) -> int:
    tx.execute("insert into kept (word) values (%s)", (word,))
    return stands(word, gate)


@step(run="inline")
def afterwards(word: str) -> str:
    note("afterwards", word)
    return word


@workflow
async def threaded(word: str, gate: str) -> int:
    """The time whose result counted."""
    time = await in_thread.aio(word, gate)
    await afterwards.aio(word)
    return time


@workflow
async def tasked(word: str, gate: str) -> int:
    time = await in_task(word, gate)
    await afterwards.aio(word)
    return time


@workflow
async def transacted(word: str, gate: str) -> int:
    time = await in_transaction.aio(word, gate)
    await afterwards.aio(word)
    return time


@workflow
async def ends_at_once(word: str, gate: str) -> int:
    """Its last step's result and its outcome are of one batch."""
    return await in_thread.aio(word, gate)


@workflow
async def parent(word: str, gate: str) -> int:
    return await ends_at_once(word, gate)
