"""Records of files: what is stored is what was written, and what `Client.start` would have stored of the same values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.parameters import Input
from supervisor.files.record import KEY_MAX, Refused, Rules

TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=("Cs",)), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.floats(allow_nan=False, allow_infinity=False, width=32) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def one(order: Any) -> None: ...
def three(a: Any, b: Any, c: Any = None) -> None: ...


ONE, THREE = Input(one, "one"), Input(three, "three")


def rules(told: Input, **more: Any) -> Rules:
    return Rules(told.name, told.describe(), **more)


@given(VALUES)
def test_a_record_is_the_only_parameters_value(value: Any) -> None:
    payload, key = rules(ONE).json(json.dumps(value, indent=1).encode())
    assert (json.loads(payload), key) == ({"order": value}, None)


@given(VALUES, VALUES, st.permutations(["a", "b", "c"]))
def test_members_come_in_the_order_of_the_parameters(one: Any, other: Any, order: list[str]) -> None:
    """So a call has one form, whoever wrote the record: the one that a Python caller's arguments get."""
    record = {name: {"a": one, "b": other, "c": None}[name] for name in order}
    payload, _ = rules(THREE).json(json.dumps(record, ensure_ascii=False).encode())
    assert json.loads(payload) == record and list(json.loads(payload)) == ["a", "b", "c"]
    assert json.loads(payload) == json.loads(THREE.write_record(record))


@given(st.binary(max_size=60))
def test_whatever_a_line_holds_it_is_stored_or_refused(line: bytes) -> None:
    try:
        payload, _ = rules(ONE).json(line)
    except Refused as refused:
        assert refused.path.startswith("$") and refused.why
    else:
        assert json.loads(payload).keys() == {"order"}


@given(st.lists(TEXT, min_size=3, max_size=3))
def test_whatever_a_cell_holds_it_is_stored_or_refused(cells: list[str]) -> None:
    """A cell without a type is the JSON that it is, or its text, or nothing."""
    try:
        stored = json.loads(rules(THREE).row(["a", "b", "c"], cells)[0])
    except Refused as refused:
        assert refused.why
        return
    for name, cell in zip("abc", cells, strict=True):
        assert name not in stored if cell == "" else stored[name] == cell or json.loads(cell) == stored[name]


@pytest.mark.parametrize(
    "cell, stored",
    [
        ("12", b"12"), ("-1.50", b"-1.50"), ("1e3", b"1e3"), ("true", b"true"), ("null", b"null"), ("007", b'"007"'), ("NaN", b'"NaN"'), ("12 ", b"12"),
        ("12345678901234567890123", b'"12345678901234567890123"'), ("1e999", b'"1e999"'), ('{"a": 1}', b'{"a":1}'), ("{a}", b'"{a}"'), ("é", '"é"'.encode()),
        ("+49 30", b'"+49 30"'), ("2026-11-22", b'"2026-11-22"'), (" x", b'" x"'),
    ],
)  # fmt: skip
def test_a_cell_without_a_type(cell: str, stored: bytes) -> None:
    assert rules(THREE).row(["a", "b"], [cell, "x"])[0] == b'{"a":' + stored + b',"b":"x"}'


@pytest.mark.parametrize(
    "field, record, key",
    [
        ("id", {"id": 42}, "42"), ("id", {"id": "x"}, "x"), ("a.b", {"a": {"b": "x"}}, "x"), ("a.b", {"a.b": "y", "a": {"b": "x"}}, "y"),
        ("id", {"id": True}, None), ("id", {"id": 1.5}, None), ("id", {"id": ""}, None), ("id", {"id": "x" * (KEY_MAX + 1)}, None), ("id", {}, None),
        ("a.b", {"a": 1}, None), ("id", [1], None), ("id", {"id": "a\x00"}, None),
    ],
)  # fmt: skip
def test_keys(field: str, record: Any, key: str | None) -> None:
    """Text or a whole number; a field that lies deeper is named with dots."""
    read = rules(ONE, key_field=field).json
    if key is not None:
        assert read(json.dumps(record).encode())[1] == key
    else:
        with pytest.raises(Refused):
            read(json.dumps(record).encode())


def test_a_key_that_is_no_parameter_is_not_of_the_input() -> None:
    assert rules(THREE, key_field="id").json(b'{"id": 1, "b": 2, "a": 3}') == (b'{"a":3,"b":2}', "1")
    assert rules(THREE, key_field="id").row(["id", "b", "a"], ["1", "2", "3"])[1] == "1"
