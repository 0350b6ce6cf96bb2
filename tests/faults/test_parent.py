"""The parent: what it tells its workers, what it is told by signals, how it ends. Real processes, real signals."""

from __future__ import annotations

import calendar
import itertools
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from supervisor import Client
from tests.faults.load import age_s, dice
from tests.harness import Database, Effects, Host, HostFactory, Server, eventually, server_folder
from tests.house.test_start_up import run_program

HEAD = """
import os
from supervisor import sleep, step, workflow
from tests.harness import note, wait_for_file
note("imported", os.getpid())
"""
PLAIN = """
@step
def answer(gate: str) -> str:
    if gate:
        note("held", gate, os.getpid())
        wait_for_file(gate)
    return "{word}"

@workflow
async def ask(gate: str = "") -> str:
    return await answer.aio(gate)
"""
REMOVED = """
@workflow
async def removed() -> str:
    await sleep(2)
    return "the old code went on"
"""
_moments = itertools.count(int(time.time()) - 1_000_000)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes the app into the folder where hosts run; returns its name. Each text is a second younger, or the last one's bytecode would pass for it."""

    def write_app(*parts: str, name: str = "shop") -> str:
        path = tmp_path / f"{name}.py"
        fresh = path.with_suffix(".new")
        fresh.write_text("".join(parts))
        moment = next(_moments)
        os.utime(fresh, (moment, moment))
        fresh.rename(path)
        return name

    return write_app


def ended(host: Host, within_s: float = 30.0) -> int:
    """Wait for the host to end by itself; returns its exit code."""
    return eventually(lambda: host.process.poll() is not None and [host.process.poll()], within_s, f"it goes on:\n{host.log()}")[0] or 0


def words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):  # it has ended since it was listed
        return ""


def sockets(pid: int) -> set[str]:
    """The sockets and pipes that a process has open, by inode."""
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd") if int(fd) > 2]
    return {link for link in links if link.startswith("socket:")}


def imports(effects: Effects) -> list[int]:
    return [int(pid) for _, pid in effects.lines("imported")]


def result_of(database: Database, name: str, within_s: float = 30.0, **parameters: str) -> str:
    with Client(database.dsn) as client:
        return str(client.start(name, **parameters).result(timeout=within_s))


# ── the app belongs to the workers ───────────────────────────────────────────────────────────────────────────────


def test_the_parent_imports_no_user_code_and_has_one_thread(database: Database, hosts: HostFactory, effects: Effects, write: Callable[..., str]) -> None:
    """What an app starts when it is imported (threads, connections) is never there before a fork."""
    with hosts(write(HEAD, PLAIN.format(word="here")), procs=2) as host:
        assert set(imports(effects)) == set(host.worker_pids())
        assert os.listdir(f"/proc/{host.pid}/task") == [str(host.pid)]
        assert result_of(database, "ask") == "here"
        assert "app shop: ask" in host.log()
        host.kill_worker()
        eventually(lambda: len(set(imports(effects))) == 3, 20)
        assert host.pid not in imports(effects)
        assert os.listdir(f"/proc/{host.pid}/task") == [str(host.pid)]


@pytest.mark.parametrize(
    ("text", "evidence"),
    [
        ("def f():\n    raise ValueError('not configured')\n\n\nf()\n", "ValueError: not configured"),
        ("def f(:\n", "SyntaxError"),
        ("import sys\nsys.exit('no')\n", "SystemExit: no"),
        ("import no_such_package_at_all\n", "ModuleNotFoundError"),
    ],
)
def test_an_app_that_cannot_be_imported_ends_the_host_at_once(text: str, evidence: str, hosts: HostFactory, effects: Effects, write: Callable[..., str]) -> None:
    """With the traceback, whose first line is the app's, and exit code 70; not after five tries."""
    host = hosts.start(write(HEAD, text), procs=2)
    assert ended(host) == 70, host.log()
    assert evidence in host.log() and "shop.py" in host.log()
    assert host.log().count(evidence) == 1 and "importlib" not in host.log() and "\\n" not in host.log()
    assert f"\n    {evidence}" in host.log() and re.search(r"can't import the app:$", host.log(), re.MULTILINE), "a traceback by lines, indented"
    assert len(imports(effects)) <= 2 and " is up as " not in host.log()


