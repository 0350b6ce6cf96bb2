"""The smallest app: three steps, with a failpoint before the second."""

from supervisor import step, workflow
from tests.harness import note, wait_for_file


@step
def first_step(order: int) -> int:
    note("first_step", order)
    return order + 1


@step
def second_step(order: int, gate: str) -> int:
    note("second_step_begun", order)
    if gate:
        wait_for_file(gate)
    note("second_step", order)
    return order * 2


@step(transactional=True)
def book(tx, order: int) -> int:  # type: ignore[no-untyped-def]
    tx.execute("insert into ledger (entry) values (%s)", (order,))
    return order


@workflow
async def three_steps(order: int, gate: str = "") -> int:
    one = await first_step.aio(order)
    two = await second_step.aio(one, gate)
    return await book.aio(two)
