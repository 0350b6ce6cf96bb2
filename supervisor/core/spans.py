"""Stretches of time in which something goes on, and those between them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

Stretch = tuple[datetime, datetime]


def rests(busy: Iterable[Stretch], begin: datetime, end: datetime) -> list[Stretch]:
    """Those from *begin* to *end* that lie in none of *busy*, which may overlap and come in any order."""
    found, reached = [], begin
    for began, ended in sorted(busy):
        if began > reached:
            found.append((reached, min(began, end)))
        reached = max(reached, began, ended)  # a clock may have stepped back
        if reached >= end:
            return found
    return [*found, (reached, end)] if reached < end else found
