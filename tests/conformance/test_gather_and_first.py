"""Branches interleave in a replay as they did live: every order of ends, a kill after every delivery."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from supervisor import DefinitionError
from tests.apps import branches
from tests.conformance.conftest import Live

APP = "tests.apps.branches"
RACES = ("b z", "a1 a2 z", "d1 d2 z", "d2 d1 z", "a1 b z", "d1 b z", "a1 d1 d2 z", "a1 d2 a2 z", "d1 a1 b z", "d2 a1 a2 z")


def _scripts() -> list[tuple[Any, list[str]]]:
    """Workflow and the gates to open for it, in order."""
    scripts = [(branches.four, list(order)) for order in itertools.permutations("abcd")]
    labels = [f"{branch}{n}" for branch in "abc" for n in "12"]
    drawn = random.Random(7)
    for _ in range(16):
        order = drawn.sample(labels, 6)
        for branch in "ab":  # the first step of these branches comes before their second
            at = sorted(order.index(f"{branch}{n}") for n in "12")
            order[at[0]], order[at[1]] = f"{branch}1", f"{branch}2"
        scripts.append((branches.long_branches, order))
    scripts += [(branches.race, order.split()) for order in RACES]
    scripts += [(branches.four_def, [*order, "z"]) for order in itertools.islice(itertools.permutations("abcd"), 0, 24, 5)]
    scripts += [(branches.race_def, order.split()) for order in ("b z", "d1 d2 z", "d2 b z")]
    scripts += [(branches.failing, ["x", "z"])]
    return scripts


def _reached(live: Live, runs: list[tuple[Any, Any, list[str]]], at: int) -> bool:
    """Whether the ends of every run's steps up to number *at* are durable."""
    durable = set(live.database.sql("select run_id, convert_from(result, 'UTF8') from supervisor.step where name = 'gated' and status = 1"))
    return all((run.id, f'"{label}"') in durable for run, _, order in runs for label in order[: at + 1])


def test_every_order_replays_alike_after_a_kill_at_every_point(live: Live) -> None:
    """By call order alone one of four completion orders would replay wrongly: the code would see what it never saw."""
    runs = []
    for number, (workflow, order) in enumerate(_scripts()):
        runs.append((live.start(workflow, f"run{number}"), workflow, order))
    names = {run.id: f"run{number}" for number, (run, _, _) in enumerate(runs)}
    # when their steps end one by one, in the order of each script, and every worker is killed after each
    for at in range(max(len(order) for _, _, order in runs)):
        for run, _, order in runs:
            if at < len(order):
                live.effects.open(f"{names[run.id]}.{order[at]}")
        live.until(lambda: _reached(live, runs, at), 30, f"delivery {at}")
        live.kill()
    for run, workflow, order in runs:
        seen = run.result(timeout=30)
        told = f"{workflow.name} {order}: {seen}"
        # then what it saw live, at every point, is what it saw in the last replay
        for prefix in seen["snaps"]:
            assert seen["trace"][: len(prefix)] == prefix, told
        gated = "select convert_from(result, 'UTF8') from supervisor.step where run_id = %s and name = 'gated' and status = 1 order by pos"
        delivered = live.database.sql(gated, run.id)
        positions = live.database.sql("select pos from supervisor.step where run_id = %s order by pos", run.id)
        assert [pos for (pos,) in positions] == list(range(len(positions))), f"holes in pos: {told}"
        if workflow in (branches.four, branches.long_branches, branches.race):
            assert [f'"{label}"' for label in seen["trace"]] == [label for (label,) in delivered], told
        _check_value(workflow.name, order, seen, told)


def _check_value(name: str, order: list[str], seen: dict[str, Any], told: str) -> None:
    """What the code was given does not depend on any kill."""
    if name == "four":
        assert seen["value"] == ["A", "B", "C", "D"], told
    elif name == "long_branches":
        assert seen["value"] == ["a", "b", ["c1", "c2"]], told
    elif name == "four_def":
        assert (seen["value"], seen["last"]) == (["a", "b", "c", "d"], "z"), told
    elif name in ("race", "race_def"):
        decides = order[-2]
        wanted = ["d", ["d1", "d2"]] if decides[0] == "d" else [decides[0], decides[0]]
        assert seen["value"] == wanted, told
        assert name == "race_def" or seen["unwound"] is True, told
    else:
        assert (seen["value"], sorted(seen["trace"]), seen["last"]) == ("x broke after 2", ["a left", "b left"], "z"), told


def test_steps_that_end_at_once_interleave_alike(live: Live) -> None:
    """Ends that arrive in one batch are delivered in one order, and that order is kept."""
    runs = [live.start(branches.four, f"at_once{n}") for n in range(20)]
    for n in range(20):
        for label in "dbca":
            live.effects.open(f"at_once{n}.{label}")
    live.kill()
    for run in runs:
        seen = run.result(timeout=30)
        assert seen["value"] == ["A", "B", "C", "D"]
        for prefix in seen["snaps"]:
            assert seen["trace"][: len(prefix)] == prefix, seen


