"""Wake-ups are hints: they make things quick, and nothing is lost or late for long without them."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from supervisor import Client
from supervisor.api import hints
from supervisor.db.statements import Sql, blocks, wake_channel
from supervisor.engine import nudges, rest
from supervisor.host import wakeups
from supervisor.leader import lead
from tests.conformance.claimer import Claimer, insert_runs, make_catalogue
from tests.faults import apps_plain
from tests.harness import Database, Effects, Host, HostFactory, eventually

APP = "tests.faults.apps_plain"


@pytest.fixture
def host(hosts: HostFactory, build: str) -> Iterator[Host]:
    with hosts(APP, build=build, procs=4) as up:
        yield up


def ears(database: Database) -> list[int]:
    """Backends of sessions that listen."""
    return [pid for (pid,) in database.sql(
        "select pid from pg_stat_activity where datname = current_database() and application_name ~ '^pgsupervisor: ears'"
    )]  # fmt: skip


def silence(database: Database) -> None:
    """Start by SQL, which announces nothing, in place of a client's hint that was lost."""
    database.sql("select supervisor.start_runs(%s, array[supervisor.new_id()], array['{\"n\": 1}'::bytea])", apps_plain.one_step.name)


def ended(database: Database) -> int:
    return int(database.one("select count(*) from supervisor.outcome where status = 1"))


# ── nothing depends on a hint ────────────────────────────────────────────────────────────────────────────────────


def test_a_start_that_nobody_announces_is_found_by_the_hosts_look(database: Database, host: Host) -> None:
    """Starts by SQL, by triggers, in the caller's transaction: within half a second."""
    eventually(lambda: ears(database), 20)
    silence(database)
    eventually(lambda: ended(database) == 1, 10 * rest.POLL_IDLE_S)


def test_lost_ears_delay_by_a_look_and_lose_nothing(database: Database, host: Host) -> None:
    """Whoever listened is gone in the very moment of the hint, again and again."""
    with Client(database.dsn) as client:
        for n in range(5):
            (pid,) = eventually(lambda: ears(database), 20)
            database.sql("select pg_terminate_backend(%s)", pid)
            assert client.start(apps_plain.one_step, n).result(timeout=10 * (lead.PULSE_S + 0.1)) == n + 1
            eventually(lambda: pid not in ears(database), 10)
    assert host.log().count(" is up as ") == 4


def test_behind_a_silent_parent_workers_look_for_themselves(database: Database, host: Host) -> None:
    """A parent that hangs nudges nobody; its workers notice, and go on as long as they live."""
    eventually(lambda: ears(database), 20)
    os.kill(host.pid, signal.SIGSTOP)
    try:
        silence(database)
        eventually(lambda: ended(database) == 1, 10 * (rest.SILENT_S + rest.POLL_IDLE_S))
        with Client(database.dsn) as client:
            assert client.start(apps_plain.one_step, 7).result(timeout=10 * rest.POLL_IDLE_S) == 8
    finally:
        os.kill(host.pid, signal.SIGCONT)


def test_a_worker_hears_for_itself_what_clients_start(database: Database, host: Host) -> None:
    """The parent's turn costs a quick run a tenth of its time. It stands still here, and looked a moment ago, so that no worker looks for itself."""
    with Client(database.dsn) as client:
        eventually(lambda: ears(database), 20)
        assert client.start(apps_plain.one_step, 0).result(timeout=20) == 1  # whoever was nudged for it hears from now on

        def heard() -> bool:
            eventually(lambda: client.start(apps_plain.one_step, 1).result(timeout=20) == 2, 20)
            os.kill(host.pid, signal.SIGSTOP)
            try:
                run, began = client.start(apps_plain.one_step, 2), time.monotonic()
                return run.result(timeout=20) == 3 and time.monotonic() - began < rest.SILENT_S / 4
            finally:
                os.kill(host.pid, signal.SIGCONT)

        eventually(heard, 30)
        # when it dies another one hears in its place
        for pid in host.worker_pids():
            host.kill_worker(pid)
        eventually(heard, 60)


