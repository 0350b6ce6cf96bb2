"""A run that is to end, cancelled or late, where only hosts without its code are: it waits for its code, visibly, and what it did is undone. No pause holds it up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest

from supervisor import AsyncClient, Client, OperationRefused, Run, RunCancelled, RunTimedOut
from tests.harness import ROOT, Database, Effects, Host, HostFactory, eventually

OLD, NEW, OTHER = "tests.apps.ended_old", "tests.apps.ended_new", "tests.apps.basic"


@pytest.fixture
def client(database: Database) -> Iterator[Client]:
    with Client(database.dsn) as made:
        yield made


def why(database: Database, run: Run[Any]) -> dict[str, Any]:
    """What `waits` says of a run; nothing when it has ended."""
    columns = ("code", "meaning", "detail", "since", "freed_by")
    found = database.sql(f"select {', '.join(columns)} from supervisor.waits where run_id = %s", run.id)
    return dict(zip(columns, found[0], strict=True)) if found else {}


def waits(database: Database, code: str, *runs: Run[Any]) -> None:
    eventually(lambda: all(why(database, run).get("code") == code for run in runs), 30, code)


def to_end(database: Database, status: str, run: Run[Any], code: str = "code_missing") -> dict[str, Any]:
    """It waits for code to end as *status*, and says so; returns its detail."""

    def so() -> dict[str, Any] | None:
        found = why(database, run)
        return found if found.get("code") == code and found["meaning"].startswith(f"to end as {status}") else None

    said = eventually(so, 30, f"{run.id}: {why(database, run)}")
    assert said["since"] is not None and f"terminate {run.id}" in said["freed_by"]
    detail: dict[str, Any] = json.loads(said["detail"])
    assert detail[status]["at"]
    assert database.one("select supervisor.end_wedged(array[%s::uuid])", run.id) == 0, "the leader's sweep ends it"
    return detail


def strand(database: Database, hosts: HostFactory, start: Sequence[Run[Any]] | Any) -> list[Run[Any]]:
    """Runs of the old code that wait for a signal; their host has died."""
    host = hosts.start(OLD).wait_up(1)
    runs: list[Run[Any]] = start()
    waits(database, "signal", *[run for run in runs if run.status().workflow != "ended_above"])
    waits(database, "child", *[run for run in runs if run.status().workflow == "ended_above"])
    host.kill_all()
    return runs


def wake(client: Client, *runs: Run[Any]) -> None:
    """Have them claimed by whoever is there."""
    for run in runs:
        assert client.pause(run) == "paused" and client.resume(run)


def undone(effects: Effects, name: str) -> list[str]:
    return list(dict.fromkeys(line[2] for line in effects.lines("ended_undo") if line[1] == name))


def planned(database: Database, run: Run[Any]) -> list[str]:
    return [status for status, in database.sql("select status from supervisor.compensations where run_id = %s order by seq", run.id)]


def command(database: Database, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PGSUPERVISOR_DATABASE_URL": database.dsn}
    return subprocess.run([sys.executable, "-m", "supervisor", *words], capture_output=True, text=True, env=environ, timeout=60)


def killed(host: Host) -> None:
    """kill -9 of its worker; its parent has forked another one."""
    before = host.log().count(" is up as ")
    host.kill_worker()
    eventually(lambda: host.log().count(" is up as ") > before, 30, host.log())


# ── cancelled ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_cancelled_while_its_code_is_missing_is_undone_when_it_comes(
    database: Database, hosts: HostFactory, effects: Effects, client: Client, build: str
) -> None:
    """A saga loses none of its undo steps for having met a host of the next release: the wish is kept and shown, and its own code fulfils it, through crashes."""
    names = ("gated-first", "def", "woken", "above", "cut")
    runs = strand(database, hosts, lambda: [
        client.start(name, word) for name, word in zip(("ended_saga", "ended_saga_def", "ended_saga", "ended_above", "ended_saga"), names, strict=True)
    ])  # fmt: skip
    first, plain, woken, above, cut = runs
    assert woken.cancel("by hand", actor="ann")
    with hosts(NEW, build=build) as new:
        to_end(database, "cancelled", woken)  # a cancellation wakes it, and whoever claims it has not its code
        wake(client, first, plain, above, cut)
        waits(database, "code_missing", first, plain, above, cut)
        since = why(database, first)["since"]
        for run in (first, plain, above, cut):
            assert run.cancel("by hand", actor="ann") is True and run.cancel("again") is False
        detail = to_end(database, "cancelled", first)
        assert detail["wants"] and detail["workflow"] == "ended_saga" and (detail["cancelled"]["by"], detail["cancelled"]["reason"]) == ("ann", "by hand")
        assert why(database, first)["since"] == since and first.status().wait == "code_missing"
        shown = command(database, "show", str(first.id)).stdout
        assert "to end as cancelled" in shown and '"by": "ann"' in shown and "versions move" in shown and f"terminate {first.id}" in shown
        child = "select status from supervisor.runs where parent_id = %s"
        eventually(lambda: database.one(child, above.id) == "cancelled", 20, "what is below it is cancelled as always")
        assert cut.terminate("at once") and cut.status().status == "terminated"
        killed(new)
        to_end(database, "cancelled", plain)
        assert database.one("select count(*) from supervisor.task where owner is not null") == 0 and effects.count("ended_undo") == effects.count("ended_other") == 0
        with hosts(OLD, build=build) as old:
            eventually(lambda: undone(effects, "gated-first") == ["two"], 30)
            killed(old)
            eventually(lambda: effects.count("ended_undo", "gated-first") == 2, 30)
            effects.open("gated-first.two.open")
            effects.open("gated-first.one.open")
            for run in (first, plain, woken, above):
                with pytest.raises(RunCancelled, match="by hand"):
                    run.result(timeout=30)
    assert [undone(effects, name) for name in names] == [["two", "one"], ["two", "one"], ["two", "one"], ["one"], []]
    assert [planned(database, run) for run in runs] == [["completed"] * 2, ["completed"] * 2, ["completed"] * 2, ["completed"], []]
    told = [(line[1], line[2]) for line in effects.lines("ended_do") if line[2].startswith("told")]
    assert sorted(told) == [("gated-first", "told-by"), ("woken", "told-by")]


def test_a_version_that_it_is_moved_to_ends_it_and_one_that_differs_does_not(database: Database, hosts: HostFactory, effects: Effects, client: Client) -> None:
    """Code of which it is said that it goes on with the run says what is undone; where its history refutes that, nothing is lost: it can be moved back."""
    fits, parts, parted = strand(database, hosts, lambda: [client.start("ended_moved", "fits"), client.start("ended_saga", "parts"), client.start("ended_saga", "parted")])
    version = "select version from supervisor.task where run_id = %s"
    with hosts(NEW):
        old = {name: database.one(version, run.id) for name, run in (("ended_moved", fits), ("ended_saga", parts))}
        new = {name: database.one("select v.version from supervisor.workflow_version v join supervisor.workflow w on w.id = v.workflow "
                                  "where w.name = %s and v.version <> %s", name, was) for name, was in old.items()}  # fmt: skip
        assert fits.cancel("moved") and parts.cancel("moved")
        to_end(database, "cancelled", fits)
        to_end(database, "cancelled", parts)
        assert client.move("ended_moved", old["ended_moved"], new["ended_moved"]).moved == 1
        with pytest.raises(RunCancelled, match="moved"):
            fits.result(timeout=30)
        assert undone(effects, "fits") == ["one-anew"]
        assert client.move("ended_saga", old["ended_saga"], new["ended_saga"]).moved == 2
        to_end(database, "cancelled", parts, "nondeterminism")
        wake(client, parted)
        waits(database, "nondeterminism", parted)
        assert parted.cancel("moved")
        to_end(database, "cancelled", parted, "nondeterminism")
        assert client.move("ended_saga", new["ended_saga"], old["ended_saga"]).moved == 2
        to_end(database, "cancelled", parts)
    with hosts(OLD):
        for run in (parts, parted):
            with pytest.raises(RunCancelled, match="moved"):
                run.result(timeout=30)
    assert undone(effects, "parts") == undone(effects, "parted") == ["two", "one"] and effects.count("ended_other") == 0


# ── late ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_late_while_its_code_is_missing_is_undone_when_it_comes(
    database: Database, hosts: HostFactory, effects: Effects, client: Client, build: str
) -> None:
    """Its time is over where only other code is: nothing of it is undone there, so it does not end there; and nobody claims it again and again for that."""
    woken, early, parts = strand(database, hosts, lambda: [client.start("ended_late", name) for name in ("woken", "gated-early", "parts")])
    database.sql("update supervisor.task set cancel_at = clock_timestamp(), ready_at = clock_timestamp() where run_id = any(%s)", [woken.id, parts.id])
    with hosts(NEW, build=build):
        wake(client, early)
        waits(database, "code_missing", early)
        assert why(database, early)["meaning"].startswith("parked")
        database.sql("update supervisor.task set cancel_at = clock_timestamp() where run_id = %s", early.id)
        for run in (woken, early, parts):
            detail = to_end(database, "timed_out", run)
            assert detail["wants"]
        assert database.one("select count(*) from supervisor.task where owner is null and wait_kind = 20 and ready_at = 'infinity'") == 3
        with pytest.raises(OperationRefused, match="its time is over"):
            client.pause(woken)
        # said to be of the new code, which its history refutes
        old, new = detail["wants"], detail["this_worker_has"]
        assert client.move("ended_late", old, new).moved == 3
        for run in (woken, early, parts):
            to_end(database, "timed_out", run, "nondeterminism")
        assert client.move("ended_late", new, old).moved == 3
        assert woken.cancel("as well")
        assert effects.count("ended_undo") == effects.count("ended_other") == 0
        with hosts(OLD, build=build) as right:
            eventually(lambda: undone(effects, "gated-early") == ["one"], 30)
            killed(right)
            eventually(lambda: effects.count("ended_undo", "gated-early") == 2, 30)
            effects.open("gated-early.one.open")
            for run in (woken, early, parts):
                with pytest.raises(RunTimedOut, match="timed out"):
                    run.result(timeout=30)
    assert {run.status().status for run in (woken, early, parts)} == {"timed_out"}
    assert [undone(effects, name) for name in ("woken", "gated-early", "parts")] == [["one"]] * 3
    assert [planned(database, run) for run in (woken, early, parts)] == [["completed"]] * 3


# ── not begun ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_what_has_nothing_to_undo_ends_without_its_code(database: Database, hosts: HostFactory, effects: Effects, client: Client) -> None:
    """Never begun, or given back before it began: cancelled or late, it ends. One whose first step was under way, and a fork, may have something to undo."""
    host = hosts.start(OLD).wait_up(1)
    begun, source = client.start("ended_first", "begun"), client.start("ended_saga", "source")
    eventually(lambda: effects.count("ended_holds", "begun") == 1, 20)
    waits(database, "signal", source)
    host.kill_all()
    unknown = [client.start("ended_saga", "unknown") for _ in range(4)]
    cancelled, late, given_back, late_back = unknown
    database.sql("update supervisor.task set cancel_at = clock_timestamp() + interval '1 hour' where run_id = %s", late.id)
    with hosts(OTHER):
        fork = client.fork(source, None)
        waits(database, "code_missing", *unknown, begun, fork)
        assert database.one("select count(*) from supervisor.task where owner is not null") == 0
        database.sql("update supervisor.task set resumed = 1 where run_id = any(%s)", [given_back.id, late_back.id])
        database.sql("update supervisor.task set cancel_at = clock_timestamp(), ready_at = 'infinity' where run_id = %s", late_back.id)
        comes = "update supervisor.task set cancel_at = clock_timestamp(), ready_at = ready_at - interval '1 hour' where run_id = %s and ready_at = cancel_at returning 1"
        assert database.sql(comes, late.id), "it is looked at again when its time is over"
        for run in (cancelled, given_back):
            assert run.cancel("not begun") and run.status().status == "cancelled"
        for run in (begun, fork):
            assert run.cancel("begun")
            to_end(database, "cancelled", run)
        for run in (late, late_back):
            eventually(lambda run=run: run.status().status == "timed_out", 60, "it to end when its time is over")  # type: ignore[misc]
            with pytest.raises(RunTimedOut, match="timed out"):
                run.result(timeout=5)
        with hosts(OLD):
            for run in (begun, fork):
                with pytest.raises(RunCancelled, match="begun"):
                    run.result(timeout=30)
    assert undone(effects, "begun") == ["first"] and undone(effects, "source") == ["two", "one"]
    assert planned(database, fork) == ["completed"] * 2 and planned(database, source) == []


def test_one_that_is_terminated_with_its_parent_does_not_wait_for_its_code(database: Database, hosts: HostFactory, client: Client) -> None:
    """Its parent ended while a worker without its code was just giving it back."""
    (run,) = strand(database, hosts, lambda: [client.start("ended_saga", "cut")])
    with hosts(OTHER):
        wake(client, run)
        waits(database, "code_missing", run)
        database.sql("insert into supervisor.cancellation (run_id, how, actor, reason) values (%s, 4, 'its parent', 'its parent ended')", run.id)
        database.sql("update supervisor.task set cancel_to = 0 where run_id = %s", run.id)
        eventually(lambda: run.status().status == "terminated", 60)


# ── a rolling reload ─────────────────────────────────────────────────────────────────────────────────────────────

ROLLING = """
from supervisor import Signal, compensate, step, workflow
from tests.harness import note

