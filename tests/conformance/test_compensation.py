"""What a run has named to undo its steps is done in reverse before it ends, when it fails, is cancelled or its time is over; through crashes."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest

from supervisor import CompensationFailed, CompensationPending, OutsideWorkflow, RunCancelled, RunFailed, RunTimedOut, compensate
from tests.apps import undone
from tests.conformance.conftest import Live
from tests.harness import ROOT

APP = "tests.apps.undone"
PROCS = 2
REVERSE = ["four", "two", "two", "two", "one", "zero"]  # that of two is tried three times


def undoings(live: Live, name: str) -> list[str]:
    return [line[2] for line in live.effects.lines("undone_undo") if line[1] == name]


def planned(live: Live, run: Any) -> list[tuple[str, int, str]]:
    return live.database.sql("select name, of_seq, status from supervisor.compensations where run_id = %s order by seq", run.id)


PLAN = [("undone_child", 3, "completed"), ("undone_shaky", 1, "completed"), ("undone_undo", 0, "completed"), ("undone_undo", -1, "completed")]


def waits(live: Live, run: Any) -> None:
    live.until(lambda: run.status().wait == "timer", 20)


def test_a_run_that_fails_undoes_what_it_did_in_reverse(live: Live) -> None:
    """Steps, with their own policy of retries, and child runs; then it fails with its own error. One that completes undoes nothing."""
    run = live.start(undone.undone_run, "failing", "fails")
    with pytest.raises(RunFailed, match="LookupError: failing") as caught:
        run.result(timeout=20)
    assert isinstance(caught.value.__cause__, LookupError)
    assert undoings(live, "failing") == REVERSE and planned(live, run) == PLAN
    because = live.database.sql("select distinct because from supervisor.compensations where run_id = %s", run.id)
    assert because == [("LookupError: failing",)]
    assert live.run(undone.undone_run, "fine", "returns") == "fine" and undoings(live, "fine") == []


@pytest.mark.parametrize("how", ["waits", "cleans"])
def test_a_run_that_is_cancelled_undoes_what_it_did(live: Live, how: str) -> None:
    """After what its code does in except; a second cancellation, and one while it undoes, change nothing."""
    run = live.start(undone.undone_run, f"gated-{how}", how)
    waits(live, run)
    assert run.cancel("not wanted")
    live.until(lambda: undoings(live, f"gated-{how}") == ["four"])
    assert run.cancel("again") is False
    for what in ("four", "one", "zero"):
        live.effects.open(f"gated-{how}.{what}.open")
    with pytest.raises(RunCancelled, match="not wanted"):
        run.result(timeout=20)
    assert undoings(live, f"gated-{how}") == REVERSE and planned(live, run) == PLAN
    assert live.effects.count("undone_do", f"gated-{how}", "cleaned") == (how == "cleans")


def test_a_run_that_fails_is_not_cancelled_while_it_undoes(live: Live) -> None:
    run = live.start(undone.undone_run, "gated-f", "fails")
    live.until(lambda: undoings(live, "gated-f") == ["four"])
    assert run.cancel("too late")
    for what in ("four", "one", "zero"):
        live.effects.open(f"gated-f.{what}.open")
    with pytest.raises(RunFailed, match="LookupError: gated-f"):
        run.result(timeout=20)
    assert planned(live, run) == PLAN


@pytest.mark.parametrize("kind", ["late", "late_in_memory"])
def test_a_run_whose_time_is_over_undoes_what_it_did(live: Live, kind: str) -> None:
    """Parked or executing; for undoing it has all the time that it takes."""
    run = live.start(getattr(undone, f"undone_{kind}"), f"gated-{kind}")
    live.until(lambda: undoings(live, f"gated-{kind}") == ["four"], 40)
    live.kill()
    live.until(lambda: undoings(live, f"gated-{kind}") == ["four", "four"], 20)
    for what in ("four", "one", "zero"):
        live.effects.open(f"gated-{kind}.{what}.open")
    with pytest.raises(RunTimedOut, match="timed out"):
        run.result(timeout=20)
    assert run.status().status == "timed_out" and planned(live, run) == PLAN


def test_an_undo_that_fails_is_told_and_the_others_are_done(live: Live) -> None:
    """The run has failed then, whatever ended it: somebody has to look at what is left."""
    run = live.start(undone.undone_run, "breaking", "breaks")
    with pytest.raises(RunFailed, match="undone_breaks \\(undo of seq 3\\): ValueError: last can't be undone") as caught:
        run.result(timeout=20)
    told = caught.value.__cause__
    assert isinstance(told, CompensationFailed) and told.failed == [["undone_breaks", 3, "ValueError: last can't be undone"]]
    assert isinstance(told.__cause__, LookupError)
    assert undoings(live, "breaking") == ["last", *REVERSE]
    assert planned(live, run) == [("undone_breaks", 3, "failed"), *PLAN]
    cancelled = live.start(undone.undone_run, "breaking2", "breaks_cancelled")
    waits(live, cancelled)
    cancelled.cancel("away")
    with pytest.raises(RunFailed, match="1 of its undo steps failed after Cancelled: away"):
        cancelled.result(timeout=20)
    assert undoings(live, "breaking2") == ["last", *REVERSE]


def test_a_def_workflow_undoes_the_same_way(live: Live) -> None:
    run = live.start(undone.undone_def, "plain")
    with pytest.raises(RunFailed, match="four can't be undone"):
        run.result(timeout=20)
    assert undoings(live, "plain") == ["four", "two", "two", "two", "one"]


def test_a_run_that_is_terminated_undoes_nothing(live: Live) -> None:
    run = live.start(undone.undone_run, "cut", "waits")
    waits(live, run)
    assert run.terminate("at once")
    assert undoings(live, "cut") == [] and planned(live, run) == []


def test_workers_that_die_while_runs_undo(live: Live) -> None:
    """Every undo step of every run is done, in its order, and recorded once, wherever its worker died."""
    chance = random.Random(9)
    runs = [live.start(undone.undone_run, f"dies{at}", ("fails", "waits")[at % 2]) for at in range(24)]
    for run in runs[1::2]:
        live.until(lambda run=run: run.status().wait == "timer", 20)
        run.cancel("at random")
        if chance.random() < 0.3:
            live.kill()
    ids = [run.id for run in runs]
    live.until(lambda: live.database.one("select count(*) from supervisor.outcome where run_id = any(%s)", ids) == 24, 60)
    for at, run in enumerate(runs):
        assert run.status().status == ("failed", "cancelled")[at % 2] and planned(live, run) == PLAN
        order = list(dict.fromkeys(undoings(live, f"dies{at}")))
        assert order == ["four", "two", "one", "zero"]


def test_show_says_what_undoes_what(live: Live) -> None:
    run = live.start(undone.undone_run, "shown", "fails")
    with pytest.raises(RunFailed):
        run.result(timeout=20)
    words = [sys.executable, "-m", "supervisor", "show", str(run.id), "--dsn", live.database.dsn]
    shown = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for line in ("undone_child (child) (undo of 3)", "undone_shaky (undo of 1)", "undone_undo (undo of 0)", "undone_undo (undo)"):
        assert line in shown, shown


NAMED = [["undone_child", 3], ["undone_shaky", 1], ["undone_undo", 0], ["undone_undo", -1]]


def test_a_run_with_something_to_undo_does_not_go_on_as_a_new_one(live: Live) -> None:
    """The successor would not know of it, and would undo nothing when it fails: its code is told so at its line, and what was done is undone."""
    run = live.start(undone.undone_goes_on, "pending", "fails")
    with pytest.raises(RunFailed, match="it has 4 undo steps that its successor would not know of: undone_child \\(undo of seq 3\\), .* in a child run") as caught:
        run.result(timeout=20)
    told = caught.value.__cause__
    assert isinstance(told, CompensationPending) and told.steps == NAMED and told.workflow == "undone_goes_on"
    assert undoings(live, "pending") == REVERSE and planned(live, run) == PLAN
    plain = live.start(undone.undone_goes_on_def, "pending-def")
    with pytest.raises(RunFailed, match="1 undo step that its successor would not know of: undone_undo \\(undo of seq 0\\)"):
        plain.result(timeout=20)
    assert undoings(live, "pending-def") == ["one"]


def test_code_that_is_told_so_may_go_on_otherwise_through_crashes(live: Live) -> None:
    """In a replay it is told the same at the same line."""
    run = live.start(undone.undone_goes_on, "gated-told", "catches")
    live.until(lambda: live.effects.count("undone_do", "gated-told", "stays") == 1)
    live.kill()
    live.effects.open("gated-told.stays.open")
    assert run.result(timeout=20) == ["gated-told.stays", NAMED]
    assert live.effects.count("undone_do", "gated-told", "stays") == 2 and undoings(live, "gated-told") == []


def test_what_is_named_while_a_run_is_already_going_on_is_not_lost(live: Live) -> None:
    run = live.start(undone.undone_goes_on, "ending", "ends")
    with pytest.raises(RunFailed, match="1 undo step that its successor would not know of"):
        run.result(timeout=20)
    assert undoings(live, "ending") == ["ends"]


def test_a_run_whose_children_had_something_to_undo_goes_on(live: Live) -> None:
    assert live.run(undone.undone_settled, "settled", 2) == "settled" and undoings(live, "settled") == []


def test_what_undoes_nothing_is_refused_at_its_line(live: Live) -> None:
    told = live.run(undone.undone_misused)
    assert [each.split(":")[0] for each in told] == ["DefinitionError"] * 3 + ["InputInvalid"]
    with pytest.raises(OutsideWorkflow):
        compensate(undone.undone_undo, "x", "y")
