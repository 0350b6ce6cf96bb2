"""What JSON a parameter takes, as far as its annotation says so without doubt: kept in the catalogue, for those who start a run without its code.

A schema is a small part of JSON Schema: kinds of values, and of objects the members that they must have. Invariant: what does not fit is surely
refused by the workflow; what fits may be refused all the same. Types whose reading is somebody's code have no schema, and everything fits that.
"""

from __future__ import annotations

import contextlib
from typing import Any

from msgspec import inspect as mi

Schema = dict[str, Any]

_OF_TYPE: dict[Any, tuple[str, ...]] = {
    mi.NoneType: ("null",), mi.BoolType: ("boolean",), mi.IntType: ("number",), mi.FloatType: ("number",), mi.DecimalType: ("string", "number"),
    **dict.fromkeys((mi.StrType, mi.BytesType, mi.ByteArrayType, mi.MemoryViewType, mi.DateTimeType, mi.DateType, mi.TimeType, mi.TimeDeltaType, mi.UUIDType), ("string",)),
    **dict.fromkeys((mi.ListType, mi.SetType, mi.FrozenSetType, mi.VarTupleType, mi.TupleType, mi.NamedTupleType), ("array",)), mi.DictType: ("object",),
}  # fmt: skip
_KIND: dict[type, str] = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string", list: "array", tuple: "array", dict: "object"}
_TOLD = {"null": "null", "boolean": "true or false", "number": "a number", "string": "text", "array": "an array", "object": "an object"}


def schema_of(annotation: Any) -> Schema | None:
    """The schema of values of *annotation*; None where its reading is code that nobody can foresee."""
    with contextlib.suppress(TypeError, ValueError, RecursionError, NotImplementedError, AttributeError, KeyError):
        alternatives = _alternatives(mi.type_info(annotation))
        if alternatives is not None:
            return alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}
    return None


def _alternatives(info: Any) -> list[Schema] | None:
    if isinstance(info, mi.Metadata):
        return _alternatives(info.type)
    if isinstance(info, mi.UnionType):
        parts = [_alternatives(part) for part in info.types]
        return None if None in parts else [one for part in parts for one in part or ()]
    if isinstance(info, (mi.StructType, mi.DataclassType, mi.TypedDictType)):
        if getattr(info, "array_like", False):
            return [{"type": "array"}]
        return [{"type": "object", "required": [field.encode_name for field in info.fields if field.required]}]
    if isinstance(info, mi.LiteralType):
        return _of_values(info.values)
    if isinstance(info, mi.EnumType):
        return None if _own_missing(info.cls) else _of_values([each.value for each in info.cls])
    kinds = _OF_TYPE.get(type(info))
    return None if kinds is None else [{"type": kind} for kind in kinds]


def _own_missing(kind: Any) -> bool:
    """Whether an enum makes members of other values by code of its own."""
    return any("_missing_" in vars(base) for base in kind.__mro__ if base.__module__ != "enum")


def _of_values(values: Any) -> list[Schema]:
    return [{"type": kind} for kind in dict.fromkeys(_KIND[type(value)] for value in values)]


def fits(schema: Schema | None, value: Any) -> bool:
    """Whether *value* may be one of *schema*; what is no plain JSON value is not judged."""
    kind = _KIND.get(type(value))
    if schema is None or kind is None:
        return True
    return any(each["type"] == kind and all(name in value for name in each.get("required", ())) for each in schema.get("anyOf", (schema,)))


def is_text(schema: Schema | None, text: str, value: Any) -> bool:
    """Whether *text*, which can be read as the JSON *value*, is meant as it is: the schema takes text and not that."""
    return not fits(schema, value) and fits(schema, text)


def by_name(name: str, schema: Schema | None, record: Any) -> bool:
    """Whether *record*, given for the only parameter of a workflow, says its name: an object with that member alone, or none, which can't be the parameter's value."""
    return type(record) is dict and list(record) in ([], [name]) and not fits(schema, record)


def refusal(schema: Schema, value: Any) -> str:
    """Why a value does not fit."""
    kind = _KIND[type(value)]
    of_kind = [each for each in schema.get("anyOf", (schema,)) if each["type"] == kind]
    if of_kind:
        return f"{next(name for name in of_kind[0]['required'] if name not in value)!r} is required but not given"
    told = list(dict.fromkeys(_TOLD[each["type"]] for each in schema.get("anyOf", (schema,))))
    return f"expected {' or '.join(told)}, got {_TOLD[kind] if kind != 'boolean' else str(value).lower()}"

