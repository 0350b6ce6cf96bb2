"""A failed attempt is durable and repeated as its policy says; a crash is not an attempt."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from supervisor import NonRetryable, RetryAfter
from tests.apps import tries
from tests.conformance.conftest import Live

APP = "tests.apps.tries"
SETUP = ("create table ledger (attempt int)",)


def _attempts(live: Live, run: Any) -> list[int]:
    return [n for (n,) in live.database.sql("select n from supervisor.attempt where run_id = %s and kind = 1 order by seq, n", run.id)]


@pytest.mark.parametrize("way", ["thread", "inline", "task", "tx"])
def test_failed_step_is_tried_as_its_policy_says(live: Live, way: str) -> None:
    """Third time lucky; and when it never is, the last error reaches the workflow. Every failed try is on record."""
    run = live.start(tries.tries, way, 3)
    assert run.result(timeout=20) == 3
    assert _attempts(live, run) == [1, 2]
    exhausted = live.start(tries.tries, way, 99)
    assert exhausted.result(timeout=20) == f"caught try 4 of {way}"
    assert _attempts(live, exhausted) == [1, 2, 3, 4]
    keys = {line[4] for line in live.effects.lines("try") if line[4].startswith(str(run.id))}
    assert keys == {f"{run.id}/0"}, "the idempotency key is equal in all attempts"
    if way == "tx":
        assert live.database.sql("select attempt from ledger") == [(3,)], "what a failed attempt wrote is gone"


def test_without_a_policy_a_step_is_tried_once(live: Live) -> None:
    """Retrying what nobody said may be repeated is how cards are charged twice."""
    run = live.start(tries.tries, "once", 2)
    assert run.result(timeout=20) == "caught try 1 of once"
    assert live.effects.count("try", "once") == 1


def test_retries_in_branches_and_in_def_workflows(live: Live) -> None:
    """A branch that backs off does not hold up its neighbours."""
    assert live.run(tries.tries_in_branches) == [3, 3, 3, 3]
    assert live.run(tries.tries_def, 2) == 4
    assert live.run(tries.tries_def, 99) == "caught try 4 of def"


@pytest.mark.parametrize(
    ("kind", "count", "error"), [("declined", 1, tries.StolenCard), ("non_retryable", 1, NonRetryable), ("other", 3, ValueError)]
)
def test_what_is_not_retryable_fails_at_once(live: Live, kind: str, count: int, error: type[Exception]) -> None:
    """A declined card stays declined: by class (subclasses too) or by NonRetryable, whose cause is kept."""
    found = live.error(tries.charges, kind)
    assert isinstance(found, error)
    assert live.effects.count("charge", kind) == count
    if kind == "non_retryable":
        assert isinstance(found.__cause__, KeyError)


def test_retry_after_overrides_the_wait_and_not_the_count(live: Live) -> None:
    """The service said when to come back."""
    run = live.start(tries.retried_later, 0.4)
    with pytest.raises(Exception) as caught:
        run.result(timeout=20)
    assert isinstance(caught.value.__cause__, RetryAfter)
    rows = live.database.sql("select started_at, ended_at, next_retry_at from supervisor.attempt where run_id = %s order by n", run.id)
    assert len(rows) == 2
    waited = (rows[1][0] - rows[0][1]).total_seconds()
    assert 0.4 <= waited < 4, waited
    assert abs((rows[0][2] - rows[0][1]).total_seconds() - 0.4) < 0.001
    assert rows[1][2] is None, "the last attempt names no next one"
    assert live.run(tries.retried_without_policy) == 3


def test_attempts_survive_kill(live: Live) -> None:
    """A crash while a retry waits costs no attempt and adds none: in memory (short waits) and out of it (long ones)."""
    runs = {wait_s: live.start(tries.survivor, f"w{wait_s}", wait_s, "survive") for wait_s in (0.3, 1.5)}
    for expected in (1, 2, 3):
        live.until(lambda: all(live.effects.count("survives", f"w{wait_s}", expected) for wait_s in runs), 20, f"attempt {expected}")
        if expected < 3:
            live.until(lambda: all(len(_attempts(live, run)) >= expected for run in runs.values()), 10)
        live.kill()
    live.effects.open("survive")
    for wait_s, run in runs.items():
        # the third attempt was inside of its body when its worker died: the same attempt again, and it knows
        assert run.result(timeout=20) == [3, True]
        assert _attempts(live, run) == [1, 2]
        begun = [line[2:] for line in live.effects.lines("survives") if line[1] == f"w{wait_s}"]
        assert ["3", "True"] in begun
        assert begun.count(["1", "False"]) == 1


def test_backoff_is_told(live: Live) -> None:
    """Why does it not move: step_backoff, with the step, its seq and the attempt."""
    run = live.start(tries.retried_later, 3600)
    live.until(lambda: run.status().wait == "step_backoff", 10)
    status = run.status()
    assert (status.step, status.seq, status.attempt) == ("later", 0, 2)


def test_timeout_of_an_async_step_cancels_it(live: Live) -> None:
    """A hanging call ends at its timeout, as a TimeoutError that the workflow can catch."""
    got = live.run(tries.timeouts, "task")
    assert got == ["StepTimeout", "step hangs did not end within 0.3 s", True, "quick"]
    live.until(lambda: live.effects.count("hangs_cancelled"), 10)


def test_timeout_of_a_def_step_is_final_however_it_ends(live: Live) -> None:
    """A thread can't be stopped; what it returns late is dropped, and its place is taken by another."""
    run = live.start(tries.timeouts, "thread", "late")
    assert run.result(timeout=20) == ["StepTimeout", "step hangs_in_thread did not end within 0.3 s", True, "quick"]
    live.effects.open("late")
    live.until(lambda: live.effects.count("late_return"), 10)
    assert live.rows(run) == 2
    assert live.run(tries.timeouts, "once") == 2
    deadline = datetime.fromisoformat(live.run(tries.timeouts, "in_time"))
    assert deadline.tzinfo is not None


def test_stuck_threads_are_replaced(live: Live) -> None:
    """Twenty stuck calls on eight threads: whoever comes after them still runs."""
    assert live.run(tries.many_stuck, 20, "unstuck") == ["quick"] * 20
    live.effects.open("unstuck")
