"""Handles: runs that were started or found, and batches of them. Two handles are equal if they mean the same run.

A handle holds an id and its client, and no state of the run: what it tells it asks for.
"""

from __future__ import annotations

import uuid
from abc import abstractmethod
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

import msgspec

from supervisor.core.errors import KeyMismatch

if TYPE_CHECKING:
    from supervisor.api.client import Client
    from supervisor.api.client_async import AsyncClient
    from supervisor.api.queries import Query
    from supervisor.api.signals import SignalOf
    from supervisor.api.updates import AsyncUpdateHandle, Sooner, Update, UpdateHandle

R = TypeVar("R")
T = TypeVar("T")
A = TypeVar("A")
Q = TypeVar("Q")
H = TypeVar("H")


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


class Progress(msgspec.Struct, frozen=True):
    """How far a run says that it is; total None: it is not known."""

    done: float
    total: float | None
    at: datetime


class VersionInfo(msgspec.Struct, frozen=True):
    """One version of a workflow: who has it, how many runs are of it."""

    workflow: str
    version: str | None  # None: of runs that have not begun
    workers: int  # live ones that have exactly this version
    hosts: list[str]
    live: int
    running: int
    code_missing: int  # parked, for who claimed them could not run them
    missing_since: datetime | None
    ended_1h: int  # of those that were started within the last hour
    source: str | None  # module and function
    first_seen_at: datetime | None
    last_seen_at: datetime | None


class Moved(msgspec.Struct, frozen=True):
    """What became of a version's live runs: moved, or left because workers have them (or somebody has locked them)."""

    moved: int
    claimed: int


class _Handle:
    """A run's id and what was known when the handle was made."""

    __slots__ = ("_definition", "_started_at", "_unsure", "created", "id", "key", "workflow")

    def __init__(
        self,
        run_id: uuid.UUID,
        workflow: str,
        definition: Any,
        key: str | None,
        created: bool,
        *,
        started_at: float = 0.0,
        unsure: bool = False,
    ) -> None:
        self.id = run_id
        self.workflow = workflow
        self.key = key
        self.created = created  # False where a key named one that was there before
        self._definition = definition
        self._started_at = started_at
        self._unsure = unsure  # started in a transaction that may not have committed yet

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, _Handle) else NotImplemented

    def __lt__(self, other: object) -> bool:
        """Run ids, so handles too, are in the order of their starts, to the millisecond."""
        return self.id < other.id if isinstance(other, _Handle) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<run {self.id} of {self.workflow}{f' key {self.key!r}' if self.key else ''}>"


