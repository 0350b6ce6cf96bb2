"""Workflows that execute programs: lists of commands, each of them something that a workflow may do (tests/model/README.md).

One interpreter, `play`, said in the words of an `async def` workflow or in those of a `def` workflow. It decides nothing by itself: what
a program does, and with what, stands in the program. Every step notes that it ran, in a file of its program's batch.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from supervisor import (
    AsyncTransaction, Cancelled, NonRetryable, Retry, RetryAfter, RunCancelled, RunFailed, RunTerminated, Signal, StepInterrupted, Transaction,
    compensate, current, first, gather, now, patched, publish, random, shield, sleep, start, step, sync, workflow,
)  # fmt: skip
from supervisor.engine import commands, signals
from tests.harness import in_a_host

# workers differ in how soon what waits leaves memory, so that programs are parked and brought back in all places
if in_a_host():
    signals.STAY_S = (0.0, 0.02, 1.0)[os.getpid() % 3]
    commands.STAY_S = (1.0, 0.002, 0.02)[os.getpid() % 3]
    commands.STAY_BESIDE_CHILDREN_S = (0.02, 0.002, 0.0)[os.getpid() % 3]  # never more than that

TRIES = 4
NEVER_S = 3600.0
SOON = Retry(max_attempts=TRIES, initial=0.001, factor=1.0, maximum=0.002, non_retryable=(LookupError,))


class ModelledError(Exception):
    """What steps of programs fail with; rebuilt with its arguments."""


# ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────


def place(at: str) -> str:
    return at.partition("/")[2]


def beside(name: str) -> Path:
    return Path(os.environ["TEST_EFFECTS"]).parent / name


def noted(at: str) -> int:
    """Note that the step at *at*, a place in a batch, runs, of which attempt, and whether it may have begun before; gives the attempt."""
    here = current()
    fd = os.open(beside("notes"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(fd, (json.dumps([at, here.attempt, here.redelivered]) + "\n").encode())
    finally:
        os.close(fd)
    return here.attempt


def fail(at: str, attempt: int, fails: int, how: str) -> None:
    """Raise in the first *fails* attempts; where *how* says so, the last of them is the last of all."""
    if attempt > fails:
        return
    if attempt == fails and how == "lookup":
        raise LookupError(f"{attempt} of {fails}")
    if attempt == fails and how == "for good":
        raise NonRetryable(f"{attempt} of {fails}")
    if how == "after" and attempt < TRIES:
        raise RetryAfter(0.001)
    raise ModelledError(f"attempt {attempt}", fails)


def did(at: str, fails: int, how: str, value: Any) -> list[Any]:
    fail(at, noted(at), fails, how)
    return [place(at), value]


@step(retry=SOON, run="inline")
def modelled_inline(at: str, fails: int, how: str, value: Any) -> list[Any]:
    return did(at, fails, how, value)


@step(retry=SOON)
def modelled_plain(at: str, fails: int, how: str, value: Any) -> list[Any]:
    return did(at, fails, how, value)


@step(retry=SOON, run="thread")
def modelled_thread(at: str, fails: int, how: str, value: Any) -> list[Any]:
    return did(at, fails, how, value)


@step(retry=SOON)
async def modelled_task(at: str, fails: int, how: str, value: Any) -> list[Any]:
    await asyncio.sleep(0)
    return did(at, fails, how, value)


@step(at_most_once=True)
def modelled_once(at: str, fails: int, how: str, value: Any) -> list[Any]:
    return did(at, 0, how, value)


@step(retry=SOON, transactional=True)
def modelled_tx(tx: Transaction, at: str, fails: int, how: str, value: Any) -> list[Any]:
    attempt = noted(at)
    tx.execute("insert into modelled_ledger values (%s, %s)", (at, attempt))
    fail(at, attempt, fails, how)
    return [place(at), value]


@step(retry=SOON, transactional=True)
async def modelled_tx_task(tx: AsyncTransaction, at: str, fails: int, how: str, value: Any) -> list[Any]:
    attempt = noted(at)
    await tx.execute("insert into modelled_ledger values (%s, %s)", (at, attempt))
    fail(at, attempt, fails, how)
    return [place(at), value]


@step(timeout=0.05)
async def modelled_hangs(at: str, fails: int, how: str, value: Any) -> list[Any]:
    noted(at)
    await asyncio.sleep(NEVER_S)
    return []


@step
def modelled_gated(at: str, fails: int, how: str, value: Any) -> list[Any]:
    """Fails until the driver has opened the gates of this program."""
    noted(at)
    if not beside(f"gate-{at.split('.')[0].replace('/', '-')}").exists():
        raise ModelledError("shut", place(at))
    return [place(at), value]


@step(retry=SOON)
def modelled_undo(at: str, fails: int) -> str:
    fail(at, noted(at), fails, "")
    return place(at)


STEPS: dict[str, Any] = {
    "inline": modelled_inline, "plain": modelled_plain, "thread": modelled_thread, "task": modelled_task, "once": modelled_once,
    "tx": modelled_tx, "tx task": modelled_tx_task, "hangs": modelled_hangs, "gated": modelled_gated,
}  # fmt: skip


def told(error: BaseException | None) -> list[Any]:
    """What of an error a program can count on."""
    name = type(error).__name__
    if isinstance(error, RunFailed):
        return [name, told(error.__cause__)]
    if isinstance(error, (RunCancelled, RunTerminated)):
        return [name, error.why]
    return [name] if isinstance(error, TimeoutError) else [name, str(error)]


# ── the words of both kinds of workflow ──────────────────────────────────────────────────────────────────────────


class Awaited:
    """An `async def` workflow's words. `command` is what may stand in gather, first and shield."""

    def __init__(self) -> None:
        self.gather, self.first, self.shield, self.start, self.sleep = gather, first, shield, start, sleep

    def command(self, name: str, *args: Any) -> Any:
        return STEPS[name](*args) if name in ("task", "tx task", "hangs") else STEPS[name].aio(*args)

    async def step(self, name: str, *args: Any) -> Any:
        return await self.command(name, *args)

    def child(self, what: Any, *args: Any) -> Any:
        return what(*args)

    async def run_child(self, what: Any, *args: Any) -> Any:
        return await what(*args)

    def signal(self, name: str, timeout: float | None = None) -> Any:
        return Signal(name).wait(timeout=timeout)

    async def wait(self, name: str, timeout: float | None = None) -> Any:
        return await Signal(name).wait(timeout=timeout)

    async def joined(self, child: Any) -> Any:
        return await child.result()


