"""What every question shares: a database of its own, workers under the real parent, the clock, counts that must be right.

The clock   from just before the first worker sends its first claim to the first look that finds `task` empty, by the
            database's clock. Both err to the engine's disadvantage, by milliseconds.
The counts  a measurement whose rows are not exactly what was asked for raises `BenchInvalid` and has no figure.
The process forks workers, so it must be single-threaded then; it keeps no rows in memory.
"""

from __future__ import annotations

import gc
import json
import math
import mmap
import os
import platform
import resource
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from supervisor.api.client import Client
from supervisor.core.errors import SupervisorError
from supervisor.db import migrations
from supervisor.db.connect import connect, resolve_dsn
from supervisor.db.embedded import EmbeddedServer
from supervisor.engine.main import Birth
from supervisor.host.service import Service, ServiceOptions

MUST_BE_ON = ("fsync", "full_page_writes", "synchronous_commit", "autovacuum")
POLL_S, POLL_NEAR_S = 0.02, 0.005  # between looks at `task`; the second when nine tenths of the steps have begun
TURN_S = 0.1  # of the parent's loop, where nothing is to be done meanwhile
STUCK_S = 60.0  # no run ended for so long: it will not end
CLOCKS = timedelta(milliseconds=5)  # by how much two measures of the database's clock may differ
SESSIONS_GONE_S = 10.0  # backends of ended workers count their commits as they exit
RESULTS = Path(__file__).parent / "results"
PATHS = ("unix_socket_directories",)  # settings that say nothing but where this machine keeps things
_ready_ns = struct.Struct("=q")

Say = Callable[[str], None]


class BenchInvalid(SupervisorError):
    """A measurement that must not count."""

    code = "bench_invalid"


class UnsafeSettings(SupervisorError):
    """The server would lose what it acknowledged, so its figures mean nothing."""

    code = "unsafe_settings"


# ── where ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Place:
    """A database, or where none may be created a schema, for one measurement."""

    dsn: str
    schema: str
    may_checkpoint: bool = True

    def connect(self) -> psycopg.Connection[Any]:
        return connect(self.dsn, purpose="bench", schema=self.schema)

    def table(self, name: str) -> sql.Identifier:
        return sql.Identifier(self.schema, name)


class Places:
    """Makes places for measurements on one server and removes them again.

    With the right to create databases each is a fresh copy of one template that has the schema and the app's
    workflows in it; without, a schema `bench_<pid>_<n>` in the given database, migrated anew each time.
    """

    def __init__(self, server: str, say: Say, keep: bool) -> None:
        self.server, self.keep = server, keep
        self._say = say
        self._made = 0
        self._template: str | None = None
        with connect(server, purpose="bench") as conn:
            rights = "rolcreatedb OR rolsuper, pg_has_role(oid, 'pg_checkpoint', 'usage')"
            row = conn.execute(f"SELECT {rights} FROM pg_roles WHERE rolname = current_user").fetchone()
            self.own_database, self.may_checkpoint = row or (False, False)

    @property
    def kind(self) -> str:
        return "database" if self.own_database else "schema"

    @contextmanager
    def fresh(self) -> Iterator[Place]:
        """A place with the schema in it and nothing else."""
        self._made += 1
        name = f"bench_{os.getpid()}_{self._made}"
        place = self._copy(name) if self.own_database else self._new_schema(name)
        try:
            yield place
        finally:
            if self.keep:
                self._say(f"kept {self.kind} {name}")
            else:
                self._drop(self.kind, name)

    @contextmanager
    def kept(self, name: str) -> Iterator[Place]:
        """A database of that name, made where there is none; it stays. Raises BenchInvalid where none may be created."""
        with connect(self.server, purpose="bench") as conn:
            there = conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
        if not there:
            if not self.own_database:
                raise BenchInvalid(f"there is no database {name!r} and this role may create none; create it, or leave --database out")
            self._execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        place = Place(make_conninfo(self.server, dbname=name), "supervisor", self.may_checkpoint)
        with place.connect() as conn:
            migrations.migrate(conn, place.schema)
        yield place

    def close(self) -> None:
        if self._template is not None:
            self._drop("database", self._template)

    def _copy(self, name: str) -> Place:
        if self._template is None:
            self._template = f"bench_{os.getpid()}_template"
            self._execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self._template)))
            _furnish(Place(make_conninfo(self.server, dbname=self._template), "supervisor"))
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(self._template)))
        return Place(make_conninfo(self.server, dbname=name), "supervisor", self.may_checkpoint)

    def _new_schema(self, name: str) -> Place:
        # the app's own tables lie in that schema too
        place = Place(make_conninfo(self.server, options=f"-c search_path={name}"), name, self.may_checkpoint)
        _furnish(place)
        return place

    def _drop(self, kind: str, name: str) -> None:
        words = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)" if kind == "database" else "DROP SCHEMA IF EXISTS {} CASCADE")
        self._execute(words.format(sql.Identifier(name)))

    def _execute(self, statement: sql.Composed) -> None:
        with connect(self.server, purpose="bench") as conn:
            conn.execute(statement)


