"""Leaving memory executes nothing: `finally` blocks unwind, and every engine call in them is inert."""

from __future__ import annotations

from tests.apps import evicted
from tests.conformance.conftest import Live

APP = "tests.apps.evicted"


def _cleaned(live: Live) -> dict[str, int]:
    counts: dict[str, int] = {}
    for line in live.effects.lines("cleaned"):
        counts[line[1]] = counts.get(line[1], 0) + 1
    return counts


def test_run_evicted_100_times_ran_its_finally_once(live: Live) -> None:
    """A finally that ran at each eviction would release, refund or notify a hundred times."""
    run = live.start(evicted.cleans_once, 100)
    assert run.result(timeout=60) == sum(range(100)) + 1
    assert live.effects.count("unwound", "root") >= 100, "it left memory for each child"
    assert _cleaned(live) == {"task": 1, "thread": 1, "tx": 1, "child": 1, "started": 1, "gathered": 2}
    started = live.database.one("select count(*) from supervisor.run where parent_id = %s", run.id)
    assert started == 102


def test_branches_within_branches_unwind_inertly(live: Live) -> None:
    """Also those that nothing waits for directly."""
    before = _cleaned(live)
    total = sum(range(10))
    assert live.run(evicted.branches_clean_once, 10) == [[total, total], ["a", total]]
    assert live.effects.count("unwound", "root_of_branches") >= 5
    new = {who: n for who, n in _cleaned(live).items() if who not in before}
    assert new == {"inner1": 1, "inner2": 1, "inner3": 1, "outer": 1, "outer_gathered": 1, "root_of_branches": 1}


def test_def_workflow_unwinds_inertly(live: Live) -> None:
    before = _cleaned(live)
    assert live.run(evicted.def_cleans_once, 20) == sum(range(20))
    assert live.effects.count("unwound", "def") >= 20
    new = {who: n for who, n in _cleaned(live).items() if who not in before}
    assert new == {"def": 1, "def_task": 1, "def_child": 1}


def test_code_that_refuses_to_leave_harms_nobody(live: Live) -> None:
    """`except BaseException: await …` swallows the eviction; the run is brought back all the same, the worker lives."""
    up = live.host.log().count(" is up as ")
    assert live.run(evicted.swallows, 5) == 10
    assert live.run(evicted.def_swallows, 5) == 10
    assert live.run(evicted.raises_while_unwinding, 5) == 10
    assert live.effects.count("swallowed") >= 1
    assert live.effects.count("swallowed_def") >= 1
    assert not {"swallowed", "swallowed_def"} & set(_cleaned(live))
    assert live.host.log().count(" is up as ") == up, live.about()


def test_worker_that_ends_unwinds_inertly(live: Live) -> None:
    """Declared dead, it ends, Python throws its coroutines away: no `finally` of a run that goes on elsewhere may act."""
    runs = [live.start(evicted.stands_and_cleans, "end"), live.start(evicted.stands_and_cleans_def, "end")]
    live.until(lambda: live.effects.count("standing", "end") == 2, 20)
    live.until(lambda: live.rows(runs[0]) == 1, 20, "the step that has ended is durable")
    live.database.sql("update supervisor.worker set dead_at = clock_timestamp(), death = 'by a test', epoch = epoch + 1 where dead_at is null")
    live.until(lambda: live.effects.count("standing", "end") == 4, 30, "another worker")
    assert not {"end_branch", "end_root", "end_def"} & set(_cleaned(live)), "a finally acted in a worker that ended"
    live.effects.open("end")
    for run in runs:
        run.result(timeout=20)
    counts = _cleaned(live)
    assert [counts[who] for who in ("end_before", "end_branch", "end_root", "end_def")] == [1, 1, 1, 1]
