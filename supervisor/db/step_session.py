"""The worker's second session: transactions in which steps write, and what is refused or checked around them.

Owns the psycopg connection, the savepoints, what ends a transaction (checkpoints, deferred constraints, the fence) and
the words that only the engine may say. Knows nothing of runs or workflows; one thread uses it at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from uuid import UUID

import psycopg
from psycopg import errors, pq

from supervisor.core.errors import DatabaseUnavailable, Fenced, StepTimeout, SupervisorError, TransactionMisused
from supervisor.db.connect import connect
from supervisor.db.statements import Sql

LOCK_TIMEOUT = "20ms"  # of a shared transaction: steps that wait for one another's rows would deadlock for a second
PREPARE_AFTER = 5  # a step's own statements are planned once they recur
CROWDED = (errors.LockNotAvailable, errors.DeadlockDetected)
CONFLICT = (errors.SerializationFailure, errors.DeadlockDetected)
REFUSED = frozenset("begin start commit end rollback abort savepoint release prepare set reset discard deallocate listen unlisten copy load".split())
_KEYWORDS = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*([a-z]+)(?:\s+([a-z]+))?", re.IGNORECASE | re.DOTALL)

# run id, seq, pos, step's name, encoded result, started and ended in us since 2000
Checkpoint = tuple[bytes, int, int, str, bytes, int, int]


class Rerun(Exception):
    """Nothing was committed, and the steps of the transaction have to be run again. `__cause__` says why."""

    @property
    def is_conflict(self) -> bool:
        """Whether another transaction was in the way, so that trying again may help."""
        return isinstance(self.__cause__, CONFLICT)

    @property
    def lost_statements(self) -> bool:
        """Whether prepared statements of the session were removed; a new session has none to lose."""
        return isinstance(self.__cause__, errors.InvalidSqlStatementName)


class WantsConnection(BaseException):
    """The step asked for the connection itself: it runs alone and without pipelining from now on."""


class WantsSettings(BaseException):
    """The step used SET LOCAL, which holds for the rest of a transaction: it runs alone from now on."""


_SETTINGS = "select " + ", ".join(f"pg_catalog.current_setting('{name}')" for name in ("search_path", "role", "statement_timeout", "lock_timeout"))
_SETTINGS_BACK = "select " + ", ".join(f"pg_catalog.set_config('{name}', %s, true)" for name in ("search_path", "role", "statement_timeout", "lock_timeout"))


def lost(error: Exception) -> SupervisorError:
    """What to make of an error after which it is not known what was committed."""
    if isinstance(error, SupervisorError):
        return error
    if getattr(error, "sqlstate", None) == "SV003":
        return Fenced(f"a transaction was refused: {error}")
    return DatabaseUnavailable(f"the session for transactional steps broke: {type(error).__name__}: {error}")


class StepSession:
    """One session. *identity* is the worker's id and boot id, which the fence compares."""

    def __init__(self, dsn: str, schema: str, identity: tuple[int, UUID]) -> None:
        sql = Sql(schema)
        self._conn = connect(dsn, purpose=f"tx of worker {identity[0]}", schema=schema, profile="tx")
        self._conn.prepare_threshold = PREPARE_AFTER
        self._identity = identity
        self._schema = schema
        self._checkpoints = sql.get("insert_checkpoints")
        self._fence = sql.get("tx_fence")
        self._look = sql.get("session_as_left")
        self._as_left = self._conn.execute(self._look).fetchone()
        self._settings = self._conn.execute(_SETTINGS).fetchone()
        self._pipe: Any = None
        self.spoiled = False  # a step left something behind: use another session for the next transaction

    def close(self) -> None:
        self._conn.close()

    def rollback(self) -> None:
        """Back to no transaction, whatever state it is in."""
        try:
            if self._conn.info.transaction_status != pq.TransactionStatus.IDLE:
                self._conn.execute("rollback")
        except psycopg.Error:
            self.spoiled = True

    @contextmanager
    def transaction(self, *, isolation: str | None, timeout_s: float | None, shared: bool, plain: bool) -> Iterator[None]:
        """One transaction around the steps in the block, which must end with `seal` or `abandon`.

        plain    without pipelining, so that a step may use the connection itself
        Raises   Rerun when nothing was committed; psycopg's errors when that is not known.
        """
        try:
            with nullcontext(_NoPipe()) if plain else self._conn.pipeline() as pipe:
                self._pipe = pipe
                self._conn.execute("begin" + (f" isolation level {isolation}" if isolation else ""))
                if shared:
                    self._conn.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'")
                elif timeout_s is not None:
                    self._conn.execute(f"set local statement_timeout = {max(1, int(timeout_s * 1000))}")
                yield
        except psycopg.Error as error:
            if self._conn.closed or self._conn.broken or error.sqlstate == "SV003":
                raise
            raise Rerun(str(error)) from error

    def step(self, plain: bool, shared: bool) -> StepTransaction:
        """What the next step of the transaction is given."""
        return StepTransaction(self._conn, self._pipe, plain, shared)

    def inspect(self, name: str, tx: StepTransaction, error: BaseException | None, shared: bool, timeout_s: float | None) -> BaseException | None:
        """After the body of step *name*: is the transaction still what it was? Returns the step's error; what it wrote is then undone.

        Raises Rerun, WantsConnection or WantsSettings when the whole transaction is of no use.
        """
        if isinstance(tx.rerun, (WantsConnection, WantsSettings)):
            raise tx.rerun
        if tx.rerun is not None and shared:
            raise Rerun("the step has to run alone") from tx.rerun
        if not tx.used:
            return error
        if tx.plain and error is None:
            self._same_transaction(name)
        status = self._conn.info.transaction_status
        if status in (pq.TransactionStatus.IDLE, pq.TransactionStatus.UNKNOWN):
            self.spoiled = True
            raise Rerun("the step ended its transaction") from TransactionMisused(
                f"step {name} ended the transaction that it was given; leave commit and rollback to the engine"
            )
        if tx.changed_settings and error is None:
            self._conn.execute(_SETTINGS_BACK, self._settings)
            self._pipe.sync()
        if isinstance(error, errors.QueryCanceled) and timeout_s is not None:
            error = StepTimeout(f"step {name} did not end within {timeout_s:g} s")
        if error is None and status == pq.TransactionStatus.INERROR:
            error = TransactionMisused(
                f"step {name} caught an error of its SQL and went on, but the transaction is aborted; let the error out of the step"
            )
        if error is not None:
            if isinstance(tx.rerun, CONFLICT) and not shared:
                raise Rerun("a conflict with another transaction") from tx.rerun
            self._conn.execute("rollback to savepoint pgs")
            self._pipe.sync()
        return error

    def _same_transaction(self, name: str) -> None:
        """A step with the connection in its hands may have ended its transaction and begun another: the savepoint is gone then."""
        try:
            self._conn.execute("release savepoint pgs")
        except psycopg.Error as gone:
            self.spoiled = True
            raise Rerun("the step ended its transaction") from TransactionMisused(
                f"step {name} ended the transaction that it was given ({gone.sqlstate}); leave commit and rollback to the engine"
            )

    def seal(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Checkpoints, deferred constraints, a look at the session; then the fence and COMMIT. Two trips to the server."""
        worker, boot = self._identity
        runs, seqs, positions, names, results, started, ended = (list(column) for column in zip(*checkpoints, strict=True))
        columns = {
            "run": [UUID(bytes=run) for run in runs], "seq": seqs, "pos": positions, "name": names, "result": results,
            "started": started, "ended": ended, "worker": worker,
        }  # fmt: skip
        self._conn.execute(self._checkpoints, columns, prepare=True)
        self._conn.execute("set constraints all immediate")
        look = self._conn.execute(self._look, prepare=True)
        try:
            self._pipe.sync()
        except errors.UniqueViolation as error:
            if error.diag.schema_name == self._schema:
                raise Fenced("a transactional step was executed twice and the other execution has committed; its result is read, this one is undone") from error
            raise
        self._compare(names, look.fetchone())
        self._conn.execute(self._fence, (worker, boot, 1), prepare=True)
        self._conn.execute("commit")
        self._pipe.sync()

    def abandon(self) -> None:
        """No step has anything to commit."""
        self._conn.execute("rollback")
        self._pipe.sync()

    def _compare(self, names: list[str], left: Any) -> None:
        """What steps left in the session would lead others astray: a changed search_path or role, a temporary table of a neighbour's name."""
        if left == self._as_left:
            return
        self.spoiled = True
        assert self._as_left is not None
        if left[:2] != self._as_left[:2]:
            raise Rerun("the session's search_path or role was changed") from TransactionMisused(
                f"step {names[0]} changed search_path or role for the whole session; use SET LOCAL, which ends with the transaction"
            )
        if len(names) > 1:
            raise Rerun("a step made temporary objects, which its neighbours may have used unawares")


class _NoPipe:
    """Stands where a pipeline stands when statements are not pipelined."""

    def sync(self) -> None: ...


class StepTransaction:
    """What a `def` step is given. Its savepoint travels with its first statement."""

    def __init__(self, conn: psycopg.Connection[Any], pipe: Any, plain: bool, shared: bool) -> None:
        self._conn, self._pipe, self.plain, self._shared = conn, pipe, plain, shared
        self.used = self.over = self.changed_settings = False
        self.rowcount = -1
        self.rerun: BaseException | None = None  # why the step can't end well in this transaction

    def execute(self, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run one statement; returns its rows. Raises psycopg's errors at this call, TransactionMisused for what only the engine may do."""
        self._begin()
        if _sets_locally(query):
            self._change_settings()
        try:
            cursor = self._conn.execute(query, parameters)
            self._pipe.sync()
        except (*CROWDED, errors.SerializationFailure, errors.InvalidSqlStatementName) as error:
            self.rerun = error
            raise
        self.rowcount = cursor.rowcount
        return cursor.fetchall() if cursor.description is not None else []

    def _change_settings(self) -> None:
        if self._shared:
            self.rerun = WantsSettings()
            raise self.rerun
        self.changed_settings = True

    def _begin(self) -> None:
        if self.over:
            raise TransactionMisused("the transaction of a step that has ended was used; keep it inside the step")
        if not self.used:
            self._conn.execute("savepoint pgs")
            self.used = True

    @property
    def connection(self) -> Any:
        """The psycopg connection inside the open transaction, for an ORM."""
        if not self.plain:
            self.rerun = WantsConnection()
            raise self.rerun
        self._begin()
        return self._conn


def _sets_locally(query: str) -> bool:
    """Whether it is SET LOCAL. Refuses transaction control and what changes the session, by the first keyword: one call is one statement."""
    words = _KEYWORDS.match(query)
    if words is None:
        return False
    first, second = words[1].lower(), (words[2] or "").lower()
    if first in REFUSED and (first, second) not in (("set", "local"), ("set", "constraints")):
        raise TransactionMisused(
            f"{first.upper()} in a transactional step: the engine begins and ends its transaction and owns its session; "
            f"write SQL that reads and changes data (SET LOCAL is allowed)"
        )
    return (first, second) == ("set", "local")
