"""Runs that last: continued as new ones without losing a signal, a key or a waiting parent; bounded; telling how far they are."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from supervisor import AsyncClient, HistoryTooLong, InputInvalid, OutsideWorkflow, RunCancelled, RunClosed, continue_as_new, progress, set_attributes
from tests.apps import longruns as app
from tests.conformance.conftest import Live

APP = "tests.apps.longruns"
PROCS = 2


def chain(live: Live, run_id: uuid.UUID) -> list[tuple[Any, ...]]:
    """Runs of the chain from *run_id* on: id, status, key, parent."""
    found = []
    while True:
        row = live.database.sql("select run_id, status, key, parent_id, result from supervisor.runs where run_id = %s", run_id)[0]
        found.append(row[:4])
        if row[1] != "continued":
            return found
        run_id = uuid.UUID(row[4])


# ── continue_as_new ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("workflow", [app.longruns_count, app.longruns_count_def])
def test_a_run_goes_on_as_new_ones_and_its_handle_follows(live: Live, workflow: Any) -> None:
    """Each has a history of one step; who holds the first one's handle has the last one's result."""
    run = live.start(workflow, 5)
    assert run.result(timeout=20) == 15
    runs = chain(live, run.id)
    assert [status for _, status, *_ in runs] == ["continued"] * 4 + ["completed"]
    assert live.database.one("select max(n) from (select count(*) n from supervisor.step where run_id = any(%s) group by run_id) as c", [each[0] for each in runs]) == 1
    assert run.status().status == "completed" and run.status().run_id == runs[-1][0]
    assert live.client.get(run.id).id == runs[-1][0]
    assert live.database.one("select supervisor.newest(%s)", run.id) == runs[-1][0]

    async def awaited() -> Any:
        async with AsyncClient(live.database.dsn) as client:
            return await client.result(run.id, timeout=20)

    assert asyncio.run(awaited()) == 15
    with live.database.connect() as conn, conn.transaction():
        assert live.client.within(conn).result(run) == 15


def test_a_key_names_the_newest_run_of_the_chain(live: Live) -> None:
    """A start under the key finds what is live, also with the input that began it all; the successor knows its key."""
    key = uuid.uuid4().hex
    run = live.start(app.longruns_waits.options(key=key), 1)
    run.signal(app.longruns_more, 1)
    live.until(lambda: run.status().run_id != run.id, 20)
    again = live.start(app.longruns_waits.options(key=key), 1)
    assert not again.created and again.id == run.status().run_id
    run.signal(app.longruns_end, "by the old handle")
    assert again.result(timeout=20) == "by the old handle" == run.result(timeout=20)
    becomes = live.start(app.longruns_becomes.options(key=key), 5)
    assert becomes.result(timeout=20) == f"was 5, key {key}"
    assert live.effects.count("longruns_finally", 5) == 1
    named = live.database.sql("select workflow, run_id from supervisor.keys where key = %s order by 1", key)
    assert named == [("longruns_becomes", becomes.status().run_id), ("longruns_waits", again.id)]
    assert live.database.one("select priority from supervisor.runs where run_id = %s", becomes.status().run_id) == 3


def test_a_parent_waits_for_the_last_of_the_chain(live: Live) -> None:
    """Called, gathered, started and joined later; with its worker killed in between it is the same."""
    runs = [live.start(app.longruns_parent, 4) for _ in range(4)]
    live.kill()
    for run in runs:
        assert run.result(timeout=40) == [10, 7, 10]
    parents = {each[3] for kid, in live.database.sql("select run_id from supervisor.children where parent_id = %s", runs[0].id) for each in chain(live, kid)}
    assert parents == {runs[0].id}


def test_a_batch_has_one_result_for_each_that_was_started(live: Live) -> None:
    """The newest's, in the place of the first."""
    name = uuid.uuid4().hex
    batch = live.client.start_many(app.longruns_count.options(batch=name), [{"left": n} for n in (1, 3, 5)])
    assert [run.result(timeout=20) for run in batch] == [1, 6, 15]
    found = live.database.sql("select run_id, status, convert_from(result, 'UTF8')::int from supervisor.batch_results(%s)", name)
    assert found == [(run_id, "completed", total) for run_id, total in zip(batch.ids, (1, 6, 15), strict=True)]
    waits = live.start(app.longruns_waits.options(batch=f"{name}-waits"), 1)
    waits.signal(app.longruns_more, 1)
    live.until(lambda: live.database.sql("select status from supervisor.batch_results(%s)", f"{name}-waits") == [("waiting",)] and waits.status().run_id != waits.id, 20)
    waits.cancel()


