"""What a client asks about schedules: their statements, and how the answers are read. Carried and refused as client_calls.py says.

Each may be repeated where its answer was lost: under the same id, or because what was done once is found done.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import psycopg

from supervisor.db.client_calls import Ask, Rows, Talk

EXISTS, UNKNOWN = "SV038", "SV039"


def put(name: str, said: Mapping[str, Any], how: str, reason: str | None, actor: str | None) -> Ask[str]:
    """Create or change it: "created" or "changed". Raises ScheduleInvalid, ScheduleExists, ScheduleUnknown, UnknownWorkflow, InputInvalid."""

    def talk(tries: int) -> Talk[str]:
        rows = yield "client_put_schedule", (name, json.dumps(said), how, reason, actor)
        return str(rows[0][0])

    return _done_before(talk, "created", EXISTS, f"schedule {name!r}")


def pause(name: str, reason: str | None, actor: str | None) -> Ask[bool]:
    return _switch("client_pause_schedule", name, reason, actor)


def resume(name: str, reason: str | None, actor: str | None) -> Ask[bool]:
    return _switch("client_resume_schedule", name, reason, actor)


def _switch(block: str, name: str, reason: str | None, actor: str | None) -> Ask[bool]:
    def talk(tries: int) -> Talk[bool]:
        rows = yield block, (name, reason, actor)
        return bool(rows[0][0]) or tries > 1

    return Ask(talk, f"schedule {name!r}", writes=True)


def trigger(name: str, run_id: bytes, overlap: str, tell: bool, reason: str | None, actor: str | None) -> Ask[uuid.UUID | None]:
    """Start a run of it now; None where the policy skips it."""

    def talk(tries: int) -> Talk[uuid.UUID | None]:
        rows = yield "client_trigger_schedule", (name, reason, actor, overlap, tell, uuid.UUID(bytes=run_id))
        found: uuid.UUID | None = rows[0][0]
        return found

    return Ask(talk, f"trigger of schedule {name!r}", writes=True)


def backfill(name: str, since: datetime, until: datetime, overlap: str, reason: str | None, actor: str | None) -> Ask[int]:
    def talk(tries: int) -> Talk[int]:
        rows = yield "client_backfill_schedule", (name, since, until, reason, actor, overlap)
        return int(rows[0][0])

    return Ask(talk, f"backfill of schedule {name!r}", writes=True)


def delete(name: str, reason: str | None, actor: str | None) -> Ask[None]:
    def talk(tries: int) -> Talk[None]:
        yield "client_delete_schedule", (name, reason, actor)

    return _done_before(talk, None, UNKNOWN, f"end of schedule {name!r}")


def _done_before(asked: Callable[[int], Talk[Any]], answer: Any, state: str, what: str) -> Ask[Any]:
    """Asked again, a refusal with *state* says that the first try had arrived."""

    def talk(tries: int) -> Talk[Any]:
        try:
            return (yield from asked(tries))
        except psycopg.Error as error:
            if tries == 1 or error.sqlstate != state:
                raise
            return answer

    return Ask(talk, what, writes=True)


def schedules(name: str | None) -> Ask[Rows]:
    """Rows of the view schedules; a viewer's right is needed."""
    return _read("client_schedules", (name,))


def fires(name: str, limit: int) -> Ask[Rows]:
    return _read("client_schedule_fires", (name, limit))


def _read(block: str, values: Sequence[object]) -> Ask[Rows]:
    def talk(tries: int) -> Talk[Rows]:
        return (yield block, values)

    return Ask(talk, "the list of schedules, which reads the views", role="viewer")


__all__ = ["backfill", "delete", "fires", "pause", "put", "resume", "schedules", "trigger"]
