"""What whoever holds a token does with it: complete, fail, heartbeat. Said once, for both kinds of client."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from supervisor.core import codec
from supervisor.core.errors import CompletionFailed, InputInvalid

if TYPE_CHECKING:
    from supervisor.api.verbs import Verbs
    from supervisor.db.client_calls import Verb

T = TypeVar("T")
TOKEN_MAX = 200


def _checked(token: object) -> str:
    if not isinstance(token, str) or len(token) > TOKEN_MAX or not token.isascii() or "\x00" in token:
        raise InputInvalid("token", f"{type(token).__name__} is given; a token is the text that current().token() had")
    return token


def _finish(verbs: Verbs, token: str, kind: int, payload: bytes, retry: bool) -> Verb[bool]:
    from supervisor.db import operator_calls

    sent = yield from operator_calls.finish_token(_checked(token), kind, payload, retry)
    verbs.tell(sent)
    return sent.stored


def complete(verbs: Verbs, token: str, value: Any) -> Verb[bool]:
    return (yield from _finish(verbs, token, 1, codec.encode(value), True))


def fail(verbs: Verbs, token: str, error: BaseException | str, retry: bool) -> Verb[bool]:
    told = CompletionFailed(error) if isinstance(error, str) else error
    return (yield from _finish(verbs, token, 2, codec.encode_error(told), retry))


def heartbeat(verbs: Verbs, token: str, details: Any) -> Verb[None]:
    from supervisor.db import operator_calls

    yield from operator_calls.beat_token(_checked(token), None if details is None else codec.encode(details))


class TokenVerbs:
    """The verbs of `Client` and `Within`."""

    def _carry(self, make: Callable[[Verbs], Verb[T]]) -> T:
        raise NotImplementedError

    def complete(self, token: str, value: Any = None) -> bool:
        """Give the step that handed out *token* its result; also before the step has returned. False where it has just that already.

        The run reads it by the step's return annotation; what does not fit fails that try. Raises TokenClosed, TokenUnknown, PayloadRefused.
        """
        return self._carry(lambda verbs: complete(verbs, token, value))

    def fail(self, token: str, error: BaseException | str, *, retry: bool = True) -> bool:
        """Fail the try of the step that handed out *token*; with *retry* the step's policy decides whether there is another. Raises as `complete`."""
        return self._carry(lambda verbs: fail(verbs, token, error, retry))

    def heartbeat(self, token: str, details: Any = None) -> None:
        """A sign of life: the wait for the next one begins anew. *details* are shown to who asks. Raises TokenClosed, TokenUnknown."""
        return self._carry(lambda verbs: heartbeat(verbs, token, details))


class AsyncTokenVerbs:
    """`TokenVerbs`, awaited."""

    async def _carry(self, make: Callable[[Verbs], Verb[T]]) -> T:
        raise NotImplementedError

    async def complete(self, token: str, value: Any = None) -> bool:
        """Give the step that handed out *token* its result; see `Client.complete`."""
        return await self._carry(lambda verbs: complete(verbs, token, value))

    async def fail(self, token: str, error: BaseException | str, *, retry: bool = True) -> bool:
        """Fail the try of the step that handed out *token*; see `Client.fail`."""
        return await self._carry(lambda verbs: fail(verbs, token, error, retry))

    async def heartbeat(self, token: str, details: Any = None) -> None:
        """A sign of life of who holds *token*; see `Client.heartbeat`."""
        return await self._carry(lambda verbs: heartbeat(verbs, token, details))
