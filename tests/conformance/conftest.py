"""One host per file and build, shared by its tests: starting one costs more than most promises take to prove."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from supervisor import Client, Run
from tests.harness import BUILDS, Database, Effects, Host, HostFactory, Server, eventually


@pytest.fixture(scope="session", params=BUILDS)
def build(request: pytest.FixtureRequest) -> str:
    """Both builds of the loop, the whole suite on one and then on the other."""
    name: str = request.param
    if name == "compiled":
        from supervisor import _fastpath

        if not list(Path(_fastpath.__file__).parent.glob("loop.*.so")):
            pytest.skip("the extension was not built: no compiler or Python.h on this machine")
    return name


@dataclass
class Live:
    """A running host with a database, effects and a client of its own."""

    database: Database
    effects: Effects
    host: Host
    client: Client
    _kills: int = 0

    def start(self, workflow: Any, *args: Any, **kwargs: Any) -> Run[Any]:
        return self.client.start(workflow, *args, **kwargs)

    def run(self, workflow: Any, *args: Any, **kwargs: Any) -> Any:
        """Start it and wait for its result."""
        return self.client.start(workflow, *args, **kwargs).result(timeout=20)

    def error(self, workflow: Any, *args: Any, **kwargs: Any) -> BaseException:
        """Start it, wait for its failure, and give what failed it."""
        from supervisor import RunFailed

        with pytest.raises(RunFailed) as caught:
            self.run(workflow, *args, **kwargs)
        assert caught.value.__cause__ is not None
        return caught.value.__cause__

    def kill(self) -> None:
        """kill -9 of every worker; their parent forks others."""
        self._kills += 1
        if self._kills % 4 == 0:  # a host whose workers die within a second of their birth five times in a row gives up
            eventually(lambda: all(_age_s(pid) > 1.1 for pid in self.host.worker_pids()), 11)
        eventually(lambda: any([_killed(pid) for pid in self.host.worker_pids()]), 20, f"workers to kill\n{self.about()}")
        killed_up = self.host.log().count(" is up as ")
        eventually(lambda: self.host.log().count(" is up as ") > killed_up, 30, "successors of the killed workers")

    def until(self, fact: Callable[[], Any], within_s: float = 20.0, what: str = "") -> Any:
        try:
            return eventually(fact, within_s, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.about()}") from None

    def about(self) -> str:
        """What a person would ask next: how the runs stand, and the end of the host's log."""
        counts = "select status, wait, step, seq, count(*) from supervisor.runs group by 1, 2, 3, 4 order by 5 desc limit 20"
        waits = self.database.sql(counts)
        return "\n".join([*map(str, waits), self.host.log()[-3000:]])

    def rows(self, run: Any) -> int:
        """How many results of *run* are durable."""
        count: int = self.database.one("select count(*) from supervisor.step where run_id = %s", getattr(run, "id", run))
        return count

    def parked(self, run: Any) -> tuple[str, dict[str, Any]] | None:
        """Code and detail of why *run* is parked, or None."""
        import json

        found = self.database.sql(
            "select k.code, t.wait_detail from supervisor.task t join supervisor.wait_kind k on k.id = t.wait_kind "
            "where t.run_id = %s and t.owner is null and t.wait_kind between 19 and 23",
            run.id,
        )
        return (found[0][0], json.loads(found[0][1])) if found else None


def _age_s(pid: int) -> float:
    """Since the birth of *pid*, in seconds; 0 for one that is gone, whose successor is young."""
    try:
        return time.time() - Path(f"/proc/{pid}").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _killed(pid: int) -> bool:
    """Kill it; False where it was gone. (One that is dead and not reaped yet counts: its successor comes after this.)"""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def living(server: Server, folder: Path, app: str, setup: Sequence[str] = (), **options: Any) -> Iterator[Live]:
    """A host for *app*, with more of HostFactory's *options*, on a database of its own; *setup* is SQL that it runs first."""
    database, effects = server.database(), Effects(folder / "effects")
    hosts = HostFactory(database, effects, folder)
    try:
        for statement in setup:
            database.sql(statement)
        with Client(database.dsn) as client, hosts(app, **options) as host:
            yield Live(database, effects, host, client)
    finally:
        hosts.stop_all()
        database.drop()


@pytest.fixture(scope="module")
def live(build: str, server: Server, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A host for the file's APP (with its PROCS, default 1), on a database of its own; SETUP is SQL that it runs first."""
    module = request.module
    folder = tmp_path_factory.mktemp(module.__name__.rsplit(".", 1)[-1])
    with living(server, folder, module.APP, getattr(module, "SETUP", ()), procs=getattr(module, "PROCS", 1), build=build) as made:
        yield made
