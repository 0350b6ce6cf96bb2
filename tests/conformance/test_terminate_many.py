"""Many runs are ended at once, by the slice: whoever has them, waiting for nobody who has locked one."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from supervisor import RunTerminated
from supervisor.core.errors import PermissionMissing
from supervisor.db import bulk, operator_calls
from supervisor.db.operator_calls import Deed
from tests.apps import cut_short
from tests.conformance.conftest import Live
from tests.conformance.test_terminate import epoch, left, standing, stands, terminate
from tests.harness import Database, eventually

APP = "tests.apps.cut_short"
SETUP = ("create table kept (word text not null)",)


def by_the_slice(conn: psycopg.Connection, runs: Sequence[uuid.UUID]) -> dict[uuid.UUID, str]:
    """As the command does it: what came of each."""
    return {each.run_id: each.state for each in bulk.operate(conn, "supervisor", Deed("terminate"), runs, "in slices", None)}


def terminate_many(where: Database | Any, runs: list[Any], reason: str | None = None) -> dict[uuid.UUID, bool]:
    return dict(where.sql("select run_id, terminated from supervisor.terminate_many(%s, %s)", [getattr(run, "id", run) for run in runs], reason))


def asleep(live: Live, count: int) -> list[Any]:
    """Runs that are parked: none is locked by a claim or a batch that is on its way."""
    runs = [live.start(cut_short.cut_asleep, 3600.0) for _ in range(count)]
    live.until(lambda: live.database.one("select count(*) from supervisor.timer where run_id = any(%s)", [run.id for run in runs]) == count)
    return runs


def test_those_that_live_are_ended_and_the_others_are_left_out(live: Live) -> None:
    """Asleep, ended before, never there: a row for what it found live, in one transaction."""
    sleepers = asleep(live, 5)
    ended = live.start(cut_short.cut_asleep, 0.0)
    ended.result(timeout=20)
    assert terminate_many(live.database, [*sleepers, ended, uuid.uuid4()], "the season is over") == {run.id: True for run in sleepers}
    for run in sleepers:
        assert stands(live, run) == ("terminated", "the season is over") and left(live, run) == 0
    assert stands(live, ended)[0] == "completed"
    assert terminate_many(live.database, sleepers) == {} and terminate_many(live.database, []) == {}


def test_a_slice_of_running_ones_costs_their_worker_one_epoch(live: Live) -> None:
    """A worker whose runs are taken reads its tasks again: once for the slice, not once for each. Its other runs go on."""
    gate = f"many-{live.host.pid}"
    runs = [live.start(cut_short.cut_tasked, f"{gate}-{at}", gate) for at in range(20)]
    standing(live, *(f"{gate}-{at}" for at in range(20)))
    spared, before, pids = runs.pop(), epoch(live), live.host.worker_pids()
    assert terminate_many(live.database, runs) == {run.id: True for run in runs}
    assert epoch(live) == before + 1
    live.effects.open(gate)
    assert spared.result(timeout=20) == 1
    for run in runs:
        with pytest.raises(RunTerminated):
            run.result(timeout=10)
        assert live.rows(run) == 0
    assert live.host.worker_pids() == pids, live.about()


def test_what_somebody_has_locked_is_left_and_told(live: Live) -> None:
    """A bulk verb waits for nobody's transaction: the others end now, and that one when it is asked for again."""
    runs = asleep(live, 4)
    with live.database.connect() as other, other.transaction():
        other.execute("select supervisor.terminate(%s)", (runs[0].id,))
        assert terminate_many(live.database, runs) == {run.id: run is not runs[0] for run in runs}
        assert [stands(live, run)[0] for run in runs] == ["waiting", "terminated", "terminated", "terminated"]
        raise psycopg.Rollback
    assert terminate_many(live.database, runs) == {runs[0].id: True}


def test_a_parent_of_many_hears_it_once(live: Live) -> None:
    """All its children in one slice: it wakes, and by no sweep."""
    parent = live.start(cut_short.cut_parent_of_sleepers, 8)
    live.until(lambda: live.database.one("select wait from supervisor.runs where run_id = %s", parent.id) == "child")
    kids = [kid for (kid,) in live.database.sql("select run_id from supervisor.runs where parent_id = %s", parent.id)]
    assert terminate_many(live.database, kids) == dict.fromkeys(kids, True)
    assert parent.result(timeout=20) == "RunTerminated"


