"""Filters as SQL on the view runs: from the tree of `core/filters.py` to a condition with parameters.

Owns which column a field reads and which view leads to the few runs that can fit. Invariant: no character of a filter's values
gets into the text of a statement; its text is made of the constants of this file and of parameter numbers alone.

A statement goes through the ids of one source, newest first, and looks at each (sql/queries/list.sql). Which source: keys where one must be
named, children for a parent's, errors for a fingerprint, failures and live where only unsuccessful or only live runs can fit, else started, which is every
run. What a schedule has started stands together, newest first. Whatever of the filter that source knows is asked of it first: `run_id` carries the time of the start, so age and started
are ranges of it. It only has to give all that can fit: the whole filter is asked of every run that it gives.

Live runs of one reason for waiting stand together in an index, newest first. Those that are due, that will be, and that are parked
for whatever reason are ranges of other orders: such a range is read whole and put in order where it has few runs (`Sizes`). Where it has
many, live runs are looked through from the newest on.

What keys begin with has an index, which leads to runs where few have such a key. Attributes have an index of their own, the view attributes. A test of one that must be true and that few runs pass leads to those; an order by an attribute
goes along that index, numbers before texts, and looks at each run on the way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple

from supervisor.core.filters import LIVE, UNSUCCESSFUL, WAITS, And, Compare, Dated, Filter, Not, Or, Order, Value

_COLUMNS = {
    "workflow": "r.workflow", "status": "r.status", "wait": "r.wait", "key": "r.key", "queue": "r.queue", "batch": "r.batch", "step": "r.step",
    "version": "r.version", "priority": "r.priority", "attempt": "r.attempt", "seq": "r.seq", "steps": "r.steps", "worker": "r.worker",
    "took": "r.duration_s", "ended": "r.ended_at", "run": "r.run_id", "error": "r.error", "attribute": "r.attributes", "input": "r.input",
    "result": "r.result", "schedule": "r.schedule",
}  # fmt: skip
_TYPES = {str: "text", int: "int8", float: "float8"}
_NUMBERS = ("priority", "attempt", "seq", "steps", "worker")
_ERROR = "CASE WHEN r.error IS NOT NULL THEN pg_catalog.concat_ws(': ', r.error ->> 'type', r.error ->> 'message') END"
# the last line of its traceback, as error_groups has it
_PLACE = """pg_catalog.substring(pg_catalog.right(r.error ->> 'traceback', 10000), '.*(File "[^"]+", line [0-9]+)')"""
_POSITIVE = ("=", "in", "^=", "~", "<", "<=", ">", ">=")

# a source of ids, and what else it knows: field → column
EVERY = "{schema}.started"
EVERY_LIVE = "{schema}.live"
FAILURES = "{schema}.failures"
# As a range, for of an equality the planner knows that the runs' order is enough, and goes along all schedules' runs where their rows lie better
OF_SCHEDULE = "(SELECT s.run_id, s.schedule AS value FROM {schema}.schedule_runs AS s)"
_KNOWS = {
    EVERY: {"workflow": "d.workflow", "priority": "d.priority", "key": "d.key"},
    EVERY_LIVE: {"workflow": "d.workflow", "queue": "d.queue", "status": "d.status"},
    FAILURES: {"status": "d.status"},
}

NAMES_APART = 20  # schedules whose runs are read along each other; those of more are put in order
FEW = 10_000  # runs of a range that may be read whole and sorted: 20 ms
# where live runs of a state or reason can be: ranges by name, and reasons by number, which task_wait_idx has in order
_DUE, _LATER, _PARKED = "due", "later", "parked"
_RANGES = {_DUE: "{schema}.due AS l WHERE true", _LATER: "{schema}.later AS l WHERE true", _PARKED: "{schema}.live AS l WHERE l.parked > 1"}
_PLACES: dict[tuple[str, str], tuple[str | int, ...]] = {
    ("status", "ready"): (_DUE,),
    ("status", "running"): (_DUE,),
    ("status", "waiting"): (_PARKED, _LATER),
    ("status", "paused"): (WAITS.index("run_paused") + 1,),
    **{("wait", code): (number,) for number, code in enumerate(WAITS, 1)},
    ("wait", "queued"): (_DUE,),
    ("wait", "no_worker"): (_DUE,),
    ("wait", "queue_paused"): (_DUE,),
    ("wait", "timer"): (WAITS.index("timer") + 1, _LATER),
}

# few runs by name: field, source, what is asked of it, the values' type. A batch's runs, and those that met an error, have an index, but not in the order of the page
_NAMED = (
    ("run", "(SELECT DISTINCT u.run_id FROM pg_catalog.unnest($) AS u (run_id))", "", "uuid"),
    ("key", "{schema}.keys", "d.key = ANY ($)", "text"),
    ("parent", "{schema}.children", "d.parent_id = ANY ($)", "uuid"),
    ("fingerprint", "(SELECT DISTINCT e.run_id FROM {schema}.errors AS e WHERE e.source = 'attempt' AND e.fingerprint = ANY ($) OFFSET 0)", "", "text"),
    ("batch", "(SELECT s.run_id FROM {schema}.started AS s WHERE s.batch = ANY ($) OFFSET 0)", "", "text"),
)


@dataclass
class Where:
    """A filter as SQL, tokens of the schema not yet replaced: the view that leads to runs, what bounds it, the condition, its parameters.

    value  where the source's index has a `value` before the run in its order: what all of its rows have there
    """

    source: str = EVERY
    bounds: str = "true"
    condition: str = "true"
    value: str | None = None
    values: list[Any] = field(default_factory=list)


class Sizes(NamedTuple):
    """How many live runs stand in each range, how many values each of `attribute_tests` is true of, how many runs `key_test` and `schedule_test` are; more than FEW are FEW + 1, 0 was not asked."""

    due: int = FEW + 1
    later: int = FEW + 1
    parked: int = FEW + 1
    attributes: tuple[int, ...] = ()
    keys: int = FEW + 1
    scheduled: int = FEW + 1


class Along(NamedTuple):
    """A page in the order of an attribute: its values of one kind, after that of a run; `value` None: from the first."""

    order: Order
    numbers: bool
    value: Any = None


def wants_sizes(asked: Filter | None) -> bool:
    """Whether *asked* is about live runs, so that the sizes of their ranges tell how to find them."""
    return asked is not None and any(map(_is_live, _musts(asked)))


def attribute_tests(asked: Filter | None) -> list[Compare]:
    """The tests of attributes that must all be true and that the index of attributes can answer, at most three."""
    return [test for test in _musts(asked) if _is_indexed(test)][:3] if asked is not None else []


def key_test(asked: Filter | None) -> Compare | None:
    """The test of what a key begins with that must be true; null where there is none."""
    return next((test for test in _musts(asked) if test.field == "key" and test.op == "^=" and test.values[0]), None) if asked is not None else None


def schedule_test(asked: Filter | None) -> Compare | None:
    """The test of which schedule started it that must be true; null where there is none."""
    return next((test for test in _musts(asked) if test.field == "schedule" and test.op in ("=", "in")), None) if asked is not None else None


def wants_schedule_size(asked: Filter | None) -> bool:
    """Whether another source may have fewer runs than the schedule that *asked* names."""
    return schedule_test(asked) is not None and any(_is_live(test) or _is_unsuccessful(test) for test in _musts(asked))  # type: ignore[arg-type]


def key_rows(test: Compare, parameter: Parameters) -> str:
    """It as a condition on the view started, called s. Its index compares bytes, whatever the database's collation."""
    low, high = str(test.values[0]), str(test.values[0]) + chr(0x10FFFF)
    return f"s.key OPERATOR(pg_catalog.~>=~) {parameter(low)}::pg_catalog.text AND s.key OPERATOR(pg_catalog.~<~) {parameter(high)}::pg_catalog.text"


