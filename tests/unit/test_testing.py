"""The test kit in memory: time that is skipped, steps that are mocked, seeds, crashes, and errors that say what is wrong with a test."""

from __future__ import annotations

import asyncio
import linecache
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from supervisor import (
    Client, ClientInsideRun, CompleteLater, DefinitionError, KeyMismatch, OperationRefused, RunCancelled, RunClosed, RunFailed, RunTerminated, RunTimedOut, StepTimeout, TokenClosed, current, workflow,
)  # fmt: skip
from supervisor.core.errors import PayloadRefused, ReplayMismatch
from supervisor.core.histories import line
from supervisor.testing import TestEnvironment, crashes, replay_file
from supervisor.testing.errors import EnvironmentStuck, MockUsedUp, NotInMemory, StepNotMocked
from tests.apps import closing, kit_shop
from tests.apps.kit_shop import KitDeclined, KitOrder, KitReceipt, kit_approved, kit_charge, kit_checkout, kit_pack

ORDER = KitOrder(42, 999)


@pytest.fixture
def env() -> Iterator[TestEnvironment]:
    with TestEnvironment(seed=1) as made:
        yield made


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_thirty_days_take_no_time(env):
    """A run that sleeps is tested as quickly as one that does not, and sees the time that it slept."""
    began, before = time.monotonic(), env.now
    seen = env.start(kit_shop.kit_month).result()
    assert [datetime.fromisoformat(each) for each in seen] == [before, before + timedelta(days=30)]
    assert env.now == before + timedelta(days=30)
    assert time.monotonic() - began < 5


def test_time_moves_only_where_somebody_waits(env):
    """What a test looks at is the present: a verb lets run what can run, and skips nothing."""
    before = env.now
    run = env.start(kit_shop.kit_checkout_def, ORDER)
    assert [call.step for call in env.calls()] == ["kit_charge", "kit_pack"]
    assert (env.now, run.status().status) == (before, "waiting")
    env.advance(timedelta(hours=23))
    assert (env.now, run.status().status) == (before + timedelta(hours=23), "waiting")
    env.advance(3600)
    assert (env.now, run.status().status) == (before + timedelta(hours=24), "completed")


def test_a_timer_bounds_a_step_beside_it(env):
    """As on a host: the run stays in memory for its step, and what is due meanwhile comes when it is due. Then nothing of a timer that lost is left."""
    before = env.now
    assert env.start(kit_shop.kit_bounded, 6, 3).result() == "late" and env.now == before + timedelta(seconds=3)
    assert env.start(kit_shop.kit_bounded, 6, 3600).result() == "long" and env.now == before + timedelta(seconds=9)
    env.run_until_idle()
    assert env.now == before + timedelta(seconds=9)


def test_until_a_given_time(env):
    """sleep_until means the environment's time."""
    assert env.start(kit_shop.kit_at, 2033).result().startswith("2033-01-01")


def test_a_timeout_of_result_counts_the_environments_time(env):
    """Otherwise a test could not ask whether a run ends within an hour."""
    run = env.start(kit_shop.kit_checkout_def, ORDER)
    with pytest.raises(TimeoutError, match="within 3600 s; it is waiting .timer."):
        run.result(timeout=3600)
    assert run.result(timeout=86_400).by == "nobody"


def test_a_run_that_waits_for_nothing_that_comes_is_an_error_and_no_hang(env):
    """It names every run and what it waits for."""
    run = env.start(kit_shop.kit_waits_for_child)
    with pytest.raises(RunFailed, match="TimeoutError: signal kit_approved did not come within 3600 s"):
        run.result()
    run = env.start(kit_shop.kit_sums)
    with pytest.raises(EnvironmentStuck, match=rf"run {run.id} of kit_sums: waits for signal kit_approved at seq 0"):
        run.result()
    assert env.waiting() == [f"run {run.id} of kit_sums: waits for signal kit_approved at seq 0"]
    run.signal(kit_approved, "ann")
    assert run.result() == 0


