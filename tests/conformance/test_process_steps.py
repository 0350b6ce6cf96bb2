"""A step with run="process" runs where it can hurt nobody, and is ended when its time is over."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from supervisor import StepDied, step
from supervisor.core.errors import DefinitionError
from tests.apps import processes
from tests.conformance.conftest import Live
from tests.harness import eventually

APP = "tests.apps.processes"
ORPHAN_S = 10.0  # ten times the promise


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("workflow", [processes.process_asked_where, processes.process_asked_where_def], ids=lambda w: w.name)
def test_it_runs_in_a_process_of_its_own_which_is_kept(live: Live, workflow: Any) -> None:
    """Not in the worker, in a group of its own; the next step finds it there already."""
    first = live.run(workflow)
    assert first["pid"] not in [live.host.pid, *live.host.worker_pids()] and first["group"] == first["pid"]
    assert first["parent"] not in [1, os.getpid(), live.host.pid]
    assert live.run(workflow)["pid"] == first["pid"]


def test_arguments_and_results_travel_by_their_annotations(live: Live) -> None:
    """As JSON, and come back as what they were."""
    page = processes.Page(1, ["a", "ü", "\U0001f600"], datetime(2026, 1, 2, tzinfo=UTC))
    assert live.run(processes.process_turns, page) == processes.Page(4, page.words, page.at)
    big = processes.Page(1, ["x" * 1000] * 1500)  # more than a socket holds at once
    assert live.run(processes.process_turns, big) == processes.Page(4, big.words)


def test_it_knows_whose_it_is(live: Live) -> None:
    """current() says the same as in a thread."""
    run = live.start(processes.process_asked_who.options(key="k-1"))
    assert run.result(timeout=20) == [str(run.id), "k-1", "process_asked_who", "says", 0, 1, f"{run.id}/0"]


def test_what_it_raises_is_raised_in_the_workflow(live: Live) -> None:
    """With its class; and the stored error names the line that raised it, in the process."""
    run = live.start(processes.process_raising, "42")
    assert run.result(timeout=20) == "can't read 42"
    error, fingerprint = live.database.sql("select convert_from(error, 'UTF8'), fingerprint from supervisor.attempt where run_id = %s", run.id)[0]
    assert "in unreadable" in error and "Unreadable" in error and len(fingerprint) == 12


def test_a_result_that_can_not_be_stored_fails_the_step(live: Live) -> None:
    assert type(live.error(processes.process_nan)).__name__ == "PayloadRefused"


@pytest.mark.parametrize(("how", "said"), [("SIGSEGV", "SIGSEGV"), ("SIGKILL", "SIGKILL"), ("exit", "exit code 3")])
def test_its_death_fails_the_attempt_and_never_the_worker(live: Live, how: str, said: str) -> None:
    """The remedy for libraries that crash."""
    workers = live.host.worker_pids()
    error = live.error(processes.process_dying, how)
    assert isinstance(error, StepDied) and said in str(error)
    assert error.signal == (getattr(signal, how) if how.startswith("SIG") else None)
    assert live.run(processes.process_asked_where) and live.host.worker_pids() == workers


def test_a_crash_is_retried_as_any_failure(live: Live) -> None:
    """The policy of the step decides; RetryAfter keeps its meaning on the way."""
    assert live.run(processes.process_retried, "a") == 3
    assert live.effects.count("tried", "a") == 3


def test_a_timeout_ends_it_for_certain(live: Live) -> None:
    """With everything that it has started, though both ignore SIGTERM; the next attempt begins when it is gone."""
    run = live.start(processes.process_held, "h")
    assert run.result(timeout=20) == 2
    (_, _, *pids) = live.effects.lines("holding")[-1]
    assert not alive(int(pids[0]))
    eventually(lambda: not alive(int(pids[1])), 10, "its child ends")
    assert live.database.sql("select convert_from(error, 'UTF8') ~ 'StepTimeout' from supervisor.attempt where run_id = %s", run.id) == [(True,)]


def test_no_more_of_them_than_threads(live: Live) -> None:
    """And idle ones are bounded by what can compute at once."""
    assert len(set(live.run(processes.process_several, 40))) <= 8
    nursery = live.run(processes.process_asked_where)["parent"]
    children = Path(f"/proc/{nursery}/task/{nursery}/children")
    eventually(lambda: len(children.read_text().split()) <= (os.cpu_count() or 4), 10)


@pytest.mark.parametrize("victim", ["worker", "nursery"])
def test_no_process_outlives_its_worker(live: Live, victim: str) -> None:
    """Nor what makes them; the step runs again in another worker."""
    name = f"orphan-{victim}"
    run = live.start(processes.process_asked_where, name, f"gate-{name}")
    _, _, pid, nursery = live.until(lambda: [line for line in live.effects.lines("began") if line[1] == name])[0]
    workers = live.host.worker_pids()
    if victim == "worker":
        live.kill()
    else:
        os.kill(int(nursery), signal.SIGKILL)
    eventually(lambda: not alive(int(pid)) and not alive(int(nursery)), ORPHAN_S, "its process ends")
    live.effects.open(f"gate-{name}")
    if victim == "worker":
        assert run.result(timeout=20)["pid"] != int(pid)
        assert live.effects.count("began", name) == 2
    else:  # the attempt has failed, and the worker, which can make no processes any more, is replaced
        with pytest.raises(Exception, match="process_asked_where"):
            run.result(timeout=20)
        live.until(lambda: live.host.worker_pids() and live.host.worker_pids() != workers, 20)
        assert live.run(processes.process_asked_where)["parent"] != int(nursery)


def test_what_makes_processes_ends_with_its_worker_only(live: Live) -> None:
    """A TERM to the whole group makes workers drain, and they need it meanwhile. What is between worker and parent is none of its business."""
    run = live.start(processes.process_asked_where, "group", "gate-group")
    _, _, pid, nursery = live.until(lambda: [line for line in live.effects.lines("began") if line[1] == "group"])[0]
    for one in (pid, nursery):
        fds = Path(f"/proc/{one}/fd")
        kinds = {os.readlink(fds / fd).partition(":[")[0] for fd in os.listdir(fds) if int(fd) > 2}
        assert kinds <= {"socket", "anon_inode:[pidfd]", "anon_inode"}, f"{kinds} of process {one}"
        assert "anon_inode:[eventfd]" not in {os.readlink(fds / fd) for fd in os.listdir(fds)}
    os.kill(int(nursery), signal.SIGTERM)
    live.effects.open("gate-group")
    assert run.result(timeout=20)["pid"] == int(pid)
    assert live.run(processes.process_asked_where)["parent"] == int(nursery)


def test_a_worker_that_lost_half_of_its_threads_is_replaced(live: Live) -> None:
    """A call that hangs can't be ended in a thread. Its place is taken, but not for ever: the process goes, and its runs go on elsewhere."""
    workers = live.until(live.host.worker_pids)
    hanging = [live.start(processes.process_hanging, f"never{n}") for n in range(4)]
    assert [run.result(timeout=20) for run in hanging] == ["timeout"] * 4
    live.until(lambda: live.host.worker_pids() and live.host.worker_pids() != workers, 40, "another worker")
    assert live.run(processes.process_asked_where)
    log = live.host.log()
    assert "4 of 8 threads" in log and "exit code 79" in log
    assert not live.database.sql("select 1 from supervisor.runs where status not in ('completed', 'failed')")


def _plain(n: int) -> int:
    return n


async def _plain_async(n: int) -> int:
    return n


def _positional(n: int, /) -> int:
    return n


def test_what_can_not_run_in_a_process_is_refused_at_import() -> None:
    """With what to write instead."""

    def local(n: int) -> int:
        return n

    for fn, why in [(local, "module's level"), (lambda n: n, "module's level"), (_plain_async, "async def"), (_positional, "positional-only")]:
        with pytest.raises(DefinitionError, match=why):
            step(run="process")(fn)
    with pytest.raises(DefinitionError, match="transactional"):
        step(run="process", transactional=True)(_plain)  # type: ignore[call-overload]
