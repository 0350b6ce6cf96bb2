"""Logs while things die: records are whole and know their run, nobody waits for a log, and nobody is silenced by another's death."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from supervisor import Client
from supervisor.host.log_files import LogFile
from supervisor.host.log_process import LogOptions, LogProcess, Writer
from tests.faults import apps_logs
from tests.harness import ROOT, Database, Effects, Host, HostFactory, eventually

APP = "tests.faults.apps_logs"
NAME = "supervisor.log"


@pytest.fixture
def client(database: Database) -> Iterator[Client]:
    with Client(database.dsn) as made:
        yield made


def told(*files: Path, torn_max: int = 0) -> list[dict[str, Any]]:
    """The lines of JSON in *files*, each of which must be one, but for *torn_max*; the last may be being written."""
    found, torn = [], []
    for file in files:
        *lines, _unfinished = file.read_bytes().split(b"\n")
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                torn.append(line)
    assert len(torn) <= torn_max, torn
    return found


def of_folder(folder: Path, torn_max: int = 0) -> list[dict[str, Any]]:
    names = sorted(folder.glob(f"{NAME}*"), key=lambda path: -int(path.suffix[1:]) if path.suffix[1:].isdigit() else 1)
    return told(*(path for path in names if path.suffix != ".lock"), torn_max=torn_max)


def log_pid(host: Host, folder: Path) -> int:
    """The log process: the child that has the file open."""

    def found() -> int:
        for pid in host.worker_pids():
            with suppress(OSError):
                if any(os.readlink(fd) == str(folder / NAME) for fd in Path(f"/proc/{pid}/fd").iterdir()):
                    return pid
        return 0

    return eventually(found, 10, "a log process")


def workers(host: Host, folder: Path) -> list[int]:
    return [pid for pid in host.worker_pids() if pid != log_pid(host, folder)]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def seen(host: Host, run: Any, folder: Path, *args: str) -> str:
    """What `show --logs` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "supervisor", "show", str(run.id), "--logs", *args], capture_output=True, text=True, timeout=60, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PGSUPERVISOR_LOG_DIR": str(folder), "PGSUPERVISOR_DATABASE_URL": host.database.dsn},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


# ── which run, and only once ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["talks", "talks_def"])
def test_every_record_knows_its_run_and_a_replay_repeats_none(
    name: str, build: str, client: Client, hosts: HostFactory, effects: Effects
) -> None:
    """Steps wherever they run, workflow code, and what replays twice: after the timer it left memory for, and after its worker's death."""
    host = hosts.start(APP, build=build, args=("--log-format", "json")).wait_up(1)
    run = client.start(getattr(apps_logs, name), "go")
    eventually(lambda: effects.count("in_thread") == 2, 30)
    host.kill_worker()
    eventually(lambda: effects.count("in_thread") == 3, 30)
    effects.open("go")
    assert run.result(timeout=30) == 8
    host.stop()
    lines = told(host.log_path)
    mine = [line for line in lines if line["logger"] == "shop" or line["logger"] == f"pgsupervisor.{name}"]
    assert all(line["run"] == str(run.id) and line["workflow"] == name and line["worker"] == 0 for line in mine)
    places = Counter((line["message"], line.get("step"), line.get("seq"), line.get("attempt")) for line in mine)
    wanted = {
        (f"{name} begins", None, None, None): 1, ("in_thread", "in_thread", 0, 1): 1, ("in_task, inner task", "in_task", 1, 1): 1,
        ("in_task, thread of a task", "in_task", 1, 1): 1, ("in_task", "in_task", 1, 1): 1, ("inline", "inline", 2, 1): 1,
        ("in_transaction", "in_transaction", 3, 1): 1, ("in_async_transaction", "in_async_transaction", 4, 1): 1,
        (f"{name} is in the middle", None, None, None): 1, ("tried_again", "tried_again", 5, 1): 1, ("tried_again", "tried_again", 5, 2): 1,
        ("inline", "inline", 6, 1): 1, (f"{name} has slept", None, None, None): 1, (f"{name} unwinds", None, None, None): 1,
        (f"{name} ends", None, None, None): 1, ("in_thread", "in_thread", 8, 1): 2,
    }  # fmt: skip
    assert places == wanted
    (failed,) = [line for line in mine if "exception" in line]
    assert failed["exception"]["type"] == "ConnectionError" and "in tried_again" in failed["exception"]["traceback"]


