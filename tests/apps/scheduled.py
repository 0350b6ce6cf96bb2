"""Workflows that schedules start, and a schedule that the app declares."""

from __future__ import annotations

from datetime import datetime

from supervisor import Schedule, continue_as_new, sleep, step, workflow
from tests.harness import note


@step
async def scheduled_note(word: str, at: str) -> None:
    note(word, at)


@workflow
async def scheduled_tick(at: datetime, word: str = "tick") -> str:
    await scheduled_note(word, at.isoformat())
    return at.isoformat()


@workflow
async def scheduled_plain(n: int = 0) -> int:
    return n


@workflow(timeout=3600)
async def scheduled_long(word: str) -> str:
    await scheduled_note(word, "began")
    await sleep(3600)
    return word


@workflow
async def scheduled_chain(left: int) -> int:
    if left:
        continue_as_new(left - 1)
    await sleep(3600)
    return left


scheduled_yearly = Schedule("scheduled.yearly", scheduled_tick, cron="0 3 1 1 *", timezone="Europe/Berlin", pass_tick="at", input={"word": "yearly"})
