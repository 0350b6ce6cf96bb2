"""Processes for steps with run="process": forked from a process that was forked from the worker before it had threads or sessions.

The nursery is single-threaded, runs no user code, and knows one socket: the worker asks for a process or for a signal to
one, and is told who was born and how each ended. Being their parent it can signal processes without meeting a reused pid.
Each process is a group of its own; when the worker ends, however it does, the nursery kills all groups and ends.

Requests and answers of a step are msgspec's JSON by the step's own parameters and annotations. Nothing is pickled, and no
name comes from outside: a step is a number in the registry, which is the same in all processes of one import.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import msgspec

from supervisor.core import codec, context, registry, traces
from supervisor.core.context import executing
from supervisor.engine.forked import die_with, fork_apart, leave

MESSAGE_MAX = 4096
DETAILS, BARE = 1, 2  # a sign of life with something said, and without
NULL = msgspec.Raw(b"null")
length = struct.Struct(">i")


class Ask(msgspec.Struct, omit_defaults=True):
    """To the nursery: `fork` (with a socket) the process that is called by that number, or send *signal* to the group of *pid*."""

    fork: int = 0
    pid: int = 0
    signal: int = 0


class Told(msgspec.Struct, omit_defaults=True):
    """From the nursery: process number *fork* has that *pid*, or *pid* ended with *code* (negative: by that signal)."""

    pid: int
    fork: int = 0
    code: int | None = None


class Request(msgspec.Struct, omit_defaults=True):
    """One attempt of a step: what to call, and what current() says there."""

    step: int
    input: msgspec.Raw
    run_id: bytes
    workflow: str
    seq: int
    attempt: int
    key: str | None = None
    redelivered: bool = False
    deadline_s: float | None = None
    token: str = ""
    details: msgspec.Raw = NULL  # of the last heartbeat before
    history_length: int = 0
    history_warn: int = 1
    trace: tuple[str, str | None] | None = None  # the span of the run, where its worker traces


class Answer(msgspec.Struct, omit_defaults=True):
    """The result as it is to be stored, or an error with the fingerprint of the place where it was raised; before it any number of signs of life."""

    payload: msgspec.Raw
    fingerprint: str = ""
    beat: int = 0  # DETAILS or BARE
    spans: msgspec.Raw = NULL  # that have ended there


class Nursery:
    """The worker's end: the nursery's pid and the socket to it."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid, self.control = pid, control


def wanted() -> bool:
    """Whether any step of the app runs in a process."""
    return any(step.info.place == "process" for step in registry.steps())


def start(close: Iterable[int] = ()) -> Nursery:
    """Fork the nursery, which keeps none of the descriptors *close*. The calling process must be single-threaded."""
    registry.settle()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker = os.getpid()

    def tend() -> None:
        ours.close()
        _tend(theirs, worker)

    pid = fork_apart(close, tend, 0)
    theirs.close()
    ours.setblocking(False)
    return Nursery(pid, ours)


# ── the nursery ──────────────────────────────────────────────────────────────────────────────────────────────────


