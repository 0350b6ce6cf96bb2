"""What operators do to a step that failed, crashed or hangs: try it again now, on other terms, or give it a result."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import psycopg
import pytest

from supervisor import AsyncClient, Bulk, Client, FilterInvalid, InputInvalid, OperationRefused, ResultInvalid, RunCancelled, RunEnded, RunUnknown
from supervisor.api.bulk import Each
from supervisor.db import bulk
from supervisor.db.operator_calls import Deed
from tests.acceptance.test_workers import command
from tests.apps import operated
from tests.conformance.client_host import register
from tests.conformance.conftest import Live
from tests.conformance.test_pausing import at_gate, audits, status
from tests.harness import Database

APP = "tests.apps.operated"


def in_backoff(live: Live, run: Any, word: str, tries: int = 1) -> None:
    live.until(lambda: live.effects.count("try", word) == tries and status(live, run) == ("waiting", "step_backoff"))


def details(live: Live, run: Any) -> list[dict[str, Any]]:
    return [row for (row,) in live.database.sql("select details from supervisor.audits where run_id = %s order by n", run.id)]


# ── again, now ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_step_in_backoff_is_tried_at_once(live: Live) -> None:
    """Nobody waits 50 minutes for a service that is back. The try counts as the next one; and again when that fails."""
    run = live.start(operated.operated_retrying, "now", "now-open")
    in_backoff(live, run, "now")
    assert live.client.retry(run, "it is back", actor="ann") == run
    in_backoff(live, run, "now", 2)
    live.effects.open("now-open")
    assert live.database.one("select supervisor.retry(%s)", run.id) == run.id
    assert run.result(timeout=20) == 3
    assert [line[2] for line in live.effects.lines("try") if line[1] == "now"] == ["1", "2", "3"]
    assert [each[:3] for each in audits(live, run)] == [("retry", "ann", "it is back"), ("retry", None, None)]
    assert details(live, run)[0] == {"was": "step_backoff", "steps": ["operated_failing"]}
    kinds = live.database.sql("select kind, n from supervisor.attempts where run_id = %s order by kind, n", run.id)
    assert kinds == [("edited", 1), ("edited", 2), ("failed", 1), ("failed", 2)]


def test_a_step_in_backoff_beside_one_that_executes_is_tried_at_once(live: Live) -> None:
    """The run is its worker's: that one is told, and does not repeat the other step."""
    run = live.start(operated.operated_retrying_beside, "beside", "beside-open", "beside-gate")
    at_gate(live, "beside")
    live.until(lambda: live.effects.count("try", "beside") == 1 and live.database.one("select count(*) from supervisor.attempts where run_id = %s", run.id) == 1)
    live.effects.open("beside-open")
    assert live.client.retry(run) == run
    live.until(lambda: live.rows(run) == 1)
    live.effects.open("beside-gate")
    assert run.result(timeout=20) == [2, "beside"]
    assert live.effects.count("at", "beside") == 1
    live.until(lambda: live.database.one("select count(*) from supervisor.changed") == 0)


def test_a_retry_that_was_asked_for_holds_after_kill_9(live: Live) -> None:
    """Told to a worker that dies before it has heard: who takes the run reads it in the history."""
    run = live.start(operated.operated_retrying_beside, "dies", "dies-open", "dies-gate")
    at_gate(live, "dies")
    live.until(lambda: live.database.one("select count(*) from supervisor.attempts where run_id = %s", run.id) == 1)
    live.effects.open("dies-open")
    assert live.database.one("select supervisor.retry(%s)", run.id) == run.id
    live.kill()
    live.effects.open("dies-gate")
    assert run.result(timeout=20) == [2, "dies"]


