"""Everything from which a record can be made in a run; and one that logs a lot."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

from supervisor import Retry, current, gather, sleep, step, sync, workflow
from tests.harness import note, wait_for_file

log = logging.getLogger("shop")
logging.getLogger("shop.import").info("imported")


@step(run="thread")
def in_thread(gate: str = "") -> int:
    log.info("in_thread")
    note("in_thread")
    if gate:
        wait_for_file(gate)
    return 1


@step
async def in_task() -> int:
    await asyncio.gather(_inner(), asyncio.to_thread(log.info, "in_task, thread of a task"))
    current().logger.info("in_task")
    return 1


async def _inner() -> None:
    await asyncio.sleep(0)
    log.info("in_task, inner task")


@step(run="inline")
def inline() -> int:
    log.info("inline")
    return 1


@step(transactional=True)
def in_transaction(tx: Any) -> int:
    log.info("in_transaction")
    return 1


@step(transactional=True)
async def in_async_transaction(tx: Any) -> int:
    log.info("in_async_transaction")
    return 1


@step(retry=Retry(max_attempts=3, initial=0.01))
def tried_again() -> int:
    try:
        if current().attempt == 1:
            raise ConnectionError("the first time")
    except ConnectionError:
        log.exception("tried_again")
        raise
    log.info("tried_again")
    return 1


@workflow(queue="logs")
async def talks(gate: str) -> int:
    log.info("talks begins")
    total = await in_thread.aio() + await in_task() + await inline.aio() + await in_transaction.aio() + await in_async_transaction()
    log.info("talks is in the middle")
    total += sum(await gather(tried_again.aio(), inline.aio()))
    try:
        await sleep(1.5)  # longer than it may stay in memory
        log.info("talks has slept")
        total += await in_thread.aio(gate)
    finally:
        log.info("talks unwinds")
    log.info("talks ends")
    return total


@workflow(queue="logs")
def talks_def(gate: str) -> int:
    log.info("talks_def begins")
    total = in_thread() + in_task.sync() + inline() + in_transaction() + in_async_transaction.sync()
    log.info("talks_def is in the middle")
    total += tried_again() + inline()
    try:
        sync.sleep(1.5)
        log.info("talks_def has slept")
        total += in_thread(gate)
    finally:
        log.info("talks_def unwinds")
    log.info("talks_def ends")
    return total


@step(run="thread")
def chatter(number: int, lines: int) -> int:
    """Log from two threads at once: the step's and one of its own, which nobody told where it belongs."""
    beside = threading.Thread(target=lambda: [log.info("beside %d %d", number, at) for at in range(lines)])
    beside.start()
    for at in range(lines):
        log.info("line %d %d", number, at)
    beside.join()
    note("chattered", number)
    return number


@workflow(queue="logs")
async def chats(number: int, lines: int, steps: int) -> int:
    for _ in range(steps):
        await chatter.aio(number, lines)
    return number
