"""Queries are answered by a replay in a process of its own: nothing of it can delay, wake or change a run, or the worker.

The keeper is forked from the worker before that has threads or sessions, and only if the app has a Query. It runs no user code: it waits
for a hint of the host's parent, forks an answerer, ends one that takes too long, and lets it go when nobody has asked for a while. The
answerer has one session. It takes the open queries of one run, reads the history, runs the workflow's code over it, calls the
handlers, writes the answers, and forgets the run. Both die with the worker; what they had taken is then open again.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

from supervisor._fastpath import loop as core
from supervisor.core import codec, registry
from supervisor.core.errors import DatabaseUnavailable, QueryTooLong, QueryUnknown
from supervisor.engine.forked import die_with, fork_apart, leave
from supervisor.engine.reader import Reader
from supervisor.engine.replay import Past, Record

if TYPE_CHECKING:
    from supervisor.db.answer_calls import AnswerCalls, Asked, Started

ANSWER_MAX_S = 10.0  # one replay with its handlers; a replay of 10,000 steps takes a tenth of a second
STEPS_MAX, HISTORY_MAX_BYTES = 50_000, 64 << 20  # of a run that can be asked: what the process holds of it is a few times that
QUERIES_MAX = 1000  # answered by one replay
TRIES_MAX = 2
LINGER_S = 5.0  # an answerer that nobody needs costs a session
ANSWERED, FAILED = 1, 2
LOOK, AT = b"look ", b"at "  # messages between keeper and answerer; ids of queries follow
MESSAGE_MAX = 1 << 16
EXIT_DATABASE = 69


def wanted() -> bool:
    """Whether the app has any query."""
    return bool(registry.queries())


def start(dsn: str, schema: str, hints: int, close: Iterable[int] = ()) -> int:
    """Fork the keeper; its pid. *hints* is the eventfd that says that a query may be open, *close* what it is to keep nothing of.
    The calling process must be single-threaded."""
    registry.settle()
    worker = os.getpid()

    def keep() -> None:
        die_with(worker, signal.SIGKILL)
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
            signal.signal(name, signal.SIG_IGN)
        _Keeper(dsn, schema, hints).tend()

    return fork_apart(set(close) - {hints}, keep, 1)


# ── the keeper ───────────────────────────────────────────────────────────────────────────────────────────────────


class _Keeper:
    """Waits for hints; at most one answerer. It tells the answerer to look, with the ids of queries that took too long; it is told the ids
    that are being answered, or none when no query is open any more."""

    def __init__(self, dsn: str, schema: str, hints: int) -> None:
        self._dsn, self._schema, self._hints = dsn, schema, hints
        self._pid = self._pidfd = 0
        self._line: socket.socket | None = None  # to the answerer
        self._busy_since = self._idle_since = 0.0
        self._ids = b""  # that it is answering
        self._late = b""  # whose answerer was ended

    def tend(self) -> NoReturn:
        while True:
            self._turn()

    def _turn(self) -> None:
        now = time.monotonic()
        reading = [] if self._busy_since else [self._hints]
        wait_s: float | None = None
        if self._line is not None:
            reading += [self._line.fileno(), self._pidfd]
            wait_s = max(0.0, self._busy_since + ANSWER_MAX_S - now if self._busy_since else self._idle_since + LINGER_S - now)
        readable, _, _ = select.select(reading, [], [], wait_s)
        if self._line is not None and self._line.fileno() in readable:
            self._hear(self._line)
        if self._pid and self._pidfd in readable:
            self._reap()
        elif self._line is not None and not readable:
            self._time_is_up(self._line)
        if self._hints in readable and not self._busy_since:
            try:
                os.eventfd_read(self._hints)
            except BlockingIOError:  # another worker's keeper was quicker
                return
            self._go()

    def _go(self) -> None:
        """Let an answerer look."""
        if self._line is None:
            self._fork()
        assert self._line is not None
        late, self._late = self._late, b""
        self._busy_since = time.monotonic()
        try:
            self._line.send(LOOK + late)
        except OSError:  # it has died; _reap says what follows
            pass

    def _fork(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keeper = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            os.close(self._hints)
            _live(theirs, keeper, self._dsn, self._schema)
        theirs.close()
        self._line, self._pidfd = ours, os.pidfd_open(self._pid)

    def _hear(self, line: socket.socket) -> None:
        said = line.recv(MESSAGE_MAX)
        if said:  # else it has died; its pidfd says so as well
            self._ids = said.removeprefix(AT)
            self._busy_since, self._idle_since = (time.monotonic(), 0.0) if self._ids else (0.0, time.monotonic())

    def _time_is_up(self, line: socket.socket) -> None:
        if self._busy_since:
            self._late = self._ids
            os.kill(self._pid, signal.SIGKILL)
            self._reap()
        else:
            line.close()  # it ends by itself when nobody talks to it any more
            self._line = None
            self._reap()

    def _reap(self) -> None:
        os.waitpid(self._pid, 0)
        os.close(self._pidfd)
        if self._line is not None:
            self._line.close()
        again = bool(self._ids) and self._busy_since > 0  # it died of what it was answering, or was ended for it
        self._pid, self._line, self._ids, self._busy_since = 0, None, b"", 0.0
        if again:
            self._go()


# ── the answerer ─────────────────────────────────────────────────────────────────────────────────────────────────


def _live(line: socket.socket, keeper: int, dsn: str, schema: str) -> NoReturn:
    """Answer what there is whenever the keeper says so, until it hangs up."""
    code = 1
    try:
        for name in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
            signal.signal(name, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        die_with(keeper, signal.SIGKILL)
        from supervisor.db.answer_calls import AnswerCalls

        calls = AnswerCalls(dsn, schema)
        known = registry.workflows()
        workflows = {number: known[name].version for number, name in calls.workflows(list(known)).items()}
        reader = Reader()
        while said := line.recv(MESSAGE_MAX):
            _too_late(calls, said.removeprefix(LOOK))
            while asked := calls.take(workflows, QUERIES_MAX):
                line.send(AT + b" ".join(each.id.hex.encode() for each in asked))
                calls.answer(answers(calls, reader, asked))
            calls.drop()
            line.send(AT)
        code = 0
    except DatabaseUnavailable as error:  # whoever waits says again that he does
        print(f"queries can't be answered: {error}", file=sys.stderr)
        code = EXIT_DATABASE
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        leave(code)


def _too_late(calls: AnswerCalls, ids: bytes) -> None:
    """Say of queries that their answerer was ended because it took too long."""
    error = codec.encode_error(QueryTooLong(f"to replay the history and answer took longer than {ANSWER_MAX_S:g} s, so it was given up"))
    calls.answer([(UUID(hex=each.decode()), FAILED, error) for each in ids.split()])


def answers(calls: AnswerCalls, reader: Reader, asked: Sequence[Asked]) -> list[tuple[UUID, int, bytes]]:
    """What becomes of queries to one run."""
    if any(each.tries > TRIES_MAX for each in asked):
        error = RuntimeError(f"the process that looked for the answer has died {TRIES_MAX} times")
        return [(each.id, FAILED, codec.encode_error(error)) for each in asked]
    run_id = asked[0].run_id
    try:
        run = _replayed(reader, run_id, *_history(calls, run_id))
    except DatabaseUnavailable:
        raise
    except BaseException as error:  # noqa: BLE001 - of the user's code, or of the replay: whoever asked is told
        return [(each.id, FAILED, codec.encode_error(error)) for each in asked]
    try:
        return [(each.id, *_answer(run, reader.handlers, each)) for each in asked]
    finally:
        reader.forget(run)


def _history(calls: AnswerCalls, run_id: UUID) -> tuple[Started, list[tuple[Any, ...]]]:
    started = calls.run(run_id)
    if started is None:
        raise LookupError(f"the history of run {run_id} was pruned")
    if started.steps > STEPS_MAX or started.result_bytes > HISTORY_MAX_BYTES:
        raise QueryTooLong(
            f"run {run_id} has {started.steps:,} results of {started.result_bytes:,} bytes, and a query replays at most {STEPS_MAX:,} of "
            f"{HISTORY_MAX_BYTES:,} bytes; let it publish what others are to know"
        )
    return started, calls.steps(run_id)


def _replayed(reader: Reader, run_id: UUID, started: Started, steps: Sequence[tuple[Any, ...]]) -> Any:
    """The run, as far as its history goes."""
    records = [Record(seq, kind, status, name.encode(), result, ended) for seq, kind, status, name, result, ended in steps]
    drawn_from = None if started.drawn_from is None else started.drawn_from.bytes
    past = Past(input=started.input, records=records, reached=-1 if started.reached is None else started.reached, drawn_from=drawn_from)
    run = reader.begin(run_id, started.workflow, started.key)
    try:
        reader.follow(run, past)
    except BaseException:
        reader.forget(run)
        raise
    return run


def _answer(run: Any, handlers: dict[str, tuple[Any, Any]], asked: Asked) -> tuple[int, bytes]:
    """(status, JSON) of one query."""
    try:
        if asked.name not in handlers:
            raise QueryUnknown(asked.run_id, asked.name, sorted(handlers))
        query, handler = handlers[asked.name]
        given = []
        if query.argument is not None:
            given = [query.argument.decode(asked.input if asked.input is not None else b"null")]
        elif asked.input is not None:
            raise TypeError(f"query {asked.name!r} takes no argument")
        return ANSWERED, query.answer.settle(core.read_only(run, handler, tuple(given)))[0]
    except BaseException as error:  # noqa: BLE001 - of the user's handler
        return FAILED, codec.encode_error(error)


__all__ = ["answers", "start", "wanted"]
