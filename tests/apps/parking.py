"""Parents that are parked on children of another queue, so that another worker has these."""

from __future__ import annotations

from supervisor import RunCancelled, RunTerminated, gather, start, step, workflow
from tests.harness import note, wait_for_file


@step(run="thread")
def parked_at(gate: str) -> str:
    note("parked_kid", gate)
    wait_for_file(gate)
    return gate


@workflow(queue="parked_kids")
async def parked_kid(gate: str) -> str:
    return await parked_at.aio(gate)


@workflow(queue="parked_kids")
async def parked_quick(n: int) -> int:
    return n


@workflow(queue="parked_parents")
async def parked_parent(gate: str) -> str:
    return await parked_kid(gate)


@workflow(queue="parked_parents")
async def parked_catcher(gate: str, afterwards: str) -> list[str]:
    """What it is told of its child, before and after its worker died."""
    kid = await start(parked_kid, gate)
    told = ["nothing"]
    try:
        await kid.result()
    except (RunCancelled, RunTerminated) as error:
        told = [type(error).__name__, str(error.run_id), error.workflow, error.why]
    await parked_at.aio(afterwards)
    return [str(kid.id), *told]


@workflow(queue="parked_parents")
async def parked_beside(gate: str, kids: str) -> str:
    """In memory until *gate* opens, then parked on the child."""
    try:
        await gather(parked_at.aio(gate), parked_kid(kids))
    except RunTerminated as error:
        return error.why
    return "nothing"
