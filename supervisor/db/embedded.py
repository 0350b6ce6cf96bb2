"""The embedded server: a real PostgreSQL in the user's data directory, started on demand, persistent.

Owns one data directory and the server in it. A server that was started outlives the process that started it, until
somebody stops it. All durability is on. It listens on a unix socket only, in a folder that nobody else can enter; so
`trust` is enough. Never pretends: what `start` returns is a server that accepts connections and has replayed its log.

    <data_dir>/           PGSUPERVISOR_DATA_DIR, else the user's data folder + pgsupervisor/pg<major>;
                          as root /var/lib/pgsupervisor/pg<major>
        data/             PostgreSQL's own files; `data.new` is one that initdb has not finished
        run/              the socket, 0700; a short folder elsewhere where this path is too long for a socket
        embedded.conf     our settings, written at every start, with reasons; postgresql.conf includes it first, so
                          what you write there below the include, and ALTER SYSTEM, win
        server.log        the server's log; server.log.1 is the one before (turned over by `start`, above 16 MB)
        start.lock        held while somebody starts the server

PostgreSQL does not run as root: there the server runs as the first of postgres, nobody, daemon that exists, from a
copy of the programs that this account can execute (server_binaries.py). `data/` and `run/` belong to it, the rest to
root; parents are never changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from supervisor.db.server_binaries import (
    SYSTEM_HOME,
    Account,
    Binaries,
    EmbeddedServerError,
    find_binaries,
    make_root_dir,
    may_enter,
    runnable_by,
    server_account,
)

__all__ = ["Binaries", "EmbeddedServer", "EmbeddedServerError", "find_binaries"]

DATABASE = "supervisor"
SUPERUSER = "postgres"
PORT = 5432                        # names the socket, nothing listens on TCP
SOCKET_PATH_BYTES_MAX = 107        # sun_path without its NUL
LOG_BYTES_MAX = 16 * 2**20
POLL_S = 0.02                      # while waiting: a start takes 0.2 s, a recovery any time
TELL_EVERY_S = 1.0
PING_TIMEOUT_S = 2                 # libpq's least; a server that hangs must not silence the progress
EXEC_S = 5.0                       # from fork to the end of exec, on a machine that swaps
ORPHAN_GRACE_S = 2.0               # backends of a killed server notice within milliseconds, unless busy

STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class EmbeddedServer:
    """One private PostgreSQL in *data_dir*. Every method may be called by several processes at once.

    settings  written over the defaults when this object starts the server; no effect on one that runs already.
    progress  called with one line of text, at most once a second, while something takes long.
    As a context manager it starts the server, and stops it again if it was not running before.
    """

    def __init__(
        self,
        data_dir: Path | str | None = None,
        *,
        settings: Mapping[str, str] = {},
        progress: Callable[[str], None] | None = None,
        binaries: Binaries | None = None,
    ) -> None:
        self.binaries = binaries or find_binaries()
        self.data_dir = Path(os.path.abspath(data_dir)) if data_dir else default_data_dir(self.binaries.major)
        self.data = self.data_dir / "data"
        self.log_path = self.data_dir / "server.log"
        self.settings = dict(settings)
        self._progress = progress or (lambda text: None)
        self._told_at = 0.0
        self._launched: int | None = None

    # -- what users call

    @property
    def dsn(self) -> str:
        """The connection string of the database `supervisor`, whether or not the server runs."""
        return self._dsn(DATABASE)

    @property
    def pid(self) -> int | None:
        """The running server's process id, else None. Never that of a process that took over a dead server's id."""
        for pid in (self._recorded_pid(), self._launched):
            if pid is not None and self._is_server(pid):
                return pid
        return None

    @property
    def launched(self) -> bool:
        """Whether it was this object that brought the running server up."""
        return self._launched is not None

    def start(self) -> str:
        """Start the server unless it runs; return the DSN when it accepts connections.

        Sets the data directory up the first time. Waits as long as recovery takes. Two starters start one server.
        Raises  EmbeddedServerError with the end of the log, if the server ends instead.
        """
        account = server_account(self.data)
        self._make_home(account)
        with self._start_lock():
            if not self._ready():
                self._launch(account)
                if not self._ready():
                    raise EmbeddedServerError(f"PostgreSQL ended while it was starting; the end of {self.log_path}:\n{self._log_tail()}")
            else:
                self._turn_over_log()
            self._create_database()
        return self.dsn

    def stop(self, mode: str = "fast") -> bool:
        """Stop the server and wait until it is gone; return whether one was running.

        mode  smart waits for the clients; fast ends their sessions and writes a checkpoint; immediate is a crash.
        """
        pid = self.pid
        if pid is None:
            return False
        os.kill(pid, STOP_SIGNALS[mode])
        while self._is_server(pid):
            self._tell("stopping PostgreSQL" + self._last_log_line("shut"))
            time.sleep(POLL_S)
        return True

    def restart(self, mode: str = "fast") -> str:
        """Stop the server in *mode* and start it again; return the DSN."""
        self.stop(mode)
        return self.start()

    def status(self) -> dict[str, object]:
        """Return what is known without connecting; every value is fit for JSON."""
        pid = self.pid
        return {
            "running": pid is not None,
            "ready": pid is not None and self._answers(),
            "pid": pid,
            "account": server_account(self.data).name if os.geteuid() == 0 else None,
            "dsn": self.dsn,
            "version": self.binaries.version,
            "data_version": self._data_version(),
            "data_dir": str(self.data_dir),
            "log": str(self.log_path),
            "bindir": str(self.binaries.bindir),
        }

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._launched is not None:
            self.stop()

    # -- folders

    @property
    def socket_dir(self) -> Path:
        """The folder of the socket: run/, or a short one where run/ can't be written into a socket's address.

        Not in XDG_RUNTIME_DIR: that goes when its user logs out, and the server stays.
        """
        own = self.data_dir / "run"
        if _fits_socket(own):
            return own
        name = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:12]
        if os.geteuid() == 0:
            return Path("/run/pgsupervisor", name)
        return Path("/tmp", f"pgsupervisor-{os.geteuid()}-{name}")

    def _make_home(self, account: Account) -> None:
        """Make the data directory, or take over an empty one. As root it is root's, and the server may pass through."""
        if self.data_dir.is_relative_to(SYSTEM_HOME) and os.geteuid() == 0:
            make_root_dir(SYSTEM_HOME)
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            present = os.listdir(self.data_dir)
        except OSError as error:
            raise EmbeddedServerError(f"can't use {self.data_dir}: {error.strerror}; name another folder in PGSUPERVISOR_DATA_DIR") from error
        if present and "start.lock" not in present:
            raise EmbeddedServerError(f"{self.data_dir} holds something else than an embedded server; name an empty or a new folder in PGSUPERVISOR_DATA_DIR")
        owner_uid = self.data_dir.stat().st_uid
        if owner_uid != os.geteuid():
            raise EmbeddedServerError(f"{self.data_dir} belongs to uid {owner_uid}; start the server as its owner, or name another folder in PGSUPERVISOR_DATA_DIR")
        if account.uid != os.geteuid():
            self.data_dir.chmod(0o711)
            self._check_entry(account)

    def _check_entry(self, account: Account) -> None:
        if not may_enter(account, self.data_dir):
            raise EmbeddedServerError(
                f"as root the server runs as the account {account.name}, which can't enter {self.data_dir}: a folder above it is closed; "
                f"name another folder in PGSUPERVISOR_DATA_DIR (the default for root is {SYSTEM_HOME}/pg{self.binaries.major})"
            )

    def _make_socket_dir(self, account: Account) -> None:
        """Make the socket's folder: the account's own, closed to all others. This is what makes `trust` safe."""
        path = self.socket_dir
        if path.parent == Path("/run/pgsupervisor"):
            make_root_dir(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            os.chown(path, account.uid, account.gid)
        facts = path.lstat()
        if path.is_symlink() or facts.st_uid != account.uid or facts.st_mode & 0o077:
            raise EmbeddedServerError(f"{path} must belong to {account.name} alone (mode 0700), for whoever enters it owns the database; remove it")
        for leftover in path.glob(f".s.PGSQL.{PORT}*"):      # of a killed server; no server runs on our data
            leftover.unlink()

    @contextlib.contextmanager
    def _start_lock(self) -> Iterator[None]:
        """Be the only starter. The lock goes with the descriptor, so a starter that is killed releases it."""
        with open(self.data_dir / "start.lock", "w", opener=_open_private) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._tell("another process is starting PostgreSQL; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # -- starting

    def _launch(self, account: Account) -> None:
        """Bring a server process up, on data made now if there is none. Holds the start lock."""
        binaries = runnable_by(account, self.binaries)
        if not self.data.exists():
            self._initialise(account, binaries)
        self._check_data(account)
        self._end_orphans(account)
        self._forget_dead_server()
        self._write_settings()
        self._make_socket_dir(account)
        self._told_at = time.monotonic()           # the usual start is quick and needs no word
        with self._open_log() as log:
            # A shell in between makes the server nobody's child: it outlives us and leaves us no zombie.
            command = ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *self._server_command(binaries)]
            started = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, check=True, start_new_session=True, **account.popen_options())
        self._launched = int(started.stdout)
        self._await_exec(self._launched)

    def _await_exec(self, pid: int) -> None:
        """Wait until the new process is the server, or has ended: between fork and the end of exec its arguments are the shell's, or none."""
        deadline = time.monotonic() + EXEC_S
        while not self._is_server(pid) and _is_alive(pid) and time.monotonic() < deadline:
            time.sleep(POLL_S / 10)

    def _server_command(self, binaries: Binaries) -> list[str]:
        """Return what must not be changed by a configuration file: where, on which socket, under which name in ps."""
        return [
            binaries.program("postgres"), "-D", str(self.data), "-k", str(self.socket_dir), "-p", str(PORT),
            "-c", "listen_addresses=", "-c", f"cluster_name={self._cluster_name}",
        ]  # fmt: skip

    def _initialise(self, account: Account, binaries: Binaries) -> None:
        """Make data/. Built aside and renamed: an initdb that was killed leaves nothing that looks like a database."""
        self._tell(f"setting up PostgreSQL {binaries.version} in {self.data_dir}", now=True)
        new = self.data_dir / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        os.chown(new, account.uid, account.gid)
        command = [binaries.program("initdb"), "-D", str(new), *_initdb_options(binaries.major)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", **account.popen_options())
        if done.returncode != 0:
            raise EmbeddedServerError(f"initdb failed in {new} ({_exit_words(done.returncode)}):\n{_last_lines(done.stdout)}")
        with open(new / "postgresql.conf", "a") as conf:
            conf.write("\n# pgsupervisor's settings; what stands below wins\ninclude = '../embedded.conf'\n")
            conf.flush()
            os.fsync(conf.fileno())
        new.rename(self.data)
        _fsync_dir(self.data_dir)

    def _check_data(self, account: Account) -> None:
        found = self._data_version()
        if found != str(self.binaries.major):
            raise EmbeddedServerError(
                f"{self.data} was made by PostgreSQL {found}, but {self.binaries.bindir} is {self.binaries.version}; "
                f"name the folder of a PostgreSQL {found} in PGSUPERVISOR_PG_BIN, or another data directory in PGSUPERVISOR_DATA_DIR"
            )
        owner_uid = self.data.stat().st_uid
        if owner_uid != account.uid:
            raise EmbeddedServerError(
                f"{self.data} belongs to uid {owner_uid}, and the server would run as uid {account.uid}; "
                f"start it as its owner, or name another folder in PGSUPERVISOR_DATA_DIR"
            )

    def _write_settings(self) -> None:
        lines = ["# Written by pgsupervisor at every start. Your own settings: data/postgresql.conf, below the include, or ALTER SYSTEM."]
        for name, (value, reason) in default_settings(self.data_dir).items():
            if name not in self.settings:
                lines.append(f"{_conf_line(name, value)}  # {reason}")
        lines += [_conf_line(name, value) for name, value in self.settings.items()]
        new = self.data_dir / "embedded.conf.new"
        new.write_text("\n".join(lines) + "\n", encoding="utf-8")
        new.chmod(0o644)
        new.rename(self.data_dir / "embedded.conf")

    def _create_database(self) -> None:
        with psycopg.connect(self._dsn("postgres"), autocommit=True) as conn:
            if not conn.execute("select 1 from pg_database where datname = %s", (DATABASE,)).fetchone():
                conn.execute(f'create database "{DATABASE}"')

    # -- watching

    def _ready(self) -> bool:
        """Wait until the server accepts connections; False as soon as no server runs, which may be at once."""
        while self.pid is not None:
            if self._answers():
                return True
            self._check_socket()
            self._tell("waiting for PostgreSQL" + self._last_log_line())
            time.sleep(POLL_S)
        return False

    def _answers(self) -> bool:
        """Tell whether it accepts connections; asked only of a server that says so, for each refusal is a line in its log."""
        if not self._says_ready():
            return False
        patient = make_conninfo(self._dsn("postgres"), connect_timeout=PING_TIMEOUT_S)
        return pq.PGconn.ping(patient.encode()) == pq.Ping.OK

    def _check_socket(self) -> None:
        """Refuse a server that somebody started on this data with another socket: it would never answer here."""
        lines = self._pid_file()
        if self._says_ready() and lines[4] != str(self.socket_dir):
            raise EmbeddedServerError(f"a server runs on {self.data} that listens in {lines[4] or 'no folder'} instead of {self.socket_dir}; stop it: kill -INT {lines[0]}")

    def _says_ready(self) -> bool:
        lines = self._pid_file()
        return len(lines) >= 8 and lines[7].strip() == "ready"

    def _pid_file(self) -> list[str]:
        """Return the lines of postmaster.pid: pid, data, start time, port, socket folder, address, shmem key, state."""
        try:
            return (self.data / "postmaster.pid").read_text(errors="surrogateescape").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError as error:
            raise EmbeddedServerError(f"{self.data} belongs to another user; act on its server as that user, or name another folder in PGSUPERVISOR_DATA_DIR") from error

    def _recorded_pid(self) -> int | None:
        lines = self._pid_file()
        return abs(int(lines[0])) if lines and re.fullmatch(r"-?\d+", lines[0]) else None

    def _is_server(self, pid: int) -> bool:
        """Tell whether process *pid* is alive and serves our data: its arguments, which need no right to read, say so."""
        return os.fsencode(self.data) in _arguments(pid)

    def _end_orphans(self, account: Account) -> None:
        """End the children of a server that was killed: while one lives, no new server may start on the data.

        They notice by themselves, unless they are busy. To kill them then loses nothing: they are part of a crash.
        """
        deadline = time.monotonic() + ORPHAN_GRACE_S
        while orphans := self._orphans(account):
            if time.monotonic() > deadline:
                self._tell(f"ending {len(orphans)} processes that a killed PostgreSQL left behind")
                for pid in orphans:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_S)

    def _forget_dead_server(self) -> None:
        """Remove the pid file of a dead server whose pid is not free: a zombie's (a container whose init reaps nothing),
        or by now another program's. PostgreSQL would take either for a running server and refuse to start.

        Whether a process is still attached to the data's shared memory it checks by itself, without this file.
        """
        pid = self._recorded_pid()
        if pid is not None and Path("/proc", str(pid)).exists() and not self._is_server(pid):
            (self.data / "postmaster.pid").unlink()

    def _orphans(self, account: Account) -> list[int]:
        title = f"postgres: {self._cluster_name}: ".encode()
        return [
            pid for pid in (int(name) for name in os.listdir("/proc") if name.isdigit())
            if _arguments(pid)[0].startswith(title) and _owner_uid(pid) == account.uid
        ]  # fmt: skip

    # -- small facts

    @property
    def _cluster_name(self) -> str:
        """The name that every process of this server bears in ps; unique to the data directory."""
        return f"pgsupervisor-{hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:8]}"

    def _dsn(self, database: str) -> str:
        return make_conninfo(host=str(self.socket_dir), port=PORT, dbname=database, user=SUPERUSER)

    def _data_version(self) -> str | None:
        try:
            return (self.data / "PG_VERSION").read_text().strip()
        except OSError:
            return None

    def _turn_over_log(self) -> None:
        """Turn the log of a running server over. The server keeps the file, to which it appends: so that is copied and emptied."""
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_BYTES_MAX:
            with open(self.log_path, "rb") as log, open(self.log_path.with_suffix(".log.1"), "wb", opener=_open_private) as before:
                shutil.copyfileobj(log, before)
            os.truncate(self.log_path, 0)

    def _open_log(self) -> IO[bytes]:
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_BYTES_MAX:
            self.log_path.rename(self.log_path.with_suffix(".log.1"))
        return open(self.log_path, "ab", opener=_open_private)

    def _log_tail(self) -> str:
        """Return the last lines of the log, of at most the last 4 KiB."""
        try:
            with open(self.log_path, "rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
                return _last_lines(log.read().decode(errors="replace"))
        except FileNotFoundError:
            return "(no log)"

    def _last_log_line(self, of: str = "") -> str:
        """Return the last words that the server wrote by itself and that have *of* in them, without their prefix: what it is doing; nothing before its first."""
        said = [line.partition("LOG:")[2].strip() for line in self._log_tail().splitlines() if "LOG:" in line and of in line]
        return f": {said[-1]}" if said else ""

    def _tell(self, text: str, *, now: bool = False) -> None:
        if now or time.monotonic() - self._told_at >= TELL_EVERY_S:
            self._told_at = time.monotonic()
            self._progress(text)


# ── defaults ─────────────────────────────────────────────────────────────────────────────────────────────────────


def default_data_dir(major: int) -> Path:
    """Return where the server of this user lives, unless told otherwise."""
    named = os.environ.get("PGSUPERVISOR_DATA_DIR")
    if named:
        return Path(os.path.abspath(os.path.expanduser(named)))
    if os.geteuid() == 0:
        return SYSTEM_HOME / f"pg{major}"
    import platformdirs

    return platformdirs.user_data_path("pgsupervisor") / f"pg{major}"


def default_settings(data_dir: Path) -> dict[str, tuple[str, str]]:
    """Return name → (value, reason): quick on one machine, with every durability setting as PostgreSQL ships it."""
    shared_buffers_mb = max(128, min(2048, _memory_bytes() // 4 // 2**20))
    wal_size_mb = max(256, min(4096, _disk_bytes_free(data_dir) // 10 // 2**20))
    return {
        "fsync": ("on", "an acknowledged start survives a power cut"),
        "full_page_writes": ("on", "a torn page after a crash is repaired"),
        "synchronous_commit": ("on", "a commit is on disk before it is acknowledged"),
        "shared_buffers": (f"{shared_buffers_mb}MB", "a quarter of the memory, up to 2 GB: the hot table and the tails of the history"),
        "max_wal_size": (f"{wal_size_mb}MB", "checkpoints by time, not by volume; each one makes every touched page be logged whole once; a tenth of the free disk"),
        "min_wal_size": (f"{wal_size_mb // 4}MB", "log files are reused instead of made anew under load"),
        "checkpoint_timeout": ("15min", "the same reason; the price is a recovery of up to 15 minutes' log, which start waits for"),
        "wal_compression": ("off", "whole pages are rare between two such checkpoints, and pglz costs CPU that a small machine needs for steps"),
        "max_connections": ("100", "workers have two sessions each; every slot costs shared memory and snapshot time"),
        "autovacuum_naptime": ("5s", "the task table turns over in seconds, its dead rows must not wait a minute"),
        "jit": ("off", "all our statements are short; compiling one takes longer than running it"),
        "log_startup_progress_interval": ("1s", "a long recovery shows that it moves"),
        "log_line_prefix": ("%m [%p] %a ", "when, which process, which program"),
        "log_timezone": ("UTC", "as every time that we print"),
        "timezone": ("UTC", "sessions that set none read the same"),
    }


def _initdb_options(major: int) -> list[str]:
    options = ["--username", SUPERUSER, "--auth=trust", "--encoding=UTF8", "--data-checksums", "--no-instructions"]
    if major >= 17:  # built in: the order of text does not change with the operating system's libraries under an index
        return [*options, "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    return [*options, "--locale=C.UTF-8"]


def _conf_line(name: str, value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*", name):
        raise EmbeddedServerError(f"{name!r} is not the name of a PostgreSQL setting")
    escaped = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n")
    return f"{name} = '{escaped}'"


def _memory_bytes() -> int:
    """Return this machine's memory, or its container's share where that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):      # no such file; "max"
            found.append(int(Path(limit).read_text()))
    return min(found)


def _disk_bytes_free(path: Path) -> int:
    return shutil.disk_usage(path).free


def _fits_socket(folder: Path) -> bool:
    """Tell whether a socket in *folder* has a valid address that also survives PostgreSQL's lists and conninfo."""
    socket = os.fsencode(folder / f".s.PGSQL.{PORT}")
    return len(socket) <= SOCKET_PATH_BYTES_MAX and not re.search(r"""[\s,"'\\]""", str(folder))


def _arguments(pid: int) -> list[bytes]:
    """Return a process's arguments, [b""] if it is gone or a zombie."""
    try:
        return Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
    except OSError:
        return [b""]


def _is_alive(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _owner_uid(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _exit_words(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _last_lines(text: str, line_max: int = 12) -> str:
    return "\n".join(text.rstrip().splitlines()[-line_max:]) or "(no output)"


def _open_private(path: str, flags: int) -> int:
    """Open as open() does, but let nobody else read: a log shows data, and whoever opens a lock file may hold it."""
    return os.open(path, flags, 0o600)


def _fsync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
