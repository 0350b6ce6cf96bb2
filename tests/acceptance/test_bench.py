"""`bench` tells the truth: its keys are there, and an outsider's counts agree with them. Sizes are tiny, no figure is judged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.harness import ROOT, Server

needs_pgbouncer = pytest.mark.skipif(
    shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None, reason="pgbouncer is not installed: apt install pgbouncer"
)
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
KEYS = {
    "steps": ["steps_per_s", "copy_rows_per_s", "ratio", "worker_cpu_us_per_step", "wal_bytes_per_step", "commits_per_step"],
    "jobs": ["runs_per_s", "ratio", "wal_bytes_per_run", "copy_rows_per_s"],
    "start": ["runs_per_s"],
    "tx": ["tx_per_s"],
    "latency": ["p50_ms", "p99_ms", "max_ms", "start_p50_ms"],
    "signal": ["memory_p50_ms", "memory_p99_ms", "parked_p50_ms", "parked_p99_ms", "silent_p50_ms", "silent_max_ms", "to_one_per_s"],
    "idle": ["queries_per_s", "cpu_percent"],
    "spread": ["seconds", "least_seconds"],
    "waiting": [
        "worker_mb", "database_bytes_per_run", "parked_per_s", "sleep_p50_ms", "sleep_p99_ms", "signal_p99_ms", "alone_p50_ms", "start_p50_ms",
        "killed_p99_ms", "restarts", "together", "together_per_s", "together_p99_s", "within_1_s",
    ],
    "dashboard": [
        "health_ms", "runs_ms", "run_ms", "run_waiting_ms", "run_long_ms", "parked_ms", "failed_ms", "key_ms", "no_key_ms", "tenant_ms", "queues_ms", "workers_ms", "batches_ms", "errors_ms",
        "versions_ms", "audit_ms", "storage_ms", "health_max_ms",
    ],
    "recover": [
        "worker_kill_to_claim_p99_ms", "leader_kill_to_lead_p99_ms", "leader_stop_to_lead_p99_ms", "stuck_step_commit_delay_p99_ms",
    ],
}
FACTS = [
    "at", "checkpoints", "cores", "cpu", "git", "libpq", "load", "loop", "pgsupervisor", "place", "psycopg", "python", "server", "settings",
    "system", "unsafe",
]  # fmt: skip


def bench(server: Server, *words: str, dsn: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "supervisor", "bench", *words, "--json", "--dsn", dsn or server.dsn]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> tuple[Any, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out), err


@pytest.mark.parametrize(
    "command, words, more",
    [
        ("steps", ["--runs", "30", "--steps", "3", "--procs", "2"], []),
        ("steps", ["--runs", "30", "--procs", "1", "--style", "def", "--payload", "typed"], ["bare_steps_per_s", "ratio_to_bare"]),
        ("jobs", ["--runs", "50", "--procs", "2"], []),
        ("start", ["--runs", "50"], []),
        ("start", ["--runs", "50", "--keys"], []),
        ("start", ["--runs", "50", "--within", "--keys"], []),
        pytest.param("start", ["--runs", "50", "--pooled"], [], marks=needs_pgbouncer),
        ("latency", ["--rate", "40", "--seconds", "1", "--procs", "2"], []),
        ("latency", ["--rate", "40", "--seconds", "1", "--procs", "2", "--async"], []),
        ("signal", ["--rate", "40", "--seconds", "0.1", "--messages", "50", "--procs", "2"], []),
        ("idle", ["--seconds", "1", "--procs", "2"], []),
        ("start", ["--runs", "60", "--threads", "6"], []),
        ("spread", ["--runs", "10", "--procs", "2"], []),
        ("recover", ["--kills", "1"], []),
        ("dashboard", ["--runs", "2000", "--viewers", "0"], []),
        ("dashboard", ["--runs", "500", "--viewers", "5", "--storm-runs", "2000", "--procs", "2"], ["storm_ratio", "alone_steps_per_s", "storm_steps_per_s", "storm_seconds"]),
        ("waiting", ["--runs", "80", "--wakes", "3", "--procs", "2", "--over", "1"], ["sent_per_s", "signalled_per_s"]),
        ("tx", ["--runs", "40", "--procs", "2"], []),
        ("tx", ["--runs", "40", "--procs", "2", "--hot", "3"], ["one_by_one_tx_per_s", "ratio_to_one_by_one"]),
    ],
)
def test_every_question_prints_its_figures_and_leaves_nothing(server: Server, command: str, words: list[str], more: list[str]) -> None:
    """Median, spread and each repeat of every key, the circumstances, and no database left behind."""
    result, _ = answer(bench(server, command, *words, "--repeat", "2", "--unsafe"))
    for key in KEYS[command] + more:
        each = [repeat[key] for repeat in result["each"]]
        assert len(each) == 2
        assert result["spread"][key] == [min(each), max(each)]
        assert result[key] == pytest.approx(sum(each) / 2, rel=1e-3)
        assert result[key] > 0
    assert "waiting" != command or "worker_bytes_per_run" in result, "with so few it may be anything"
    assert sorted(result["circumstances"]) == FACTS
    assert result["repeats"] == 2
    with server.connect() as conn:
        assert conn.execute("select datname from pg_database where datname like 'bench%'").fetchall() == []


def test_server_that_loses_commits_is_refused_unless_asked_for(server: Server) -> None:
    """Figures of a server with fsync off would be lies: no figure, exit code 1, and a stamp where somebody insists."""
    process = bench(server, "start", "--runs", "5")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert out == ""
    assert "fsync is off" in err and "--unsafe" in err
    result, _ = answer(bench(server, "start", "--runs", "5", "--repeat", "1", "--unsafe"))
    assert result["circumstances"]["unsafe"] == ["fsync"]
    assert result["circumstances"]["settings"]["fsync"] == "off"


def test_role_without_createdb_measures_in_a_schema(server: Server) -> None:
    """On a server where no database may be created, a schema of its own is made and dropped."""
    with server.connect() as conn:
        conn.execute("drop role if exists bench_plain")
        conn.execute("create role bench_plain login")
        conn.execute("grant create on database supervisor to bench_plain")
        try:
            plain = psycopg.conninfo.make_conninfo(server.dsn, user="bench_plain")
            result, _ = answer(bench(server, "tx", "--runs", "10", "--procs", "1", "--repeat", "1", "--unsafe", dsn=plain))
            assert (result["circumstances"]["place"], result["circumstances"]["checkpoints"]) == ("schema", False)
            assert conn.execute("select nspname from pg_namespace where nspname like 'bench%'").fetchall() == []
        finally:
            conn.execute("drop owned by bench_plain")
            conn.execute("drop role bench_plain")


# ── the outside count ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Look:
    """What an outsider saw in one moment: by one statement, so that its parts belong together."""

    at: datetime
    wal: int
    workers: int
    work_left: bool


@dataclass
class Outsider(threading.Thread):
    """Watches a benchmark's database and the CPU time of all of its processes, knowing nothing but its process id."""

    server: Server
    pid: int
    database: str
    looks: list[Look] = field(default_factory=list)
    cpu_s: dict[int, float] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__()

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        conn = None
        while not self.over.wait(0.002):
            self._look_at_processes()
            try:
                conn = conn or self.server.connect(self.database)
                self._look_at_database(conn)
            except psycopg.Error:  # not yet there, or its tables are not
                conn = None
        if conn is not None:
            conn.close()

    def _look_at_processes(self) -> None:
        with suppress(OSError):
            for pid in map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()):
                with suppress(OSError):
                    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                    self.cpu_s[pid] = (int(fields[11]) + int(fields[12])) * TICK_S

    def _look_at_database(self, conn: psycopg.Connection[Any]) -> None:
        row = conn.execute(
            "select statement_timestamp(), pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::int8, "
            "(select count(*) from supervisor.worker where dead_at is null), exists (select from supervisor.task)"
        ).fetchone()
        assert row is not None
        self.looks.append(Look(*row))