def test_a_branch_may_end_the_run(live: Live) -> None:
    run = live.start(app.longruns_branch, 1)
    assert run.result(timeout=20) == 0
    assert live.database.one("select count(*) from supervisor.timer where run_id = %s", run.id) == 0


def test_no_signal_is_lost_or_given_twice_over_the_chain(live: Live) -> None:
    """Sent before, while it goes on, and to the id of a run that has gone on already, with workers killed."""
    gate = uuid.uuid4().hex
    run = live.start(app.longruns_hears, gate, [], 40)
    for n in range(20):
        run.signal(app.longruns_more, n, id=f"m{n}")
    live.effects.open(f"{gate}.begun")
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(1.5):
            live.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for n in range(20, 80):
            run.signal(app.longruns_more, n, id=f"m{n}")
        assert run.result(timeout=60) == list(range(80))
    finally:
        stop.set()
        killer.join()
    runs = chain(live, run.id)
    assert len(runs) == 40
    given = live.database.one("select count(distinct n) from supervisor.consumed where run_id = any(%s)", [each[0] for each in runs])
    assert given == 80
    with pytest.raises(RunClosed):
        run.signal(app.longruns_more, 1)


def test_cancel_reaches_the_newest(live: Live) -> None:
    run = live.start(app.longruns_waits, 1)
    run.signal(app.longruns_more, 1)
    live.until(lambda: run.status().run_id != run.id, 20)
    assert run.cancel("enough") is True
    with pytest.raises(RunCancelled):
        run.result(timeout=20)
    assert run.cancel() is False


def test_a_run_that_never_stops_going_on_can_be_cancelled(live: Live) -> None:
    """The cancellation may come while a successor is made: then that one is told."""
    runs = [live.start(app.longruns_count, 1_000_000) for _ in range(5)]
    live.until(lambda: all(run.status().run_id != run.id for run in runs), 20)
    assert all([run.cancel("enough") for run in runs])
    for run in runs:
        with pytest.raises(RunCancelled, match="enough"):
            run.result(timeout=20)


def test_a_key_that_somebody_holds_does_not_hold_up_other_runs(live: Live) -> None:
    """A start in an open transaction has the key's row; the worker goes on with everybody else, and with this run afterwards."""
    key = uuid.uuid4().hex
    run = live.start(app.longruns_waits.options(key=key), 1)
    with live.database.connect() as conn:
        with conn.transaction():
            live.client.within(conn).start(app.longruns_waits.options(key=key), 1)
            run.signal(app.longruns_more, 1)
            for _ in range(5):
                assert live.run(app.longruns_count, 1) == 1
            assert run.status().run_id == run.id
    live.until(lambda: run.status().run_id != run.id, 20)
    run.cancel()


# ── bounded history ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_history_has_an_end_and_says_so_before(live: Live) -> None:
    """Fifty are allowed: at forty the log and current() say so, the fifty-first raises where it is called."""
    assert live.run(app.longruns_limited, 50) == [50, 40]
    assert "longruns_limited has called 40 of at most 50 steps" in live.host.log()
    error = live.error(app.longruns_limited, 51)
    assert isinstance(error, HistoryTooLong) and error.max_steps == 50 and "continue_as_new" in str(error)
    assert isinstance(live.error(app.longruns_limited_def, 60), HistoryTooLong)
    assert live.run(app.longruns_catches, 100) == "continued"


# ── progress and attributes ──────────────────────────────────────────────────────────────────────────────────────


