"""Sessions are lost and processes live on: what is running is not repeated, what was in flight is neither lost nor doubled."""

from __future__ import annotations

import os
import re
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from supervisor import Client, RunCancelled
from supervisor.db.worker_calls import Origin, WorkerCalls
from tests.apps import asked, taken
from tests.conformance.client_host import register
from tests.faults import apps_lost
from tests.faults.go_between import GoBetween
from tests.faults.load import Load, dice
from tests.harness import Database, Effects, Host, HostFactory, Server, eventually

APP = "tests.faults.apps_lost"
MANY = 600  # runs with an input of a kilobyte each: 512 claims are more than a socket holds
KEPT = "create table kept (word text not null)"
SESSIONS = "select count(*) from pg_stat_activity where datname = current_database() and application_name like %s"
OURS = """pg_stat_activity where datname = current_database()
          and (application_name like 'pgsupervisor: worker%%' or application_name like 'pgsupervisor: tx%%')"""


@pytest.fixture
def restarted(own_server: Server, effects: Effects, tmp_path: Path) -> Iterator[Load]:
    """Load on a server of this test's own."""
    database = own_server.database()
    hosts = HostFactory(database, effects, tmp_path)
    try:
        database.sql(KEPT)
        yield Load(database, hosts, effects)
    finally:
        hosts.stop_all()
        database.drop()


@pytest.fixture
def load(database: Database, hosts: HostFactory, effects: Effects) -> Load:
    database.sql(KEPT)
    return Load(database, hosts, effects)


def standing(effects: Effects, *words: str) -> None:
    eventually(lambda: all(effects.count("standing", word) for word in words), 30, f"steps of {words} to begin")


def no_session_leaks(database: Database, host: Host, workers: int) -> None:
    """One session for each loop, at most one for its transactional steps, and few of the parent's."""
    eventually(lambda: database.one(SESSIONS, "pgsupervisor: worker%") == workers, 20, "one session per worker")
    eventually(lambda: database.one(SESSIONS, "pgsupervisor: tx%") <= workers, 20, "one session per worker for its transactional steps")
    everything = database.one(SESSIONS, "pgsupervisor: %") - database.one(SESSIONS, "pgsupervisor: client%")
    assert everything <= 2 * workers + 4, database.sql("select application_name, state, query from pg_stat_activity")
    assert host.process.poll() is None, host.log()[-3000:]


# ── the server goes away ─────────────────────────────────────────────────────────────────────────────────────────


def test_restarts_repeat_no_step_that_is_running(restarted: Load, own_server: Server, build: str) -> None:
    """The database is restarted on every Tuesday; a step that takes an hour must not begin again for that."""
    chance, load = dice(), restarted
    host = load.host(build, procs=2, app=APP).wait_up(2)
    words = [f"t{at}" for at in range(4)]
    with Client(load.database.dsn) as client, load:
        held = [client.start(taken.tasked if at % 2 else taken.threaded, word, "gate") for at, word in enumerate(words)]
        load.others = [run.id for run in held]
        standing(load.effects, *words)
        pids = host.worker_pids()
        # when it is restarted, crashes, and stays away for a while, under load
        for how in ("fast", "immediate", "away"):
            load.after_more(chance.randrange(50, 300))
            if how == "away":
                own_server.embedded.stop("fast")
                lasts = r"the database has been away for 3\d s" if build == "compiled" else "the database has been away"
                eventually(lambda: re.search(lasts, host.log()), 60, "the parent to say so, and that it lasts")
                own_server.embedded.start()
            else:
                own_server.embedded.restart(how)
        load.after_more(50)
        load.effects.open("gate")
        assert [run.result(timeout=60) for run in held] == [1, 1, 1, 1]
        load.finish(within_s=60)
    # then nothing was begun twice, the same processes have lived on, and no session was left behind
    load.judge(deaths=0)
    assert all(load.effects.count("standing", word) == 1 for word in words)
    assert host.worker_pids() == pids, host.log()[-3000:]
    no_session_leaks(load.database, host, 2)
    assert load.database.one("select count(*) from supervisor.worker where death like 'session lost, adopted by%%'") >= 3
    host.stop()


def test_sessions_ended_at_random_under_load(load: Load, build: str) -> None:
    """Loop sessions and transactional ones, in the middle of whatever they do: effects are there exactly once."""
    chance, ends = dice(), 25
    host = load.host(build, procs=2, app=APP).wait_up(2)
    pids = host.worker_pids()
    with load:
        for _ in range(ends):
            load.after_more(chance.randrange(10, 120))
            sessions = [pid for (pid,) in load.database.sql(f"select pid from {OURS}")]
            load.database.sql("select pg_terminate_backend(%s)", chance.choice(sessions))
        load.finish(within_s=60)
    load.judge(deaths=0)
    assert host.worker_pids() == pids, host.log()[-3000:]
    no_session_leaks(load.database, host, 2)
    host.stop()


