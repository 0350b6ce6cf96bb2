"""Whether the server has room for this host's sessions, asked before a worker is refused one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from supervisor.core.errors import ConfigInvalid

PARENT_SESSIONS = 4  # lead, ears, chores, and one for burying its dead


@dataclass(frozen=True)
class Room:
    """max_connections, those of it that are kept for superusers and other roles, and those that others use now."""

    most: int
    reserved: int
    used: int

    @property
    def left(self) -> int:
        return max(0, self.most - self.reserved - self.used)


def check_room(room: Room, procs: int, sessions: Sequence[str] = ("loop",), beside: Mapping[str, int] | None = None) -> None:
    """Raise ConfigInvalid with the sum, and what to lower, where *procs* workers do not fit. sessions: what each has one for, if only at times. beside: those of processes beside them, by what they are."""
    told = {"the parent": PARENT_SESSIONS, **(beside or {})}
    each, others = len(sessions), sum(told.values())
    wanted = procs * each + others
    if wanted <= room.left:
        return
    kind = f"{each} ({', '.join(sessions)})"
    fits = (room.left - others) // each
    lower = f"lower --procs to {fits}, end sessions of others" if fits >= 1 else "not even one worker fits: end sessions of others"
    parts = " + ".join(f"{n} of {what}" for what, n in told.items() if n)
    raise ConfigInvalid(
        f"this host needs {procs} workers × {kind} + {parts} = {wanted} sessions, and the server has room for {room.left}: "
        f"max_connections {room.most} - {room.reserved} reserved - {room.used} in use; {lower}, or raise max_connections to {wanted + room.reserved + room.used}"
    )
