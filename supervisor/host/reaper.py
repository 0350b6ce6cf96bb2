"""A parent's own dead children: what they held is given back at once, whoever leads.

How, and in which order, stands in leader/burial.py. Never blocks the parent's loop: the burial goes on in it, however
long the database is away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from supervisor.host.layout import Executing
from supervisor.leader.burial import Burials, Dead

FINISH_S = 3.0  # for the burials that are not done when the loop ends; what is left is the leader's


class Reaper:
    """The parent's session for burying workers. A part of its loop."""

    def __init__(self, dsn: str, schema: str) -> None:
        self.burials = Burials(dsn, schema)

    def bury(
        self, worker_id: int, application_name: str, why: str, executing: Sequence[Executing] = (), done: Callable[[int, float], None] | None = None, held: bool = True
    ) -> None:
        """Free what a child held that has ended. *done* hears how many tasks that were, and how many seconds after.

        executing   what it was executing, from its black box after the inquest: what is charged with the death, and the suspects
        held        whether it may have had anything
        """
        self.burials.bury(Dead(worker_id, application_name, why, executing, held), done)

    def sockets(self) -> tuple[list[int], list[int]]:
        return self.burials.sockets()

    def due(self) -> float:
        return self.burials.due()

    def act(self, readable: set[int], writable: set[int]) -> None:
        self.burials.act(readable, writable)

    def close(self) -> None:
        """Finish what has begun, for some seconds, and end the session."""
        self.burials.finish(FINISH_S)
        self.burials.close()