def _furnish(place: Place) -> None:
    """Make the schema, and let a worker register the app's workflows, without which nothing can be started."""
    with place.connect() as conn:
        migrations.migrate(conn, place.schema)
    with workers_of(place, 1) as workers:
        workers.wait_ready()


@contextmanager
def places(dsn: str | None, say: Say, *, keep: bool = False) -> Iterator[Places]:
    """Places on the server of *dsn*, else on the embedded server, which is left running only if it was running before."""
    server = nullcontext(resolve_dsn(dsn).conninfo) if dsn else _embedded(say)
    with server as conninfo, closing(Places(conninfo, say, keep)) as made:
        yield made


@contextmanager
def _embedded(say: Say) -> Iterator[str]:
    with EmbeddedServer(progress=say) as server:
        yield server.dsn


# ── under which circumstances ────────────────────────────────────────────────────────────────────────────────────


def circumstances(places: Places, unsafe: bool) -> dict[str, Any]:
    """What a reader must know to compare figures. Raises UnsafeSettings unless what acknowledges a commit is on."""
    from psycopg import pq

    from supervisor import _fastpath
    from supervisor.core.version import VERSION

    with connect(places.server, purpose="bench") as conn:
        must = conn.execute("SELECT name, setting FROM pg_settings WHERE name = ANY (%s)", (list(MUST_BE_ON),)).fetchall()
        held: dict[str, str] = dict(must)
        off = [name for name in MUST_BE_ON if held[name] != "on"]
        if off and not unsafe:
            found = ", ".join(f"{name} is {held[name]}" for name in off)
            raise UnsafeSettings(f"{found}; turn it on, or measure all the same with --unsafe")
        rows = conn.execute(
            "SELECT name, setting || coalesce(' ' || unit, '') FROM pg_settings "
            "WHERE source NOT IN ('default', 'override', 'client', 'session') AND setting IS DISTINCT FROM boot_val ORDER BY name"
        ).fetchall()
        server = conn.info.parameter_status("server_version")
    libpq = pq.version()
    return {
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "unsafe": off,
        "place": places.kind,
        "checkpoints": places.may_checkpoint,  # one before every clock
        "pgsupervisor": VERSION,
        "git": _git_head(),
        "python": platform.python_version(),
        "loop": _fastpath.build(),
        "psycopg": f"{psycopg.__version__} ({pq.__impl__})",
        "libpq": f"{libpq // 10000}.{libpq % 10000}",
        "server": server,
        "settings": dict(rows),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),  # runnable processes over the last minute: above 0 somebody else computes too
        "system": f"{platform.system()} {platform.release()}",
    }


