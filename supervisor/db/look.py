"""Runs by a filter, who works, and what stands in the queues, as the views show it: for `list`, `cancel --filter`, `workers`, `queues` and `top`.

Reads only, formats nothing. Looking at the history is bounded: by a limit of rows and by a limit of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from supervisor.core.errors import ReadTimeout
from supervisor.core.filters import Filter
from supervisor.db import filters, refusals
from supervisor.db.statements import Sql

Row = dict[str, Any]
PATIENCE_S = 30.0


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


def sizes(cursor: psycopg.RawCursor[Any], schema: str, asked: Filter | None) -> filters.Sizes | None:
    """What has to be known of the live runs to find those that *asked* is about, if it is about any."""
    if not filters.wants_sizes(asked):
        return None
    found = cursor.execute(Sql(schema).get("list_sizes").encode(), (filters.FEW + 1,)).fetchone()
    assert found is not None
    return filters.Sizes(*found.values())


def statement(schema: str, name: str, asked: Filter | None, first: int, sizes: filters.Sizes | None = None) -> tuple[str, list[Any]]:
    """The text of block *name* with *asked* in it, whose parameters begin at number *first*, and their values."""
    sql = Sql(schema)
    where = filters.compiled(asked, first, sizes)
    text = sql.get(name).replace(sql.render(f"{filters.EVERY} AS d"), f"{sql.render(where.source)} AS d")
    text = text.replace("/*bounds*/", f"AND {sql.render(where.bounds)}").replace("/*filter*/", f"AND {sql.render(where.condition)}")
    return text, where.values


def _filtered(conn: psycopg.Connection, schema: str, name: str, asked: Filter | None, bounds: tuple[object, ...], patience_s: float) -> list[Row]:
    cursor = psycopg.RawCursor(conn, row_factory=dict_row)
    looked_at = "all live runs" if filters.wants_sizes(asked) else "all of the history"
    try:
        with refusals.told(conn, schema), conn.transaction():  # the settings end with it
            cursor.execute(Sql(schema).get("list_settings").encode(), (str(int(patience_s * 1000)),))
            text, values = statement(schema, name, asked, len(bounds) + 1, sizes(cursor, schema, asked))
            return cursor.execute(text.encode(), (*bounds, *values)).fetchall()
    except psycopg.errors.QueryCanceled:
        raise ReadTimeout(
            f"looking for such runs took longer than {patience_s:g} s, for {looked_at} had to be looked at; "
            f"bound it in time (… AND age < 1d), or give it more (--timeout)"
        ) from None


def _rows(conn: psycopg.Connection, schema: str, name: str, *values: object) -> list[Row]:
    cursor = psycopg.RawCursor(conn, row_factory=dict_row)
    with refusals.told(conn, schema):
        return cursor.execute(Sql(schema).get(name).encode(), values).fetchall()