@pytest.mark.alone
def test_outside_count_agrees(server: Server) -> None:
    """Rows by SQL, WAL by its position, CPU by /proc, the clock by looks from outside: each bounds what the JSON says."""
    runs, steps, procs = 2000, 10, 2
    size = ["--runs", str(runs), "--steps", str(steps), "--procs", str(procs)]
    process = bench(server, "steps", *size, "--repeat", "1", "--unsafe", "--keep")
    name = f"bench_{process.pid}_2"  # the first one warms up
    outsider = Outsider(server, process.pid, name)
    outsider.start()
    try:
        result, err = answer(process)
    finally:
        outsider.over.set()
        outsider.join()
    kept = re.findall(r"kept database (\S+)", err)
    assert kept == [f"bench_{process.pid}_1", name]
    figures = result["each"][0]
    try:
        with server.connect(name) as conn:
            _agrees_with_the_tables(conn, figures, runs, steps)
            pids = [pid for (pid,) in conn.execute("select pid from supervisor.worker order by id desc limit %s", (procs,)).fetchall()]
        _agrees_with_the_looks(outsider.looks, figures)
        seen_s = sum(outsider.cpu_s[pid] for pid in pids)
        assert figures["worker_cpu_s"] <= figures["worker_cpu_to_exit_s"] + 0.01
        assert 0.5 * figures["worker_cpu_s"] - procs * TICK_S <= seen_s <= 1.05 * figures["worker_cpu_to_exit_s"] + procs * TICK_S
        assert figures["worker_cpu_us_per_step"] == pytest.approx(figures["worker_cpu_s"] * 1e6 / (runs * steps), rel=1e-2)
    finally:
        with server.connect() as conn:
            for each in kept:
                conn.execute(f"drop database {each} with (force)")


