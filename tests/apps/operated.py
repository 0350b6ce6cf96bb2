"""Runs that operators pause, try again, skip steps of and fork."""

from __future__ import annotations

import os
import signal
from typing import Any

from supervisor import (
    Cancelled, CompleteLater, Query, Retry, Signal, Update, compensate, continue_as_new, first, gather, handlers_finished, now, patched, progress, publish, random,
    set_attributes, sleep, start, step, sync, uuid4, workflow,
)  # fmt: skip
from supervisor.core.context import current
from tests.harness import note, wait_for_file

OPERATED_GO = Signal("operated_go", str)
OPERATED_ADD = Update("operated_add", str, str)
OPERATED_DRAWN = Query("operated_drawn", list[list[str]])


@step
def operated_gate(word: str, gate: str) -> str:
    note("at", word, current().attempt)
    wait_for_file(gate)
    note("left", word)
    return word


@step
def operated_after(word: str) -> str:
    note("after", word)
    return f"after {word}"


@step(retry=Retry(max_attempts=20, initial=3e6, maximum=3e6))
def operated_failing(word: str, until: str) -> int:
    """Fails until the file *until* is there."""
    attempt = current().attempt
    note("try", word, attempt)
    try:
        wait_for_file(until, 0.0)
    except AssertionError:
        raise ValueError(f"try {attempt} of {word}") from None
    return attempt


@step
def operated_third_time(word: str) -> int:
    """Declared without a retry; every try waits for a file, and the third one does it."""
    note("try", word, current().attempt)
    wait_for_file(f"{word}-open")
    if current().attempt < 3:
        raise ValueError(f"try {current().attempt} of {word}")
    return current().attempt


@workflow
async def operated_unfailed(word: str) -> int:
    found = await operated_third_time.aio(word)
    await sleep(3000.0 if word.endswith("asleep") else 0.0)
    return found


@step(retry=Retry(max_attempts=3, initial=3e6, maximum=3e6))
def operated_always_failing(word: str) -> int:
    note("try", word, current().attempt)
    raise ValueError(f"try {current().attempt} of {word}")


@step
def operated_once(word: str, until: str) -> int:
    note("try", word, current().attempt)
    wait_for_file(f"{word}-beside-done")
    try:
        wait_for_file(until, 0.0)
    except AssertionError:
        raise ValueError(f"{word} is not there") from None
    return 7


@step
def operated_killer(word: str) -> int:
    note("try", word)
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


@step(at_most_once=True)
def operated_precious(word: str) -> str:
    note("at", word)
    return word


@workflow
async def operated_patched(word: str) -> str:
    """What it says after a patch, and after a branch has lost, was said before its first step."""
    await first(quick=sleep(0.001), never=OPERATED_GO.wait())
    if patched("operated-patch"):
        publish("said", word)
        progress(1, 2)
        set_attributes(word=word)
    return await operated_after.aio(word)


@workflow
async def operated_two_steps(word: str, gate: str) -> str:
    publish("at", "gate")
    await operated_gate.aio(word, gate)
    return await operated_after.aio(word)


@workflow
def operated_two_steps_def(word: str, gate: str) -> str:
    operated_gate(word, gate)
    return operated_after(word)


@workflow
async def operated_many_steps(word: str, steps: int) -> int:
    for at in range(steps):
        await operated_precious.aio(f"{word}-{at}")
    return steps


@workflow
async def operated_branches(word: str, gate: str) -> list[str]:
    async def branch(n: int) -> str:
        await operated_gate.aio(f"{word}-{n}", f"{gate}-{n}")
        return await operated_after.aio(f"{word}-{n}")

    return list(await gather(branch(0), branch(1)))


@workflow(timeout=3000)
async def operated_limited(word: str, gate: str = "") -> str:
    await operated_after.aio(word)
    compensate(operated_gate if gate else operated_after, f"{word}-undone", *([gate] if gate else []))
    if gate:
        await operated_gate.aio(word, gate)
    await sleep(6000)
    return word


@workflow
async def operated_cleans(word: str) -> str:
    try:
        await sleep(6000)
    except Cancelled:
        await operated_gate.aio(word, f"{word}-gate")
        raise
    return word


@workflow
async def operated_asleep(seconds: float) -> str:
    await sleep(seconds)
    return "awake"


@workflow
async def operated_waiting(timeout: float | None = None) -> str:
    return await OPERATED_GO.wait(timeout=timeout)


@workflow
async def operated_parent(word: str, gate: str) -> str:
    return await operated_two_steps(word, gate)


@workflow
async def operated_retrying(word: str, until: str) -> int:
    return await operated_failing.aio(word, until)


