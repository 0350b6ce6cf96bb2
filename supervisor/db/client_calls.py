"""A client's calls: what is asked of the database, how its answers and refusals are read, and the session that carries it.

Owns the questions and their SQLSTATEs (`Questions`, no I/O), the client's session and its repetition (`ClientCalls`). Knows
nothing of workflows, encoding or handles. A question is written once, as a generator: it yields a statement, is sent the
rows, returns what they mean. `ClientCalls` carries it over its own session, `AsyncClientCalls` over one of an event
loop, `Borrowed` over the caller's.

Invariant: a call that may have reached the server is repeated only where repeating changes nothing: reads, starts under
the ids of the first try, cancellations.

Neither is thread-safe or fork-safe: `supervisor.api.client` sees to both.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

import psycopg
from psycopg import errors

from supervisor.core.errors import (
    BatchUnknown,
    ClockSkew,
    DatabaseUnavailable,
    InputInvalid,
    KeyExists,
    KeyMismatch,
    RunClosed,
    RunUnknown,
    SchemaTooNew,
    SchemaTooOld,
    SupervisorError,
    UnknownWorkflow,
    VersionUnknown,
)
from supervisor.core.ids import RunIds, clock_offset_us
from supervisor.core.version import VERSION
from supervisor.db import connect as _connect
from supervisor.db import migrations, refusals
from supervisor.db.packed import add_dumpers, pack_byteas, pack_texts, pack_uuids
from supervisor.db.prepared import Prepared
from supervisor.db.statements import Sql, ended_channel, migration_files, query_channel, signal_channel, wake_channel

OFFSET_FRESH_S = 60.0  # a clock of 500 ppm drifts 30 ms in that time; ids may be 60 s off
RETRY_S = 10.0  # how long a lost database is tried for before the caller is told
PAUSE_MAX_S = 1.0
What = Literal["signal", "update"]
SENDS = {"signal": ("client_signal", "client_signal_start"), "update": ("client_send_update", "client_update_start")}  # alone, with a start
MAYBE_DONE = ("54000", "57014")  # no room for the announcement, or somebody's patience ended: before or after the commit of what is announced

if TYPE_CHECKING:
    from supervisor.core.filters import Filter, Order
    from supervisor.core.traces import Trace

T = TypeVar("T")
Rows = list[tuple[Any, ...]]
Question = tuple[str | bytes, Sequence[object]]  # a block's name, or a statement as it stands, and its values
Talk = Generator[Question, Rows, T]


class Ask(Generic[T]):
    """One thing to be asked, again on another session where the first was lost.

    talk    makes the conversation; it is given the number of the try, from 1
    writes  whether it changes anything, so that it matters which transaction it stands in
    apart   whether it wants a transaction, or a savepoint, that is rolled back: what it sets is to end with it
    role    which of the engine's roles may ask that
    """

    __slots__ = ("apart", "role", "talk", "what", "writes")

    def __init__(
        self, talk: Callable[[int], Talk[T]], what: str = "a question", *, writes: bool = False, apart: bool = False, role: str = "client"
    ) -> None:
        self.talk, self.what, self.writes, self.apart, self.role = talk, what, writes, apart, role

    def __iter__(self) -> Generator[Ask[T], T, T]:
        """`answer = yield from ask`, typed."""
        return (yield self)


Verb = Generator[Ask[Any], Any, T]


def carry(said: Generator[Any, Any, T], do: Callable[[Any], Any]) -> T:
    """Do what *said* yields, one by one, and give it the answers or errors; its return value."""
    try:
        asked = next(said)
        while True:
            try:
                answer = do(asked)
            except Exception as error:  # noqa: BLE001 - whoever asked decides what it means
                asked = said.throw(error)
            else:
                asked = said.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


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


class BatchResult(NamedTuple):
    run_id: uuid.UUID
    key: str | None
    status: str
    result: bytes | None
    ended_at: datetime | None


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


class QueryStanding(NamedTuple):
    """status: 1 answered, 2 failed, None not yet; taken: by a host."""

    status: int | None
    reply: bytes
    taken: bool


class UpdateStanding(NamedTuple):
    """stage: admitted, accepted, completed, failed, rejected, unfinished, closed; reply: the answer or the error; run_status: how the run ended."""

    stage: str
    reply: bytes | None
    run_status: str | None


class Told(NamedTuple):
    """A run that was cancelled: it has ended, or worker `owner` has it, or it was woken where that is None."""

    run_id: uuid.UUID
    ended: bool
    owner: int | None
    workflow: str
    queue: str | None


class Sent(NamedTuple):
    """What became of a signal or an update. `owner`: the worker that has the run; `woken`: it was parked."""

    stored: bool
    owner: int | None
    woken: bool
    workflow: str
    queue: str | None


def _traced(block: str, values: Sequence[object], trace: Trace | None) -> Question:
    """A start, or a message; in somebody's span, where it is in one."""
    return (block, values) if trace is None else (f"{block}_traced", (*values, trace.parent, trace.state))


