"""A run that is cancelled is told so at what it awaits, may clean up, and ends itself; with all below it, whatever state they are in."""

from __future__ import annotations

import os
import random
import threading
import uuid
from pathlib import Path
from typing import Any

import psycopg
import pytest

from supervisor import AsyncClient, InputInvalid, RunCancelled, RunFailed, RunUnknown
from supervisor.api.client import Named
from tests.apps import halted
from tests.conformance.conftest import Live

APP = "tests.apps.halted"
PROCS = 2


def stands(live: Live, run: Any) -> tuple[str, str | None]:
    found: tuple[str, str | None] = live.database.sql("select status, error ->> 'message' from supervisor.result(%s)", getattr(run, "id", run))[0]
    return found


def asked(live: Live, run: Any) -> list[tuple[str, str, str | None]]:
    return live.database.sql("select how, actor, reason from supervisor.cancellations where run_id = %s", getattr(run, "id", run))


def rows(live: Live, run: Any, kind: str) -> list[tuple[str, str]]:
    return live.database.sql("select name, status from supervisor.steps where run_id = %s and kind = %s order by pos", run.id, kind)


def began(live: Live, *names: str) -> None:
    live.until(lambda: all(live.effects.count("halt_began", name) for name in names), 20, f"{names} to begin")


def waits(live: Live, run: Any, *codes: str | None) -> None:
    live.until(lambda: run.status().wait in codes, 20, f"it to wait for {codes}")


# ── in every state ───────────────────────────────────────────────────────────────────────────────────────────────

