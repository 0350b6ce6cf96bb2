"""What every process is doing can be seen, whatever it is stuck in: `python -m supervisor stacks` and SIGUSR1."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from supervisor import Client
from supervisor.host.stacks import ask, discover
from tests.apps import parked
from tests.harness import ROOT, Database, Effects, Host, HostFactory, eventually

APP = "tests.apps.parked"
# the interpreter may be unreadable for others: what is needed is imported before the account changes
AS_NOBODY = """
import os, pwd, sys
import supervisor.cli.main as program, supervisor.cli.stacks, supervisor.host.stacks
import encodings.idna, concurrent.futures.thread
os.setgroups([]); os.setgid(65534); os.setuid(65534)
program.main(sys.argv[1:])
"""
LINES = Path(parked.__file__).read_text().splitlines()


def line_of(comment: str) -> int:
    """Where in the app a comment stands."""
    return next(number for number, line in enumerate(LINES, 1) if line.endswith(f"# {comment}"))


def stacks(*words: str, code: int = 0, **options: Any) -> str:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    made = subprocess.run([sys.executable, "-m", "supervisor", "stacks", *words], capture_output=True, text=True, timeout=60, env=environ, cwd=ROOT, **options)
    assert made.returncode == code, f"exit code {made.returncode}\n{made.stdout}\n{made.stderr}"
    return made.stdout + made.stderr


def facts_of(host: Host, *words: str, code: int = 0) -> list[dict[str, Any]]:
    """What this host's processes say; other supervisors on this machine are nobody's business here."""
    found: list[dict[str, Any]] = []
    for pid in (host.pid, *host.worker_pids()):
        found += json.loads(stacks("--json", "--pid", str(pid), *words, code=code))
    return found


def worker_of(host: Host, *words: str, code: int = 0) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(stacks("--json", "--pid", str(host.worker_pids()[0]), *words, code=code))[0]
    return facts


def app_lines(frames: list[dict[str, Any]]) -> list[int]:
    return [frame["line"] for frame in frames if frame["file"] == parked.__file__]


def group_of(facts: dict[str, Any], kind: str, workflow: str) -> dict[str, Any]:
    found: dict[str, Any] = next(group for group in facts["groups"] if (group["kind"], group["workflow"]) == (kind, workflow))
    return found


def test_every_kind_of_waiting_is_shown_with_its_line(hosts: HostFactory, effects: Effects, build: str) -> None:
    """Samplers see threads only. Most of what a worker holds is parked: coroutines, greenlets, tasks."""
    with hosts(APP, build=build) as host, Client(host.database.dsn) as client:
        # given one run of each kind, all waiting
        waiting = client.start(parked.parked_async, gate="go")
        branches = client.start(parked.parked_branches, gate="go")
        plain = client.start(parked.parked_def, gate="go")
        eventually(lambda: effects.count("in_task") == 3 and effects.count("in_thread") == 1, 30)
        # when the worker is asked
        facts = worker_of(host)
        # then each stands there with its run and its lines
        one = group_of(facts, "coroutine", "parked_async")
        assert app_lines(one["frames"]) == [line_of("the outer line of a coroutine"), line_of("the inner line of a coroutine")]
        assert one["runs"][0]["run_id"] == str(waiting.id) and "in_task" in one["waits_for"]
        two = group_of(facts, "coroutine", "parked_branches")
        assert app_lines(two["frames"]) == [line_of("the line of a root with branches")] and two["runs"][0]["run_id"] == str(branches.id)
        assert [(branch["count"], app_lines(branch["frames"])) for branch in two["branches"]] == [(2, [line_of("the inner line of a coroutine")])]
        three = group_of(facts, "greenlet", "parked_def")
        assert app_lines(three["frames"]) == [line_of("the line of a greenlet")] and three["runs"][0]["run_id"] == str(plain.id)
        task = group_of(facts, "step task", "parked_async")
        assert app_lines(task["frames"]) == [line_of("the line of a task")] and task["runs"][0]["run_id"] == str(waiting.id)
        thread = next(thread for thread in facts["threads"] if thread["executing"])
        assert (thread["executing"]["run_id"], thread["executing"]["step"]) == (str(plain.id), "in_thread")
        assert line_of("the line of a thread") in app_lines(thread["frames"])
        # and as text
        text = stacks("--worker", str(host.worker_pids()[0]))
        for run in (waiting, branches, plain):
            assert str(run.id) in text
        assert f"tests/apps/parked.py:{line_of('the line of a thread')} in_thread" in text
        effects.open("go")
        assert (waiting.result(timeout=30), branches.result(timeout=30), plain.result(timeout=30)) == (2, 4, 1)


def test_a_run_that_sleeps_is_shown_at_its_line(hosts: HostFactory, database: Database) -> None:
    with hosts(APP) as host, Client(host.database.dsn) as client:
        run = client.start(parked.sleeping_def, seconds=0.9)  # short enough to stay in memory

        def seen() -> bool:
            groups = [group for group in worker_of(host)["groups"] if group["workflow"] == "sleeping_def" and group["waits_for"] == "sleep"]
            return [app_lines(group["frames"]) for group in groups] == [[line_of("the line of a sleeping greenlet")]]

        for _ in range(20):
            if seen():
                break
            run.result(timeout=30)
            run = client.start(parked.sleeping_def, seconds=0.9)
        else:
            raise AssertionError("no sleeping run was ever seen")


def test_a_loop_that_is_stuck_in_a_step_still_answers(hosts: HostFactory, effects: Effects, build: str) -> None:
    """The very case for which one wants to know."""
    with hosts(APP, build=build) as host, Client(host.database.dsn) as client:
        run = client.start(parked.stuck, gate="go")
        eventually(lambda: effects.count("inline"), 30)
        facts = worker_of(host)
        main = next(thread for thread in facts["threads"] if line_of("the line that is stuck inline") in app_lines(thread["frames"]))
        assert (main["executing"]["run_id"], main["executing"]["step"]) == (str(run.id), "inline")
        assert main["executing"]["since_at"]
        parent = facts_of(host)[0]
        assert parent["role"] == "parent" and parent["threads"][0]["frames"]
        # SIGUSR1 says the same in the log, of all processes
        os.kill(host.pid, signal.SIGUSR1)
        eventually(lambda: f"parked.py:{line_of('the line that is stuck inline')} inline" in host.log() and f"parent (pid {host.pid})" in host.log(), 20)
        told = next(at for at, line in enumerate(host.log().splitlines()) if line.endswith("stacks, as SIGUSR1 asks:"))
        assert host.log().splitlines()[told + 1].startswith("    ") and "\\n" not in host.log(), "a worker's stack is lines too"
        effects.open("go")
        assert run.result(timeout=30) == 3


def test_code_that_holds_the_interpreter_is_named(hosts: HostFactory, effects: Effects) -> None:
    """No Python can run in that process, not even what answers: C code writes the stacks."""
    with hosts(APP) as host, Client(host.database.dsn) as client:
        client.start(parked.parked_holds, n=10**11)
        eventually(lambda: effects.count("holding"), 30)
        facts = worker_of(host, code=1)
        assert facts["unanswered"] and "holds its interpreter" in facts["note"]
        assert line_of("the line that holds the interpreter") in app_lines(facts["threads"][0]["frames"])
        host.kill_worker()


def test_a_stopped_worker_is_called_stopped(hosts: HostFactory) -> None:
    with hosts(APP) as host:
        pid = host.kill_worker(how=signal.SIGSTOP)
        try:
            assert "it is stopped (SIGSTOP); kill -CONT lets it go on" in worker_of(host, code=1)["note"]
        finally:
            os.kill(pid, signal.SIGCONT)
        assert worker_of(host)["threads"]


def test_a_worker_that_ends_while_all_are_asked_is_no_failure(hosts: HostFactory) -> None:
    """Found, and gone or on its way out when it is asked: that is said, and the exit code is that of the others."""
    with hosts(APP) as host:
        (found,) = [each for each in discover() if each.pid == host.worker_pids()[0]]
        host.kill_worker()  # a zombie, or gone
        facts = ask(found)
        assert facts["note"] == "it has ended meanwhile" and "unanswered" not in facts


def test_a_crowd_of_parked_runs_is_a_few_lines(hosts: HostFactory, effects: Effects) -> None:
    """A look must not be a flood; --all names each."""

    def parked_runs(facts: dict[str, Any]) -> dict[str, Any] | None:
        return next((group for group in facts["groups"] if group["kind"] == "coroutine" and group["count"] >= 800), None)

    # how many of the ten thousand a worker takes depends on how quick its machine is; it begins with one per thread
    with hosts(APP, threads=1000, args=("--in-flight", "10000")) as host, Client(host.database.dsn) as client:
        for _ in client.start_many(parked.crowd, ["go"] * 10_000):
            pass
        found = eventually(lambda: parked_runs(worker_of(host)), 120)
        assert app_lines(found["frames"]) == [line_of("the line of a crowd")] and len(found["runs"]) == 3
        text = stacks("--pid", str(host.worker_pids()[0]))
        assert " × crowd (coroutine)" in text and len(text) < 5_000
        each = parked_runs(worker_of(host, "--all"))
        assert each is not None and len({run["run_id"] for run in each["runs"]}) == each["count"]
        # they have run for a second and more by now, which thousands of task rows say; that is no work worth waiting for
        effects.open("go")
        host.stop()
        assert host.database.one("select count(*) from supervisor.task where owner is not null") == 0
        assert host.database.one("select count(*) from supervisor.outcome") >= each["count"], host.log()[-1000:]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_account_is_refused_in_words(hosts: HostFactory) -> None:
    """Stacks say what runs here: they are for those who could look into the process anyway."""
    with hosts(APP) as host:
        words = ["stacks", "--pid", str(host.worker_pids()[0])]
        made = subprocess.run([sys.executable, "-c", AS_NOBODY, *words], capture_output=True, text=True, timeout=60, cwd=ROOT)
        assert made.returncode == 77, made.stdout + made.stderr
        assert "refused: it belongs to root" in made.stdout and "sudo" in made.stdout and "thread" not in made.stdout
        # and who does not ask first gets nothing
        asked = next(process for process in discover() if process.pid == int(words[-1]))
        script = f"import os, socket; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.connect({asked.address!r}); print(s.recv(1000))"
        made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        assert made.stdout == "b''\n", made.stdout + made.stderr


def test_asked_for_what_is_not_there_it_says_what_is(hosts: HostFactory) -> None:
    with hosts(APP) as host:
        told = stacks("--pid", "1", code=1)
        assert "pid 1" in told and f"worker 0 (pid {host.worker_pids()[0]})" in told


def test_who_listens_for_questions_costs_nothing(hosts: HostFactory) -> None:
    """The thread sleeps in the kernel: no context switch while nobody asks."""
    with hosts(APP) as host:
        pid = host.worker_pids()[0]
        thread = next(thread for thread in worker_of(host)["threads"] if thread["name"] == "MainThread")
        others = [int(entry) for entry in os.listdir(f"/proc/{pid}/task") if int(entry) != thread["native_id"]]

        def switches() -> list[int]:
            found = []
            for task in others:
                status = Path(f"/proc/{pid}/task/{task}/status").read_text().splitlines()
                found.append(sum(int(line.split()[1]) for line in status if "ctxt_switches" in line))
            return found

        before, polls = switches(), _switches_of(pid, thread["native_id"])
        eventually(lambda: _switches_of(pid, thread["native_id"]) > polls + 4, 30)  # the loop has polled the database a few times
        assert others and switches() == before


def _switches_of(pid: int, task: int) -> int:
    status = Path(f"/proc/{pid}/task/{task}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)
