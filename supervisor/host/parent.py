"""The parent: forks workers, notices deaths at once, gives back what the dead held, forks again.

Single-threaded and without user code: the app is imported in the workers. Sleeps in one `poll` on the children's pidfds,
signals, the sockets of its parts, and a tick. What is to be (how many workers, of which generation) is compared with
what is on every turn (`_steer`), so that no event has to be remembered.
"""

from __future__ import annotations

import logging
import os
import random
import select
import signal
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from supervisor.core import ends
from supervisor.core.errors import DefinitionError
from supervisor.core.shown import count
from supervisor.engine.main import EXIT_DATABASE, EXIT_UNFIT
from supervisor.engine.responder import forget
from supervisor.host.blackbox import BlackBox, Executing
from supervisor.host.blame import how, signal_name, what
from supervisor.host.children import Born, Child, Left, Load, Loaded, NotLoaded, Work, fork
from supervisor.host.logs import error_told
from supervisor.host.reaper import Reaper
from supervisor.host.reload import Reload
from supervisor.host.signals import Signals

log = logging.getLogger("pgsupervisor.parent")

TICK_S = 0.5
LATE_PARTS_S = 1.0
QUICK_DEATH_S = 1.0
QUICK_DEATHS_MAX = 5
BACKOFF_S = (0.0, 0.05, 0.2, 0.5, 1.0)
DATABASE_AWAY_S, DATABASE_AWAY_MAX_S = 0.5, 5.0  # between births of a slot while the database is away: twice as long each time
SAY_AWAY_S = 60.0
BAD_APP_S = 1.0  # between imports of an app that can't be imported, while other workers serve
TOLD_TO_END_S = 0.25  # who tells a whole group of processes to end reaches us within that
EXIT_CRASH_LOOP = 70


class Part(Protocol):
    """Something else that lives in the parent's loop. It never blocks it: statements are sent, and their answers read when they are there."""

    def sockets(self) -> tuple[list[int], list[int]]:
        """Descriptors to be watched for reading, and for writing."""

    def due(self) -> float:
        """time.monotonic() of its next turn; inf for none."""

    def act(self, readable: set[int], writable: set[int]) -> None:
        """Called when one of its descriptors is ready or it is due. An exception ends the parent."""

    def close(self) -> None: ...


@dataclass
class ParentOptions:
    dsn: str
    schema: str
    procs: int
    threads: int
    drain_timeout_s: float = 25.0
    supervisor_id: uuid.UUID = field(default_factory=uuid.uuid4)
    app: str = ""  # its name, for titles of processes

    @property
    def slots(self) -> int:
        """How many workers there is room for: TTIN, and the two generations of a reload."""
        return 2 * self.procs + 8


