"""Nobody waits for ever: urgent runs overtake a backlog, retried ones get their turn, and a pinned snapshot slows no claim."""

from __future__ import annotations

import threading

from supervisor import Client
from tests.conformance.claimer import Claimer, insert_runs, make_catalogue
from tests.faults import apps_plain
from tests.harness import Database, HostFactory, eventually

MILLION = 1_000_000


def test_a_run_of_priority_0_after_a_million_of_priority_5_is_claimed_soon(database: Database, hosts: HostFactory) -> None:
    """A million rows are older and ready; the urgent one waits for what the worker holds already, not for them."""
    with hosts("tests.faults.apps_plain"):
        pass
    insert_runs(database, MILLION, "default", apps_plain.one_step.name, with_run_rows=True)
    with Client(database.dsn) as client, hosts("tests.faults.apps_plain"):
        # given a worker in the midst of the backlog
        eventually(lambda: database.one("select exists (select from supervisor.outcome offset 2000)"), 30)
        # when an urgent run is started
        run = client.start(apps_plain.one_step.options(priority=0), 41)
        # then it ends soon, while nearly all of the others are still there
        assert run.result(timeout=10) == 42
        (began, ended), *_ = database.sql(
            "select r.created_at, o.ended_at from supervisor.run r join supervisor.outcome o using (run_id) where r.run_id = %s", run.id
        )
        overtaken = database.one("select count(*) from supervisor.task where owner is null")
    before = database.one("select count(*) from supervisor.outcome where ended_at between %s and %s", began, ended)
    print({"ended_between_start_and_end": before, "overtaken": overtaken})
    assert overtaken > MILLION / 2
    assert before <= 20_000, "more ended before it than a worker may hold, twice"  # 5,000 in memory; two claims were under way


def test_one_in_ten_retried_under_a_steady_backlog_and_none_starves(database: Database, hosts: HostFactory, build: str) -> None:
    """Retried runs leave memory and queue up again behind a backlog that never ends; each gets its turn while it lasts."""
    watched, full = 400, 3000
    ready = "select count(*) from supervisor.task where owner is null and ready_at <= clock_timestamp()"
    lowest = full
    stop, filled = threading.Event(), threading.Event()

    def feed() -> None:
        nonlocal lowest
        with Client(database.dsn) as client, database.connect() as conn:
            while not stop.is_set():
                (there,) = conn.execute(ready).fetchone()  # type: ignore[misc]
                lowest = min(lowest, there) if filled.is_set() else full
                if there < full:
                    client.start_many(apps_plain.retried, range(full))
                else:
                    filled.set()

    feeder = threading.Thread(target=feed, daemon=True)
    with hosts("tests.faults.apps_plain", build=build, args=("--in-flight", "200")), Client(database.dsn) as client:
        feeder.start()
        try:
            assert filled.wait(20)
            some = client.start_many(apps_plain.retried, range(watched))
            left = "select count(*) from supervisor.task where run_id = any(%s)"
            eventually(
                lambda: database.one(left, some.ids) == 0, 40, f"all of {watched} runs ended, though a tenth of them had failed twice"
            )
        finally:
            stop.set()
            feeder.join(20)
    tries = database.one("select count(*) from supervisor.attempt where run_id = any(%s)", some.ids)
    print({"lowest_backlog": lowest, "tries": tries, "ended": database.one("select count(*) from supervisor.outcome")})
    assert tries == 2 * watched / 10
    assert lowest > 0, "there was a moment without a backlog to starve behind"


def test_claims_stay_flat_while_somebody_pins_xmin(database: Database) -> None:
    """A million claims leave as many dead entries before the queue's head, and no vacuum may remove them; the mark steps over them.

    Counted in pages that finding and locking 2,000 runs touches, at the beginning and at the end. A claim without the
    mark is the control: it walks over all that is dead.
    """
    rounds, batch = MILLION // 2000, 2000
    make_catalogue(database, "q")
    claimer = Claimer(database, "q")
    with database.connect() as pinning:
        pinning.execute("begin isolation level repeatable read")
        pinning.execute("select count(*) from supervisor.task")
        insert_runs(database, rounds * batch + 20 * batch, "q", "q")
        pages = []
        for turn in range(rounds):
            if turn % 40 == 10:
                pages.append(claimer.pages_of_a_claim(batch))
            claimed = claimer.claim(batch)
            assert len(claimed) == batch
            claimer.finish(claimed)
        at_the_end = claimer.pages_of_a_claim(batch)
        claimer.look_behind = True
        without_mark = claimer.pages_of_a_claim(batch)
        pinning.execute("rollback")
    claimer.close()
    print({"pages": pages, "at_the_end": at_the_end, "without_mark": without_mark})
    assert at_the_end <= 1.5 * pages[0], (
        f"a claim of {batch} touches {at_the_end} pages after {rounds * batch} claims, {pages[0]} at the beginning"
    )
    assert max(pages) <= 1.5 * pages[0]
    assert without_mark > at_the_end + 5000, "nothing dead lay before the head: the test has shown nothing"
