"""Facts as people read them: text that is safe to show, lengths of time, moments, JSON on one line. For terminals and pages alike.

Pure; the standard library alone, so that `--help` stays quick.
"""

from __future__ import annotations

import json
import unicodedata
from datetime import date, datetime, timezone
from typing import Any
from uuid import UUID

JSON_SHOWN_MAX = 200


def plain(value: object) -> str:
    """Text with everything escaped that a terminal would act upon: control characters, bidi overrides, lone surrogates."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(char if char == " " or char.isprintable() and unicodedata.category(char) != "Cf" else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def as_json(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    raise TypeError(f"{type(value).__name__} has no JSON form")


def short_json(value: object, shown_max: int = JSON_SHOWN_MAX) -> str:
    """JSON for a person's eyes: one line, cut."""
    if value is None:
        return "null"
    text = json.dumps(value, default=as_json, ensure_ascii=False)
    return plain(text if len(text) <= shown_max else text[: shown_max - 1] + "…")


def count(number: int, noun: str) -> str:
    """ "1 run", "3 runs", "no run"."""
    return f"{number or 'no'} {noun}{'s' if number > 1 else ''}"


def duration(seconds: float | None) -> str:
    """A length of time in two figures: 17 µs, 12 ms, 3.4 s, 5 min, 2 h 10 min, 3 d 4 h."""
    if seconds is None:
        return "-"
    seconds = max(0.0, seconds)
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for size, unit, part_size, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            return f"{whole} {unit}" + (f" {rest // part_size} {part}" if rest // part_size and whole < 10 else "")
    return f"{seconds:.0f} s"


def progress_words(said: dict[str, Any] | None) -> str | None:
    """ "3 of 12 (25 %)", or "3" where nobody knows of how much."""
    if said is None:
        return None
    done, total = said["done"], said["total"]
    return f"{done:,g}" if total is None else f"{done:,g} of {total:,g}" + (f" ({done / total:.0%})" if total else "")


def place_of(entries: int, usual: dict[str, Any] | None, said: dict[str, Any] | None) -> dict[str, Any] | None:
    """How far a live run is whose history has so many entries: at which step of about how many, and what it says itself; None where nobody knows.

    usual   `steps`, the median of `runs` runs of its version that completed
    said    done and total of its progress()
    """
    steps, runs = ((usual or {}).get("steps") or 0), ((usual or {}).get("runs") or 0)
    about = {"step": entries + 1, "of_about": max(steps, entries + 1), "runs": runs} if steps > 1 else {}
    exact = {"done": said["done"], "total": said["total"]} if said else {}
    return {**about, **exact} or None


def place_words(place: dict[str, Any] | None) -> str:
    """ "step 7 of about 12 (median of 3 runs that completed); it says 6 of 12 (50 %)"."""
    found = place or {}
    words = []
    if "step" in found:
        words.append(f"step {found['step']:,} of about {found['of_about']:,} (median of {found['runs']} {'run' if found['runs'] == 1 else 'runs'} that completed)")
    if "done" in found:
        words.append(f"it says {progress_words(found)}")
    return "; ".join(words)


def by_whom(who: str | None, reason: str | None) -> str:
    """Who did something and, where they said so, why: "by ann: the customer has left"."""
    return f"by {who or 'somebody'}" + (f": {reason}" if reason else "")


def asked_by(request: dict[str, Any]) -> str:
    """Who asked for something, and why."""
    return by_whom(request.get("actor"), request.get("reason"))


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """A moment relative to now: "5 min ago", "in 2 h"."""
    if moment is None:
        return "-"
    away_s = ((now or datetime.now(timezone.utc)) - moment).total_seconds()
    if abs(away_s) < 1:
        return "now"
    return f"{duration(away_s)} ago" if away_s > 0 else f"in {duration(-away_s)}"


def run_as_json(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `list_runs` for programs: its error as one thing."""
    made = dict(row)
    kind, message = made.pop("error_type"), made.pop("error_message")
    return {**made, "error": None if kind is None and message is None else {"type": kind, "message": message}}


def detail_of(text: str | None) -> tuple[dict[str, Any] | None, str]:
    """A stored detail of a wait as an object, where it begins with one, and what the view says behind it; else None and the text."""
    try:
        found, end = json.JSONDecoder().raw_decode(text or "")
    except (ValueError, RecursionError):
        return None, text or ""
    return (found, (text or "")[end:].removeprefix("; ")) if isinstance(found, dict) else (None, text or "")


def ended_by(crash: dict[str, Any]) -> str:
    """How a worker ended, of a stored crash: "by SIGKILL", "with exit code 3", "by SIGKILL, for it had held the loop for 31 s at app.py:7 in checkout"."""
    how = f"by {crash['signal']}" if crash.get("signal") else f"with exit code {crash.get('exit_code')}"
    if not crash.get("held_s"):
        return how
    return f"{how}, for it had held the loop for {crash['held_s']} s" + (f" at {crash['place']}" if crash.get("place") else "")
