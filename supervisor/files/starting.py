"""Start a run of every record of a file: read and check a chunk while the server stores the one before.

Owns the chunks and the counts. At most three chunks are in memory, of CHUNK_RUNS records or CHUNK_BYTES each.
Invariant: a chunk is one transaction under ids made beforehand, and is counted and its rejects are written when it is
acknowledged; so `tally` never says more than the database holds, and all of a file up to `tally.line` is done.
"""

from __future__ import annotations

import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from supervisor.api.asked import Named
from supervisor.api.hints import Hints
from supervisor.core.errors import FileDamaged, InputInvalid, RecordRefused
from supervisor.files.record import Refused, Rules
from supervisor.files.rejects import Reject, Rejects
from supervisor.files.source import Source, Unread

if TYPE_CHECKING:
    from supervisor.db.client_calls import ClientCalls, Conflict

CHUNK_RUNS = 5_000  # per transaction: 40 ms of the server's time
CHUNK_BYTES = 4 << 20
IDS_IN_MEMORY_BYTES = 16 << 20  # a million ids; more are spooled to a file

Row = Callable[[Any], tuple[bytes, str | None]]


class Tally(msgspec.Struct):
    """What became of the records so far. records = created + existing + mismatched + rejected."""

    line: int = 0  # all up to this line is done
    created: int = 0
    existing: int = 0
    mismatched: int = 0
    rejected: int = 0

    @property
    def records(self) -> int:
        return self.created + self.existing + self.mismatched + self.rejected


class _Chunk:
    """Records on their way to the server; parallel lists, for a chunk has thousands."""

    def __init__(self, keyed: bool) -> None:
        self.inputs: list[bytes] = []
        self.keys: list[str | None] | None = [] if keyed else None
        self.records: list[tuple[int, Any]] = []  # line and what stood there, for what the server refuses
        self.refused: list[Reject] = []
        self.size = 0

    @property
    def full(self) -> bool:
        return len(self.inputs) + len(self.refused) >= CHUNK_RUNS or self.size >= CHUNK_BYTES

    @property
    def last_line(self) -> int:
        return max(self.records[-1][0] if self.records else 0, self.refused[-1].line if self.refused else 0)


