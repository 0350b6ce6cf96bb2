"""A run is ended from outside, by `terminate` or because its key was given away: at once, whoever has it, and nothing of it is written any more."""

from __future__ import annotations

import random
import threading
import uuid
from typing import Any

import psycopg
import pytest

from supervisor import RunTerminated
from supervisor.api.client import Named
from tests.apps import cut_short
from tests.conformance.conftest import Live
from tests.harness import Database

APP = "tests.apps.cut_short"
SETUP = ("create table kept (word text not null)",)


def terminate(where: Database | Any, run: Any, reason: str | None = None) -> bool:
    ended: bool = where.one("select supervisor.terminate(%s, %s)", getattr(run, "id", run), reason)
    return ended


def stands(live: Live, run: Any) -> tuple[str, str | None]:
    found: tuple[str, str | None] = live.database.sql("select status, error ->> 'message' from supervisor.result(%s)", getattr(run, "id", run))[0]
    return found


def left(live: Live, run: Any) -> int:
    """Rows by which a run could come back to life."""
    count: int = live.database.one("select (select count(*) from supervisor.task where run_id = %s) + (select count(*) from supervisor.timer where run_id = %s)", run.id, run.id)
    return count


def standing(live: Live, *words: str) -> None:
    live.until(lambda: all(live.effects.count("standing", word) for word in words), 20, f"steps of {words} to begin")


def epoch(live: Live) -> int:
    found: int = live.database.one("select epoch from supervisor.worker where dead_at is null")
    return found


# ── terminate ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_that_sleeps_is_terminated_and_leaves_nothing_to_wake(live: Live) -> None:
    run = live.start(cut_short.cut_asleep, 3600.0)
    live.until(lambda: live.database.one("select count(*) from supervisor.timer where run_id = %s", run.id) == 1)
    assert terminate(live.database, run, "no longer wanted") is True
    assert stands(live, run) == ("terminated", "no longer wanted") and left(live, run) == 0
    with pytest.raises(RunTerminated):
        run.result(timeout=10)
    assert terminate(live.database, run) is False, "it was live only once"
    assert stands(live, run) == ("terminated", "no longer wanted")


@pytest.mark.parametrize("kind", ["cut_threaded", "cut_tasked", "cut_transacted"])
def test_a_run_in_the_middle_of_a_step_ends_at_once_and_its_step_writes_nothing(live: Live, kind: str) -> None:
    """The worker goes on with its other runs; what the step returns, and what its transaction wrote, is refused."""
    word, neighbour = f"{kind}-cut", f"{kind}-beside"
    run = live.start(getattr(cut_short, kind), word, f"{kind}-gate")
    standing(live, word)
    beside = live.start(cut_short.cut_tasked, neighbour, f"{kind}-gate")
    standing(live, neighbour)
    pids, before = live.host.worker_pids(), epoch(live)
    assert terminate(live.database, run) is True
    assert stands(live, run) == ("terminated", "it was terminated") and left(live, run) == 0
    live.effects.open(f"{kind}-gate")
    assert beside.result(timeout=20) == 1
    if kind != "cut_tasked":  # a thread can't be stopped; a task is cancelled as soon as its worker hears of it
        live.until(lambda: live.effects.count("left", word, 1) == 1, 20, "its step to return, to nobody")
    assert live.run(cut_short.cut_tasked, f"{kind}-after", f"{kind}-gate") == 1
    assert live.rows(run) == 0 and live.effects.count("afterwards", word) == 0
    assert live.database.one("select count(*) from kept where word = %s", word) == 0
    assert (live.host.worker_pids(), epoch(live)) == (pids, before + 1), live.about()


def test_a_run_that_has_ended_or_never_was_is_not_terminated(live: Live) -> None:
    run = live.start(cut_short.cut_asleep, 0.0)
    run.result(timeout=20)
    assert terminate(live.database, run) is False and stands(live, run)[0] == "completed"
    for unknown in (uuid.uuid4(), None):
        with pytest.raises(psycopg.DatabaseError) as refused:
            terminate(live.database, unknown)
        assert refused.value.sqlstate == "SV006"


def test_a_parent_that_waits_hears_that_its_child_was_terminated(live: Live) -> None:
    """It wakes at once, and not by the sweep for the forgotten."""
    run = live.start(cut_short.cut_parent, "child", "child-gate")
    standing(live, "child")
    child = live.database.one("select run_id from supervisor.runs where parent_id = %s", run.id)
    live.until(lambda: live.database.one("select wait from supervisor.runs where run_id = %s", run.id) == "child", 20, "the parent to be parked")
    assert terminate(live.database, child, "by a test")
    assert live.database.one("select status from supervisor.runs where run_id = %s", run.id) != "waiting"
    assert run.result(timeout=20) == "RunTerminated of cut_threaded: by a test"
    live.effects.open("child-gate")


