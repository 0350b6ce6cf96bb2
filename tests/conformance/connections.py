"""Connections of applications, of every kind that a transaction of theirs may stand on, with the same few words for all.

What differs is how a transaction is begun and ended and a savepoint taken back, and by what a verb is said: `within`, plain SQL, or a row that
the application's own trigger makes a verb of. `python -m tests.conformance.connections DSN TARGETS` says all verbs and never commits.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import psycopg
from psycopg import IsolationLevel
from psycopg.conninfo import conninfo_to_dict

from supervisor import AsyncClient, Client
from tests.apps.within import within_asked, within_started, within_told


class Target(NamedTuple):
    """What a verb is done to: `name` is the key of the run that is there, or that is to be started."""

    name: str
    run: Any = None  # uuid
    token: Any = None  # str


class Undone(Exception):
    """Takes back a transaction, or a savepoint, of whoever ends them by exceptions."""


VERBS: dict[str, Callable[[Any, Target, str], Any]] = {
    "start": lambda within, target, word: within.start(within_started.options(key=target.name), target.name, word),
    "signal": lambda within, target, word: within.signal(target.run, within_told, word),
    "cancel": lambda within, target, word: within.cancel(target.run, word),
    "update": lambda within, target, word: within.update(target.run, within_asked, word, id=word),
    "complete": lambda within, target, word: within.complete(target.token, word),
}
SQL = {
    "start": "supervisor.start('within_started', jsonb_build_object('name', {name}, 'word', {word}), key => {name})",
    "signal": "supervisor.signal({run}, 'within_told', to_jsonb({word}))",
    "cancel": "supervisor.cancel({run}, {word})",
    "update": "supervisor.update({run}, 'within_asked', to_jsonb({word}), id => {word})",
    "complete": "supervisor.complete({token}, to_jsonb({word}))",
}
SETUP = (
    "create table orders (verb text, name text, run uuid, token text, word text)",
    "create table triggering () inherits (orders)",
    "create table deferring () inherits (orders)",
    "create function order_made() returns trigger language plpgsql as $$ begin case new.verb "
    + " ".join(
        f"when '{verb}' then perform {call.format(name='new.name', run='new.run', token='new.token', word='new.word')};" for verb, call in SQL.items()
    )
    + " end case; return new; end $$",
    "create trigger order_made after insert on triggering for each row execute function order_made()",
    "create constraint trigger order_made after insert on deferring deferrable initially deferred for each row execute function order_made()",
)


def literals(target: Target, word: str) -> dict[str, str]:
    quoted = {name: "null" if value is None else f"'{value}'" for name, value in target._asdict().items()}
    return {name: f"{value}::{'uuid' if name == 'run' else 'text'}" for name, value in (quoted | {"word": f"'{word}'"}).items()}


def row_of(table: str, verb: str, target: Target, word: str) -> str:
    values = literals(target, word)
    return f"insert into {table} (verb, name, run, token, word) values ('{verb}', {values['name']}, {values['run']}, {values['token']}, {values['word']})"


class Connection:
    """One connection. `act` makes a row of the application's, and says a verb with it, in the transaction that is open."""

    needs: tuple[str, ...] = ()  # packages
    conn: Any
    within: Any

    def __init__(self, dsn: str, left: ExitStack) -> None:
        """*left* closes what it opens."""
        raise NotImplementedError

    def transaction(self, keep: bool) -> Any:
        """A context: a transaction that commits at its end where *keep*, and is rolled back else, and by any error."""
        raise NotImplementedError

    def taken_back(self) -> Any:
        """A context: a savepoint that is rolled back at its end."""
        raise NotImplementedError

    def sql(self, statement: str) -> None:
        raise NotImplementedError

    def say(self, verb: Callable[[Any], Any]) -> Any:
        """Say a verb of `within`."""
        return verb(self.within)

    def utter(self, said: Callable[[Any, Target, str], Any], call: str, target: Target, word: str) -> Any:
        """Say a verb: as *said* by `within`, whose answer this returns, or as the *call* of a function in SQL."""
        return self.say(lambda within: said(within, target, word))

    def act(self, verb: str, target: Target, word: str) -> Any:
        self.sql(row_of("orders", verb, target, word))
        return self.utter(VERBS[verb], SQL[verb], target, word)

    def result(self, handle: Any) -> Any:
        return handle.result(20)


