"""Handles, cancel, and what a start may ask for, from `Client` and `AsyncClient` alike."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import psycopg
import pytest

from supervisor import (
    AsyncClient, Client, ClientMisused, InputInvalid, KeyExists, KeyMismatch, Run, RunCancelled, RunFailed, RunTerminated, RunUnknown, SupervisorError,
)  # fmt: skip
from tests.apps.asked import Doubled, asked_double, asked_failure, asked_parent, asked_sleeper
from tests.conformance.client_host import Hosted, hosted as hosted
from tests.harness import ROOT, eventually


def awaited(hosted: Hosted, work: Any) -> Any:
    """What *work* gives, with an AsyncClient, on a loop of its own."""

    async def main() -> Any:
        async with AsyncClient(hosted.database.dsn) as client:
            return await work(client)

    return asyncio.run(main())


# ── handles ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_handles_of_one_run_are_equal(hosted: Hosted) -> None:
    """Programs keep handles in sets and dicts; two that mean one run are one there, whichever client made them."""
    run = hosted.client.start(asked_double, 1)
    again = hosted.client.get(run.id)
    other = hosted.client.start(asked_double, 1)
    assert run == again and hash(run) == hash(again) and run != other and run != run.id
    assert len({run, again, other}) == 2 and sorted([other, run]) == [run, other]
    assert awaited(hosted, lambda client: client.get(run.id)) == run


def test_awaiting_a_run_is_awaiting_its_result(hosted: Hosted) -> None:
    async def work(client: AsyncClient) -> None:
        run = await client.start(asked_double, 21)
        assert await run == await run.result(timeout=20) == await client.result(run.id) == Doubled(21, 42)
        assert (await run.status()).status == str(await client.status(run)) == "completed"
        failing = await client.start(asked_failure, 3)
        with pytest.raises(RunFailed, match="asked to fail 3") as caught:
            await failing
        assert isinstance(caught.value.__cause__, ValueError)
        with pytest.raises(RunUnknown):
            await client.get(uuid.uuid4())

    awaited(hosted, work)


def test_five_hundred_tasks_await_their_runs_through_two_sessions(hosted: Hosted) -> None:
    """One asking task for all waiters; it ends with the last one, and each has its own run's result."""

    async def work(client: AsyncClient) -> None:
        runs = await asyncio.gather(*(client.start(asked_double, n) for n in range(500)))
        results = await asyncio.gather(*(run.result(timeout=60) for run in runs))
        assert [result.twice for result in results] == [2 * n for n in range(500)]
        assert len(asyncio.all_tasks()) == 1 and not client._waiter._places
        names = "application_name in ('pgsupervisor: client', 'pgsupervisor: waiter') and datname = current_database()"
        assert hosted.database.one(f"select count(*) from pg_stat_activity where {names}") <= 3  # the fixture's client has one, too

    awaited(hosted, work)


def test_tasks_that_give_up_leave_nothing(hosted: Hosted) -> None:
    """By their own timeout, by asyncio's, by being cancelled: no place, no task, no query is left, and the others go on waiting."""

    async def work(client: AsyncClient) -> None:
        asleep = await client.start(asked_sleeper, 1)
        with pytest.raises(TimeoutError, match=r"has not ended within 0.2 s; it is waiting \(timer\)"):
            await asleep.result(timeout=0.2)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await asleep
        waiting = [asyncio.create_task(asleep.result()) for _ in range(20)]
        await asyncio.sleep(0)
        for each in waiting[1:]:
            each.cancel()
        ended = await asyncio.gather(*waiting[1:], return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended)
        assert len(client._waiter._places) == 1
        assert await asleep.cancel()
        with pytest.raises(RunCancelled):
            await waiting[0]
        assert not client._waiter._places
        until = time.monotonic() + 10
        while len(asyncio.all_tasks()) > 1 and time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 1

    awaited(hosted, work)


def test_a_task_that_is_cancelled_while_it_asks_spoils_nothing(hosted: Hosted) -> None:
    """The session is used by the next task as if nothing had been; what the cancelled one asked was done or not, never halfway."""

    async def work(client: AsyncClient) -> None:
        before = hosted.runs("workflow = 'asked_sleeper'")
        for n in range(30):
            task = asyncio.create_task(client.start(asked_sleeper.options(key=f"cut-{n}"), n))
            await asyncio.sleep(n * 0.0001)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert (await client.start(asked_sleeper.options(key=f"cut-{n}"), n)).key == f"cut-{n}"
        assert hosted.runs("workflow = 'asked_sleeper'") - before == 30

    awaited(hosted, work)


