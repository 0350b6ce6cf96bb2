"""What becomes of children whose parent ends first, how errors tell the runs that they went through, and a parent of very many."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from supervisor import DefinitionError, RunCancelled, RunFailed, RunTerminated
from tests.apps import closing
from tests.conformance.conftest import Live

APP = "tests.apps.closing"
PROCS = 2
KIDS = ("sleeper", "stander", "below")  # of closing_leaves, those that have begun


def leave(live: Live, policy: str, name: str) -> tuple[Any, dict[str, uuid.UUID]]:
    """A parent whose children all stand or sleep, and which may end now; its children's children too, by workflow and what they were started with."""
    run = live.start(closing.closing_leaves, policy, name, f"{name}-open")
    began = lambda: live.effects.count("closing_began", f"{name}-sleeper") and live.effects.count("closing_began", f"{name}-below")  # noqa: E731
    live.until(lambda: began() and live.effects.count("closing_stand", f"{name}-stander"), 20, "children to begin")
    below = """with recursive below as (select run_id, workflow, input from supervisor.runs where parent_id = %s
               union all select r.run_id, r.workflow, r.input from supervisor.runs r join below b on r.parent_id = b.run_id) select run_id, workflow, input ->> 'name' from below"""
    kids = {f"{workflow.removeprefix('closing_')}:{told.removeprefix(name).removeprefix('-')}": run_id for run_id, workflow, told in live.database.sql(below, run.id)}
    assert set(kids) == {"sleeper:sleeper", "stander:stander", "grandparent:", "sleeper:below", "sleeper:later"}
    return run, kids


def status_of(live: Live, kids: dict[str, uuid.UUID]) -> dict[str, str]:
    found = dict(live.database.sql("select run_id, status from supervisor.runs where run_id = any(%s)", list(kids.values())))
    return {name: found[run_id] for name, run_id in kids.items()}


@pytest.mark.parametrize("ends", ["returns", "fails"])
def test_by_default_children_are_cancelled_when_their_parent_ends(live: Live, ends: str) -> None:
    """Those that wait, those that execute, those below them, and those that have not begun; their code is told."""
    run, kids = leave(live, "request_cancel", ends)
    live.effects.open(f"{ends}-open")
    if ends == "returns":
        run.result(timeout=20)
    else:
        with pytest.raises(RunFailed, match="fails"):
            run.result(timeout=20)
    live.until(lambda: set(status_of(live, kids).values()) == {"cancelled"}, 10)
    for name in KIDS:
        assert live.effects.count("closing_told", f"{ends}-{name}") == 1
    assert live.effects.count("closing_told", f"{ends}-sleeper", "its_parent_ended", f"run_{run.id}") == 1
    assert live.effects.count("closing_began", f"{ends}-later") == 0
    with pytest.raises(RunCancelled, match="its parent ended"):
        live.client.result(kids["sleeper:later"], timeout=10)
    asked = live.database.sql("select how, actor, reason from supervisor.cancellations where run_id = %s", kids["stander:stander"])
    assert asked == [("cancelled", f"run {run.id}", "its parent ended")]


def test_children_that_lose_are_cancelled_while_their_parent_lives(live: Live) -> None:
    """Those that wait, those that execute, those below them; one that was started by itself and only asked about goes on."""
    run = live.start(closing.closing_race, "race", "race-open")
    began = ("race-kept", "race-sleeper", "race-below")
    live.until(lambda: all(live.effects.count("closing_began", name) for name in began) and live.effects.count("closing_stand", "race-stander"), 20, "children to begin")
    live.effects.open("race-open")
    losers = "select r.status from supervisor.runs r where r.parent_id = %s and r.input ->> 'name' <> 'race-kept'"
    live.until(lambda: {status for (status,) in live.database.sql(losers, run.id)} == {"cancelled"}, 10, "those that lost")
    live.until(lambda: all(live.effects.count("closing_told", name) == 1 for name in ("race-sleeper", "race-stander", "race-below")), 10)
    assert live.effects.count("closing_told", "race-sleeper", "its_parent_does_not_wait_for_it_any_more", f"run_{run.id}") == 1
    assert run.status().status not in ("completed", "failed") and live.effects.count("closing_told", "race-kept") == 0
    live.effects.open("race-on")
    winner, kept = run.result(timeout=20)
    assert winner == "gate"
    live.until(lambda: live.client.status(uuid.UUID(kept)).status == "cancelled", 10, "its parent ended")
    assert live.effects.count("closing_told", "race-kept", "its_parent_ended") == 1


def test_a_child_beside_a_branch_that_fails_is_cancelled(live: Live) -> None:
    """Whoever dies after that: the loss and the child's mark are durable together, or neither."""
    run = live.start(closing.closing_broken, "broken", "broken-open")
    live.until(lambda: live.effects.count("closing_began", "broken-sleeper"), 20)
    live.effects.open("broken-open")
    live.kill()
    live.until(lambda: live.effects.count("closing_told", "broken-sleeper"), 20)
    live.effects.open("broken-on")
    assert run.result(timeout=20) == "broken-fails"
    assert live.database.sql("select status, count(*) from supervisor.runs where parent_id = %s group by 1", run.id) == [("cancelled", 1)]
    assert live.database.sql("select status from supervisor.steps where run_id = %s and kind = 'child' order by seq", run.id) == [("cancelled",)]