def test_a_run_that_never_ends_is_an_error(env, monkeypatch):
    """As many jumps as no test means to have."""
    monkeypatch.setattr("supervisor.testing.driving.JUMPS_MAX", 200)
    with pytest.raises(EnvironmentStuck, match="after 200 jumps"):
        env.start(kit_shop.kit_spins).result()


def test_run_until_idle_ends_where_nothing_happens_by_itself(env):
    run, other = env.start(kit_shop.kit_sums), env.start(kit_shop.kit_month)
    env.run_until_idle()
    assert (run.status().status, other.status().status) == ("waiting", "completed")


def test_a_step_that_sleeps_is_skipped_too(env):
    """asyncio.sleep in a step waits for nothing outside."""
    began = time.monotonic()
    assert env.start(kit_shop.kit_takes, 5000).result() == 5000
    assert time.monotonic() - began < 5


def test_a_timeout_ends_a_body_that_blocks(env):
    """As in a host: the step fails, its thread is left behind."""
    with pytest.raises(RunFailed) as failed:
        env.start(kit_shop.kit_blocked).result()
    assert isinstance(failed.value.__cause__, StepTimeout)
    assert env.start(kit_shop.kit_takes, 1).result() == 1


def test_silence_and_the_time_of_all_tries_are_skipped(env):
    """An hour without a sign of life, two hours of tries."""
    before = env.now
    assert env.start(kit_shop.kit_long_steps).result() == ["HeartbeatMissed", "again"]
    assert timedelta(hours=2) <= env.now - before <= timedelta(hours=3.2)


# ── mocks ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_mock_stands_for_a_step(env):
    """By function or by name; everything that is not mocked is executed."""
    charge = env.mock(kit_charge, returns="p-1")
    pack = env.mock("kit_pack", returns="boxed")
    run = env.start(kit_checkout, ORDER)
    run.signal(kit_approved, "ann")
    assert run.result() == KitReceipt("p-1", "ann")
    [call] = charge.calls
    assert (call.args, call.arguments, call.attempt, call.idempotency_key) == ((42, 999), {"order_id": 42, "cents": 999}, 1, f"{run.id}/0")
    assert pack.called and str(pack.calls[0]) == "kit_pack(42)"


def test_without_a_mock_the_step_is_executed(env):
    run = env.start(kit_checkout, ORDER)
    run.signal(kit_approved, "ann")
    assert run.result().payment == "really charged 42 999"
    assert [call.step for call in env.calls(kit_charge)] == ["kit_charge"]


def test_the_steps_own_retries_apply_to_what_a_mock_raises(env):
    """So that a policy is tested, and its waits are skipped."""
    charge = env.mock(kit_charge, sequence=[ConnectionError("one"), ConnectionError, "p-2"])
    before = env.now
    run = env.start(kit_shop.kit_checkout_def, ORDER)
    env.advance(60 + 120)  # full jitter: at most that
    assert [call.attempt for call in charge.calls] == [1, 2, 3]
    assert run.result().payment == "p-2"
    assert env.now - before <= timedelta(seconds=86_400 + 180)


def test_an_error_that_is_not_to_be_tried_again(env):
    charge = env.mock(kit_charge, raises=KitDeclined("no"))
    with pytest.raises(RunFailed) as failed:
        env.start(kit_checkout, ORDER).result()
    assert isinstance(failed.value.__cause__, KitDeclined) and len(charge.calls) == 1


def test_a_mock_may_be_a_callable_and_take_time(env):
    """An attempt that takes longer than the step's timeout is one that failed."""

    async def slow(order_id: int, cents: int) -> str:
        await asyncio.sleep(9)
        return f"{order_id}:{cents}"

    env.mock(kit_charge, calls=slow)
    env.mock(kit_pack, calls=lambda order_id: f"box {order_id}", takes=7)
    before = env.now
    run = env.start(kit_checkout, ORDER)
    env.advance(16)
    run.signal(kit_approved, "ann")
    assert run.result().payment == "42:999"
    assert [record.ended_at - before for record in env.history(run).records[:2]] == [timedelta(seconds=9), timedelta(seconds=16)]
    env.mock(kit_charge, returns="x", takes=11)
    run = env.start(kit_checkout, ORDER)
    with pytest.raises(RunFailed, match="StepTimeout: step kit_charge did not end within 10 s"):
        run.result()


