"""A worker whose runs all wait has room for more, up to --in-flight."""

from __future__ import annotations

from tests.apps import meeting
from tests.conformance.conftest import Live

APP = "tests.apps.meeting"
AT_ONCE = 50


def test_runs_that_wait_in_async_steps_are_in_memory_together(live: Live) -> None:
    """Each of 1,000 runs waits for all others, so one that is not claimed keeps all from ending; they come few at a time."""
    runs = []
    claimed = "select count(*) from supervisor.task where owner is not null"
    for first in range(0, meeting.RUNS, AT_ONCE):
        runs += live.client.start_many(meeting.meeting, range(first, first + AT_ONCE))
        if len(runs) < meeting.RUNS:
            live.until(lambda: live.database.one(claimed) == len(runs), 20, f"{len(runs)} runs claimed")
    assert [run.result(timeout=60) for run in runs] == list(range(meeting.RUNS))
