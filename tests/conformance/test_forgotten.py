"""A command that nobody awaits is told, and its run fails: it must not look like success."""

from __future__ import annotations

import subprocess
import sys

import pytest

from supervisor import Client, RunFailed
from tests.apps import forgotten
from tests.harness import Database, Effects, Host, HostFactory, eventually

APP = "tests.apps.forgotten"
WRITE = {
    "forgets_a_step": ("forgotten_charge (seq 1) was called and never awaited", "write: await forgotten_charge(…)"),
    "forgets_a_def_step": ("forgotten_pack (seq 0) was called and never awaited", "write: await forgotten_pack.aio(…)"),
    "forgets_to_sleep": ("sleep (seq 0) was called and never awaited", "write: await sleep(…)"),
    "forgets_a_group": ("gather was called and never awaited", "write: await gather(…)"),
    "sleeps_in_def": ("sleep (seq 0) was called and never awaited", "the sleep of supervisor.sync"),
    "forgets_in_def": ("forgotten_pack (seq 0) was called and never awaited", "write: forgotten_pack(…)"),
    "returns_a_command": ("forgotten_charge (seq 0) was returned without being awaited", "write: return await forgotten_charge(…)"),
    "forgets_and_undoes": ("forgotten_charge (seq 1) was called and never awaited", "write: await forgotten_charge(…)"),
}


@pytest.fixture
def host(hosts: HostFactory, build: str) -> Host:
    return hosts.start(APP, build=build).wait_up(1)


def line_of(name: str) -> str | None:
    """Where in the app the forgotten call stands, if it is marked."""
    lines = open(forgotten.__file__).read().splitlines()
    start = next(n for n, line in enumerate(lines) if f"def {name}(" in line)
    end = next((n for n in range(start, len(lines)) if lines[n].startswith("@")), len(lines))
    return next((f"{forgotten.__file__}:{n + 1}" for n in range(start, end) if lines[n].endswith("# here")), None)


def test_a_forgotten_await_fails_the_run_and_says_what_to_write(host: Host, database: Database, effects: Effects) -> None:
    """A charge that was never made, in a run that is "completed", is found by a customer."""
    with Client(database.dsn) as client:
        runs = {name: client.start(getattr(forgotten, name)) for name in WRITE}
        for name, run in runs.items():
            with pytest.raises(RunFailed) as failed:
                run.result(timeout=60)
            said = str(failed.value)
            assert "DefinitionError" in said and all(words in said for words in WRITE[name]), said
            assert (line_of(name) or "") in said, said
        assert effects.count("charge") == 0 and effects.count("undone") == 1


def test_what_is_given_up_for_a_reason_is_no_mistake(host: Host, database: Database, effects: Effects) -> None:
    """Losers of first are cancelled with what they had in hand; an error skips what follows. That is logged where it may be a mistake."""
    with Client(database.dsn) as client:
        run = client.start(forgotten.drops_for_a_reason)
        assert run.result(timeout=60) == "quick, then declined"
        eventually(lambda: f"run {run.id} of drops_for_a_reason: forgotten_charge (seq 3) was called and never awaited" in host.log(), 20, host.log())
        assert client.start(forgotten.gathers_in_def).result(timeout=60) == [2, 3]
        assert effects.count("charge") == 1


def test_a_run_that_ended_keeps_its_end_in_a_replay(host: Host, database: Database) -> None:
    """Histories of such code, completed before this was told or failed by it, and undone: none of them parts from the code."""
    with Client(database.dsn) as client:
        runs = [client.start(workflow) for workflow in (forgotten.forgets_a_step, forgotten.forgets_and_undoes, forgotten.forgets_a_def_step)]
        for run in runs:
            with pytest.raises(RunFailed):
                run.result(timeout=60)
        database.sql("update supervisor.outcome set status = 1 where run_id = %s returning run_id", runs[2].id)
        words = [sys.executable, "-m", "supervisor", "replay", "--app", APP, "--dsn", database.dsn]
        replayed = subprocess.run([*words, *(word for run in runs for word in ("--run", str(run.id)))], capture_output=True, text=True, timeout=60, check=False)
        assert replayed.returncode == 0, replayed.stdout + replayed.stderr
