"""No wake-up is lost: thousands of signals meet runs that are just leaving memory, and the sweep that would find one finds none.

PGSUPERVISOR_MESSAGES=100000 sends so many, half of them on each build of the loop.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
import pytest

from supervisor.db.statements import Sql
from supervisor.leader.reap import FIRST
from tests.apps import restless
from tests.conformance.conftest import Live
from tests.conformance.test_signals import parked

APP = "tests.apps.restless"
PROCS = 2
ALL = os.environ.get("PGSUPERVISOR_TEST_ALL")
MESSAGES = int(os.environ.get("PGSUPERVISOR_MESSAGES", "100000" if ALL else "10000")) // 2  # on each build
EACH = 50  # messages of one run
SENDERS = 4  # pairs of them
KILL_EVERY_S = 1.5
SWEPT = "runs woken that had not heard their signals"


@dataclass
class Sender:
    """Sends some runs one half of their messages in order, at random moments, some in transactions with others, some of them rolled back."""

    dsn: str
    seed: int
    name: str
    runs: list[UUID]
    failed: BaseException | None = None

    def __call__(self) -> None:
        draw, left = random.Random(self.seed), {run: 0 if self.name == "pings" else 1 for run in self.runs}
        try:
            with psycopg.connect(self.dsn) as conn:
                while left:
                    some = sorted(draw.sample(sorted(left), min(len(left), draw.choice((1, 1, 1, 3)))))  # in one order: two senders never wait in a circle
                    for run in some:
                        conn.execute("select supervisor.signal(%s, %s, to_jsonb(%s::int), notify => %s)", (run, self.name, left[run], draw.random() < 0.3))
                    if draw.random() < 0.1:
                        conn.rollback()
                        continue
                    conn.commit()
                    left = {run: n + 2 * (run in some) for run, n in left.items() if n + 2 * (run in some) < EACH}
                    if draw.random() < 0.2:
                        time.sleep(draw.random() * 0.01)
        except BaseException as error:  # noqa: BLE001 - told by the test
            self.failed = error


@dataclass
class Sweep:
    """The sweep's own question, asked again and again: which runs are parked, and which of them with a message that they were not given. Any is a lost wake-up, even if the next message wakes its run."""

    dsn: str
    over: threading.Event = field(default_factory=threading.Event)
    looks: int = 0
    parked: int = 0
    hits: list[UUID] = field(default_factory=list)

    def __call__(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            while not self.over.wait(0.02):
                found = conn.execute(Sql().get("parked_on_signals"), (FIRST, 10_000)).fetchall()
                self.looks += 1
                self.parked += len(found)
                self.hits += [run for run, unread in found if unread]


def test_no_wake_up_is_lost(live: Live) -> None:
    """A run that parks sees the message, or the message sees it parked; each is given once, in order. Two senders for each run, and workers that die meanwhile."""
    half = MESSAGES // EACH // 2
    batches = [live.client.start_many(what, [EACH] * half) for what in (restless.hears_in_turns, restless.lingers_in_turns)]
    ids = [run_id for batch in batches for run_id in batch.ids]
    senders = [Sender(live.database.dsn, 2 * part + second, name, ids[part::SENDERS]) for part in range(SENDERS) for second, name in enumerate(("pings", "pongs"))]
    sweep, kills, began = Sweep(live.database.dsn), 0, time.monotonic()
    callers: list[Callable[[], None]] = [*senders, sweep]
    threads = [threading.Thread(target=each) for each in callers]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads[:-1]):
            live.kill()
            kills += 1
            threads[kills % len(senders)].join(KILL_EVERY_S)
        failed = [sender.failed for sender in senders if sender.failed]
        assert not failed, failed
        took_s = time.monotonic() - began
        results = [run.result(timeout=120) for batch in batches for run in batch]
    finally:
        sweep.over.set()
        threads[-1].join()
    assert all(result == list(range(EACH)) for result in results)
    counts = "select count(*), count(distinct (run_id, n)) from supervisor.consumed where run_id = any(%s)"
    assert live.database.sql(counts, ids) == [(len(ids) * EACH, len(ids) * EACH)]
    # then the sweep, asked all the time, never had anything to do
    assert not sweep.hits, f"{len(sweep.hits)} wake-ups were lost in {sweep.looks} looks: {sweep.hits[:5]}"
    assert SWEPT not in live.host.log()
    assert sweep.looks > 20 and sweep.parked > len(ids) and kills
    print(f"{len(ids) * EACH} messages in {took_s:.1f} s, {kills} kills, {sweep.looks} sweeps of {sweep.parked} parked runs: 0 lost wake-ups")


def test_parkings_did_happen(live: Live) -> None:
    """What the test above is about: a run of this app is out of memory as soon as it waits."""
    run = live.start(restless.hears, 3)
    for n in range(3):
        parked(live, run)
        run.signal(restless.pings, n)
        live.until(lambda n=n: live.rows(run) == n + 1, 20)  # type: ignore[misc]
    assert run.result(timeout=20) == [0, 1, 2]


def test_a_message_that_woke_nobody_is_found_by_the_sweep(live: Live) -> None:
    """Should a wake-up ever be lost: here whoever sent it did not lock, nor wake."""
    run = live.start(restless.hears, 1)
    parked(live, run)
    database: Any = live.database
    sweep = Sql().get("parked_on_signals")
    assert (run.id, False) in database.sql(sweep, FIRST, 10_000)
    database.sql("insert into supervisor.message (run_id, kind, n, name, payload) values (%s, 1, nextval('supervisor.message_n'), 'pings', '7')", run.id)
    assert (run.id, True) in database.sql(sweep, FIRST, 10_000)
    assert run.result(timeout=200) == [7]
    assert f"1 {SWEPT}" in live.host.log()


@pytest.mark.parametrize("other", ["rolled back", "committed"])
def test_who_parks_waits_for_who_sends(live: Live, other: str) -> None:
    """The interleaving itself: a sender has the run's row, and has stored its message, when the run is to leave memory."""
    swept = live.host.log().count(SWEPT)
    run = live.start(restless.hears.options(delay=0.5), 2)
    run.signal(restless.pings, 1)
    with psycopg.connect(live.database.dsn) as sender:
        live.until(lambda: live.database.sql("select 1 from supervisor.task where run_id = %s and owner is not null", run.id) or live.rows(run), 20)
        sender.execute("select supervisor.signal(%s, 'pings', '2')", (run.id,))
        # it can't be parked now: whoever has it waits, or it was parked before and was woken by this
        live.until(lambda: live.rows(run) == 1 or live.database.sql("select 1 from supervisor.task where run_id = %s and owner is null", run.id), 20)
        if other == "committed":
            sender.commit()
        else:
            sender.rollback()
            run.signal(restless.pings, 2)
    assert run.result(timeout=20) == [1, 2]
    assert live.host.log().count(SWEPT) == swept
