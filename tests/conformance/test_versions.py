"""A run stays with the version of the code that it began with: parked where only other code is, handed to who has it, moved by one command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

from supervisor import AsyncClient, Client, InputInvalid, PermissionMissing, Run, VersionUnknown
from supervisor.api.asked import Named
from tests.harness import ROOT, Database, Effects, Host, HostFactory, Server, eventually

OLD, NEW = "tests.apps.versioned_old", "tests.apps.versioned_new"


@lru_cache
def versions_of(app: str) -> dict[str, str]:
    """The versions that *app* has, asked in a process of its own: one process has one version of a workflow."""
    ask = f"import json, {app}; from supervisor.core import registry; print(json.dumps({{n: w.version for n, w in registry.workflows().items()}}))"
    found: dict[str, str] = json.loads(subprocess.run([sys.executable, "-c", ask], capture_output=True, check=True, cwd=ROOT).stdout)
    return found


def version(name: str, which: int) -> str:
    """The version of a workflow in the old (0) or the new (1) app."""
    return versions_of((OLD, NEW)[which])[name]


def registered(database: Database, which: int) -> None:
    """The catalogue as a host of that app leaves it."""
    for name, text in versions_of((OLD, NEW)[which]).items():
        database.sql("insert into supervisor.workflow (name, queue) values (%s, supervisor.queue_id('default')) on conflict do nothing", name)
        database.sql(
            "insert into supervisor.workflow_version (workflow, version, source) select id, %s, 'm' from supervisor.workflow where name = %s on conflict do nothing", text, name
        )


def parked(database: Database, run: Run[Any]) -> dict[str, Any] | None:
    """Why a run is parked for want of code, if it is."""
    found = database.sql("select wait_detail from supervisor.task where run_id = %s and wait_kind = 20 and owner is null", run.id)
    return json.loads(found[0][0]) if found else None


def pin(database: Database, run: Run[Any]) -> str | None:
    found: str | None = database.one("select version from supervisor.task where run_id = %s", run.id)
    return found


def waits_for(database: Database, run: Run[Any], code: str) -> None:
    eventually(lambda: database.sql("select 1 from supervisor.waits where run_id = %s and code = %s", run.id, code), 20, code)


@pytest.fixture
def client(database: Database) -> Iterator[Client]:
    with Client(database.dsn) as made:
        yield made


# ── pinned ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_changed_code_never_gets_a_run_of_the_old(database: Database, hosts: HostFactory, effects: Effects, client: Client, build: str) -> None:
    """A deployment in the middle of runs: theirs is parked and says what it wants; new runs are of the new code; the old code finishes its own."""
    old = hosts.start(OLD, build=build).wait_up(1)
    killed = [client.start("versioned_slow", "never") for _ in range(3)]  # their worker dies in their second step
    asleep = [client.start("versioned_waits"), client.start("versioned_waits_sync")]
    eventually(lambda: effects.count("gate", "never") == 3, 20)
    for run in asleep:
        waits_for(database, run, "signal")
    old.kill_all()
    with hosts(NEW, build=build):
        for run in asleep:
            client.signal(run, "versioned_go", 1)
        for run, name in zip([*killed, *asleep], ["versioned_slow"] * 3 + ["versioned_waits", "versioned_waits_sync"], strict=True):
            detail = eventually(lambda run=run: parked(database, run), 30)  # type: ignore[misc]
            assert detail == {"workflow": name, "wants": version(name, 0), "this_worker_has": version(name, 1)}
            assert run.status().wait == "code_missing"
        assert database.one("select count(*) from supervisor.task where owner is not null") == 0, "nothing is left claimed"
        assert client.start("versioned_once").result(timeout=20) == "new once"
        assert effects.count("did", "new-1") == effects.count("did", "new-2") == effects.count("other") == 0
        effects.open("never")
        with hosts(OLD, build=build):  # beside it: what it can run is handed to it, not raced for
            assert [run.result(timeout=30) for run in [*killed, *asleep]] == ["old"] * 5
    assert effects.count("did", "old-1") == 5 and effects.count("did", "old-2") == 5
    ended = dict(database.sql("select run_id, version from supervisor.runs"))
    assert {ended[run.id] for run in killed} == {version("versioned_slow", 0)}


def test_hosts_of_two_versions_beside_each_other_each_go_on_with_their_own(
    database: Database, hosts: HostFactory, client: Client
) -> None:
    """Whoever wakes up may be claimed by the wrong host, each time: it is given back and handed over, and neither starves nor spins."""
    with hosts(OLD):
        runs = [client.start("versioned_hops", 3) for _ in range(20)]
        for run in runs:
            waits_for(database, run, "signal")
        with hosts(NEW):
            younger = [client.start("versioned_hops", 3) for _ in range(20)]
            for run in younger:
                waits_for(database, run, "signal")
            for hop in range(3):
                for run in [*runs, *younger]:
                    client.signal(run, "versioned_go", hop)
                if hop < 2:
                    eventually(lambda hop=hop: database.one("select count(*) from supervisor.step") == 40 * (hop + 1), 60)  # type: ignore[misc]
                    eventually(lambda: database.one("select count(*) from supervisor.task where wait_kind = 11") == 40, 30)
            assert [run.result(timeout=60) for run in runs] == ["old"] * 20
            results = [run.result(timeout=60) for run in younger]
    # who of the two began a younger one decides of which version it is, for good
    assert set(results) <= {"old", "new"}
    ended = dict(database.sql("select run_id, version from supervisor.runs"))
    for run, result in zip([*runs, *younger], [*["old"] * 20, *results], strict=True):
        assert ended[run.id] == version("versioned_hops", result == "new")
    bounced = database.one("select max(n) from (select run_id, count(*) as n from supervisor.step group by 1) s")
    assert bounced == 3


def test_a_run_that_ends_where_it_began_has_nothing_written_for_its_version(database: Database, hosts: HostFactory, client: Client) -> None:
    """The hot path pays nothing: its version is that of the worker that ended it."""
    with hosts(NEW):
        run = client.start("versioned_once")
        run.result(timeout=20)
    assert database.one("select version from supervisor.outcome where run_id = %s", run.id) is None
    assert database.one("select version from supervisor.runs where run_id = %s", run.id) == version("versioned_once", 1)
    assert len(client.list(filter=f"version = {version('versioned_once', 1)}")) == 1


def test_what_has_not_begun_is_of_no_version(database: Database, hosts: HostFactory, effects: Effects, client: Client) -> None:
    """A worker that is killed, or drained, with runs of which nothing is durable leaves them to any code."""
    old = hosts.start(OLD).wait_up(1)
    runs = [client.start("versioned_untouched", "closed") for _ in range(3)]
    eventually(lambda: effects.count("gate", "closed") == 3, 20)
    old.kill_all()
    with hosts(NEW):
        assert [run.result(timeout=30) for run in runs] == ["new"] * 3
    assert {row[0] for row in database.sql("select version from supervisor.runs")} == {version("versioned_untouched", 1)}


def test_a_worker_that_lost_its_session_has_the_same_versions(database: Database, hosts: HostFactory, effects: Effects, client: Client) -> None:
    """It goes on under another id; what it holds is of the same code, also where it dies in that moment."""
    host = hosts.start(OLD).wait_up(1)
    run = client.start("versioned_slow", "go")
    eventually(lambda: effects.count("gate", "go") == 1, 20)
    database.sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgsupervisor: worker %%' and datname = current_database()")
    eventually(lambda: database.one("select count(*) from supervisor.worker where dead_at is null and id > 1") == 1, 30)
    assert len({tuple(serves) for (serves,) in database.sql("select serves from supervisor.worker")}) == 1
    host.kill_all()
    with hosts(NEW):
        assert eventually(lambda: parked(database, run), 30)["wants"] == version("versioned_slow", 0)


def test_runs_of_unknown_workflows_are_never_left_claimed(database: Database, hosts: HostFactory, client: Client) -> None:
    """They are parked at once, whoever claims them; a worker that knows them takes them within moments."""
    registered(database, 0)
    runs = [client.start("versioned_once") for _ in range(50)]
    with hosts("tests.apps.basic"):  # of the same queue
        eventually(lambda: database.one("select count(*) from supervisor.task where wait_kind = 20 and owner is null") == 50, 20)
        assert database.one("select count(*) from supervisor.task where owner is not null or version is not null") == 0
        with hosts(NEW):
            assert [run.result(timeout=20) for run in runs] == ["new once"] * 50


def test_a_host_serves_only_its_queues_when_it_takes_what_others_could_not_run(database: Database, hosts: HostFactory, client: Client) -> None:
    registered(database, 1)
    with hosts("tests.apps.basic", args=("--queues", "other")):
        apart, near = client.start(Named(workflow="versioned_once", queue="other")), client.start(Named(workflow="versioned_once", queue="near"))
        eventually(lambda: parked(database, apart), 20)
    database.sql("update supervisor.task set wait_kind = 20, ready_at = 'infinity' where run_id = %s", near.id)
    with hosts(NEW, args=("--queues", "near")):
        assert near.result(timeout=20) == "new once"
        assert parked(database, apart)
    with hosts(NEW, args=("--queues", "other")):
        assert apart.result(timeout=20) == "new once"


# ── patched ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_patch_lets_old_runs_end_as_they_began_and_new_ones_as_is_new(database: Database, hosts: HostFactory, effects: Effects, client: Client, build: str) -> None:
    """The version's base is the same, so nothing is parked; each run's history decides, the same way in every replay."""
    assert version("versioned_patched", 1).partition("+")[0] == version("versioned_patched", 0)
    with hosts(OLD, build=build):
        old, old_sync = client.start("versioned_patched"), client.start("versioned_patched_sync")
        waits_for(database, old, "signal")
        waits_for(database, old_sync, "signal")
    host = hosts.start(NEW, build=build).wait_up(1)
    new, new_sync = client.start("versioned_patched"), client.start("versioned_patched_sync")
    waits_for(database, new, "signal")
    host.kill_all()
    with hosts(NEW, build=build):  # a replay of what was recorded
        for run in (old, new, old_sync, new_sync):
            client.signal(run, "versioned_go", 1)
        # the wait for a signal leaves no trace before it ends: what comes after it is new for the old run as well
        assert old.result(timeout=20) == ["p-1", "old", "old", "late", "old", "p-d"]
        assert new.result(timeout=20) == ["p-1", "p-a", "p-b", "late", "p-c", "p-d"]
        assert old_sync.result(timeout=20) == new_sync.result(timeout=20) == "new s-new"
    marks = "select array_agg(name order by pos) from supervisor.steps where kind = 'patch' and run_id = %s"
    assert database.one(marks, new.id) == ["versioned-a", "versioned-b", "versioned-c", "versioned-d"]
    assert database.one(marks, old.id) == ["versioned-d"]
    assert effects.count("did", "p-a") == 1 and effects.count("did", "p-1") == 2
    holes = "select count(*) from (select run_id, max(pos) + 1 - count(*) as n from supervisor.step group by 1) s where n <> 0"
    assert database.one(holes) == 0


def test_code_without_the_patch_never_gets_a_run_that_met_it(database: Database, hosts: HostFactory, client: Client) -> None:
    """In a rolling deployment both are there: the old host gives such a run back, and the new one gets it."""
    with hosts(NEW):
        new = client.start("versioned_patched")
        waits_for(database, new, "signal")
        assert pin(database, new) == "+".join(each for each in version("versioned_patched", 1).split("+") if "versioned-d" not in each)
    with hosts(OLD):
        client.signal(new, "versioned_go", 1)
        assert eventually(lambda: parked(database, new), 20)["this_worker_has"] == version("versioned_patched", 0)
        with hosts(NEW):
            assert new.result(timeout=20) == ["p-1", "p-a", "p-b", "late", "p-c", "p-d"]


def test_a_named_version_holds_through_changes_and_is_checked_by_the_history(database: Database, hosts: HostFactory, effects: Effects, client: Client) -> None:
    assert (version("versioned_named", 0), version("versioned_named", 1)) == ("2026-11", "2026-11+versioned-dead+versioned-named")
    with hosts(OLD):
        run = client.start("versioned_named")
        waits_for(database, run, "signal")
        assert pin(database, run) == "2026-11"
    with hosts(NEW):
        client.signal(run, "versioned_go", 1)
        assert run.result(timeout=20) == "new"
    assert effects.count("did", "named-1") == effects.count("did", "named-2") == 1


# ── move ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def strand(database: Database, hosts: HostFactory, client: Client, name: str, runs: int) -> list[Run[Any]]:
    """Runs of the old code that wait for a signal; no host is there."""
    with hosts(OLD):
        made: list[Run[Any]] = [client.start(name) for _ in range(runs)]
        eventually(lambda: database.one("select count(*) from supervisor.task where wait_kind = 11") == runs, 60)
    return made


def command(database: Database, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PGSUPERVISOR_DATABASE_URL": database.dsn}
    return subprocess.run([sys.executable, "-m", "supervisor", *words], capture_output=True, text=True, env=environ, timeout=60)


def test_one_command_moves_the_runs_of_a_version(database: Database, hosts: HostFactory, effects: Effects, client: Client) -> None:
    """And what its code can't go on with is parked before any new effect, and can be moved back."""
    good, bad = strand(database, hosts, client, "versioned_waits", 3), client.start("versioned_once")
    assert bad.status().status == "ready"
    with hosts(OLD):
        bad = client.start("versioned_waits_sync")
        waits_for(database, bad, "signal")
    with hosts(NEW) as host:
        for run in [*good, bad]:
            client.signal(run, "versioned_go", 1)
        eventually(lambda: all(parked(database, run) for run in [*good, bad]), 30)
        shown = command(database, "versions")
        assert f"--workflow versioned_waits --from {version('versioned_waits', 0)} --to {version('versioned_waits', 1)}" in shown.stderr
        move = ("versions", "move", "--workflow", "versioned_waits", "--from", version("versioned_waits", 0), "--to", version("versioned_waits", 1), "--json")
        assert json.loads(command(database, *move, "--dry-run").stdout)["moved"] == 3 and parked(database, good[0])
        counted = command(database, *move)
        assert (counted.returncode, json.loads(counted.stdout)["moved"], len(json.loads(counted.stdout)["examples"])) == (0, 3, 3) and parked(database, good[0])
        done = command(database, *move, "--yes")
        assert (done.returncode, json.loads(done.stdout)["moved"], json.loads(done.stdout)["claimed"]) == (0, 3, 0)
        assert [run.result(timeout=20) for run in good] == ["new"] * 3
        assert json.loads(command(database, *move, "--yes").stdout)["moved"] == 0
        # the other one's history is not that of the new code
        client.move("versioned_waits_sync", version("versioned_waits_sync", 0), version("versioned_waits_sync", 1))
        waits_for(database, bad, "nondeterminism")
        assert effects.count("other") == 0 and pin(database, bad) == version("versioned_waits_sync", 1)
        assert client.move("versioned_waits_sync", version("versioned_waits_sync", 1), version("versioned_waits_sync", 0)).moved == 1
        waits_for(database, bad, "code_missing")
        host.stop()
    with hosts(OLD):
        assert bad.result(timeout=20) == "old"


