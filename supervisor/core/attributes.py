"""Attributes: facts about runs to find them by. Which names and values they may have, and how a time is written.

A time stands as text in UTC with six digits, so that texts are in the order of the times; the index (sql) and filters know it by that form.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from supervisor.core.errors import InputInvalid

NAME_MAX, TEXT_MAX, MEMBERS_MAX, NAMES_MAX = 200, 500, 100, 50
WHOLE_MAX = 2**63


def stored_time(moment: datetime) -> str:
    """A time as it is stored: "2026-11-29T17:00:00.000000Z"."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")


def checked(attributes: Mapping[str, Any], what: str = "attributes") -> dict[str, Any]:
    """*attributes* as they are encoded. Raises InputInvalid for a name or value that nothing could be found by; None removes one."""
    made: dict[str, Any] = {}
    if len(attributes) > NAMES_MAX:
        raise InputInvalid(what, f"{len(attributes)} names were given and {NAMES_MAX} are the most")
    for name, value in attributes.items():
        if not isinstance(name, str) or not 0 < len(name) <= NAME_MAX or not name.isprintable():
            raise InputInvalid(what, f"{name!r} is no name of 1 to {NAME_MAX} printable characters")
        made[name] = _value(what, name, value)
    return made


def _value(what: str, name: str, value: Any) -> Any:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise InputInvalid(what, f"{name} is a datetime without a time zone, which would be another moment on another machine")
        return stored_time(value)
    if isinstance(value, str):
        return _text(what, name, value)
    if isinstance(value, (list, tuple)):
        if len(value) > MEMBERS_MAX or not all(isinstance(each, str) for each in value):
            raise InputInvalid(what, f"{name} is a list of something else than at most {MEMBERS_MAX} texts")
        return [_text(what, name, each) for each in value]
    if value is None or isinstance(value, (bool, float)) or isinstance(value, int) and abs(value) < WHOLE_MAX:
        return value
    raise InputInvalid(what, f"{name} is {type(value).__name__}; a str, int (of 64 bits), float, bool, datetime or list of str can be searched for")


def _text(what: str, name: str, value: str) -> str:
    if len(value) > TEXT_MAX:
        raise InputInvalid(what, f"{name} has {len(value)} characters and {TEXT_MAX} are the most")
    return value
