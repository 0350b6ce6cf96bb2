"""Depose: is a leader that holds the lock still one? Pure; who asks and who acts is in lead.py.

A leader is believed to be stopped when its beat is older than 1.5 s by the database's clock. In the first seconds after
the server's start a beat may be late without anybody's fault; one from before the start is no session's any more.
"""

from __future__ import annotations

from dataclasses import dataclass

SILENT_S = 1.5
SERVER_YOUNG_S = 5.0


@dataclass(frozen=True)
class Facts:
    """What the database says of the lock and of the newest term; times in seconds."""

    holder_pid: int  # backend that holds the lock
    holder_idle_s: float | None  # since it last did anything; None where that can't be seen
    term: int | None
    lead_pid: int | None
    ended: bool
    beat_age_s: float | None
    server_age_s: float


@dataclass(frozen=True)
class Verdict:
    """Whom to depose: the leader of a term, or a session that holds the lock without one."""

    term: int | None = None
    holder_pid: int | None = None
    why: str = ""


def judge(facts: Facts) -> Verdict | None:
    """Who is to be deposed, if anybody."""
    of_term = facts.term is not None and not facts.ended and facts.lead_pid == facts.holder_pid
    if of_term and facts.beat_age_s is not None:
        silent_s, before_start = facts.beat_age_s, facts.beat_age_s > facts.server_age_s
    elif facts.holder_idle_s is not None:
        silent_s, before_start = facts.holder_idle_s, False
    else:
        return None
    if silent_s <= SILENT_S or (facts.server_age_s < SERVER_YOUNG_S and not before_start):
        return None
    if of_term:
        return Verdict(term=facts.term, why=f"deposed: no sign of life for {silent_s:.1f} s")
    return Verdict(holder_pid=facts.holder_pid, why="")