class Questions:
    """What one client asks of one schema. `ids` makes run ids by the database's clock; measure first."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.ids = RunIds()
        self.doing: str | None = None  # what the program is asked to do, where it asks for one thing alone: named in what it is refused
        self._sql = Sql(schema)
        self._measured_at = 0.0
        self._backend_pid = 0
        self._user = self._dbname = ""

    def text(self, what: str | bytes) -> bytes:
        return what if isinstance(what, bytes) else self._sql.get(what).encode()

    def met(self, conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
        """Whom a refusal is about."""
        self._user, self._dbname = conn.info.user, conn.info.dbname

    def prepared(self, conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> Prepared | None:
        """For statements of this session, just measured: where no pooler, which gives each transaction another backend, is in between."""
        return Prepared(conn) if conn.info.backend_pid == self._backend_pid else None

    def run_ids(self, n: int) -> Verb[list[bytes]]:
        """*n* fresh run ids of 16 bytes; measures the clock's offset first when the last measure is a minute old."""
        yield from Ask(self._measure_if_old)
        return self.ids.new_bytes(n)

    def measure(self) -> Ask[None]:
        """Ask for cell, schema and clock. Raises SchemaTooOld, SchemaTooNew."""
        return Ask(lambda _: self._measure())

    def measure_anew(self) -> Ask[None]:
        """Measure the clock's offset and begin a new source of ids, for a clock that was set."""
        self.ids = RunIds(cell=self.ids.cell)
        return self.measure()

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
        trace: Trace | None = None,
        ended: list[bytes] | None = None,
    ) -> Ask[list[Conflict]]:
        """Start runs of one workflow in one transaction; the keys that named runs already. One round trip.

        trace   the span that they are started in
        ended   with on_conflict "replace": takes the ids of the runs that were ended for these
        Repeated under the same ids when the session is lost: a unique violation then says that the first try had arrived.
        Raises UnknownWorkflow, ClockSkew, InputInvalid, KeyExists, DatabaseUnavailable.
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

        def talk(tries: int) -> Talk[list[Conflict]]:
            try:
                if on_conflict == "replace" and keys is not None:
                    rows = yield _traced("client_replace", packed[:-1], trace)
                    if ended is not None:
                        ended[:] = [run_id.bytes for n, run_id, _ in rows if n is None and run_id is not None]
                else:
                    rows = yield _traced("client_start", packed, trace)
            except psycopg.Error as error:
                if tries == 1 or not _met_itself(error):
                    raise
                return (yield from self._asked_again(packed, ids, inputs, keys, hashes))
            return [Conflict(n - 1, run_id, matches) for n, run_id, matches in rows if n is not None]

        return Ask(talk, f"start of {workflow!r}", writes=True)

    def start_one(self, workflow: str, run_id: bytes, payload: bytes, *, queue: str | None, priority: int, delay_s: float, hint: str | None) -> Ask[None]:
        """Start one run without key, batch and attributes; *hint* is told to the hosts as soon as it has committed. One round trip.

        Repeated and refused as `start`. Only for a session of its own where there is a hint: it takes three transactions, of which the last waits for
        the disk. So a run that a repeated start meets need not be there yet, and that is waited for.
        """
        values = (workflow, uuid.UUID(bytes=run_id), payload, queue, priority, float(delay_s))

        def talk(tries: int) -> Talk[None]:
            told = hint is not None and tries == 1
            try:
                if told:
                    yield "client_start_told", (*values, wake_channel(self.schema), hint)
                else:
                    yield "client_start_one", values
            except psycopg.Error as error:
                if told and error.sqlstate in MAYBE_DONE:
                    yield from talk(2)
                elif tries > 1 and _met_itself(error):
                    yield "client_wait_for_disk", ()
                else:
                    raise

        return Ask(talk, f"start of {workflow!r}", writes=True)

    def _asked_again(
        self,
        packed: Sequence[object],
        ids: Sequence[bytes],
        inputs: Sequence[bytes],
        keys: Sequence[str | None] | None,
        hashes: Sequence[bytes] | None,
    ) -> Talk[list[Conflict]]:
        """The try whose answer was lost had committed: ask for what it answered, by its keys, all of which are taken now."""
        keyed = [at for at, key in enumerate(keys or ()) if key is not None]
        if not keyed or keys is None or hashes is None:
            return []
        arrays = (pack_uuids([ids[at] for at in keyed]), pack_byteas([inputs[at] for at in keyed]), pack_texts([keys[at] for at in keyed]))
        rows = yield "client_start", (packed[0], *arrays, pack_byteas([hashes[at] for at in keyed]), *packed[5:10], "return")
        return [Conflict(keyed[n - 1], run_id, matches) for n, run_id, matches in rows]

    def outcomes(self, ids: Sequence[bytes], patience_s: float = 0.0) -> Ask[list[Outcome]]:
        """How those of *ids* ended that have ended; of none, the database waits for the first of them for *patience_s*, at most 2 ms."""
        block, more = ("client_outcomes_soon", (patience_s,)) if patience_s > 0 else ("client_outcomes", ())
        return self._rows(block, (pack_uuids(ids), *more), lambda rows: [Outcome(*row) for row in rows])

    def batch_results(self, batch: str, after: uuid.UUID | None, limit: int) -> Ask[list[BatchResult]]:
        """The next *limit* runs of a batch after run *after*, in the order of their input, those too that have not ended."""
        return self._rows("client_batch_results", (batch, after, limit), lambda rows: [BatchResult(*row) for row in rows])

    def find(
        self,
        *,
        ids: Sequence[bytes] | None = None,
        key: str | None = None,
        workflow: str | None = None,
        status: str | None = None,
        before: uuid.UUID | None = None,
        limit: int = 100,
    ) -> Ask[list[Found]]:
        """Runs, newest first: those of *ids*, or of *key*, or all."""
        values = (None if ids is None else pack_uuids(ids), key, workflow, status, before, limit)
        return self._rows("client_find", values, lambda rows: [Found(*row) for row in rows])

    def filtered(self, asked: Filter | None, before: uuid.UUID | None, limit: int, patience_s: float, order: Order | None = None) -> Ask[list[Found]]:
        """Runs that fit a filter, newest first or in *order*; through the views, so that a viewer's right is needed. Raises ReadTimeout."""
        from supervisor.db import look

        def talk(tries: int) -> Talk[list[Found]]:
            rows = yield from look.talk(self.schema, "list_found", asked, (before, limit), patience_s, order)
            return [Found(*row) for row in rows]

        return Ask(talk, "a list by a filter, which reads the views", apart=True, role="viewer")

    def home(self) -> Ask[str]:
        """Which server, database and schema this is."""
        return self._rows("client_home", (), lambda rows: str(rows[0][0]))

    def cancel(self, run_id: uuid.UUID, reason: str | None, actor: str | None) -> Ask[list[Told]]:
        """Ask that a live run, and all below it, be cancelled: those that were not before. Raises RunUnknown, InputInvalid.

        Repeated when the session was lost in between, so it may bring nothing where the first try's answer was lost.
        """

        def talk(tries: int) -> Talk[list[Told]]:
            return [Told(*row) for row in (yield "client_cancel", (run_id, reason, actor))]

        return Ask(talk, f"cancel of run {run_id}", writes=True)

    def terminate(self, run_id: uuid.UUID, reason: str | None, actor: str | None) -> Ask[bool]:
        """End a live run at once. False where it had ended. Raises RunUnknown. Repeated as `cancel`."""

        def talk(tries: int) -> Talk[bool]:
            rows = yield "client_terminate", (run_id, reason, actor)
            return bool(rows[0][0])

        return Ask(talk, f"end of run {run_id}", writes=True)

    def published(self, run_id: uuid.UUID, key: str | None = None) -> Ask[list[tuple[str, bytes]]]:
        """What a run has published, the last value of each key, or of *key*. Raises RunUnknown."""
        return self._rows("client_published", (run_id, key), lambda rows: [(row[0], row[1]) for row in rows])

    def newest(self, run_id: uuid.UUID) -> Ask[uuid.UUID]:
        return self._rows("client_newest", (run_id,), lambda rows: rows[0][0])

    def progress(self, run_id: uuid.UUID) -> Ask[str | None]:
        return self._rows("client_progress", (run_id,), lambda rows: rows[0][0])

    def attributes(self, run_id: uuid.UUID) -> Ask[str]:
        return self._rows("client_attributes", (run_id,), lambda rows: str(rows[0][0]))

    def ask_query(self, query_id: uuid.UUID, run_id: uuid.UUID, name: str, payload: bytes | None, within_s: float) -> Ask[str]:
        """Put a question to a run; its workflow. Raises RunUnknown."""
        return self._rows("client_ask_query", (query_id, run_id, name, payload, within_s), lambda rows: str(rows[0][0]))

    def query_answer(self, query_id: uuid.UUID) -> Ask[QueryStanding | None]:
        """How it stands; None when the database does not know it any more."""
        return self._rows("client_query_answer", (query_id,), lambda rows: QueryStanding(*rows[0]) if rows else None)

    def forget_query(self, query_id: uuid.UUID) -> Ask[None]:
        return self._rows("client_forget_query", (query_id,), lambda rows: None)

    def tell_of_query(self, workflow: str) -> Ask[None]:
        """Tell the hosts that a run of *workflow* was asked something. A statement of its own, after the question is durable."""
        return self._rows("announce_starts", (query_channel(self.schema), workflow), lambda rows: None)

    def update_standing(self, run_id: uuid.UUID, name: str, update_id: str) -> Ask[UpdateStanding | None]:
        """How an update stands; None when the run knows of none with that id. Raises RunUnknown."""
        return self._rows("client_update_standing", (run_id, name, update_id), lambda rows: UpdateStanding(*rows[0]) if rows else None)

    def update(self, run_id: uuid.UUID, name: str, payload: bytes, update_id: str, trace: Trace | None = None) -> Ask[Sent]:
        """Send an update, in the span *trace*. Raises RunUnknown, RunClosed. Sent again under the same id when the session is lost: it is the same update."""

        def talk(tries: int) -> Talk[Sent]:
            rows = yield _traced("client_send_update", (run_id, name, payload, update_id), trace)
            return Sent(*rows[0])

        return Ask(talk, f"update {name!r} to run {run_id}", writes=True)

    def signal(self, run_id: uuid.UUID, name: str, payload: bytes, message_id: str, tell: bool | None, trace: Trace | None = None) -> Ask[Sent]:
        """Send a signal. Raises RunUnknown, RunClosed. Sent again under the same id when the session is lost, so it is stored once.

        tell   whether the hosts are told of it in the same round trip; None in a transaction of the caller's, where nothing may be committed, and with a trace
        trace  the span that it is sent in
        """
        values = (run_id, name, payload, message_id)
        channels = (signal_channel(self.schema), wake_channel(self.schema)) if tell else (None, None)

        def talk(tries: int) -> Talk[Sent]:
            if tell is None or tries > 1:
                rows = yield _traced("client_signal", values, trace)
                return Sent(*rows[0])
            try:
                rows = yield "client_signal_told", (*values, *channels)
            except psycopg.Error as error:
                if error.sqlstate not in MAYBE_DONE:
                    raise
                rows = yield "client_signal", values
            return Sent(*rows[0])

        return Ask(talk, f"signal {name!r} to run {run_id}", writes=True)

    def signals(self, messages: Sequence[tuple[uuid.UUID, str, bytes, str]]) -> Ask[list[Sent]]:
        """Send up to 500 signals (run, name, payload, id), all or none, in one round trip. Raises and is repeated as `signal`; not in a transaction of the caller's."""
        runs, names, payloads, ids = zip(*messages, strict=True)
        values = (pack_uuids([run.bytes for run in runs]), pack_texts(names), pack_byteas(payloads), pack_texts(ids))

        def talk(tries: int) -> Talk[list[Sent]]:
            try:
                rows = yield "client_signals", values
            except psycopg.Error as error:
                if error.sqlstate not in MAYBE_DONE:
                    raise
                rows = yield "client_signals", values
            return [Sent(*each) for each in zip(*rows[0], strict=True)]

        return Ask(talk, f"{len(messages)} signals", writes=True)

    def send_start(
        self,
        what: What,
        workflow: str,
        run_id: bytes,
        payload: bytes,
        key: str | None,
        input_hash: bytes | None,
        name: str,
        message: bytes,
        message_id: str,
        *,
        queue: str | None = None,
        priority: int = 5,
        delay_s: float = 0.0,
        attributes: bytes | None = None,
        batch: str | None = None,
        on_conflict: str = "return",
        trace: Trace | None = None,
    ) -> Ask[tuple[uuid.UUID, Sent]]:
        """Start a run, or find the one that *key* names, and send it a signal or an update. Raises as `start` and `signal`, and KeyMismatch.

        Repeated under the same ids when the session is lost: where the first try had arrived its run is there, and so is its message.
        """
        made = uuid.UUID(bytes=run_id)
        values = (
            workflow, made, payload, key, input_hash, queue, priority, float(delay_s), attributes, batch, on_conflict, name, message, message_id,
        )  # fmt: skip

        def talk(tries: int) -> Talk[tuple[uuid.UUID, Sent]]:
            try:
                rows = yield _traced(SENDS[what][1], values, trace)
            except psycopg.Error as error:
                if tries == 1 or not _met_itself(error):
                    raise
                rows = yield SENDS[what][0], (made, name, message, message_id)
                return made, Sent(*rows[0])
            return rows[0][0], Sent(*rows[0][1:])

        return Ask(talk, f"start of {workflow!r} with {what} {name!r}", writes=True)

    def parameters(self, workflow: str) -> Ask[bytes | None]:
        """A workflow's parameters as JSON, None for a name that no worker ever registered."""
        return self._rows("client_parameters", (workflow,), lambda rows: rows[0][0])

    def announcement(self, hint: str) -> Question:
        """What tells the hosts what was started."""
        return "announce_starts", (wake_channel(self.schema), hint)

    def announcement_of_signals(self, hint: str) -> Question:
        """What tells the hosts which workers have runs to which signals were sent."""
        return "announce_starts", (signal_channel(self.schema), hint)

    def announcement_of_ends(self, hint: str) -> Question:
        """What tells who waits what was ended."""
        return "announce_starts", (ended_channel(self.schema), hint)

    def _rows(self, block: str, values: Sequence[object], read: Callable[[Rows], T]) -> Ask[T]:
        def talk(tries: int) -> Talk[T]:
            rows = yield block, values
            return read(rows)

        return Ask(talk)

    def _measure_if_old(self, tries: int) -> Talk[None]:
        if time.monotonic() - self._measured_at > OFFSET_FRESH_S or not self._measured_at:
            yield from self._measure()

    def _measure(self) -> Talk[None]:
        asked_us = time.time_ns() // 1000
        rows = yield "client_facts", ()
        answered_us = time.time_ns() // 1000
        cell, migration, told_us, self._backend_pid = rows[0]
        self._refuse_other_schema(migration)
        if cell != self.ids.cell:
            self.ids = RunIds(cell=cell)
        self.ids.offset_us = clock_offset_us(asked_us, answered_us, told_us)
        self._measured_at = time.monotonic()

    def _refuse_other_schema(self, migration: int) -> None:
        known = len(migration_files())
        where = f"schema {self.schema!r} of database {self._dbname!r} is at migration {migration} and pgsupervisor {VERSION}"
        if migration < known:
            raise SchemaTooOld(f"{where} needs {known}; bring it up: {migrations.command(self.schema)}")
        if migration > known:
            raise SchemaTooNew(f"{where} knows {known}; upgrade it: pip install -U pgsupervisor")

    def refusal(self, error: psycopg.Error, what: str, role: str = "client") -> SupervisorError:
        """The project's words for what the database refused; *role* of the engine's would have been let in."""
        state, text = error.sqlstate or "", str(error).strip().splitlines()[0]
        if state == "SV001":
            return UnknownWorkflow(_between_quotes(text))
        if state == "SV002":
            return ClockSkew(f"{text}; set the clock of this machine (measured: {self.ids.offset_us / 1e6:+.1f} s against the database)")
        if state == "SV005":
            named = json.loads(error.diag.message_detail or "{}")
            return KeyExists(named["workflow"], named["key"], uuid.UUID(named["run_id"]))
        if state == "SV007":
            named = json.loads(error.diag.message_detail or "{}")
            return KeyMismatch(named["workflow"], named["key"], uuid.UUID(named["run_id"]))
        if state == "SV010":
            closed = json.loads(error.diag.message_detail or "{}")
            return RunClosed(uuid.UUID(closed["run_id"]), closed["status"], closed.get("signal"), closed.get("update"))
        if state == "SV026":
            asked = json.loads(error.diag.message_detail or "{}")
            return VersionUnknown(asked["workflow"], asked["version"], asked["known"])
        if (operated := refusals.operated(state, error.diag.message_detail or "{}")) is not None:
            return operated
        if state == "SV006":
            return RunUnknown(error.diag.message_detail or "")
        if state == "SV008":
            return BatchUnknown(_between_quotes(text))
        if state in ("3F000", "42883", "42P01"):
            return refusals.no_schema(self.schema, self._dbname)
        if state == "42501":
            return refusals.no_right(self.schema, self._user, role, text, self.doing or what)
        if state == "22023":
            return InputInvalid(what, text.removeprefix("input 1 of ") if what.startswith("schedule ") else text)
        if state == "23514" and "no partition" in text:
            return DatabaseUnavailable(f"{what}: {text}; nobody made partitions ahead: {migrations.command(self.schema)}")
        return DatabaseUnavailable(
            f"{what} was refused by the database: {text} (SQLSTATE {state or 'none'}); nothing was started, mend the cause and try again"
        )


