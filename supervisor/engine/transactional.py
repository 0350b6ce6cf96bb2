"""Transactional steps: their SQL and their checkpoints commit together, on the worker's second session.

One thread owns the session. Up to 50 steps share a transaction, each behind a savepoint that travels with its first
statement; the checkpoints, deferred constraints and the fence come last before COMMIT. Whatever goes wrong with the
shared transaction, it is rolled back and its steps run one by one, so a bad neighbour costs time and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from queue import Empty, SimpleQueue
from typing import Any
from uuid import UUID

import psycopg
from psycopg import errors, pq

from supervisor.core.context import executing
from supervisor.core.errors import DatabaseUnavailable, Fenced, StepTimeout, SupervisorError, TransactionMisused
from supervisor.db.connect import connect
from supervisor.db.statements import Sql

log = logging.getLogger("pgsupervisor.transactional")

SHARED_MAX = 50  # more savepoints than 64 overflow a backend's cache of subtransactions (research: pgperf §3.19)
LOCK_TIMEOUT = "20ms"  # of a shared transaction: steps that wait for one another's rows would deadlock for a second
ALONE_TRIES = 10  # serialization failures and deadlocks of a step that runs alone
CROWDED = (errors.LockNotAvailable, errors.DeadlockDetected)
CONFLICT = (errors.SerializationFailure, errors.DeadlockDetected)
REFUSED = frozenset("begin start commit end rollback abort savepoint release prepare set reset discard deallocate listen unlisten copy load".split())
_KEYWORDS = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*([a-z]+)(?:\s+([a-z]+))?", re.IGNORECASE | re.DOTALL)


class _Item:
    """One step that waits for its transaction, and what became of it."""

    __slots__ = ("command", "ended", "encoded", "error", "pos", "run", "started", "value")

    def __init__(self, run: Any, command: Any) -> None:
        self.run, self.command = run, command
        self.pos = run.pos
        self.value: Any = None
        self.error: BaseException | None = None
        self.encoded: bytes | None = None
        self.started = self.ended = 0


class _Rerun(Exception):
    """The shared transaction is of no use: run its steps one by one."""


class Transactions:
    """The queue of transactional steps and the thread that works through it.

    done(run, command, value, error, started, ended)   called on the event loop's thread
    lost(error)                                        likewise, when the session broke while a commit was under way, or is fenced
    """

    def __init__(self, dsn: str, schema: str, identity: tuple[int, Any], done: Callable[..., None], lost: Callable[[BaseException], None]) -> None:
        self._dsn, self._schema, self._sql = dsn, schema, Sql(schema)
        self._identity = identity
        self._done, self._lost = done, lost
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._events = asyncio.get_running_loop()
        self._thread: threading.Thread | None = None
        self._session: _Session | None = None
        self._shared: dict[Any, int] = {}  # step → how many of it may share a transaction
        self._plain: set[Any] = set()  # steps that use the connection itself
        self.clock: Callable[[], int] = lambda: 0

    def submit(self, run: Any, command: Any) -> None:
        """Queue a step; its run has nothing else in flight until `done` is called."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="transactions", daemon=True)
            self._thread.start()
        self._queue.put(_Item(run, command))

    def stop(self) -> None:
        self._queue.put(None)

    # ── the thread ───────────────────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            items, stopped = self._more(first)
            try:
                self._run(items)
            except Exception as error:  # noqa: BLE001 - the worker can't go on without knowing what committed
                self._events.call_soon_threadsafe(self._lost, _as_lost(error))
                return
            if stopped:
                return

    def _more(self, first: _Item) -> tuple[list[_Item], bool]:
        """What else waits already and may share the transaction."""
        items = [first]
        if self._alone(first):
            return items, False
        limit = self._limit(first)
        while len(items) < limit:
            try:
                item = self._queue.get_nowait()
            except Empty:
                break
            if item is None:
                return items, True
            items.append(item)
            limit = min(limit, self._limit(item)) if not self._alone(item) else 0
        return items, False

    def _alone(self, item: _Item) -> bool:
        step = item.command.step
        return step.info.isolation is not None or step.info.timeout_s is not None or step in self._plain

    def _limit(self, item: _Item) -> int:
        return self._shared.get(item.command.step, SHARED_MAX)

    def _run(self, items: list[_Item]) -> None:
        if self._alone(items[-1]) and len(items) > 1:
            last = items.pop()
            self._run(items)
            items = [last]
        if len(items) > 1:
            if self._together(items):
                self._report(items)
                return
        for item in items:
            self._by_itself(item)
            self._report([item])

    def _together(self, items: list[_Item]) -> bool:
        """One transaction for all; False when it has to be done one by one."""
        session = self._open()
        try:
            session.attempt(items, self.clock, shared=True)
        except _Rerun as why:
            log.debug("transaction of %d steps is done again one by one: %s", len(items), why)
            session.rollback()
            self._resize(items, lambda size: max(1, size // 2))
            return False
        self._resize(items, lambda size: min(SHARED_MAX, size + 1))
        return True

    def _resize(self, items: list[_Item], to: Callable[[int], int]) -> None:
        for step in {item.command.step for item in items}:
            self._shared[step] = to(self._shared.get(step, SHARED_MAX))

    def _by_itself(self, item: _Item) -> None:
        step = item.command.step
        for attempt in range(ALONE_TRIES):
            session = self._open()
            try:
                session.attempt([item], self.clock, shared=False, plain=step in self._plain)
                return
            except _WantsConnection:
                session.rollback()
                self._plain.add(step)
            except _Rerun as why:
                session.rollback()
                cause = why.__cause__
                if isinstance(cause, errors.InvalidSqlStatementName):
                    self._drop()
                elif isinstance(cause, CONFLICT) and attempt < ALONE_TRIES - 1:
                    time.sleep(random.random() * 0.01 * 2**attempt)
                else:
                    item.error = cause or why
                    return
        item.error = item.error or TransactionMisused(f"step {step.name}: its prepared statements vanish again and again")

    def _open(self) -> _Session:
        if self._session is None or self._session.spoiled:
            self._drop()
            conn = connect(self._dsn, purpose=f"tx of worker {self._identity[0]}", schema=self._schema, profile="tx")
            self._session = _Session(conn, self._sql, self._identity, self._events)
        return self._session

    def _drop(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _report(self, items: list[_Item]) -> None:
        for item in items:
            self._events.call_soon_threadsafe(self._done, item.run, item.command, item.value, item.error, item.started, item.ended)


def _as_lost(error: Exception) -> SupervisorError:
    if isinstance(error, SupervisorError):
        return error
    if getattr(error, "sqlstate", None) == "SV003":
        return Fenced(f"a transaction was refused: {error}")
    return DatabaseUnavailable(f"the session for transactional steps broke: {type(error).__name__}: {error}")


class _Session:
    """The psycopg connection, in pipeline mode during a transaction."""

    def __init__(self, conn: psycopg.Connection[Any], sql: Sql, identity: tuple[int, Any], events: asyncio.AbstractEventLoop) -> None:
        self.conn, self.events = conn, events
        self._identity = identity
        self._checkpoints = sql.get("insert_checkpoints")
        self._fence = sql.get("tx_fence")
        self._look = sql.get("session_as_left")
        conn.prepare_threshold = 5  # a step's own statements are planned once they recur
        self._as_left = conn.execute(self._look).fetchone()
        self.spoiled = False

    def close(self) -> None:
        self.conn.close()

    def rollback(self) -> None:
        """Back to no transaction, whatever state it is in."""
        try:
            if self.conn.info.transaction_status != pq.TransactionStatus.IDLE:
                self.conn.execute("rollback")
        except psycopg.Error:
            self.spoiled = True

    def attempt(self, items: list[_Item], clock: Callable[[], int], shared: bool, plain: bool = False) -> None:
        """Run *items* in one transaction and commit it.

        plain    without pipelining, so that the step may use the connection itself
        Raises   _Rerun when nothing was committed; psycopg's errors when that is not known.
        """
        info = items[0].command.step.info
        try:
            with nullcontext(_NoPipe()) if plain else self.conn.pipeline() as pipe:
                self.conn.execute("begin" + (f" isolation level {info.isolation}" if info.isolation else ""))
                if shared:
                    self.conn.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'")
                elif info.timeout_s is not None:
                    self.conn.execute(f"set local statement_timeout = {max(1, int(info.timeout_s * 1000))}")
                for item in items:
                    self._step(item, pipe, clock, shared, plain)
                done = [item for item in items if item.error is None]
                if done:
                    self._seal(done, pipe)
                else:
                    self.conn.execute("rollback")
                    pipe.sync()
        except _Rerun:
            raise
        except psycopg.Error as error:
            if self.conn.closed or self.conn.broken or error.sqlstate == "SV003":
                raise
            raise _Rerun(str(error)) from error

    def _step(self, item: _Item, pipe: Any, clock: Callable[[], int], shared: bool, plain: bool) -> None:
        command = item.command
        item.error = item.value = None
        tx = _Tx(self.conn, pipe, plain)
        item.started = clock()
        token = executing.set(command)
        try:
            value = self._body(command, tx)
            if command.step.shape is None:
                command.step.settle()
            item.encoded, item.value = command.step.shape.settle(value)
        except BaseException as error:  # noqa: BLE001 - the workflow decides what it means
            item.error = error
        finally:
            item.ended = clock()
            executing.reset(token)
            tx.over = True
        self._inspect(item, tx, pipe, shared)

    def _body(self, command: Any, tx: _Tx) -> Any:
        kwargs = command.kwargs or {}
        if not command.step.is_async:
            return command.step.fn(tx, *command.args, **kwargs)
        served = _AsyncTx(tx, self.events)
        body = _within(command, command.step.fn(served, *command.args, **kwargs), served)
        future = asyncio.run_coroutine_threadsafe(body, self.events)
        while (request := served.requests.get()) is not None:
            request()
        return future.result()

    def _inspect(self, item: _Item, tx: _Tx, pipe: Any, shared: bool) -> None:
        """After a body: is the transaction still what it was?"""
        if tx.rerun is not None and shared:
            raise _Rerun("the step has to run alone") from tx.rerun
        if isinstance(tx.rerun, _WantsConnection):
            raise tx.rerun
        if not tx.used:
            return
        status = self.conn.info.transaction_status
        if status in (pq.TransactionStatus.IDLE, pq.TransactionStatus.UNKNOWN):
            self.spoiled = True
            raise _Rerun("the step ended its transaction") from TransactionMisused(
                f"step {item.command.step.name} ended the transaction that it was given; leave commit and rollback to the engine"
            )
        if item.error is None and status == pq.TransactionStatus.INERROR:
            item.error = TransactionMisused(
                f"step {item.command.step.name} caught an error of its SQL and went on, but the transaction is aborted; let the error out of the step"
            )
        if item.error is not None:
            if isinstance(tx.conflict, CONFLICT) and not shared:
                raise _Rerun("a conflict with another transaction") from tx.conflict
            self.conn.execute("rollback to savepoint pgs")
            pipe.sync()

    def _seal(self, done: list[_Item], pipe: Any) -> None:
        """Checkpoints, deferred constraints, what the session looks like; then the fence and COMMIT."""
        worker, boot = self._identity
        columns = {
            "run": [UUID(bytes=i.run.id) for i in done], "seq": [i.command.seq for i in done], "pos": [i.pos for i in done],
            "name": [i.command.step.name for i in done], "result": [i.encoded for i in done],
            "started": [i.started for i in done], "ended": [i.ended for i in done], "worker": worker,
        }  # fmt: skip
        self.conn.execute(self._checkpoints, columns, prepare=True)
        self.conn.execute("set constraints all immediate")
        look = self.conn.execute(self._look, prepare=True)
        pipe.sync()
        self._compare(done, look.fetchone())
        self.conn.execute(self._fence, (worker, boot, 1), prepare=True)
        self.conn.execute("commit")
        pipe.sync()

    def _compare(self, done: list[_Item], left: Any) -> None:
        """A changed search_path or role would lead later steps astray; temporary objects only cost a new session."""
        if left == self._as_left:
            return
        self.spoiled = True
        assert self._as_left is not None
        if left[:2] != self._as_left[:2]:
            raise _Rerun("the session's search_path or role was changed") from TransactionMisused(
                f"step {done[0].command.step.name} changed search_path or role for the whole session; use SET LOCAL, which ends with the transaction"
            )


class _NoPipe:
    """Stands where a pipeline stands when statements are not pipelined."""

    def sync(self) -> None: ...


class _WantsConnection(BaseException):
    """The step asked for the connection itself: it runs alone and without pipelining from now on."""


class _Tx:
    """What a `def` step is given. Its savepoint travels with its first statement."""

    def __init__(self, conn: psycopg.Connection[Any], pipe: Any, plain: bool) -> None:
        self._conn, self._pipe, self._plain = conn, pipe, plain
        self.used = self.over = False
        self.rowcount = -1
        self.rerun: BaseException | None = None
        self.conflict: BaseException | None = None

    def execute(self, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run one statement; returns its rows. Raises psycopg's errors at this call, TransactionMisused for what only the engine may do."""
        self._begin()
        _refuse(query)
        try:
            cursor = self._conn.execute(query, parameters)
            self._pipe.sync()
        except CROWDED as error:
            self.rerun = self.conflict = error
            raise
        except (errors.SerializationFailure, errors.InvalidSqlStatementName) as error:
            self.rerun = self.conflict = error
            raise
        self.rowcount = cursor.rowcount
        return cursor.fetchall() if cursor.description is not None else []

    def _begin(self) -> None:
        if self.over:
            raise TransactionMisused("the transaction of a step that has ended was used; keep it inside the step")
        if not self.used:
            self._conn.execute("savepoint pgs")
            self.used = True

    @property
    def connection(self) -> Any:
        """The psycopg connection inside the open transaction, for an ORM."""
        if not self._plain:
            self.rerun = _WantsConnection()
            raise self.rerun
        self._begin()
        return self._conn


class _AsyncTx:
    """What an `async def` step is given: each statement is run by the thread that owns the session, which serves `requests`."""

    def __init__(self, tx: _Tx, events: asyncio.AbstractEventLoop) -> None:
        self._tx, self._events = tx, events
        self.requests: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    async def execute(self, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        answer: asyncio.Future[list[tuple[Any, ...]]] = self._events.create_future()

        def request() -> None:
            try:
                rows = self._tx.execute(query, parameters)
            except BaseException as error:  # noqa: BLE001 - raised where it was awaited
                self._events.call_soon_threadsafe(_settle, answer, None, error)
            else:
                self._events.call_soon_threadsafe(_settle, answer, rows, None)

        self.requests.put(request)
        return await answer

    @property
    def rowcount(self) -> int:
        return self._tx.rowcount


def _settle(answer: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(value)


def _refuse(query: str) -> None:
    """Refuse transaction control and what changes the session, by the first keyword; one call is one statement (extended protocol)."""
    words = _KEYWORDS.match(query)
    if words is None:
        return
    first, second = words[1].lower(), (words[2] or "").lower()
    if first in REFUSED and (first, second) not in (("set", "local"), ("set", "constraints")):
        raise TransactionMisused(
            f"{first.upper()} in a transactional step: the engine begins and ends its transaction and owns its session; "
            f"write SQL that reads and changes data (SET LOCAL is allowed)"
        )


async def _within(command: Any, coroutine: Coroutine[Any, Any, Any], served: _AsyncTx) -> Any:
    """The body of an async step as a task; whatever happens, the thread that serves it is let go."""
    executing.set(command)
    limit_s = command.step.info.timeout_s
    try:
        async with asyncio.timeout(limit_s):
            return await coroutine
    except TimeoutError as error:
        if limit_s is not None:
            raise StepTimeout(f"step {command.step.name} did not end within {limit_s:g} s") from error
        raise
    finally:
        served.requests.put(None)
