"""A small app of the client's tests: steps that write, children, timers, keys."""

from __future__ import annotations

from typing import Any

from supervisor import gather, sleep, step, workflow


@step
def double(n: int) -> int:
    return 2 * n


@step(transactional=True)
def book(tx: Any, n: int) -> int:
    tx.execute("insert into public.ledger values (%s)", (n,))
    return n


@workflow
async def twin(n: int) -> int:
    return await double.aio(n)


@workflow(queue="other")
async def everything(n: int, fails: bool = False) -> list[int]:
    await sleep(0.01)
    doubled, child = await gather(double.aio(n), twin(n))
    if fails:
        raise ValueError(f"asked to fail {n}")
    return [doubled, child, await book.aio(n)]
