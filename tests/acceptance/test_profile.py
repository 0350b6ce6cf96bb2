"""`python -m supervisor profile`: where a running worker's time goes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from supervisor import Client
from tests.apps import parked
from tests.harness import ROOT, Database, Host, HostFactory, eventually

APP = "tests.apps.parked"
AS_NOBODY = """
import os, pwd, sys
import supervisor.cli.main as program, supervisor.cli.profile, supervisor.cli.workers, supervisor.host.boxes, supervisor.profile.sampler, supervisor.profile.samples
import tempfile, datetime, encodings.idna, concurrent.futures.thread
os.setgroups([]); os.setgid(65534); os.setuid(65534)
program.main(sys.argv[1:])
"""


def hot_line() -> int:
    return next(number for number, line in enumerate(Path(parked.__file__).read_text().splitlines(), 1) if line.endswith("# the hot line"))


def profile(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "supervisor", "profile", *words], capture_output=True, text=True, timeout=180, cwd=folder, env=environ)


@pytest.fixture(scope="module", autouse=True)
def _sampling_is_possible(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip, with what the sampler says, where no process may be looked into."""
    program = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("py-spy is not installed")
    with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        made = subprocess.run([program, "dump", "--pid", str(other.pid)], capture_output=True, text=True)
        other.kill()
    if made.returncode != 0:
        pytest.skip(f"ptrace is refused here: {made.stderr.strip()[-200:]}")


@contextmanager
def busy(hosts: HostFactory, database: Database, n: int, **options: Any) -> Iterator[Host]:
    """A host whose workers have more to do than the test will wait for."""
    host = hosts.start(APP, **options)
    try:
        host.wait_up(options.get("procs", 1))
        with Client(database.dsn) as client:
            for _ in client.start_many(parked.busy, [{"rounds": 100_000, "n": n}] * 200):
                pass
        eventually(lambda: database.one("select count(*) from supervisor.step") > 1000, 60)
        yield host
    finally:
        host.kill_all()


def test_the_line_that_computes_is_named_and_three_files_are_written(hosts: HostFactory, database: Database, tmp_path: Path) -> None:
    """A profile is to answer which line of the app costs what, without any tool beside this one."""
    with busy(hosts, database, 2000) as host:
        pid = host.worker_pids()[0]
        made = profile(tmp_path, "--worker", str(pid), "--seconds", "3", "--output", "out", "--json")
        assert made.returncode == 0, made.stderr
        found = json.loads(made.stdout)
        groups = {group["group"]: group for group in found["groups"]}
        assert groups["user code"]["share"] > 0.5
        hottest = groups["user code"]["lines"]
        assert (hottest[0]["file"], hottest[0]["function"]) == (parked.__file__, "compute")
        assert hot_line() in [line["line"] for line in hottest[:2]]
        assert f"worker 0 (pid {pid})" in made.stderr
        # the files hold the same samples
        raw = (tmp_path / found["files"]["raw"]).read_text()
        assert f"compute (apps/parked.py:{hot_line()})" in raw
        assert sum(int(line.rpartition(" ")[2]) for line in raw.splitlines()) == found["samples"] + found["samples_waiting"]
        speedscope = json.loads((tmp_path / found["files"]["speedscope"]).read_text())
        assert "compute" in {frame["name"] for frame in speedscope["shared"]["frames"]}
        assert "compute" in " ".join(xml.parse(tmp_path / found["files"]["flame_graph"]).getroot().itertext())


def test_the_compiled_loop_is_seen_by_its_source_lines(hosts: HostFactory, database: Database, tmp_path: Path) -> None:
    """With --native C frames have the lines of loop.py and wire.pyx, and encoding and libpq have their shares."""
    if not list((ROOT / "_fastpath").glob("loop.*.so")):
        pytest.skip("the extension was not built: no compiler or Python.h on this machine")
    with busy(hosts, database, 1, build="compiled"):
        made = profile(tmp_path, "--worker", str(hosts.started[-1].worker_pids()[0]), "--seconds", "4", "--native", "--json")
        assert made.returncode == 0, made.stderr
        found = json.loads(made.stdout)
        groups = {group["group"]: group for group in found["groups"]}
        source = (ROOT / "_fastpath" / "loop.py").read_text().splitlines()
        seen = [line for line in groups["loop"]["lines"] if line["file"].endswith("_fastpath/loop.py")]
        assert seen and all(0 < line["line"] <= len(source) for line in seen), groups["loop"]
        for name in ("user code", "loop", "libpq/psycopg"):
            assert groups[name]["share"] > 0, groups
        raw = (tmp_path / found["files"]["raw"]).read_text()
        assert "Loop__inline (_fastpath/loop.py:" in raw and "PQ" in raw


def test_all_takes_every_worker_and_the_parent(hosts: HostFactory, database: Database, tmp_path: Path) -> None:
    with busy(hosts, database, 500, procs=2) as host:
        told = profile(tmp_path, "--seconds", "1")
        assert told.returncode == 2 and all(str(pid) in told.stderr for pid in host.worker_pids()), told.stderr  # it asks which
        made = profile(tmp_path, "--all", "--worker", str(host.worker_pids()[0]), "--seconds", "2", "--output", "all")
        assert made.returncode == 0, made.stderr
        raw = (tmp_path / "all" / "profile.raw").read_text()
        for pid in host.worker_pids():
            assert f"(pid {pid})" in raw
        assert f"the parent (pid {host.pid})" in made.stderr
        for words in ("user code", "loop", "libpq/psycopg", "all/profile.svg", "of the time"):
            assert words in made.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_account_is_told_what_to_type(hosts: HostFactory) -> None:
    """The interpreter may be unreadable for others: what is needed is imported before the account changes."""
    if closed := [folder for folder in Path(sys.executable).parents if not folder.stat().st_mode & 0o001]:
        pytest.skip(f"others may not enter {closed[-1]}, where py-spy lies")
    with hosts(APP) as host:
        words = ["profile", "--worker", str(host.worker_pids()[0]), "--seconds", "1", "--output", "/tmp/never-made"]
        made = subprocess.run([sys.executable, "-c", AS_NOBODY, *words], capture_output=True, text=True, timeout=60, cwd="/tmp", env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert made.returncode == 77, made.stdout + made.stderr
        assert "belongs to root" in made.stderr and 'sudo env "PATH=$PATH"' in made.stderr
        assert not Path("/tmp/never-made").exists()


def test_without_the_extra_the_error_names_it(tmp_path: Path) -> None:
    """py-spy is no dependency of who never profiles."""
    script = "import sys; sys.executable = '/nonexistent/python'; import os; os.environ['PATH'] = ''; from supervisor.cli.main import main; main(['profile'])"
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path)
    assert made.returncode == 78 and "pip install 'pgsupervisor[profile]'" in made.stderr