class Psycopg(Connection):
    """Autocommit is off: the first statement begins."""

    level: IsolationLevel | None = None

    def __init__(self, dsn: str, left: ExitStack) -> None:
        self.conn = left.enter_context(psycopg.connect(dsn))
        self.conn.isolation_level = self.level
        self.within = left.enter_context(Client(dsn)).within(self.conn)

    @contextmanager
    def transaction(self, keep: bool) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.conn.rollback()
            raise
        (self.conn.commit if keep else self.conn.rollback)()

    @contextmanager
    def taken_back(self) -> Iterator[None]:
        self.sql("savepoint ours")
        yield
        self.sql("rollback to savepoint ours")

    def sql(self, statement: str) -> None:
        self.conn.execute(statement)


class RepeatableRead(Psycopg):
    level = IsolationLevel.REPEATABLE_READ


class Serializable(Psycopg):
    level = IsolationLevel.SERIALIZABLE


class PsycopgBlock(Psycopg):
    """Autocommit is on: `with conn.transaction()`."""

    def __init__(self, dsn: str, left: ExitStack) -> None:
        super().__init__(dsn, left)
        self.conn.autocommit = True

    @contextmanager
    def transaction(self, keep: bool) -> Iterator[None]:
        with self.conn.transaction() as block:
            yield
            if not keep:
                raise psycopg.Rollback(block)

    @contextmanager
    def taken_back(self) -> Iterator[None]:
        with self.transaction(False):
            yield


class Plain(Connection):
    """Nothing but SQL, as text; who says it need not know that this project has a client."""

    def __init__(self, dsn: str, left: ExitStack) -> None:
        self.conn = left.enter_context(psycopg.connect(dsn, autocommit=True))

    @contextmanager
    def transaction(self, keep: bool) -> Iterator[None]:
        self.sql("begin")
        try:
            yield
        finally:
            self.sql("commit" if keep else "rollback")

    @contextmanager
    def taken_back(self) -> Iterator[None]:
        self.sql("savepoint ours")
        yield
        self.sql("rollback to savepoint ours")

    def sql(self, statement: str) -> None:
        self.conn.execute(statement)

    def utter(self, said: Callable[[Any, Target, str], Any], call: str, target: Target, word: str) -> None:
        self.sql(f"select {call.format(**literals(target, word))}")


class Trigger(Plain):
    """The row is all that the application writes; its trigger says the verb."""

    def act(self, verb: str, target: Target, word: str) -> None:
        self.sql(row_of("triggering", verb, target, word))


class AsyncPsycopg(Connection):
    def __init__(self, dsn: str, left: ExitStack) -> None:
        self.loop = left.enter_context(asyncio.Runner())
        left.callback(lambda: self.loop.run(self.close()))
        self.loop.run(self.open(dsn))

    async def open(self, dsn: str) -> None:
        self.client = AsyncClient(dsn)
        self.conn = await psycopg.AsyncConnection.connect(dsn)
        self.within = self.client.within(self.conn)

    async def close(self) -> None:
        await self.conn.close()
        await self.client.close()

    @contextmanager
    def transaction(self, keep: bool) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.loop.run(self.conn.rollback())
            raise
        self.loop.run(self.conn.commit() if keep else self.conn.rollback())

    @contextmanager
    def taken_back(self) -> Iterator[None]:
        self.sql("savepoint ours")
        yield
        self.sql("rollback to savepoint ours")

    def sql(self, statement: str) -> None:
        self.loop.run(self.executed(statement))

    async def executed(self, statement: str) -> None:
        await self.conn.execute(statement)

    def say(self, verb: Callable[[Any], Awaitable[Any]]) -> Any:
        async def said() -> Any:
            return await verb(self.within)

        return self.loop.run(said())

    def result(self, handle: Any) -> Any:
        return self.loop.run(handle.result(20))


