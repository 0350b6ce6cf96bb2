"""Times of the database that Python has no datetime for: before year 1, behind 9999, infinity. They are read as the first and the last moment there is.

So whoever reads many rows is not failed by one of them. What starts and sleeps write is bounded, but rows may come from elsewhere.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import psycopg
from psycopg import pq
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import AdaptersMap, Loader

TIMESTAMPTZ = 1184
# a day inside of what a datetime holds, so that any time zone can show them
FIRST = datetime(1, 1, 2, tzinfo=timezone.utc)
LAST = datetime(9999, 12, 30, tzinfo=timezone.utc)


class _Bounded(Loader):
    """psycopg's own loader, and what it refuses."""

    exact: type[Any]

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        self._load = self.exact(oid, context).load

    def load(self, data: Buffer) -> datetime:
        try:
            return self._load(data)  # type: ignore[no-any-return]
        except (psycopg.DataError, OverflowError):  # the latter where only the session's time zone is too much
            return FIRST if self.early(bytes(data)) else LAST

    @staticmethod
    def early(data: bytes) -> bool:
        raise NotImplementedError


class _BoundedText(_Bounded):
    format = pq.Format.TEXT
    exact = psycopg.adapters.get_loader(TIMESTAMPTZ, pq.Format.TEXT) or Loader

    @staticmethod
    def early(data: bytes) -> bool:
        return data.startswith(b"-") or data.endswith(b"BC") or data.startswith(b"0001-")


class _BoundedBinary(_Bounded):
    format = pq.Format.BINARY
    exact = psycopg.adapters.get_loader(TIMESTAMPTZ, pq.Format.BINARY) or Loader

    @staticmethod
    def early(data: bytes) -> bool:
        return data[:1] >= b"\x80"  # microseconds since 2000, negative


def add_loaders(adapters: AdaptersMap) -> None:
    """Teach a connection or a cursor to read any time."""
    for loader in (_BoundedText, _BoundedBinary):
        adapters.register_loader(TIMESTAMPTZ, loader)
