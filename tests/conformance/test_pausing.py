"""A paused run executes nothing until somebody resumes it, and then goes on where it was."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest

from supervisor import OperationRefused, RunEnded, RunUnknown
from tests.apps import operated
from tests.conformance.conftest import Live

APP = "tests.apps.operated"


def status(live: Live, run: Any) -> tuple[str, str | None]:
    found: tuple[str, str | None] = live.database.sql("select status, wait from supervisor.runs where run_id = %s", run.id)[0]
    return found


def paused(live: Live, run: Any) -> bool:
    return status(live, run) == ("paused", "run_paused")


def audits(live: Live, run: Any) -> list[tuple[Any, ...]]:
    return live.database.sql("select verb, actor, reason, login from supervisor.audits where run_id = %s order by n", run.id)


def at_gate(live: Live, word: str, attempt: int = 1) -> None:
    live.until(lambda: live.effects.count("at", word, attempt) == 1, 20, f"{word} at its gate")


@pytest.mark.parametrize("kind", ["operated_two_steps", "operated_two_steps_def"])
def test_the_step_under_way_is_recorded_and_nothing_after_it_begins(live: Live, kind: str) -> None:
    """Its worker finishes what executes, writes it down, and puts the run aside: nothing is done twice."""
    word = f"p-{kind}"
    run = live.start(getattr(operated, kind), word, f"{word}-gate")
    at_gate(live, word)
    assert live.client.pause(run, "the till is being counted", actor="ann") == "pausing"
    assert live.database.sql("select settled, actor, reason from supervisor.pauses where run_id = %s", run.id) == [(False, "ann", "the till is being counted")]
    live.effects.open(f"{word}-gate")
    live.until(lambda: paused(live, run))
    assert live.rows(run) == 1 and live.effects.count("after", word) == 0
    detail = live.database.one("select detail::jsonb from supervisor.waits where run_id = %s", run.id)
    assert detail == {"by": "ann", "reason": "the till is being counted"}
    assert live.client.pause(run) == "paused", "a second time nothing changes"
    assert live.client.resume(run, "counted") is True
    assert run.result(timeout=20) == f"after {word}"
    assert live.effects.count("at", word) == 1 and live.effects.count("after", word) == 1
    login = live.database.one("select session_user::text")
    assert audits(live, run) == [("pause", "ann", "the till is being counted", login), ("resume", None, "counted", login)]
    assert live.client.status(run).status == "completed"


def test_a_sleeping_run_keeps_its_due_time(live: Live) -> None:
    """Stopped, it does not wake at its time; resumed before, it wakes at its time; resumed after, at once."""
    early, late = live.start(operated.operated_asleep, 3000.0), live.start(operated.operated_asleep, 1.5)
    due = "select due_at from supervisor.timer where run_id = %s"
    live.until(lambda: all(status(live, run) == ("waiting", "timer") for run in (early, late)))
    was = live.database.one(due, early.id), live.database.one("select ready_at from supervisor.task where run_id = %s", early.id)
    assert [live.client.pause(run) for run in (early, late)] == ["paused", "paused"]
    assert live.database.one("select waited_for from supervisor.pauses where run_id = %s", early.id) == "timer"
    live.until(lambda: live.database.one("select clock_timestamp() > due_at + interval '0.3 s' from supervisor.timer where run_id = %s", late.id))
    assert paused(live, late) and paused(live, early)
    assert live.client.resume(early) and live.client.resume(late)
    assert late.result(timeout=20) == "awake"
    assert status(live, early) == ("waiting", "timer")
    assert (live.database.one(due, early.id), live.database.one("select ready_at from supervisor.task where run_id = %s", early.id)) == was
    early.cancel()


def test_a_delayed_start_is_no_earlier_for_having_been_paused(live: Live) -> None:
    run = live.start(operated.operated_asleep.options(delay=3000.0), 0.0)
    at = live.database.one("select ready_at from supervisor.task where run_id = %s", run.id)
    assert live.client.pause(run) == "paused" and live.client.resume(run)
    assert live.database.one("select ready_at from supervisor.task where run_id = %s", run.id) == at
    run.cancel()


@pytest.mark.parametrize("timeout", [None, 3000.0])
def test_a_signal_that_comes_meanwhile_is_not_lost(live: Live, timeout: float | None) -> None:
    """Whether it comes while the run is paused or before it is resumed by another session: it is given it when it goes on, not before."""
    run, waits_on = live.start(operated.operated_waiting, timeout), live.start(operated.operated_waiting, timeout)
    live.until(lambda: all(status(live, each) == ("waiting", "signal") for each in (run, waits_on)))
    assert [live.client.pause(each) for each in (run, waits_on)] == ["paused", "paused"]
    assert run.signal(operated.OPERATED_GO, "meanwhile")
    assert paused(live, run), "it was woken by the signal"
    assert live.client.resume(run) and live.client.resume(waits_on)
    assert run.result(timeout=20) == "meanwhile"
    live.until(lambda: status(live, waits_on) == ("waiting", "signal"))
    waits_on.signal(operated.OPERATED_GO, "later")
    assert waits_on.result(timeout=20) == "later"


def test_a_child_that_ends_meanwhile_is_not_lost(live: Live) -> None:
    run = live.start(operated.operated_parent, "kid", "kid-gate")
    at_gate(live, "kid")
    live.until(lambda: status(live, run) == ("waiting", "child"))
    assert live.client.pause(run) == "paused"
    live.effects.open("kid-gate")
    live.until(lambda: live.database.one("select status from supervisor.runs where parent_id = %s", run.id) == "completed")
    assert paused(live, run)
    assert live.client.resume(run)
    assert run.result(timeout=20) == "after kid"


def test_branches_finish_what_executes_and_begin_nothing(live: Live) -> None:
    """One branch ends first: what it would do next waits, though the other one still executes."""
    run = live.start(operated.operated_branches, "br", "br-gate")
    at_gate(live, "br-0")
    at_gate(live, "br-1")
    assert live.client.pause(run) == "pausing"
    live.until(lambda: live.database.one("select count(*) from supervisor.pauses where run_id = %s", run.id) == 1)
    live.run(operated.operated_asleep, 0.0)  # its worker has heard of it by then: the hint came first
    live.effects.open("br-gate-0")
    live.until(lambda: live.rows(run) == 1)
    assert not paused(live, run)
    live.effects.open("br-gate-1")
    live.until(lambda: paused(live, run))
    assert live.rows(run) == 2 and live.effects.count("after", "br-0") + live.effects.count("after", "br-1") == 0
    assert live.client.resume(run)
    assert run.result(timeout=20) == ["after br-0", "after br-1"]


def test_steps_whose_start_is_durable_are_not_taken_for_crashed(live: Live) -> None:
    """A run of at_most_once steps is paused and resumed in the middle, again and again: each step is executed once and none is said to have been interrupted."""
    run = live.start(operated.operated_many_steps, "amo", 60)
    rounds = 0
    while live.client.status(run).ended_at is None and rounds < 5:
        rounds += 1
        try:
            live.client.pause(run)
        except RunEnded:
            break
        live.until(lambda: paused(live, run) or live.client.status(run).ended_at is not None)
        try:
            live.client.resume(run)
        except RunEnded:
            break
    assert run.result(timeout=20) == 60 and rounds
    assert len(live.effects.lines("at")) >= 60 and all(live.effects.count("at", f"amo-{at}") == 1 for at in range(60))


def test_a_pause_survives_kill_9_of_the_worker_that_was_to_heed_it(live: Live) -> None:
    """Asked for while the step executes; its worker dies; whoever takes the run puts it aside and executes nothing of it for long."""
    run = live.start(operated.operated_two_steps, "killed", "killed-gate")
    at_gate(live, "killed")
    assert live.database.one("select supervisor.pause(%s)", run.id) == "pausing"
    live.kill()
    live.effects.open("killed-gate")
    live.until(lambda: paused(live, run))
    assert live.effects.count("after", "killed") == 0
    live.kill()
    assert paused(live, run)
    assert live.client.resume(run)
    assert run.result(timeout=20) == "after killed"


def test_a_resume_before_it_was_heeded_leaves_no_trace(live: Live) -> None:
    """Pause and resume while a step executes: the run goes on as if nothing had been said."""
    run = live.start(operated.operated_two_steps, "moot", "moot-gate")
    at_gate(live, "moot")
    assert live.client.pause(run) == "pausing" and live.client.resume(run) is True
    live.effects.open("moot-gate")
    assert run.result(timeout=20) == "after moot"
    assert live.database.one("select count(*) from supervisor.pause where run_id = %s", run.id) == 0


def test_a_paused_run_can_be_cancelled_and_its_pause_goes_with_it(live: Live) -> None:
    run = live.start(operated.operated_asleep, 3000.0)
    assert live.client.pause(run)
    live.until(lambda: paused(live, run))
    assert run.cancel(), "it is woken, to be told"
    live.until(lambda: live.client.status(run).status == "cancelled")
    assert live.database.sql("select 1 from supervisor.pauses where run_id = %s", run.id) == []
    spur = live.start(operated.operated_two_steps, "spur", "spur-gate")  # a worker with runs looks, and removes what is left
    at_gate(live, "spur")
    live.until(lambda: live.database.one("select count(*) from supervisor.pause where run_id = %s", run.id) == 0)
    live.effects.open("spur-gate")
    spur.result(timeout=20)


def test_what_has_ended_or_never_was_is_not_paused(live: Live) -> None:
    run = live.start(operated.operated_asleep, 0.0)
    run.result(timeout=20)
    for verb in (live.client.pause, live.client.resume):
        with pytest.raises(RunEnded) as refused:
            verb(run)
        assert (refused.value.run_id, refused.value.status) == (run.id, "completed")
        with pytest.raises(RunUnknown):
            verb(uuid.uuid4())
    assert live.client.resume(asleep := live.start(operated.operated_asleep, 3000.0)) is False
    asleep.cancel()
    assert audits(live, run) == []


def test_a_rolled_back_pause_leaves_nothing(live: Live) -> None:
    """The row of audit is of the same transaction."""
    run = live.start(operated.operated_asleep, 3000.0)
    live.until(lambda: status(live, run) == ("waiting", "timer"))
    with psycopg.connect(live.database.dsn) as conn:
        assert live.client.within(conn).pause(run, "perhaps") == "paused"
        assert conn.execute("select count(*) from supervisor.audits where run_id = %s", (run.id,)).fetchone() == (1,)
        conn.rollback()
    assert status(live, run) == ("waiting", "timer") and audits(live, run) == []
    run.cancel()


@pytest.mark.parametrize("began", [True, False])
def test_a_timeout_is_not_paused(live: Live, began: bool) -> None:
    """The run's own timeout is a promise to who waits for it: it ends at its time, paused or not, and executes nothing before, begun or not."""
    run = live.start(operated.operated_limited if began else operated.operated_limited.options(delay=3000.0), f"limited-{began}")
    live.until(lambda: status(live, run) == ("waiting", "timer"))
    assert live.client.pause(run) == "paused"
    limit = live.database.one("select cancel_at from supervisor.task where run_id = %s", run.id)
    assert live.database.one("select wake_at from supervisor.waits where run_id = %s", run.id) == limit
    live.until(lambda: live.client.status(run).status == "timed_out" or paused(live, run) and _its_time_comes(live, run))
    live.until(lambda: live.client.status(run).status == "timed_out")
    assert live.effects.count("after", f"limited-{began}") == began and live.effects.count("after", f"limited-{began}-undone") == began
    with pytest.raises(RunEnded):
        live.client.resume(run)


