"""Tokens: tries of steps that somebody outside completes, what is waited for in memory, and how a wait ends.

A step whose body has raised CompleteLater is recorded as entrusted (attempt kind 7); its run then leaves memory like one that sleeps. What comes of
it is a row of completion: of who holds the token, or of this worker, when the time is over by the database's clock. The first row counts, so a
completion and a timeout that meet have one winner. Invariant: a run leaves memory only by a batch that looks, under the lock that completers take,
for what has come meanwhile.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import msgspec

from supervisor._fastpath import loop as core
from supervisor.core import codec
from supervisor.core.errors import CompleteLater, DatabaseUnavailable, DefinitionError, HeartbeatMissed, ResultInvalid, StepTimeout
from supervisor.db.arrays import encode_ids
from supervisor.db.pipeline import Refused
from supervisor.engine.replay import Past, Settled, read_details, read_settled
from supervisor.engine.terms import NEVER, closes_us

if TYPE_CHECKING:
    from supervisor.engine.commands import Commands
    from supervisor.engine.worker import Worker

ENTRUSTED = 7  # attempt.kind
COMPLETED, FAILED, TIMED_OUT, HEARTBEAT_MISSED = 1, 2, 3, 4  # completion.kind
_i4 = struct.Struct(">i").unpack
_i2 = struct.Struct(">h").unpack


class Entrusted:
    """One try that waits for its token: when it began, was handed over and has no more time (us since 2000), within which time its holder is to give signs of life."""

    __slots__ = ("beat_us", "due_us", "heartbeat_s", "since_us", "started_us")

    def __init__(self, started_us: int, since_us: int, due_us: int, heartbeat_s: float | None, beat_us: int) -> None:
        self.started_us, self.since_us, self.due_us, self.heartbeat_s, self.beat_us = started_us, since_us, due_us, heartbeat_s, beat_us

    @property
    def wake_us(self) -> int:
        """When it is to be looked at at the latest."""
        return self.due_us if self.heartbeat_s is None else min(self.due_us, self.beat_us + int(self.heartbeat_s * 1e6))


class Look:
    """A question for what came of tries in memory."""

    def __init__(self, runs: list[Any]) -> None:
        self.runs = runs


class Tokens:
    """Tries of the runs in memory that wait for a token."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._waiting: dict[bytes, Any] = {}
        self._wanted = self._busy = False

    @property
    def _commands(self) -> Commands:
        return self._worker.commands

    # ── a try is handed over ─────────────────────────────────────────────────────────────────────────────────────

    def entrust(self, run: Any, cmd: Any, later: CompleteLater, started: int, ended: int) -> None:
        """The body of a step has said that its result comes from outside."""
        step, commands = cmd.step, self._commands
        if step.info.transactional:
            error = DefinitionError(f"step {step.name}: a transactional step can't complete later, for its transaction ends with it")
            commands.failed_for_good(run, cmd, error, started, ended)
            return
        limit_s = later.timeout_s if later.timeout_s is not None else step.info.timeout_s
        due = NEVER if limit_s is None else (ended if later.timeout_s is not None else started) + int(limit_s * 1e6)
        due = min(due, closes_us(run, cmd))
        terms = msgspec.json.encode({"heartbeat_s": later.heartbeat_s})
        commands.batch.add("insert_attempts", run.id, (run.id, cmd.seq, cmd.attempt, ENTRUSTED, step.name, terms, None, started, ended, None if due == NEVER else due))
        self._wait(run, cmd, Entrusted(started, ended, due, later.heartbeat_s, ended))
        commands.loop.touch(run)

    def _wait(self, run: Any, cmd: Any, entrusted: Entrusted) -> None:
        if run.open is None:
            run.open = {}
        run.open[cmd.seq] = cmd
        cmd.extra = entrusted
        self._waiting[run.id] = run
        self._wanted = True

    def recall(self, run: Any, cmd: Any, past: Past) -> bool:
        """Take up a try where the history left it; False where it was not handed over and nothing came of it."""
        settled, entrusted = past.settled.pop(cmd.seq, None), past.entrusted.pop(cmd.seq, None)
        mine = settled is not None and settled.kind != 0 and settled.attempt == cmd.attempt
        if entrusted is None or entrusted.attempt != cmd.attempt:
            if not mine:
                return False
            now = self._worker.loop.now_us()  # it came before the step had returned, and then the worker died
            self._wait(run, cmd, Entrusted(now, now, NEVER, None, now))
        else:
            beat = max(entrusted.since_us, settled.beat_us) if settled is not None else entrusted.since_us
            self._wait(run, cmd, Entrusted(entrusted.started_us, entrusted.since_us, entrusted.due_us, entrusted.heartbeat_s, beat))
        self._look_at(run, cmd, settled if mine else None)
        return True

    # ── it ends ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _look_at(self, run: Any, cmd: Any, settled: Settled | None) -> None:
        """Give it what has come, or let the database decide where its time seems to be over."""
        if settled is not None and settled.kind:
            self._end(run, cmd, settled)
        elif cmd.extra.wake_us <= self._worker.loop.now_us():
            self._expire(run, cmd)

    def _end(self, run: Any, cmd: Any, settled: Settled) -> None:
        commands, loop, started, now = self._commands, self._worker.loop, cmd.extra.started_us, self._worker.loop.now_us()
        cmd.extra = None
        if cmd.step.shape is None:
            cmd.step.settle()
        if settled.kind == COMPLETED:
            try:
                value = cmd.step.shape.decode(settled.payload)
            except Exception as error:  # noqa: BLE001 - what somebody outside sent
                commands.failed(run, cmd, ResultInvalid(f"step {cmd.step.name}, completed from outside,", codec.brief(error)), started, now)
                return
            loop.record(run, cmd, core.COMPLETED, settled.payload, started, now)
            loop.deliver(run, cmd, value, None)
        elif settled.kind == FAILED:
            fail = commands.failed if settled.retry else commands.failed_for_good
            fail(run, cmd, codec.decode_error(settled.payload), started, now)
        elif settled.kind == TIMED_OUT:
            commands.failed(run, cmd, StepTimeout(f"step {cmd.step.name} was not completed from outside in time"), started, now)
        else:
            commands.failed(run, cmd, HeartbeatMissed(f"step {cmd.step.name}: who was to complete it gave no sign of life in time"), started, now)

    def _expire(self, run: Any, cmd: Any) -> None:
        """Its time is over by this machine's clock: record that, if the database's says so too and nothing has come."""
        if run.batch != 0 or run.in_tx:
            self._wanted = True
            return
        self._commands.batch.add("expire_tokens", run.id, (run.id, cmd.seq, cmd.attempt))
        self._worker.loop.touch(run)
        run.in_tx = True

    def expired(self, asked: list[tuple[bytes, int, int]]) -> None:
        """Answered: whatever is there now, of this worker or of who holds the token, is read."""
        for run_id, _, _ in asked:
            run = self._worker.loop.live.get(run_id)
            if run is not None and not run.gone:
                run.in_tx = False
                self._waiting[run_id] = run
                self._wanted = True
        self._commands.pump()

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────

    def look(self) -> None:
        """Ask what came of all that wait in memory."""
        self._wanted = bool(self._waiting)

    def ask(self) -> None:
        if not self._wanted or self._busy:
            return
        self._wanted = False
        self._waiting = {id: run for id, run in self._waiting.items() if self._of(run)}
        runs = [run for run in self._waiting.values() if run.batch == 0 and not run.in_tx]
        self._wanted = len(runs) < len(self._waiting)  # the others when what they have in flight is acknowledged
        if runs:
            self._busy = True
            ids = encode_ids([run.id for run in runs])
            self._worker.ask(Look(runs), [("plan_custom", None), ("read_completions", ids), ("plan_generic", None)])

    @staticmethod
    def _of(run: Any) -> list[Any]:
        if run.gone or not run.open:
            return []
        return [cmd for _, cmd in sorted(run.open.items()) if isinstance(cmd.extra, Entrusted)]

    def forget_asked(self) -> None:
        """What was asked will not be answered: the session is gone."""
        self._busy, self._wanted = False, True

    def answered(self, look: Look, answer: Any) -> None:
        self._busy = False
        if isinstance(answer, Refused):
            self._worker.trouble = DatabaseUnavailable(f"completions can't be read: {answer.message} ({answer.sqlstate})")
            return
        found, said = read_settled(answer["read_completions"]), read_details(answer["read_completions"])
        for run in look.runs:
            for cmd in self._of(run):
                if self._in_flight(run):
                    break
                settled = found.get((run.id, cmd.seq))
                if settled is not None and settled.attempt != cmd.attempt:
                    settled = None
                if (run.id, cmd.seq) in said:
                    self._commands.past_of(run).details[cmd.seq] = said[run.id, cmd.seq]
                if settled is not None:
                    cmd.extra.beat_us = max(cmd.extra.beat_us, settled.beat_us)
                if not cmd.done:
                    self._worker.guarded(run, self._look_at, run, cmd, settled)
            self._commands.rest(run)

    def _in_flight(self, run: Any) -> bool:
        """Whether it has rows in a batch that was sent while this was asked: nothing more before the acknowledgement, then it is asked again."""
        busy = run.gone or run.in_tx or run.batch not in (0, self._worker.loop.number)
        self._wanted = self._wanted or busy
        return busy
