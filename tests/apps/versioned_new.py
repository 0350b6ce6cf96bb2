"""The same workflows with other code; what is patched goes on with old runs."""

from __future__ import annotations

from supervisor import Query, Signal, deprecate_patch, first, patched, sleep, start, step, workflow
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
def versioned_other() -> None:
    note("other")


@step
async def versioned_gate(name: str) -> str:
    note("gate", name)
    await at_gate(name)
    return name


@workflow
async def versioned_slow(gate: str) -> str:
    await versioned_did.aio("new-1")
    await versioned_gate(gate)
    return "new"


@workflow
async def versioned_waits() -> str:
    versioned_asked.handler(lambda: "new")
    await versioned_did.aio("old-1")  # so far as the old one
    await versioned_go.wait()
    await versioned_did.aio("new-2")
    return "new"


@workflow
def versioned_waits_sync() -> str:
    versioned_other()
    versioned_go_sync.wait()
    return "new"


@workflow
async def versioned_hops(hops: int) -> str:
    for _ in range(hops):
        await versioned_go.wait()
    return "new"


@workflow
async def versioned_once() -> str:
    return "new " + await versioned_did.aio("once")


@workflow
async def versioned_untouched(gate: str) -> str:
    await versioned_did.aio("new-1")
    return "new"


@workflow
async def versioned_kid() -> int:
    return 4


@workflow(version="2026-11")
async def versioned_named() -> str:
    await versioned_did.aio("named-1")
    deprecate_patch("versioned-dead")
    await versioned_go.wait()
    if patched("versioned-named"):
        await versioned_did.aio("named-2")
    return "new"


@workflow
async def versioned_patched() -> list[str]:
    """What each place answered: before the history's end, at a timer, at a child, at a signal, and after that."""
    said = [await versioned_did.aio("p-1")]
    if patched("versioned-a"):
        said.append(await versioned_did.aio("p-a"))
    else:
        said.append("old")
    child = await start(versioned_kid)
    if patched("versioned-b"):
        said.append(await versioned_did.aio("p-b"))
    else:
        said.append("old")
    said.append((await first(late=sleep(0.05), later=sleep(600)))[0])
    if patched("versioned-c"):
        said.append(await versioned_did.aio("p-c"))
    else:
        said.append("old")
    await versioned_go.wait()
    if patched("versioned-d"):
        said.append(await versioned_did.aio("p-d"))
    else:
        said.append("old")
    await child.result()
    return said


@workflow
def versioned_patched_sync() -> str:
    versioned_did("s-1")
    versioned_go_sync.wait()
    return ("new " + versioned_did("s-new")) if sync.patched("versioned-s") else ("old " + versioned_did("s-old"))
