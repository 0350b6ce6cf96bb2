"""Queries of runs that wait for signals: a replay gives them what they were given, and no question takes, or delays, a message."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor import QueryFailed, QueryReadOnly, Run
from tests.apps import asked_letters as app
from tests.conformance.conftest import Live

APP = "tests.apps.asked_letters"
PROCS = 2

# all that the database holds of a run: nothing of it may change because somebody asked
HELD = (
    "select to_jsonb(t), t.xmin::text from supervisor.task t where run_id = %s",
    "select to_jsonb(s), s.xmin::text from supervisor.step s where run_id = %s order by pos",
    "select to_jsonb(m), m.xmin::text from supervisor.message m where run_id = %s order by n",
    "select to_jsonb(c), c.xmin::text from supervisor.consumed c where run_id = %s order by n",
    "select to_jsonb(t), t.xmin::text from supervisor.timer t where run_id = %s order by seq",
    "select to_jsonb(p), p.xmin::text from supervisor.publication p where run_id = %s order by pos, key",
)


def held(live: Live, run: Run[Any]) -> list[Any]:
    return [live.database.sql(each, run.id) for each in HELD]


def parked(live: Live, run: Run[Any], records: int) -> None:
    """Until *run* has left memory with that many records: whoever asks it changes nothing, for it does nothing itself."""
    live.until(lambda: live.rows(run) == records and live.database.sql(
        "select 1 from supervisor.task where run_id = %s and owner is null and wait_kind in (11, 15)", run.id
    ), 30, f"{run} parked after {records} records")  # fmt: skip


def asked(live: Live, run: Run[Any], records: int) -> list[Any]:
    """What a parked run answers, which must leave no trace."""
    parked(live, run, records)
    before = held(live, run)
    answer = run.query(app.given)
    assert held(live, run) == before
    return answer


@pytest.mark.parametrize("workflow", [app.asked_at_once, app.asked_at_once_def])
def test_a_run_whose_history_begins_with_a_wait_answers_in_memory_and_out_of_it(live: Live, workflow: Any) -> None:
    run = live.start(workflow)
    assert run.query(app.given) == [], "it was hardly claimed"
    assert asked(live, run, 0) == []
    run.signal("pages", 1)
    live.until(lambda: run.published("pages") == 1, 20)
    assert run.query(app.given) == [1], "in memory, where it waits for the next one"
    assert asked(live, run, 1) == [1]
    run.signal("pages", 2)
    run.signal("pages", 3)
    assert run.result(timeout=20) == [1, 2, 3] == run.query(app.given)
    assert run.published("pages") == 3


@pytest.mark.parametrize("workflow", [app.asked_at_once, app.asked_at_once_def])
def test_what_was_sent_and_not_yet_given_is_no_part_of_the_answer(live: Live, workflow: Any) -> None:
    """A replay gives what is recorded: a run that has not begun was given nothing, and its messages stay where they are."""
    run = live.start(workflow.options(delay=3600))
    for page in (1, 2):
        run.signal("pages", page)
    before = held(live, run)
    assert run.query(app.given) == [] and held(live, run) == before
    run.cancel()
    assert run.query(app.given) == []
    assert [(None,)] * 2 == live.database.sql("select seq from supervisor.signals where run_id = %s", run.id)


@pytest.mark.parametrize("workflow", [app.asked_between, app.asked_between_def])
def test_waits_in_groups_with_timeouts_and_for_what_does_not_fit_are_replayed(live: Live, workflow: Any) -> None:
    """As one of the two that a wait was lost to, as one that expired, and as one that raised: what it holds live is what it answers."""
    run = live.start(workflow)
    assert asked(live, run, 0) == []
    run.signal("pages", 1)
    assert asked(live, run, 2) == [1]
    run.signal("covers", "red")
    assert asked(live, run, 3) == [1], "one of three that are gathered"
    for page in (2, 3):
        run.signal("pages", page)
    told = [1, [2, "red", 3]]
    assert asked(live, run, 5) == told
    live.kill()
    assert run.query(app.given, timeout=60) == told, "whose worker is dead"
    run.signal("covers", "blue")
    told += [["cover", "blue"], "signal pages did not come within 0.05 s"]
    lost = 2 if workflow is app.asked_between else 1
    assert asked(live, run, 5 + 1 + lost + 1) == told
    run.signal("pages", "no number")
    told += ["signal pages"]
    assert asked(live, run, 5 + 1 + lost + 2) == told
    run.signal("pages", 4)
    assert run.result(timeout=20) == [*told, 4] == run.query(app.given)


@pytest.mark.parametrize("workflow", [app.asked_for_a_wait, app.asked_for_a_wait_def])
def test_a_handler_may_not_wait_for_a_signal(live: Live, workflow: Any) -> None:
    """It would take a message from the run."""
    run = live.start(workflow)
    run.signal("pages", 1)
    parked(live, run, 0)
    before = held(live, run)
    with pytest.raises(QueryFailed) as caught:
        run.query(app.given)
    assert isinstance(caught.value.__cause__, QueryReadOnly) and "pages.wait()" in str(caught.value.__cause__)
    assert held(live, run) == before
    run.signal("covers", "red")
    assert run.result(timeout=20) == "red"
