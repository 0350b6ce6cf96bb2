"""Schedules on a running host: each tick starts one run, in its time; what happens while a run is live; what operators do."""

from __future__ import annotations

from typing import Any

APP = "tests.apps.scheduled"
from tests.conformance.conftest import Live


def fires(live: Live, name: str) -> list[tuple[Any, ...]]:
    return live.database.sql("select tick_at, state, run_id from supervisor.schedule_fires where schedule = %s order by tick_at", name)


def test_each_tick_starts_one_run(live: Live) -> None:
    """Whoever asks for every half second gets a run for every half second, each with its own tick."""
    live.client.create_schedule("each", "scheduled_tick", every=0.5, pass_tick="at", input={"word": "each"}, overlap="allow")
    live.until(lambda: len(fires(live, "each")) >= 5)
    live.client.delete_schedule("each")
    found = fires(live, "each")
    print(found, live.client.schedules())
    live.until(lambda: live.effects.count("each") == len(found))
