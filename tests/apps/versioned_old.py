"""Workflows as they were deployed first; `versioned_new` has the same names with other code."""

from __future__ import annotations

from supervisor import Query, Signal, first, sleep, start, step, workflow
from supervisor import sync
from tests.apps.gates import at_gate
from tests.harness import note

versioned_go = Signal("versioned_go", int)
versioned_asked = Query("versioned_asked", str)
versioned_go_sync = sync.Signal("versioned_go", int)


@step
def versioned_did(word: str) -> str:
    note("did", word)
    return word


@step
async def versioned_gate(name: str) -> str:
    note("gate", name)
    await at_gate(name)
    return name


@workflow
async def versioned_slow(gate: str) -> str:
    await versioned_did.aio("old-1")
    await versioned_gate(gate)
    await versioned_did.aio("old-2")
    return "old"


@workflow
async def versioned_waits() -> str:
    versioned_asked.handler(lambda: "old")
    await versioned_did.aio("old-1")
    await versioned_go.wait()
    await versioned_did.aio("old-2")
    return "old"


@workflow
def versioned_waits_sync() -> str:
    versioned_did("old-1")
    versioned_go_sync.wait()
    versioned_did("old-2")
    return "old"


@workflow
async def versioned_hops(hops: int) -> str:
    for _ in range(hops):
        await versioned_go.wait()
    return "old"


@workflow
async def versioned_once() -> str:
    return "old " + await versioned_did.aio("once")


@workflow
async def versioned_untouched(gate: str) -> str:
    await versioned_gate(gate)
    return "old"


@workflow
async def versioned_kid() -> int:
    return 4


@workflow(version="2026-11")
async def versioned_named() -> str:
    await versioned_did.aio("named-1")
    await versioned_go.wait()
    return "old"


@workflow
async def versioned_patched() -> list[str]:
    """What each place answered: before the history's end, at a timer, at a child, at a signal, and after that."""
    said = [await versioned_did.aio("p-1")]
    said.append("old")
    child = await start(versioned_kid)
    said.append("old")
    said.append((await first(late=sleep(0.05), later=sleep(600)))[0])
    said.append("old")
    await versioned_go.wait()
    said.append("old")
    await child.result()
    return said


@workflow
def versioned_patched_sync() -> str:
    versioned_did("s-1")
    versioned_go_sync.wait()
    return "old " + versioned_did("s-old")
