"""Array parameters in PostgreSQL's binary form, from rows of Python values and back."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

from supervisor._fastpath.loop import FLOAT8, INT2, INT4, INT8, TIMESTAMPTZ, UUID
from supervisor._fastpath.wire import Column

Row = tuple[Any, ...]
_PACKED = {INT2: ">h", INT4: ">i", INT8: ">q", TIMESTAMPTZ: ">q", FLOAT8: ">d"}
_FIXED = {oid: struct.Struct(form).pack for oid, form in _PACKED.items()}


def encode_rows(oids: tuple[int, ...], rows: Iterable[Row]) -> list[bytes]:
    """Array parameters, one per column, from tuples of Python values (None is NULL, timestamps are us since 2000)."""
    columns = [Column(oid) for oid in oids]
    for row in rows:
        for column, oid, value in zip(columns, oids, row, strict=True):
            if value is None:
                column.put_null()
            elif oid in _FIXED:
                column.put(_FIXED[oid](value))
            else:
                column.put(value if isinstance(value, bytes) else value.encode())
    return [column.take() for column in columns]


def encode_ids(ids: Sequence[bytes]) -> list[bytes]:
    """What reads of histories take: at least one id, and the bounds by which they prune partitions."""
    column = Column(UUID)
    for run_id in ids:
        column.put(run_id)
    return [column.take(), min(ids), max(ids)]


def elements(array: bytes) -> list[bytes | None]:
    """The elements of a one-dimensional array in binary form."""
    if struct.unpack_from(">i", array)[0] == 0:
        return []
    count = struct.unpack_from(">i", array, 12)[0]
    out: list[bytes | None] = []
    at = 20
    for _ in range(count):
        size = struct.unpack_from(">i", array, at)[0]
        at += 4
        out.append(None if size < 0 else array[at : at + size])
        at += max(size, 0)
    return out
