"""40 kinds of value and 20 of exception, each given to a workflow in every way that a workflow can be given something."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, NewType, Optional, TypedDict

import msgspec

from supervisor import Retry, StepFailed, current, gather, step, workflow
from tests.apps.gates import at_gate, branch, described


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


@dataclass
class Point:
    x: int
    y: float = 0.0


@dataclass(frozen=True)
class Line:
    start: Point
    end: Point
    tags: list[str] = field(default_factory=list)


class Money(msgspec.Struct):
    cents: int
    currency: str


class Cat(msgspec.Struct, tag="cat"):
    lives: int


class Dog(msgspec.Struct, tag="dog"):
    name: str


class Options(TypedDict, total=False):
    retries: int
    label: str


class Pair(NamedTuple):
    left: int
    right: str


class Model:
    """Like a pydantic model: known by the names of its two methods."""

    def __init__(self, n: int) -> None:
        self.n = n

    def model_dump(self, mode: str) -> dict[str, Any]:
        return {"n": self.n, "mode": mode}

    @classmethod
    def model_validate(cls, value: Any) -> Model:
        assert value["mode"] == "json"
        return cls(value["n"])

    def __repr__(self) -> str:
        return f"Model({self.n})"


UserId = NewType("UserId", int)
SAME = object()
UTC = dt.UTC

# name → annotation, value, and what the workflow must be given when that is another value
VALUES: dict[str, tuple[Any, Any, Any]] = {
    "none": (None, None, SAME),
    "true": (bool, True, SAME),
    "false": (Any, False, SAME),
    "zero": (int, 0, SAME),
    "negative": (int, -(2**63), SAME),
    "huge_int": (int, 10**40, SAME),
    "huge_int_unannotated": (Any, 2**64 + 1, SAME),
    "float": (float, 0.1 + 0.2, SAME),
    "float_whole": (Any, 1.0, SAME),
    "float_minus_zero": (float, -0.0, SAME),
    "float_smallest": (float, 5e-324, SAME),
    "float_large": (Any, 1.7976931348623157e308, SAME),
    "float_from_int": (float, 3, 3.0),
    "text_empty": (str, "", SAME),
    "text_quotes": (str, "\"'\\\n\t\x7f\x01", SAME),
    "text_world": (Any, "žluťoučký 🐴 \u2028 \U0010ffff", SAME),
    "bytes": (bytes, b"\x00\xff\x00", SAME),
    "list_mixed": (Any, [1, 1.0, "1", None, True, [], {}], SAME),
    "list_of_floats": (list[float], [1, 2.5], [1.0, 2.5]),
    "tuple": (tuple[int, str], (1, "a"), SAME),
    "tuple_unannotated": (Any, (1, (2, 3)), [1, [2, 3]]),
    "set": (set[int], {3, 1, 2}, SAME),
    "frozenset": (frozenset[str], frozenset({"b", "a"}), SAME),
    "dict": (Any, {"z": 1, "a": {"": None}}, SAME),
    "dict_int_keys": (dict[int, str], {2: "b", -1: "a"}, SAME),
    "dict_date_keys": (dict[dt.date, list[int]], {dt.date(2024, 2, 29): [1]}, SAME),
    "datetime": (dt.datetime, dt.datetime(2024, 2, 29, 23, 59, 59, 999999, UTC), SAME),
    "datetime_naive": (dt.datetime, dt.datetime(1, 1, 1), SAME),
    "datetime_unannotated": (Any, dt.datetime(2024, 2, 29, 1, 2, 3, 0, UTC), "2024-02-29T01:02:03Z"),
    "date": (dt.date, dt.date(9999, 12, 31), SAME),
    "time": (dt.time, dt.time(1, 2, 3, 4), SAME),
    "timedelta": (dt.timedelta, dt.timedelta(-1, 2, 3), SAME),
    "uuid": (uuid.UUID, uuid.UUID(int=7), SAME),
    "decimal": (decimal.Decimal, decimal.Decimal("1.10"), SAME),
    "enum": (Colour, Colour.RED, SAME),
    "int_enum": (Level, Level.LOW, SAME),
    "int_enum_unannotated": (Any, Level.LOW, 1),
    "literal": (Literal["a", 1], "a", SAME),
    "optional": (Optional[int], None, SAME),
    "union": (int | str, "1", SAME),
    "dataclass": (Point, Point(1, 2.0), SAME),
    "dataclass_nested": (Line, Line(Point(1), Point(2, 0.5), ["t"]), SAME),
    "dataclass_unannotated": (Any, Point(1, 2.0), {"x": 1, "y": 2.0}),
    "struct": (Money, Money(5, "CZK"), SAME),
    "struct_union": (Cat | Dog, Dog("rex"), SAME),
    "typed_dict": (Options, {"retries": 3}, SAME),
    "named_tuple": (Pair, Pair(1, "r"), SAME),
    "new_type": (UserId, UserId(7), SAME),
    "model": (Model, Model(7), SAME),
}


class Custom(Exception):
    """Takes other arguments than it keeps."""

    def __init__(self, code: int, *, hint: str) -> None:
        self.code, self.hint = code, hint
        super().__init__(f"{code}: {hint}")


class Plain(ValueError):
    pass


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class Locked(Exception):
    """Refuses the attributes that it had."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        object.__setattr__(self, "n", n)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


class Shop:
    class Closed(LookupError):
        pass


def _caused() -> Exception:
    error = Plain("outer")
    error.__cause__ = KeyError("inner")
    error.__cause__.__cause__ = Custom(7, hint="innermost")
    return error


