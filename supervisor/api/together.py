"""Starts and signals that meet at a client's session: those that come while it is busy share the next transaction.

Owns who waits, who carries for all, and whom an answer or an error belongs to. A call that meets nobody does not come here. So one client starts
as many runs a second as its threads or tasks ask for together, not one per wait for the disk, and one alone waits no longer than ever.
Invariants: a call is answered once; what one of them is refused for is no other's affair; no lock is held while the database is asked but the session's.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from supervisor.core.errors import DatabaseUnavailable, SupervisorError
from supervisor.core.traces import sender

if TYPE_CHECKING:
    from supervisor.api.asked import Asked
    from supervisor.api.signals import Message
    from supervisor.api.verbs import Verbs
    from supervisor.db.client_calls import Verb

MEET_MAX = 200  # calls in one transaction: 10 ms of the server's time with signals, 2 with starts


class Kind(NamedTuple):
    """How calls of one kind are done: one of them, or many in one transaction, all or none."""

    one: Callable[[Verbs, Any], Verb[Any]]
    many: Callable[[Verbs, Sequence[Any]], Verb[Sequence[Any]]]


STARTS = Kind(lambda verbs, what: verbs.start_encoded(*what), lambda verbs, many: verbs.starts(many))
SIGNALS = Kind(lambda verbs, what: verbs.signal(*what), lambda verbs, many: verbs.signals(many))


class Call:
    """One call: what is asked, and what came of it. Calls that are equal in *alike* may share a transaction."""

    __slots__ = ("alike", "answer", "ended", "error", "future", "kind", "leads", "turn", "what")

    def __init__(self, kind: Kind, alike: object, what: Any) -> None:
        self.kind, self.alike, self.what = kind, (kind, alike), what
        self.answer: Any = None
        self.error: BaseException | None = None
        self.ended = self.leads = False
        self.turn: Any = None
        self.future: Any = None

    def alone(self, verbs: Verbs) -> Verb[Any]:
        return self.kind.one(verbs, self.what)

    def end(self, answer: Any = None, error: BaseException | None = None) -> None:
        if not self.ended:
            self.answer, self.error, self.ended = answer, error, True

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.answer


def starting(asked: Asked, payload: bytes) -> Call:
    return Call(STARTS, (asked.name, *asked.how.values()), (asked, payload))


def signalling(run_id: object, message: Message) -> Call:
    """One that is sent in a span shares with nobody: whose it is is said beside it."""
    trace = sender()
    return Call(SIGNALS, None if trace is None else object(), (run_id, message, trace))


def together(verbs: Verbs, calls: Sequence[Call]) -> Verb[None]:
    """Do *calls*, which are alike, in one transaction; where that is refused, each by itself, for one of them is to blame."""
    kind = calls[0].kind
    if len(calls) > 1:
        try:
            answers = yield from kind.many(verbs, [call.what for call in calls])
        except DatabaseUnavailable:
            raise
        except SupervisorError:
            pass
        else:
            for call, answer in zip(calls, answers, strict=True):
                call.end(*((None, answer) if isinstance(answer, SupervisorError) else (answer,)))
            return
    for call in calls:
        try:
            call.end((yield from call.alone(verbs)))
        except DatabaseUnavailable:
            raise
        except SupervisorError as error:
            call.end(error=error)


def _end_all(calls: Sequence[Call], error: BaseException) -> None:
    """Those that have no answer yet have this one. What ended whoever carried them ends no other."""
    if not isinstance(error, Exception):
        error = DatabaseUnavailable("the call was sent together with others, by one that was interrupted: whether it was done is not known; ask, or repeat it under the same key or id")
    for call in calls:
        call.end(error=error)


def _alike(calls: list[Call]) -> list[Call]:
    """Take the first, and those that may be done with it."""
    some = [call for call in calls if call.alike == calls[0].alike][:MEET_MAX] if calls else []
    taken = set(map(id, some))
    calls[:] = [call for call in calls if id(call) not in taken]
    return some


class Together:
    """Threads that meet: the first of them waits for the session, and carries what has come by then.

    session  the lock of the client's session      carry  does calls, while that is held
    """

    def __init__(self, session: Any, carry: Callable[[Sequence[Call]], None]) -> None:
        self._session, self._carry = session, carry
        self._lock = threading.Lock()
        self._calls: list[Call] = []  # the one that leads is the first
        self.busy = False

    def do(self, call: Call) -> Any:
        call.turn = threading.Lock()
        call.turn.acquire()
        with self._lock:
            self._calls.append(call)
            call.leads, self.busy = not self.busy, True
        if not call.leads:
            try:
                call.turn.acquire()
            except BaseException:  # a signal's: nobody waits for it any more
                self._leave(call)
                raise
        if call.leads:
            self._lead(call)
        return call.result()

    def _lead(self, call: Call) -> None:
        calls: list[Call] = []
        try:
            with self._session:
                with self._lock:
                    calls = _alike(self._calls)
                self._carry(calls)
        except BaseException as error:
            _end_all([each for each in calls if each is not call], error)
            call.end(error=error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._pass_on(call, calls)

    def _pass_on(self, call: Call, calls: Sequence[Call]) -> None:
        with self._lock:
            if call in self._calls:  # interrupted before it had taken anything
                self._calls.remove(call)
            following = self._calls[0] if self._calls else None
            if following is None:
                self.busy = False
            else:
                following.leads = True
        for each in calls:
            if each is not call:
                each.turn.release()
        if following is not None:
            following.turn.release()

    def _leave(self, call: Call) -> None:
        if call.leads:
            self._pass_on(call, [])
            return
        with self._lock:
            if call in self._calls and not call.leads:
                self._calls.remove(call)
                return
        if call.leads:  # it was made so meanwhile
            self._pass_on(call, [])


class TogetherAsync:
    """Tasks that meet: a task of its own carries what has come whenever the session is free, and ends when nobody waits.

    A task that is cancelled while it waits is not carried; what is under way is finished without it.
    """

    def __init__(self, session: asyncio.Lock, carry: Callable[[Sequence[Call]], Awaitable[None]]) -> None:
        self._session, self._carry = session, carry
        self._calls: list[Call] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        return self._task is not None or self._session.locked()

    async def do(self, call: Call) -> Any:
        call.future = asyncio.get_running_loop().create_future()
        self._calls.append(call)
        if self._task is None:
            self._task = asyncio.create_task(self._drain())
        try:
            await call.future
        finally:
            if call in self._calls:
                self._calls.remove(call)
        return call.result()

    async def _drain(self) -> None:
        calls: list[Call] = []
        try:
            while self._calls:
                async with self._session:
                    calls = _alike(self._calls)
                    try:
                        if calls:
                            await self._carry(calls)
                    except Exception as error:  # noqa: BLE001 - it is the callers'
                        _end_all(calls, error)
                self._wake(calls)
        except BaseException as error:  # the loop ends, or somebody ended this task
            _end_all([*calls, *self._calls], error)
            self._wake([*calls, *self._calls])
            raise
        finally:
            self._task = None

    def _wake(self, calls: Sequence[Call]) -> None:
        for call in calls:
            if not call.future.done():
                call.future.set_result(None)
