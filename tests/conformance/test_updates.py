"""Updates: judged before they leave a trace, accepted durably, answered once, whatever dies; never a hang."""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from supervisor import (
    AsyncClient,
    Client,
    DefinitionError,
    InputInvalid,
    OutsideWorkflow,
    QueryReadOnly,
    Run,
    RunClosed,
    RunUnknown,
    Update,
    UpdateFailed,
    UpdateRejected,
    UpdateUnfinished,
    UpdateUnknown,
    handlers_finished,
)
from tests.apps import updated
from tests.apps.updated import Basket, Item, add, clear, count
from tests.conformance.conftest import Live

APP = "tests.apps.updated"
PROCS = 2
ALL = "select (select count(*) from supervisor.step where run_id = r), (select count(*) from supervisor.update_accepted where run_id = r), " \
    "(select count(*) from supervisor.update_done where run_id = r) from (select %s::uuid) as x (r)"  # fmt: skip


def history(live: Live, run: Run[Any]) -> tuple[Any, ...]:
    """How many rows the history has of it."""
    return live.database.sql(ALL, run.id)[0]


def kinds(live: Live, run: Run[Any]) -> list[tuple[str, str]]:
    return live.database.sql("select kind, name from supervisor.steps where run_id = %s order by pos", run.id)  # type: ignore[return-value]


def stages(live: Live, run: Run[Any]) -> list[str]:
    return [stage for (stage,) in live.database.sql("select stage from supervisor.updates where run_id = %s order by n", run.id)]


def parked(live: Live, run: Run[Any]) -> None:
    live.until(lambda: run.status().status == "waiting" and live.database.sql("select from supervisor.task where run_id = %s and owner is null", run.id), 20)


# ── answered ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("workflow", [updated.shop, updated.shop_def], ids=["async", "def"])
def test_an_update_is_answered_by_its_handler(live: Live, workflow: Any) -> None:
    """With the types of both sides, by steps that are durable; what it changed is the run's."""
    run = live.start(workflow)
    assert run.update(add, Item("tea")) == Basket([Item("tea")])
    assert run.update("add", {"name": "milk", "count": 2}) == {"items": [{"name": "tea", "count": 1}, {"name": "milk", "count": 2}]}
    assert run.update(count) == 2
    run.signal(updated.leave, "finish")
    assert run.result(timeout=20) == ["tea", "milk"]
    assert stages(live, run) == ["completed"] * 3
    accepted = "select name, payload, result, accepted_at <= ended_at and sent_at <= ended_at from supervisor.updates where run_id = %s order by n"
    tea = {"name": "tea", "count": 1}
    assert live.database.sql(accepted, run.id)[0] == ("add", tea, {"items": [tea]}, True)


def test_a_rejection_leaves_no_trace(live: Live) -> None:
    """Not a row of the history, no position; who asked is told why by the validator's own error, and who repeats it is told the same."""
    run = live.start(updated.shop, 1)
    run.update(add, Item("tea"))
    before, executed = history(live, run), live.effects.count("updated_step")
    with pytest.raises(UpdateRejected) as caught:
        run.update(add, Item("milk"), id="u1")
    assert isinstance(caught.value.__cause__, updated.Full) and caught.value.__cause__.most == 1
    run.update(clear, id="makes room")
    with pytest.raises(UpdateRejected):
        run.update(add, Item("milk"), id="u1")
    with pytest.raises(UpdateRejected, match="0 of salt"):
        run.update(add, Item("salt", 0))
    with pytest.raises(UpdateRejected, match="InputInvalid.*name"):
        live.client.update(run, "add", {"count": 3})
    with pytest.raises(UpdateRejected, match="takes no argument"):
        live.client.update(run, "count", 3)
    steps, accepted, done = before
    assert history(live, run) == (steps + 1, accepted + 1, done + 1), "only what made room is there"
    assert live.effects.count("updated_step") == executed
    assert run.update(add, Item("milk"), id="u2") == Basket([Item("milk")])
    run.signal(updated.leave, "finish")
    assert run.result(timeout=20) == ["milk"]
    assert live.database.one("select count(*) from supervisor.steps where run_id = %s and kind = 'update'", run.id) == 3


