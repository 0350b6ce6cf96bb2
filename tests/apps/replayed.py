"""Histories of every kind, ended and live; `replayed_new` has the same names with code that parts from them at known lines."""

from __future__ import annotations

from supervisor import Signal, Update, compensate, continue_as_new, first, gather, handlers_finished, now, patched, publish, random, sleep, start, step, uuid4, workflow
from supervisor import sync
from tests.harness import note

replayed_go = Signal("replayed_go", str)
replayed_add = Update("replayed_add", str, str)
replayed_go_sync = sync.Signal("replayed_go", str)


@step
def replayed_did(word: str) -> str:
    note("did", word)
    return word


@step
def replayed_fails() -> None:
    raise LookupError("as recorded")


@step
def replayed_keyed() -> dict[str, int]:
    return {"zebra": 1, "ant": 2}


@workflow
async def replayed_kid(n: int) -> int:
    return n + 1


@workflow
async def replayed_rich(n: int) -> list[str]:
    said = [str(random().random() >= 0), str(uuid4().version), str(now().year > 2000)]
    if patched("replayed-a"):
        said.append(await replayed_did.aio("patched"))
    try:
        await replayed_fails.aio()
    except LookupError as error:
        said.append(str(error))
    publish("said", said)
    both = await gather(replayed_did.aio("left"), replayed_branch("right"), replayed_kid(n))
    said += map(str, both)
    name, _ = await first(slow=replayed_branch("slow", 600), quick=sleep(0.01), asked=replayed_go.wait())
    said.append(name)
    child = await start(replayed_kid, n)
    said.append(str(await child.result()))
    said += [key for key in await replayed_keyed.aio()]
    said.append(await replayed_go.wait(timeout=600))
    return said


async def replayed_branch(word: str, seconds: float = 0.0) -> str:
    try:
        await sleep(seconds)
        return await replayed_did.aio(word)
    finally:
        publish(word, True)


@workflow
def replayed_plain(n: int) -> str:
    word = replayed_did("plain")
    try:
        replayed_fails()
    except LookupError:
        word += "!"
    name, _ = sync.first(quick=replayed_did.aio("quick"), late=replayed_go_sync.aio(timeout=600))
    return word + name + replayed_go_sync.wait()


@workflow
async def replayed_raises() -> None:
    await replayed_did.aio("before")
    raise ValueError("on purpose")


@workflow
async def replayed_sleeps() -> str:
    await replayed_did.aio("before")
    await sleep(3600)
    return "woke"


@workflow
async def replayed_parent() -> int:
    child = await start(replayed_sleeps)
    return len(await child.result())


@workflow
async def replayed_returns(word: str) -> str:
    await replayed_did.aio(word)
    return await replayed_did.aio("last")


@workflow
def replayed_returns_plain() -> str:
    replayed_did("one")
    return replayed_did("last")


@workflow
async def replayed_listens() -> str:
    await replayed_did.aio("before")
    return await replayed_go.wait()


@workflow
async def replayed_updated() -> list[str]:
    said: list[str] = []

    @replayed_add.handler
    async def _(word: str) -> str:
        said.append(await replayed_did.aio(word))
        await sleep(0.01)
        return word

    await replayed_go.wait()
    await handlers_finished()
    return said


@workflow
async def replayed_undone() -> None:
    await replayed_did.aio("done")
    compensate(replayed_did, "undone")
    await replayed_did.aio("then")
    raise ValueError("on purpose")


@workflow
async def replayed_goes_on(n: int) -> str:
    await replayed_did.aio("turn")
    if n:
        continue_as_new(n - 1)
    return "over"


@workflow
async def replayed_cancelled() -> str:
    try:
        return await replayed_go.wait()
    finally:
        await replayed_did.aio("cleaned")


@workflow
async def replayed_spins() -> str:
    return await replayed_did.aio("once")
