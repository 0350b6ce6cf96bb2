"""The words that a replay must answer alike."""

from __future__ import annotations

from typing import Any

import supervisor
from supervisor import Client, ClientInsideRun, current, gather, now, random, sleep, step, sync, uuid4, workflow
from tests.apps.gates import at_gate
from tests.harness import note


@step
def keep(seen: list[str]) -> list[str]:
    return seen


@step(run="inline")
def told_inline() -> list[Any]:
    return _told()


@step
def told_in_thread() -> list[Any]:
    return _told()


@step
async def told_in_task() -> list[Any]:
    return _told()


@step
async def told_at_gate(gate: str) -> list[Any]:
    note("told", *_told())
    await at_gate(gate)
    return _told()


def _told() -> list[Any]:
    here = current()
    here.logger.info("told")
    return [str(here.run_id), here.key, here.workflow, here.seq, here.step, here.attempt, here.redelivered, here.idempotency_key]


def _seen() -> list[str]:
    here = current()
    return [
        str(now()), str(random().random()), str(random().choice(range(1000))), str(uuid4()), str(uuid4().version), now().tzname() or "",
        str([here.run_id, here.key, here.workflow, here.seq, here.step, here.attempt]),
    ]  # fmt: skip


@workflow
async def words(gate: str) -> dict[str, Any]:
    seen = _seen()

    async def branch(n: int) -> None:
        for _ in range(n):
            seen.extend(_seen())
            await told_in_task()
            seen.extend(_seen())

    await gather(branch(2), branch(3))
    await sleep(0.01)
    seen += _seen()
    live = await keep.aio(seen)
    gated = await told_at_gate(gate)
    facts = [await told_inline.aio(), await told_in_thread.aio(), await told_in_task()]
    return {"seen": seen, "live": live, "gated": gated, "facts": facts}


@workflow
def words_def(gate: str) -> dict[str, Any]:
    seen = _seen()
    told_in_thread()
    seen += _seen()
    sync.sleep(0.01)
    seen += [str(sync.now()), str(sync.random().random()), str(sync.uuid4()), sync.current().workflow]
    live = keep(seen)
    return {"seen": seen, "live": live, "gated": told_at_gate.sync(gate), "facts": [told_inline(), told_in_thread(), told_in_task.sync()]}


@workflow
async def uses_client() -> list[str]:
    told = []
    for call in (lambda: Client().start("words", "x"), lambda: Client().list(), lambda: words.sync("x")):
        try:
            call()
        except Exception as error:  # noqa: BLE001
            told.append(type(error).__name__)
    assert issubclass(ClientInsideRun, supervisor.SupervisorError)
    return told
