"""A paused queue gives nothing to anybody until it is resumed: what workers have goes on, what wakes waits, the queues beside it don't notice."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from supervisor import AsyncClient, Client, QueueUnknown
from supervisor.db.connect import connect
from supervisor.db.statements import Sql, wake_channel
from supervisor.host import wakeups
from tests.apps import shelved
from tests.apps.shelved import OPEN, SHUT
from tests.conformance.claimer import Claimer, insert_runs, make_catalogue
from tests.conformance.conftest import Live
from tests.harness import Database, Effects, HostFactory, eventually

APP = "tests.apps.shelved"
SQL = Sql()


@pytest.fixture(autouse=True)
def resumed(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test leaves paused would hold up the next one."""
    yield
    if "live" in request.fixturenames:
        request.getfixturevalue("live").client.resume_queue(SHUT, "after the test")


def standing(live: Live, run: Any) -> tuple[str, str | None]:
    found: tuple[str, str | None] = live.database.sql("select status, wait from supervisor.runs where run_id = %s", run.id)[0]
    return found


def held(live: Live, run: Any) -> bool:
    return standing(live, run) == ("ready", "queue_paused")


def beside(live: Live, word: str) -> None:
    """A run of the other queue comes and goes: whoever claims has claimed since."""
    assert live.run(shelved.shelved_beside, word) == word


# ── nothing is claimed ───────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_claimed_from_it_and_the_queue_beside_it_goes_on(live: Live) -> None:
    """One worker serves both: the one that is paused neither gives it anything nor keeps it from the other."""
    assert live.client.pause_queue(SHUT, "stocktaking", actor="ann")
    shut = [live.start(shelved.shelved_plain, f"shut-{n}") for n in range(20)]
    for n in range(20):
        beside(live, f"beside-{n}")
    assert all(held(live, run) for run in shut) and not any(live.effects.count("did", f"shut-{n}") for n in range(20))
    assert live.client.resume_queue(SHUT, "counted")
    assert sorted(run.result(timeout=20) for run in shut) == sorted(f"shut-{n}" for n in range(20))
    assert all(live.effects.count("did", f"shut-{n}") == 1 for n in range(20))


def test_what_a_worker_has_goes_on_with_its_later_steps_too(live: Live) -> None:
    """A pause takes nothing away: no step is executed twice for it."""
    run = live.start(shelved.shelved_two_steps, "under-way", "under-way-gate")
    live.until(lambda: live.effects.count("at", "under-way"))
    live.client.pause_queue(SHUT)
    live.effects.open("under-way-gate")
    assert run.result(timeout=20) == "under-way" and live.effects.count("at", "under-way") == 1
    assert live.database.one("select paused_at is not null from supervisor.queues where queue = %s", SHUT)


def test_what_wakes_waits_for_the_resume(live: Live) -> None:
    """Sleepers, runs that were sent a signal, and tries that are due: none of them is taken before, all of them after."""
    asleep = live.start(shelved.shelved_asleep, "asleep", 86_400.0)
    signalled = live.start(shelved.shelved_signalled, "signalled")
    retried = live.start(shelved.shelved_retried, "retried")
    parked = ((asleep, "timer"), (signalled, "signal"), (retried, "step_backoff"))
    live.until(lambda: all(standing(live, run) == ("waiting", code) for run, code in parked))
    live.client.pause_queue(SHUT, "stocktaking")
    assert standing(live, asleep) == ("waiting", "timer"), "what is not due waits for its time first"
    live.client.signal(signalled, shelved.SHELVED_GO, "go")
    live.client.retry(retried)
    live.database.sql("update supervisor.timer set due_at = clock_timestamp() where run_id = %s", asleep.id)
    live.database.sql("update supervisor.task set ready_at = clock_timestamp() where run_id = %s", asleep.id)
    live.until(lambda: all(held(live, run) for run, _ in parked))
    beside(live, "while they wake")
    assert all(held(live, run) for run, _ in parked) and live.effects.count("try", "retried") == 1
    live.client.resume_queue(SHUT)
    assert [run.result(timeout=20) for run, _ in parked] == ["asleep", "go", "retried"]
    assert live.effects.count("try", "retried") == 2


def test_a_killed_workers_run_waits_for_the_resume_too(live: Live) -> None:
    """kill -9 in a paused queue: its successor is born into the pause, and the run is lost to nobody."""
    run = live.start(shelved.shelved_two_steps, "killed", "killed-gate")
    live.until(lambda: live.effects.count("at", "killed"))
    live.client.pause_queue(SHUT, "before the kill")
    live.kill()
    live.until(lambda: held(live, run))
    live.effects.open("killed-gate")
    beside(live, "after the kill")
    assert held(live, run) and live.effects.count("at", "killed") == 1
    live.client.resume_queue(SHUT)
    assert run.result(timeout=20) == "killed" and live.effects.count("at", "killed") == 2 and live.effects.count("did", "killed") == 1


