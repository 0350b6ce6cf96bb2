"""now, random, uuid4 and current() say the same in every replay; idempotency_key is equal in all attempts."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from supervisor import OutsideWorkflow, current, now, random, sleep, uuid4
from supervisor._fastpath.wire import clock_us, hold_clock
from supervisor.db.worker_calls import WorkerCalls
from supervisor.sync import sleep as sync_sleep
from tests.apps import vocabulary
from tests.conformance.conftest import Live
from tests.harness import Database

APP = "tests.apps.vocabulary"


@pytest.mark.parametrize("workflow", [vocabulary.words, vocabulary.words_def])
def test_words_answer_alike_after_a_kill(live: Live, workflow) -> None:  # type: ignore[no-untyped-def]
    """Code that draws a number or looks at the clock must take the same way again."""
    before = live.database.one("select clock_timestamp()")
    gate = f"go_{workflow.name}"
    runs = [live.start(workflow.options(key=f"key {workflow.name} {n}"), gate) for n in range(3)]
    for times in (1, 2, 3):
        live.until(lambda: all(live.effects.count("told", run.id) >= times for run in runs), 20)
        if times < 3:
            live.kill()
    live.effects.open(gate)
    results = [run.result(timeout=20) for run in runs]
    after = live.database.one("select clock_timestamp()")
    for n, (run, got) in enumerate(zip(runs, results, strict=True)):
        assert got["live"] == got["seen"]
        moments = [datetime.fromisoformat(moment) for moment in got["seen"] if moment.endswith("+00:00")]
        assert moments == sorted(moments) and before - timedelta(seconds=1) < moments[0] <= moments[-1] < after + timedelta(seconds=1)
        key = f"key {workflow.name} {n}"
        assert got["gated"][:3] == [str(run.id), key, workflow.name]
        assert got["gated"][5:] == [1, True, f"{run.id}/{got['gated'][3]}"], "a crash is not an attempt, and is told"
        seqs = [facts[3] for facts in got["facts"]]
        assert seqs == [got["gated"][3] + 1 + at for at in range(3)]
        for facts, name in zip(got["facts"], ("told_inline", "told_in_thread", "told_in_task"), strict=True):
            assert facts == [str(run.id), key, workflow.name, facts[3], name, 1, False, f"{run.id}/{facts[3]}"]
        keys = {line[-1] for line in live.effects.lines("told") if line[1] == str(run.id)}
        assert keys == {got["gated"][7]}, "equal in all deliveries"
    draws = [got["seen"][1] for got in results]
    assert len(set(draws)) == len(draws), "two runs draw different numbers"


def test_client_inside_a_run_is_refused(live: Live) -> None:
    """A replay would start it again."""
    assert live.run(vocabulary.uses_client)[:2] == ["ClientInsideRun", "ClientInsideRun"]


def test_words_outside_of_a_run_say_so() -> None:
    """And do not hang, and are not silently something else."""
    for word in (now, random, uuid4, current, lambda: sleep(1), lambda: sync_sleep(1)):
        with pytest.raises(OutsideWorkflow):
            word()
    assert datetime.now(UTC)


def test_workers_go_by_the_clock_of_the_database(database: Database) -> None:
    """What they read of it on its own machine is no other clock; a wrong one of theirs is put right."""
    offsets = []
    for _ in range(20):
        calls = WorkerCalls(database.dsn, database.schema, uuid.uuid4())
        offsets.append(calls.clock_offset_us())
        calls.close()
    assert offsets == [0] * 20
    calls = WorkerCalls(database.dsn, database.schema, uuid.uuid4())
    try:
        hold_clock(clock_us() + 5_000_000)
        assert -5_000_000 <= calls.clock_offset_us() < 0
    finally:
        hold_clock(0)
        calls.close()
