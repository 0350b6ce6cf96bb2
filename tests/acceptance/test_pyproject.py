"""`metrics` and `traces` of [tool.pgsupervisor], for each command that has workers: what stands there is done, and what is wrong there is named."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra [otel] is not installed")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra [otel] is not installed")

from supervisor import Client
from tests.acceptance.scraping import Scraped
from tests.acceptance.test_dev import APP
from tests.collector import collector
from tests.harness import ROOT, Database, eventually


@contextmanager
def running(folder: Path, database: Database, *words: str, env: dict[str, str] | None = None) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A command in *folder*, and what it says; it is ended with all that it began."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PGSUPERVISOR_")}
    environ |= {"PYTHONPATH": str(ROOT), "PGSUPERVISOR_DATABASE_URL": database.dsn, **(env or {})}
    log = folder / "said.log"
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "supervisor", *words], cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process, log
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def scraped(log: Path) -> Scraped | None:
    found = re.search(r"metrics on (http://\S+)", log.read_text())
    if found is None:
        return None
    with urllib.request.urlopen(found[1], timeout=20) as answer:
        return Scraped(answer.read().decode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "devshop.py").write_text(APP)
    (tmp_path / "devshop_words.py").write_text('WORD = "here"\n')
    (tmp_path / "pyproject.toml").write_text('[tool.pgsupervisor]\napp = "devshop"\nmetrics = "127.0.0.1:0"\ntraces = true\n')
    return tmp_path


@pytest.mark.parametrize("words", [("run", "--procs", "1"), ("dev", "--procs", "1", "--no-dashboard")], ids=lambda words: words[0])
def test_run_and_dev_serve_metrics_and_send_spans_as_the_file_says(folder: Path, database: Database, words: tuple[str, ...]) -> None:
    with collector() as got, running(folder, database, *words, env=got.env) as (_, log), Client(database.dsn) as client:
        eventually(lambda: "is up" in log.read_text(), 60, "a worker")
        run = client.start("devshop")
        assert run.result(timeout=60) == "here"
        eventually(lambda: (found := scraped(log)) and found.get("runs_finished_total", workflow="devshop", outcome="completed") == 1, 60, "its count")
        eventually(lambda: len(got.of(run)) == 2, 60, "the spans of the run and its step")


def test_demo_serves_metrics_as_the_file_says(folder: Path, database: Database) -> None:
    files = folder / "files"
    files.mkdir()
    for n in range(300):
        (files / f"f{n}.py").write_text(f"a = {n}\n")
    with running(folder, database, "demo", "--path", str(files), "--procs", "2", "--json") as (process, log):
        eventually(lambda: (found := scraped(log)) and found.get("alive") is not None, 60, "a scrape while it works")
        assert process.wait(120) == 0, log.read_text()


@pytest.mark.parametrize("words", [("run",), ("dev", "--no-dashboard"), ("demo", "--limit", "1")], ids=lambda words: words[0])
def test_a_wrong_address_is_told_with_the_file_that_has_it(folder: Path, database: Database, words: tuple[str, ...]) -> None:
    (folder / "pyproject.toml").write_text('[tool.pgsupervisor]\napp = "devshop"\nmetrics = "nowhere"\n')
    with running(folder, database, *words) as (process, log):
        assert process.wait(60) == 78 and "pyproject.toml: 'nowhere' is no address" in log.read_text(), log.read_text()