def test_what_its_worker_had_no_code_for_is_not_taken_by_another_who_has(database: Database) -> None:
    """Parked runs have a claim of their own, which heeds the pause as well."""
    make_catalogue(database, "shut", "open")
    insert_runs(database, 4, "shut", "shut")
    insert_runs(database, 4, "open", "open")
    database.sql("update supervisor.task set wait_kind = 20, ready_at = 'infinity', version = 'v'")
    queues = [number for (number,) in database.sql("select id from supervisor.queue order by id")]
    workflows = [number for (number,) in database.sql("select id from supervisor.workflow order by id")]
    with connect(database.dsn, purpose="claimer", profile="loop") as conn:
        worker = conn.execute(SQL.get("register_worker"), (uuid.uuid4(), "test", 1, uuid.uuid4())).fetchone()

        def takes() -> int:
            given = (workflows, ["v"] * len(workflows), queues, 100, worker and worker[0])
            return len(psycopg.RawCursor(conn).execute(SQL.get("claim_missing").encode(), given).fetchall())

        database.sql("select supervisor.pause_queue('shut')")
        assert takes() == 4
        database.sql("select supervisor.resume_queue('shut')")
        assert takes() == 4 and takes() == 0


def test_a_claim_finds_what_stood_before_its_marks_when_the_queue_is_resumed(database: Database) -> None:
    """Marks that a worker made before the pause hide nothing that became ready during it."""
    make_catalogue(database, "shut")
    insert_runs(database, 300, "shut", "shut")
    claimer = Claimer(database, "shut")
    try:
        assert len(claimer.claim(100)) == 100
        database.sql("select supervisor.pause_queue('shut')")
        assert not claimer.claim(100)
        insert_runs(database, 50, "shut", "shut", prio=2)
        assert not claimer.claim(100)
        database.sql("select supervisor.resume_queue('shut')")
        assert len(claimer.claim(400)) == 250
    finally:
        claimer.close()


# ── hosts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_hosts_are_not_told_of_work_that_nobody_may_take(database: Database) -> None:
    """A pulse that counted it would have workers claim in vain, twice a second, for as long as the pause lasts."""
    make_catalogue(database, "shut", "open")
    insert_runs(database, 3, "shut", "shut")
    pulse = {"queues": ["shut", "open"], "workflows": [], "depth": wakeups.DEPTH, "supervisor": None}
    with database.connect() as conn:

        def due() -> int:
            row = conn.execute(SQL.get("pulse"), pulse).fetchone()
            assert row is not None
            return int(row[0])

        assert due() == 3
        database.sql("select supervisor.pause_queue('shut')")
        assert due() == 0
        insert_runs(database, 2, "open", "open")
        assert due() == 2


def test_a_resume_is_announced_by_the_workflows_that_are_ready(database: Database) -> None:
    """Hosts know which workflows they serve; a queue with nothing in it is announced to nobody. In somebody's transaction it is at its commit, once, and not where that never comes."""
    make_catalogue(database, "shut", "open")
    with Client(database.dsn) as client, psycopg.connect(database.dsn, autocommit=True) as conn:
        conn.execute(f'listen "{wake_channel("supervisor")}"')
        client.pause_queue("shut"), client.pause_queue("open")
        insert_runs(database, 5, "shut", "shut")
        assert client.resume_queue("open") and client.resume_queue("shut")
        assert [json.loads(heard.payload) for heard in conn.notifies(timeout=5, stop_after=1)] == [[["shut", "shut", 5, 0.0]]]
        client.pause_queue("shut")
        with psycopg.connect(database.dsn) as other:
            assert client.within(other).resume_queue("shut")
            other.rollback()
            assert client.within(other).resume_queue("shut") and not client.within(other).resume_queue("shut")
            assert not list(conn.notifies(timeout=0.2))
            other.commit()
            heard = [json.loads(each.payload) for each in conn.notifies(timeout=5, stop_after=1)] + [json.loads(each.payload) for each in conn.notifies(timeout=0.2)]
        assert heard == [[["shut", "shut", 5, 0.0]]]


@pytest.mark.alone
def test_work_begins_at_once_when_a_queue_is_resumed(live: Live) -> None:
    """20 ms after the resume, not at the host's next look, half a second later; the best of ten."""
    best = 1.0
    for n in range(10):
        live.client.pause_queue(SHUT)
        run = live.start(shelved.shelved_plain, f"quick-{n}")
        beside(live, f"between-{n}")
        live.client.resume_queue(SHUT)
        run.result(timeout=20)
        took = "select extract(epoch from s.started_at - a.at)::float8 from supervisor.steps s, supervisor.audits a where s.run_id = %s and a.verb = 'queue_resume' order by a.n desc limit 1"
        best = min(best, live.database.one(took, run.id))
    print({"resume_to_step_ms": best * 1e3})
    assert best < 0.2


