"""Pages as HTML and JSON. Every text is escaped, for HTML by the templates and for eyes by `plain`: no control character reaches a screen.

The only place that imports jinja2. No template marks anything as safe.
"""

from __future__ import annotations

import functools
import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from supervisor.core.shown import ago, as_json, duration, plain, short_json
from supervisor.core.version import VERSION
from supervisor.db.pages import Said

HERE = Path(__file__).parent
STATIC = HERE / "static"
SHORT = 120
PRETTY_MAX = 20_000  # characters of one payload
# a sign beside each word: what colour says is said twice
SIGNS = {
    "ready": "○", "running": "▶", "waiting": "◷", "paused": "‖", "completed": "✓", "failed": "✕", "cancelled": "⊘", "terminated": "⊗", "timed_out": "⌛", "continued": "↻", "lost": "?",
    "alive": "●", "dead": "✕", "skipped": "↷", "not yet": "…", "active": "●", "failing": "▲", "over": "■",
}  # fmt: skip


class Lines(str):
    """Text whose line breaks are meant."""


def _finalized(value: Any) -> Any:
    """What an expression gives, before it is escaped: text without anything that acts on a screen."""
    if isinstance(value, Markup) or value is None:
        return "" if value is None else value
    if isinstance(value, Lines):
        return "\n".join(plain(line.expandtabs(4)) for line in value.split("\n"))
    return plain(value) if isinstance(value, str) else value


@functools.cache
def environment() -> Environment:
    made = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, finalize=_finalized, trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    made.filters.update(ago=ago, duration=duration, sign=lambda status: SIGNS.get(status, "·"), iso=_iso, size=size, short=_short, pretty=_pretty, number=_number, lines=Lines, sql=_sql, error_head=_error_head)
    made.globals.update(static=static_url, version=VERSION)
    return made


def page(name: str, **given: Any) -> str:
    return environment().get_template(name).render(**given)


def as_document(value: object) -> bytes:
    """JSON, ASCII only and without `<`: no tag even for a reader that takes it for HTML."""
    return json.dumps(value, default=_any_json, separators=(",", ":")).replace("<", "\\u003c").encode()


def _any_json(value: object) -> object:
    from decimal import Decimal

    return float(value) if isinstance(value, Decimal) else as_json(value)


# ── filters ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _iso(at: datetime) -> str:
    return at.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def size(given: int | None) -> str:
    """Bytes in two or three figures."""
    if given is None:
        return ""
    amount = float(given)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def _number(n: int | float | None) -> str:
    return "" if n is None else f"{n:,}"


def _short(value: Any) -> str:
    if isinstance(value, str) and value and ("\n" in value or len(value) > SHORT):
        value = value.strip().split("\n")[0]
    return short_json(value, SHORT)


def _pretty(value: Any) -> Lines:
    """A payload for reading: text as it is, else JSON on several lines; of a long one its beginning."""
    text = value if isinstance(value, str) and "\n" in value else json.dumps(value, default=_any_json, ensure_ascii=False, indent=2)
    return Lines(text if len(text) <= PRETTY_MAX else f"{text[:PRETTY_MAX]}\n… and {len(text) - PRETTY_MAX:,} characters more: the page's JSON has all of it")


def _error_head(error: Any) -> str:
    """Type and message of a stored error."""
    if not isinstance(error, dict) or "type" not in error:
        return short_json(error, SHORT)
    return f"{str(error['type']).rpartition('.')[2]}: {str(error.get('message') or '')[:500]}"


def _sql(said: Said) -> Lines:
    """A statement as one would type it in psql: its values first."""
    heads = [f"\\set p{n} '{_literal(value)}'" for n, value in enumerate(said.values, 1)]
    text = said.text
    for n in range(len(said.values), 0, -1):
        text = text.replace(f"${n}", f":'p{n}'" if said.values[n - 1] is not None else "NULL")
    return Lines("\n".join([f"-- {said.name}", *(head for head, value in zip(heads, said.values, strict=True) if value is not None), text.strip().rstrip(";") + ";"]))


def _literal(value: object) -> str:
    text = "{" + ",".join(map(str, value)) + "}" if isinstance(value, (list, tuple)) else str(value)
    return text.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n")


# ── static files ─────────────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def digest(name: str) -> str:
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:16]


def static_url(name: str) -> str:
    """Where a static file is: another name whenever it is another file, so that browsers keep it."""
    return f"/static/{digest(name)}/{name}"
