"""Steps that take long: signs of life, what the next try finds of them, and the time of all tries together."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass

from supervisor import CompleteLater, HeartbeatMissed, Retry, StepTimeout, current, heartbeat, step, workflow
from tests.harness import note, wait_for_file

AGAIN = Retry(max_attempts=3, initial=0.01)


@dataclass
class Row:
    number: int
    words: list[str]


def _goes_through(name: str) -> list[int]:
    """Ten rows; the first two tries fail after four each. What is returned: where each try began, as the last one knows it."""
    before = current().heartbeat_details(Row)
    began = before.number if before is not None else 0
    note("long_began", name, current().attempt, began)
    for row in range(began, 10):
        heartbeat(Row(row + 1, ["ü"]))
        if current().attempt < 3 and row == began + 3:
            raise ValueError(f"at row {row}")
    return [began, current().attempt]


@step(retry=AGAIN, heartbeat=30.0)
def long_thread(name: str) -> list[int]:
    return _goes_through(name)


@step(retry=AGAIN, heartbeat=30.0)
async def long_task(name: str) -> list[int]:
    return await asyncio.to_thread(_goes_through, name)


@step(retry=AGAIN, heartbeat=30.0, run="process")
def long_process(name: str) -> list[int]:
    return _goes_through(name)


@step(retry=AGAIN, run="inline")
def long_inline(name: str) -> list[int]:
    return _goes_through(name)


LONG = {"thread": long_thread, "process": long_process, "inline": long_inline}


@workflow
async def longsteps_resume(where: str, name: str) -> list[int]:
    return await (long_task(name) if where == "task" else LONG[where].aio(name))


# ── no sign of life ──────────────────────────────────────────────────────────────────────────────────────────────


def _falls_silent(name: str) -> str:
    note("long_silent", name, current().attempt, os.getpid())
    if current().attempt == 2:
        return f"try 2 knows {current().heartbeat_details()}"
    for beat in range(5):
        heartbeat({"beat": beat})
        time.sleep(0.1)
    heartbeat()  # what was said before stays
    time.sleep(600)
    return "never"


@step(retry=AGAIN, heartbeat=0.6)
def silent_thread(name: str) -> str:
    return _falls_silent(name)


@step(retry=AGAIN, heartbeat=0.6, run="process", timeout=300.0)
def silent_process(name: str) -> str:
    return _falls_silent(name)


@step(retry=AGAIN, heartbeat=0.6)
async def silent_task(name: str) -> str:
    if current().attempt == 2:
        return f"try 2 knows {current().heartbeat_details()}"
    try:
        heartbeat({"beat": 4})
        await asyncio.sleep(600)
    finally:
        note("long_cancelled", name)
    return "never"


@workflow
async def longsteps_silent(where: str, name: str) -> str:
    return await (silent_task(name) if where == "task" else {"thread": silent_thread, "process": silent_process}[where].aio(name))


@step(heartbeat=0.5)
def silent_for_good() -> None:
    time.sleep(600)


@workflow
async def longsteps_missed() -> str:
    try:
        await silent_for_good.aio()
    except HeartbeatMissed as error:
        return str(error)
    return "not missed"


# ── a worker dies ────────────────────────────────────────────────────────────────────────────────────────────────


@step(heartbeat=60.0)
def gated(name: str) -> object:
    before = current().heartbeat_details()
    note("long_gated", name, str(before))
    if before is None:
        heartbeat({"row": 1})
        wait_for_file(f"{name}.more")
        heartbeat({"row": 2})
        wait_for_file(f"{name}.never")
    return before


@workflow
def longsteps_gated(name: str) -> object:
    return gated(name)


# ── all tries together ───────────────────────────────────────────────────────────────────────────────────────────


@step(retry=Retry(max_attempts=1000, initial=0.05, factor=1.0), schedule_to_close=1.0)
def fails_on(name: str) -> None:
    note("long_fails", name, current().attempt)
    raise ValueError("on purpose")


@step(retry=Retry(max_attempts=1000, initial=0.01), schedule_to_close=1.0)
def hangs_on(name: str) -> None:
    deadline = current().deadline
    note("long_hangs", name, deadline is not None)
    time.sleep(600)


@step(retry=Retry(max_attempts=1000, initial=0.01), schedule_to_close=1.0, run="process")
def process_hangs(name: str) -> None:
    note("long_hangs", name, current().deadline is not None, os.getpid())
    time.sleep(600)


@step(retry=Retry(max_attempts=1000, initial=0.01), schedule_to_close=1.0)
def token_hangs(name: str) -> None:
    raise CompleteLater()


@step(retry=Retry(max_attempts=1000, initial=1e9, factor=1.0, maximum=1e9), schedule_to_close=30.0)
def far_apart(name: str) -> None:
    note("long_far", name)
    raise ValueError("the next try would be too late")


@step(transactional=True, retry=Retry(max_attempts=1000, initial=0.05, factor=1.0), schedule_to_close=1.0)
def tx_fails_on(tx: object, name: str) -> None:
    note("long_fails", name, current().attempt)
    raise ValueError("on purpose")


CLOSING = {"fails": fails_on, "hangs": hangs_on, "process": process_hangs, "token": token_hangs, "far": far_apart, "tx": tx_fails_on}


@workflow
async def longsteps_closing(what: str, name: str) -> list[str]:
    try:
        await CLOSING[what].aio(name)  # type: ignore[operator]
    except StepTimeout as error:
        return ["StepTimeout", str(error)]
    except ValueError as error:
        return ["ValueError", str(error)]
    return ["nothing", ""]


@step(retry=Retry(max_attempts=1000, initial=0.01), schedule_to_close=3.0)
def dies_on(name: str) -> str:
    note("long_dies", name)
    wait_for_file(f"{name}.never")
    return "never"


@workflow
async def longsteps_dying(name: str) -> str:
    try:
        return await dies_on.aio(name)
    except StepTimeout as error:
        return str(error)