def _git_head() -> str | None:
    """The commit of the clone that this file is in, with `+` where files differ from it."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


# ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────────


class _Workers(Service):
    """The service that `run` starts, with its defaults, and two notes: when each worker was ready, whether one died.

    patch   called in each worker before it connects; only for a comparison with something that users can't set
    """

    def __init__(self, place: Place, procs: int, patch: Callable[[], None] | None = None) -> None:
        super().__init__(ServiceOptions(dsn=place.dsn, schema=place.schema, procs=procs), self._noticed)
        self._moments = mmap.mmap(-1, _ready_ns.size * procs)
        self._patch = patch
        self._stopping = False
        self._killed: set[int] = set()
        self.deaths: list[int] = []

    def _work(self, birth: Birth) -> int:
        def told(worker_id: int, application_name: str, ready: bool) -> None:
            if ready:  # its first claim follows
                _ready_ns.pack_into(self._moments, _ready_ns.size * birth.number, time.time_ns())
            birth.born(worker_id, application_name, ready)

        if self._patch is not None:
            self._patch()
        return super()._work(replace(birth, born=told))

    def _noticed(self, child: Any, code: int, _executing: Any) -> None:
        if not self._stopping and child.pid not in self._killed:
            self.deaths.append(code)

    def kill_all(self) -> None:
        """KILL every worker. Their deaths are no news, and the parent sees to their successors."""
        pids = list(self.parent.children)
        self._killed.update(pids)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def step(self, timeout_s: float) -> None:
        """Let the parent work. Raises KeyboardInterrupt when it was told to stop, BenchInvalid when a worker died."""
        going_on = self.parent.step(timeout_s)
        if self.deaths:
            raise BenchInvalid(f"a worker ended with code {self.deaths[0]} while it was measured; see its words above")
        if not going_on or self.parent.stopping:
            raise KeyboardInterrupt

    def wait_ready(self) -> None:
        """Until every worker has a session and claims."""
        while not all(child.ready for child in self.parent.children.values()):
            self.step(TURN_S)

    def asked_by(self, module: str, told: object, after_s: float = math.inf, meanwhile: Callable[[], Any] | None = None) -> Any:
        """What another process answers, `python -m` *module*, while the parent goes on; told and answered as JSON by its standard streams.

        A connection string is no matter for an argument. Raises BenchInvalid where it fails. *meanwhile* is called once, after so many seconds.
        """
        with tempfile.TemporaryFile("w+") as words, tempfile.TemporaryFile("w+") as answer:
            json.dump(told, words)
            words.seek(0)
            sender = subprocess.Popen([sys.executable, "-m", module], stdin=words, stdout=answer)
            at = time.monotonic() + after_s
            try:
                while sender.poll() is None:
                    self.step(TURN_S)
                    if meanwhile is not None and time.monotonic() >= at:
                        meanwhile()
                        meanwhile = None
            finally:
                sender.kill()
                sender.wait()
            if sender.returncode != 0:
                raise BenchInvalid(f"the sender ended with {sender.returncode}; see its words above")
            answer.seek(0)
            return json.load(answer)

    @property
    def begun(self) -> int:
        """Steps that the workers have begun, by the black box."""
        return sum(self.parent.blackbox.executed(number) for number in range(self.options.procs))

    @property
    def first_ready_ns(self) -> int:
        """When the first worker was ready, by this machine's clock; 0 before."""
        noted = [_ready_ns.unpack_from(self._moments, _ready_ns.size * number)[0] for number in range(self.options.procs)]
        return min((each for each in noted if each), default=0)

    def cpu_s(self) -> float:
        """User and system seconds of all living workers with all their threads, since their birth."""
        return sum(process_cpu_s(pid) for pid in self.parent.children)

    def end(self) -> None:
        self._stopping = True
        self.parent.stop()
        while self.parent.step(1.0):
            pass


@contextmanager
def workers_of(place: Place, procs: int, patch: Callable[[], None] | None = None) -> Iterator[_Workers]:
    """Workers that run until the end of the block; signals are as before afterwards."""
    if len(os.listdir("/proc/self/task")) != 1:
        raise BenchInvalid("this process has threads and must fork; nothing can be measured in it")
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)}
    gc.collect()
    workers = _Workers(place, procs, patch)
    try:
        workers.parent.start()
        try:
            yield workers
        finally:
            workers.end()
    finally:
        workers.parent.close()
        signal.set_wakeup_fd(-1)
        for name, handler in before.items():
            signal.signal(name, handler)


