"""Versions in the test kit: code that changes under live runs, `versions` and `move`, the same in memory as on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from supervisor import NonRetryable, Signal, SupervisorError, sleep, step, workflow
from supervisor.testing import DatabaseEnvironment, TestEnvironment
from tests.conformance.kit_programs import masked, without_ids
from tests.harness import Server

go = Signal("kit_versions_go", str)
NAME = "kit_versions_offer"


@step
async def kit_versions_write(word: str) -> str:
    return word


@step
async def kit_versions_print(word: str) -> str:
    return word


def release(version: str) -> Any:
    """The workflow as that release has it: three is as one so far, two is not."""

    @workflow(name=NAME, version=version)
    async def offer(delay: float = 0.0) -> str:
        await sleep(delay)
        await (kit_versions_print if version == "two" else kit_versions_write)("an offer")
        said = await go.wait()
        if said == "fail":
            raise NonRetryable("as told")
        return f"{said} by {version}"

    return offer


@pytest.fixture
def in_memory() -> Iterator[TestEnvironment]:
    with TestEnvironment(seed=1) as env:
        yield env


@pytest.fixture
def on_database(server: Server) -> Iterator[DatabaseEnvironment]:
    database = server.database()
    with DatabaseEnvironment(database.dsn, schema="supervisor") as env:
        yield env
    database.drop()


def shown(env: Any, workflow: str | None = NAME) -> list[Any]:
    """But for hosts and times."""
    rows = [row for row in env.versions(workflow) if row.workflow == NAME]
    assert all(len(row.hosts) == min(row.workers, 1) and (row.missing_since is None) == (row.code_missing == 0) for row in rows)
    assert all(row.source is None or row.source.endswith("release.<locals>.offer") and row.first_seen_at <= row.last_seen_at for row in rows)
    return [[row.version, row.workers, row.live, row.running, row.code_missing, row.ended_1h] for row in rows]


def played(env: Any) -> list[Any]:
    said: list[Any] = []

    def ask(*deeds: Any) -> None:
        for deed in deeds:
            try:
                said.append(masked(deed()))
            except SupervisorError as error:
                said.append([type(error).__name__, without_ids(str(error))])

    def standing(*runs: Any) -> Any:
        return [[run.status().status, run.status().wait] for run in runs]

    def moved(*given: Any, **more: Any) -> list[int]:
        answer = env.move(NAME, *given, **more)
        return [answer.moved, answer.claimed]

    first = release("one")
    waits, fails, later = env.start(first), env.start(first), env.start(first.options(delay=3600))
    ask(lambda: shown(env), lambda: env.move("kit_versions_none", "one", "two"), lambda: moved("one", "two"), lambda: moved(None, "one"), lambda: moved("none", "one"), lambda: moved("one", "one"))
    ended = env.start(first)
    ended.signal(go, "yes")
    ask(ended.result, lambda: shown(env), lambda: shown(env, None) == shown(env), lambda: [row.version for row in env.versions("kit_versions_none")])

    release("two")
    waits.signal(go, "well")
    ask(lambda: standing(waits, fails, later), lambda: shown(env), lambda: moved("one", "three"), lambda: moved("one", "two", dry_run=True), lambda: standing(waits, fails))
    ask(lambda: moved("one", "two", reason="x" * 4001, dry_run=True), lambda: moved("one", "two", reason="x" * 4001), lambda: moved("one", "two", actor="x" * 201), lambda: standing(waits, fails))
    ask(lambda: moved("one", "two", reason="the new code does the same", actor="ann"), lambda: standing(waits, fails, later), lambda: shown(env), waits.result)
    fails.signal(go, "fail")
    ask(lambda: standing(waits, fails), lambda: moved("two", "one"), lambda: standing(waits, fails), lambda: shown(env))

    release("three")
    ask(lambda: moved("one", "nothing"), lambda: moved("one", "three"), lambda: standing(waits, fails), waits.result, fails.result, lambda: shown(env))
    ask(lambda: env.list(filter=f"workflow = {NAME} AND version = three")[0].run_id == fails.id, lambda: len(env.list(filter=f"workflow = {NAME} AND version in (one, three)")))
    ask(lambda: env.retry(waits), lambda: env.fork(waits, None).result(), lambda: env.move(NAME, "one", "three"), lambda: terminated(later), lambda: shown(env))
    said.append([[history_of(env, run.id), env.history(run).version] for run in (waits, fails, ended)])
    return said


def terminated(run: Any) -> Any:
    return run.terminate("enough")


def history_of(env: Any, run: UUID) -> list[Any]:
    return [[each.kind, each.status, each.name] for each in env.history(run).records]


def test_runs_are_moved_in_memory_as_on_a_database(in_memory: TestEnvironment, on_database: DatabaseEnvironment) -> None:
    """Which versions there are, what waits for its code, what a move comes to, there and back, and what is refused."""
    here = played(in_memory)
    assert here == played(on_database)
    # the second one is claimed by the new code only where it had not left memory yet
    assert any([["waiting", "code_missing"], ["waiting", wait], ["waiting", "timer"]] in here for wait in ("code_missing", "signal"))
    assert [["waiting", "nondeterminism"], ["waiting", "nondeterminism"]] in here


def test_a_move_is_taken_up_where_the_worker_died(in_memory: TestEnvironment) -> None:
    """What a crash gave back is of the version that it began with."""
    env = in_memory
    run = env.start(release("one"))
    env.crash()
    release("two")
    run.signal(go, "well")
    assert run.status().wait == "code_missing"
    release("three")
    assert run.status().wait == "code_missing"
    assert env.move(NAME, "one", "three").moved == 1
    assert run.result() == "well by three"
