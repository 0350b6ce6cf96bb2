"""How a worker learns that there may be work: its parent writes an eventfd, or clients' announcements reach its own session.

Every session that listens is woken by every announcement, so of a host's workers one listens, the one that the parent tells to. Where it has
no room for what it hears of, it says so to the parent, who was not told.
Hints and nothing more; what a worker does when nobody tells it anything stands in rest.py.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from supervisor.core import registry
from supervisor.engine.rest import HEAR, PASSED_MAX, SIGNALLED, read_hints

if TYPE_CHECKING:
    from supervisor.db.pipeline import Pipeline
    from supervisor.engine.worker import Worker


class Nudges:
    """Of one worker; `hears` once its parent has told it to listen."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.hears = False

    def read(self) -> None:
        """The parent has written."""
        worker, told = self._worker, 0
        with suppress(BlockingIOError):
            told = os.eventfd_read(worker.options.nudge_fd)
        if told >= HEAR:
            self.hears = True
            self.hear()
        if told % HEAR >= SIGNALLED:
            worker.signals.look()
            worker.cancels.look()
            worker.updates.look()
            worker.requests.look()
        if told % SIGNALLED:
            worker.rest.nudged()
            worker.commands.pump()

    def hear(self) -> None:
        """Listen on the worker's session, where it is to and has one. A new session does not listen yet."""
        if self.hears and not self._worker.adoption.away:
            self._worker.ask(None, [("hear", None), ("hear_now", None)])

    def heard(self, pipeline: Pipeline) -> None:
        """Clients have announced starts."""
        heard, pipeline.heard = pipeline.heard, []
        queues, workflows = self._worker.options.queues, registry.workflows()
        runs = sum(n for payload in heard for n, delay_s in read_hints(payload, queues, workflows) if n > 0 >= delay_s)
        if runs:
            self._worker.rest.nudged()
            if not self._worker.room():
                self._pass_on(runs)

    def _pass_on(self, runs: int) -> None:
        """This worker has no room for what it alone on its host has heard of: its parent nudges others."""
        if self._worker.options.pass_fd >= 0:
            with suppress(BlockingIOError):
                os.eventfd_write(self._worker.options.pass_fd, min(runs, PASSED_MAX))