class Run(_Handle, Generic[R]):
    """A run that was started or found. `created` is False where a key named one that was there before."""

    __slots__ = ("_client",)

    def __init__(self, client: Client, *facts: Any, **more: Any) -> None:
        super().__init__(*facts, **more)
        self._client = client

    def status(self) -> RunInfo:
        """Where it is now. Raises RunUnknown when its history was pruned."""
        return self._client._status(self)

    def result(self, timeout: float | None = None) -> R:
        """Wait for its end and return its result; *timeout* in seconds, None waits for ever.

        Raises RunFailed with the rebuilt error as `__cause__`, RunTimedOut, RunCancelled, RunTerminated, TimeoutError.
        """
        result: R = self._client._result(self, timeout)
        return result

    @overload
    def published(self, key: str) -> Any: ...
    @overload
    def published(self, key: str, kind: type[T]) -> T | None: ...
    def published(self, key: str, kind: Any = Any) -> Any:
        """What it has last published under *key*, as a *kind* (else as plain JSON values); None where it has not. Raises RunUnknown."""
        return self._client._published(self, key, kind)

    def progress(self) -> Progress | None:
        """How far it says that it is; None where it has not said. Raises RunUnknown."""
        return self._client.progress(self)

    def attributes(self) -> Mapping[str, Any]:
        """The attributes that it has now, as plain JSON values. Raises RunUnknown."""
        return self._client.attributes(self)

    @overload
    def query(self, query: Query[None, Q], /, *, timeout: float = ...) -> Q: ...
    @overload
    def query(self, query: Query[A, Q], argument: A, /, *, timeout: float = ...) -> Q: ...
    @overload
    def query(self, query: str, /, *arguments: Any, timeout: float = ...) -> Any: ...
    def query(self, query: Any, /, *arguments: Any, **options: float) -> Any:
        """Ask it what its handler of *query* answers; see `Client.query`."""
        return self._client.query(self.id, query, *arguments, **options)

    @overload
    def signal(self, signal: SignalOf[T], value: T, *, id: str | None = None) -> bool: ...
    @overload
    def signal(self, signal: str, value: Any = None, *, id: str | None = None) -> bool: ...
    def signal(self, signal: Any, value: Any = None, *, id: str | None = None) -> bool:
        """Send it a message; see `Client.signal`. Raises RunClosed where it has ended, RunUnknown."""
        return self._client.signal(self, signal, value, id=id)

    @overload
    def update(self, update: Update[None, Q], /, *, id: str | None = ..., wait_for: Literal["completed"] = ..., timeout: float | None = ...) -> Q: ...
    @overload
    def update(self, update: Update[A, Q], value: A, /, *, id: str | None = ..., wait_for: Literal["completed"] = ..., timeout: float | None = ...) -> Q: ...
    @overload
    def update(self, update: Update[None, Q], /, *, id: str | None = ..., wait_for: Sooner, timeout: float | None = ...) -> UpdateHandle[Q]: ...
    @overload
    def update(self, update: Update[A, Q], value: A, /, *, id: str | None = ..., wait_for: Sooner, timeout: float | None = ...) -> UpdateHandle[Q]: ...
    @overload
    def update(self, update: str, /, *arguments: Any, id: str | None = ..., wait_for: Literal["completed"] = ..., timeout: float | None = ...) -> Any: ...
    @overload
    def update(self, update: str, /, *arguments: Any, id: str | None = ..., wait_for: Sooner, timeout: float | None = ...) -> UpdateHandle[Any]: ...
    def update(self, update: Any, /, *arguments: Any, **options: Any) -> Any:
        """Send it an update and wait for what its handler returns, or, with `wait_for="accepted"`, until it has accepted it; see `Client.update`."""
        return self._client.update(self.id, update, *arguments, **options)

    def cancel(self, reason: str | None = None, *, actor: str | None = None) -> bool:
        """Ask that it, and all below it, be cancelled; see `Client.cancel`. False where it had ended or was cancelled already."""
        return self._client.cancel(self, reason, actor=actor)

    def terminate(self, reason: str | None = None, *, actor: str | None = None) -> bool:
        """End it now, without its code; see `Client.terminate`. False where it had ended already."""
        return self._client.terminate(self, reason, actor=actor)


class AsyncRun(_Handle, Generic[R]):
    """`Run`, awaited: `await run` is `await run.result()`."""

    __slots__ = ("_client",)

    def __init__(self, client: AsyncClient, *facts: Any, **more: Any) -> None:
        super().__init__(*facts, **more)
        self._client = client

    def __await__(self) -> Generator[Any, None, R]:
        return self.result().__await__()

    async def status(self) -> RunInfo:
        """Where it is now. Raises RunUnknown when its history was pruned."""
        return await self._client._status(self)

    async def result(self, timeout: float | None = None) -> R:
        """Wait for its end and return its result; *timeout* in seconds, None waits for ever.

        Raises RunFailed with the rebuilt error as `__cause__`, RunTimedOut, RunCancelled, RunTerminated, TimeoutError.
        """
        result: R = await self._client._result(self, timeout)
        return result

    @overload
    async def published(self, key: str) -> Any: ...
    @overload
    async def published(self, key: str, kind: type[T]) -> T | None: ...
    async def published(self, key: str, kind: Any = Any) -> Any:
        """What it has last published under *key*, as a *kind* (else as plain JSON values); None where it has not. Raises RunUnknown."""
        return await self._client._published(self, key, kind)

    async def progress(self) -> Progress | None:
        """How far it says that it is; None where it has not said. Raises RunUnknown."""
        return await self._client.progress(self)

    async def attributes(self) -> Mapping[str, Any]:
        """The attributes that it has now, as plain JSON values. Raises RunUnknown."""
        return await self._client.attributes(self)

    @overload
    async def query(self, query: Query[None, Q], /, *, timeout: float = ...) -> Q: ...
    @overload
    async def query(self, query: Query[A, Q], argument: A, /, *, timeout: float = ...) -> Q: ...
    @overload
    async def query(self, query: str, /, *arguments: Any, timeout: float = ...) -> Any: ...
    async def query(self, query: Any, /, *arguments: Any, **options: float) -> Any:
        """Ask it what its handler of *query* answers; see `Client.query`."""
        return await self._client.query(self.id, query, *arguments, **options)

    @overload
    async def signal(self, signal: SignalOf[T], value: T, *, id: str | None = None) -> bool: ...
    @overload
    async def signal(self, signal: str, value: Any = None, *, id: str | None = None) -> bool: ...
    async def signal(self, signal: Any, value: Any = None, *, id: str | None = None) -> bool:
        """Send it a message; see `Client.signal`. Raises RunClosed where it has ended, RunUnknown."""
        return await self._client.signal(self, signal, value, id=id)

    @overload
    async def update(self, update: Update[None, Q], /, *, id: str | None = ..., wait_for: Literal["completed"] = ..., timeout: float | None = ...) -> Q: ...
    @overload
    async def update(self, update: Update[A, Q], value: A, /, *, id: str | None = ..., wait_for: Literal["completed"] = ..., timeout: float | None = ...) -> Q: ...
    @overload
    async def update(self, update: Update[None, Q], /, *, id: str | None = ..., wait_for: Sooner, timeout: float | None = ...) -> AsyncUpdateHandle[Q]: ...
    @overload
    async def update(self, update: Update[A, Q], value: A, /, *, id: str | None = ..., wait_for: Sooner, timeout: float | None = ...) -> AsyncUpdateHandle[Q]: ...
    @overload
    async def update(self, update: str, /, *arguments: Any, id: str | None = ..., wait_for: Literal["completed"] = ..., timeout: float | None = ...) -> Any: ...
    @overload
    async def update(self, update: str, /, *arguments: Any, id: str | None = ..., wait_for: Sooner, timeout: float | None = ...) -> AsyncUpdateHandle[Any]: ...
    async def update(self, update: Any, /, *arguments: Any, **options: Any) -> Any:
        """Send it an update and wait for what its handler returns, or, with `wait_for="accepted"`, until it has accepted it; see `Client.update`."""
        return await self._client.update(self.id, update, *arguments, **options)

    async def cancel(self, reason: str | None = None, *, actor: str | None = None) -> bool:
        """Ask that it, and all below it, be cancelled; see `Client.cancel`. False where it had ended or was cancelled already."""
        return await self._client.cancel(self, reason, actor=actor)

    async def terminate(self, reason: str | None = None, *, actor: str | None = None) -> bool:
        """End it now, without its code; see `Client.terminate`. False where it had ended already."""
        return await self._client.terminate(self, reason, actor=actor)


