"""Signals: what runs in memory wait for, the messages that were read for them, and how a wait ends.

Owns the waits of runs that this worker has, and asks for the messages of all of them in one statement: when a wait begins, at a hint
of the sender's, when a timeout is due, and twice as often as a wait may be late without hints. A message is consumed by rows of the batch
in which the coroutine is given it, so it is given once, whatever dies. Invariant: a run leaves memory only with the numbers up to
which its messages were read, and whoever parks it looks for later ones under the lock that senders take.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from supervisor._fastpath import loop as core
from supervisor._fastpath.loop import INT8, TEXT
from supervisor._fastpath.loop import UUID as UUID_OID
from supervisor.core import codec
from supervisor.core.errors import DatabaseUnavailable, InputInvalid
from supervisor.db.arrays import encode_rows
from supervisor.db.pipeline import Refused
from supervisor.engine.replay import Past
from supervisor.engine.waits import Waiting

if TYPE_CHECKING:
    from supervisor.engine.worker import Worker

LOOK_S = 0.25  # half of what a signal that nobody announces may be late
BEHIND_MAX = 4  # looks of which one is taken all the same
STAY_S = 1.0  # a run that waits no longer than this stays in memory
STAY_RUNS_MAX = 500  # where a worker has more than that, or half of what it may have, runs that wait leave at once: they must not keep others out
PAIRS_MAX = 256  # runs and names in one question; the answer has at most 256 KiB for each
ROUND_MAX = 256  # messages that one run is given in one batch
_i8 = struct.Struct(">q").unpack


class Listening:
    """One wait for a signal.

    timeout_us   None: it has none
    looked       the database was asked after it began, or after its time was up
    due_us       us since 2000 when the timeout is over; 0: not durable yet, -1: it is in the batch
    since        when it began in this worker's memory, by the event loop's clock
    """

    __slots__ = ("armed", "due_at", "due_us", "fire", "looked", "since", "timeout_us")

    def __init__(self, timeout_us: int | None, since: float) -> None:
        self.timeout_us, self.since = timeout_us, since
        self.looked = self.fire = self.armed = False
        self.due_us, self.due_at = 0, 0.0

    def arm(self, due_us: int, due_at: float) -> None:
        self.due_us, self.due_at, self.fire, self.armed = due_us, due_at, False, False

    def settled(self) -> bool:
        """Whether nothing is under way for it: all that is left is to wait."""
        return self.looked and not self.fire and (self.timeout_us is None or self.due_us > 0)


class Box:
    """Messages of one name that were read for a run; `after` is the number of the last one, None before the first look."""

    __slots__ = ("after", "pending")

    def __init__(self) -> None:
        self.after: int | None = None
        self.pending: deque[tuple[int, bytes]] = deque()


class Letters:
    """A question for messages: (run, name) each."""

    def __init__(self, pairs: list[tuple[Any, str]]) -> None:
        self.pairs = pairs


class Signals:
    """Waits for signals, of the runs in memory."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._waiting: dict[bytes, Any] = {}
        self._wanted: dict[tuple[bytes, str], Any] = {}  # what the next question is about: run id and name → run
        self._busy = self._timed = False
        self._behind = 0  # looks that fell out, or would have
        self._stay_max = min(STAY_RUNS_MAX, worker.options.in_flight // 2)

    # ── a wait begins, or goes on ────────────────────────────────────────────────────────────────────────────────

    def begin(self, run: Any, cmd: Any) -> None:
        """Give it a message that is here; else see to it that it is looked for, and that its timeout is durable."""
        wait, box = self._wait(cmd), self._box(run, cmd.step.name)
        if box.pending:
            self._consume(run, cmd, box)
        elif not wait.looked:
            self._want(run, [cmd.step.name])
        elif wait.fire:
            self._time_out(run, cmd)
        elif wait.timeout_us is not None and wait.due_us == 0:
            self._limit(run, cmd, wait)

    def _wait(self, cmd: Any) -> Listening:
        if not isinstance(cmd.extra, Listening):
            cmd.extra = Listening(cmd.extra, self._worker.commands.time())
        wait: Listening = cmd.extra
        return wait

    def _box(self, run: Any, name: str) -> Box:
        if run.past is None:
            run.past = Past()
        box: Box | None = run.past.boxes.get(name)
        if box is None:
            box = run.past.boxes[name] = Box()
        return box

    def _limit(self, run: Any, cmd: Any, wait: Listening) -> None:
        run.timers = True
        remaining = run.past.timers_us.pop(cmd.seq, None)
        commands = self._worker.commands
        if remaining is not None:
            commands.arm(run, cmd, remaining, commands.loop.now_us() + remaining)
        else:
            wait.due_us = -1
            commands.batch.add("insert_timers", run.id, (run.id, cmd.seq, wait.timeout_us, None))
            commands.loop.touch(run)

    # ── it ends ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _consume(self, run: Any, cmd: Any, box: Box) -> None:
        """Give the run a message, and those that it asks for next as long as they are here: all are rows of one batch."""
        loop = self._worker.loop
        for _ in range(ROUND_MAX):
            self._give(run, cmd, *box.pending.popleft())
            following = run.call
            if run.gone or following is None or following.kind != core.SIGNAL or loop.bytes_now > loop.bytes_max:
                return
            box = self._box(run, following.step.name)
            if not box.pending:
                return
            cmd, run.call = following, None
            run.open = {cmd.seq: cmd}

    def _give(self, run: Any, cmd: Any, number: int, payload: bytes) -> None:
        """One message, to one wait."""
        loop, batch, wait = self._worker.loop, self._worker.commands.batch, self._wait(cmd)
        batch.add("insert_consumed", run.id, (run.id, cmd.step.name, number, cmd.seq))
        if wait.due_us:
            batch.add("drop_timers", run.id, (run.id, cmd.seq))
        try:
            value = cmd.step.decode(payload)
        except Exception as error:  # noqa: BLE001 - whatever was sent, it is told at the wait's line, and the next one is read
            encoded = codec.encode_error(InputInvalid(f"signal {cmd.step.name}", codec.brief(error)))
            loop.record(run, cmd, core.FAILED, encoded, cmd.called_us, loop.now_us())
            loop.deliver(run, cmd, None, codec.decode_error(encoded))
            return
        loop.record(run, cmd, core.COMPLETED, payload, cmd.called_us, loop.now_us())
        loop.deliver(run, cmd, value, None)

    def _time_out(self, run: Any, cmd: Any) -> None:
        """Its time is over by this machine's clock, and no message was there since: let the database decide."""
        commands = self._worker.commands
        if run.batch != 0:
            commands.again_after_ack(run, cmd)
            return
        error = codec.encode_error(TimeoutError(f"signal {cmd.step.name} did not come within {cmd.extra.timeout_us / 1e6:g} s"))
        commands.batch.add("fire_timers", run.id, (run.id, cmd.seq, run.pos, cmd.step.name, core.SIGNAL, core.FAILED, error, cmd.called_us))
        commands.loop.touch(run)
        run.in_tx = True
        cmd.value = error

    def timed_out(self, run: Any, cmd: Any) -> None:
        """The timeout is recorded."""
        self._worker.loop.deliver(run, cmd, None, codec.decode_error(cmd.value))

    def due(self, run: Any, cmd: Any) -> None:
        """Its time is over. What came before that comes first: look once more."""
        cmd.extra.fire, cmd.extra.looked = True, False
        self._want(run, [cmd.step.name])
        self._worker.commands.pump()

    def dropped(self, run: Any, cmd: Any) -> None:
        """Nobody waits for it any more."""
        if isinstance(cmd.extra, Listening) and cmd.extra.due_us:
            self._worker.commands.batch.add("drop_timers", run.id, (run.id, cmd.seq))

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────

    def look(self) -> None:
        """Ask what has come for all that wait, but for whom something is here already."""
        for run in list(self._waiting.values()):
            names = self._names(run)
            if not names:
                del self._waiting[run.id]
                continue
            self._want(run, [name for name in names if not self._box(run, name).pending])
        self._worker.commands.pump()

    def _names(self, run: Any) -> set[str]:
        if run.gone or run.open is None:
            return set()
        return {cmd.step.name for cmd in run.open.values() if cmd.kind == core.SIGNAL and isinstance(cmd.extra, Listening)}

    def _want(self, run: Any, names: Iterable[str]) -> None:
        self._waiting[run.id] = run
        for name in names:
            self._wanted[run.id, name] = run

    def ask(self) -> None:
        """Send what is to be asked, unless a question is under way: those that began meanwhile are asked about together."""
        if self._waiting and not self._timed:
            self._timed = True
            self._worker.commands.call_later(LOOK_S, self._look_again)
        if self._busy or not self._wanted:
            return
        some = [key for key, _ in zip(self._wanted, range(PAIRS_MAX), strict=False)]
        pairs = [(run, name) for run, name in [(self._wanted.pop(key), key[1]) for key in some] if not run.gone]
        if not pairs:
            return
        self._busy = True
        rows = encode_rows((UUID_OID, TEXT, INT8), [(run.id, name, self._box(run, name).after) for run, name in pairs])
        ids = [run.id for run, _ in pairs]
        self._worker.ask(Letters(pairs), [("plan_custom", None), ("read_messages", [*rows, min(ids), max(ids)]), ("plan_generic", None)])

    def _look_again(self) -> None:
        """Not all of them again while more are to be asked about than one question holds: thousands that are woken together begin to wait together. Once a second all the same."""
        self._timed = False
        self._behind = self._behind + 1 if len(self._wanted) > PAIRS_MAX else 0
        if self._behind % BEHIND_MAX == 0:
            self.look()

    def answered(self, letters: Letters, answer: Any) -> None:
        """Messages that have come, and for which waits there are none."""
        self._busy = False
        if isinstance(answer, Refused):
            self._worker.trouble = DatabaseUnavailable(f"messages can't be read: {answer.message} ({answer.sqlstate})")
            return
        self._read(letters, answer["read_messages"])
        for run, name in letters.pairs:
            if not run.gone and run.open is not None:
                self._go_on(run, name)

    def _read(self, letters: Letters, rows: Any) -> None:
        boxes = {(run.id, name.encode()): self._box(run, name) for run, name in letters.pairs}
        get = rows.get_value
        for row in range(rows.ntuples):
            box, number = boxes[get(row, 0), get(row, 1)], get(row, 2)
            if number is None:
                box.after = max(box.after or 0, _i8(get(row, 4))[0])
            else:
                box.after = _i8(number)[0]
                box.pending.append((box.after, get(row, 3)))

    def _go_on(self, run: Any, name: str) -> None:
        """Begin again what can go on: as many waits as there are messages, and those whose timeout has to be made durable or is over."""
        commands, here = self._worker.commands, len(self._box(run, name).pending)
        rests = False
        for _, cmd in sorted(run.open.items()):
            if cmd.kind != core.SIGNAL or cmd.step.name != name or not isinstance(cmd.extra, Listening):
                continue
            before, cmd.extra.looked = cmd.extra.looked, True
            if here > 0 or cmd.extra.fire or (cmd.extra.timeout_us is not None and cmd.extra.due_us == 0):
                here -= 1
                commands.later(run, cmd)
            else:
                rests = rests or not before
        if rests:
            self._worker.commands.rest(run)

    def forget_asked(self) -> None:
        """What was asked will not be answered: the session is gone. With the next one all are asked about."""
        self._busy = False
        self._wanted.clear()

    # ── leaving memory ───────────────────────────────────────────────────────────────────────────────────────────

    def stays(self, run: Any, waits: Iterable[Any]) -> bool:
        """Whether a run that does nothing but wait stays in memory for now; it is then asked again."""
        commands, loop = self._worker.commands, self._worker.loop
        left_s = max(cmd.extra.since for cmd in waits) + STAY_S - commands.time()
        if left_s <= 0 or len(loop.live) > self._stay_max:
            return False
        if not run.past.staying:
            run.past.staying = True
            commands.call_later(left_s, self._stayed, run)
        return True

    def _stayed(self, run: Any) -> None:
        run.past.staying = False
        self._worker.commands.rest(run)

    def parking(self, run: Any, waits: Iterable[Any]) -> tuple[str, str]:
        """Names that the run waits for, and the last number read of each, as `park_on_signals` takes them."""
        names = sorted({cmd.step.name for cmd in waits})
        return "\n".join(names), ",".join(str(self._box(run, name).after or 0) for name in names)


def is_due_once(cmd: Any) -> bool:
    """Whether *cmd* waits for a moment that is known: a timer, a retry, a signal with a timeout."""
    return isinstance(cmd.extra, Waiting) or isinstance(cmd.extra, Listening) and cmd.extra.due_us > 0


def until(waits: Iterable[Any]) -> str | None:
    """When the first timeout is over, for people."""
    from datetime import UTC, datetime, timedelta

    dues = [cmd.extra.due_us for cmd in waits if cmd.extra.due_us > 0]
    return (datetime(2000, 1, 1, tzinfo=UTC) + timedelta(microseconds=min(dues))).isoformat(timespec="milliseconds") if dues else None
