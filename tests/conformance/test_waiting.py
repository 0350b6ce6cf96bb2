"""Waiting for results: woken, not polled; without whatever woke it, found a little later; nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from supervisor import AsyncClient, Client, RunCancelled, RunTerminated
from supervisor.api import asking, ear
from supervisor.bench import pooler
from supervisor.core import awaited as hints
from supervisor.db.statements import await_channel, done_channel, ended_channel
from tests.apps import awaited
from tests.harness import ROOT, Database, Effects, Host, HostFactory, eventually

APP = "tests.apps.awaited"
FOR_EVER_S = 3600.0
RUNS = 10_000


@pytest.fixture
def host(hosts: HostFactory) -> Iterator[Host]:
    with hosts(APP, procs=2) as up:
        yield up


@pytest.fixture
def client(database: Database) -> Iterator[Client]:
    with Client(database.dsn) as made:
        yield made


@pytest.fixture
def only_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that the hosts were told of is asked about when they announce it and never else: what is found then was announced."""
    monkeypatch.setattr(asking, "TOLD_PAUSE_MIN_S", FOR_EVER_S)
    monkeypatch.setattr(asking, "TOLD_PAUSE_MAX_S", FOR_EVER_S)


class Waiting:
    """Threads that wait for runs behind gates. `results()` ends when all of them have theirs."""

    def __init__(self, client: Client, effects: Effects, gates: Sequence[str]) -> None:
        self.client, self.effects, self.gates = client, effects, gates
        self.runs = [client.start(awaited.awaited_gate, gate) for gate in gates]
        self.pool = ThreadPoolExecutor(len(gates))
        self.waiting = [self.pool.submit(run.result, 60) for run in self.runs]

    def told(self) -> Waiting:
        """When the hosts have been told of all of them. Whoever else hears of it, so did they."""
        eventually(lambda: self.listening() is not None and self._all_told(), 20, "the ear hears and has told the hosts")
        return self

    def listening(self) -> Any:
        made = self.client._waiter._ear
        return made if made is not None and made.hears else None

    def _all_told(self) -> bool:
        made = self.listening()
        return len(made.awaited) == len(self.gates) and not made.untold and made._thread._session.idle and all(
            place.told_at for place in list(self.client._waiter._places)
        )

    def open(self) -> None:
        for gate in self.gates:
            self.effects.open(gate)

    def results(self, within_s: float) -> list[Any]:
        found = [each.result(within_s) for each in self.waiting]
        self.pool.shutdown()
        return found


def sessions(database: Database, purpose: str) -> list[int]:
    return [pid for (pid,) in database.sql(
        "select pid from pg_stat_activity where datname = current_database() and application_name ~ %s", f"^pgsupervisor: {purpose}"
    )]  # fmt: skip


def terminate(database: Database, purpose: str) -> None:
    gone = eventually(lambda: sessions(database, purpose), 20)
    for pid in gone:
        database.sql("select pg_terminate_backend(%s)", pid)
    eventually(lambda: not set(gone) & set(sessions(database, purpose)), 20)