class Called:
    """A `def` workflow's words, which block; none of these coroutines ever suspends."""

    def command(self, name: str, *args: Any) -> Any:
        return STEPS[name].aio(*args)

    async def step(self, name: str, *args: Any) -> Any:
        return STEPS[name].sync(*args) if name in ("task", "tx task", "hangs") else STEPS[name](*args)

    def child(self, what: Any, *args: Any) -> Any:
        return what.aio(*args)

    async def run_child(self, what: Any, *args: Any) -> Any:
        return what.sync(*args)

    def signal(self, name: str, timeout: float | None = None) -> Any:
        return sync.Signal(name).aio(timeout=timeout)

    async def wait(self, name: str, timeout: float | None = None) -> Any:
        return sync.Signal(name).wait(timeout=timeout)

    async def gather(self, *members: Any) -> Any:
        return sync.gather(*members)

    async def first(self, **members: Any) -> Any:
        return sync.first(**members)

    async def shield(self, inside: Any, *, timeout: float | None) -> Any:
        return sync.shield(inside, timeout=timeout)

    async def start(self, what: Any, *args: Any) -> Any:
        return sync.start(what, *args)

    async def sleep(self, seconds: float) -> None:
        sync.sleep(seconds)

    async def joined(self, child: Any) -> Any:
        return child.result()


# ── the interpreter ──────────────────────────────────────────────────────────────────────────────────────────────


