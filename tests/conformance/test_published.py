"""What runs publish: readable while they live and after, durable with what led to it, and written once."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import psycopg
import pytest

from supervisor import AsyncClient, InputInvalid, OutsideWorkflow, PayloadRefused, RunFailed, RunUnknown, publish
from tests.apps import published as app
from tests.conformance.conftest import Live

APP = "tests.apps.published"
PROCS = 2


def rows(live: Live, run: Any) -> list[tuple[Any, ...]]:
    """Every row of the run with the transaction that wrote it: a row that is written again has another."""
    return live.database.sql("select key, pos, convert_from(value, 'UTF8'), xmin::text from supervisor.publication where run_id = %s order by pos, key", run.id)


def has_begun(live: Live, run: Any) -> bool:
    return bool(live.database.one("select count(*) from supervisor.publication where run_id = %s", run.id))


# ── readable ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_run_publishes_is_read_while_it_lives_and_after(live: Live) -> None:
    """In Python with a type or without, in SQL by the view and by the function."""
    gate = uuid.uuid4().hex
    run = live.start(app.tells_state, gate)
    live.until(lambda: run.published("standing") == {"done": 3, "of": 3}, 20)
    assert run.published("standing", app.Standing) == app.Standing(3, 3)
    assert run.published("stage") == "begun"
    assert run.published("nothing of that name") is None
    live.effects.open(f"{gate}.middle")
    live.until(lambda: run.published("stage") == "last", 20)
    live.effects.open(f"{gate}.end")
    assert run.result(timeout=20) == "returned"
    assert live.client.published(run) == {"stage": "over", "standing": {"done": 3, "of": 3}} == live.client.published(str(run.id))
    view = live.database.sql("select key, value, published_at is not null from supervisor.published where run_id = %s order by key", run.id)
    assert view == [("stage", "over", True), ("standing", {"done": 3, "of": 3}, True)]
    assert live.database.one("select supervisor.published(%s, 'standing') -> 'of'", run.id) == 3
    assert live.database.one("select supervisor.published(%s, 'nothing of that name')", run.id) is None


def test_a_def_workflow_publishes_by_the_same_word(live: Live) -> None:
    gate = uuid.uuid4().hex
    run = live.start(app.tells_def, gate)
    live.until(lambda: run.published("stage") == {"one": [1, None, "x"]}, 20)
    live.effects.open(f"{gate}.middle")
    assert run.result(timeout=20) == "returned"
    assert run.published("stage") == "over"


def test_an_async_client_and_a_transaction_read_it_too(live: Live) -> None:
    run = live.start(app.tells_child, 7)
    assert run.result(timeout=20) == 7

    async def ask() -> tuple[Any, Any, Any]:
        async with AsyncClient(live.database.dsn) as client:
            handle = await client.get(run.id)
            return await handle.published("value"), await handle.published("value", int), await client.published(run.id)

    assert asyncio.run(ask()) == (7, 7, {"value": 7})
    with psycopg.connect(live.database.dsn) as conn:
        assert live.client.within(conn).published(run) == {"value": 7}


def test_a_run_that_is_not_there_is_an_error_and_not_an_empty_state(live: Live) -> None:
    """Who mistypes an id must not believe that the run has published nothing."""
    nobody = uuid.uuid4()
    with pytest.raises(RunUnknown):
        live.client.published(nobody)
    with pytest.raises(psycopg.errors.DatabaseError, match="there is no run") as refused:
        live.database.one("select supervisor.published(%s, 'x')", nobody)
    assert refused.value.sqlstate == "SV006"
    silent = live.start(app.never_tells, 1)
    assert silent.result(timeout=20) == 1
    assert live.client.published(silent) == {} and silent.published("x") is None
    with pytest.raises(InputInvalid):
        silent.published("")


def test_a_client_may_read_what_runs_publish_and_a_viewer_the_view(live: Live) -> None:
    """Neither has a right on the table."""
    run = live.start(app.tells_child, 3)
    run.result(timeout=20)
    asked = {"client": ("select supervisor.published(%s, 'value')", 3), "viewer": ("select value from supervisor.published where run_id = %s", 3)}
    for role, (query, value) in asked.items():
        with live.database.connect() as conn, conn.transaction(force_rollback=True):
            conn.execute(f"set local role supervisor_{role}")
            assert conn.execute(query, (run.id,)).fetchone() == (value,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute("select from supervisor.publication")


# ── with what led to it, and once ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("workflow", [app.tells_state, app.tells_def], ids=["async", "def"])
def test_a_replay_writes_nothing_again(live: Live, workflow: Any) -> None:
    """The same rows by the same transactions: nothing is written twice, however often a run is brought back."""
    gate = uuid.uuid4().hex
    run = live.start(workflow, gate)
    live.until(lambda: rows(live, run) and rows(live, run)[-1][1] == live.rows(run), 20, "what precedes the gate is durable")
    before = rows(live, run)
    for _ in range(2):
        live.kill()
    live.effects.open(f"{gate}.middle")
    live.effects.open(f"{gate}.end")
    assert run.result(timeout=40) == "returned"
    assert rows(live, run)[: len(before)] == before
    assert [value for key, _, value, _ in rows(live, run) if key == "stage"][-1] == '"over"'


@pytest.mark.parametrize("what", ["nothing", "step", "tx", "timer", "child", "start", "branches", "first", "signal"])
def test_what_was_lost_with_the_worker_is_published_by_the_replay(live: Live, what: str) -> None:
    """A worker may die between the commit of a delivery (of a transactional step, a timer) and the batch after it, which has what
    the run then published. That moment is made here by taking the row away: it comes back, and what came before does not."""
    gate = uuid.uuid4().hex
    run = live.start(app.tells_after, gate, what)
    if what == "signal":
        run.signal(app.heard, "go on")
    live.until(lambda: run.published("after") == what, 20)
    live.database.sql("delete from supervisor.publication where run_id = %s", run.id)
    live.database.sql("delete from supervisor.step where run_id = %s and status = 3", run.id)  # that a loser was cancelled stands in the same batch
    live.kill()
    live.until(lambda: run.published("after") == what, 40)
    live.effects.open(f"{gate}.middle")
    assert run.result(timeout=40) == what
    assert [(key, value) for key, _, value, _ in rows(live, run)] == [("after", json.dumps(what))]


def test_what_was_published_before_a_recorded_delivery_is_not_looked_at(live: Live) -> None:
    """A replay costs one row per key of what followed the last delivery, not one of all that a run ever published."""
    gate = uuid.uuid4().hex
    run = live.start(app.tells_state, gate)
    live.until(lambda: run.published("standing") == {"done": 3, "of": 3}, 20)
    live.database.sql("delete from supervisor.publication where run_id = %s", run.id)
    live.kill()
    live.until(lambda: has_begun(live, run), 40)
    assert [(key, pos) for key, pos, _, _ in rows(live, run)] == [("standing", 3)]
    live.effects.open(f"{gate}.middle")
    live.effects.open(f"{gate}.end")
    assert run.result(timeout=40) == "returned"


def test_branches_publish_in_the_order_in_which_they_went_on(live: Live) -> None:
    """The last value is the one of the branch that went on last, also after a replay of half of it."""
    gate = uuid.uuid4().hex
    run = live.start(app.tells_in_branches, gate)
    live.until(lambda: run.published("last") == "c", 20)
    live.effects.open(f"{gate}.b")
    live.until(lambda: run.published("last") == "b over", 20)
    live.kill()
    live.effects.open(f"{gate}.a")
    live.until(lambda: run.published("last") == "a over", 40)
    live.effects.open(f"{gate}.c")
    assert run.result(timeout=40) == ["a", "b", "c"]
    assert live.client.published(run) == {"last": "c over", "a": "over", "b": "over", "c": "over"}


def test_of_what_one_batch_would_write_the_last_value_of_a_key_is_written(live: Live) -> None:
    """A loop that publishes its counter between two steps costs one row."""
    run = live.start(app.tells_much, 100_000)
    assert run.result(timeout=60) == 100_000
    assert rows(live, run)[0][:3] == ("n", 0, "99999") and len(rows(live, run)) == 1


def test_a_run_that_fails_has_published_what_it_said_before(live: Live) -> None:
    run = live.start(app.tells_and_fails)
    with pytest.raises(RunFailed):
        run.result(timeout=20)
    assert run.published("stage") == "just before"


def test_a_thousand_values_of_one_key_are_found_by_their_last(live: Live) -> None:
    """The last value is one step in an index, however often the key was published before."""
    run = live.start(app.tells_every_step, 1000)
    assert run.result(timeout=60) == 1000
    assert len(rows(live, run)) > 1 and run.published("n") == 999
    assert live.client.published(run) == {"n": 999}
    plan = live.database.sql(
        "explain (analyze, format json) select value from supervisor.publication where run_id = %s and key = 'n' order by pos desc limit 1", run.id
    )[0][0][0]["Plan"]
    scan = plan["Plans"][0]
    assert scan["Node Type"] == "Index Scan" and scan["Actual Rows"] == 1, plan


def test_a_lost_session_loses_no_publication_and_writes_none_twice(live: Live) -> None:
    """A batch whose answer was lost is sent again, with what it had published: each row is what the run had been given by then."""
    runs = [live.start(app.tells_every_step, 3000) for _ in range(3)]
    for _ in range(5):
        seen = sum(map(live.rows, runs))
        live.until(lambda seen=seen: sum(map(live.rows, runs)) > seen or all(run.status().ended_at for run in runs), 30)
        live.database.sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgsupervisor: worker%' and datname = current_database()")
    for run in runs:
        assert run.result(timeout=60) == 3000
        assert run.published("n") == 2999
        assert all(int(value) == pos - 1 for _, pos, value, _ in rows(live, run))


# ── refused ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("nan", PayloadRefused, "publish('x')['a'][0]"), ("object", PayloadRefused, "publish('x')"), ("big", PayloadRefused, "2,097,152"),
        ("key", InputInvalid, "1 to 200"), ("long key", InputInvalid, "1 to 200"), ("nul", InputInvalid, "NUL"), ("step", OutsideWorkflow, "publish"),
    ],
)  # fmt: skip
def test_what_can_not_be_published_is_an_error_at_its_line(live: Live, what: str, kind: type[Exception], words: str) -> None:
    """The run fails where it said so; nothing of it reaches the database."""
    error = live.error(app.tells_wrongly, what)
    assert isinstance(error, kind) and words in str(error), error


def test_outside_of_a_run_it_is_an_error() -> None:
    with pytest.raises(OutsideWorkflow):
        publish("x", 1)
    with pytest.raises(OutsideWorkflow):
        asyncio.run(app.not_in_a_run())


def test_who_does_not_publish_pays_nothing(live: Live) -> None:
    """Nobody can as much as look at what was ever published, and runs that do not publish are executed and brought back."""
    gate = uuid.uuid4().hex
    with live.database.connect() as conn, conn.transaction():
        for (partition,) in conn.execute("select inhrelid::regclass::text from pg_inherits where inhparent = 'supervisor.publication'::regclass"):
            conn.execute(f"lock table {partition} in access exclusive mode")
        silent = live.start(app.never_tells, 20)
        waiting = live.start(app.waits_silently, gate)
        assert silent.result(timeout=20) == 20
        live.until(lambda: live.rows(waiting) == 1, 20)
        live.kill()
        live.effects.open(f"{gate}.middle")
        assert waiting.result(timeout=40) == "middle"
