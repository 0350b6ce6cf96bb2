"""Updates: requests to runs that are judged, accepted and answered, typed on both sides.

Owns the words that workflow code says (`Update`, `.handler`, `handlers_finished`), one request from sending to its answer (`Errand`, generators
without I/O, which `Client` and `AsyncClient` carry), and its handles. An `Update` stands at the level of a module and holds a name and two
types; what was sent to a run is in the database, and what becomes of it the run's worker decides.
"""

from __future__ import annotations

import inspect
import time
import uuid
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, overload

import msgspec

from supervisor._fastpath import loop as core_loop
from supervisor.api.decorators import Durable
from supervisor.api.words import _inside, _Named
from supervisor.core import codec, context
from supervisor.core.errors import DefinitionError, InputInvalid, RunClosed, UpdateFailed, UpdateRejected, UpdateUnfinished, UpdateUnknown
from supervisor.core.registry import NAME_MAX, is_name

if TYPE_CHECKING:
    from supervisor.api.client import Client
    from supervisor.api.client_async import AsyncClient
    from supervisor.api.queries import Talk
    from supervisor.db.client_calls import UpdateStanding

A = TypeVar("A")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
Sooner: TypeAlias = Literal["admitted", "accepted"]
WaitFor: TypeAlias = Literal["admitted", "accepted", "completed"]

ID_MAX = 500
PAUSE_FIRST_S, PAUSE_MAX_S = 0.002, 0.5  # between two questions: a tenth of the time that was waited, within these
HANDLERS = _Named("handlers_finished")


@dataclass(frozen=True)
class UpdateMessage(Generic[R]):
    """An update that is to be sent: `reserve.message(3, id="order-7")`."""

    name: str
    payload: bytes
    id: str
    update: Update[Any, R] | None = None


class Update(Generic[A, R]):
    """A request to runs: `reserve = Update("reserve", int, str)`, at the module's level.

    takes  type of the argument, None where it has none; returns: type of the answer, None where it has none
    """

    @overload
    def __init__(self: Update[None, None], name: str, takes: None = None, returns: None = None) -> None: ...
    @overload
    def __init__(self: Update[None, R], name: str, takes: None = None, *, returns: type[R]) -> None: ...
    @overload
    def __init__(self: Update[None, R], name: str, takes: None, returns: type[R]) -> None: ...
    @overload
    def __init__(self: Update[A, None], name: str, takes: type[A], returns: None = None) -> None: ...
    @overload
    def __init__(self, name: str, takes: type[A], returns: type[R]) -> None: ...
    def __init__(self, name: str, takes: Any = None, returns: Any = None) -> None:
        if not is_name(name):
            raise DefinitionError(f"Update({name!r}): give a name of 1 to {NAME_MAX} printable characters")
        self.name, self.wire_name = name, name.encode()
        self.takes, self.returns = takes, returns
        self.argument = codec.Shape(takes, f"argument of update {name}") if takes is not None else None
        self.answer = codec.Shape(returns, f"the handler of update {name}")

    # ── in a workflow ────────────────────────────────────────────────────────────────────────────────────────────

    @overload
    def handler(self: Update[None, R], fn: Callable[[], R | Awaitable[R]], *, validator: Callable[[], object] | None = None) -> Callable[[], Any]: ...
    @overload
    def handler(self, fn: Callable[[A], R | Awaitable[R]], *, validator: Callable[[A], object] | None = None) -> Callable[[A], Any]: ...
    @overload
    def handler(self, fn: None = None, *, validator: Callable[..., object] | None = None) -> Callable[[F], F]: ...
    def handler(self, fn: Any = None, *, validator: Any = None) -> Any:
        """In a workflow: *fn* does this update from now on, as a branch of the run; in an `async def` workflow it may be async and call steps.

        validator  called first, with the same argument: a plain function that reads what the run holds; whatever it raises rejects the update
        """
        if fn is None:
            return lambda given: self.handler(given, validator=validator)
        run = _inside(f"the handler of update {self.name!r}")
        self._check("handler", fn, waits=core_loop.mode() == core_loop.IN_ASYNC)
        if validator is not None:
            self._check("validator", validator, waits=False)
        context.loop.handles_update(run, self, fn, validator)
        return fn

    def _check(self, what: str, fn: Any, waits: bool) -> None:
        """Raises DefinitionError for what can't be called so."""
        if not callable(fn) or inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn) or (inspect.iscoroutinefunction(fn) and not waits):
            why = "a def function, which answers at once" if what == "validator" else "a function, in a def workflow a def function"
            raise DefinitionError(f"the {what} of update {self.name!r} is {fn!r}; give {why}")
        try:
            inspect.signature(fn).bind(*([None] if self.argument is not None else []))
        except (TypeError, ValueError):
            takes = "one argument" if self.argument is not None else "no argument"
            raise DefinitionError(f"the {what} of update {self.name!r} must take {takes}, as the update does: {fn!r}") from None

    def arguments(self, payload: bytes) -> tuple[Any, ...]:
        """What its handler is called with. Raises InputInvalid."""
        if self.argument is None:
            if payload != b"null":
                raise InputInvalid(f"update {self.name}", "it takes no argument")
            return ()
        try:
            return (self.argument.decode(payload),)
        except Exception as error:  # noqa: BLE001 - whatever was sent
            raise InputInvalid(f"update {self.name}", codec.brief(error)) from None

    # ── outside ──────────────────────────────────────────────────────────────────────────────────────────────────

    @overload
    def message(self: Update[None, R], /, *, id: str | None = None) -> UpdateMessage[R]: ...
    @overload
    def message(self, value: A, /, *, id: str | None = None) -> UpdateMessage[R]: ...
    def message(self, /, *arguments: Any, id: str | None = None) -> UpdateMessage[R]:
        """A message with that argument, to be sent. Raises InputInvalid where it does not fit the type, PayloadRefused.

        id   the same id is the same update: it runs once, and who repeats it is given the same answer
        """
        return update_message(self, arguments, id)

    def __repr__(self) -> str:
        return f"<update {self.name}>"


