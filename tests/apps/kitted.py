"""Programs that must do the same in memory and on a host: those of other apps, and what is missing there."""

from __future__ import annotations

from typing import Any

from supervisor import Cancelled, CompleteLater, Retry, Signal, Update, current, first, gather, handlers_finished, patched, progress, publish, set_attributes, shield, sleep, start, step, sync, workflow
from tests.apps import closing, families, letters, longruns, longsteps, operated, replayed, tries, undone  # noqa: F401 - their workflows are programs here
from tests.harness import note, wait_for_file

kitted_word = Signal("kitted_word", str)
kitted_never = Signal("kitted_never", str)
kitted_add = Update("kitted_add", int, int)


@step
def kitted_plus(n: int) -> int:
    return n + 1


@step
async def kitted_tells() -> list[Any]:
    here = current()
    return [here.seq, here.step, here.attempt, here.redelivered, here.workflow]


@step(retry=Retry(max_attempts=3, initial=0.01, maximum=0.01))
def kitted_third(word: str) -> str:
    if current().attempt < 3:
        raise ValueError(f"{word} {current().attempt}")
    return word


@step
def kitted_nan() -> float:
    return float("nan")


@step(at_most_once=True)
def kitted_launch(word: str) -> str:
    return word


@workflow
async def kitted_mixed(n: int) -> dict[str, Any]:
    """A bit of everything, one after another: so there is one order only."""
    said: dict[str, Any] = {"plus": await kitted_plus.aio(n), "told": await kitted_tells(), "third": await kitted_third.aio("x")}
    said["launched"] = await kitted_launch.aio("moon")
    publish("said", said)
    set_attributes(stage="mixed", n=n)
    await sleep(0.02)
    if patched("kitted-a"):
        said["patched"] = await kitted_plus.aio(40)
    try:
        await kitted_nan.aio()
    except Exception as error:  # noqa: BLE001
        said["nan"] = type(error).__name__
    said["child"] = await families.kid(3)
    child = await start(families.kid_def, 4)
    said["started"] = await child.result()
    try:
        await families.bad_kid(9)
    except Exception as error:  # noqa: BLE001
        said["bad"] = [type(error).__name__, str(error.__cause__)]
    said["won"] = list(await first(late=sleep(600), never=kitted_never.wait(timeout=600), soon=sleep(0.02)))
    said["words"] = await gather(kitted_word.wait(), kitted_word.wait())
    return said


@workflow
def kitted_mixed_def(n: int) -> list[Any]:
    said: list[Any] = [kitted_plus(n), kitted_tells.sync(), kitted_third("y")]
    sync.sleep(0.02)
    said += [families.kid.sync(5), list(sync.first(late=kitted_waits.aio(), soon=kitted_plus.aio(1)))]
    return said


@workflow
async def kitted_waits() -> str:
    return await kitted_word.wait()


@workflow
async def kitted_updated() -> list[int]:
    got: list[int] = []

    def check(n: int) -> None:
        if n < 0:
            raise ValueError(f"{n} is negative")

    @kitted_add.handler(validator=check)
    async def _(n: int) -> int:
        got.append(await kitted_plus.aio(n))
        return sum(got)

    await kitted_word.wait()
    await handlers_finished()
    return got


@workflow(timeout=0.5)
async def kitted_late() -> None:
    await kitted_plus.aio(1)
    await sleep(600)


@step(retry=Retry(max_attempts=2, initial=0.01))
def kitted_hands_over(seconds: float, beat: float | None) -> str:
    note("kitted_token", current().run_id, current().token())
    raise CompleteLater(timeout=seconds, heartbeat=beat)


@workflow
async def kitted_handed(seconds: float, beat: float | None = None) -> str:
    return f"got {await kitted_hands_over.aio(seconds, beat)}"


@workflow
async def kitted_cleans_up(seconds: float) -> str:
    """Cancelled, it does something in a shield, then something that the shield's time limit cuts."""
    try:
        await sleep(3600)
    except Cancelled as why:
        kept = await shield(kitted_plus.aio(1), timeout=60)
        try:
            await shield(sleep(seconds), timeout=0.2)
        except TimeoutError:
            kept = -kept
        publish("kept", kept)
        if why.reason != "enough":
            return "kept on"
        raise
    return "slept"


@workflow
def kitted_cleans_up_def() -> str:
    try:
        sync.sleep(3600)
    except Cancelled:
        sync.shield(kitted_plus.aio(2), timeout=60)
        raise
    return "slept"


@step
def kitted_opens(word: str, until: str) -> str:
    """Fails until the file *until* is there."""
    note("kitted_opens", word)
    try:
        wait_for_file(until, 0.0)
    except AssertionError:
        raise ValueError(f"{word} is shut") from None
    return f"{word} is open"


@workflow
async def kitted_fails(word: str, until: str) -> list[str]:
    """Something of each kind before and after the step that fails."""
    said = [str(await kitted_plus.aio(1))]
    kid = await start(families.kid, 4)
    said.append(await kitted_word.wait())
    set_attributes(stage="told", word=word)
    publish("said", said)
    progress(1, 2)
    said.append(str(await kid.result()))
    said.append(await kitted_opens.aio(word, until))
    return [*said, await kitted_word.wait()]


@workflow
async def kitted_caught(word: str, until: str) -> str:
    """Its own code fails, for what a step did."""
    try:
        return await kitted_opens.aio(word, until)
    except ValueError as error:
        raise RuntimeError(f"{word} fails") from error


@workflow(queue="kitted")
async def kitted_in_queue(seconds: float = 0.0) -> str:
    await kitted_plus.aio(1)
    await sleep(seconds)
    return await kitted_word.wait()


@workflow
async def kitted_has_kid() -> str:
    await start(kitted_waits)
    return await kitted_word.wait()