def _tend(control: socket.socket, worker: int) -> None:
    """Fork, signal and reap until the worker is gone; then kill what is left."""
    signal.signal(signal.SIGTERM, lambda *_: _end_without(worker))
    for name in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    die_with(worker, signal.SIGTERM)
    alive: dict[int, int] = {}  # pid → pidfd
    told = control.fileno()
    try:
        while True:
            readable, _, _ = select.select([told, *alive.values()], [], [])
            for pid, pidfd in list(alive.items()):
                if pidfd in readable:
                    os.close(alive.pop(pid))
                    _say(control, Told(pid, code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
            if told in readable and not _obey(control, alive):
                return
    except OSError:
        return  # the worker is gone
    finally:
        for pid in alive:
            _signal_group(pid, signal.SIGKILL)


def _end_without(worker: int) -> None:
    """On SIGTERM: the worker's death, if its end of the socket has been inherited by somebody. One to the whole group is the worker's to obey: it drains."""
    if os.getppid() != worker:
        sys.exit()


def _obey(control: socket.socket, alive: dict[int, int]) -> bool:
    """Do what the worker asks for; False when it is gone."""
    message, fds, _, _ = socket.recv_fds(control, MESSAGE_MAX, 1)
    if not message:
        return False
    ask = msgspec.json.decode(message, type=Ask)
    if ask.fork:
        nursery = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            print(f"no process for a step: {error}", file=sys.stderr)
            os.close(fds[0])
            _say(control, Told(0, fork=ask.fork))
            return True
        if pid == 0:
            for pidfd in alive.values():
                os.close(pidfd)
            control.close()
            _live(socket.socket(fileno=fds[0]), nursery)
        os.close(fds[0])
        _own_group(pid)
        alive[pid] = os.pidfd_open(pid)
        _say(control, Told(pid, fork=ask.fork))
    elif ask.pid in alive:
        _signal_group(ask.pid, ask.signal)
    return True


def _say(control: socket.socket, told: Told) -> None:
    control.send(msgspec.json.encode(told))


def _own_group(pid: int) -> None:
    """Both it and its parent do this, whoever is first: a signal to the group must not miss."""
    try:
        os.setpgid(pid, pid)
    except OSError:
        pass


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        pass


# ── a process ────────────────────────────────────────────────────────────────────────────────────────────────────


def _live(connection: socket.socket, nursery: int) -> None:
    """Execute one step after the other until the worker hangs up. Never returns."""
    code = 1
    try:
        _own_group(os.getpid())
        for name in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
            signal.signal(name, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        die_with(nursery, signal.SIGKILL)
        context.loop = None
        steps = registry.steps()
        line = _Line(connection)
        context.note_beat = line.beat
        while (message := read_message(connection)) is not None:
            answer = _execute(steps, line.begin(msgspec.json.decode(message, type=Request)))
            if traces.take_spans is not None and (spans := traces.take_spans()) is not None:
                answer.spans = msgspec.Raw(spans)
            line.answer(answer)
        code = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        leave(code)


class _Line:
    """To the worker: signs of life of the try that executes, from any of its threads, then its answer. Those of a try that is over are dropped."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._mine = threading.Lock()
        self._executing: tuple[bytes, int, int] | None = None

    def begin(self, request: Request) -> Request:
        self._executing = (request.run_id, request.seq, request.attempt)
        return request

    def beat(self, described: Any, call: Any, details: bytes | None) -> None:
        with self._mine:
            if self._executing == (described.run.id, described.seq, described.attempt):
                self._send(Answer(NULL, beat=BARE) if details is None else Answer(msgspec.Raw(details), beat=DETAILS))

    def answer(self, answer: Answer) -> None:
        with self._mine:
            self._executing = None
            self._send(answer)

    def _send(self, answer: Answer) -> None:
        encoded = msgspec.json.encode(answer)
        self._connection.sendall(length.pack(len(encoded)) + encoded)


def read_message(connection: socket.socket) -> bytes | None:
    """The next message, or None at the end."""
    head = _read(connection, length.size)
    return _read(connection, length.unpack(head)[0]) if head is not None else None


def _read(connection: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)


def _execute(steps: list[Any], request: Request) -> Answer:
    step = steps[request.step]
    token = executing.set(_described(step, request))
    try:
        encoded, _ = step.shape.settle(step.fn(**step.input.read_by_name(bytes(request.input))))
    except BaseException as error:  # noqa: BLE001 - the workflow decides what it means
        return Answer(msgspec.Raw(codec.encode_error(error)), codec.fingerprint(error))
    finally:
        executing.reset(token)
    return Answer(msgspec.Raw(encoded))


def _described(step: Any, request: Request) -> Any:
    """What current() needs to know, in the form that commands have in the worker."""
    from datetime import UTC, datetime

    key = request.key.encode() if request.key is not None else None
    details = {request.seq: bytes(request.details)} if request.details != NULL else {}
    deadline = datetime.fromtimestamp(request.deadline_s, UTC) if request.deadline_s is not None else None
    return SimpleNamespace(
        run=SimpleNamespace(
            id=request.run_id, key=key, seq=request.history_length, past=SimpleNamespace(details=details), workflow=SimpleNamespace(name=request.workflow, seq_warn=request.history_warn)
        ),
        step=step, seq=request.seq, attempt=request.attempt, redelivered=request.redelivered, extra=SimpleNamespace(deadline=deadline),
        token=request.token, trace=request.trace,
    )  # fmt: skip