def update_message(update: Update[Any, R] | UpdateMessage[R] | str, arguments: tuple[Any, ...], id: str | None) -> UpdateMessage[Any]:
    """What a caller gave. Raises InputInvalid or PayloadRefused."""
    from supervisor.api.asked import check_text

    if isinstance(update, UpdateMessage):
        return update
    known = update if isinstance(update, Update) else None
    name = known.name if known is not None else str(update)
    if not is_name(name):
        raise InputInvalid("update", f"{update!r} is none: give an Update, or a name of 1 to {NAME_MAX} printable characters")
    if len(arguments) > 1 or known is not None and bool(arguments) != (known.argument is not None):
        wanted = "at most one argument" if known is None else "no argument" if known.argument is None else "one argument"
        raise InputInvalid(f"update {name}", f"it takes {wanted} and {len(arguments)} were given")
    where = f"argument of update {name}"
    if not arguments:
        payload = b"null"
    elif known is None or known.argument is None:
        payload = codec.encode(arguments[0], where)
    else:
        payload = known.argument.encode(arguments[0])
        known.arguments(payload)
    return UpdateMessage(name, payload, uuid.uuid4().hex if id is None else check_text(f"update {name}", "id", id, ID_MAX), known)


def handlers_command() -> Any:
    _inside("handlers_finished()")
    return core_loop.new_command(core_loop.HANDLED, HANDLERS, ())


def handlers_finished() -> Durable[None]:
    """Wait until every update that was sent to the run so far is answered: no handler is under way, and nothing waits to be accepted.

    The last thing that a workflow does before it returns; a handler that is under way when its run ends is given up.
    """
    return handlers_command()  # type: ignore[no-any-return]


# ── one update, from sending to its answer ───────────────────────────────────────────────────────────────────────


