"""One run's history, as the views show it: for `show`, and for whoever asks why a run does not move.

Reads only, through views that a viewer may read; decides nothing and formats nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from supervisor.core.errors import RunUnknown, SupervisorError
from supervisor.db import look, refusals
from supervisor.db.connect import unavailable
from supervisor.db.statements import Sql

ROWS_MAX = 10_000
CHILDREN_MAX = UPDATES_MAX = 1_000
AUDIT_MAX = 100

Row = dict[str, Any]


@dataclass(frozen=True)
class History:
    """`run` is a row of runs, `wait` of waits (None once it ended), `steps` and `attempts` rows of theirs, at most 10,000.

    `children` are the runs that it started, at most 1,000. `published` is what it published, the last value of each key. `updates` are the
    updates that were sent to it, at most 1,000. `pause`: who paused it; `audit`: what operators did to it,
    the newest first, at most 100. `heartbeats`: the last sign of life of each step that gave any.
    """

    run: Row
    wait: Row | None
    steps: Sequence[Row]
    attempts: Sequence[Row]
    children: Sequence[Row] = ()
    published: Sequence[Row] = ()
    updates: Sequence[Row] = ()
    pause: Row | None = None
    audit: Sequence[Row] = ()
    heartbeats: Sequence[Row] = ()


def audit(conn: psycopg.Connection, schema: str, which: str | None, verb: str | None, before: datetime | None, limit: int) -> list[Row]:
    """What operators did, newest first: to the run that *which* names, or to all."""
    sql = Sql(schema)
    with refusals.told(conn, schema):
        run_id = _run(conn, sql, which)["run_id"] if which is not None else None
        return _rows(conn, sql, "show_audit", run_id, verb, before, limit)


def read(conn: psycopg.Connection, schema: str, which: str) -> History:
    """Read the run that *which* names: a run id, else a key. Raises RunUnknown, or an error that lists a key's runs."""
    sql = Sql(schema)
    try:
        with refusals.told(conn, schema):
            run = _run(conn, sql, which)
            run_id = run["run_id"]
            wait = _rows(conn, sql, "show_wait", run_id)
            steps, attempts = (_rows(conn, sql, name, run_id, ROWS_MAX) for name in ("show_steps", "show_attempts"))
            children = _rows(conn, sql, "show_children", run_id, CHILDREN_MAX)
            published = _rows(conn, sql, "show_published", run_id)
            updates = _rows(conn, sql, "show_updates", run_id, UPDATES_MAX)
            pause = _rows(conn, sql, "show_pause", run_id) if wait else []
            beats = _rows(conn, sql, "show_heartbeats", run_id)
            done = _rows(conn, sql, "show_audit", run_id, None, None, AUDIT_MAX)
    except psycopg.OperationalError as error:
        raise unavailable(error) from None
    return History(run, wait[0] if wait else None, steps, attempts, children, published, updates, pause[0] if pause else None, done, beats)


def _run(conn: psycopg.Connection, sql: Sql, which: str) -> Row:
    """The run of that id; else, for ids make good keys, the one that the key names."""
    try:
        found = _rows(conn, sql, "show_run", uuid.UUID(which))
    except ValueError:
        found = []
    if not found:
        keyed = one_of(which, [(each["run_id"], each["workflow"]) for each in _rows(conn, sql, "show_same_key", which)])
        found = _rows(conn, sql, "show_run", keyed)
    if not found:
        raise RunUnknown(which)
    return found[0]


def one_of(key: str, named: Sequence[tuple[uuid.UUID, str]]) -> uuid.UUID:
    """The only run that *key* names; *named* are runs and their workflows. Raises RunUnknown, or an error that lists them."""
    if not named:
        raise RunUnknown(f"with the id or key {key!r}")
    if len(named) > 1:
        names = ", ".join(f"{run_id} ({workflow})" for run_id, workflow in named[:5])
        raise SupervisorError(f"key {key!r} names {len(named)} runs of different workflows: {names}; give the run's id")
    return named[0][0]


def _rows(conn: psycopg.Connection, sql: Sql, name: str, *values: object) -> list[Row]:
    return look.cursor(conn).execute(sql.get(name).encode(), values).fetchall()
