"""Steps that take long say that they are at work, leave word for the next try, and are ended when they fall silent or their time is over."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from supervisor import DefinitionError, OutsideWorkflow, heartbeat, step
from tests.apps import longsteps
from tests.conformance.conftest import Live
from tests.conformance.test_process_steps import alive
from tests.harness import eventually

APP = "tests.apps.longsteps"
_serial = iter(range(10_000))


def named(live: Live) -> str:
    return f"long-{live.host.pid}-{next(_serial)}"


def beat(live: Live, run: Any) -> Any:
    found = live.database.sql("select attempt, details from supervisor.heartbeats where run_id = %s", run.id)
    return found[0] if found else None


# ── what the next try finds ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["thread", "task", "process", "inline"])
def test_the_next_try_reads_what_was_said_last(live: Live, where: str) -> None:
    """Though it was said a moment before the failure; as the type that was said, wherever the step runs. It is stored with the failure."""
    name = named(live)
    run = live.start(longsteps.longsteps_resume, where, name)
    assert run.result(timeout=20) == [8, 3]
    assert [line[1:] for line in live.effects.lines() if line[:2] == ["long_began", name]] == [[name, "1", "0"], [name, "2", "4"], [name, "3", "8"]]
    assert live.database.one("select count(*) from supervisor.attempts where run_id = %s and kind = 'failed'", run.id) == 2
    attempt, details = beat(live, run)
    assert details["number"] >= 8 and attempt in (2, 3)


def test_what_was_said_outlives_the_worker(live: Live) -> None:
    """A heartbeat is stored within a second and a bit while the step goes on; after kill -9 the same try begins again and finds it."""
    name = named(live)
    run = live.start(longsteps.longsteps_gated, name)
    live.until(lambda: beat(live, run) == (1, {"row": 1}), 20)
    live.effects.open(f"{name}.more")
    live.until(lambda: beat(live, run) == (1, {"row": 2}), 20)
    live.kill()
    assert run.result(timeout=20) == {"row": 2}
    assert live.effects.count("long_gated", name) == 2


def test_heartbeats_are_shown(live: Live) -> None:
    """`show` says how long ago the last one was and what was said; --json has it."""
    import json
    import subprocess
    import sys

    name = named(live)
    run = live.start(longsteps.longsteps_gated, name)
    live.until(lambda: beat(live, run) == (1, {"row": 1}), 20)

    def show(*words: str) -> str:
        command = [sys.executable, "-m", "supervisor", "show", str(run.id), "--dsn", live.database.dsn, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    assert re.search(r"last heartbeat of seq 0 .+: \{\"row\": 1\}", show())
    (shown,) = json.loads(show("--json"))["heartbeats"]
    assert (shown["seq"], shown["attempt"], shown["details"]) == (0, 1, {"row": 1})
    run.terminate("seen")


# ── falling silent ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["thread", "task", "process"])
def test_who_falls_silent_fails_and_is_tried_again(live: Live, where: str) -> None:
    """As long as it says something it may take longer than that; a task is cancelled, a process ended for certain."""
    name = named(live)
    run = live.start(longsteps.longsteps_silent, where, name)
    assert run.result(timeout=20) == "try 2 knows {'beat': 4}"
    error = live.database.one("select error ->> 'message' from supervisor.attempts where run_id = %s and kind = 'failed'", run.id)
    assert "gave no sign of life for 0.6 s" in error
    if where == "task":
        eventually(lambda: live.effects.count("long_cancelled", name) == 1, 10)
    else:
        began, ended = live.database.sql("select started_at, ended_at from supervisor.attempts where run_id = %s and kind = 'failed'", run.id)[0]
        assert (ended - began).total_seconds() > 1.0, "it was ended though it gave signs of life"
    if where == "process":
        pid = next(int(line[3]) for line in live.effects.lines() if line[:3] == ["long_silent", name, "1"])
        assert not alive(pid), "two tries overlapped"


def test_without_retry_the_workflow_is_told(live: Live) -> None:
    assert "silent_for_good gave no sign of life for 0.5 s" in live.run(longsteps.longsteps_missed)


# ── all tries together ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("fails", "ValueError", "on purpose"), ("tx", "ValueError", "on purpose"), ("hangs", "StepTimeout", "within 1 s, all its tries together"),
        ("process", "StepTimeout", "its process was ended"), ("token", "StepTimeout", "in time"), ("far", "ValueError", "too late"),
    ],
)  # fmt: skip
def test_all_tries_together_have_one_limit(live: Live, what: str, error: str, text: str) -> None:
    """Waits between them included: what would begin too late does not begin, what still executes is ended. A step that failed keeps its own error."""
    name, began = named(live), time.monotonic()
    kind, message = live.run(longsteps.longsteps_closing, what, name)
    if kind == "StepTimeout" and what in ("fails", "tx"):  # the next try was due a moment before the end, and began after it
        error, text = kind, "all its tries together"
    assert (kind, text in message) == (error, True), message
    assert time.monotonic() - began < 10
    if what in ("fails", "tx"):
        assert live.effects.count("long_fails", name) > 5
    if what in ("hangs", "process"):
        assert [line[2] for line in live.effects.lines() if line[:2] == ["long_hangs", name]] == ["True"], "the deadline is in current()"
    if what == "far":
        assert live.effects.count("long_far", name) == 1


def test_a_crash_does_not_begin_that_time_anew(live: Live) -> None:
    """Its end is recorded when the first try begins."""
    name = named(live)
    run = live.start(longsteps.longsteps_dying, name)
    due = "select next_retry_at from supervisor.attempts where run_id = %s and kind = 'scheduled'"
    live.until(lambda: live.database.sql(due, run.id), 20)
    first = live.database.one(due, run.id)
    for _ in range(2):
        live.kill()
    assert "all its tries together" in run.result(timeout=30)
    assert live.database.sql(due, run.id) == [(first,)]
    late = live.database.one("select extract(epoch from ended_at - %s)::float8 from supervisor.runs where run_id = %s", first, run.id)
    assert -0.1 < late < 10


# ── definitions ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_makes_no_sense_is_refused_at_import() -> None:
    def body(tx: object = None) -> None: ...

    for words, text in (
        ({"heartbeat": 5, "timeout": 5}, "would never be missed"), ({"heartbeat": 1, "transactional": True}, "gives no heartbeats"),
        ({"heartbeat": 0}, "more than 0 s"), ({"schedule_to_close": -1}, "schedule_to_close="), ({"heartbeat": 1, "run": "inline"}, "never inline"),
    ):  # fmt: skip
        with pytest.raises(DefinitionError, match=text):
            step(**words)(body)  # type: ignore[call-overload]
    with pytest.raises(OutsideWorkflow, match="for steps"):
        heartbeat({"row": 1})
