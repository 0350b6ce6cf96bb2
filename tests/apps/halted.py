"""Runs that are cancelled in every state that a run can be in, and what their code makes of it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

from supervisor import Cancelled, Retry, Signal, current, first, gather, shield, sleep, start, step, sync, workflow
from tests.apps.gates import at_gate
from tests.harness import note, wait_for_file

halt_never = Signal("halt_never", str)


@step
async def halt_in_task(name: str) -> str:
    note("halt_began", name, current().seq)
    try:
        await at_gate(f"{name}.never")
    except asyncio.CancelledError:
        note("halt_stopped", name)
        raise
    return name


@step(run="thread")
def halt_in_thread(name: str) -> str:
    note("halt_began", name)
    if current().cancelled.wait(30):
        note("halt_stopped", name, bool(current().cancelled))
    return name


@step(run="process")
def halt_in_process(name: str) -> str:
    signal.signal(signal.SIGTERM, lambda *_: note("halt_stopped", name))
    note("halt_began", name, os.getpid())
    while True:
        time.sleep(0.01)


@step(transactional=True)
def halt_in_transaction(tx: Any, name: str) -> str:
    note("halt_began", name)
    wait_for_file(f"{name}.tx")
    return name


@step(retry=Retry(max_attempts=3, initial=3e6, maximum=3e6))
def halt_fails(name: str) -> str:
    note("halt_began", name)
    raise OSError("not now")


@step(run="inline")
def halt_note(word: str, name: str) -> None:
    note(word, name)


@step
async def halt_gate(name: str) -> str:
    note("halt_gate", name, int(current().redelivered))
    await at_gate(name)
    return name


@step
def halt_snap(trace: list[str]) -> list[str]:
    return trace


@workflow
async def halt_child(name: str) -> None:
    await halt_note.aio("halt_began", name)
    await sleep(3600)


async def _waits(kind: str, name: str) -> Any:
    if kind == "sleep":
        return await sleep(3600)
    if kind == "signal":
        return await halt_never.wait()
    if kind == "limited":
        return await halt_never.wait(timeout=3600)
    if kind == "child":
        return await halt_child(name)
    if kind == "backoff":
        return await halt_fails.aio(name)
    if kind == "async":
        return await halt_in_task(name)
    if kind == "thread":
        return await halt_in_thread.aio(name)
    if kind == "process":
        return await halt_in_process.aio(name)
    if kind == "transaction":
        await halt_in_transaction.aio(name)
        return await sleep(3600)
    if kind == "gather":
        return await gather(halt_in_task(f"{name}a"), halt_in_thread.aio(f"{name}b"), sleep(3600), halt_child(f"{name}c"))
    return await first(a=halt_in_task(f"{name}a"), b=gather(halt_in_thread.aio(f"{name}b"), halt_never.wait()))


@workflow
async def halt_waits(kind: str, name: str) -> str:
    try:
        await halt_note.aio("halt_waits", name)
        await _waits(kind, name)
    except Cancelled as why:
        await shield(halt_note.aio("halt_told", f"{name} {why.reason.replace(' ', '_')} {why.actor}"), timeout=20)
        raise
    return name


@workflow
def halt_waits_def(kind: str, name: str) -> str:
    try:
        halt_note("halt_waits", name)
        if kind == "sleep":
            sync.sleep(3600)
        else:
            sync.gather(halt_in_task.aio(f"{name}a"), halt_in_thread.aio(f"{name}b"))
    except Cancelled as why:
        sync.shield(halt_note.aio("halt_told", f"{name} {why.reason.replace(' ', '_')} {why.actor}"), timeout=20)
        raise
    return name


@workflow
async def halt_answers(how: str) -> str:
    """What its code makes of it."""
    try:
        await halt_note.aio("halt_began", how)
        await sleep(3600)
    except Cancelled as why:
        if how == "fails":
            raise ValueError(f"could not clean up after {why}") from why
        if how == "goes_on":
            await sleep(0.1)
        return f"{how}: {why}"
    return how


@workflow
async def halt_starts_after(name: str) -> str:
    """A child that is started to clean up lives: its parent had been told."""
    try:
        await halt_note.aio("halt_began", name)
        await sleep(3600)
    except Cancelled:
        return await halt_cleans(name)
    return name


@workflow
async def halt_cleans(name: str) -> str:
    return await halt_gate(f"{name}.clean")


@workflow
async def halt_tree(widths: list[int], name: str) -> int:
    if not widths:
        await halt_note.aio("halt_leaf", name)
        await sleep(3600)
        return 1
    return 1 + sum(await gather(*(halt_tree(widths[1:], name) for _ in range(widths[0]))))


@workflow
async def halt_branches(name: str) -> list[list[str]]:
    """Branches are told, each in its turn; a replay tells them so again."""
    trace: list[str] = []

    async def branch(label: str) -> None:
        try:
            await halt_gate(f"{name}.{label}")
            trace.append(f"{label} done")
            await sleep(3600)
        except Cancelled as why:
            trace.append(f"{label} {why.reason}")
            await shield(halt_snap.aio([label]), timeout=20)
            trace.append(f"{label} cleaned")
            raise

    try:
        await gather(branch("a"), branch("b"), first(c=branch("c"), d=branch("d")))
    except Cancelled as why:
        trace.append(f"root {why.reason}")
    live = await halt_snap.aio(list(trace))
    await halt_gate(f"{name}.cleaning")
    return [live, trace]


@workflow
async def halt_shielded(name: str) -> str:
    """Cancelled inside of its shield."""

    async def body() -> str:
        one = await halt_gate(f"{name}.one")
        return one + await halt_gate(f"{name}.two")

    try:
        found = await shield(body(), timeout=60)
    except Cancelled as why:
        await halt_note.aio("halt_told", f"{name} {why.reason} {type(why.__cause__).__name__}")
        raise
    return found


@workflow
async def halt_too_long(name: str) -> str:
    async def body() -> None:
        try:
            await halt_gate(f"{name}.never")
        finally:
            await halt_note.aio("halt_cut", name)

    try:
        await halt_note.aio("halt_began", name)
        await sleep(3600)
    except Cancelled:
        try:
            await shield(body(), timeout=0.2)
        except TimeoutError as error:
            return f"{error}"
    return name


@workflow
def halt_too_long_def(name: str) -> str:
    try:
        return sync.shield(halt_gate.aio(f"{name}.never"), timeout=0.2)
    except TimeoutError as error:
        return f"{error}"


@workflow
async def halt_shield_values(name: str) -> list[Any]:
    """Without a cancellation a shield is a wait with a limit."""
    got: list[Any] = [await shield(halt_snap.aio(["x"])), await shield(gather(halt_snap.aio(["y"]), sleep(0)), timeout=None)]
    try:
        await shield(halt_fails_once.aio(), timeout=5)
    except OSError as error:
        got.append(str(error))

    async def loser() -> str:
        try:
            return await shield(halt_gate(f"{name}.loser"), timeout=60)
        finally:
            got.append("the loser ended")

    got.append(await first(a=loser(), b=halt_gate(f"{name}.winner")))
    return got


@step
def halt_fails_once() -> None:
    raise OSError("no")


@workflow
async def halt_starts_many(name: str, n: int) -> None:
    for at in range(n):
        await start(halt_child, f"{name}")
        if at % 7 == 0:
            await gather(start(halt_child, name), halt_snap.aio([]))
    await sleep(3600)
