"""An at_most_once step is never called twice: its start is durable before its body, and a crash is told to the workflow."""

from __future__ import annotations

import pytest

from tests.apps import tries
from tests.conformance.conftest import Live

APP = "tests.apps.tries"


@pytest.mark.parametrize("way", ["task", "thread"])
def test_start_is_durable_before_the_body(live: Live, way: str) -> None:
    """Were it the other way round, a crash could not tell whether the body had begun."""
    run = live.start(tries.launches, f"early_{way}", way, f"early_{way}")
    live.until(lambda: live.effects.count("launch", f"early_{way}"), 10)
    assert live.database.one("select count(*) from supervisor.attempt where run_id = %s and kind = 2", run.id) == 1
    live.effects.open(f"early_{way}")
    assert run.result(timeout=20) == ["launched", "quick"]


@pytest.mark.parametrize("way", ["task", "thread"])
def test_crash_inside_is_told_and_not_repeated(live: Live, way: str) -> None:
    """The rocket may have left: the workflow decides, the engine never launches again."""
    run = live.start(tries.launches, f"crash_{way}", way, f"crash_go_{way}", f"after_crash_{way}")
    live.until(lambda: live.effects.count("launch", f"crash_{way}"), 10)
    live.kill()
    live.effects.open(f"crash_go_{way}")
    live.until(lambda: live.rows(run) == 1, 10)
    live.kill()  # what it was told is durable too
    live.effects.open(f"after_crash_{way}")
    got, quick = run.result(timeout=20)
    assert got.startswith("interrupted: step launch") and quick == "quick"
    assert live.effects.count("launch", f"crash_{way}") == 1


def test_crash_after_the_result_changes_nothing(live: Live) -> None:
    """A finished step is a finished step."""
    live.effects.open("at_once")
    run = live.start(tries.launches, "done", "task", "at_once", "later_on")
    live.until(lambda: live.rows(run) == 1, 10)
    live.kill()
    live.effects.open("later_on")
    assert run.result(timeout=20) == ["launched", "quick"]
    assert live.effects.count("launch", "done") == 1


def test_branches_and_retries(live: Live) -> None:
    """Three at once are interrupted at once; and an error that it raised itself is retried as its policy says."""
    run = live.start(tries.launches_in_branches, "b", "b_go")
    live.until(lambda: sum(live.effects.count("launch", f"b{n}") for n in range(3)) == 3, 10)
    live.kill()
    live.effects.open("b_go")
    assert run.result(timeout=20) == ["interrupted"] * 3 + ["quick"]
    assert [live.effects.count("launch", f"b{n}") for n in range(3)] == [1, 1, 1]
    again = live.start(tries.relaunches, "again", 3)
    assert again.result(timeout=20) == 3
    kinds = live.database.sql("select n, kind from supervisor.attempt where run_id = %s order by n, kind", again.id)
    assert kinds == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2)], "every try is announced before it begins"
