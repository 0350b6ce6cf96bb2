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


def kids_of(live: Live, run_id: uuid.UUID) -> list[uuid.UUID]:
    """Children that this very run has started, in the order of their starts."""
    return [kid for kid, in live.database.sql("select run_id from supervisor.child where parent_id = %s order by seq", run_id)]


def continued(conn: Any, run_id: uuid.UUID) -> uuid.UUID:
    """End a parked run of `longruns_kid` as its worker does when it goes on, in the transaction of *conn*; its successor."""
    made: uuid.UUID = conn.execute("select supervisor.new_id()").fetchone()[0]
    conn.execute("select supervisor.continue_run(%s, %s, null, null, null, '{\"times\": 0}', '0', null)", (run_id, made))
    conn.execute("delete from supervisor.task where run_id = %s", (run_id,))
    ended = "insert into supervisor.outcome (run_id, ended_at, steps, status, result) values (%s, now(), 0, 6, convert_to(to_json(%s::text)::text, 'UTF8'))"
    conn.execute(ended, (run_id, str(made)))
    return made


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


def test_a_signal_that_is_repeated_to_a_run_that_went_on_is_not_stored_again(live: Live) -> None:
    """Its answer was lost, and meanwhile the run that was given it has gone on: by any id of the chain, by its key, from SQL and beside others it is known."""
    gate, key = uuid.uuid4().hex, uuid.uuid4().hex
    live.effects.open(f"{gate}.begun")
    run = live.start(app.longruns_hears.options(key=key), gate, [], 3)
    for n in range(3):
        assert run.signal(app.longruns_more, n, id=f"{gate} {n}")
    live.until(lambda: len(chain(live, run.id)) == 2, 20)
    newest = run.status().run_id
    assert live.database.one("select count(*) from supervisor.consumed where run_id = %s", newest) <= 1
    for of in (run.id, newest):
        assert not live.client.signal(of, app.longruns_more, 0, id=f"{gate} 0")
        assert not live.database.one("select supervisor.signal(%s, 'longruns_more', '1', %s)", of, f"{gate} 1")
    live.client.signal_with_start(app.longruns_more.message(2, id=f"{gate} 2"), app.longruns_hears.options(key=key), gate, [], 3)
    together = "select array_agg(stored order by at) from supervisor.send_signals(%s, %s, %s, %s)"
    ids = [f"{gate} {n}" for n in (1, 3, 3, 2)]
    assert live.database.one(together, [newest] * 4, ["longruns_more"] * 4, [b"1", b"3", b"3", b"2"], ids) == [False, True, False, False]
    live.until(lambda: len(chain(live, run.id)) == 3, 20)
    last = run.status().run_id
    assert not live.client.signal(last, app.longruns_more, 1, id=f"{gate} 1") and not live.client.signal(last, app.longruns_more, 3, id=f"{gate} 3")
    assert live.client.signal(last, app.longruns_end, "another name", id=f"{gate} 1")
    for n in (4, 5):
        assert run.signal(app.longruns_more, n, id=f"{gate} {n}")
    assert run.result(timeout=20) == list(range(6))
    for of in (run.id, newest, last):                  # the same answer when all have ended
        assert not live.client.signal(of, app.longruns_more, 1, id=f"{gate} 1")
    with pytest.raises(RunClosed):
        run.signal(app.longruns_more, 7, id=f"{gate} 7")
    assert live.database.one("select count(*) from supervisor.message where name = 'longruns_more' and id = %s", f"{gate} 1") == 1


def test_cancel_reaches_the_newest(live: Live) -> None:
    run = live.start(app.longruns_waits, 1)
    run.signal(app.longruns_more, 1)
    live.until(lambda: run.status().run_id != run.id, 20)
    assert run.cancel("enough") is True
    with pytest.raises(RunCancelled):
        run.result(timeout=20)
    assert run.cancel() is False


