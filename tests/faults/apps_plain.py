"""Plain runs for the tests of wire, claims and starvation: no effects file unless asked for."""

from supervisor import Retry, current, step, workflow
from tests.harness import note, wait_for_file


@step(run="inline")
def add_one(n: int) -> int:
    return n + 1


@workflow
async def ten_steps(n: int) -> int:
    for _ in range(10):
        n = await add_one.aio(n)
    return n


@workflow
async def one_step(n: int) -> int:
    return await add_one.aio(n)


@step
def held(word: str, gate: str) -> str:
    note("held", word)
    wait_for_file(gate)
    return word


@workflow
async def waits_at_gate(word: str, gate: str = "gate") -> str:
    return await held.aio(word, gate)


@step(retry=Retry(max_attempts=5, initial=2.0, factor=1.0))
def third_time_lucky(n: int) -> int:
    """Every tenth run fails twice; waits of up to two seconds, so that the retried runs leave memory and queue up again."""
    if n % 10 == 0 and current().attempt < 3:
        raise ConnectionError("not yet")
    return n


@workflow
async def retried(n: int) -> int:
    return await third_time_lucky.aio(n)