def test_who_is_quicker_is_the_mocks_affair(env):
    env.mock(kit_charge, returns="a", takes=2)
    env.mock(kit_pack, returns="b", takes=1)
    assert env.start(kit_shop.kit_races).result() == "b"
    with env.mock(kit_pack, returns="b", takes=3):
        assert env.start(kit_shop.kit_races).result() == "a"
    assert env.start(kit_shop.kit_races).result() == "b"


def test_what_a_mock_returns_goes_through_the_codec(env):
    """A value that could not be stored fails here as it would there."""
    env.mock(kit_shop.kit_object, returns=float("nan"))
    with pytest.raises(RunFailed) as failed:
        env.start(kit_shop.kit_cant).result()
    assert isinstance(failed.value.__cause__, PayloadRefused)
    env.mock(kit_charge, returns=17)
    with pytest.raises(RunFailed, match="kit_charge"):
        env.start(kit_checkout, ORDER).result()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"step": "kit_charg", "returns": 1}, "no step and no workflow is named 'kit_charg'; did you mean kit_charge"),
        ({"step": print}, "is no step and no workflow"),
        ({"step": "kit_charge", "returns": 1, "raises": OSError}, "has several of returns=, raises="),
    ],
)
def test_a_mock_that_can_not_be(env, how, told):
    with pytest.raises(DefinitionError, match=told):
        env.mock(how.pop("step"), **how)


def test_a_child_that_loses_is_cancelled(env):
    """With what is below it, and while its parent lives."""
    with env.mock(closing.closing_note, returns=None) as noted:
        run = env.start(closing.closing_late, "lost")
        env.advance(0.2)
        assert run.status().ended_at is None
        assert {each.workflow: each.status for each in env.list() if each.run_id != run.id} == {"closing_grandparent": "cancelled", "closing_sleeper": "cancelled"}
        assert run.result() == "late" and [call.arguments["word"] for call in noted.calls] == ["closing_began", "closing_told"]


def test_a_child_is_mocked_like_a_step(env):
    """So that a parent is tested alone: its child is a run, with the child's own type, whatever it is told to do."""
    with env.mock(kit_checkout, returns=KitReceipt("p", "nobody"), takes=60) as child:
        before = env.now
        assert env.start(kit_shop.kit_waits_for_child).result() == KitReceipt("p", "nobody")
        assert env.now - before == timedelta(seconds=60) and child.calls[0].arguments == {"order": KitOrder(1, 2)}
    with env.mock("kit_checkout", raises=KitDeclined("no")), pytest.raises(RunFailed) as failed:
        env.start(kit_shop.kit_waits_for_child).result()
    assert [each.workflow for each in failed.value.chain] == ["kit_waits_for_child", "kit_checkout"]

    async def another(order: KitOrder) -> KitReceipt:
        return KitReceipt(await kit_pack.aio(order.id), await kit_approved.wait())

    with env.mock(kit_checkout, calls=another) as child:
        run = env.start(kit_shop.kit_waits_for_child)
        env.crash()
        env.signal(child.calls[0].run_id, kit_approved, "ann")
        assert run.result() == KitReceipt("really packed 1", "ann") and len(child.calls) == 1
    env.verify()
    run = env.start(kit_checkout, ORDER)
    run.signal(kit_approved, "ben")
    assert run.result().payment == "really charged 42 999"


def test_a_mock_that_is_used_up_ends_the_test(env):
    """And not the run: nobody means to test that."""
    env.mock(kit_charge, sequence=[OSError()])
    run = env.start(kit_checkout, ORDER)
    with pytest.raises(MockUsedUp, match="the mock of step kit_charge has 1 results"):
        run.result()


