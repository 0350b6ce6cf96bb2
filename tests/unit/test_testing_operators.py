"""Operators' verbs in the test kit, where time stands still: steps that execute, edits that their worker hears of, and crashes in between."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from supervisor import OperationRefused, Retry, RunFailed, gather, sleep, step, workflow
from supervisor.core.filters import FIELDS
from supervisor.testing import EnvironmentStuck, TestEnvironment, crashes

FAR = 1_000_000.0


@step(retry=Retry(max_attempts=3, initial=FAR, maximum=FAR))
def kit_ops_fails() -> str:
    raise ValueError("not mocked")


@step
async def kit_ops_lasts() -> str:
    return "at last"


@step
async def kit_ops_after(said: str) -> str:
    return f"{said}, after"


@workflow
async def kit_ops_beside() -> list[str]:
    """One step waits for its next try while another one executes, so that the run stays with its worker."""
    return list(await gather(kit_ops_fails.aio(), kit_ops_lasts()))


@workflow
async def kit_ops_in_line() -> str:
    return await kit_ops_after(await kit_ops_lasts())


@workflow
async def kit_ops_naps() -> str:
    await sleep(3600)
    return await kit_ops_fails.aio()


@pytest.fixture
def env() -> Iterator[TestEnvironment]:
    with TestEnvironment(seed=1) as made:
        yield made


def test_a_retry_is_told_to_the_worker_that_has_the_run(env):
    """It repeats nothing of what executes beside."""
    fails = env.mock(kit_ops_fails, sequence=[ValueError("once"), "then"])
    lasts = env.mock(kit_ops_lasts, returns="at last", takes=60)
    run = env.start(kit_ops_beside)
    assert (run.status().status, len(fails.calls)) == ("running", 1)
    env.retry(run)
    assert len(fails.calls) == 2
    before = env.now
    assert run.result() == ["then", "at last"]
    assert (env.now - before, len(lasts.calls)) == (timedelta(seconds=60), 1)


def test_a_retry_that_was_asked_for_holds_after_a_crash():
    """Whenever the worker dies, before it has heard or after it."""
    for env in crashes():
        env.mock(kit_ops_fails, sequence=[ValueError("once"), "then"])
        env.mock(kit_ops_lasts, returns="at last", takes=60)
        run = env.start(kit_ops_beside)
        env.retry(run)
        assert run.result(timeout=200) == ["then", "at last"]


def test_other_terms_are_told_to_the_worker_that_has_the_run(env):
    env.mock(kit_ops_fails, raises=ValueError("on and on"))
    env.mock(kit_ops_lasts, returns="at last", takes=60)
    run = env.start(kit_ops_beside)
    env.edit_retry(run, 0, max_attempts=2, next_in=timedelta(seconds=0.5))
    env.advance(0.4)
    assert len(env.calls(kit_ops_fails)) == 1
    env.advance(0.1)
    assert len(env.calls(kit_ops_fails)) == 2
    with pytest.raises(RunFailed, match="on and on"):
        run.result()
    assert len(env.calls(kit_ops_fails)) == 2


def test_a_step_that_hangs_is_given_a_result(env):
    """It is named once it has run for a second; what it returns at last is nobody's."""
    env.mock(kit_ops_lasts, returns="at last", takes=3600)
    run = env.start(kit_ops_in_line)
    with pytest.raises(OperationRefused, match="step 0 has its result, or nobody knows yet that it was called"):
        env.skip(run, 0, "by hand")
    env.advance(2)
    status = run.status()
    assert (status.status, status.wait, status.step, status.seq) == ("running", "step_running", "kit_ops_lasts", 0)
    with pytest.raises(OperationRefused, match="a worker executes it and none of its steps waits for a retry"):
        env.retry(run)
    env.skip(run, 0, "by hand")
    assert run.result() == "by hand, after"
    env.advance(7200)
    assert [record.name for record in env.history(run).records] == ["kit_ops_lasts", "kit_ops_after"] and len(env.calls(kit_ops_lasts)) == 1
    env.verify()


def test_a_hanging_step_that_is_skipped_survives_a_crash():
    for env in crashes():
        env.mock(kit_ops_lasts, returns="at last", takes=3600)
        run = env.start(kit_ops_in_line)
        env.advance(2)
        env.skip(run, 0, "by hand")
        assert run.result() == "by hand, after"


def test_a_fork_lives_in_the_environments_time(env):
    """What was waited for is waited for again: of a history that has ended, too."""
    env.mock(kit_ops_fails, returns="first")
    first = env.start(kit_ops_naps)
    assert first.result() == "first"
    env.mock(kit_ops_fails, returns="second")
    before = env.now
    again, whole = env.fork(first, 0), env.fork(first, 1)
    assert (whole.result(), env.now - before) == ("second", timedelta(0))
    assert (again.result(), env.now - before) == ("second", timedelta(hours=1))


def test_a_step_may_operate_on_other_runs(env):
    """From inside a step, as a repair job does it."""

    def repairs(said: str) -> str:
        env.retry(stuck)
        return said

    env.mock(kit_ops_fails, sequence=[ValueError("once"), "then"])
    stuck = env.start(kit_ops_naps)
    env.advance(3600)
    env.mock(kit_ops_after, calls=repairs)
    assert env.start(kit_ops_in_line).result() == "at last"
    assert stuck.result(timeout=0) == "then"


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_filters_is_known(env, name):
    """One that is new there is missed here and not in a user's test."""
    run = env.start(kit_ops_naps)
    field = FIELDS[name]
    value = {"run": str(run.id), "status": "waiting", "started": "2001-01-01", "ended": "2001-01-01"}.get(name, "1h")
    test = f"{name}{'.part' if field.paths else ''} {'is null' if 'is null' in field.ops else f'{field.ops[0]} {value}'}"
    found = env.list(filter=f"({test}) OR workflow = kit_ops_naps")
    assert [each.run_id for each in found] == [run.id]


def test_who_waits_for_a_run_in_a_paused_queue_is_told(env):
    """Nothing will happen there by itself, however much time passes."""
    assert env.pause_queue("default", "stocktaking", actor="ann")
    run = env.start(kit_ops_in_line)
    with pytest.raises(EnvironmentStuck) as stuck:
        run.result()
    assert stuck.value.waiting == [f"run {run.id} of kit_ops_in_line: its queue default is paused, by ann: stocktaking"]
    env.advance(3600)
    assert env.calls() == [] and env.resume_queue("default")
    assert run.result() == "at last, after"