def attribute_rows(test: Compare, parameter: Parameters) -> str:
    """One of them as a condition on the view attributes, called a."""
    name = f"a.name = {parameter(test.path[0])}::pg_catalog.text"
    numbers = not isinstance(test.values[0], str) or isinstance(test.values[0], Dated)
    if numbers:
        return f"{name} AND a.number {test.op} {parameter(_number(test.values[0]))}::pg_catalog.text::pg_catalog.numeric"
    if test.op == "^=":
        low = parameter(test.values[0])
        return f"{name} AND a.text >= {low}::pg_catalog.text AND a.text < {parameter(str(test.values[0]) + chr(0x10FFFF))}::pg_catalog.text"
    return f"{name} AND {_simple('a.text', test.op, list(test.values), 'text', parameter)}"


def _is_indexed(test: Compare) -> bool:
    """Whether the rows of the index that *test* is true of are all that it can be true of."""
    if test.field != "attribute" or len(test.path) != 1 or test.op not in ("=", "in", "^=", "<", "<=", ">", ">="):
        return False
    value = test.values[0]
    if not isinstance(value, str) or isinstance(value, Dated):
        return test.op != "in"
    # a quoted number is compared with the text of numbers too; texts have another order here than in the database's collation
    return test.op in ("=", "in", "^=") and all(isinstance(each, str) and 0 < len(each) < 500 and not _JSON_LIKE.match(each) for each in test.values)


