"""JSON as PostgreSQL's jsonb has it: numbers as they are written, parts by path, and its text. What filters look at, and what refusals show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

MISSING: Any = object()  # no such part; None is JSON's null


def read(stored: bytes | None) -> Any:
    """Numbers are int or Decimal."""
    return MISSING if stored is None else json.loads(stored, parse_float=Decimal)


def part(doc: Any, path: Sequence[str]) -> Any:
    """What `#>` finds."""
    for name in path:
        if isinstance(doc, dict):
            doc = doc.get(name, MISSING)
        elif isinstance(doc, list) and name.removeprefix("-").isdecimal() and -len(doc) <= int(name) < len(doc):
            doc = doc[int(name)]
        else:
            return MISSING
    return doc


def text(doc: Any) -> str | None:
    """What `#>>` gives: a text is itself, null nothing."""
    if doc is MISSING or doc is None:
        return None
    return doc if isinstance(doc, str) else texts_of(doc)


def texts_of(doc: Any) -> str:
    """As jsonb is shown: keys by length, then by their bytes."""
    if isinstance(doc, dict):
        return "{" + ", ".join(f"{texts_of(name)}: {texts_of(doc[name])}" for name in sorted(doc, key=by_length)) + "}"
    if isinstance(doc, list):
        return "[" + ", ".join(texts_of(each) for each in doc) + "]"
    if isinstance(doc, float):
        doc = Decimal(repr(doc))
    if isinstance(doc, Decimal):
        return format(abs(doc) if doc == 0 else doc, "f")
    return json.dumps(doc, ensure_ascii=False)


def by_length(name: str) -> tuple[int, bytes]:
    """The order of an object's keys."""
    raw = name.encode()
    return len(raw), raw


def kind(doc: Any) -> str:
    """What jsonb_typeof says."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(doc), "number")


__all__ = ["MISSING", "by_length", "kind", "part", "read", "text", "texts_of"]
