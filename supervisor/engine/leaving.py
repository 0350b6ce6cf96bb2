"""What a worker that ends in peace leaves behind: told to the log where something is cut short, and to its parent, which sums it up.

A worker that is killed says nothing; its parent says that, and what it was executing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from uuid import UUID

from supervisor.core.shown import count

if TYPE_CHECKING:
    from supervisor.engine.worker import Worker

log = logging.getLogger("pgsupervisor.worker")

NAMED_MAX = 5


def say(worker: Worker, given_back: int, within_s: float) -> None:
    """It ends now, drained or not."""
    held, cut = len(worker.adoption.known()), sorted(worker.executors.calls, key=lambda call: call.started)
    if held:
        named = "".join(f"; step {call.command.step.name} (seq {call.command.seq}) of run {UUID(bytes=call.run.id)}" for call in cut[:NAMED_MAX])
        more = f"; and {len(cut) - NAMED_MAX} more" if len(cut) > NAMED_MAX else ""
        log.warning(
            "worker %d did not finish within %g s (--drain-timeout): it leaves %s in the middle, and cuts off %s, to be executed again elsewhere%s%s",
            worker.id, within_s, count(held, "run"), count(len(cut), "executing step"), named, more,
        )  # fmt: skip
    if worker.options.left is not None:
        worker.options.left(given_back, held, len(cut))
