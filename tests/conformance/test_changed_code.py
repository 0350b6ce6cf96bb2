"""Changed code is found out before any new effect; its runs are parked with expected and found, and others go on."""

from __future__ import annotations

import json
from typing import Any

from supervisor import Client
from tests.apps import changed_old, clashing
from tests.harness import Database, Effects, HostFactory, eventually

# workflow → arguments, what the history has, what the code now does
CHANGES: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "renamed": ((), "step 'a'", "step 'forbidden'"),
    "inserted": ((), "step 'a'", "step 'forbidden'"),
    "removed": ((), "step 'b'", "step 'forbidden'"),
    "swapped": ((), "step 'a'", "step 'b'"),
    "returns_early": ((), "step 'a'", "return"),
    "raises_early": ((), "step 'a'", "raise LookupError: new"),
    "sleeps_instead": ((), "step 'a'", "timer 'sleep'"),
    "child_instead": ((), "step 'a'", "child run 'changed_kid'"),
    "step_instead_of_child": ((), "child run 'changed_kid'", "step 'forbidden'"),
    "step_instead_of_sleep": ((), "timer 'sleep'", "step 'forbidden'"),
    "gathered_otherwise": ((), "step 'a'", "step 'b'"),
    "gathered_more": ((), "step 'b'", "step 'forbidden'"),
    "other_result": ((), "step 'figures'", "rows"),
    "other_input": ((7,), "step 'a'", "InputInvalid"),
    "handled": ((), "step 'a'", "raise ValueError: as recorded"),
    "in_def": ((), "step 'a'", "timer 'sleep'"),
}


def test_changed_code_is_found_out_before_any_new_effect(database: Database, hosts: HostFactory, effects: Effects, build: str) -> None:
    """A deployment that reorders steps must not book twice: its runs stop and say why, and the old code still finishes them."""
    with Client(database.dsn) as client:
        # given runs that stand at a gate, with a history
        old = hosts.start("tests.apps.changed_old", build=build).wait_up(1)
        runs = {name: client.start(getattr(changed_old, name), *args) for name, (args, _, _) in CHANGES.items()}
        same = [client.start(changed_old.unchanged, n) for n in range(5)]
        grown = client.start(changed_old.grown, 1)
        eventually(lambda: effects.count("gate") == len(runs) + len(same) + 1, 20, "all at the gate")
        old.kill_all()
        effects.open("go")
        # when the changed code takes them up
        with hosts("tests.apps.changed_new", build=build):
            assert [run.result(timeout=20) for run in same] == [3 * n for n in range(5)]
            assert grown.result(timeout=20) == 102, "steps after the end of the history are no change"
            parked = "select count(*) from supervisor.runs where wait = 'nondeterminism'"
            eventually(lambda: database.one(parked) == len(runs), 10, "all parked")
            # then each is parked, and says what was expected and what was found
            for name, (_, expected, found) in CHANGES.items():
                status = runs[name].status()
                assert (status.status, status.wait) == ("waiting", "nondeterminism"), name
                detail = json.loads(database.one("select wait_detail from supervisor.task where run_id = %s", runs[name].id))
                assert expected in detail["expected"] and found in detail["found"], (name, detail)
                unread = name == "other_result"  # its type has changed, which is in no version
                assert (detail["version"], "the same version, 1, did" in detail["error"]) == ((None, False) if unread else ("1", True)), (name, detail)
                assert name in ("returns_early", "raises_early", "removed", "handled", "other_input", "other_result") or "changed_new.py:" in detail["place"], (name, detail)
        assert effects.count("forbidden") == 0
        # and nothing is lost: the old code finishes them
        database.sql("update supervisor.task set ready_at = clock_timestamp(), wait_kind = 1 where wait_kind = 19")
        with hosts("tests.apps.changed_old", build=build):
            results = {name: run.result(timeout=20) for name, run in runs.items()}
    assert results == {
        "renamed": 2, "inserted": 2, "removed": 4, "swapped": 4, "returns_early": 2, "raises_early": 2, "sleeps_instead": 2,
        "child_instead": 2,
        "step_instead_of_child": 6, "step_instead_of_sleep": 2, "gathered_otherwise": 4, "gathered_more": 3, "other_result": 4,
        "other_input": 8,
        "handled": 1, "in_def": 2,
    }  # fmt: skip
    assert effects.count("a") == len(runs) - 3 + len(same) + 1, "no step was executed twice"


def test_run_of_an_unknown_workflow_waits_for_code_that_knows_it(database: Database, hosts: HostFactory) -> None:
    """A deployment that takes an app away must not fail its runs: they are parked, say why, and go on when the code is there."""
    with hosts("tests.apps.clashing"):
        pass  # registers its workflows
    with Client(database.dsn) as client:
        run = client.start(clashing.twin, 4)
        with hosts("tests.apps.changed_old"):  # the same queue, another app
            eventually(lambda: run.status().wait == "code_missing", 20)
            assert client.start(changed_old.changed_kid).result(timeout=20) == 5
        with hosts("tests.apps.clashing"):
            assert run.result(timeout=20) == 8
