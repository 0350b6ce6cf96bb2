"""Workflows that schedules start, and schedules that the app declares."""

from __future__ import annotations

from datetime import datetime

from supervisor import Schedule, sleep, step, workflow
from tests.harness import note, wait_for_file


@step
async def scheduled_note(word: str, at: str) -> None:
    note(word, at)


@step
def scheduled_wait(name: str) -> None:
    wait_for_file(name)


@workflow
async def scheduled_tick(at: datetime, word: str = "tick") -> str:
    await scheduled_note(word, at.isoformat())
    return at.isoformat()


@workflow
async def scheduled_plain(n: int = 0) -> int:
    return n


@workflow
async def scheduled_long(word: str) -> str:
    note(f"{word}-began", word)
    await sleep(3600)
    return word


@workflow(timeout=3600)
async def scheduled_until(word: str) -> str:
    await scheduled_wait.aio(word)
    return word


scheduled_yearly = Schedule("scheduled.yearly", scheduled_tick, cron="0 3 1 1 *", timezone="Europe/Berlin", pass_tick="at", input={"word": "yearly"})
