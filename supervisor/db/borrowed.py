"""A connection of the caller's: the psycopg connection is found underneath whatever holds it, and asked in its transaction.

Looks at what it is given, imports no framework. Owns nothing: never commits, rolls back, closes, prepares or repeats, and leaves
no adapter behind. What only the transaction's owner can answer (40001, 40P01, a lost session, an aborted transaction) is
raised as the driver's error, or as Django's, so that the caller's own retry sees what it knows.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

import psycopg
from psycopg import pq
from psycopg.abc import AdaptContext
from psycopg.rows import tuple_row

from supervisor.core.errors import ClientMisused
from supervisor.db.client_calls import Ask, Question, Questions, Rows, Verb, carry
from supervisor.db.client_calls_async import carry_async
from supervisor.db.moments import add_loaders
from supervisor.db.packed import add_dumpers

T = TypeVar("T")
Driver = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

_READ = (16, 17, 20, 21, 23, 25, 2950)  # types of the columns that a client reads: bool bytea int8 int2 int4 text uuid; and timestamptz (moments.py)
_OURS = ("SV", "22023", "3F000", "42883", "42P01", "42501")  # what the project has words for
_LOADERS = [(oid, psycopg.adapters.get_loader(oid, pq.Format.BINARY)) for oid in _READ]


class Home:
    """Which database a client is for, as *where* says, and which connections are known to go there.

    where  what `Questions.home` was answered; None for a client that has no database of its own: the first connection decides
    shown  where that is, for people
    """

    def __init__(self) -> None:
        self.where: str | None = None
        self.shown = "another one"
        self._known: WeakSet[Driver] = WeakSet()

    def knows(self, conn: Driver) -> bool:
        return conn in self._known

    def admit(self, conn: Driver, where: str) -> None:
        """Raises ClientMisused for a connection to another database."""
        if self.where is None:
            self.where, self.shown = where, _goes_to(conn)
        if where != self.where:
            raise ClientMisused(
                f"the connection given to within() goes to {_goes_to(conn)}, and this client is for {self.shown}: what it started there would be "
                f"where nobody looks for it; give it a connection to its own database, or make a client for the other one"
            )
        self._known.add(conn)

    def stranger(self, conn: Driver, error: psycopg.Error, schema: str) -> ClientMisused | None:
        """What to say of a connection that did not understand the question."""
        if self.where is None or not isinstance(error, (psycopg.errors.UndefinedFunction, psycopg.errors.InvalidSchemaName)):
            return None
        return ClientMisused(
            f"the connection given to within() goes to {_goes_to(conn)}, which has no schema {schema!r} of this version; this client is for {self.shown}: "
            f"give it a connection to its own database"
        )


def _goes_to(conn: Driver) -> str:
    info = conn.info
    return f"database {info.dbname!r} at {info.host or 'localhost'}:{info.port}"


class Borrowed:
    """A verb's questions on the caller's connection: psycopg's, SQLAlchemy's Connection or Session, Django's."""

    def __init__(self, connection: Any, questions: Questions, home: Home) -> None:
        self._connection, self._questions, self._home = connection, questions, home
        if not isinstance(connection, psycopg.Connection) and _is_async(connection):
            raise ClientMisused(f"{_shown(connection)} is for an event loop: use AsyncClient().within(…)")

    def carry(self, verb: Verb[T]) -> T:
        """Do a verb: ask what it asks."""
        return carry(verb, self._ask)

    def _ask(self, ask: Ask[T]) -> T:
        conn, wrapping = self._driver()
        _check(conn, ask)
        self._questions.met(conn)
        rows = partial(_rows, self._questions, conn)
        with wrapping:
            if not self._home.knows(conn):
                self._look(conn, rows)
            try:
                with conn.transaction(force_rollback=True) if ask.apart else nullcontext():
                    return carry(ask.talk(1), rows)
            except psycopg.Error as error:
                _translate(error, ask, self._questions)
                raise

    def _look(self, conn: psycopg.Connection[Any], rows: Callable[[Question], Rows]) -> None:
        """Once for each connection: does it go to the client's database?"""
        ask = self._questions.home()
        try:
            where = carry(ask.talk(1), rows)
        except psycopg.Error as error:
            if stranger := self._home.stranger(conn, error, self._questions.schema):
                raise stranger from None
            _translate(error, ask, self._questions)
            raise
        self._home.admit(conn, where)

    def _driver(self) -> tuple[psycopg.Connection[Any], AbstractContextManager[Any]]:
        """The driver's connection, in a transaction where whoever holds it says so; and what translates the driver's errors."""
        given = self._connection
        wrapping: AbstractContextManager[Any] = nullcontext()
        if isinstance(given, psycopg.Connection):
            return given, wrapping
        if hasattr(given, "ensure_connection") and hasattr(given, "wrap_database_errors"):  # Django
            given.ensure_connection()
            found, wrapping = given.connection, given.wrap_database_errors
        else:
            if callable(getattr(given, "connection", None)) and hasattr(given, "get_bind"):  # an SQLAlchemy Session
                given = given.connection()
            found = given
            if hasattr(given, "exec_driver_sql") and hasattr(given, "in_transaction"):  # an SQLAlchemy Connection
                if not given.in_transaction():
                    given.begin()  # as its own first statement would
                found = given.connection.driver_connection
        if not isinstance(found, psycopg.Connection):
            raise _not_ours(self._connection, found)
        return found, wrapping


