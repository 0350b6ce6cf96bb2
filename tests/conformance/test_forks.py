"""A fork is a new run that has been given what another one was, up to a step; a failed run is retried that way."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from supervisor import AsyncClient, InputInvalid, OperationRefused, RunFailed, RunUnknown, UnknownWorkflow
from tests.apps import operated
from tests.conformance.conftest import Live
from tests.conformance.test_pausing import at_gate, audits, status
from tests.harness import ROOT

APP = "tests.apps.operated"


def failed(run: Any) -> BaseException:
    with pytest.raises(RunFailed) as caught:
        run.result(timeout=20)
    assert caught.value.__cause__ is not None
    return caught.value.__cause__


def failing(live: Live, word: str, key: str | None = None) -> Any:
    """A run that has failed at its last step, after the one beside it was done."""
    run = live.start(operated.operated_failing_run.options(key=key), word, f"{word}-open")
    run.signal(operated.OPERATED_GO, "go")
    live.until(lambda: live.rows(run) == 4)
    live.effects.open(f"{word}-beside-done")
    assert isinstance(failed(run), ValueError)
    return run


def names(live: Live, run: Any) -> list[tuple[Any, ...]]:
    return live.database.sql("select seq, kind, name, status from supervisor.steps where run_id = %s order by pos", run.id)


# ── retry of what failed ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_failed_run_goes_on_from_the_step_that_failed(live: Live) -> None:
    """All that it was given before stays: steps beside the failed one too, a signal, a child. Its key stands for the new run."""
    run = failing(live, "fails", "k-fails")
    live.effects.open("fails-open")
    before = names(live, run)
    again = live.client.retry(run, "the service is back", actor="ann")
    assert again != run and again.created and again.key == "k-fails"
    assert again.result(timeout=20) == "after fails-before, go, child of fails, after fails-beside, 7"
    for word in ("fails-before", "fails-beside"):
        assert live.effects.count("after", word) == 1, "it was executed again"
    assert live.effects.count("try", "fails") == 2
    assert live.database.sql("select forked_from, forked_seq from supervisor.runs where run_id = %s", again.id) == [(run.id, 4)]
    assert names(live, run) == before, "the history of what has ended never changes"
    assert live.client.status(run).status == "failed"
    assert live.client.list(key="k-fails")[0].run_id == again.id
    assert dict(live.client.published(again)) == {"said": "go"}
    assert live.database.one("select count(*) from supervisor.runs where workflow = 'operated_child' and parent_id in (%s, %s)", run.id, again.id) == 1
    assert [each[:3] for each in audits(live, run)] == [("retry", "ann", "the service is back")]


def test_a_failed_run_is_retried_once_whoever_asks_how_often(live: Live) -> None:
    """Two people click, at once: one run goes on."""
    run = failing(live, "twice")

    def ask(_: int) -> uuid.UUID:
        with live.database.connect() as conn:
            row = conn.execute("select supervisor.retry(%s)", (run.id,)).fetchone()
        assert row is not None
        return row[0]  # type: ignore[no-any-return]

    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(ask, range(8)))
    assert len(made) == 1 and run.id not in made
    assert live.client.retry(run).id in made
    assert live.database.one("select count(*) from supervisor.runs where forked_from = %s", run.id) == 1
    assert len(audits(live, run)) == 1
    second = live.client.get(made.pop())
    failed(second)
    live.effects.open("twice-open")
    assert live.client.retry(second).result(timeout=20).endswith(", 7"), "what was retried and failed again is retried in its turn"


def test_code_that_failed_by_itself_runs_again_over_all_of_its_history(live: Live) -> None:
    """No step failed: none is executed again."""
    run = live.start(operated.operated_own_error, "own", "own-open")
    assert isinstance(failed(run), RuntimeError)
    live.effects.open("own-open")
    assert live.client.retry(run).result(timeout=20) == "after own"
    assert live.effects.count("after", "own") == 1


def test_a_cancelled_run_goes_on_where_it_was(live: Live) -> None:
    run = live.start(operated.operated_two_steps, "cut", "cut-gate")
    at_gate(live, "cut")
    run.cancel()
    live.until(lambda: status(live, run)[0] == "cancelled")
    live.effects.open("cut-gate")
    again = live.client.retry(run)
    assert again.result(timeout=20) == "after cut"
    assert "cancellation" not in [kind for _, kind, _, _ in names(live, again)]


def test_forks_survive_kill_9(live: Live) -> None:
    """Its worker dies in the first step that is its own: the copied ones are still not executed again."""
    run = live.start(operated.operated_two_steps, "fk", "fk-open")
    at_gate(live, "fk")
    live.effects.open("fk-open")
    run.result(timeout=20)
    again = live.client.fork(run, 0, input={"word": "fk2", "gate": "fk2-gate"})
    at_gate(live, "fk2")
    live.kill()
    live.effects.open("fk2-gate")
    assert again.result(timeout=20) == "after fk2"
    last = live.client.fork(again, 1)
    assert last.result(timeout=20) == "after fk2" and live.effects.count("at", "fk2") == 2


# ── fork ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fork_takes_over_what_came_before_the_step(live: Live) -> None:
    """For every step of it; the run itself stays as it is."""
    run = live.start(operated.operated_sum, [1, 2, 3])
    assert run.result(timeout=20) == 6
    for seq, executed in ((0, 3), (1, 2), (2, 1), (3, 0), (None, 0)):
        before = len(live.effects.lines("add"))
        again = live.client.fork(run, seq)
        assert again.result(timeout=20) == 6
        assert len(live.effects.lines("add")) - before == executed
    assert live.client.status(run).status == "completed"


def test_what_a_run_said_after_its_last_delivery_its_fork_says_too(live: Live) -> None:
    """Patches, and branches that lost, are rows that nobody waits for: what is said after them has no delivery of its own to come with."""
    run = live.start(operated.operated_patched, "said")
    assert run.result(timeout=20) == "after said"
    for seq in (3, None):
        again = live.client.fork(run, seq)
        assert again.result(timeout=20) == "after said"
        assert again.published("said") == "said" and dict(live.client.attributes(again)) == {"word": "said"}
        told = again.progress()
        assert told is not None and (told.done, told.total) == (1, 2)


def test_a_fork_with_another_input_or_workflow(live: Live) -> None:
    """What it was given before stays as it was; its code decides what to make of it."""
    run = live.start(operated.operated_sum, [1, 2, 3])
    run.result(timeout=20)
    assert live.client.fork(run, 2, input=[1, 2, 30]).result(timeout=20) == 33
    assert live.client.fork(run, 1, workflow=operated.operated_product).result(timeout=20) == 6
    assert live.database.one("select supervisor.fork(%s, 3, '{\"numbers\": [1, 2, 3, 4]}', 'operated_product', reason => 'what if')", run.id)
    live.until(lambda: live.database.sql("select result from supervisor.runs where forked_from = %s and forked_seq = 3", run.id) == [(24,)])
    with pytest.raises(UnknownWorkflow):
        live.client.fork(run, 0, workflow="operated_nothing")
    with pytest.raises(InputInvalid):
        live.client.fork(run, 0, input={"unknown": 1}, workflow="operated_two_steps")
    with pytest.raises(psycopg.DatabaseError, match="no parameter of it"):
        live.database.sql("select supervisor.fork(%s, 0, '{\"n\": 1}')", run.id)


def test_a_fork_of_a_live_run_leaves_it_alone(live: Live) -> None:
    """A second try beside a run that hangs."""
    run = live.start(operated.operated_two_steps, "live", "live-gate")
    at_gate(live, "live")
    again = live.client.fork(run, 0, input={"word": "live2", "gate": "live2-gate"})
    live.effects.open("live2-gate")
    assert again.result(timeout=20) == "after live2"
    assert status(live, run)[0] == "running"
    live.effects.open("live-gate")
    assert run.result(timeout=20) == "after live"


def test_a_signal_that_was_given_after_the_point_is_given_to_the_fork_too(live: Live) -> None:
    """An approval that has come need not come again; what a wait before the point was given is given nobody twice."""
    run = failing(live, "sig")
    live.effects.open("sig-open")
    waits = live.database.one("select seq from supervisor.steps where run_id = %s and kind = 'signal'", run.id)
    before, after = live.client.fork(run, waits), live.client.fork(run, waits + 1)
    assert ", go, " in before.result(timeout=20) and ", go, " in after.result(timeout=20)
    for fork in (before, after):
        assert live.database.sql("select payload, seq from supervisor.signals where run_id = %s", fork.id) == [("go", waits)]


def test_branches_that_had_their_result_before_the_point_keep_it(live: Live) -> None:
    """The point is a delivery, not a number: what came before it was given, whatever its seq."""
    run = live.start(operated.operated_branches, "order", "order-gate")
    at_gate(live, "order-0")
    at_gate(live, "order-1")
    live.effects.open("order-gate-1")
    live.until(lambda: live.rows(run) == 2)
    live.effects.open("order-gate-0")
    run.result(timeout=20)
    again = live.client.fork(run, 0)
    assert again.result(timeout=20) == ["after order-0", "after order-1"]
    assert live.effects.count("at", "order-1") == 1 and live.effects.count("after", "order-1") == 1
    assert live.effects.count("at", "order-0") == 2


def test_a_race_that_was_decided_stays_decided(live: Live) -> None:
    """The loser's cancellation is part of what it was given."""
    run = live.start(operated.operated_race, "race", "race-gate")
    assert run.result(timeout=20) == "late after race"
    live.effects.open("race-gate")
    assert live.client.fork(run, 2).result(timeout=20) == "late after race"
    assert live.effects.count("at", "race") == 1


