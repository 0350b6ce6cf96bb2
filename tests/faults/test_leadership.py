"""Of several supervisors one leads, at any time, whatever is killed or stopped; and what one must do for all is done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from supervisor.db.statements import Sql
from supervisor.leader.burial import Burials
from supervisor.leader.lead import Leadership
from supervisor.leader.look import NOTHING
from tests.faults.terms import HISTORY, judge_history
from tests.harness import ROOT, Database, Host, HostFactory, drive, eventually

APP = "tests.apps.basic"
KILL_TO_LEAD_S, STOP_TO_LEAD_S = 1.0, 3.0

HOLDERS = """
select a.pid, a.application_name from pg_locks l join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory' and l.granted and l.objsubid = 2 and l.objid::int8 = 4294967293
  and l.database = (select oid from pg_database where datname = current_database())
"""
BACKENDS = "select pid from pg_stat_activity where datname = current_database() and application_name like 'pgsupervisor: %'"


def leader(database: Database) -> int | None:
    """The process that leads, by the newest term."""
    rows = database.sql("select pid from supervisor.leaders where leads")
    assert len(rows) <= 1, "two terms are open"
    return rows[0][0] if rows else None


@pytest.fixture
def two(hosts: HostFactory, database: Database) -> tuple[Host, Host]:
    """The leader, and a host that follows; one worker each."""
    leading = hosts.start(APP).wait_up(1)
    eventually(lambda: leader(database) == leading.pid, 20)
    return leading, hosts.start(APP).wait_up(1)


def kill_parent(host: Host) -> None:
    os.kill(host.pid, signal.SIGKILL)
    host.process.wait()


def test_one_of_two_leads_and_the_other_follows_when_it_is_killed(two: tuple[Host, Host], database: Database) -> None:
    """kill -9 of the leader: its lock goes with its session, and the other has the lead within a second."""
    first, second = two
    killed_at = time.monotonic()
    kill_parent(first)
    eventually(lambda: leader(database) == second.pid, 10 * KILL_TO_LEAD_S)
    took_s = time.monotonic() - killed_at
    history = judge_history(database)
    assert [first.pid, second.pid] == [row[1] for row in history] and "its session was gone" == history[0][4]
    print(f"kill to lead: {1000 * took_s:.0f} ms")
    assert len(database.sql(HOLDERS)) == 1


def test_the_next_leader_buries_the_dead_ones_workers(two: tuple[Host, Host], database: Database) -> None:
    """A host that dies with its parent: nobody saw its workers die but the server."""
    first, second = two
    theirs = database.one("select supervisor from supervisor.leader order by term limit 1")
    first.kill_all()
    dead = "select count(*) from supervisor.worker where supervisor = %s and dead_at is null"
    eventually(lambda: database.one(dead, theirs) == 0, 40, "the dead host's workers declared dead")
    assert [("its session is gone",)] == database.sql("select distinct death from supervisor.worker where supervisor = %s", theirs)
    assert database.one("select count(*) from supervisor.workers where state = 'alive'") == 1
    assert second.process.poll() is None


@pytest.mark.alone
def test_a_clean_stop_hands_the_lead_over_at_once(two: tuple[Host, Host], database: Database) -> None:
    """A deployment stops one host after the other: nobody waits for a time-out."""
    first, second = two
    first.stop()
    eventually(lambda: leader(database) == second.pid, 10 * KILL_TO_LEAD_S)
    history = judge_history(database)
    assert "stopped" == history[0][4]
    gap_s = (history[1][2] - history[0][3]).total_seconds()
    assert gap_s < 0.25, f"the lead was free for {gap_s:.3f} s though the other was told"


def test_a_stopped_leader_is_deposed_and_writes_nothing_when_it_continues(two: tuple[Host, Host], database: Database) -> None:
    """A hung host holds the lock for ever: the other one sees no beat, ends its sessions, and leads; the hung one comes back as a follower."""
    first, second = two
    term, pid, _, _, _, _, supervisor, lead_pid, chores_pid = database.sql(HISTORY)[-1]
    os.kill(first.pid, signal.SIGSTOP)
    stopped_at = time.monotonic()
    try:
        eventually(lambda: leader(database) == second.pid, 10 * STOP_TO_LEAD_S)
        print(f"stop to lead: {1000 * (time.monotonic() - stopped_at):.0f} ms")
        assert not set(database.sql(BACKENDS)) & {(lead_pid,), (chores_pid,)}, "sessions of the deposed leader live on"
        before = database.sql("select leader::text from supervisor.leader where term = %s", term)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    eventually(lambda: "no longer leading" in first.log(), 20, "the deposed one knows")
    name = f"pgsupervisor: lead {supervisor.hex[:8]}"
    eventually(lambda: database.sql("select 1 from pg_stat_activity where application_name = %s", name), 20, "it is back as a follower")
    history = judge_history(database)
    assert before == database.sql("select leader::text from supervisor.leader where term = %s", term), "it wrote to its old term"
    assert [second.pid] == [row[1] for row in history[term:]] and history[term - 1][4].startswith("deposed: no sign of life")
    # and it is as good a leader as before
    kill_parent(second)
    eventually(lambda: leader(database) == first.pid, 10 * KILL_TO_LEAD_S)
    judge_history(database)


def test_what_an_old_term_writes_late_is_refused(two: tuple[Host, Host], database: Database) -> None:
    """The fence of a leader: also a statement that was on its way when the term ended."""
    first, second = two
    term = database.one("select max(term) from supervisor.leader")
    with database.connect() as slow:
        slow.execute("begin")
        slow.execute("select supervisor.as_leader(%s)", (term,))
        os.kill(first.pid, signal.SIGKILL)
        # the next term waits for what the old one has begun to write
        eventually(lambda: database.sql("select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like '%%take_term%%'"), 20)
        assert database.one("select max(term) from supervisor.leader") == term
        slow.execute("commit")
        eventually(lambda: leader(database) == second.pid, 20)
        with pytest.raises(psycopg.Error) as refused:
            slow.execute("select supervisor.as_leader(%s)", (term,))
    assert "SV004" == refused.value.sqlstate


def test_nobody_begins_a_term_without_the_lock(database: Database) -> None:
    with pytest.raises(psycopg.Error) as refused:
        database.sql("select supervisor.take_term(gen_random_uuid(), 'h', 1, '')")
    assert "SV004" == refused.value.sqlstate and not database.sql(HISTORY)


@pytest.fixture
def outliving(database: Database, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A supervisor that leads, and its children, which are not killed with it."""
    words = [sys.executable, "-m", "tests.faults.two_children", database.dsn]
    process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    children = [int(process.stdout.readline().split()[1]) for _ in range(2)]
    try:
        yield process, children
    finally:
        for pid in (process.pid, *children):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.wait()


