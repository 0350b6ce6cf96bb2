"""Queries: a run names a handler, and who asks it is answered by a replay of its history, on any host that has the code.

Owns the word that workflow code says (`Query`, `.handler`) and one question from asking to its answer (`Inquiry`, a generator without
I/O, which `Client` and `AsyncClient` carry). Nothing of a question is left when it was answered or given up.
"""

from __future__ import annotations

import inspect
import time
import uuid
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, overload

import msgspec

from supervisor.core import codec, context, registry
from supervisor.core.errors import DatabaseUnavailable, DefinitionError, InputInvalid, QueryFailed, QueryUnknown
from supervisor.core.registry import NAME_MAX, is_name

if TYPE_CHECKING:
    from supervisor.api.verbs import Verbs
    from supervisor.db.client_calls import Verb

A = TypeVar("A")
R = TypeVar("R")
Asking: TypeAlias = "Callable[[Verbs], Verb[Any]]"
Talk: TypeAlias = "Generator[Asking | float, Any, Any]"  # verbs to be carried, and seconds to be waited

TIMEOUT_MAX_S = 3600.0
HINT_EVERY_S = 1.0  # a hint may be lost, and who answers may die
PAUSE_FIRST_S, PAUSE_MAX_S = 0.002, 0.1
ANSWERED = 1


class Query(Generic[A, R]):
    """A question that runs can be asked: `standing = Query("standing", Standing)`, at the module's level.

    returns  type of the answer; takes: type of the argument, where it has one
    """

    @overload
    def __init__(self: Query[None, Any], name: str) -> None: ...
    @overload
    def __init__(self: Query[None, R], name: str, returns: type[R]) -> None: ...
    @overload
    def __init__(self, name: str, returns: type[R], takes: type[A]) -> None: ...
    def __init__(self, name: str, returns: Any = Any, takes: Any = None) -> None:
        if not is_name(name):
            raise DefinitionError(f"Query({name!r}): give a name of 1 to {NAME_MAX} printable characters")
        self.name, self.takes = name, takes
        self.answer = codec.Shape(returns, f"the handler of query {name}")
        self.argument = codec.Shape(takes, f"argument of query {name}") if takes is not None else None
        registry.register_query(self)

    @overload
    def handler(self: Query[None, R], fn: Callable[[], R]) -> Callable[[], R]: ...
    @overload
    def handler(self, fn: Callable[[A], R]) -> Callable[[A], R]: ...
    def handler(self, fn: Any) -> Any:
        """In a workflow: *fn* answers this query from now on. A plain function that reads what the workflow holds, and does nothing."""
        from supervisor.api.words import _inside

        run = _inside(f"the handler of query {self.name!r}")
        if not callable(fn) or inspect.iscoroutinefunction(fn) or inspect.isgeneratorfunction(fn):
            raise DefinitionError(f"the handler of query {self.name!r} is {fn!r}; give a def function: it answers at once and waits for nothing")
        try:
            inspect.signature(fn).bind(*([None] if self.argument is not None else []))
        except (TypeError, ValueError):
            takes = "one argument" if self.argument is not None else "no argument"
            raise DefinitionError(f"the handler of query {self.name!r} must take {takes}, as the query does: {fn!r}") from None
        context.loop.handles(run, self, fn)
        return fn

    def __repr__(self) -> str:
        return f"<query {self.name}>"


class Inquiry:
    """One question to one run, from asking to its answer; `talk` is what is to be done for it."""

    def __init__(self, run_id: uuid.UUID, query: Query[Any, Any] | str, args: tuple[Any, ...], timeout_s: float) -> None:
        self.run_id = run_id
        self.query = query if isinstance(query, Query) else None
        self.name = query.name if isinstance(query, Query) else query
        if not isinstance(self.name, str) or not 0 < len(self.name) <= NAME_MAX:
            raise InputInvalid("query", f"{self.name!r} is no query: give a Query, or a name of 1 to {NAME_MAX} characters")
        if not 0 < timeout_s <= TIMEOUT_MAX_S:
            raise InputInvalid(f"query {self.name}", f"timeout={timeout_s!r} must be more than 0 and at most {TIMEOUT_MAX_S:g} s")
        self.payload = self._encoded(args)
        self.timeout_s = float(timeout_s)
        self.id = uuid.uuid4()

    def _encoded(self, args: tuple[Any, ...]) -> bytes | None:
        if len(args) > 1 or self.query is not None and bool(args) != (self.query.argument is not None):
            wanted = "at most one argument" if self.query is None else "no argument" if self.query.argument is None else "one argument"
            raise InputInvalid(f"query {self.name}", f"it takes {wanted} and {len(args)} were given")
        if not args:
            return None
        where = f"argument of query {self.name}"
        return codec.encode(args[0], where) if self.query is None or self.query.argument is None else self.query.argument.encode(args[0])

    def talk(self) -> Talk:
        """Raises RunUnknown, QueryUnknown, QueryFailed, TimeoutError."""
        give_up_at = time.monotonic() + self.timeout_s
        workflow = yield self._ask(self.timeout_s)
        try:
            value = yield from self._wait(workflow, give_up_at)
        except Exception:
            yield from self._forget()
            raise
        yield from self._forget()
        return value

    def _ask(self, within_s: float) -> Asking:
        return lambda verbs: verbs.ask_query(self.id, self.run_id, self.name, self.payload, within_s)

    def _wait(self, workflow: str, give_up_at: float) -> Talk:
        hint_at, pause_s, taken = 0.0, PAUSE_FIRST_S, False
        while True:
            if time.monotonic() >= hint_at:
                yield lambda verbs: verbs.tell_of_query(workflow)
                hint_at = time.monotonic() + HINT_EVERY_S
            found = yield lambda verbs: verbs.query_answer(self.id)
            if found is not None and found.status is not None:
                return self._value(found.status, found.reply)
            left_s = give_up_at - time.monotonic()
            if left_s <= 0:
                break
            if found is None:  # the server has crashed, and forgotten what it was asked
                yield self._ask(left_s)
            else:
                taken = found.taken
            yield min(pause_s, left_s)
            pause_s = min(pause_s * 1.5, PAUSE_MAX_S)
        why = "a worker is still at it" if taken else f"no worker that has workflow {workflow} took it; is one running? python -m supervisor workers"
        raise TimeoutError(f"query {self.name!r} of run {self.run_id} was not answered within {self.timeout_s:g} s: {why}")

    def _forget(self) -> Talk:
        try:
            yield lambda verbs: verbs.forget_query(self.id)
        except DatabaseUnavailable:  # then it goes when its time is over
            pass

    def _value(self, status: int, reply: bytes) -> Any:
        if status == ANSWERED:
            return msgspec.json.decode(reply) if self.query is None else self.query.answer.decode(reply)
        error = codec.decode_error(reply)
        if isinstance(error, QueryUnknown):
            raise error
        raise QueryFailed(self.run_id, self.name, codec.brief(error)) from error
