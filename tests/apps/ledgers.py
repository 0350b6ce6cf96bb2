"""Transactional steps, well-behaved and not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from supervisor import Retry, current, gather, step, workflow
from tests.harness import note, wait_for_file

INSERT = "insert into ledger (who, n) values (%s, %s)"
_kept: list[Any] = []


@step(transactional=True)
def add(tx: Any, who: str, n: int) -> int:
    assert tx.execute(INSERT, (who, n)) == []
    assert tx.rowcount == 1
    return n


@step(transactional=True)
async def aadd(tx: Any, who: str, n: int) -> int:
    await tx.execute(INSERT, (who, n))
    await asyncio.sleep(0)
    [(found,)] = await tx.execute("select max(n) from ledger where who = %(who)s", {"who": who})
    assert tx.rowcount == 1
    return int(found)


@step(transactional=True, isolation="serializable", retry=Retry(max_attempts=50, initial=0.01, maximum=0.05))
def counted(tx: Any, who: str) -> int:
    """Write skew would let two of them see the same count."""
    [(n,)] = tx.execute("select count(*) from ledger where who = %s", (who,))
    tx.execute(INSERT, (who, n))
    assert tx.execute("show transaction_isolation") == [("serializable",)]
    return int(n)


@step(transactional=True, isolation="repeatable read")
async def repeatable(tx: Any, who: str) -> str:
    await tx.execute(INSERT, (who, 1))
    [(level,)] = await tx.execute("show transaction_isolation")
    return str(level)


@step(transactional=True)
def hold(tx: Any, gate: str) -> None:
    """Keeps the session busy, so that what is started meanwhile shares the next transaction."""
    tx.execute("select 1")
    _kept.append(tx)
    note("holding", gate)
    wait_for_file(gate)


@step
def plain(n: int) -> int:
    return n


@workflow
async def holds(gate: str) -> None:
    await hold.aio(gate)


@workflow
async def adds(who: str, n: int, steps: int = 1) -> int:
    total = 0
    for at in range(steps):
        total += await (add.aio(who, n + at) if at % 2 == 0 else aadd(who, n + at))
    return total


@workflow
def adds_def(who: str, n: int) -> int:
    return add(who, n) + aadd.sync(who, n + 1) + plain(0)


@workflow
async def adds_in_branches(who: str) -> list[int]:
    async def branch(n: int) -> int:
        first = await add.aio(who, n)
        second = await plain.aio(n)
        return first + second + await aadd(who, 1000 + n)

    return list(await gather(*(branch(n) for n in range(5)), plain.aio(7), add.aio(who, 99)))


@step(transactional=True)
def loses_its_session(tx: Any, who: str) -> int:
    """The first time, the server ends the session in the middle of it."""
    tx.execute(INSERT, (who, 1))
    if not os.path.exists(f"{os.environ['TEST_EFFECTS']}.{who}"):
        open(f"{os.environ['TEST_EFFECTS']}.{who}", "w").close()
        tx.execute("select pg_terminate_backend(pg_backend_pid())")
    return current().attempt


@workflow
async def loses(who: str) -> int:
    return await loses_its_session.aio(who)


@workflow
async def counts(who: str) -> int:
    return await counted.aio(who)


@workflow
async def repeats(who: str) -> str:
    return await repeatable(who)


@step(transactional=True)
def swap(tx: Any, one: int, other: int) -> None:
    """Locks two rows in the order given: two of them in opposite orders deadlock."""
    tx.execute("update hot set n = n + 1 where id = %s", (one,))
    tx.execute("update hot set n = n + 1 where id = %s", (other,))


@workflow
async def swaps(one: int, other: int) -> None:
    await swap.aio(one, other)


@step(transactional=True, timeout=0.3)
def sleeps_in_sql(tx: Any, who: str) -> None:
    tx.execute(INSERT, (who, 1))
    tx.execute("select pg_sleep(30)")


@step(transactional=True, timeout=0.3)
async def sleeps_in_python(tx: Any, who: str) -> None:
    await tx.execute(INSERT, (who, 1))
    await asyncio.sleep(30)


@step(transactional=True, timeout=0.3)
async def sleeps_in_async_sql(tx: Any, who: str) -> None:
    await tx.execute(INSERT, (who, 1))
    await tx.execute("select pg_sleep(30)")


@workflow
async def times_out(who: str) -> list[str]:
    told = []
    for call in (sleeps_in_sql.aio, sleeps_in_python, sleeps_in_async_sql):
        try:
            await call(who)
        except TimeoutError as error:
            told.append(type(error).__name__)
    return told


@step(transactional=True)
def told(tx: Any) -> list[Any]:
    here = current()
    return [here.seq, here.attempt, here.redelivered, here.idempotency_key]


@workflow
async def tells() -> list[Any]:
    return await told.aio()


# ── mischief ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _sql(*statements: str) -> Callable[[Any], Any]:
    def act(tx: Any) -> str:
        for statement in statements:
            tx.execute(statement)
        return "done"

    return act


def _catches(tx: Any) -> str:
    try:
        tx.execute("select 1/0")
    except Exception:  # noqa: BLE001 - on purpose
        pass
    return "done"


def _uses_kept(tx: Any) -> str:
    _kept[-1].execute("select 1")
    return "done"


def _with_connection(*statements: str) -> Callable[[Any], Any]:
    def act(tx: Any) -> str:
        for statement in statements:
            tx.connection.execute(statement)
        return "done"

    return act


def _fetches(tx: Any) -> str:
    with tx.connection.cursor() as cursor:
        cursor.execute("select n from ledger where who = %s", ("orm",))
        return str(len(cursor.fetchall()))


def _raises(tx: Any) -> str:
    raise ValueError("mine")


OK, MISUSED, SQL, VALUE = "done", "TransactionMisused", "sql", "ValueError"
_STRICT = "insert into strict values (1)"
_DEALLOCATE = "do $$ begin execute 'deallocate all'; end $$"

# name → (what is done, how it must end); each has written one row before
MISCHIEF: dict[str, tuple[Callable[[Any], Any], str]] = {
    "commit": (_sql("commit"), MISUSED),
    "commit_hidden": (_sql("/* a */ -- b\n (  COMMIT and chain"), MISUSED),
    "end": (_sql("END"), MISUSED),
    "rollback": (_sql("rollback"), MISUSED),
    "rollback_to_ours": (_sql("rollback to savepoint pgs"), MISUSED),
    "release_ours": (_sql("release savepoint pgs"), MISUSED),
    "begin": (_sql("begin"), MISUSED),
    "prepare_transaction": (_sql("prepare transaction 'x'"), MISUSED),
    "two_statements": (_sql("select 1; commit"), SQL),
    "commit_in_do": (_sql("do $$ begin commit; end $$"), SQL),
    "commit_in_procedure": (_sql("call commits()"), SQL),
    "set_search_path": (_sql("set search_path = evil"), MISUSED),
    "reset_all": (_sql("reset all"), MISUSED),
    "set_config_search_path": (_sql("select set_config('search_path', 'evil', false)"), MISUSED),
    "search_path_in_do": (_sql("do $$ begin execute 'set search_path = evil'; end $$"), MISUSED),
    "set_role": (_sql("select set_config('role', 'pg_monitor', false)"), SQL),
    "local_search_path": (_sql("set local search_path = evil", "insert into ledger values ('local_search_path', 0)"), OK),
    "local_statement_timeout": (_sql("set local statement_timeout = '1ms'"), OK),
    "temporary_step": (
        _sql(*(f"create temp table {name}" for name in ("step (like supervisor.step)", "worker (id int)", "ledger (like evil.ledger)"))),
        OK,
    ),
    "temporary_on_commit_drop": (_sql("create temp table task (like supervisor.task) on commit drop"), OK),
    "unlock_all": (_sql("select pg_advisory_unlock_all()"), OK),
    "discard": (_sql("discard all"), MISUSED),
    "deallocate": (_sql("deallocate all"), MISUSED),
    "deallocate_in_do": (_sql(_DEALLOCATE), OK),
    "listen": (_sql("listen something"), MISUSED),
    "copy": (_sql("copy ledger to stdout"), MISUSED),
    "deferred_constraint": (_sql(_STRICT, _STRICT), SQL),
    "immediate_then_deferred": (_sql("set constraints all deferred", _STRICT, _STRICT), SQL),
    "sql_error": (_sql("select 1/0"), SQL),
    "sql_syntax": (_sql("selec 1"), SQL),
    "catches_its_error": (_catches, MISUSED),
    "raises": (_raises, VALUE),
    "result_no_json": (lambda tx: object(), "PayloadRefused"),
    "uses_kept_transaction": (_uses_kept, MISUSED),
    "connection": (_with_connection("select 1"), OK),
    "connection_cursor": (_fetches, "0"),
    "connection_commits": (lambda tx: tx.connection.commit(), MISUSED),
    "connection_rolls_back": (lambda tx: tx.connection.rollback(), MISUSED),
    "connection_commit_sql": (_with_connection("commit"), MISUSED),
    "connection_commits_and_begins": (_with_connection("commit", "begin"), MISUSED),
    "connection_deallocates": (_with_connection("deallocate all"), OK),
    "connection_sets_path": (_with_connection("set search_path = evil"), MISUSED),
}


def _made(kind: str) -> Any:
    def body(tx: Any, who: str) -> Any:
        tx.execute(INSERT, (who, 1))
        return MISCHIEF[kind][0](tx)

    body.__annotations__ = {}
    return step(name=f"mischief_{kind}", transactional=True)(body)


STEPS = {kind: _made(kind) for kind in MISCHIEF}


@workflow
async def mischief(kind: str, who: str) -> str:
    """How the step ended, in one word."""
    try:
        return str(await STEPS[kind].aio(who))
    except Exception as error:  # noqa: BLE001
        name = type(error).__name__
        if name == "StepFailed":
            name = error.type_name  # type: ignore[attr-defined]
        return "sql" if name.startswith("psycopg.errors.") or type(error).__module__ == "psycopg.errors" else name