@workflow
async def operated_retrying_beside(word: str, until: str, gate: str) -> list[Any]:
    """One step waits for its next try while another one executes, so that the run stays with its worker."""
    return list(await gather(operated_failing.aio(word, until), operated_gate.aio(word, gate)))


@workflow
async def operated_exhausting(word: str) -> str:
    try:
        return str(await operated_always_failing.aio(word))
    except ValueError as error:
        return f"caught {error}"


@workflow
async def operated_poisonous(word: str) -> int:
    return await operated_killer.aio(word) + 1


@workflow
async def operated_failing_run(word: str, until: str) -> str:
    """Fails at its third step, the others before and beside it stay."""
    before = await operated_after.aio(f"{word}-before")
    kid = await start(operated_child, word)
    said = await OPERATED_GO.wait()
    publish("said", said)
    ok, last = await gather(operated_after.aio(f"{word}-beside"), operated_once.aio(word, until))
    return f"{before}, {said}, {await kid.result()}, {ok}, {last}"


@workflow
async def operated_child(word: str) -> str:
    return f"child of {word}"


@workflow
async def operated_own_error(word: str, until: str) -> str:
    done = await operated_after.aio(word)
    try:
        wait_for_file(until, 0.0)
    except AssertionError:
        raise RuntimeError("not yet") from None
    return done


@workflow
async def operated_sum(numbers: list[int]) -> int:
    total = 0
    for number in numbers:
        total += await operated_add.aio(number)
    return total


@step
def operated_add(number: int) -> int:
    note("add", number)
    return number


@workflow
async def operated_product(numbers: list[int]) -> int:
    total = 1
    for number in numbers:
        total *= await operated_add.aio(number)
    return total


@workflow
async def operated_race(word: str, gate: str) -> str:
    winner, value = await first(slow=operated_gate.aio(word, gate), late=sleep(0.05))
    return f"{winner} {await operated_after.aio(word)}"


@step(retry=True)
def operated_hand_out(word: str) -> int:
    note("token", word, current().token())
    raise CompleteLater


@workflow
async def operated_handed(word: str) -> int:
    return await operated_hand_out.aio(word)


@step
def operated_undo(word: str) -> str:
    note("undone", word)
    return f"undone {word}"


@workflow
async def operated_of_all_kinds(word: str, gate: str) -> None:
    """An update, the wait for its handler, a cancellation that it survives, then it fails, and undoes."""

    async def put(item: str) -> str:
        return await operated_after.aio(item)

    OPERATED_ADD.handler(put)
    set_attributes(operated_stage="begun", operated_word=word)
    compensate(operated_undo, word)
    await OPERATED_GO.wait()
    await handlers_finished()
    try:
        await operated_gate.aio(word, gate)
    except Cancelled:
        set_attributes(operated_stage="told")
        progress(2, 3)
    await operated_after.aio(f"{word}-then")
    raise ValueError(f"{word} fails")


@workflow
async def operated_chain(word: str, n: int) -> str:
    await operated_gate.aio(f"{word}-{n}", f"{word}-{n}-gate")
    if n:
        continue_as_new(word, n - 1)
    return word


def draw() -> list[str]:
    """What a run draws, and its moment."""
    return [str(random().random()), str(uuid4()), now().isoformat()]


@workflow
async def operated_drawing(word: str, rounds: int, until: str = "") -> list[list[str]]:
    """Waits for signals that it has drawn the names of, so that another draw is another history. Fails until the file *until* is there."""
    drawn: list[list[str]] = []
    OPERATED_DRAWN.handler(lambda: drawn)
    for n in range(rounds):
        drawn.append(draw())
        try:
            await Signal(" ".join(drawn[-1])).wait(timeout=0.001)
        except TimeoutError:
            await operated_gate.aio(f"{word}-{n}", f"{word}-{n}-gate")
    if until:
        wait_for_file(until, 0.0)
    return [*drawn, draw()]


@workflow
def operated_drawing_def(word: str, rounds: int) -> list[list[str]]:
    drawn: list[list[str]] = []
    for n in range(rounds):
        drawn.append(draw())
        try:
            sync.Signal(" ".join(drawn[-1])).wait(timeout=0.001)
        except TimeoutError:
            operated_gate(f"{word}-{n}", f"{word}-{n}-gate")
    return [*drawn, draw()]


@workflow
async def operated_drawing_on(n: int) -> list[str]:
    publish("drawn", draw())
    if n:
        continue_as_new(n - 1)
    return draw()


@workflow
async def operated_going_on(word: str, until: str) -> int:
    wait_for_file(until, 0.0)
    return continue_as_new(operated_given_too, {"word": word})


@workflow
async def operated_given(what: dict[str, Any], n: int = 1) -> int:
    return len(what) + n


@workflow
async def operated_given_too(what: dict[str, Any]) -> int:
    return len(what)
