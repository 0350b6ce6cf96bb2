"""Array parameters in their binary form, built in bulk: psycopg's own list dumper costs 1 µs per element."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from psycopg.adapt import AdaptersMap, Dumper
from psycopg.pq import Format

_HEAD = struct.Struct("!iiIii").pack  # dimensions, has nulls, element oid, length, lower bound
_INT4 = struct.Struct("!i").pack
_NULL = _INT4(-1)
_UUID_LENGTH = _INT4(16)


class _Uuids(bytes):
    pass


class _Byteas(bytes):
    pass


class _Texts(bytes):
    pass


def pack_uuids(ids: Sequence[bytes]) -> _Uuids:
    """uuid[] of ids of 16 bytes each."""
    return _Uuids(b"".join((_HEAD(1, 0, 2950, len(ids), 1), _UUID_LENGTH, _UUID_LENGTH.join(ids))) if ids else _HEAD(0, 0, 2950, 0, 1)[:12])


def pack_byteas(values: Sequence[bytes]) -> _Byteas:
    """bytea[] without nulls."""
    length = _INT4
    body = b"".join([length(len(value)) + value for value in values])
    return _Byteas(_HEAD(1, 0, 17, len(values), 1) + body if values else _HEAD(0, 0, 17, 0, 1)[:12])


def pack_texts(values: Sequence[str | None]) -> _Texts:
    """text[]; None becomes null."""
    encoded = [None if value is None else value.encode() for value in values]
    body = b"".join([_NULL if value is None else _INT4(len(value)) + value for value in encoded])
    return _Texts(_HEAD(1, 1, 25, len(values), 1) + body if values else _HEAD(0, 0, 25, 0, 1)[:12])


class _PackedDumper(Dumper):
    format = Format.BINARY
    packed: type

    def dump(self, obj: Any) -> bytes:
        return obj  # type: ignore[no-any-return]


class _UuidsDumper(_PackedDumper):
    packed, oid = _Uuids, 2951


class _ByteasDumper(_PackedDumper):
    packed, oid = _Byteas, 1001


class _TextsDumper(_PackedDumper):
    packed, oid = _Texts, 1009


def add_dumpers(adapters: AdaptersMap) -> None:
    """Teach a connection or a cursor the packed arrays."""
    for dumper in (_UuidsDumper, _ByteasDumper, _TextsDumper):
        adapters.register_dumper(dumper.packed, dumper)
