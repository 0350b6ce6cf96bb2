"""Steps that fail in different ways at the same place, and runs that end by errors of their own, until a test has mended all of it."""

from __future__ import annotations

import os
from pathlib import Path

from supervisor import Retry, step, workflow
from tests.harness import note


class Declined(Exception):
    pass


class Unreachable(Exception):
    pass


def mended() -> bool:
    return (Path(os.environ["TEST_EFFECTS"]).parent / "mended").exists()


def judge(how: str) -> str:
    """The place at which all steps fail: errors of one kind have the same fingerprint at each."""
    if mended() or how == "well":
        return how
    raise {"declined": Declined, "unreachable": Unreachable}[how](how)


@step(retry=Retry(max_attempts=9, initial=3e6, maximum=3e6))
def charge(how: str) -> str:
    note("charge", how)
    return judge(how)


@step(retry=Retry(max_attempts=9, initial=3e6, maximum=3e6))
def refund(how: str) -> str:
    return judge(how)


@step
def once(how: str) -> str:
    return judge(how)


@workflow(queue="erring")
async def erring(place: str, how: str) -> str:
    return await {"charge": charge, "refund": refund, "once": once}[place].aio(how)


@workflow(queue="erring")
async def raising(line: int) -> int:
    if mended():
        return line
    if line == 1:
        raise ValueError("one line")
    raise ValueError("another line")