def test_what_one_worker_hears_and_has_no_room_for_others_do(database: Database, hosts: HostFactory, build: str, effects: Effects) -> None:
    """It alone hears of single starts, and its only thread is taken: by a run that was started while the parent could nudge nobody."""
    with hosts(APP, build=build, procs=2, threads=1) as host, Client(database.dsn) as client:
        eventually(lambda: ears(database), 20)

        def held_by_the_ear() -> Any:
            os.kill(host.pid, signal.SIGSTOP)
            try:
                stopped_at = time.monotonic()
                run = client.start(apps_plain.waits_at_gate, word := str(stopped_at))
                eventually(lambda: effects.count("held", word) or time.monotonic() > stopped_at + rest.SILENT_S / 2, 20)
                return run if effects.count("held", word) else run.terminate() and None
            finally:
                os.kill(host.pid, signal.SIGCONT)

        held = eventually(held_by_the_ear, 30)
        assert [client.start(apps_plain.one_step, n).result(timeout=20) for n in range(20)] == list(range(1, 21))
        effects.open("gate")
        assert held.result(timeout=20)


@dataclass
class Deaf:
    """A worker, as far as it hears of starts and may have room."""

    room_for: int
    options: Any
    nudged: int = 0

    @property
    def rest(self) -> Any:
        return SimpleNamespace(nudged=lambda: setattr(self, "nudged", self.nudged + 1))

    def room(self) -> int:
        return self.room_for


def test_a_worker_passes_on_what_it_has_no_room_for() -> None:
    passed = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    worker: Any = Deaf(1, SimpleNamespace(queues=("known",), pass_fd=passed))

    def heard(*payloads: str) -> int:
        pipeline: Any = SimpleNamespace(heard=[payload.encode() for payload in payloads])
        nudges.Nudges(worker).heard(pipeline)
        assert pipeline.heard == []
        try:
            return os.eventfd_read(passed)
        except BlockingIOError:
            return 0

    one, later, foreign, many = '[["w","known",1,0.0]]', '[["w","known",3,0.5]]', '[["w","other",1,0.0]]', '[["w","known",1e15,0.0]]'.replace("1e15", str(10**15))
    try:
        assert heard(one) == 0 and worker.nudged == 1, "it has room"
        worker.room_for = 0
        assert heard(one, one, later, foreign) == 2 and worker.nudged == 2
        assert heard(later) == heard(foreign) == heard("no JSON") == 0 and worker.nudged == 2
        assert heard(many) == rest.PASSED_MAX, "whoever may connect may notify"
        os.eventfd_write(passed, (1 << 64) - 2)
        assert heard(many) == (1 << 64) - 2, "a parent that does not read blocks no worker"
    finally:
        os.close(passed)


def test_garbage_on_the_channel_harms_nobody(database: Database, host: Host) -> None:
    """Whoever may connect may notify."""
    eventually(lambda: ears(database), 20)
    for payload in ("", "[", '{"a":1}', '[["x"]]', '[["one_step",null,-5,0.0]]', '[["one_step",null,1,1e308]]', "x" * 7000):
        database.sql("select pg_notify(%s, %s)", wake_channel("supervisor"), payload)
    with Client(database.dsn) as client:
        assert client.start(apps_plain.one_step, 1).result(timeout=20) == 2
    assert host.log().count(" is up as ") == 4 and host.process.poll() is None


def test_a_start_that_commits_late_is_found_by_the_next_claim(database: Database) -> None:
    """Two clients at once: what became ready first may commit last. A claim's mark that hid it would cost its run a second."""
    make_catalogue(database, "q")
    insert_runs(database, 100, "q", "q")
    database.sql("update supervisor.task set owner = 0 where run_id = (select run_id from supervisor.task order by ready_at, run_id limit 1)")
    claimer = Claimer(database, "q")
    try:
        assert len(claimer.claim(150)) == 99
        database.sql("update supervisor.task set owner = null where owner = 0")
        assert len(claimer.claim(30)) == 1
    finally:
        claimer.close()


# ── as little as possible is said ────────────────────────────────────────────────────────────────────────────────


def test_no_worker_and_no_start_notifies_within_its_transaction() -> None:
    """NOTIFY takes a lock of the whole cluster until its transaction ends: one slow commit would hold up all others. A queue is resumed by a person, and seldom."""
    mentions = {name: block for name, block in blocks().items() if re.search(r"notify\b", block.text, re.IGNORECASE)}
    assert "announce_starts" in mentions
    assert {block.file for block in mentions.values() if block.name != "client_resume_queue"} <= {"wake.sql", "leader.sql"}, mentions.keys()


