"""What a worker counts by name: how runs of each workflow end, how tries of their steps go. The loop counts; here it is told where."""

from __future__ import annotations

from typing import Any

from supervisor._fastpath.wire import TALLY_BYTES, Tally
from supervisor.core import registry


def unread(workflow: str, step: str) -> Tally:
    """Where there is no black box: nobody reads it."""
    return Tally(bytearray(TALLY_BYTES), 0)


def count_into(tallies: Any, commands: Any) -> None:
    """From now on into the black box; what an earlier worker of this process remembered is forgotten."""
    commands.tally = tallies.of_step
    for name, workflow in registry.workflows().items():
        workflow.ends, workflow.tallies = tallies.of_workflow(name), {}
    for step in registry.steps():
        step.tally = step.tallied = None