def test_a_failure_of_the_handler_is_the_callers_and_the_run_goes_on(live: Live) -> None:
    run = live.start(updated.shop)
    with pytest.raises(UpdateFailed) as caught:
        run.update(add, Item("fails"), id="f")
    assert isinstance(caught.value.__cause__, updated.Full)
    with pytest.raises(UpdateFailed):
        run.update(add, Item("fails"), id="f")
    assert run.update(count) == 0
    run.cancel()
    with pytest.raises(UpdateFailed):
        run.update(add, Item("fails"), id="f")


def test_the_same_id_is_the_same_update(live: Live) -> None:
    """Once executed, answered alike: while it lives, from several clients at once, and when the run has ended."""
    run, gate = live.start(updated.shop, 9, gate := uuid4().hex), gate
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(Client(live.database.dsn).update(run.id, add, Item("slow"), id="one"))) for _ in range(4)]
    for each in threads:
        each.start()
    live.until(lambda: live.effects.count("updated_gate", f"{gate}.slow") == 1, 20)
    live.effects.open(f"{gate}.slow")
    for each in threads:
        each.join(30)
    assert answers == [Basket([Item("slow")])] * 4
    assert run.update(add, Item("another argument"), id="one") == Basket([Item("slow")])
    assert run.update(count) == 1
    run.signal(updated.leave, "finish")
    assert run.result(timeout=20) == ["slow"]
    assert run.update(add, Item("slow"), id="one") == Basket([Item("slow")])
    assert live.effects.count("updated_gate", f"{gate}.slow") == 1


def test_accepted_comes_before_completed_and_several_are_under_way_at_once(live: Live) -> None:
    """The handle of one that is under way waits for its answer; another one ends first."""
    gate = uuid4().hex
    run = live.start(updated.shop, 9, gate)
    slow = run.update(add, Item("slow1"), wait_for="accepted")
    slower = run.update(add, Item("slow2"), wait_for="accepted", timeout=20)
    assert (slow.stage(), slower.stage()) == ("accepted", "accepted")
    with pytest.raises(TimeoutError, match="accepted"):
        slow.result(timeout=0.05)
    assert run.update(add, Item("quick")) == Basket([Item("quick")])
    live.effects.open(f"{gate}.slow2")
    assert slower.result(timeout=20).items[-1] == Item("slow2")
    live.effects.open(f"{gate}.slow1")
    assert [each.name for each in slow.result(timeout=20).items] == ["quick", "slow2", "slow1"]
    assert slow.accepted(timeout=1).stage() == "completed"
    run.cancel()


def test_updates_come_between_the_steps_of_a_busy_run_and_replay_in_their_order(live: Live) -> None:
    """The root is never at rest for long; kill -9 in the middle. Each is executed once more at most, and the trace is one history."""
    run = live.start(updated.steps_and_updates, 150)
    live.until(lambda: live.rows(run) > 4, 20)
    handles = [run.update(add, Item(f"u{n}"), wait_for="admitted", id=f"u{n}") for n in range(20)]
    assert handles[9].result(timeout=30) == Basket([Item("u9")])
    live.kill()
    handles += [run.update(add, Item(f"u{n}"), wait_for="admitted", id=f"u{n}") for n in range(20, 25)]
    assert [handle.result(timeout=30).items[0].name for handle in handles] == [f"u{n}" for n in range(25)]
    trace = run.result(timeout=60)
    assert sorted(each for each in trace if each.startswith("ended")) == sorted(f"ended u{n}" for n in range(25))
    begun = [each.removeprefix("begun ") for each in trace if each.startswith("begun")]
    by_pos = "select a.id from supervisor.update_accepted a join supervisor.step s using (run_id, seq) where run_id = %s order by pos"
    assert [name for (name,) in live.database.sql(by_pos, run.id)] == begun == [f"u{n}" for n in range(25)]


# ── whatever dies ────────────────────────────────────────────────────────────────────────────────────────────────


def test_kill_in_the_middle_of_handlers_loses_none_and_answers_once(live: Live) -> None:
    """Accepted before the kill, so begun again by the replay; completed before it, so not executed again; sent while nobody lives."""
    gate = uuid4().hex
    run = live.start(updated.shop, 99, gate)
    done = run.update(add, Item(f"done-{gate}"), id="done")
    under_way = [run.update(add, Item(f"slow{n}"), wait_for="accepted", id=f"s{n}") for n in range(3)]
    live.until(lambda: all(live.effects.count("updated_gate", f"{gate}.slow{n}") for n in range(3)), 20)
    live.kill()
    late = run.update(add, Item("late"), wait_for="admitted")
    for n in range(3):
        live.effects.open(f"{gate}.slow{n}")
    assert [handle.result(timeout=30).items[0].name for handle in under_way] == [done.items[0].name] * 3
    assert late.result(timeout=30)
    assert run.update(add, Item("x"), id="done") == done
    assert live.effects.count("updated_step", f"done-{gate}") == 1
    run.signal(updated.leave, "finish")
    assert sorted(run.result(timeout=30)) == sorted(["late", f"done-{gate}", "slow0", "slow1", "slow2"])
    assert set(stages(live, run)) == {"completed"}


