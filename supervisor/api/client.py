"""The client: start runs from outside, ask about them, wait for their results, on threads.

Owns the session, who may use it (one thread at a time, one process, no workflow code) and the overlap of encoding and
sending in `start_many`. What a verb asks stands in verbs.py, how it is sent in `supervisor.db.client_calls`.
Connects at first use. Threads may share a client; a fork may not, and workflow code may not use one at all.
Invariant: a start that was acknowledged is durable, and one whose answer was lost is repeated under the same id.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from supervisor.api.asked import (
    CHUNK_RUNS,
    Asked,
    Chunk,
    Named as Named,
    chunk_of,
    id_of,
    refuse_inside_run,
    registered,
    value_of,
)
from supervisor.api.handles import Batch as Batch, Moved as Moved, Progress as Progress, Run as Run, RunInfo as RunInfo, VersionInfo as VersionInfo
from supervisor.api.hints import Hints
from supervisor.api.operators import OperatorVerbs
from supervisor.api.queues import QueueVerbs
from supervisor.api.schedules import ScheduleVerbs
from supervisor.api.together import Call, Together, signalling, starting, together
from supervisor.api.tokens import TokenVerbs
from supervisor.api.verbs import LIST_S, Started, Verbs
from supervisor.api.waiting import Waiter
from supervisor.core.errors import ClientMisused, DatabaseUnavailable
from supervisor.core.traces import sender

if TYPE_CHECKING:
    from supervisor.api.decorators import StartOptions, Workflow
    from supervisor.api.ear import Ear, Heard
    from supervisor.api.queries import Query, Talk
    from supervisor.api.signals import Message, SignalOf
    from supervisor.api.updates import Sooner, Update, UpdateHandle, UpdateMessage, WaitFor
    from supervisor.api.within import SyncConnection, Within
    from supervisor.db.borrowed import Home
    from supervisor.db.client_calls import ClientCalls, Outcome, Questions, Verb

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
A = TypeVar("A")
Q = TypeVar("Q")

QUERY_TIMEOUT_S = 20.0


class ClientVerbs(OperatorVerbs, TokenVerbs, ScheduleVerbs, QueueVerbs):
    """What `Client` and `Within` share: the verbs, typed; they differ in who carries them (`_carry`)."""

    _unsure = False  # whether a start that returned may still be rolled back

    def _carry(self, make: Callable[[Verbs], Verb[T]]) -> T:
        raise NotImplementedError

    def _owner(self) -> Client:
        raise NotImplementedError

    # ── start ────────────────────────────────────────────────────────────────────────────────────────────────

    @overload
    def start(self, workflow: Workflow[P, R], *args: P.args, **kwargs: P.kwargs) -> Run[R]: ...
    @overload
    def start(self, workflow: StartOptions[P, R], *args: P.args, **kwargs: P.kwargs) -> Run[R]: ...
    @overload
    def start(self, workflow: str | Named, *args: Any, **kwargs: Any) -> Run[Any]: ...
    def start(self, workflow: Any, *args: Any, **kwargs: Any) -> Any:
        """Start one run and return when it is durable.

        workflow  the decorated function, its `.options(key=…)`, or a name that some worker registered
        Raises    InputInvalid or PayloadRefused before anything is sent; UnknownWorkflow, KeyMismatch, KeyExists, ClockSkew.
        """
        return self._run(self._start(Asked.of(workflow), args, kwargs))

    def _start(self, asked: Asked, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Started:
        return self._carry(lambda verbs: verbs.start(asked, args, kwargs))

    def start_record(self, workflow: Any, record: Any) -> Run[Any]:
        """Start one run of a record: the only parameter's value where the workflow has one parameter, else a dict by name."""
        return self._run(self._carry(lambda verbs: verbs.start_record(Asked.of(workflow), record)))

    @overload
    def start_many(
        self, workflow: Workflow[..., R] | StartOptions[..., R], items: Iterable[Any], *, key: Callable[[Any], str | None] | None = None
    ) -> Batch[R]: ...
    @overload
    def start_many(self, workflow: str | Named, items: Iterable[Any], *, key: Callable[[Any], str | None] | None = None) -> Batch[Any]: ...
    def start_many(
        self,
        workflow: Any,
        items: Iterable[Any],
        *,
        key: Callable[[Any], str | None] | None = None,
    ) -> Batch[Any]:
        """Start one run per item, 5,000 to a transaction; *items* may be any iterable and is read as it goes.

        An item is the only parameter's value where the workflow has one parameter, else a dict by parameter name.
        key     item → idempotency key; runs that a key names already are in the batch too
        Raises  as `start`. A bad item ends it with a note of how many runs were started before; they stay.
                KeyMismatch comes last, when all other items were started (`batch.mismatches` has all, error.batch the batch).
        Cost    2 µs per item here and 8 µs at the server, at the same time.
        """
        asked = Asked.of(workflow)
        encode = self._carry(lambda verbs: verbs.encoder(asked))
        batch: Batch[Any] = Batch(self._owner(), asked.name, asked.definition, self._unsure)
        self._stream(asked, encode, iter(items), key, batch)
        batch._told()
        return batch

    def _stream(
        self,
        asked: Asked,
        encode: Callable[[Any], bytes],
        items: Iterator[Any],
        key: Callable[[Any], str | None] | None,
        batch: Batch[Any],
    ) -> None:
        raise NotImplementedError

    def _send(self, asked: Asked, chunk: Chunk, batch: Batch[Any]) -> None:
        ids, there = self._carry(lambda verbs: verbs.start_chunk(asked, chunk))
        batch._add(ids, chunk.keys, there)

    def _run(self, started: Started) -> Run[Any]:
        asked = started.asked
        unsure = self._unsure and started.created
        return Run(
            self._owner(), started.run_id, asked.name, asked.definition, started.key, started.created, started_at=started.at, unsure=unsure
        )

    # ── signal ───────────────────────────────────────────────────────────────────────────────────────────────

    @overload
    def signal(self, run: Run[Any] | uuid.UUID | str, signal: SignalOf[T], value: T, *, id: str | None = None) -> bool: ...
    @overload
    def signal(self, run: Run[Any] | uuid.UUID | str, signal: str, value: Any = None, *, id: str | None = None) -> bool: ...
    def signal(self, run: Run[Any] | uuid.UUID | str, signal: Any, value: Any = None, *, id: str | None = None) -> bool:
        """Send a message to a live run, in the order of the calls; it is kept until the run waits for it.

        signal  a Signal, whose type *value* is checked against; or a name, with any JSON value
        id      a second message of this signal with it is not stored: then False is returned
        Raises  RunClosed where the run has ended, RunUnknown, InputInvalid, PayloadRefused.
        """
        from supervisor.api.signals import message_of

        return self._signal(id_of(run), message_of(signal, value, id))

    def _signal(self, run_id: uuid.UUID, message: Message) -> bool:
        trace = sender()
        return self._carry(lambda verbs: verbs.signal(run_id, message, trace))

    @overload
    def signal_with_start(self, message: Message, workflow: Workflow[P, R], *args: P.args, **kwargs: P.kwargs) -> Run[R]: ...
    @overload
    def signal_with_start(self, message: Message, workflow: StartOptions[P, R], *args: P.args, **kwargs: P.kwargs) -> Run[R]: ...
    @overload
    def signal_with_start(self, message: Message, workflow: str | Named, *args: Any, **kwargs: Any) -> Run[Any]: ...
    def signal_with_start(self, message: Message, workflow: Any, *args: Any, **kwargs: Any) -> Any:
        """Start a run, or find the one that its key names, and send it a message: both or neither.

        message  `approved.message(value, id=…)`; a run that starts finds it when it waits for it
        Raises   as `start` and `signal`: RunClosed where the key names a run that has ended.
        """
        return self._run(self._carry(lambda verbs: verbs.send_with_start("signal", message, Asked.of(workflow), args, kwargs)))

    # ── update ───────────────────────────────────────────────────────────────────────────────────────────────

    @overload
    def update_with_start(self, message: UpdateMessage[Q], workflow: Workflow[P, R], *args: P.args, **kwargs: P.kwargs) -> UpdateHandle[Q]: ...
    @overload
    def update_with_start(self, message: UpdateMessage[Q], workflow: StartOptions[P, R], *args: P.args, **kwargs: P.kwargs) -> UpdateHandle[Q]: ...
    @overload
    def update_with_start(self, message: UpdateMessage[Q], workflow: str | Named, *args: Any, **kwargs: Any) -> UpdateHandle[Q]: ...
    def update_with_start(self, message: UpdateMessage[Q], workflow: Any, *args: Any, **kwargs: Any) -> UpdateHandle[Q]:
        """Start a run, or find the one that its key names, and send it an update: both or neither.

        message  `reserve.message(value, id=…)`; the handle's `result()` waits for the answer, `accepted()` for the acceptance
        Raises   as `start`; RunClosed where the key names a run that has ended.
        """
        from supervisor.api.updates import UpdateHandle

        started = self._carry(lambda verbs: verbs.send_with_start("update", message, Asked.of(workflow), args, kwargs))
        return UpdateHandle(self._owner(), started.run_id, message, self._unsure)

    def _sent(self, run: Run[Any] | uuid.UUID | str, message: UpdateMessage[Q]) -> UpdateHandle[Q]:
        from supervisor.api.updates import UpdateHandle

        trace = sender()
        self._carry(lambda verbs: verbs.update(id_of(run), message, trace))
        return UpdateHandle(self._owner(), id_of(run), message, self._unsure)

    # ── ask ──────────────────────────────────────────────────────────────────────────────────────────────────

    def status(self, run: Run[Any] | uuid.UUID | str) -> RunInfo:
        """Where a run is now. Raises RunUnknown."""
        return self._carry(lambda verbs: verbs.status(id_of(run)))

    def get(self, run_id: uuid.UUID | str) -> Run[Any]:
        """A handle of a run by its id. Raises RunUnknown."""
        found = self._carry(lambda verbs: verbs.status(id_of(run_id)))
        return Run(self._owner(), found.run_id, found.workflow, registered(found.workflow), found.key, False, unsure=self._unsure)

    def cancel(self, run: Run[Any] | uuid.UUID | str, reason: str | None = None, *, actor: str | None = None) -> bool:
        """Ask that a live run, and all below it, be cancelled: their code is told at what it awaits, may clean up, and ends them.

        Recorded when this returns, with *reason* and *actor* (else the database's role). A run that has not begun, or can't run any more, has ended.
        False where it had ended or was cancelled already. Raises RunUnknown, InputInvalid.
        """
        return self._carry(lambda verbs: verbs.cancel(id_of(run), reason, actor))

    def terminate(self, run: Run[Any] | uuid.UUID | str, reason: str | None = None, *, actor: str | None = None) -> bool:
        """End a live run now, whatever it does; none of its code runs any more. For what does not let itself be cancelled.

        False where it had ended already. Raises RunUnknown.
        """
        return self._carry(lambda verbs: verbs.terminate(id_of(run), reason, actor))

    def published(self, run: Run[Any] | uuid.UUID | str) -> Mapping[str, Any]:
        """What a run has published, the last value of each key, as plain JSON values. Raises RunUnknown."""
        return self._carry(lambda verbs: verbs.published(id_of(run)))

    def progress(self, run: Run[Any] | uuid.UUID | str) -> Progress | None:
        """How far a run says that it is; None where it has not said. Raises RunUnknown."""
        return self._carry(lambda verbs: verbs.progress(id_of(run)))

    def attributes(self, run: Run[Any] | uuid.UUID | str) -> Mapping[str, Any]:
        """The attributes that a run has now, as plain JSON values. Raises RunUnknown."""
        return self._carry(lambda verbs: verbs.attributes(id_of(run)))

    def versions(self, workflow: Workflow[..., Any] | str | None = None) -> Sequence[VersionInfo]:
        """Versions of workflows, or of one: who has them, how many runs are of each. Reads the views (viewer, else PermissionMissing)."""
        name = None if workflow is None else Asked.of(workflow).name
        return self._carry(lambda verbs: verbs.versions(name))

    def move(
        self, workflow: Workflow[..., Any] | str, from_version: str | None, to_version: str, *, dry_run: bool = False, reason: str | None = None, actor: str | None = None
    ) -> Moved:
        """Let the live runs of one version go on with the code of another, in slices of 500; again is harmless.

        from_version  None: runs that have begun and have no version, from before there were versions
        dry_run       only count them
        reason, actor  why and who, in the row of audit that each run is left
        Runs that workers have stay as they are; what is parked because its code is missing, or was not what its history says, is
        taken up by whoever has the new version. An operator's right. Raises UnknownWorkflow, VersionUnknown.
        """
        name = Asked.of(workflow).name
        return self._carry(lambda verbs: verbs.move(name, from_version, to_version, dry_run, reason, actor))

    def parameters(self, workflow: str) -> Sequence[Mapping[str, Any]]:
        """What a registered workflow takes: name and required of each parameter. Raises UnknownWorkflow."""
        return self._carry(lambda verbs: verbs.parameters(workflow))

    def list(
        self,
        limit: int = 100,
        *,
        filter: str | None = None,
        workflow: str | None = None,
        status: str | None = None,
        key: str | None = None,
        before: uuid.UUID | None = None,
        timeout: float = LIST_S,
    ) -> Sequence[RunInfo]:
        """Runs, newest first, at most 10,000; *before* takes the last id of the page before, in whatever order.

        filter   as of the command `list`: "workflow = checkout AND attribute.amount >= 100 ORDER BY attribute.amount DESC". It reads the views, for which
                 the database's role must be a viewer too (PermissionMissing); all else needs a client's rights alone
        timeout  seconds that looking for such runs may take (ReadTimeout)
        Raises   FilterInvalid, which says what would fit at that place
        """
        return self._carry(lambda verbs: verbs.runs(limit, filter, timeout, before, workflow, status, key))


