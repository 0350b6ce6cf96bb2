"""gather and first over branches of several steps; each gated step ends when the test opens its gate.

`trace` is what the workflow saw, in the order in which it saw it; `snap` makes what it had seen so far durable, live.
"""

from __future__ import annotations

from typing import Any

import supervisor
from supervisor import Retry, Signal, current, first, gather, publish, sleep, step, sync, workflow
from tests.apps.gates import at_gate
from tests.harness import note, wait_for_file


branches_said = Signal("branches_said", str)
LATE_S = 2.0


@step
async def gated(run: str, label: str) -> str:
    await at_gate(f"{run}.{label}", 120)
    return label


@step
def snap(trace: list[str]) -> list[str]:
    return trace


Seen = dict[str, Any]


@workflow
async def four(run: str) -> Seen:
    """Four branches: their first steps may end in any of 24 orders."""
    seen: Seen = {"trace": [], "snaps": []}

    async def branch(label: str) -> str:
        seen["trace"].append(await gated(run, label))
        seen["snaps"].append(await snap.aio(list(seen["trace"])))
        return label.upper()

    seen["value"] = await gather(*(branch(label) for label in "abcd"))
    return seen


@workflow
async def long_branches(run: str) -> Seen:
    """Three branches of two gated steps each, one of them with a gather of its own."""
    seen: Seen = {"trace": [], "snaps": []}

    async def branch(label: str) -> str:
        for n in "12":
            seen["trace"].append(await gated(run, label + n))
            seen["snaps"].append(await snap.aio(list(seen["trace"])))
        return label

    async def nested() -> list[str]:
        async def inner(label: str) -> str:
            seen["trace"].append(await gated(run, label))
            return label

        both = await gather(inner("c1"), inner("c2"))
        seen["snaps"].append(await snap.aio(list(seen["trace"])))
        return both

    seen["value"] = await gather(branch("a"), branch("b"), nested())
    return seen


@workflow
async def race(run: str) -> Seen:
    """A branch with a step in its finally, a step, a timer and a gather: one wins, the losers unwind."""
    seen: Seen = {"trace": [], "snaps": []}

    async def branch() -> str:
        try:
            seen["trace"].append(await gated(run, "a1"))
            seen["trace"].append(await gated(run, "a2"))
            return "a"
        finally:
            seen["snaps"].append(await snap.aio(list(seen["trace"])))
            seen["unwound"] = True

    async def watched(label: str) -> str:
        seen["trace"].append(await gated(run, label))
        return label

    seen["value"] = await first(a=branch(), b=watched("b"), c=sleep(3600), d=gather(watched("d1"), watched("d2")))
    seen["trace"].append(await gated(run, "z"))
    seen["snaps"].append(await snap.aio(list(seen["trace"])))
    return seen


@workflow
def four_def(run: str) -> Seen:
    value = sync.gather(*(gated.aio(run, label) for label in "abcd"))
    return {"trace": [], "snaps": [], "value": value, "last": gated.sync(run, "z")}


@workflow
def race_def(run: str) -> Seen:
    value = sync.first(b=gated.aio(run, "b"), c=supervisor.sleep(3600), d=supervisor.gather(gated.aio(run, "d1"), gated.aio(run, "d2")))
    return {"trace": [], "snaps": [], "value": value, "last": gated.sync(run, "z")}


@workflow
async def failing(run: str) -> Seen:
    """The first error of a gather is raised after the other branches were cancelled and have unwound."""
    seen: Seen = {"trace": [], "snaps": []}

    async def branch(label: str) -> str:
        try:
            return await gated(run, label)
        finally:
            seen["trace"].append(f"{label} left")
            seen["snaps"].append(await snap.aio(list(seen["trace"])))

    async def breaks() -> None:
        await gated(run, "x")
        raise ValueError("x broke")

    try:
        await gather(branch("a"), breaks(), branch("b"))
    except ValueError as error:
        seen["value"] = f"{error} after {len(seen['trace'])}"
    seen["last"] = await gated(run, "z")
    return seen


@workflow
async def empty() -> list[Any]:
    return [await gather(), await gather(gather(), sleep(0))]


@workflow
async def same_command_twice() -> Any:
    once = snap.aio(["x"])
    return [await once, await once, await gather(once)]


@workflow
def coroutine_in_def() -> Any:
    async def branch() -> int:
        await snap.aio([])
        return 1

    return sync.gather(branch())


@workflow
async def branches_lost(gate: str) -> list[str]:
    """A timer wins over a timer and a wait; then it stays where it can be looked at."""
    winner, _ = await first(won=sleep(0.001), slow=sleep(3600), said=branches_said.wait(timeout=3600))
    publish("winner", winner)
    return [winner, await branches_said.wait()]


@step
def gated_in_thread(gate: str) -> str:
    wait_for_file(gate, 120)
    return "slow"


@step(run="process")
def gated_in_process(gate: str) -> str:
    wait_for_file(gate, 120)
    return "slow"


@step(retry=Retry(initial=LATE_S))
async def tried_twice(gate: str) -> str:
    note("tried_twice", gate)
    if current().attempt == 1:
        raise ValueError("once more")
    return "late"


@workflow
async def late_beside(gate: str, what: str, how: str) -> str:
    """What is due later than a run waits in memory, beside a step that is longer: the step of *how* is at its gate."""
    steps = {"task": lambda: gated(gate, "slow"), "thread": lambda: gated_in_thread.aio(gate), "process": lambda: gated_in_process.aio(gate)}
    if what == "retry":
        await gather(steps[how](), tried_twice(gate))
        return "late"

    async def told() -> None:
        try:
            await branches_said.wait(timeout=LATE_S)
        except TimeoutError:
            return

    winner, _ = await first(slow=steps[how](), late=told() if what == "signal" else sleep(LATE_S))
    return winner


@workflow
def late_beside_def(gate: str) -> str:
    winner, _ = sync.first(slow=gated.aio(gate, "slow"), late=supervisor.sleep(LATE_S))
    return winner