def test_a_schedule_whose_input_has_a_wrong_type_is_named_and_nothing_starts(hosts: HostFactory, database: Database, write: Callable[..., str]) -> None:
    """Only a worker can know it; its first one says it once, in a line, and not each of them at its birth."""
    told = "from supervisor import Schedule\nnightly = Schedule('nightly', ask, every=3600, input={'gate': 1})\n"
    host = hosts.start(write(HEAD, PLAIN.format(word="here"), told), procs=2)
    assert ended(host) == 78, host.log()
    assert host.log().count("nightly") == 1 and "Traceback" not in host.log() and "giving up" not in host.log()
    assert "error: schedule 'nightly': its input does not fit workflow ask: parameter 'gate': Expected `str`, got `int`" in host.log()
    assert database.one("select count(*) from supervisor.schedule") == 0


def test_an_app_that_is_not_there_is_named(hosts: HostFactory, write: Callable[..., str]) -> None:
    """A misspelt --app is no crash: two lines and the code of a wrong configuration."""
    host = hosts.start("shopp", procs=2)
    assert ended(host) == 78
    assert "there is no module 'shopp'" in host.log() and "Traceback" not in host.log()
    assert "did you mean" not in host.log(), "there is no such file"
    write("x = 1\n")
    for wrong, meant in (("shpo", "shop"), ("shop.py", "shop"), ("./shop", "shop"), ("orders/shop.py", "orders.shop"), ("../shop", "shop")):
        host = hosts.start(wrong)
        assert ended(host) == 78 and f"did you mean --app {meant}?" in host.log()
        assert wrong == "shpo" or f"--app {wrong}: that is a path, and --app wants the name of a module" in host.log()
    empty = hosts.start(write("x = 1\n"), procs=2)
    assert ended(empty) == 78
    assert "defines no workflow" in empty.log() and "Traceback" not in empty.log()


def test_five_quick_deaths_end_the_host_with_the_last_traceback(hosts: HostFactory, effects: Effects, write: Callable[..., str]) -> None:
    """A worker that can't live must not be forked for ever, and its last words must not have gone by."""
    break_it = "from supervisor.engine.worker import Worker\nasync def run(self):\n    raise RuntimeError('can not live')\nWorker.run = run\n"
    host = hosts.start(write(HEAD, PLAIN.format(word=""), break_it), procs=1)
    assert ended(host) == 70
    assert len(imports(effects)) == 5
    giving_up = host.log()[host.log().index("giving up") :]
    assert "RuntimeError: can not live" in giving_up and "shop.py" in giving_up


def test_a_crash_in_native_code_is_shown_where_it_was(hosts: HostFactory, effects: Effects, write: Callable[..., str]) -> None:
    """No exception and no pipe tells of it: the last traceback is on stderr."""
    host = hosts.start(write(HEAD, "import signal\ndef crash():\n    os.kill(os.getpid(), signal.SIGSEGV)\ncrash()\n"), procs=1)
    assert ended(host) == 70
    assert len(imports(effects)) == 5 and host.log().count("was killed by SIGSEGV") == 5
    assert "Fatal Python error: Segmentation fault" in host.log() and "in crash" in host.log()


def test_an_app_that_breaks_later_does_not_end_the_workers_that_serve(
    database: Database, hosts: HostFactory, effects: Effects, write: Callable[..., str]
) -> None:
    """A deployment copies files while a worker dies: its successor tries again until they are whole."""
    with hosts(write(HEAD, PLAIN.format(word="whole")), procs=2) as host:
        write(HEAD, "half of a (\n")
        host.kill_worker()
        eventually(lambda: host.log().count("SyntaxError") >= 2, 30)
        assert result_of(database, "ask") == "whole"
        write(HEAD, PLAIN.format(word="whole"))
        eventually(lambda: host.log().count(" is up as ") == 3, 30)