def test_functions_of_the_schema_do_not_notify_unasked(database: Database) -> None:
    """The same for what is called inside of others' transactions: starts, the fence, triggers. `notify => true` asks for it."""
    found = "select proname from pg_proc where pronamespace = 'supervisor'::regnamespace and prosrc ~* %s"
    assert database.sql(found + " order by 1", r"pg_notify|\mnotify\s+\w+\s*(,|;)") == [
        ("announce",), ("announce_cancelled",), ("announce_ends",), ("announce_signal",), ("signal_and_tell",), ("start_and_tell",),
    ]  # fmt: skip
    assert database.sql(found + " order by 1", r"\.announce\(") == [("announce_cancelled",), ("announce_signal",), ("resume_queue",), ("start_many",), ("trigger_schedule",)]
    assert database.sql(found + " order by 1", r"\.announce_signal\(") == [("admit_json",), ("complete",), ("fail",), ("finish_because",), ("send_because",), ("signal",), ("signal_with_start",), ("tell",)]
    assert database.sql(found + " order by 1", r"\.announce_ends\(") == [("announce_cancelled",), ("start_many",), ("terminate",)]
    assert database.sql(found + " order by 1", r"\.announce_cancelled\(") == [("cancel",)]


@pytest.mark.alone
def test_a_thousand_starts_a_second_are_a_hundred_hints(database: Database, hosts: HostFactory) -> None:
    """Heard on the channel itself, from a client that starts as fast as it can, with two threads."""
    with hosts(APP):
        pass
    heard: list[float] = []
    with psycopg.connect(database.dsn, autocommit=True) as conn, Client(database.dsn) as client:
        conn.execute(f'listen "{wake_channel("supervisor")}"')
        client.start(apps_plain.one_step, 0)
        began = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            started = sum(pool.map(lambda _: _start_for(client, 2.0), range(2)))
        took_s = time.monotonic() - began
        heard += [time.monotonic() for _ in conn.notifies(timeout=0.5)]
    print({"starts_per_s": started / took_s, "hints_per_s": len(heard) / took_s})
    assert started > 150 * took_s, "too few starts to show anything"
    assert 0 < len(heard) <= hints.BURST + hints.PER_S * took_s + 1


def _start_for(client: Client, seconds: float) -> int:
    until, n = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        for _ in range(10):
            client.start(apps_plain.one_step, n)
            n += 1
    return n


@dataclass
class Idle:
    """A worker, as far as a nudge is concerned."""

    number: int
    ready: bool = True
    leaving: bool = False
    nudges: int = 0
    hears: int = 0

    def wake(self) -> None:
        self.nudges += 1

    def hear(self) -> None:
        self.hears += 1


def test_a_hint_wakes_as_few_as_can_do_it() -> None:
    """Of sixteen idle workers one claims after one start, and as many as have threads for it after many."""
    board = rest.Board(16)
    workers = [Idle(number) for number in range(16)]
    seats = [board.seat(number) for number in range(16)]
    told: Any = wakeups.Wakeups(board, lambda: workers, 8, (), lambda: ["known"])  # type: ignore[arg-type, return-value]

    def woken(hint: str) -> list[int]:
        for number, seat in enumerate(seats):
            workers[number].nudges = 0
            seat.waits(time.monotonic() + number)
        told.heard(hint)
        return [worker.number for worker in workers if worker.nudges]

    assert woken('[["known", null, 1, 0.0]]') == [15], "who began to rest last is warm"
    assert woken('[["unknown", null, 1, 0.0]]') == []
    assert told.due() == 0.0, "one is to hear for itself"
    told.act(set(), set())
    assert [worker.number for worker in workers if worker.hears] == [15] and told.due() > 0.0, "the one that was woken last"
    assert woken('[["known", null, 9, 0.0]]') == [14], "it hears for itself since"
    assert len(woken('[["known", null, 5000, 0.0]]')) == 15
    # one that was nudged and has not looked since may be stuck: the next hint goes to another
    seats[15].waits(1.0)
    workers[14].leaving = True
    told.heard('[["known", null, 1, 0.0]]')
    assert [worker.number for worker in workers if worker.nudges == 2] == [13]
    # nobody waits, but a claim under way may have been too early: one is told to send another
    for number, seat in enumerate(seats):
        workers[number].nudges = 0
        seat.works(1.0)
    told.heard('[["known", null, 1, 0.0]]')
    assert sum(worker.nudges for worker in workers) == 1


