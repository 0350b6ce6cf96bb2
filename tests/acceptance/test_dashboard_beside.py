"""A dashboard beside a host: one command, another process; neither's death takes the other's work with it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from supervisor import Client
from tests.acceptance.visits import answers
from tests.apps import dashed
from tests.harness import Database, Host, HostFactory, eventually


def beside(host: Host) -> int | None:
    """The process of the dashboard that *host* has started."""
    for pid in host.worker_pids():
        try:
            if b"dashboard" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        except OSError:
            continue
    return None


def gone(pid: int) -> bool:
    """Whether it executes no more; what nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except OSError:
        return True


def test_a_dashboard_beside_a_host_may_die_and_dies_with_it(database: Database, hosts: HostFactory, tmp_path: Path) -> None:
    """kill -9 of either: runs go on without pages; and no page outlives its host, for it would say that it is that host's."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    environ = {"XDG_RUNTIME_DIR": str(runtime)}
    host = hosts.start("tests.apps.dashed", procs=1, args=("--dashboard", "0"), env=environ).wait_up(1)
    files = eventually(lambda: list(runtime.rglob("dashboard-*.url")), 60, "the dashboard's URL")
    port = int(files[0].stem.rpartition("-")[2])
    eventually(lambda: answers(port), 30)
    assert "#" not in host.log() and str(files[0]) in host.log()
    pid = beside(host)
    assert pid is not None and database.dsn.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()

    os.kill(pid, signal.SIGKILL)
    eventually(lambda: gone(pid), 20)
    with Client(database.dsn) as client:
        assert client.start(dashed.dashed_counts, 3).result(timeout=30) == 3
    assert host.stop() == 0

    host = hosts.start("tests.apps.dashed", procs=1, args=("--dashboard", "0"), env=environ).wait_up(1)
    second = eventually(lambda: beside(host), 30)
    host.kill_all()
    eventually(lambda: gone(second), 30, "the end of the dashboard")


def test_a_host_that_stops_stops_its_dashboard(database: Database, hosts: HostFactory, tmp_path: Path) -> None:
    """And the URL's file goes."""
    host = hosts.start("tests.apps.dashed", procs=1, args=("--dashboard", "0"), env={"XDG_RUNTIME_DIR": str(tmp_path)}).wait_up(1)
    pid = eventually(lambda: beside(host), 30)
    assert eventually(lambda: list(tmp_path.rglob("dashboard-*.url")), 60)
    assert host.stop() == 0 and gone(pid) and not list(tmp_path.rglob("dashboard-*.url"))
