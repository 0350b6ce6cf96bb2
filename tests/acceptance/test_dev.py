"""`dev` from outside: what is saved is served, what is broken changes nothing, and one ^C or a kill leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from supervisor import Client
from supervisor.host import log_lines
from tests.acceptance.test_dashboard_beside import gone
from tests.collector import collector
from tests.harness import ROOT, Database, eventually, server_folder

SERVED_S = 20.0  # ten times what a save takes until its code serves: a second or two
ENDED_S = 30.0
APP = '''\
from devshop_words import WORD
from supervisor import step, workflow

@step
async def devshop_say() -> str:
    return WORD

@workflow
async def devshop() -> str:
    return await devshop_say()
'''
SLOW = '''\
import asyncio, pathlib
from supervisor import step, workflow

@step
async def devslow_step() -> str:
    pathlib.Path("begun").touch()
    await asyncio.sleep(600)
    return "old"

@workflow
async def devslow() -> str:
    return await devslow_step()
'''


@dataclass
class Dev:
    """A running `dev` and what it says."""

    process: subprocess.Popen[bytes]
    log_path: Path

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def says(self, *words: str, times: int = 1, within_s: float = 60.0) -> None:
        def said() -> bool:
            assert self.process.poll() is None, self.log()
            return all(self.log().count(word) >= times for word in words)

        eventually(said, within_s, f"{words} in:\n{self.log() if self.process.poll() is None else ''}")

    def family(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]


@dataclass
class Desk:
    """A folder with an app, where `dev` is started."""

    folder: Path
    environ: dict[str, str]
    started: list[Dev]

    def save(self, name: str, text: str) -> None:
        """As an editor does: aside, then in the file's place."""
        (self.folder / f".{name}.new").write_text(text)
        (self.folder / f".{name}.new").replace(self.folder / name)

    def dev(self, *words: str, up: int = 2, program: tuple[str, ...] = ("-m", "supervisor")) -> Dev:
        log = self.folder / f"dev-{len(self.started)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen([sys.executable, *program, "dev", *words], cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        made = Dev(process, log)
        self.started.append(made)
        if up:
            made.says(" is up as ", times=up)
        return made