def test_promoted_server_is_not_trusted_to_know_what_was_acknowledged(restarted: Load, own_server: Server, build: str) -> None:
    """A failover may undo the last moments: what is in memory is thrown away and read again from what survived."""
    host = restarted.host(build, procs=1, app=APP).wait_up(1)
    with Client(restarted.database.dsn) as client:
        run, booked = client.start(taken.threaded, "old", "gate"), client.start(taken.transacted, "booked", "gate")
        standing(restarted.effects, "old", "booked")
        pids = host.worker_pids()
        # when the server comes back on another timeline
        own_server.embedded.stop("fast")
        signal_file = own_server.embedded.data / "standby.signal"
        signal_file.touch()
        os.chown(signal_file, own_server.embedded.data.stat().st_uid, own_server.embedded.data.stat().st_gid)
        _start_standby(own_server)
        # then both are executed again, by the same process
        eventually(lambda: restarted.effects.count("standing", "old") == 2, 60, f"the step to begin again\n{host.log()[-3000:]}")
        restarted.effects.open("gate")
        assert (run.result(timeout=60), booked.result(timeout=60)) == (2, 2)
    assert restarted.database.sql("select word from kept") == [("booked",)]
    assert host.worker_pids() == pids and "the server is another one or was restored" in host.log()
    host.stop()


def _start_standby(server: Server) -> None:
    """Start the server as a standby of nobody and promote it: the next timeline."""
    server.embedded.start()
    with server.connect("postgres") as conn:
        if conn.execute("select pg_is_in_recovery()").fetchone() == (True,):
            conn.execute("select pg_promote()")


# ── somebody else takes over ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ended", [True, False], ids=["sessions ended", "sessions alive"])
def test_stopped_worker_writes_nothing_of_what_was_taken_over(
    database: Database, hosts: HostFactory, effects: Effects, build: str, ended: bool
) -> None:
    """A process that was stopped for a minute does not know it. What it had begun is another's; its loop and its transactions are refused."""
    database.sql(KEPT)
    old = hosts.start(APP, build=build).wait_up(1)
    with Client(database.dsn) as client:
        words = {"loop": taken.threaded, "task": taken.tasked, "tx": taken.transacted}
        runs = {word: client.start(workflow, word, "gate") for word, workflow in words.items()}
        standing(effects, *words)
        # given its worker is stopped inside of three steps, and declared dead
        (stopped,) = old.worker_pids()
        os.kill(stopped, signal.SIGSTOP)
        (old_id,) = [id for (id,) in database.sql("select id from supervisor.worker where dead_at is null")]
        if ended:
            database.sql(f"select pg_terminate_backend(pid) from {OURS}")
            eventually(lambda: not database.sql(f"select from {OURS}"), 10, "its sessions to end")
        database.sql("update supervisor.worker set dead_at = clock_timestamp(), death = 'stopped', epoch = epoch + 1 where id = %s", old_id)
        database.sql("update supervisor.task set owner = null, ready_at = clock_timestamp(), resumed = 2 where owner = %s", old_id)
        # when another host has taken its runs, and it continues in the middle of that
        new = hosts.start(APP, build=build).wait_up(1)
        eventually(lambda: all(effects.count("standing", word) == 2 for word in words), 30, "the others to begin")
        (new_pid,) = new.worker_pids()
        effects.open("gate")  # before it continues: its parent has nudged it, so it looks for work at once, and ends as soon as it is refused
        os.kill(stopped, signal.SIGCONT)
        results = {word: run.result(timeout=30) for word, run in runs.items()}
        # then the second executions count
        assert results == {"loop": 2, "task": 2, "tx": 2}
        assert {line[2] for line in effects.lines("standing")} == {str(stopped), str(new_pid)}
        # the first execution ends for nobody, if its worker has not ended before, of hearing that it is dead
        eventually(lambda: effects.count("left", "loop", 1) == 1 or not Path(f"/proc/{stopped}").exists(), 30, "the first execution or its worker to end")
        assert client.start(taken.threaded, "last", "gate").result(timeout=30) == 1
    wrote = "select (select count(*) from supervisor.step where worker = %s) + (select count(*) from supervisor.outcome where worker = %s)"
    assert database.one(wrote, old_id, old_id) == 0
    assert database.sql("select word from kept") == [("tx",)]
    assert all(effects.count("afterwards", word) == 1 for word in words)
    old.stop()
    new.stop()


# ── a commit whose client is gone ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def between(database: Database) -> Iterator[GoBetween]:
    made = GoBetween(database.dsn)
    try:
        yield made
    finally:
        made.stop()