@pytest.mark.parametrize("end", ["cancel", "terminate", "result"])
def test_children_of_earlier_runs_are_reached_by_the_end_of_the_chain(live: Live, end: str) -> None:
    """Their parent went on twice, and one of them itself: they are cancelled, terminated or left as they were started, and not before the chain ends."""
    run = live.start(app.longruns_bears, 2)
    live.until(lambda: len(kids_of(live, run.id)) == 3, 20)
    gone, stays, cut = kids_of(live, run.id)
    live.client.signal(gone, app.longruns_more, 1)
    live.until(lambda: live.client.status(gone).run_id != gone, 20)
    run.signal(app.longruns_more, 1)
    live.until(lambda: len(chain(live, run.id)) == 2, 20)
    live.kill()
    run.signal(app.longruns_more, 2)
    live.until(lambda: len(chain(live, run.id)) == 3 and run.status().status == "waiting", 20)
    assert [live.client.status(kid).status for kid in (gone, stays, cut)] == ["waiting"] * 3
    below = live.until(lambda: kids_of(live, live.client.status(gone).run_id), 20)
    if end == "cancel":
        assert live.client.cancel(run.id, "enough") is True
    elif end == "terminate":
        assert run.terminate("enough")
    else:
        run.signal(app.longruns_end, "the end")
    ended = {"cancel": ("cancelled", "cancelled"), "terminate": ("cancelled", "terminated"), "result": ("cancelled", "terminated")}[end]
    live.until(lambda: [live.client.status(kid).status for kid in (gone, stays, cut)] == [ended[0], "waiting", ended[1]], 20)
    live.until(lambda: [live.client.status(kid).status for kid in below] == ["cancelled"], 20)
    reason = "enough" if end == "cancel" else "its parent ended"
    newest = live.client.status(gone).run_id
    assert live.database.one("select reason from supervisor.cancellations where run_id = %s", newest) == reason
    live.client.cancel(stays)


def test_a_child_of_an_earlier_run_is_reached_while_the_newest_has_not_begun(live: Live) -> None:
    """None of its code runs: it has ended when the call returns, and its children as its end says."""
    run = live.start(app.longruns_bears, 2, 3600)
    live.until(lambda: len(kids_of(live, run.id)) == 3, 20)
    run.signal(app.longruns_more, 1)
    live.until(lambda: len(chain(live, run.id)) == 2, 20)
    assert run.cancel() and run.status().status == "cancelled"
    assert live.database.one("select steps from supervisor.outcome where run_id = %s", run.status().run_id) == 0
    gone, stays, cut = kids_of(live, run.id)
    live.until(lambda: [live.client.status(kid).status for kid in (gone, stays, cut)] == ["cancelled", "waiting", "terminated"], 20)
    live.client.cancel(stays)


def test_a_child_that_a_branch_had_called_is_cancelled_when_another_goes_on(live: Live) -> None:
    """Nobody waits for it any more; one that was started by itself is the successor's."""
    run = live.start(app.longruns_parts, True)
    live.until(lambda: len(kids_of(live, run.id)) == 2, 20)
    run.signal(app.longruns_more, 1)
    called, started = kids_of(live, run.id)
    live.until(lambda: [live.client.status(kid).status for kid in (called, started)] == ["cancelled", "waiting"], 20)
    run.signal(app.longruns_end, "the end")
    live.until(lambda: live.client.status(started).status == "cancelled", 20)


def test_a_child_that_is_to_be_terminated_is_so_though_it_goes_on_meanwhile(live: Live) -> None:
    """Its worker is told once it has made the successor: that one is whom it is about."""
    run = live.start(app.longruns_bears, 2)
    live.until(lambda: len(kids_of(live, run.id)) == 3, 20)
    cut = kids_of(live, run.id)[2]
    live.client.signal(cut, app.longruns_more, 1)
    live.until(lambda: live.client.status(cut).run_id != cut, 20)
    newest = live.client.status(cut).run_id
    live.until(lambda: live.client.status(newest).status == "waiting", 20)
    with live.database.connect() as conn, conn.transaction():   # as a worker that has it and is marked, at the moment at which it goes on
        conn.execute("update supervisor.task set cancel_to = 1 where run_id = %s", (newest,))
        conn.execute("insert into supervisor.cancellation (run_id, how, actor, reason) values (%s, 4, 'run', 'its parent ended')", (newest,))
        other = continued(conn, newest)
    live.until(lambda: live.client.status(other).status == "terminated", 20)
    run.cancel()


def test_a_child_that_goes_on_while_its_parent_is_cancelled_is_cancelled_with_it(live: Live) -> None:
    """The cancellation waits for the child's row, and finds that it went on: the successor is whom it is about."""
    run = live.start(app.longruns_bears, 2)
    live.until(lambda: len(kids_of(live, run.id)) == 3, 20)
    kid = kids_of(live, run.id)[0]
    live.until(lambda: run.status().status == "waiting" == live.client.status(kid).status, 20)
    with live.database.connect() as conn:
        with conn.transaction():
            other = continued(conn, kid)
            asks = threading.Thread(target=lambda: run.cancel("enough"))
            asks.start()
            live.until(lambda: live.database.one("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"), 20)
        asks.join(20)
    live.until(lambda: live.client.status(other).status == "cancelled", 20)
    assert live.database.one("select reason from supervisor.cancellations where run_id = %s", other) == "enough"


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