def test_where_a_run_can_not_be_forked(live: Live) -> None:
    run = live.start(operated.operated_sum, [1, 2])
    run.result(timeout=20)
    for seq in (-1, 3, 100):
        with pytest.raises(OperationRefused, match=f"its history has no step {seq}"):
            live.client.fork(run, seq)
    with pytest.raises(RunUnknown):
        live.client.fork(uuid.uuid4(), 0)


def test_a_child_that_lives_reports_to_one_parent(live: Live) -> None:
    """Forked after its start, the new run would wait for a child that never tells it."""
    run = live.start(operated.operated_failing_run, "lives", "lives-open")
    live.until(lambda: status(live, run) == ("waiting", "signal"))
    live.database.sql("insert into supervisor.task (run_id, ready_at, queue, workflow) select c.run_id, 'infinity', 1, 1 from supervisor.child c where c.parent_id = %s", run.id)
    with pytest.raises(OperationRefused, match="still lives: it reports to one parent alone"):
        live.client.fork(run, 2)
    assert live.client.fork(run, 1)
    live.database.sql("delete from supervisor.task where run_id in (select c.run_id from supervisor.child c where c.parent_id = %s)", run.id)
    run.cancel()


def test_a_fork_that_is_rolled_back_never_was(live: Live) -> None:
    run = live.start(operated.operated_sum, [4])
    run.result(timeout=20)
    with psycopg.connect(live.database.dsn) as conn:
        again = live.client.within(conn).fork(run, 0)
        assert again.created
        conn.rollback()
    with pytest.raises(RunUnknown):
        again.result(timeout=20)
    assert audits(live, run) == []


