"""Steps: what `@step` makes of a function, called from a workflow in every way that is right, and in those that are not."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

from supervisor import Retry, Transaction, current, heartbeat, step


@step
async def charge(order_id: int, cents: int) -> str:
    return f"{order_id}:{cents}"


@step
def parse(path: str, limit: int = 10) -> list[int]:
    return [len(path)][:limit]


@step()
async def empty_parentheses(path: str) -> bytes:
    return path.encode()


@step(name="look_up", retry=Retry(max_attempts=8, initial=0.2, maximum=timedelta(minutes=1), non_retryable=(KeyError,)), timeout=10)
async def looked_up(key: str) -> dict[str, int]:
    return {key: 1}


@step(retry=True, timeout=timedelta(seconds=3), run="thread")
def in_a_thread(path: str) -> int:
    return len(path)


@step(at_most_once=True)
def once() -> None: ...


# ── what they are ────────────────────────────────────────────────────────────────────────────────────────────────

reveal_type(charge)  # R: AsyncStepOf[(order_id: int, cents: int), str]
reveal_type(parse)  # R: DefStepOf[(path: str, limit: int = ...), list[int]]
reveal_type(empty_parentheses)  # R: AsyncStepOf[(path: str), bytes]
reveal_type(looked_up)  # R: AsyncStepOf[(key: str), dict[str, int]]
reveal_type(in_a_thread)  # R: DefStepOf[(path: str), int]
reveal_type(once)  # R: DefStepOf[(), None]
reveal_type(charge.name)  # R: str


# ── called as they should be ─────────────────────────────────────────────────────────────────────────────────────


async def in_async_workflow() -> None:
    reveal_type(await charge(1, cents=2))  # R: str
    reveal_type(await charge.aio(1, 2))  # R: str
    reveal_type(await parse.aio("a", limit=3))  # R: list[int]
    reveal_type(await looked_up("a"))  # R: dict[str, int]
    await once.aio()
    later: Awaitable[str] = charge(1, 2)
    reveal_type(await later)  # R: str


def in_def_workflow() -> None:
    reveal_type(parse("a"))  # R: list[int]
    reveal_type(in_a_thread("a"))  # R: int
    reveal_type(charge.sync(1, cents=2))  # R: str
    reveal_type(looked_up.sync(key="a"))  # R: dict[str, int]


def takes_a_function(fn: Callable[[str], int]) -> int:
    return fn("a")


reveal_type(takes_a_function(in_a_thread))  # R: int


# ── called as they should not be ─────────────────────────────────────────────────────────────────────────────────


async def wrong_in_async_workflow() -> None:
    await charge("1", 2)  # E: arg-type reportArgumentType
    await charge(1)  # E: call-arg reportCallIssue
    await charge(1, 2, 3)  # E: call-arg reportCallIssue
    await charge(1, cent=2)  # E: call-arg reportCallIssue
    await charge.aio(1, None)  # E: arg-type reportArgumentType
    await parse("a")  # E: misc reportGeneralTypeIssues
    await parse.aio(1)  # E: arg-type reportArgumentType
    charge(1, 2)  # E: unused-coroutine reportUnusedCoroutine
    parse.aio("a")  # E: unused-coroutine reportUnusedCoroutine
    cents: int = await charge(1, 2)  # E: assignment reportAssignmentType
    print(cents)


def wrong_in_def_workflow() -> None:
    parse(1)  # E: arg-type reportArgumentType
    parse("a", limit="b")  # E: arg-type reportArgumentType
    parse.sync("a")  # E: attr-defined reportAttributeAccessIssue
    charge.sync(1)  # E: call-arg reportCallIssue
    number: int = charge(1, 2)  # E: assignment reportAssignmentType
    print(number)


takes_a_function(parse.aio)  # E: arg-type reportArgumentType


@step(run="process", timeout=60, heartbeat=timedelta(seconds=3), schedule_to_close=3600)
def takes_long(rows: int) -> int:
    heartbeat()
    heartbeat({"row": rows})
    begun_at: int | None = current().heartbeat_details(int)
    words: list[str] = current().heartbeat_details(int)  # E: assignment reportAssignmentType
    print(words, current().heartbeat_details())
    return begun_at or 0


@step(transactional=True, schedule_to_close=60)
def tried_for_a_minute(tx: Transaction, name: str) -> None: ...


# ── declared as they should not be ───────────────────────────────────────────────────────────────────────────────


@step(run="elsewhere")  # E: call-overload reportArgumentType
def unknown_place() -> None: ...


@step(retries=3)  # E: call-overload reportCallIssue
def unknown_option() -> None: ...


@step("charge")  # E: call-overload reportArgumentType
def name_by_position() -> None: ...


@step(retry=3)  # E: call-overload reportArgumentType
def number_for_a_policy() -> None: ...


Retry(max_attempts="3")  # E: arg-type reportArgumentType
Retry(3, 0.2, 2, 60, KeyError)  # E: arg-type reportArgumentType
Retry(attempts=3)  # E: call-arg reportCallIssue