def test_abandoned_children_go_on(live: Live) -> None:
    run, kids = leave(live, "abandon", "left")
    live.effects.open("left-open")
    run.result(timeout=20)
    live.effects.open("left-never")
    assert live.client.result(kids["stander:stander"], timeout=20) == "left-stander"
    assert set(status_of(live, kids).values()) == {"waiting", "completed"}
    assert live.database.one("select count(*) from supervisor.child_done where parent_id = %s", run.id) == 0, "nobody asks for the count any more"
    for kid in kids.values():
        live.database.sql("select supervisor.end_runs(array[%s::uuid], 4::int2, null)", kid)


def test_terminated_children_end_without_their_code(live: Live) -> None:
    run, kids = leave(live, "terminate", "cut")
    live.effects.open("cut-open")
    run.result(timeout=20)
    below = kids.pop("sleeper:below")
    live.until(lambda: set(status_of(live, kids).values()) == {"terminated"}, 10)
    live.until(lambda: status_of(live, {"below": below}) == {"below": "cancelled"}, 10, "below it the default holds")
    assert live.effects.count("closing_told", "cut-sleeper") == live.effects.count("closing_told", "cut-stander") == 0
    with pytest.raises(RunTerminated, match="its parent ended"):
        live.client.result(kids["stander:stander"], timeout=10)


def test_a_parent_that_is_ended_otherwise_closes_its_children_too(live: Live) -> None:
    """By its timeout; by somebody from outside."""
    late = live.start(closing.closing_runs_out, "late")
    cut = live.start(closing.closing_waits_for_gone, "gone")
    live.until(lambda: live.effects.count("closing_began", "late") and live.effects.count("closing_began", "gone"))
    live.database.sql("select supervisor.end_runs(array[%s::uuid], 4::int2, null)", cut.id)
    for run in (cut, late):
        kid = "select status from supervisor.runs where parent_id = %s"
        live.until(lambda run=run: live.database.one(kid, run.id) == "cancelled", 20)
    assert live.effects.count("closing_told", "late") == live.effects.count("closing_told", "gone") == 1


def test_children_of_killed_workers_are_closed_too(live: Live) -> None:
    """The policy is applied in the transaction of the parent's end: whatever dies, no child of an ended parent is forgotten."""
    runs = [live.start(closing.closing_many, 10) for _ in range(20)]
    ids = [run.id for run in runs]
    for ended in (4, 10, 16):
        live.until(lambda: live.database.one("select count(*) >= %s from supervisor.outcome where run_id = any(%s)", ended, ids), 30)
        live.kill()
    assert [run.result(timeout=60) for run in runs] == [10] * 20
    live_kids = "select count(*) from supervisor.run r join supervisor.task t using (run_id) where r.parent_id = any(%s)"
    live.until(lambda: live.database.one(live_kids, ids) == 0, 30)
    status = dict(live.database.sql("select status, count(*) from supervisor.runs where parent_id = any(%s) group by 1", ids))
    assert status["cancelled"] >= 100 and set(status) <= {"cancelled", "completed"} and sum(status.values()) == 200


def test_an_error_names_every_run_that_it_went_through(live: Live) -> None:
    """Ids, workflows and where each was started, in the parent and for a client; however deep, though causes are cut."""
    run = live.start(closing.closing_catches, 7)
    ids = [str(run_id) for (run_id,) in live.database.sql("select null::uuid where false")]
    chain = run.result(timeout=30)
    parent = run.id
    while found := live.database.sql("select run_id, parent_seq from supervisor.run where parent_id = %s", parent):
        parent = found[0][0]
        ids.append(str(parent))
        assert chain[len(ids) - 1] == [ids[-1], "closing_generation", found[0][1]]
    assert len(chain) == len(ids) == 8
    with pytest.raises(RunFailed) as caught:
        live.client.result(uuid.UUID(ids[0]), timeout=10)
    assert [link.run_id for link in caught.value.chain] == ids and caught.value.chain[0].seq is None
    assert "the last one" in str(caught.value)


def test_children_end_without_waiting_for_their_parents_row(live: Live) -> None:
    """Whoever holds it for long holds up the last of them, which wakes the parent, and no other: workers that end children do not queue up there."""
    run = live.start(closing.closing_fan, 3000)
    parked = "select run_id from supervisor.task where run_id = %s and wait_children is not null"
    live.until(lambda: live.database.sql(parked, run.id), 30)
    with live.database.connect() as conn, conn.transaction():
        conn.execute("select from supervisor.task where run_id = %s for no key update", (run.id,))
        ended = "select count(*) from supervisor.run r join supervisor.outcome o using (run_id) where r.parent_id = %s"
        live.until(lambda: live.database.one(ended, run.id) == 3000, 60)
    assert run.result(timeout=30) == sum(range(3000))
    assert "parents woken whose children have ended" not in live.host.log()


def test_a_policy_that_is_none_is_refused() -> None:
    with pytest.raises(DefinitionError, match="parent_close='leave'"):
        closing.closing_kid.options(parent_close="leave")  # type: ignore[arg-type]