def test_async_batches_take_any_iterable(hosted: Hosted) -> None:
    async def numbers() -> Any:
        for n in range(2_500):
            yield n

    async def work(client: AsyncClient) -> None:
        keyed = await client.start_many(asked_double.options(queue="nobody", batch="many"), numbers(), key=lambda n: f"many-{n % 2_000}" if n < 2_000 else None)
        assert (len(keyed), keyed.created) == (2_500, 2_500)
        again = await client.start_many(asked_double.options(queue="nobody"), range(100), key=lambda n: f"many-{n}")
        assert (again.created, again.ids) == (0, keyed.ids[:100]) and again[7] == keyed[7] and not again[7].created
        assert keyed.ids == sorted(keyed.ids)
        with pytest.raises(KeyMismatch) as caught:
            await client.start_many(asked_double.options(queue="nobody"), [1, 5], key=lambda n: f"many-{n + 1}")
        assert len(caught.value.batch.mismatches) == 2  # type: ignore[attr-defined]

    awaited(hosted, work)
    assert hosted.database.one("select count(*) from supervisor.run r join supervisor.batch b on b.id = r.batch where b.name = 'many'") == 2_500


# ── cancel ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cancelled_run_ends_at_once_and_says_why(hosted: Hosted) -> None:
    run = hosted.client.start(asked_sleeper, 1)
    eventually(lambda: run.status().wait == "timer", 20)
    assert run.cancel("the customer left") is True
    with pytest.raises(RunCancelled, match="the customer left"):
        run.result(timeout=20)
    assert run.cancel() is False and hosted.client.cancel(str(run.id)) is False
    assert str(run.status()) == "cancelled"
    with pytest.raises(RunUnknown):
        hosted.client.cancel(uuid.uuid4())


def test_a_parent_hears_that_its_child_was_cancelled(hosted: Hosted) -> None:
    parent = hosted.client.start(asked_parent, 77)
    child = eventually(lambda: hosted.database.sql("select run_id from supervisor.runs where parent_id = %s and wait = 'timer'", parent.id), 20)
    assert hosted.client.cancel(child[0][0])
    assert parent.result(timeout=20) == "RunCancelled"


# ── what a start may ask for ─────────────────────────────────────────────────────────────────────────────────────


def test_policies_for_a_key_that_names_a_run(hosted: Hosted) -> None:
    """What a second start with a key does is said by the start; there are never two live runs of one key."""
    client = hosted.client
    first = client.start(asked_sleeper.options(key="p", attributes={"tenant": "a"}), 1)
    with pytest.raises(KeyExists) as caught:
        client.start(asked_sleeper.options(key="p", on_conflict="reject"), 1)
    assert (caught.value.run_id, caught.value.key, caught.value.workflow) == (first.id, "p", "asked_sleeper")
    assert client.start(asked_sleeper.options(key="p", on_conflict="restart_failed"), 1) == first
    with pytest.raises(KeyMismatch):
        client.start(asked_sleeper.options(key="p", on_conflict="restart_failed"), 2)
    # replace: the old run ends first, then the key names the new one, with another input too
    second = client.start(asked_sleeper.options(key="p", on_conflict="replace"), 2)
    assert second.created and second != first
    with pytest.raises(RunTerminated):
        first.result(timeout=20)
    # restart_failed: a cancelled run is one that did not complete
    second.terminate()
    third = client.start(asked_sleeper.options(key="p", on_conflict="restart_failed"), 3)
    assert third.created and client.start(asked_sleeper.options(key="p"), 3) == third
    assert hosted.runs("key = 'p' and status not in ('cancelled', 'terminated')") == 1
    third.cancel()
    assert hosted.database.one("select attributes::text from supervisor.runs where run_id = %s", first.id) == '{"tenant": "a"}'


