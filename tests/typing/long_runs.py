"""Runs that last: continue_as_new ends the function, and another workflow's arguments are checked; progress and attributes."""

from datetime import datetime

from supervisor import AsyncClient, Client, continue_as_new, current, progress, set_attributes, workflow
from supervisor import sync


@workflow
async def other(text: str) -> int:
    return len(text)


@workflow(max_steps=10)
async def counts(left: int) -> int:
    progress(1, 2.5)
    progress("1")  # E: arg-type reportArgumentType
    set_attributes(stage="paid", amount=1.5, due=datetime.now(), tags=["a"])
    set_attributes({"stage": None})
    reveal_type(current().should_continue)  # R: bool
    if left == 1:
        continue_as_new(left - 1)
    if left == 2:
        continue_as_new(other, "two")
    if left == 3:
        continue_as_new(other.options(queue="q"), "three")
    return "none"  # E: return-value reportReturnType


@workflow
def counts_def(left: int) -> int:
    if left:
        sync.continue_as_new(left - 1)
    else:
        return 0


with Client("postgresql:///") as client:
    run = client.start(counts, 1)
    reveal_type(run.progress())  # R: Progress | None
    reveal_type(run.attributes())  # R: Mapping[str, Any]
    reveal_type(client.progress(run.id))  # R: Progress | None


async def main() -> None:
    async with AsyncClient("postgresql:///") as c:
        reveal_type(await c.attributes("…"))  # R: Mapping[str, Any]