# ── HUP ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def reloaded(host: Host, generation: int, procs: int, within_s: float = 60.0) -> None:
    eventually(lambda: f"all {procs} workers are of generation {generation}" in host.log(), within_s, f"no reload:\n{host.log()}")


def test_hup_brings_new_code_and_loses_nothing(database: Database, hosts: HostFactory, effects: Effects, write: Callable[..., str]) -> None:
    """Never fewer than procs - 1 workers; what the old ones execute they finish; whose code is gone waits and says so."""
    with hosts(write(HEAD, PLAIN.format(word="old"), REMOVED), procs=2) as host, Client(database.dsn) as client:
        old = set(host.worker_pids())
        held = [client.start("ask", gate="go") for _ in range(2)]
        eventually(lambda: len(effects.lines("held")) == 2, 20)
        gone = client.start("removed")
        eventually(lambda: database.one("select count(*) from supervisor.waits where code = 'timer'") == 1, 20)
        write(HEAD, PLAIN.format(word="brand new"))
        os.kill(host.pid, signal.SIGHUP)
        eventually(lambda: host.log().count(" is up as ") == 3, 30)
        fewest = []

        def sampled() -> bool:
            fewest.append(database.one("select count(*) from supervisor.worker where dead_at is null"))
            return "workers are of generation 2" in host.log()

        effects.open("go")
        eventually(sampled, 60, f"no reload:\n{host.log()}")
        assert min(fewest) >= 1 and max(fewest) <= 3
        eventually(lambda: not old & set(host.worker_pids()) and len(host.worker_pids()) == 2, 30, "the last old one, which drains, has ended")
        assert {run.result(timeout=20) for run in held} == {"old"}
        assert result_of(database, "ask") == "brand new"
        eventually(lambda: database.one("select code from supervisor.waits where run_id = %s", gone.id) == "code_missing", 30)
        assert "killed by" not in host.log() and effects.count("held", "go") == 2


def test_hup_with_an_import_error_keeps_the_old_code_and_says_so(database: Database, hosts: HostFactory, effects: Effects, write: Callable[..., str]) -> None:
    """The traceback is in the log, nobody was drained, and a mended file is taken by the next HUP."""
    with hosts(write(HEAD, PLAIN.format(word="old")), procs=2) as host:
        old = set(host.worker_pids())
        write(HEAD, "raise KeyError('half of a deployment')\n")
        os.kill(host.pid, signal.SIGHUP)
        eventually(lambda: "generation 1 stays" in host.log(), 30)
        assert "KeyError: 'half of a deployment'" in host.log() and host.log().count("Traceback") == 1
        eventually(lambda: set(host.worker_pids()) == old, 10)
        assert result_of(database, "ask") == "old"
        write(HEAD, PLAIN.format(word="mended"))
        os.kill(host.pid, signal.SIGHUP)
        reloaded(host, 2, 2)
        assert result_of(database, "ask") == "mended"


def test_hup_with_workers_that_die_at_birth_keeps_the_old_ones(database: Database, hosts: HostFactory, write: Callable[..., str]) -> None:
    with hosts(write(HEAD, PLAIN.format(word="old")), procs=1) as host:
        (old,) = host.worker_pids()
        write(HEAD, PLAIN.format(word="new"), "os._exit(3)\n")
        os.kill(host.pid, signal.SIGHUP)
        eventually(lambda: "3 of its workers died before they were ready; generation 1 stays" in host.log(), 30)
        eventually(lambda: host.worker_pids() == [old], 10)
        assert result_of(database, "ask") == "old"


def test_further_hups_during_a_reload_are_one(hosts: HostFactory, effects: Effects, write: Callable[..., str]) -> None:
    """Whoever sends ten gets the newest code, and not ten generations."""
    with hosts(write(HEAD, PLAIN.format(word="old")), procs=1) as host:
        write(HEAD, "wait_for_file('go')\n", PLAIN.format(word="new"))
        os.kill(host.pid, signal.SIGHUP)
        eventually(lambda: len(imports(effects)) == 2, 20)
        for n in range(1, 4):
            os.kill(host.pid, signal.SIGHUP)
            eventually(lambda n=n: host.log().count("another follows") == n, 10)  # type: ignore[misc]
        effects.open("go")
        reloaded(host, 3, 1)
        # a fourth generation would have begun in the same turn of the loop
        assert len(re.findall(r"reload: generation \d+ takes over", host.log())) == 2


