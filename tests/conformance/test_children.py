"""A child run is started once however often its parent is replayed, and its parent goes on when it ends."""

from __future__ import annotations

from supervisor import DefinitionError, InputInvalid
from tests.apps import families
from tests.conformance.conftest import Live

APP = "tests.apps.families"
PROCS = 2


def test_children_give_typed_results_in_both_kinds_of_workflow(live: Live) -> None:
    """Awaiting a workflow is awaiting its run."""
    assert live.run(families.calls) == [2, 4, {"n": 2, "label": "p!"}, "other", [6, 8, 10]]
    assert live.run(families.calls_def) == [2, 4, 6, 10, 8]


def test_started_children_have_ids_and_results_to_be_asked_twice(live: Live) -> None:
    """`start` gives the run at once; its result may be awaited later, and again."""
    run = live.start(families.starts, 5)
    ids, one_by_one, gathered = run.result(timeout=20)
    assert one_by_one == gathered == [200, 202, 204, 206, 208]
    stored = live.database.sql("select run_id::text from supervisor.run where parent_id = %s order by parent_seq", run.id)
    assert [found for (found,) in stored] == ids


def test_child_outlives_a_parent_that_does_not_wait(live: Live) -> None:
    """Starting is not waiting."""
    child = live.client.get(live.run(families.starts_and_leaves))
    assert child.status().status in ("ready", "running")
    live.effects.open("left")
    assert child.result(timeout=20) == "left"


def test_generations_and_identities(live: Live) -> None:
    """A child is a run of its own, and may have children."""
    assert live.run(families.generations, 8) == 8
    child, parent = live.run(families.asks_who)
    assert child != parent


def test_failure_of_a_child_reaches_its_parent_at_once(live: Live) -> None:
    """With the cause rebuilt; and a gather does not wait for the slow one to learn of it."""
    run = live.start(families.catches, "slow_sister")
    assert run.result(timeout=20) == ["bad_kid LookupError kid 1", "bad_kid kid 2"]
    live.effects.open("slow_sister")


def test_first_of_a_child_and_a_timer(live: Live) -> None:
    """Whichever comes first decides, with the parent out of memory meanwhile."""
    assert live.run(families.waits_for_either, "never_opened") == ["late", None]
    live.effects.open("opened")
    assert live.run(families.waits_for_either, "opened") == ["kid", "opened"]
    live.effects.open("never_opened")


def test_first_of_a_child_and_a_step(live: Live) -> None:
    """A child that ends while a slow step of its parent executes has won, however long the step still takes."""
    run = live.start(families.waits_for_either_step, "slow_step")
    try:
        assert run.result(timeout=10) == ["kid", 2]
    finally:
        live.effects.open("slow_step")


def test_why_a_parent_does_not_move_is_told(live: Live) -> None:
    run = live.start(families.fans_out, 0, 0)
    assert run.result(timeout=20) == 0
    waiting = live.start(families.catches, "told")
    live.until(lambda: waiting.status().status == "completed", 20)
    live.effects.open("told")
    parent = live.start(families.waits_for_either, "soon")
    live.until(lambda: parent.status().wait in ("any_of", None), 10)
    live.effects.open("soon")
    parent.result(timeout=20)


def test_wrong_calls_are_refused_at_their_line(live: Live) -> None:
    """A child's identity is its parent's command, so it takes no key; its input is checked like any start's."""
    assert isinstance(live.error(families.keyed), DefinitionError)
    assert isinstance(live.error(families.wrong_input), InputInvalid)
    assert live.run(families.delayed) == 2


def test_killed_workers_start_no_child_twice_and_forget_no_parent(live: Live) -> None:
    """30 parents of 20 children each, workers killed again and again: every child once, every parent's sum right."""
    runs = [live.start(families.fans_out, 1000 * n, 20) for n in range(30)]
    ids = [run.id for run in runs]
    for done in (50, 200, 350, 500):
        ended = "select count(*) >= %s from supervisor.run r join supervisor.outcome o using (run_id) where r.parent_id = any(%s)"
        live.until(lambda: live.database.one(ended, done, ids), 30)
        live.kill()
    for n, run in enumerate(runs):
        assert run.result(timeout=60) == 2 * sum(1000 * n + at for at in range(20))
    started = live.database.sql("select parent_id, count(*) from supervisor.run where parent_id = any(%s) group by 1", ids)
    assert sorted(started) == sorted((run.id, 20) for run in runs)
    assert live.database.one("select count(*) from supervisor.task where wait_children is not null") == 0