_JSON_LIKE = re.compile(r"[-\[{\d]|true|false")


def _number(value: Value) -> str:
    if isinstance(value, Dated):
        return str(Decimal(int((datetime.fromisoformat(value) - _EPOCH) / timedelta(microseconds=1))) / 1_000_000)
    return str(int(value)) if isinstance(value, bool) else str(value)


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def compiled(asked: Filter | None, first: int, sizes: Sizes | None = None, along: Along | None = None) -> Where:
    """*asked* as SQL whose parameters begin at number *first*; None asks for nothing. The source of ids is called d, runs r."""
    where = Where()
    parameter = Parameters(where.values, first)
    if asked is not None:
        where.condition = _condition(asked, parameter)
    if along is None and asked is not None:
        where.source, where.bounds = _leading(list(_musts(asked)), parameter, sizes)
        if where.source == OF_SCHEDULE:
            where.value = str(schedule_test(asked).values[0])  # type: ignore[union-attr]
    elif along is not None:
        where.source, where.bounds = _along(along, attribute_tests(asked), parameter)
    if asked is not None:
        where.bounds = " AND ".join([where.bounds, *_registered(_musts(asked), parameter)])
    return where


def _along(along: Along, tests: list[Compare], parameter: Parameters) -> tuple[str, str]:
    """The values of an attribute as a source whose `value` is in its index's order, and from where on."""
    column, kind = ("number", "numeric") if along.numbers else ("text", "text")
    name = parameter(along.order.attribute)
    only = [attribute_rows(test, parameter) for test in tests if test.path[0] == along.order.attribute]
    where = " AND ".join([f"a.name = {name}::pg_catalog.text", f"a.{column} IS NOT NULL", "a.n = 0", *only])
    source = f"(SELECT a.run_id, a.{column} AS value FROM {{schema}}.attributes AS a WHERE {where})"
    if along.value is None:
        return source, "true"
    mark = f"{parameter(str(along.value))}::pg_catalog.text" + ("::pg_catalog.numeric" if along.numbers else ' COLLATE pg_catalog."C"')
    return source, f"(d.value, d.run_id) {'<' if along.order.descending else '>'} ({mark}, $1::pg_catalog.uuid)"


@dataclass
class Parameters:
    """Takes values, gives the numbers that stand for them."""

    values: list[Any]
    first: int

    def __call__(self, value: Any) -> str:
        self.values.append(value)
        return f"${self.first + len(self.values) - 1}"


def _condition(asked: Filter, parameter: Parameters) -> str:
    if isinstance(asked, And):
        return "(" + " AND ".join(_condition(part, parameter) for part in asked.parts) + ")"
    if isinstance(asked, Or):
        return "(" + " OR ".join(_condition(part, parameter) for part in asked.parts) + ")"
    if isinstance(asked, Not):
        return f"({_condition(asked.part, parameter)}) IS NOT TRUE"  # what is not there is not equal either
    if asked.op == "!=":
        return f"({_compare(Compare(asked.field, '=', asked.values, asked.path), parameter)}) IS NOT TRUE"
    return f"({_compare(asked, parameter)})"


def _compare(asked: Compare, parameter: Parameters) -> str:
    """One test as SQL; null where the run has no such thing."""
    name = asked.field
    if name in ("age", "started"):
        return _start("r.run_id", asked, parameter)
    if name == "waited":
        return _waited("(SELECT w.since FROM {schema}.waits AS w WHERE w.run_id = r.run_id)", asked, parameter)
    if name == "key" and asked.op in ("=", "in"):
        return f"r.run_id IN (SELECT k.run_id FROM {{schema}}.keys AS k WHERE k.key = ANY ({parameter(list(asked.values))}::pg_catalog.text[]))"
    if name == "fingerprint":
        return _met(asked, parameter)
    if name == "parent":
        if asked.op == "null":
            return "r.parent_id IS NULL"
        return f"r.parent_id = ANY ({parameter(list(asked.values))}::pg_catalog.uuid[])"
    if asked.path or name in ("attribute", "input", "result"):
        return _json(asked, parameter)
    column = _ERROR if name == "error" else _COLUMNS[name]
    return f"{column} IS NULL" if asked.op == "null" else _plain(column, asked, parameter)


