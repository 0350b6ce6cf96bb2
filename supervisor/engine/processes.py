"""The worker's side of process steps: which process executes what, time limits, and how one that died is told.

Lives on the event loop. A process executes one step at a time; idle ones are kept for the next. A call whose time is over
is ended for certain: SIGTERM to its process group, SIGKILL a second later, and the attempt ends when the process has, so
two attempts of one step never overlap. Whatever happens to a process, the worker is told and lives on.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import msgspec

from supervisor.core import codec, context, registry
from supervisor.core.errors import DefinitionError, HeartbeatMissed, StepDied
from supervisor.engine import terms
from supervisor.engine.nursery import DETAILS, MESSAGE_MAX, NULL, Answer, Ask, Nursery, Request, Told, length

KILL_AFTER_S = 1.0
GONE_WITHIN_S = 5.0  # of a SIGKILL: only a process inside of the kernel takes longer
IDLE_MAX = os.cpu_count() or 4  # more could not compute at once anyway; those beyond it are kept for a second only
IDLE_S, IDLE_BEYOND_S = 60.0, 1.0


class _Process:
    """One process: its pid once it is known, our end of its socket, how it ended."""

    def __init__(self, number: int, connection: socket.socket, events: asyncio.AbstractEventLoop) -> None:
        self.number, self.connection = number, connection
        self.pid = 0
        self.born: asyncio.Future[None] = events.create_future()
        self.code: asyncio.Future[int | None] = events.create_future()  # exit code, negative for a signal; None: not known
        self.idle_since = 0.0


class _Limits:
    """Until when a try may take, and until when there has to be a sign of life, by the event loop's clock."""

    def __init__(self, limit_s: float | None, heartbeat_s: float | None, now: Callable[[], float]) -> None:
        self.limit_s, self._heartbeat_s, self._now = limit_s, heartbeat_s, now
        self._end_at = None if limit_s is None else now() + limit_s

    def next_at(self) -> float | None:
        """After a sign of life, or the beginning: when it is to be ended, if nothing comes."""
        if self._heartbeat_s is None:
            return self._end_at
        missed_at = self._now() + self._heartbeat_s
        return missed_at if self._end_at is None else min(missed_at, self._end_at)

    def passed(self, command: Any) -> BaseException:
        if self.limit_s is not None and self._end_at is not None and self._now() >= self._end_at:
            return terms.over(command, self.limit_s, "; its process was ended")
        return HeartbeatMissed(f"step {command.step.name} gave no sign of life for {self._heartbeat_s:g} s (heartbeat); its process was ended")


