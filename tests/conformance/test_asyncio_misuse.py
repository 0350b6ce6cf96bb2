"""What no replay could answer is an error at its line, with the durable word for it; nothing is started unseen."""

from __future__ import annotations

import pytest

from supervisor import AsyncioInWorkflow
from tests.apps import misuse
from tests.conformance.conftest import Live

APP = "tests.apps.misuse"


@pytest.mark.parametrize("name", misuse.MISUSES)
def test_asyncio_in_a_workflow_is_refused_at_its_line(live: Live, name: str) -> None:
    """An asyncio task would run again at every replay, and its result would be forgotten: the first run must say so."""
    workflow, word = misuse.MISUSES[name]
    leaked = live.effects.count("leaked")
    run = live.start(workflow)
    with pytest.raises(Exception) as caught:
        run.result(timeout=10)
    error = caught.value.__cause__
    assert isinstance(error, AsyncioInWorkflow), repr(error)
    assert word in str(error)
    stored = live.database.one("select error from supervisor.runs where run_id = %s", run.id)
    line = misuse.line_of(name)
    assert f"misuse.py:{line}:" in stored["message"] or f'misuse.py", line {line},' in stored["traceback"], stored
    assert live.effects.count("leaked") == leaked


def test_refusal_is_an_error_like_any_other(live: Live) -> None:
    """It can be caught, and durable words go on after it."""
    assert live.run(misuse.catches_and_goes_on) == 1


def test_command_of_another_run_is_refused(live: Live) -> None:
    """A command belongs to the run that called it."""
    live.run(misuse.lends_its_command)
    assert isinstance(live.error(misuse.awaits_anothers_command), AsyncioInWorkflow)


def test_steps_may_use_asyncio_as_they_like(live: Live) -> None:
    """A def step that begins a loop of its own works wherever the engine runs it."""
    assert live.run(misuse.step_runs_asyncio) == 3
    assert live.run(misuse.ordinary_def) == 2


def test_the_worker_is_unharmed(live: Live) -> None:
    assert live.host.log().count(" is up as ") == 1, live.about()
    assert live.effects.count("leaked") == 0