class _Batch(Sequence[H], Generic[H]):
    """Runs that one `start_many` started, in the order of its items."""

    def __init__(self, workflow: str, definition: Any, unsure: bool = False) -> None:
        self._workflow, self._definition, self._unsure = workflow, definition, unsure
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
    def __getitem__(self, at: int) -> H: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[H]: ...
    def __getitem__(self, at: int | slice) -> H | Sequence[H]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self._ids)))]
        at = range(len(self._ids))[at]
        created = at not in self._there
        facts = (uuid.UUID(bytes=self._ids[at]), self._workflow, self._definition, self._there.get(at), created)
        return self._handle(*facts, unsure=self._unsure and created)

    @abstractmethod
    def _handle(self, *facts: Any, unsure: bool) -> H: ...

    def _add(self, ids: list[bytes], keys: list[str | None] | None, there: Sequence[tuple[int, uuid.UUID, bool]]) -> None:
        """Take in a chunk: *there* has the positions whose keys named other runs."""
        first = len(self._ids)
        for at, run_id, matches in there:
            named = (keys or [])[at] or ""
            if not matches:
                self.mismatches.append(KeyMismatch(self._workflow, named, run_id))
            self._there[first + at] = named
            ids[at] = run_id.bytes
        self._ids.extend(ids)

    def _told(self) -> None:
        """Raise KeyMismatch for what was not started, after all else was."""
        if self.mismatches:
            error = self.mismatches[0]
            error.batch = self  # type: ignore[attr-defined]
            if len(self.mismatches) > 1:
                error.add_note(f"and {len(self.mismatches) - 1} more keys; all other items were started")
            raise error

    def __repr__(self) -> str:
        return f"<batch of {len(self):,} runs of {self._workflow}>"


class Batch(_Batch["Run[R]"], Generic[R]):
    """Runs that one `start_many` started, in the order of its items."""

    def __init__(self, client: Client, workflow: str, definition: Any, unsure: bool = False) -> None:
        super().__init__(workflow, definition, unsure)
        self._client = client

    def _handle(self, *facts: Any, unsure: bool) -> Run[R]:
        return Run(self._client, *facts, unsure=unsure)


class AsyncBatch(_Batch["AsyncRun[R]"], Generic[R]):
    """Runs that one `start_many` of an AsyncClient started, in the order of its items."""

    def __init__(self, client: AsyncClient, workflow: str, definition: Any, unsure: bool = False) -> None:
        super().__init__(workflow, definition, unsure)
        self._client = client

    def _handle(self, *facts: Any, unsure: bool) -> AsyncRun[R]:
        return AsyncRun(self._client, *facts, unsure=unsure)