def test_a_strict_environment_executes_no_step():
    with TestEnvironment(strict=True) as env, pytest.raises(StepNotMocked, match=r"step kit_charge was called as kit_charge\(42, 999\) and has no mock"):
        env.start(kit_checkout, ORDER)


def test_a_transactional_step_needs_a_mock(env):
    """There is no transaction here, and what a mock returns is recorded as the transaction would."""
    with env.mock(kit_shop.kit_book, calls=lambda order_id: order_id + 1) as book:
        assert env.start(kit_shop.kit_books, 7).result() == 8
        assert book.calls[0].arguments == {"order_id": 7}
    with pytest.raises(NotInMemory, match="kit_book is transactional and has no mock"):
        env.start(kit_shop.kit_books, 7)


# ── seeds ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _history(seed: int | None) -> tuple[TestEnvironment, list[bytes]]:
    with TestEnvironment(seed=seed) as env:
        env.mock(kit_charge, sequence=[OSError(), OSError(), "paid"])
        env.start(kit_shop.kit_dice).result()
        return env, [line(each) for each in env.histories()]


def test_the_same_seed_is_the_same_history():
    """Ids, times, jitter, random(), uuid4() and the order of branches: byte for byte."""
    assert _history(5)[1] == _history(5)[1] != _history(6)[1]


def test_a_seed_is_made_or_told(monkeypatch):
    env, history = _history(None)
    assert _history(env.seed)[1] == history
    monkeypatch.setenv("PGSUPERVISOR_TEST_SEED", "77")
    assert TestEnvironment().seed == 77


# ── replays and crashes ──────────────────────────────────────────────────────────────────────────────────────────


def test_replaying_at_every_commit_finds_what_is_not_deterministic():
    """Found at the line where it parts, and not in production."""
    kit_shop.kit_calls.clear()
    with TestEnvironment(replay=True) as env, pytest.raises(ReplayMismatch, match="step 'kit_"):
        env.start(kit_shop.kit_changes_its_mind).result()


def test_code_that_has_not_changed_is_not_said_to_have_changed():
    """Who is told to bring old code back looks for a change that nobody made."""
    kit_shop.kit_calls.clear()
    with TestEnvironment(replay=True) as env, pytest.raises(ReplayMismatch) as caught:
        env.start(kit_shop.kit_changes_its_mind).result()
    told = caught.value
    file, _, line = told.place.rpartition(":")
    assert file == kit_shop.__file__ and "await kit_pack.aio(1) if" in linecache.getline(file, int(line))
    assert told.version == kit_shop.kit_changes_its_mind.version and f"the same version, {told.version}, did something else" in str(told) and "random()" in str(told)
    assert "give the changed workflow a new name" in str(ReplayMismatch("r", 0, "a", "b")), "where nothing is known of the version"


def test_verify_replays_what_was_recorded(env):
    kit_shop.kit_calls.clear()
    env.start(kit_shop.kit_changes_its_mind).result()
    with pytest.raises(ReplayMismatch, match="kit_"):
        env.verify()


@pytest.mark.parametrize("replay", [False, True])
def test_a_recorded_step_is_never_executed_again(replay):
    """Whatever is killed and whenever: what is recorded stays."""
    with TestEnvironment(replay=replay) as env:
        run = env.start(kit_checkout, ORDER)
        env.crash()
        env.crash()
        run.signal(kit_approved, "ann")
        env.crash()
        assert run.result().by == "ann"
        assert [call.step for call in env.calls()] == ["kit_charge", "kit_pack"]


def test_a_step_that_was_executing_begins_again_and_knows_it(env):
    charge = env.mock(kit_charge, returns="p", takes=5)
    run = env.start(kit_checkout, ORDER)
    env.advance(2)
    env.crash()
    run.signal(kit_approved, "ann")
    assert run.result().payment == "p"
    assert [(call.attempt, call.redelivered) for call in env.calls(kit_charge)] == [(1, False), (1, True)]
    assert len(charge.calls) == 1  # the first one did not get so far