def test_a_parent_whose_children_are_all_terminated_at_once_wakes_once(live: Live) -> None:
    """Two last children in transactions that overlap must not leave their parent asleep, whatever the isolation."""
    for level in ("read committed", "repeatable read", "serializable"):
        run = live.start(cut_short.cut_parent_of_sleepers, 8)
        live.until(lambda run=run: live.database.one("select wait from supervisor.runs where run_id = %s", run.id) == "child")
        kids = [kid for (kid,) in live.database.sql("select run_id from supervisor.runs where parent_id = %s", run.id)]
        assert len(kids) == 8
        barrier = threading.Barrier(8)

        def cut(kid: uuid.UUID, level: str = level, barrier: threading.Barrier = barrier) -> None:
            with live.database.connect() as conn:
                barrier.wait(20)
                while True:
                    try:
                        with conn.transaction():
                            conn.execute(f"set transaction isolation level {level}")
                            conn.execute("select supervisor.terminate(%s)", (kid,))
                        return
                    except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected):
                        pass

        threads = [threading.Thread(target=cut, args=(kid,)) for kid in kids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert run.result(timeout=20) == "RunTerminated"
        ends = {stands(live, kid)[0] for kid in kids}  # the first one may end the parent before the last, and that cancels those that are left
        assert "terminated" in ends and ends <= {"terminated", "cancelled"}


def test_an_end_that_is_rolled_back_changes_nothing(live: Live) -> None:
    """Nor does it hold up the worker for longer than the transaction: its batches wait for that and then go on."""
    run = live.start(cut_short.cut_tasked, "spared", "spared-gate")
    standing(live, "spared")
    with live.database.connect() as conn, conn.transaction(force_rollback=True):
        assert conn.execute("select supervisor.terminate(%s)", (run.id,)).fetchone() == (True,)
        live.effects.open("spared-gate")
    assert run.result(timeout=20) == 1
    assert live.effects.count("standing", "spared") == 1


def test_a_transactional_step_terminates_with_what_it_writes_but_not_what_its_own_worker_has(live: Live) -> None:
    """Taking a run from its own worker would refuse the step's own commit, again and again, until the worker gives up."""
    kept = "select count(*) from kept where word = %s"
    waits = live.database.one("select supervisor.start('cut_asleep', '{\"seconds\": 0}', delay => '1 hour')")
    assert live.run(cut_short.cut_another, str(waits)) == "True"
    assert stands(live, waits)[0] == "terminated" and live.database.one(kept, f"by a step {waits}") == 1
    run, pids, before = live.start(cut_short.cut_tasked, "own", "own-gate"), live.host.worker_pids(), epoch(live)
    standing(live, "own")
    assert "a transactional step can't end a run that its own worker has" in live.run(cut_short.cut_another, str(run.id))
    assert live.database.one(kept, f"by a step {run.id}") == 0
    live.effects.open("own-gate")
    assert run.result(timeout=20) == 1
    assert (live.host.worker_pids(), epoch(live)) == (pids, before), live.about()


def test_a_role_of_clients_terminates_and_is_durable_where_its_session_is_not(live: Live) -> None:
    run = live.start(cut_short.cut_asleep, 3600.0)
    with live.database.connect() as conn, conn.transaction():
        conn.execute("set local role supervisor_client")
        conn.execute("set local synchronous_commit = off")
        assert conn.execute("select supervisor.terminate(%s)", (run.id,)).fetchone() == (True,)
        assert conn.execute("show synchronous_commit").fetchone() == ("on",)


def test_runs_terminated_at_random_under_load_end_once_each(live: Live) -> None:
    """Claims, batches, ends of both kinds from outside meet at every point: who was told true has a terminated run, all others complete."""
    chance = random.Random(11)
    runs: dict[uuid.UUID, str] = {}
    told: dict[uuid.UUID, bool] = {}
    kinds = (cut_short.cut_tasked, cut_short.cut_threaded, cut_short.cut_transacted)
    stop = threading.Event()

    def cutter() -> None:
        with live.database.connect() as conn:
            while not stop.is_set():
                if left_over := [run_id for run_id in list(runs) if run_id not in told]:
                    victim = chance.choice(left_over)
                    told[victim] = conn.execute("select supervisor.terminate(%s, 'at random')", (victim,)).fetchone()[0]  # type: ignore[index]
                stop.wait(0.002)

    thread = threading.Thread(target=cutter)
    thread.start()
    try:
        live.effects.open("open")
        for at in range(400):
            runs[live.start(kinds[at % 3], f"r{at}", "open").id] = f"r{at}"
        ended = "select count(*) from supervisor.outcome where run_id = any(%s)"
        live.until(lambda: live.database.one(ended, list(runs)) == len(runs), 60)
    finally:
        stop.set()
        thread.join(20)
    status = dict(live.database.sql("select run_id, status from supervisor.runs where run_id = any(%s)", list(runs)))
    assert status == {run_id: "terminated" if told.get(run_id) else "completed" for run_id in runs}
    assert any(told.values()) and "completed" in status.values(), "the test has shown nothing"
    assert live.database.one("select count(*) from supervisor.task where run_id = any(%s)", list(runs)) == 0
    kept = dict(live.database.sql("select word, count(*) from kept group by 1"))
    for run_id, word in runs.items():
        steps = live.rows(run_id)
        assert steps == 2 or told.get(run_id), f"{word} completed with {steps} steps"
        if int(word[1:]) % 3 == 2:
            first = live.database.one("select count(*) from supervisor.step where run_id = %s and seq = (select min(seq) from supervisor.step where run_id = %s)", run_id, run_id)
            assert kept.get(word, 0) == first, f"{word}: what its transaction wrote and its checkpoint do not agree"
    assert live.database.one("select count(*) from supervisor.outcome o where run_id = any(%s) and o.steps <> (select count(*) from supervisor.step s where s.run_id = o.run_id)", list(runs)) == 0
    assert len(live.host.worker_pids()) == 1 and live.host.log().count("ended with exit code") == 0, live.about()


# ── replace ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_in_the_middle_of_a_step_is_replaced(live: Live) -> None:
    """Never two live runs of one key: the old one has ended when the new one begins, and writes nothing any more."""
    old = live.start(Named(workflow="cut_threaded", key="replaced"), "old", "old-gate")
    standing(live, "old")
    new = live.database.one("select supervisor.start('cut_threaded', '{\"word\": \"new\", \"gate\": \"new-gate\"}', key => 'replaced', on_conflict => 'replace')")
    assert stands(live, old)[0] == "terminated"
    with pytest.raises(RunTerminated):
        old.result(timeout=10)
    standing(live, "new")
    live.effects.open("old-gate")
    live.until(lambda: live.effects.count("left", "old", 1) == 1, 20, "the old run's step to return, to nobody")
    live.effects.open("new-gate")
    assert live.client.result(new, timeout=20) == 1
    assert live.rows(old) == 0 and live.effects.count("afterwards", "old") == 0
    assert live.database.one("select run_id from supervisor.run_key where key = 'replaced'") == new


def test_replacing_at_random_under_load_leaves_one_live_run_of_a_key(live: Live) -> None:
    """Many clients replace the runs of few keys while a worker executes them: each key's last run completes, all others were ended or had ended."""
    live.effects.open("open")
    started: list[uuid.UUID] = []
    lock = threading.Lock()

    def replacer(seed: int) -> None:
        chance = random.Random(seed)
        with live.database.connect() as conn:
            for _ in range(60):
                key = f"few{chance.randrange(4)}"
                while True:
                    try:
                        (run_id,) = conn.execute(
                            "select supervisor.start('cut_tasked', '{\"word\": \"few\", \"gate\": \"open\"}', key => %s, on_conflict => 'replace', notify => true)", (key,)
                        ).fetchone()  # type: ignore[misc]
                        break
                    except psycopg.errors.DeadlockDetected:
                        pass
                with lock:
                    started.append(run_id)

    threads = [threading.Thread(target=replacer, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(started) == 480
    live.until(lambda: live.database.one("select count(*) from supervisor.outcome where run_id = any(%s)", started) == len(started), 60)
    status = dict(live.database.sql("select run_id, status from supervisor.runs where run_id = any(%s)", started))
    assert set(status.values()) <= {"completed", "terminated"} and "terminated" in status.values()
    for (last,) in live.database.sql("select run_id from supervisor.run_key where key like 'few%%'"):
        assert status[last] == "completed"
    assert len(live.host.worker_pids()) == 1 and live.host.log().count("ended with exit code") == 0, live.about()
