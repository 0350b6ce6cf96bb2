"""What systemd is told, read from the socket that it would have."""

from __future__ import annotations

import configparser
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import ROOT, Database, Effects, Host, HostFactory, eventually

APP = """
import os
from supervisor import step, workflow

@workflow
async def ask() -> str:
    return await seen.aio()

@step
def seen() -> str:
    return os.environ.get("NOTIFY_SOCKET", "nothing")
"""


class Listener:
    """systemd's end. `heard` is every line with its moment."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.heard: list[tuple[float, str]] = []

    def lines(self) -> list[str]:
        while True:
            try:
                told = self._socket.recv(4096).decode()
            except BlockingIOError:
                return [line for _, line in self.heard]
            self.heard.extend((time.monotonic(), line) for line in told.splitlines())

    def wait(self, line: str, times: int = 1, within_s: float = 60.0) -> None:
        eventually(lambda: sum(each.startswith(line) for each in self.lines()) >= times, within_s, f"{line}: {self.heard}")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    made = Listener(str(tmp_path / "notify") if request.param == "path" else f"@pgs-test-{os.getpid()}-{time.monotonic_ns()}")
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def app(tmp_path: Path) -> str:
    (tmp_path / "shop.py").write_text(APP)
    return "shop"


def test_it_says_when_it_is_ready_reloads_and_stops(systemd: Listener, app: str, database: Database, hosts: HostFactory) -> None:
    """READY when all workers are up and not before; RELOADING and READY around a reload, a failed one too; STOPPING."""
    host = hosts.start(app, procs=2, env={"NOTIFY_SOCKET": systemd.address})
    systemd.wait("READY=1")
    assert host.log().count(" is up as ") == 2
    systemd.wait("STATUS=2 of 2 workers of shop up, generation 1")
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    os.kill(host.pid, signal.SIGHUP)
    systemd.wait("READY=1", 2)
    at = [line for line in systemd.lines() if line.startswith("MONOTONIC_USEC=")]
    assert len(at) == 1 and before <= int(at[0].partition("=")[2]) <= before + 60_000_000
    assert systemd.lines().index("RELOADING=1") < systemd.lines().index("STATUS=2 of 2 workers of shop up, generation 2")
    (host.log_path.parent / "shop.py").write_text("x = (\n")
    os.kill(host.pid, signal.SIGHUP)
    systemd.wait("READY=1", 3)
    assert "generation 2 stays" in host.log()
    assert "STOPPING=1" not in systemd.lines() and "WATCHDOG=1" not in systemd.lines()
    assert host.stop() == 0
    assert "STOPPING=1" in systemd.lines() and any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in systemd.lines())


def test_a_sign_of_life_comes_at_half_of_the_watchdogs_time(systemd: Listener, app: str, hosts: HostFactory) -> None:
    """From the loop itself: a parent that stands still gives none."""
    host = hosts.start(app, procs=1, env={"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "400000"})
    systemd.wait("READY=1")
    systemd.wait("WATCHDOG=1", 12)
    moments = [at for at, line in systemd.heard if line == "WATCHDOG=1"]
    gaps = sorted(later - earlier for earlier, later in zip(moments, moments[1:], strict=False))
    assert 0.15 <= gaps[len(gaps) // 2] <= 0.3, gaps
    os.kill(host.pid, signal.SIGSTOP)
    eventually(lambda: Path(f"/proc/{host.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", 5)
    systemd.lines()
    n = len(systemd.heard)
    assert socket_is_silent(systemd, 1.0) and len(systemd.heard) == n
    os.kill(host.pid, signal.SIGCONT)
    systemd.wait("WATCHDOG=1", 13)
    assert host.stop() == 0


def socket_is_silent(systemd: Listener, for_s: float) -> bool:
    """Whether nothing is heard for that long: five signs of life would have come."""
    return not select.select([systemd._socket], [], [], for_s)[0]


def test_a_watchdog_that_is_meant_for_another_process_is_left_alone(systemd: Listener, app: str, database: Database, hosts: HostFactory) -> None:
    """And what a step starts does not inherit the socket."""
    from supervisor import Client

    host = hosts.start(app, env={"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "10000", "WATCHDOG_PID": "1"})
    systemd.wait("READY=1")
    with Client(database.dsn) as client:
        assert client.start("ask").result(timeout=20) == "nothing"
    assert host.stop() == 0
    assert "WATCHDOG=1" not in systemd.lines()


def test_the_unit_file_of_the_docs_works(systemd: Listener, app: str, database: Database, effects: Effects, tmp_path: Path) -> None:
    """Its command, environment and times, with this Python and this database."""
    text = re.search(r"```ini\n(.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)
    assert text is not None
    text_here = text[1].replace("/srv/shop/.venv/bin/python", sys.executable).replace("/srv/shop", str(tmp_path)).replace("User=shop", "User=root")
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text_here)
    service = unit["Service"]
    variable, _, _dsn = service["Environment"].partition("=")
    environ = {**os.environ, "PYTHONPATH": str(ROOT), variable: database.dsn, "NOTIFY_SOCKET": systemd.address}
    environ["WATCHDOG_USEC"] = str(int(service["WatchdogSec"]) * 1_000_000)
    log_path = tmp_path / "unit.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(shlex.split(service["ExecStart"]), cwd=service["WorkingDirectory"], env=environ, stdout=log, stderr=log)
    host = Host(process, log_path, database)
    try:
        systemd.wait("READY=1")
        subprocess.run(shlex.split(service["ExecReload"].replace("$MAINPID", str(process.pid))), check=True)
        systemd.wait("READY=1", 2)
        assert host.stop(float(service["TimeoutStopSec"])) == 0
    finally:
        if process.poll() is None:
            host.kill_all()
    if shutil.which("systemd-analyze"):
        path = tmp_path / "shop.service"
        path.write_text(text_here)
        checked = subprocess.run(["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True, timeout=60)
        assert "shop.service" not in checked.stderr, checked.stderr
