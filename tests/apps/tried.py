"""Steps that are tried again, in every place where steps execute, and whose spans are looked at."""

from __future__ import annotations

import asyncio
import os
import time

from supervisor import AsyncTransaction, CompleteLater, Retry, RetryAfter, Transaction, current, first, gather, sleep, step, workflow
from tests.harness import note, wait_for_file

SOON = Retry(max_attempts=3, initial=0.02)


def _again(word: str) -> str:
    """Fails once."""
    if current().attempt == 1:
        raise ValueError(f"not yet {word}")
    return word


@step(run="inline", retry=SOON)
def tried_inline(word: str) -> str:
    return _again(word)


@step(run="thread", retry=SOON)
def tried_thread(word: str) -> str:
    return _again(word)


@step(retry=SOON)
async def tried_task(word: str) -> str:
    return _again(word)


@step(run="process", retry=SOON)
def tried_process(word: str) -> str:
    return _again(word)


@step(run="process", retry=SOON)
def tried_dying(word: str) -> str:
    if current().attempt == 1:
        os._exit(9)
    return word


@step(transactional=True, retry=SOON)
def tried_tx(tx: Transaction, word: str) -> str:
    return _again(word)


@step(transactional=True, retry=SOON)
async def tried_async_tx(tx: AsyncTransaction, word: str) -> str:
    return _again(word)


@step(at_most_once=True, retry=SOON)
def tried_at_most_once(word: str) -> str:
    return _again(word)


@step(timeout=0.1, retry=SOON)
async def tried_late(word: str) -> str:
    await asyncio.sleep(0.0 if current().attempt > 1 else 60.0)
    return word


@step(run="thread", timeout=0.1, retry=SOON)
def tried_late_thread(word: str) -> str:
    """Its first attempt returns when its second has."""
    if current().attempt == 1:
        wait_for_file(f"late-{word}")
    return word


PLACES = (tried_inline, tried_thread, tried_task, tried_process, tried_dying, tried_tx, tried_async_tx, tried_at_most_once, tried_late, tried_late_thread)


@workflow
async def tried_everywhere(word: str) -> list[str]:
    return [
        await tried_inline.aio(word), await tried_thread.aio(word), await tried_task(word), await tried_process.aio(word), await tried_dying.aio(word),
        await tried_tx.aio(word), await tried_async_tx(word), await tried_at_most_once.aio(word), await tried_late(word), await tried_late_thread.aio(word),
    ]  # fmt: skip


@workflow
async def tried_beside(word: str) -> list[str]:
    return list(await gather(tried_inline.aio(word), tried_thread.aio(word), tried_task(word)))


@step(retry=True)
def tried_after(word: str, wait_s: float) -> str:
    """Its second attempt waits for a file."""
    note("try", word, current().attempt, os.getpid())
    if current().attempt == 1:
        raise RetryAfter(wait_s)
    wait_for_file(f"go-{word}")
    return word


@workflow
async def tried_later(word: str, wait_s: float) -> str:
    return await tried_after.aio(word, wait_s)


@workflow(timeout=1.5)
async def tried_in_vain(word: str) -> str:
    return await tried_after.aio(word, 3000.0)


@workflow
async def tried_beside_sleep(word: str) -> str:
    winner, _ = await first(step=tried_after.aio(word, 3000.0), late=sleep(1.2))
    await sleep(1.1)
    return str(winner)


@step(retry=SOON)
def tried_token(word: str) -> str:
    note("token", word, current().attempt, current().token())
    raise CompleteLater


@workflow
async def tried_with_token(word: str) -> str:
    return await tried_token.aio(word)


@step(retry=Retry(max_attempts=3, initial=0.3, factor=1))
def tried_slowly(n: int) -> int:
    time.sleep(0.001)
    if current().attempt < 3:
        raise ValueError("not yet")
    return n


@workflow
async def tried_row(n: int) -> int:
    for _ in range(2):
        await gather(tried_slowly.aio(n), tried_slowly.aio(n))
    return n
