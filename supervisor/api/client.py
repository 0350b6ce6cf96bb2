"""The client: start runs from outside, ask about them, wait for their results.

Owns handles and the encoding of calls; every word with the database goes through `supervisor.db.client_calls`.
Connects at first use. Threads may share a client; a fork may not, and workflow code may not use one at all.
Invariant: a start that was acknowledged is durable, and one whose answer was lost is repeated under the same id.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, overload

import msgspec

from supervisor.api.hints import Hints
from supervisor.api.waiting import Waiter
from supervisor.core import codec
from supervisor.core.errors import (
    ClientInsideRun,
    ClockSkew,
    DatabaseUnavailable,
    InputInvalid,
    KeyMismatch,
    RunCancelled,
    RunFailed,
    RunTerminated,
    RunUnknown,
    SupervisorError,
    UnknownWorkflow,
)

if TYPE_CHECKING:
    from supervisor.api.decorators import StartOptions, Workflow
    from supervisor.db.client_calls import ClientCalls, Conflict, Found, Outcome

P = ParamSpec("P")
R = TypeVar("R")

CHUNK_RUNS = 5_000  # runs per transaction of start_many: 40 ms of the server's time, 1 MB on the wire
KEY_MAX = 500


class RunInfo(msgspec.Struct, frozen=True):
    """Where a run is, at the moment of asking. `str()` is the status word."""

    run_id: uuid.UUID
    key: str | None
    workflow: str
    queue: str
    status: str  # ready running waiting paused, completed failed cancelled terminated timed_out continued
    wait: str | None  # code of why it does not move
    step: str | None
    seq: int | None
    attempt: int | None
    created_at: datetime
    ended_at: datetime | None

    def __str__(self) -> str:
        return self.status


class Named(msgspec.Struct, frozen=True):
    """A workflow by its registered name, with how it is to be started; for programs that do not import it."""

    workflow: str
    key: str | None = None
    queue: str | None = None
    priority: int = 5
    delay_s: float = 0.0


class Run(Generic[R]):
    """A run that was started or found. `created` is False where a key named one that was there before."""

    __slots__ = ("_client", "_started_at", "_workflow", "created", "id", "key", "workflow")

    def __init__(
        self, client: Client, run_id: uuid.UUID, workflow: str, definition: Any, key: str | None, created: bool, started_at: float = 0.0
    ) -> None:
        self._client = client
        self._started_at = started_at
        self._workflow = definition
        self.id = run_id
        self.key = key
        self.workflow = workflow
        self.created = created

    def status(self) -> RunInfo:
        """Where it is now. Raises RunUnknown when its history was pruned."""
        return self._client.status(self.id)

    def result(self, timeout: float | None = None) -> R:
        """Wait for its end and return its result; *timeout* in seconds, None waits for ever.

        Raises RunFailed with the rebuilt error as `__cause__`, RunCancelled, RunTerminated, TimeoutError.
        """
        outcome = self._client._await(self.id, timeout, self._started_at)
        return cast(R, _result(outcome, self.workflow, self._workflow))

    def __repr__(self) -> str:
        return f"<run {self.id} of {self.workflow}{f' key {self.key!r}' if self.key else ''}>"


class Batch(Sequence[Run[R]], Generic[R]):
    """Runs that one `start_many` started, in the order of its items."""

    def __init__(self, client: Client, workflow: str, definition: Any) -> None:
        self._client, self._name, self._definition = client, workflow, definition
        self._ids: list[bytes] = []
        self._there: dict[int, str] = {}  # position → key, of runs that were there before
        self.mismatches: list[KeyMismatch] = []

    @property
    def ids(self) -> list[uuid.UUID]:
        return [uuid.UUID(bytes=each) for each in self._ids]

    @property
    def created(self) -> int:
        """How many of them did not exist before."""
        return len(self._ids) - len(self._there)

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, at: int) -> Run[R]: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Run[R]]: ...
    def __getitem__(self, at: int | slice) -> Run[R] | Sequence[Run[R]]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self._ids)))]
        at = range(len(self._ids))[at]
        return Run(self._client, uuid.UUID(bytes=self._ids[at]), self._name, self._definition, self._there.get(at), at not in self._there)

    def __repr__(self) -> str:
        return f"<batch of {len(self):,} runs of {self._name}>"


class Client:
    """Starts runs and asks about them. `with Client() as c: c.start(checkout, order).result(timeout=60)`

    dsn     postgresql://… or key=value; else PGSUPERVISOR_DATABASE_URL, DATABASE_URL, [tool.pgsupervisor] dsn, libpq's own.
            A pooler in transaction mode is fine.
    schema  else PGSUPERVISOR_SCHEMA, [tool.pgsupervisor] schema, "supervisor"
    """

    def __init__(self, dsn: str | None = None, *, schema: str | None = None) -> None:
        self._dsn, self._schema = dsn, schema
        self._source = "Client(dsn)"  # what an error calls the place that the DSN came from
        self._lock = threading.RLock()
        self._opened: ClientCalls | None = None
        self._apart_lock = threading.Lock()
        self._apart: ClientCalls | None = None  # a session for waiting, where threads wait while others start
        self._alone = True  # no two threads have met at the session yet
        self._hints = Hints()
        self._waiter = Waiter(self._outcomes)
        self._pid = os.getpid()
        self._parameters: dict[str, list[dict[str, Any]]] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session; the next call opens another."""
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._opened is not None:
                self._opened.close()
        with self._apart_lock:
            if self._apart is not None:
                self._apart.close()

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
        Raises    InputInvalid or PayloadRefused before anything is sent; UnknownWorkflow, KeyMismatch, ClockSkew.
        """
        with self._ready() as calls:
            asked = _Asked.of(workflow)
            if asked.definition is None:
                return self._start_one(calls, asked, self._encode_named(asked.name, args, kwargs))
            return self._start_one(calls, asked, asked.definition.encode_input(args, kwargs))

    def start_record(self, workflow: Any, record: Any) -> Run[Any]:
        """Start one run of a record: the only parameter's value where the workflow has one parameter, else a dict by name."""
        asked = _Asked.of(workflow)
        with self._ready() as calls:
            encode = asked.definition.encode_record if asked.definition is not None else self._record_encoder(asked.name)
            return self._start_one(calls, asked, encode(record))

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
        asked = _Asked.of(workflow)
        with self._ready():
            encode = asked.definition.encode_record if asked.definition is not None else self._record_encoder(asked.name)
        batch: Batch[Any] = Batch(self, asked.name, asked.definition)
        self._stream(asked, encode, iter(items), key, batch)
        if batch.mismatches:
            error = batch.mismatches[0]
            error.batch = batch  # type: ignore[attr-defined]
            if len(batch.mismatches) > 1:
                error.add_note(f"and {len(batch.mismatches) - 1} more keys; all other items were started")
            raise error
        return batch

    # ── ask ──────────────────────────────────────────────────────────────────────────────────────────────────

    def status(self, run_id: uuid.UUID | str) -> RunInfo:
        """Where a run is now. Raises RunUnknown."""
        return self._one(_uuid(run_id))

    def result(self, run_id: uuid.UUID | str, timeout: float | None = None) -> Any:
        """The result of a run by its id, as plain JSON values unless its workflow is imported here; see `Run.result`."""
        return self.get(run_id).result(timeout)

    def get(self, run_id: uuid.UUID | str) -> Run[Any]:
        """A handle of a run by its id. Raises RunUnknown."""
        found = self._one(_uuid(run_id))
        return Run(self, found.run_id, found.workflow, _registered(found.workflow), found.key, False)

    def list(
        self,
        limit: int = 100,
        *,
        workflow: str | None = None,
        status: str | None = None,
        key: str | None = None,
        before: uuid.UUID | None = None,
    ) -> Sequence[RunInfo]:
        """Runs, newest first, at most 10,000; *before* takes the last id of the page before."""
        with self._ready() as calls:
            return [_info(found) for found in calls.find(workflow=workflow, status=status, key=key, before=before, limit=limit)]

    def parameters(self, workflow: str) -> Sequence[dict[str, Any]]:
        """What a registered workflow takes: name and required of each parameter. Raises UnknownWorkflow."""
        with self._ready():
            return self._parameters_of(workflow)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────

    def _ready(self) -> _Ready:
        self._ready_here()
        return _Ready(self)

    def _ready_here(self) -> None:
        _refuse_inside_run()
        if self._pid != os.getpid():
            raise SupervisorError(
                f"this client was made in process {self._pid} and is used in {os.getpid()}, after a fork: two processes on one session "
                f"read each other's answers; make a new Client() in the child"
            )

    def _calls(self) -> ClientCalls:
        if self._opened is None:
            self._opened = self._new_calls("client")
        return self._opened

    def _new_calls(self, purpose: str) -> ClientCalls:
        from supervisor.db import connect
        from supervisor.db.client_calls import ClientCalls
        from supervisor.db.statements import checked_schema

        schema = checked_schema(self._schema) if self._schema else connect.schema_name()
        return ClientCalls(connect.resolve_dsn(self._dsn, source=self._source), schema, purpose)

    def _start_one(self, calls: ClientCalls, asked: _Asked, payload: bytes) -> Run[Any]:
        key, digest = asked.key, sha256(payload).digest()
        _check_key(asked.name, key)

        def start(run_id: bytes) -> Sequence[Conflict]:
            keys, hashes = (None, None) if key is None else ([key], [digest])
            return calls.start(asked.name, [run_id], [payload], keys, hashes, **asked.how)

        run_id = calls.run_ids(1)[0]
        try:
            conflicts = start(run_id)
        except ClockSkew:  # a clock that was set since the last measure
            calls.measure_clock()
            run_id = calls.run_ids(1)[0]
            conflicts = start(run_id)
        created = uuid.UUID(bytes=run_id)
        if conflicts and conflicts[0].run_id != created:
            if not conflicts[0].matches:
                raise KeyMismatch(asked.name, key or "", conflicts[0].run_id)
            return Run(self, conflicts[0].run_id, asked.name, asked.definition, key, False)
        started_at = time.monotonic()
        self._announce(calls, asked, 1)
        return Run(self, created, asked.name, asked.definition, key, True, started_at)

    def _announce(self, calls: ClientCalls, asked: _Asked, runs: int) -> None:
        """Hint at durable starts; those that may not be announced now are told with the next ones."""
        self._hints.add(asked.name, asked.queue, runs, asked.delay_s)
        self._say_hint(calls)

    def _say_hint(self, calls: ClientCalls) -> None:
        hint = self._hints.take()
        if hint is not None:
            calls.announce(hint)

    def _stream(
        self,
        asked: _Asked,
        encode: Callable[[Any], bytes],
        items: Iterator[Any],
        key: Callable[[Any], str | None] | None,
        batch: Batch[Any],
    ) -> None:
        """Encode the next chunk while the server stores the last one: a thread of its own waits for the server."""
        sent: Future[None] | None = None
        with ThreadPoolExecutor(1, "pgsupervisor-start") as sender:
            try:
                while chunk := _chunk(asked.name, encode, items, key):
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

    def _send(self, asked: _Asked, chunk: _Chunk, batch: Batch[Any]) -> None:
        with self._ready() as calls:
            run_ids = calls.run_ids(len(chunk.inputs))
            conflicts = calls.start(asked.name, run_ids, chunk.inputs, chunk.keys, chunk.hashes, **asked.how)
            self._announce(calls, asked, len(run_ids) - len(conflicts))
        first = len(batch._ids)
        for at, run_id, matches in conflicts:
            if run_id.bytes == run_ids[at]:
                continue
            named = (chunk.keys or [])[at] or ""
            if not matches:
                batch.mismatches.append(KeyMismatch(asked.name, named, run_id))
            batch._there[first + at] = named
            run_ids[at] = run_id.bytes
        batch._ids.extend(run_ids)

    def _await(self, run_id: uuid.UUID, timeout: float | None, started_at: float) -> Outcome:
        give_up_at = None if timeout is None else time.monotonic() + timeout
        outcome = self._waiter.wait(run_id.bytes, give_up_at, started_at)
        if outcome is not None:
            return outcome
        with self._ready() as calls:  # it may have ended since it was last asked about
            outcomes = calls.outcomes([run_id.bytes])
        if outcomes:
            return outcomes[0]
        now = self._one(run_id)
        raise TimeoutError(
            f"run {run_id} of {now.workflow} has not ended within {timeout:g} s; it is {now.status}"
            + (f" ({now.wait})" if now.wait else "")
            + (f" at step {now.step}" if now.step else "")
            + f": python -m supervisor show {run_id}"
        )

    def _outcomes(self, ids: Sequence[bytes]) -> Sequence[Outcome]:
        """What the one that asks for all asks: on the client's session, on another as soon as threads have met at that."""
        if self._alone and self._lock.acquire(blocking=False):
            try:
                with self._ready() as calls:
                    self._say_hint(calls)
                    return calls.outcomes(ids)
            finally:
                self._lock.release()
        self._alone = False
        self._ready_here()
        with self._apart_lock:
            if self._apart is None:
                self._apart = self._new_calls("waiter")
            try:
                outcomes = self._apart.outcomes(ids)
            except DatabaseUnavailable:
                if self._apart.connected:
                    raise
            else:
                self._say_hint(self._apart)
                return outcomes
        with self._ready() as calls:  # no second session is to be had
            return calls.outcomes(ids)

    def _one(self, run_id: uuid.UUID) -> RunInfo:
        with self._ready() as calls:
            found = calls.find(ids=[run_id.bytes], limit=1)
        if not found:
            raise RunUnknown(run_id)
        return _info(found[0])

    # ── a workflow that is not imported here: its parameters are in the catalogue ────────────────────────────

    def _encode_named(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        parameters = self._parameters_of(name)
        names = [each["name"] for each in parameters]
        if len(args) > len(names):
            raise InputInvalid(name, f"it takes {len(names)} arguments ({', '.join(names) or 'none'}) and {len(args)} were given")
        values = dict(zip(names, args))
        for given, value in kwargs.items():
            if given in values or given not in names:
                why = "was given twice" if given in values else f"is not one of its parameters ({', '.join(names) or 'it has none'})"
                raise InputInvalid(name, f"{given!r} {why}")
            values[given] = value
        missing = [each["name"] for each in parameters if each.get("required") and each["name"] not in values]
        if missing:
            raise InputInvalid(name, f"required but not given: {', '.join(missing)}")
        return codec.encode(values)

    def _record_encoder(self, name: str) -> Callable[[Any], bytes]:
        names = [each["name"] for each in self._parameters_of(name)]

        def encode(record: Any) -> bytes:
            if len(names) == 1:
                return self._encode_named(name, (record,), {})
            if not isinstance(record, dict):
                raise InputInvalid(name, f"an item must be a dict with the parameters {', '.join(names)}, not {type(record).__name__}")
            return self._encode_named(name, (), record)

        return encode

    def _parameters_of(self, name: str) -> Sequence[dict[str, Any]]:
        if name not in self._parameters:
            stored = self._calls().parameters(name) if "\x00" not in name and _encodes(name) else None
            if stored is None:
                raise UnknownWorkflow(name)
            self._parameters[name] = msgspec.json.decode(stored, type=list[dict[str, Any]])
        return self._parameters[name]


class _Ready:
    """The client's calls, one thread at a time."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __enter__(self) -> ClientCalls:
        self._client._lock.acquire()
        try:
            return self._client._calls()
        except BaseException:
            self._client._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._client._lock.release()


class _Asked(msgspec.Struct, frozen=True):
    """What is to be started, and how."""

    name: str
    definition: Any
    key: str | None = None
    queue: str | None = None
    priority: int = 5
    delay_s: float = 0.0

    @property
    def how(self) -> dict[str, Any]:
        return {"queue": self.queue, "priority": self.priority, "delay_s": self.delay_s}

    @classmethod
    def of(cls, asked: Any) -> _Asked:
        if isinstance(asked, str):
            return cls(asked, None)
        if hasattr(asked, "encode_input"):
            return cls(asked.name, asked)
        if hasattr(asked, "workflow") and hasattr(asked, "delay_s"):
            what = asked.workflow
            name, definition = (what, None) if isinstance(what, str) else (what.name, what)
            return cls(name, definition, asked.key, asked.queue, asked.priority, asked.delay_s)
        raise InputInvalid("start", f"{asked!r} is no workflow: give a function decorated with @workflow, its .options(…), or a name")


class _Chunk(msgspec.Struct):
    inputs: list[bytes]
    keys: list[str | None] | None = None
    hashes: list[bytes] | None = None


def _chunk(name: str, encode: Callable[[Any], bytes], items: Iterator[Any], key: Callable[[Any], str | None] | None) -> _Chunk | None:
    """Encode up to CHUNK_RUNS items; None when there are no more."""
    inputs: list[bytes] = []
    keys: list[str | None] = []
    add = inputs.append
    for item in items:
        add(encode(item))
        if key is not None:
            keys.append(_check_key(name, key(item)))
        if len(inputs) == CHUNK_RUNS:
            break
    if not inputs:
        return None
    if key is None:
        return _Chunk(inputs)
    return _Chunk(inputs, keys, [sha256(each).digest() for each in inputs])


def _check_key(workflow: str, key: object) -> str | None:
    if key is None:
        return None
    if not isinstance(key, str) or not 0 < len(key) <= KEY_MAX or "\x00" in key or not _encodes(key):
        raise InputInvalid(workflow, f"key {key!r} must be text of 1 to {KEY_MAX} characters, without NUL and lone surrogates")
    return key


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _result(outcome: Outcome, workflow: str, definition: Any) -> Any:
    """The value of a completed run; the error of any other."""
    if outcome.status == "completed":
        payload = b"null" if outcome.result is None else outcome.result
        return msgspec.json.decode(payload) if definition is None else definition.decode_result(payload)
    if outcome.status in ("cancelled", "terminated"):
        kind = RunCancelled if outcome.status == "cancelled" else RunTerminated
        raise kind(
            f"run {outcome.run_id} of {workflow} was {outcome.status} at {outcome.ended_at:%Y-%m-%d %H:%M:%S %Z}; "
            f"see: python -m supervisor show {outcome.run_id}"
        )
    if outcome.status == "continued":
        raise RunFailed(outcome.run_id, workflow, "it has no result, for it continued as a new run")
    cause = TimeoutError("the run's timeout expired") if outcome.status == "timed_out" else codec.decode_error(outcome.result)
    raise RunFailed(outcome.run_id, workflow, codec.brief(cause)) from cause


def _info(found: Found) -> RunInfo:
    return RunInfo(*found)


def _uuid(run_id: uuid.UUID | str) -> uuid.UUID:
    if isinstance(run_id, uuid.UUID):
        return run_id
    try:
        return uuid.UUID(run_id)
    except (ValueError, AttributeError, TypeError):
        raise RunUnknown(f"{run_id!r}, which is not a run id (a uuid)") from None


def _registered(workflow: str) -> Any:
    """The workflow of that name if this process has it; never imports."""
    from supervisor.core import registry

    return registry.find(workflow)


def _refuse_inside_run() -> None:
    words = sys.modules.get("supervisor.api.words")  # not imported: nobody can be inside of a run
    if words is not None and words.inside_run():
        raise ClientInsideRun(
            "workflow code used a client; a replay would do it again: start a child with `await start(workflow, …)` or call it, "
            "or put the client's call into a step"
        )


# ── the client that `workflow.start(…)` uses ─────────────────────────────────────────────────────────────────────

_default: Client | None = None
_default_lock = threading.Lock()


def default_client() -> Client:
    """The process's own client, made at first use and again after a fork."""
    global _default
    with _default_lock:
        if _default is None or _default._pid != os.getpid():
            _default = Client()
        return _default