def test_a_fork_whose_answer_was_lost_is_made_once(live: Live) -> None:
    """The client repeats it under the id of the first try."""
    run = live.start(operated.operated_sum, [5])
    run.result(timeout=20)
    made = live.database.one("select supervisor.new_id()")
    ask = "select did, state, made from supervisor.operate('fork', %s, %s, 0, null, '{}', null, null)"
    assert [live.database.sql(ask, run.id, made) for _ in range(2)] == [[(True, "forked", made)], [(False, "forked", made)]]
    assert live.client.get(made).result(timeout=20) == 5
    assert len(audits(live, run)) == 1


def test_the_same_verbs_awaited(live: Live) -> None:
    async def talk() -> None:
        async with AsyncClient(live.database.dsn) as client:
            run = await client.start(operated.operated_asleep, 3000.0)
            assert await client.pause(run, "r", actor="a") in ("paused", "pausing")
            assert await client.resume(run) is True
            failing = await client.start(operated.operated_retrying, "async", "async-open")
            while (await client.status(failing)).wait != "step_backoff":
                await asyncio.sleep(0.01)
            await client.edit_retry(failing, 0, max_attempts=9)
            assert await client.retry(failing) == failing
            while (await client.status(failing)).wait != "step_backoff" or live.effects.count("try", "async") < 2:
                await asyncio.sleep(0.01)
            await client.skip(failing, 0, 3)
            assert await failing.result(20) == 3
            forked = await client.fork(failing, 0, reason="again")
            await forked.cancel()
            async with await psycopg.AsyncConnection.connect(live.database.dsn) as conn:
                assert await client.within(conn).pause(run) in ("paused", "pausing")
            await run.cancel()

    asyncio.run(talk())