def _agrees_with_the_tables(conn: psycopg.Connection[Any], figures: dict[str, float], runs: int, steps: int) -> None:
    def one(query: str) -> Any:
        return conn.execute(query).fetchone()[0]  # type: ignore[index]

    assert one("select count(*) from supervisor.step where status = 1") == runs * steps
    assert one("select count(*) from supervisor.outcome where status = 1 and steps = 10") == runs
    assert one("select count(*) from supervisor.task") == 0
    assert one("select sum(convert_from(result, 'UTF8')::int) from supervisor.outcome") == sum(range(runs)) + runs * steps
    batches = one("select count(distinct xmin::text) from supervisor.step")
    assert figures["batch_rows"] == round(runs * steps / batches)
    assert batches <= figures["commits"] <= one("select xact_commit from pg_stat_database where datname = current_database()")
    spent = "extract(epoch from (select max(ended_at) from supervisor.outcome) - (select min(started_at) from supervisor.step))::float8"
    assert figures["seconds"] >= one(f"select {spent}") - 0.01
    assert figures["steps_per_s"] == pytest.approx(runs * steps / figures["seconds"], rel=1e-2)
    assert figures["ratio"] == pytest.approx(figures["steps_per_s"] / figures["copy_rows_per_s"], rel=1e-2)
    assert figures["wal_bytes_per_step"] == pytest.approx(figures["wal_bytes"] / (runs * steps), rel=1e-2)


def _agrees_with_the_looks(looks: list[Look], figures: dict[str, float]) -> None:
    """WAL and time of the measurement lie between those of the widest stretch inside it and the narrowest around it."""
    at_work = [at for at, look in enumerate(looks) if look.workers and look.work_left]
    assert at_work, "the outsider never saw it at work"
    first, last = at_work[0], at_work[-1]
    assert first > 0, "the outsider came late"
    # the benchmark notes the WAL's position, then forks its workers, which register some tenths of a second later
    earlier = [look for look in looks[:first] if look.at <= looks[first].at - timedelta(seconds=0.5)]
    before, after = (earlier or looks)[-1 if earlier else 0], looks[last + 1]
    assert looks[last].wal - looks[first].wal <= figures["wal_bytes"] <= after.wal - before.wal
    # the clock begins a little after the first look at registered workers, with the first claim, and rounds
    assert figures["seconds"] <= (after.at - before.at).total_seconds() * 1.001 + 0.05