@pytest.mark.parametrize("how", ["timer", "sleep", "signal", "child"])
def test_a_parked_run_wakes_for_an_update(live: Live, how: str) -> None:
    """Whatever it waits for, and it goes on waiting for that; also where its worker died meanwhile."""
    run = live.start(updated.waits_long, how)
    parked(live, run)
    if how == "signal":
        live.kill()
    assert run.update(add, Item("wake", 2), timeout=30) == Basket([Item("wake", 2)])
    parked(live, run)
    assert run.update(add, Item("again", 3), timeout=30) == Basket([Item("again", 3)])
    if how in ("timer", "signal"):
        run.signal(updated.leave, "x")
        assert run.result(timeout=20) == 5
    else:
        run.cancel()


def test_an_update_that_is_sent_while_its_run_is_being_parked_is_heard(live: Live) -> None:
    """Its sender took the run's row first, saw an owner and wakes nobody. Who parks the run looks afterwards; the sweep is kept from finding it."""
    run = live.start(updated.waits_long, "signal")
    live.until(lambda: live.database.sql("select from supervisor.task where run_id = %s and owner is not null", run.id), 20)
    with psycopg.connect(live.database.dsn) as conn:
        handle = live.client.within(conn).update(run, add, Item("crossed"))
        conn.execute("update supervisor.update_request set sent_at = now() + interval '1 h' where run_id = %s", (run.id,))
        waits = "select count(*) from pg_stat_activity where wait_event = 'transactionid' and datname = current_database()"
        live.until(lambda: live.database.one(waits), 20)
        conn.commit()
    assert handle.result(timeout=20) == Basket([Item("crossed")])
    run.cancel()


def test_the_sweep_finds_what_no_wake_up_reached(live: Live) -> None:
    """A worker died between its parking and its look."""
    run = live.start(updated.waits_long, "sleep")
    parked(live, run)
    live.database.sql(
        "insert into supervisor.update_request (run_id, n, sent_at, name, id, payload)"
        " values (%s, 1, now() - interval '1 min', 'add', 'swept', '{\"name\": \"x\", \"count\": 1}')", run.id,
    )  # fmt: skip
    live.until(lambda: stages(live, run) == ["completed"], 60)
    assert "runs woken that had not looked at their updates" in live.host.log()
    run.cancel()


def test_a_repetition_that_crosses_the_acceptance_is_the_same_update(live: Live) -> None:
    """A worker has taken the request and not committed yet; whoever repeats it waits for that, and adds nothing."""
    run = live.start(updated.waits_long, "sleep")
    parked(live, run)
    with psycopg.connect(live.database.dsn) as worker:  # what accept_updates does
        worker.execute("insert into supervisor.update_accepted (run_id, n, sent_at, seq, name, id) values (%s, 1, now(), 99, 'add', 'crossed')", (run.id,))
        worker.execute("insert into supervisor.update_request (run_id, n, name, id, payload) values (%s, 1, 'add', 'crossed', '1')", (run.id,))
        worker.execute("delete from supervisor.update_request where run_id = %s", (run.id,))
        told: list[Any] = []
        thread = threading.Thread(target=lambda: told.append(Client(live.database.dsn).update(run.id, add, Item("x"), id="crossed", wait_for="admitted")))
        thread.start()
        live.until(lambda: live.database.one("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"), 20)
        worker.commit()
    thread.join(20)
    assert told[0].stage() == "accepted" and stages(live, run) == ["accepted"]
    run.cancel()


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_that_has_ended_refuses(live: Live) -> None:
    run = live.start(updated.shop)
    run.signal(updated.leave, "now")
    run.result(timeout=20)
    with pytest.raises(RunClosed) as caught:
        run.update(add, Item("late"))
    assert (caught.value.update, caught.value.signal, caught.value.status) == ("add", None, "completed")
    with pytest.raises(RunUnknown):
        live.client.update(uuid4(), add, Item("nowhere"))