class Errand:
    """One update that was sent to one run; `wait` is what is to be done to be told its answer."""

    def __init__(self, run_id: uuid.UUID, message: UpdateMessage[Any], unsure: bool) -> None:
        self.run_id, self.message, self.unsure = run_id, message, unsure

    def standing(self) -> Talk:
        """How it stands. Raises UpdateRejected where the run knows of none."""
        message = self.message
        standing = yield lambda verbs: verbs.update_standing(self.run_id, message.name, message.id)
        if standing is None:
            why = f"it knows of none with the id {message.id!r}"
            if self.unsure:
                why += " yet: it was sent in a transaction that has not committed or was rolled back"
            raise UpdateRejected(self.run_id, message.name, why)
        self.unsure = False
        return standing

    def wait(self, only_accepted: bool, timeout_s: float | None) -> Talk:
        """Raises UpdateRejected, UpdateUnknown, UpdateFailed, UpdateUnfinished, RunClosed, RunUnknown, TimeoutError."""
        began = time.monotonic()
        while True:
            standing = yield from self.standing()
            if standing.stage != "admitted" and (only_accepted or standing.stage != "accepted"):
                return self._told(standing, only_accepted)
            waited_s = time.monotonic() - began
            if timeout_s is not None and waited_s >= timeout_s:
                raise TimeoutError(
                    f"update {self.message.name!r} of run {self.run_id} is {standing.stage} and was not answered within {timeout_s:g} s; it goes on: "
                    f"ask again with id {self.message.id!r}, or see python -m supervisor show {self.run_id}"
                )
            pause_s = max(PAUSE_FIRST_S, min(waited_s / 10, PAUSE_MAX_S))
            yield pause_s if timeout_s is None else min(pause_s, max(timeout_s - waited_s, 0.0))

    def _told(self, standing: UpdateStanding, only_accepted: bool) -> Any:
        run_id, name = self.run_id, self.message.name
        if standing.stage == "rejected":
            error = codec.decode_error(standing.reply)
            if isinstance(error, UpdateUnknown):
                raise error
            raise UpdateRejected(run_id, name, codec.brief(error)) from error
        if standing.stage == "closed":
            raise RunClosed(run_id, standing.run_status or "", update=name)
        if only_accepted:
            return None
        if standing.stage == "unfinished":
            raise UpdateUnfinished(run_id, name, standing.run_status or "")
        if standing.stage == "failed":
            error = codec.decode_error(standing.reply)
            raise UpdateFailed(run_id, name, codec.brief(error)) from error
        update = self.message.update
        return msgspec.json.decode(standing.reply or b"null") if update is None else update.answer.decode(standing.reply or b"null")


class _UpdateHandle:
    """An update that was sent: which run, which update, which id."""

    def __init__(self, run_id: uuid.UUID, message: UpdateMessage[Any], unsure: bool) -> None:
        self.run_id, self.name, self.id = run_id, message.name, message.id
        self._errand = Errand(run_id, message, unsure)

    def __repr__(self) -> str:
        return f"<update {self.name} {self.id!r} of run {self.run_id}>"


class UpdateHandle(_UpdateHandle, Generic[R]):
    """An update that was sent; it holds ids and a client, and asks for what it tells."""

    def __init__(self, client: Client, run_id: uuid.UUID, message: UpdateMessage[R], unsure: bool = False) -> None:
        super().__init__(run_id, message, unsure)
        self._client = client

    def stage(self) -> str:
        """admitted, accepted, completed, failed, rejected, unfinished or closed."""
        standing: UpdateStanding = self._client._talk(self._errand.standing())
        return standing.stage

    def accepted(self, timeout: float | None = None) -> UpdateHandle[R]:
        """Wait until its run has accepted it, durably. Raises UpdateRejected, UpdateUnknown, RunClosed, TimeoutError."""
        self._client._talk(self._errand.wait(True, timeout))
        return self

    def result(self, timeout: float | None = None) -> R:
        """Wait for its answer; *timeout* in seconds, None waits for ever, which is at most until the run ends.

        Raises UpdateRejected with the validator's error as `__cause__`, UpdateUnknown, UpdateFailed with the handler's error as `__cause__`,
        UpdateUnfinished and RunClosed where the run has ended, TimeoutError.
        """
        result: R = self._client._talk(self._errand.wait(False, timeout))
        return result


class AsyncUpdateHandle(_UpdateHandle, Generic[R]):
    """`UpdateHandle`, awaited: `await handle` is `await handle.result()`."""

    def __init__(self, client: AsyncClient, run_id: uuid.UUID, message: UpdateMessage[R], unsure: bool = False) -> None:
        super().__init__(run_id, message, unsure)
        self._client = client

    def __await__(self) -> Generator[Any, None, R]:
        return self.result().__await__()

    async def stage(self) -> str:
        """admitted, accepted, completed, failed, rejected, unfinished or closed."""
        standing: UpdateStanding = await self._client._talk(self._errand.standing())
        return standing.stage

    async def accepted(self, timeout: float | None = None) -> AsyncUpdateHandle[R]:
        """Wait until its run has accepted it, durably; see `UpdateHandle.accepted`."""
        await self._client._talk(self._errand.wait(True, timeout))
        return self

    async def result(self, timeout: float | None = None) -> R:
        """Wait for its answer; see `UpdateHandle.result`."""
        result: R = await self._client._talk(self._errand.wait(False, timeout))
        return result


__all__ = ["AsyncUpdateHandle", "Errand", "Update", "UpdateHandle", "UpdateMessage", "WaitFor", "handlers_command", "handlers_finished", "update_message"]
