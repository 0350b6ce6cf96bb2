"""What a client asks about queues: their statements, and how the answers are read. Carried and refused as client_calls.py says.

Repeated where an answer was lost: what was done once is found done.
"""

from __future__ import annotations

from supervisor.db.client_calls import Ask, Talk


def pause(name: str, reason: str | None, actor: str | None) -> Ask[bool]:
    """Claim nothing more from it; False where it is paused. Raises QueueUnknown."""
    return _switch("pause", name, reason, actor)


def resume(name: str, reason: str | None, actor: str | None) -> Ask[bool]:
    """Claim from it again; False where it is not paused. The hosts hear of it at the commit, whoever's that is: it is an operator's verb, and seldom. Raises QueueUnknown."""
    return _switch("resume", name, reason, actor)


def _switch(verb: str, name: str, reason: str | None, actor: str | None) -> Ask[bool]:
    def talk(tries: int) -> Talk[bool]:
        rows = yield f"client_{verb}_queue", (name, reason, actor)
        return bool(rows[0][0]) or tries > 1

    return Ask(talk, f"{verb} of queue {name!r}", writes=True, role="operator")


__all__ = ["pause", "resume"]
