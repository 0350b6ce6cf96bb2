"""A run is taken away from a worker that lives: it writes nothing more of it, and its other runs lose nothing."""

from __future__ import annotations

import random
from typing import Any

from tests.apps import taken
from tests.conformance.conftest import Live

APP = "tests.apps.taken"
SETUP = ("create table kept (word text not null)",)
TAKE = "select supervisor.take_away(%s::uuid[])"


def standing(live: Live, *words: str) -> None:
    live.until(lambda: all(live.effects.count("standing", word) for word in words), 20, f"steps of {words} to begin")


def epoch(live: Live) -> int:
    """Of the only worker that lives."""
    found: int = live.database.one("select epoch from supervisor.worker where dead_at is null")
    return found


def test_run_taken_from_a_live_owner_is_begun_again_and_its_neighbours_are_not(live: Live) -> None:
    """Whoever terminates or replaces a run must not cost the others of that worker anything."""
    # given a worker inside of steps of five runs, in threads and in tasks
    words = [f"n{at}" for at in range(4)]
    taken_run = live.start(taken.threaded, "taken", "gate")
    neighbours = [live.start(taken.threaded if at % 2 else taken.tasked, word, "gate") for at, word in enumerate(words)]
    standing(live, "taken", *words)
    pids, before = live.host.worker_pids(), epoch(live)
    # when one of them is taken away
    assert live.database.sql(TAKE, [taken_run.id]) == [(taken_run.id,)]
    live.until(lambda: live.effects.count("standing", "taken") == 2, 20, "the run to begin again")
    live.effects.open("gate")
    # then the second execution's result counts, and the neighbours were executed once
    assert taken_run.result(timeout=20) == 2
    assert [run.result(timeout=20) for run in neighbours] == [1, 1, 1, 1]
    live.until(lambda: live.effects.count("left", "taken", 1) == 1, 20, "the first execution to end, for nobody")
    assert live.effects.count("afterwards", "taken") == 1
    assert live.rows(taken_run) == 2
    assert (live.host.worker_pids(), epoch(live)) == (pids, before + 1), live.about()


def test_transaction_of_a_run_that_was_taken_away_is_rolled_back(live: Live) -> None:
    """The second session is fenced by the same epoch: what a step wrote for a run that is no longer this worker's must not commit."""
    run = live.start(taken.transacted, "moved", "first")
    standing(live, "moved")
    neighbour = live.start(taken.transacted, "stayed", "second")
    # parked, so that nobody executes it while the old transaction tries to commit
    parked = live.database.sql("select supervisor.take_away(%s::uuid[], 'infinity', 7::int2, 'by a test')", [run.id])
    assert parked == [(run.id,)]
    live.effects.open("first")
    standing(live, "stayed")
    assert live.database.sql("select word from kept") == [] and live.rows(run) == 0
    # then it is executed anew when it may go on
    live.database.sql("update supervisor.task set ready_at = clock_timestamp(), wait_kind = 1 where run_id = %s and owner is null", run.id)
    live.effects.open("second")
    assert (run.result(timeout=20), neighbour.result(timeout=20)) == (2, 1)
    assert live.database.sql("select word, count(*) from kept group by 1 order by 1") == [("moved", 1), ("stayed", 1)]


def test_run_that_waits_is_not_taken_away(live: Live) -> None:
    """Only what somebody has claimed can be taken; the answer says what was."""
    before = epoch(live)
    run = live.start(taken.threaded, "ended", "open")
    live.effects.open("open")
    run.result(timeout=20)
    assert live.database.sql(TAKE, [run.id]) == []
    assert epoch(live) == before


def test_runs_taken_away_at_random_under_load(live: Live) -> None:
    """Refusals in the middle of full batches: every run ends once, and only those that were taken are executed again.

    But for the code of transactional steps, which runs again where the transaction was shared with a step that was taken.
    """
    chance = random.Random(7)
    runs: dict[Any, str] = {}
    taken_ids: set[Any] = set()
    kinds = (taken.tasked, taken.threaded, taken.transacted)
    mine = "select run_id from supervisor.task where owner is not null"
    for wave in range(25):
        for at in range(10):
            word = f"w{wave}.{at}"
            runs[live.start(kinds[at % 3], word, f"wave{wave}").id] = word
        claimed = [id for (id,) in live.until(lambda: live.database.sql(mine), 20, "a claim")]
        taken_ids.update(id for (id,) in live.database.sql(TAKE, chance.sample(claimed, min(2, len(claimed)))))
        live.effects.open(f"wave{wave}")  # and the next wave comes while this one ends
    live.until(lambda: live.database.one("select count(*) from supervisor.outcome where run_id = any(%s)", list(runs)) == len(runs), 60)

    def transactional(word: str) -> bool:
        return int(word.rpartition(".")[2]) % 3 == 2

    assert taken_ids, "nothing was taken: the test has shown nothing"
    assert live.database.one("select count(*) from supervisor.outcome where run_id = any(%s) and status <> 1", list(runs)) == 0
    for id, word in runs.items():
        times = live.effects.count("standing", word)
        assert times == 1 or id in taken_ids or transactional(word), f"{word} began {times} times and was not taken away"
        assert live.rows(id) == 2
    booked = dict(live.database.sql("select word, count(*) from kept where word like 'w%%' group by 1"))
    assert booked == {word: 1 for word in runs.values() if transactional(word)}
    assert len(live.host.worker_pids()) == 1 and live.host.log().count("ended with exit code") == 0, live.about()