def test_a_run_that_a_worker_has_is_not_moved(database: Database, hosts: HostFactory, effects: Effects, client: Client) -> None:
    """Its owner alone writes it; it is counted, and the same call moves it when that has ended."""
    host = hosts.start(OLD).wait_up(1)
    run = client.start("versioned_slow", "go")
    eventually(lambda: effects.count("gate", "go") == 1, 20)
    registered(database, 1)
    ask = ("versioned_slow", version("versioned_slow", 0), version("versioned_slow", 1))
    done = client.move(*ask)
    assert (done.moved, done.claimed) == (0, 1) and pin(database, run) is None
    assert command(database, "versions", "move", "--workflow", ask[0], "--from", ask[1], "--to", ask[2], "--yes").returncode == 1
    host.kill_all()
    with hosts("tests.apps.basic"):
        eventually(lambda: parked(database, run), 30)
        assert pin(database, run) == ask[1]
        assert client.move(*ask).moved == 1
    assert pin(database, run) == ask[2]


def test_a_move_that_is_killed_in_the_middle_is_finished_by_the_next(database: Database, hosts: HostFactory, client: Client) -> None:
    """Slice by slice, each whole: every run is of one version or the other, and none is lost or moved twice."""
    runs = strand(database, hosts, client, "versioned_waits", 1)
    registered(database, 1)
    old, new = version("versioned_waits", 0), version("versioned_waits", 1)
    database.sql(
        "insert into supervisor.task (run_id, ready_at, queue, workflow, resumed, wait_kind, version, input) "
        "select supervisor.new_id(), 'infinity', t.queue, t.workflow, 1, 11, t.version, '{}' from supervisor.task t, generate_series(1, 4000) where t.run_id = %s",
        runs[0].id,
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PGSUPERVISOR_DATABASE_URL": database.dsn}
    words = [sys.executable, "-m", "supervisor", "versions", "move", "--workflow", "versioned_waits", "--from", old, "--to", new, "--yes"]
    with database.connect() as blocker:
        blocker.execute("select pg_advisory_lock(4711)")
        last = database.one("select run_id from supervisor.task order by run_id offset 1200 limit 1")
        database.sql("create function pg_temp.f() returns int language sql as 'select 1'")
        database.sql(
            f"create function public.hold() returns trigger language plpgsql as $$ begin if new.run_id >= '{last}' then perform pg_advisory_lock_shared(4711); end if; return new; end $$"
        )
        database.sql("create trigger hold before update of version on supervisor.task for each row execute function public.hold()")
        mover = subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        eventually(lambda: database.one(waiting) == 1, 30)
        mover.send_signal(signal.SIGKILL)
        mover.wait()
        moved = "select count(*) from supervisor.task where version = %s"
        audited = "select count(*), count(distinct run_id) from supervisor.audits where verb = 'move'"
        assert database.one(moved, new) == 1000, "two slices, and nothing of the third"
        assert database.sql(audited) == [(1000, 1000)]
    database.sql("drop trigger hold on supervisor.task")
    eventually(lambda: database.one(waiting) == 0, 20)
    assert client.move("versioned_waits", old, new).moved >= 3001 - 500
    client.move("versioned_waits", old, new)
    assert database.one(moved, new) == 4001 and database.one(moved, old) == 0
    assert database.sql(audited) == [(4001, 4001)], "a row for each, and none twice"


def test_a_move_says_what_it_can_not_do(database: Database, hosts: HostFactory, client: Client) -> None:
    registered(database, 1)
    with pytest.raises(VersionUnknown) as caught:
        client.move("versioned_waits", "a", "b")
    assert caught.value.known == (version("versioned_waits", 1),)
    assert command(database, "versions", "move", "--workflow", "versioned_waits", "--from", "a", "--to", "b").returncode == 1
    assert "no worker has ever registered" in command(database, "versions", "move", "--workflow", "nobody", "--from", "a", "--to", "b").stderr
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="between 1 and 500"):
        database.sql("select supervisor.move_runs('versioned_waits', 'a', %s, max_runs => 501)", version("versioned_waits", 1))