def test_a_crash_after_each_commit_changes_nothing():
    """One environment without a crash, and one for each place where a worker may die."""
    results, workers = [], 0
    for env in crashes():
        run = env.start(kit_checkout, ORDER)
        run.signal(kit_approved, "ann")
        results.append(run.result())
        assert [call.step for call in env.calls() if not call.redelivered].count("kit_charge") == 1
        workers += 1
    assert results == [KitReceipt("really charged 42 999", "ann")] * workers and workers >= 4


# ── it is a client ───────────────────────────────────────────────────────────────────────────────────────────────


def test_every_verb_is_there(env):
    run = env.start(kit_shop.kit_sums)
    assert run.update(kit_shop.kit_add, 3) == 3 and env.now.hour == 1
    assert run.query(kit_shop.kit_total) == 3 == run.published("total")
    run.signal(kit_approved, "x")
    assert run.result() == 3
    with pytest.raises(RunClosed):
        run.signal(kit_approved, "y")
    run = env.start(kit_checkout.options(key="k"), ORDER)
    with pytest.raises(KeyMismatch):
        env.start(kit_checkout.options(key="k"), KitOrder(1, 1))
    assert run.cancel("enough")
    with pytest.raises(RunCancelled, match="enough"):
        run.result()
    run = env.start(kit_shop.kit_month)
    assert run.terminate()
    with pytest.raises(RunTerminated):
        run.result()
    assert [each.status for each in env.list(workflow="kit_month")] == ["terminated"]


def test_start_many(env):
    batch = env.start_many(kit_shop.kit_books, [1, 2, 3], key=str) if env.mock(kit_shop.kit_book, calls=lambda order_id: order_id) else None
    assert batch is not None and [run.result() for run in batch] == [1, 2, 3]


def test_the_default_client_is_the_environment(env):
    """Code under test says `checkout.start(…)` and means whatever is configured."""
    env.mock(kit_shop.kit_book, returns=4)
    assert kit_shop.kit_books.start(1).result() == 4


def test_workflow_code_may_use_no_client(env):
    with pytest.raises(RunFailed) as failed:
        env.start(_uses_client).result()
    assert isinstance(failed.value.__cause__, ClientInsideRun)


@workflow
async def _uses_client() -> None:
    Client().list()


def test_a_step_may_start_runs_and_not_wait_for_them(env):
    """The environment runs nothing while it is asked to."""
    started = []
    env.mock(kit_pack, calls=lambda order_id: started.append(env.start(kit_shop.kit_month)) or "x")
    run = env.start(kit_checkout, ORDER)
    run.signal(kit_approved, "x")
    run.result()
    assert started[0].result()
    env.mock(kit_pack, calls=lambda order_id: started[0].result(timeout=1) and env.start(kit_shop.kit_month).result())
    with pytest.raises(RunFailed, match="waits for its own environment"):
        env.start(kit_checkout, ORDER).result()


def test_in_a_test_with_an_event_loop_of_its_own(env):
    """pytest-asyncio and its like: the test's loop is hidden while the environment runs."""

    async def test() -> KitReceipt:
        run = env.start(kit_checkout, ORDER)
        run.signal(kit_approved, "ann")
        receipt = run.result()
        await asyncio.sleep(0)
        assert asyncio.get_running_loop().is_running()
        return receipt

    assert asyncio.run(test()).by == "ann"