STATES = {
    "sleep": "timer", "signal": "signal", "limited": "signal", "child": "child", "backoff": "step_backoff",
    "async": None, "thread": None, "process": None, "gather": None, "first": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", STATES)
def test_a_run_is_told_at_what_it_waits_for(live: Live, kind: str) -> None:
    """It sleeps, waits or executes, in memory or out of it: its code is given reason and actor, cleans up and ends as cancelled."""
    run = live.start(halted.halt_waits, kind, kind)
    live.until(lambda: live.effects.count("halt_waits", kind) == 1)
    if STATES[kind] is not None:
        waits(live, run, STATES[kind])
    else:
        began(live, *([f"{kind}a", f"{kind}b"] if kind in ("gather", "first") else [kind]))
    assert run.cancel("no longer wanted", actor="ann") is True
    with pytest.raises(RunCancelled, match="no longer wanted") as caught:
        run.result(timeout=10)
    assert caught.value.why == "no longer wanted"
    assert live.effects.count("halt_told", kind, "no_longer_wanted", "ann") == 1
    assert asked(live, run) == [("cancelled", "ann", "no longer wanted")]
    assert len(rows(live, run, "cancellation")) == 1
    assert run.cancel() is False, "it was live only once"
    left = "select (select count(*) from supervisor.task where run_id = %s) + (select count(*) from supervisor.timer where run_id = %s)"
    assert live.database.one(left, run.id, run.id) == 0
    for stopped in {"async": ["async"], "thread": ["thread"], "process": ["process"], "gather": ["gathera", "gatherb"], "first": ["firsta", "firstb"]}.get(kind, []):
        live.until(lambda stopped=stopped: live.effects.count("halt_stopped", stopped) == 1, 10, f"the body of {stopped} to be told")
    if kind == "process":  # it has a handler for TERM, so it is killed a second later
        pid = int(live.effects.lines("halt_began")[-1][2])
        live.until(lambda: not Path(f"/proc/{pid}").exists(), 20)


@pytest.mark.parametrize("kind", ["sleep", "gather"])
def test_a_def_workflow_is_told_the_same_way(live: Live, kind: str) -> None:
    name = f"def{kind}"
    run = live.start(halted.halt_waits_def, kind, name)
    live.until(lambda: live.effects.count("halt_waits", name) == 1)
    if kind == "sleep":
        waits(live, run, "timer")
    else:
        began(live, f"{name}a", f"{name}b")
    assert run.cancel("enough", actor="bob")
    with pytest.raises(RunCancelled, match="enough"):
        run.result(timeout=10)
    assert live.effects.count("halt_told", name, "enough", "bob") == 1


def test_a_transaction_is_let_end_first(live: Live) -> None:
    """What it writes commits or not as a whole; the run is told when it has."""
    run = live.start(halted.halt_waits, "transaction", "tx")
    began(live, "tx")
    assert run.cancel("late")
    live.effects.open("tx.tx")
    with pytest.raises(RunCancelled):
        run.result(timeout=10)
    assert ("halt_in_transaction", "completed") in rows(live, run, "step")


def test_what_has_not_begun_ends_at_once(live: Live) -> None:
    """Delayed, or on a queue that nobody serves: no code can be told. So does a run of a workflow that no worker knows."""
    live.database.sql("insert into supervisor.workflow (name, queue) values ('halt_unknown', supervisor.queue_id('default')) on conflict do nothing")
    runs = [
        live.client.start(halted.halt_waits.options(delay=3600), "sleep", "later"), live.client.start(halted.halt_waits.options(queue="nobody"), "sleep", "later"),
        live.client.start(Named(workflow="halt_unknown", delay_s=3600)),
    ]  # fmt: skip
    for run in runs:
        assert run.cancel("not needed") is True
        assert stands(live, run) == ("cancelled", "not needed")
        with pytest.raises(RunCancelled):
            run.result(timeout=5)
    unknown = live.client.start(Named(workflow="halt_unknown"))
    waits(live, unknown, "code_missing")
    assert unknown.cancel() and stands(live, unknown) == ("cancelled", "it was cancelled")
    assert live.effects.count("halt_waits", "later") == 0


@pytest.mark.parametrize("code", [21, 22, 23])
def test_what_the_engine_has_put_aside_ends_at_once(live: Live, code: int) -> None:
    """Whether it was put aside before somebody cancels it or after: it kills whoever runs it, or nobody can record it, so nothing is waited for. Its children
    are told. (What waits for its code is undone: test_ends.py.)"""
    name = f"aside{code}"
    run = live.start(halted.halt_waits, "child", name)
    waits(live, run, "child")
    began(live, name)
    put = "update supervisor.task set wait_kind = %s, ready_at = 'infinity', wait_children = null where run_id = %s"
    live.database.sql(put, code, run.id)
    assert run.cancel("wedged") is True
    assert stands(live, run) == ("cancelled", "wedged")
    live.until(lambda: live.database.one("select status from supervisor.runs where parent_id = %s", run.id) == "cancelled", 10)
    if code == 22:
        late = live.start(halted.halt_waits, "sleep", "late")
        waits(live, late, "timer")
        live.database.sql("update supervisor.task set wait_kind = 22, ready_at = 'infinity', cancel_to = 0 where run_id = %s", late.id)
        live.until(lambda: stands(live, late)[0] == "cancelled", 60, "the sweep to end it")


def test_a_paused_run_is_told(live: Live) -> None:
    """Whoever paused it, it is to end: it goes on as far as that takes."""
    run = live.start(halted.halt_waits, "sleep", "paused")
    waits(live, run, "timer")
    live.database.sql("update supervisor.task set wait_kind = 7, ready_at = 'infinity' where run_id = %s", run.id)
    assert run.cancel("paused for ever")
    with pytest.raises(RunCancelled):
        run.result(timeout=10)
    assert live.effects.count("halt_told", "paused") == 1


# ── what code makes of it ────────────────────────────────────────────────────────────────────────────────────────


def test_the_outcome_is_what_the_code_makes_of_it(live: Live) -> None:
    """Cancelled only where the error leaves the workflow; one that goes on is for terminate."""
    runs = {how: live.start(halted.halt_answers, how) for how in ("returns", "fails", "goes_on")}
    for how, run in runs.items():
        began(live, how)
        waits(live, run, "timer")
        assert run.cancel("why not")
    assert runs["returns"].result(timeout=10) == "returns: why not" and runs["goes_on"].result(timeout=10) == "goes_on: why not"
    with pytest.raises(RunFailed, match="could not clean up after why not"):
        runs["fails"].result(timeout=10)
    assert asked(live, runs["returns"]) == [("cancelled", live.database.one("select session_user::text"), "why not")]


def test_a_child_that_is_started_to_clean_up_is_not_born_cancelled(live: Live) -> None:
    run = live.start(halted.halt_starts_after, "afterwards")
    began(live, "afterwards")
    waits(live, run, "timer")
    run.cancel()
    live.effects.open("afterwards.clean")
    assert run.result(timeout=10) == "afterwards.clean"


def test_shields_let_what_is_inside_end(live: Live) -> None:
    """Two steps after one another, the second begun when the run was cancelled already; then the code is told."""
    run = live.start(halted.halt_shielded, "shielded")
    live.until(lambda: live.effects.count("halt_gate", "shielded.one") == 1)
    assert run.cancel("in between")
    live.until(lambda: len(rows(live, run, "cancellation")) == 1)
    live.effects.open("shielded.one")
    live.until(lambda: live.effects.count("halt_gate", "shielded.two") == 1)
    live.effects.open("shielded.two")
    with pytest.raises(RunCancelled, match="in between"):
        run.result(timeout=10)
    assert rows(live, run, "step")[:2] == [("halt_gate", "completed")] * 2
    assert live.effects.lines("halt_told")[-1][1:] == ["shielded", "in", "between", "NoneType"]


def test_shields_have_a_limit(live: Live) -> None:
    run = live.start(halted.halt_too_long, "long")
    began(live, "long")
    waits(live, run, "timer")
    run.cancel()
    assert run.result(timeout=10) == "what was shielded did not end within 0.2 s"
    assert live.effects.count("halt_cut", "long") == 1
    assert live.run(halted.halt_too_long_def, "longdef") == "what was shielded did not end within 0.2 s"


def test_shields_give_values_errors_and_are_not_cancelled_with_a_branch(live: Live) -> None:
    run = live.start(halted.halt_shield_values, "values")
    live.until(lambda: live.effects.count("halt_gate", "values.loser") == live.effects.count("halt_gate", "values.winner") == 1)
    live.effects.open("values.winner")
    live.until(lambda: ("halt_gate", "completed") in rows(live, run, "step"))
    live.effects.open("values.loser")
    assert run.result(timeout=10) == [["x"], [["y"], None], "no", "the loser ended", ["b", "values.winner"]]


# ── trees ────────────────────────────────────────────────────────────────────────────────────────────────────────


def tree(live: Live, run: Any) -> dict[uuid.UUID, str]:
    below = """with recursive below as (select run_id, status from supervisor.runs where run_id = %s
               union all select r.run_id, r.status from supervisor.runs r join below b on r.parent_id = b.run_id) select run_id, status from below"""
    return dict(live.database.sql(below, run.id))


@pytest.mark.parametrize("widths", [[10, 11], [3, 3, 3, 3]])
def test_a_tree_of_121_runs_is_cancelled_by_one_call(live: Live, widths: list[int]) -> None:
    """All are marked in its transaction, and all have ended within a second; ten times that is given here."""
    name = f"tree{len(widths)}"
    leaves = 110 if len(widths) == 2 else 81
    run = live.start(halted.halt_tree, widths, name)
    live.until(lambda: live.effects.count("halt_leaf", name) == leaves, 30)
    assert run.cancel("felled", actor="ann")
    whole = [run_id for run_id, in live.database.sql("select run_id from supervisor.cancellations where actor = 'ann' and reason = 'felled' and run_id = any(%s)", list(tree(live, run)))]
    assert len(whole) == 121, "they were not asked in the same transaction"
    live.until(lambda: set(tree(live, run).values()) == {"cancelled"}, 10)
    assert live.database.one("select count(*) from supervisor.task where run_id = any(%s)", whole) == 0


def test_a_child_that_starts_in_that_moment_is_cancelled_too(live: Live) -> None:
    """It sees its parent's mark or is seen by who sets it: nothing of a tree lives on, however starts and cancellations meet."""
    chance = random.Random(5)
    names = [f"meet{at}" for at in range(16)]
    runs = [live.start(halted.halt_starts_many, name, 150) for name in names]
    barrier = threading.Barrier(4)

    def cut(mine: list[Any]) -> None:
        barrier.wait(20)
        for run in mine:
            live.until(lambda run=run: live.database.one("select count(*) > %s from supervisor.run where parent_id = %s", chance.randrange(60), run.id), 20)
            run.cancel("met")

    threads = [threading.Thread(target=cut, args=(runs[at::4],)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    ids = [run.id for run in runs]
    family = "select count(*) from supervisor.run r join supervisor.task t using (run_id) where r.parent_id = any(%s) or r.run_id = any(%s)"
    live.until(lambda: live.database.one(family, ids, ids) == 0, 30, "all of them to end")
    status = dict(live.database.sql("select status, count(*) from supervisor.runs where parent_id = any(%s) or run_id = any(%s) group by 1", ids, ids))
    assert set(status) == {"cancelled"} and status["cancelled"] > 16


# ── crashes and replays ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_replay_tells_branches_where_they_were_told(live: Live) -> None:
    """One branch is further than the others; all clean up behind shields, in an order. After a kill the code sees the same."""
    run = live.start(halted.halt_branches, "replay")
    live.until(lambda: all(live.effects.count("halt_gate", f"replay.{label}") for label in "abcd"))
    live.effects.open("replay.b")
    live.until(lambda: ("halt_gate", "completed") in rows(live, run, "step"))
    assert run.cancel("again")
    live.until(lambda: live.effects.count("halt_gate", "replay.cleaning") == 1)
    live.kill()
    live.until(lambda: live.effects.count("halt_gate", "replay.cleaning") == 2)
    live.effects.open("replay.cleaning")
    before, after = run.result(timeout=20)
    assert before == after and before[-1] == "root again"
    assert sorted(before) == sorted([f"{label} again" for label in "abcd"] + [f"{label} cleaned" for label in "abcd"] + ["b done", "root again"])


def test_a_worker_that_dies_while_a_run_cleans_up(live: Live) -> None:
    run = live.start(halted.halt_shielded, "killed")
    live.until(lambda: live.effects.count("halt_gate", "killed.one") == 1)
    run.cancel("and killed")
    live.until(lambda: len(rows(live, run, "cancellation")) == 1)
    live.kill()
    live.until(lambda: live.effects.count("halt_gate", "killed.one") == 2)
    live.effects.open("killed.one")
    live.until(lambda: live.effects.count("halt_gate", "killed.two") == 1)
    live.kill()
    live.until(lambda: live.effects.count("halt_gate", "killed.two") == 2)
    live.effects.open("killed.two")
    with pytest.raises(RunCancelled, match="and killed"):
        run.result(timeout=20)
    assert len(rows(live, run, "cancellation")) == 1


def test_workers_that_die_while_they_are_told(live: Live) -> None:
    """Cancelled at random while workers are killed: every run ends as cancelled, and was told once in its history."""
    chance = random.Random(3)
    kinds = ["sleep", "signal", "child", "async", "gather", "first", "backoff"]
    runs = [live.start(halted.halt_waits, kinds[at % 7], f"dies{at}") for at in range(42)]
    ids = [run.id for run in runs]
    live.until(lambda: all(live.effects.count("halt_waits", f"dies{at}") for at in range(42)), 30)
    for at in (0, 1, 2):
        for run in runs[at::3]:
            run.cancel(f"round {at}")
            if chance.random() < 0.15:
                for pid in live.host.worker_pids()[:1]:
                    os.kill(pid, 9)
        live.kill()
    live.until(lambda: live.database.one("select count(*) from supervisor.outcome where run_id = any(%s)", ids) == 42, 60)
    assert live.database.sql("select status, count(*) from supervisor.runs where run_id = any(%s) group by 1", ids) == [("cancelled", 42)]
    told = live.database.sql("select run_id, count(*) from supervisor.steps where kind = 'cancellation' and run_id = any(%s) group by 1", ids)
    assert len(told) == 42 and {n for _, n in told} == {1}
    family = "select count(*) from supervisor.run r join supervisor.task t using (run_id) where r.parent_id = any(%s)"
    live.until(lambda: live.database.one(family, ids) == 0, 30)


# ── whoever asks ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_whoever_asks_reason_and_actor_are_kept(live: Live) -> None:
    """SQL, clients, a transaction; what is rolled back asked nothing."""
    import asyncio

    runs = [live.start(halted.halt_waits, "sleep", f"by{at}") for at in range(4)]
    for run in runs:
        waits(live, run, "timer")
    sql, plain, within, back = runs
    assert live.database.one("select supervisor.cancel(%s, 'by sql', notify => true, actor => 'carl')", sql.id) is True
    assert asyncio.run(_cancel_async(live, plain.id)) == (True, False)
    with live.database.connect() as conn:
        with conn.transaction(force_rollback=True):
            assert live.client.within(conn).cancel(back, "rolled back") is True
        with conn.transaction():
            assert live.client.within(conn).cancel(within, "with it", actor="eve") is True
    for run, actor, reason in ((sql, "carl", "by sql"), (plain, "dan", "by async"), (within, "eve", "with it")):
        with pytest.raises(RunCancelled, match=reason):
            run.result(timeout=10)
        assert asked(live, run) == [("cancelled", actor, reason)]
    assert asked(live, back) == [] and back.status().status == "waiting"
    assert back.terminate("last resort", actor="fay") is True and back.terminate() is False
    assert stands(live, back) == ("terminated", "last resort") and asked(live, back) == [("terminated", "fay", "last resort")]
    assert live.effects.count("halt_told", "by3") == 0


async def _cancel_async(live: Live, run_id: uuid.UUID) -> tuple[bool, bool]:
    async with AsyncClient(live.database.dsn) as client:
        return await client.cancel(run_id, "by async", actor="dan"), await (await client.get(run_id)).cancel()


def test_what_is_no_run_and_too_long_a_reason(live: Live) -> None:
    for verb in (live.client.cancel, live.client.terminate):
        with pytest.raises(RunUnknown):
            verb(uuid.uuid4())
    run = live.start(halted.halt_waits, "sleep", "reasons")
    with pytest.raises(InputInvalid, match=r"at most 2,000 characters"):
        run.cancel("x" * 2001)
    run.terminate()


def test_many_are_cancelled_by_the_slice_and_what_is_locked_is_left(live: Live) -> None:
    """A bulk verb waits for nobody's transaction; the others are cancelled now, and that one when it is asked for again."""
    from supervisor.db import bulk
    from supervisor.db.operator_calls import Deed

    def cancel(conn: psycopg.Connection, reason: str) -> dict[uuid.UUID, str]:
        return {each.run_id: each.state for each in bulk.operate(conn, "supervisor", Deed("cancel"), ids, reason, "gus")}

    runs = [live.start(halted.halt_waits, "sleep", f"slice{at}") for at in range(4)]
    for run in runs:
        waits(live, run, "timer")
    ids = [run.id for run in runs]
    with live.database.connect() as other, live.database.connect() as conn:
        with other.transaction():
            other.execute("select from supervisor.task where run_id = %s for update", (ids[0],))
            assert cancel(conn, "in a slice") == {ids[0]: "locked", **dict.fromkeys(ids[1:], "asked")}
        assert cancel(conn, "again") == {ids[0]: "asked", **dict.fromkeys(ids[1:], "passed")}
        assert set(cancel(conn, "and again").values()) == {"passed"}
        with pytest.raises(psycopg.DatabaseError, match="501 runs are too many"):
            conn.execute("select supervisor.cancel_many(%s)", ([uuid.uuid4() for _ in range(501)],))
    for run in runs:
        with pytest.raises(RunCancelled):
            run.result(timeout=10)
        assert asked(live, run)[0][1] == "gus"
