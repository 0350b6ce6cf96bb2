"""How the life of a worker ended, in the words that the database keeps of it (`workers.death`), and which of these ends are deaths.

Whoever declares a worker dead takes its words from here; the pages, `workers` and the count of deaths are read from them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]

SESSION_GONE = "its session is gone"  # all that the leader knows of a process of another host
_ADOPTED = "session lost, adopted by "


def of_code(code: int) -> str:
    """Of a process that was reaped; -n for signal n."""
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def adopted_by(worker: int) -> str:
    """Of a number of a process that lost its session and goes on under a new number."""
    return f"{_ADOPTED}{worker}"


_AS_TOLD = (of_code(0), of_code(-signal.SIGTERM))  # by the signal itself: it was not yet far enough to obey


def deaths(rows: Iterable[Row]) -> list[Row]:
    """Of *rows* of the view workers those whose process died: not those that ended as they were told to, nor the earlier numbers of a process that goes on."""
    rows = list(rows)
    last: dict[Any, int] = {}
    for row in rows:
        last[row["boot"]] = max(row["worker"], last.get(row["boot"], 0))
    return [row for row in rows if row["state"] == "dead" and row["death"] not in _AS_TOLD and not (row["death"] or "").startswith(_ADOPTED) and row["worker"] == last[row["boot"]]]
