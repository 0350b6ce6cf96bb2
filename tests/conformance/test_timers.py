"""Timers survive anything and never fire early by the database's clock."""

from __future__ import annotations

from datetime import datetime

import pytest

from supervisor import DefinitionError, RunTimedOut
from tests.apps import times
from tests.conformance.conftest import Live

APP = "tests.apps.times"
SECONDS = (0, 0.0001, 0.01, 0.2, 0.9, 1.0, 1.3)  # below and above what a run stays in memory for


def test_no_sleep_ends_early_by_the_databases_clock(live: Live) -> None:
    """A payment term that ends early is a wrong payment; the worker's clock has no say."""
    runs = [(seconds, live.start(times.sleeps, seconds)) for seconds in SECONDS for _ in range(4)]
    runs += [(seconds, live.start(times.sleeps_def, seconds)) for seconds in SECONDS]
    until = [live.start(times.sleeps_until, seconds) for seconds in (-86_400, 0, 0.3, 1.3)]
    for seconds, run in runs:
        took = run.result(timeout=30)
        assert seconds <= took < seconds + 10, (seconds, took)
    for run in until:
        assert run.result(timeout=30) >= 0
    for seconds, run in runs:
        slept = live.database.sql("select extract(epoch from ended_at - started_at)::float8 from supervisor.step where kind = 2 and run_id = %s", run.id)
        assert slept and all(seconds - 0.001 <= each < seconds + 10 for (each,) in slept), "a firing was recorded before it was due"


def test_sleeps_in_branches_wake_in_order_of_their_dues(live: Live) -> None:
    """The shorter sleep goes on first, the loser of first leaves nothing."""
    run = live.start(times.sleeps_in_branches)
    assert run.result(timeout=20) == ["a", "b", "c", "short"]
    assert live.database.one("select count(*) from supervisor.timer where run_id = %s", run.id) == 0


def test_kill_neither_restarts_nor_loses_a_sleep(live: Live) -> None:
    """The due time is durable: a crash in the middle does not begin the sleep anew. In memory and out of it."""
    runs = {seconds: live.start(times.long_sleep, seconds) for seconds in (0.9, 2.5)}
    ids = [run.id for run in runs.values()]

    def dues() -> list[tuple[object, ...]]:
        return live.database.sql("select run_id, due_at from supervisor.timer where run_id = any(%s) order by 1", ids)

    live.until(lambda: len(dues()) == 2, 10)
    before = dues()
    live.kill()
    assert all(left in before for left in dues())
    for seconds, run in runs.items():
        begun, ended = run.result(timeout=30)
        assert (ended - begun).total_seconds() >= seconds
        began, fired = live.database.sql("select started_at, ended_at from supervisor.step where run_id = %s and kind = 2", run.id)[0]
        due: datetime = dict(before)[run.id]  # type: ignore[assignment, arg-type]
        assert fired >= due and seconds - 0.2 <= (due - began).total_seconds() < seconds + 10, "of a run that was brought back, it is known to the way of a question"


def test_wait_is_told(live: Live) -> None:
    """Why a run does not move must be answerable without its worker."""
    run = live.start(times.long_sleep, 3600)
    live.until(lambda: run.status().wait == "timer", 10)
    assert run.status().status == "waiting"


def test_wrong_times_are_refused(live: Live) -> None:
    """A datetime without zone would wake at another moment on another machine."""
    assert isinstance(live.error(times.naive), DefinitionError)
    assert isinstance(live.error(times.negative), DefinitionError)


def test_run_that_is_over_its_time_ends(live: Live) -> None:
    """Asleep in memory, asleep out of it, inside of a step, its worker killed meanwhile: it ends as timed_out, and not too early."""
    in_time = [live.start(times.limited, 0.0), live.start(times.limited_def, 0.1)]
    late = [
        live.start(times.limited, 0.9), live.start(times.limited, 3600), live.start(times.limited_def, 3600),
        live.start(times.limited, 0.0, "held"),
    ]  # fmt: skip
    assert [run.result(timeout=20) for run in in_time] == ["in time"] * 2
    live.kill()
    for run in late:
        with pytest.raises(RunTimedOut, match=f"run {run.id} of limited(_def)? timed out at .* did not end within the timeout=") as caught:
            run.result(timeout=20)
        assert isinstance(caught.value, TimeoutError) and (caught.value.run_id, caught.value.code) == (run.id, "run_timed_out")
        status = run.status()
        assert status.status == "timed_out" and status.ended_at is not None
        assert (status.ended_at - status.created_at).total_seconds() >= 0.7
    live.effects.open("held")
    assert live.database.one("select count(*) from supervisor.timer where run_id = any(%s)", [run.id for run in late]) == 0


def test_worker_with_a_wrong_clock_wakes_nobody_early(live: Live) -> None:
    """Its clock is set forward, then back, by an hour while it lives: sleeps take what they took."""
    for by_s in (3600.0, -7200.0):
        runs = [(seconds, live.start(times.sleeps, seconds, by_s if seconds == 0.2 else 0.0)) for seconds in (0.2, 0.5, 1.3)]
        for seconds, run in runs:
            took = run.result(timeout=30)
            assert seconds <= took < seconds + 10, (by_s, seconds, took)
    live.kill()
