"""Transactional steps: the transaction is given by the engine, so it is no parameter of the call."""

from supervisor import AsyncTransaction, Transaction, step


@step(transactional=True)
async def book(tx: AsyncTransaction, order_id: int, cents: int) -> None:
    rows = await tx.execute("insert into ledger values (%s, %s) returning 1", (order_id, cents))
    reveal_type(rows)  # R: list[tuple[Any, ...]]
    reveal_type(tx.rowcount)  # R: int


@step(transactional=True, retry=True, timeout=5, isolation="serializable")
def balance(tx: Transaction, account: str) -> int:
    rows = tx.execute("select sum(cents) from ledger where account = %(account)s", {"account": account})
    reveal_type(rows)  # R: list[tuple[Any, ...]]
    return int(rows[0][0])


@step(transactional=False)
def not_transactional(account: str) -> int:
    return len(account)


reveal_type(book)  # R: AsyncStepOf[(order_id: int, cents: int), None]
reveal_type(balance)  # R: DefStepOf[(account: str), int]
reveal_type(not_transactional)  # R: DefStepOf[(account: str), int]


async def in_async_workflow() -> None:
    await book(1, cents=2)
    reveal_type(await balance.aio("a"))  # R: int
    await book(1)  # E: call-arg reportCallIssue
    await book(1, "2")  # E: arg-type reportArgumentType
    await balance.aio(1)  # E: arg-type reportArgumentType


def in_def_workflow(tx: Transaction) -> None:
    book.sync(1, 2)
    reveal_type(balance("a"))  # R: int
    book.sync(tx, 1, 2)  # E: call-arg reportCallIssue
    balance(tx, "a")  # E: call-arg reportCallIssue


# ── declared as they should not be ───────────────────────────────────────────────────────────────────────────────


@step(transactional=True)
async def awaits_nothing(tx: Transaction, order_id: int) -> None:
    tx.execute("delete from ledger where order_id = %s", (order_id,))


async def misuse() -> None:
    await awaits_nothing(1)  # E: operator reportCallIssue


@step(transactional=True)  # E: arg-type reportArgumentType
def can_not_await(tx: AsyncTransaction, order_id: int) -> None: ...


@step(transactional=True)  # E: arg-type reportArgumentType
def without_transaction(order_id: int) -> None: ...


@step(transactional=True, at_most_once=True)  # E: call-overload reportArgumentType
def twice_safe(tx: Transaction) -> None: ...


@step(transactional=True, isolation="snapshot")  # E: call-overload reportArgumentType
def unknown_level(tx: Transaction) -> None: ...
