"""The rolling reload: workers of a new generation, with the code that is on disk now, take over one by one.

One new worker first; when it is ready an old one is drained, and so on: there is one worker too many meanwhile and never
one too few. What can't be imported, or dies before it is ready, ends the reload, and the old workers stay.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from supervisor.engine.main import EXIT_DATABASE, EXIT_UNFIT
from supervisor.host.logs import error_told

if TYPE_CHECKING:
    from supervisor.host.children import Child, NotLoaded
    from supervisor.host.parent import Parent

log = logging.getLogger("pgsupervisor.parent")

BIRTHS_MAX = 3  # of the new generation that die before they are ready
AGAIN_S = 0.5


class Reload:
    """The reload that is under way in *parent*, if one is; `begun` counts them."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent
        self.active = False
        self.begun = 0
        self._once_more = False
        self._deaths = 0
        self._fork_at = 0.0

    @property
    def surplus(self) -> int:
        """How many workers there may be above what is wanted."""
        return int(self.active)

    def due(self) -> float:
        return self._fork_at if self.active and self._fork_at > time.monotonic() else float("inf")

    def ask(self) -> None:
        """Begin; while a reload is under way, however often this is asked, one more follows it."""
        if not self._parent.loads:
            log.warning("nothing to reload: the app was imported before the workers were forked; stop and start instead")
        elif self.active:
            self._once_more = True
            log.info("a reload is under way; another follows")
        else:
            self._begin()

    def _begin(self) -> None:
        self.active, self._once_more, self._deaths, self._fork_at = True, False, 0, 0.0
        self.begun += 1
        self._parent.generation += 1
        log.info("reload: generation %d takes over, one worker after the other", self._parent.generation)

    def steer(self, now: float) -> None:
        """Do the next thing, once the last one is over: fork a new worker, or drain an old one."""
        if not self.active:
            return
        parent = self._parent
        new = [child for child in parent.staying if child.generation == parent.generation]
        old = [child for child in parent.staying if child.generation < parent.generation]
        if not all(child.ready for child in new):
            return
        if new and not old:
            self._end()
        elif parent.births_planned or any(child.leaving for child in parent.children.values()):
            return
        elif len(parent.staying) > parent.target:
            parent.dismiss(min(old, key=lambda child: (child.ready, child.number)))
        elif now >= self._fork_at:
            parent.fork(parent.free_number())

    def not_loaded(self, child: Child, why: NotLoaded) -> bool:
        """The app could not be imported; True if that was this reload's import, which then is over."""
        if not self.active or child.generation != self._parent.generation:
            return False
        self._give_up("the app can't be imported", why.words)
        return True

    def died(self, child: Child, died_at: float, code: int) -> bool:
        """A worker died; True if it was an additional one, which needs no successor."""
        if not self.active or child.generation != self._parent.generation or child.ready:
            return False
        self._deaths += code not in (EXIT_DATABASE, EXIT_UNFIT)
        self._fork_at = died_at + AGAIN_S
        additional = len(self._parent.staying) >= self._parent.target
        if self._deaths >= BIRTHS_MAX:
            self._give_up(f"{self._deaths} of its workers died before they were ready", child.broken.words if child.broken else "")
        return additional

    def _give_up(self, why: str, words: str) -> None:
        parent = self._parent
        self.active = False
        if any(child.ready and child.generation == parent.generation for child in parent.staying):
            stays = "the workers that are left of the generation before stay"
        else:
            parent.generation -= 1
            stays = f"generation {parent.generation} stays"
        error_told(log, "reload failed: %s; %s", why, stays, told=words)
        self._again()

    def _end(self) -> None:
        self.active = False
        log.info("reload: all %d workers are of generation %d", len(self._parent.staying), self._parent.generation)
        self._again()

    def _again(self) -> None:
        if self._once_more:
            self._begin()
