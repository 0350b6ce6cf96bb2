"""Runs by a filter, from tables in memory: the tree of `core/filters.py` is asked of each run, as `db/filters.py` asks the view runs.

Owns what each field is of a run. A test of what a run does not have is not true, and neither is its opposite `!=` false. Texts compare by their code
points, as in a database with the collation C.
"""

from __future__ import annotations

import operator
import re
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any, NamedTuple

from supervisor.core.errors import RunUnknown
from supervisor.core.filters import And, Compare, Dated, Filter, Not, Or, Order, Value
from supervisor.db.client_calls import Found
from supervisor.testing import jsonb
from supervisor.testing.ids import EPOCH_2000_US
from supervisor.testing.tables import COMPLETED, CONTINUED, QUEUE_PAUSED, WAITS, RunRow, Tables

GOOD = (COMPLETED, CONTINUED)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")  # as core/attributes.py writes it
TEXT_MAX = 500  # characters of an attribute that runs are put in order by
_ORDER: dict[str, Callable[[Any, Any], bool]] = {"=": operator.eq, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}  # older than an hour is before an hour ago
_TEXTS = ("workflow", "status", "wait", "key", "queue", "batch", "schedule", "step", "version", "error")


class Place(NamedTuple):
    """Where a run stands in the order of an attribute: its number, or its text."""

    number: Decimal | None
    text: str | None


class Facts:
    """One run, as the view runs has it."""

    def __init__(self, tables: Tables, row: RunRow, found: Found) -> None:
        self._t, self._row, self.found = tables, row, found
        self._task, self._outcome = tables.tasks.get(row.id), tables.outcomes.get(row.id)

    def value(self, name: str) -> Any:
        """A field that is no JSON; None where the run has none."""
        found, row, outcome = self.found, self._row, self._outcome
        if name == "run":
            return found.run_id
        if name in ("workflow", "status", "wait", "key", "queue", "step", "seq", "attempt"):
            return getattr(found, name)
        if name == "ended":
            return found.ended_at
        if name == "took":
            return None if found.ended_at is None else (found.ended_at - found.created_at).total_seconds()
        if name == "parent":
            return None if row.parent is None else uuid.UUID(bytes=row.parent)
        if name == "error":
            parts = [jsonb.text(jsonb.part(self.json("error"), (part,))) for part in ("type", "message")]
            return None if self.json("error") is jsonb.MISSING else ": ".join(part for part in parts if part is not None)
        if name == "version":
            return self._t.run_version(row.id)
        if name == "worker":
            return outcome.worker if outcome is not None else self._task.owner if self._task is not None else None
        if name == "schedule":
            return None  # nothing fires them here
        return {"batch": row.batch, "priority": row.prio, "steps": None if outcome is None else outcome.steps}[name]

    def json(self, name: str) -> Any:
        """A field that is JSON; MISSING where the run has none."""
        if name == "input":
            return jsonb.read(self._row.input)
        if name == "attribute":
            return self._attributes
        wanted = self._outcome is not None and (self._outcome.status in GOOD) == (name == "result")
        return jsonb.read(self._outcome.result) if wanted and self._outcome is not None else jsonb.MISSING

    @cached_property
    def _attributes(self) -> Any:
        start, said = jsonb.read(self._row.attributes), self._t.attributes.get(self._row.id)
        if not said:
            return start
        merged = ({} if start is jsonb.MISSING else start) | jsonb.read(said[max(said)])
        return {name: value for name, value in merged.items() if value is not None}

    @property
    def since_us(self) -> int | None:
        """Since when it waits, as the view waits has it; None where it does not live."""
        task = self._task
        if task is None:
            return None
        wait = None if self.found.wait is None else WAITS.index(self.found.wait) + 1
        if wait is not None and wait == task.wait_kind:
            return task.since
        pauses = [self._t.queue_pauses[task.queue].at] if wait == QUEUE_PAUSED else []
        return max(task.since, self._row.created, *([task.ready_at] if task.ready_at <= self._t.now() else []), *pauses)

    @property
    def started_ms(self) -> int:
        """Since 1970: the run's id has it."""
        return self.found.run_id.int >> 80

    def place(self, name: str) -> Place | None:
        """None where it has no such attribute, or none that has an order."""
        value = jsonb.part(self._attributes, (name,))
        if isinstance(value, bool | int | Decimal):
            return Place(Decimal(value), None)
        if not isinstance(value, str):
            return None
        return Place(_number(Dated(value)), None) if _is_moment(value) else Place(None, value[:TEXT_MAX])


