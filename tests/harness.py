"""Servers, databases, hosts and effects for tests. Everything here is real: processes, sessions, signals."""

from __future__ import annotations

import itertools
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import psycopg

from supervisor.db import migrations
from supervisor.db.embedded import EmbeddedServer

T = TypeVar("T")
DRAIN_S = 25.0  # --drain-timeout where nobody says another
BUILDS = ("compiled", "python")
ROOT = Path(__file__).parent.parent
# fsync off: these tests kill processes, not the machine, and what a process has written outlives it; the log may lie in memory
SETTINGS = {"fsync": "off", "shared_buffers": "256MB", "max_connections": "200", "max_wal_size": "1GB", "min_wal_size": "256MB"}
MEMORY = "/dev/shm"
MEMORY_MIN_BYTES = 6 << 30  # three servers with a gigabyte of log each, and what else uses the machine
_numbers = itertools.count()


def in_a_host() -> bool:
    """Whether this process is one of a host's. What an app changes of the engine there must not change for tests that run the engine in their own process."""
    return "pytest" not in sys.modules


def eventually(fact: Callable[[], T], within_s: float, what: str = "") -> T:
    """The first true value of *fact*, asked again and again until *within_s* are over. Choose ten times what it should take."""
    deadline = time.monotonic() + within_s
    while True:
        value = fact()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what or fact}; last value {value!r}")
        time.sleep(0.01)


def drive(parts: Sequence[Any], fact: Callable[[], T], within_s: float, what: str = "") -> T:
    """Turn a `select` loop with *parts* in it until *fact* is true; no turn may hold the loop up for more than 0.2 s."""
    deadline = time.monotonic() + within_s
    while not (value := fact()):
        now = time.monotonic()
        assert now < deadline, f"not within {within_s:g} s: {what or fact}; last value {value!r}"
        asked = [part.sockets() for part in parts]
        reading, writing = {fd for each in asked for fd in each[0]}, {fd for each in asked for fd in each[1]}
        wait_s = max(0.0, min([0.05, *(part.due() - now for part in parts)]))
        readable, writable, _ = select.select(reading, writing, [], wait_s)
        began = time.thread_time(), time.monotonic()
        for part in parts:
            part.act(set(readable), set(writable))
        # waiting for a processor is not waiting for the server: much time and little of it computing is
        held_s = time.monotonic() - began[1]
        assert held_s < 0.2 or time.thread_time() - began[0] > held_s / 2, f"a turn took {held_s:.3f} s"
    return value


# ── effects: notes of steps that outlive any process ─────────────────────────────────────────────────────────────


def note(word: str, *more: Any) -> None:
    """In a step: append one line to the effects file, in one write."""
    line = " ".join(str(part) for part in (word, *more)) + "\n"
    fd = os.open(os.environ["TEST_EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def wait_for_file(name: str, within_s: float = 60.0) -> None:
    """In a step: block until the test has made the file *name* beside the effects (a failpoint that the test opens)."""
    path = Path(os.environ["TEST_EFFECTS"]).parent / name
    eventually(path.exists, within_s, f"{name} was never made")


@dataclass
class Effects:
    """The notes, from the test's side."""

    path: Path

    def lines(self, word: str | None = None) -> list[list[str]]:
        if not self.path.exists():
            return []
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return [line for line in lines if word is None or line[0] == word]

    def count(self, word: str, *more: Any) -> int:
        wanted = [str(part) for part in more]
        return sum(line[1 : 1 + len(wanted)] == wanted for line in self.lines(word))

    def open(self, name: str) -> None:
        """Open the failpoint *name*."""
        (self.path.parent / name).touch()


# ── servers and databases ────────────────────────────────────────────────────────────────────────────────────────


def server_folder(prefix: str) -> Path:
    """A new folder for a server: in memory where there is plenty, else in /tmp.

    A database is 600 files, and most tests have one of their own. ext4 passes over the inodes of files that were removed within the last
    minutes one by one, for each file that it makes: so a copy of the template takes up to 0.4 s there, and 0.03 s in memory.
    """
    return Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY if _is_memory_of_use() else "/tmp"))


def _is_memory_of_use() -> bool:
    if not os.access(MEMORY, os.W_OK) or os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:  # some tests put programs beside a server
        return False
    return shutil.disk_usage(MEMORY).free >= MEMORY_MIN_BYTES <= _memory_bytes_available()


def _memory_bytes_available() -> int:
    found = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


