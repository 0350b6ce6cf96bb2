"""A step hands out a token and is completed from outside: once, whoever dies meanwhile, before or after it has returned."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from supervisor import AsyncClient, CompletionFailed, TokenClosed, TokenUnknown
from supervisor.core import tokens
from tests.apps import handed
from tests.conformance.conftest import Live

APP = "tests.apps.handed"
SETUP = ("create table ledger (attempt int)",)


def token(live: Live, word: str, attempt: int = 1) -> str:
    def found() -> str | None:
        return next((line[3] for line in live.effects.lines("token") if line[1:3] == [word, str(attempt)]), None)

    made: str = live.until(found, 20, f"a token of {word}, try {attempt}")
    return made


def stands(live: Live, run: Any) -> tuple[str, str | None]:
    found: tuple[str, str | None] = live.database.sql("select status, wait from supervisor.runs where run_id = %s", run.id)[0]
    return found


def waiting(live: Live, run: Any) -> None:
    """It has left memory: nobody has it, and nothing but its rows is left of it."""
    live.until(lambda: stands(live, run) == ("waiting", "token"))


def state(live: Live, run: Any) -> list[tuple[Any, ...]]:
    return live.database.sql("select step, attempt, state from supervisor.tokens where run_id = %s order by seq, attempt", run.id)


@pytest.mark.parametrize("way", ["thread", "inline", "process", "task", "at_most_once"])
def test_a_step_is_completed_after_it_has_left_memory(live: Live, way: str) -> None:
    """Wherever its body ran. The history shows one step with the result that came from outside."""
    run = live.start(handed.handed, way, f"way-{way}")
    made = token(live, f"way-{way}")
    waiting(live, run)
    assert live.database.one("select owner is null and ready_at = 'infinity' from supervisor.task where run_id = %s", run.id)
    assert "token of" in live.database.one("select detail from supervisor.waits where run_id = %s", run.id)
    assert live.client.complete(made, 41) is True
    assert run.result(timeout=20) == 42
    assert len([line for line in live.effects.lines("token") if line[1] == f"way-{way}"]) == 1
    assert state(live, run)[0][1:] == (1, "completed")


def test_a_def_workflow_waits_for_two_in_turn(live: Live) -> None:
    run = live.start(handed.handed_def, "def")
    live.client.complete(token(live, "def"), 1)
    live.client.complete(token(live, "def-two"), 2)
    assert run.result(timeout=20) == 3


def test_a_completion_that_comes_before_the_step_has_returned(live: Live) -> None:
    """The partner is quicker than we are."""
    run = live.start(handed.handed_early, "early", "early-gate")
    assert live.client.complete(token(live, "early"), 5) is True
    live.effects.open("early-gate")
    assert run.result(timeout=20) == 5


def test_completions_survive_kill_9(live: Live) -> None:
    """While it waits; and in the middle of the step, when its completion is there already: neither body is executed again."""
    waits, middle = live.start(handed.handed, "thread", "kill-waits"), live.start(handed.handed_early, "kill-middle", "kill-gate")
    first, second = token(live, "kill-waits"), token(live, "kill-middle")
    waiting(live, waits)
    assert live.client.complete(second, 7)
    live.kill()
    assert middle.result(timeout=20) == 7
    assert live.client.complete(first, 1)
    live.kill()
    assert waits.result(timeout=20) == 2
    live.effects.open("kill-gate")
    assert len([line for line in live.effects.lines("token") if line[1].startswith("kill-")]) == 2


def test_a_step_that_crashes_before_it_has_returned_hands_out_the_same_token(live: Live) -> None:
    """A crash is no try: what the partner was given before still counts."""
    run = live.start(handed.handed_early, "same", "same-gate")
    made = token(live, "same")
    live.kill()
    live.until(lambda: len([line for line in live.effects.lines("token") if line[1] == "same"]) == 2)
    assert {line[3] for line in live.effects.lines("token") if line[1] == "same"} == {made}
    live.effects.open("same-gate")
    waiting(live, run)
    live.client.complete(made, 3)
    assert run.result(timeout=20) == 3


def test_failures_are_tried_again_as_the_policy_says(live: Live) -> None:
    """Each try has a token of its own; the one of a try that is over is closed."""
    run = live.start(handed.handed, "retried", "fails")
    one = token(live, "fails")
    assert live.client.fail(one, ValueError("no such account")) is True
    two = token(live, "fails", 2)
    assert one != two
    with pytest.raises(TokenClosed, match="it was failed already"):
        live.client.complete(one, 1)
    live.until(lambda: len(live.database.sql("select 1 from supervisor.attempts where run_id = %s and kind = 'failed'", run.id)) == 1)
    live.client.complete(two, 9)
    assert run.result(timeout=20) == 10
    assert state(live, run) == [("handed_retried", 1, "failed"), ("handed_retried", 2, "completed")]
    final = live.start(handed.handed_caught, "retried", "final")
    live.client.fail(token(live, "final"), "never", retry=False)
    assert final.result(timeout=20) == "CompletionFailed: never"
    typed = live.start(handed.handed, "thread", "typed")
    live.client.fail(token(live, "typed"), KeyError("gone"))
    error = live_error(typed)
    assert isinstance(error, KeyError) and error.args == ("gone",)
    in_sql = live.start(handed.handed, "thread", "in-sql")
    assert live.database.one("select supervisor.fail(%s, 'said in SQL')", token(live, "in-sql")) is True
    assert isinstance(live_error(in_sql), CompletionFailed)


def live_error(run: Any) -> BaseException | None:
    from supervisor import RunFailed

    with pytest.raises(RunFailed) as caught:
        run.result(timeout=20)
    return caught.value.__cause__


def test_its_time_is_over_and_then_the_token_is_closed(live: Live) -> None:
    """By the database's clock, with nobody in memory; the policy decides on another try."""
    run = live.start(handed.handed_in_time, "late", 0.3, None)
    assert run.result(timeout=20) == "StepTimeout"
    assert state(live, run) == [("handed_limited", 1, "timed_out"), ("handed_limited", 2, "timed_out")]
    with pytest.raises(TokenClosed):
        live.client.complete(token(live, "late"), 1)
    own = live.start(handed.handed_caught, "step_timeout", "own-timeout")
    assert own.result(timeout=20).startswith("StepTimeout")
    long = live.start(handed.handed_in_time, "long", 3000.0, None)
    waiting(live, long)
    assert live.database.one("select due_at between now() + interval '2900 s' and now() + interval '3000 s' from supervisor.tokens where run_id = %s", long.id)
    live.client.complete(token(live, "long"), 4)
    assert long.result(timeout=20) == "4"


