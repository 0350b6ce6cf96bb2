"""Steps that end their own process, in every place where steps run, and neighbours that run beside them."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
from pathlib import Path

from supervisor import Transaction, gather, step, workflow
from tests.harness import eventually, note, wait_for_file

NEIGHBOURS = 10


def die(how: str) -> int:
    note("deadly", how, os.getpid())
    logging.getLogger("shop").warning("about to die by %s", how)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(3)
    elif how == "abort":
        os.abort()
    elif how == "libc":  # nothing tells the parent which step it was, but that it was the only one
        ctypes.CDLL(None).kill(os.getpid(), signal.SIGKILL)
    elif how == "once" and len(beside("deadly", "once")) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


def beside(*words: str) -> list[list[str]]:
    """Notes of this test that begin with these words."""
    lines = [line.split() for line in Path(os.environ["TEST_EFFECTS"]).read_text().splitlines()]
    return [line for line in lines if line[: len(words)] == list(words)]


def company() -> bool:
    """Whether all neighbours are executing in this process."""
    return sum(line[2] == str(os.getpid()) for line in beside("neighbour")) >= NEIGHBOURS


@step(run="thread")
def in_thread(how: str, alone: bool) -> int:
    eventually(lambda: alone or company(), 30, "neighbours in this process")
    return die(how)


@step
async def in_task(how: str, alone: bool) -> int:
    while not (alone or company()):
        await asyncio.sleep(0.01)
    return die(how)


@step(run="inline")
def inline(how: str, alone: bool) -> int:
    return die(how)


@step(transactional=True)
def in_transaction(tx: Transaction, how: str, alone: bool) -> int:
    eventually(lambda: alone or company(), 30, "neighbours in this process")
    return die(how)


@step
def promoted(how: str) -> int:
    return 1 if how == "" else die(how)


@workflow(queue="deadly")
async def deadly(place: str, how: str, alone: bool = False) -> int:
    if place == "code":
        return die(how)
    if place == "promoted":
        for _ in range(60):
            await promoted.aio("")
        return await promoted.aio(how)
    if place == "inline":
        return await inline.aio(how, alone)
    if place == "task":
        return await in_task(how, alone)
    if place == "transaction":
        return await in_transaction.aio(how, alone)
    return await in_thread.aio(how, alone)


@step(run="thread")
def sits_in_a_thread(number: int) -> int:
    note("neighbour", number, os.getpid())
    wait_for_file("enough")
    return number


@step
async def waits_in_a_task(number: int) -> int:
    note("neighbour", number, os.getpid())
    while not (Path(os.environ["TEST_EFFECTS"]).parent / "enough").exists():
        await asyncio.sleep(0.01)
    return number


@workflow(queue="deadly")
async def neighbour(number: int) -> int:
    return await (sits_in_a_thread.aio(number) if number % 2 else waits_in_a_task(number))


@workflow(queue="deadly")
async def two_at_once(how: str) -> list[int]:
    return await gather(in_thread.aio(how, True), sits_in_a_thread.aio(1))
