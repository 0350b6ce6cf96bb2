"""One run's history, as the views show it: for `show`, and for whoever asks why a run does not move.

Reads only, through views that a viewer may read; decides nothing and formats nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

import psycopg

from supervisor.core.errors import ReadTimeout, RunUnknown, SupervisorError
from supervisor.core.families import COUNTED
from supervisor.core.shown import place_of
from supervisor.db import look, refusals
from supervisor.db.connect import unavailable
from supervisor.db.statements import Sql

ROWS_MAX = 10_000
CHILDREN_MAX = UPDATES_MAX = 1_000
SIGNALS_MAX = TRIES_MAX = 1_000
AUDIT_MAX = 100
TREE = (200, 32, 20, COUNTED)  # runs of a tree from one on, levels above and below it, children of each, of so many that are counted
USUAL_OF = 2_000  # newest runs among which those of its workflow are looked for
LOOK_S = 30.0

Row = dict[str, Any]


class Place(NamedTuple):
    """Where one deed stands among all, the newest first: no two have the same. Of a moment alone: where all that was done before it begins."""

    at: datetime | None = None
    n: int | None = None
    run_id: uuid.UUID | None = None
    verb: str | None = None

    @classmethod
    def of(cls, text: str) -> Place:
        """As `str` has it; or a moment, in UTC where it names no zone. Raises ValueError."""
        moment, *of_deed = text.split("/")
        at = datetime.fromisoformat(moment)
        at = at.replace(tzinfo=timezone.utc) if at.tzinfo is None else at
        if not of_deed:
            return cls(at)
        n, run_id, verb = of_deed
        if len(n) > 18:
            raise ValueError(f"{n!r} is no number of a deed")
        return cls(at, int(n), uuid.UUID(run_id), verb)

    @classmethod
    def after(cls, deed: Row) -> Place:
        """Where what comes behind *deed* in the list begins."""
        return cls(deed["at"], deed["n"] or 0, deed["run_id"], deed["verb"])

    def __str__(self) -> str:
        """For a command line or a link."""
        at = self.at.astimezone(timezone.utc).replace(tzinfo=None).isoformat() if self.at else ""
        return at if self.verb is None else f"{at}/{self.n}/{self.run_id}/{self.verb}"


FROM_NOW_ON = Place()


@dataclass(frozen=True)
class History:
    """`run` is a row of runs, `wait` of waits (None once it ended), `steps` and `attempts` rows of theirs, at most 10,000.

    `children` are the runs that it started, at most 1,000. `published` is what it published, the last value of each key. `updates` are the
    updates that were sent to it, at most 1,000. `pause`: who paused it; `audit`: what operators did to it,
    the newest first, at most 100. `heartbeats`: the last sign of life of each step that gave any. `signals` that were sent to it, at most 1,000.
    `tree`: runs above it (level < 0, the root first), itself (0) and those below it, at most 200, with how many `children` each has. `cancellations`: who asked that it be ended. While it lives, `usual` is
    how many entries the histories of runs of its workflow and version that completed had, and of how many that is the median; `alike` how many other runs met its last error within the hour. `schedule`: which one started it, for which tick.
    `goes_on`: the runs that go on with it and that it goes on from (`how`).
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
    signals: Sequence[Row] = ()
    tree: Sequence[Row] = ()
    cancellations: Sequence[Row] = ()
    usual: Row | None = None
    alike: Row | None = None
    schedule: Row | None = None
    goes_on: Sequence[Row] = ()

    @property
    def place(self) -> Row | None:
        """How far it is, while it lives (`place_of`)."""
        return place_of(len(self.steps), self.usual, self.run["progress"]) if self.wait else None


def audit(conn: psycopg.Connection, schema: str, which: str | None, verb: str | None, before: Place, limit: int, schedule: str | None = None) -> list[Row]:
    """What operators did, newest first: to the run that *which* names, to a schedule, or to all."""
    sql = Sql(schema)
    with refusals.told(conn, schema):
        if schedule is not None:
            return _rows(conn, sql, "show_schedule_audit", schedule, verb, *before, limit)
        run_id = _run(conn, sql, which)["run_id"] if which is not None else None
        return _rows(conn, sql, "show_audit", run_id, verb, *before, limit)


def read(conn: psycopg.Connection, schema: str, which: str) -> History:
    """Read the run that *which* names: a run id, else a key. Raises RunUnknown, or an error that lists a key's runs."""
    sql = Sql(schema)
    try:
        with refusals.told(conn, schema), conn.transaction(force_rollback=True):
            _rows(conn, sql, "list_settings", str(int(LOOK_S * 1000)))
            return _read(conn, sql, _run(conn, sql, which))
    except psycopg.errors.QueryCanceled:
        raise ReadTimeout(f"reading run {which} took longer than {LOOK_S:g} s; ask again when the database has less to do, or ask the views for the part that you need") from None
    except psycopg.OperationalError as error:
        raise unavailable(error) from None


def id_of(conn: psycopg.Connection, schema: str, which: str) -> uuid.UUID:
    """The id of the run that *which* names, as read does."""
    with refusals.told(conn, schema):
        found: uuid.UUID = _run(conn, Sql(schema), which)["run_id"]
    return found


def _read(conn: psycopg.Connection, sql: Sql, run: Row) -> History:
    run_id = run["run_id"]

    def rows(name: str, *more: object) -> list[Row]:
        return _rows(conn, sql, name, run_id, *more)

    wait = rows("show_wait")
    attempts = rows("show_attempts", ROWS_MAX)
    below = rows("show_below", *TREE)
    return History(
        run, wait[0] if wait else None, rows("show_steps", ROWS_MAX), attempts, rows("show_children", CHILDREN_MAX), rows("show_published"),
        rows("show_updates", UPDATES_MAX), next(iter(rows("show_pause") if wait else ()), None), rows("show_audit", None, *FROM_NOW_ON, AUDIT_MAX), rows("show_heartbeats"),
        rows("show_signals", SIGNALS_MAX), [*(rows("show_above", TREE[1]) if run["parent_id"] else ()), *below], rows("show_cancellations"),
        _rows(conn, sql, "show_usual", run["workflow"], USUAL_OF, run["version"])[0] if wait else None, _alike(conn, sql, run_id, wait, attempts),
        next(iter(rows("show_schedule")), None), rows("show_goes_on"),
    )  # fmt: skip


def failed_tries(wait: Row | None, attempts: Sequence[Row]) -> list[Row]:
    """Failed tries, and crashes, of the step that a run is at."""
    return [each for each in attempts if wait and each["seq"] == wait["seq"] and each["error"] and each["kind"] in ("failed", "crashed")]


def last_error(wait: Row | None, attempts: Sequence[Row]) -> Row | None:
    """The last of them."""
    failed = failed_tries(wait, attempts)
    return failed[-1] if failed else None


def _alike(conn: psycopg.Connection, sql: Sql, run_id: uuid.UUID, wait: Sequence[Row], attempts: Sequence[Row]) -> Row | None:
    last = last_error(wait[0] if wait else None, attempts)
    return _rows(conn, sql, "show_alike", last["fingerprint"], run_id, TRIES_MAX)[0] if last and last["fingerprint"] else None


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
