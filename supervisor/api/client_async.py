"""The client of an event loop: `Client`, awaited.

Owns its session on that loop, one task at a time, and the order of what tasks ask of it. What a verb asks stands in verbs.py.
A task that is cancelled in a start does not know whether it was stored: start again under the same key.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from supervisor.api.asked import Asked, Named, chunk_of, id_of, refuse_inside_run, registered, value_of
from supervisor.api.client import QUERY_TIMEOUT_S, check_process, questions_of
from supervisor.api.handles import AsyncBatch, AsyncRun, Moved, Progress, RunInfo, VersionInfo
from supervisor.api.hints import Hints
from supervisor.api.operators import AsyncOperatorVerbs
from supervisor.api.queues import AsyncQueueVerbs
from supervisor.api.schedules import AsyncScheduleVerbs
from supervisor.api.together import Call, TogetherAsync, signalling, starting, together
from supervisor.api.tokens import AsyncTokenVerbs
from supervisor.api.verbs import LIST_S, Started, Verbs
from supervisor.api.waiting_async import AsyncWaiter
from supervisor.core.errors import ClientMisused, DatabaseUnavailable
from supervisor.core.traces import sender

if TYPE_CHECKING:
    from supervisor.api.decorators import StartOptions, Workflow
    from supervisor.api.ear import Ear, Heard
    from supervisor.api.queries import Query, Talk
    from supervisor.api.signals import Message, SignalOf
    from supervisor.api.updates import Sooner, Update, AsyncUpdateHandle, UpdateMessage, WaitFor
    from supervisor.api.within import AsyncConnection, AsyncWithin
    from supervisor.db.borrowed import Home
    from supervisor.db.client_calls import Outcome, Verb
    from supervisor.db.client_calls_async import AsyncClientCalls

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
A = TypeVar("A")
Q = TypeVar("Q")

CHUNK_RUNS = 1_000  # runs per transaction of start_many: their encoding holds the event loop for about 2 ms


class AsyncClientVerbs(AsyncOperatorVerbs, AsyncTokenVerbs, AsyncScheduleVerbs, AsyncQueueVerbs):
    """What `AsyncClient` and `AsyncWithin` share: the verbs, typed; they differ in who carries them (`_carry`)."""

    _unsure = False  # whether a start that returned may still be rolled back

    async def _carry(self, make: Callable[[Verbs], Verb[T]]) -> T:
        raise NotImplementedError

    def _owner(self) -> AsyncClient:
        raise NotImplementedError

    # ── start ────────────────────────────────────────────────────────────────────────────────────────────────

    @overload
    async def start(self, workflow: Workflow[P, R], *args: P.args, **kwargs: P.kwargs) -> AsyncRun[R]: ...
    @overload
    async def start(self, workflow: StartOptions[P, R], *args: P.args, **kwargs: P.kwargs) -> AsyncRun[R]: ...
    @overload
    async def start(self, workflow: str | Named, *args: Any, **kwargs: Any) -> AsyncRun[Any]: ...
    async def start(self, workflow: Any, *args: Any, **kwargs: Any) -> Any:
        """Start one run and return when it is durable; see `Client.start`."""
        return self._run(await self._start(Asked.of(workflow), args, kwargs))

    async def _start(self, asked: Asked, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Started:
        return await self._carry(lambda verbs: verbs.start(asked, args, kwargs))

    async def start_record(self, workflow: Any, record: Any) -> AsyncRun[Any]:
        """Start one run of a record: the only parameter's value where the workflow has one parameter, else a dict by name."""
        return self._run(await self._carry(lambda verbs: verbs.start_record(Asked.of(workflow), record)))

    @overload
    async def start_many(
        self,
        workflow: Workflow[..., R] | StartOptions[..., R],
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        key: Callable[[Any], str | None] | None = None,
    ) -> AsyncBatch[R]: ...
    @overload
    async def start_many(
        self, workflow: str | Named, items: Iterable[Any] | AsyncIterable[Any], *, key: Callable[[Any], str | None] | None = None
    ) -> AsyncBatch[Any]: ...
    async def start_many(
        self,
        workflow: Any,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        key: Callable[[Any], str | None] | None = None,
    ) -> AsyncBatch[Any]:
        """Start one run per item, 1,000 to a transaction; *items* may be any iterable or async iterable; see `Client.start_many`."""
        asked = Asked.of(workflow)
        encode = await self._carry(lambda verbs: verbs.encoder(asked))
        batch: AsyncBatch[Any] = AsyncBatch(self._owner(), asked.name, asked.definition, self._unsure)
        try:
            async for some in _slices(items):
                chunk = chunk_of(asked.name, encode, some, key, CHUNK_RUNS)
                while chunk is not None:
                    now = chunk
                    ids, there = await self._carry(lambda verbs, now=now: verbs.start_chunk(asked, now))  # type: ignore[misc]
                    batch._add(ids, now.keys, there)
                    chunk = chunk_of(asked.name, encode, some, key, CHUNK_RUNS)
        except BaseException as error:
            error.add_note(f"{len(batch):,} runs of {asked.name!r} were started before this and stay")
            raise
        batch._told()
        return batch

    def _run(self, started: Started) -> AsyncRun[Any]:
        asked = started.asked
        unsure = self._unsure and started.created
        return AsyncRun(
            self._owner(), started.run_id, asked.name, asked.definition, started.key, started.created, started_at=started.at, unsure=unsure
        )

    # ── signal ───────────────────────────────────────────────────────────────────────────────────────────────

    @overload
    async def signal(self, run: AsyncRun[Any] | uuid.UUID | str, signal: SignalOf[T], value: T, *, id: str | None = None) -> bool: ...
    @overload
    async def signal(self, run: AsyncRun[Any] | uuid.UUID | str, signal: str, value: Any = None, *, id: str | None = None) -> bool: ...
    async def signal(self, run: AsyncRun[Any] | uuid.UUID | str, signal: Any, value: Any = None, *, id: str | None = None) -> bool:
        """Send a message to a live run; see `Client.signal`."""
        from supervisor.api.signals import message_of

        return await self._signal(id_of(run), message_of(signal, value, id))

    async def _signal(self, run_id: uuid.UUID, message: Message) -> bool:
        trace = sender()
        return await self._carry(lambda verbs: verbs.signal(run_id, message, trace))

    @overload
    async def signal_with_start(self, message: Message, workflow: Workflow[P, R], *args: P.args, **kwargs: P.kwargs) -> AsyncRun[R]: ...
    @overload
    async def signal_with_start(self, message: Message, workflow: StartOptions[P, R], *args: P.args, **kwargs: P.kwargs) -> AsyncRun[R]: ...
    @overload
    async def signal_with_start(self, message: Message, workflow: str | Named, *args: Any, **kwargs: Any) -> AsyncRun[Any]: ...
    async def signal_with_start(self, message: Message, workflow: Any, *args: Any, **kwargs: Any) -> Any:
        """Start a run, or find the one that its key names, and send it a message: both or neither; see `Client.signal_with_start`."""
        return self._run(await self._carry(lambda verbs: verbs.send_with_start("signal", message, Asked.of(workflow), args, kwargs)))

    # ── update ───────────────────────────────────────────────────────────────────────────────────────────────

    @overload
    async def update_with_start(self, message: UpdateMessage[Q], workflow: Workflow[P, R], *args: P.args, **kwargs: P.kwargs) -> AsyncUpdateHandle[Q]: ...
    @overload
    async def update_with_start(self, message: UpdateMessage[Q], workflow: StartOptions[P, R], *args: P.args, **kwargs: P.kwargs) -> AsyncUpdateHandle[Q]: ...
    @overload
    async def update_with_start(self, message: UpdateMessage[Q], workflow: str | Named, *args: Any, **kwargs: Any) -> AsyncUpdateHandle[Q]: ...
    async def update_with_start(self, message: UpdateMessage[Q], workflow: Any, *args: Any, **kwargs: Any) -> AsyncUpdateHandle[Q]:
        """Start a run, or find the one that its key names, and send it an update: both or neither.

        message  `reserve.message(value, id=…)`; the handle's `result()` waits for the answer, `accepted()` for the acceptance
        Raises   as `start`; RunClosed where the key names a run that has ended.
        """
        from supervisor.api.updates import AsyncUpdateHandle

        started = await self._carry(lambda verbs: verbs.send_with_start("update", message, Asked.of(workflow), args, kwargs))
        return AsyncUpdateHandle(self._owner(), started.run_id, message, self._unsure)

    async def _sent(self, run: AsyncRun[Any] | uuid.UUID | str, message: UpdateMessage[Q]) -> AsyncUpdateHandle[Q]:
        from supervisor.api.updates import AsyncUpdateHandle

        trace = sender()
        await self._carry(lambda verbs: verbs.update(id_of(run), message, trace))
        return AsyncUpdateHandle(self._owner(), id_of(run), message, self._unsure)

    # ── ask ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def status(self, run: AsyncRun[Any] | uuid.UUID | str) -> RunInfo:
        """Where a run is now. Raises RunUnknown."""
        return await self._carry(lambda verbs: verbs.status(id_of(run)))

    async def get(self, run_id: uuid.UUID | str) -> AsyncRun[Any]:
        """A handle of a run by its id. Raises RunUnknown."""
        found = await self._carry(lambda verbs: verbs.status(id_of(run_id)))
        return AsyncRun(self._owner(), found.run_id, found.workflow, registered(found.workflow), found.key, False, unsure=self._unsure)

    async def cancel(self, run: AsyncRun[Any] | uuid.UUID | str, reason: str | None = None, *, actor: str | None = None) -> bool:
        """Ask that a live run, and all below it, be cancelled; see `Client.cancel`. False where it had ended or was cancelled already."""
        return await self._carry(lambda verbs: verbs.cancel(id_of(run), reason, actor))

    async def terminate(self, run: AsyncRun[Any] | uuid.UUID | str, reason: str | None = None, *, actor: str | None = None) -> bool:
        """End a live run now, without its code; see `Client.terminate`. False where it had ended already."""
        return await self._carry(lambda verbs: verbs.terminate(id_of(run), reason, actor))

    async def published(self, run: AsyncRun[Any] | uuid.UUID | str) -> Mapping[str, Any]:
        """What a run has published, the last value of each key, as plain JSON values. Raises RunUnknown."""
        return await self._carry(lambda verbs: verbs.published(id_of(run)))

    async def progress(self, run: AsyncRun[Any] | uuid.UUID | str) -> Progress | None:
        """How far a run says that it is; None where it has not said. Raises RunUnknown."""
        return await self._carry(lambda verbs: verbs.progress(id_of(run)))

    async def attributes(self, run: AsyncRun[Any] | uuid.UUID | str) -> Mapping[str, Any]:
        """The attributes that a run has now, as plain JSON values. Raises RunUnknown."""
        return await self._carry(lambda verbs: verbs.attributes(id_of(run)))

    async def versions(self, workflow: Workflow[..., Any] | str | None = None) -> Sequence[VersionInfo]:
        """Versions of workflows, or of one: who has them, how many runs are of each. Reads the views (viewer, else PermissionMissing)."""
        name = None if workflow is None else Asked.of(workflow).name
        return await self._carry(lambda verbs: verbs.versions(name))

    async def move(
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
        return await self._carry(lambda verbs: verbs.move(name, from_version, to_version, dry_run, reason, actor))

    async def parameters(self, workflow: str) -> Sequence[Mapping[str, Any]]:
        """What a registered workflow takes: name and required of each parameter. Raises UnknownWorkflow."""
        return await self._carry(lambda verbs: verbs.parameters(workflow))

    async def list(
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
        """Runs, newest first, at most 10,000, also by a filter; see `Client.list`."""
        return await self._carry(lambda verbs: verbs.runs(limit, filter, timeout, before, workflow, status, key))


async def _slices(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Iterator[Any]]:
    """The items as iterators that do not wait: one, or those of up to CHUNK_RUNS that an async iterable gave."""
    if not isinstance(items, AsyncIterable):
        yield iter(items)
        return
    some: list[Any] = []
    async for item in items:
        some.append(item)
        if len(some) == CHUNK_RUNS:
            yield iter(some)
            some = []
    yield iter(some)


class AsyncClient(AsyncClientVerbs):
    """Starts runs and asks about them, on one event loop. `async with AsyncClient() as c: run = await c.start(checkout, order); await run`

    dsn, schema  as of `Client`
    """

    def __init__(self, dsn: str | None = None, *, schema: str | None = None) -> None:
        self._dsn, self._schema = dsn, schema
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None  # whose it is, from its first use on
        self._hints = Hints()
        self._made: Verbs | None = None
        self._lock = asyncio.Lock()
        self._opened: AsyncClientCalls | None = None
        self._apart_lock = asyncio.Lock()
        self._apart: AsyncClientCalls | None = None  # a session for waiting, where tasks wait while others start
        self._home: Home | None = None  # what within() knows of it
        self._alone = True  # no two tasks have met at the session yet
        self._together = TogetherAsync(self._lock, lambda calls: self._carry_here(lambda verbs: together(verbs, calls)))
        self._waiter = AsyncWaiter(self._outcomes, self._new_ear)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the session; the next call opens another."""
        if self._pid != os.getpid():
            return
        await self._waiter.close()
        for lock, calls in ((self._lock, self._opened), (self._apart_lock, self._apart)):
            if calls is not None:
                async with lock:
                    await calls.close()

    def within(self, connection: AsyncConnection) -> AsyncWithin:
        """Every verb in the open transaction of *connection*: what is started there is started when the caller commits, or never.

        connection  a psycopg.AsyncConnection, an SQLAlchemy AsyncConnection or AsyncSession, to the client's database;
                    the driver underneath must be psycopg 3. It is never committed, rolled back or repeated.
        """
        from supervisor.api.within import AsyncWithin

        self._ready()
        return AsyncWithin(self, connection)

    async def result(self, run: AsyncRun[Any] | uuid.UUID | str, timeout: float | None = None) -> Any:
        """The result of a run by its id, as plain JSON values unless its workflow is imported here; see `AsyncRun.result`."""
        return await (await self.get(id_of(run))).result(timeout)

    @overload
    async def query(self, run: AsyncRun[Any] | uuid.UUID | str, query: Query[None, Q], /, *, timeout: float = ...) -> Q: ...
    @overload
    async def query(self, run: AsyncRun[Any] | uuid.UUID | str, query: Query[A, Q], argument: A, /, *, timeout: float = ...) -> Q: ...
    @overload
    async def query(self, run: AsyncRun[Any] | uuid.UUID | str, query: str, /, *arguments: Any, timeout: float = ...) -> Any: ...
    async def query(self, run: AsyncRun[Any] | uuid.UUID | str, query: Any, /, *arguments: Any, timeout: float = QUERY_TIMEOUT_S) -> Any:
        """Ask a run what its handler of *query* answers, where its history stands; by a name, the answer is plain JSON values.

        A host that has its code replays the history and executes nothing; the run itself does not notice, and need not live.
        Raises RunUnknown, QueryUnknown, QueryFailed with the error as `__cause__`, TimeoutError.
        """
        from supervisor.api.queries import Inquiry

        return await self._talk(Inquiry(id_of(run), query, arguments, timeout).talk())

    @overload
    async def update(self, run: AsyncRun[Any] | uuid.UUID | str, update: Update[None, Q], /, *, id: str | None = ..., wait_for: Literal["completed"] = ..., timeout: float | None = ...) -> Q: ...
    @overload
    async def update(self, run: AsyncRun[Any] | uuid.UUID | str, update: Update[A, Q], value: A, /, *, id: str | None = ..., wait_for: Literal["completed"] = ..., timeout: float | None = ...) -> Q: ...
    @overload
    async def update(self, run: AsyncRun[Any] | uuid.UUID | str, update: Update[None, Q], /, *, id: str | None = ..., wait_for: Sooner, timeout: float | None = ...) -> AsyncUpdateHandle[Q]: ...
    @overload
    async def update(self, run: AsyncRun[Any] | uuid.UUID | str, update: Update[A, Q], value: A, /, *, id: str | None = ..., wait_for: Sooner, timeout: float | None = ...) -> AsyncUpdateHandle[Q]: ...
    @overload
    async def update(self, run: AsyncRun[Any] | uuid.UUID | str, update: str, /, *arguments: Any, id: str | None = ..., wait_for: Literal["completed"] = ..., timeout: float | None = ...) -> Any: ...
    @overload
    async def update(self, run: AsyncRun[Any] | uuid.UUID | str, update: str, /, *arguments: Any, id: str | None = ..., wait_for: Sooner, timeout: float | None = ...) -> AsyncUpdateHandle[Any]: ...
    async def update(
        self, run: AsyncRun[Any] | uuid.UUID | str, update: Any, /, *arguments: Any, id: str | None = None, wait_for: WaitFor = "completed", timeout: float | None = None
    ) -> Any:
        """Send an update to a live run and wait until its handler has ended: what that returned. By a name, plain JSON values.

        id        the same id is the same update: it runs once, and who repeats it is given the same answer
        wait_for  "accepted" returns a handle when the run has accepted it, durably, "admitted" when it is stored
        timeout   seconds to wait; None: for ever, which is at most until the run ends
        Raises    UpdateRejected with the validator's error as `__cause__`, UpdateUnknown where the run has no such handler, UpdateFailed with
                  the handler's, UpdateUnfinished and RunClosed where the run has ended, RunUnknown, InputInvalid, PayloadRefused, TimeoutError.
        """
        from supervisor.api.updates import update_message

        handle = await self._sent(run, update_message(update, arguments, id))
        if wait_for == "completed":
            return await handle.result(timeout)
        return handle if wait_for == "admitted" else await handle.accepted(timeout)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────

    def _owner(self) -> AsyncClient:
        return self

    def _ready(self) -> None:
        refuse_inside_run()
        check_process(self._pid)
        running = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = running
        elif self._loop is not running:
            raise ClientMisused("this AsyncClient belongs to another event loop, which its session is read by; make one per loop, or use Client")

    def _verbs(self) -> Verbs:
        if self._made is None:
            self._made = Verbs(questions_of(self._schema), self._hints)
        return self._made

    async def _carry(self, make: Callable[[Verbs], Verb[T]]) -> T:
        self._ready()
        async with self._lock:
            return await self._carry_here(make)

    async def _carry_here(self, make: Callable[[Verbs], Verb[T]]) -> T:
        """While the session's lock is held."""
        if self._opened is None:
            self._opened = self._new_calls("client")
        result = await self._opened.carry(make(self._verbs()))
        await self._say_hint(self._opened)
        return result

    async def _start(self, asked: Asked, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Started:
        self._ready()
        if asked.definition is None or asked.on_conflict != "return":
            return await super()._start(asked, args, kwargs)
        asked.keyed()
        started: Started = await self._meet(starting(asked, asked.definition.encode_input(args, kwargs)))
        return started

    async def _signal(self, run_id: uuid.UUID, message: Message) -> bool:
        self._ready()
        stored: bool = await self._meet(signalling(run_id, message))
        return stored

    async def _meet(self, call: Call) -> Any:
        """Do it, with those that other tasks have asked for meanwhile where the session is not free."""
        return await (self._together.do(call) if self._together.busy else self._carry(call.alone))

    async def _talk(self, talk: Talk) -> Any:
        """Ask and pause as *talk* says."""
        from supervisor.db.client_calls_async import carry_async

        self._ready()
        return await carry_async(talk, self._pause_or_carry)

    async def _pause_or_carry(self, asked: Any) -> Any:
        if isinstance(asked, float):
            return await asyncio.sleep(asked)
        return await self._carry(asked)

    def _new_calls(self, purpose: str) -> AsyncClientCalls:
        from supervisor.db import connect
        from supervisor.db.client_calls_async import AsyncClientCalls

        return AsyncClientCalls(connect.resolve_dsn(self._dsn, source="AsyncClient(dsn)"), self._verbs().questions, purpose)

    def _new_ear(self, heard: Heard) -> Ear:
        from supervisor.api.ear import Ear
        from supervisor.db import connect

        return Ear(connect.resolve_dsn(self._dsn, source="AsyncClient(dsn)"), self._verbs().questions.schema, heard)

    async def _find_home(self, home: Home) -> None:
        """Which database a borrowed connection has to go to; asked once, and of nobody where no database is configured."""
        from supervisor.db import connect

        if home.where is None and (dsn := connect.find_dsn(self._dsn, source="AsyncClient(dsn)")) is not None:
            home.where, home.shown = await self._carry(lambda verbs: verbs.home()), str(dsn)

    async def _say_hint(self, calls: AsyncClientCalls) -> None:
        """Announce durable starts, signals and ends; those that may not be announced now are told with the next ones."""
        for each in self._hints.announcements(calls.questions):
            await calls.announce(each)

    # ── wait ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _status(self, run: AsyncRun[Any]) -> RunInfo:
        return await self._carry(lambda verbs: verbs.status(run.id, run._unsure))

    async def _published(self, run: AsyncRun[Any], key: str, kind: Any) -> Any:
        return await self._carry(lambda verbs: verbs.published_value(run.id, key, kind))

    async def _result(self, run: AsyncRun[Any], timeout: float | None) -> Any:
        self._ready()
        if run._unsure:  # nobody may wait for ever for what was rolled back
            await self._status(run)
            run._unsure = False
        give_up_at = None if timeout is None else time.monotonic() + timeout
        outcome = await self._waiter.wait(run.id.bytes, give_up_at, run._started_at)
        if outcome is None:
            outcome = await self._carry(lambda verbs: verbs.outcome_now(run.id, f"within {timeout:g} s"))
        return value_of(outcome, run.workflow, run._definition)

    async def _outcomes(self, ids: Sequence[bytes], patience_s: float) -> Sequence[Outcome]:
        """What the task that asks for all asks: on the client's session, on another as soon as tasks have met at that."""
        if self._alone and not self._lock.locked():
            return await self._carry(lambda verbs: verbs.outcomes(ids, patience_s))
        self._alone = False
        async with self._apart_lock:
            if self._apart is None:
                self._apart = self._new_calls("waiter")
            try:
                outcomes = await self._apart.carry(self._verbs().outcomes(ids, patience_s))
            except DatabaseUnavailable:
                if self._apart.connected:
                    raise
            else:
                await self._say_hint(self._apart)
                return outcomes
        return await self._carry(lambda verbs: verbs.outcomes(ids, patience_s))  # no second session is to be had


# ── the client that `await workflow.start.aio(…)` uses ───────────────────────────────────────────────────────────

_defaults: dict[asyncio.AbstractEventLoop, tuple[AsyncClient, AsyncGenerator[None, None]]] = {}


async def default_async_client() -> AsyncClient:
    """The running loop's own client. It is closed when the loop shuts its async generators down, as asyncio.run does at its end."""
    loop = asyncio.get_running_loop()
    held = _defaults.get(loop)
    if held is None or held[0]._pid != os.getpid():
        client = AsyncClient()
        lifetime = _lifetime(client, loop)
        held = _defaults[loop] = client, lifetime
        await anext(lifetime)
    return held[0]


async def _lifetime(client: AsyncClient, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        _defaults.pop(loop, None)
        await client.close()
