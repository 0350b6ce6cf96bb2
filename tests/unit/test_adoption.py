"""Batches whose answer was lost: what is looked for, and what is made of what was found."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor._fastpath.loop import Run
from supervisor.db.arrays import elements, encode_rows
from supervisor.db.worker_calls import Durable
from supervisor.engine.adoption import is_durable, wanted
from supervisor.engine.batch import OUTCOME_OIDS, STEP_OIDS, Batch

A, B = bytes(15) + b"a", bytes(15) + b"b"
RUN_A, RUN_B = Run(A, None), Run(B, None)
STEPS = encode_rows(STEP_OIDS[:7], [(A, 3, 3, "s", b"1", 0.0, 0.0), (B, 5, 5, "s", b"1", 0.0, 0.0)])
OUTCOMES = encode_rows(OUTCOME_OIDS, [(A, 1, 4, b"1", 0.0), (B, 1, 4, b"1", 0.0)])
RELEASE = (A, 0, 1, None, None, None, None, 1, None, None)
TIMER = (A, 2, 5000, None)
FIRE = (A, 2, 2, "sleep")
TRY = (A, 4, 1, 1, "s", b"e", "f", 0, 0, None)
CHILD = (B, 1, None, 5, b"{}", A, 6, 0)


def rare(**rows: tuple[Any, ...]) -> Batch:
    batch = Batch(runs=[RUN_A])
    for statement, row in rows.items():
        batch.add(statement, A, row)
    return batch


LEAVING = rare(release=RELEASE)
LEAVING.leaving = [RUN_A]
CASES = {
    "a step of it is there": (Batch(steps=STEPS), Durable(steps={(A, 3): 0}), True),
    "its steps are not": (Batch(steps=STEPS), Durable(steps={(B, 9): 0}), False),
    "an outcome is there": (Batch(outcomes=OUTCOMES), Durable(outcomes={A}), True),
    "its outcomes are not": (Batch(outcomes=OUTCOMES), Durable(), False),
    "its steps are not, whatever else is": (Batch(steps=STEPS, outcomes=OUTCOMES), Durable(outcomes={A}), False),
    "a try is there": (rare(insert_attempts=TRY), Durable(attempts={(A, 4, 1, 1)}), True),
    "its try is not": (rare(insert_attempts=TRY), Durable(attempts={(A, 4, 2, 1)}), False),
    "a child is there": (rare(insert_runs=CHILD), Durable(children={B}), True),
    "its child is not": (rare(insert_runs=CHILD), Durable(), False),
    "a timer is there": (rare(insert_timers=TIMER), Durable(timers={(A, 2): (0, 0)}), True),
    "its timer is not": (rare(insert_timers=TIMER), Durable(), False),
    "a timer has fired": (rare(fire_timers=FIRE), Durable(steps={(A, 2): 7}), True),
    "no timer has fired, so it may be asked again": (rare(fire_timers=FIRE), Durable(), False),
    "a publication, which a second time changes nothing": (Batch(runs=[RUN_A], said={(A, "insert_published", "k"): (A, "k", 1, b"1", 0)}), Durable(), False),
    "what can be repeated": (rare(publish=(A, None, None, None, None, None)), Durable(), False),
}


@pytest.mark.parametrize(("batch", "found", "durable"), CASES.values(), ids=CASES)
def test_one_row_says_what_became_of_a_batch(batch: Batch, found: Durable, durable: bool) -> None:
    """A batch is one transaction: one row of it is there or none is."""
    assert is_durable(batch, found, own={A, B}) is durable


def test_batch_that_only_gives_runs_back_is_seen_by_their_absence() -> None:
    """Whose task is still this worker's, that was not given back."""
    assert is_durable(LEAVING, Durable(), own={B})
    assert not is_durable(LEAVING, Durable(), own={A, B})


def test_few_rows_are_looked_for_however_large_the_batch() -> None:
    """Thousands of runs in flight must not make the way back long."""
    steps = encode_rows(STEP_OIDS[:7], [(A, at, at, "s", b"1", 0.0, 0.0) for at in range(1000)])
    batch = rare(insert_attempts=TRY, insert_timers=TIMER, insert_runs=CHILD)
    batch.steps, batch.outcomes = steps, OUTCOMES
    asked = wanted([batch, LEAVING])
    assert (asked.steps, asked.outcomes, asked.attempts) == ([(A, 0)], [A], [TRY[:4]])
    assert (asked.timers, asked.children) == ([(A, 2)], [(A, 6, B)])


def test_batch_without_a_run_keeps_its_neighbours_rows() -> None:
    """A run that was taken away costs the others of its batch nothing."""
    batch = Batch(runs=[RUN_A, RUN_B], finished=[RUN_B], leaving=[RUN_A], steps=STEPS, outcomes=OUTCOMES)
    batch.add("release", A, RELEASE)
    batch.add("wake_parents", A, (A,))
    rest = batch.without({A})
    assert (rest.runs, rest.finished, rest.leaving) == ([RUN_B], [RUN_B], [])
    assert rest.steps is not None and elements(rest.steps[0]) == [B]
    assert rest.outcomes is not None and elements(rest.outcomes[0]) == [B]
    assert list(rest.rare) == ["wake_parents"], "whom an ended child wakes is not a matter of who owns it"
    assert batch.without({A, B}).without(set()).runs == []


def test_what_is_nobodys_outlives_the_halving_of_a_batch() -> None:
    """A row that the database refuses must not cost a parent its wake-up."""
    batch = Batch(runs=[RUN_A, RUN_B])
    batch.add("release", A, RELEASE)
    batch.add("wake_parents", B, (B,))
    batch.add("look_at_parked", A, (A,))
    apart = Batch(rare=batch.nobodys())
    assert list(apart.rare) == ["wake_parents", "look_at_parked"] and not apart.empty()
    sent = [name for name, _ in apart.statements([], b"")]
    assert sent == ["fence", "plan_custom", "lock_parents", "wake_parents", "plan_generic", "plan_custom", "look_at_parked", "plan_generic"]


@pytest.mark.parametrize("statement", ["release", "publish"])
def test_thousands_of_rows_are_many_small_statements_in_the_order_of_locks(statement: str) -> None:
    """The server compares each row of such a statement with each other: in one, nine thousand stood still for 25 s."""
    ids = [number.to_bytes(16, "big") for number in range(1000)]
    batch = Batch(runs=[RUN_A])
    for run_id in reversed(ids):
        batch.add(statement, run_id, (run_id, *RELEASE[1:]) if statement == "release" else (run_id, None, None, None, None, None))
    sent = [values for name, values in batch.statements([], b"worker") if name == statement]
    parts = [elements(values[0]) for values in sent if values is not None]
    assert [run_id for part in parts for run_id in part] == ids and max(map(len, parts)) <= 64
    assert all(values is not None and values[-1] == b"worker" for values in sent)


def test_publications_go_with_their_run() -> None:
    """What is parked alone, or taken away, takes its own along and leaves those of its neighbours."""
    batch = Batch(runs=[RUN_A, RUN_B], said={(run, "insert_published", key): (run, key, 1, b"1", 0) for run in (A, B) for key in "xy"})
    assert not batch.empty() and ("insert_published" in [name for name, _ in batch.statements([], b"")])
    assert [{(run, key) for run, _, key in half.said} for half in batch.halves()] == [{(A, "x"), (A, "y")}, {(B, "x"), (B, "y")}]
    assert {(run, key) for run, _, key in batch.without({A}).said} == {(B, "x"), (B, "y")}
    assert "insert_published" not in [name for name, _ in Batch(runs=[RUN_A], steps=STEPS).statements([], b"")]
