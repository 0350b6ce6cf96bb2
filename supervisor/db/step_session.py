"""The worker's second session: transactions in which steps write, and what is refused or checked around them.

Owns the psycopg connection, the savepoints, what ends a transaction (checkpoints, deferred constraints, the fence) and
the words that only the engine may say. Knows nothing of runs or workflows; one thread uses it at a time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg import errors, pq
from psycopg.adapt import Transformer

from supervisor._fastpath.loop import BYTEA, INT4, TEXT, TIMESTAMPTZ
from supervisor._fastpath.loop import UUID as UUID_OID
from supervisor.core.errors import DatabaseUnavailable, Fenced, StepTimeout, SupervisorError, TransactionMisused
from supervisor.db.arrays import encode_rows
from supervisor.db.connect import connect
from supervisor.db.pipeline import FENCED
from supervisor.db.statement_pipe import StatementPipe, rows
from supervisor.db.statements import Sql
from supervisor.db.worker_calls import Identity, read_server

LOCK_TIMEOUT = "20ms"  # of a shared transaction: steps that wait for one another's rows would deadlock for a second
CROWDED = (errors.LockNotAvailable, errors.DeadlockDetected)
CONFLICT = (errors.SerializationFailure, errors.DeadlockDetected)
REFUSED = frozenset("begin start commit end rollback abort savepoint release prepare set reset discard deallocate listen unlisten copy load".split())
_KEYWORDS = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*([a-z]+)(?:\s+([a-z]+))?", re.IGNORECASE | re.DOTALL)

_ENGINE_STATEMENTS = {
    b"pgs_begin": "begin",
    b"pgs_lock_timeout": f"set local lock_timeout = '{LOCK_TIMEOUT}'",
    b"pgs_savepoint": "savepoint pgs",
    b"pgs_back": "rollback to savepoint pgs",
    b"pgs_release": "release savepoint pgs",
    b"pgs_constraints": "set constraints all immediate",
    b"pgs_commit": "commit",
}
GONE_S, LOOK_S = 5.0, 0.01  # how long a session that was told to end is waited for, and how often it is looked at
CHECKPOINT_OIDS = (UUID_OID, INT4, INT4, TEXT, BYTEA, TIMESTAMPTZ, TIMESTAMPTZ)
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


def told(error: Exception) -> Exception:
    """An error of a transaction by what follows from it.

    Fenced: nothing was committed, and it has to be asked what is still this worker's. DatabaseUnavailable: the session is
    lost, and with it the answer to what was committed. Anything else is an error of the engine.
    """
    if isinstance(error, SupervisorError):
        return error
    if getattr(error, "sqlstate", None) == FENCED:
        return Fenced(f"a transaction was refused: {error}")
    if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)) or _is_fatal(error) or _is_from_here(error):
        return DatabaseUnavailable(f"the session for transactional steps broke: {type(error).__name__}: {' '.join(str(error).split())}")
    return error


def _is_fatal(error: BaseException) -> bool:
    """Whether the server ended the session with this error; libpq may not have read the end itself yet."""
    return isinstance(error, psycopg.Error) and error.diag.severity_nonlocalized in ("FATAL", "PANIC")


def _is_from_here(error: BaseException) -> bool:
    """Whether no server said this: psycopg names libpq's "server closed the connection unexpectedly" like that."""
    return type(error) is psycopg.DatabaseError and error.sqlstate is None