def test_a_transaction_takes_500(live: Live) -> None:
    """More would hold a worker's row for longer than its batches may wait; the caller makes slices."""
    with pytest.raises(psycopg.DatabaseError, match="501 runs are too many .* at most 500") as refused:
        terminate_many(live.database, [uuid.uuid4() for _ in range(501)])
    assert refused.value.sqlstate == "22023"


def test_a_rolled_back_slice_changes_nothing(live: Live) -> None:
    runs = asleep(live, 3)
    with live.database.connect() as conn, conn.transaction(force_rollback=True):
        assert len(conn.execute("select * from supervisor.terminate_many(%s)", ([run.id for run in runs],)).fetchall()) == 3
    assert all(stands(live, run)[0] != "terminated" for run in runs)
    terminate_many(live.database, runs)


def test_who_holds_a_worker_for_long_holds_up_no_bulk_verb_for_ever(live: Live) -> None:
    """An application that ends a running run and stays in its transaction has that run's worker: the slice is left, and can be asked for again."""
    gate = f"held-{live.host.pid}"
    mine, theirs = (live.start(cut_short.cut_tasked, f"{gate}-{who}", gate) for who in ("mine", "theirs"))
    standing(live, f"{gate}-mine", f"{gate}-theirs")
    with live.database.connect() as other, live.database.connect() as conn:
        with other.transaction():
            other.execute("select supervisor.terminate(%s)", (theirs.id,))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(operator_calls, "WAY_TRIES", 1)
                assert by_the_slice(conn, [mine.id]) == {mine.id: "locked"}
        assert by_the_slice(conn, [mine.id]) == {mine.id: "terminated"}
    live.effects.open(gate)


def test_a_role_without_the_right_is_told_which_grant_is_missing(live: Live) -> None:
    with live.database.connect() as conn, conn.transaction(force_rollback=True):
        conn.execute("set local role supervisor_viewer")
        with pytest.raises(PermissionMissing, match='GRANT "supervisor_client"'):
            by_the_slice(conn, [uuid.uuid4()])


def test_slices_under_load_end_every_run_once(live: Live) -> None:
    """Two operators end the same runs by the slice while a worker claims, executes and ends them: nobody deadlocks, and each run ends once."""
    live.effects.open("open")
    kinds = (cut_short.cut_tasked, cut_short.cut_threaded, cut_short.cut_transacted)
    mark = f"s{live.host.pid}-"
    runs: list[uuid.UUID] = []
    stop = threading.Event()

    def cutter() -> set[uuid.UUID]:
        told: set[uuid.UUID] = set()
        with live.database.connect() as conn:
            while not stop.wait(0.02):
                told.update(run_id for run_id, state in by_the_slice(conn, runs[-100:]).items() if state == "terminated")
        return told

    with ThreadPoolExecutor(2) as pool:
        cutters = [pool.submit(cutter) for _ in range(2)]
        try:
            for at in range(400):
                runs.append(live.start(kinds[at % 3], f"{mark}{at}", "open").id)
            live.until(lambda: live.database.one("select count(*) from supervisor.outcome where run_id = any(%s)", runs) == len(runs), 60)
        finally:
            stop.set()
        first, second = (each.result(60) for each in cutters)
    assert not first & second, "both were told that they ended it"
    status = dict(live.database.sql("select run_id, status from supervisor.runs where run_id = any(%s)", runs))
    assert status == {run: "terminated" if run in first | second else "completed" for run in runs}
    assert set(status.values()) == {"terminated", "completed"}, "the test has shown nothing"
    assert live.database.one("select count(*) from supervisor.task where run_id = any(%s)", runs) == 0
    assert live.host.log().count("ended with exit code") == 0, live.about()
    eventually(lambda: not live.database.sql("select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"), 10)


def test_a_single_end_beside_a_slice_is_told_the_truth(live: Live) -> None:
    """Who comes second finds it ended."""
    (run,) = asleep(live, 1)
    assert terminate_many(live.database, [run]) == {run.id: True}
    assert terminate(live.database, run) is False
