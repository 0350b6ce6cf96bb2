"""A wait has begun when the code called it, whether its run stayed in memory, left it, was brought back by another worker or was woken for something else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from supervisor import Run, RunCancelled
from supervisor.cli.main import cli
from tests.apps import began
from tests.conformance.conftest import Live

APP = "tests.apps.began"
PROCS = 1
EXACT_S = 0.001  # it is the same moment, rounded
LATE_S = 10.0  # what a busy machine may take


def waits(live: Live, run: Run[Any], kind: str) -> list[tuple[float, float]]:
    """Of each wait of that kind: how long after the end of the entry before it (or the run's start) it began, and how long it took, in seconds."""
    asked = """select extract(epoch from s.started_at - coalesce((select max(b.ended_at) from supervisor.steps b where b.run_id = s.run_id and b.kind = 'step' and b.seq < s.seq), r.created_at))::float8,
        extract(epoch from s.ended_at - s.started_at)::float8
        from supervisor.steps s join supervisor.runs r using (run_id) where s.run_id = %s and s.kind = %s order by s.seq"""
    return live.database.sql(asked, run.id, kind)


def parked(live: Live, run: Run[Any], code: str) -> Any:
    """Until it waits for that out of memory: since when."""
    asked = "select (select since from supervisor.waits where run_id = %s and code = %s and worker is null)"
    return live.until(lambda: live.database.one(asked, run.id, code), 20, f"it waits for {code}")


def went(live: Live, run: Run[Any]) -> dict[str, float]:
    """Where the time of a run went, as `show` has it."""
    made = CliRunner().invoke(cli, ["show", str(run.id), "--json", "--dsn", live.database.dsn])
    assert made.exit_code == 0, made.output
    spent: dict[str, float] = json.loads(made.stdout)["time_in"]
    return spent


@pytest.mark.parametrize("seconds", [0.4, 2.2], ids=["in memory", "out of it"])
def test_a_sleep_has_the_length_that_was_asked_for(live: Live, seconds: float) -> None:
    """It was said to have taken 23 ms, and its run to have been in the queue all the while."""
    run = live.start(began.began_sleep, "s", seconds)
    assert run.result(timeout=30) == "slept"
    ((after_s, took_s),) = waits(live, run, "timer")
    assert abs(after_s) < EXACT_S and seconds <= took_s < seconds + LATE_S
    spent = went(live, run)
    assert spent["sleep"] >= seconds and spent.get("between", 0) + spent.get("queue", 0) < LATE_S
    assert sum(spent.values()) == pytest.approx(live.database.one("select extract(epoch from ended_at - created_at)::float8 from supervisor.runs where run_id = %s", run.id), abs=0.01)


@pytest.mark.parametrize(
    ("workflow", "kind", "what"),
    [
        (began.began_first_sleep, "timer", "sleep"), (began.began_first_sleeps, "timer", "sleep"), (began.began_first_timeout, "signal", "signals"),
        (began.began_first_children, "child", "children"),
    ],
)  # fmt: skip
def test_the_first_wait_of_a_run_does_not_count_the_time_in_its_queue(live: Live, workflow: Any, kind: str, what: str) -> None:
    """Nothing that was given says when it was called; what is durable of it does."""
    run = live.start(workflow.options(delay=1.5), 2.2)
    run.result(timeout=30)
    found = waits(live, run, kind)
    assert found and all(1.5 - EXACT_S <= after_s < 1.5 + LATE_S and 2.2 - 0.05 <= took_s < 2.2 + LATE_S for after_s, took_s in found), found
    spent = went(live, run)
    assert 1.5 - EXACT_S <= spent["queue"] < 1.5 + LATE_S and spent[what] >= 2.2 - 0.05


def test_a_parent_has_waited_for_its_children_since_it_started_them(live: Live) -> None:
    """Each was said to have taken no time."""
    run = live.start(began.began_children, "p", 2.2)
    run.result(timeout=30)
    for (after_s, took_s), seconds in zip(waits(live, run, "child"), (2.2, 1.1), strict=True):
        assert abs(after_s) < EXACT_S and seconds - 0.05 <= took_s < seconds + LATE_S
    assert went(live, run)["children"] >= 2.2 - 0.05


def test_what_wakes_a_run_in_between_moves_no_wait(live: Live) -> None:
    """An update, or a worker's death, made the wait for an approval look as if it had just begun."""
    run = live.start(began.began_signal, "u")
    since = parked(live, run, "signal")
    called = live.database.one("select ended_at from supervisor.steps where run_id = %s and seq = 0", run.id)
    assert abs((since - called).total_seconds()) < EXACT_S
    assert run.update(began.began_poke, "x") == "x"
    assert parked(live, run, "signal") == since
    live.database.sql("update supervisor.task set ready_at = clock_timestamp(), resumed = 2 where run_id = %s", run.id)  # it is brought back, and in memory for a second
    live.until(lambda: live.database.one("select owner from supervisor.task where run_id = %s", run.id))
    live.kill()
    assert parked(live, run, "signal") == since
    run.signal(began.began_go, "yes")
    assert run.result(timeout=30) == "yes"
    ((after_s, took_s),) = waits(live, run, "signal")
    assert abs(after_s) < EXACT_S and took_s > 1.0
    assert went(live, run)["signals"] == pytest.approx(took_s, abs=0.01)


def test_a_run_that_is_cancelled_while_it_waits_has_waited_until_then(live: Live) -> None:
    """It was said to have been in the queue."""
    run = live.start(began.began_race, "c")
    parked(live, run, "any_of")
    assert run.cancel("enough")
    with pytest.raises(RunCancelled):
        run.result(timeout=30)
    (signal,), (timer,) = waits(live, run, "signal"), waits(live, run, "timer")
    assert all(abs(after_s) < EXACT_S and took_s >= 0.9 for after_s, took_s in (signal, timer)), "it left memory after a second"
    spent = went(live, run)
    assert spent["signals"] >= 0.9 and spent.get("queue", 0) + spent.get("between", 0) < LATE_S


def test_who_loses_a_race_has_waited_until_it_was_decided(live: Live) -> None:
    run = live.start(began.began_race, "r")
    parked(live, run, "any_of")
    run.signal(began.began_go, "go")
    assert run.result(timeout=30) == "go"
    (signal,), (timer,) = waits(live, run, "signal"), waits(live, run, "timer")
    assert abs(timer[0]) < EXACT_S and timer[1] == pytest.approx(signal[1], abs=0.01)


def test_a_wait_for_handlers_lasts_as_long_as_they_do(live: Live) -> None:
    run = live.start(began.began_handlers, "h")
    asked = run.update(began.began_poke, "x", wait_for="accepted")
    run.signal(began.began_go, "go")
    run.result(timeout=30)
    assert asked.result(timeout=20) == "x"
    ((after_s, took_s),) = live.database.sql(
        "select extract(epoch from h.started_at - b.ended_at)::float8, extract(epoch from h.ended_at - h.started_at)::float8 from supervisor.step h"
        " join supervisor.step b on b.run_id = h.run_id and b.pos = (select max(p.pos) from supervisor.step p where p.run_id = h.run_id and p.kind = 1) where h.run_id = %s and h.kind = 8",
        run.id,
    )  # fmt: skip
    assert abs(after_s) < EXACT_S and 0 <= took_s < 2.2 + LATE_S