def test_a_poisonous_run_is_retried_or_its_step_skipped(live: Live) -> None:
    """Three dead workers park it. retry forgives them, as before; skip spares the fourth."""
    run = live.start(operated.operated_poisonous, "poison")
    live.until(lambda: status(live, run) == ("waiting", "attempts_exhausted"), 60)
    assert live.effects.count("try", "poison") == 3
    assert live.client.retry(run, "the memory was bad") == run
    live.until(lambda: live.effects.count("try", "poison") == 6 and status(live, run) == ("waiting", "attempts_exhausted"), 60)
    live.client.skip(run, 0, 41, "counted by hand", actor="ann")
    assert run.result(timeout=20) == 42
    assert live.effects.count("try", "poison") == 6


def test_what_waits_for_something_else_is_not_retried(live: Live) -> None:
    asleep, atgate, done = live.start(operated.operated_asleep, 3000.0), live.start(operated.operated_two_steps, "else", "else-gate"), live.start(operated.operated_asleep, 0.0)
    at_gate(live, "else")
    done.result(timeout=20)
    live.until(lambda: status(live, asleep) == ("waiting", "timer"))
    for run, why in ((asleep, "it waits for something else: timer"), (atgate, "a worker executes it"), (done, "it has completed: there is nothing to try again")):
        with pytest.raises(OperationRefused, match=why) as refused:
            live.client.retry(run)
        assert (refused.value.run_id, refused.value.verb) == (run.id, "retry")
    live.client.pause(asleep)
    with pytest.raises(OperationRefused, match="it is paused: resume it first"):
        live.client.retry(asleep)
    with pytest.raises(RunUnknown):
        live.client.retry(uuid.uuid4())
    asleep.cancel()
    live.effects.open("else-gate")


# ── other terms ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_other_terms_hold_for_this_run_and_this_step(live: Live) -> None:
    """One more try, soon; a replay counts as it was told; another run of the same step is not touched."""
    run, other = live.start(operated.operated_exhausting, "terms"), live.start(operated.operated_exhausting, "other")
    in_backoff(live, run, "terms")
    in_backoff(live, other, "other")
    live.client.edit_retry(run, 0, max_attempts=4, initial=0.001, factor=1.0, maximum=0.01, next_in=0.0, reason="it is known to come back", actor="ann")
    assert run.result(timeout=20) == "caught try 4 of terms"
    assert live.effects.count("try", "terms") == 4 and live.effects.count("try", "other") == 1
    assert details(live, run)[0]["policy"] == {"max_attempts": 4, "initial": 0.001, "factor": 1, "maximum": 0.01}
    live.client.edit_retry(other, 0, max_attempts=1)
    live.client.retry(other)
    assert other.result(timeout=20) == "caught try 2 of other", "no try is left after the one that was made"


def test_other_terms_survive_kill_9_and_add_up(live: Live) -> None:
    """What a later edit does not name stays as an earlier one had it."""
    run = live.start(operated.operated_exhausting, "adds")
    in_backoff(live, run, "adds")
    live.client.edit_retry(run, 0, max_attempts=2)
    live.client.edit_retry(run, 0, next_in=3000.0)
    live.until(lambda: status(live, run) == ("waiting", "step_backoff"))
    live.kill()
    live.client.edit_retry(run, 0, next_in=0.0)
    assert run.result(timeout=20) == "caught try 2 of adds"


def test_a_later_due_time_is_honoured(live: Live) -> None:
    run = live.start(operated.operated_retrying, "later", "later-open")
    in_backoff(live, run, "later")
    live.client.edit_retry(run, 0, next_in=90_000.0)
    far = "select wait_kind = 9 and ready_at > clock_timestamp() + interval '89000 s' from supervisor.task where run_id = %s"
    live.until(lambda: live.database.one(far, run.id))
    run.cancel()


SOON = {"max_attempts": 3, "initial": 0.001, "maximum": 0.01}