def test_a_history_of_all_kinds_is_forked_at_each_step(live: Live) -> None:
    """Updates, a cancellation that was told, what it undid: before the point they are replayed, after it they are not there. What it undid is not retried."""
    run = live.start(operated.operated_of_all_kinds, "all", "all-gate")
    live.client.update(run, operated.OPERATED_ADD, "added", timeout=20)
    run.signal(operated.OPERATED_GO, "go")
    at_gate(live, "all")
    assert run.cancel("enough")
    assert isinstance(failed(run), ValueError)
    live.effects.open("all-gate")
    kinds = [kind for _, kind, _, _ in names(live, run)]
    assert {"update", "handlers_finished", "cancellation", "compensation"} <= set(kinds)
    with pytest.raises(OperationRefused, match="it has undone what it had done"):
        live.client.retry(run)
    seqs = [seq for seq, _, _, _ in names(live, run)]
    for before, seq in enumerate(seqs):
        if seq in [each for each, kind, _, _ in names(live, run) if kind == "update"] or before < kinds.index("handlers_finished"):
            continue  # nobody sends the fork what comes after that point
        again = live.client.fork(run, seq)
        assert isinstance(failed(again), ValueError), seq
        assert names(live, again)[:before] == names(live, run)[:before]
    undo = live.effects.count("undone", "all")
    last = live.client.fork(run, seqs[-1])
    assert isinstance(failed(last), ValueError) and live.effects.count("undone", "all") == undo + 1
    assert dict(last.attributes()) == {"operated_stage": "told", "operated_word": "all"}
    found = {each.run_id for each in live.client.list(20, filter="attribute.operated_stage = told")}
    assert {run.id, last.id} <= found
    assert live.database.one("select progress ->> 'done' from supervisor.runs where run_id = %s", last.id) == "2"


def test_a_chain_is_paused_where_it_is(live: Live) -> None:
    """By the run that it began with: the newest is stopped; one that is to be paused and goes on is paused as its successor."""
    run = live.start(operated.operated_chain, "ch", 2)
    at_gate(live, "ch-2")
    live.effects.open("ch-2-gate")
    at_gate(live, "ch-1")
    newest = live.database.one("select supervisor.newest(%s)", run.id)
    assert live.client.pause(run) == "pausing"
    live.effects.open("ch-1-gate")
    live.until(lambda: live.database.one("select status from supervisor.runs where run_id = supervisor.newest(%s)", run.id) == "paused")
    assert [each[0] for each in live.database.sql("select verb from supervisor.audits where run_id = %s", newest)] == ["pause"]
    live.effects.open("ch-0-gate")
    assert live.client.resume(run)
    assert run.result(timeout=20) == "ch"


# ── what a fork draws ────────────────────────────────────────────────────────────────────────────────────────────


def drawing(live: Live, word: str, rounds: int, workflow: Any = operated.operated_drawing, **more: Any) -> Any:
    for n in range(rounds):
        live.effects.open(f"{word}-{n}-gate")
    return live.start(workflow, word, rounds, **more)


def drew(run: Any) -> tuple[list[str], list[str]]:
    """Its numbers and ids, and its moments, one after the other."""
    told = run.result(timeout=20)
    return [f"{number} {id_}" for number, id_, _ in told], [moment for _, _, moment in told]


@pytest.mark.parametrize("workflow", [operated.operated_drawing, operated.operated_drawing_def], ids=["async", "def"])
def test_a_fork_draws_what_its_run_drew(live: Live, workflow: Any) -> None:
    """Its code is replayed, so it goes the same ways: wherever it is forked, and however often. Its own results come at moments of their own."""
    run = drawing(live, workflow.name, 2, workflow)
    numbers, moments = drew(run)
    assert len(set(numbers)) == 3 and drew(drawing(live, "other", 2, workflow))[0] != numbers
    for seq, kept in ((0, 1), (1, 1), (2, 2), (3, 2), (None, 3)):
        fork = live.client.fork(run, seq)
        again = live.client.fork(fork, 2 if seq is None else seq)
        assert drew(fork)[0] == drew(again)[0] == numbers, seq
        assert drew(fork)[1][:kept] == moments[:kept] and not set(drew(fork)[1][kept:]) & set(moments), seq
        assert drew(again)[1][: min(kept, 2)] == moments[: min(kept, 2)], seq
        last = live.client.fork(again, 0)
        assert drew(last)[0] == numbers and drew(last)[1][0] == moments[0], "a fork of a fork of a fork"