def test_who_gives_no_sign_of_life_is_given_up(live: Live) -> None:
    """And who does, again and again, is not: also over several heartbeats, also with nobody in memory."""
    dead = live.start(handed.handed_in_time, "dead", None, 0.3)
    assert dead.result(timeout=20) == "HeartbeatMissed"
    assert state(live, dead) == [("handed_limited", 1, "heartbeat_missed"), ("handed_limited", 2, "heartbeat_missed")]
    alive = live.start(handed.handed_in_time, "alive", None, 2.0)
    made = token(live, "alive")
    waiting(live, alive)
    begun = live.database.one("select since from supervisor.tokens where run_id = %s", alive.id)

    def beaten() -> bool:
        live.client.heartbeat(made, {"done": 7})
        over: bool = live.database.one("select clock_timestamp() > %s::timestamptz + interval '5 s'", begun)
        return over

    live.until(beaten)
    assert live.database.sql("select state, details, heartbeat_s from supervisor.tokens where run_id = %s", alive.id) == [("waiting", {"done": 7}, 2.0)]
    live.client.complete(made, 8)
    assert alive.result(timeout=20) == "8"


def test_it_is_completed_once_whoever_asks(live: Live) -> None:
    """Of many that complete at once with different values one wins; the same value again is no error."""
    run = live.start(handed.handed, "thread", "once")
    made = token(live, "once")
    waiting(live, run)

    def one(value: int) -> object:
        with live.database.connect() as conn:
            try:
                return conn.execute("select supervisor.complete(%s, %s::text::jsonb)", (made, value)).fetchone()
            except psycopg.DatabaseError as error:
                return error.sqlstate

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(one, range(8)))
    assert sorted(map(str, told)) == sorted(["(True,)", *["SV032"] * 7])
    won = told.index((True,))
    assert run.result(timeout=20) == won + 1
    assert one(won) == (False,), "repeated after its end, it is told the same"
    with pytest.raises(TokenClosed) as closed:
        live.client.complete(made, won + 1)
    assert (closed.value.run_id, closed.value.seq, closed.value.attempt) == (run.id, 0, 1)
    with pytest.raises(TokenClosed):
        live.client.fail(made, "late")
    with pytest.raises(TokenClosed, match="it was completed already"):
        live.client.heartbeat(made)