@pytest.mark.parametrize("way", ["client", "command", "sql"])
def test_a_step_that_executes_its_first_try_is_given_other_terms(live: Live, way: str, tmp_path: Path) -> None:
    """Somebody sees it hang and knows that it will fail: declared to be tried once, it is tried three times."""
    run = live.start(operated.operated_unfailed, f"first-{way}")
    live.until(lambda: live.database.one("select wait from supervisor.runs where run_id = %s", run.id) == "step_running")
    if way == "client":
        with pytest.raises(OperationRefused, match="step 0 has not failed: no next try is due"):
            live.client.edit_retry(run, 0, max_attempts=3, next_in=0.0)
        with pytest.raises(OperationRefused, match="step 1 has not begun, or less than a second ago: its policy can be changed when it has failed, or has been executing for a second"):
            live.client.edit_retry(run, 1, max_attempts=3)
        live.client.edit_retry(run, 0, max_attempts=2, reason="it will fail", actor="ann")
        live.client.edit_retry(run, 0, **SOON, reason="twice, even", actor="ann")
    elif way == "command":
        made = command(live.database, "edit-retry", str(run.id), "--seq", "0", "--next-in", "5", folder=tmp_path)
        assert made.returncode == 1 and "its policy alone can be changed" in made.stderr
        words = [word for name, value in SOON.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        made = command(live.database, "edit-retry", str(run.id), "--seq", "0", *words, "--reason", "it will fail", "--actor", "ann", folder=tmp_path)
        assert (made.returncode, made.stdout) == (0, f"edited {run.id}\n"), made.stderr
    else:
        with pytest.raises(psycopg.DatabaseError, match="step 7 has not begun") as refused:
            live.database.sql("select supervisor.edit_retry(%s, 7, 3)", run.id)
        assert refused.value.sqlstate == "SV030"
        live.database.sql("select supervisor.edit_retry(%s, 0, 3, 0.001, maximum => 0.01, reason => 'it will fail', actor => 'ann')", run.id)
    live.until(lambda: live.database.one("select count(*) from supervisor.changed where run_id = %s", run.id) == 0)  # its worker has read them
    live.effects.open(f"first-{way}-open")
    assert run.result(timeout=20) == 3 and live.effects.count("try", f"first-{way}") == 3
    audited = live.database.sql("select actor, reason from supervisor.audits where run_id = %s and verb = 'edit_retry' order by n", run.id)
    assert audited == [("ann", "it will fail"), ("ann", "twice, even")][: 2 if way == "client" else 1]


def test_terms_given_before_a_step_failed_survive_kill_9(live: Live) -> None:
    """The step is executed again, as the same try, and its failures count as it was told."""
    run = live.start(operated.operated_unfailed, "first-killed")
    live.until(lambda: live.database.one("select wait from supervisor.runs where run_id = %s", run.id) == "step_running")
    live.client.edit_retry(run, 0, **SOON)
    live.kill()
    live.effects.open("first-killed-open")
    assert run.result(timeout=40) == 3


def test_a_step_that_has_its_result_is_not_given_other_terms(live: Live) -> None:
    run = live.start(operated.operated_asleep, 0.0)
    run.result(timeout=20)
    with pytest.raises(RunEnded):
        live.client.edit_retry(run, 0, max_attempts=3)
    run = live.start(operated.operated_unfailed, "first-asleep")
    live.until(lambda: live.database.one("select wait from supervisor.runs where run_id = %s", run.id) == "step_running")
    live.client.edit_retry(run, 0, **SOON)
    live.until(lambda: live.database.one("select count(*) from supervisor.changed where run_id = %s", run.id) == 0)
    live.effects.open("first-asleep-open")
    live.until(lambda: status(live, run) == ("waiting", "timer"))
    with pytest.raises(OperationRefused, match="step 0 has its result: it is not tried again; a fork from there is"):
        live.client.edit_retry(run, 0, max_attempts=3)
    run.cancel()


def test_terms_that_mean_nothing_are_refused(live: Live) -> None:
    run = live.start(operated.operated_retrying, "bad", "bad-open")
    in_backoff(live, run, "bad")
    with pytest.raises(InputInvalid, match="nothing to change"):
        live.client.edit_retry(run, 0)
    with pytest.raises(InputInvalid, match="max_attempts does not fit"):
        live.client.edit_retry(run, 0, max_attempts=0)
    with pytest.raises(psycopg.DatabaseError, match="factor does not fit"):
        live.database.sql("select supervisor.edit_retry(%s, 0, factor => 0.5)", run.id)
    for seq in (1, -1, 99):
        with pytest.raises(OperationRefused, match=f"step {seq} has not begun, or less than a second ago"):
            live.client.edit_retry(run, seq, max_attempts=3)
    assert audits(live, run) == []
    run.terminate()
    with pytest.raises(RunEnded):
        live.client.edit_retry(run, 0, max_attempts=3)


# ── a result in place of a step ──────────────────────────────────────────────────────────────────────────────────


def test_a_step_in_backoff_is_given_a_result(live: Live) -> None:
    """It is not executed again; the history says who gave it the result, and a kill changes nothing of it."""
    run = live.start(operated.operated_retrying_beside, "given", "given-open", "given-gate")
    at_gate(live, "given")
    live.until(lambda: live.database.one("select count(*) from supervisor.attempts where run_id = %s", run.id) == 1)
    live.client.skip(run, 0, 12, "done by hand", actor="ann")
    live.kill()
    live.effects.open("given-gate")
    assert run.result(timeout=20) == [12, "given"]
    assert live.effects.count("try", "given") == 1
    assert live.database.sql("select seq, name, status, result, worker from supervisor.steps where run_id = %s and seq = 0", run.id) == [(0, "operated_failing", "completed", 12, 0)]
    skipped = live.database.sql("select seq, name, error from supervisor.attempts where run_id = %s and kind = 'skipped'", run.id)
    assert skipped == [(0, "operated_failing", {"by": "ann", "reason": "done by hand"})]
    assert details(live, run) == [{"seq": 0, "step": "operated_failing", "result": 12}]


def test_a_step_beside_one_that_executes_is_skipped_with_nothing_repeated(live: Live) -> None:
    """Paused first, the run finishes what it executes and leaves its worker; then nothing is taken from anybody."""
    run = live.start(operated.operated_retrying_beside, "aside", "aside-open", "aside-gate")
    at_gate(live, "aside")
    live.until(lambda: live.database.one("select count(*) from supervisor.attempts where run_id = %s", run.id) == 1)
    assert live.client.pause(run) == "pausing"
    live.effects.open("aside-gate")
    live.until(lambda: status(live, run) == ("paused", "run_paused"))
    live.client.skip(run, 0, 12)
    assert live.client.resume(run)
    assert run.result(timeout=20) == [12, "aside"]
    assert live.effects.count("at", "aside") == 1 and live.effects.count("try", "aside") == 1


@pytest.mark.parametrize("kind", ["operated_two_steps", "operated_two_steps_def"])
def test_a_step_that_hangs_is_given_a_result(live: Live, kind: str) -> None:
    """Its worker learns that the run is not its own any more: what the step returns at last is nobody's."""
    word = f"hangs-{kind}"
    run = live.start(getattr(operated, kind), word, f"{word}-gate")
    at_gate(live, word)
    live.until(lambda: status(live, run)[1] == "step_running")
    live.client.skip(run, 0, "by hand")
    assert run.result(timeout=20) == f"after {word}"
    assert live.database.one("select result from supervisor.steps where run_id = %s and seq = 0", run.id) == "by hand"
    live.effects.open(f"{word}-gate")
    live.until(lambda: live.effects.count("left", word) == 1)
    assert live.effects.count("after", word) == 1


def test_a_paused_run_stays_paused_when_its_step_is_skipped(live: Live) -> None:
    run = live.start(operated.operated_retrying, "still", "still-open")
    in_backoff(live, run, "still")
    assert live.client.pause(run) == "paused"
    live.client.skip(run, 0, 5)
    assert status(live, run) == ("paused", "run_paused")
    assert live.client.resume(run)
    assert run.result(timeout=20) == 5


def test_a_result_must_fit_and_the_step_must_be_pending(live: Live) -> None:
    """Where the step's code is known its annotation is asked; a wrong one would park the run for good."""
    run = live.start(operated.operated_retrying, "fit", "fit-open")
    in_backoff(live, run, "fit")
    with pytest.raises(ResultInvalid):
        live.client.skip(run, 0, "seven")
    for seq in (-1, 1, 7):
        with pytest.raises(OperationRefused, match=f"step {seq} has its result, or nobody knows yet that it was called"):
            live.client.skip(run, seq, 1)
    live.database.sql("select supervisor.skip(%s, 0, '7', reason => 'in SQL')", run.id)
    assert run.result(timeout=20) == 7
    with pytest.raises(RunEnded):
        live.client.skip(run, 0, 1)


def test_a_verb_that_is_rolled_back_leaves_nothing(live: Live) -> None:
    """Not its effect and not its row of audit; the worker goes on with what it has."""
    run = live.start(operated.operated_two_steps, "rolled", "rolled-gate")
    at_gate(live, "rolled")
    live.until(lambda: status(live, run)[1] == "step_running")
    with psycopg.connect(live.database.dsn) as conn:
        live.client.within(conn).skip(run, 0, "never")
        assert conn.execute("select count(*) from supervisor.steps where run_id = %s", (run.id,)).fetchone() == (1,)
        conn.rollback()
    live.effects.open("rolled-gate")
    assert run.result(timeout=20) == "after rolled"
    assert audits(live, run) == [] and live.effects.count("at", "rolled") == 1


def test_all_that_a_filter_finds_are_asked_slice_by_slice(live: Live) -> None:
    """Two slices; what ended is left out, what somebody has locked is told and had when it is asked again, and each has its row of audit."""
    runs = [run.id for run in live.client.start_many(operated.operated_asleep.options(queue="default", batch="all-of-them"), [3000.0] * 520)]
    live.until(lambda: live.database.one("select count(*) from supervisor.timer where run_id = any(%s)", runs) == len(runs), 40)
    mine, told = "batch = all-of-them", []
    assert live.client.operate_all("pause", mine, dry_run=True) == Bulk(520, 0, 0)
    with live.database.connect() as other, other.transaction():
        other.execute("select supervisor.pause(%s)", (runs[7],))
        came = live.client.operate_all("pause", mine, each=told.append, reason="year end", actor="ann")
        assert came == Bulk(520, 519, 0, (runs[7],))
        raise psycopg.Rollback
    assert sorted(each.run_id for each in told) == sorted(runs) and {each.state for each in told} == {"paused", "locked"}
    again = asyncio.run(_resume_all(live, mine))
    assert (again.found, again.done, again.refused) == (520, 519, 1)
    audited = "select verb, actor, reason, count(*) from supervisor.audits where run_id = any(%s) group by 1, 2, 3 order by 1"
    assert live.database.sql(audited, runs) == [("pause", "ann", "year end", 519), ("resume", None, None, 519)]
    live.database.sql("select supervisor.terminate_many(%s)", runs[:500])
    assert live.client.operate_all("pause", mine) == Bulk(20, 20, 0)
    told.clear()
    assert live.client.operate_all("terminate", mine, each=told.append, reason="over", actor="ann") == Bulk(20, 20, 0)
    assert {(each.run_id, each.did, each.state) for each in told} == {(run_id, True, "terminated") for run_id in runs[500:]}
    assert live.database.sql(audited, runs[500:])[-1] == ("terminate", "ann", "over", 20)


def test_all_that_a_filter_finds_are_cancelled_and_whoever_waits_hears_of_it(live: Live) -> None:
    """Some have begun and are told, some have not and end at once; asked again none is asked twice, and within a transaction what is rolled back was not done."""
    asleep = [live.start(operated.operated_asleep.options(batch="cancelled"), 3000.0) for _ in range(3)]
    later = [live.start(operated.operated_asleep.options(batch="cancelled", delay=3000.0), 3000.0) for _ in range(2)]
    live.until(lambda: all(status(live, run) == ("waiting", "timer") for run in asleep))
    told: list[Each] = []
    with psycopg.connect(live.database.dsn) as conn:
        assert live.client.within(conn).operate_all("cancel", "batch = cancelled") == Bulk(5, 5, 0)
        conn.rollback()
    assert live.client.operate_all("cancel", "batch = cancelled", dry_run=True) == Bulk(5, 0, 0)
    assert live.client.operate_all("cancel", "batch = cancelled", each=told.append, reason="not wanted", actor="ann") == Bulk(5, 5, 0)
    assert {each.run_id: each.state for each in told} == {**{run.id: "asked" for run in asleep}, **{run.id: "cancelled" for run in later}}
    for run in (*asleep, *later):
        with pytest.raises(RunCancelled, match="not wanted"):
            run.result(timeout=20)
    assert live.client.operate_all("cancel", "batch = cancelled").found == 0
    audited = "select verb, actor, reason, count(*) from supervisor.audits where run_id = any(%s) group by 1, 2, 3"
    assert live.database.sql(audited, [run.id for run in (*asleep, *later)]) == [("cancel", "ann", "not wanted", 5)]


async def _resume_all(live: Live, filter: str) -> Bulk:
    async with AsyncClient(live.database.dsn) as client:
        return await client.operate_all("resume", filter)


@pytest.mark.parametrize(("times", "state"), [(4, "paused"), (9, "locked")])
def test_a_slice_that_somebody_is_in_the_way_of_is_tried_again_and_then_left(database: Database, times: int, state: str) -> None:
    """From Python and from the command; in a caller's transaction nothing can be tried again, and the refusal is told."""
    register(database, "operated_asleep")
    database.sql("create sequence supervisor.in_the_way")
    database.sql("alter function supervisor.operate_many rename to operate_many_free")
    database.sql(f"""
        create function supervisor.operate_many(p_verb text, p_runs uuid[], p_seq int4, p_payload bytea, p_options jsonb, p_reason text, p_actor text)
        returns table (run_id uuid, did boolean, state text, why text, made uuid, owner int4) language plpgsql as $$
        begin
            if nextval('supervisor.in_the_way') <= {times} then
                raise exception 'in the way' using errcode = '55P03';
            end if;
            return query select * from supervisor.operate_many_free($1, $2, $3, $4, $5, $6, $7);
        end $$""")
    with Client(database.dsn) as client:
        runs = [client.start(operated.operated_asleep, 3000.0).id for _ in range(2)]
        told: list[Each] = []
        assert client.operate_all("pause", "workflow = operated_asleep", each=told.append).done == (2 if state == "paused" else 0)
        assert {each.state for each in told} == {state} and sorted(each.run_id for each in told) == runs
        database.sql("alter sequence supervisor.in_the_way restart")
        with database.connect() as conn:
            assert {each.state for each in bulk.operate(conn, "supervisor", Deed("resume"), runs, None, None)} <= {"locked", "resumed", "ready"}
        database.sql("alter sequence supervisor.in_the_way restart")
        with psycopg.connect(database.dsn) as conn, pytest.raises(psycopg.errors.LockNotAvailable):
            client.within(conn).operate_all("pause", "workflow = operated_asleep")


def test_what_a_verb_takes_is_checked_before_a_run_is_asked(live: Live) -> None:
    for words, text in (
        (("stop", "workflow = x"), "there is no verb 'stop'; it is one of cancel"), (("skip", "workflow = x"), "skip wants seq="),
    ):  # fmt: skip
        with pytest.raises(InputInvalid, match=text):
            live.client.operate_all(*words)  # type: ignore[arg-type]
    with pytest.raises(InputInvalid, match="pause takes no seq="):
        live.client.operate_all("pause", "workflow = x", seq=1)
    with pytest.raises(InputInvalid, match="edit_retry wants max_attempts"):
        live.client.operate_all("edit_retry", "workflow = x", seq=1, policy={})
    with pytest.raises(FilterInvalid):
        live.client.operate_all("pause", "workflow is x")


def test_actors_and_reasons_have_a_limit(live: Live) -> None:
    run = live.start(operated.operated_asleep, 3000.0)
    with pytest.raises(InputInvalid, match="a reason has at most 4000 characters and an actor 200"):
        live.client.pause(run, "x" * 4001)
    run.cancel()
