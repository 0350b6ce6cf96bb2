"""A step that holds the loop's thread holds its own run and nothing else."""

from __future__ import annotations

import itertools
import os
import signal
import time
from typing import Any

import pytest

from supervisor import RunFailed
from tests.apps import stuck
from tests.conformance.conftest import Live

APP = "tests.apps.stuck"
# ten times what the benchmark shows: from the beginning of a stuck call to the commit of what was executed before it
DURABLE_S = 1.0
_names = itertools.count()


@pytest.fixture
def warm(live: Live) -> Live:
    """A new worker that knows its steps to be quick, so that they run on the loop's thread."""
    live.kill()
    live.run(stuck.stuck_warm, 120)
    return live


def hold(live: Live, workflow: Any, n: int) -> tuple[str, Any]:
    """Start a run whose step holds the loop: (what lets it go, the run)."""
    name = f"gate{next(_names)}"
    run = live.start(workflow, n, name)
    live.until(lambda: held(live, name), 20, f"{name} held")
    return name, run


def held(live: Live, name: str) -> list[list[str]]:
    return [line for line in live.effects.lines("held") if line[1] == name]


def until_taken_over(live: Live, before: int) -> None:
    live.until(lambda: live.host.log().count("holds the loop") > before, 20, "the watchdog took the loop over")


@pytest.mark.parametrize("workflow", [stuck.stuck_one, stuck.stuck_many, stuck.stuck_many_def, stuck.stuck_branches], ids=lambda w: w.name)
def test_everything_else_goes_on_while_a_step_holds_the_loop(warm: Live, workflow: Any) -> None:
    """A lock, a slow disk, a name server: one call in a million takes half a minute, and a worker holds a thousand runs."""
    taken = warm.host.log().count("holds the loop")
    # given a worker, the only one, whose loop is held by a step
    name, run = hold(warm, workflow, 1000)
    # then async and def workflows finish meanwhile, begun before and after
    others = [warm.start(kind, n) for kind in (stuck.stuck_one, stuck.stuck_many, stuck.stuck_many_def) for n in range(2000, 2010)]
    assert [other.result(timeout=20) for other in others] == [*range(2001, 2011), *range(2016, 2026), *range(2016, 2026)]
    until_taken_over(warm, taken)
    assert run.status().status == "running"
    # and its own run completes when it returns, having executed once
    warm.effects.open(name)
    results = {"stuck_one": 1001, "stuck_many": 1016, "stuck_many_def": 1016, "stuck_branches": [1001 + i for i in range(6)]}
    assert run.result(timeout=20) == results[workflow.name]
    assert len(held(warm, name)) == 1
    # and the step knew all the time whose it was, on the main thread, which has the loop again
    let_go = [line for line in warm.effects.lines("let_go") if line[1] == name]
    assert [line[2] for line in let_go] == [str(run.id)]
    assert warm.run(stuck.stuck_many_def, 5) == 21


def test_the_batch_of_a_stuck_step_is_durable_at_once(warm: Live) -> None:
    """What was executed before it in the same group was done: it must not wait to be recorded."""
    name = f"gate{next(_names)}"
    runs = warm.client.start_many(stuck.stuck_one, ({"n": n, "hold": name if n == 100 else ""} for n in range(200)))
    warm.until(lambda: held(warm, name), 20)
    _, _, _, since, *before = held(warm, name)[0]
    assert before, "nothing was executed before it: the test shows nothing"
    mine = [runs[int(n)].id for n in before]
    rows = "select count(*) from supervisor.step where run_id = any(%s)"
    warm.until(lambda: warm.database.one(rows, mine) == len(mine), 20)
    assert time.time() - float(since) < DURABLE_S
    warm.effects.open(name)
    assert [run.result(timeout=20) for run in runs] == list(range(1, 201))


def test_a_stuck_step_may_fail(warm: Live) -> None:
    """Its error belongs to its workflow, whichever thread it came from."""
    name, run = hold(warm, stuck.stuck_raises, 7)
    assert warm.run(stuck.stuck_many, 1) == 17
    warm.effects.open(name)
    with pytest.raises(RunFailed) as caught:
        run.result(timeout=20)
    assert isinstance(caught.value.__cause__, ValueError) and str(caught.value.__cause__) == "let go of 7"


@pytest.mark.parametrize("first", [0, 1], ids=["the first returns first", "the second returns first"])
def test_the_thread_that_took_over_may_be_stuck_as_well(warm: Live, first: int) -> None:
    """Two steps that wait for the same service hang one after the other."""
    taken = warm.host.log().count("holds the loop")
    gates = [hold(warm, stuck.stuck_one, 1), hold(warm, stuck.stuck_of_declared, 2)]
    until_taken_over(warm, taken + 1)
    assert warm.run(stuck.stuck_many_def, 1) == 17
    for at in (first, 1 - first):
        name, run = gates[at]
        warm.effects.open(name)
        assert run.result(timeout=20) == (2, 3)[at]
        assert warm.run(stuck.stuck_many_def, 1) == 17
    assert [len(held(warm, gate[0])) for gate in gates] == [1, 1]


def test_kill_during_a_takeover_loses_nothing(warm: Live) -> None:
    """The stuck run is the killed process's only unfinished business."""
    name, run = hold(warm, stuck.stuck_one, 1)
    done = [warm.start(stuck.stuck_many_def, n) for n in range(10)]
    assert [one.result(timeout=20) for one in done] == list(range(16, 26))
    going = [warm.start(stuck.stuck_many_def, n) for n in range(10)]
    warm.kill()
    warm.effects.open(name)
    assert run.result(timeout=20) == 2
    assert [one.result(timeout=20) for one in going] == list(range(16, 26))
    assert len(held(warm, name)) == 2, "a call that was in flight when its process died is executed again"


def test_a_moment_costs_no_replay(warm: Live) -> None:
    """Most calls that are late are late by a moment; giving back a thousand def workflows for that would cost more than waiting."""
    taken = warm.host.log().count("holds the loop")
    before = warm.effects.count("body")
    runs = [warm.start(stuck.stuck_naps_def, n, 30, 10 if n == 20 else -1) for n in range(40)]
    assert [run.result(timeout=20) for run in runs] == list(range(40))
    bodies = warm.effects.count("body") - before
    assert warm.host.log().count("holds the loop") > taken
    assert bodies <= 40 + 12, f"{bodies} executions of 40 def workflows"


def test_a_stuck_step_does_not_keep_a_worker_from_ending(warm: Live) -> None:
    """TERM drains; what does not end within the drain timeout is ended with its process, and runs again elsewhere."""
    name, run = hold(warm, stuck.stuck_one, 1)
    assert warm.run(stuck.stuck_many, 1) == 17
    up = warm.host.log().count(" is up as ")
    os.kill(warm.host.worker_pids()[0], signal.SIGTERM)
    assert warm.rows(run) == 0
    warm.effects.open(name)  # it ends within the drain timeout: the worker does, too
    warm.until(lambda: warm.host.log().count(" is up as ") > up, 30, "a successor")
    assert run.result(timeout=20) == 2
    assert len(held(warm, name)) == 1
