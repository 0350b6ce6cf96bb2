"""Parents that end before their children, and errors that go through generations."""

from __future__ import annotations

from supervisor import Cancelled, RunFailed, current, first, gather, sleep, start, step, workflow
from tests.apps.gates import at_gate
from tests.harness import note


@step
async def closing_stand(name: str, gate: str) -> str:
    note("closing_stand", name)
    await at_gate(gate)
    return name


@step(run="inline")
def closing_note(word: str, name: str) -> None:
    note(word, name)


@workflow
async def closing_sleeper(name: str) -> str:
    """Parked while it waits."""
    try:
        await closing_note.aio("closing_began", name)
        await sleep(3600)
    except Cancelled as why:
        await closing_note.aio("closing_told", f"{name} {why.reason.replace(' ', '_')} {why.actor.replace(' ', '_')}")
        raise
    return name


@workflow
async def closing_stander(name: str, gate: str) -> str:
    """In memory while it waits."""
    try:
        return await closing_stand(name, gate)
    except Cancelled:
        await closing_note.aio("closing_told", f"{name} stander")
        raise


@workflow
async def closing_grandparent(name: str) -> str:
    return await closing_sleeper(f"{name}-below")


@workflow
async def closing_leaves(policy: str, name: str, gate: str) -> list[str]:
    """Ends when its children stand or sleep."""
    how = {"parent_close": policy}
    kids = [
        await start(closing_sleeper.options(**how), f"{name}-sleeper"),  # type: ignore[arg-type]
        await start(closing_stander.options(**how), f"{name}-stander", f"{name}-never"),  # type: ignore[arg-type]
        await start(closing_grandparent.options(**how), name),  # type: ignore[arg-type]
        await start(closing_sleeper.options(delay=3600, **how), f"{name}-later"),  # type: ignore[arg-type]
    ]
    await closing_stand(name, gate)
    if name.startswith("fails"):
        raise ValueError(name)
    return [str(kid.id) for kid in kids]


@workflow(timeout=1.5)
async def closing_runs_out(name: str) -> None:
    await start(closing_sleeper, name)
    await sleep(3600)


@workflow
async def closing_waits_for_gone(name: str) -> str:
    try:
        return await closing_sleeper(name)
    except RunFailed as error:
        return str(error)


@workflow
async def closing_kid(n: int) -> int:
    return n


@workflow
async def closing_fan(n: int) -> int:
    return sum(await gather(*(closing_kid(at) for at in range(n))))


@workflow
async def closing_generation(depth: int) -> int:
    await closing_note.aio("closing_generation", str(current().run_id))
    if depth == 0:
        raise LookupError("the last one")
    return await closing_generation(depth - 1)


@workflow
async def closing_catches(depth: int) -> list[list[object]]:
    try:
        await closing_generation(depth)
    except RunFailed as error:
        return [list(link) for link in error.chain]
    return []


@workflow
async def closing_many(n: int) -> int:
    """Children at random: some end before it, some do not."""
    for at in range(n):
        await start(closing_sleeper, f"many{at}") if at % 2 else await start(closing_kid, at)
    return n


@workflow
async def closing_race(name: str, gate: str) -> list[str]:
    """Of the children that lose against a gate one sleeps, one stands, one has another below it; a fourth was only asked about. Then it lives on."""
    kept = await start(closing_sleeper, f"{name}-kept")
    winner, _ = await first(
        sleeper=closing_sleeper(f"{name}-sleeper"), stander=closing_stander(f"{name}-stander", f"{name}-never"), below=closing_grandparent(name),
        kept=kept.result(), gate=closing_stand(f"{name}-race", gate),
    )  # fmt: skip
    await closing_stand(f"{name}-on", f"{name}-on")
    return [winner, str(kept.id)]


@workflow
async def closing_broken(name: str, gate: str) -> str:
    """A branch fails beside a child."""
    try:
        await gather(closing_sleeper(f"{name}-sleeper"), closing_fails(f"{name}-fails", gate))
    except ValueError as error:
        await closing_stand(f"{name}-on", f"{name}-on")
        return str(error)
    return "nothing failed"


@step
async def closing_fails(name: str, gate: str) -> None:
    await at_gate(gate)
    raise ValueError(name)


@workflow
async def closing_late(name: str) -> str:
    """A child loses against a timer, and its parent goes on for long."""
    winner, _ = await first(kid=closing_grandparent(name), late=sleep(0.05))
    await sleep(0.3)
    return winner