def test_losers_leave_no_timer_behind(live: Live) -> None:
    """The losers of first are cancelled durably: no timer of theirs is left to fire."""
    live.effects.open("lonely.b")
    live.effects.open("lonely.z")
    run = live.start(branches.race, "lonely")
    assert run.result(timeout=20)["value"] == ["b", "b"]
    assert live.database.one("select count(*) from supervisor.timer where run_id = %s", run.id) == 0


def test_what_was_said_after_a_branch_had_lost_is_written_once(live: Live) -> None:
    """The rows of the losers are between what decided and what was said: a replay says it at the same place."""
    run = live.start(branches.branches_lost, "said")
    live.until(lambda: run.status().wait == "signal", 20)
    said = "select pos from supervisor.publication where run_id = %s"
    assert live.database.sql(said, run.id) == [(3,)]
    live.database.sql("update supervisor.task set ready_at = clock_timestamp(), wait_kind = 1, wait_signals = null where run_id = %s", run.id)
    live.until(lambda: run.status().wait == "signal" and live.database.one("select ready_at > now() + interval '1 s' from supervisor.task where run_id = %s", run.id), 20)
    run.signal(branches.branches_said, "go")
    assert run.result(timeout=20) == ["won", "go"]
    assert live.database.sql(said, run.id) == [(3,)]
    cancelled = live.database.one("select count(*) from supervisor.step where run_id = %s and status = 3", run.id)
    assert cancelled == 4


@pytest.mark.parametrize("how", ["task", "thread", "process"])
def test_what_is_due_beside_a_step_that_goes_on_is_not_held_up_by_it(live: Live, how: str) -> None:
    """`first(…, late=sleep(600))` bounds a step, a signal's timeout is over when it is, a retry comes when it is due: the step's end does not matter."""
    gates = {what: f"beside.{how}.{what}" for what in ("timer", "signal", "retry")}
    runs = {what: live.start(branches.late_beside, gate, what, how) for what, gate in gates.items()}
    by_def = live.start(branches.late_beside_def, f"beside.{how}.def")
    for run in (runs["timer"], runs["signal"], by_def):
        assert run.result(timeout=20) == "late"
    live.until(lambda: live.effects.count("tried_twice", gates["retry"]) == 2, 20)
    assert runs["retry"].status().status == "running"
    for gate in (*gates.values(), *(f"{gate}.slow" for gate in (*gates.values(), f"beside.{how}.def"))):
        live.effects.open(gate)
    assert runs["retry"].result(timeout=20) == "late"


def test_groups_of_nothing_and_commands_awaited_twice(live: Live) -> None:
    """Edges that code generators produce."""
    assert live.run(branches.empty) == [[], [[], None]]
    assert live.run(branches.same_command_twice) == [["x"], ["x"], [["x"]]]


def test_coroutine_in_a_def_workflow_is_refused(live: Live) -> None:
    """A def workflow has no branches of its own: the error says so, at its line."""
    error = live.error(branches.coroutine_in_def)
    assert isinstance(error, DefinitionError), repr(error)


def test_losers_whose_rows_a_crash_swallowed_are_recorded_by_who_comes_next(live: Live) -> None:
    """The end of a timer, and a transaction, are durable before the batch with what they cancelled: a worker may die in between."""
    run = live.start(branches.branches_lost, "lost")
    history = "select seq, pos, kind, status from supervisor.steps where run_id = %s order by pos"
    told = [(0, 0, "timer", "completed"), (1, 1, "timer", "cancelled"), (2, 2, "signal", "cancelled")]
    live.until(lambda: run.status().wait == "signal" and live.database.sql(history, run.id) == told, 20)
    # when the batch with the losers had not arrived, so that their timers are there too, and the run is taken up again
    live.database.sql("delete from supervisor.step where run_id = %s and status = 3", run.id)
    live.database.sql("insert into supervisor.timer select %s, seq, now() + interval '1 h' from generate_series(1, 2) as seq", run.id)
    live.kill()
    run.signal(branches.branches_said, "go")
    # then the history is what it would have been, and nothing is left to wait for
    assert run.result(timeout=20) == ["won", "go"]
    assert live.database.sql(history, run.id) == [*told, (3, 3, "signal", "completed")]
    assert live.database.one("select steps from supervisor.runs where run_id = %s", run.id) == 4
    assert live.database.one("select count(*) from supervisor.timer where run_id = %s", run.id) == 0


def test_what_was_said_after_a_branch_had_lost_is_written_once(live: Live) -> None:
    """The rows of the losers are between what decided and what was said: a replay says it at the same place."""
    run = live.start(branches.branches_lost, "said")
    live.until(lambda: run.status().wait == "signal", 20)
    said = "select pos from supervisor.publication where run_id = %s"
    assert live.database.sql(said, run.id) == [(3,)]
    live.database.sql("update supervisor.task set ready_at = clock_timestamp(), wait_kind = 1, wait_signals = null where run_id = %s", run.id)
    live.until(lambda: run.status().wait == "signal" and live.database.one("select ready_at > now() + interval '1 s' from supervisor.task where run_id = %s", run.id), 20)
    run.signal(branches.branches_said, "go")
    assert run.result(timeout=20) == ["won", "go"]
    assert live.database.sql(said, run.id) == [(3,)]