class Client(ClientVerbs):
    """Starts runs and asks about them. `with Client() as c: c.start(checkout, order).result(timeout=60)`

    dsn     postgresql://… or key=value; else PGSUPERVISOR_DATABASE_URL, DATABASE_URL, [tool.pgsupervisor] dsn, libpq's own.
            A pooler in transaction mode is fine.
    schema  else PGSUPERVISOR_SCHEMA, [tool.pgsupervisor] schema, "supervisor"
    """

    def __init__(self, dsn: str | None = None, *, schema: str | None = None) -> None:
        self._dsn, self._schema = dsn, schema
        self._source = "Client(dsn)"  # what an error calls the place that the DSN came from
        self._pid = os.getpid()
        self._hints = Hints()
        self._made: Verbs | None = None
        self._lock = threading.RLock()
        self._opened: ClientCalls | None = None
        self._apart_lock = threading.Lock()
        self._apart: ClientCalls | None = None  # a session for waiting, where threads wait while others start
        self._home: Home | None = None  # what within() knows of it
        self._alone = True  # no two threads have met at the session yet
        self._together = Together(self._lock, lambda calls: self._carry(lambda verbs: together(verbs, calls)))
        self._waiter = Waiter(self._outcomes, self._new_ear)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session; the next call opens another."""
        if self._pid != os.getpid():
            return
        self._waiter.close()
        with self._lock:
            if self._opened is not None:
                self._opened.close()
        with self._apart_lock:
            if self._apart is not None:
                self._apart.close()

    def within(self, connection: SyncConnection) -> Within:
        """Every verb in the open transaction of *connection*: what is started there is started when the caller commits, or never.

        connection  a psycopg.Connection, an SQLAlchemy Connection or Session, or Django's `connection`, to the client's database;
                    the driver underneath must be psycopg 3. It is never committed, rolled back or repeated.
        """
        from supervisor.api.within import Within

        self._ready()
        return Within(self, connection)

    def result(self, run: Run[Any] | uuid.UUID | str, timeout: float | None = None) -> Any:
        """The result of a run by its id, as plain JSON values unless its workflow is imported here; see `Run.result`."""
        return self.get(id_of(run)).result(timeout)

    @overload
    def query(self, run: Run[Any] | uuid.UUID | str, query: Query[None, Q], /, *, timeout: float = ...) -> Q: ...
    @overload
    def query(self, run: Run[Any] | uuid.UUID | str, query: Query[A, Q], argument: A, /, *, timeout: float = ...) -> Q: ...
    @overload
    def query(self, run: Run[Any] | uuid.UUID | str, query: str, /, *arguments: Any, timeout: float = ...) -> Any: ...
    def query(self, run: Run[Any] | uuid.UUID | str, query: Any, /, *arguments: Any, timeout: float = QUERY_TIMEOUT_S) -> Any:
        """Ask a run what its handler of *query* answers, where its history stands; by a name, the answer is plain JSON values.

        A host that has its code replays the history and executes nothing; the run itself does not notice, and need not live.
        Raises RunUnknown, QueryUnknown, QueryFailed with the error as `__cause__`, TimeoutError.
        """
        from supervisor.api.queries import Inquiry

        return self._talk(Inquiry(id_of(run), query, arguments, timeout).talk())

    @overload
    def update(self, run: Run[Any] | uuid.UUID | str, update: Update[None, Q], /, *, id: str | None = ..., wait_for: Literal["completed"] = ..., timeout: float | None = ...) -> Q: ...
    @overload
    def update(self, run: Run[Any] | uuid.UUID | str, update: Update[A, Q], value: A, /, *, id: str | None = ..., wait_for: Literal["completed"] = ..., timeout: float | None = ...) -> Q: ...
    @overload
    def update(self, run: Run[Any] | uuid.UUID | str, update: Update[None, Q], /, *, id: str | None = ..., wait_for: Sooner, timeout: float | None = ...) -> UpdateHandle[Q]: ...
    @overload
    def update(self, run: Run[Any] | uuid.UUID | str, update: Update[A, Q], value: A, /, *, id: str | None = ..., wait_for: Sooner, timeout: float | None = ...) -> UpdateHandle[Q]: ...
    @overload
    def update(self, run: Run[Any] | uuid.UUID | str, update: str, /, *arguments: Any, id: str | None = ..., wait_for: Literal["completed"] = ..., timeout: float | None = ...) -> Any: ...
    @overload
    def update(self, run: Run[Any] | uuid.UUID | str, update: str, /, *arguments: Any, id: str | None = ..., wait_for: Sooner, timeout: float | None = ...) -> UpdateHandle[Any]: ...
    def update(
        self, run: Run[Any] | uuid.UUID | str, update: Any, /, *arguments: Any, id: str | None = None, wait_for: WaitFor = "completed", timeout: float | None = None
    ) -> Any:
        """Send an update to a live run and wait until its handler has ended: what that returned. By a name, plain JSON values.

        id        the same id is the same update: it runs once, and who repeats it is given the same answer
        wait_for  "accepted" returns a handle when the run has accepted it, durably, "admitted" when it is stored
        timeout   seconds to wait; None: for ever, which is at most until the run ends
        Raises    UpdateRejected with the validator's error as `__cause__`, UpdateUnknown where the run has no such handler, UpdateFailed with
                  the handler's, UpdateUnfinished and RunClosed where the run has ended, RunUnknown, InputInvalid, PayloadRefused, TimeoutError.
        """
        from supervisor.api.updates import update_message

        handle = self._sent(run, update_message(update, arguments, id))
        if wait_for == "completed":
            return handle.result(timeout)
        return handle if wait_for == "admitted" else handle.accepted(timeout)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────

    def _owner(self) -> Client:
        return self

    def _ready(self) -> None:
        refuse_inside_run()
        check_process(self._pid)

    def _verbs(self) -> Verbs:
        if self._made is None:
            self._made = Verbs(questions_of(self._schema), self._hints)
        return self._made

    def _carry(self, make: Callable[[Verbs], Verb[T]]) -> T:
        self._ready()
        with self._lock:
            if self._opened is None:
                self._opened = self._new_calls("client")
            result = self._opened.carry(make(self._verbs()))
            self._say_hint(self._opened)
            return result

    def _start(self, asked: Asked, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Started:
        self._ready()
        if asked.definition is None or asked.on_conflict != "return":
            return super()._start(asked, args, kwargs)
        asked.keyed()
        started: Started = self._meet(starting(asked, asked.definition.encode_input(args, kwargs)))
        return started

    def _signal(self, run_id: uuid.UUID, message: Message) -> bool:
        self._ready()
        stored: bool = self._meet(signalling(run_id, message))
        return stored

    def _meet(self, call: Call) -> Any:
        """Do it, with those that other threads have asked for meanwhile where the session is not free."""
        if self._together.busy or not self._lock.acquire(blocking=False):
            return self._together.do(call)
        try:
            return self._carry(call.alone)
        finally:
            self._lock.release()

    def _talk(self, talk: Talk) -> Any:
        """Ask and pause as *talk* says."""
        from supervisor.db.client_calls import carry

        self._ready()
        return carry(talk, self._pause_or_carry)

    def _pause_or_carry(self, asked: Any) -> Any:
        if isinstance(asked, float):
            return time.sleep(asked)
        return self._carry(asked)

    def _new_calls(self, purpose: str) -> ClientCalls:
        from supervisor.db import connect
        from supervisor.db.client_calls import ClientCalls

        return ClientCalls(connect.resolve_dsn(self._dsn, source=self._source), self._verbs().questions, purpose)

    def _new_ear(self, heard: Heard) -> Ear:
        from supervisor.api.ear import Ear
        from supervisor.db import connect

        return Ear(connect.resolve_dsn(self._dsn, source=self._source), self._verbs().questions.schema, heard)

    def _find_home(self, home: Home) -> None:
        """Which database a borrowed connection has to go to; asked once, and of nobody where no database is configured."""
        from supervisor.db import connect

        if home.where is None and (dsn := connect.find_dsn(self._dsn, source=self._source)) is not None:
            home.where, home.shown = self._carry(lambda verbs: verbs.home()), str(dsn)

    def _say_hint(self, calls: ClientCalls) -> None:
        """Announce durable starts, signals and ends; those that may not be announced now are told with the next ones."""
        for each in self._hints.announcements(calls.questions):
            calls.announce(each)

    def _stream(
        self,
        asked: Asked,
        encode: Callable[[Any], bytes],
        items: Iterator[Any],
        key: Callable[[Any], str | None] | None,
        batch: Batch[Any],
    ) -> None:
        """Encode the next chunk while the server stores the last one: a thread of its own waits for the server."""
        sent: Future[None] | None = None
        with ThreadPoolExecutor(1, "pgsupervisor-start") as sender:
            try:
                while chunk := chunk_of(asked.name, encode, items, key):
                    if sent is not None:
                        sent.result()
                    sent = sender.submit(self._send, asked, chunk, batch)
                    if len(chunk.inputs) < CHUNK_RUNS:
                        break
            except BaseException as error:
                if sent is not None and not sent.cancel():
                    sent.exception()
                error.add_note(f"{len(batch):,} runs of {asked.name!r} were started before this and stay")
                raise
            if sent is not None:
                sent.result()

    # ── wait ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _status(self, run: Run[Any]) -> RunInfo:
        return self._carry(lambda verbs: verbs.status(run.id, run._unsure))

    def _published(self, run: Run[Any], key: str, kind: Any) -> Any:
        return self._carry(lambda verbs: verbs.published_value(run.id, key, kind))

    def _result(self, run: Run[Any], timeout: float | None) -> Any:
        if run._unsure:  # nobody may wait for ever for what was rolled back
            self._status(run)
            run._unsure = False
        give_up_at = None if timeout is None else time.monotonic() + timeout
        outcome = self._waiter.wait(run.id.bytes, give_up_at, run._started_at)
        if outcome is None:
            outcome = self._carry(lambda verbs: verbs.outcome_now(run.id, f"within {timeout:g} s"))
        return value_of(outcome, run.workflow, run._definition)

    def _outcomes(self, ids: Sequence[bytes], patience_s: float) -> Sequence[Outcome]:
        """What the one that asks for all asks: on the client's session, on another as soon as threads have met at that."""
        if self._alone and self._lock.acquire(blocking=False):
            try:
                return self._carry(lambda verbs: verbs.outcomes(ids, patience_s))
            finally:
                self._lock.release()
        self._alone = False
        self._ready()
        with self._apart_lock:
            if self._apart is None:
                self._apart = self._new_calls("waiter")
            try:
                outcomes = self._apart.carry(self._verbs().outcomes(ids, patience_s))
            except DatabaseUnavailable:
                if self._apart.connected:
                    raise
            else:
                self._say_hint(self._apart)
                return outcomes
        return self._carry(lambda verbs: verbs.outcomes(ids, patience_s))  # no second session is to be had


def questions_of(schema: str | None) -> Questions:
    """What a client of *schema* asks; the driver is loaded with the first one."""
    from supervisor.db import connect
    from supervisor.db.client_calls import Questions
    from supervisor.db.statements import checked_schema

    return Questions(checked_schema(schema) if schema else connect.schema_name())


def check_process(pid: int) -> None:
    if pid != os.getpid():
        raise ClientMisused(
            f"this client was made in process {pid} and is used in {os.getpid()}, after a fork: two processes on one session "
            f"read each other's answers; make a new one in the child"
        )


# ── the client that `workflow.start(…)` uses ─────────────────────────────────────────────────────────────────────

_defaults: dict[int, Client] = {}  # by process; no lock, which a fork could copy while it is held


def default_client() -> Client:
    """The process's own client, made at first use and again after a fork."""
    client = _defaults.get(os.getpid())
    return client if client is not None else _defaults.setdefault(os.getpid(), Client())