def _met(asked: Compare, parameter: Parameters) -> str:
    """Whether a try failed so, or crashed its worker so; of any step or of one. Fenced, so that what a run has tried is looked up by the run."""
    tries = "SELECT FROM (SELECT e.fingerprint, e.step FROM {schema}.errors AS e WHERE e.run_id = r.run_id AND e.source = 'attempt' OFFSET 0) AS e"
    tests = [f"e.step = {parameter(asked.path[0])}::pg_catalog.text"] if asked.path else []
    if asked.op == "null":
        return f"NOT EXISTS ({tries} WHERE {' AND '.join(tests) or 'true'})"
    return f"EXISTS ({tries} WHERE {' AND '.join([*tests, f'e.fingerprint = ANY ({parameter([str(value) for value in asked.values])}::pg_catalog.text[])'])})"


def _plain(column: str, asked: Compare, parameter: Parameters) -> str:
    name = asked.field
    kind = {"took": "float8", "ended": "timestamptz", "run": "uuid"}.get(name, "int8" if name in _NUMBERS else "text")
    return _simple(column, asked.op, [str(each) for each in asked.values] if kind == "text" else list(asked.values), kind, parameter)


def _simple(column: str, op: str, values: list[Any], kind: str, parameter: Parameters) -> str:
    if op == "in":
        return f"{column} = ANY ({parameter(values)}::pg_catalog.{kind}[])"
    if op == "^=":
        return f"pg_catalog.starts_with({column}, {parameter(values[0])}::pg_catalog.text)"
    if op == "~":
        return f"pg_catalog.strpos(pg_catalog.lower({column}), pg_catalog.lower({parameter(values[0])}::pg_catalog.text)) > 0"
    return f"{column} {op} {parameter(values[0])}::pg_catalog.{kind}"


# ── times ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _turned(op: str) -> str:
    """Older than an hour is before an hour ago."""
    return {"<": ">", "<=": ">=", ">": "<", ">=": "<="}[op]


def _ago(span_s: Value, parameter: Parameters) -> str:
    return f"pg_catalog.now() - pg_catalog.make_interval(secs => {parameter(span_s)}::pg_catalog.float8)"


def _waited(since: str, asked: Compare, parameter: Parameters) -> str:
    return f"{since} {_turned(asked.op)} {_ago(asked.values[0], parameter)}"


def _start(run_id: str, asked: Compare, parameter: Parameters) -> str:
    """A range of ids: they carry the time of the start, in milliseconds since 1970."""
    if asked.field == "age":
        op, moment = _turned(asked.op), _ago(asked.values[0], parameter)
    else:
        op, moment = asked.op, f"{parameter(asked.values[0])}::pg_catalog.timestamptz"
    if op in (">", "<="):  # the first id after that millisecond
        moment = f"{moment} + interval '1 ms'"
    return f"{run_id} {'>=' if op in ('>', '>=') else '<'} {{schema}}.id_floor(greatest({moment}, timestamptz '1970-01-01 00:00:00+00'))"


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _json(asked: Compare, parameter: Parameters) -> str:
    """A text compares with the text at the path, a number or boolean with one of its kind; the whole is searched as its text."""
    column = _COLUMNS[asked.field]
    if not asked.path:
        return f"{column} IS NULL" if asked.op == "null" else _simple(f"({column})::pg_catalog.text", asked.op, list(asked.values), "text", parameter)
    if asked.op == "in":
        return " OR ".join(f"({_json(Compare(asked.field, '=', (value,), asked.path), parameter)})" for value in asked.values)
    if asked.field == "error" and asked.path == ("place",):
        return f"{_PLACE} IS NULL" if asked.op == "null" else _simple(_PLACE, asked.op, [str(value) for value in asked.values], "text", parameter)
    path = f"{parameter(list(asked.path))}::pg_catalog.text[]"
    text = f"({column} #>> {path})"
    if asked.field == "attribute" and len(asked.path) == 1 and asked.op == "=" and type(asked.values[0]) is str:
        member = f"({column} #> {path}) @> pg_catalog.to_jsonb({parameter(asked.values[0])}::pg_catalog.text)"  # of a list, too
        return f"{_json_value(column, path, '=', asked.values[0], parameter)} OR {member}"
    if asked.op == "null":
        return f"{text} IS NULL"
    if asked.op in ("^=", "~"):
        return _simple(text, asked.op, list(asked.values), "text", parameter)
    return _json_value(column, path, asked.op, asked.values[0], parameter)