def _met_itself(error: psycopg.Error) -> bool:
    """Is it what a start meets whose first try had arrived: its own rows?"""
    return isinstance(error, errors.UniqueViolation) and (error.diag.table_name or "").startswith("run_2")


def _between_quotes(text: str) -> str:
    return text[text.find('"') + 1 : text.rfind('"')]


# ── the client's own session ─────────────────────────────────────────────────────────────────────────────────────


def is_lost(error: psycopg.Error, conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any] | None) -> bool:
    """Is the session of no more use: gone, or on a server that was demoted?"""
    if conn is not None and (conn.broken or conn.closed):
        return True
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError)
    return state.startswith(("08", "57P0")) or state in ("25006", "40001", "40P01")


class Patience:
    """Whether what failed is tried again, and after what pause: a lost session's question is, for RETRY_S."""

    def __init__(self, questions: Questions, ask: Ask[Any]) -> None:
        self._questions, self._what, self._role = questions, ask.what, ask.role
        self._give_up_at = time.monotonic() + RETRY_S
        self._pause_s = 0.02

    def refused(self, error: psycopg.Error, lost: bool) -> float:
        """Seconds until the next try. Raises the project's words where there is none."""
        if not lost:
            raise self._questions.refusal(error, self._what, self._role) from None
        if time.monotonic() > self._give_up_at:
            raise DatabaseUnavailable(f"{self._what} had no answer for {RETRY_S:.0f} s; {_connect.unavailable(error)}") from None
        return self._pause()

    def unreachable(self, error: DatabaseUnavailable, ever: bool) -> float:
        """Seconds until the next try to connect; a client that never had a session is told at once."""
        if not ever or time.monotonic() > self._give_up_at:
            raise error
        return self._pause()

    def _pause(self) -> float:
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, PAUSE_MAX_S)
        return pause_s * random.uniform(0.5, 1.0)


