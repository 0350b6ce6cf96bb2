"""The same workflows with code that parts from their histories; the lines say where ("parts here")."""

from __future__ import annotations

from supervisor import Signal, first, gather, now, publish, random, sleep, start, step, uuid4, workflow
from supervisor import sync
from tests.harness import note

replayed_go = Signal("replayed_go", str)
replayed_go_sync = sync.Signal("replayed_go", str)


@step
def replayed_did(word: str) -> str:
    note("forbidden", word)
    return word


@step
def replayed_other() -> str:
    note("forbidden")
    return ""


@step
def replayed_fails() -> None:
    note("forbidden")


@step
def replayed_keyed() -> dict[str, int]:
    note("forbidden")
    return {}


@workflow
async def replayed_kid(n: int) -> int:
    return n + 1


@workflow
async def replayed_rich(n: int) -> list[str]:
    said = [str(random().random() >= 0), str(uuid4().version), str(now().year > 2000)]
    said.append(await replayed_did.aio("patched"))  # parts here: the patch is gone
    try:
        await replayed_fails.aio()
    except LookupError as error:
        said.append(str(error))
    publish("said", said)
    await gather(replayed_did.aio("left"), replayed_kid(n))
    await first(quick=sleep(0.01), asked=replayed_go.wait())
    await start(replayed_kid, n)
    return said


@workflow
def replayed_plain(n: int) -> str:
    word = replayed_did("plain")
    try:
        replayed_fails()
    except LookupError:
        word += helper()
    return word


def helper() -> str:
    name, _ = sync.first(other=replayed_other.aio(), late=replayed_go_sync.aio(timeout=600))  # replayed_plain parts here
    return name


@workflow
async def replayed_raises() -> None:
    await replayed_did.aio("before")
    return None  # replayed_raises parts here


@workflow
async def replayed_sleeps() -> str:
    await replayed_did.aio("before")
    await replayed_other.aio()  # replayed_sleeps parts here
    return "woke"


@workflow
async def replayed_parent() -> int:
    await start(replayed_kid, 1)  # replayed_parent parts here
    return 1


@workflow
async def replayed_returns(word: str) -> str:
    if await replayed_did.aio(word) == "odd":
        return "early"  # replayed_returns parts here
    return await replayed_did.aio("last")


@workflow
def replayed_returns_plain() -> str:
    if replayed_did("one"):
        raise KeyError("new")  # replayed_returns_plain parts here
    return replayed_did("last")


@workflow
async def replayed_listens() -> str:
    await replayed_did.aio("before")
    await sleep(1)  # replayed_listens parts here
    return await replayed_go.wait()


@workflow
async def replayed_spins() -> str:
    while await replayed_did.aio("once"):
        n = 0
        while n >= 0:
            n += 1  # replayed_spins parts here
    return ""
