"""Runs that can be asked: handlers with and without an argument, good ones and bad ones; and histories of every kind of record."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

from supervisor import Query, Signal, first, gather, now, publish, random, sleep, start, step, sync, workflow
from tests.apps.gates import at_gate
from tests.harness import note


@dataclass
class Progress:
    done: list[int]
    of: int


progress = Query("progress", Progress)
item = Query("item", int, takes=int)
plain = Query("plain")
wrong = Query("wrong", int)
seen = Query("seen", list[str])
heard = Signal("queried_heard", int)


@step
async def queried_gate(run: str, name: str) -> str:
    await at_gate(f"{run}.{name}", 120)
    return name


@step
def queried_step(value: int) -> int:
    note("queried_step", value)
    return value


@step(transactional=True)
def queried_tx(tx: Any, value: int) -> int:
    tx.execute("select 1")
    return value


@workflow
async def queried_child(value: int) -> int:
    return value


@workflow
async def answers(run: str, steps: int) -> str:
    done: list[int] = []

    @progress.handler
    def _() -> Progress:
        return Progress(done, steps)

    @item.handler
    def _(at: int) -> int:
        return done[at]

    plain.handler(lambda: {"done": len(done)})
    for n in range(steps):
        done.append(await queried_step.aio(n))
    await queried_gate(run, "middle")
    done.append(-1)
    await queried_gate(run, "end")
    return "returned"


@workflow
def answers_def(run: str, steps: int) -> str:
    done: list[int] = []
    progress.handler(lambda: Progress(done, steps))
    for n in range(steps):
        done.append(queried_step(n))
    queried_gate.sync(run, "middle")
    sync.sleep(0)
    done.append(-1)
    return "returned"


@workflow
async def answers_of_every_kind(run: str) -> list[str]:
    """One of everything that a history can hold."""
    trace: list[str] = []
    seen.handler(lambda: trace)
    trace.append(f"step {await queried_step.aio(1)}")
    trace.append(f"tx {await queried_tx.aio(2)}")
    await sleep(0.01)
    trace.append("slept")
    trace.append(f"child {await queried_child(3)}")
    kid = await start(queried_child, 4)
    trace.append(f"started {await kid.result()}")
    trace.append(f"both {await gather(queried_step.aio(5), queried_tx.aio(6))}")
    trace.append(f"first {await first(won=queried_step.aio(7), lost=sleep(3600))}")
    trace.append(f"heard {await heard.wait()}")
    try:
        await heard.wait(timeout=0.01)
    except TimeoutError:
        trace.append("heard no more")
    try:
        await queried_failure.aio()
    except ValueError as error:
        trace.append(f"caught {error}")
    publish("trace", len(trace))
    trace.append(f"{random().random()} {now()}")
    await queried_gate(run, "middle")
    trace.append("over")
    return trace


@step
def queried_failure() -> None:
    raise ValueError("on purpose")


@workflow
async def answers_wrongly(run: str, what: str) -> None:
    def handler() -> Any:
        if what == "raises":
            raise KeyError("no such thing")
        if what == "type":
            return "not an int"
        if what == "nan":
            return float("nan")
        if what == "step":
            return queried_step(1)
        if what == "step aio":
            return queried_step.aio(1)
        if what == "async step":
            return queried_gate(run, "x")
        if what == "sleep":
            return sleep(1)
        if what == "signal":
            return heard.wait()
        if what == "gather":
            return gather()
        if what == "child":
            return queried_child(1)
        if what == "start":
            return start(queried_child, 1)
        if what == "publish":
            return publish("x", 1)
        if what == "client":
            from supervisor.api.client import default_client

            return default_client().list()
        if what == "exits":
            os._exit(3)
        if what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "stuck":
            time.sleep(3600)
        return 0

    wrong.handler(handler)
    await queried_gate(run, "end")


@workflow
async def answers_slowly(run: str, seconds: float) -> None:
    """Its replay notes that it runs; its handler holds the answer back until the test lets it go."""
    note("replayed", run)

    @plain.handler
    def _() -> str:
        note("asked", run, os.getpid())
        until = time.monotonic() + seconds
        while time.monotonic() < until and not os.path.exists(os.path.join(os.path.dirname(os.environ["TEST_EFFECTS"]), f"{run}.answer")):
            time.sleep(0.01)
        return "answered"

    await queried_gate(run, "end")


@workflow
async def answers_long(run: str, steps: int) -> int:
    total = 0
    plain.handler(lambda: total)
    for n in range(steps):
        total += await queried_quick.aio(n)
    await queried_gate(run, "end")
    return total


@step
def queried_quick(n: int) -> int:
    return n


@workflow
async def handles_wrongly(what: str) -> None:
    async def waits() -> int:
        return 1

    if what == "async":
        wrong.handler(waits)  # type: ignore[arg-type]
    elif what == "argument":
        wrong.handler(lambda at: at)  # type: ignore[arg-type,misc]
    elif what == "nothing":
        wrong.handler(3)  # type: ignore[arg-type]


@workflow
async def without_handlers() -> None: ...