def test_who_hears_for_itself_is_not_nudged_beside() -> None:
    """A second worker would look for the one run that the first one has claimed already."""
    board = rest.Board(3)
    workers = [Idle(number) for number in range(3)]
    seats = [board.seat(number) for number in range(3)]
    told: Any = wakeups.Wakeups(board, lambda: workers, 8, (), lambda: ["known"])  # type: ignore[arg-type, return-value]

    def nudged(n: int = 1) -> list[int]:
        before = [worker.nudges for worker in workers]
        told.heard(f'[["known", null, {n}, 0.0]]')
        return [worker.number for worker, nudges in zip(workers, before, strict=True) if worker.nudges > nudges]

    assert told.due() == 0.0
    told.act(set(), set())
    (ear,) = [worker.number for worker in workers if worker.hears]
    for seat in seats:
        seat.waits(time.monotonic())
    assert nudged() == [] and nudged() != [], "who has heard and not looked since may be stuck"
    seats[ear].waits(time.monotonic())
    assert ear not in nudged(9) and workers[ear].hears == 1, "for many runs others are nudged as well"
    seats[ear].works(time.monotonic())
    assert nudged() == [], "it has just begun to look"
    seats[ear].works(time.monotonic() - 2 * wakeups.HEARD_S)
    assert nudged() not in ([], [ear]), "it has work for longer"
    for seat in seats:
        seat.waits(time.monotonic())
    os.eventfd_write(told.passed_fd, 9)
    before = [worker.nudges for worker in workers]
    told.act({told.passed_fd}, set())
    assert [worker.nudges - n for worker, n in zip(workers, before, strict=True)] == [int(worker.number != ear) for worker in workers], "what it passes on is for the others"
    workers[ear].leaving = True
    assert ear not in nudged() and told.due() == 0.0
    told.act(set(), set())
    assert sum(worker.hears for worker in workers) == 2 and told.due() > 0.0, "another one hears in its place"


def test_a_nudge_during_a_claim_sends_another() -> None:
    """Its snapshot may be older than the start that the nudge is for."""
    board, looks, timers = rest.Board(1), [], []
    resting = rest.Rest(board.seat(0), lambda: looks.append(1), lambda wait_s, call: timers.append((wait_s, call)), lambda: 100.0)
    resting.asked()
    resting.nudged()
    resting.answered(0, 8)
    assert resting.empty and resting.look_at <= 100.0 and not timers
    resting.asked()
    resting.answered(0, 8)
    assert resting.look_at > 100.0 and board.waits_since(0) == 100.0
    # the parent looks: the worker does not; the parent is silent: it does
    board.pulsed(99.0)
    timers.pop()[1]()
    assert not looks
    board.pulsed(100.0 - rest.SILENT_S)
    timers.pop()[1]()
    assert looks == [1]


def test_a_claim_that_was_lost_with_its_session_is_followed_by_another() -> None:
    """Its answer never comes: a worker that waited for it would look busy to its parent for ever."""
    board, timers = rest.Board(1), []
    resting = rest.Rest(board.seat(0), lambda: None, lambda wait_s, call: timers.append((wait_s, call)), lambda: 100.0)
    resting.asked()
    resting.answered(0, 8)
    assert board.waits_since(0) == 100.0
    resting.lost()
    assert board.waits_since(0) == 0.0 and resting.look_at <= 100.0, "no nudge is for a worker without a session"
    board.pulsed(100.0)
    timers.pop()[1]()
    assert resting.look_at <= 100.0, "a pause that was begun before ends with the session"
    resting.asked()
    resting.answered(0, 8)
    assert board.waits_since(0) == 100.0 and resting.look_at > 100.0


def test_after_an_adoption_a_worker_is_nudged_as_before(database: Database, hosts: HostFactory, build: str) -> None:
    """It waits on the board under its new number too."""
    with hosts(APP, build=build, procs=1) as host, Client(database.dsn) as client:
        for n in range(1, 4):
            assert client.start(apps_plain.one_step, n).result(timeout=20) == n + 1
            database.sql("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name ~ '^pgsupervisor: worker'")
            eventually(lambda n=n: len(re.findall(r"worker \d+ goes on as worker ", host.log())) == n, 20)  # type: ignore[misc]
        silence(database)
        eventually(lambda: ended(database) == 4, 10 * rest.POLL_IDLE_S)
        assert host.log().count(" is up as ") == 1


