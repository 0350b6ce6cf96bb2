"""Workflows that use asyncio where only durable words are replayed. The line that must be named is marked `# here`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from supervisor import gather, step, sync, workflow
from tests.harness import note


@step
def noop() -> int:
    return 1


async def leak() -> None:
    note("leaked")


def _leak() -> None:
    note("leaked")


MISUSES: dict[str, tuple[Any, str]] = {}


def misuse(word: str) -> Callable[[Any], Any]:
    """Register a workflow and the durable word that its error must name."""

    def decorate(fn: Any) -> Any:
        MISUSES[fn.__name__] = (workflow(fn), word)
        return MISUSES[fn.__name__][0]

    return decorate


@misuse("sleep(")
async def sleeping() -> None:
    await noop.aio()
    await asyncio.sleep(1)  # here


@misuse("sleep")
async def sleeping_zero() -> None:
    await asyncio.sleep(0)  # here


@misuse("gather(")
async def gathering() -> None:
    await asyncio.gather(leak(), leak())  # here


@misuse("gather(")
async def gathering_steps() -> None:
    await asyncio.gather(noop.aio(), noop.aio())  # here


@misuse("gather(")
async def task_group() -> None:
    async with asyncio.TaskGroup() as group:  # here
        group.create_task(leak())


@misuse("timeout=")
async def timing_out() -> None:
    async with asyncio.timeout(1):  # here
        await noop.aio()


@misuse("timeout=")
async def waiting_for_a_step() -> None:
    await asyncio.wait_for(noop.aio(), 1)  # here


@misuse("timeout=")
async def waiting_for_a_coroutine() -> None:
    await asyncio.wait_for(leak(), 1)  # here


@misuse("gather(")
async def creating_a_task() -> None:
    asyncio.create_task(leak())  # here
    await noop.aio()


@misuse("gather(")
async def ensuring_a_future() -> None:
    asyncio.ensure_future(leak())  # here
    await noop.aio()


@misuse("step")
async def to_a_thread() -> None:
    await asyncio.to_thread(_leak)  # here


@misuse("step")
async def in_an_executor() -> None:
    await asyncio.get_running_loop().run_in_executor(None, _leak)  # here


@misuse("step")
async def by_the_event_loop() -> None:
    asyncio.get_event_loop().create_task(leak())  # here
    await noop.aio()


@misuse("step")
async def bare_future() -> None:
    await asyncio.Future[int]()  # here


@misuse("gather")
async def waiting() -> None:
    await asyncio.wait([asyncio.ensure_future(leak())])  # here


@misuse("step")
async def on_an_event() -> None:
    await asyncio.Event().wait()  # here


@misuse("step")
async def on_a_queue() -> None:
    await asyncio.Queue[int]().get()  # here


@misuse("step")
async def opening_a_connection() -> None:
    await asyncio.open_connection("localhost", 1)  # here


@misuse("sleep")
async def in_a_branch() -> None:
    async def branch() -> None:
        await noop.aio()
        await asyncio.sleep(0)  # here

    await gather(branch(), noop.aio())


class _Odd:
    def __await__(self) -> Any:
        yield "odd"


@misuse("step")
async def an_awaitable_of_ones_own() -> None:
    await _Odd()  # here


@misuse("step")
def task_in_def() -> None:
    noop()
    asyncio.get_running_loop().call_soon(_leak)  # here


def line_of(name: str) -> int:
    """The line that is marked in workflow *name*."""
    lines, first = inspect.getsourcelines(MISUSES[name][0].fn)
    return first + next(at for at, line in enumerate(lines) if line.rstrip().endswith("# here"))


@workflow
async def catches_and_goes_on() -> int:
    try:
        await asyncio.sleep(0)
    except Exception:  # noqa: BLE001
        return await noop.aio()
    return -1


_leaked_command: list[Any] = []


@workflow
async def lends_its_command() -> None:
    _leaked_command.append(noop.aio())
    await noop.aio()


@workflow
async def awaits_anothers_command() -> int:
    return int(await _leaked_command[0])


async def _three() -> int:
    await asyncio.sleep(0)
    return 3


@step(run="inline")
def runs_asyncio() -> int:
    return asyncio.run(_three())


@workflow
async def step_runs_asyncio() -> int:
    return await runs_asyncio.aio()


@workflow
def ordinary_def() -> int:
    return sum(sync.gather(noop.aio(), noop.aio()))