def test_signals_and_deaths_in_any_order_end_where_they_should(database: Database, hosts: HostFactory, write: Callable[..., str]) -> None:
    """What is to be is compared with what is: whatever came when, there are as many workers as were asked for, all of the last generation."""
    chance = dice()
    host = hosts.start(write(HEAD, PLAIN.format(word="here")), procs=2, own_group=True).wait_up(2)
    for _ in range(60):
        lines = host.log().count("\n")
        what = chance.choice([signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGKILL])
        if what != signal.SIGKILL:
            os.kill(host.pid, what)
        elif grown := [pid for pid in host.worker_pids() if age_s(pid) > 1.05]:  # five deaths at birth would end the host
            host.kill_worker(chance.choice(grown))
        else:
            continue
        eventually(lambda lines=lines: host.log().count("\n") > lines, 10)  # type: ignore[misc]
        if chance.random() < 0.5:
            assert result_of(database, "ask") == "here"
    target = int(([2, *re.findall(r"(\d+) workers? instead of", host.log())])[-1])

    def settled() -> bool:
        begun = re.findall(r"generation (\d+) takes over", host.log())
        done = re.findall(r"all \d+ workers are of generation (\d+)", host.log())
        return begun[-1:] == done[-1:] and len(host.worker_pids()) == target

    eventually(settled, 120, f"{target} workers: {host.worker_pids()}\n{host.log()[-3000:]}")
    assert result_of(database, "ask") == "here"
    assert host.stop() == 0


# ── other signals ────────────────────────────────────────────────────────────────────────────────────────────────


def test_ttin_and_ttou_make_one_worker_more_and_one_fewer(database: Database, hosts: HostFactory, write: Callable[..., str]) -> None:
    """Down to one, by draining; up to what the black box has room for."""
    with hosts(write(HEAD, PLAIN.format(word="here")), procs=2) as host:

        def after(number: int, workers: int, lines: int) -> None:
            os.kill(host.pid, number)
            eventually(lambda: host.log().count("from now on") + host.log().count("are possible") == lines, 10)
            eventually(lambda: len(host.worker_pids()) == workers, 20, host.log())

        after(signal.SIGTTIN, 3, 1)
        after(signal.SIGTTIN, 4, 2)
        eventually(lambda: host.log().count(" is up as ") == 4, 20)
        for lines, workers in enumerate((3, 2, 1, 1, 1), 3):
            after(signal.SIGTTOU, workers, lines)
        assert "killed by" not in host.log()
        assert result_of(database, "ask") == "here"
        after(signal.SIGTTIN, 2, 8)
        # the number of a reload is that of the moment, not of the start
        os.kill(host.pid, signal.SIGTTOU)
        os.kill(host.pid, signal.SIGHUP)
        reloaded(host, 2, 1)


USR1_APP = """
import signal

@step(run="inline")
def listen() -> int:
    signal.signal(signal.SIGUSR1, lambda *_: note("heard", os.getpid()))
    return os.getpid()

@workflow
async def hear() -> int:
    return await listen.aio()
"""


def test_usr1_shows_the_parents_stack_and_reaches_the_workers(database: Database, hosts: HostFactory, effects: Effects, write: Callable[..., str]) -> None:
    with hosts(write(HEAD, USR1_APP), procs=1) as host:
        pids = host.worker_pids()
        os.kill(host.pid, signal.SIGUSR1)
        eventually(lambda: "most recent call first" in host.log() and "in run" in host.log(), 10, host.log())
        assert result_of(database, "hear") == str(pids[0])
        os.kill(host.pid, signal.SIGUSR1)
        eventually(lambda: effects.count("heard", pids[0]) == 1, 10)
        assert host.worker_pids() == pids and host.process.poll() is None


