"""Filters as SQL on the view runs: from the tree of `core/filters.py` to a condition with parameters.

Owns which column a field reads and which view makes a test quick. Invariant: no character of a filter's values gets into the
text of a statement; its text is made of the constants of this file and of parameter numbers alone.

What makes a test quick: `run_id` carries the time of the start, so age and started are ranges of the primary key; a key is
looked up in the view keys, a parent in children; and where a filter, as a whole, asks for live or for unsuccessful runs only, waits
or failures is joined, so that the server may go through those few in place of all runs. Everything else is compared run by run, newest first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from supervisor.core.filters import LIVE, UNSUCCESSFUL, And, Compare, Filter, Not, Or, Value

_COLUMNS = {
    "workflow": "r.workflow", "status": "r.status", "wait": "r.wait", "key": "r.key", "queue": "r.queue", "batch": "r.batch", "step": "r.step",
    "version": "r.version", "priority": "r.priority", "attempt": "r.attempt", "seq": "r.seq", "steps": "r.steps", "worker": "r.worker",
    "took": "r.duration_s", "ended": "r.ended_at", "run": "r.run_id", "error": "r.error", "attribute": "r.attributes", "input": "r.input",
    "result": "r.result",
}  # fmt: skip
_TYPES = {str: "text", int: "int8", float: "float8"}
_NUMBERS = ("priority", "attempt", "seq", "steps", "worker")
_ERROR = "CASE WHEN r.error IS NOT NULL THEN pg_catalog.concat_ws(': ', r.error ->> 'type', r.error ->> 'message') END"
_LIVE_JOIN = "JOIN {schema}.waits AS live ON live.run_id = r.run_id"
_UNSUCCESSFUL_JOIN = "JOIN {schema}.failures AS unsuccessful ON unsuccessful.run_id = r.run_id"
_POSITIVE = ("=", "in", "^=", "~", "<", "<=", ">", ">=")


@dataclass
class Where:
    """A filter as SQL, tokens of the schema not yet replaced: what is joined to `runs r`, the condition, its parameters."""

    joins: str = ""
    condition: str = "true"
    values: list[Any] = field(default_factory=list)


def compiled(asked: Filter | None, first: int) -> Where:
    """*asked* as SQL whose parameters begin at number *first*; None asks for nothing."""
    where = Where()
    if asked is None:
        return where

    def parameter(value: Any) -> str:
        where.values.append(value)
        return f"${first + len(where.values) - 1}"

    where.condition = _condition(asked, parameter)
    where.joins = " ".join(_joins(asked))
    return where


Parameter = Callable[[Any], str]


def _condition(asked: Filter, parameter: Parameter) -> str:
    if isinstance(asked, And):
        return "(" + " AND ".join(_condition(part, parameter) for part in asked.parts) + ")"
    if isinstance(asked, Or):
        return "(" + " OR ".join(_condition(part, parameter) for part in asked.parts) + ")"
    if isinstance(asked, Not):
        return f"({_condition(asked.part, parameter)}) IS NOT TRUE"  # what is not there is not equal either
    if asked.op == "!=":
        return f"({_compare(Compare(asked.field, '=', asked.values, asked.path), parameter)}) IS NOT TRUE"
    return f"({_compare(asked, parameter)})"


def _compare(asked: Compare, parameter: Parameter) -> str:
    """One test as SQL; null where the run has no such thing."""
    name = asked.field
    if name in ("age", "started"):
        return _start(asked, parameter)
    if name == "waited":
        since = "(SELECT w.since FROM {schema}.waits AS w WHERE w.run_id = r.run_id)"
        return f"{since} {_turned(asked.op)} {_ago(asked.values[0], parameter)}"
    if name == "key" and asked.op in ("=", "in"):
        return f"r.run_id IN (SELECT k.run_id FROM {{schema}}.keys AS k WHERE k.key = ANY ({parameter(list(asked.values))}::pg_catalog.text[]))"
    if name == "parent":
        if asked.op == "null":
            return "r.parent_id IS NULL"
        return f"r.run_id IN (SELECT c.run_id FROM {{schema}}.children AS c WHERE c.parent_id = ANY ({parameter(list(asked.values))}::pg_catalog.uuid[]))"
    if asked.path or name in ("attribute", "input", "result"):
        return _json(asked, parameter)
    column = _ERROR if name == "error" else _COLUMNS[name]
    if asked.op == "null":
        return f"{column} IS NULL"
    kind = {"took": "float8", "ended": "timestamptz", "run": "uuid"}.get(name, "int8" if name in _NUMBERS else "text")
    return _simple(column, asked.op, [str(each) for each in asked.values] if kind == "text" else list(asked.values), kind, parameter)


def _simple(column: str, op: str, values: list[Any], kind: str, parameter: Parameter) -> str:
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


def _ago(span_s: Value, parameter: Parameter) -> str:
    return f"pg_catalog.now() - pg_catalog.make_interval(secs => {parameter(span_s)}::pg_catalog.float8)"


def _start(asked: Compare, parameter: Parameter) -> str:
    """A range of ids: they carry the time of the start, in milliseconds since 1970."""
    if asked.field == "age":
        op, moment = _turned(asked.op), _ago(asked.values[0], parameter)
    else:
        op, moment = asked.op, f"{parameter(asked.values[0])}::pg_catalog.timestamptz"
    if op in (">", "<="):  # the first id after that millisecond
        moment = f"{moment} + interval '1 ms'"
    return f"r.run_id {'>=' if op in ('>', '>=') else '<'} {{schema}}.id_floor(greatest({moment}, timestamptz '1970-01-01 00:00:00+00'))"


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _json(asked: Compare, parameter: Parameter) -> str:
    """A text compares with the text at the path, a number or boolean with one of its kind; the whole is searched as its text."""
    column = _COLUMNS[asked.field]
    if not asked.path:
        return f"{column} IS NULL" if asked.op == "null" else _simple(f"({column})::pg_catalog.text", asked.op, list(asked.values), "text", parameter)
    path = f"{parameter(list(asked.path))}::pg_catalog.text[]"
    text = f"({column} #>> {path})"
    if asked.op == "null":
        return f"{text} IS NULL"
    if asked.op == "in":
        return " OR ".join(f"({_json_value(column, path, '=', value, parameter)})" for value in asked.values)
    if asked.op in ("^=", "~"):
        return _simple(text, asked.op, list(asked.values), "text", parameter)
    return _json_value(column, path, asked.op, asked.values[0], parameter)


def _json_value(column: str, path: str, op: str, value: Value, parameter: Parameter) -> str:
    if isinstance(value, bool):
        return f"CASE pg_catalog.jsonb_typeof({column} #> {path}) WHEN 'boolean' THEN ({column} #>> {path})::pg_catalog.bool {op} {parameter(value)}::pg_catalog.bool END"
    if isinstance(value, (int, float)):
        number = f"{parameter(str(value))}::pg_catalog.text::pg_catalog.numeric"
        return f"CASE pg_catalog.jsonb_typeof({column} #> {path}) WHEN 'number' THEN ({column} #>> {path})::pg_catalog.numeric {op} {number} END"
    return _simple(f"({column} #>> {path})", op, [str(value)], "text", parameter)


# ── what is quick ────────────────────────────────────────────────────────────────────────────────────────────────


def _joins(asked: Filter) -> Iterator[str]:
    """The views that hold every run which *asked* can be true of."""
    musts = list(_musts(asked))
    if any(_is_live(each) for each in musts):
        yield _LIVE_JOIN
    if any(_is_unsuccessful(each) for each in musts):
        yield _UNSUCCESSFUL_JOIN


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
