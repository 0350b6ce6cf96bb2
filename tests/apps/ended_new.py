"""The same workflows with other code: `ended_below` is the same, and `ended_moved` has done the same so far."""

from __future__ import annotations

from supervisor import Signal, compensate, step, sync, workflow
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


@step
def ended_other(name: str) -> None:
    note("ended_other", name)


@workflow
async def ended_saga(name: str) -> str:
    await ended_other.aio(name)
    return await ended_go.wait()


@workflow
def ended_saga_def(name: str) -> str:
    ended_other(name)
    return ended_go_sync.wait()


@workflow(timeout=3600)
async def ended_late(name: str) -> str:
    await ended_other.aio(name)
    return await ended_go.wait()


@workflow
async def ended_moved(name: str) -> str:
    await ended_do(name, "one")
    compensate(ended_undo, name, "one-anew")
    return await ended_go.wait()


@workflow
async def ended_below(name: str) -> str:
    await ended_do(name, "below")
    return await ended_go.wait()


@workflow
async def ended_above(name: str) -> str:
    return await ended_below(name) + name


@workflow(timeout=3600)
async def ended_first(name: str) -> str:
    await ended_other.aio(name)
    return name
