"""Steps that fail, and what is tried again."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from supervisor import NonRetryable, Retry, RetryAfter, StepInterrupted, StepTimeout, current, gather, step, workflow
from tests.apps.gates import at_gate
from tests.harness import note, wait_for_file

QUICK = Retry(max_attempts=4, initial=0.001, maximum=0.002)


class CardDeclined(Exception):
    pass


class StolenCard(CardDeclined):
    pass


def _fail_until(name: str, attempts: int) -> int:
    here = current()
    note("try", name, here.attempt, here.redelivered, here.idempotency_key)
    if here.attempt < attempts:
        raise ValueError(f"try {here.attempt} of {name}")
    return here.attempt


@step
def once(name: str, attempts: int) -> int:
    return _fail_until(name, attempts)


@step(retry=QUICK)
def in_thread(name: str, attempts: int) -> int:
    return _fail_until(name, attempts)


@step(retry=QUICK, run="inline")
def inline(name: str, attempts: int) -> int:
    return _fail_until(name, attempts)


@step(retry=QUICK)
async def in_task(name: str, attempts: int) -> int:
    return _fail_until(name, attempts)


@step(retry=QUICK, transactional=True)
def in_transaction(tx: Any, name: str, attempts: int) -> int:
    tx.execute("insert into ledger values (%s)", (current().attempt,))
    return _fail_until(name, attempts)


STEPS = {"once": once.aio, "thread": in_thread.aio, "inline": inline.aio, "task": in_task, "tx": in_transaction.aio}


@workflow
async def tries(way: str, attempts: int) -> Any:
    try:
        return await STEPS[way](way, attempts)
    except ValueError as error:
        return f"caught {error}"


@workflow
async def tries_in_branches() -> list[int]:
    return list(await gather(*(STEPS[way](f"branch_{way}", 3) for way in ("thread", "inline", "task", "tx"))))


@workflow
def tries_def(attempts: int) -> Any:
    try:
        return in_thread("def", attempts) + in_task.sync("def_task", attempts)
    except ValueError as error:
        return f"caught {error}"


@step(retry=Retry(max_attempts=3, initial=0, non_retryable=(CardDeclined,)))
def charge(kind: str) -> str:
    note("charge", kind)
    if kind == "declined":
        raise StolenCard("no")
    if kind == "non_retryable":
        try:
            raise KeyError("cause")
        except KeyError as error:
            raise NonRetryable("give up") from error
    raise ValueError("again")


@workflow
async def charges(kind: str) -> str:
    return await charge.aio(kind)


@step(retry=Retry(max_attempts=2, initial=3e6, maximum=3e6))
def later(seconds: float) -> int:
    note("later", current().attempt)
    raise RetryAfter(seconds)


@workflow
async def retried_later(seconds: float) -> int:
    return await later.aio(seconds)


@step
def later_without_policy(seconds: float) -> int:
    if current().attempt < 3:
        raise RetryAfter(seconds)
    return current().attempt


@workflow
async def retried_without_policy() -> int:
    return await later_without_policy.aio(0.05)


@step(retry=True)
async def survives(name: str, wait_s: float, gate: str) -> list[Any]:
    """Fails twice, then waits inside its third attempt."""
    here = current()
    note("survives", name, here.attempt, here.redelivered)
    if here.attempt < 3:
        raise RetryAfter(wait_s)
    await at_gate(gate)
    return [here.attempt, here.redelivered]


@workflow
async def survivor(name: str, wait_s: float, gate: str) -> list[Any]:
    return await survives(name, wait_s, gate)


# ── timeouts ─────────────────────────────────────────────────────────────────────────────────────────────────────


@step(timeout=0.3)
async def hangs() -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        note("hangs_cancelled")


@step(timeout=0.3)
def hangs_in_thread(gate: str) -> str:
    wait_for_file(gate)
    note("late_return")
    return "too late"


@step(timeout=0.3, retry=QUICK)
def hangs_once() -> int:
    if current().attempt == 1:
        time.sleep(1)
    return current().attempt


@step(timeout=5)
def in_time() -> str | None:
    deadline = current().deadline
    return deadline.isoformat() if deadline else None


@step
def quick() -> str:
    return "quick"


@workflow
async def timeouts(which: str, gate: str = "never") -> Any:
    try:
        if which == "task":
            await hangs()
        elif which == "thread":
            await hangs_in_thread.aio(gate)
        elif which == "once":
            return await hangs_once.aio()
        else:
            return await in_time.aio()
    except TimeoutError as error:
        return [type(error).__name__, str(error), isinstance(error, StepTimeout), await quick.aio()]


@workflow
async def many_stuck(n: int, gate: str) -> list[str]:
    """More steps than there are threads outlive their timeout; whoever comes after still has a thread."""

    async def stuck() -> str:
        try:
            return await hangs_in_thread.aio(gate)
        except StepTimeout:
            return "timed out"

    await gather(*(stuck() for _ in range(n)))
    return list(await gather(*(quick.aio() for _ in range(n))))


# ── at most once ─────────────────────────────────────────────────────────────────────────────────────────────────


@step(at_most_once=True)
async def launch(name: str, gate: str) -> str:
    note("launch", name)
    await at_gate(gate)
    return "launched"


@step(at_most_once=True)
def launch_in_thread(name: str, gate: str) -> str:
    note("launch", name)
    wait_for_file(gate)
    return "launched"


@step(at_most_once=True, retry=QUICK)
def relaunch(name: str, attempts: int) -> int:
    note("launch", name)
    return _fail_until(name, attempts)


@step
async def stand(gate: str) -> None:
    await at_gate(gate)


@workflow
async def launches(name: str, way: str, gate: str, then: str = "") -> list[str]:
    try:
        got = await (launch(name, gate) if way == "task" else launch_in_thread.aio(name, gate))
    except StepInterrupted as error:
        got = f"interrupted: {error}"
    if then:
        await stand(then)
    return [got, await quick.aio()]


@workflow
async def launches_in_branches(name: str, gate: str) -> list[str]:
    async def branch(n: int) -> str:
        try:
            return await launch(f"{name}{n}", gate)
        except StepInterrupted:
            return "interrupted"

    return list(await gather(*(branch(n) for n in range(3)), quick.aio()))


@workflow
async def relaunches(name: str, attempts: int) -> int:
    return await relaunch.aio(name, attempts)