@contextmanager
def stopped(host: Host) -> Iterator[None]:
    pids = [host.pid, *host.worker_pids()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


# ── woken, not polled ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_slow_runs_end_is_announced(hosts: HostFactory, build: str, client: Client, effects: Effects, only_announced: None) -> None:
    """Twelve runs on two workers, awaited by as many threads: without announcements this would take an hour."""
    with hosts(APP, procs=2, build=build):
        waiting = Waiting(client, effects, [f"gate{n}" for n in range(12)]).told()
        waiting.open()
        assert waiting.results(within_s=20) == list(waiting.gates)


def test_a_host_that_comes_up_later_is_told_too(
    hosts: HostFactory, client: Client, database: Database, effects: Effects, only_announced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is awaited is said again and again."""
    monkeypatch.setattr(ear, "RENEW_S", 0.2)
    with hosts(APP):
        pass  # it registers the workflows
    waiting = Waiting(client, effects, ["gate"]).told()
    with hosts(APP):
        listens = "select 1 from pg_stat_activity where datname = current_database() and application_name ~ ' ears ' and query like 'LISTEN%%' and state = 'idle'"
        eventually(lambda: database.sql(listens), 20)
        thread = waiting.listening()._thread
        renewed_at = thread._renew_at
        eventually(lambda: thread._renew_at > renewed_at + 3 * ear.RENEW_S, 20, "told since")
        waiting.open()
        assert waiting.results(within_s=20) == ["gate"]


def test_a_workers_successor_announces_as_well(host: Host, client: Client, effects: Effects, only_announced: None) -> None:
    """It goes on in the ring of its number."""
    waiting = Waiting(client, effects, ["gate"]).told()
    for pid in host.worker_pids():
        host.kill_worker(pid)
    host.wait_up(4)
    waiting.open()
    assert waiting.results(within_s=20) == ["gate"]


def test_who_waits_while_a_client_is_closed_is_told_of_again(host: Host, client: Client, effects: Effects, only_announced: None) -> None:
    """The ear ends with the client; the one that waits goes on and has another."""
    waiting = Waiting(client, effects, ["gate"]).told()
    before = client._waiter._ear
    client.close()
    eventually(lambda: client._waiter._ear not in (None, before), 20)
    waiting.told().open()
    assert waiting.results(within_s=20) == ["gate"]


def test_tasks_that_wait_while_their_client_is_closed_are_told_of_again(host: Host, database: Database, effects: Effects, only_announced: None) -> None:
    """As threads are: the ear ends with the client's sessions, and the tasks go on with another."""

    async def main() -> None:
        async with AsyncClient(database.dsn) as client:
            run = await client.start(awaited.awaited_gate, "gate")
            waits = asyncio.create_task(run.result(60))
            waiter = client._waiter

            async def heard(but: Any = None) -> Any:
                async with asyncio.timeout(20):
                    while waiter._ear is but or waiter._ear is None or not waiter._ear.hears or waiter._ear.untold or not waiter._ear._thread._session.idle:
                        await asyncio.sleep(0.005)
                return waiter._ear

            before = await heard()
            await client.close()
            await heard(before)
            effects.open("gate")
            async with asyncio.timeout(20):
                assert await waits == "gate"

    asyncio.run(main())


def test_every_host_announces_what_its_workers_end(hosts: HostFactory, client: Client, effects: Effects, only_announced: None) -> None:
    """A client does not know which host has its run."""
    with hosts(APP, procs=1, threads=2), hosts(APP, procs=1, threads=2):
        waiting = Waiting(client, effects, [f"gate{n}" for n in range(4)]).told()
        waiting.open()
        assert waiting.results(within_s=20) == list(waiting.gates)


def test_two_clients_that_await_one_run_are_both_told(host: Host, client: Client, database: Database, effects: Effects, only_announced: None) -> None:
    """The one that waits for it and the one that started it may be two programs."""
    with Client(database.dsn) as other:
        waiting = Waiting(client, effects, ["gate"]).told()
        theirs = Waiting(other, effects, ["another"])
        with ThreadPoolExecutor(1) as pool:
            shared = pool.submit(other.get(waiting.runs[0].id).result, 60)
            eventually(lambda: theirs.listening() is not None and len(theirs.listening().awaited) == 2 and not theirs.listening().untold, 20)
            eventually(lambda: theirs.listening()._thread._session.idle, 20)
            waiting.open()
            assert waiting.results(within_s=20) == ["gate"] and shared.result(20) == "gate"
            theirs.open()
            assert theirs.results(within_s=20) == ["another"]


def test_a_client_hears_only_of_what_it_awaits(host: Host, client: Client, database: Database, effects: Effects) -> None:
    """Thousands of other runs end meanwhile; workers note them, and the parent says nothing of them."""
    waiting = Waiting(client, effects, ["gate"]).told()
    heard: list[Any] = []
    made = waiting.listening()
    was, made.heard = made.heard, lambda ids: (heard.append(ids), was(ids))
    others = client.start_many(awaited.awaited_quick, range(3000))
    eventually(lambda: database.one("select count(*) from supervisor.outcome") == 3000, 60)
    waiting.open()
    assert waiting.results(within_s=20) == ["gate"]
    assert [ids for ids in heard if ids is None or not set(ids) <= {waiting.runs[0].id.bytes}] == [] and len(others) == 3000


@pytest.mark.alone
def test_ten_thousand_awaited_runs_cost_less_than_fifty_queries_a_second(host: Host, database: Database) -> None:
    ten_thousand_await(host, database, "tests.conformance.awaiting")


def ten_thousand_await(host: Host, database: Database, module: str) -> None:
    """By the server's own count of transactions; and when they end, by the client's count of its questions."""
    sleeping_s = 25.0
    words = [sys.executable, "-m", module, database.dsn, str(RUNS), str(sleeping_s)]
    process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "waiting\n"
        # all are durable timers by now and no run is due for seconds; while the host stands still, what the server counts is the client's
        eventually(lambda: database.one("select count(*) from supervisor.timer") == RUNS, 20)
        with stopped(host):
            count = "select xact_commit + xact_rollback, pg_stat_force_next_flush() from pg_stat_database where datname = current_database()"
            began, before = time.monotonic(), database.one(count)
            eventually(lambda: time.monotonic() - began > 8.0, 10)
            queries_per_s = (database.one(count) - before) / (time.monotonic() - began)
            assert database.one("select count(*) from supervisor.outcome") == 0
        seen = json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
    print({"queries_per_s": queries_per_s, **seen})
    assert queries_per_s <= 50, "with what sessions of the host report late"
    assert seen["wrong"] == [] and seen["left"] == 0 and seen["threads"] <= 2
    assert seen["questions_waiting"] <= 20 * seen["first_s"]
    assert seen["questions_ending"] <= 50 * (seen["last_s"] - seen["first_s"]) + asking.BURST


def test_ten_thousand_tasks_cost_no_more_than_ten_thousand_threads(host: Host, database: Database) -> None:
    """The same through an AsyncClient: tasks on one event loop."""
    ten_thousand_await(host, database, "tests.conformance.awaiting_async")


# ── ended without a worker ───────────────────────────────────────────────────────────────────────────────────────


def cancelled_by(act: Callable[[Any], Any]) -> Callable[[Database, Any], None]:
    def by(database: Database, run: Any) -> None:
        with Client(database.dsn) as other:
            act(other)(run)

    return by


def _replaced_many(other: Client) -> Callable[[Any], Any]:
    return lambda run: other.start_many(
        awaited.awaited_gate.options(on_conflict="replace"), ["never", "others"], key=lambda gate: run.key if gate == "never" else "another"
    )


async def _by_async(dsn: str, run: Any) -> None:
    async with AsyncClient(dsn) as other:
        assert await other.cancel(run.id)


ENDERS: dict[str, Callable[[Database, Any], Any]] = {
    "a client cancels it": cancelled_by(lambda other: other.cancel),
    "a client replaces it": cancelled_by(lambda other: lambda run: other.start(awaited.awaited_gate.options(key=run.key, on_conflict="replace"), "never")),
    "a client replaces many": cancelled_by(_replaced_many),
    "an async client cancels it": lambda database, run: asyncio.run(_by_async(database.dsn, run)),
    "SQL cancels it": lambda database, run: database.sql("select supervisor.cancel(%s, notify => true)", run.id),
    "SQL replaces it": lambda database, run: database.sql(
        "select supervisor.start('awaited_gate', '{\"gate\": \"never\"}', %s, on_conflict => 'replace', notify => true)", run.key
    ),
    "the command cancels it": lambda database, run: subprocess.run(
        [sys.executable, "-m", "supervisor", "cancel", str(run.id), "--dsn", database.dsn], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    ),
    "the command cancels all that fit": lambda database, run: subprocess.run(
        [sys.executable, "-m", "supervisor", "cancel", "--filter", f"key = {run.key}", "--yes", "--dsn", database.dsn],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
    ),
}  # fmt: skip


@pytest.mark.parametrize("act", ENDERS.values(), ids=ENDERS)
def test_who_waits_hears_at_once_of_what_ends_without_a_worker(
    host: Host, client: Client, database: Database, effects: Effects, only_announced: None, act: Callable[[Database, Any], Any]
) -> None:
    """No host knows of it: whoever does it says so. Without that it would be an hour here, else two seconds."""
    run = client.start(awaited.awaited_gate.options(key="k"), "gate")
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(run.result, 60)
        eventually(lambda: client._waiter._ear is not None and client._waiter._ear.hears and all(place.told_at for place in list(client._waiter._places)), 20)
        act(database, run)
        with pytest.raises((RunCancelled, RunTerminated)):
            waits.result(20)
    for gate in ("gate", "never", "others"):  # where those that replaced it wait too, and the host for them
        effects.open(gate)


def test_what_a_transaction_of_the_callers_ends_is_not_announced(host: Host, client: Client, database: Database, effects: Effects) -> None:
    """NOTIFY would lock the whole cluster until that transaction is done."""
    run, other = client.start(awaited.awaited_gate, "gate"), client.start(awaited.awaited_gate, "gate")
    with database.connect() as listener, psycopg.connect(database.dsn) as conn:
        listener.execute(f'listen "{ended_channel("supervisor")}"')
        assert client.within(conn).terminate(run)
        conn.commit()
        assert client.terminate(other) and not client.terminate(other)
        heard = [each.payload for each in listener.notifies(timeout=5, stop_after=1)]
        assert heard == hints.texts([other.id.bytes]) and list(listener.notifies(timeout=0.2)) == []
    effects.open("gate")


# ── hints taken away ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_ear_whose_session_is_lost_hears_again(host: Host, client: Client, database: Database, effects: Effects, only_announced: None) -> None:
    """It listens on another one, under the same name, and tells the hosts again."""
    waiting = Waiting(client, effects, ["gate"]).told()
    for _ in range(3):
        terminate(database, "ear$")
        eventually(lambda: not waiting.listening() or sessions(database, "ear$"), 20)
        waiting.told()
        eventually(lambda: sessions(database, "ear$"), 20)
    waiting.open()
    assert waiting.results(within_s=20) == ["gate"]


def test_what_ends_while_nobody_hears_is_found_by_asking(host: Host, client: Client, database: Database, effects: Effects) -> None:
    """The ear's session is lost in the very moment of the announcement."""
    waiting = Waiting(client, effects, ["gate"]).told()
    waiting.open()
    terminate(database, "ear$")
    assert waiting.results(within_s=10 * asking.TOLD_PAUSE_MAX_S) == ["gate"]


def test_a_host_whose_ears_are_lost_goes_on_announcing(host: Host, client: Client, database: Database, effects: Effects, only_announced: None) -> None:
    """What it was told is the host's, not the session's."""
    waiting = Waiting(client, effects, ["gate"]).told()
    terminate(database, "ears")
    eventually(lambda: sessions(database, "ears"), 20)
    waiting.open()
    assert waiting.results(within_s=20) == ["gate"]


def test_a_host_that_was_never_told_costs_two_seconds(host: Host, client: Client, effects: Effects, monkeypatch: pytest.MonkeyPatch) -> None:
    """All notifications to hosts are lost: outcomes are found by asking."""
    monkeypatch.setattr(hints, "asked", lambda token, ids: [])
    for n in range(2):
        waiting = Waiting(client, effects, [f"gate{n}"]).told()
        waiting.open()
        assert waiting.results(within_s=10 * asking.TOLD_PAUSE_MAX_S) == [f"gate{n}"]


def test_an_ear_that_fails_is_done_without(host: Host, client: Client, effects: Effects, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong with it."""
    def breaks(*_: Any) -> None:
        raise RuntimeError("no ear today")

    monkeypatch.setattr(ear._Thread, "_known", breaks)
    waiting = Waiting(client, effects, ["gate"])
    eventually(lambda: client._waiter._ear is not None and client._waiter._ear.deaf, 20)
    waiting.open()
    assert waiting.results(within_s=20) == ["gate"]


def test_garbage_on_the_channels_harms_nobody(host: Host, client: Client, database: Database, effects: Effects) -> None:
    """Whoever may connect may notify: hosts and clients alike."""
    waiting = Waiting(client, effects, ["gate"]).told()
    token = waiting.listening()._thread._token
    for channel in (await_channel("supervisor"), done_channel("supervisor", token)):
        for payload in ("", "x", hints.ALL, hints.HELLO, "AAAA", token, f"{token} ", f"{token} AAAA", *hints.asked(token, [b"r" * 16] * 900), *hints.texts([b"x" * 16]), "z" * 7000):
            database.sql("select pg_notify(%s, %s)", channel, payload)
    assert client.start(awaited.awaited_quick, 3).result(timeout=20) == 3
    waiting.open()
    assert waiting.results(within_s=20) == ["gate"]
    assert host.process.poll() is None and host.log().count(" is up as ") == 2


# ── behind a pooler ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pooled(database: Database) -> Iterator[str]:
    """A DSN through a real pgbouncer in transaction mode."""
    if pooler.program() is None:
        pytest.skip("pgbouncer is not installed: apt install pgbouncer")
    with pooler.pooled(database.dsn) as dsn:
        yield dsn


def test_behind_a_pooler_results_are_found_by_asking_less_and_less(host: Host, database: Database, pooled: str, effects: Effects) -> None:
    """LISTEN would stay behind on a session of somebody else's; so would a setting."""
    with Client(pooled) as client:
        asked: list[float] = []
        ask = client._waiter._ask
        client._waiter._ask = lambda *about: (asked.append(time.monotonic()), ask(*about))[1]
        waiting = Waiting(client, effects, ["gate"])
        eventually(lambda: client._waiter._ear is not None and client._waiter._ear.deaf, 20)
        eventually(lambda: client._waiter._ear is not None and client._waiter._ear._thread is None, 20, "its thread has ended")
        eventually(lambda: len(asked) > 1 and asked[-1] - asked[-2] > 0.9 * asking.PAUSE_MAX_S, 30)
        in_a_second = [at for at in asked if at > asked[-1] - 1.0]
        assert len(in_a_second) <= 12
        waiting.open()
        assert waiting.results(within_s=10) == ["gate"]
    for at in range(3):  # whichever session of the server's the pooler gives
        with psycopg.connect(pooled, autocommit=True) as conn:
            assert conn.execute("select count(*) from pg_listening_channels()").fetchone() == (0,), at
            assert conn.execute("select source from pg_settings where name = 'statement_timeout'").fetchone() == ("default",)
    assert database.sql("select 1 from pg_stat_activity where query ~* '^listen' and application_name !~ ' ears '") == []


# ── nothing is left ──────────────────────────────────────────────────────────────────────────────────────────────


def test_waiters_that_give_up_leave_nothing_behind(
    host: Host, client: Client, database: Database, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred threads with timeouts: no place, no turn, nothing awaited; after a while no thread and no session."""
    monkeypatch.setattr(ear, "LINGER_S", 0.5)
    runs = client.start_many(awaited.awaited_gate, [f"never{n}" for n in range(200)])

    def gives_up(n: int) -> bool:
        with pytest.raises(TimeoutError, match="has not ended within"):
            runs[n].result(timeout=0.5 + n / 200)
        return True

    with ThreadPoolExecutor(200) as pool:
        assert all(pool.map(gives_up, range(200)))
    waiter: Any = client._waiter
    assert not waiter._places and waiter._asker is None
    assert not waiter._asking._by_run and waiter._asking.next_at(time.monotonic()) == float("inf")
    assert waiter._ear is not None and not waiter._ear.awaited
    eventually(lambda: waiter._ear._thread is None and not sessions(database, "ear$"), 10)
    for n in range(200):
        effects.open(f"never{n}")
    assert not any(thread.name == "pgsupervisor-ear" for thread in threading.enumerate())


def test_closing_a_client_ends_its_ear(host: Host, database: Database, effects: Effects) -> None:
    """At once, not when it has lingered; and the client can be used again."""
    client = Client(database.dsn)
    waiting = Waiting(client, effects, ["gate"]).told()
    waiting.open()
    assert waiting.results(within_s=20) == ["gate"]
    descriptors = len(os.listdir("/proc/self/fd"))
    client.close()
    assert not any(thread.name == "pgsupervisor-ear" for thread in threading.enumerate())
    assert len(os.listdir("/proc/self/fd")) <= descriptors - 3, "two sessions and the thread's own"
    eventually(lambda: not sessions(database, "(ear|client|waiter)$"), 10)
    again = Waiting(client, effects, ["other"]).told()
    again.open()
    assert again.results(within_s=20) == ["other"]
    client.close()


def test_quick_runs_have_no_ear(host: Host, client: Client, database: Database) -> None:
    """A session more and a thread are for those who wait long."""
    for n in range(20):
        eventually(lambda n=n: client.start(awaited.awaited_quick, n).result(timeout=20) == n, 20)  # type: ignore[misc]
    slow = max(_seconds(lambda: client.start(awaited.awaited_quick, 1).result(timeout=20)) for _ in range(20))
    if slow < asking.SLOW_S / 2:
        assert client._waiter._ear is None and not sessions(database, "ear$")


def _seconds(act: Callable[[], Any]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def test_a_child_of_a_fork_leaves_its_parents_ear_alone(host: Host, client: Client, effects: Effects, only_announced: None) -> None:
    """Its end of the session is the parent's, its thread was not forked."""
    waiting = Waiting(client, effects, ["gate"]).told()
    pid = os.fork()
    if pid == 0:
        try:
            made = client._waiter._ear
            assert made is not None
            client.close()
            os._exit(0 if made._thread is not None else 3)
        finally:
            os._exit(4)
    assert os.waitpid(pid, 0)[1] == 0
    waiting.open()
    assert waiting.results(within_s=20) == ["gate"]