class Processes:
    """At most *limit* calls at once. `unfit(why)` is called when no process can be made any more."""

    def __init__(self, nursery: Nursery, limit: int, traces: Any = None) -> None:
        self.traces = traces
        self._control = nursery.control
        self._events = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(limit)
        self._all: dict[int, _Process] = {}  # by number
        self._idle: list[_Process] = []
        self._made = 0
        self._gone = False
        self._numbers = {id(step): number for number, step in enumerate(registry.steps())}
        self._look_at = math.inf
        self.unfit: Callable[[str], None] = lambda why: None
        self._events.add_reader(self._control.fileno(), self._heard)

    async def call(self, command: Any, begun: Callable[[], float | None], beat: Callable[[bytes | None], None]) -> Any:
        """Execute the step of *command* in a process.

        begun   is called when it begins, and says how many seconds it may take
        beat    is told of its signs of life, with what was said
        Raises what it raised, StepTimeout, HeartbeatMissed or StepDied.
        """
        step = command.step
        if id(step) not in self._numbers:
            raise DefinitionError(f"step {step.name} was defined after this worker had started, so its processes do not know it; define it at import")
        given = step.input.write(command.args, command.kwargs or {})
        async with self._room:
            process = await self._take(step.name)
            limits = _Limits(begun(), step.info.heartbeat_s, self._events.time)

            def heard(details: bytes | None) -> None:
                beat(details)
                timeout.reschedule(limits.next_at())

            try:
                async with asyncio.timeout_at(limits.next_at()) as timeout:
                    answer = await self._exchange(process, self._request(command, given, limits.limit_s), heard)
            except TimeoutError:
                await self._end(process)
                raise limits.passed(command) from None
            except BaseException:  # given up: nobody waits for this
                self._terminate(process)
                raise
            if answer is None:
                raise StepDied(step.name, process.pid, *_ending(await self._died(process)))
            self._keep(process)
        return self._value(command, answer)

    def _request(self, command: Any, given: bytes, limit_s: float | None) -> bytes:
        run, step = command.run, command.step
        details = run.past.details.get(command.seq) if run.past is not None else None
        request = Request(
            step=self._numbers[id(step)], input=msgspec.Raw(given), run_id=run.id,
            workflow=run.workflow.name, seq=command.seq, attempt=command.attempt, key=run.key.decode() if run.key is not None else None,
            details=msgspec.Raw(details) if details is not None else NULL, redelivered=bool(command.redelivered), deadline_s=time.time() + limit_s if limit_s is not None else None,
            token=context.token_of(command), history_length=run.seq, history_warn=run.workflow.seq_warn,
            trace=self.traces.of(run).as_text() if self.traces is not None else None,
        )  # fmt: skip
        encoded = msgspec.json.encode(request)
        return length.pack(len(encoded)) + encoded

    def _value(self, command: Any, answer: Answer) -> Any:
        payload = bytes(answer.payload)
        if self.traces is not None and answer.spans != NULL:
            self.traces.received(command, bytes(answer.spans))
        if answer.fingerprint:
            error = codec.decode_error(payload)
            codec.keep_origin(error, payload, answer.fingerprint)
            raise error
        return command.step.shape.decode(payload)

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _take(self, step_name: str) -> _Process:
        if self._idle:
            return self._idle.pop()
        if self._gone:
            raise StepDied(step_name, 0, "could not be made: what makes processes for this worker has died")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._made += 1
        process = self._all[self._made] = _Process(self._made, ours, self._events)
        with theirs:
            await self._ask(Ask(fork=process.number), theirs.fileno())
        await process.born
        return process

    async def _ask(self, ask: Ask, *fds: int) -> None:
        while True:
            try:
                socket.send_fds(self._control, [msgspec.json.encode(ask)], fds)
                return
            except BlockingIOError:
                await asyncio.sleep(0.005)
            except OSError:  # it is gone; _heard says so
                return

    async def _exchange(self, process: _Process, message: bytes, heard: Callable[[bytes | None], None]) -> Answer | None:
        """Send, and read signs of life and the answer; None when the process died instead."""
        try:
            await self._events.sock_sendall(process.connection, message)
            while (head := await self._read(process.connection, length.size)) is not None:
                body = await self._read(process.connection, length.unpack(head)[0])
                if body is None:
                    return None
                answer = msgspec.json.decode(body, type=Answer)
                if not answer.beat:
                    return answer
                heard(bytes(answer.payload) if answer.beat == DETAILS else None)
        except OSError:
            pass
        return None

    async def _read(self, connection: socket.socket, size: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < size:
            part = await self._events.sock_recv(connection, size - len(parts))
            if not part:
                return None
            parts += part
        return bytes(parts)

    def _keep(self, process: _Process) -> None:
        if process.code.done():
            return
        process.idle_since = time.monotonic()
        self._idle.append(process)
        self._look_in(self._may_idle_s())

    def _may_idle_s(self) -> float:
        return IDLE_S if len(self._idle) <= IDLE_MAX else IDLE_BEYOND_S

    def _look_in(self, in_s: float) -> None:
        at = time.monotonic() + in_s
        if at < self._look_at:
            self._look_at = at
            self._events.call_later(in_s, self._look_at_idle)

    def _look_at_idle(self) -> None:
        """End those that nobody has needed for a while; the last one used is the first to be used again."""
        self._look_at = math.inf
        now = time.monotonic()
        while self._idle and now - self._idle[0].idle_since >= self._may_idle_s():
            self._idle.pop(0).connection.close()  # it ends by itself when nobody talks to it any more
        if self._idle:
            self._look_in(max(0.0, self._may_idle_s() - (now - self._idle[0].idle_since)))

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _terminate(self, process: _Process) -> None:
        """End a process that is executing, whatever it does."""
        if process.code.done():
            return
        self._signal(process, signal.SIGTERM)
        self._events.call_later(KILL_AFTER_S, self._signal, process, signal.SIGKILL)

    def _signal(self, process: _Process, number: int) -> None:
        if not process.code.done():
            self._events.create_task(self._ask(Ask(pid=process.pid, signal=number)))

    async def _end(self, process: _Process) -> None:
        self._terminate(process)
        await self._died(process, KILL_AFTER_S + GONE_WITHIN_S)

    async def _died(self, process: _Process, within_s: float = GONE_WITHIN_S) -> int | None:
        """How it ended."""
        await asyncio.wait([process.code], timeout=within_s)
        return process.code.result() if process.code.done() else None

    def _heard(self) -> None:
        """The nursery says who was born and who ended."""
        while True:
            try:
                message = self._control.recv(MESSAGE_MAX)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self._lost()
                return
            told = msgspec.json.decode(message, type=Told)
            if told.fork:
                process = self._all[told.fork]
                process.pid = told.pid
                _settle(process.born, None)
                if not told.pid:  # no process could be made
                    self._ended(process, None)
            else:
                for process in [process for process in self._all.values() if process.pid == told.pid]:
                    self._ended(process, told.code)

    def _ended(self, process: _Process, code: int | None) -> None:
        del self._all[process.number]
        if process in self._idle:
            self._idle.remove(process)
        _settle(process.born, None)
        _settle(process.code, code)
        try:
            process.connection.shutdown(socket.SHUT_RDWR)  # whoever inherited its end of the socket must not keep us waiting
        except OSError:
            pass

    def _lost(self) -> None:
        """The nursery died, and all processes with it. This process has threads by now and can't fork another one."""
        self._events.remove_reader(self._control.fileno())
        self._gone = True
        for process in list(self._all.values()):
            self._ended(process, None)
        self.unfit("what makes processes for its steps has died")

    def stop(self) -> None:
        """Hang up: the nursery kills what is left and ends."""
        self._events.remove_reader(self._control.fileno())
        self._control.close()


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _ending(code: int | None) -> tuple[str, int | None]:
    """How a process ended in words, and the number of the signal."""
    if code is None:
        return "ended, nobody knows how", None
    if code >= 0:
        return f"ended with exit code {code}", None
    return f"was killed by {signal.Signals(-code).name}", -code
