"""Runs that wait for signals and can be asked what they were given: at the front of their history, in groups, with timeouts."""

from __future__ import annotations

from typing import Any

from supervisor import (
    InputInvalid,
    Query,
    Signal,
    first,
    gather,
    publish,
    sleep,
    step,
    sync,
    workflow,
)

given = Query("given", list[Any])

pages = Signal("pages", int)
covers = Signal("covers", str)
pages_def = sync.Signal("pages", int)
covers_def = sync.Signal("covers", str)


@step
def filed(page: int) -> int:
    return page


@workflow
async def asked_at_once() -> list[Any]:
    """A wait is the first thing that it ever does."""
    got: list[Any] = []
    given.handler(lambda: got)
    for _ in range(3):
        got.append(await pages.wait())
        publish("pages", len(got))
    return got


@workflow
def asked_at_once_def() -> list[Any]:
    got: list[Any] = []
    given.handler(lambda: got)
    for _ in range(3):
        got.append(pages_def.wait())
        sync.publish("pages", len(got))
    return got


@workflow
async def asked_between() -> list[Any]:
    """Waits of every kind, each of them for what a test sends, or lets expire."""
    got: list[Any] = []
    given.handler(lambda: got)
    got.append(await filed.aio(await pages.wait()))
    got.append(list(await gather(pages.wait(), covers.wait(), pages.wait())))
    got.append(list(await first(page=pages.wait(timeout=3600), cover=covers.wait(), late=sleep(3600))))
    try:
        await pages.wait(timeout=0.05)
    except TimeoutError as error:
        got.append(str(error))
    try:
        await pages.wait(timeout=3600)
    except InputInvalid as error:
        got.append(error.name)
    got.append(await pages.wait(timeout=3600))
    return got


@workflow
def asked_between_def() -> list[Any]:
    got: list[Any] = []
    given.handler(lambda: got)
    got.append(filed(pages_def.wait()))
    got.append(list(sync.gather(pages_def.aio(), covers_def.aio(), pages_def.aio())))
    got.append(list(sync.first(page=pages_def.aio(timeout=3600), cover=covers_def.aio())))
    try:
        pages_def.wait(timeout=0.05)
    except TimeoutError as error:
        got.append(str(error))
    try:
        pages_def.wait(timeout=3600)
    except InputInvalid as error:
        got.append(error.name)
    got.append(pages_def.wait(timeout=3600))
    return got


@workflow
async def asked_for_a_wait() -> str:
    """Its handler waits for a signal, which no handler may."""
    given.handler(lambda: [pages.wait()])
    return await covers.wait()


@workflow
def asked_for_a_wait_def() -> str:
    given.handler(lambda: [pages_def.wait()])
    return covers_def.wait()