class StepSession:
    """One session. `backend` is what it is to the server: process id and start.

    Raises   Fenced where the server is another one than *identity* was made on: what is in memory may not be true there
    """

    def __init__(self, dsn: str, schema: str, identity: Identity) -> None:
        sql = self._sql = Sql(schema)
        self._schema = schema
        self._conn = connect(dsn, purpose=f"tx {identity.boot.hex[:8]}", schema=schema, profile="tx")
        if read_server(self._conn, sql) != identity.server:
            self._conn.close()
            raise Fenced("the server was restored, or is another one")
        self.backend: tuple[int, datetime] = self._conn.execute(sql.get("own_backend")).fetchone()  # type: ignore[assignment]
        self._as_left = self._conn.execute(sql.get("session_as_left")).fetchone()
        self._settings = self._conn.execute(_SETTINGS).fetchone()
        self.pipe = StatementPipe(self._conn)
        for name, text in _ENGINE_STATEMENTS.items():
            self.pipe.prepare(name, text)
        for statement in ("insert_checkpoints", "session_as_left", "tx_fence"):
            self.pipe.prepare(statement.encode(), sql.get(statement))
        self.spoiled = False  # a step left something behind: use another session for the next transaction

    def committed(self, identity: Identity, steps: Sequence[tuple[bytes, int]], lost: tuple[int, datetime]) -> set[tuple[bytes, int]]:
        """Which of *steps* (run, seq) this process has committed, seen after the session *lost* can't commit any more.

        Raises   DatabaseUnavailable where that session does not end; psycopg's error of the fence where a step should not even begin again
        """
        deadline = time.monotonic() + GONE_S
        while self._conn.execute(self._sql.get("end_backend"), lost).fetchall():
            if time.monotonic() > deadline:
                raise DatabaseUnavailable(f"the lost session for transactional steps (process {lost[0]}) was told to end and is still there")
            time.sleep(LOOK_S)
        run_ids, seqs = [UUID(bytes=run_id) for run_id, _ in steps], [seq for _, seq in steps]
        found = self._conn.execute(self._sql.get("find_checkpoints"), (run_ids, seqs, identity.boot)).fetchall()
        self.pipe.enter()
        self.pipe.queue(b"tx_fence", identity.fence())
        self.pipe.sync()
        return {(run_id.bytes, seq) for run_id, seq in found}

    def close(self) -> None:
        self._conn.close()

    def rollback(self) -> None:
        """Back to no transaction, whatever state it is in."""
        try:
            self.pipe.enter()
            if self._conn.info.transaction_status != pq.TransactionStatus.IDLE:
                self.pipe.queue_text(b"rollback")
                self.pipe.sync()
        except psycopg.Error:
            self.spoiled = True

    @contextmanager
    def transaction(self, *, isolation: str | None, timeout_s: float | None, shared: bool) -> Iterator[None]:
        """One transaction around the steps in the block, which must end with `seal` or `abandon`.

        Raises   Rerun when nothing was committed; psycopg's errors when that is not known.
        """
        try:
            self.pipe.enter()
            if isolation is None:
                self.pipe.queue(b"pgs_begin")
            else:
                self.pipe.queue_text(b"begin isolation level " + isolation.encode())
            if shared:
                self.pipe.queue(b"pgs_lock_timeout")
            elif timeout_s is not None:
                self.pipe.queue_text(b"set local statement_timeout = %d" % max(1, int(timeout_s * 1000)))
            yield
        except psycopg.Error as error:
            if self._conn.closed or self._conn.broken or error.sqlstate == FENCED or _is_fatal(error):
                raise
            raise Rerun(str(error)) from error

    def step(self, plain: bool, shared: bool) -> StepTransaction:
        """What the next step of the transaction is given."""
        return StepTransaction(self._conn, self.pipe, plain, shared)

    def inspect(self, name: str, tx: StepTransaction, error: BaseException | None, shared: bool, timeout_s: float | None) -> BaseException | None:
        """After the body of step *name*: is the transaction still what it was? Returns the step's error; what it wrote is then undone.

        Raises Rerun, WantsConnection or WantsSettings when the whole transaction is of no use.
        """
        if isinstance(tx.rerun, (WantsConnection, WantsSettings)):
            raise tx.rerun
        if tx.rerun is not None and (shared or isinstance(tx.rerun, errors.InvalidSqlStatementName)):
            raise Rerun("the step has to run alone") from tx.rerun
        if not tx.used:
            return error
        had_connection = not self.pipe.active
        if had_connection and not self._conn.closed:
            self.pipe.enter()
        status = self._conn.info.transaction_status
        if self._conn.broken:
            raise psycopg.OperationalError("the session for transactional steps is lost")
        if status in (pq.TransactionStatus.IDLE, pq.TransactionStatus.UNKNOWN):
            raise self._ended(name)
        if isinstance(error, errors.QueryCanceled) and timeout_s is not None:
            error = StepTimeout(f"step {name} did not end within {timeout_s:g} s")
        if error is None and status == pq.TransactionStatus.INERROR:
            error = TransactionMisused(
                f"step {name} caught an error of its SQL and went on, but the transaction is aborted; let the error out of the step"
            )
        if error is not None:
            if isinstance(tx.rerun, CONFLICT) and not shared:
                raise Rerun("a conflict with another transaction") from tx.rerun
            self._back_to_savepoint(name)
        elif had_connection:
            self._same_transaction(name)
        if tx.changed_settings and error is None:
            self.pipe.queue_user(_SETTINGS_BACK, self._settings)
            self.pipe.sync()
        return error

    def _ended(self, name: str) -> Rerun:
        self.spoiled = True
        rerun = Rerun("the step ended its transaction")
        rerun.__cause__ = TransactionMisused(f"step {name} ended the transaction that it was given; leave commit and rollback to the engine")
        return rerun

    def _back_to_savepoint(self, name: str) -> None:
        self.pipe.queue(b"pgs_back")
        try:
            self.pipe.sync()
        except errors.InvalidSavepointSpecification:
            raise self._ended(name)  # noqa: B904 - it has its cause

    def _same_transaction(self, name: str) -> None:
        """A step with the connection in its hands may have ended its transaction and begun another: the savepoint is gone then."""
        self.pipe.queue(b"pgs_release")
        try:
            self.pipe.sync()
        except (errors.InvalidSavepointSpecification, errors.NoActiveSqlTransaction):
            raise self._ended(name)  # noqa: B904 - it has its cause

    def seal(self, identity: Identity, checkpoints: Sequence[Checkpoint], still_ours: Callable[[], bool]) -> None:
        """Checkpoints, deferred constraints, a look at the session; then the fence and COMMIT. Two trips to the server.

        still_ours   asked last: whoever loses a run says so before it has another epoch
        """
        pipe = self.pipe
        fence = identity.fence()
        pipe.queue(b"insert_checkpoints", [*encode_rows(CHECKPOINT_OIDS, checkpoints), fence[0]])
        pipe.queue(b"pgs_constraints")
        pipe.queue(b"session_as_left")
        try:
            look = pipe.sync()[-1]
        except errors.UniqueViolation as error:
            if error.diag.schema_name == self._schema:
                raise Fenced("a transactional step was executed twice and the other execution has committed; its result is read, this one is undone") from error
            raise
        self._compare([row[3] for row in checkpoints], tuple(rows(Transformer(self._conn), look)[0]))
        if not still_ours():
            raise Rerun("a run of this transaction is another worker's now")
        pipe.queue(b"tx_fence", fence)
        pipe.queue(b"pgs_commit")
        pipe.sync()

    def abandon(self) -> None:
        """No step has anything to commit."""
        self.pipe.queue_text(b"rollback")
        self.pipe.sync()

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


