"""Since when a run waits for what it waits for.

A wait has begun when the code called it: in memory and in any replay that is when the run was given what it was given last. So whoever has the run, however
often it left memory and whatever it was woken for meanwhile, the moment is the same. Pure; only of the first waits of a run, before which nothing was
given and which may have been behind a queue, it is what their own rows say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from supervisor._fastpath import loop as core
from supervisor._fastpath.wire import id_time_us

if TYPE_CHECKING:
    from supervisor.engine.replay import Past


class Waiting:
    """The moment that a timer or a retry waits for: us since 2000 by the database's clock, and by the event loop's. `since_us`: when the try before that retry ended."""

    __slots__ = ("armed", "due_at", "due_us", "fire", "since_us")

    def __init__(self, due_us: int, due_at: float, since_us: int = 0) -> None:
        self.due_us, self.due_at, self.since_us, self.fire, self.armed = due_us, due_at, since_us, False, False


def since_us(cmd: Any) -> int:
    """Of a command that its run waits for out of memory: a retry or a token since its try ended, all else since it was called."""
    began: int = cmd.extra.since_us if cmd.kind == core.STEP else cmd.called_us
    return began


def date(run: Any, cmd: Any, now: int) -> None:
    """*cmd*, which is no step, begins in memory."""
    if cmd.called_us == 0:
        cmd.called_us = run.now_us if run.now_us > id_time_us(run.id) else now


def date_replayed(run: Any, cmd: Any) -> None:
    """A replay calls *cmd*. What a fork was given before it was made is not its own past."""
    if cmd.kind != core.STEP:
        cmd.called_us = max(run.now_us, id_time_us(run.id))


def date_first(run: Any, past: Past, now: int) -> None:
    """After a replay: the waits that nothing given comes before, from when their time is over, or from the id of the child."""
    created = id_time_us(run.id)
    for cmd in run.open.values():
        if cmd.called_us != created:
            continue
        at, due_in = created, past.timers_us.get(cmd.seq)
        if due_in is not None and cmd.kind == core.TIMER and cmd.extra[0] == "for":
            at = now + due_in - cmd.extra[1]
        elif due_in is not None and cmd.kind == core.SIGNAL:
            at = now + due_in - cmd.extra
        elif cmd.kind == core.CHILD and cmd.seq in past.kids:
            kid = past.kids[cmd.seq]
            at = id_time_us(kid.first or kid.run_id)
        cmd.called_us = max(created, min(at, now))