def test_lines_of_the_terminal_are_whole(client: Client, hosts: HostFactory) -> None:
    """Workers that share one file or pipe never mix their lines."""
    host = hosts.start(APP, procs=3, args=("--log-format", "json")).wait_up(3)
    runs = [client.start(apps_logs.chats, number, 300, 1) for number in range(12)]
    assert [run.result(timeout=60) for run in runs] == list(range(12))
    host.stop()
    counts = Counter(line["message"].split()[0] for line in told(host.log_path) if line["logger"] == "shop")
    assert counts == {"line": 3600, "beside": 3600}


# ── deaths ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_kill_of_the_log_process_again_and_again(client: Client, hosts: HostFactory, effects: Effects, tmp_path: Path) -> None:
    """The pipes outlive it: workers go on, records of before and after are there, and all can end."""
    folder = tmp_path / "logs"
    host = hosts.start(APP, procs=2, args=("--log-dir", str(folder))).wait_up(2)
    before = workers(host, folder)
    runs = [client.start(apps_logs.chats, number, 40, 25) for number in range(8)]
    for kill in range(8):
        victim = log_pid(host, folder)
        eventually(lambda: len(effects.lines("chattered")) >= 20 * (kill + 1), 60)
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: log_pid(host, folder) != victim, 10)
    assert [run.result(timeout=60) for run in runs] == list(range(8))
    assert workers(host, folder) == before, "a worker ended"
    assert host.stop(within_s=20) == 0
    assert host.log().count("the log process (pid ") == 8
    lines = [line["message"] for line in of_folder(folder, torn_max=8)]  # a write to a file that is killed may have done its half
    made = 8 * 25 * 40 * 2
    kept = sum(re.fullmatch(r"(line|beside) \d+ \d+", line) is not None for line in lines)
    # what a killed process had read and not written is lost: eight reads from three pipes at most
    assert kept > made - 8 * 3 * (65536 // 150) - dropped(lines), f"{kept} of {made}"
    for number in range(8):
        assert f"line {number} 39" in lines


def dropped(lines: list[str]) -> int:
    return sum(int(match[1]) for line in lines if (match := re.match(r"(\d+) log records were dropped", line)))


def test_kill_of_a_worker_while_it_logs(client: Client, hosts: HostFactory, effects: Effects, tmp_path: Path) -> None:
    """It held nothing: the others go on logging, every line is whole, and all can end."""
    folder = tmp_path / "logs"
    host = hosts.start(APP, procs=3, args=("--log-dir", str(folder))).wait_up(3)
    runs = [client.start(apps_logs.chats, number, 50, 12) for number in range(30)]
    killed: set[int] = set()
    for kill in range(10):
        eventually(lambda: len(effects.lines("chattered")) >= 15 * (kill + 1), 60)
        # a busy parent may not have noticed yet whom the turns before have killed
        killed.add(host.kill_worker(eventually(lambda: [pid for pid in workers(host, folder) if pid not in killed], 20)[0]))
    assert [run.result(timeout=60) for run in runs] == list(range(30))
    assert host.stop(within_s=20) == 0
    lines = of_folder(folder)  # each of them is JSON
    last = Counter(line["message"].split()[1] for line in lines if re.fullmatch(r"line \d+ 49", line["message"]))
    assert all(last[str(number)] >= 12 for number in range(30)) or dropped([line["message"] for line in lines])
    assert sum("was killed by SIGKILL" in line["message"] for line in lines) == 10
    assert {line["worker"] for line in lines if line["logger"] == "shop"} == {0, 1, 2}


def test_a_stop_with_full_pipes_ends_in_time(client: Client, hosts: HostFactory, effects: Effects, tmp_path: Path) -> None:
    """A log process that hangs costs records, which are counted, and neither a step nor the stop."""
    folder = tmp_path / "logs"
    host = hosts.start(APP, procs=2, args=("--log-dir", str(folder), "--drain-timeout", "10")).wait_up(2)
    stopped = log_pid(host, folder)
    os.kill(stopped, signal.SIGSTOP)
    runs = [client.start(apps_logs.chats, number, 500, 5) for number in range(8)]  # 40,000 records, and 2 MiB of pipes
    assert [run.result(timeout=60) for run in runs] == list(range(8))
    began = time.monotonic()
    assert host.stop(within_s=20) == 0
    assert time.monotonic() - began < 8
    assert gone(stopped)
    lines = [line["message"] for line in of_folder(folder)]
    kept = sum(re.fullmatch(r"(line|beside) \d+ \d+", line) is not None for line in lines)
    (said,) = re.findall(r"(\d+) log records were dropped", host.log())
    assert kept > 5000 and 0 < int(said) and 0 <= kept + int(said) - 40_000 < 100  # the engine's own lines may be among the dropped


def test_records_that_were_dropped_are_said_when_there_is_room(client: Client, hosts: HostFactory, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    host = hosts.start(APP, args=("--log-dir", str(folder))).wait_up(1)
    stopped = log_pid(host, folder)
    os.kill(stopped, signal.SIGSTOP)
    client.start(apps_logs.chats, 1, 500, 20).result(timeout=60)
    os.kill(stopped, signal.SIGCONT)
    client.start(apps_logs.chats, 2, 1, 1).result(timeout=60)
    lines = eventually(lambda: [line for line in of_folder(folder) if "were dropped" in line["message"]], 10)
    assert lines[0]["worker"] == 0 and lines[0]["level"] == "WARNING"
    host.stop()
    assert "were dropped" not in host.log(), "it was said already"


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_the_log_process_ends_with_its_parent(stopped: bool, client: Client, hosts: HostFactory, effects: Effects, tmp_path: Path) -> None:
    """Within a second, with what was in the pipes written, also where it had been stopped."""
    folder = tmp_path / "logs"
    host = hosts.start(APP, procs=2, args=("--log-dir", str(folder))).wait_up(2)
    process = log_pid(host, folder)
    client.start(apps_logs.chats, 1, 2000, 1)
    if stopped:
        os.kill(process, signal.SIGSTOP)
    eventually(lambda: effects.count("chattered", 1), 30)
    os.kill(host.pid, signal.SIGKILL)
    host.process.wait()
    eventually(lambda: gone(process), 10, "the log process ends")
    messages = {line["message"] for line in of_folder(folder)}
    assert stopped or {"line 1 1999", "beside 1 1999"} <= messages


def test_term_and_interrupt_do_not_end_it_before_its_writers(client: Client, hosts: HostFactory, tmp_path: Path) -> None:
    """systemd, and ^C on a terminal, signal all processes of a service at once; the last lines count most."""
    folder = tmp_path / "logs"
    host = hosts.start(APP, args=("--log-dir", str(folder))).wait_up(1)
    process = log_pid(host, folder)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(process, number)
    run = client.start(apps_logs.chats, 5, 10, 1)
    assert run.result(timeout=30) == 5
    assert log_pid(host, folder) == process
    assert host.stop() == 0
    assert gone(process) and "line 5 9" in {line["message"] for line in of_folder(folder)}


def test_workers_of_a_reload_and_of_ttin_are_heard(client: Client, hosts: HostFactory, tmp_path: Path) -> None:
    """From the import of the app on. Each keeps its own pipe alone; the log process keeps no session of the parent's."""
    folder = tmp_path / "logs"
    host = hosts.start(APP, args=("--log-dir", str(folder))).wait_up(1)
    for number, up in ((signal.SIGTTIN, 2), (signal.SIGHUP, 4)):
        os.kill(host.pid, number)
        eventually(lambda up=up: host.log().count(" is up as ") == up, 30)  # type: ignore[misc]
    eventually(lambda: len(workers(host, folder)) == 2, 30, "the old generation has ended")
    first = log_pid(host, folder)
    os.kill(first, signal.SIGKILL)  # its successor is forked while the parent has sessions
    eventually(lambda: log_pid(host, folder) != first, 10)
    assert client.start(apps_logs.chats, 1, 3, 3).result(timeout=30) == 1
    read = pipes_of(log_pid(host, folder), "r")
    written = [pipes_of(pid, "w") & read for pid in workers(host, folder)]
    assert [len(each) for each in written] == [1, 1] and not written[0] & written[1]
    assert sum(os.readlink(fd).startswith("socket:") for fd in Path(f"/proc/{log_pid(host, folder)}/fd").iterdir()) == 1
    assert host.stop() == 0
    imports = [line for line in of_folder(folder) if line["message"] == "imported"]
    assert len({line["pid"] for line in imports}) == 4 and len({line["worker"] for line in imports}) >= 3
    assert "imported" not in host.log() and "log records were dropped" not in host.log()


def pipes_of(pid: int, mode: str) -> set[str]:
    """Those that the process has open for reading (r) or writing (w)."""
    open_ends = [fd for fd in Path(f"/proc/{pid}/fd").iterdir() if os.readlink(fd).startswith("pipe:") and int(fd.name) > 2]
    return {os.readlink(fd) for fd in open_ends if bool(fd.lstat().st_mode & 0o400) == (mode == "r")}


FORKS = """
import logging, os, sys, threading, time
from pathlib import Path
from supervisor.host import logs
from supervisor.host.log_process import LogOptions, LogProcess

folder, forks = sys.argv[1], int(sys.argv[2])
logs.to_terminal("info", "text")
process = LogProcess(LogOptions(folder, writers=4))
process.start()
log = logging.getLogger("forked")

def serve(timeout):
    process.act(set(__import__("select").select(process.sockets()[0], [], [], timeout)[0]), set())

def child(number):
    logs.in_worker(number % 4, process)
    def chatter(name):
        for at in range(20):
            log.info("%s of %d: %d", name, number, at)
    threads = [threading.Thread(target=chatter, args=(name,)) for name in "abc"]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    log.info("end of %d", number)

alive, deaths = {}, 0
for number in range(forks):
    while len(alive) >= 4:
        pid = next((pid for pid in alive if os.waitpid(pid, os.WNOHANG)[0]), None)
        if pid is None:
            log.info("the parent logs too")
            serve(0.001)
            if time.monotonic() - min(alive.values()) > 20:
                sys.exit(f"a child hangs: {alive}")
        else:
            del alive[pid]
    if number % 100 == 50:
        while not process.sockets()[0]:  # the last one's successor is not there yet
            serve(0.01)
        os.kill(process.pid, 9)
        serve(1)
        deaths += 1
    pid = os.fork()
    if pid == 0:
        child(number)
        logging.shutdown()  # as at a normal exit
        os._exit(0)
    alive[pid] = time.monotonic()
for pid in alive:
    os.waitpid(pid, 0)
process.close()
print(process.dropped, deaths)
"""


@pytest.mark.alone
def test_a_thousand_forks_while_everybody_logs(tmp_path: Path) -> None:
    """Nothing of a handler can be held at a fork: no child hangs, whoever logs or dies meanwhile, and each of them is heard."""
    folder = tmp_path / "logs"
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(folder), "1000"], capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    messages = Counter(line["message"] for line in of_folder(folder, torn_max=10) if line["logger"] == "forked")
    ends = sum(f"end of {number}" in messages for number in range(1000))
    lost, deaths = map(int, done.stdout.split())
    # what a killed log process had read and not written: at most one read of each of five pipes, which holds five or six ends
    assert deaths == 10 and ends + lost >= 1000 - 10 * 5 * 6, f"{ends} of 1000 were heard, {lost} records dropped"
    assert max(count for message, count in messages.items() if message != "the parent logs too") == 1


def test_a_worker_more_than_at_first_is_heard_too(tmp_path: Path) -> None:
    """Workers can be added while the log process runs: it is given their pipes."""
    process = LogProcess(LogOptions(str(tmp_path), writers=1))
    process.start()
    try:
        for number in (0, 1, 700):
            process.handler_for(number).handle(logging.makeLogRecord({"msg": f"from {number}", "levelname": "INFO"}))
    finally:
        process.close()
    assert [line["message"] for line in of_folder(tmp_path)] == ["from 0", "from 1", "from 700"]
    assert process.dropped == 0


def test_what_no_log_process_read_is_counted_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is dead or too slow when its parent ends: what is left in the pipes is lost, and not in silence."""
    process = LogProcess(LogOptions(str(tmp_path), writers=2))
    process.start()
    os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: gone(process.pid), 20)
    for number in (0, 1, 1):
        process.handler_for(number).handle(logging.makeLogRecord({"msg": f"from {number}", "levelname": "INFO"}))
    process.close()
    assert process.dropped == 3 and "3 log records were dropped" in caplog.text


def test_a_full_disk_costs_lines_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The log process stays, complains once where it still can, and counts."""

    class Full(LogFile):
        full = True

        def write(self, lines: bytes) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().write(lines)

    file, (reading, writing), (life, other) = Full(tmp_path, 1 << 20, 2), os.pipe(), socket.socketpair()
    moments = iter((100.0, 100.0, 100.5, 101.5, 101.5, 102.0))
    writer = Writer(file, [reading], life, lambda: next(moments, 103.0))
    for lines in (b"lost\nlost\n", b"lost\n", b"lost\n"):
        writer._write(lines)
    said = re.findall(r"; (\d+) log records lost so far", capfd.readouterr().err)
    assert said == ["2", "4"], "again after a second, with the sum"
    file.full = False
    os.write(writing, b'the end of a line whose beginning died with the one before\n{"ts":0,"message":"kept"}\n')
    os.close(writing)
    writer.run()
    assert [line["message"] for line in of_folder(tmp_path)] == ["4 log records could not be written here", "kept"]
    assert capfd.readouterr().err == ""
    other.close()


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_show_logs_finds_a_run_in_all_rotations(client: Client, hosts: HostFactory, tmp_path: Path) -> None:
    """While others write and files rotate; as text, as JSON, by its key too; and of no other run."""
    folder = tmp_path / "logs"
    small = {"PGSUPERVISOR_LOG_FILE_BYTES": "65536", "PGSUPERVISOR_LOG_FILES": "1000"}
    host = hosts.start(APP, procs=2, args=("--log-dir", str(folder)), env=small).wait_up(2)
    run = client.start(apps_logs.chats.options(key="mine"), 1, 60, 4)
    others = [client.start(apps_logs.chats, number, 60, 4) for number in range(2, 8)]  # all of it fits into a pipe: nothing is dropped
    assert run.result(timeout=60) == 1
    wanted = [f"line 1 {at}" for _ in range(4) for at in range(60)]
    lines = eventually(lambda: found if len(found := seen(host, run, folder).splitlines()) >= len(wanted) else None, 20)
    assert len(list(folder.iterdir())) > 4
    assert [re.sub(r".* I shop: (.*) \[run .*", r"\1", line) for line in lines] == wanted
    assert lines[0].endswith(f" [run {run.id} step chatter seq 0]")
    as_json = [json.loads(line) for line in seen(host, run, folder, "--json").splitlines()]
    assert [line["message"] for line in as_json] == wanted and {line["run"] for line in as_json} == {str(run.id)}
    for other in others:
        other.result(timeout=60)
    host.stop()
    by_key = subprocess.run(
        [sys.executable, "-m", "supervisor", "show", "mine", "--logs", "--log-dir", str(folder), "--dsn", host.database.dsn],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert by_key.stdout.splitlines() == lines


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        ((), 78, "no log directory is configured"),
        (("--log-dir", "/nonexistent"), 78, "run this on the host whose workers wrote them"),
        (("--log-dir", "."), 0, "no line of run 01a20372-5082-702e-8dae-5c638c476000"),
    ],
)
def test_show_logs_says_what_is_missing(words: tuple[str, ...], code: int, why: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "supervisor", "show", "01a20372-5082-702e-8dae-5c638c476000", "--logs", *words],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "") and why in done.stderr


def test_run_refuses_a_folder_that_it_can_not_write(hosts: HostFactory, tmp_path: Path) -> None:
    """Said at once, not when the first record is lost."""
    (tmp_path / "file").write_text("")
    host = hosts.start(APP, args=("--log-dir", str(tmp_path / "file")))
    assert host.process.wait(60) == 78
    assert "can't write logs into" in host.log()
