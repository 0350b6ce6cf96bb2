"""Workflows that forget to await something, and some that drop a command for a reason."""

from __future__ import annotations

import supervisor
from supervisor import Transaction, compensate, first, gather, sleep, step, workflow
from tests.harness import note


@step
async def forgotten_charge(amount: int) -> int:
    note("charge", amount)
    return amount


@step
def forgotten_pack(amount: int) -> int:
    note("pack", amount)
    return amount


@step
async def forgotten_fails() -> None:
    raise ValueError("declined")


@step(transactional=True)
def forgotten_undo(tx: Transaction) -> None:
    note("undone")


@workflow
async def forgets_a_step() -> str:
    await forgotten_pack.aio(1)
    forgotten_charge(1)  # here
    await forgotten_pack.aio(2)
    return "done"


@workflow
async def forgets_a_def_step() -> str:
    forgotten_pack.aio(1)  # here
    return "done"


@workflow
async def forgets_to_sleep() -> None:
    sleep(5)  # here


@workflow
async def forgets_a_group() -> None:
    gather(forgotten_charge(1), forgotten_charge(2))  # here


@workflow
def sleeps_in_def() -> str:
    sleep(3600)  # here
    return "done"


@workflow
def forgets_in_def() -> str:
    forgotten_pack.aio(1)  # here
    return "done"


@workflow
async def returns_a_command() -> int:
    return forgotten_charge(1)  # type: ignore[return-value]


@workflow
async def forgets_and_undoes() -> str:
    await forgotten_pack.aio(1)
    compensate(forgotten_undo)
    forgotten_charge(1)  # here
    return "done"


@workflow
async def drops_for_a_reason() -> str:
    """A loser that had a command in hand, and what was given up because of an error."""

    async def loser() -> None:
        kept = forgotten_charge(1)
        await sleep(60)
        await kept

    won, _ = await first(quick=forgotten_pack.aio(1), slow=loser())
    kept = forgotten_charge(2)
    try:
        await gather(forgotten_charge(3), forgotten_charge(int("none")))
    except ValueError:
        kept = forgotten_charge(4)
    try:
        await forgotten_fails()
        await kept
    except ValueError:
        return f"{won}, then declined"
    return "done"


@workflow
def gathers_in_def() -> list[int]:
    from supervisor import sync

    name, _ = sync.first(soon=forgotten_pack.aio(1), late=supervisor.sleep(60))
    return list(sync.gather(forgotten_pack.aio(2), forgotten_charge.aio(3))) if name == "soon" else []