class Play:
    """One run of a program. `at` names a place in its batch: the program's number, and the way to the command in it.

    In a run that is forked with another `variant`, steps give another value from there on.
    """

    def __init__(self, words: Any, batch: str, variant: int) -> None:
        self.words, self.batch, self.variant = words, batch, variant
        self.told = False  # that it is cancelled
        self.started: list[Any] = []

    async def block(self, body: list[Any], at: str) -> list[Any]:
        said = []
        for n, (word, *more) in enumerate(body):
            said.append(await getattr(self, word.replace(" ", "_"))(f"{at}.{n}", *more))
        return said

    # ── what may also stand in gather, first and shield ──────────────────────────────────────────────────────────

    def command(self, at: str, word: str, *more: Any) -> Any:
        """The awaitable of one command, not awaited."""
        if word == "step":
            return self.words.command(*self.args(at, *more))
        if word in ("child", "loses"):
            return self.words.child(*self.kid(at, *more))
        if word == "signal":
            self.wanted(at, *more)
            return self.words.signal(more[0])
        if word == "sleep":
            return sleep(more[0] / 1000)
        if word == "never":
            return self.words.signal("never") if more[0] == "signal" else sleep(NEVER_S)
        if word == "cleans":
            return self.cleans(at, *more)
        assert word == "branch"
        return self.block(more[0], at)

    def args(self, at: str, name: str, fails: int, how: str, value: Any) -> tuple[Any, ...]:
        return name, f"{self.batch}/{at}", fails, how, [value, self.variant] if self.variant else value

    def kid(self, at: str, style: str, body: list[Any]) -> tuple[Any, ...]:
        return modelled if style == "async" else modelled_def, self.batch, at, body

    def wanted(self, at: str, name: str, value: Any, when: str) -> None:
        if when == "after":
            publish(at, True)

    async def cleans(self, at: str, how: str, cleanup: list[Any]) -> None:
        try:
            await self.command(at, "never", how)
        finally:
            await self.block(cleanup, f"{at}.f")

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def step(self, at: str, *more: Any) -> Any:
        name, *args = self.args(at, *more)
        try:
            return await self.words.step(name, *args)
        except StepInterrupted:  # at most once: it is not known whether it did its work
            return [at, args[-1]]

    async def sleep(self, at: str, ms: int) -> str:
        await self.words.sleep(ms / 1000)
        return "slept"

    async def signal(self, at: str, name: str, value: Any, when: str) -> Any:
        self.wanted(at, name, value, when)
        return await self.words.wait(name)

    async def late(self, at: str, ms: int) -> Any:
        return await self.words.wait("late", ms / 1000)

    async def child(self, at: str, style: str, body: list[Any]) -> Any:
        return await self.words.run_child(*self.kid(at, style, body))

    async def start(self, at: str, close: str, style: str, body: list[Any]) -> str:
        what, *args = self.kid(at, style, body)
        self.started.append(await self.words.start(what.options(parent_close=close), *args))
        return close

    async def leave(self, at: str, close: str, style: str, body: list[Any]) -> str:
        """Start a child that is never joined."""
        await self.start(at, close, style, body)
        self.started.pop()
        return close

    async def join(self, at: str) -> Any:
        return await self.words.joined(self.started.pop(0)) if self.started else None

    async def gather(self, at: str, members: list[Any]) -> list[Any]:
        return list(await self.words.gather(*(self.command(f"{at}.{n}", *member) for n, member in enumerate(members))))

    async def first(self, at: str, members: list[Any]) -> list[Any]:
        return list(await self.words.first(**{f"m{n}": self.command(f"{at}.{n}", *member) for n, member in enumerate(members)}))

    async def shield(self, at: str, timeout: float | None, inside: list[Any]) -> Any:
        return await self.words.shield(self.command(at, *inside), timeout=timeout)

    async def publish(self, at: str, key: str, value: Any) -> None:
        publish(key, value)

    async def compensate(self, at: str, fails: int) -> None:
        compensate(modelled_undo, f"{self.batch}/{at}", fails)

    async def patched(self, at: str) -> bool:
        return patched(at)

    async def drawn(self, at: str) -> bool:
        """What is drawn, and the moment, are the same in every replay and in every fork: this goes by them."""
        number, moment = random().random(), now()
        drawn = [number, moment.isoformat()]
        name = ("inline", "plain")[(int(number * 2) + moment.microsecond) % 2]
        return bool((await self.words.step(*self.args(at, name, 0, "", drawn)))[1] in (drawn, [drawn, self.variant]))

    # ── blocks ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def attempt(self, at: str, body: list[Any], handler: list[Any]) -> Any:
        try:
            return await self.block(body, f"{at}.b")
        except Exception as error:  # noqa: BLE001 - programs catch whatever is raised
            return [told(error), *await self.block(handler, f"{at}.h")]

    async def finish(self, at: str, body: list[Any], cleanup: list[Any]) -> Any:
        try:
            return await self.block(body, f"{at}.b")
        finally:
            await self.block(cleanup, f"{at}.f")

    async def guard(self, at: str, body: list[Any], cleanup: list[Any], then: str) -> Any:
        try:
            return await self.block(body, f"{at}.b")
        except Cancelled as why:
            said = [why.reason, why.actor]
            for n, inside in enumerate(cleanup):
                said.append(await self.shield(f"{at}.f.{n}", 60.0, inside))
            if then == "raise":
                raise
            if then == "fail":
                raise ModelledError("cancelled", at) from why
            return said

    async def never(self, at: str, how: str) -> None:
        await (self.words.sleep(NEVER_S) if how == "sleep" else self.words.wait("never"))

    async def cancelled(self, at: str, inside: list[Any]) -> Any:
        """Wait for what never comes, until the driver cancels the run; later ones are passed by, for a run is told once."""
        if self.told:
            return None
        self.told = True
        self.started.clear()  # whether those that are not joined end before they are cancelled too is not known
        publish(at, True)
        word, *more = inside
        return await getattr(self, word)(at, *more)


def finished(coro: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine that never suspends returns."""
    try:
        coro.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("a def workflow's words block")


@workflow(version="1")
async def modelled(batch: str, at: str, body: list[Any], variant: int = 0) -> list[Any]:
    return await Play(Awaited(), batch, variant).block(body, at)


@workflow(version="1")
def modelled_def(batch: str, at: str, body: list[Any], variant: int = 0) -> list[Any]:
    return finished(Play(Called(), batch, variant).block(body, at))  # type: ignore[no-any-return]
