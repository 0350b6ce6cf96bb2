"""A dashboard beside a host: one command, another process; neither's death takes the other's work with it."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

from supervisor import Client
from supervisor.core.errors import ConfigInvalid
from supervisor.dashboard import PORT, serve
from tests.acceptance.visits import Visitor, answers
from tests.apps import dashed
from tests.harness import ROOT, Database, Host, HostFactory, eventually


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
    host = hosts.start("tests.apps.dashed", procs=1, args=("--dashboard", "0", "--log-dir", str(tmp_path / "logs")), env=environ).wait_up(1)
    files = eventually(lambda: list(runtime.rglob("dashboard-*.url")), 60, "the dashboard's URL")
    port = int(files[0].stem.rpartition("-")[2])
    eventually(lambda: answers(port), 30)
    assert "#" not in host.log() and str(files[0]) in host.log()
    pid = beside(host)
    assert pid is not None and database.dsn.encode() not in (words := Path(f"/proc/{pid}/cmdline").read_bytes())
    assert f"--log-dir\0{tmp_path / 'logs'}\0".encode() in words, "it shows the lines of that host's runs"

    os.kill(pid, signal.SIGKILL)
    eventually(lambda: gone(pid), 20)
    with Client(database.dsn) as client:
        assert client.start(dashed.dashed_counts, 3).result(timeout=30) == 3
    assert host.stop() == 0

    host = hosts.start("tests.apps.dashed", procs=1, args=("--dashboard", "0"), env=environ).wait_up(1)
    second = eventually(lambda: beside(host), 30)
    host.kill_all()
    eventually(lambda: gone(second), 30, "the end of the dashboard")


def test_a_port_that_was_said_is_that_one_or_an_error(database: Database, hosts: HostFactory, tmp_path: Path) -> None:
    """Whoever has forwarded a port would look at nothing; where none was said, another one will do."""
    with serve.bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        for words in (["run", "--dashboard", port], ["dev", "--port", port]):
            refused = subprocess.run([sys.executable, "-m", "supervisor", *words, "--app", "tests.apps.dashed", "--dsn", database.dsn], cwd=ROOT, capture_output=True, text=True, timeout=120)
            assert refused.returncode == 78 and f"the dashboard can't listen on 127.0.0.1 port {port}" in refused.stderr, refused.stderr
    with contextlib.ExitStack() as ends:
        with contextlib.suppress(ConfigInvalid):  # somebody else may have it
            ends.enter_context(serve.bound("127.0.0.1", PORT)).listen()
        host = hosts.start("tests.apps.dashed", procs=1, args=("--dashboard",), env={"XDG_RUNTIME_DIR": str(tmp_path)}).wait_up(1)
        other = eventually(lambda: re.search(r"on http://127\.0\.0\.1:(\d+)/", host.log()), 60)
        assert int(other[1]) != PORT and host.stop() == 0


def test_where_no_file_can_be_made_it_says_so_and_what_helps(database: Database, tmp_path: Path) -> None:
    """A container's account often has no home; the message stands in the log of a host, so it says of what it is."""
    (tmp_path / "file").write_text("")
    words = [sys.executable, "-m", "supervisor", "dashboard", "--port", "0", "--dsn", database.dsn, "--token-file", str(tmp_path / "file" / "url")]
    refused = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 78
    assert f"error: the dashboard can't keep its URL in {tmp_path}/file/url: " in refused.stderr and "--token-file FILE" in refused.stderr and "XDG_RUNTIME_DIR" in refused.stderr


def test_the_url_is_said_at_a_terminal(database: Database, tmp_path: Path) -> None:
    """There it can be opened at once, token and all; one line, of its own."""
    here, there = pty.openpty()
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(tmp_path), "PGSUPERVISOR_DATABASE_URL": database.dsn}
    words = [sys.executable, "-m", "supervisor", "run", "--app", "tests.apps.dashed", "--procs", "1", "--dashboard", "0"]
    process = subprocess.Popen(words, cwd=tmp_path, env=environ, stdin=there, stdout=there, stderr=there, start_new_session=True)
    os.close(there)
    said = b""
    try:

        def told() -> re.Match[bytes] | None:
            nonlocal said
            if select.select([here], [], [], 0.1)[0]:
                said += os.read(here, 65536)
            return re.search(rb"dashboard: (http://127\.0\.0\.1:(\d+)/login#(\S{40,}))\r\n", said)

        found = eventually(told, 60, "the URL")
        visitor = Visitor(int(found[2]))
        eventually(lambda: answers(visitor.port), 30)
        assert visitor.post("/login", {"token": found[3].decode()}).status == 303
    finally:
        process.terminate()
        with contextlib.suppress(OSError):
            while os.read(here, 65536):
                pass
        os.close(here)
        process.wait(60)


def test_a_host_that_stops_stops_its_dashboard(database: Database, hosts: HostFactory, tmp_path: Path) -> None:
    """And the URL's file goes."""
    host = hosts.start("tests.apps.dashed", procs=1, args=("--dashboard", "0"), env={"XDG_RUNTIME_DIR": str(tmp_path)}).wait_up(1)
    pid = eventually(lambda: beside(host), 30)
    assert eventually(lambda: list(tmp_path.rglob("dashboard-*.url")), 60)
    assert host.stop() == 0 and gone(pid) and not list(tmp_path.rglob("dashboard-*.url"))
