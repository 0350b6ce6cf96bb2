"""Runs that go on as new ones, say how far they are, set attributes, and call too much."""

from __future__ import annotations

from datetime import UTC, datetime

from supervisor import (
    HistoryTooLong, Signal, continue_as_new, current, first, gather, progress, set_attributes, sleep, start, step, sync, workflow,
)  # fmt: skip
from tests.apps.gates import at_gate
from tests.harness import note

longruns_more = Signal("longruns_more", int)
longruns_end = Signal("longruns_end", str)


@step
def longruns_step(number: int) -> int:
    return number


@step
async def longruns_gate(run: str, name: str) -> str:
    note("longruns_gate", run, name)
    await at_gate(f"{run}.{name}", 120)
    return name


@workflow
async def longruns_count(left: int, total: int = 0) -> int:
    """One step to a run, as many runs as are left."""
    total += await longruns_step.aio(left)
    if left > 1:
        continue_as_new(left - 1, total=total)
    return total


@workflow
def longruns_count_def(left: int, total: int = 0) -> int:
    total += longruns_step(left)
    if left > 1:
        sync.continue_as_new(left - 1, total)
    return total


@workflow
async def longruns_parent(left: int) -> list[int]:
    started = await start(longruns_count, left)
    both = await gather(longruns_count(left), longruns_step.aio(7))
    return [both[0], both[1], await started.result()]


@workflow
async def longruns_other(text: str) -> str:
    return f"{text}, key {current().key}"


@workflow
async def longruns_becomes(number: int) -> str:
    try:
        continue_as_new(longruns_other.options(priority=3), f"was {number}")
    finally:
        note("longruns_finally", number)


@workflow
async def longruns_branch(number: int) -> int:
    """It is a branch that goes on, beside one that waits."""

    async def goes_on() -> None:
        await longruns_step.aio(1)
        continue_as_new(0)

    if number:
        await gather(goes_on(), sleep(3600))
    return number


@workflow
async def longruns_hears(gate: str, got: list[int], runs: int) -> list[int]:
    """Takes two messages to a run; the rest is for its successors."""
    if not got:
        await longruns_gate(gate, "begun")
    got = [*got, await longruns_more.wait(), await longruns_more.wait()]
    if runs > 1:
        continue_as_new(gate, got, runs - 1)
    return got


@workflow
async def longruns_waits(times: int) -> str:
    if times:
        await longruns_more.wait()
        continue_as_new(times - 1)
    return await longruns_end.wait()


@workflow
async def longruns_below() -> None:
    await sleep(3600)


@workflow
async def longruns_kid(times: int) -> str:
    """It goes on when it is told to; its successor has a child of its own."""
    if times:
        await longruns_more.wait()
        continue_as_new(times - 1)
    await start(longruns_below)
    return await longruns_end.wait()


@workflow
async def longruns_bears(times: int, delay: float = 0) -> str:
    """Starts a child of each kind in its first run; later ones have none of their own."""
    if times == 2:
        await start(longruns_kid, 1)
        await start(longruns_kid.options(parent_close="abandon"), 1)
        await start(longruns_kid.options(parent_close="terminate"), 1)
    if times:
        await longruns_more.wait()
        continue_as_new(longruns_bears.options(delay=delay), times - 1)
    return await longruns_end.wait()


@workflow
async def longruns_parts(first_of_all: bool) -> str:
    """One branch waits for a child when the other goes on."""

    async def goes_on() -> None:
        await longruns_more.wait()
        continue_as_new(False)

    if first_of_all:
        await gather(longruns_below(), start(longruns_below), goes_on())
    return await longruns_end.wait()


@workflow
async def longruns_tells(gate: str) -> str:
    progress(0, 3)
    set_attributes(stage="begun", amount=12.5, count=3, paid=False, tags=["a", "b"], due=datetime(2026, 12, 1, 8, 30, tzinfo=UTC))
    for done in range(3):
        await longruns_step.aio(done)
        progress(done + 1, 3)
    await longruns_gate(gate, "middle")
    set_attributes({"stage": "paid", "paid": True}, tags=None, extra=["c"])
    progress(7)
    await longruns_gate(gate, "end")
    return "told"


@workflow
async def longruns_keeps(again: bool) -> str:
    set_attributes(stage="kept" if again else "last", start=None)
    if again:
        await longruns_step.aio(1)
        continue_as_new(False)
    return "kept"


@workflow
async def longruns_odd(which: str) -> None:
    if which == "object":
        set_attributes(x={"a": 1})  # type: ignore[dict-item, unused-ignore]
    elif which == "naive":
        set_attributes(x=datetime(2026, 1, 1))
    elif which == "progress":
        progress(float("nan"))
    else:
        continue_as_new("one", "two")


@workflow(max_steps=50)
async def longruns_limited(calls: int) -> list[int | bool]:
    suggested = 0
    for number in range(calls):
        await longruns_step.aio(number)
        suggested = suggested or (number + 1 if current().should_continue else 0)
    return [current().history_length, suggested]


@workflow(max_steps=50)
async def longruns_catches(calls: int) -> str:
    try:
        for number in range(calls):
            await first(a=longruns_step.aio(number), b=sleep(3600))
    except HistoryTooLong as error:
        continue_as_new(0) if error.max_steps == 50 else None
    return "continued"


@workflow(max_steps=50)
def longruns_limited_def(calls: int) -> int:
    for number in range(calls):
        longruns_step(number)
    return calls
