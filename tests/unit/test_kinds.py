"""Schemas of parameters: what they refuse the workflow would refuse, and one that can't say is silent."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pytest

from supervisor.api.asked import record_encoder
from supervisor.core import kinds
from supervisor.core.errors import InputInvalid
from supervisor.core.parameters import Input
from supervisor.files.record import Refused, Rules


class Order(msgspec.Struct):
    id: int
    text: str = ""


class Renamed(msgspec.Struct, rename="camel"):
    order_id: int


class Row(msgspec.Struct, array_like=True):
    id: int


class Cat(msgspec.Struct, tag=True):
    text: str


class Dog(msgspec.Struct, tag=True):
    id: int = 0


@dataclass
class Point:
    text: int
    y: int = 0


class Some(TypedDict, total=False):
    text: str


class Pair(NamedTuple):
    a: int
    b: int = 0


class Colour(enum.Enum):
    RED = "red"


class Lenient(enum.Enum):
    RED = "red"

    @classmethod
    def _missing_(cls, value: object) -> Lenient:
        return cls.RED


class Own:
    """A type that is read by code of its own, as pydantic's are."""

    @classmethod
    def model_validate(cls, value: Any) -> Own:
        return cls()


TYPES: list[Any] = [
    Any, None, bool, int, float, str, bytes, datetime, date, timedelta, UUID, Decimal, list, list[int], tuple[int, str], set[int], dict, dict[str, int], Mapping[str, int], Sequence[int],
    int | None, str | list[str], Literal["a", 1], Annotated[int, msgspec.Meta(ge=0)], Order, Renamed, Row, Cat | Dog, Order | None, Point, Some, Pair, Colour, Lenient, Own, Own | None, msgspec.Raw,
]  # fmt: skip
VALUES: list[Any] = [
    None, True, 1, -3, 1.5, 1.0, "", "a", "hi", "red", "2026-01-02", "2026-01-02T03:04:05Z", "PT3S", "00000000-0000-0000-0000-000000000000", "1.5", [], [1], [1, "a"], {}, {"text": "hi"}, {"text": 1},
    {"id": 1}, {"orderId": 1}, {"type": "Cat", "text": "x"}, {"type": "Dog"}, {"id": 1, "text": "x"},
]  # fmt: skip


@pytest.mark.parametrize("annotation", TYPES, ids=str)
def test_what_a_schema_refuses_the_workflow_would_refuse(annotation: Any) -> None:
    """A start that is refused wrongly can't be helped by anybody; one that fails later can."""

    def taker(text: Any) -> None: ...

    taker.__annotations__["text"] = annotation
    read, schema = Input(taker, "taker"), kinds.schema_of(annotation)
    json.dumps(schema)
    for value in VALUES:
        if kinds.fits(schema, value):
            continue
        assert len(kinds.refusal(schema or {}, value)) > 10
        with pytest.raises(InputInvalid):
            read.read(json.dumps({"text": value}).encode())


@pytest.mark.parametrize(
    ("annotation", "wrong"),
    [(str, {"text": "hi"}), (str, 5), (int, "5"), (bool, 1), (list[int], {}), (Order, {"text": "hi"}), (Order | None, "x"), (Literal["a"], 1), (Colour, None), (Pair, {})],
    ids=str,
)
def test_what_surely_does_not_fit_is_known(annotation: Any, wrong: Any) -> None:
    assert not kinds.fits(kinds.schema_of(annotation), wrong)


@pytest.mark.parametrize(
    ("annotation", "record", "text"),
    [
        (str, {"text": "hi"}, "hi"), (str, "hi", "hi"), (int | None, {"text": None}, None), (Order, {"text": {"id": 1}}, {"id": 1}), (list[int], {"text": [1]}, [1]),
        # what may be its value is its value
        (dict[str, str], {"text": "hi"}, {"text": "hi"}), (Some, {"text": "hi"}, {"text": "hi"}), (Point, {"text": 1}, {"text": 1}), (Any, {"text": "hi"}, {"text": "hi"}), (Order, {"id": 1}, {"id": 1}),
    ],
    ids=str,
)  # fmt: skip
def test_an_object_that_names_the_only_parameter_is_by_name_where_it_can_be_nothing_else(annotation: Any, record: Any, text: Any) -> None:
    """The same by the definition, by the catalogue, and for a record of a file."""

    def taker(text: Any) -> None: ...

    taker.__annotations__["text"] = annotation
    told = Input(taker, "taker")
    rules = Rules("taker", told.describe())
    for payload in (told.write_record(record), record_encoder("taker", told.describe())(record), rules.json(json.dumps(record).encode())[0]):
        assert json.loads(payload) == {"text": text}
    assert rules.by_name == (record != text and type(record) is dict)


def test_an_empty_object_leaves_the_only_parameter_out_where_it_can_be_nothing_else() -> None:
    def some(text: str = "none") -> None: ...

    def needs(text: str) -> None: ...

    told = Input(some, "some")
    assert told.write_record({}) == Rules("some", told.describe()).json(b"{}")[0] == b"{}"
    with pytest.raises(Refused, match="required but not given"):
        Rules("needs", Input(needs, "needs").describe()).json(b"{}")
    with pytest.raises(InputInvalid, match="text"):
        Input(needs, "needs").write_record({})


def test_records_and_cells_that_surely_do_not_fit_are_bad_records() -> None:
    """Each would be a run that fails; 200,000 of them are found out at once."""

    def echo(text: str) -> None: ...

    def two(text: str, n: int = 0) -> None: ...

    one, many = Rules("echo", Input(echo, "echo").describe()), Rules("two", Input(two, "two").describe())
    for rules, line, path, why in (
        (one, b"5", "$", "expected text, got a number"), (one, b'{"text": 5}', "$.text", "expected text, got a number"), (one, b'{"txt": "a"}', "$", "expected text, got an object"),
        (many, b'{"text": "a", "n": "b"}', "$.n", "expected a number, got text"), (one, b"true", "$", "expected text, got true"),
    ):  # fmt: skip
        with pytest.raises(Refused) as refused:
            rules.json(line)
        assert (refused.value.path, refused.value.why) == (path, why)
    assert json.loads(many.row(["text", "n"], ["0123", "7"])[0]) == {"text": "0123", "n": 7}
    assert json.loads(one.row(["text"], ["5"])[0]) == {"text": "5"}, "it takes text alone, so a cell is its text"
    with pytest.raises(Refused, match="expected a number, got text"):
        many.row(["text", "n"], ["a", "b"])