class Limbo:
    """A worker's batch that hangs at a lock of the test's, its client gone."""

    def __init__(self, database: Database, between: GoBetween, host: Host, lock: str, *parameters: Any) -> None:
        self.database, self.between, self.host = database, between, host
        self._holder: psycopg.Connection[Any] = database.connect()
        self._holder.execute("begin")
        self._holder.execute(lock, parameters)

    def hangs(self, which: str) -> None:
        """Wait until a session of *which* waits for the lock; then break its client's end."""
        waiting = f"select count(*) from {OURS} and application_name like %s and wait_event_type = 'Lock'"
        eventually(lambda: self.database.one(waiting, f"pgsupervisor: {which}%"), 20, f"a {which} session waits for the lock")
        self.between.closed = True
        self.between.cut()
        eventually(lambda: "has lost its session" in self.host.log(), 20, "the worker to notice")

    def let_go(self) -> None:
        self._holder.execute("rollback")
        self._holder.close()


# a row of the same key that is not committed: whoever inserts it for good waits
ROWS = {
    "step": "insert into supervisor.step (run_id, seq, pos, worker, kind, status, name, started_at, ended_at) values (%s, 0, 0, 0, 1, 1, '', now(), now())",
    "outcome": "insert into supervisor.outcome (run_id, steps, status, ended_at) select run_id, 0, 1, now() from supervisor.child where parent_id = %s",
}


@pytest.mark.parametrize("table", list(ROWS))
@pytest.mark.parametrize("commits", [True, False], ids=["commits", "is ended"])
def test_batch_in_flight_when_the_client_was_gone(
    database: Database, hosts: HostFactory, effects: Effects, between: GoBetween, build: str, table: str, commits: bool
) -> None:
    """The backend goes on with what it was sent. Repeating it unseen would double it, forgetting it would lose it."""
    hosts.database = Database(database.server, database.name, between.dsn)
    host = hosts.start(APP, build=build).wait_up(1)
    with Client(database.dsn) as client:
        run = client.start(taken.threaded if table == "step" else taken.parent, "limbo", "gate")
        standing(effects, "limbo")
        limbo = Limbo(database, between, host, ROWS[table], run.id)
        effects.open("gate")
        limbo.hangs("worker")
        # when what was in flight commits after its client gave it up, or hangs until the client is back and ends it
        if commits:
            limbo.let_go()
            eventually(lambda: database.one(f"select count(*) from supervisor.{table}"), 20, "the old backend to commit")
            between.closed = False
        else:
            between.closed = False
            eventually(lambda: "goes on as worker" in host.log(), 20, "the worker to come back")
            limbo.let_go()
        # then it is there once
        assert run.result(timeout=30) == 1
    (durable,) = re.findall(r"batches in flight (\d) were durable", host.log())
    assert int(durable) == int(commits), host.log()[-2000:]
    assert effects.count("standing", "limbo") == 1
    if table == "outcome":
        assert database.sql("select n, failed from supervisor.child_done") == [(1, 0)]
    host.stop()


@pytest.mark.parametrize("commits", [True, False], ids=["commits", "is ended"])
def test_transaction_in_flight_when_the_client_was_gone(
    database: Database, hosts: HostFactory, effects: Effects, between: GoBetween, build: str, commits: bool
) -> None:
    """Whether a transactional step has committed is said by its checkpoint, once the old backend is gone."""
    database.sql(KEPT)
    hosts.database = Database(database.server, database.name, between.dsn)
    host = hosts.start(APP, build=build).wait_up(1)
    with Client(database.dsn) as client:
        run = client.start(taken.transacted, "limbo", "gate")
        standing(effects, "limbo")
        # the last statement before COMMIT needs the worker's row
        limbo = Limbo(database, between, host, "select from supervisor.worker for update")
        effects.open("gate")
        limbo.hangs("tx")
        if commits:
            limbo.let_go()
            eventually(lambda: database.one("select count(*) from kept"), 20, "the old backend to commit")
            between.closed = False
        else:
            between.closed = False
            # what has a transaction id has written: that is the old one, the new one only asks its fence
            writes = f"select count(*) from {OURS} and application_name like 'pgsupervisor: tx%%' and backend_xid is not null"
            eventually(lambda: not database.one(writes), 20, "the old backend to be ended")
            limbo.let_go()
        time = run.result(timeout=30)
    assert database.sql("select word from kept") == [("limbo",)]
    # ended, it runs again; and once more where its turn came while the worker's row was still locked and it was rolled back
    assert time == effects.count("standing", "limbo") and (time == 1) == commits, "the code ran again although it had committed, or not at all"
    host.stop()


WORKER_ROWS = "select from supervisor.worker for update"  # what a batch begins with: its fence
THE_WORKER = "select id from supervisor.worker where dead_at is null"


