"""Transactional steps: their SQL and their checkpoints commit together, on the worker's second session.

One thread owns the session. Up to 50 steps share a transaction, each behind a savepoint of its own; the checkpoints,
deferred constraints and the fence come last. Whatever goes wrong with the shared transaction, it is rolled back and its
steps run one by one, so a bad neighbour costs time and nothing else. Where the session is lost, its checkpoints say what
was committed, once it is over; where the fence refuses, the loop finds out which runs are still this worker's.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Coroutine
from queue import Empty, SimpleQueue
from typing import Any

from supervisor.core.context import executing
from supervisor.core.errors import DatabaseUnavailable, Fenced, StepTimeout, TransactionMisused
from supervisor.db.step_session import Rerun, StepSession, StepTransaction, WantsConnection, WantsSettings, told
from supervisor.db.worker_calls import Identity

log = logging.getLogger("pgsupervisor.transactional")

SHARED_MAX = 50  # more savepoints than 64 overflow a backend's cache of subtransactions
ALONE_TRIES = 10  # of a step that runs alone and meets serialization failures and deadlocks
REFUSALS_MAX = 10  # in a row without a reason that the loop could find
BACKOFF_S = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


class _Item:
    """One step that waits for its transaction, and what became of it."""

    __slots__ = ("command", "encoded", "ended", "error", "pos", "reported", "run", "started", "value")

    def __init__(self, run: Any, command: Any) -> None:
        self.run, self.command = run, command
        self.pos = run.pos
        self.value: Any = None
        self.error: BaseException | None = None
        self.encoded: Any = None
        self.started = self.ended = 0
        self.reported = False


class Transactions:
    """The queue of transactional steps and the thread that works through it.

    done([(run, command, value, error, started, ended)])   called on the event loop's thread
    refused()                                              likewise, when the fence refuses; `go_on` is the answer
    broken(error)                                          likewise, when the thread can't go on

    `identity` is what the fence is given. Whoever changes it has marked the runs that were lost as gone before.
    """

    def __init__(
        self, dsn: str, schema: str, identity: Identity, done: Callable[..., None], refused: Callable[[], None], broken: Callable[[BaseException], None]
    ) -> None:
        self._dsn, self._schema, self.identity = dsn, schema, identity
        self._done, self._refused, self._broken = done, refused, broken
        self._answered, self._stopping = threading.Event(), threading.Event()
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._events = asyncio.get_running_loop()
        self.thread: threading.Thread | None = None
        self._session: StepSession | None = None
        self._shared: dict[Any, int] = {}  # step → how many of it may share a transaction
        self._plain: set[Any] = set()  # steps that use the connection itself
        self._settings: set[Any] = set()  # steps that use SET LOCAL
        self._removers: set[Any] = set()  # steps that remove prepared statements
        self.clock: Callable[[], int] = lambda: 0
        self.slot: Any = None  # of the black box: the step that this thread is executing
        self.doing: _Item | None = None  # whose body the thread executes

    def submit(self, run: Any, command: Any) -> None:
        """Queue a step; its run has nothing else in flight until `done` is called."""
        if self.thread is None:
            self.thread = threading.Thread(target=self._work, name="transactions", daemon=True)
            self.thread.start()
        self._queue.put(_Item(run, command))

    def go_on(self, identity: Identity) -> None:
        """Who this worker is now; runs that it has lost are marked as gone."""
        self.identity = identity
        self._answered.set()

    def stop(self) -> None:
        self._stopping.set()
        self._answered.set()
        self._queue.put(None)

    # ── whatever happens to the session ──────────────────────────────────────────────────────────────────────────

    def _settle(self, items: list[_Item]) -> None:
        """Work on *items* until it is known of every one what became of it. Raises what the thread can't go on with."""
        refusals = losses = 0
        while items and not self._stopping.is_set():
            identity, backend = self.identity, self._session.backend if self._session is not None else None
            try:
                self._run(items)
                return
            except Exception as error:  # noqa: BLE001 - told apart below
                what = told(error)
            items = [item for item in items if not item.reported]
            if isinstance(what, Fenced):
                log.info("%s; asking what is still this worker's", what)
                self._drop()
                refusals = refusals + 1 if self._asked(identity) == identity else 0
                if refusals > REFUSALS_MAX:
                    raise what
            elif isinstance(what, DatabaseUnavailable):
                losses += 1
                log.log(logging.WARNING if losses == 1 else logging.DEBUG, "%s; looking what was committed", what)
                backend = self._session.backend if self._session is not None else backend
                items = self._look(items, backend, losses)
            else:
                raise what

    def _asked(self, identity: Identity) -> Identity:
        """Let the loop find out who this worker is now and which runs are its own."""
        self._answered.clear()
        if self.identity == identity:
            self._events.call_soon_threadsafe(self._refused)
            self._answered.wait()
        return self.identity

    def _look(self, items: list[_Item], backend: Any, losses: int) -> list[_Item]:
        """After a lost session: report the steps that it had committed, return the others. Ends the old session first."""
        while not self._stopping.wait(BACKOFF_S[min(losses, len(BACKOFF_S)) - 1] * random.uniform(0.5, 1.0)):
            self._drop()
            losses += 1
            identity = self.identity
            try:
                session = self._open()
                if backend is not None:
                    found = session.committed(identity, [(item.run.id, item.command.seq) for item in items], backend)
                    self._report([item for item in items if (item.run.id, item.command.seq) in found])
                break
            except Exception as error:  # noqa: BLE001 - told apart
                what = told(error)
                if isinstance(what, Fenced):
                    self._asked(identity)
                elif not isinstance(what, DatabaseUnavailable):
                    raise what from None
                log.debug("transactional steps are still without a session: %s", what)
        return [item for item in items if not item.reported]

    # ── which steps go together ──────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        if self.slot is not None:
            self.slot.own()
        while (first := self._queue.get()) is not None:
            items, stopped = self._more(first)
            try:
                self._settle(items)
            except Exception as error:  # noqa: BLE001 - of the engine
                log.exception("transactional steps can't go on")
                self._events.call_soon_threadsafe(self._broken, error)
                return
            if stopped:
                return

    def _more(self, first: _Item) -> tuple[list[_Item], bool]:
        """What else waits already and may share the transaction; and whether the queue has ended."""
        items = [first]
        limit = 0 if self._alone(first) else self._limit(first)
        while len(items) < limit:
            try:
                item = self._queue.get_nowait()
            except Empty:
                break
            if item is None:
                return items, True
            items.append(item)
            limit = min(limit, self._limit(item)) if not self._alone(item) else 0
        return items, False

    def _alone(self, item: _Item) -> bool:
        step = item.command.step
        return step.info.isolation is not None or step.info.timeout_s is not None or step in self._plain | self._settings | self._removers

    def _limit(self, item: _Item) -> int:
        return self._shared.get(item.command.step, SHARED_MAX)

    def _run(self, items: list[_Item]) -> None:
        items = [item for item in items if not item.run.gone]
        if len(items) > 1 and self._alone(items[-1]):
            self._run(items[:-1])
            items = items[-1:]
        if len(items) > 1 and self._together(items):
            self._report(items)
            return
        for item in items:
            if not item.run.gone:
                self._by_itself(item)
                self._report([item])

    def _together(self, items: list[_Item]) -> bool:
        """One transaction for all; False when it has to be done one by one."""
        session = self._open()
        try:
            self._attempt(session, items, shared=True, plain=False)
        except (WantsConnection, WantsSettings):
            session.rollback()  # which of them it was is found out one by one
            return False
        except Rerun as why:
            log.debug("a transaction of %d steps is done again one by one: %s", len(items), why)
            session.rollback()
            if why.lost_statements:
                self._drop()
            self._resize(items, lambda size: max(1, size // 2))
            return False
        self._resize(items, lambda size: min(SHARED_MAX, size + 1))
        return True

    def _resize(self, items: list[_Item], to: Callable[[int], int]) -> None:
        for step in {item.command.step for item in items}:
            self._shared[step] = to(self._shared.get(step, SHARED_MAX))

    def _by_itself(self, item: _Item) -> None:
        step = item.command.step
        for attempt in range(ALONE_TRIES):
            session = self._open()
            session.pipe.unprepared = session.spoiled = step in self._removers
            try:
                self._attempt(session, [item], shared=False, plain=step in self._plain)
                return
            except WantsConnection:
                session.rollback()
                self._plain.add(step)
            except Rerun as why:
                session.rollback()
                item.error = why.__cause__ or why
                if why.lost_statements:
                    self._removers.add(step)
                    self._drop()
                elif not why.is_conflict:
                    return
                else:
                    time.sleep(random.random() * 0.01 * 2**attempt)

    def _open(self) -> StepSession:
        if self._session is None or self._session.spoiled:
            self._drop()
            self._session = StepSession(self._dsn, self._schema, self.identity)
        return self._session

    def _drop(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _report(self, items: list[_Item]) -> None:
        for item in items:
            item.reported = True
        if not items:
            return
        self._events.call_soon_threadsafe(self._done, [(i.run, i.command, i.value, i.error, i.started, i.ended) for i in items])

    # ── one transaction ──────────────────────────────────────────────────────────────────────────────────────────

    def _attempt(self, session: StepSession, items: list[_Item], shared: bool, plain: bool) -> None:
        """Run *items* in one transaction and commit it. Raises Rerun when nothing was committed."""
        info = items[0].command.step.info
        with session.transaction(isolation=info.isolation, timeout_s=info.timeout_s, shared=shared):
            for item in items:
                self._body(session, item, shared, plain)
            done = [item for item in items if item.error is None]
            if done:
                rows = [(i.run.id, i.command.seq, i.pos, i.command.step.name, i.encoded, i.started, i.ended) for i in done]
                session.seal(self.identity, rows, lambda: not any(item.run.gone for item in done))
            else:
                session.abandon()

    def _body(self, session: StepSession, item: _Item, shared: bool, plain: bool) -> None:
        command = item.command
        item.error = item.value = None
        tx = session.step(plain, shared)
        limit_s = command.step.info.timeout_s
        item.started = self.clock()
        self.doing = item
        if self.slot is not None:
            self.slot.enter(item.run.id, command.seq, item.started, command.step.wire_name)
        token = executing.set(command)
        try:
            item.encoded, item.value = command.step.shape.settle(self._call(command, tx))
        except BaseException as error:  # noqa: BLE001 - the workflow decides what it means
            item.error = error
        finally:
            item.ended = self.clock()
            self.doing = None
            executing.reset(token)
            if self.slot is not None:
                self.slot.leave()
            tx.over = True
        if limit_s is not None and item.error is None and item.ended - item.started > limit_s * 1e6:
            item.error = StepTimeout(f"step {command.step.name} did not end within {limit_s:g} s")
        item.error = session.inspect(command.step.name, tx, item.error, shared, limit_s)
        if tx.changed_settings:
            self._settings.add(command.step)

    def _call(self, command: Any, tx: StepTransaction) -> Any:
        kwargs = command.kwargs or {}
        if not command.step.is_async:
            return command.step.fn(tx, *command.args, **kwargs)
        served = _AsyncTransaction(tx, self._events)
        body = _within(command, command.step.fn(served, *command.args, **kwargs), served)
        future = asyncio.run_coroutine_threadsafe(body, self._events)
        while (request := served.requests.get()) is not None:
            request()
        return future.result()


class _AsyncTransaction:
    """What an `async def` step is given: each statement is run by the thread that owns the session, which serves `requests`."""

    def __init__(self, tx: StepTransaction, events: asyncio.AbstractEventLoop) -> None:
        self._tx, self._events = tx, events
        self.requests: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    async def execute(self, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        if self._tx.over:
            raise TransactionMisused("the transaction of a step that has ended was used; keep it inside the step")
        answer: asyncio.Future[list[tuple[Any, ...]]] = self._events.create_future()

        def request() -> None:
            try:
                rows = self._tx.execute(query, parameters)
            except BaseException as error:  # noqa: BLE001 - raised where it was awaited
                self._events.call_soon_threadsafe(_settle, answer, None, error)
            else:
                self._events.call_soon_threadsafe(_settle, answer, rows, None)

        self.requests.put(request)
        return await answer

    @property
    def rowcount(self) -> int:
        return self._tx.rowcount


def _settle(answer: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(value)


async def _within(command: Any, coroutine: Coroutine[Any, Any, Any], served: _AsyncTransaction) -> Any:
    """The body of an async step as a task; whatever happens, the thread that serves it is let go."""
    executing.set(command)
    limit_s = command.step.info.timeout_s
    try:
        async with asyncio.timeout(limit_s) as limit:
            return await coroutine
    except TimeoutError as error:
        if limit.expired():
            raise StepTimeout(f"step {command.step.name} did not end within {limit_s:g} s") from error
        raise
    finally:
        served.requests.put(None)
