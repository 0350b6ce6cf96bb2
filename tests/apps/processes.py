"""Steps that run in processes of their own, and what may become of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime

from supervisor import Retry, RetryAfter, current, gather, step, workflow
from tests.harness import note, wait_for_file


@dataclass
class Page:
    number: int
    words: list[str]
    at: datetime | None = None


class Unreadable(Exception):
    pass


@step(run="process")
def where(note_it: str = "", *, gate: str = "") -> dict[str, int]:
    if note_it:
        note("began", note_it, os.getpid(), os.getppid())
    if gate:
        wait_for_file(gate)
    return {"pid": os.getpid(), "group": os.getpgid(0), "parent": os.getppid()}


@step(run="process")
def turn(page: Page, by: int = 1) -> Page:
    return Page(page.number + by, page.words[::-1], page.at)


@step(run="process")
def says() -> list[str | int | None]:
    now = current()
    return [str(now.run_id), now.key, now.workflow, now.step, now.seq, now.attempt, now.idempotency_key]


@step(run="process")
def unreadable(text: str) -> None:
    raise Unreadable(f"can't read {text}")


@step(run="process", retry=Retry(max_attempts=3, initial=0.01))
def third_time(name: str) -> int:
    note("tried", name, current().attempt)
    if current().attempt == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if current().attempt == 2:
        raise RetryAfter(0.01)
    return current().attempt


@step(run="process")
def dies(how: str) -> None:
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), getattr(signal, how))


@step(run="process", timeout=0.3, retry=Retry(max_attempts=2, initial=0.01))
def holds_everything(name: str) -> int:
    """The first attempt computes for ever with SIGTERM ignored, and so does what it has started."""
    if current().attempt == 2:
        return 2
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    other = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"])
    note("holding", name, os.getpid(), other.pid)
    time.sleep(600)
    return 1


@step(run="process")
def unfit() -> float:
    return float("nan")


@step(run="thread", timeout=0.1)
def hangs(name: str) -> None:
    note("hangs", name)
    wait_for_file(name)


@workflow
async def process_asked_where(note_it: str = "", gate: str = "") -> dict[str, int]:
    return await where.aio(note_it, gate=gate)


@workflow
def process_asked_where_def(note_it: str = "", gate: str = "") -> dict[str, int]:
    return where(note_it, gate=gate)


@workflow
async def process_turns(page: Page) -> Page:
    return await turn.aio(await turn.aio(page), by=2)


@workflow
async def process_asked_who() -> list[str | int | None]:
    return await says.aio()


@workflow
async def process_raising(text: str) -> str:
    try:
        await unreadable.aio(text)
    except Unreadable as error:
        return str(error)
    return "nothing"


@workflow
async def process_retried(name: str) -> int:
    return await third_time.aio(name)


@workflow
async def process_dying(how: str) -> None:
    await dies.aio(how)


@workflow
async def process_held(name: str) -> int:
    return await holds_everything.aio(name)


@workflow
async def process_several(n: int) -> list[int]:
    return [place["pid"] for place in await gather(*(where.aio() for _ in range(n)))]


@workflow
async def process_nan() -> float:
    return await unfit.aio()


@workflow
async def process_hanging(name: str) -> str:
    try:
        await hangs.aio(name)
    except TimeoutError:
        return "timeout"
    return "ended"