def test_a_completion_and_a_timeout_that_meet_have_one_winner(live: Live) -> None:
    """Whoever was told that it is stored finds it used; whoever was told that it is closed finds it timed out."""
    runs = {n: live.start(handed.handed_in_time, f"meet-{n}", 0.25 + n / 200, None) for n in range(40)}

    def one(n: int) -> bool:
        with live.database.connect() as conn:
            made = token(live, f"meet-{n}")
            conn.execute("select pg_sleep(greatest(0, extract(epoch from (select due_at from supervisor.tokens where run_id = %s and attempt = 1) - clock_timestamp())))", (runs[n].id,))
            try:
                row = conn.execute("select supervisor.complete(%s, '77')", (made,)).fetchone()
                return row == (True,)
            except psycopg.DatabaseError as error:
                assert error.sqlstate == "SV032", error
                return False

    with ThreadPoolExecutor(8) as pool:
        stored = dict(zip(runs, pool.map(one, runs), strict=True))
    for n, run in runs.items():
        assert (run.result(timeout=20) == "77") == stored[n], (n, state(live, run))


def test_what_is_no_token_is_refused(live: Live) -> None:
    """Guessed, cut, changed: nothing can be found out with it."""
    run = live.start(handed.handed, "thread", "wrong")
    made = token(live, "wrong")
    changed = made[:30] + ("A" if made[30] != "A" else "B") + made[31:]
    forged = tokens.make(b"guessed", run.id.bytes, 0, 1)
    for wrong in (changed, forged, made[:-1], made + "A", "", "pgst_", str(run.id)):
        for verb in (live.client.complete, live.client.heartbeat):
            with pytest.raises(TokenUnknown):
                verb(wrong)
    assert live.database.one("select supervisor.complete(%s, '1')", made) is True
    assert run.result(timeout=20) == 2
    key = live.database.one("select token_key from supervisor.cell")
    assert tokens.make(key, run.id.bytes, 0, 1) == made and made not in str(live.database.sql("select * from supervisor.attempt where run_id = %s", run.id))


def test_the_run_that_ended_has_closed_its_tokens(live: Live) -> None:
    run = live.start(handed.handed, "thread", "ended")
    made = token(live, "ended")
    waiting(live, run)
    run.cancel()
    live.until(lambda: live.client.status(run).status == "cancelled")
    with pytest.raises(TokenClosed, match=r"its run has ended \(cancelled\)"):
        live.client.complete(made, 1)
    assert state(live, run) == [("handed_in_thread", 1, "dropped")]


def test_a_value_that_the_step_does_not_return_fails_the_try(live: Live) -> None:
    """It is read by the step's annotation, when the run goes on."""
    run = live.start(handed.handed_caught, "retried", "misfit")
    live.client.complete(token(live, "misfit"), "seven")
    live.client.complete(token(live, "misfit", 2), 7)
    assert run.result(timeout=20) == "7"
    errors = live.database.sql("select error ->> 'type' from supervisor.attempts where run_id = %s and kind = 'failed'", run.id)
    assert errors == [("supervisor.core.errors.ResultInvalid",)]