def _json_value(column: str, path: str, op: str, value: Value, parameter: Parameters) -> str:
    if isinstance(value, Dated):
        text = f"({column} #>> {path})"
        return f"CASE WHEN {text} ~ '{_TIME}' THEN {text} COLLATE pg_catalog.\"C\" {op} {parameter(str(value))}::pg_catalog.text END"
    if isinstance(value, bool):
        return f"CASE pg_catalog.jsonb_typeof({column} #> {path}) WHEN 'boolean' THEN ({column} #>> {path})::pg_catalog.bool {op} {parameter(value)}::pg_catalog.bool END"
    if isinstance(value, (int, float)):
        number = f"{parameter(str(value))}::pg_catalog.text::pg_catalog.numeric"
        return f"CASE pg_catalog.jsonb_typeof({column} #> {path}) WHEN 'number' THEN ({column} #>> {path})::pg_catalog.numeric {op} {number} END"
    return _simple(f"({column} #>> {path})", op, [str(value)], "text", parameter)


_TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$"  # as core/attributes.py writes it


# ── what leads to runs ───────────────────────────────────────────────────────────────────────────────────────────


def _leading(musts: list[Compare], parameter: Parameters, sizes: Sizes | None) -> tuple[str, str]:
    """The source of every run that *musts* can be true of, and what is asked of it."""
    for name, source, column, kind in _NAMED:
        for test in musts:
            if test.field == name and test.op in ("=", "in"):
                listed = f"{parameter(list(test.values))}::pg_catalog.{kind}[]"
                return source.replace("$", listed), column.replace("$", listed) or "true"
    prefix = key_test(_all(musts))
    if sizes is not None and prefix is not None and sizes.keys <= FEW:
        return f"(SELECT s.run_id FROM {{schema}}.started AS s WHERE {key_rows(prefix, parameter)} OFFSET 0)", "true"
    if sizes is not None:
        counted = sorted(zip(sizes.attributes, attribute_tests(_all(musts)), strict=False), key=lambda each: each[0])
        if counted and counted[0][0] <= FEW:
            rows = attribute_rows(counted[0][1], parameter)
            return f"(SELECT DISTINCT a.run_id FROM {{schema}}.attributes AS a WHERE {rows} OFFSET 0)", "true"
    view = FAILURES if any(map(_is_unsuccessful, musts)) else EVERY_LIVE if any(map(_is_live, musts)) else EVERY
    bounds = _times(musts, parameter)
    started_by = schedule_test(_all(musts))
    if started_by is not None and (view is EVERY or sizes is not None and sizes.scheduled <= FEW):
        source, bound = _scheduled(started_by, parameter)
        return source, " AND ".join([bound, *bounds])
    if started_by is not None:
        listed = parameter([str(value) for value in started_by.values])
        bounds.append(f"(SELECT s.schedule FROM {{schema}}.schedule_runs AS s WHERE s.run_id = d.run_id) = ANY ({listed}::pg_catalog.text[])")
    for test in musts:
        known = _KNOWS[view].get(test.field)
        if known is not None and test.op in _POSITIVE and not (test.field == "key" and test.op in ("=", "in")):
            bounds.append(_plain(known, test, parameter))
        elif view is EVERY_LIVE and test.field == "wait" and test.op in ("=", "in"):
            bounds.append(f"d.wait IN ({', '.join(str(WAITS.index(str(code)) + 1) for code in test.values)})")
        elif view is EVERY_LIVE and test.field == "waited" and test.op in (">", ">="):  # it waits since then, or since later
            bounds.append(f"({_waited('d.since', test, parameter)} OR d.since IS NULL)")
    source = _live(musts, sizes) if view is EVERY_LIVE else view
    return source, " AND ".join(bounds) or "true"


