"""Runs by a filter, who works, and what stands in the queues, as the views show it: for `list`, `cancel --filter`, `workers`, `queues` and `top`.

Reads only, formats nothing. Looking at the history is bounded: by a limit of rows and by a limit of time. No row fails it: what
is JSON to the server and can't be read here says so in its place, as in the views.
"""

from __future__ import annotations

import json
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
    """Rows of the view workers: those that live, and those that died within the hour. `runs` is None for workers of *host*."""
    return _rows(conn, schema, "look_at_workers", host)


def queues(conn: psycopg.Connection, schema: str) -> list[Row]:
    """Rows of the view queues; 0.3 s per million live runs."""
    return _rows(conn, schema, "look_at_queues")


def wait_groups(conn: psycopg.Connection, schema: str, rows_max: int) -> list[Row]:
    """Live runs by what they wait for, workflow, queue and step, most runs first; at most *rows_max* are looked at of each reason, queue and priority."""
    return _rows(conn, schema, "look_at_waits", rows_max)


def runs(conn: psycopg.Connection, schema: str, asked: Filter | None, *, after: UUID | None = None, limit: int = 100, patience_s: float = PATIENCE_S, order: Order | None = None) -> list[Row]:
    """Runs that fit, newest first or in *order*, of those that come after *after* in it. Raises ReadTimeout when *patience_s* were not enough."""
    return _filtered(conn, schema, "list_runs", asked, (after, limit), patience_s, order)


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
    schema: str, name: str, asked: Filter | None, first: int, sizes: filters.Sizes | None = None, order: Order | None = None, along: filters.Along | None = None
) -> tuple[str, list[Any]]:
    """The text of block *name* with *asked* and its order in it, whose parameters begin at number *first*, and their values."""
    sql = Sql(schema)
    where = filters.compiled(asked, first, sizes, along)
    text = sql.get(name).replace(sql.render(f"{filters.EVERY} AS d"), f"{sql.render(where.source)} AS d")
    text = text.replace("/*bounds*/", f"AND {sql.render(where.bounds)}").replace("/*filter*/", f"AND {sql.render(where.condition)}")
    return _ordered(text, order, along), where.values


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


def talk(schema: str, name: str, asked: Filter | None, bounds: tuple[object, ...], patience_s: float, order: Order | None = None) -> Talk[Rows]:
    """What is asked one after another to find runs that fit, in one transaction, which is to be rolled back: its settings end with it.

    Raises ReadTimeout when *patience_s* were not enough.
    """
    yield "list_settings", (str(int(patience_s * 1000)),)
    live = filters.wants_sizes(asked)
    try:
        if order is not None and order.attribute is not None:
            return (yield from _along(schema, name, asked, bounds, order))
        sizes = yield from _sizes(schema, asked, live)
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
    if not live and not tests and prefix is None:
        return None
    sizes = filters.Sizes(*(yield "list_sizes", (filters.FEW + 1,))[0]) if live else filters.Sizes()
    if prefix is not None:
        text, values = Sql(schema).get("list_key_size"), list[Any]()
        rows = filters.key_rows(prefix, filters.Parameters(values, 2))
        sizes = sizes._replace(keys=(yield text.replace("/*bounds*/", f"AND {rows}").encode(), (filters.FEW + 1, *values))[0][0])
    counts: list[int] = []
    for test in tests:
        text, values = Sql(schema).get("list_attribute_size"), list[Any]()
        rows = filters.attribute_rows(test, filters.Parameters(values, 2))
        counts.append((yield text.replace("/*bounds*/", f"AND {rows}").encode(), (filters.FEW + 1, *values))[0][0])
    return sizes._replace(attributes=tuple(counts))


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


def _filtered(conn: psycopg.Connection, schema: str, name: str, asked: Filter | None, bounds: tuple[object, ...], patience_s: float, order: Order | None = None) -> list[Row]:
    asking = psycopg.RawCursor(conn)
    set_json_loads(_json, asking)

    def ask(question: Question) -> Rows:
        what, values = question
        return asking.execute(what if isinstance(what, bytes) else Sql(schema).get(what).encode(), values).fetchall()

    with refusals.told(conn, schema), conn.transaction(force_rollback=True):
        rows = carry(talk(schema, name, asked, bounds, patience_s, order), ask)
    names = [column.name for column in asking.description or ()]
    return [dict(zip(names, row)) for row in rows]


def _rows(conn: psycopg.Connection, schema: str, name: str, *values: object) -> list[Row]:
    with refusals.told(conn, schema):
        return cursor(conn).execute(Sql(schema).get(name).encode(), values).fetchall()