@dataclass
class Server:
    """A private PostgreSQL."""

    folder: Path
    embedded: EmbeddedServer
    dsn: str
    _template_made: bool = False

    @classmethod
    def start(cls, folder: Path, settings: dict[str, str] | None = None, *, like: Path | None = None) -> Server:
        """A server in *folder*; *like*: the folder of one that was started and stopped, whose copy spares the waits of initdb."""
        os.chmod(folder, 0o755)
        if like is not None:
            subprocess.run(["cp", "-a", "--reflink=auto", like / "pg", folder / "pg"], check=True)
        embedded = EmbeddedServer(folder / "pg", settings={**SETTINGS, **(settings or {})})
        return cls(folder, embedded, embedded.start())

    def stop(self) -> None:
        self.embedded.stop("immediate")

    def connect(self, dbname: str = "supervisor") -> psycopg.Connection[Any]:
        return psycopg.connect(psycopg.conninfo.make_conninfo(self.dsn, dbname=dbname), autocommit=True)

    def database(self) -> Database:
        """A new database with the schema in it, copied from a template."""
        name = f"t{os.getpid()}_{next(_numbers)}"
        with self.connect() as conn:
            if not self._template_made:
                conn.execute("create database template_pgs")
                with self.connect("template_pgs") as fresh:
                    migrations.migrate(fresh, "supervisor")
                self._template_made = True
            # files are copied, not their pages logged: half the work of both this and `drop`
            conn.execute(f"create database {name} template template_pgs strategy file_copy")
        return Database(self, name, psycopg.conninfo.make_conninfo(self.dsn, dbname=name))


@dataclass
class Database:
    """One database of a test. `sql` runs a statement on a session that is kept."""

    server: Server
    name: str
    dsn: str
    schema: str = "supervisor"
    _conn: psycopg.Connection[Any] | None = None

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn, autocommit=True)

    def sql(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of one statement; opens the session again when the server was restarted."""
        for attempt in (1, 2):
            if self._conn is None or self._conn.closed:
                self._conn = self.connect()
            try:
                cursor = self._conn.execute(query, parameters or None)
                return cursor.fetchall() if cursor.description is not None else []
            except psycopg.OperationalError:
                if attempt == 2 or not self._conn.closed:
                    raise
        raise AssertionError

    def one(self, query: str, *parameters: Any) -> Any:
        """The first value of the first row."""
        return self.sql(query, *parameters)[0][0]

    def drop(self) -> None:
        if self._conn is not None:
            self._conn.close()
        with self.server.connect() as conn:
            conn.execute(f"drop database if exists {self.name} with (force)")


# ── hosts ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Host:
    """A running `python -m supervisor run`."""

    process: subprocess.Popen[bytes]
    log_path: Path
    database: Database

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def worker_pids(self) -> list[int]:
        """Processes of the workers that are alive."""
        try:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        except FileNotFoundError:
            return []
        return [int(pid) for pid in children]

    def wait_up(self, workers: int, within_s: float = 60.0) -> Host:
        def up() -> bool:
            assert self.process.poll() is None, f"the host ended with {self.process.returncode}:\n{self.log()}"
            return self.log().count(" is up as ") >= workers

        eventually(up, within_s, f"{workers} workers up; log:\n{self.log()}")
        return self

    def kill_worker(self, pid: int | None = None, how: int = signal.SIGKILL) -> int:
        """Kill one worker, any or that one; returns its pid."""
        pid = pid or self.worker_pids()[0]
        os.kill(pid, how)
        return pid

    def kill_all(self) -> None:
        """kill -9 of everything: parent and workers."""
        workers = self.worker_pids()
        for pid in (self.pid, *workers):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()

    def stop(self, within_s: float = 60.0) -> int:
        """TERM and wait; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise AssertionError(f"the host did not stop within {within_s:g} s:\n{self.log()}") from None


@dataclass
class HostFactory:
    """Starts hosts on one database; stops all that are left at the end."""

    database: Database
    effects: Effects
    folder: Path
    started: list[Host] = field(default_factory=list)

    def start(self, app: str, *, procs: int = 1, build: str = "", threads: int = 8, env: dict[str, str] | None = None, args: tuple[str, ...] = (),
              own_group: bool = False, before: tuple[str, ...] = ()) -> Host:  # fmt: skip
        """Start a host for module *app* and return at once.

        own_group   in a process group that a test may signal as a whole
        before      words in front of the command, which become it
        """
        log_path = self.folder / f"host-{next(_numbers)}.log"
        words = [*before, sys.executable, "-m", "supervisor", "run", "--app", app, "--procs", str(procs), "--threads", str(threads), *args]
        environ = {
            **os.environ, "PYTHONPATH": str(ROOT), "PGSUPERVISOR_DATABASE_URL": self.database.dsn, "PGSUPERVISOR_SCHEMA": self.database.schema,
            "TEST_EFFECTS": str(self.effects.path), "PGSUPERVISOR_LOOP": build, **(env or {}),
        }  # fmt: skip
        with log_path.open("wb") as log:
            process = subprocess.Popen(words, cwd=self.folder, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=own_group)
        host = Host(process, log_path, self.database)
        self.started.append(host)
        return host

    @contextmanager
    def __call__(self, app: str, *, procs: int = 1, **options: Any) -> Iterator[Host]:
        """Start a host, wait until its workers are up, stop it at the end."""
        host = self.start(app, procs=procs, **options)
        try:
            yield host.wait_up(procs)
        finally:
            began = time.monotonic()
            host.stop()
            assert time.monotonic() - began < DRAIN_S - 3, f"a run was not let go: the test left it executing, or the worker kept it for nothing\n{host.log()}"

    def stop_all(self) -> None:
        for host in self.started:
            if host.process.poll() is None:
                host.kill_all()


def run_id_of(run: Any) -> UUID:
    """The id of a handle, or the id itself."""
    found: UUID = getattr(run, "id", run)
    return found
