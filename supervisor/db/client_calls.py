"""A client's calls: one session, opened at first use and again when it was lost, and the words for what it refuses.

Owns the client's connection, its measured clock offset, and the translation of SQLSTATEs. Knows nothing of workflows,
encoding or handles. Invariant: a call that may have reached the server is repeated only where repeating changes
nothing: reads, and starts under the ids of the first try.

Not thread-safe and not fork-safe: `supervisor.api.client` sees to both.
"""

from __future__ import annotations

import json
import random
import struct
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg import errors
from psycopg.adapt import Dumper
from psycopg.pq import Format

from supervisor.core.errors import (
    BatchUnknown,
    ClockSkew,
    DatabaseUnavailable,
    InputInvalid,
    KeyExists,
    RunUnknown,
    SchemaMissing,
    SchemaTooNew,
    SchemaTooOld,
    SupervisorError,
    UnknownWorkflow,
)
from supervisor.core.ids import RunIds
from supervisor.core.version import VERSION
from supervisor.db import connect as _connect
from supervisor.db import migrations
from supervisor.db.statements import Sql, migration_files, wake_channel

OFFSET_FRESH_S = 60.0  # a clock of 500 ppm drifts 30 ms in that time; ids may be 60 s off
RETRY_S = 10.0  # how long a lost database is tried for before the caller is told
PAUSE_MAX_S = 1.0

T = TypeVar("T")


class Conflict(NamedTuple):
    """A key of a start that names a run already. `at` counts from 0; `matches`: with the same input."""

    at: int
    run_id: uuid.UUID
    matches: bool


class Outcome(NamedTuple):
    run_id: uuid.UUID
    status: str
    result: bytes | None
    ended_at: datetime


class Found(NamedTuple):
    run_id: uuid.UUID
    key: str | None
    workflow: str
    queue: str
    status: str
    wait: str | None
    step: str | None
    seq: int | None
    attempt: int | None
    created_at: datetime
    ended_at: datetime | None


