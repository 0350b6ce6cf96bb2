"""A blocking session in libpq's pipeline mode: statements are queued, `sync` sends them in one flush and brings their results.

For transactional steps, where the cost of each statement counts: parameters are adapted and rows are loaded by psycopg's
own Transformer, so values mean what they mean with psycopg; only its cursors are left out. One thread uses it at a time.
"""

from __future__ import annotations

import re
import select
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result

if TYPE_CHECKING:
    from psycopg import abc

PREPARE_AFTER = 3  # uses of a statement with parameters of the same types
PREPARED_MAX = 200
_PLACEHOLDER = re.compile(r"%(?:%|\(([^)]+)\)s|s|(.?))", re.DOTALL)


@lru_cache(maxsize=1000)
def numbered(query: str) -> tuple[bytes, tuple[str, ...] | int]:
    """*query* with $1, $2, … for %s or %(name)s; and the names in order, or how many there are. Raises ProgrammingError."""
    names: list[str] = []
    count = 0

    def replace(found: re.Match[str]) -> str:
        nonlocal count
        if found[0] == "%%":
            return "%"
        if found[2] is not None:
            raise psycopg.ProgrammingError(f"{found[0]!r} in a query with parameters: write %s or %(name)s, and %% for a percent sign")
        if found[1] is None:
            count += 1
            return f"${count}"
        if found[1] not in names:
            names.append(found[1])
        return f"${names.index(found[1]) + 1}"

    text = _PLACEHOLDER.sub(replace, query)
    if names and count:
        raise psycopg.ProgrammingError("a query has %s and %(name)s; use one kind")
    return text.encode(), tuple(names) or count


class StatementPipe:
    """Owns the connection's pipeline mode. `queue…` never waits, `sync` does."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn
        self._pgconn = conn.pgconn
        self._seen: dict[tuple[bytes, tuple[int, ...]], int] = {}
        self._texts: dict[bytes, bytes] = {}
        self.active = False
        self.unprepared = False  # send texts: for a step that removes prepared statements

    def prepare(self, name: bytes, text: str) -> None:
        """Prepare one of the engine's own statements; outside of pipeline mode only."""
        self._texts[name] = text.encode()
        result = self._pgconn.prepare(name, self._texts[name])
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise error_from_result(result)

    def enter(self) -> None:
        if not self.active:
            self._pgconn.enter_pipeline_mode()
            self._pgconn.nonblocking = 1
            self.active = True

    def leave(self) -> None:
        """Back to where the connection can be used as any other; nothing may be queued."""
        if self.active:
            self._pgconn.exit_pipeline_mode()
            self._pgconn.nonblocking = 0
            self.active = False

    def queue(self, name: bytes, values: Sequence[bytes] = ()) -> None:
        """One of the engine's statements; *values* in binary form."""
        formats = [pq.Format.BINARY] * len(values) or None
        if self.unprepared:
            self._pgconn.send_query_params(self._texts[name], values or None, None, formats)
        else:
            self._pgconn.send_query_prepared(name, values or None, formats)

    def queue_text(self, text: bytes) -> None:
        """A statement without parameters that is not worth preparing."""
        self._pgconn.send_query_params(text, None)

    def queue_user(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] | None) -> abc.Transformer:
        """A statement of a step; `rows` needs the Transformer that comes back. Raises psycopg.Error for what does not fit."""
        transformer = Transformer(self._conn)
        if parameters is None:
            self.queue_text(query.encode())
            return transformer
        text, wanted = numbered(query)
        ordered = in_order(parameters, wanted)
        values = transformer.dump_sequence(ordered, [PyFormat.AUTO] * len(ordered))
        types, formats = tuple(transformer.types or ()), transformer.formats
        key = (text, types)
        seen = self._seen[key] = self._seen.get(key, 0) + 1
        if self.unprepared or seen < PREPARE_AFTER or len(self._seen) > PREPARED_MAX:
            self._pgconn.send_query_params(text, values, types, formats)
        else:
            name = b"pgs_user_%d" % (hash(key) & 0xFFFFFFFFFFFFFFFF)
            if seen == PREPARE_AFTER:
                self._pgconn.send_prepare(name, text, types)
            self._pgconn.send_query_prepared(name, values, formats)
        return transformer

    def sync(self) -> list[Any]:
        """Send what is queued, wait for all of it; returns the results in order. Raises the first error, psycopg's class for it."""
        pgconn, fd = self._pgconn, self._pgconn.socket
        pgconn.pipeline_sync()
        while pgconn.flush():
            select.select([fd], [fd], [])
            pgconn.consume_input()
        results, error = [], None
        while True:
            while pgconn.is_busy():
                select.select([fd], [], [])
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                if pgconn.status == pq.ConnStatus.BAD:
                    raise psycopg.OperationalError("the session is lost")
                continue
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                break
            if result.status == pq.ExecStatus.FATAL_ERROR and error is None:
                error = result
            results.append(result)
        if error is not None:
            raise error_from_result(error)
        return results


def rows(transformer: abc.Transformer, result: Any) -> list[tuple[Any, ...]]:
    """The rows of one result, as psycopg loads them; none for a statement that gives none."""
    if result.status != pq.ExecStatus.TUPLES_OK:
        return []
    transformer.set_pgresult(result)
    return transformer.load_rows(0, result.ntuples, tuple)


def in_order(parameters: Sequence[Any] | Mapping[str, Any], wanted: tuple[str, ...] | int) -> Sequence[Any]:
    if isinstance(wanted, tuple):
        if not isinstance(parameters, Mapping):
            raise psycopg.ProgrammingError("the query has named placeholders; give a mapping")
        missing = [name for name in wanted if name not in parameters]
        if missing:
            raise psycopg.ProgrammingError(f"no value for {', '.join(missing)}")
        return [parameters[name] for name in wanted]
    if isinstance(parameters, (Mapping, str, bytes)):
        raise psycopg.ProgrammingError("the query has %s placeholders; give a sequence of values")
    if len(parameters) != wanted:
        raise psycopg.ProgrammingError(f"the query has {wanted} placeholders, but {len(parameters)} parameters were given")
    return list(parameters)