def test_what_is_retried_draws_what_it_drew(live: Live) -> None:
    """It goes on where it failed, whatever it has drawn until then: and so does that one in its turn."""
    run = drawing(live, "redrawn", 2, until="redrawn-open")
    failed(run)
    before = names(live, run)
    again = live.client.retry(run)
    failed(again)
    live.effects.open("redrawn-open")
    third = live.client.retry(again)
    third.result(timeout=20)
    assert names(live, again) == names(live, third) == before
    assert live.effects.count("at", "redrawn-0") == live.effects.count("at", "redrawn-1") == 1


@pytest.mark.parametrize("seq", [0, 2])
def test_a_fork_draws_the_same_when_its_worker_dies(live: Live, seq: int) -> None:
    """Whoever takes it up after kill -9, and answers a query meanwhile."""
    run = drawing(live, f"lived-{seq}", 3)
    numbers, _ = drew(run)
    word, known = f"killed-{seq}", seq // 2 + 1
    fork = live.client.fork(run, seq, input={"word": word, "rounds": 3})
    at_gate(live, f"{word}-{seq // 2}")
    assert [" ".join(each[:2]) for each in fork.query(operated.OPERATED_DRAWN)] == numbers[:known]
    live.kill()
    live.until(lambda: live.effects.count("at", f"{word}-{seq // 2}") == 2)
    for n in range(3):
        live.effects.open(f"{word}-{n}-gate")
    assert drew(fork)[0] == numbers
    assert [" ".join(each[:2]) for each in fork.query(operated.OPERATED_DRAWN)] == numbers[:3], "an ended one is replayed as well"


def test_what_a_fork_goes_on_as_draws_by_itself(live: Live) -> None:
    """A run that continues as a new one starts anew, with its own numbers: a fork of it too."""
    run = live.start(operated.operated_drawing_on, 1)
    run.result(timeout=20)
    fork = live.client.fork(run, 0)
    fork.result(timeout=20)
    chain = "with recursive c as (select %s::uuid as id union all select (o.result #>> '{}')::uuid from c join supervisor.runs o on o.run_id = c.id where o.status = 'continued') select id from c"
    first, second = ([live.client.published(each)["drawn"] for (each,) in live.database.sql(chain, one.id)] for one in (run, fork))
    assert len(first) == len(second) == 2
    assert first[0] == second[0] and first[1] != second[1]


def test_a_fork_is_named_itself_whatever_it_went_on_as(live: Live) -> None:
    """Its id is the one that tells where it came from; and another input is by the parameters of the run, not of what that went on as."""
    run = live.start(operated.operated_going_on, "on", "on-open")
    failed(run)
    live.effects.open("on-open")
    again = live.client.retry(run)
    assert again.result(timeout=20) == 1 and again.status().status == "completed"
    assert live.client.retry(run).id == again.id, "asked again, it is the same one"
    fork = live.client.fork(again, 0, input={"word": "on", "until": "on-open"})
    assert fork.result(timeout=20) == 1
    assert live.database.sql("select forked_from from supervisor.runs where run_id in (%s, %s) order by 1", again.id, fork.id) == [(run.id,), (again.id,)]


def test_a_fork_that_was_made_before_draws_by_its_own_id(live: Live) -> None:
    """Forks of an older version have drawn so already; what is forked from them draws what they drew."""
    run = drawing(live, "older", 1)
    numbers, _ = drew(run)
    with psycopg.connect(live.database.dsn) as conn:
        old = live.client.within(conn).fork(run, 0)
        conn.execute("update supervisor.run set drawn_from = null where run_id = %s", (old.id,))
    assert drew(old)[0] != numbers
    assert drew(live.client.fork(old, 1))[0] == drew(old)[0]


def command(live: Live, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "supervisor", *words], cwd=ROOT, capture_output=True, check=False)