async def asked_async(database: Database, ask: tuple[str, str, str]) -> tuple[int, int]:
    """What would be moved, and how many live runs are of the old version, from an AsyncClient."""
    async with AsyncClient(database.dsn) as client:
        counts = {each.version: each.live for each in await client.versions(ask[0])}
        return (await client.move(*ask, dry_run=True)).moved, counts[ask[1]]


def test_a_move_in_the_callers_transaction_is_done_when_that_commits(database: Database, hosts: HostFactory, client: Client) -> None:
    (run,) = strand(database, hosts, client, "versioned_waits", 1)
    registered(database, 1)
    ask = ("versioned_waits", version("versioned_waits", 0), version("versioned_waits", 1))
    with psycopg.connect(database.dsn) as conn:
        assert client.within(conn).move(*ask).moved == 1
        conn.rollback()
        assert asyncio.run(asked_async(database, ask)) == (1, 1)
        assert pin(database, run) == ask[1]
        assert client.within(conn).move(*ask).moved == 1
        conn.commit()
    assert pin(database, run) == ask[2]


def test_a_move_leaves_who_and_why_in_the_audit(database: Database, hosts: HostFactory, client: Client) -> None:
    """A row for each run that was moved, in the transaction that moves it; none for one that is counted only, is refused, or is rolled back."""
    runs = strand(database, hosts, client, "versioned_waits", 2)
    registered(database, 1)
    old, new = version("versioned_waits", 0), version("versioned_waits", 1)
    ask, back = ("versioned_waits", old, new), ("versioned_waits", new, old)
    rows = "select verb, key, workflow, actor, reason, details from supervisor.audits where run_id = %s order by n"
    with pytest.raises(InputInvalid, match="a reason has at most 4000 characters"):
        client.move(*ask, reason="x" * 4001)
    assert client.move(*ask, dry_run=True, reason="looking").moved == 2
    with psycopg.connect(database.dsn) as conn:
        assert client.within(conn).move(*ask, reason="not yet").moved == 2
        conn.rollback()
    assert [pin(database, run) for run in runs] == [old, old] and database.one("select count(*) from supervisor.audits") == 0
    words = ("versions", "move", "--workflow", ask[0], "--from", old, "--to", new, "--yes")
    assert command(database, *words, "--reason", "it does the same", "--actor", "ann").returncode == 0
    for run in runs:
        assert database.sql(rows, run.id) == [("move", None, "versioned_waits", "ann", "it does the same", {"from": old, "to": new})]
    assert "it does the same" in command(database, "show", str(runs[0].id)).stdout.split("done by operators")[1]
    listed = command(database, "audit", "--verb", "move").stdout
    assert listed.count("it does the same") == 2 and "ann (" in listed and str(runs[1].id) in listed
    # who calls it as it was called before there was a reason
    moved = database.sql("select moved, claimed from supervisor.move_runs(%s, %s, %s, null, dry_run => false)", *back)
    assert moved == [(2, 0)] and database.sql(rows, runs[0].id)[1][3:] == (None, None, {"from": new, "to": old})

    async def moves() -> int:
        async with AsyncClient(database.dsn) as there:
            return (await there.move(*ask, reason="again", actor="bob")).moved

    assert asyncio.run(moves()) == 2 and database.sql(rows, runs[1].id)[2][3:5] == ("bob", "again")
    assert command(database, *words[:4], "--from", new, "--to", old, "--yes").returncode == 0
    assert "@" in database.sql(rows, runs[1].id)[3][3], "who it was is the account's name unless something else was said"