def test_a_run_says_how_far_it_is_and_by_what_it_is_found(live: Live) -> None:
    """Readable while it lives, after a kill and after its end; written once."""
    gate = uuid.uuid4().hex
    run = live.start(app.longruns_tells.options(attributes={"customer": "acme", "stage": "new"}), gate)
    live.until(lambda: live.effects.count("longruns_gate", gate, "middle"), 20)
    live.until(lambda: (run.progress() or _none()).done == 3, 20)
    said = run.progress()
    assert said is not None and said.total == 3 and said.at.tzinfo is not None
    expected = {"amount": 12.5, "count": 3, "customer": "acme", "due": "2026-12-01T08:30:00.000000Z", "paid": False, "stage": "begun", "tags": ["a", "b"]}
    assert run.attributes() == expected == live.client.attributes(str(run.id))
    live.kill()
    live.until(lambda: live.effects.count("longruns_gate", gate, "middle") == 2, 30)
    live.effects.open(f"{gate}.middle")
    live.until(lambda: (run.progress() or _none()).done == 7, 20)
    assert run.attributes() == {**{k: v for k, v in expected.items() if k != "tags"}, "stage": "paid", "paid": True, "extra": ["c"]}
    index = live.database.sql("select name, kind, text, number::float8 from supervisor.attributes where run_id = %s order by 1", run.id)
    assert index == [
        ("amount", "number", None, 12.5), ("count", "number", None, 3.0), ("customer", "text", "acme", None),
        ("due", "time", None, datetime(2026, 12, 1, 8, 30, tzinfo=UTC).timestamp()), ("extra", "list", "c", None), ("paid", "boolean", None, 1.0),
        ("stage", "text", "paid", None),
    ]  # fmt: skip
    live.effects.open(f"{gate}.end")
    assert run.result(timeout=20) == "told"
    attributes, told = live.database.sql("select attributes, progress from supervisor.runs where run_id = %s", run.id)[0]
    assert attributes["stage"] == "paid" and "tags" not in attributes and (told["done"], told["total"]) == (7, None)
    assert live.database.one("select count(*) from supervisor.attribute_set where run_id = %s", run.id) == 2
    assert live.database.one("select count(*) from supervisor.progress_note where run_id = %s", run.id) == 5
    assert live.database.one("select supervisor.progress(%s) ->> 'done'", run.id) == "7"


def _none() -> Any:
    from supervisor import Progress

    return Progress(-1, None, datetime.now(UTC))


def test_attributes_are_kept_by_the_successor(live: Live) -> None:
    run = live.start(app.longruns_keeps.options(attributes={"start": 1, "of": "both"}), True)
    assert run.result(timeout=20) == "kept"
    assert run.attributes() == {"of": "both", "stage": "last"}
    assert live.database.one("select attributes from supervisor.runs where run_id = %s", run.id) == {"of": "both", "stage": "kept"}
    found = live.client.list(filter="attribute.of = both AND status = completed")
    assert run.status().run_id in [each.run_id for each in found]


@pytest.mark.parametrize("which", ["object", "naive", "progress", "arguments"])
def test_what_can_not_be_said_is_refused_at_its_line(live: Live, which: str) -> None:
    assert isinstance(live.error(app.longruns_odd, which), InputInvalid)


def test_what_is_no_attribute_is_refused_before_a_start(live: Live) -> None:
    for bad in ({"a": {"b": 1}}, {"": 1}, {"a": [1]}, {"a": datetime(2026, 1, 1)}, {"a": "x" * 501}, {"a": 2**70}):
        with pytest.raises(InputInvalid):
            app.longruns_count.options(attributes=bad)


def test_the_words_mean_nothing_outside() -> None:
    for word in (lambda: continue_as_new(1), lambda: progress(1), lambda: set_attributes(a=1)):
        with pytest.raises(OutsideWorkflow):
            word()


def test_a_run_without_any_has_none(live: Live) -> None:
    run = live.start(app.longruns_count, 1)
    run.result(timeout=20)
    assert run.progress() is None and run.attributes() == {}
    assert json.dumps(live.database.one("select attributes from supervisor.runs where run_id = %s", run.id)) == "null"
