"""Runs that have named what undoes their steps, and end otherwise than completed."""

from __future__ import annotations

from typing import Any

from supervisor import Cancelled, CompensationPending, Retry, compensate, continue_as_new, current, gather, sleep, step, sync, workflow
from tests.apps.gates import at_gate
from tests.harness import note


@step
async def undone_do(name: str, what: str) -> str:
    note("undone_do", name, what)
    await at_gate(f"{name}.stays.open") if "gated" in name and what == "stays" else None
    return f"{name}.{what}"


@step
async def undone_undo(name: str, what: str) -> None:
    note("undone_undo", name, what, int(current().redelivered))
    await at_gate(f"{name}.{what}.open") if "gated" in name else None


@step(retry=Retry(max_attempts=3, initial=0.02))
def undone_shaky(name: str, what: str) -> None:
    note("undone_undo", name, what, current().attempt)
    if current().attempt < 3:
        raise OSError("not yet")


@step
def undone_breaks(name: str, what: str) -> None:
    note("undone_undo", name, what, 0)
    raise ValueError(f"{what} can't be undone")


@workflow
async def undone_child(name: str, what: str) -> None:
    await undone_undo(name, what)


async def _three(name: str) -> None:
    compensate(undone_undo, name, "zero")  # before anything: it is to be undone even if it is interrupted
    first = await undone_do(name, "one")
    assert first == f"{name}.one"
    compensate(undone_undo, name, what="one")
    await undone_do(name, "two")
    compensate(undone_shaky, name, "two")
    await gather(undone_do(name, "three"), undone_do(name, "four"))
    compensate(undone_child, name, "four")


@workflow
async def undone_run(name: str, how: str) -> str:
    await _three(name)
    if how == "fails":
        raise LookupError(name)
    if how == "breaks":
        compensate(undone_breaks, name, "last")
        raise LookupError(name)
    if how == "waits":
        await sleep(3600)
    if how == "breaks_cancelled":
        compensate(undone_breaks, name, "last")
        await sleep(3600)
    if how == "cleans":
        try:
            await sleep(3600)
        except Cancelled:
            await undone_do(name, "cleaned")
            raise
    return name


@workflow
def undone_def(name: str) -> str:
    undone_do.sync(name, "one")
    compensate(undone_undo, name, "one")
    undone_do.sync(name, "two")
    compensate(undone_shaky, name, "two")
    sync.gather(undone_do.aio(name, "three"), undone_do.aio(name, "four"))
    compensate(undone_breaks, name, "four")
    raise LookupError(name)


@workflow
async def undone_goes_on(name: str, how: str) -> list[Any]:
    """To a run that would not know what to undo; "ends": it named that while it was on its way there."""
    if how == "ends":
        try:
            continue_as_new(name, "returns")
        finally:
            compensate(undone_undo, name, "ends")
    if how == "returns":
        return [name]
    await _three(name)
    if how == "fails":
        continue_as_new(name, "returns")
    told: list[Any] = []
    try:
        continue_as_new(name, "returns")
    except CompensationPending as error:
        told = error.steps
    return [await undone_do(name, "stays"), told]


@workflow
async def undone_settled(name: str, left: int) -> str:
    """What its child may have to undo is settled when that has ended."""
    await undone_run(name, "returns")
    if left:
        continue_as_new(name, left - 1)
    return name


@workflow
def undone_goes_on_def(name: str) -> None:
    undone_do.sync(name, "one")
    compensate(undone_undo, name, "one")
    sync.continue_as_new(name)


@workflow(timeout=2)
async def undone_late(name: str) -> str:
    await _three(name)
    await sleep(3600)
    return name


@workflow(timeout=2)
async def undone_late_in_memory(name: str) -> str:
    await _three(name)
    await undone_gate(name)
    return name


@step
async def undone_gate(name: str) -> None:
    note("undone_gate", name)
    await at_gate(f"{name}.never")


@workflow
async def undone_misused() -> list[str]:
    told: list[str] = []
    wrong: list[Any] = [lambda: None, "undo", sleep]
    for each in wrong:
        try:
            compensate(each)
        except Exception as error:  # noqa: BLE001
            told.append(f"{type(error).__name__}: {error}")
    try:
        compensate(undone_child, "only one")  # type: ignore[call-arg]
    except Exception as error:  # noqa: BLE001
        told.append(type(error).__name__)
    return told