class Parent:
    """Keeps `target` workers running, `procs` at first.

    work(birth)                           runs in the child until it ends; its return value is the exit code
    died(child, exit code, executing)     told about every end of a worker, like all of `on_death`; -n for signal n
    parts                                 what else lives in the loop
    load(birth)                           imports the app, in the child before its work; returns what `Loaded` holds
    patient                               an app that can't be imported is being written: workers wait for `load_again`
    """

    def __init__(
        self, options: ParentOptions, work: Work, died: Callable[..., None] | None = None, parts: Iterable[Part] = (), load: Load | None = None
    ) -> None:
        self.options = options
        self.blackbox = BlackBox(options.slots, options.threads, options.supervisor_id, options.schema)
        self.children: dict[int, Child] = {}
        self.target, self.generation = options.procs, 1
        self.reaper = Reaper(options.dsn, options.schema)
        self.parts: list[Part] = [self.reaper, *parts]
        self._late: list[Part] = []
        self._late_at = 0.0
        self.on_death: list[Callable[[Child, int, list[Executing]], None]] = [died] if died is not None else []
        self.on_loaded: list[Callable[[Loaded], None]] = []
        self.keep_fds: list[int] = []  # what else children keep open of ours
        self.keep: Callable[[int], Iterable[int]] = lambda number: ()  # and worker *number* alone
        self.loaded: Loaded | None = None  # what the app has, by the last worker that imported it; `on_loaded` hear what is new
        self.refused: NotLoaded | None = None  # why the app could not be imported, if that ended the parent
        self.reload = Reload(self)
        self.patient = False
        self._said_of_app = ""  # why it could last not be imported; a patient parent says that once
        self._work, self._load = work, load
        self._quick: dict[int, int] = {}
        self._away: dict[int, int] = {}  # by slot: births in a row without a database
        self._say_away_at = 0.0
        self._fork_at: dict[int, float] = {}
        self._stopping = False
        self._stop_at = 0.0  # when that began
        self._at_end: list[Left] = []  # what workers left behind since
        self._killed = 0
        self._signals: Signals | None = None
        self._ordered: set[int] = set()  # children that were killed by us: their steps are not to blame
        self.exit_code = 0
        self.reclaimed: list[tuple[int, float]] = []  # (worker id, seconds from its death to its tasks being free)

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, tick: Callable[[], bool] | None = None) -> int:
        """Be the process: work until stopped, listen to all signals. *tick* is called on every turn, twice a second at least, and stops everything
        when it returns False. Returns the exit code."""
        self.start()
        assert self._signals is not None
        self._signals.serve()
        try:
            while self.step(TICK_S):
                if tick is not None and not self._stopping and not tick():
                    self.stop()
        finally:
            self.close()
        return self.exit_code

    def add(self, part: Part, late: bool = False) -> None:
        """Let *part* live in the loop; closed with the parent. late: its sessions come after those of the first worker, where there are few."""
        (self._late if late else self.parts).append(part)

    def close(self) -> None:
        """End the sessions of the parent and its parts; for whoever drives `start` and `step` instead of calling `run`."""
        for part in [*self.parts, *self._late]:
            part.close()
            if part is self.reaper and self._stopping:
                self._say_stopped()  # before the log process ends, which is a part too
        if self._signals is not None:
            self._signals.close()
            self._signals = None

    def _say_stopped(self) -> None:
        handed, held, cut = (sum(getattr(each, name) for each in self._at_end) for name in ("given_back", "held", "cut"))
        killed = f", {count(self._killed, 'worker')} killed" if self._killed else ""
        middle = f", {held} left in the middle with {count(cut, 'step')} cut off" if held else ""
        log.info("stopped after %.1f s: %s handed back%s%s", time.monotonic() - self._stop_at, count(handed, "run"), middle, killed)

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called, by anybody."""
        return self._stopping

    @property
    def loads(self) -> bool:
        """Whether workers import the app, so that new ones have its new code."""
        return self._load is not None

    @property
    def births_planned(self) -> int:
        return len(self._fork_at)

    @property
    def staying(self) -> list[Child]:
        """The workers that nobody told to end."""
        return [child for child in self.children.values() if not child.leaving]

    def start(self) -> None:
        """Fork the workers."""
        self._signals = Signals()
        self._late_at = time.monotonic() + LATE_PARTS_S
        self._steer(time.monotonic())

    def step(self, timeout_s: float) -> bool:
        """Wait for something to happen and deal with it; False when all is over."""
        readable, writable = self._wait(timeout_s)
        self._on_signals()
        for child in list(self.children.values()):
            if not child.closed and child.pipe in readable:
                self._listen(child)
            if child.pidfd in readable:
                self._reap(child)
        self._act(readable, writable)
        now = time.monotonic()
        if self._late and now >= self._late_at:
            self.parts += self._late
            self._late = []
        self._on_signals()  # before a fork: of a TERM to all of us the children's may have been noticed first
        self._steer(now)
        return bool(self.children) or not self._stopping

    def _wait(self, timeout_s: float) -> tuple[set[int], set[int]]:
        """Until something is ready or due; returns what can be read and what can be written. Not `select`, which ends at descriptor 1,023."""
        assert self._signals is not None
        reading = {self._signals.fd, *(child.pidfd for child in self.children.values())}
        reading.update(child.pipe for child in self.children.values() if not child.closed)
        writing: set[int] = set()
        until = [*self._fork_at.values(), *(child.kill_at for child in self.children.values()), self.reload.due(), *(part.due() for part in self.parts)]
        for part in self.parts:
            to_read, to_write = part.sockets()
            reading.update(to_read)
            writing.update(to_write)
        poll = select.poll()
        for fd in reading | writing:
            poll.register(fd, (select.POLLIN if fd in reading else 0) | (select.POLLOUT if fd in writing else 0))
        wait_s = max(0.0, min(timeout_s, min(until, default=float("inf")) - time.monotonic()))
        ready = [(fd, event) for fd, event in poll.poll(1000 * wait_s)]
        # an error or an end shows itself to whoever reads or writes
        return {fd for fd, event in ready if fd in reading and event & ~select.POLLOUT}, {fd for fd, event in ready if fd in writing and event & ~select.POLLIN}

    def _act(self, readable: set[int], writable: set[int]) -> None:
        for part in list(self.parts):
            to_read, to_write = part.sockets()
            theirs = readable.intersection(to_read), writable.intersection(to_write)
            if any(theirs) or time.monotonic() >= part.due():
                part.act(*theirs)

    # ── what it is told ──────────────────────────────────────────────────────────────────────────────────────────

    def stop(self, fast: bool = False) -> None:
        """Drain: workers finish or hand back; those that do not end within the timeout are killed. fast: they are killed now."""
        if not self._stopping:
            self._stopping, self._stop_at = True, time.monotonic()
        self._fork_at.clear()
        for child in self.children.values():
            self.dismiss(child)
            if fast:
                child.kill_at = 0.0

    def kill(self, child: Child) -> None:
        """End a worker at once. What it executes is executed again elsewhere, and not charged with its death."""
        self._ordered.add(child.pid)
        child.kill(signal.SIGKILL)

    def dismiss(self, child: Child) -> None:
        """Tell one worker to finish or hand back what it has and to end; it has no successor."""
        child.leaving = True
        child.kill_at = time.monotonic() + self.options.drain_timeout_s + 1.0
        child.kill(signal.SIGTERM)

    def _on_signals(self) -> None:
        assert self._signals is not None
        for number in self._signals.read():
            if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                self._on_stop(number)
            elif number == signal.SIGUSR1:
                forget(signal.SIGUSR1)
                for child in self.children.values():
                    child.kill(signal.SIGUSR1)
            elif self._stopping:
                continue
            elif number == signal.SIGHUP:
                self.load_again()
            elif number == signal.SIGTTIN:
                self.resize(self.target + 1)
            elif number == signal.SIGTTOU:
                self.resize(self.target - 1)

    def _on_stop(self, number: int) -> None:
        if self._stopping or number == signal.SIGQUIT:
            again = "told to stop again" if self._stopping else "stopping at once"
            log.warning("%s, by %s: workers are killed, and what they execute is executed again elsewhere", again, signal_name(number))
            self.exit_code = 128 + number
            self.stop(fast=True)
        else:
            log.info("stopping: workers finish what they began (at most %g s); once more to stop at once", self.options.drain_timeout_s)
            self.stop()

    def load_again(self) -> None:
        """The app's files are other ones: fork the workers that wait for that, and replace the others one after the other."""
        self._said_of_app = ""
        for number, at in self._fork_at.items():
            if at == float("inf"):
                self._fork_at[number] = time.monotonic()
        if self.staying:
            self.reload.ask()

    def resize(self, target: int) -> None:
        """Want that many workers from now on: 1 at least, at most what there is room for beside those of a reload."""
        target = max(1, min(target, self.options.slots - 2))
        if target == self.target:
            log.warning("there %s %s: from 1 to %d are possible", "is" if target == 1 else "are", count(target, "worker"), self.options.slots - 2)
        else:
            log.info("%s instead of %d from now on", count(target, "worker"), self.target)
            self.target = target

    # ── children ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _steer(self, now: float) -> None:
        """Bring what is nearer to what is to be: fork what is missing, end what is too much, kill what does not end."""
        for child in self.children.values():
            if now >= child.kill_at:
                if child.kill_at > 0.0:
                    log.warning("%s has not ended within %g s (--drain-timeout), it is stuck: it is killed", child.name, self.options.drain_timeout_s)
                child.kill_at = float("inf")
                self.kill(child)
        if self._stopping:
            return
        for _ in range(self.target - len(self.staying) - len(self._fork_at)):
            self._fork_at[self.free_number()] = now
        self.reload.steer(now)
        for _ in range(len(self.staying) + len(self._fork_at) - self.target - self.reload.surplus):
            if self._fork_at:
                del self._fork_at[max(self._fork_at)]
            else:
                self.dismiss(max(self.staying, key=lambda child: child.number))
        for number, at in sorted(self._fork_at.items()):
            if at <= now:
                del self._fork_at[number]
                self.fork(number)

    def free_number(self) -> int:
        """The lowest number that no worker has and none is planned for."""
        taken = {child.number for child in self.children.values()} | self._fork_at.keys()
        return next(number for number in range(self.options.slots) if number not in taken)

    def fork(self, number: int) -> None:
        """Fork worker *number*, later where the system refuses now."""
        options = self.options
        self.blackbox.generation = self.generation
        try:
            keep = [*self.keep_fds, *self.keep(number)]
            child = fork(number, self.generation, options.app, keep, self.blackbox, options.supervisor_id, self._work, self._load)
        except OSError as error:
            log.warning("the worker of slot %d can't be forked, tried again in %g s: %s", number, BACKOFF_S[-1], error)
            self._fork_at[number] = time.monotonic() + BACKOFF_S[-1]
        else:
            self.children[child.pid] = child

    def _listen(self, child: Child) -> None:
        for told in child.listen():
            if isinstance(told, Born) and told.ready:
                self._late_at = self._say_away_at = 0.0
                self._away.pop(child.number, None)
                word = "is up" if child.times_born == 1 else "goes on"
                log.info("slot %d (pid %d) %s as worker %d", child.number, child.pid, word, told.worker_id)
            elif isinstance(told, Loaded) and self.loaded != told:
                self.loaded = told
                for hear in self.on_loaded:
                    hear(told)
            elif isinstance(told, NotLoaded):
                self._not_loaded(child, told)

    def _not_loaded(self, child: Child, why: NotLoaded) -> None:
        """An import failed. At the start that is the end; later other workers may serve, and the file may be mended."""
        said, self._said_of_app = self._said_of_app, why.words
        if self._stopping or self.reload.not_loaded(child, why) or (self.patient and said == why.words):
            return
        waits = self.patient and why.code in ("", DefinitionError.code)
        if self.loaded is None and not waits:
            self.refused = why
            self.exit_code = EXIT_CRASH_LOOP
            self.stop(fast=True)
        if self.loaded is not None or waits or not why.code:  # else whoever runs the parent raises it
            error_told(log, "slot %d: its worker can't import the app%s", child.number, ", and waits until a file is saved" if waits else "", told=why.words)

    def _reap(self, child: Child) -> None:
        """A child ended: say so, free its claims, plan its successor."""
        died_at = time.monotonic()
        with self.blackbox.carrying(child.number) as carry:
            _, status, usage = os.wait4(child.pid, 0)
            carry(usage.ru_utime + usage.ru_stime)
            code = os.waitstatus_to_exitcode(status)
            self._listen(child)
            child.close()
            del self.children[child.pid]
            # a worker that asked to be replaced did not crash: what its lost threads are inside of was given up, and nobody is charged
            executing = self.blackbox.inquest(child.number, child.pid, code, ordered=child.pid in self._ordered) if code != EXIT_UNFIT else []
        self._ordered.discard(child.pid)
        if self._stopping:
            self._killed += code == -signal.SIGKILL
            self._at_end += [child.left] if child.left is not None else []
        if child.away is not None:
            self._say_away(child.away.words)
        elif not (child.leaving and code in (0, -signal.SIGTERM)) and child.not_loaded is None:
            _say_death(child, code, executing)
        if child.born is not None:
            self._free(child.born, died_at, ends.of_code(code), executing, held=child.left is None or child.left.held > 0)
        for hear in self.on_death:
            hear(child, code, executing)
        self._plan_successor(child, died_at, code, any(entry.crash for entry in executing))

    def _say_away(self, why: str) -> None:
        """No worker can be born: once for all slots, then now and again."""
        if time.monotonic() >= self._say_away_at:
            self._say_away_at = time.monotonic() + SAY_AWAY_S
            log.warning("no worker can begin without the database; tried again, up to %g s apart: %s", DATABASE_AWAY_MAX_S, why)

    def _free(self, born: Born, died_at: float, why: str, executing: list[Executing], held: bool) -> None:
        def freed(tasks: int, _: float) -> None:
            took_s = time.monotonic() - died_at
            self.reclaimed.append((born.worker_id, took_s))
            if tasks:
                log.info("worker %d: %s given back %.0f ms after its death", born.worker_id, count(tasks, "claim"), 1000 * took_s)

        self.reaper.bury(born.worker_id, born.application_name, why, executing, freed, held)

    def _plan_successor(self, child: Child, died_at: float, code: int, charged: bool) -> None:
        if self._stopping or child.leaving or self.reload.died(child, died_at, code):
            return
        if child.not_loaded is not None and self.patient:
            self._fork_at[child.number] = float("inf")
            return
        if child.not_loaded is not None and any(other.ready for other in self.staying):
            self._fork_at[child.number] = died_at + BAD_APP_S
            return
        # ended from outside after it was ready, or by itself to be replaced, is no crash loop, nor is a step's doing, which has an end; a database that is
        # away has its own pace
        from_outside = code in (0, -signal.SIGKILL, -signal.SIGTERM) and child.ready
        planned = charged or code in (EXIT_DATABASE, EXIT_UNFIT) or from_outside
        quick = (died_at - child.started < QUICK_DEATH_S or child.not_loaded is not None) and not planned
        deaths = self._quick[child.number] = self._quick.get(child.number, 0) + 1 if quick else 0
        if deaths >= QUICK_DEATHS_MAX:
            last = child.broken or child.not_loaded
            of = "; it last died of" if last is not None else ""
            error_told(log, "slot %d: its workers died %d times within a second of their birth: giving up%s", child.number, deaths, of, told=last.words if last is not None else "")
            self.exit_code = EXIT_CRASH_LOOP
            self.stop()
            return
        wait_s = BACKOFF_S[min(deaths, len(BACKOFF_S) - 1)]
        if code == EXIT_DATABASE:
            times = self._away[child.number] = self._away.get(child.number, 0) + 1
            wait_s = min(DATABASE_AWAY_S * 2 ** min(times - 1, 10), DATABASE_AWAY_MAX_S) * random.uniform(0.75, 1.25)
        if code in (0, -signal.SIGTERM):
            wait_s = max(wait_s, TOLD_TO_END_S)
        self._fork_at[child.number] = died_at + wait_s


def _say_death(child: Child, code: int, executing: list[Executing]) -> None:
    doing = ", ".join(f"{what(entry)} of run {entry.run_id}" for entry in executing[:3])
    more = f" and {len(executing) - 3} more" if len(executing) > 3 else ""
    words = f"\n{child.broken.words}" if child.broken is not None else ""
    log.warning("%s %s%s%s", child.name, how(code), f" while executing {doing}{more}" if doing else "", words)
    for entry in executing:
        if entry.crash is not None:
            log.warning("%s: its death is charged to %s of run %s", child.name, what(entry), entry.run_id)