def test_a_branch_goes_on_while_another_step_executes(live: Live) -> None:
    """The run is in memory: its worker looks."""
    run = live.start(handed.handed_beside, "beside", "beside-gate")
    made = token(live, "beside")
    live.until(lambda: live.effects.count("at", "beside") == 1 and state(live, run))
    live.client.complete(made, 3)
    live.until(lambda: live.effects.count("went", "on", "beside") == 1)
    live.effects.open("beside-gate")
    assert run.result(timeout=20) == [3, "beside"]


def test_completions_among_steps_that_come_and_go(live: Live) -> None:
    """Each is given when nothing of its run is in flight: positions have no holes, and a replay of all of it comes to the same."""
    run = live.start(handed.handed_busy, "busy", 12, 300)
    for at in range(12):
        assert live.client.complete(token(live, f"busy-{at}"), at)
    wanted = [sum(range(300)), *range(12), sum(range(300))]
    assert run.result(timeout=30) == wanted
    assert live.database.sql("select count(*), max(pos) + 1, count(distinct pos) from supervisor.steps where run_id = %s", run.id) == [(612,) * 3]
    assert live.client.fork(run, None).result(timeout=20) == wanted


def test_among_other_waits(live: Live) -> None:
    """In any order, each counts; what was there before the run was parked too."""
    run = live.start(handed.handed_among, "among")
    live.client.complete(token(live, "among-kid"), 2)
    live.client.complete(token(live, "among"), 1)
    run.signal(handed.HANDED_GO, "go")
    assert run.result(timeout=20) == [1, "go", 2, None]
    two = live.start(handed.handed_two, "two")
    second, first = token(live, "two-b"), token(live, "two-a")
    waiting(live, two)
    live.client.complete(second, 20)
    live.until(lambda: live.rows(two) == 1)
    waiting(live, two)
    live.client.complete(first, 10)
    assert two.result(timeout=20) == [10, 20]


def test_a_wait_that_lost_is_dropped(live: Live) -> None:
    run = live.start(handed.handed_raced, "raced")
    made = token(live, "raced")
    run.signal(handed.HANDED_GO, "quick")
    assert run.result(timeout=20) == "signal quick"
    with pytest.raises(TokenClosed):
        live.client.complete(made, 1)


def test_operators_and_tokens(live: Live) -> None:
    """A paused run is completed and stays paused; a step that waits is skipped, and its token is closed."""
    run, other = live.start(handed.handed, "thread", "paused"), live.start(handed.handed, "thread", "skipped")
    made, gone = token(live, "paused"), token(live, "skipped")
    waiting(live, run)
    waiting(live, other)
    assert live.client.pause(run) == "paused"
    assert live.client.complete(made, 1)
    assert stands(live, run) == ("paused", "run_paused")
    live.client.skip(other, 0, 5)
    assert other.result(timeout=20) == 6
    with pytest.raises(TokenClosed):
        live.client.complete(gone, 1)
    assert live.client.resume(run)
    assert run.result(timeout=20) == 2


def test_a_transactional_step_can_not_complete_later(live: Live) -> None:
    run = live.start(handed.handed_caught, "tx", "tx")
    assert run.result(timeout=20).startswith("DefinitionError: step handed_in_transaction: a transactional step can't complete later")


def test_what_is_rolled_back_completes_nothing_and_the_same_awaited(live: Live) -> None:
    run = live.start(handed.handed, "thread", "rolled")
    made = token(live, "rolled")
    with psycopg.connect(live.database.dsn) as conn:
        assert live.client.within(conn).complete(made, 1) is True
        conn.rollback()

    async def talk() -> None:
        async with AsyncClient(live.database.dsn) as client:
            await client.heartbeat(made, {"n": 1})
            assert await client.complete(made, 2) is True
            with pytest.raises(TokenClosed):
                await client.fail(made, "late")

    asyncio.run(talk())
    assert run.result(timeout=20) == 3
