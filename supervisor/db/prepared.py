"""What a client's session asks again and again: prepared once, and sent and read without a cursor.

A cursor costs 70 µs a question, which is half of what a start costs its client's processor; the conversions here are the same.

Invariant: a statement is prepared under a name of its own for each list of parameter types, as the driver would, so values of
another type make another statement and never a wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, TypeGuard

import psycopg
from psycopg import generators
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ExecStatus, Format

from supervisor.db.statement_pipe import rows

if TYPE_CHECKING:
    from psycopg.abc import PQGen

PREPARE_AFTER = 2  # times that a session has asked the same: parsing and planning are 0.15 ms of a start's 0.9


class Prepared:
    """Statements of one session, which no pooler shares. Not thread-safe: one question at a time, as the session."""

    def __init__(self, conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
        self._pgconn, self._encoding = conn.pgconn, conn.info.encoding
        self._values = Transformer.from_context(conn)
        self._asked: dict[str, int] = {}
        self._names: dict[tuple[str, tuple[int, ...]], bytes] = {}
        self._tries = count()  # each under a name of its own: one that was interrupted may be there

    def takes(self, block: str | bytes) -> TypeGuard[str]:
        """Whether *block* has been asked often enough; counts. Never a statement that is not a block: there is no end of those."""
        if isinstance(block, bytes):
            return False
        asked = self._asked[block] = self._asked.get(block, 0) + 1
        return asked > PREPARE_AFTER

    def talk(self, block: str, text: bytes, values: Sequence[Any]) -> PQGen[list[tuple[Any, ...]]]:
        """Its rows, if it returns any. To be waited for by the connection; raises as a cursor's execute."""
        given = self._values.dump_sequence(values, [PyFormat.AUTO] * len(values))
        types, formats = self._values.types or (), self._values.formats
        name = self._names.get((block, types))
        if name is None:
            name = b"pgs_%d" % next(self._tries)
            self._pgconn.send_prepare(name, text, types)
            yield from self._answer()
            self._names[block, types] = name
        self._pgconn.send_query_prepared(name, given, formats, Format.BINARY)
        result = yield from self._answer()
        found = rows(self._values, result)
        self._values.set_pgresult(None)
        return found

    def _answer(self) -> PQGen[Any]:
        result = (yield from generators.execute(self._pgconn))[-1]
        if result.status == ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result, encoding=self._encoding)
        return result
