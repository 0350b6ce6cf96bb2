"""Runs by a filter, who works, and what stands in the queues, as the views show it: for `list`, `cancel --filter`, `workers`, `queues` and `top`.

Reads only, formats nothing. Looking at the history is bounded: by a limit of rows and by a limit of time. No row fails it: what
is JSON to the server and can't be read here says so in its place, as in the views.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

from supervisor.core.errors import ReadTimeout, RunUnknown
from supervisor.core.filters import Filter, Order
from supervisor.db import filters, refusals
from supervisor.db.client_calls import Question, Rows, Talk, carry
from supervisor.db.statements import Sql

Row = dict[str, Any]
PATIENCE_S = 30.0
NEWEST_FIRST = Order(None, True)
SLICE_RUNS, SLICE_RUNS_MAX, SLICE_S = 1_000, 128_000, 0.2  # of the history at a time; twice as many where it took less
AFTER = "$1::pg_catalog.uuid IS NULL OR d.run_id < $1::pg_catalog.uuid"


def cursor(conn: psycopg.Connection) -> psycopg.RawCursor[Row]:
    """Rows as dicts, whatever is in their JSON."""
    made = psycopg.RawCursor(conn, row_factory=dict_row)
    set_json_loads(_json, made)
    return made


def _json(stored: str | bytes) -> Any:
    try:
        return json.loads(stored)
    except RecursionError:
        return {"unreadable": "it is nested too deep", "bytes": len(stored)}


def workers(conn: psycopg.Connection, schema: str, host: str) -> list[Row]:
    """Rows of the view workers: those that live, and those that ended within the hour. `runs` is None for workers of *host*."""
    return _rows(conn, schema, "look_at_workers", host)


def queues(conn: psycopg.Connection, schema: str) -> list[Row]:
    """Rows of the view queues; 0.3 s per million live runs."""
    return _rows(conn, schema, "look_at_queues")


def wait_groups(conn: psycopg.Connection, schema: str, rows_max: int) -> list[Row]:
    """Live runs by what they wait for, workflow, queue and step, most runs first; at most *rows_max* are looked at of each reason, queue and priority."""
    return _rows(conn, schema, "look_at_waits", rows_max)


class Found(list[Row]):
    """A page of runs. `reached`: where looking ended for its time, so that there may be more behind that run; None: all was looked at, or the page is full."""

    reached: UUID | None = None


def runs(conn: psycopg.Connection, schema: str, asked: Filter | None, *, after: UUID | None = None, limit: int = 100, patience_s: float = PATIENCE_S, order: Order | None = None) -> Found:
    """Runs that fit, newest first or in *order*, of those that come after *after* in it.

    Where many keys begin as *asked* says, slices of the history are looked at for half of *patience_s*, and what was reached is said. Raises ReadTimeout when *patience_s* were not enough.
    """
    reached: list[UUID] = []
    found = Found(_filtered(conn, schema, "list_runs", asked, (after, limit), patience_s, order, reached))
    found.reached = reached[-1] if reached else None
    return found


def ids(conn: psycopg.Connection, schema: str, asked: Filter | None, *, after: UUID | None = None, limit: int = 1000, patience_s: float = PATIENCE_S) -> Sequence[UUID]:
    """Their ids alone."""
    return [row["run_id"] for row in _filtered(conn, schema, "list_ids", asked, (after, limit), patience_s)]


def counts(conn: psycopg.Connection, schema: str, asked: Filter | None, *, patience_s: float = PATIENCE_S) -> list[Row]:
    """How many fit: workflow, status, runs."""
    return _filtered(conn, schema, "list_counts", asked, (), patience_s)


def versions(conn: psycopg.Connection, schema: str, workflow: str | None) -> list[Row]:
    """Rows of the view versions, of one workflow or all, the newest first; 0.3 s per million live runs."""
    return _rows(conn, schema, "client_versions", workflow)


def statement(
    schema: str, name: str, asked: Filter | None, first: int, sizes: filters.Sizes | None = None, order: Order | None = None, along: filters.Along | None = None,
    until: UUID | None = None,
) -> tuple[str, list[Any]]:  # fmt: skip
    """The text of block *name* with *asked* and its order in it, whose parameters begin at number *first*, and their values. *until*: no run behind that one."""
    sql = Sql(schema)
    where = filters.compiled(asked, first, sizes, along)
    if until is not None:
        where.bounds += f" AND d.run_id {'>=' if order is None or order.descending else '<='} {filters.Parameters(where.values, first)(until)}::pg_catalog.uuid"
    text = sql.get(name).replace(sql.render(f"{filters.EVERY} AS d"), f"{sql.render(where.source)} AS d")
    if where.value is not None:
        text = _along_value(text, where, first, order)
    text = text.replace("/*bounds*/", f"AND {sql.render(where.bounds)}").replace("/*filter*/", f"AND {sql.render(where.condition)}")
    return _ordered(text, order, along), where.values


def _along_value(text: str, where: filters.Where, first: int, order: Order | None) -> str:
    """The statement, whose runs are in order, along an index that has something else before them, the same for all; after a run it begins there."""
    descending = order is None or order.descending
    if AFTER in text:
        end = "ffffffff-ffff-ffff-ffff-ffffffffffff" if descending else "00000000-0000-0000-0000-000000000000"
        value = f"{filters.Parameters(where.values, first)(where.value)}::pg_catalog.text"
        where.bounds += f" AND (d.value, d.run_id) {'<' if descending else '>'} ({value}, coalesce($1::pg_catalog.uuid, '{end}'))"
    return text.replace("/*value*/", ", d.value").replace("ORDER BY d.run_id DESC", f"ORDER BY d.value {'DESC' if descending else 'ASC'}, d.run_id DESC")


def _ordered(text: str, order: Order | None, along: filters.Along | None) -> str:
    """The statement, which has the newest first, in another order."""
    if order is None or order == NEWEST_FIRST:
        return text
    way = "DESC" if order.descending else "ASC"
    if along is None:
        return text.replace("run_id DESC", f"run_id {way}").replace(AFTER, AFTER.replace("<", ">"))
    for source in ("d", "p"):
        text = text.replace(f"ORDER BY {source}.run_id DESC", f"ORDER BY {source}.value {way}, {source}.run_id {way}")
    return text.replace("/*value*/", ", d.value").replace(f"({AFTER})", "($1::pg_catalog.uuid IS NULL OR true)")


def talk(schema: str, name: str, asked: Filter | None, bounds: tuple[object, ...], patience_s: float, order: Order | None = None, reached: list[UUID] | None = None) -> Talk[Rows]:
    """What is asked one after another to find runs that fit, in one transaction, which is to be rolled back: its settings end with it.

    reached  where it may end before all was looked at: gets the run that it came to
    Raises   ReadTimeout when *patience_s* were not enough
    """
    yield "list_settings", (str(int(patience_s * 1000)),)
    live = filters.wants_sizes(asked)
    try:
        if order is not None and order.attribute is not None:
            return (yield from _along(schema, name, asked, bounds, order))
        sizes = yield from _sizes(schema, asked, live)
        if reached is not None and filters.key_test(asked) is not None and filters.walks_history(asked, sizes):
            return (yield from _by_slices(schema, name, asked, bounds, patience_s, order, sizes, reached))
        text, values = statement(schema, name, asked, len(bounds) + 1, sizes, order)
        return (yield text.encode(), (*bounds, *values))
    except psycopg.errors.QueryCanceled:
        raise ReadTimeout(
            f"looking for such runs took longer than {patience_s:g} s, for {'all live runs' if live else 'all of the history'} had to be looked at; "
            f"bound it in time (… AND age < 1d), or give it more (--timeout, timeout=)"
        ) from None


def _sizes(schema: str, asked: Filter | None, live: bool) -> Talk[filters.Sizes | None]:
    """What has to be known to find some: how many live runs there are, and how many with such keys and attributes."""
    tests, prefix = filters.attribute_tests(asked), filters.key_test(asked)
    started_by = filters.schedule_test(asked) if filters.wants_schedule_size(asked) else None
    if not live and not tests and prefix is None and started_by is None:
        return None
    sizes = filters.Sizes(*(yield "list_sizes", (filters.FEW + 1,))[0]) if live else filters.Sizes()
    if prefix is not None:
        text, values = Sql(schema).get("list_key_size"), list[Any]()
        rows = filters.key_rows(prefix, filters.Parameters(values, 2))
        sizes = sizes._replace(keys=(yield text.replace("/*bounds*/", f"AND {rows}").encode(), (filters.FEW + 1, *values))[0][0])
    if started_by is not None:
        sizes = sizes._replace(scheduled=(yield "list_schedule_size", (filters.FEW + 1, [str(value) for value in started_by.values]))[0][0])
    counts: list[int] = []
    for test in tests:
        text, values = Sql(schema).get("list_attribute_size"), list[Any]()
        rows = filters.attribute_rows(test, filters.Parameters(values, 2))
        counts.append((yield text.replace("/*bounds*/", f"AND {rows}").encode(), (filters.FEW + 1, *values))[0][0])
    return sizes._replace(attributes=tuple(counts))


def _by_slices(
    schema: str, name: str, asked: Filter | None, bounds: tuple[object, ...], patience_s: float, order: Order | None, sizes: filters.Sizes | None, reached: list[UUID]
) -> Talk[Rows]:
    """A page, looked for in one part of the history after another, larger ones where little was found in them, until it is full or half of the time is over."""
    after, limit = bounds
    began, slice_runs, rows = time.monotonic(), SLICE_RUNS, Rows()
    came: UUID | None = None
    while True:
        turn = time.monotonic()
        try:
            yield "list_settings", (str(max(1, int((patience_s - (turn - began)) * 1000))),)
            ends = yield slice_statement(schema, asked, (after, slice_runs), order)
            until = ends[0][0] if ends else None
            text, values = statement(schema, name, asked, 3, sizes, order, until=until)
            rows += yield text.encode(), (after, limit - len(rows), *values)  # type: ignore[operator]
        except psycopg.errors.QueryCanceled:
            if came is None:
                raise
            until = came
        if until is None or len(rows) == limit:
            return rows
        after = came = until
        now = time.monotonic()
        if now - began > patience_s / 2:
            reached.append(came)
            return rows
        slice_runs = min(2 * slice_runs, SLICE_RUNS_MAX) if now - turn < SLICE_S else max(slice_runs // 2, SLICE_RUNS)


def slice_statement(schema: str, asked: Filter | None, bounds: tuple[object, ...], order: Order | None = None) -> tuple[bytes, tuple[object, ...]]:
    """Where the next slice ends of what *asked* can be true of."""
    values: list[Any] = []
    sql = Sql(schema)
    text = sql.get("list_slice").replace("/*bounds*/", f"AND {sql.render(filters.edges(asked, filters.Parameters(values, 3)))}")
    return _ordered(text, order, None).encode(), (*bounds, *values)


def _along(schema: str, name: str, asked: Filter | None, bounds: tuple[object, ...], order: Order) -> Talk[Rows]:
    """A page in the order of an attribute: those with a number, then those with a text, or the other way round."""
    after, limit = bounds
    number = text = None
    if after is not None:
        found = yield "list_position", (after, order.attribute)
        if not found:
            raise RunUnknown(f"{after} in this list: it has no attribute {order.attribute!r}, so nothing comes after it")
        number, text = found[0]
    kinds = [False, True] if order.descending else [True, False]
    if after is not None and (number is not None) != kinds[0]:
        kinds = kinds[1:]
    rows: Rows = []
    for numbers in kinds:
        value = number if numbers else text
        said, values = statement(schema, name, asked, 3, order=order, along=filters.Along(order, numbers, value))
        rows += yield said.encode(), (after if value is not None else None, limit - len(rows), *values)  # type: ignore[operator]
        if len(rows) == limit:
            break
    return rows


def _filtered(
    conn: psycopg.Connection, schema: str, name: str, asked: Filter | None, bounds: tuple[object, ...], patience_s: float, order: Order | None = None, reached: list[UUID] | None = None
) -> list[Row]:
    asking = psycopg.RawCursor(conn)
    set_json_loads(_json, asking)
    named: dict[int, list[str]] = {}  # by how many there are: the last statement may be another one than that which gave the rows

    def ask(question: Question) -> Rows:
        what, values = question
        rows = asking.execute(what if isinstance(what, bytes) else Sql(schema).get(what).encode(), values).fetchall()
        names = [column.name for column in asking.description or ()]
        named[len(names)] = names
        return rows

    with refusals.told(conn, schema), conn.transaction(force_rollback=True):
        rows = carry(talk(schema, name, asked, bounds, patience_s, order, reached), ask)
    return [dict(zip(named[len(row)], row)) for row in rows]


def _rows(conn: psycopg.Connection, schema: str, name: str, *values: object) -> list[Row]:
    with refusals.told(conn, schema):
        return cursor(conn).execute(Sql(schema).get(name).encode(), values).fetchall()
