"""The watchdog: a step that runs on the loop's thread and does not come back must not hold its batch nor the other runs.

Owns who is the loop's thread. While steps run inline it looks every 20 ms whether one of them is still the same; if so, its
own thread takes the event loop over as it stands: session, timers, tasks, executors. The stuck call has then become a call
in a thread. When it returns, its result goes to `loop.completions` and the event loop goes back to the main thread.

What makes it right: a body runs inline only inside of `Loop.execute`, where nothing else is half done, so the frames of the
stuck thread are given up by an exception (`Detached`) and never touch the loop again. Between the two threads `Loop.current`
decides, under the interpreter's lock. It leans on asyncio's `_run_once`, `_ready` and the readers' handles, which have been
the same in every CPython from 3.7 on; tests/conformance/test_watchdog.py would notice. What may run while a thread is stuck must not
need a context that it is inside of: the pump runs in a copy, the readers' handles get new ones. If the thread that stands in is stuck as well,
the next watchdog takes over from it.

A `def` workflow that is to go on meanwhile waits (`Watchdog.away`): most calls that are late are late by a moment. Then those at rest are given
back with what they have recorded, and replayed on the thread that has the loop. A step of theirs that executes is never begun a second time: the
run stays until it has ended and its row is durable. Runs begun on the thread that stood in are given back when it ends. A greenlet is
unwound by its own thread, inert; that of a thread that ended stuck is kept, never unwound.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any
from uuid import UUID

from supervisor.engine.executors import Call, demote_now

log = logging.getLogger("pgsupervisor.watchdog")

LOOK_S = 0.02  # a body is held to be stuck when two looks find it: after 20 to 40 ms
SLEEP_AFTER_LOOKS = 50  # without anything inline: then the thread sleeps until the next group of steps
LOOK_AGAIN_S = 0.02
# A greenlet can be resumed by its own thread only. Waiting for that thread costs time, giving the run back and replaying it
# costs work: a release, a claim, a read and the replay, estimated at 0.15 ms for a run of ten steps (nobody has measured it).
# Waiting about as long as the replays would take is never much worse than the better of the two.
STAY_MIN_S, REPLAY_S = 0.05, 0.00015
NO_THREAD = 1  # home of a run whose greenlet was unwound because its thread has ended


class Detached(SystemExit):
    """Ends what a thread was doing for the loop, which another thread holds now. asyncio's handles let no other exception through.

    home   the event loop has been handed back to this thread: it goes on with its next handle
    """

    def __init__(self, home: bool) -> None:
        super().__init__()
        self.home = home


class Stuck:
    """A call that held the loop: what it runs, in which thread, as which call of the executors."""

    __slots__ = ("call", "command", "slot")

    def __init__(self, command: Any) -> None:
        self.command = command
        self.call: Call | None = None
        self.slot: Any = None


class Watchdog:
    """Watches *loop*. Its methods are called on the loop's thread, whichever that is; `_watch` has one of its own.

    schedule()      let the worker look for work soon
    walk_again()    the runs whose steps were being executed are ready again; those that have been taken are skipped then
    leave()         ends the process: the worker has ended, and its main thread is stuck for good
    """

    def __init__(self, loop: Any, commands: Any, schedule: Callable[[], None], walk_again: Callable[[], None], leave: Callable[[], None]) -> None:
        self._loop, self._commands, self._executors = loop, commands, commands.executors
        self._schedule, self._walk_again, self._leave = schedule, walk_again, leave
        self._time: Any = asyncio.get_running_loop()
        self._main = threading.get_ident()
        self._watching = self._busy = self._asleep = self._over = False
        self._awake = threading.Event()
        self._stuck: dict[int, Stuck] = {}
        self._main_back = False
        self._home = threading.Semaphore(0)
        self._owed = 0
        self._away: dict[Any, list[tuple[list[Any], int]]] = {}
        self._looking = False
        self._stay_until = 0.0
        self._greenlets: list[tuple[int, Any, list[Any]]] = []  # (thread, run, coroutines) that only that thread can unwind

    # ── the worker's side ────────────────────────────────────────────────────────────────────────────────────────

    def before_group(self) -> None:
        """Steps are about to run. Cost: two attributes per group of steps.

        The order matters, here and in `_sleep`: first say that there is something, then look whether anybody sleeps.
        """
        self._busy = True
        if self._asleep:
            self._awake.set()
        elif not self._watching:
            self._watching = True
            self._start()

    def stop(self) -> None:
        self._over = True
        self._awake.set()

    @property
    def waits(self) -> bool:
        """Whether the main thread is stuck and may be back in a moment: nothing new is claimed so long."""
        return bool(self._stuck) and self._time.time() < self._stay_until

    def holds(self, run: Any) -> bool:
        """Whether *run* was given something that its coroutine has not been told yet."""
        return run in self._away

    def on_thread(self, thread: int) -> Any:
        """The command whose body holds that thread since it was the loop's, or None."""
        stuck = self._stuck.get(thread)
        return stuck.command if stuck is not None else None

    # ── watching ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self) -> None:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        seen: Any = None
        quiet = 0
        while not self._over:
            time.sleep(LOOK_S)
            command = self._loop.current
            now = (command, command.attempt) if command is not None else None
            if now is not None and now == seen and self._take(command):
                self._start()  # this thread has something else to do now
                self._stand_in(command)
                return
            seen = now
            quiet = 0 if self._busy or now is not None else quiet + 1
            self._busy = False
            if quiet > SLEEP_AFTER_LOOKS:
                self._sleep()
                quiet = 0

    def _sleep(self) -> None:
        self._asleep = True
        if not self._busy and not self._over:
            self._awake.wait()
        self._awake.clear()
        self._asleep = False

    # ── another thread becomes the loop's ────────────────────────────────────────────────────────────────────────

    def _take(self, command: Any) -> bool:
        """Become the loop's thread; False when the body has ended in this very moment."""
        held = self._loop.thread
        self._stuck[held] = Stuck(command)  # before: it may come back at any moment from then on
        if self._loop.take_over(command):
            return True
        del self._stuck[held]
        return False

    def _detach(self, command: Any) -> None:
        """What held the loop becomes a call in a thread; what its thread was doing for the loop is begun again."""
        held, stuck = next((held, stuck) for held, stuck in self._stuck.items() if stuck.command is command)
        run, fresh = command.run, self._loop.fresh
        run.executing += 1
        if run.open is None:
            run.open = {command.seq: command}
        elif fresh is not None and command in fresh:  # its run was to begin more
            run.fresh = fresh[fresh.index(command) + 1 :] + (run.fresh or [])
        if held == self._main:
            self._owed = len(self._time._ready)  # so many handles its `_run_once` may still want to take
            defs = sum(run.home == held for run in self._loop.live.values())
            self._stay_until = self._time.time() + max(STAY_MIN_S, defs * REPLAY_S)
        self._time._thread_id = threading.get_ident()
        for key in list(self._time._selector.get_map().values()):
            for handle in key.data or ():
                if handle is not None:
                    handle._context = copy_context()  # the one that the stuck thread is inside of can't be entered again
        stuck.call, stuck.slot = self._executors.detach(command, int(1.5e6 * LOOK_S))
        self._executors.doing[held] = stuck.call
        self._loop.slot.leave()
        self._loop.slot.own()
        self._walk_again()
        demote_now(command.step)
        log.warning(
            "step %s (run %s, seq %d) holds the loop for more than %d ms: another thread goes on without it%s", command.step.name,
            UUID(bytes=command.run.id), command.seq, LOOK_S * 1000, "" if command.step.inline else "; from now on it runs in threads",
        )  # fmt: skip

    def _stand_in(self, command: Any) -> None:
        """Run the event loop in this thread until the main thread is back, or this one is stuck too."""
        me, events = threading.get_ident(), self._time
        asyncio._set_running_loop(events)
        sys.set_asyncgen_hooks(firstiter=events._asyncgen_firstiter_hook, finalizer=events._asyncgen_finalizer_hook)
        try:
            self._detach(command)
            self._schedule()
            while not self._main_back:
                if events._stopping:
                    self._leave()
                events._run_once()
            asyncio._set_running_loop(None)
            self._hand_back(me)
        except Detached:
            pass  # it was stuck as well, and somebody else has the loop
        except BaseException:  # noqa: BLE001 - it would have ended the main thread's loop too
            log.exception("the loop failed while its main thread was stuck")
            self._leave()

    def _hand_back(self, me: int) -> None:
        """The main thread has the loop again. What is bound to this thread ends here: those runs are replayed."""
        for run in list(self._loop.live.values()):
            if run.home == me:
                coro, run.coro, run.home = run.coro, None, NO_THREAD
                if coro is not None:
                    self._loop.close(run, [coro])
        for thread, run, coros in self._greenlets:
            if thread == me:
                self._loop.close(run, coros)
        self._main_back = False
        self._stay_until = 0.0
        self._time.call_soon(self._back_home)
        while len(self._time._ready) < self._owed:
            nothing = asyncio.Handle(self._schedule, (), self._time)
            nothing.cancel()
            self._time._ready.append(nothing)
        self._time._thread_id = self._main
        self._loop.hand_to(self._main)
        self._home.release()

    # ── the stuck thread ─────────────────────────────────────────────────────────────────────────────────────────

    def came_back(self, command: Any, value: Any, error: BaseException | None, started: int, ended: int) -> None:
        """On a thread that is not the loop's any more: its call has returned. Raises Detached, the main thread when the loop is its own again."""
        me = threading.get_ident()
        stuck = self._stuck[me]
        if me == self._main:
            self._main_back = True
        try:
            self._time.call_soon_threadsafe(self._ended, me, stuck, value, error, started, ended)
        except RuntimeError:  # the event loop is closed: the process ends
            pass
        if me == self._main:
            self._home.acquire()
        raise Detached(me == self._main) from None

    def _ended(self, thread: int, stuck: Stuck, value: Any, error: BaseException | None, started: int, ended: int) -> None:
        if self._stuck.get(thread) is stuck:
            del self._stuck[thread]
            self._executors.doing.pop(thread, None)
        if thread != self._main:  # it ends, and its number may be another thread's soon
            self._orphan(thread)
        call = stuck.call
        assert call is not None
        call.started = started
        self._executors.detached_ended(call, stuck.slot, value, error, ended)

    def _orphan(self, thread: int) -> None:
        """A thread ended that nobody can unwind greenlets in any more. They are kept: unwinding them elsewhere would execute them."""
        for run in self._loop.live.values():
            if run.home == thread:
                self._greenlets.append((NO_THREAD, run, [run.coro]))
                run.coro, run.home = None, NO_THREAD
        self._greenlets = [(NO_THREAD if home == thread else home, run, coros) for home, run, coros in self._greenlets]

    # ── runs whose greenlets belong to another thread ────────────────────────────────────────────────────────────

    def away(self, run: Any, work: list[Any]) -> None:
        """*run* is to go on with *work* (as Loop.drive has it), which only the thread of its greenlet can do."""
        self._away.setdefault(run, []).append((work, run.now_us))
        self._look_later()

    def abandoned(self, run: Any, coros: list[Any]) -> None:
        """A run left memory whose coroutines only another thread can unwind."""
        self._greenlets.append((run.home, run, coros))

    def _look_later(self) -> None:
        if not self._looking:
            self._looking = True
            self._time.call_later(max(LOOK_AGAIN_S, self._stay_until - self._time.time()), self._look)

    def _back_home(self) -> None:
        """The main thread again: unwind what has left memory meanwhile, and let its runs go on."""
        self._loop.slot.own()
        mine = [entry for entry in self._greenlets if entry[0] == self._main]
        self._greenlets = [entry for entry in self._greenlets if entry[0] != self._main]
        asyncio._set_running_loop(None)
        try:
            for _, run, coros in mine:
                self._loop.close(run, coros)
        finally:
            asyncio._set_running_loop(self._time)
        self._look()

    def _look(self) -> None:
        """Let go on what can go on in this thread; give back what has waited long enough: another thread, or another worker, replays it."""
        self._looking = False
        patient = self._time.time() < self._stay_until
        asyncio._set_running_loop(None)  # workflow code runs here
        try:
            for run in list(self._away):
                if run.gone:
                    del self._away[run]
                elif run.in_tx or run.batch not in (0, self._loop.number):
                    continue  # first what is in flight: a run has rows in one unacknowledged batch only
                elif run.home == self._loop.thread:
                    for work, now_us in self._away.pop(run):
                        self._go_on(run, work, now_us)
                elif not (patient or run.batch or run.executing or run.later):
                    self._commands.give_back(run)
        finally:
            asyncio._set_running_loop(self._time)
        if self._away:
            self._look_later()
        self._schedule()

    def _go_on(self, run: Any, work: list[Any], now_us: int) -> None:
        if run.gone:
            return
        run.now_us = now_us  # what it was when this was delivered, as a replay has it
        if run.open is None:
            run.open = {}
        try:
            self._loop.drive(run, work)
        except Exception as error:  # noqa: BLE001 - of the engine: it costs this run only
            self._commands.broken(run, error)
