"""A step that takes more memory than there is, once or every time, and one that runs beside it."""

from __future__ import annotations

import os
from pathlib import Path

from supervisor import step, workflow
from tests.harness import note, wait_for_file

PART_BYTES = 16 << 20


@step(run="thread")
def eat(megabytes: int, times: int) -> int:
    """More than the group may have, the first *times* times; the pages are written, for memory is taken when it is used."""
    note("eat", os.getpid())
    if len(Path(os.environ["TEST_EFFECTS"]).read_text().splitlines()) > times + 1:  # the neighbour's note is there too
        return megabytes
    held = [b"x" * PART_BYTES for _ in range((megabytes << 20) // PART_BYTES)]
    return sum(map(len, held)) >> 20


@workflow(queue="hungry")
async def hungry(megabytes: int, times: int) -> int:
    return await eat.aio(megabytes, times)


@step(run="thread")
def sit_beside() -> str:
    note("beside", os.getpid())
    wait_for_file("enough")
    return "done"


@workflow(queue="hungry")
async def beside_the_hungry() -> str:
    return await sit_beside.aio()
