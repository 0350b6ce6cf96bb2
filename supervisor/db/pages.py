"""Sessions for pages: a few, shared by a process's threads, each page one transaction that only reads and is bounded in time.

Owns the sessions and what is remembered of a page's statements. A session that broke is dropped and the next page opens another one: whoever
comes after an outage finds the database again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

import psycopg

from supervisor.core.errors import DatabaseUnavailable, ReadTimeout, RunLocked, SupervisorError
from supervisor.core.filters import Filter, Order
from supervisor.db import connect as _connect
from supervisor.db import look, refusals
from supervisor.db.connect import Dsn
from supervisor.db.operator_calls import IN_THE_WAY
from supervisor.db.statements import Sql

Row = dict[str, Any]
T = TypeVar("T")
Asking = tuple[Any, ...]  # a block's name, and its values
NAMED_ALONE = 1 << 30  # psycopg prepares what it is told to and nothing by itself; None: nothing at all
SESSIONS_MAX = 4  # of a dashboard's pages
WAIT_S = 10.0  # for one of the sessions, while others use all


@lru_cache(maxsize=16)
def _sql(schema: str) -> Sql:
    """The texts that one page has rendered are the next one's too."""
    return Sql(schema)


class Said(NamedTuple):
    """One statement of a page and its values."""

    name: str
    text: str
    values: Sequence[object]


class Rights(NamedTuple):
    """What the session's role may do. `client`: verbs on one run; `operator`: steps, many runs and saved views too."""

    login: str
    client: bool
    operator: bool


class Look:
    """One page's transaction: rows by the name of a block, and what was asked so far.

    Where no pooler is in between, blocks are prepared: half of what a page of one run costs the server is taking the views apart. Planned they are anew
    each time, with their values: a plan for any run would lock every partition of the history.
    """

    def __init__(self, conn: psycopg.Connection[Any], schema: str, timeout_s: float, remembered: dict[str, Any] | None = None) -> None:
        self.schema, self.timeout_s = schema, timeout_s
        self.remembered = {} if remembered is None else remembered  # by pages of this process before
        self.said: list[Said] = []
        self._conn, self._sql = conn, _sql(schema)

    def rows(self, name: str, *values: object) -> list[Row]:
        text = self._sql.get(name)
        self.said.append(Said(name, text, values))
        return look.cursor(self._conn).execute(text.encode(), values, prepare=True).fetchall()

    def together(self, asked: Mapping[str, Asking]) -> dict[str, list[Row]]:
        """Rows of several blocks, each as its name and values, that are sent without waiting for the one before: many questions, one wait."""
        cursors = {}
        with self._conn.pipeline() if psycopg.Pipeline.is_supported() else nullcontext():
            for part, (name, *values) in asked.items():
                text = self._sql.get(name)
                self.said.append(Said(name, text, values))
                cursors[part] = look.cursor(self._conn).execute(text.encode(), values, prepare=True)
        return {part: cursor.fetchall() for part, cursor in cursors.items()}

    def parts(self, asked: Mapping[str, Asking]) -> dict[str, list[Row] | SupervisorError]:
        """The same, each for itself: where one of them takes too long, or may not be seen, they are asked again one by one, so that it does not cost the others."""
        said = list(self.said)
        try:
            with self._conn.transaction():
                return {**self.together(asked)}
        except (psycopg.errors.QueryCanceled, psycopg.errors.InsufficientPrivilege):
            self.said = said
            return {part: self.apart(partial(self.rows, *each)) for part, each in asked.items()}

    def first(self, name: str, *values: object) -> Row | None:
        found = self.rows(name, *values)
        return found[0] if found else None

    def apart(self, ask: Callable[[], T]) -> T | SupervisorError:
        """What *ask* gives, or why not: a part of a page that takes too long, or may not be seen, does not cost the others."""
        try:
            with self._conn.transaction():
                return ask()
        except psycopg.errors.QueryCanceled:
            return too_long(self.timeout_s)
        except psycopg.errors.InsufficientPrivilege as error:
            return refusals.no_right(self.schema, self._conn.info.user, "viewer", str(error).splitlines()[0])
        except ReadTimeout as error:
            return error

    def runs(self, asked: Filter | None, order: Order | None, after: Any, limit: int) -> look.Found:
        """A page of `list`."""
        text, values = look.statement(self.schema, "list_runs", asked, 3, order=None if order is not None and order.attribute else order)
        self.said.append(Said("list_runs", text, (after, limit, *values)))
        return look.runs(self._conn, self.schema, asked, after=after, limit=limit, patience_s=self.timeout_s, order=order)

    def counts(self, asked: Filter | None) -> list[Row]:
        """How many runs fit: workflow, status, runs. Looks at all that may fit, for as long as a page may take."""
        return look.counts(self._conn, self.schema, asked, patience_s=self.timeout_s)

    def rights(self) -> Rights:
        found = {row["verb"]: row for row in look.cursor(self._conn).execute(self._sql.get("page_rights").encode()).fetchall()}
        may = {verb for verb, row in found.items() if row["may"]}
        login = next((row["login"] for row in found.values()), self._conn.info.user)
        return Rights(login, {"cancel", "terminate", "operate", "send_because", "pause_schedule"} <= may, {"operate_many", "intervene", "finish_because", "save_view", "pause_queue"} <= may)


