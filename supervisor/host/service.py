"""A parent with the engine's workers: what `run`, `demo` and `bench` start."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from supervisor.core import registry
from supervisor.core.errors import DatabaseUnavailable
from supervisor.db.host_calls import HostCalls
from supervisor.engine.main import Birth, work
from supervisor.engine.worker import WorkerOptions
from supervisor.host.parent import Parent, ParentOptions

log = logging.getLogger("pgsupervisor.parent")


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
    app: str = ""  # its name, for people


class Service:
    """A parent and its workers.

    load   imports the app, in each worker; without it the app was imported before, and a reload can't change it
    """

    def __init__(self, options: ServiceOptions, died: Callable[..., None] | None = None, load: Callable[[], Any] | None = None) -> None:
        self.options = options
        self._load = load
        self.parent = Parent(
            ParentOptions(options.dsn, options.schema, options.procs, options.threads, options.drain_timeout_s, app=options.app),
            self._work,
            died,
            load=self._load_app if load is not None else None,
        )
        self._calls = HostCalls(options.dsn, options.schema)
        self._failed_before = 0

    def _load_app(self) -> tuple[list[str], bool]:
        """In a worker: import the app, resolve its annotations, say what it has."""
        assert self._load is not None
        self._load()
        registry.settle()
        return sorted(registry.workflows()), any(step.info.transactional for step in registry.steps())

    def _work(self, birth: Birth) -> int:
        options = self.options
        worker = WorkerOptions(options.dsn, options.schema, options.queues, options.threads, options.in_flight, options.drain_timeout_s)
        return work(worker, birth)

    def run(self) -> int:
        """Work until stopped, or with until_empty until no run is left; returns the exit code."""
        if not self.options.until_empty:
            return self.parent.run()
        self._failed_before = self._calls.failed_runs()
        code = self.parent.run(self._something_left)
        return code or int(self._calls.failed_runs() > self._failed_before)

    def _something_left(self) -> bool:
        try:
            return self._calls.anything_left()
        except DatabaseUnavailable as error:
            log.debug("is anything left? %s", error)
            return True