def test_versions_are_read_and_moved_by_operators_and_not_by_clients(database: Database, hosts: HostFactory) -> None:
    registered(database, 1)
    for role, reads, moves in (("client", False, False), ("operator", True, True)):
        database.sql(f"drop role if exists versions_{role}; create role versions_{role} login in role supervisor_{role}")
        try:
            with Client(psycopg.conninfo.make_conninfo(database.dsn, user=f"versions_{role}")) as client:
                for may, act in ((reads, client.versions), (moves, lambda c=client: c.move("versioned_waits", "x", version("versioned_waits", 1)))):
                    try:
                        act()
                        allowed = True
                    except PermissionMissing:
                        allowed = False
                    assert allowed is may, (role, act)
        finally:
            database.sql(f"drop role versions_{role}")


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_which_versions_still_have_runs(database: Database, hosts: HostFactory, effects: Effects, client: Client) -> None:
    """Who has them, how many live runs are of each, which ended lately: what decides whether old code can go."""
    with hosts(OLD):
        runs = [client.start("versioned_waits") for _ in range(2)]
        for run in runs:
            waits_for(database, run, "signal")
        client.start("versioned_once").result(timeout=20)
        client.start("versioned_slow", "go")
        eventually(lambda: effects.count("gate", "go") == 1, 20)
        with hosts(NEW, procs=2):
            found = {(each.workflow, each.version): each for each in client.versions()}
            waits = found["versioned_waits", version("versioned_waits", 0)]
            assert (waits.workers, waits.live, waits.running, waits.code_missing, waits.source) == (1, 2, 0, 0, f"{OLD}.versioned_waits")
            assert found["versioned_waits", version("versioned_waits", 1)].workers == 2
            assert found["versioned_slow", version("versioned_slow", 0)].running == 1
            once = [each.ended_1h for each in client.versions("versioned_once")]
            assert sum(once) == 1
            shown = command(database, "versions", "--workflow", "versioned_waits", "--json").stdout.splitlines()
            assert {json.loads(line)["version"]: json.loads(line)["live"] for line in shown} == {version("versioned_waits", 0): 2, version("versioned_waits", 1): 0}
            assert version("versioned_waits", 0) in command(database, "versions").stdout
            # a question to a run is for a host that has its code, whoever is quicker
            assert [client.query(runs[0], "versioned_asked") for _ in range(5)] == ["old"] * 5
        effects.open("go")