def test_forks_and_their_exports_are_equal_to_their_code(live: Live, tmp_path: Path) -> None:
    """`replay` draws for a fork what it drew, from the database and from a file. Files that were written before there was that field are read as they were."""
    run = drawing(live, "exported", 2)
    drew(run)
    forks = [live.client.fork(run, seq) for seq in (0, 3)]
    drew(forks[0])
    forks.append(live.client.fork(forks[0], 2))
    for each in forks[1:]:
        drew(each)
    ids = [str(each.id) for each in (run, *forks)]
    replay, dsn = ("replay", "--json", "--app", APP), ("--dsn", live.database.dsn)
    done = command(live, *replay, *dsn, *(word for id_ in ids for word in ("--run", id_)))
    assert json.loads(done.stdout.splitlines()[-1]) == {"replayed": 4, "equal": 4, "parted": 0, "left_out": 0}, done.stdout + done.stderr
    exported = command(live, "export", *dsn, *ids).stdout
    documents = [json.loads(line) for line in exported.splitlines()]
    assert [(each["format_version"], each["drawn_from"]) for each in documents] == [(1, None), *[(2, ids[0])] * 3]
    older = [{name: value for name, value in each.items() if name != "drawn_from"} | {"format_version": 1} for each in documents]
    for lines, equal in ((exported, 4), (b"\n".join(json.dumps(each).encode() for each in older), 1)):
        (tmp_path / "histories.json").write_bytes(lines)
        done = command(live, *replay, "--file", str(tmp_path / "histories.json"))
        assert json.loads(done.stdout.splitlines()[-1]) == {"replayed": 4, "equal": equal, "parted": 4 - equal, "left_out": 0}, done.stdout + done.stderr


# ── another input, as it is stored ───────────────────────────────────────────────────────────────────────────────

# what jsonb would change: the order of names, how floats and long numbers are written, spaces
GIVEN = {"zebra": 1e16, "a": 1.0, "long": 10**30, "tiny": 1e-7, "é": "\x01é\n", "": [0.1, -0.0]}


def test_another_input_is_stored_as_that_of_a_start(live: Live) -> None:
    """Byte for byte: whoever gives it, and by whichever verb; and where the workflow alone is another one."""

    def stored(run: Any) -> bytes:
        return bytes(live.database.one("select input from supervisor.run where run_id = %s", getattr(run, "id", run)))

    def forks() -> set[uuid.UUID]:
        return {each for (each,) in live.database.sql("select run_id from supervisor.runs where forked_from = %s", run.id)}

    run = live.start(operated.operated_given, {"n": 1})
    given, alone = live.start(operated.operated_given, GIVEN, 7), live.start(operated.operated_given_too, GIVEN)
    wanted = stored(given)
    assert b"1e16" in wanted and wanted.index(b"zebra") < wanted.index(b'"a"')
    asked = {"what": GIVEN, "n": 7}
    assert stored(live.client.fork(run, 0, input=asked)) == wanted
    assert stored(live.client.fork(run, 0, input=asked, workflow="operated_given")) == wanted
    assert stored(live.client.fork(run, 0, input=GIVEN, workflow=operated.operated_given_too)) == stored(alone)
    assert stored(live.client.fork(alone, 0, workflow=operated.operated_given)) == stored(alone)
    for words in ((str(run.id),), ("--filter", f"run = {run.id}", "--yes")):
        before = forks()
        done = command(live, "fork", *words, "--dsn", live.database.dsn, "--seq", "0", "--input-json", msgspec.json.encode(asked).decode())
        assert done.returncode == 0, done.stderr
        assert [stored(each) for each in forks() - before] == [wanted]
    before = forks()
    assert live.client.operate_all("fork", f"run = {run.id}", seq=0, input=asked).done == 1
    assert [stored(each) for each in forks() - before] == [wanted]
    for each in (run, given, alone, *map(live.client.get, forks())):
        each.result(timeout=20)


def test_the_size_of_an_input_is_that_of_its_bytes(live: Live) -> None:
    """As jsonb each of these numbers has three hundred digits."""
    run = live.start(operated.operated_given, {})
    assert run.result(timeout=20) == 1
    large = {"numbers": [1e300] * 10_000}
    assert live.client.fork(run, 0, input={"what": large}).result(timeout=20) == 2
    with pytest.raises(psycopg.DatabaseError, match="bytes of JSON, more than 2097152"):
        live.database.sql("select supervisor.operate('fork', %s, %s, 0, %s, '{}', null, null)", run.id, uuid.uuid4(), b'{"what":{"a":"%s"}}' % (b"x" * (2 << 20)))
