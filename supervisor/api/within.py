"""Verbs in the caller's open transaction: business rows and runs are committed together, or neither is.

Never commits, rolls back or repeats, and announces nothing but a resumed queue, at the caller's commit: the transaction is the caller's, and hosts find what
was started in it by themselves, within half a second. A handle of a start belongs to the client, for use after the commit; `result` here only reads.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

from supervisor.api.asked import CHUNK_RUNS, Asked, chunk_of, id_of, registered, value_of
from supervisor.api.client import ClientVerbs
from supervisor.api.client_async import AsyncClientVerbs
from supervisor.api.verbs import Verbs

if TYPE_CHECKING:
    from supervisor.api.client import Client
    from supervisor.api.client_async import AsyncClient
    from supervisor.api.handles import AsyncRun, Batch, Run
    from supervisor.api.updates import AsyncUpdateHandle, Update, UpdateHandle
    from supervisor.db.client_calls import Verb

T = TypeVar("T")
A = TypeVar("A")
Q = TypeVar("Q")
SyncConnection: TypeAlias = Any  # psycopg.Connection, SQLAlchemy Connection or Session, Django's connection: looked at, not imported
AsyncConnection: TypeAlias = Any  # psycopg.AsyncConnection, SQLAlchemy AsyncConnection or AsyncSession

WHEN = "yet; in a transaction result() reads and does not wait"


class Within(ClientVerbs):
    """A client's verbs on a connection of the caller's. Made by `Client.within`."""

    _unsure = True

    def __init__(self, client: Client, connection: SyncConnection) -> None:
        from supervisor.db.borrowed import Borrowed, Home

        self._client = client
        self._home = client._home = client._home or Home()
        self._made = Verbs(client._verbs().questions, None)
        self._borrowed = Borrowed(connection, self._made.questions, self._home)

    def result(self, run: Run[Any] | uuid.UUID | str) -> Any:
        """The result of a run that has ended, as this transaction sees it. Raises TimeoutError when it has not, else as `Run.result`."""
        run_id = id_of(run)
        outcome = self._carry(lambda verbs: verbs.outcome_now(run_id, WHEN))
        name, definition = _known(run) or _found(self.status(run_id).workflow)
        return value_of(outcome, name, definition)

    @overload
    def update(self, run: Run[Any] | uuid.UUID | str, update: Update[None, Q], /, *, id: str | None = None) -> UpdateHandle[Q]: ...
    @overload
    def update(self, run: Run[Any] | uuid.UUID | str, update: Update[A, Q], value: A, /, *, id: str | None = None) -> UpdateHandle[Q]: ...
    @overload
    def update(self, run: Run[Any] | uuid.UUID | str, update: str, /, *arguments: Any, id: str | None = None) -> UpdateHandle[Any]: ...
    def update(self, run: Run[Any] | uuid.UUID | str, update: Any, /, *arguments: Any, id: str | None = None) -> UpdateHandle[Any]:
        """Send an update, which reaches the run when the caller commits; the handle waits for its answer after that. Raises as `Client.update`."""
        from supervisor.api.updates import update_message

        return self._sent(run, update_message(update, arguments, id))

    def _owner(self) -> Client:
        return self._client

    def _carry(self, make: Callable[[Verbs], Verb[T]]) -> T:
        self._client._ready()
        self._client._find_home(self._home)
        return self._borrowed.carry(make(self._made))

    def _stream(
        self,
        asked: Asked,
        encode: Callable[[Any], bytes],
        items: Iterator[Any],
        key: Callable[[Any], str | None] | None,
        batch: Batch[Any],
    ) -> None:
        while chunk := chunk_of(asked.name, encode, items, key):
            self._send(asked, chunk, batch)
            if len(chunk.inputs) < CHUNK_RUNS:
                break


class AsyncWithin(AsyncClientVerbs):
    """`Within`, awaited. Made by `AsyncClient.within`."""

    _unsure = True

    def __init__(self, client: AsyncClient, connection: AsyncConnection) -> None:
        from supervisor.db.borrowed import AsyncBorrowed, Home

        self._client = client
        self._home = client._home = client._home or Home()
        self._made = Verbs(client._verbs().questions, None)
        self._borrowed = AsyncBorrowed(connection, self._made.questions, self._home)

    async def result(self, run: AsyncRun[Any] | uuid.UUID | str) -> Any:
        """The result of a run that has ended, as this transaction sees it. Raises TimeoutError when it has not, else as `AsyncRun.result`."""
        run_id = id_of(run)
        outcome = await self._carry(lambda verbs: verbs.outcome_now(run_id, WHEN))
        name, definition = _known(run) or _found((await self.status(run_id)).workflow)
        return value_of(outcome, name, definition)

    @overload
    async def update(self, run: AsyncRun[Any] | uuid.UUID | str, update: Update[None, Q], /, *, id: str | None = None) -> AsyncUpdateHandle[Q]: ...
    @overload
    async def update(self, run: AsyncRun[Any] | uuid.UUID | str, update: Update[A, Q], value: A, /, *, id: str | None = None) -> AsyncUpdateHandle[Q]: ...
    @overload
    async def update(self, run: AsyncRun[Any] | uuid.UUID | str, update: str, /, *arguments: Any, id: str | None = None) -> AsyncUpdateHandle[Any]: ...
    async def update(self, run: AsyncRun[Any] | uuid.UUID | str, update: Any, /, *arguments: Any, id: str | None = None) -> AsyncUpdateHandle[Any]:
        """Send an update, which reaches the run when the caller commits; the handle waits for its answer after that. Raises as `AsyncClient.update`."""
        from supervisor.api.updates import update_message

        return await self._sent(run, update_message(update, arguments, id))

    def _owner(self) -> AsyncClient:
        return self._client

    async def _carry(self, make: Callable[[Verbs], Verb[T]]) -> T:
        self._client._ready()
        await self._client._find_home(self._home)
        return await self._borrowed.carry(make(self._made))


def _known(run: Any) -> tuple[str, Any] | None:
    """Name and definition of a handle's workflow."""
    return (run.workflow, run._definition) if hasattr(run, "_definition") else None


def _found(workflow: str) -> tuple[str, Any]:
    return workflow, registered(workflow)
