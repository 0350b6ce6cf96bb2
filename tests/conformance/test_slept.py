"""What wakes a run from a long sleep: its timer, recorded before its history is read, and never in place of what came first."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor import Run, RunCancelled, RunTimedOut
from tests.apps import slept
from tests.conformance.conftest import Live
from tests.harness import eventually

APP = "tests.apps.slept"
PROCS = 2
MANY, ROUNDS = 400, 3


def asleep(live: Live, *runs: Run[Any], but: int = 0) -> None:
    """Until all of them are out of memory."""
    asked = "select count(*) from supervisor.task where run_id = any(%s) and owner is null and wait_kind = 10 and ready_at > clock_timestamp()"
    live.until(lambda: live.database.one(asked, [run.id for run in runs]) == len(runs) - but, 60, "all are asleep")


def moved(live: Live, runs: list[Run[Any]], timer_s: float, task_s: float) -> None:
    """Set when their timers are due, and when they may be claimed: in so many seconds."""
    live.database.sql(
        "with t as (update supervisor.timer set due_at = clock_timestamp() + %s * interval '1 s' where run_id = any(%s))"
        " update supervisor.task set ready_at = clock_timestamp() + %s * interval '1 s' where run_id = any(%s)",
        timer_s, [run.id for run in runs], task_s, [run.id for run in runs],
    )  # fmt: skip


def test_all_that_sleep_wake_once_though_their_workers_are_killed_meanwhile(live: Live) -> None:
    """The end of a sleep is recorded before the code goes on: whatever dies between, no sleep ends twice and none is lost."""
    runs = live.client.start_many(slept.slept_often, [{"label": str(n), "times": ROUNDS} for n in range(MANY)])
    for round in range(ROUNDS):
        asleep(live, *runs)
        moved(live, runs, -0.001, -0.001)
        live.kill()
        due = "select count(*) from supervisor.step where kind = 1 and seq = %s and run_id = any(%s)"
        live.until(lambda: live.database.one(due, 2 * round + 1, [run.id for run in runs]) == MANY, 60)  # noqa: B023
    assert [run.result(timeout=60) for run in runs] == [[f"{n} {at}" for at in range(ROUNDS)] for n in range(MANY)]
    history = "select array_agg(kind || ':' || name order by pos), array_agg(pos order by pos), bool_and(kind <> 2 or ended_at >= started_at) from supervisor.step where run_id = any(%s) group by run_id"
    found = live.database.sql(history, [run.id for run in runs])
    assert len(found) == MANY
    assert all(row == (["2:sleep", "1:slept_done"] * ROUNDS, list(range(2 * ROUNDS)), True) for row in found)
    assert live.database.one("select count(*) from supervisor.timer") == 0


def test_run_that_is_claimed_too_early_sleeps_on(live: Live) -> None:
    """A claim is a hint; what ends a sleep is its timer, by the database's clock."""
    run = live.start(slept.slept_short, "early")
    asleep(live, run)
    moved(live, [run], 3.0, 0.0)
    since, due = live.database.sql("select wait_since, due_at from supervisor.task join supervisor.timer using (run_id) where run_id = %s", run.id)[0]
    assert run.result(timeout=30) == "early"
    began, ended = live.database.sql("select started_at, ended_at from supervisor.step where run_id = %s and kind = 2", run.id)[0]
    assert ended >= due and 0 <= (since - began).total_seconds() < 10  # of a timer that was moved: since its run's start


def test_what_was_to_end_the_run_comes_before_its_timer(live: Live) -> None:
    """A run that was cancelled while no worker looked, and whose time has come since, does not do what it would have done."""
    cancelled = [live.start(slept.slept_short, f"cancelled {n}") for n in range(20)]
    late = [live.start(slept.slept_limited, f"late {n}") for n in range(20)]
    asleep(live, *cancelled, *late)
    ids, late_ids = [run.id for run in cancelled], [run.id for run in late]
    live.database.sql(
        "with t as (update supervisor.timer set due_at = clock_timestamp() where run_id = any(%s) or run_id = any(%s)),"
        " l as (update supervisor.task set ready_at = clock_timestamp(), cancel_at = clock_timestamp() where run_id = any(%s))"
        " select count(supervisor.cancel(u, 'no more')) from unnest(%s::uuid[]) as u",
        ids, late_ids, late_ids, ids,
    )  # fmt: skip
    for run in cancelled:
        with pytest.raises(RunCancelled):
            run.result(timeout=30)
    for run in late:
        with pytest.raises(RunTimedOut):
            run.result(timeout=30)
        assert run.status().status == "timed_out"
    done = {line[1] for line in live.effects.lines("slept_done")}
    assert not done & {"cancelled", "late"}


def test_run_that_woke_does_not_wait(live: Live) -> None:
    """Its task says what it was claimed from; who looks is told what holds."""
    run = live.start(slept.slept_gated, "slept_gate")
    asleep(live, run)
    woke_at = live.database.one("select clock_timestamp()")
    moved(live, [run], 0.0, 0.0)
    eventually(lambda: live.effects.count("slept_held", "slept_gate") == 1, 30)
    status = run.status()
    assert (status.status, status.wait if status.wait != "step_running" else None) == ("running", None)
    seen = "select status, coalesce(nullif(code, 'step_running'), 'none'), since >= %s from supervisor.waits where run_id = %s"
    assert live.database.sql(seen, woke_at, run.id) == [("running", "none", True)]
    live.effects.open("slept_gate")
    assert run.result(timeout=30) == "slept_gate"


def test_run_whose_sleep_can_not_be_recorded_holds_up_nobody(live: Live) -> None:
    """The ends of many sleeps are one statement: a row that the database refuses is its own run's trouble alone."""
    runs = live.client.start_many(slept.slept_short, [{"label": f"beside {n}"} for n in range(50)])
    asleep(live, *runs)
    odd = runs[17]
    # given a history that already has a result where the sleep stands, of which nobody knows how it came there
    live.database.sql(
        "insert into supervisor.step (run_id, started_at, ended_at, seq, pos, worker, kind, status, name) values (%s, now(), now(), 0, 0, 0, 2, 1, 'sleep')", odd.id,
    )  # fmt: skip
    moved(live, runs, -0.001, -0.001)
    assert [run.result(timeout=60) for run in runs] == [f"beside {n}" for n in range(50)]
    assert "were refused together" in live.host.log()
    assert live.database.one("select count(*) from supervisor.step where run_id = any(%s)", [run.id for run in runs]) == 2 * len(runs)