@pytest.mark.parametrize(
    "given",
    [
        {"on_conflict": "reject"}, {"on_conflict": "ignore", "key": "k"}, {"batch": ""}, {"batch": "x" * 201}, {"batch": "a\x00b"},
        {"attributes": {"a": float("nan")}}, {"attributes": {"a": object()}}, {"attributes": {1: 2}},
    ],
    ids=["policy without key", "unknown policy", "no batch", "long batch", "NUL", "not a number", "no JSON", "key no text"],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused_before_anything_is_sent(hosted: Hosted, given: dict[str, Any]) -> None:
    before = hosted.runs()
    with pytest.raises(SupervisorError) as caught:
        hosted.client.start(asked_double.options(**given), 1)
    assert caught.value.code in ("input_invalid", "payload_refused")
    assert hosted.runs() == before


def test_pages_by_key_set_hold_every_run_once(hosted: Hosted) -> None:
    batch = hosted.client.start_many(asked_double.options(queue="nobody"), range(25), key=lambda n: f"page-{n}")
    seen: list[uuid.UUID] = []
    page = hosted.client.list(10, workflow="asked_double")
    while page:
        seen += [info.run_id for info in page]
        page = hosted.client.list(10, workflow="asked_double", before=page[-1].run_id)
    assert len(seen) == len(set(seen)) == hosted.runs("workflow = 'asked_double'")
    assert set(batch.ids) <= set(seen) and seen == sorted(seen, reverse=True)
    assert awaited(hosted, lambda client: client.list(3, key="page-7"))[0].run_id == batch[7].id


# ── the process's own client ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def environment(hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    from supervisor.api import client

    monkeypatch.setenv("PGSUPERVISOR_DATABASE_URL", hosted.database.dsn)
    monkeypatch.setattr(client, "_defaults", {})


@pytest.mark.usefixtures("environment")
def test_a_workflow_starts_by_the_processs_own_client() -> None:
    from supervisor.api.client import default_client

    run = asked_double.start(4)
    assert run.result(timeout=20) == Doubled(4, 8)
    assert asked_double.options(key="own").start(5) == asked_double.options(key="own").start(5)
    assert default_client() is default_client()
    default_client().close()


@pytest.mark.usefixtures("environment")
def test_on_an_event_loop_the_blocking_start_names_the_other(hosted: Hosted) -> None:
    """A blocked loop is found late and far away; the error is at the call."""

    async def main() -> None:
        with pytest.raises(ClientMisused, match=r"await asked_double\.start\.aio\("):
            asked_double.start(1)
        run = await asked_double.start.aio(6)
        assert await run.result(timeout=20) == Doubled(6, 12)
        assert await asked_double.options(key="aio").start.aio(1) == await asked_double.options(key="aio").start.aio(1)

    sessions = "select count(*) from pg_stat_activity where application_name ~ '^pgsupervisor: (client|waiter)' and datname = current_database()"
    before = hosted.database.one(sessions)
    for _ in range(3):
        asyncio.run(main())
    # each loop's own client was closed with its loop
    eventually(lambda: hosted.database.one(sessions) <= before, 10)
    from supervisor.api import client_async

    assert not client_async._defaults


# ── who may use it ───────────────────────────────────────────────────────────────────────────────────────────────


def _in_child(use: Any, answers: Any) -> None:
    try:
        use()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent looks at it
        answers.put((type(error).__name__, str(error)))
    else:
        answers.put(("nothing", ""))


def test_no_client_and_no_handle_is_usable_across_a_fork(hosted: Hosted) -> None:
    """Two processes on one session read each other's answers. A child with a client of its own is fine."""
    run = hosted.client.start(asked_double, 1)

    def asynchronous() -> None:
        asyncio.run(made.start(asked_double, 1))  # type: ignore[arg-type]

    made = AsyncClient(hosted.database.dsn)
    fork = multiprocessing.get_context("fork")
    uses = [lambda: hosted.client.start(asked_double, 1), run.status, lambda: run.result(timeout=1), run.cancel, asynchronous,
            lambda: hosted.client.within(psycopg.connect(hosted.database.dsn))]  # fmt: skip
    for use in uses:
        answers: Any = fork.SimpleQueue()
        child = fork.Process(target=_in_child, args=(use, answers))
        child.start()
        child.join(20)
        kind, text = answers.get()
        assert kind == "ClientMisused" and "after a fork" in text

    def fresh() -> None:
        with Client(hosted.database.dsn) as client:
            client.status(run.id)
        hosted.client.close()  # does nothing here

    answers = fork.SimpleQueue()
    child = fork.Process(target=_in_child, args=(fresh, answers))
    child.start()
    child.join(20)
    assert answers.get() == ("nothing", "")
    assert run.result(timeout=20) == Doubled(1, 2)


def test_an_async_client_belongs_to_one_loop(hosted: Hosted) -> None:
    client = AsyncClient(hosted.database.dsn)

    async def use() -> None:
        await client.start(asked_double, 1)
        await client.close()

    asyncio.run(use())
    with pytest.raises(ClientMisused, match="another event loop"):
        asyncio.run(use())


def test_import_of_the_client_is_quick(tmp_path: Path) -> None:
    """Web servers and command lines import it at their start. In its own CPU, against what every asyncio program imports, in turns: others use this machine. Compiled to bytecode, as an installed package is."""
    ours = (
        "import time; began = time.process_time(); from supervisor import AsyncClient, Client; Client(); AsyncClient(); "
        "import sys; assert 'psycopg' not in sys.modules; print(time.process_time() - began)"
    )
    usual = "import time; began = time.process_time(); import asyncio, http.client, inspect, json, logging, msgspec; print(time.process_time() - began)"

    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPYCACHEPREFIX": str(tmp_path)}

    def cpu_s(program: str) -> float:
        return float(subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environ, capture_output=True, text=True, check=True).stdout)

    cpu_s(ours), cpu_s(usual)  # which compiles
    ratios = [cpu_s(ours) / cpu_s(usual) for _ in range(11)]
    assert statistics.median(ratios) < 1.8, ratios  # 1.1 on a quiet machine; 2 when it compiles each time


def test_a_handle_of_nothing_is_refused(hosted: Hosted) -> None:
    for wrong in ("nonsense", 5, None):
        with pytest.raises(RunUnknown):
            hosted.client.status(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputInvalid):
        hosted.client.start(Run, 1)  # type: ignore[call-overload]