def test_a_newborn_survives_usr1_and_the_parent_ignores_winch(hosts: HostFactory, effects: Effects, write: Callable[..., str]) -> None:
    """While the app is being imported there is no handler yet."""
    host = hosts.start(write(HEAD, "wait_for_file('go')\n", PLAIN.format(word="")), procs=1)
    eventually(lambda: imports(effects), 20)
    os.kill(host.pid, signal.SIGUSR1)
    os.kill(host.pid, signal.SIGWINCH)
    eventually(lambda: "most recent call first" in host.log(), 10)
    effects.open("go")
    host.wait_up(1)
    assert len(imports(effects)) == 1
    ignored = int(re.search(r"SigIgn:\s+(\w+)", Path(f"/proc/{host.pid}/status").read_text())[1], 16)  # type: ignore[index]
    assert ignored >> (signal.SIGWINCH - 1) & 1
    assert host.stop() == 0


def test_term_while_the_app_is_imported_ends_it(hosts: HostFactory, effects: Effects, write: Callable[..., str]) -> None:
    """An import that hangs does not make a host that can't be stopped."""
    host = hosts.start(write(HEAD, "wait_for_file('never')\n"), procs=2)
    eventually(lambda: len(imports(effects)) == 2, 20)
    host.process.send_signal(signal.SIGTERM)
    assert ended(host, 5) == 0


def test_processes_are_named(hosts: HostFactory, write: Callable[..., str]) -> None:
    """ps and top say who is who, and a password in --dsn is not shown."""
    pytest.importorskip("setproctitle")
    with hosts(write(HEAD, PLAIN.format(word="")), procs=2) as host:
        assert words(host.pid) == "pgsupervisor: parent (shop)"
        assert {words(pid) for pid in host.worker_pids()} == {f"pgsupervisor: worker {n} of shop, generation 1" for n in range(2)}
        os.kill(host.pid, signal.SIGHUP)
        reloaded(host, 2, 2)
        new = [True] * 2
        eventually(lambda: [words(pid).endswith("of shop, generation 2") for pid in host.worker_pids()] == new, 20, "the old ones end, and the new ones are named")


def test_without_the_library_nothing_is_named_and_nothing_breaks(database: Database, hosts: HostFactory, write: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "setproctitle.py").write_text("raise ImportError('not installed')\n")
    with hosts(write(HEAD, PLAIN.format(word="here")), procs=1) as host:
        assert "--app shop" in words(host.pid)
        assert result_of(database, "ask") == "here"


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_worker_outlives_a_killed_parent_by_a_second(database: Database, hosts: HostFactory) -> None:
    """Under load; one stands still when it happens, and its sessions end all the same."""
    host = hosts.start("tests.faults.apps_plain", procs=4).wait_up(4)
    with Client(database.dsn) as client:
        client.start_many("ten_steps", [{"n": n} for n in range(20_000)])
        eventually(lambda: database.one("select count(*) from supervisor.outcome") > 100, 60)
        workers = host.worker_pids()
        assert len(workers) == 4
        os.kill(workers[0], signal.SIGSTOP)
        os.kill(host.pid, signal.SIGKILL)
        host.process.wait()
        eventually(lambda: not any(alive(pid) for pid in workers), 1.0, "workers live on")
        assert database.one("select count(*) from supervisor.task") > 0, "the load was over before the kill"
    eventually(lambda: database.one("select count(*) from pg_stat_activity where application_name like 'pgsupervisor: %%' and datname = current_database()") == 0, 10)


def alive(pid: int) -> bool:
    """Whether a process lives; one that is dead and not reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_holds_nothing_of_its_parents(database: Database, hosts: HostFactory, write: Callable[..., str]) -> None:
    """A socket of the parent's that a worker has too keeps its session, and the locks of it, alive when the parent is dead."""
    with hosts(write(HEAD, PLAIN.format(word="")), procs=2) as host:
        host.kill_worker()  # the parent has met the database: successors are forked beside its sessions
        eventually(lambda: host.log().count(" is up as ") == 3, 20)
        ours = sockets(host.pid)
        assert ours, "the parent has no session: nothing is shown"
        for pid in host.worker_pids():
            assert not ours & sockets(pid)