# ── a rolling reload ─────────────────────────────────────────────────────────────────────────────────────────────

ROLLING = """
from supervisor import Signal, step, workflow
from tests.harness import note

go = Signal("versioned_roll_go", int)

@step
def rolled(word: str) -> str:
    note("rolled", word)
    return word

@workflow
async def versioned_rolling() -> str:
    await rolled.aio("WORD-1")
    await go.wait()
    return await rolled.aio("WORD-2")
"""


@pytest.fixture
def rolling(hosts: HostFactory) -> Iterator[Path]:
    path = hosts.folder / "versioned_rolled.py"
    path.write_text(ROLLING.replace("WORD", "old"))
    yield path


def test_a_rolling_reload_whose_workers_are_killed_mixes_no_versions(database: Database, hosts: HostFactory, effects: Effects, client: Client, rolling: Path) -> None:
    """HUP with changed code, kill -9 in the middle of it: old runs are parked and say so, or ended as old; none is left claimed; new ones are new."""
    environ = {"PYTHONPATH": f"{ROOT}:{rolling.parent}"}
    host = hosts.start("versioned_rolled", procs=3, env=environ).wait_up(3)
    runs = [client.start("versioned_rolling") for _ in range(30)]
    eventually(lambda: database.one("select count(*) from supervisor.task where wait_kind = 11") == 30, 30)
    rolling.write_text(ROLLING.replace("WORD", "brand-new"))
    os.kill(host.pid, signal.SIGHUP)
    for n, run in enumerate(runs):
        client.signal(run, "versioned_roll_go", n)
        if n in (5, 15):
            for pid in host.worker_pids()[:2]:
                host.kill_worker(pid)
    eventually(lambda: "workers are of generation 2" in host.log(), 60, host.log())
    fresh = client.start("versioned_rolling")
    waits_for(database, fresh, "signal")
    settled = "select count(*) from supervisor.task where owner is not null or wait_kind is distinct from 20 and run_id <> %s"
    eventually(lambda: database.one(settled, fresh.id) == 0, 30, "each ended, or parked for its code")
    ended = {run.id: run.result(timeout=5) for run in runs if run.status().ended_at}
    assert set(ended.values()) <= {"old-2"} and effects.count("rolled", "brand-new-2") == 0
    client.signal(fresh, "versioned_roll_go", 1)
    assert fresh.result(timeout=20) == "brand-new-2"
    # the old code comes back beside the new, and finishes what is its own
    (rolling.parent / "versioned_before.py").write_text(ROLLING.replace("WORD", "old"))
    with hosts("versioned_before", env=environ):
        assert {run.result(timeout=30) for run in runs} == {"old-2"}
    host.stop()
    assert effects.count("rolled", "old-1") == 30