def process_cpu_s(pid: int) -> float:
    """CPU time of a process by its CPU-time clock, in ns where the kernel lets us, else by /proc in ticks."""
    try:
        return time.clock_gettime(~pid << 3 | 2)  # CPUCLOCK_SCHED of clock_getcpuclockid(3)
    except (OSError, OverflowError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ── one measurement ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Load:
    """What is started, and what must be in the tables afterwards.

    items    one per run, made as they are read
    number   SQL that takes the number out of an outcome's `result`; their sum must be `total`
    prepare  makes the application's own tables; check raises BenchInvalid unless they are right
    """

    workflow: Any
    runs: int
    steps: int
    items: Callable[[], Iterable[Any]]
    total: int
    number: LiteralString = "convert_from(result, 'UTF8')::int8"
    prepare: Callable[[psycopg.Connection[Any]], None] | None = None
    check: Callable[[psycopg.Connection[Any]], None] | None = None


@dataclass
class Measured:
    """The facts of one measurement; figures are quotients of them."""

    runs: int
    steps: int
    seconds: float
    first_claim_at: datetime
    last_outcome_at: datetime
    worker_cpu_s: float  # until the last outcome, birth included
    worker_cpu_to_exit_s: float
    wal_bytes: int
    commits: int  # of the whole database
    step_commits: int  # transactions that wrote steps

    @property
    def batch_rows(self) -> int:
        return max(1, round(self.steps / max(1, self.step_commits)))


def start(place: Place, load: Load) -> None:
    """Start the runs, before any clock."""
    with Client(place.dsn, schema=place.schema) as client:
        client.start_many(load.workflow, load.items())


def settle(conn: psycopg.Connection[Any], place: Place, tables: Sequence[str]) -> None:
    """Do what autovacuum does to filled tables, then begin a new checkpoint cycle."""
    for name in tables:
        conn.execute(sql.SQL("VACUUM (ANALYZE) {}").format(place.table(name)))
    checkpoint(conn, place)


def checkpoint(conn: psycopg.Connection[Any], place: Place) -> None:
    """Begin a new checkpoint cycle, where we may; the circumstances say when we may not."""
    if place.may_checkpoint:
        conn.execute("CHECKPOINT")


def run(place: Place, load: Load, procs: int, patch: Callable[[], None] | None = None, beside: AbstractContextManager[Any] | None = None) -> Measured:
    """Start, settle, work the backlog off under the clock, and check every count. *beside*: entered before the clock, left after it."""
    start(place, load)
    with place.connect() as conn:
        if load.prepare is not None:
            load.prepare(conn)
        settle(conn, place, ("task", "run"))
        with beside or nullcontext():
            measured = _worked_off(conn, place, load, procs, patch)
        measured.step_commits = _check(conn, place, load, measured)
    return measured


def _worked_off(conn: psycopg.Connection[Any], place: Place, load: Load, procs: int, patch: Callable[[], None] | None) -> Measured:
    conn.execute("SET synchronize_seqscans = off")
    offset = _clock_offset(conn)
    commits = committed(conn)
    wal = one(conn, "SELECT pg_current_wal_insert_lsn()")
    reaped = _children_cpu_s()
    with workers_of(place, procs, patch) as workers:
        last_at, last_wal = _until_empty(conn, place, workers, load)
        cpu_s = workers.cpu_s()
        first_at = datetime.fromtimestamp(workers.first_ready_ns / 1e9, timezone.utc) + offset
    return Measured(
        runs=load.runs, steps=load.runs * load.steps, seconds=(last_at - first_at).total_seconds(), first_claim_at=first_at,
        last_outcome_at=last_at, worker_cpu_s=cpu_s, worker_cpu_to_exit_s=_children_cpu_s() - reaped,
        wal_bytes=int(one(conn, "SELECT pg_wal_lsn_diff(%s, %s)", last_wal, wal)), commits=committed(conn) - commits, step_commits=0,
    )  # fmt: skip


def _until_empty(conn: psycopg.Connection[Any], place: Place, workers: _Workers, load: Load) -> tuple[datetime, str]:
    """Drive the parent until a look finds no task; returns that look's beginning and WAL position.

    From the end of the primary key: what is claimed last lies there, so a look passes few dead entries.
    """
    look = sql.SQL(
        "SELECT statement_timestamp(), pg_current_wal_insert_lsn(), (SELECT run_id FROM {} ORDER BY run_id DESC LIMIT 1) IS NULL"
    ).format(place.table("task"))
    near = 0.9 * load.runs * load.steps
    left, ask_at = load.runs + 1, time.monotonic()
    while True:
        workers.step(POLL_NEAR_S if workers.begun >= near else POLL_S)
        at, wal, empty = conn.execute(look).fetchone()  # type: ignore[misc]
        if empty:
            return at, wal
        if time.monotonic() >= ask_at:
            ask_at = time.monotonic() + STUCK_S
            if left == (left := one(conn, sql.SQL("SELECT count(*) FROM {}").format(place.table("task")))):
                stuck = f"no run ended for {STUCK_S:.0f} s and {left:,} of {load.runs:,} are left"
                raise BenchInvalid(f"{stuck}; --keep keeps the database to look into")


def _check(conn: psycopg.Connection[Any], place: Place, load: Load, measured: Measured) -> int:
    """Raise BenchInvalid unless the tables hold exactly what was asked for; returns how many transactions wrote steps."""
    step, outcome, task = (place.table(name) for name in ("step", "outcome", "task"))
    steps, completed, first_at = conn.execute(
        sql.SQL("SELECT count(*), count(*) FILTER (WHERE status = 1 AND kind = 1), min(started_at) FROM {}").format(step)
    ).fetchone()  # type: ignore[misc]
    sums = sql.SQL("SELECT count(*), count(*) FILTER (WHERE status = 1), sum({}) FROM {}")
    ends, ended, total = conn.execute(sums.format(sql.SQL(load.number), outcome)).fetchone()  # type: ignore[misc]
    left = one(conn, sql.SQL("SELECT count(*) FROM {}").format(task))
    found = {
        "steps": steps, "steps completed": completed, "outcomes": ends, "runs completed": ended, "tasks left": left, "sum of results": total,
    }  # fmt: skip
    wanted = {
        "steps": load.runs * load.steps, "steps completed": load.runs * load.steps, "outcomes": load.runs, "runs completed": load.runs,
        "tasks left": 0, "sum of results": load.total,
    }  # fmt: skip
    wrong = [f"{name} {found[name]}, not {wanted[name]}" for name in wanted if found[name] != wanted[name]]
    if first_at < measured.first_claim_at - CLOCKS:
        wrong.append(f"a step began at {first_at}, before the first claim at {measured.first_claim_at}")
    if wrong:
        raise BenchInvalid(f"{load.workflow.name}: {'; '.join(wrong)}. The measurement does not count; look into the database with --keep")
    if load.check is not None:
        load.check(conn)
    return int(one(conn, sql.SQL("SELECT count(*) FROM (SELECT xmin FROM {} GROUP BY xmin) AS writers").format(step)))


def _clock_offset(conn: psycopg.Connection[Any]) -> timedelta:
    """The database's clock minus ours, by the quickest of ten questions; on one machine some microseconds."""
    offsets = []
    for _ in range(10):
        asked = time.time_ns()
        there = one(conn, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8")
        took = time.time_ns() - asked
        offsets.append((took, there - (asked + took // 2) // 1000))
    return timedelta(microseconds=min(offsets)[1])


_OTHER_SESSIONS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'pgsupervisor: %' AND application_name NOT LIKE 'pgsupervisor: dashboard%'
"""


def committed(conn: psycopg.Connection[Any]) -> int:
    """Transactions committed in this database, when no other session is left that has not yet counted its own."""
    give_up_at = time.monotonic() + SESSIONS_GONE_S
    while one(conn, _OTHER_SESSIONS) and time.monotonic() < give_up_at:
        time.sleep(0.01)
    conn.execute("SELECT pg_stat_force_next_flush()")
    return int(one(conn, "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"))


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def one(conn: psycopg.Connection[Any], statement: Any, *values: Any) -> Any:
    row = conn.execute(statement, values or None).fetchone()
    assert row is not None
    return row[0]


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────


def summed_up(command: str, asked: dict[str, Any], figures: list[dict[str, float]], facts: dict[str, Any]) -> dict[str, Any]:
    """One result: the median of every figure under its own name, its spread, every repeat, the circumstances."""
    names = list(figures[0])
    return {
        "command": command,
        **asked,
        "repeats": len(figures),
        **{name: rounded(statistics.median(each[name] for each in figures)) for name in names},
        "spread": {name: [rounded(min(each[name] for each in figures)), rounded(max(each[name] for each in figures))] for name in names},
        "each": [{name: rounded(value) for name, value in each.items()} for each in figures],
        "circumstances": facts,
    }


def raw(measured: Measured) -> dict[str, float]:
    """What the figures are quotients of, so that an outside count can be laid beside it."""
    return {
        "seconds": measured.seconds,
        "worker_cpu_s": measured.worker_cpu_s,
        "worker_cpu_to_exit_s": measured.worker_cpu_to_exit_s,
        "wal_bytes": measured.wal_bytes,
        "commits": measured.commits,
        "batch_rows": measured.batch_rows,
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of *values* that so many percent of them do not exceed: always one that was seen."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def counting(place: Place, table: str) -> sql.Composed:
    """How many runs of a table completed."""
    return sql.SQL("SELECT count(*) FROM {} WHERE status = 1").format(place.table(table))


def told(n: int, repeats: int, figures: dict[str, float], names: Sequence[str]) -> str:
    """One line of progress."""
    return f"{n}/{repeats}  " + "  ".join(f"{name} {rounded(figures[name]):,}" for name in names if name in figures)


def rounded(value: float) -> float:
    """Four figures that count, whole numbers from a thousand on."""
    if isinstance(value, int) or value == 0:
        return value
    return round(value) if abs(value) >= 1000 else float(f"{value:.4g}")


def record(result: dict[str, Any]) -> Path:
    """Append one line to results/<command>.jsonl, without paths of this machine; returns the file."""
    facts = result["circumstances"]
    kept = {name: value for name, value in facts["settings"].items() if name not in PATHS}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result['command']}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**result, "circumstances": {**facts, "settings": kept}}) + "\n")
    return path
