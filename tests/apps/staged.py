"""Runs that come to wait for each kind of thing that there is: what `tests/staged.py` stages."""

from __future__ import annotations

import os
import signal

from supervisor import CompleteLater, Retry, Signal, current, first, gather, progress, publish, sleep, step, workflow
from tests.harness import note, wait_for_file

staged_approved = Signal("staged_approved", str)
GATEWAY = "the payment gateway answers 503"
PARTS = 12  # steps of a whole order


@step
def staged_part(n: int) -> int:
    current().logger.info("part %d of the order", n)
    return n


@step(retry=Retry(max_attempts=8, initial=86_400, maximum=86_400))
def staged_capture(order: int, down: bool) -> str:
    current().logger.warning("capturing order %d", order)
    if down:
        raise ConnectionError(GATEWAY)
    return f"payment-{order}"


@workflow(queue="staged")
async def staged_order(order: int, down: bool) -> str:
    """Six steps, the payment, five more."""
    for n in range(6):
        await staged_part.aio(n)
    progress(6, PARTS)
    payment = await staged_capture.aio(order, down)
    for n in range(7, PARTS):
        await staged_part.aio(n)
    return payment


@workflow(queue="staged")
async def staged_sleep(seconds: float) -> None:
    await sleep(seconds)


@workflow(queue="staged")
async def staged_approval(timeout: float | None = None) -> str:
    publish("stage", "asks for approval")
    return await staged_approved.wait(timeout=timeout)


@step
def staged_ask() -> str:
    note("staged_token", current().token())
    raise CompleteLater(timeout=86_400)


@workflow(queue="staged")
async def staged_outside() -> str:
    return await staged_ask.aio()


@workflow(queue="staged")
async def staged_parent(seconds: float) -> None:
    """One child that ends and one that sleeps."""
    await gather(staged_sleep(0.0), staged_middle(seconds))


@workflow(queue="staged")
async def staged_middle(seconds: float) -> None:
    await staged_sleep(seconds)


@workflow(queue="staged")
async def staged_either(seconds: float) -> str:
    winner, _ = await first(approved=staged_approved.wait(), late=sleep(seconds))
    return winner


@step(run="thread")
def staged_slow(gate: str) -> None:
    note("staged_slow")
    wait_for_file(gate, 600)


@workflow(queue="staged")
async def staged_long(gate: str) -> None:
    await staged_slow.aio(gate)


@step(run="thread")
def staged_fatal() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@workflow(queue="staged")
async def staged_killer() -> None:
    await staged_fatal.aio()


@step
def staged_refused(text: str) -> str:
    return text


@workflow(queue="staged")
async def staged_refusing(text: str) -> str:
    return await staged_refused.aio(text)