class SqlAlchemy(Connection):
    needs = ("sqlalchemy",)

    def __init__(self, dsn: str, left: ExitStack) -> None:
        from sqlalchemy import create_engine

        engine = create_engine("postgresql+psycopg://", connect_args=conninfo_to_dict(dsn))
        left.callback(engine.dispose)
        self.conn = left.enter_context(self.opened(engine))
        self.within = left.enter_context(Client(dsn)).within(self.conn)

    def opened(self, engine: Any) -> Any:
        return engine.connect()

    @contextmanager
    def transaction(self, keep: bool) -> Iterator[None]:
        with self.conn.begin() as block:
            yield
            if not keep:
                block.rollback()

    @contextmanager
    def taken_back(self) -> Iterator[None]:
        with self.conn.begin_nested() as savepoint:
            yield
            savepoint.rollback()

    def sql(self, statement: str) -> None:
        self.conn.exec_driver_sql(statement)


class SqlAlchemySession(SqlAlchemy):
    def opened(self, engine: Any) -> Any:
        from sqlalchemy.orm import Session

        return Session(engine)

    def sql(self, statement: str) -> None:
        self.conn.connection().exec_driver_sql(statement)


class AsyncSqlAlchemy(AsyncPsycopg):
    needs = ("sqlalchemy", "greenlet")

    async def open(self, dsn: str) -> None:
        from sqlalchemy.ext.asyncio import create_async_engine

        self.engine = create_async_engine("postgresql+psycopg://", connect_args=conninfo_to_dict(dsn))
        self.client = AsyncClient(dsn)
        self.conn = await self.engine.connect()
        self.within = self.client.within(self.conn)

    async def close(self) -> None:
        await super().close()
        await self.engine.dispose()

    @contextmanager
    def taken_back(self) -> Iterator[None]:
        savepoint = self.conn.begin_nested()
        self.loop.run(self.begun(savepoint))
        yield
        self.loop.run(savepoint.rollback())

    async def begun(self, savepoint: Any) -> None:
        await savepoint

    async def executed(self, statement: str) -> None:
        await self.conn.exec_driver_sql(statement)


class Django(Connection):
    needs = ("django",)

    def __init__(self, dsn: str, left: ExitStack) -> None:
        self.alias = f"within_{id(self)}"
        self.conn = left.enter_context(django_connection(dsn, self.alias))
        self.within = left.enter_context(Client(dsn)).within(self.conn)

    @contextmanager
    def transaction(self, keep: bool) -> Iterator[None]:
        from django.db import transaction

        try:
            with transaction.atomic(using=self.alias):
                yield
                if not keep:
                    raise Undone
        except Undone:
            pass

    @contextmanager
    def taken_back(self) -> Iterator[None]:
        with self.transaction(False):
            yield

    def sql(self, statement: str) -> None:
        with self.conn.cursor() as cursor:
            cursor.execute(statement)


@contextmanager
def django_connection(dsn: str, alias: str) -> Iterator[Any]:
    """A connection of Django's by the name of *alias*; what the settings say once for the whole process does not matter."""
    import django
    from django.conf import settings
    from django.db import connections
    from django.db.backends.postgresql.base import DatabaseWrapper

    if not settings.configured:
        settings.configure(USE_TZ=True)
        django.setup()
    parts = conninfo_to_dict(dsn)
    asked = {"ENGINE": "django.db.backends.postgresql", "NAME": parts["dbname"], "USER": parts.get("user", ""), "HOST": parts["host"], "PORT": parts.get("port", "")}
    filled = connections.configure_settings({"default": asked})["default"]
    connections[alias] = DatabaseWrapper(filled, alias)
    try:
        yield connections[alias]
    finally:
        connections[alias].close()
        del connections[alias]


KINDS: dict[str, type[Connection]] = {
    "psycopg": Psycopg, "psycopg_repeatable_read": RepeatableRead, "psycopg_serializable": Serializable, "psycopg_block": PsycopgBlock,
    "psycopg_async": AsyncPsycopg, "sqlalchemy": SqlAlchemy, "sqlalchemy_session": SqlAlchemySession, "sqlalchemy_async": AsyncSqlAlchemy,
    "django": Django, "sql": Plain, "trigger": Trigger,
}  # fmt: skip


def main() -> None:
    """Say all that is asked, tell so, and wait in the open transaction for whatever comes."""
    with ExitStack() as left:
        conn = KINDS["psycopg"](sys.argv[1], left)
        with conn.transaction(False):
            for verb, target, word in json.loads(sys.argv[2]):
                conn.act(verb, Target(*target), word)
            print("said", flush=True)
            sys.stdin.read()


if __name__ == "__main__":
    main()
