"""Signals: named messages into runs, typed on both sides.

A `Signal` stands at the level of a module: workflows wait for it, clients send it. It holds a name and a type and no state; what
was sent to a run is in the database. Invariant: what a wait gives is what the stored message decodes to, live and in a replay.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Generic, NamedTuple, TypeVar, overload

from supervisor._fastpath import loop as core_loop
from supervisor.api.decorators import Durable
from supervisor.api.words import _inside
from supervisor.core import codec
from supervisor.core.errors import DefinitionError, InputInvalid, ResultInvalid
from supervisor.core.registry import NAME_MAX, is_name
from supervisor.core.retry import seconds

T = TypeVar("T")

ID_MAX = 500


class Message(NamedTuple):
    """A signal that is to be sent: `approved.message(value, id="evt-1")`."""

    name: str
    payload: bytes
    id: str | None = None


class SignalOf(Generic[T]):
    """What `supervisor.Signal` and `supervisor.sync.Signal` share. In a command it stands where a step stands."""

    inline = False

    @overload
    def __init__(self: SignalOf[Any], name: str) -> None: ...
    @overload
    def __init__(self, name: str, type: type[T]) -> None: ...
    def __init__(self, name: str, type: Any = Any) -> None:
        """A signal of that *name* (1 to 200 printable characters) whose messages are values of *type*; any JSON without one."""
        if not is_name(name):
            raise DefinitionError(f"Signal({name!r}): give a name of 1 to {NAME_MAX} printable characters")
        self.name = name
        self.wire_name = name.encode()
        self.type = type
        self._shape: codec.Shape | None = None

    @property
    def shape(self) -> codec.Shape:
        if self._shape is None:  # at first use: the type may refer to others that its module defines later
            self._shape = codec.Shape(self.type, f"signal {self.name}")
        return self._shape

    def decode(self, payload: bytes) -> T:
        """The value of a stored message."""
        value: T = self.shape.decode(payload)
        return value

    def message(self, value: T, *, id: str | None = None) -> Message:
        """A message with that value, to be sent. Raises InputInvalid where it does not fit the type, PayloadRefused.

        id   a second message of this name with it is not stored; without one every message is another one
        """
        try:
            return Message(self.name, self.shape.settle(value)[0], checked_id(self.name, id))
        except ResultInvalid as error:
            raise InputInvalid(f"signal {self.name}", error.why) from None

    def __repr__(self) -> str:
        return f"<signal {self.name}>"


class Signal(SignalOf[T]):
    """A named message into runs: `approved = Signal("approved", Approval)`, in a workflow `await approved.wait(timeout=3600)`.

    Messages are given to a run in the order in which they came, each to one wait; those that come before anybody waits are kept.
    In a def workflow use `supervisor.sync.Signal`.
    """

    def wait(self, timeout: float | timedelta | None = None) -> Durable[T]:
        """Wait for the next message; *timeout* in seconds or timedelta, by the database's clock. Raises TimeoutError when none came."""
        if core_loop.mode() == core_loop.IN_SYNC:
            raise DefinitionError(f"signal {self.name} in a def workflow: define it with supervisor.sync.Signal, whose wait() needs no await")
        return wait_command(self, timeout)  # type: ignore[no-any-return]

    def __aiter__(self) -> AsyncIterator[T]:
        """Every message from here on, one after the other, for ever: leave the loop to end it."""
        return _Each(self)


class _Each(Generic[T]):
    """No async generator: asyncio would close one that is left behind by a task of its own."""

    def __init__(self, signal: Signal[T]) -> None:
        self._signal = signal

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    def __anext__(self) -> Durable[T]:
        return self._signal.wait()


def wait_command(signal: SignalOf[Any], timeout: float | timedelta | None) -> Any:
    _inside(f"{signal.name}.wait()")
    command = core_loop.new_command(core_loop.SIGNAL, signal, ())
    command.extra = None if timeout is None else int(seconds(timeout, "timeout=") * 1_000_000)
    return command


def message_of(signal: SignalOf[Any] | str | Message, value: Any, id: str | None) -> Message:
    """What a caller gave. Raises InputInvalid or PayloadRefused."""
    if isinstance(signal, Message):
        return signal
    if isinstance(signal, SignalOf):
        return signal.message(value, id=id)
    if not is_name(signal):
        raise InputInvalid("signal", f"{signal!r} is none: give a Signal, or a name of 1 to {NAME_MAX} printable characters")
    return Message(signal, codec.encode(value), checked_id(signal, id))


def checked_id(name: str, id: str | None) -> str | None:
    from supervisor.api.asked import check_text

    return None if id is None else check_text(f"signal {name}", "id", id, ID_MAX)


__all__ = ["Message", "Signal", "SignalOf", "message_of", "wait_command"]