class ClientCalls:
    """The calls of one client over one session. `ids` makes run ids by the database's clock; connect first."""

    def __init__(self, dsn: _connect.Dsn, schema: str, purpose: str = "client") -> None:
        self.dsn, self.schema, self.purpose = dsn, schema, purpose
        self.ids = RunIds()
        self._sql = Sql(schema)
        self._conn: psycopg.Connection | None = None
        self._measured_at = 0.0
        self._user = ""

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    @property
    def connected(self) -> bool:
        """Whether it ever had a session."""
        return self._measured_at > 0.0

    # ── calls ────────────────────────────────────────────────────────────────────────────────────────────────

    def run_ids(self, n: int) -> list[bytes]:
        """*n* fresh run ids of 16 bytes; measures the clock's offset first when the last measure is a minute old."""
        if self._conn is None or time.monotonic() - self._measured_at > OFFSET_FRESH_S:
            self._repeat(self._measure)
        return self.ids.new_bytes(n)

    def start(
        self,
        workflow: str,
        ids: Sequence[bytes],
        inputs: Sequence[bytes],
        keys: Sequence[str | None] | None = None,
        hashes: Sequence[bytes] | None = None,
        *,
        queue: str | None = None,
        priority: int = 5,
        delay_s: float = 0.0,
        attributes: bytes | None = None,
        batch: str | None = None,
        on_conflict: str = "return",
    ) -> list[Conflict]:
        """Start runs of one workflow in one transaction; return the keys that named runs already.

        Repeated under the same ids when the session is lost: a unique violation then says that the first try had
        arrived. Raises UnknownWorkflow, ClockSkew, InputInvalid, DatabaseUnavailable. One round trip.
        """
        packed = (
            workflow,
            pack_uuids(ids),
            pack_byteas(inputs),
            None if keys is None else pack_texts(keys),
            None if hashes is None else pack_byteas(hashes),
            queue,
            priority,
            float(delay_s),
            attributes,
            batch,
            on_conflict,
        )
        tries = 0

        def once(conn: psycopg.Connection) -> list[Conflict]:
            nonlocal tries
            tries += 1
            try:
                rows = self._rows(conn, "client_start", packed)
            except errors.UniqueViolation as error:
                if tries > 1 and (error.diag.table_name or "").startswith("run_2"):
                    return self._conflicts_again(conn, packed, ids, inputs, keys, hashes)
                raise
            return [Conflict(n - 1, run_id, matches) for n, run_id, matches in rows]

        return self._repeat(once, what=f"start of {workflow!r}")

    def _conflicts_again(
        self,
        conn: psycopg.Connection,
        packed: Sequence[object],
        ids: Sequence[bytes],
        inputs: Sequence[bytes],
        keys: Sequence[str | None] | None,
        hashes: Sequence[bytes] | None,
    ) -> list[Conflict]:
        """The try whose answer was lost had committed: ask for what it answered, by its keys, all of which are taken now."""
        keyed = [at for at, key in enumerate(keys or ()) if key is not None]
        if not keyed or keys is None or hashes is None:
            return []
        arrays = (pack_uuids([ids[at] for at in keyed]), pack_byteas([inputs[at] for at in keyed]), pack_texts([keys[at] for at in keyed]))
        rows = self._rows(conn, "client_start", (packed[0], *arrays, pack_byteas([hashes[at] for at in keyed]), *packed[5:]))
        return [Conflict(keyed[n - 1], run_id, matches) for n, run_id, matches in rows]

    def announce(self, hint: str) -> None:
        """Tell the hosts what was started, in a transaction of its own. Never raises: they find it by themselves, too."""
        if self._conn is None or self._conn.closed:
            return
        try:
            self._rows(self._conn, "announce_starts", (wake_channel(self.schema), hint))
        except psycopg.Error as error:
            if self._lost(error):
                self.close()

    def outcomes(self, ids: Sequence[bytes]) -> list[Outcome]:
        """How those of *ids* ended that have ended."""
        packed = (pack_uuids(ids),)
        return self._repeat(lambda conn: [Outcome(*row) for row in self._rows(conn, "client_outcomes", packed)])

    def find(
        self,
        *,
        ids: Sequence[bytes] | None = None,
        key: str | None = None,
        workflow: str | None = None,
        status: str | None = None,
        before: uuid.UUID | None = None,
        limit: int = 100,
    ) -> list[Found]:
        """Runs, newest first: those of *ids*, or of *key*, or all."""
        values = (None if ids is None else pack_uuids(ids), key, workflow, status, before, limit)
        return self._repeat(lambda conn: [Found(*row) for row in self._rows(conn, "client_find", values)])

    def parameters(self, workflow: str) -> bytes | None:
        """A workflow's parameters as JSON, None for a name that no worker ever registered."""
        stored: bytes | None = self._repeat(lambda conn: self._rows(conn, "client_parameters", (workflow,))[0][0])
        return stored

    def measure_clock(self) -> None:
        """Measure the clock's offset anew and begin a new source of ids, for a clock that was set."""
        self.ids = RunIds(cell=self.ids.cell)
        self._repeat(self._measure)

    # ── the session ──────────────────────────────────────────────────────────────────────────────────────────

    def _rows(self, conn: psycopg.Connection, name: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        cursor = psycopg.RawCursor(conn)
        return cursor.execute(self._sql.get(name).encode(), values, binary=True).fetchall()

    def _session(self) -> psycopg.Connection:
        if self._conn is None or self._conn.closed:
            conn = _connect.connect(self.dsn, purpose=self.purpose, schema=self.schema, profile="client")
            self._user = conn.info.user
            for dumper in (_UuidsDumper, _ByteasDumper, _TextsDumper):
                conn.adapters.register_dumper(dumper.packed, dumper)
            try:
                self._measure(conn)
            except BaseException:
                conn.close()
                raise
            self._conn = conn
        return self._conn

    def _measure(self, conn: psycopg.Connection) -> None:
        """Ask for cell, schema and clock; the answer's moment is taken as the middle of the round trip."""
        asked_ns = time.time_ns()
        cell, migration, clock_us = self._rows(conn, "client_facts", ())[0]
        here_us = (asked_ns + time.time_ns()) // 2000
        self._refuse_other_schema(conn, migration)
        if cell != self.ids.cell:
            self.ids = RunIds(cell=cell)
        self.ids.offset_us = clock_us - here_us
        self._measured_at = time.monotonic()

    def _refuse_other_schema(self, conn: psycopg.Connection, migration: int) -> None:
        known = len(migration_files())
        where = f"schema {self.schema!r} of database {conn.info.dbname!r} is at migration {migration} and pgsupervisor {VERSION}"
        if migration < known:
            raise SchemaTooOld(f"{where} needs {known}; bring it up: {migrations.command(self.schema)}")
        if migration > known:
            raise SchemaTooNew(f"{where} knows {known}; upgrade it: pip install -U pgsupervisor")

    def _repeat(self, call: Callable[[psycopg.Connection], T], what: str = "a question") -> T:
        """Do *call*; again on a fresh session while the old one was lost, for RETRY_S."""
        give_up_at = time.monotonic() + RETRY_S
        pause_s = 0.02
        while True:
            try:
                return call(self._session())
            except psycopg.Error as error:
                if not self._lost(error):
                    raise self._refusal(error, what) from None
                self.close()
                if time.monotonic() > give_up_at:
                    raise DatabaseUnavailable(f"{what} had no answer for {RETRY_S:.0f} s; {_connect.unavailable(error)}") from None
            except DatabaseUnavailable:
                if self._conn is None and self._measured_at == 0.0 or time.monotonic() > give_up_at:
                    raise  # never connected: tell at once
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    def _lost(self, error: psycopg.Error) -> bool:
        """Is the session of no more use: gone, or on a server that was demoted?"""
        if self._conn is not None and (self._conn.broken or self._conn.closed):
            return True
        state = error.sqlstate
        if state is None:
            return isinstance(error, psycopg.OperationalError)
        return state.startswith(("08", "57P0")) or state in ("25006", "40001", "40P01")

    def _refusal(self, error: psycopg.Error, what: str) -> SupervisorError:
        """The project's words for what the database refused."""
        state, text = error.sqlstate or "", str(error).strip().splitlines()[0]
        if state == "SV001":
            return UnknownWorkflow(_between_quotes(text))
        if state == "SV002":
            return ClockSkew(f"{text}; set the clock of this machine (measured: {self.ids.offset_us / 1e6:+.1f} s against the database)")
        if state == "SV005":
            named = json.loads(error.diag.message_detail or "{}")
            return KeyExists(named["workflow"], named["key"], uuid.UUID(named["run_id"]))
        if state == "SV006":
            return RunUnknown(error.diag.message_detail or "")
        if state == "SV008":
            return BatchUnknown(_between_quotes(text))
        if state in ("3F000", "42883", "42P01"):
            return SchemaMissing(
                f"schema {self.schema!r} of the database has no tables of pgsupervisor, or older ones; "
                f"make them: {migrations.command(self.schema)}"
            )
        if state == "42501":
            return SchemaMissing(
                f"role {self._user!r} may not use schema {self.schema!r} ({text}); grant it the engine's role: "
                f'GRANT {self._sql.tokens["role_client"]} TO "{self._user}"'
            )
        if state == "22023":
            return InputInvalid(what, text)
        if state == "23514" and "no partition" in text:
            return DatabaseUnavailable(f"{what}: {text}; nobody made partitions ahead: {migrations.command(self.schema)}")
        return DatabaseUnavailable(
            f"{what} was refused by the database: {text} (SQLSTATE {state or 'none'}); nothing was started, mend the cause and try again"
        )


def _between_quotes(text: str) -> str:
    return text[text.find('"') + 1 : text.rfind('"')]


# ── array parameters in their binary form, built in bulk: psycopg's own list dumper costs 1 µs per element ───────

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