@pytest.fixture
def desk() -> Iterator[Desk]:
    folder = server_folder("pgs-dev-")
    folder.chmod(0o711)
    (folder / "runtime").mkdir(mode=0o700)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PG") and name != "DATABASE_URL"}
    made = Desk(folder, {**environ, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(folder / "runtime")}, [])
    made.save("devshop.py", APP)
    made.save("devshop_words.py", 'WORD = "old"\n')
    try:
        yield made
    finally:
        for each in made.started:
            if each.process.poll() is None:
                for pid in each.family():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                each.process.wait()
        for data in folder.rglob("postmaster.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(data.read_text().split()[0]), signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def mine(desk: Desk, database: Database) -> Desk:
    """The desk with a database of the test's own."""
    desk.environ["PGSUPERVISOR_DATABASE_URL"] = database.dsn
    return desk


def word(client: Client) -> str:
    said: str = client.start("devshop").result(timeout=60)
    return said


def test_what_is_saved_is_served_and_what_is_broken_changes_nothing(mine: Desk, database: Database) -> None:
    """The loop of a developer: save, look, save again. A mistake is told with its place, and costs nothing that runs."""
    dev = mine.dev("--app", "devshop", "--no-dashboard")
    with Client(database.dsn) as client:
        assert word(client) == "old"
        # a module that the app imports is the app's
        mine.save("devshop_words.py", 'WORD = "new"\n')
        eventually(lambda: word(client) == "new", SERVED_S, "the saved code serves")
        dev.says("saved: devshop_words.py", "workers are of generation 2", within_s=SERVED_S)
        # a mistake: its file and line are said, and the code before it goes on
        mine.save("devshop_words.py", 'WORD = "third"\nnumber = (\n')
        dev.says("generation 2 stays", f'File "{mine.folder}/devshop_words.py", line 2', "SyntaxError", within_s=SERVED_S)
        assert word(client) == "new"
        mine.save("devshop_words.py", 'WORD = "third"\n')
        eventually(lambda: word(client) == "third", SERVED_S, "the mended code serves")
        dev.says("workers are of generation 3", within_s=SERVED_S)  # what breaks before that leaves some of the one before
        # a module that is not there yet: it is enough to save it
        mine.save("devshop.py", APP.replace("devshop_words", "devshop_more"))
        dev.says("No module named 'devshop_more'", within_s=SERVED_S)
        assert word(client) == "third"
        mine.save("devshop_more.py", 'WORD = "fourth"\n')
        eventually(lambda: word(client) == "fourth", SERVED_S, "the new module serves")
        dev.says("workers are of generation 4", within_s=SERVED_S)
        # a decorator's complaint is a mistake like any other
        mine.save("devshop.py", APP + "\n@workflow\nasync def devshop_bad(*numbers: int) -> None: ...\n")
        dev.says("*numbers", within_s=SERVED_S)
        assert word(client) == "fourth"
    assert dev.log().count("SyntaxError") == 1, "said once, not by each worker"


def test_a_step_that_executes_gives_way_to_what_is_saved(mine: Desk, database: Database) -> None:
    """Nobody waits ten minutes for a step of the code before: it gets two seconds and is executed again, by the new code."""
    mine.save("devslow.py", SLOW)
    mine.dev("--app", "devslow", "--no-dashboard", "--procs", "1", up=1)
    with Client(database.dsn) as client:
        run = client.start("devslow")
        eventually((mine.folder / "begun").exists, 60)
        mine.save("devslow.py", SLOW.replace("600", "0").replace('"old"', '"new"'))
        assert run.result(timeout=60) == "new"


def test_an_app_that_is_broken_from_the_start_is_waited_for(mine: Desk, database: Database) -> None:
    """Whoever starts `dev` in the middle of a thought need not start it again; without --reload it ends, for nothing would change."""
    mine.save("devshop_words.py", "WORD = nothing\n")
    dev = mine.dev("--app", "devshop", "--no-dashboard", up=0)
    dev.says("waits until a file is saved", f'File "{mine.folder}/devshop_words.py", line 1', "NameError")
    eventually(lambda: len(dev.family()) == 1, SERVED_S, "both workers have tried")
    mine.save("devshop_words.py", 'WORD = "mended"\n')
    with Client(database.dsn) as client:
        dev.says(" is up as ", times=2, within_s=SERVED_S)
        assert word(client) == "mended"
    assert dev.log().count("NameError") == 1
    dev.process.send_signal(signal.SIGINT)
    assert dev.process.wait(ENDED_S) == 0
    mine.save("devshop_words.py", "WORD = nothing\n")
    again = mine.dev("--app", "devshop", "--no-dashboard", "--no-reload", up=0)
    assert again.process.wait(60) == 70 and "NameError" in again.log()
    wrong = mine.dev("--app", "devshpo", "--no-dashboard", up=0)
    assert wrong.process.wait(60) == 78 and "there is no module 'devshpo'" in wrong.log()


def test_without_reload_a_save_changes_nothing(mine: Desk, database: Database) -> None:
    """For what is debugged across edits. HUP still loads."""
    dev = mine.dev("--app", "devshop", "--no-dashboard", "--no-reload")
    assert "what is saved is loaded" not in dev.log()
    mine.save("devshop_words.py", 'WORD = "new"\n')
    with Client(database.dsn) as client:
        assert word(client) == "old"
        dev.process.send_signal(signal.SIGHUP)
        eventually(lambda: word(client) == "new", SERVED_S)


@pytest.mark.parametrize("said", ["flags", "settings"])
def test_metrics_are_served_and_spans_sent_as_by_run(mine: Desk, database: Database, said: str) -> None:
    """Who builds a dashboard of numbers, or looks for a span, does it while the app is written."""
    with collector() as collected:
        mine.environ |= collected.env
        words = ["--metrics", "127.0.0.1:0", "--traces"]
        if said == "settings":
            words = []
            mine.environ |= {"PGSUPERVISOR_METRICS": "0", "PGSUPERVISOR_TRACES": "true"}
        dev = mine.dev("--app", "devshop", "--no-dashboard", *words)
        url = eventually(lambda: re.search(r"metrics on (http://127\.0\.0\.1:\d+/metrics)", dev.log()), 30)[1]
        with Client(database.dsn) as client:
            run = client.start("devshop")
            assert run.result(timeout=60) == "old"
        eventually(lambda: b"pgsupervisor_runs_ended_total 1.0" in urllib.request.urlopen(url, timeout=30).read(), 30)
        eventually(lambda: {span.name for span in collected.of(run)} >= {"run devshop", "step devshop_say"}, 60, f"{collected.spans}")
    refused = mine.dev("--app", "devshop", "--no-dashboard", "--metrics", "nowhere", up=0)
    assert refused.process.wait(60) == 78 and "--metrics: 'nowhere' is no address" in refused.log()


# ── beginning and end ────────────────────────────────────────────────────────────────────────────────────────────


def test_one_interrupt_ends_all_of_it_and_a_kill_too(desk: Desk) -> None:
    """Everything by one command, so everything goes by one: workers, dashboard, and the server that was started for it. Data stay."""
    desk.environ["PGSUPERVISOR_DATA_DIR"] = str(desk.folder / "pg")
    words = ("--app", "devshop", "--port", "0")
    dev = desk.dev(*words)
    urls = eventually(lambda: list((desk.folder / "runtime").rglob("dashboard-*.url")), 60, "the dashboard's URL")
    eventually(lambda: str(urls[0]) in dev.log(), 60, "where the token is")
    assert "#" not in dev.log(), "the token is for terminals"
    url = subprocess.run([sys.executable, "-m", "supervisor", "db", "url"], cwd=desk.folder, env=desk.environ, capture_output=True, text=True, check=True).stdout.strip()
    with Client(url) as client:
        assert word(client) == "old"
    family, postgres = dev.family(), server_of(desk)
    assert len(family) >= 4
    os.killpg(dev.process.pid, signal.SIGINT)  # as a terminal does
    assert dev.process.wait(ENDED_S) == 0, dev.log()
    assert all(gone(pid) for pid in [*family, postgres]) and not list((desk.folder / "runtime").rglob("*.url")), dev.log()
    # again, on the same data; and killed
    dev = desk.dev(*words)
    with Client(url) as client:
        assert word(client) == "old" and len(list(client.list())) == 2
    eventually(lambda: list((desk.folder / "runtime").rglob("dashboard-*.url")), 60)
    family, postgres = dev.family(), server_of(desk)
    os.kill(dev.process.pid, signal.SIGKILL)
    eventually(lambda: all(gone(pid) for pid in [*family, postgres]), ENDED_S, "nothing is left")


def test_a_server_that_others_use_goes_on(desk: Desk, stopped_server: Path) -> None:
    """Another `dev`, or a client: whoever is connected is not cut off because a neighbour went home."""
    desk.environ["PGSUPERVISOR_DATA_DIR"] = str(desk.folder / "pg")
    subprocess.run(["cp", "-a", stopped_server / "pg", desk.folder / "pg"], check=True)  # spares an initdb
    dev = desk.dev("--app", "devshop", "--no-dashboard", "--procs", "1", up=1)
    url = subprocess.run([sys.executable, "-m", "supervisor", "db", "url"], cwd=desk.folder, env=desk.environ, capture_output=True, text=True, check=True).stdout.strip()
    with Client(url) as client:
        assert word(client) == "old"
        dev.process.send_signal(signal.SIGINT)
        assert dev.process.wait(ENDED_S) == 0
        assert "others are connected to it" in dev.log() and not gone(server_of(desk))
        assert len(list(client.list())) == 1


def server_of(desk: Desk) -> int:
    return int((desk.folder / "pg" / "data" / "postmaster.pid").read_text().split()[0])


def test_a_database_of_ones_own_is_migrated_only_if_one_says_so(mine: Desk, database: Database) -> None:
    """It may be a colleague's, or production's."""
    database.sql("drop schema supervisor cascade")
    refused = mine.dev("--app", "devshop", "--no-dashboard", up=0)
    assert refused.process.wait(60) == 75 and "migrate" in refused.log()
    dev = mine.dev("--app", "devshop", "--no-dashboard", "--migrate")
    with Client(database.dsn) as client:
        assert word(client) == "old"
    assert "migration 0001_tables" in dev.log()


def test_lines_have_colours_at_a_terminal_and_the_token_is_said_there(mine: Desk) -> None:
    """Readable where somebody looks; plain where a file is written."""
    here, there = pty.openpty()
    environ = {**mine.environ, "TERM": "xterm"}
    environ.pop("NO_COLOR", None)
    process = subprocess.Popen([sys.executable, "-m", "supervisor", "dev", "--app", "devshop", "--port", "0"], cwd=mine.folder, env=environ, stdin=there, stdout=there, stderr=there, start_new_session=True)
    os.close(there)
    said = b""

    def told() -> bool:
        nonlocal said
        if select.select([here], [], [], 0.1)[0]:
            said += os.read(here, 65536)
        return b"/login#" in said and said.count(b" is up as ") == 2

    try:
        eventually(told, 60, "URL and workers")
        assert b"\x1b[36mw0  \x1b[0m" in said or b"\x1b[32mw1  \x1b[0m" in said
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):
            while os.read(here, 65536):
                pass
        os.close(here)
        process.wait(ENDED_S)