def too_long(timeout_s: float) -> ReadTimeout:
    return ReadTimeout(f"the database took longer than {timeout_s:g} s for this; ask for less, or give pages more time: --timeout")


class Sessions:
    """At most *most* sessions, opened when needed. Thread-safe."""

    def __init__(self, dsn: Dsn, schema: str, *, most: int = SESSIONS_MAX, timeout_s: float = 5.0, purpose: str = "dashboard") -> None:
        self.dsn, self.schema, self.timeout_s, self._purpose = dsn, schema, timeout_s, purpose
        self._free = threading.BoundedSemaphore(most)
        self._lock = threading.Lock()
        self._idle: list[psycopg.Connection[Any]] = []
        self._closed = False
        self._remembered: dict[str, Any] = {}

    @contextmanager
    def look(self) -> Iterator[Look]:
        """A transaction that sees one state of the database. Raises DatabaseUnavailable, ReadTimeout, SchemaMissing, PermissionMissing."""
        with self._session() as conn, refusals.told(conn, self.schema):
            try:
                with conn.transaction():
                    psycopg.RawCursor(conn).execute(_sql(self.schema).get("page_settings").encode(), (str(int(self.timeout_s * 1000)),))
                    yield Look(conn, self.schema, self.timeout_s, self._remembered)
            except psycopg.errors.QueryCanceled:
                raise too_long(self.timeout_s) from None
            except psycopg.OperationalError as error:
                raise _connect.unavailable(error, conn) from None

    @contextmanager
    def writing(self) -> Iterator[psycopg.Connection[Any]]:
        """A session of its own for many runs' verbs, closed afterwards."""
        with _connect.connect(self.dsn, purpose="dashboard", schema=self.schema) as conn, _connect.told_when_broken():
            yield conn

    @contextmanager
    def acting(self, what: str) -> Iterator[psycopg.Connection[Any]]:
        """A transaction for what one form does, in which neither a statement nor a lock takes longer than those of a page. Raises RunLocked, DatabaseUnavailable."""
        with self.writing() as conn, refusals.told(conn, self.schema, "operator"):
            try:
                with conn.transaction():
                    psycopg.RawCursor(conn).execute(Sql(self.schema).get("form_settings").encode(), (str(int(self.timeout_s * 1000)),))
                    yield conn
            except (psycopg.errors.QueryCanceled, *IN_THE_WAY) as error:
                raise RunLocked(what, self.timeout_s, str(error).splitlines()[0]) from None

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for conn in idle:
            conn.close()

    @contextmanager
    def _session(self) -> Iterator[psycopg.Connection[Any]]:
        if not self._free.acquire(timeout=WAIT_S):
            raise DatabaseUnavailable("all sessions that read are busy; try again in a moment")
        try:
            conn = self._taken()
            try:
                yield conn
            except psycopg.Error:  # what it has prepared may be of tables that have changed
                conn.close()
                raise
            finally:
                self._give_back(conn)
        finally:
            self._free.release()

    def _taken(self) -> psycopg.Connection[Any]:
        while True:
            with self._lock:
                conn = self._idle.pop() if self._idle else None
            if conn is None:
                return self._opened()
            if _lives(conn):
                return conn
            conn.close()

    def _opened(self) -> psycopg.Connection[Any]:
        conn = _connect.connect(self.dsn, purpose=self._purpose, schema=self.schema)
        (backend,) = psycopg.RawCursor(conn).execute(_sql(self.schema).get("client_backend").encode()).fetchone() or (0,)
        if backend == conn.info.backend_pid:  # behind a pooler the next transaction may be another session's
            conn.prepare_threshold = NAMED_ALONE
        conn.read_only = True
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        return conn

    def _give_back(self, conn: psycopg.Connection[Any]) -> None:
        with self._lock:
            if not conn.closed and not conn.broken and not self._closed and conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
                self._idle.append(conn)
                return
        conn.close()


def _lives(conn: psycopg.Connection[Any]) -> bool:
    """Whether the server is still there: a session that lay idle through a restart is not used, for a page is not asked twice."""
    try:
        conn.execute("")
    except psycopg.Error:
        return False
    return not conn.closed
