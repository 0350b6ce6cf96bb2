"""Runs whose spans are looked at: every kind of step, waits, failures, children."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time

from supervisor import (
    AsyncTransaction, Client, NonRetryable, Retry, Signal, Transaction, Update, compensate, continue_as_new, gather, handlers_finished, sleep, step, workflow,
)  # fmt: skip
from supervisor.sync import sleep as def_sleep
from tests.harness import note, wait_for_file

if os.environ.get("TRACED_WITHOUT") != "1":  # a host that does not trace is looked at for what it has imported
    from opentelemetry import trace

if os.environ.get("TRACED_OWN") == "1":  # an app that has a provider of its own
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    own = TracerProvider(resource=Resource.create({"service.name": "own"}), shutdown_on_exit=False)
    own.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(own)

log = logging.getLogger("traced")
go = Signal("traced_go", str)
touched: Update[str, str] = Update("traced_touched", str, returns=str)


def current() -> str:
    """Trace and span of the calling code, and whether it records."""
    span = trace.get_current_span()
    found = span.get_span_context()
    return f"{found.trace_id:032x}/{found.span_id:016x}/{span.is_recording()}"


def inner(name: str) -> None:
    """What an instrumented library does."""
    with trace.get_tracer("library").start_as_current_span(name):
        pass


@step(run="inline")
def traced_inline(word: str) -> str:
    inner("inner inline")
    return current()


@step(run="thread")
def traced_thread(word: str) -> str:
    inner("inner thread")
    log.warning("in a thread %s", word)
    return current()


@step
async def traced_task(word: str) -> str:
    inner("inner before")
    await asyncio.sleep(0.001)
    inner("inner task")
    trace.get_current_span().set_attribute("mine", word)
    return current()


@step(run="process")
def traced_process(word: str) -> str:
    inner("inner process")
    note("process", os.getpid())
    if word == "die":
        os._exit(9)
    if word == "raise":
        raise ValueError("from the process")
    return current()


@step(transactional=True)
def traced_tx(tx: Transaction, word: str) -> str:
    tx.execute("select 1")
    inner("inner tx")
    return current()


@step(transactional=True)
async def traced_async_tx(tx: AsyncTransaction, word: str) -> str:
    await tx.execute("select 1")
    inner("inner async tx")
    return current()


@step
def traced_calls_itself(n: int) -> int:
    return n if n == 0 else traced_calls_itself.fn(n - 1)  # type: ignore[attr-defined, no-any-return]


@workflow
async def traced_all(word: str) -> dict[str, str]:
    mine = trace.get_current_span()
    mine.set_attribute("order", word)
    mine.add_event("asked")
    found = {"workflow": current()}
    found["inline"] = await traced_inline.aio(word)
    found["thread"] = await traced_thread.aio(word)
    found["task"] = await traced_task(word)
    found["process"] = await traced_process.aio(word)
    found["tx"] = await traced_tx.aio(word)
    found["async_tx"] = await traced_async_tx(word)
    found["after"] = current()
    await traced_calls_itself.aio(2)
    log.warning("in the workflow %s", word)
    return found


@workflow
def traced_def(word: str) -> str:
    traced_thread(word)
    def_sleep(0.01)
    return current()


@step(retry=Retry(max_attempts=3, initial=0.01))
def traced_shaky(word: str) -> str:
    note("shaky", word)
    raise ValueError(f"not yet {word}")


@workflow
async def traced_failing(word: str) -> None:
    await traced_shaky.aio(word)


@workflow
async def traced_sleeper(word: str) -> str:
    trace.get_current_span().add_event("before the sleep")
    inner("of the workflow")
    first = await traced_inline.aio(word)
    await sleep(2.2)
    inner("of the workflow, later")
    await traced_thread.aio(word)
    return first


@workflow
async def traced_waiter(word: str) -> str:
    return await go.wait()


@workflow
async def traced_told(word: str, signals: int) -> list[str]:
    """Takes so many signals, and whatever updates come meanwhile."""
    touched.handler(lambda value: f"{value}!")
    told = [await go.wait() for _ in range(signals)]
    await handlers_finished()
    return told


@step
def traced_sends(run_id: str) -> str:
    with Client() as client:
        client.signal(run_id, go, "from a step")
    return current()


@workflow
async def traced_sender(run_id: str) -> str:
    return await traced_sends.aio(run_id)


@workflow
async def traced_child(word: str) -> str:
    await traced_inline.aio(word)
    return current()


@workflow
async def traced_parent(word: str) -> list[str]:
    return list(await gather(traced_child(word), traced_child(word + "2")))


@workflow
async def traced_chain(n: int) -> int:
    await traced_inline.aio("chain")
    if n > 0:
        continue_as_new(n - 1)
    return n


@step
def traced_held(word: str) -> str:
    note("held", word)
    wait_for_file(f"go-{word}")
    return word


@workflow
async def traced_killed(word: str) -> str:
    await traced_inline.aio(word)
    await traced_held.aio(word)
    await traced_thread.aio(word)
    return word


@step
def traced_undo(word: str) -> None:
    inner("undone")


@workflow
async def traced_refused(word: str) -> None:
    compensate(traced_undo, word)
    raise NonRetryable("no")


@workflow
async def traced_phase(word: str) -> list[str]:
    with trace.get_tracer("mine").start_as_current_span("phase"):
        phase = current()
        step = await traced_inline.aio(word)
        again = current()
    return [phase, again, step, current()]


@step(retry=Retry(max_attempts=1), timeout=0.2, run="process")
def traced_late(word: str) -> None:
    wait_for_file("never")


@workflow
async def traced_timed_out(word: str) -> str:
    try:
        await traced_late.aio(word)
    except Exception as error:
        return type(error).__name__
    return ""


@workflow
async def traced_dies(word: str) -> str:
    try:
        await traced_process.aio(word)
    except Exception as error:
        return type(error).__name__
    return ""


@step(run="inline")
def traced_holds(word: str) -> str:
    time.sleep(0.15)
    inner("inner held")
    return current()


@step(run="thread", timeout=0.1)
def traced_slow(word: str) -> None:
    time.sleep(0.4)


@workflow
async def traced_stuck(word: str) -> str:
    held = await traced_holds.aio(word)
    try:
        await traced_slow.aio(word)
    except TimeoutError:
        pass
    await sleep(0.6)
    return held


@step
def traced_loaded() -> list[str]:
    return sorted({name.partition(".")[0] for name in sys.modules} | ({"wrapped"} if hasattr(traced_loaded.fn, "__traced__") else set()))  # type: ignore[attr-defined]


@workflow
async def traced_modules() -> list[str]:
    return await traced_loaded.aio()


@workflow
async def traced_row(n: int) -> int:
    """Steps one after the other and beside each other, here and there: what is in flight at any moment."""
    for word in ("one", "two"):
        await traced_inline.aio(word)
        await gather(traced_task(word), traced_thread.aio(word))
    return n
