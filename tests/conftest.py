"""What every test may use: a real PostgreSQL, databases of its own, real hosts that can be killed.

No test sleeps to wait for something: it states a fact and a deadline (`eventually`). What the machine lacks is skipped
with its reason; with PGSUPERVISOR_TEST_ALL set, a skip is a failure.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import BUILDS, Database, Effects, HostFactory, Server, server_folder


def pytest_configure() -> None:
    """What was begun in the background of a shell ignores ^C, and so would all that the tests start and interrupt.

    And pytest keeps the tests that it has rewritten, whatever the environment says: each process of it reads all of them, which takes
    8 s less of a processor so.
    """
    sys.dont_write_bytecode = False
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if os.environ.get("PGSUPERVISOR_TEST_ALL") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and ALL=1 allows no skip: {report.longrepr}"


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One private PostgreSQL for the session; the faults suite starts its own."""
    made = Server.start(server_folder("pgs-test-"))
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def stopped_server() -> Iterator[Path]:
    """The folder of a PostgreSQL that was started and stopped: what `own_server` is copied from."""
    made = Server.start(server_folder("pgs-stopped-"))
    made.embedded.stop()
    yield made.folder
    shutil.rmtree(made.folder, ignore_errors=True)


@pytest.fixture
def own_server(stopped_server: Path) -> Iterator[Server]:
    """A PostgreSQL of this test's own, to be stopped, killed or restarted; fsync on."""
    made = Server.start(server_folder("pgs-own-"), {"fsync": "on"}, like=stopped_server)
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    """A database of this test's own with the schema in it."""
    made = server.database()
    try:
        yield made
    finally:
        made.drop()


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest) -> str:
    """Both builds of the loop, one after the other."""
    name: str = request.param
    if name == "compiled":
        from supervisor import _fastpath

        if not list(Path(_fastpath.__file__).parent.glob("loop.*.so")):
            pytest.skip("the extension was not built: no compiler or Python.h on this machine")
    return name


@pytest.fixture
def effects(tmp_path: Path) -> Effects:
    """Where steps of the test's app note that they ran: one line each, written at once, readable whoever dies."""
    return Effects(tmp_path / "effects")


@pytest.fixture
def hosts(database: Database, effects: Effects, tmp_path: Path) -> Iterator[HostFactory]:
    """Starts `python -m supervisor run` on this test's database: `with hosts("tests.apps.basic", procs=2) as host:`."""
    factory = HostFactory(database, effects, tmp_path)
    try:
        yield factory
    finally:
        factory.stop_all()