def test_term_to_the_whole_group_forks_nobody(database: Database, hosts: HostFactory, write: Callable[..., str]) -> None:
    """A terminal, systemd and Kubernetes' shells tell all of a group to end: no successor is born for that."""
    host = hosts.start(write(HEAD, PLAIN.format(word="")), procs=2, own_group=True).wait_up(2)
    os.killpg(host.pid, signal.SIGTERM)
    assert ended(host) == 0
    # the workers first, the parent a moment later
    slower = hosts.start("shop", procs=1).wait_up(1)
    slower.kill_worker(how=signal.SIGTERM)
    eventually(lambda: not slower.worker_pids(), 10)
    slower.process.send_signal(signal.SIGTERM)
    assert ended(slower) == 0
    assert database.one("select count(*) from supervisor.worker") == 3


def test_the_successor_of_a_worker_that_was_told_to_end_waits(hosts: HostFactory, effects: Effects, write: Callable[..., str]) -> None:
    """For a moment in which the parent may be told too: who ends a group one by one may begin with the workers."""
    with hosts(write(HEAD, "import time\nnote('at', time.time())\n", PLAIN.format(word="")), procs=1) as host:
        host.kill_worker(how=signal.SIGTERM)
        eventually(lambda: len(effects.lines("at")) == 2, 20)
        said = re.search(r"^(\S+ \S+)\.(\d+)Z W \S+ worker \d+ .* ended with exit code 0", host.log(), re.MULTILINE)
        assert said is not None, host.log()
        died_at = calendar.timegm(time.strptime(said[1], "%Y-%m-%d %H:%M:%S")) + int(said[2]) / 1000
        assert float(effects.lines("at")[1][1]) - died_at >= 0.2


@pytest.mark.parametrize(("first", "second", "code"), [(2, 2, 130), (15, 15, 143), (3, 0, 131), (2, 3, 131)])
def test_a_second_signal_ends_at_once_with_its_number(
    database: Database, hosts: HostFactory, effects: Effects, write: Callable[..., str], first: int, second: int, code: int
) -> None:
    host = hosts.start(write(HEAD, PLAIN.format(word="")), procs=1).wait_up(1)
    with Client(database.dsn) as client:
        client.start("ask", gate="never")
        eventually(lambda: effects.lines("held"), 20)
        host.process.send_signal(first)
        if second:
            eventually(lambda: "once more to stop at once" in host.log(), 10)
            host.process.send_signal(second)
        assert ended(host, 10) == code
        assert database.one("select count(*) from supervisor.task where owner is not null") == 0, "claims are held by the dead"


def test_exit_codes_of_run(database: Database, server: Server, hosts: HostFactory, write: Callable[..., str], tmp_path: Path) -> None:
    """Those that `run --help` lists and no other test here shows."""
    told = run_program("-m", "supervisor", "run", "--help", cwd=tmp_path).stdout
    listed = re.findall(r"^ +(\d+|128\+n)  +\S", told[told.index("Exit codes:") :], re.MULTILINE)
    assert listed == ["0", "1", "2", "69", "70", "75", "78", "79", "128+n"]
    write(HEAD, PLAIN.format(word=""), "@workflow\nasync def fail() -> None:\n    raise ValueError('no')\n")
    with Client(database.dsn) as client:
        idle = hosts.start("shop", args=("--until-empty",))
        assert ended(idle) == 0, idle.log()
        client.start("fail")
        failing = hosts.start("shop", args=("--until-empty",))
        assert ended(failing) == 1, failing.log()
        write(HEAD, "x = (\n")
        assert ended(hosts.start("shop", args=("--until-empty",))) == 70, "nothing to do, and an app that can't be imported"
        write(HEAD, PLAIN.format(word=""))
    assert ended(hosts.start("shop", args=("--drain-timeout", "soon"))) == 2
    assert ended(hosts.start("shop", args=("--dsn", "host=/nonexistent dbname=x"))) == 69
    with server.connect() as conn:
        conn.execute("create database parent_empty")
    try:
        assert ended(hosts.start("shop", args=("--dsn", psycopg.conninfo.make_conninfo(server.dsn, dbname="parent_empty")))) == 75
    finally:
        with server.connect() as conn:
            conn.execute("drop database parent_empty with (force)")
    stopped = hosts.start("shop").wait_up(1)
    assert stopped.stop() == 0