def walks_history(asked: Filter | None, sizes: Sizes | None) -> bool:
    """Whether runs are looked through from the newest on, however many there are."""
    return compiled(asked, 1, sizes).source in (EVERY, FAILURES)


def edges(asked: Filter | None, parameter: Parameters) -> str:
    """What of the history *asked* can be true of, as a condition on the view started, called d: its times, and none of it where there is no such workflow."""
    musts = list(_musts(asked)) if asked is not None else []
    return " AND ".join(["true", *_times(musts, parameter), *_registered(musts, parameter)])


def _times(musts: Iterable[Compare], parameter: Parameters) -> list[str]:
    return [_start("d.run_id", each, parameter) for each in musts if each.field in ("age", "started")]


def _registered(musts: Iterable[Compare], parameter: Parameters) -> Iterator[str]:
    """Whether any workflow is called so, asked once: of one that nobody has registered there are no runs, and none is looked at."""
    for test in musts:
        if test.field == "workflow" and test.op in _POSITIVE:
            yield f"EXISTS (SELECT FROM {{schema}}.workflows AS w WHERE {_plain('w.workflow', test, parameter)})"


def _scheduled(test: Compare, parameter: Parameters) -> tuple[str, str]:
    """What these schedules have started, newest first, each along its index."""
    names = sorted({str(value) for value in test.values})
    if len(names) == 1:
        name = f"{parameter(names[0])}::pg_catalog.text"
        return OF_SCHEDULE, f"d.value >= {name} AND d.value <= {name}"
    if len(names) > NAMES_APART:
        return "{schema}.schedule_runs", f"d.schedule = ANY ({parameter(names)}::pg_catalog.text[])"
    arms = (f"(SELECT s.run_id FROM {{schema}}.schedule_runs AS s WHERE s.schedule = {parameter(name)}::pg_catalog.text ORDER BY s.run_id DESC)" for name in names)
    return f"({' UNION ALL '.join(arms)})", "true"


def _all(musts: list[Compare]) -> Filter | None:
    return And(tuple(musts)) if musts else None


def _live(musts: list[Compare], sizes: Sizes | None) -> str:
    """Where the live runs are that *musts* can be true of: at the places of one test, whose ranges have few, else anywhere."""
    found = [
        (runs, places)
        for places in (_places(test) for test in musts if test.field in ("status", "wait") and test.op in ("=", "in"))
        if (runs := sum(getattr(sizes, place, FEW + 1) for place in places if isinstance(place, str))) <= FEW
    ]
    if not found:
        return EVERY_LIVE
    _, places = min(found, key=lambda each: each[0])
    reasons = sorted(place for place in places if isinstance(place, int))
    arms = [f"(SELECT * FROM {{schema}}.live AS l WHERE l.parked = {reason} ORDER BY l.run_id DESC)" for reason in reasons]
    for name in sorted(place for place in places if isinstance(place, str)):
        others = [f"coalesce(l.parked, 1) <> {reason}" for reason in reasons]  # a run stands in one arm
        if _PARKED in places and name != _PARKED:
            others.append("coalesce(l.parked, 1) = 1")
        arms.append(f"(SELECT * FROM {' AND '.join([_RANGES[name], *others])} ORDER BY l.run_id DESC)")
    return f"({' UNION ALL '.join(arms)})"


def _places(test: Compare) -> set[str | int]:
    """Where a run can be that *test* is true of: ranges by name, reasons by number."""
    places = {place for value in test.values for place in _PLACES[test.field, str(value)]}
    return {place for place in places if isinstance(place, str) or _PARKED not in places}


def _musts(asked: Filter) -> Iterator[Compare]:
    """The tests that must all be true."""
    if isinstance(asked, And):
        for part in asked.parts:
            yield from _musts(part)
    elif isinstance(asked, Compare):
        yield asked


def _is_live(test: Compare) -> bool:
    if test.field == "status":
        return test.op in ("=", "in") and set(test.values) <= set(LIVE)
    return test.field == "waited" or (test.field == "wait" and test.op in ("=", "in"))


def _is_unsuccessful(test: Compare) -> bool:
    if test.field == "status":
        return test.op in ("=", "in") and set(test.values) <= set(UNSUCCESSFUL)
    return test.field == "error" and test.op in _POSITIVE
