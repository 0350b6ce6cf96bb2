"""No wake-up is lost: thousands of signals meet runs that are just leaving memory, and the sweep that would find one finds none."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.apps import restless
from tests.conformance.conftest import Live
from tests.conformance.test_signals import parked

APP = "tests.apps.restless"
PROCS = 2
MESSAGES = 50_000 if os.environ.get("PGSUPERVISOR_TEST_ALL") else 5_000  # on each build
EACH = 50  # messages of one run
SENDERS = 4
SWEPT = "runs woken that had not heard their signals"


def send(dsn: str, seed: int, runs: list[UUID], failed: list[BaseException]) -> None:
    """Each run is sent its messages in order, at random moments, some in transactions with others, some of them rolled back."""
    draw = random.Random(seed)
    left = {run: 0 for run in runs}
    try:
        with psycopg.connect(dsn) as conn:
            while left:
                some = sorted(draw.sample(sorted(left), min(len(left), draw.choice((1, 1, 1, 3)))))  # in one order: two senders never wait in a circle
                for run in some:
                    name = "pings" if left[run] % 2 == 0 else "pongs"
                    conn.execute("select supervisor.signal(%s, %s, to_jsonb(%s::int), notify => %s)", (run, name, left[run], draw.random() < 0.3))
                if draw.random() < 0.1:
                    conn.rollback()
                    continue
                conn.commit()
                for run in some:
                    left[run] += 1
                    if left[run] == EACH:
                        del left[run]
                if draw.random() < 0.2:
                    time.sleep(draw.random() * 0.01)
    except BaseException as error:  # noqa: BLE001 - told by the test
        failed.append(error)


def test_no_wake_up_is_lost(live: Live) -> None:
    """A run that parks sees the message, or the message sees it parked; each is given once, in order."""
    runs = live.client.start_many(restless.hears_in_turns, [EACH] * (MESSAGES // EACH))
    failed: list[BaseException] = []
    threads = [threading.Thread(target=send, args=(live.database.dsn, seed, runs.ids[seed::SENDERS], failed)) for seed in range(SENDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    for run in runs:
        assert run.result(timeout=120) == list(range(EACH))
    counts = "select count(*), count(distinct (run_id, n)) from supervisor.consumed where run_id = any(%s)"
    assert live.database.sql(counts, runs.ids) == [(len(runs) * EACH, len(runs) * EACH)]
    assert SWEPT not in live.host.log()


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
    database.sql("insert into supervisor.message (run_id, kind, n, name, payload) values (%s, 1, nextval('supervisor.message_n'), 'pings', '7')", run.id)
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