def test_until_empty_does_not_wait_for_a_resume_and_says_so(database: Database, hosts: HostFactory, effects: Effects) -> None:
    """A job that waited for somebody to resume a queue would hang for ever; one that ended as if all were done would lie."""
    with hosts(APP):
        pass
    with Client(database.dsn) as client:
        client.pause_queue(SHUT, "over night", actor="ann")
        shut, beside = client.start(shelved.shelved_plain, "shut"), client.start(shelved.shelved_beside, "beside")
        host = hosts.start(APP, args=("--until-empty",))
        assert host.process.wait(60) == 1, host.log()
        assert f"queue {SHUT} is paused since" in host.log() and "by ann: over night; runs that stand in it (1) are not waited for" in host.log()
        assert beside.result(timeout=1) == "beside" and client.status(shut).wait == "queue_paused"
        client.resume_queue(SHUT)
        host = hosts.start(APP, args=("--until-empty",))
        assert host.process.wait(60) == 0, host.log()
        assert shut.result(timeout=1) == "shut" and "is paused" not in host.log()


# ── what is seen ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_views_say_since_when_by_whom_and_why(live: Live) -> None:
    live.client.pause_queue(SHUT, "stocktaking", actor="ann")
    run = live.start(shelved.shelved_plain.options(key="seen"), "seen")
    paused_at, by, why = live.database.sql("select paused_at, paused_by, paused_reason from supervisor.queues where queue = %s", SHUT)[0]
    assert (by, why) == ("ann", "stocktaking")
    ((status, code, detail, since, freed_by, who),) = live.database.sql("select status, code, detail::jsonb, since, freed_by, who from supervisor.waits where run_id = %s", run.id)
    assert (status, code, freed_by) == ("ready", "queue_paused", "somebody resumes the queue") and who == f"operators: python -m supervisor queues resume {SHUT}"
    assert {"queue": SHUT, "by": "ann", "reason": "stocktaking"}.items() <= detail.items() and since > paused_at, "held up since it came, not since the pause"
    ((code, runs, who),) = live.database.sql("select code, runs, who from supervisor.wait_groups() where queue = %s", SHUT)
    assert (code, runs) == ("queue_paused", 1) and SHUT in who
    assert [each.run_id for each in live.client.list(filter=f"wait = queue_paused AND queue = {SHUT}")] == [run.id]
    assert not live.client.list(filter="wait in (queued, no_worker)")
    ready = live.database.sql("select ready, waiting, paused from supervisor.queues where queue = %s", SHUT)
    assert ready == [(1, 0, 0)]
    live.client.resume_queue(SHUT)
    assert run.result(timeout=20) == "seen"


def test_each_pause_and_resume_leaves_its_row_of_audit(live: Live) -> None:
    """Only those that did something; what is rolled back was not done."""
    last = live.database.one("select coalesce(max(n), 0) from supervisor.audits")
    assert live.client.pause_queue(SHUT, "r1", actor="ann") and not live.client.pause_queue(SHUT, "again", actor="bob")
    with psycopg.connect(live.database.dsn) as conn:
        assert live.client.within(conn).resume_queue(SHUT, "never")
        conn.rollback()
    assert live.client.resume_queue(SHUT, "r2", actor="cleo") and not live.client.resume_queue(SHUT, "again")
    found = live.database.sql("select verb, queue, actor, reason, login, schedule, workflow, details from supervisor.audits where n > %s order by n", last)
    login = live.database.one("select session_user::text")
    assert [row[:7] for row in found] == [("queue_pause", SHUT, "ann", "r1", login, None, None), ("queue_resume", SHUT, "cleo", "r2", login, None, None)]
    assert found[1][7]["paused_by"] == "ann" and found[1][7]["paused_s"] >= 0


def test_verbs_in_sql_and_in_an_event_loop(live: Live) -> None:
    sql = live.database.sql
    assert sql("select supervisor.pause_queue(%s, 'why', 'me')", SHUT) == [(True,)]
    assert sql("select supervisor.resume_queue(%s, notify => true), supervisor.resume_queue(%s)", SHUT, SHUT) == [(True, False)]

    async def awaited() -> None:
        async with AsyncClient(live.database.dsn) as c:
            assert await c.pause_queue(SHUT, "why") and not await c.pause_queue(SHUT) and await c.resume_queue(SHUT, actor="me")
            with pytest.raises(QueueUnknown):
                await c.resume_queue("shelved_typo")

    asyncio.run(awaited())


def test_a_queue_that_is_not_there_is_refused_with_those_that_are(live: Live) -> None:
    for verb in (live.client.pause_queue, live.client.resume_queue):
        with pytest.raises(QueueUnknown) as caught:
            verb("shelved_typo")
        assert str(caught.value) == f"there is no queue 'shelved_typo'; those that there are: '{OPEN}', '{SHUT}'"
        assert caught.value.known == [OPEN, SHUT]
    with pytest.raises(psycopg.Error) as raised:
        live.database.sql("select supervisor.pause_queue(null)")
    assert raised.value.sqlstate == "SV041"


def test_only_operators_may(database: Database) -> None:
    """A client that may start and cancel runs must not stop everybody's."""
    make_catalogue(database, "shut")
    for role, may in (("client", False), ("viewer", False), ("worker", False), ("operator", True)):
        with database.connect() as conn:
            conn.execute(f"set role supervisor_{role}")
            for verb in ("pause_queue", "resume_queue"):
                if may:
                    conn.execute(f"select supervisor.{verb}('shut')")
                else:
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        conn.execute(f"select supervisor.{verb}('shut')")
