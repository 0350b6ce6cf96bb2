"""A parent with the engine's workers: what `run`, `demo` and `bench` start."""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from supervisor.core import registry
from supervisor.core.errors import ConfigInvalid, DatabaseUnavailable, DefinitionError
from supervisor.core.shown import by_whom, plain
from supervisor.db.host_calls import HeldUp, HostCalls
from supervisor.db.statements import await_channel, done_channel, query_channel, signal_channel, wake_channel
from supervisor.engine.endings import Endings
from supervisor.engine.main import Birth, work
from supervisor.engine.rest import Board
from supervisor.engine.worker import WorkerOptions
from supervisor.host import logs
from supervisor.host.awaited import Awaited
from supervisor.host.beside import Beside
from supervisor.host.children import Loaded
from supervisor.host.holding import LIMIT_S, Holding
from supervisor.host.parent import Parent, ParentOptions
from supervisor.host.sessions import Room, check_room
from supervisor.host.stacks import Answering
from supervisor.host.standing import Standing
from supervisor.host.systemd import Notifier
from supervisor.host.titles import set_title
from supervisor.host.vitals import Vitals
from supervisor.leader.lead import Leadership
from supervisor.host.wakeups import Wakeups

if TYPE_CHECKING:
    from supervisor.host.log_process import LogProcess

log = logging.getLogger("pgsupervisor.parent")

HELD_S = 1.0  # between looks at queues that are paused
REFUSALS = {error.code: error for error in (ConfigInvalid, DefinitionError)}


@dataclass
class ServiceOptions:
    dsn: str
    schema: str
    procs: int
    threads: int = 8
    in_flight: int = 5000
    queues: tuple[str, ...] = ()
    until_empty: bool = False
    drain_timeout_s: float = 25.0
    retention_s: float | None = None  # how long the history is kept; None: for ever
    app: str = ""  # its name, for people
    log_dir: str | None = None
    log_file_bytes: int = 64 << 20
    log_files: int = 8
    traces: bool = False
    code_limit_s: float = LIMIT_S  # of CPU time that workflow code may take from one durable word to the next; 0: any
    beside: Mapping[str, int] = field(default_factory=dict)  # sessions of processes beside it that are no part of its loop, by what they are