def test_a_run_that_ends_first_is_an_error_and_no_hang(live: Live) -> None:
    """Accepted and under way: unfinished. Not accepted yet: closed. Also when it is cancelled."""
    for cancelled in (False, True):
        gate = uuid4().hex
        run = live.start(updated.shop, 9, gate)
        handle = run.update(add, Item("slow"), wait_for="accepted", id="u")
        run.cancel() if cancelled else run.signal(updated.leave, "now")
        with pytest.raises(UpdateUnfinished) as caught:
            handle.result(timeout=20)
        assert caught.value.status == ("cancelled" if cancelled else "completed")
        with pytest.raises(UpdateUnfinished):
            run.update(add, Item("slow"), id="u", timeout=20)
        assert stages(live, run) == ["unfinished"]
        live.effects.open(f"{gate}.slow")
    delayed = live.client.start(updated.shop.options(delay=3600))
    waiting = delayed.update(add, Item("early"), wait_for="admitted")
    assert waiting.stage() == "admitted"
    delayed.cancel()
    with pytest.raises(RunClosed):
        waiting.result(timeout=20)
    assert stages(live, delayed) == ["closed"]
    live.database.sql("select supervisor.drop_updates()")
    with pytest.raises(RunClosed):
        waiting.result(timeout=20)


def test_handlers_finished_waits_for_those_under_way_and_those_that_were_sent(live: Live) -> None:
    gate = uuid4().hex
    run = live.start(updated.shop, 9, gate)
    handles = [run.update(add, Item(f"slow{n}"), wait_for="accepted") for n in range(2)]
    run.signal(updated.leave, "finish")
    live.until(lambda: ("signal", "updated_leave") in kinds(live, run), 20)
    handles.append(run.update(add, Item("while it waits"), wait_for="accepted"))
    live.effects.open(f"{gate}.slow0")
    handles[0].result(timeout=20)
    assert run.status().status != "completed"
    live.kill()
    live.effects.open(f"{gate}.slow1")
    assert sorted(run.result(timeout=30)) == ["slow0", "slow1", "while it waits"]
    assert [handle.stage() for handle in handles] == ["completed"] * 3
    assert kinds(live, run)[-1] == ("handlers_finished", "handlers_finished")


def test_a_run_that_waits_for_a_handler_that_waits_leaves_memory(live: Live) -> None:
    run = live.start(updated.handler_outlives, 3)
    handle = run.update(count, wait_for="accepted")
    run.signal(updated.leave, "x")
    parked(live, run)
    assert handle.result(timeout=20) == 7
    assert run.result(timeout=20) == "finished"


def test_a_run_without_the_handler_says_so(live: Live) -> None:
    """In memory, parked, and by SQL that tells nobody; the run does not notice."""
    run = live.start(updated.shop)
    with pytest.raises(UpdateUnknown) as caught:
        run.update(updated.never_handled, 1)
    assert caught.value.known == ["add", "clear", "count"]
    run.cancel()
    gate = uuid4().hex
    busy, quiet = live.start(updated.takes_none, gate), live.start(updated.takes_none_parked)
    live.until(lambda: live.effects.count("updated_gate", gate), 20)
    with pytest.raises(UpdateUnknown):
        busy.update(add, Item("x"), timeout=30)
    parked(live, quiet)
    with pytest.raises(UpdateUnknown):
        quiet.update(add, Item("x"), timeout=30)
    live.database.sql("select supervisor.update(%s, 'add', '1', 'silent')", busy.id)
    live.until(lambda: stages(live, busy) == ["rejected", "rejected"], 60)
    live.effects.open(gate)
    quiet.signal(updated.leave, "x")
    assert busy.result(timeout=20) == gate and quiet.result(timeout=20) == "x"


