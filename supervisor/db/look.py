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

from supervisor.core.errors import ReadTimeout
from supervisor.core.filters import Filter
from supervisor.db import filters, refusals
from supervisor.db.client_calls import Question, Rows, Talk, carry
from supervisor.db.statements import Sql

Row = dict[str, Any]
PATIENCE_S = 30.0


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


def runs(conn: psycopg.Connection, schema: str, asked: Filter | None, *, after: UUID | None = None, limit: int = 100, patience_s: float = PATIENCE_S) -> list[Row]:
    """Runs that fit, newest first, of those older than *after*. Raises ReadTimeout when *patience_s* were not enough."""
    return _filtered(conn, schema, "list_runs", asked, (after, limit), patience_s)


def ids(conn: psycopg.Connection, schema: str, asked: Filter | None, *, after: UUID | None = None, limit: int = 1000, patience_s: float = PATIENCE_S) -> Sequence[UUID]:
    """Their ids alone."""
    return [row["run_id"] for row in _filtered(conn, schema, "list_ids", asked, (after, limit), patience_s)]


def counts(conn: psycopg.Connection, schema: str, asked: Filter | None, *, patience_s: float = PATIENCE_S) -> list[Row]:
    """How many fit: workflow, status, runs."""
    return _filtered(conn, schema, "list_counts", asked, (), patience_s)


def statement(schema: str, name: str, asked: Filter | None, first: int, sizes: filters.Sizes | None = None) -> tuple[str, list[Any]]:
    """The text of block *name* with *asked* in it, whose parameters begin at number *first*, and their values."""
    sql = Sql(schema)
    where = filters.compiled(asked, first, sizes)
    text = sql.get(name).replace(sql.render(f"{filters.EVERY} AS d"), f"{sql.render(where.source)} AS d")
    text = text.replace("/*bounds*/", f"AND {sql.render(where.bounds)}").replace("/*filter*/", f"AND {sql.render(where.condition)}")
    return text, where.values


def talk(schema: str, name: str, asked: Filter | None, bounds: tuple[object, ...], patience_s: float) -> Talk[Rows]:
    """What is asked one after another to find runs that fit, in one transaction, which is to be rolled back: its settings end with it.

    Raises ReadTimeout when *patience_s* were not enough.
    """
    yield "list_settings", (str(int(patience_s * 1000)),)
    live = filters.wants_sizes(asked)
    try:
        sizes = filters.Sizes(*(yield "list_sizes", (filters.FEW + 1,))[0]) if live else None  # what has to be known of live runs to find some
        text, values = statement(schema, name, asked, len(bounds) + 1, sizes)
        return (yield text.encode(), (*bounds, *values))
    except psycopg.errors.QueryCanceled:
        raise ReadTimeout(
            f"looking for such runs took longer than {patience_s:g} s, for {'all live runs' if live else 'all of the history'} had to be looked at; "
            f"bound it in time (… AND age < 1d), or give it more (--timeout, timeout=)"
        ) from None


def _filtered(conn: psycopg.Connection, schema: str, name: str, asked: Filter | None, bounds: tuple[object, ...], patience_s: float) -> list[Row]:
    asking = psycopg.RawCursor(conn)
    set_json_loads(_json, asking)

    def ask(question: Question) -> Rows:
        what, values = question
        return asking.execute(what if isinstance(what, bytes) else Sql(schema).get(what).encode(), values).fetchall()

    with refusals.told(conn, schema), conn.transaction(force_rollback=True):
        rows = carry(talk(schema, name, asked, bounds, patience_s), ask)
    names = [column.name for column in asking.description or ()]
    return [dict(zip(names, row)) for row in rows]


def _rows(conn: psycopg.Connection, schema: str, name: str, *values: object) -> list[Row]:
    with refusals.told(conn, schema):
        return cursor(conn).execute(Sql(schema).get(name).encode(), values).fetchall()
