"""What a transactional step writes happens exactly once, and no step harms its neighbours or the engine."""

from __future__ import annotations

import random

import pytest

from tests.apps import ledgers
from tests.conformance.conftest import Live

APP = "tests.apps.ledgers"
PROCS = 2
SETUP = (
    "create table ledger (who text, n int)",
    "create table strict (n int unique deferrable initially deferred)",
    "create table hot (id int primary key, n int not null default 0)",
    "insert into hot select generate_series(1, 10)",
    "create schema evil",
    "create table evil.ledger (who text, n int)",
    "create procedure commits() language plpgsql as 'begin commit; end'",
)


def _booked(live: Live, who: str) -> list[int]:
    return [n for (n,) in live.database.sql("select n from ledger where who = %s order by n", who)]


def test_def_and_async_steps_in_both_kinds_of_workflow(live: Live) -> None:
    """The same promise, however the function is written."""
    assert live.run(ledgers.adds, "plain", 0, 4) == 6
    assert _booked(live, "plain") == [0, 1, 2, 3]
    assert live.run(ledgers.adds_def, "def", 10) == 21
    assert _booked(live, "def") == [10, 11]
    assert live.run(ledgers.adds_in_branches, "branches") == [*(1000 + 3 * n for n in range(5)), 7, 99]
    assert _booked(live, "branches") == [0, 1, 2, 3, 4, 99, 1000, 1001, 1002, 1003, 1004]


def test_current_inside_of_a_transaction(live: Live) -> None:
    run = live.start(ledgers.tells)
    assert run.result(timeout=20) == [0, 1, False, f"{run.id}/0"]


def test_isolation_is_what_was_asked_for(live: Live) -> None:
    """Serializable steps of two workers: nobody counts what another one has counted."""
    runs = [live.start(ledgers.counts, "skew") for _ in range(20)]
    assert sorted(run.result(timeout=40) for run in runs) == list(range(20))
    assert _booked(live, "skew") == list(range(20))
    assert live.run(ledgers.repeats, "rr") == "repeatable read"


def test_deadlocks_and_hot_rows_fail_nobody(live: Live) -> None:
    """Two workers update ten rows in all orders: conflicts are the engine's business, not the step's."""
    drawn = random.Random(3)
    pairs = [drawn.sample(range(1, 11), 2) for _ in range(300)]
    runs = [live.start(ledgers.swaps, one, other) for one, other in pairs]
    for run in runs:
        run.result(timeout=60)
    assert live.database.one("select sum(n) from hot") == 600


def test_timeout_of_a_transactional_step(live: Live) -> None:
    """Whether SQL or Python takes too long: a TimeoutError in the workflow, and nothing written."""
    assert live.run(ledgers.times_out, "late") == ["StepTimeout"] * 3
    assert _booked(live, "late") == []
    assert live.run(ledgers.adds, "after_late", 1) == 1


@pytest.mark.parametrize("kind", ledgers.MISCHIEF)
def test_mischief_hurts_neither_neighbours_nor_the_engine(live: Live, kind: str) -> None:
    """Twelve neighbours share the transaction with it: each is booked once, and the mischief as its result says."""
    ends = ledgers.MISCHIEF[kind][1]
    gate = f"hold_{kind}"
    workers = live.host.worker_pids()
    # given both workers' sessions held, so that the next transaction is shared by all that comes now
    holders = [live.start(ledgers.holds, gate) for _ in workers]
    live.until(lambda: live.effects.count("holding", gate), 10)
    neighbours = [live.start(ledgers.adds, f"{kind}{n}", n) for n in range(6)]
    culprit = live.start(ledgers.mischief, kind, kind)
    neighbours += [live.start(ledgers.adds, f"{kind}{n}", n) for n in range(6, 12)]
    live.until(lambda: live.database.one("select count(*) = count(owner) from supervisor.task"), 10, "all claimed")
    # when they commit together
    live.effects.open(gate)
    assert culprit.result(timeout=20) == ends
    assert [run.result(timeout=20) for run in neighbours] == list(range(12))
    for holder in holders:
        holder.result(timeout=20)
    # then everybody is booked once, in the right table, and the checkpoints are in the right table
    assert [_booked(live, f"{kind}{n}") for n in range(12)] == [[n] for n in range(12)]
    failed = ends in (ledgers.MISUSED, ledgers.SQL, ledgers.VALUE, "PayloadRefused")
    if not kind.startswith("connection_commit"):  # who commits on the connection itself has committed
        assert _booked(live, kind) == ([] if failed else [1])
    assert live.rows(culprit) == 1
    assert all(live.rows(run) == 1 for run in neighbours)
    # and the workers are what they were, their sessions too
    assert live.run(ledgers.adds, f"{kind}_after", 5, 2) == 11
    assert _booked(live, f"{kind}_after") == [5, 6]
    assert live.host.worker_pids() == workers, live.about()


def test_mischief_of_all_kinds_at_once(live: Live) -> None:
    """The neighbours of twenty offenders are still booked once each."""
    offenders = {kind: live.start(ledgers.mischief, kind, f"all_{kind}") for kind in ledgers.MISCHIEF}
    neighbours = [live.start(ledgers.adds, f"all{n}", n, 2) for n in range(60)]
    assert [run.result(timeout=40) for run in neighbours] == [2 * n + 1 for n in range(60)]
    assert [_booked(live, f"all{n}") for n in range(60)] == [[n, n + 1] for n in range(60)]
    ended = {kind: run.result(timeout=40) for kind, run in offenders.items() if kind != "uses_kept_transaction"}
    assert ended == {kind: ends for kind, (_, ends) in ledgers.MISCHIEF.items() if kind != "uses_kept_transaction"}


def test_local_settings_end_with_their_step(live: Live) -> None:
    """SET LOCAL is allowed, and is no longer local when a neighbour in the same transaction sees it."""
    assert live.database.sql("select who from evil.ledger where who <> 'local_search_path'") == []


def test_session_that_the_server_ends_is_no_fault_of_the_step(live: Live) -> None:
    """A failover in the middle of a step: it runs again with the same attempt, and what it wrote is there once; its neighbours' too."""
    runs = [live.start(ledgers.loses, f"lost{n}") for n in range(3)]
    neighbours = [live.start(ledgers.adds, f"beside{n}", n) for n in range(10)]
    assert [run.result(timeout=30) for run in runs] == [1, 1, 1]
    assert [run.result(timeout=30) for run in neighbours] == list(range(10))
    assert [_booked(live, f"lost{n}") for n in range(3)] == [[1]] * 3
    assert [_booked(live, f"beside{n}") for n in range(10)] == [[n] for n in range(10)]


def test_written_exactly_once_under_kill(live: Live) -> None:
    """The first promise of all, with workers killed again and again in the middle of it."""
    runs = [live.start(ledgers.adds, f"kill{n}", 0, 6) for n in range(100)]
    wanted = 0
    while live.database.one("select count(*) from supervisor.task"):
        live.kill()
        wanted += 60
        live.until(lambda: live.database.one("select count(*) from ledger where who like 'kill%%'") >= min(wanted, 600), 20)
    assert [run.result(timeout=40) for run in runs] == [15] * 100
    wrong = "select who, count(*), sum(n) from ledger where who like 'kill%%' group by 1 having count(*) <> 6 or sum(n) <> 15"
    assert live.database.sql(wrong) == []
    assert live.database.one("select count(distinct who) from ledger where who like 'kill%%'") == 100