def test_runs_without_a_handler_leave_memory_whatever_finds_their_updates(live: Live) -> None:
    """A look that another run asked for finds them too. One that stayed would hold up each stop of its worker, and its seat until then."""
    busy = live.start(updated.waits_long, "signal")  # it has a handler, so its worker looks again and again
    runs = []
    for n in range(24):
        run = live.client.signal_with_start(updated.leave.message("x"), updated.takes_none_parked)
        runs.append(live.client.update_with_start(add.message(Item(f"{n}")), updated.takes_none_parked).run_id)
        assert run.result(timeout=20) == "x"
    owned = "select count(*) from supervisor.task where run_id = any(%s) and owner is not null"
    live.until(lambda: live.database.one(owned, runs) == 0, 20)
    for run_id in runs:
        live.client.cancel(run_id)
    busy.cancel()


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_validator_can_only_read(live: Live) -> None:
    run = live.start(updated.misuses, "x")
    before = history(live, run)
    for how in ("step", "sleep", "publish"):
        with pytest.raises(UpdateRejected) as caught:
            run.update(updated.misused, how)
        assert isinstance(caught.value.__cause__, (QueryReadOnly, DefinitionError)), caught.value.__cause__
    assert history(live, run) == before
    with pytest.raises(UpdateFailed, match="int"):
        run.update(updated.misused, "type")
    with pytest.raises(UpdateFailed, match="would wait for itself"):
        run.update(updated.misused, "waits for itself")
    assert run.update(updated.misused, "nothing") == 1
    run.signal(updated.leave, "end")
    assert run.result(timeout=20) == "end"


def test_misuse_is_an_error_that_says_what_to_do(live: Live) -> None:
    for what in ("validator", "argument", "nothing"):
        assert isinstance(live.error(updated.defines_wrongly, what), DefinitionError)
    assert isinstance(live.error(updated.defines_wrongly_def), DefinitionError)
    with pytest.raises(OutsideWorkflow):
        add.handler(lambda item: Basket())
    with pytest.raises(OutsideWorkflow):
        handlers_finished()
    with pytest.raises(DefinitionError):
        Update("")
    run = live.start(updated.shop)
    wrong: list[Any] = [
        lambda: run.update(add), lambda: run.update(add, Item("x"), Item("y")), lambda: run.update(count, 1), lambda: run.update(add, "tea"),
        lambda: run.update("", 1), lambda: run.update(add, Item("x"), id=""), lambda: run.update(add, Item("x"), id="x" * 501),
    ]  # fmt: skip
    for each in wrong:
        with pytest.raises(InputInvalid):
            each()
    assert stages(live, run) == []
    run.cancel()


# ── every way to send ────────────────────────────────────────────────────────────────────────────────────────────


def test_update_with_start_starts_or_finds_the_run(live: Live) -> None:
    """Both or neither; a run that takes what it was started with and ends answers it before that."""
    name = uuid4().hex
    handle = live.client.update_with_start(add.message(Item("first"), id="a"), updated.answers_first, name)
    assert handle.result(timeout=20) == Basket([Item("first")])
    assert live.client.get(handle.run_id).result(timeout=20) == f"{name} first"
    options = updated.shop.options(key=f"shop-{name}")
    one = live.client.update_with_start(add.message(Item("tea"), id="t"), options, 2)
    assert one.result(timeout=20) == Basket([Item("tea")])
    two = live.client.update_with_start(add.message(Item("milk"), id="m"), options, 2)
    again = live.client.update_with_start(add.message(Item("tea"), id="t"), options, 2)
    assert one.run_id == two.run_id == again.run_id
    assert one.result(timeout=20) == again.result(timeout=20) == Basket([Item("tea")])
    assert len(two.result(timeout=20).items) == 2
    full = live.client.update_with_start(add.message(Item("salt")), options, 2)
    with pytest.raises(UpdateRejected):
        full.result(timeout=20)
    live.client.get(one.run_id).terminate()
    with pytest.raises(RunClosed):
        live.client.update_with_start(add.message(Item("late")), options, 2)
    assert live.client.update_with_start(add.message(Item("tea"), id="t"), options, 2).result(timeout=20) == Basket([Item("tea")])


def test_in_the_callers_transaction(live: Live) -> None:
    run = live.start(updated.shop)
    with psycopg.connect(live.database.dsn) as conn:
        rolled_back = live.client.within(conn).update(run, add, Item("rolled back"))
        conn.rollback()
        handle = live.client.within(conn).update(run, add, Item("tea"))
        with pytest.raises(UpdateRejected, match="not committed"):
            handle.stage()
        started = live.client.within(conn).update_with_start(add.message(Item("x")), updated.answers_first, "tx")
        conn.commit()
    assert handle.result(timeout=20) == Basket([Item("tea")])
    assert started.result(timeout=20) == Basket([Item("x")])
    with pytest.raises(UpdateRejected, match="rolled back"):
        rolled_back.result(timeout=1)
    run.cancel()