def _is_moment(text: str) -> bool:
    if TIME.fullmatch(text) is None:
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _number(value: Value) -> Decimal:
    if isinstance(value, Dated):
        return Decimal((datetime.fromisoformat(value) - EPOCH) // timedelta(microseconds=1)) / 1_000_000
    return Decimal(str(value))


# ── what is asked of a run ───────────────────────────────────────────────────────────────────────────────────────


def fits(tables: Tables, asked: Filter | None, run: Facts) -> bool:
    """Whether *asked* is true of *run*."""
    if asked is None:
        return True
    if isinstance(asked, And):
        return all(fits(tables, part, run) for part in asked.parts)
    if isinstance(asked, Or):
        return any(fits(tables, part, run) for part in asked.parts)
    if isinstance(asked, Not):
        return not fits(tables, asked.part, run)
    if asked.op == "!=":
        return not fits(tables, Compare(asked.field, "=", asked.values, asked.path), run)
    return _compare(tables, asked, run)


def _compare(tables: Tables, asked: Compare, run: Facts) -> bool:
    name = asked.field
    if name in ("age", "started"):
        return _started(tables, asked, run)
    if name == "waited":
        since, ago = run.since_us, tables.now() - round(float(asked.values[0]) * 1e6)  # type: ignore[arg-type]
        return since is not None and _ORDER[_TURNED[asked.op]](since, ago)
    if name == "key" and asked.op in ("=", "in"):  # which it names at this moment
        return any(key in asked.values and named == run.found.run_id.bytes for (_, key), (named, _) in tables.keys.items())
    if asked.path or name in ("attribute", "input", "result"):
        return _json(asked, run.json(name))
    value = run.value(name)
    if asked.op == "null":
        return value is None
    return _plain(value, asked.op, [str(each) for each in asked.values] if name in _TEXTS else asked.values)


def _plain(value: Any, op: str, wanted: Sequence[Any]) -> bool:
    if value is None:
        return False
    if op == "in":
        return value in wanted
    if op == "^=":
        return bool(value.startswith(wanted[0]))
    if op == "~":
        return str(wanted[0]).lower() in str(value).lower()
    return bool(_ORDER[op](value, wanted[0]))


def _started(tables: Tables, asked: Compare, run: Facts) -> bool:
    """By the millisecond, as ids have it."""
    value: Any = asked.values[0]
    op = asked.op if asked.field == "started" else _TURNED[asked.op]
    at_us: int = (value - EPOCH) // timedelta(microseconds=1) if asked.field == "started" else tables.now() + EPOCH_2000_US - round(value * 1e6)
    if op in (">", "<="):  # the first id after that millisecond
        at_us += 1000
    at_ms = (max(at_us, 0) + 500) // 1000
    return run.started_ms >= at_ms if op in (">", ">=") else run.started_ms < at_ms


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _json(asked: Compare, doc: Any) -> bool:
    """A text compares with the text at the path, a number or boolean with one of its kind; the whole is searched as its text."""
    if not asked.path:
        return doc is jsonb.MISSING if asked.op == "null" else doc is not jsonb.MISSING and _plain(jsonb.texts_of(doc), asked.op, asked.values)
    if asked.op == "in":
        return any(_json(Compare(asked.field, "=", (value,), asked.path), doc) for value in asked.values)
    there = jsonb.part(doc, asked.path)
    value = asked.values[0] if asked.values else None
    if asked.op == "null":
        return jsonb.text(there) is None
    if asked.field == "attribute" and len(asked.path) == 1 and asked.op == "=" and type(value) is str and isinstance(there, list) and value in there:
        return True
    if asked.op in ("^=", "~"):
        return _plain(jsonb.text(there), asked.op, asked.values)
    return value is not None and _json_value(there, asked.op, value)


def _json_value(there: Any, op: str, value: Value) -> bool:
    text = jsonb.text(there)
    if isinstance(value, Dated):
        return text is not None and TIME.fullmatch(text) is not None and _ORDER[op](text, str(value))
    if isinstance(value, bool):
        return isinstance(there, bool) and _ORDER[op](there, value)
    if isinstance(value, int | float):
        return isinstance(there, int | Decimal) and not isinstance(there, bool) and _ORDER[op](Decimal(there), Decimal(str(value)))
    return _plain(text, op, [str(value)])


# ── a page ───────────────────────────────────────────────────────────────────────────────────────────────────────


def page(runs: Sequence[Facts], order: Order | None, after: Facts | uuid.UUID | None, limit: int) -> list[Found]:
    """Those of *runs* that come after *after* (an id: of no run), newest first or in *order*: by an attribute those that have it."""
    down = order is None or order.descending
    name = None if order is None else order.attribute
    placed = [(key, run.found) for run in runs if (key := _key(run, name)) is not None]
    mark = None
    if after is not None:
        mark = _key(after, name) if isinstance(after, Facts) else None if name is not None else (after,)
        if mark is None:
            shown = after.found.run_id if isinstance(after, Facts) else after
            raise RunUnknown(f"{shown} in this list: it has no attribute {name!r}, so nothing comes after it")
    chosen = [one for one in placed if mark is None or (one[0] < mark if down else one[0] > mark)]
    return [found for _, found in sorted(chosen, key=lambda one: one[0], reverse=down)[:limit]]


def _key(run: Facts, attribute: str | None) -> tuple[Any, ...] | None:
    """By what it is put in order: numbers before texts."""
    if attribute is None:
        return (run.found.run_id,)
    place = run.place(attribute)
    return None if place is None else (place.number is None, place.number if place.number is not None else place.text, run.found.run_id)


__all__ = ["Facts", "fits", "page"]