class AsyncBorrowed:
    """A verb's questions on the caller's connection: psycopg's AsyncConnection, SQLAlchemy's AsyncConnection or AsyncSession."""

    def __init__(self, connection: Any, questions: Questions, home: Home) -> None:
        self._connection, self._questions, self._home = connection, questions, home
        if not _is_async(connection):
            raise ClientMisused(f"{_shown(connection)} blocks the event loop: use Client().within(…), or an async connection")

    async def carry(self, verb: Verb[T]) -> T:
        """Do a verb: ask what it asks."""
        return await carry_async(verb, self._ask)

    async def _ask(self, ask: Ask[T]) -> T:
        conn = await self._driver()
        _check(conn, ask)
        self._questions.met(conn)
        rows = partial(_rows_async, self._questions, conn)
        if not self._home.knows(conn):
            await self._look(conn, rows)
        try:
            if not ask.apart:
                return await carry_async(ask.talk(1), rows)
            async with conn.transaction(force_rollback=True):
                return await carry_async(ask.talk(1), rows)
        except psycopg.Error as error:
            _translate(error, ask, self._questions)
            raise

    async def _look(self, conn: psycopg.AsyncConnection[Any], rows: Callable[[Question], Awaitable[Rows]]) -> None:
        """Once for each connection: does it go to the client's database?"""
        ask = self._questions.home()
        try:
            where = await carry_async(ask.talk(1), rows)
        except psycopg.Error as error:
            if stranger := self._home.stranger(conn, error, self._questions.schema):
                raise stranger from None
            _translate(error, ask, self._questions)
            raise
        self._home.admit(conn, where)

    async def _driver(self) -> psycopg.AsyncConnection[Any]:
        given = self._connection
        if isinstance(given, psycopg.AsyncConnection):
            return given
        if hasattr(given, "get_bind"):  # an SQLAlchemy AsyncSession
            given = await given.connection()
        found = given
        if hasattr(given, "get_raw_connection"):
            if not given.in_transaction():
                await given.begin()
            found = (await given.get_raw_connection()).driver_connection
        if not isinstance(found, psycopg.AsyncConnection):
            raise _not_ours(self._connection, found)
        return found


def _rows(questions: Questions, conn: psycopg.Connection[Any], question: Question) -> Rows:
    name, values = question
    cursor = psycopg.RawCursor(conn, row_factory=tuple_row)
    _neutral(cursor)
    return cursor.execute(questions.text(name), values, prepare=False, binary=True).fetchall()


async def _rows_async(questions: Questions, conn: psycopg.AsyncConnection[Any], question: Question) -> Rows:
    name, values = question
    cursor = psycopg.AsyncRawCursor(conn, row_factory=tuple_row)
    _neutral(cursor)
    await cursor.execute(questions.text(name), values, prepare=False, binary=True)
    return await cursor.fetchall()


def _neutral(cursor: AdaptContext) -> None:
    """This cursor reads our types as they are, whatever the application has taught its connection."""
    add_dumpers(cursor.adapters)
    add_loaders(cursor.adapters)
    for oid, loader in _LOADERS:
        if loader is not None and cursor.adapters.get_loader(oid, pq.Format.BINARY) is not loader:
            cursor.adapters.register_loader(oid, loader)


def _check(conn: Driver, ask: Ask[Any]) -> None:
    if conn.closed:
        raise ClientMisused(f"{ask.what}: the connection given to within() is closed")
    if ask.writes and conn.autocommit and conn.info.transaction_status == pq.TransactionStatus.IDLE:
        raise ClientMisused(
            f"{ask.what}: the connection given to within() has no transaction open and commits each statement by itself; open one "
            f"(psycopg: `with conn.transaction():`, Django: `with transaction.atomic():`), or use the client without within()"
        )


def _translate(error: psycopg.Error, ask: Ask[Any], questions: Questions) -> None:
    """Raise the project's words for what it refused itself; return for what is the transaction's own affair."""
    if (error.sqlstate or "").startswith(_OURS):
        raise questions.refusal(error, ask.what, ask.role) from error


def _is_async(connection: Any) -> bool:
    return isinstance(connection, psycopg.AsyncConnection) or hasattr(connection, "get_raw_connection") or hasattr(connection, "run_sync")


def _not_ours(given: Any, found: Any) -> ClientMisused:
    driver = type(found).__module__.partition(".")[0]
    under = "" if found is given else f", whose driver is {driver}"
    return ClientMisused(
        f"within() was given {_shown(given)}{under}; the driver must be psycopg 3 "
        f"(SQLAlchemy: postgresql+psycopg://…; Django 4.2 or newer with psycopg 3 installed)"
    )


def _shown(connection: Any) -> str:
    return f"a {type(connection).__module__}.{type(connection).__qualname__}"