# ── sessions ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small() -> Iterator[Database]:
    """A database on a server with room for 20 sessions."""
    made = Server.start(server_folder("pgs-small-"), {"max_connections": "20"})
    try:
        yield made.database()
    finally:
        made.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


def test_a_host_that_does_not_fit_is_refused_with_the_sum(small: Database, effects: Effects, tmp_path: Path, write: Callable[..., str]) -> None:
    """Before a worker is forked, or where the app's transactional steps make the difference, as soon as that is known."""
    hosts = HostFactory(small, effects, tmp_path)
    small.sql("select 1")  # one session of somebody else
    many = hosts.start(write(HEAD, PLAIN.format(word="")), procs=14)
    assert ended(many) == 78, many.log()
    assert "14 workers × 1 (loop) + 4 of the parent = 18 sessions" in many.log()
    assert "room for 16: max_connections 20 - 3 reserved - 1 in use" in many.log() and "lower --procs to 12" in many.log()
    assert not imports(effects)
    booking = "@step(transactional=True)\ndef book(tx) -> None:\n    tx.execute('select 1')\n"
    twice = hosts.start(write(HEAD, PLAIN.format(word=""), booking), procs=7)
    assert ended(twice) == 78, twice.log()
    assert "7 workers × 2 (loop, transactional steps) + 4 of the parent = 18 sessions" in twice.log() and "lower --procs to 6" in twice.log()
    watched = hosts.start("shop", procs=6, args=("--dashboard", "0"), env={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert ended(watched) == 78, watched.log()
    assert "+ 4 of the parent + 7 of the dashboard = " in watched.log()
    with hosts("shop", procs=2):
        pass


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────

PARTS = """
import math, os, signal, sys, time
from supervisor.host.parent import Parent, ParentOptions

def work(birth):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    birth.born(1, "nobody", True)
    nudged = 0
    while nudged < 3:
        try:
            nudged += os.eventfd_read(birth.nudge_fd)
        except BlockingIOError:
            time.sleep(0.005)
    return 7

class Ticking:
    acted = closed = 0
    at = 0.0
    def sockets(self): return [], []
    def due(self): return self.at
    def act(self, readable, writable):
        self.acted += 1
        self.at = time.monotonic() + 0.05
    def close(self): self.closed += 1

class Listening(Ticking):
    heard = b""
    def __init__(self): self.reading, self.writing = os.pipe(); self.words = [b"a", b"b"]
    def sockets(self): return [self.reading], [self.writing] if self.words else []
    def due(self): return math.inf
    def act(self, readable, writable):
        if self.writing in writable: os.write(self.writing, self.words.pop(0))
        if self.reading in readable: self.heard += os.read(self.reading, 10)

ticking, listening, deaths = Ticking(), Listening(), []
parent = Parent(ParentOptions("host=/nonexistent", "supervisor", 1, 1), work, parts=[ticking])
parent.add(listening)
parent.on_death.append(lambda child, code, executing: (deaths.append((child.number, code, executing)), parent.stop()))
parent.start()
began = time.monotonic()
while parent.step(60.0):
    for child in parent.children.values():
        if child.ready and ticking.acted >= 3:
            child.wake()
parent.close()
assert deaths == [(0, 7, [])], deaths
assert listening.heard == b"ab" and ticking.acted >= 3, (listening.heard, ticking.acted)
assert ticking.closed == listening.closed == 1
assert time.monotonic() - began < 20, "it waited for its tick"
"""


def test_parts_live_in_the_parents_loop_and_workers_are_nudged(tmp_path: Path) -> None:
    """The protocol that everything else in the parent builds on: sockets, due, act, close, on_death, wake."""
    made = run_program("-c", PARTS, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