def test_code_that_awaits_its_client(env):
    """A web handler with an AsyncClient, or with `checkout.start.aio`, is tested as it stands."""

    async def handler() -> list[object]:
        run = await env.aio.start(kit_checkout, ORDER)
        await run.signal(kit_approved, "ann")
        other = await kit_shop.kit_sums.start.aio()
        said = [(await run).by, (await run.status()).status, await other.update(kit_shop.kit_add, 2), await other.query(kit_shop.kit_total)]
        batch = await env.aio.start_many(kit_shop.kit_takes, [1.0, 2.0])
        return [*said, [await each for each in batch]]

    assert asyncio.run(handler()) == ["ann", "completed", 2, 2, [1.0, 2.0]]


def test_histories_of_a_file_are_replayed(env, tmp_path):
    """What `export` has written, in production or here, is compared with the code in any test."""
    kit_shop.kit_calls.clear()
    run = env.start(kit_checkout, ORDER)
    run.signal(kit_approved, "ann")
    run.result()
    (tmp_path / "good.jsonl").write_bytes(line(env.history(run)))
    assert replay_file(tmp_path / "good.jsonl") == 1
    (tmp_path / "bad.jsonl").write_bytes(line(env.history(env.start(kit_shop.kit_changes_its_mind))))
    with pytest.raises(ReplayMismatch, match="kit_"):
        replay_file(tmp_path / "bad.jsonl")


def test_two_environments_beside_each_other():
    with TestEnvironment(now=datetime(2031, 1, 1, tzinfo=UTC)) as one, TestEnvironment(now=datetime(2041, 1, 1, tzinfo=UTC)) as two:
        first, second = one.start(kit_shop.kit_month), two.start(kit_shop.kit_month)
        assert [second.result()[0][:4], first.result()[0][:4]] == ["2041", "2031"]
    assert datetime.now(UTC).year < 2031


def test_what_needs_a_database_says_so(env):
    for ask in (lambda: env.within(None), lambda: env.schedules()):
        with pytest.raises(NotInMemory, match="needs a database"):
            ask()


def test_tokens_and_pauses(env):
    """What others complete, and operators stop, is tested without either."""
    given = []
    env.mock(kit_charge, calls=lambda order_id, cents: given.append(current().token()) or _hands_over())
    run = env.start(kit_checkout, ORDER)
    assert env.waiting() == [f"run {run.id} of kit_checkout: waits for token of kit_charge at seq 0, until {(env.now + timedelta(seconds=60)).isoformat()}"]
    assert env.complete(given[0], "from outside") and not env.complete(given[0], "from outside")
    with pytest.raises(TokenClosed):
        env.complete(given[0], "something else")
    env.pause(run)
    run.signal(kit_approved, "ann")
    assert run.status().status == "paused"
    assert env.resume(run) and run.result() == KitReceipt("from outside", "ann")


def test_no_pause_holds_up_an_end(env):
    """As on a host: a cancellation is delivered, a timeout comes, whatever is paused; what is to end is not."""
    paused_first, paused_last, late = (env.start(kit_shop.kit_rents, car) for car in (1, 2, 3))
    for run in (paused_first, late):
        env.pause(run)
        assert run.status().status == "paused"
    assert paused_first.cancel("enough", actor="ann") and paused_last.cancel("enough", actor="ann")
    for run in (paused_first, paused_last):
        with pytest.raises(OperationRefused, match=r"it is being cancelled \(asked for by ann\)"):
            env.pause(run)
    for run in (paused_first, paused_last):
        with pytest.raises(RunCancelled, match="enough"):
            run.result()
    assert late.status().status == "paused"
    env.advance(3600)
    assert late.status().status == "timed_out"
    with pytest.raises(RunTimedOut, match=f"run {late.id} of .* timed out") as caught:
        late.result()
    assert isinstance(caught.value, TimeoutError)
    assert sorted(call.args[0] for call in env.calls() if call.step == "kit_pack") == [-3, -2, -1, 1, 2, 3]


def _hands_over() -> None:
    raise CompleteLater(timeout=60)


def test_time_does_not_go_back(env):
    """It was taken without a word, and nothing happened."""
    for by in (-1, timedelta(seconds=-1), float("nan")):
        with pytest.raises(DefinitionError, match="advance"):
            env.advance(by)
