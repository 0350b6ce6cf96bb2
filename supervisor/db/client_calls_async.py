"""A client's calls over a session of an event loop: `ClientCalls`, awaited.

Owns the session and its repetition; what is asked and how it is read stands in client_calls.py. One task at a time, on one
loop: `supervisor.api.client_async` sees to both. A task that is cancelled while it asks leaves the session usable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any, TypeVar

import psycopg

from supervisor.core.errors import DatabaseUnavailable
from supervisor.db import connect as _connect
from supervisor.db.client_calls import Ask, Patience, Question, Questions, Rows, Verb, is_lost
from supervisor.db.packed import add_dumpers
from supervisor.db.prepared import Prepared

T = TypeVar("T")


async def carry_async(said: Generator[Any, Any, T], do: Callable[[Any], Awaitable[Any]]) -> T:
    """`carry`, where doing is awaited."""
    try:
        asked = next(said)
        while True:
            try:
                answer = await do(asked)
            except Exception as error:  # noqa: BLE001 - whoever asked decides what it means
                asked = said.throw(error)
            else:
                asked = said.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


class AsyncClientCalls:
    """One session, opened at first use and again when it was lost, and what is asked over it."""

    def __init__(self, dsn: _connect.Dsn, questions: Questions, purpose: str = "client") -> None:
        self.dsn, self.questions, self.purpose = dsn, questions, purpose
        self.connected = False  # whether it ever had a session
        self._conn: psycopg.AsyncConnection | None = None
        self._prepared: Prepared | None = None

    async def close(self) -> None:
        if self._conn is not None:
            conn, self._conn = self._conn, None
            await conn.close()

    async def carry(self, verb: Verb[T]) -> T:
        """Do a verb: ask what it asks."""
        return await carry_async(verb, self.ask)

    async def ask(self, ask: Ask[T]) -> T:
        """Ask; again on a fresh session while the old one was lost, for RETRY_S."""
        patience = Patience(self.questions, ask)
        tries = 0
        while True:
            try:
                conn = await self._session()
                tries += 1
                if not ask.apart:
                    return await carry_async(ask.talk(tries), partial(self._rows, conn))
                async with conn.transaction(force_rollback=True):
                    return await carry_async(ask.talk(tries), partial(self._rows, conn))
            except psycopg.Error as error:
                pause_s = patience.refused(error, is_lost(error, self._conn))
                await self.close()
            except DatabaseUnavailable as error:
                pause_s = patience.unreachable(error, self.connected)
            await asyncio.sleep(pause_s)

    async def announce(self, announcement: Question) -> None:
        """Tell others what was started, sent or ended, in a transaction of its own. Never raises: they find it by themselves, too."""
        if self._conn is None or self._conn.closed:
            return
        try:
            await self._rows(self._conn, announcement)
        except psycopg.Error as error:
            if is_lost(error, self._conn):
                await self.close()

    async def _rows(self, conn: psycopg.AsyncConnection, question: Question) -> Rows:
        name, values = question
        if self._prepared is not None and self._prepared.takes(name):
            return await conn.wait(self._prepared.talk(name, self.questions.text(name), values))
        cursor = await psycopg.AsyncRawCursor(conn).execute(self.questions.text(name), values, binary=True)
        return await cursor.fetchall() if cursor.pgresult is not None and cursor.pgresult.nfields else []

    async def _session(self) -> psycopg.AsyncConnection:
        if self._conn is None or self._conn.closed:
            conn, self._prepared = await _connect.connect_async(self.dsn, purpose=self.purpose), None
            try:
                self.questions.met(conn)
                add_dumpers(conn.adapters)
                await carry_async(self.questions.measure().talk(1), partial(self._rows, conn))
                self._prepared = self.questions.prepared(conn)
            except BaseException:
                await conn.close()
                raise
            self._conn = conn
            self.connected = True
        return self._conn