class StepTransaction:
    """What a `def` step is given. Its savepoint travels with its first statement."""

    def __init__(self, conn: psycopg.Connection[Any], pipe: StatementPipe, plain: bool, shared: bool) -> None:
        self._conn, self._pipe, self._plain, self._shared = conn, pipe, plain, shared
        self.used = self.over = self.changed_settings = False
        self.rowcount = -1
        self.rerun: BaseException | None = None  # why the step can't end well in this transaction

    def execute(self, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run one statement; returns its rows. Raises psycopg's errors at this call, TransactionMisused for what only the engine may do."""
        if self.over:
            raise TransactionMisused("the transaction of a step that has ended was used; keep it inside the step")
        if _sets_locally(query):
            self._change_settings()
        if self.used and not self._pipe.active:
            cursor = self._conn.execute(query, parameters)
            self.rowcount = cursor.rowcount
            return cursor.fetchall() if cursor.description is not None else []
        try:
            return self._piped(query, parameters)
        except (*CROWDED, errors.SerializationFailure, errors.InvalidSqlStatementName) as error:
            self.rerun = error
            raise

    def _piped(self, query: str, parameters: Any) -> list[tuple[Any, ...]]:
        self._begin()
        try:
            transformer = self._pipe.queue_user(query, parameters)
        except psycopg.Error:
            self._pipe.sync()  # the savepoint was queued all the same
            raise
        result = self._pipe.sync()[-1]
        self.rowcount = result.command_tuples if result.command_tuples is not None else -1
        return rows(transformer, result)

    def _begin(self) -> None:
        if not self.used:
            self._pipe.queue(b"pgs_savepoint")
            self.used = True

    def _change_settings(self) -> None:
        if self._shared:
            self.rerun = WantsSettings()
            raise self.rerun
        self.changed_settings = True

    @property
    def connection(self) -> Any:
        """The psycopg connection inside the open transaction, for an ORM."""
        if self.over:
            raise TransactionMisused("the transaction of a step that has ended was used; keep it inside the step")
        if not self._plain:
            self.rerun = WantsConnection()
            raise self.rerun
        if self._pipe.active:
            self._begin()
            self._pipe.sync()
            self._pipe.leave()
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