def stopped_in_its_batch(limbo: Limbo) -> int:
    """Wait until the only worker has sent what waits for the test's lock, and stop it there; returns its process."""
    waiting = f"select count(*) from {OURS} and wait_event_type = 'Lock'"
    eventually(lambda: limbo.database.one(waiting), 20, "its batch to wait")
    (pid,) = limbo.host.worker_pids()
    os.kill(pid, signal.SIGSTOP)
    return pid


@pytest.mark.parametrize("sent", ["claim", "result"])
def test_what_commits_after_its_whole_host_has_died_is_seen_by_whoever_buries_it(
    database: Database, hosts: HostFactory, effects: Effects, between: GoBetween, build: str, sent: str
) -> None:
    """What a dead worker had sent is carried out: a claim of which no memory knows must be given back, a result must not be made again."""
    host = hosts.start(APP, build=build).wait_up(1)
    ((dead,),) = database.sql(THE_WORKER)
    with Client(database.dsn) as client:
        if sent == "claim":
            limbo = Limbo(database, between, host, WORKER_ROWS)
            run = client.start(taken.threaded, "sent", "gate")
        else:
            run = client.start(taken.threaded, "sent", "gate")
            standing(effects, "sent")
            limbo = Limbo(database, between, host, ROWS["step"], run.id)
        effects.open("gate")
        # given its worker is stopped in the middle of a batch, and then there is neither worker nor parent
        stopped_in_its_batch(limbo)
        host.kill_all()
        limbo.let_go()
        committed = "select count(*) from supervisor.task where owner = %s" if sent == "claim" else "select count(*) from supervisor.step where worker = %s"
        eventually(lambda: database.one(committed, dead) == 1, 20, "the batch to be committed")
        # when another host leads
        with hosts(APP, build=build):
            assert run.result(timeout=60) == 1
    assert database.sql("select death from supervisor.worker where id = %s", dead) == [("its session is gone",)]
    assert [effects.count(word, "sent") for word in ("standing", "afterwards")] == [1, 1]


def test_a_worker_that_dies_in_the_middle_of_an_answer_is_buried(
    database: Database, hosts: HostFactory, effects: Effects, between: GoBetween, build: str
) -> None:
    """Its backend has claimed, and sends to where nobody reads: it holds the worker's row and the runs', and no timeout ends it. Only its end frees them."""
    direct, hosts.database = database, Database(database.server, database.name, between.dsn)
    host = hosts.start(APP, build=build, threads=1024).wait_up(1)  # a newborn claims half as many runs as it has threads
    ((dead,),) = direct.sql(THE_WORKER)
    with Client(direct.dsn) as client:
        limbo = Limbo(direct, between, host, WORKER_ROWS)
        batch = client.start_many(apps_lost.padded, [{"word": f"w{n}", "padding": "." * 900} for n in range(MANY)])
        stopped = stopped_in_its_batch(limbo)
        between.hang()
        limbo.let_go()
        stuck = f"select pid from {OURS} and state = 'active' and wait_event = 'ClientWrite'"
        ((backend,),) = eventually(lambda: direct.sql(stuck), 20, "its backend to have more to say than anybody reads")
        # when its process dies, which the backend does not hear
        os.kill(stopped, signal.SIGKILL)
        eventually(lambda: direct.one("select dead_at is not null from supervisor.worker where id = %s", dead), 50, "it to be buried")  # its parent has lost a session too
        assert direct.sql("select from pg_stat_activity where pid = %s", backend) == []
        eventually(lambda: direct.one("select count(*) from supervisor.outcome where status = 1") == MANY, 60, "all runs to end")
        assert len(batch.ids) == MANY
    assert sorted(effects.lines("afterwards")) == sorted(["afterwards", f"w{n}"] for n in range(MANY))
    host.stop()


def test_a_claim_whose_answer_was_lost_and_that_was_cancelled_meanwhile_is_cancelled(database: Database, hosts: HostFactory) -> None:
    """Nothing of it has begun, so it goes back to the queue: not as one that begins without its past being read."""
    register(database, "asked_sleeper")
    origin = Origin(uuid.uuid4(), "here", os.getpid(), uuid.uuid4())
    lost, calls = (WorkerCalls(database.dsn, "supervisor", origin.boot) for _ in range(2))
    earlier = lost.register(origin)
    with Client(database.dsn) as client:
        run = client.start(asked.asked_sleeper, 1)
        database.sql("update supervisor.task set owner = %s, claims = 1, wait_kind = null where run_id = %s", earlier.id, run.id)
        run.cancel("it is too late")
        assert database.one("select cancel_to from supervisor.task where run_id = %s", run.id) == earlier.id
        lost.close()
        assert calls.take_over(origin, earlier.id, earlier.server, [])[1:] == (set(), [earlier.id])
        calls.close()
        hosts.start("tests.apps.asked")
        with pytest.raises(RunCancelled, match="it is too late"):
            run.result(timeout=60)
