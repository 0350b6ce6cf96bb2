"""Claims: one run goes to one worker, with all of its history; several queues share a worker fairly; late commits are found."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from supervisor import Client
from supervisor.engine.claims import LATE_ROWS
from tests.conformance.claimer import SQL, Claimer, insert_runs, make_catalogue
from tests.faults import apps_plain, apps_queues
from tests.harness import Database, HostFactory, eventually


@pytest.fixture
def claimers(database: Database) -> Iterator[Callable[..., Claimer]]:
    made: list[Claimer] = []

    def make(*queues: str, look_behind: bool = False) -> Claimer:
        made.append(Claimer(database, *queues, look_behind=look_behind))
        return made[-1]

    yield make
    for claimer in made:
        claimer.close()


# ── one run, one worker ──────────────────────────────────────────────────────────────────────────────────────────


def test_two_claimers_never_get_one_run(database: Database, claimers: Callable[..., Claimer]) -> None:
    """Four sessions claim, give back and finish the same 400 runs; nobody ever holds what another one holds."""
    make_catalogue(database, "q")
    insert_runs(database, 400, "q", "q")
    holder: dict[object, int] = {}
    doubly: list[tuple[object, int, int]] = []
    guard = threading.Lock()

    def work(claimer: Claimer) -> int:
        claims = 0
        for turn in range(150):
            mine = claimer.claim(40)
            claims += len(mine)
            with guard:
                doubly.extend((each.run_id, holder[each.run_id], claimer.worker) for each in mine if each.run_id in holder)
                holder.update({each.run_id: claimer.worker for each in mine})
            if not mine:
                continue
            with guard:
                for each in mine:
                    del holder[each.run_id]
            if turn % 10 == 9:
                claimer.finish(mine[:1])
                mine = mine[1:]
            claimer.release([each.run_id for each in mine], ready_us=0)
        return claims

    with ThreadPoolExecutor(4) as pool:
        claims = sum(pool.map(work, [claimers("q", look_behind=True) for _ in range(4)]))
    assert claims > 4000, "too few claims to show anything"
    assert not doubly, f"{len(doubly)} runs were claimed while another worker had them: {doubly[:3]}"
    ended = database.one("select count(*) from supervisor.outcome")
    assert ended > 0 and database.one("select count(*) from supervisor.task") == 400 - ended


# a row of `task` passes this policy only when nobody holds the advisory lock: a place to wait between snapshot and row lock
_WAIT_BEFORE_ROWS = """
create function public.nobody_holds_it(uuid) returns boolean language plpgsql volatile as
$$ begin perform pg_advisory_xact_lock_shared(4711); return true; end $$;
alter table supervisor.task enable row level security;
create policy wait on supervisor.task using (public.nobody_holds_it(run_id)) with check (true);
"""


@pytest.mark.parametrize("form", ["ctid", "run_id"])
def test_a_row_newer_than_the_claims_snapshot_is_skipped(database: Database, claimers: Callable[..., Claimer], form: str) -> None:
    """Between a claim's snapshot and its row lock another worker claims the run, records a step and gives the run back.

    By ctid the claim leaves the run for the next one. The same statement by run_id (the control) follows the row and
    returns the run, though its snapshot has not the step: that step would be executed a second time.
    """
    make_catalogue(database, "q")
    insert_runs(database, 1, "q", "q")
    database.sql(_WAIT_BEFORE_ROWS)
    one, other = claimers("q", look_behind=True), claimers("q", look_behind=True)
    one.conn.execute("set role supervisor_worker")  # row security does not bind a superuser
    if form == "run_id":
        text = (
            SQL.get("claim")
            .replace("t.ctid = ANY", "t.run_id = ANY")
            .replace("SELECT c.ctid", "SELECT c.run_id")
            .replace("SELECT r.ctid", "SELECT r.run_id")
        )
        assert text != SQL.get("claim") and "ctid" not in text
        one.conn.execute("deallocate claim")
        one.conn.pgconn.prepare(b"claim", text.encode())
    with database.connect() as door, ThreadPoolExecutor(1) as pool:
        door.execute("select pg_advisory_lock(4711)")
        # given a claim that has its snapshot and waits before it locks the row
        claiming = pool.submit(one.claim, 10)
        eventually(
            lambda: database.one("select count(*) from pg_locks where locktype = 'advisory' and objid = 4711 and not granted") == 1, 4
        )
        # when another worker claims the run, records its first step, and gives it back as ready since long ago
        (run,) = other.claim(10)
        database.sql("insert into supervisor.step values (%s, now(), now(), 0, 0, %s, 1, 1, 'first', '1')", run.run_id, other.worker)
        other.release([run.run_id], ready_us=0)
        door.execute("select pg_advisory_unlock(4711)")
        got = claiming.result(timeout=10)
    if form == "run_id":
        assert [each.run_id for each in got] == [run.run_id], "the control no longer shows the trap: is the schedule still the one it was?"
        return
    assert got == []
    # then the next claim has the run, and says that it has history
    assert [(each.run_id, each.resumed) for each in one.claim(10)] == [(run.run_id, 1)]


def test_fewer_than_asked_is_not_taken_for_empty(database: Database, claimers: Callable[..., Claimer]) -> None:
    """Rows that another session has locked are passed over, and are found when it lets go of them."""
    make_catalogue(database, "q")
    insert_runs(database, 100, "q", "q")
    claimer = claimers("q", look_behind=True)
    with database.connect() as other, other.transaction():
        other.execute("select from supervisor.task order by ready_at limit 60 for update")
        assert len(claimer.claim(100)) == 40
    assert len(claimer.claim(100)) == 60


# ── what a mark may hide ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_start_that_commits_after_a_thousand_later_ones_have_finished_is_claimed(
    database: Database, hosts: HostFactory, build: str
) -> None:
    """The worker's mark has long passed the late one; the claim that looks behind the mark finds it."""
    with hosts("tests.faults.apps_plain", build=build) as host, Client(database.dsn) as client, database.connect() as late:
        # given a start in a transaction that stays open
        late.execute("begin")
        (run_id,) = late.execute("select supervisor.new_id()").fetchone()  # type: ignore[misc]
        late.execute("select supervisor.start_runs(%s, array[%s], array['{\"n\": 1}'::bytea])", (apps_plain.one_step.name, run_id))
        # when a thousand later ones finish
        client.start_many(apps_plain.one_step, range(1000))
        eventually(lambda: database.one("select count(*) from supervisor.outcome") == 1000, 30)
        # then it is claimed soon after its commit, by a worker that never restarted
        late.execute("commit")
        assert client.get(run_id).result(timeout=10) == 2
        assert host.log().count(" is up as ") == 1