class Service:
    """A parent and its workers.

    load     imports the app, in each worker; without it the app was imported before, and a reload can't change it
    reloads  it is loaded again whenever one of its files was saved
    """

    def __init__(self, options: ServiceOptions, died: Callable[..., None] | None = None, load: Callable[[], Any] | None = None, reloads: bool = False) -> None:
        self.options = options
        self._load = load
        self.parent = Parent(
            ParentOptions(options.dsn, options.schema, options.procs, options.threads, options.drain_timeout_s, app=options.app),
            self._work,
            died,
            load=self._load_app if load is not None else None,
        )
        self._log = self._log_process()
        parent = self.parent
        if reloads:
            self._look_for_saves()
        parent.add(Answering())
        parent.add(Holding(parent, options.code_limit_s))
        parent.add(Standing(parent))
        leadership = Leadership(options.dsn, options.schema, parent.options.supervisor_id, parent.reaper.burials, options.retention_s)
        parent.add(leadership, late=True)
        self._board = Board(parent.options.slots)
        wakeups = Wakeups(self._board, lambda: parent.children.values(), options.threads, options.queues, self._workflows, parent.options.supervisor_id)
        leadership.look(wakeups.asks, wakeups.told)
        leadership.listen(wake_channel(options.schema), wakeups.heard)
        leadership.listen(signal_channel(options.schema), wakeups.signalled)
        parent.add(wakeups)
        self._passed = wakeups.passed_fd
        parent.keep_fds.append(self._passed)
        self._endings = Endings(parent.options.slots)
        parent.keep_fds.append(self._endings.fd)
        awaited = Awaited(self._endings, lambda tokens, texts, said: leadership.say([done_channel(options.schema, each) for each in tokens], texts, said))
        leadership.listen(await_channel(options.schema), awaited.heard)
        parent.add(awaited)
        self._queries = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        parent.keep_fds.append(self._queries)
        leadership.listen(query_channel(options.schema), self._asked)
        parent.add(Vitals(parent, lambda: leadership.term, lambda: self._log.dropped if self._log is not None else 0))
        self._calls = HostCalls(options.dsn, options.schema)
        self._failed_before = 0
        self._held: set[tuple[str, datetime]] = set()  # paused queues with runs in them that were last seen
        self._held_at = 0.0
        self._checked = False
        self._beside: dict[str, int] = {}
        self._no_room: ConfigInvalid | None = None

    def _log_process(self) -> LogProcess | None:
        """The first child, where a folder for logs is configured; nothing of it is even imported elsewhere."""
        if self.options.log_dir is None:
            return None
        from supervisor.host.log_process import LogOptions, LogProcess

        process = LogProcess(LogOptions(self.options.log_dir, self.options.log_file_bytes, self.options.log_files, self.options.procs))
        self.parent.add(process)
        self.parent.keep = process.keep
        return process

    def _look_for_saves(self) -> None:
        """Only where it is asked for; nothing of it is even imported elsewhere."""
        from supervisor.host.saved import Saved, reporting

        assert self._load is not None
        saved = Saved(self.parent.load_again)
        self.parent.add(saved)
        self.parent.keep_fds.append(saved.fd)
        self.parent.patient = True
        self._load = reporting(self._load, self.options.app, saved.fd)

    def _load_app(self, birth: Birth) -> tuple[list[str], list[str]]:
        """In a worker: import the app, resolve its annotations, say what it has and what it opens sessions for."""
        assert self._load is not None
        logs.in_worker(birth.number, self._log)
        self._load()
        registry.settle()
        if self.options.traces:
            from supervisor import tracing

            tracing.wrap_steps()
        transactional = any(step.info.transactional for step in registry.steps())
        return sorted(registry.workflows()), ["loop", *["transactional steps"] * transactional, *["queries"] * bool(registry.queries())]

    def _work(self, birth: Birth) -> int:
        logs.in_worker(birth.number, self._log)  # again: the app may have brought handlers
        options = self.options
        worker = WorkerOptions(options.dsn, options.schema, options.queues, options.threads, options.in_flight, options.drain_timeout_s)
        if options.traces:
            from supervisor import tracing

            worker.begin_traces = partial(tracing.begin, options.app)
        worker.seat = self._board.seat(birth.number)
        worker.endings = self._endings.of(birth.number)
        worker.hints_fd, worker.pass_fd = self._queries, self._passed
        return work(worker, birth)

    def _asked(self, workflow: str) -> None:
        """A client has asked a run of that workflow something: one of the keepers of engine/answering.py reads this."""
        if workflow in self._workflows():
            with suppress(BlockingIOError):
                os.eventfd_write(self._queries, 1)

    def _workflows(self) -> list[str]:
        """Names of the workflows that the workers run, as soon as one of them has said so."""
        return self.parent.loaded.workflows if self.parent.loaded is not None else list(registry.workflows())

    def run(self) -> int:
        """Be the host's process: work until stopped, or with until_empty until no run is left; returns the exit code.

        Raises ConfigInvalid or DefinitionError where the app can't be imported because of one, or the server has no room for its sessions.
        """
        if self._log is None:
            return self._run()
        self._log.start()  # before there is any session that it could inherit
        try:
            return self._run()
        finally:
            self._log.close()

    def _run(self) -> int:
        parent, until_empty = self.parent, self.options.until_empty
        room = Room(*self._calls.connections())
        self._beside = {**{part.what: part.sessions for part in parent.parts if isinstance(part, Beside)}, **self.options.beside}
        check_room(room, self.options.procs, beside=self._beside)
        parent.on_loaded.append(lambda loaded: self._on_loaded(loaded, room))
        if until_empty:
            self._failed_before = self._calls.failed_runs()
        else:
            self._calls.close()
        notifier = Notifier.from_environment(parent)
        if notifier is not None:
            parent.add(notifier)
        set_title(f"parent ({self.options.app})" if self.options.app else "parent")
        code = parent.run(self._something_left if until_empty else None)
        if self._no_room is not None:
            raise self._no_room
        if parent.refused is not None and parent.refused.code:
            raise REFUSALS[parent.refused.code](parent.refused.words)
        return code or int(until_empty and (self._calls.failed_runs() > self._failed_before or bool(self._held)))

    def _on_loaded(self, loaded: Loaded, room: Room) -> None:
        """The app is known: say what it has; at the start, look whether the sessions that it needs are to be had."""
        log.info("app %s: %s", self.options.app, ", ".join(loaded.workflows))
        if self._checked:
            return
        self._checked = True
        try:
            check_room(room, self.options.procs, loaded.sessions, self._beside)
        except ConfigInvalid as error:
            self._no_room = error
            self.parent.stop(fast=True)

    def _something_left(self) -> bool:
        if not any(child.ready for child in self.parent.children.values()):
            return True  # an app that can't be imported is no success, however little there is to do
        try:
            if time.monotonic() > self._held_at + HELD_S:
                self._held_at = time.monotonic()
                self._say_held(self._calls.held_up())
            if self._calls.anything_left():
                return True
            self._say_held(self._calls.held_up())
            return False
        except DatabaseUnavailable as error:
            log.debug("is anything left? %s", error)
            return True

    def _say_held(self, held: list[HeldUp]) -> None:
        """A job that waits until nothing is left does not wait for somebody to resume a queue: it says so, and its exit code does."""
        for each in held:
            if (each.queue, each.since) not in self._held:
                log.warning(
                    "queue %s is paused since %s %s; runs that stand in it (%d) are not waited for, but those elsewhere that wait for them are: python -m supervisor queues resume %s",
                    plain(each.queue), each.since.isoformat(timespec="seconds"), plain(by_whom(each.by, each.reason)), each.runs, plain(each.queue),
                )  # fmt: skip
        self._held = {(each.queue, each.since) for each in held}