def test_without_the_dashboards_packages_it_says_how_to_get_them(mine: Desk) -> None:
    """They are an extra; the rest of `dev` needs none. Who asks for the dashboard by name is refused."""
    program = (
        "import sys, supervisor.dashboard.serve as serve\n"
        "from supervisor.core.errors import MissingExtra\n"
        "def missing(): raise MissingExtra('the dashboard', 'dashboard', 'starlette')\n"
        "serve.check_installed = missing\n"
        "from supervisor.cli.main import main\nmain(sys.argv[1:])"
    )
    dev = mine.dev("--app", "devshop", program=("-c", program))
    assert "no dashboard: a part of it is not installed; pip install 'pgsupervisor[dashboard]'" in dev.log()
    refused = mine.dev("--app", "devshop", "--dashboard", up=0, program=("-c", program))
    assert refused.process.wait(60) == 78 and "pgsupervisor[dashboard]" in refused.log()


def test_short_lines_show_what_a_text_has_of_lines_and_no_more() -> None:
    """A traceback is read, and no text passes for a line of its own or acts on the terminal."""
    facts = {"ts": "2026-11-30T04:05:06.007Z", "level": "WARNING", "logger": "shop", "message": "broken:\n  File\n\x1b[2J", "host": "h", "pid": 1, "worker": 3, "run": "r", "workflow": "w"}
    line = log_lines.decode(json.dumps(facts).encode())
    first, *more = log_lines.as_short(line).decode().splitlines()
    assert first.endswith(" w3   WARNING shop: broken: [run r workflow w]") and more == ["      File", "    \\x1b[2J"]
    coloured = log_lines.in_colour(line).decode()
    assert "\x1b[33mWARNING shop: broken:\x1b[0m" in coloured and "\x1b[2J" not in coloured