class ClientCalls:
    """One session, opened at first use and again when it was lost, and what is asked over it."""

    def __init__(self, dsn: _connect.Dsn, schema: str | Questions, purpose: str = "client") -> None:
        self.dsn, self.purpose = dsn, purpose
        self.questions = Questions(schema) if isinstance(schema, str) else schema
        self.schema = self.questions.schema
        self.connected = False  # whether it ever had a session
        self._conn: psycopg.Connection | None = None
        self._prepared: Prepared | None = None

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def carry(self, verb: Verb[T]) -> T:
        """Do a verb: ask what it asks."""
        return carry(verb, self.ask)

    def run_ids(self, n: int) -> list[bytes]:
        return self.carry(self.questions.run_ids(n))

    def start(self, *asked: Any, **how: Any) -> list[Conflict]:
        """As `Questions.start`."""
        return self.ask(self.questions.start(*asked, **how))

    def outcomes(self, ids: Sequence[bytes]) -> list[Outcome]:
        return self.ask(self.questions.outcomes(ids))

    def batch_results(self, batch: str, after: uuid.UUID | None, limit: int) -> list[BatchResult]:
        return self.ask(self.questions.batch_results(batch, after, limit))

    def parameters(self, workflow: str) -> bytes | None:
        return self.ask(self.questions.parameters(workflow))

    def ask(self, ask: Ask[T]) -> T:
        """Ask; again on a fresh session while the old one was lost, for RETRY_S."""
        patience = Patience(self.questions, ask)
        tries = 0
        while True:
            try:
                conn = self._session()
                tries += 1
                with conn.transaction(force_rollback=True) if ask.apart else nullcontext():
                    return carry(ask.talk(tries), partial(self._rows, conn))
            except psycopg.Error as error:
                pause_s = patience.refused(error, is_lost(error, self._conn))
                self.close()
            except DatabaseUnavailable as error:
                pause_s = patience.unreachable(error, self.connected)
            time.sleep(pause_s)

    def announce(self, announcement: Question) -> None:
        """Tell others what was started, sent or ended, in a transaction of its own. Never raises: they find it by themselves, too."""
        if self._conn is None or self._conn.closed:
            return
        try:
            self._rows(self._conn, announcement)
        except psycopg.Error as error:
            if is_lost(error, self._conn):
                self.close()

    def _rows(self, conn: psycopg.Connection, question: Question) -> Rows:
        name, values = question
        if self._prepared is not None and self._prepared.takes(name):
            return conn.wait(self._prepared.talk(name, self.questions.text(name), values))
        cursor = psycopg.RawCursor(conn).execute(self.questions.text(name), values, binary=True)
        return cursor.fetchall() if cursor.pgresult is not None and cursor.pgresult.nfields else []

    def _session(self) -> psycopg.Connection:
        if self._conn is None or self._conn.closed:
            conn, self._prepared = _connect.connect(self.dsn, purpose=self.purpose, schema=self.questions.schema, profile="client"), None
            try:
                self.questions.met(conn)
                add_dumpers(conn.adapters)
                carry(self.questions.measure().talk(1), partial(self._rows, conn))
                self._prepared = self.questions.prepared(conn)
            except BaseException:
                conn.close()
                raise
            self._conn = conn
            self.connected = True
        return self._conn