class Starter:
    """Starts the records of one source. *keep_ids*: `ids` holds 16 bytes for every run of a good record, to wait for."""

    def __init__(self, calls: ClientCalls, how: Named, rules: Rules, rejects: Rejects, *, keyed: bool, strict: bool = False, keep_ids: bool = False) -> None:
        self._calls, self._how, self._rules, self._rejects = calls, how, rules, rejects
        self._keyed, self._strict = keyed, strict
        self._hints = Hints()
        self.tally = Tally()
        self.ids: BinaryIO | None = tempfile.SpooledTemporaryFile(IDS_IN_MEMORY_BYTES) if keep_ids else None  # type: ignore[assignment]
        self._head: list[str] | None = None
        self._sent: deque[tuple[_Chunk, Future[tuple[list[bytes], list[Conflict]]]]] = deque()
        self._broken = False  # a chunk was not acknowledged; none is sent after it
        self._ended = False  # by a record that --strict does not let pass

    def start(self, source: Source, form: str, show: Callable[[], None]) -> None:
        """Start all records of *source*; *form* is jsonl or csv; *show* is called once a chunk.

        Raises  RecordRefused with --strict, when all records before the bad one are started; FileDamaged; what a start raises.
        """
        with ThreadPoolExecutor(1, "pgsupervisor-start") as sender:
            try:
                for chunk in self._chunks(source, form):
                    self._sent.append((chunk, sender.submit(self._send, chunk)))
                    if len(self._sent) > 1:
                        self._settle(source)
                    show()
                while self._sent:
                    self._settle(source)
                    show()
            except BaseException:  # what was sent before is durable, whatever ended the reading
                while self._sent and not self._broken:
                    self._settle(source)
                raise

    # ── chunks ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _chunks(self, source: Source, form: str) -> Iterator[_Chunk]:
        """Records by the chunk, the last one too when the file turns out to be damaged or a record ends it all."""
        chunk = _Chunk(self._keyed)
        records = source.jsonl() if form == "jsonl" else self._below_head(source)
        read: Row = self._rules.json if form == "jsonl" else self._read_row
        try:
            for line, record in records:
                self._take(chunk, line, record, read)
                if chunk.full or chunk.refused and self._strict:
                    yield chunk
                    if chunk.refused and self._strict:
                        return
                    chunk = _Chunk(self._keyed)
        except FileDamaged:
            yield chunk
            raise
        if chunk.inputs or chunk.refused:
            yield chunk

    def _take(self, chunk: _Chunk, line: int, record: Any, read: Row) -> None:
        try:
            if type(record) is Unread:
                raise Refused("$", record.why, "not_read")
            payload, key = read(record)
        except Refused as refused:
            raw = record.text if type(record) is Unread else self._by_column(record) if type(record) is list else record
            chunk.refused.append(Reject(line, refused.path, refused.code, refused.why, raw))
            chunk.size += len(raw) if type(raw) is bytes else sum(map(len, record))
            return
        chunk.inputs.append(payload)
        chunk.records.append((line, record))
        chunk.size += len(payload)
        if chunk.keys is not None:
            chunk.keys.append(key)

    def _below_head(self, source: Source) -> Iterator[tuple[int, list[str] | Unread]]:
        rows = source.csv()
        for line, row in rows:
            try:
                if isinstance(row, Unread):
                    raise Refused("$", row.why)
                self._rules.check_head(row)
            except Refused as refused:
                raise InputInvalid(self._rules.workflow, f"the head of {source.name} (line {line}), {refused.path}: {refused.why}") from None
            self._head = row
            yield from rows

    def _read_row(self, row: list[str]) -> tuple[bytes, str | None]:
        return self._rules.row(self._head or (), row)

    def _by_column(self, row: list[str]) -> dict[str, str]:
        names = [*(self._head or ()), *(f"column {at + 1}" for at in range(len(self._head or ()), len(row)))]
        return dict(zip(names, row))  # as many as there are

    # ── the server ───────────────────────────────────────────────────────────────────────────────────────────────

    def _send(self, chunk: _Chunk) -> tuple[list[bytes], list[Conflict]]:
        """In the sender's thread: the ids that were asked for, and the keys that name other runs."""
        if not chunk.inputs or self._broken:
            return [], []
        try:
            return self._store(chunk)
        except BaseException:
            self._broken = True
            raise

    def _store(self, chunk: _Chunk) -> tuple[list[bytes], list[Conflict]]:
        ids = self._calls.run_ids(len(chunk.inputs))
        hashes = None if chunk.keys is None else [sha256(each).digest() for each in chunk.inputs]
        how = self._how.how
        if self._how.on_conflict == "reject":  # decided here, record by record: the function would refuse the whole chunk
            how["on_conflict"] = "return"
        ended: list[bytes] = []
        conflicts = self._calls.start(self._how.workflow, ids, chunk.inputs, chunk.keys, hashes, ended=ended, **how)
        self._hints.add(self._how.workflow, self._how.queue, len(ids) - len(conflicts), self._how.delay_s)
        self._hints.ended(ended)
        for each in self._hints.announcements(self._calls.questions):
            self._calls.announce(each)
        return ids, [each for each in conflicts if each.run_id.bytes != ids[each.at]]

    def _settle(self, source: Source) -> None:
        """Count what the server acknowledged of the oldest chunk, write down what was refused, and end it all where --strict says so.

        Whoever interrupts the wait finds the chunk among those that were sent, still to be counted.
        """
        chunk, sent = self._sent[0]
        ids, conflicts = sent.result()
        self._sent.popleft()
        tally, refused = self.tally, chunk.refused
        tally.created += len(ids) - len(conflicts)
        tally.rejected += len(refused)
        for at, run_id, matches in conflicts:
            reason = None if matches else _mismatch(chunk, at, run_id)
            if reason is not None:
                tally.mismatched += 1
            elif self._how.on_conflict == "reject":
                reason = ("key_exists", f"key {_key(chunk, at)!r} names run {run_id} already")
                tally.rejected += 1
            else:
                tally.existing += 1
                ids[at] = run_id.bytes
            if reason is not None:
                line, record = chunk.records[at]
                refused.append(Reject(line, "$", *reason, self._by_column(record) if type(record) is list else record))
                ids[at] = b""
        for reject in sorted(refused, key=lambda each: each.line):
            self._rejects.add(reject)
        self._rejects.flush()
        tally.line = max(tally.line, chunk.last_line)
        if self.ids is not None:
            self.ids.write(b"".join(ids))
        if self._strict and refused and not self._ended:
            self._ended = True
            first = min(refused, key=lambda each: each.line)
            raise RecordRefused(source.name, first.line, first.path, first.why)


def _mismatch(chunk: _Chunk, at: int, run_id: uuid.UUID) -> tuple[str, str]:
    return "key_mismatch", f"key {_key(chunk, at)!r} names run {run_id}, which was started with another input"


def _key(chunk: _Chunk, at: int) -> str:
    return (chunk.keys or [])[at] or ""