def test_an_async_client_sends_too(live: Live) -> None:
    async def act() -> None:
        async with AsyncClient(live.database.dsn) as client:
            run = await client.start(updated.shop)
            handles = await asyncio.gather(*(run.update(add, Item(f"i{n}"), wait_for="accepted") for n in range(3)))
            assert len({tuple(each.name for each in (await handle).items) for handle in handles}) == 3
            assert await client.update(run, count) == 3
            with pytest.raises(UpdateRejected):
                await run.update(add, Item("more"))
            async with await psycopg.AsyncConnection.connect(live.database.dsn) as conn:
                handle = await client.within(conn).update(run, clear)
                await conn.commit()
            assert await handle.result(timeout=20) is None and await handle.stage() == "completed"
            begun = await client.update_with_start(add.message(Item("a")), updated.answers_first, "async")
            assert await begun == Basket([Item("a")])
            await run.cancel()

    asyncio.run(act())


def test_sql_sends_and_reads_the_stage(live: Live) -> None:
    """From any language: the answer, the error, and what a rollback leaves, which is nothing."""
    run = live.start(updated.shop, 1)
    answer = "select supervisor.update_answer(%s, 'add', %s)"
    assert live.database.one("select supervisor.update(%s, 'add', '{\"name\": \"tea\", \"count\": 1}', 'one')", run.id) == "one"
    tea = {"items": [{"name": "tea", "count": 1}]}
    live.until(lambda: live.database.one(answer, run.id, "one") == {"stage": "completed", "result": tea}, 20)
    made = live.database.one("select supervisor.update(%s, 'add', '{\"name\": \"milk\"}', notify => true)", run.id)
    live.until(lambda: live.database.one(answer, run.id, made)["stage"] == "rejected", 20)
    assert live.database.one(answer, run.id, made)["error"]["type"].endswith("Full")
    assert live.database.one(answer, run.id, "never sent") is None
    with psycopg.connect(live.database.dsn) as conn:
        conn.execute("select supervisor.update(%s, 'count')", (run.id,))
        conn.rollback()
    begun = "select (u).run_id, (u).update_id from (select supervisor.update_with_start('answers_first', 'add', '{\"name\": \"s\"}', '{\"name\": \"sql\"}') u) x"
    run_id, update_id = live.database.sql(begun)[0]
    live.until(lambda: live.database.one(answer, run_id, update_id)["stage"] == "completed", 20)
    run.terminate()
    for wrong in ("select supervisor.update(%s, '')", "select supervisor.update(%s, 'x', id => '')"):
        with pytest.raises(psycopg.Error) as caught:
            live.database.sql(wrong, run.id)
        assert caught.value.sqlstate == "22023"
    with pytest.raises(psycopg.Error) as caught:
        live.database.sql("select supervisor.update(%s, 'add', '1')", run.id)
    assert caught.value.sqlstate == "SV010"


def test_a_query_replays_what_updates_did(live: Live) -> None:
    run = live.start(updated.shop)
    run.update(add, Item("tea"))
    assert run.query(updated.contents) == ["tea"]
    run.signal(updated.leave, "finish")
    run.result(timeout=20)
    assert run.query(updated.contents) == ["tea"]


def test_a_lost_answer_is_asked_for_again(live: Live) -> None:
    """The client's session dies between the sending and the answer; the same update is told of, and executed once."""
    gate = uuid4().hex
    run = live.start(updated.shop, 9, gate)
    told: list[Any] = []
    with Client(live.database.dsn) as client:
        thread = threading.Thread(target=lambda: told.append(client.update(run.id, add, Item("slow"))))
        thread.start()
        live.until(lambda: live.effects.count("updated_gate", f"{gate}.slow"), 20)
        live.database.sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgsupervisor: client%%' and datname = current_database()")
        live.effects.open(f"{gate}.slow")
        thread.join(30)
    assert told == [Basket([Item("slow")])]
    assert live.effects.count("updated_gate", f"{gate}.slow") == 1
    run.cancel()


def test_what_was_rejected_is_forgotten_after_an_hour(live: Live) -> None:
    run = live.start(updated.shop, 0)
    with pytest.raises(UpdateRejected):
        run.update(add, Item("x"), id="r")
    assert stages(live, run) == ["rejected"]
    live.database.sql("update supervisor.update_request set rejected_at = now() - interval '61 min' where run_id = %s", run.id)
    live.database.sql("select supervisor.drop_updates()")
    assert stages(live, run) == []
    with pytest.raises(UpdateRejected):
        run.update(add, Item("x"), id="r")
    run.cancel()