def test_living_children_of_a_killed_leader_do_not_hold_its_lock(
    outliving: tuple[subprocess.Popen[str], list[int]], hosts: HostFactory, database: Database
) -> None:
    """A child that kept the parent's socket open would keep the session alive, and with it the lock, for as long as it lives."""
    first, children = outliving
    eventually(lambda: leader(database) == first.pid, 20)
    os.kill(children[0], signal.SIGKILL)  # its successor is forked while the parent leads
    assert first.stdout is not None
    children.append(int(first.stdout.readline().split()[1]))
    second = hosts.start(APP).wait_up(1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    eventually(lambda: leader(database) == second.pid, 10 * KILL_TO_LEAD_S)
    alive = [pid for pid in children[1:] if Path(f"/proc/{pid}").exists()]
    assert alive == children[1:], "the test wants living children"
    judge_history(database)


@pytest.fixture
def pair(database: Database) -> Iterator[list[tuple[Leadership, Burials]]]:
    """Two supervisors' shares in the leadership, in this process."""
    made: list[tuple[Leadership, Burials]] = []
    for number in range(2):
        burials = Burials(database.dsn, database.schema, f"reaper {number}")
        made.append((Leadership(database.dsn, database.schema, uuid4(), burials), burials))
    yield made
    for leadership, burials in made:
        leadership.close()
        burials.close()


def test_a_supervisor_that_stops_between_lock_and_term_is_deposed_too(pair: list[tuple[Leadership, Burials]], database: Database) -> None:
    """It holds the lock and stands in no row: only the lock itself shows who it is."""
    other = database.connect()
    other.execute(f"set application_name = 'pgsupervisor: lead {UUID(int=7).hex[:8]}'")
    other.execute(Sql().get("seek_lead"), NOTHING)  # type: ignore[arg-type]
    assert database.sql(HOLDERS)
    leadership, burials = pair[0]
    drive([leadership, burials], lambda: leadership.term == 1, 30, "the lead")
    with pytest.raises(psycopg.OperationalError):
        other.execute("select 1")


def test_an_application_that_holds_that_lock_is_left_alone(pair: list[tuple[Leadership, Burials]], database: Database) -> None:
    """Only sessions that call themselves a supervisor's are ended."""
    other = database.connect()
    other.execute(Sql().get("seek_lead"), NOTHING)  # type: ignore[arg-type]
    leadership, burials = pair[0]
    until = time.monotonic() + 3.0
    drive([leadership, burials], lambda: time.monotonic() > until, 10)
    assert leadership.term == 0
    other.execute("select 1")
    other.close()
    drive([leadership, burials], lambda: leadership.term == 1, 20)


def test_a_leader_whose_session_is_terminated_goes_on_as_a_follower(pair: list[tuple[Leadership, Burials]], database: Database) -> None:
    """Losing the session is losing the lead, for the same process too: another may have it by now."""
    (one, its), (two, others) = pair
    drive([one, its], lambda: one.term == 1, 20)
    drive([one, its, two, others], lambda: database.one("select chores_pid is not null from supervisor.leader"), 20)
    database.sql("select pg_terminate_backend(lead_pid) from supervisor.leader where ended_at is null")
    drive([one, its, two, others], lambda: 2 in (one.term, two.term), 20)
    drive([one, its, two, others], lambda: (one.term, two.term) in ((2, 0), (0, 2)), 20)
    judge_history(database)


def test_a_follower_asks_two_questions_a_second_and_a_leader_hardly_more(pair: list[tuple[Leadership, Burials]], database: Database) -> None:
    """An idle host must be nearly free."""
    (one, its), (two, others) = pair
    drive([one, its], lambda: one.term == 1, 20)
    asked = {"n": 0}
    for session in (one._lead, two._lead, its.session, others.session):
        original = session.ask

        def counted(*args, _ask=original, **more) -> None:  # type: ignore[no-untyped-def]
            asked["n"] += 1
            _ask(*args, **more)

        session.ask = counted  # type: ignore[method-assign]
    until = time.monotonic() + 5.0
    drive([one, its, two, others], lambda: time.monotonic() > until, 20)
    assert 10 <= asked["n"] <= 2 * 5 * 2 * 1.3 + 6, f"{asked['n']} statements of two supervisors in 5 s"


# ── the look that rides on the pulse ─────────────────────────────────────────────────────────────────────────────


def test_leader_and_follower_look_at_what_is_due_in_their_pulse(pair: list[tuple[Leadership, Burials]], database: Database) -> None:
    """A question of its own would double what an idle host costs."""
    database.sql("insert into supervisor.queue (name) values ('looked at')")
    database.sql("insert into supervisor.workflow (name, queue) select 'w', id from supervisor.queue where name = 'looked at'")
    due = "insert into supervisor.task (run_id, ready_at, queue, workflow) select supervisor.new_id(), clock_timestamp() + %s, w.queue, w.id from supervisor.workflow w, generate_series(1, 3)"
    database.sql(due, timedelta(0))
    database.sql(due, timedelta(seconds=50))
    told: list[list[tuple[int, float | None, bool]]] = [[], []]
    for (leadership, _), rows in zip(pair, told, strict=True):
        leadership.look(lambda: {"queues": None, "workflows": ["w"], "depth": 64, "supervisor": None}, lambda *row, _rows=rows: _rows.append(row))  # type: ignore[misc]
    parts = [part for both in pair for part in both]
    drive(parts, lambda: 1 in (pair[0][0].term, pair[1][0].term) and all(len(rows) >= 3 for rows in told), 30)
    for rows in told:
        assert all((n, hidden) == (3, False) and next_s is not None and 10 < next_s <= 50 for n, next_s, hidden in rows), rows


def test_a_look_that_is_refused_keeps_no_leader_from_beating(pair: list[tuple[Leadership, Burials]], database: Database) -> None:
    """The beat is what others judge it by; of its look it has to be able to do without."""
    (one, its), (two, others) = pair
    asked: list[float] = []

    def wrong() -> dict[str, object]:
        asked.append(time.monotonic())
        return {"queues": None, "workflows": ["w"], "depth": "many", "supervisor": None}

    for leadership, _ in pair:
        leadership.look(wrong, lambda *row: None)
    drive([one, its], lambda: one.term == 1, 20)
    until = time.monotonic() + 4.0
    drive([one, its, two, others], lambda: time.monotonic() > until, 20)
    assert (one.term, two.term) == (1, 0) and len(judge_history(database)) == 1
    assert database.one("select clock_timestamp() - beat_at < interval '1.5 s' from supervisor.leader")
    assert len(asked) == 2, "each asks once, and not again for a while"