def _its_time_comes(live: Live, run: Any) -> bool:
    """As `skip_time` of the test kit has it: what is due then is due so much earlier."""
    moved = "update supervisor.task set cancel_at = clock_timestamp(), ready_at = ready_at - (cancel_at - clock_timestamp()) where run_id = %s and owner is null returning 1"
    return bool(live.database.sql(moved, run.id))


def test_what_is_undone_because_its_time_was_over_is_not_held_by_a_pause_from_before(live: Live) -> None:
    """Asked for while a step executes, which ends after the run's time: the pause is over with it, in every worker that goes on with the undoing."""
    run = live.start(operated.operated_limited, "held", "held-gate")
    at_gate(live, "held")
    assert live.client.pause(run) == "pausing"
    live.database.sql("update supervisor.task set cancel_at = clock_timestamp() where run_id = %s", run.id)
    with pytest.raises(OperationRefused, match="its time is over"):
        live.client.pause(run)
    live.kill()
    live.until(lambda: live.effects.count("at", "held-undone", 1) >= 1)
    assert live.database.sql("select 1 from supervisor.pauses where run_id = %s", run.id) == []
    live.kill()
    assert not paused(live, run)
    live.effects.open("held-gate")
    live.until(lambda: live.client.status(run).status == "timed_out")


def test_a_run_that_cleans_up_after_it_was_cancelled_is_not_paused(live: Live) -> None:
    """Paused first or last, it makes no difference: the cancellation is delivered, and what it set going comes to its end."""
    first, last = live.start(operated.operated_two_steps, "pc-first", "pc-gate"), live.start(operated.operated_cleans, "pc-last")
    at_gate(live, "pc-first")
    live.until(lambda: status(live, last) == ("waiting", "timer"))
    assert live.client.pause(first) == "pausing" and first.cancel("after all")
    live.until(lambda: live.client.status(first).status == "cancelled")
    assert last.cancel("first", actor="ann")
    at_gate(live, "pc-last")
    with pytest.raises(OperationRefused, match=r"it is being cancelled \(asked for by ann\)") as caught:
        live.client.pause(last)
    assert caught.value.why.endswith("terminate ends it")
    live.kill()
    live.effects.open("pc-last-gate")
    live.until(lambda: live.client.status(last).status == "cancelled")
    assert live.effects.count("left", "pc-last") == 1 and [verb for verb, *_ in audits(live, last)] == ["cancel"]
    live.effects.open("pc-gate")
