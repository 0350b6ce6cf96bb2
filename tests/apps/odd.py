"""Input, results and errors that can't be stored, and rows that a database refuses."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from supervisor import gather, sleep, step, workflow
from tests.harness import note, wait_for_file


class Order(msgspec.Struct):
    id: int
    total: int


@dataclass
class Address:
    street: str


@workflow
async def takes(order: Order, note_: str = "", address: Address | None = None) -> int:
    return order.total


@workflow
async def takes_anything(value: Any) -> Any:
    return value


@workflow
async def takes_typed(numbers: dict[int, str]) -> list[str]:
    return list(numbers.values())


@workflow
async def takes_nothing() -> str:
    return "nothing"


@step
def echo(value: Any) -> Any:
    return value


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def _endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


class Exploding:
    """Its attribute access and its repr raise."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


# name → what is returned, and a word of the message that must come
RESULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "object": (object, "object"),
    "function": (lambda: print, "$"),
    "nan": (lambda: {"a": [1.0, float("nan")]}, "$['a'][1]"),
    "infinity": (lambda: float("-inf"), "$"),
    "int_keys": (lambda: {"a": {1: "one"}}, "$['a'][1]"),
    "nul": (lambda: ["a\x00b"], "$[0]"),
    "nul_key": (lambda: {"a\x00": 1}, "NUL"),
    "surrogate": (lambda: "a\ud800b", "surrogate"),
    "surrogate_inside": (lambda: {"x": ["\udfff"]}, "surrogate"),
    "too_large": (lambda: "x" * (2 * 1024 * 1024 + 1), "2,097,152"),
    "too_large_list": (lambda: ["x" * 1024] * 2048, "2,097,152"),
    "too_deep": (lambda: deep(65), "64"),
    "endless": (_endless, "64"),
    "set_of_mixed": (lambda: {object()}, "$"),
    "exploding": (Exploding, "$"),
    "exploding_inside": (lambda: [Exploding()], "$"),
}


@step(run="inline")
def gives_inline(kind: str) -> Any:
    return RESULTS[kind][0]()


@step(run="thread")
def gives_in_thread(kind: str) -> Any:
    return RESULTS[kind][0]()


@step
async def gives_in_task(kind: str) -> Any:
    return RESULTS[kind][0]()


@step(transactional=True)
def gives_in_transaction(tx: Any, kind: str) -> Any:
    tx.execute("insert into booked values (%s)", (kind,))
    return RESULTS[kind][0]()


@workflow
async def returns(kind: str) -> Any:
    return RESULTS[kind][0]()


@workflow
async def gives(kind: str) -> list[list[str]]:
    """What each kind of step raises for it, and the workflow that returns it itself."""
    told = []
    for call in (gives_inline.aio, gives_in_thread.aio, gives_in_task, gives_in_transaction.aio, returns):
        try:
            told.append(["returned", str(type(await call(kind)))])
        except Exception as error:  # noqa: BLE001
            told.append([type(error.__cause__ or error).__name__, str(error)])
    return told


@step
def wrong_type() -> int:
    return "seven"  # type: ignore[return-value]


@step
def lacks_a_field() -> Order:
    return {"id": 1}  # type: ignore[return-value]


@workflow
async def wrong_types() -> list[str]:
    told = []
    for call in (wrong_type.aio, lacks_a_field.aio):
        try:
            await call()
        except Exception as error:  # noqa: BLE001
            told.append(f"{type(error).__name__}: {error}")
    return told


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no str")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Hostile(Exception):
    """Nothing of it may be looked at."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("args", "__dict__", "__cause__", "__notes__"):
            raise RuntimeError(f"no {name}")
        return super().__getattribute__(name)


class ExitsWhenPrinted(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


def _group() -> Exception:
    return ExceptionGroup("g", [Unprintable(), ValueError("\x00")])


def _long_chain() -> Exception:
    error: Exception = ValueError("x" * 100_000)
    for n in range(50):
        outer = ValueError(f"{n}" * 5000)
        outer.__cause__ = error
        error = outer
    return error


def _caused_by_itself() -> Exception:
    error = ValueError("circle")
    error.__cause__ = error
    return error


ERRORS: dict[str, Callable[[], BaseException]] = {
    "unprintable": Unprintable,
    "hostile": Hostile,
    "exits_when_printed": ExitsWhenPrinted,
    "nul": lambda: ValueError("a\x00b"),
    "surrogate": lambda: ValueError("a\ud800b"),
    "group": _group,
    "long_chain": _long_chain,
    "circle": _caused_by_itself,
    "argument_no_json": lambda: ValueError(object(), {1: 2}, float("nan"), b"\xff"),
    "endless_argument": lambda: ValueError(_endless()),
    "system_exit": lambda: SystemExit("out"),
}


@step
def raises(kind: str) -> None:
    raise ERRORS[kind]()


@step(retry=True)
def raises_and_is_not_retried(kind: str) -> None:
    from supervisor import NonRetryable

    raise NonRetryable("no") from ERRORS[kind]()


@workflow
async def raises_itself(kind: str) -> None:
    raise ERRORS[kind]()


@workflow
async def errors(kind: str) -> list[str]:
    told = []
    for call in (raises.aio, raises_and_is_not_retried.aio, raises_itself):
        try:
            await call(kind)
        except Exception as error:  # noqa: BLE001
            told.append(type(error).__name__)
    return told


# ── what a database refuses ──────────────────────────────────────────────────────────────────────────────────────


@step(run="inline")
def stores(n: int, poison: str) -> str:
    note("stored", n)
    return poison or f"fine {n}"


@step
def fails(poison: str) -> None:
    raise ValueError(poison or "fine")


@workflow
async def odd_kid(poison: str) -> str:
    return poison


@workflow
async def stores_two(n: int, poison: str = "") -> list[str]:
    return [await stores.aio(n, ""), await stores.aio(n, poison)]


@workflow
async def stores_outcome(poison: str = "") -> str:
    await stores.aio(0, "")
    return poison


@workflow
async def stores_attempt(poison: str = "") -> str:
    try:
        await fails.aio(poison)
    except ValueError:
        pass
    return "went on"


@workflow
async def stores_timer(seconds: float) -> str:
    await gather(sleep(seconds), stores.aio(0, ""))
    return "woke"


@workflow
async def stores_child(poison: str = "") -> str:
    return await odd_kid(poison)


@step(transactional=True)
def stores_in_transaction(tx: Any, n: int, poison: str) -> str:
    tx.execute("insert into booked values (%s)", (f"tx {n}",))
    return poison or "fine"


@workflow
async def stores_checkpoint(n: int, poison: str = "") -> str:
    return await stores_in_transaction.aio(n, poison)


@step
def waits(gate: str) -> str:
    note("waiting", gate)
    wait_for_file(gate)
    return gate


@workflow
async def outlasts(gate: str) -> list[str]:
    one = await waits.aio(gate)
    return [one, await echo.aio(str(os.getpid() > 0))]
