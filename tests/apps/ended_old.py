"""Runs that have something to undo, as they were deployed first; `ended_new` has the same names with other code."""

from __future__ import annotations

from supervisor import Cancelled, Signal, compensate, shield, step, sync, workflow
from tests.apps.gates import at_gate
from tests.harness import note

ended_go = Signal("ended_go", str)
ended_go_sync = sync.Signal("ended_go", str)


@step
async def ended_do(name: str, what: str) -> str:
    note("ended_do", name, what)
    return what


@step
async def ended_undo(name: str, what: str) -> None:
    note("ended_undo", name, what)
    await at_gate(f"{name}.{what}.open") if "gated" in name else None


@workflow
async def ended_saga(name: str) -> str:
    await ended_do(name, "one")
    compensate(ended_undo, name, "one")
    await ended_do(name, "two")
    compensate(ended_undo, name, "two")
    try:
        return await ended_go.wait()
    except Cancelled as why:
        await shield(ended_do(name, f"told-{why.reason}"))
        raise


@workflow
def ended_saga_def(name: str) -> str:
    ended_do.sync(name, "one")
    compensate(ended_undo, name, "one")
    ended_do.sync(name, "two")
    compensate(ended_undo, name, "two")
    return ended_go_sync.wait()


@workflow(timeout=3600)
async def ended_late(name: str) -> str:
    await ended_do(name, "one")
    compensate(ended_undo, name, "one")
    return await ended_go.wait()


@workflow
async def ended_moved(name: str) -> str:
    await ended_do(name, "one")
    compensate(ended_undo, name, "one")
    return await ended_go.wait()


@workflow
async def ended_below(name: str) -> str:
    await ended_do(name, "below")
    return await ended_go.wait()


@workflow
async def ended_above(name: str) -> str:
    await ended_do(name, "one")
    compensate(ended_undo, name, "one")
    return await ended_below(name)


@workflow(timeout=3600)
async def ended_first(name: str) -> str:
    """Named before its first step: that may have done its work, though nothing of it is durable."""
    compensate(ended_undo, name, "first")
    await ended_holds(name)
    return name


@step
async def ended_holds(name: str) -> None:
    note("ended_holds", name)
    await at_gate(f"{name}.never")