# ── results ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_threads_that_wait_on_one_client_share_its_questions(database: Database, host: Host, effects: Effects) -> None:
    """Forty threads, some of which give up: each has its own run's result, and nothing is left of those that gave up."""
    with Client(database.dsn) as client:
        slow = client.start(apps_plain.waits_at_gate, "slow")
        runs = [client.start(apps_plain.one_step, n) for n in range(30)]

        def gives_up() -> bool:
            with pytest.raises(TimeoutError, match="has not ended within"):
                slow.result(timeout=0.3)
            return True

        with ThreadPoolExecutor(40) as pool:
            giving_up = [pool.submit(gives_up) for _ in range(10)]
            results = list(pool.map(lambda run: run.result(timeout=30), runs))
            assert results == [n + 1 for n in range(30)]
            assert all(each.result() for each in giving_up)
        assert not client._waiter._places and client._waiter._asker is None
        effects.open("gate")
        assert slow.result(timeout=30) == "slow"
        sessions = database.one("select count(*) from pg_stat_activity where application_name ~ '^pgsupervisor: (client|waiter)' and datname = current_database()")
        assert sessions <= 2


def test_a_waiter_that_is_interrupted_hands_its_turn_on() -> None:
    """The thread that asks for all is stopped by an exception; another one takes over at once."""
    from supervisor.api.waiting import Waiter

    asked: list[Any] = []
    broken = threading.Event()

    def ask(ids: Any, patience_s: float) -> list[Any]:
        asked.append(threading.get_ident())
        if not broken.is_set():
            broken.set()
            raise KeyboardInterrupt
        return [_Ended(ids[0])] if b"b" * 16 in ids else []

    class _Ended:
        def __init__(self, _: bytes) -> None:
            import uuid

            self.run_id = uuid.UUID(bytes=b"b" * 16)

    waiter: Any = Waiter(ask)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(waiter.wait, b"a" * 16, time.monotonic() + 20)
        assert broken.wait(10)
        second = pool.submit(waiter.wait, b"b" * 16, time.monotonic() + 20)
        with pytest.raises(KeyboardInterrupt):
            first.result(timeout=10)
        assert second.result(timeout=10).run_id.bytes == b"b" * 16
    assert not waiter._places and waiter._asker is None


# ── the look ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_hosts_look_reads_the_heads_of_its_queues_and_no_more(database: Database) -> None:
    """A hundred thousand tasks, most of them claimed: twice a second, on every host, in a session with plain settings."""
    make_catalogue(database, "q", "other")
    insert_runs(database, 100_000, "q", "q")
    database.sql("update supervisor.task set owner = 1 where run_id in (select run_id from supervisor.task order by ready_at limit 5000)")
    database.sql("vacuum analyze supervisor.task")
    asked = {"queues": None, "workflows": ["q", "other"], "depth": wakeups.DEPTH, "supervisor": None}
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        text: Any = Sql().get("pulse")
        due, next_s, hidden = conn.execute(text, asked).fetchone()  # type: ignore[misc]
        assert (due, next_s, hidden) == (0, None, True), "claimed ones hide the rest: a claim has to look"
        database.sql("update supervisor.task set owner = null where run_id in (select run_id from supervisor.task order by ready_at limit 10)")
        assert conn.execute(text, asked).fetchone()[0] == 10  # type: ignore[index]
        (plan,) = conn.execute("explain (analyze, timing off, format json) " + text, asked).fetchone()  # type: ignore[misc]
    scans = [node for node in _nodes(plan[0]["Plan"]) if node.get("Relation Name") == "task"]
    assert scans and all(node["Node Type"] in ("Index Scan", "Index Only Scan") and node["Index Name"] == "task_ready_idx" for node in scans)
    read = sum(node["Actual Rows"] * node["Actual Loops"] for node in scans)
    assert read <= 2 * 10 * wakeups.DEPTH, f"it read {read} rows"
    assert not [node for node in _nodes(plan[0]["Plan"]) if node["Node Type"] == "Sort" and node["Actual Rows"] > wakeups.DEPTH]


def test_the_look_tells_when_the_next_run_is_due(database: Database) -> None:
    """So that a timer wakes a worker at its moment, and not at the next look; one that waits for ever is none."""
    make_catalogue(database, "q")
    insert_runs(database, 2, "q", "q")
    database.sql("update supervisor.task set ready_at = 'infinity'")
    asked = {"queues": ["q"], "workflows": [], "depth": wakeups.DEPTH, "supervisor": None}
    text: Any = Sql().get("pulse")
    with psycopg.connect(database.dsn, autocommit=True) as conn:
        assert conn.execute(text, asked).fetchone() == (0, None, False)
        database.sql("update supervisor.task set ready_at = clock_timestamp() + interval '5 s' where run_id = (select min(run_id::text)::uuid from supervisor.task)")
        due, next_s, hidden = conn.execute(text, asked).fetchone()  # type: ignore[misc]
    assert (due, hidden) == (0, False) and 4 < next_s <= 5


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", []):
        yield from _nodes(part)