def _local() -> Exception:
    class Local(Exception):
        pass

    return Local("nobody can import me")


def _with_state() -> Exception:
    error = Plain("with state")
    error.order = 42  # type: ignore[attr-defined]
    error.unfit = object()  # type: ignore[attr-defined]
    return error


# name → how it is made, and the class that the workflow must be given
ERRORS: dict[str, tuple[Callable[[], BaseException], type[BaseException]]] = {
    "value_error": (lambda: ValueError("x"), ValueError),
    "no_args": (ValueError, ValueError),
    "key_error": (lambda: KeyError("k"), KeyError),
    "two_args": (lambda: IndexError("a", 2), IndexError),
    "zero_division": (lambda: ZeroDivisionError("division by zero"), ZeroDivisionError),
    "os_error": (lambda: FileNotFoundError(2, "No such file", "/nowhere"), FileNotFoundError),
    "timeout": (lambda: TimeoutError("late"), TimeoutError),
    "assertion": (lambda: AssertionError(), AssertionError),
    "memory": (MemoryError, MemoryError),
    "stop_iteration": (lambda: StopIteration(5), Exception),
    "stop_async_iteration": (StopAsyncIteration, StopAsyncIteration),
    "unicode": (lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), Exception),
    "subclass": (lambda: Plain("p"), Plain),
    "custom": (lambda: Custom(42, hint="h"), Custom),
    "nested_class": (lambda: Shop.Closed("sorry"), Shop.Closed),
    "with_state": (_with_state, Plain),
    "caused": (_caused, Plain),
    "local_class": (_local, StepFailed),
    "unprintable": (lambda: Unprintable("u"), Exception),
    "locked": (lambda: Locked(1), Exception),
    "args_no_json": (lambda: Plain(object()), StepFailed),
    "nul": (lambda: Plain("a\x00b"), Exception),
    "surrogate": (lambda: Plain("a\ud800b"), Exception),
    "tuple_arg": (lambda: Plain((1, 2)), Plain),
    "group": (lambda: ExceptionGroup("g", [ValueError(1)]), StepFailed),
    "long": (lambda: Plain("x" * 100_000), Exception),
    "system_exit": (lambda: SystemExit(3), StepFailed),
    "keyboard": (KeyboardInterrupt, StepFailed),
    "cancelled": (asyncio.CancelledError, StepFailed),
    "generator_exit": (GeneratorExit, StepFailed),
}


def _give(value: Any) -> Any:
    """Give a value, or raise it."""
    if callable(value):
        raise value()
    return value


def _made(name: str, annotation: Any, value: Any) -> dict[str, Any]:
    """All that a workflow can await which gives *value*."""

    def body() -> Any:
        return _give(value)

    async def task() -> Any:
        await asyncio.sleep(0)
        return _give(value)

    def booked(tx: Any) -> Any:
        tx.execute("select 1")
        return _give(value)

    async def kid() -> Any:
        return _give(value)

    for each in (body, task, booked, kid):
        each.__annotations__ = {"return": annotation}
    return {
        "inline": step(name=f"inline_{name}", run="inline")(body).aio,
        "thread": step(name=f"thread_{name}", run="thread")(body).aio,
        "task": step(name=f"task_{name}")(task),
        "retried": step(name=f"retried_{name}", retry=Retry(max_attempts=2, initial=0))(task),
        "tx": step(name=f"tx_{name}", transactional=True)(booked).aio,
        "child": workflow(name=f"child_{name}")(kid),
    }


VALUE_WAYS = {name: _made(name, annotation, value) for name, (annotation, value, _) in VALUES.items()}
ERROR_WAYS = {name: _made(name, Any, make) for name, (make, _) in ERRORS.items()}


@step
def keep(seen: list[str]) -> list[str]:
    """The live side: stored at once, and read back after the crash."""
    return seen


@step
async def gate(name: str) -> bool:
    await at_gate(name)
    return current().redelivered


def _told(given: Any) -> str:
    return f"{described(given)} | {branch(given)}"


def _caught(error: Exception) -> str:
    """As code does: which of several except clauses takes it."""
    try:
        raise error
    except StepFailed as failed:
        way = f"StepFailed {failed.type_name} {failed.message}"
    except Custom as custom:
        way = f"Custom {custom.code} {custom.hint}"
    except LookupError:
        way = "LookupError"
    except OSError as os_error:
        way = f"OSError {os_error.errno} {os_error.filename}"
    except ValueError:
        way = "ValueError"
    except Exception as other:  # noqa: BLE001
        way = type(other).__name__
    return f"{way} | {described(error)}"


@workflow
async def give_value(kind: str, opened: str) -> dict[str, Any]:
    seen = [_told(await way()) for way in VALUE_WAYS[kind].values()]
    seen += [_told(value) for value in await gather(*(way() for way in VALUE_WAYS[kind].values()))]
    live = await keep.aio(seen)
    return {"live": live, "replayed": seen, "redelivered": await gate(opened)}


@workflow
async def give_error(kind: str, opened: str) -> dict[str, Any]:
    seen = []
    for way in ERROR_WAYS[kind].values():
        try:
            seen.append(f"returned {_told(await way())}")
        except Exception as error:  # noqa: BLE001
            seen.append(_caught(error))
    for name, way in ERROR_WAYS[kind].items():
        try:
            seen.append(f"{name} returned {await gather(way(), gather())}")
        except Exception as error:  # noqa: BLE001
            seen.append(_caught(error))
    live = await keep.aio(seen)
    return {"live": live, "replayed": seen, "redelivered": await gate(opened)}