def test_a_mark_hides_a_late_row_and_the_look_behind_finds_it(database: Database, claimers: Callable[..., Claimer]) -> None:
    """The same by the statement alone, after so many claims that they go from the exact mark: so the test above can't pass for want of one."""
    make_catalogue(database, "q")
    insert_runs(database, 650, "q", "q")
    database.sql(
        "update supervisor.task set owner = 0 where run_id = (select run_id from supervisor.task order by ready_at, run_id limit 1)"
    )
    claimer = claimers("q")
    assert len(claimer.claim(600)) == 600 > LATE_ROWS
    database.sql("update supervisor.task set owner = null where owner = 0")
    assert len(claimer.claim(30)) == 30 and database.one("select count(*) from supervisor.task where owner is null") == 20
    assert len(claimer.claim(30)) == 19, "there is no mark, or it did not hide the late row"
    claimer.look_behind = True
    assert len(claimer.claim(30)) == 1


# ── several queues ───────────────────────────────────────────────────────────────────────────────────────────────


def test_queues_of_one_worker_take_turns(database: Database, claimers: Callable[..., Claimer]) -> None:
    """Of three claims from three queues with work each queue has its part, however long one of them is."""
    make_catalogue(database, "a", "b", "c")
    for queue, runs in (("a", 5000), ("b", 700), ("c", 700)):
        insert_runs(database, runs, queue, queue)
    claimer = claimers("a", "b", "c")
    for _ in range(2):
        shares = Counter(each.queue for _ in range(3) for each in claimer.claim(300))
        assert len(shares) == 3 and min(shares.values()) >= 270, f"of 900 runs from three queues with work: {shares}"


def test_one_busy_queue_fills_a_claim(database: Database, claimers: Callable[..., Claimer]) -> None:
    """A worker that serves three queues of which two are empty is no slower than one that serves the busy one alone."""
    make_catalogue(database, "a", "b", "c")
    insert_runs(database, 2000, "b", "b")
    claimer = claimers("a", "b", "c")
    assert [len(claimer.claim(300)) for _ in range(4)] == [300] * 4


def test_a_claim_goes_by_priority_then_by_age(database: Database, claimers: Callable[..., Claimer]) -> None:
    """Of all queues the most urgent first; within one priority and queue the oldest."""
    make_catalogue(database, "a", "b")
    for queue, prio in (("a", 5), ("b", 5), ("a", 0), ("b", 9), ("b", 0)):
        insert_runs(database, 20, queue, queue, prio)
    order = database.sql("select run_id, prio from supervisor.task order by prio, ready_at")
    claimer = claimers("a", "b")
    assert {each.prio for each in claimer.claim(40)} == {0}
    assert {each.prio for each in claimer.claim(40)} == {5}
    oldest = {run_id for run_id, prio in order if prio == 9}
    assert {each.run_id for each in claimer.claim(40)} == oldest and len(oldest) == 20


def test_a_run_of_a_small_queue_does_not_wait_for_the_backlog_of_another(database: Database, hosts: HostFactory, build: str) -> None:
    """Twenty thousand runs of one queue, then ten of another: these are done while most of the others still wait."""
    with hosts("tests.faults.apps_queues"):
        pass
    with Client(database.dsn) as client:
        client.start_many(apps_queues.of_first, range(20_000))
        few = client.start_many(apps_queues.of_second, range(10))
        with hosts("tests.faults.apps_queues", build=build, args=("--in-flight", "200")):
            for run in few:
                run.result(timeout=20)
            eventually(lambda: database.one("select count(*) from supervisor.outcome") > 3000, 30)
    before = database.one(
        "select count(*) from supervisor.outcome where run_id <> all(%s)"
        " and ended_at < (select max(ended_at) from supervisor.outcome where run_id = any(%s))",
        few.ids, few.ids,
    )  # fmt: skip
    assert before < 2000, f"{before} runs of the other queue ended before the last of ten"