@step
def ended_rolled(name: str, word: str) -> None:
    note("ended_rolled", name, word)

@workflow(timeout=TIMEOUT)
async def ended_rolling(name: str) -> str:
    await ended_rolled.aio(name, "WORD")
    compensate(ended_rolled, name, "WORD-undone")
    return await Signal("ended_roll_go", str).wait()
"""


def test_a_rolling_reload_that_meets_cancellations_and_timeouts_loses_no_undo_step(database: Database, hosts: HostFactory, effects: Effects, client: Client) -> None:
    """HUP with changed code, kill -9 in the middle: runs of the old code that are cancelled or late meanwhile end by it, beside the new, and by no other."""
    old = ROLLING.replace("WORD", "old").replace("TIMEOUT", "6")
    path, environ = hosts.folder / "ended_rolled_app.py", {"PYTHONPATH": f"{ROOT}:{hosts.folder}"}
    path.write_text(old)
    host = hosts.start("ended_rolled_app", procs=2, env=environ).wait_up(2)
    runs = [client.start("ended_rolling", f"r{n}") for n in range(24)]
    waits(database, "signal", *runs)
    path.write_text(ROLLING.replace("WORD", "brand-new").replace("TIMEOUT", "3600"))
    os.kill(host.pid, signal.SIGHUP)
    asked = 0
    for n, run in enumerate(runs[::2]):
        asked += run.cancel("rolled")
        if n == 4:
            host.kill_worker()
    eventually(lambda: "workers are of generation 2" in host.log(), 60, host.log())
    live = "select count(*) from supervisor.task where owner is not null or wait_kind <> 20"
    eventually(lambda: database.one("select count(*) from supervisor.task where cancel_at > clock_timestamp()") == 0, 30, "their time to be over")
    eventually(lambda: database.one(live) == 0, 30, "each has ended by its code, or waits for it")
    (hosts.folder / "ended_rolled_before.py").write_text(old)
    with hosts("ended_rolled_before", env=environ):
        eventually(lambda: database.one("select count(*) from supervisor.outcome") == len(runs), 30)
    host.stop()
    assert asked == 12 and effects.count("ended_rolled", "brand-new") == 0
    for n, run in enumerate(runs):
        assert run.status().status in (("cancelled", "timed_out") if n % 2 == 0 else ("timed_out",))
        assert planned(database, run) == ["completed"] and effects.count("ended_rolled", f"r{n}", "old-undone") >= 1
        assert effects.count("ended_rolled", f"r{n}", "brand-new-undone") == 0


# ── a pause that comes too late ──────────────────────────────────────────────────────────────────────────────────


def test_what_is_to_end_is_not_paused_whoever_asks(database: Database, hosts: HostFactory, effects: Effects, client: Client) -> None:
    """Nobody has told it yet, for no worker is there: it is not held, the refusal says why, bulk verbs pass it by; and a worker that comes tells it."""
    one, other, idle = strand(database, hosts, lambda: [client.start("ended_saga", name) for name in ("one", "other", "idle")])
    assert one.cancel("enough", actor="ann") and other.cancel("enough", actor="ann")
    refusal = r"it is being cancelled \(asked for by ann\): it ends by its own code, or terminate ends it"
    with pytest.raises(OperationRefused, match=refusal) as caught:
        client.pause(one)
    assert (caught.value.run_id, caught.value.verb, caught.value.code) == (one.id, "pause", "operation_refused")

    async def ask() -> None:
        async with AsyncClient(database.dsn) as asynchronous:
            await asynchronous.pause(one.id)

    with pytest.raises(OperationRefused, match=refusal):
        asyncio.run(ask())
    with psycopg.connect(database.dsn) as conn:
        with pytest.raises(OperationRefused, match=refusal):
            client.within(conn).pause(one)
        conn.rollback()
        with pytest.raises(psycopg.DatabaseError, match=refusal) as raised:
            conn.execute("select supervisor.pause(%s)", (one.id,))
        assert raised.value.sqlstate == "SV030"
    said = command(database, "pause", str(one.id))
    assert said.returncode == 1 and "it is being cancelled" in said.stderr
    told = [json.loads(line) for line in command(database, "pause", "--filter", "workflow = ended_saga", "--yes", "--json").stdout.splitlines()]
    *runs, summary = told
    assert sorted((each["done"], each["state"]) for each in runs) == [(False, "refused"), (False, "refused"), (True, "paused")]
    assert summary["done"] == 1, summary
    bulk = client.operate_all("pause", "workflow = ended_saga")
    assert (bulk.found, bulk.done, bulk.refused) == (3, 0, 3)
    assert [row[0] for row in database.sql("select run_id from supervisor.pauses")] == [idle.id]
    assert database.sql("select distinct run_id from supervisor.audits where verb = 'pause'") == [(idle.id,)]
    with hosts(OLD):
        for run in (one, other):
            with pytest.raises(RunCancelled, match="enough"):
                run.result(timeout=30)
    assert undone(effects, "one") == undone(effects, "other") == ["two", "one"] and undone(effects, "idle") == []
