"""Workflow code that holds its worker's loop: noticed by the parent, told, and at last ended.

Between two durable words workflow code has the loop's thread to itself. What computes, blocks or loops there stops all runs of its worker, and the
worker can't say so: not its thread either, where the interpreter is held. The parent sees it in the black box: a look that finds the same turn of the
same run's code as the look before. Twice a second, 40 bytes for each worker; the loop itself counts a number and reads no clock.

After SAY_S the log is told once, with the place in the code. After the limit the worker is killed, and the run is charged as with any other crash
(blame.py): the third time parks it. The limit is of CPU time, so a process that is stopped, or whose code stands in a debugger's prompt, is left
alone; what blocks without computing gets BLOCKED_TIMES as long. Code that ends in time costs a line in the log.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sysconfig
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from supervisor._fastpath.wire import clock_us
from supervisor.core.shown import plain
from supervisor.engine.responder import PLACE_MEMFD, PLACE_SIGNAL, is_memfd
from supervisor.host.boxes import memory
from supervisor.host.stacks import catches

if TYPE_CHECKING:
    from supervisor.host.children import Child
    from supervisor.host.parent import Parent

log = logging.getLogger("pgsupervisor.parent")

LOOK_S = 0.5
ASK_S, SAY_S = 1.4, 1.9  # of a turn of code, as far as the looks have seen it: asked where it is, and one look later told
LIMIT_S = 30.0
BLOCKED_TIMES = 10
FRAMES = 25
_FRAME = re.compile(r'^  File "(.*)", line (\d+|\?\?\?) in (.*)$')
_DEBUGGERS = ("bdb.py:", "pdb.py:", "pydevd", "debugpy")  # in the stack of code that stands at a prompt
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LIBRARIES = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib"))


@dataclass
class Turn:
    """One turn of workflow code, from one durable word to the next, as the looks have seen it. held_s: without what passed while the process was stopped."""

    mark: bytes
    cpu_s: float
    seen: float
    since_us: int = field(default_factory=clock_us)
    held_s: float = 0.0
    stack: list[str] = field(default_factory=list)
    asked: bool = False
    said: bool = False


class Holding:
    """A part of *parent*. limit_s: of CPU time that one turn of code may take; 0: it may take any."""

    def __init__(self, parent: Parent, limit_s: float = LIMIT_S) -> None:
        self._parent, self._limit_s = parent, limit_s
        self._turns: dict[int, Turn] = {}
        self._next = 0.0

    def sockets(self) -> tuple[list[int], list[int]]:
        return [], []

    def due(self) -> float:
        return self._next

    def act(self, readable: set[int], writable: set[int]) -> None:
        now = time.monotonic()
        self._next = now + LOOK_S
        children = list(self._parent.children.values())
        self._turns = {child.pid: turn for child in children if (turn := self._look(child, now)) is not None}

    def close(self) -> None:
        pass

    def _look(self, child: Child, now: float) -> Turn | None:
        found = self._parent.blackbox.code(child.number, child.pid)
        if found is None:
            return None
        mark, on_main = found
        turn = self._turns.get(child.pid)
        if turn is None or turn.mark != mark:
            return Turn(mark, memory(child.pid).cpu_s, now)
        process = memory(child.pid)
        passed_s, turn.seen = min(now - turn.seen, 2 * LOOK_S), now  # where this process itself was held up nothing is known
        if process.stopped:
            return turn
        turn.held_s += passed_s
        if turn.asked:
            turn.asked, turn.stack = False, told_place(child.pid)
        cpu_s = process.cpu_s - turn.cpu_s
        blocked_s = turn.held_s / BLOCKED_TIMES if not any(word in place for place in turn.stack for word in _DEBUGGERS) else 0.0
        spent_s = max(cpu_s, blocked_s)
        over = 0 < self._limit_s <= spent_s
        self._parent.blackbox.hold(child.number, mark, turn.since_us, turn.stack)
        if over and turn.said:
            self._end(child, turn, cpu_s)
        elif turn.held_s >= SAY_S and not turn.said:
            self._say(child, turn)
        # one look before it is told, and again before the limit
        if on_main and (turn.held_s >= ASK_S and not turn.said or 0 < self._limit_s <= spent_s + 2 * LOOK_S):
            turn.asked = ask_place(child.pid)
        return turn

    def _say(self, child: Child, turn: Turn) -> None:
        turn.said = True
        after = f", and the worker is ended after {self._limit_s:g} s of computing" if self._limit_s else ""
        log.warning(
            "workflow code of %s (run %s) holds the loop of worker %d for %.0f s%s: no other run of this worker moves meanwhile%s; put what takes long into a step",
            *self._whose(child, turn), _id(child), turn.held_s, _at(turn), after,
        )  # fmt: skip

    def _end(self, child: Child, turn: Turn, cpu_s: float) -> None:
        log.error(
            "workflow code of %s (run %s) has held the loop of worker %d for %.0f s, with %.0f s of computing%s: the worker is killed",
            *self._whose(child, turn), _id(child), turn.held_s, cpu_s, _at(turn),
        )  # fmt: skip
        self._parent.blackbox.accuse(child.number, turn.mark, signal.SIGKILL)
        child.kill(signal.SIGKILL)

    def _whose(self, child: Child, turn: Turn) -> tuple[str, UUID]:
        names = [entry.workflow for entry in self._parent.blackbox.read(child.number).executing if entry.is_code and entry.place == "loop"]
        return plain(names[0]) if names else "a workflow", UUID(bytes=turn.mark[:16])


def _id(child: Child) -> int:
    """The number that all else shows; one that executes something was born."""
    return child.born.worker_id if child.born is not None else 0


def _at(turn: Turn) -> str:
    return f", at {plain(turn.stack[0])}" if turn.stack else ""


# ── where it is ──────────────────────────────────────────────────────────────────────────────────────────────────


def ask_place(pid: int) -> bool:
    """Have a worker's main thread write its stack, from C: it can be told even while the interpreter is held. False where it has no handler (yet)."""
    link = _link(pid)
    if link is None or not catches(pid, PLACE_SIGNAL):
        return False
    try:
        os.truncate(link, 0)
        os.kill(pid, PLACE_SIGNAL)
    except OSError:
        return False
    return True


def told_place(pid: int) -> list[str]:
    """What it has written: the app's innermost place first, then the stack from there outwards without this program's own frames. [] where it has not."""
    link = _link(pid)
    with suppress(OSError):
        return read_place(Path(link).read_text("utf-8", "replace")) if link is not None else []
    return []


def read_place(text: str) -> list[str]:
    """faulthandler's text of one thread, most recent call first, as "file:line in function"."""
    frames = [found.groups() for line in text.splitlines() if (found := _FRAME.match(line))]
    frames = [frame for frame in frames if not frame[0].startswith((_PACKAGE + os.sep, "<frozen"))] or frames
    first = next((n for n, (file, _, _) in enumerate(frames) if not file.startswith(_LIBRARIES)), 0)
    places = [f"{file}:{line} in {function}" for file, line, function in frames[:FRAMES]]
    return [*places[first : first + 1], *places]


def _link(pid: int) -> str | None:
    with suppress(OSError):
        return next((link for fd in os.listdir(f"/proc/{pid}/fd") if is_memfd(link := f"/proc/{pid}/fd/{fd}", PLACE_MEMFD)), None)
    return None
